//! The restore planner: from a manifest, a target's inventory and choices to a plan or refusals.
//!
//! Invariants: no plan without a place for everything; destinations are whole sectors, in order,
//! never overlap each other or the table that is written, and never leave the target. The manifest
//! is not trusted: what contradicts itself is refused, nothing panics.
//!
//! Order of the steps of a [`DiskPlan`], each flushed before the next:
//!
//! 1. `invalidate` is made zero: the first MiB, with the old table, and the end of the disk, with an
//!    old backup GPT. From here to the end the disk does not boot.
//! 2. `copies` without their `last` parts. A partition may lie over an invalidated range (the first
//!    MiB of an MBR disk, the last MiB of any): its bytes come after the zeros, so they stay.
//! 3. the `last` parts of all copies: superblocks, boot sectors, and what lies in the first MiB.
//! 4. `shrink`, then `sectors`, then `conversion`, then `grow`, on the partitions' ranges, while there is still no table.
//! 5. `commit` in its order; its last write, sector 0, is the commit. A disk without a table has no
//!    `commit`: there the first sector is kept back in step 3 and written here.
//!
//! What is *not* here: chosen volumes onto partitions that are there (`mapping`), who grows (`placement`), who is made smaller (`shrink`), other sector sizes (`sectors`), the other type of firmware (`firmware`).

use crate::ByteRange;
use crate::filesystem::heads;
use crate::hardware::{FirmwareKind, Inventory};
use crate::layout::{self, TablePartition};
use crate::manifest::{
    Coverage, DiskImage, FileSystemKind, LogicalVolume, Manifest, PartitionTable, Region,
    RegionKind,
};
use crate::plan::assign::assign;
use crate::plan::check::{check, place};
use crate::plan::firmware::{Free, Made, Placed};
use crate::plan::placement::{Placement, Room};
use crate::plan::{
    Choices, DiskPlan, ExtraSpace, PlannedPartition, ReasonCode, Refusal, RegionCopy, RestorePlan,
    TableWrite,
};
use crate::plan::{firmware, mapping, sectors, volumes};
use crate::units::HumanBytes;

pub(super) const MIB: u64 = 1 << 20;

/// Plans a restore.
///
/// # Errors
/// Every reason why it is not possible as asked; at least one.
pub fn plan_restore(
    manifest: &Manifest,
    target: &Inventory,
    choices: &Choices,
) -> Result<RestorePlan, Vec<Refusal>> {
    let mut notes = manifest.encrypt_again();
    notes.extend(copy_note(manifest, choices));
    // Where only volumes go onto partitions that are there, nothing has to start from them.
    let (mut refusals, mut conversion) = (Vec::new(), None);
    if !choices.maps_volumes() {
        match firmware::wanted(manifest, target, choices, &mut notes) {
            Ok(wanted) => conversion = wanted,
            Err(refusal) => refusals.push(refusal),
        }
        refusals.extend(architecture_refusal(manifest, target));
    }
    if let Err(error) = manifest.check() {
        refusals.push(refusal(
            ReasonCode::TableUnsupported,
            format!("The restore point's manifest contradicts itself: {error}. No disk was touched; take another restore point."),
        ));
        return Err(refusals);
    }
    let mut disks = Vec::new();
    if choices.maps_volumes() {
        let disks = mapping::plan_volumes(manifest, target, choices, &mut notes)?;
        for plan in &disks {
            check(plan, plan.target.size)
                .map_err(|reason| vec![refusal(ReasonCode::VolumeUnsupported, reason)])?;
        }
        return Ok(RestorePlan {
            restore_point: manifest.id.clone(),
            disks,
            notes,
        });
    }
    for choice in &choices.volumes {
        refusals.extend(mapping::source(manifest, choice).err());
    }
    match assign(&manifest.disks, &target.disks, choices) {
        Err(more) => refusals.extend(more),
        Ok(targets) => {
            for (image, target) in manifest.disks.iter().zip(targets) {
                let conversion = conversion.filter(|wanted| wanted.disk == image.number);
                let way = Way {
                    choices,
                    conversion: conversion.map(|wanted| wanted.to),
                };
                match plan_disk(manifest, image, target, &way, &mut notes) {
                    Ok(plan) => disks.push(plan),
                    Err(refusal) => refusals.push(refusal),
                }
            }
        }
    }
    if refusals.is_empty() {
        Ok(RestorePlan {
            restore_point: manifest.id.clone(),
            disks,
            notes,
        })
    } else {
        Err(refusals)
    }
}

