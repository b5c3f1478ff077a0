//! Where partitions go on a disk that is larger than the source: who grows, and what moves for it.
//!
//! Invariant: partitions stay in their order and never overlap; none becomes smaller; one that is fixed
//! ([`TablePartition::fixed`]) does not move; what moves, moves by whole MiB, so that every alignment and
//! both sector sizes stay right; what grows, has a file system that grows with it.
//!
//! What is *not* here: a disk that is smaller (`shrink`).

use std::collections::BTreeMap;

use crate::ByteRange;
use crate::hardware::Disk;
use crate::layout::TablePartition;
use crate::manifest::{Coverage, DiskImage, FileSystemKind, PartitionTable, Region, RegionKind};
use crate::plan::restore::MIB;
use crate::plan::{ExtraSpace, Grow, Shrink};
use crate::units::HumanBytes;

/// The disks that partitions are placed from and on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) image: &'a DiskImage,
    pub(super) target: &'a Disk,
    /// The target's size in whole sectors, in bytes.
    pub(super) size: u64,
    /// Where partitions may end.
    pub(super) usable_end: u64,
}

/// Where partitions go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Placement {
    /// By their numbers: those that are not where they were, or not as long.
    pub(super) changed: BTreeMap<u32, ByteRange>,
    /// File systems that grow with their partitions.
    pub(super) grow: Vec<Grow>,
    /// File systems that are made smaller to fit their partitions.
    pub(super) shrink: Vec<Shrink>,
    /// Where each partition began on the source and begins now, in order; none when nothing moves.
    pub(super) starts: Vec<(u64, u64)>,
}

impl Placement {
    /// Where what is outside of partitions begins, which was at `range` of the source: it stays where it was
    /// before the next partition, or behind the last one.
    pub(super) fn outside(&self, range: ByteRange) -> Option<u64> {
        let next = self
            .starts
            .iter()
            .find(|(source, _)| *source >= range.end());
        let Some((source, now)) = next.or(self.starts.last()) else {
            return Some(range.start());
        };
        if now >= source {
            range.start().checked_add(now - source)
        } else {
            range.start().checked_sub(source - now)
        }
    }

    /// Where a partition is.
    pub(super) fn range(&self, number: u32, source: ByteRange) -> ByteRange {
        self.changed.get(&number).copied().unwrap_or(source)
    }
}

