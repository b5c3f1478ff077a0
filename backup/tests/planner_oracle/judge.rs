//! Whether a plan is right, judged by the source, the target, and the bytes that it writes.

use std::collections::BTreeMap;

use backup::ByteRange;
use backup::manifest::{Coverage, DiskImage, LogicalVolume, RegionKind};
use backup::plan::{DiskPlan, ExtraSpace};

use super::oracle::{Fit, Placed, candidates};
use super::source::{ENTRIES, MIB, Source, Sparse, Table};

/// What a plan is judged by.
pub(crate) struct Case<'a> {
    pub(crate) source: &'a Source,
    pub(crate) image: &'a DiskImage,
    pub(crate) volumes: &'a [LogicalVolume],
    pub(crate) fit: &'a Fit,
    pub(crate) policy: ExtraSpace,
    /// Partitions that were to be left empty.
    pub(crate) empty: &'a [u32],
    pub(crate) plan: &'a DiskPlan,
}

type Verdict = Result<(), String>;

fn ensure(holds: bool, what: impl Into<String>) -> Verdict {
    if holds { Ok(()) } else { Err(what.into()) }
}

fn wide(value: u64) -> i128 {
    i128::from(value)
}

impl Case<'_> {
    pub(crate) fn judge(&self) -> Verdict {
        let judged = self
            .places()
            .and_then(|places| {
                self.table(&places)?;
                self.copies(&places)?;
                self.areas(&places)
            })
            .and_then(|()| self.writes());
        judged.map_err(|reason| {
            // Bytes of tables say nothing to people.
            let plan = DiskPlan {
                commit: Vec::new(),
                ..self.plan.clone()
            };
            format!("{reason}: {:#?} {plan:#?}", self.source)
        })
    }

    /// Where each partition is planned, and whether that is right.
    fn places(&self) -> Result<BTreeMap<u32, ByteRange>, String> {
        let planned = self.plan.partitions.iter();
        let places: BTreeMap<_, _> = planned.map(|one| (one.number, one.range)).collect();
        if self.source.table == Table::None {
            ensure(places.is_empty(), "no partition where no table is")?;
            return Ok(places);
        }
        ensure(
            places.len() == self.fit.parts.len() && places.len() == self.plan.partitions.len(),
            "each partition once",
        )?;
        let mut at = 0;
        let (mut shift, mut changes) = (0, Vec::new());
        for part in &self.fit.parts {
            let place = places.get(&part.number).ok_or("a partition is missing")?;
            let (start, end) = (wide(place.start()), wide(place.end()));
            ensure(
                at <= start && start < end && end <= self.fit.usable,
                "in order, on the disk",
            )?;
            at = end;
            ensure(
                start - part.start == shift,
                "moves by what changes before it",
            )?;
            ensure(shift % wide(MIB) == 0, "moves by whole MiB")?;
            ensure(
                shift == 0 || !part.stays,
                "what is found by its place stays",
            )?;
            let more = end - start - part.len();
            changes.push((part, more));
            if self.moves() {
                shift += more;
            }
            let grow = self
                .plan
                .grow
                .iter()
                .find(|one| one.partition == part.number);
            let shrink = self
                .plan
                .shrink
                .iter()
                .find(|one| one.partition == part.number);
            let empty = self.empty.contains(&part.number);
            ensure((more > 0 && !empty) == grow.is_some(), "what grows is said")?;
            ensure(
                (more < 0 && !empty) == shrink.is_some(),
                "what shrinks is said",
            )?;
            ensure(
                grow.is_none_or(|grow| grow.to == place.len())
                    && shrink.is_none_or(|shrink| shrink.to == place.len()),
                "to its partition's size",
            )?;
        }
        if self.fit.excess > 0 {
            self.less(&changes)?;
        } else {
            self.more(&changes)?;
        }
        Ok(places)
    }

    /// Whether partitions change their places.
    fn moves(&self) -> bool {
        let is_gpt = self.source.table == Table::Gpt;
        self.fit.excess > 0 || (is_gpt && self.policy == ExtraSpace::Proportional)
    }

    /// The right ones give way, by what must be, and as few as possible.
    fn less(&self, changes: &[(&Placed, i128)]) -> Verdict {
        let may: Vec<u32> = candidates(&self.fit.parts)
            .iter()
            .map(|part| part.number)
            .collect();
        let taken: i128 = changes.iter().map(|(_, more)| -more).sum();
        ensure(taken == self.fit.excess, "no more is taken than must")?;
        let (mut least_taken, mut most_left, mut partly) = (i128::MAX, 0, 0);
        for (part, more) in changes {
            let slack = part
                .slack()
                .filter(|_| may.contains(&part.number))
                .unwrap_or(0);
            ensure(*more <= 0 && -more <= slack, "keeps what it needs")?;
            if *more == 0 {
                most_left = most_left.max(slack);
            } else {
                least_taken = least_taken.min(slack);
                partly += u32::from(-more < slack);
            }
        }
        ensure(partly <= 1, "all but one give what they can")?;
        ensure(
            least_taken >= most_left,
            "those with the most room give way",
        )
    }

    fn more(&self, changes: &[(&Placed, i128)]) -> Verdict {
        let unit = wide(self.plan.target.logical_sector.bytes());
        let target = wide(self.plan.target.size) / unit * unit;
        let source = wide(self.source.size()) / unit * unit;
        let Some(((last, last_more), others)) = changes.split_last() else {
            return Ok(());
        };
        let is_larger = target > source && self.fit.usable > last.end;
        let nothing = changes.iter().all(|(_, more)| *more == 0);
        if !is_larger || self.policy == ExtraSpace::None {
            return ensure(
                nothing,
                "nothing grows where there is no room for it, or nobody wants it",
            );
        }
        if self.moves() {
            return self.shares(changes, self.fit.usable - last.end);
        }
        let record_behind = match self.source.table {
            Table::Mbr {
                extended: Some((base, _)),
                empty_record,
            } => empty_record && wide(base) * unit >= last.end,
            _ => false,
        };
        let mib = |bytes: i128| bytes / wide(MIB) * wide(MIB);
        let most = last.most.filter(|_| !record_behind);
        let end = most.map(|most| mib(self.fit.usable).min(last.start.saturating_add(mib(most))));
        let due = end.map_or(0, |end| (end - last.end).max(0));
        ensure(
            *last_more == due && others.iter().all(|(_, more)| *more == 0),
            format!("the last one grows by {due}"),
        )
    }

    /// Each that can grow gets its share, within what whole MiB make of it.
    fn shares(&self, changes: &[(&Placed, i128)], extra: i128) -> Verdict {
        let after = changes
            .iter()
            .rposition(|(part, _)| part.stays)
            .unwrap_or(0);
        let takes = |index: usize| changes[index].0.most.filter(|_| index >= after);
        let weight: i128 = (0..changes.len())
            .filter(|index| takes(*index).is_some())
            .map(|index| changes[index].0.len())
            .sum();
        for (index, (part, more)) in changes.iter().enumerate() {
            let due: f64 = takes(index).map_or(0.0, |most| {
                (extra as f64 * part.len() as f64 / weight as f64)
                    .min((most - part.len()).max(0) as f64)
            });
            let more = *more as f64;
            let (low, high) = (due - 2.0 * MIB as f64, due + 1.0);
            ensure(
                more % MIB as f64 == 0.0 && more <= high && more > low,
                format!(
                    "partition {} gets {more} of {extra}, due {due}",
                    part.number
                ),
            )?;
        }
        Ok(())
    }

    /// The table as it will be on the disk, read again by rules of its own.
    fn table(&self, places: &BTreeMap<u32, ByteRange>) -> Verdict {
        let mut disk = Sparse::new(self.plan.target.size);
        for write in &self.plan.commit {
            disk.write(write.offset, &write.bytes.0);
        }
        let unit = self.plan.target.logical_sector.bytes();
        let found = match self.source.table {
            Table::None => return ensure(self.plan.commit.is_empty(), "no table is made up"),
            Table::Gpt => gpt(&disk, unit)?,
            Table::Mbr { .. } => mbr(&disk, unit)?,
        };
        let found: BTreeMap<_, _> = found
            .into_iter()
            .map(|(number, first, end)| (number, ByteRange::between(first * unit, end * unit)))
            .collect();
        ensure(found == *places, format!("the table says {found:?}"))?;
        let last = self.plan.commit.last();
        ensure(
            last.is_some_and(|write| write.offset == 0),
            "sector 0 is the commit",
        )
    }

    /// Everything that was saved arrives where its partition is.
    fn copies(&self, places: &BTreeMap<u32, ByteRange>) -> Verdict {
        let end = self.fit.parts.last().map_or(0, |part| part.end);
        let same_sectors = self.plan.target.logical_sector == self.source.sector;
        for (index, region) in (0u32..).zip(&self.image.regions) {
            let copy = self.plan.copies.iter().find(|copy| copy.region == index);
            let left_out = matches!(region.coverage, Coverage::LeftOut { .. });
            match &region.kind {
                RegionKind::Partition { number } => {
                    let place = places.get(number).filter(|_| !self.empty.contains(number));
                    ensure(
                        copy.map(|copy| copy.destination) == place.copied(),
                        format!("partition {number} goes to its place"),
                    )?;
                }
                RegionKind::WholeDisk => {
                    let at = copy.map(|copy| copy.destination.start());
                    ensure(at == Some(0) || left_out, "the disk is copied")?;
                }
                RegionKind::Gap => {
                    let behind = wide(region.range.start()) >= end;
                    ensure(
                        copy.is_some() || behind || left_out || !same_sectors,
                        "gaps before partitions are copied",
                    )?;
                    ensure(same_sectors || copy.is_none(), "gaps count in sectors")?;
                    let next = self
                        .fit
                        .parts
                        .iter()
                        .find(|part| part.start >= wide(region.range.end()));
                    if let (Some(copy), Some(next)) = (copy, next) {
                        let now = wide(places[&next.number].start());
                        let before = next.start - wide(region.range.start());
                        ensure(
                            wide(copy.destination.start()) == now - before,
                            "a gap stays before its partition",
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Logical volumes go with their partitions.
    fn areas(&self, places: &BTreeMap<u32, ByteRange>) -> Verdict {
        let mut expected = 0;
        for (number, volume) in self.volumes.iter().enumerate() {
            let areas = volume.segments.iter().flat_map(|segment| &segment.areas);
            for (index, area) in areas.enumerate() {
                if area.disk != self.image.number {
                    continue;
                }
                expected += 1;
                let home = self
                    .image
                    .regions
                    .iter()
                    .find(|region| region.range.contains(area.range));
                let (region, place) = home
                    .and_then(|region| match region.kind {
                        RegionKind::Partition { number } => Some((region, places.get(&number)?)),
                        _ => None,
                    })
                    .ok_or("an area without a partition")?;
                let start = place.start() + (area.range.start() - region.range.start());
                let wanted = ByteRange::between(start, start + area.range.len());
                let planned = self.plan.areas.iter().find(|one| {
                    (one.volume as usize, one.area as usize) == (number, index) && one.segment == 0
                });
                ensure(
                    planned.is_some_and(|one| one.destination == wanted),
                    format!("area {index} of {} goes with its partition", volume.name),
                )?;
            }
        }
        ensure(expected == self.plan.areas.len(), "each area once")
    }

    /// Nothing is written twice or outside, and what could start the disk is gone first.
    fn writes(&self) -> Verdict {
        let sector = self.plan.target.logical_sector.bytes();
        let mut taken: Vec<_> = self
            .plan
            .copies
            .iter()
            .map(|copy| copy.destination)
            .collect();
        taken.extend(self.plan.commit.iter().map(|write| {
            ByteRange::between(write.offset, write.offset + write.bytes.0.len() as u64)
        }));
        taken.sort_unstable();
        let whole = ByteRange::between(0, self.plan.target.size);
        for range in &taken {
            ensure(whole.contains(*range), "inside the target")?;
            ensure(
                range.start().is_multiple_of(sector) && range.len().is_multiple_of(sector),
                "whole sectors",
            )?;
        }
        ensure(
            taken.windows(2).all(|pair| !pair[0].overlaps(pair[1])),
            "written once",
        )?;
        for copy in &self.plan.copies {
            let inside = copy
                .last
                .iter()
                .all(|last| copy.destination.contains(*last));
            ensure(inside, "last parts inside their copies")?;
        }
        let gone = |range: ByteRange| self.plan.invalidate.iter().any(|one| one.contains(range));
        let end = self.plan.target.size / sector * sector;
        let front = ByteRange::between(0, end.min(MIB));
        ensure(gone(front), "the first MiB is gone first")?;
        ensure(
            gone(ByteRange::between(end - sector, end)),
            "the end is gone first",
        )
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Number, first LBA and end of the partitions of a GPT, of which both copies and the protective MBR have to be
/// right (UEFI 2.10, 5.3.2).
fn gpt(disk: &Sparse, sector: u64) -> Result<Vec<(u32, u64, u64)>, String> {
    let last = disk.size / sector - 1;
    let protective = disk.read(0, 512);
    ensure(
        protective[510..] == [0x55, 0xaa]
            && protective[450] == 0xee
            && word(&protective, 454) == 1
            && word(&protective, 458) == last.min(u64::from(u32::MAX)),
        "a protective MBR over all of the disk",
    )?;
    let mut copies = Vec::new();
    for (own, other) in [(1, last), (last, 1)] {
        let header = disk.read(own * sector, sector as usize);
        let mut blank = header[..92].to_vec();
        blank[16..20].fill(0);
        let entries_at = long(&header, 72);
        let entries = disk.read(entries_at * sector, ENTRIES as usize);
        let (first_usable, last_usable) = (long(&header, 40), long(&header, 48));
        let table = ENTRIES.div_ceil(sector);
        ensure(
            &header[..8] == b"EFI PART"
                && word(&header, 16) == u64::from(crc32fast::hash(&blank))
                && word(&header, 88) == u64::from(crc32fast::hash(&entries))
                && (long(&header, 24), long(&header, 32)) == (own, other)
                && entries_at == if own == 1 { 2 } else { last - table }
                && first_usable >= 2 + table
                && last_usable < last - table,
            format!("the copy of the GPT at LBA {own}"),
        )?;
        let used = entries.chunks(128).zip(1u32..);
        let used = used.filter(|(entry, _)| entry[..16] != [0; 16]);
        let found: Vec<_> = used
            .map(|(entry, number)| (number, long(entry, 32), long(entry, 40) + 1))
            .collect();
        let inside =
            |(_, first, end): &(u32, u64, u64)| *first >= first_usable && *end <= last_usable + 1;
        ensure(found.iter().all(inside), "partitions where they may be")?;
        copies.push(found);
    }
    ensure(copies[0] == copies[1], "both copies are equal")?;
    Ok(copies.remove(0))
}

/// The same of a PC partition table, as Linux reads it (`block/partitions/msdos.c`).
fn mbr(disk: &Sparse, sector: u64) -> Result<Vec<(u32, u64, u64)>, String> {
    let sectors = disk.size / sector;
    let used = |record: &[u8], slot: usize| {
        let at = 446 + 16 * slot;
        let (start, len) = (word(record, at + 8), word(record, at + 12));
        (record[at + 4] != 0 && len != 0).then_some((record[at + 4], start, len))
    };
    let first = disk.read(0, 512);
    ensure(first[510..] == [0x55, 0xaa], "a signature")?;
    let (mut found, mut extended) = (Vec::new(), None);
    for slot in 0..4 {
        match used(&first, slot) {
            Some((5 | 0x0f, start, len)) => extended = Some((start, start + len)),
            Some((_, start, len)) => found.push((slot as u32 + 1, start, start + len)),
            None => {}
        }
    }
    let mut number = 5;
    let mut next = extended.map(|(base, _)| base);
    while let (Some(lba), Some((base, end))) = (next.take(), extended) {
        ensure(
            found.len() < 100 && (base..end).contains(&lba) && end <= sectors,
            "the chain",
        )?;
        let record = disk.read(lba * sector, 512);
        ensure(record[510..] == [0x55, 0xaa], "a record's signature")?;
        for slot in 0..2 {
            match used(&record, slot) {
                Some((5 | 0x0f, start, _)) => next = Some(base + start),
                Some((_, start, len)) => {
                    ensure(lba + start + len <= end, "inside the extended partition")?;
                    found.push((number, lba + start, lba + start + len));
                    number += 1;
                }
                None => {}
            }
        }
    }
    Ok(found)
}