/// What was decided for a disk.
struct Way<'a> {
    choices: &'a Choices,
    /// The type of firmware that its system is to start by, when that is another one.
    conversion: Option<FirmwareKind>,
}

fn plan_disk(
    manifest: &Manifest,
    image: &DiskImage,
    target: &crate::hardware::Disk,
    way: &Way<'_>,
    notes: &mut Vec<String>,
) -> Result<DiskPlan, Refusal> {
    let to = target.logical_sector;
    let converted = if image.logical_sector == to {
        None
    } else {
        // A table for other sectors than its disk's is a contradiction, whatever the target's are.
        DiskPlanner::new(image, target, notes).table_partitions()?;
        let firmware = manifest.firmware.kind;
        Some(sectors::converted(image, firmware, to, notes)?)
    };
    let image = converted.as_ref().map_or(image, |other| &other.image);
    let carried = match way.conversion {
        None => None,
        Some(to) => {
            // A table that contradicts itself is refused as such.
            DiskPlanner::new(image, target, notes).table_partitions()?;
            Some(firmware::converted(manifest, image, target, to, notes)?)
        }
    };
    let image = carried.as_ref().map_or(image, |other| &other.image);
    let mut planner = DiskPlanner::new(image, target, notes);
    planner.volumes = &manifest.logical_volumes;
    planner.extra_space = way.choices.extra_space;
    planner.made = carried.as_ref().and_then(|other| other.made.clone());
    let mut plan = planner.plan()?;
    plan.conversion = carried.as_ref().map(|other| other.conversion);
    plan.sectors = converted
        .as_ref()
        .map_or_else(Vec::new, |other| other.changes.clone());
    for choice in &way.choices.volumes {
        if choice.disk == image.number {
            let carried = carried.as_ref();
            if let Some(other) = carried.filter(|one| one.conversion.partition == choice.partition)
            {
                return Err(firmware::left_out(other.conversion));
            }
            leave_out(&mut plan, image, choice.partition, notes);
        }
    }
    Ok(plan)
}

/// Takes a volume out of a plan: its partition is made, and nothing is in it.
fn leave_out(plan: &mut DiskPlan, image: &DiskImage, number: u32, notes: &mut Vec<String>) {
    let kind = RegionKind::Partition { number };
    let is_it = |copy: &RegionCopy| {
        let region = image.regions.get(copy.region as usize);
        region.is_some_and(|region| region.kind == kind)
    };
    plan.copies.retain(|copy| !is_it(copy));
    plan.grow.retain(|grow| grow.partition != number);
    plan.shrink.retain(|shrink| shrink.partition != number);
    plan.sectors.retain(|change| change.partition != number);
    for partition in &mut plan.partitions {
        if partition.number == number {
            partition.file_system = None;
            // No sign of what was there before is left.
            let end = partition.range.start() + partition.range.len().min(MIB);
            plan.invalidate
                .push(ByteRange::between(partition.range.start(), end));
        }
    }
    plan.invalidate = in_order(std::mem::take(&mut plan.invalidate));
    notes.push(format!(
        "Partition {number} of {} is made and left empty, as it was asked for.",
        plan.target.name
    ));
}

/// That the machine gets an identity of its own, as far as that goes.
fn copy_note(manifest: &Manifest, choices: &Choices) -> Option<String> {
    let called = match &choices.host_name {
        Some(name) => format!("the name {name}"),
        None => "a name".to_owned(),
    };
    let is_windows = |region: &Region| {
        let volume = region.volume.as_ref();
        volume.is_some_and(|volume| volume.file_system == FileSystemKind::Ntfs)
    };
    let windows = if manifest.regions().any(is_windows) {
        " A Windows stays what it is, and so do the ids of its disk."
    } else {
        ""
    };
    choices.is_copy().then(|| {
        format!(
            "The machine gets an identity of its own: {called}, a machine id, SSH host keys, and ids of disk, partitions and file systems with all that refers to them; what cannot be changed is said afterwards.{windows}"
        )
    })
}