impl Room<'_> {
    /// Places the partitions of a table; what a person should know goes into `notes`.
    pub(super) fn place(
        &self,
        partitions: &[TablePartition],
        policy: ExtraSpace,
        notes: &mut Vec<String>,
    ) -> Placement {
        let mut ordered: Vec<_> = partitions.iter().collect();
        ordered.sort_by_key(|partition| partition.first_lba);
        let Some(last) = ordered.last().copied() else {
            return Placement::default();
        };
        // On a disk of the same size, room that the source left free stays free.
        let end = last.range(self.image.logical_sector).end();
        if self.size <= self.image.size || self.usable_end <= end {
            return Placement::default();
        }
        match policy {
            ExtraSpace::None => {
                self.note_unused(last, "as it was asked for", notes);
                Placement::default()
            }
            ExtraSpace::Proportional if matches!(self.image.table, PartitionTable::Gpt(_)) => {
                self.share(&ordered, notes)
            }
            ExtraSpace::Proportional => {
                notes.push(format!(
                    "Partitions of {} keep their places, because it has a PC partition table; the last one gets the room.",
                    self.target.name
                ));
                self.give_to(last, notes)
            }
            ExtraSpace::Last => self.give_to(last, notes),
        }
    }

    /// Extra space goes to the last partition when its file system can take it.
    fn give_to(&self, last: &TablePartition, notes: &mut Vec<String>) -> Placement {
        let number = last.number;
        let from = last.range(self.image.logical_sector);
        if let PartitionTable::Mbr(table) = &self.image.table
            && table
                .sectors()
                .is_ok_and(|own| own.iter().any(|own| own.start() >= from.end()))
        {
            notes.push(format!(
                "Partition {number} of {} keeps its size: an empty extended partition is behind it.",
                self.target.name
            ));
            return Placement::default();
        }
        let Some(most) = self.most(number) else {
            self.note_unused(last, &self.why_not_growing(number), notes);
            return Placement::default();
        };
        let mut placement = Placement::default();
        let end = self.limited(number, from.start(), most, notes);
        self.grow(&mut placement, number, from, end);
        placement
    }

    /// Extra space goes to all that can take it, by their sizes.
    fn share(&self, ordered: &[&TablePartition], notes: &mut Vec<String>) -> Placement {
        let sector = self.image.logical_sector;
        let movable_from = ordered
            .iter()
            .rposition(|partition| partition.fixed)
            // What is before a partition that must not move cannot grow over it.
            .unwrap_or(0);
        let takers: Vec<_> = ordered[movable_from..]
            .iter()
            .filter_map(|partition| Some((partition.number, self.most(partition.number)?)))
            .collect();
        let Some(last) = ordered.last() else {
            return Placement::default();
        };
        if takers.is_empty() {
            self.note_unused(
                last,
                "no file system on this disk can be made larger",
                notes,
            );
            return Placement::default();
        }
        let end = last.range(sector).end();
        let takes = |number: u32| takers.iter().find(|(taker, _)| *taker == number);
        let weight: u64 = ordered
            .iter()
            .filter(|partition| takes(partition.number).is_some())
            .map(|partition| partition.range(sector).len())
            .fold(0, u64::saturating_add);
        let extra = (self.usable_end - end) / MIB * MIB;
        let mut placement = Placement::default();
        let mut shift = 0;
        for partition in ordered {
            let source = partition.range(sector);
            let Ok(place) = ByteRange::new(source.start() + shift, source.len()) else {
                continue;
            };
            placement.starts.push((source.start(), place.start()));
            if shift > 0 {
                placement.changed.insert(partition.number, place);
            }
            let Some((number, most)) = takes(partition.number) else {
                continue;
            };
            let share = u128::from(extra) * u128::from(source.len()) / u128::from(weight.max(1));
            let share = u64::try_from(share).unwrap_or(0) / MIB * MIB;
            let share = share.min(most.saturating_sub(source.len()) / MIB * MIB);
            if share > 0 {
                self.grow(&mut placement, *number, place, place.end() + share);
                shift += share;
            }
        }
        placement
    }

    fn grow(&self, placement: &mut Placement, number: u32, from: ByteRange, end: u64) {
        let volume = self
            .region_of(number)
            .and_then(|region| region.volume.as_ref());
        let Some(volume) = volume.filter(|_| end > from.end()) else {
            return;
        };
        let range = ByteRange::between(from.start(), end);
        placement.changed.insert(number, range);
        placement.grow.push(Grow {
            partition: number,
            file_system: volume.file_system,
            from: volume.size,
            to: range.len(),
        });
    }

    /// Where a partition ends that takes all that is left.
    fn limited(&self, number: u32, start: u64, most: u64, notes: &mut Vec<String>) -> u64 {
        let end = self.usable_end - self.usable_end % MIB;
        if end.saturating_sub(start) <= most {
            return end;
        }
        let end = start + most - most % MIB;
        notes.push(format!(
            "Partition {number} of {} grows to {} only, the most its file system is sure to take.",
            self.target.name,
            HumanBytes(end - start)
        ));
        end
    }

    /// How large the file system of a partition can become at most; `None` when it cannot grow.
    fn most(&self, number: u32) -> Option<u64> {
        self.region_of(number)
            .filter(|region| region.range.start() >= MIB)
            .and_then(most)
    }

    fn note_unused(&self, last: &TablePartition, why: &str, notes: &mut Vec<String>) {
        let end = last.range(self.image.logical_sector).end();
        let unused = self.usable_end.saturating_sub(end);
        if unused >= MIB {
            notes.push(format!(
                "{} behind partition {} of {} stay unused: {why}.",
                HumanBytes(unused),
                last.number,
                self.target.name
            ));
        }
    }

    fn why_not_growing(&self, number: u32) -> String {
        let Some(region) = self.region_of(number) else {
            return "nothing was saved of it".to_owned();
        };
        match (&region.volume, &region.coverage) {
            (Some(volume), Coverage::Whole { reason }) if can_grow(volume.file_system) => {
                format!("its {} was saved whole ({reason})", volume.file_system)
            }
            // Until the commit, the engine's marker lies there instead of a part of the file system, and no
            // tool must see that.
            (Some(volume), _) if can_grow(volume.file_system) && region.range.start() < MIB => {
                format!(
                    "its {} begins within the disk's first MiB, where an unfinished restore leaves its mark",
                    volume.file_system
                )
            }
            (Some(volume), _) => format!("{} is not made larger yet", volume.file_system),
            (None, _) => "it has no file system that is known here".to_owned(),
        }
    }

    pub(super) fn region_of(&self, number: u32) -> Option<&Region> {
        let kind = RegionKind::Partition { number };
        self.image.regions.iter().find(|region| region.kind == kind)
    }
}

/// How large a region's file system can become at most; `None` when it cannot grow.
pub(super) fn most(region: &Region) -> Option<u64> {
    let volume = region
        .volume
        .as_ref()
        .filter(|_| region.coverage == Coverage::UsedBlocks)
        .filter(|volume| can_grow(volume.file_system) && volume.block_size > 0)?;
    Some(match volume.file_system {
        // Their limits are past those of any disk.
        FileSystemKind::Xfs | FileSystemKind::Btrfs => u64::MAX,
        // Without the 64bit feature, which a manifest does not tell, ext counts blocks in 32 bits; so does
        // Windows with the clusters of NTFS.
        _ => u64::from(u32::MAX) * u64::from(volume.block_size),
    })
}

/// Whether the environment has a tool that makes it larger.
const fn can_grow(file_system: FileSystemKind) -> bool {
    matches!(
        file_system,
        FileSystemKind::Ext2
            | FileSystemKind::Ext3
            | FileSystemKind::Ext4
            | FileSystemKind::Ntfs
            | FileSystemKind::Xfs
            | FileSystemKind::Btrfs
    )
}
