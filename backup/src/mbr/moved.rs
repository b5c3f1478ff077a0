//! A PC partition table whose partitions move towards the front, for a smaller disk.
//!
//! Invariant: only places and lengths are patched, and what was patched is read again: it has to say what was
//! asked for, or there is no table. Extended boot records stay where they were before their partitions.

use std::collections::BTreeMap;

use super::{ENTRIES, ENTRY_LEN, MbrError, MbrTable, Walk, chs, set_end};
use crate::little_endian::put32;
use crate::manifest::Blob;
use crate::plan::TableWrite;

/// How far what is at an LBA moves, by the partition that it is before; or by the end of the last one.
struct Shifts {
    before: Vec<(u64, u64)>,
    behind: u64,
}

impl Shifts {
    /// From first LBA and shift of each partition, and the shift of the last one's end.
    fn new(mut before: Vec<(u64, u64)>, behind: u64) -> Self {
        before.sort_unstable();
        Self { before, behind }
    }

    /// Where it goes.
    fn moved(&self, lba: u64) -> Result<u64, MbrError> {
        let next = self.before.iter().find(|(first, _)| *first >= lba);
        let shift = next.map_or(self.behind, |(_, shift)| *shift);
        let moved = lba.checked_sub(shift).filter(|moved| *moved > 0);
        moved.ok_or(MbrError::Record {
            lba,
            reason: "it would move over the table",
        })
    }
}

impl MbrTable {
    /// The table with new places for partitions: number, first and last LBA. None begins later than it did, or
    /// is longer. In the order in which it is to be written, for a disk of `disk_size` bytes.
    ///
    /// # Errors
    /// [`MbrError::NoPartition`]; [`MbrError::Grow`] for a place that is not possible; [`MbrError::TooSmall`] when
    /// a partition leaves the disk; else whatever is wrong with the table.
    pub fn moved_for(
        &self,
        disk_size: u64,
        placed: &[(u32, u64, u64)],
    ) -> Result<Vec<TableWrite>, MbrError> {
        let sector = self.sector_size()?.bytes();
        let disk_sectors = disk_size / sector;
        let walk = self.walk()?;
        let places = places(&walk, placed)?;
        let needed = places.values().map(|(_, last)| last + 1).max().unwrap_or(1);
        if needed > disk_sectors {
            return Err(MbrError::TooSmall {
                needed,
                found: disk_sectors,
            });
        }
        let moved = self.patched(&walk, &places, disk_sectors)?;
        let records = moved.extended.iter().map(|(lba, _)| lba + 1);
        if let Some(needed) = records.max().filter(|needed| *needed > disk_sectors) {
            return Err(MbrError::TooSmall {
                needed,
                found: disk_sectors,
            });
        }
        let found: BTreeMap<_, _> = moved
            .partitions()?
            .into_iter()
            .map(|partition| (partition.number, (partition.first_lba, partition.last_lba)))
            .collect();
        if found != places {
            return Err(MbrError::Record {
                lba: 0,
                reason: "its partitions cannot be moved as one",
            });
        }
        let write = |what: &str, lba: u64, bytes: Blob| TableWrite {
            what: what.to_owned(),
            offset: lba * sector,
            bytes,
        };
        let records = moved.extended.into_iter().rev();
        Ok(records
            .map(|(lba, bytes)| write("extended boot record", lba, bytes))
            .chain([write("MBR", 0, moved.first_sector)])
            .collect())
    }