pub(super) fn refusal(code: ReasonCode, text: String) -> Refusal {
    Refusal { code, text }
}

fn architecture_refusal(manifest: &Manifest, target: &Inventory) -> Option<Refusal> {
    (manifest.architecture != target.architecture).then(|| {
        refusal(
            ReasonCode::Architecture,
            format!(
                "The backup is of a machine with architecture {}, this one is {}. Its system cannot run here.",
                manifest.architecture, target.architecture
            ),
        )
    })
}

/// Plans one disk.
struct DiskPlanner<'a> {
    image: &'a DiskImage,
    target: &'a crate::hardware::Disk,
    notes: &'a mut Vec<String>,
    /// The logical volumes of all disks.
    volumes: &'a [LogicalVolume],
    extra_space: ExtraSpace,
    /// A partition that the backup does not have.
    made: Option<Made>,
    /// The target's size in whole sectors, in bytes.
    size: u64,
}

impl<'a> DiskPlanner<'a> {
    fn new(
        image: &'a DiskImage,
        target: &'a crate::hardware::Disk,
        notes: &'a mut Vec<String>,
    ) -> Self {
        let sector = target.logical_sector.bytes();
        Self {
            image,
            target,
            notes,
            volumes: &[],
            extra_space: ExtraSpace::default(),
            made: None,
            size: target.size - target.size % sector,
        }
    }

    fn plan(mut self) -> Result<DiskPlan, Refusal> {
        let partitions = self.table_partitions()?;
        let last = partitions.iter().max_by_key(|partition| partition.last_lba);
        let needed = self.needed_end(last);
        let made = self.place_made(&partitions, needed);
        let room = Room {
            image: self.image,
            target: self.target,
            size: self.size,
            usable_end: made.as_ref().map_or(self.usable_end(), |(_, end)| *end),
        };
        let made = made.map(|(placed, _)| placed);
        let placement = if room.usable_end >= needed && room.usable_end > 0 {
            room.place(&partitions, self.extra_space, self.notes)
        } else {
            room.shrink(&partitions, needed, self.notes)?
        };
        let commit = self.commit(&placement, made.as_ref())?;
        let copies = self.copies(&partitions, &placement, &commit)?;
        let areas = volumes::areas(self.image, self.volumes, &copies)
            .map_err(|reason| self.contradiction(&reason))?;
        let mut planned = self.planned(&partitions, &placement);
        planned.extend(made.as_ref().map(Placed::planned));
        let mut invalidate = self.invalidate(&commit);
        invalidate.extend(made.as_ref().map(Placed::front));
        let plan = DiskPlan {
            source: self.image.number,
            // What is on it is overwritten: an interrupted restore finds another table, and is the same one.
            target: crate::hardware::Disk {
                partitions: Vec::new(),
                ..self.target.clone()
            },
            keeps_table: false,
            invalidate: in_order(invalidate),
            copies,
            areas,
            partitions: planned,
            grow: placement.grow,
            shrink: placement.shrink,
            sectors: Vec::new(),
            conversion: None,
            commit,
        };
        check(&plan, self.size).map_err(|reason| self.contradiction(&reason))?;
        Ok(plan)
    }

    /// The place of the partition that is made, and where the others may end.
    fn place_made(&mut self, partitions: &[TablePartition], needed: u64) -> Option<(Placed, u64)> {
        let made = self.made.take()?;
        let PartitionTable::Gpt(table) = &self.image.table else {
            return None;
        };
        let free = Free {
            partitions,
            sector: self.image.logical_sector,
            usable_start: table.front().ok()? * self.sector(),
            usable_end: self.usable_end(),
            needed,
        };
        let placed = made.place(&free);
        let end = placed.end_for_others(free.usable_end);
        if self.extra_space == ExtraSpace::Proportional && placed.range.start() < needed {
            // Nothing moves over it.
            self.extra_space = ExtraSpace::Last;
        }
        Some((placed, end))
    }

    const fn sector(&self) -> u64 {
        self.image.logical_sector.bytes()
    }

    fn contradiction(&self, reason: &str) -> Refusal {
        refusal(
            ReasonCode::TableUnsupported,
            format!(
                "The backup of disk {} cannot be rebuilt: {reason}. No disk was touched; take another restore point.",
                self.image.number
            ),
        )
    }

    /// The table's partitions, each with its region and the other way round.
    fn table_partitions(&self) -> Result<Vec<TablePartition>, Refusal> {
        let table_sector = match &self.image.table {
            PartitionTable::None => None,
            PartitionTable::Gpt(table) => table.sector_size().ok(),
            PartitionTable::Mbr(table) => table.sector_size().ok(),
        };
        if table_sector.is_some_and(|sector| sector != self.image.logical_sector) {
            return Err(self.contradiction("its table is for another sector size"));
        }
        let partitions = layout::partitions_of(&self.image.table)
            .map_err(|error| self.contradiction(&error.to_string()))?;
        let mut numbers = Vec::new();
        for region in &self.image.regions {
            let RegionKind::Partition { number } = region.kind else {
                continue;
            };
            if numbers.contains(&number) {
                return Err(self.contradiction(&format!("partition {number} has two regions")));
            }
            numbers.push(number);
            let same = partitions.iter().any(|partition| {
                partition.number == number
                    && partition.range(self.image.logical_sector) == region.range
            });
            if !same {
                return Err(self.contradiction(&format!(
                    "partition {number} at {} is not in its table",
                    region.range
                )));
            }
        }
        match partitions
            .iter()
            .find(|partition| !numbers.contains(&partition.number))
        {
            Some(partition) => Err(self.contradiction(&format!(
                "partition {} of its table has no content",
                partition.number
            ))),
            None => Ok(partitions),
        }
    }

    /// Where the backup's content ends, in bytes.
    fn needed_end(&self, last: Option<&TablePartition>) -> u64 {
        let saved_end = |region: &Region| match region.coverage {
            Coverage::LeftOut { .. } => 0,
            _ => region.range.end(),
        };
        match (last, &self.image.table) {
            (Some(last), table) => {
                // An extended partition with nothing in it may be behind all others.
                let own = match table {
                    PartitionTable::Mbr(table) => table.sectors().unwrap_or_default(),
                    _ => Vec::new(),
                };
                let own = own.last().map_or(0, |sector| sector.end());
                last.range(self.image.logical_sector).end().max(own)
            }
            (None, PartitionTable::None) => {
                self.image.regions.iter().map(saved_end).max().unwrap_or(0)
            }
            (None, _) => 0,
        }
    }

    /// Where partitions may end on the target, in bytes; 0 when it has no room for the table.
    fn usable_end(&self) -> u64 {
        match &self.image.table {
            PartitionTable::Gpt(table) => table
                .usable_end(self.size)
                .ok()
                .map_or(0, |lba| lba * self.sector()),
            // 32 bits for a sector's number.
            PartitionTable::Mbr(_) => self.size.min((1 << 32) * self.sector()),
            PartitionTable::None => self.size,
        }
    }