    fn patched(
        &self,
        walk: &Walk,
        places: &BTreeMap<u32, (u64, u64)>,
        disk_sectors: u64,
    ) -> Result<Self, MbrError> {
        let place = |number: u32| {
            let place = places.get(&number).copied();
            place.ok_or(MbrError::NoPartition { number })
        };
        let mut shifts = Vec::new();
        for found in &walk.found {
            let first = found.partition.first_lba;
            shifts.push((first, first - place(found.partition.number)?.0));
        }
        let mut behind = (0, 0);
        for found in &walk.found {
            let (old, (_, new)) = (found.partition.last_lba, place(found.partition.number)?);
            behind = behind.max((old, old - new));
        }
        let shifts = Shifts::new(shifts, behind.1);
        let mut first_sector = self.first_sector.0.clone();
        let mut records = Vec::with_capacity(walk.records.len());
        for (lba, bytes) in &walk.records {
            records.push((shifts.moved(*lba)?, bytes.clone()));
        }
        for found in &walk.found {
            let (first, last) = place(found.partition.number)?;
            let (record, origin) = match found.record.checked_sub(1) {
                None => (&mut first_sector, 0),
                Some(index) => {
                    let (lba, bytes) = records.get_mut(index).ok_or(MbrError::Record {
                        lba: 0,
                        reason: "a partition is in no record",
                    })?;
                    (bytes, *lba)
                }
            };
            put_place(record, found.slot, origin, (first, last));
        }
        if let Some((slot, base, last)) = walk.extended {
            let logical = |found: &&super::Found| found.partition.logical;
            let ends = walk.found.iter().filter(logical);
            let ends = ends.map(|found| {
                let new = places.get(&found.partition.number);
                (
                    found.partition.last_lba,
                    new.map_or(found.partition.last_lba, |place| place.1),
                )
            });
            let own = walk.records.iter().zip(&records);
            let own = own.map(|((old, _), (new, _))| (*old, *new));
            let (old_end, new_end) = ends.chain(own).max().unwrap_or((last, last));
            let new_base = shifts.moved(base)?;
            for (index, link) in walk.links.iter().enumerate() {
                let (Some((_, old)), Some((next, _))) =
                    (walk.records.get(index), records.get(index + 1).cloned())
                else {
                    continue;
                };
                let old_len = super::Entry::of(old, *link).sectors;
                let own = walk.found.iter().find(|found| found.record == index + 2);
                let less = match own {
                    Some(own) => {
                        let (first, last) = place(own.partition.number)?;
                        (own.partition.last_lba - own.partition.first_lba) - (last - first)
                    }
                    None => 0,
                };
                let len = u64::from(old_len).saturating_sub(less).max(1);
                if let Some((_, record)) = records.get_mut(index) {
                    let Some(end) = (next + len).checked_sub(1).filter(|_| next >= new_base) else {
                        continue;
                    };
                    put_place(record, *link, new_base, (next, end));
                }
            }
            // As far as it reached behind its last partition or record, when there is room for that.
            let kept = (last + 1).saturating_sub(old_end - new_end);
            let end = kept.min(disk_sectors).max(new_end + 1);
            put_place(&mut first_sector, slot, 0, (new_base, end - 1));
        }
        Ok(Self {
            first_sector: Blob(first_sector),
            extended: records
                .into_iter()
                .map(|(lba, bytes)| (lba, Blob(bytes)))
                .collect(),
        })
    }
}

/// Where every partition will be: as asked for, or where it is.
fn places(walk: &Walk, placed: &[(u32, u64, u64)]) -> Result<BTreeMap<u32, (u64, u64)>, MbrError> {
    let mut places: BTreeMap<u32, (u64, u64)> = walk
        .found
        .iter()
        .map(|found| &found.partition)
        .map(|partition| (partition.number, (partition.first_lba, partition.last_lba)))
        .collect();
    for &(number, first, last) in placed {
        let place = places
            .get_mut(&number)
            .ok_or(MbrError::NoPartition { number })?;
        let refuse = |reason| MbrError::Grow {
            number,
            last_lba: last,
            reason,
        };
        if last < first || first == 0 {
            return Err(refuse("it would end before it begins"));
        }
        if first > place.0 || last - first > place.1 - place.0 {
            return Err(refuse("it would move towards the end, or grow"));
        }
        *place = (first, last);
    }
    Ok(places)
}

/// Gives an entry another place, first and last LBA; its start is relative to `origin`. All of it is within what
/// 32 bits counted before.
fn put_place(record: &mut [u8], slot: usize, origin: u64, place: (u64, u64)) {
    let at = ENTRIES + slot * ENTRY_LEN;
    let start = place.0.saturating_sub(origin);
    put32(record, at + 8, u32::try_from(start).unwrap_or(u32::MAX));
    record[at + 1..at + 4].copy_from_slice(&chs(place.0));
    set_end(record, slot, origin, place.1 + 1);
}