    fn region_of(&self, number: u32) -> Option<&'a Region> {
        self.image
            .regions
            .iter()
            .find(|region| region.kind == RegionKind::Partition { number })
    }

    fn commit(
        &self,
        placement: &Placement,
        made: Option<&Placed>,
    ) -> Result<Vec<TableWrite>, Refusal> {
        let sector = self.sector();
        let placed: Vec<_> = placement
            .changed
            .iter()
            .map(|(number, range)| (*number, range.start() / sector, range.end() / sector - 1))
            .collect();
        match &self.image.table {
            PartitionTable::None => Ok(Vec::new()),
            PartitionTable::Gpt(table) => made
                .map_or_else(
                    || Ok(table.clone()),
                    |made| made.in_table(table, self.image.logical_sector),
                )
                .and_then(|table| table.resized_for(self.size, &placed))
                .map_err(|error| self.contradiction(&error.to_string())),
            PartitionTable::Mbr(table) if !placement.shrink.is_empty() => table
                .moved_for(self.size, &placed)
                .map_err(|error| self.contradiction(&error.to_string())),
            PartitionTable::Mbr(table) => {
                let grown = placed.first().map(|(number, _, last)| (*number, *last));
                table
                    .resized_for(self.size, grown)
                    .map_err(|error| self.contradiction(&error.to_string()))
            }
        }
    }

    fn copies(
        &mut self,
        partitions: &[TablePartition],
        placement: &Placement,
        commit: &[TableWrite],
    ) -> Result<Vec<RegionCopy>, Refusal> {
        let partitions_end = partitions
            .iter()
            .map(|partition| partition.range(self.image.logical_sector).end())
            .max();
        let mut copies = Vec::new();
        for (index, region) in (0u32..).zip(&self.image.regions) {
            if matches!(region.coverage, Coverage::LeftOut { .. }) {
                continue;
            }
            // What is behind the last partition belongs to the end of the disk, not to a place.
            let behind = region.kind == RegionKind::Gap
                && partitions_end.is_some_and(|end| region.range.start() >= end);
            let in_place = self.size == self.image.size
                && !commit
                    .iter()
                    .any(|write| place(write).overlaps(region.range));
            if behind && !in_place {
                if region.content.data_bytes > 0 {
                    self.notes.push(format!(
                        "{} of data behind the last partition of disk {} are not restored: the disk's end is elsewhere.",
                        HumanBytes(region.content.data_bytes),
                        self.image.number
                    ));
                }
                continue;
            }
            let destination = match &region.kind {
                RegionKind::Partition { number } => placement.range(*number, region.range),
                _ => placement
                    .outside(region.range)
                    .and_then(|start| ByteRange::new(start, region.range.len()).ok())
                    .ok_or_else(|| self.contradiction(&format!("{} cannot move", region.range)))?,
            };
            copies.push(RegionCopy {
                region: index,
                destination,
                last: last_parts(region, destination),
            });
        }
        Ok(copies)
    }

    fn planned(
        &self,
        partitions: &[TablePartition],
        placement: &Placement,
    ) -> Vec<PlannedPartition> {
        partitions
            .iter()
            .map(|partition| PlannedPartition {
                number: partition.number,
                range: placement
                    .range(partition.number, partition.range(self.image.logical_sector)),
                guid: partition.guid.map(|guid| guid.to_string()),
                file_system: self
                    .region_of(partition.number)
                    .and_then(|region| region.volume.as_ref())
                    .map(|volume| volume.file_system),
                esp: partition.esp,
            })
            .collect()
    }

    /// The first MiB, and the last with the place of a backup GPT, old or new.
    fn invalidate(&self, commit: &[TableWrite]) -> Vec<ByteRange> {
        let table_start = commit
            .iter()
            .filter(|write| write.what == "backup GPT")
            .map(|write| write.offset)
            .min()
            .unwrap_or(self.size);
        let tail = self.size.saturating_sub(MIB).min(table_start);
        let tail = (tail - tail % MIB).max(MIB);
        let tail = ByteRange::between(tail, self.size);
        let head = ByteRange::between(0, MIB.min(self.size));
        std::iter::once(head)
            .chain((!tail.is_empty()).then_some(tail))
            .collect()
    }
}

/// The parts of a region that are written last when it goes to `destination`, relative to the disk, in order,
/// not overlapping.
pub(super) fn last_parts(region: &Region, destination: ByteRange) -> Vec<ByteRange> {
    let start = destination.start();
    let len = region.range.len().min(destination.len());
    let range = ByteRange::between(start, start + len);
    let file_system = region.volume.as_ref().map(|volume| volume.file_system);
    let mut parts: Vec<ByteRange> = match region.kind {
        RegionKind::Gap => Vec::new(),
        _ => heads(file_system, range.len()),
    }
    .into_iter()
    .map(|head| ByteRange::between(range.start() + head.start(), range.start() + head.end()))
    .collect();
    let front = ByteRange::between(range.start(), range.end().min(MIB));
    if !front.is_empty() {
        parts.push(front);
    }
    in_order(parts)
}

/// In order; those that touch or overlap become one.
pub(super) fn in_order(mut parts: Vec<ByteRange>) -> Vec<ByteRange> {
    parts.sort();
    parts.into_iter().fold(Vec::new(), |mut joined, part| {
        match joined.last_mut() {
            Some(last) if part.start() <= last.end() => {
                *last = ByteRange::between(last.start(), last.end().max(part.end()));
            }
            _ => joined.push(part),
        }
        joined
    })
}
