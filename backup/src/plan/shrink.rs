//! A disk that is smaller than what the backup's partitions reach to: who is made smaller, and what moves.
//!
//! Invariant: partitions stay in their order and never overlap; one that is found by its place does not move;
//! what moves, moves by whole MiB towards the front; what is made smaller, has room for all that it has in use
//! and a margin, for nobody knows before how well its tool packs it.
//!
//! As few file systems as possible are made smaller: the one with the most room first.

use std::collections::BTreeMap;

use crate::ByteRange;
use crate::layout::TablePartition;
use crate::manifest::{Coverage, FileSystemKind, PartitionTable, Region};
use crate::plan::placement::{Placement, Room};
use crate::plan::restore::{MIB, refusal};
use crate::plan::{ReasonCode, Refusal, Shrink};
use crate::units::HumanBytes;

/// One part in this many of what is in use is left free, and [`SPARE`] besides.
const SPARE_SHARE: u64 = 16;
const SPARE: u64 = 16 * MIB;
/// The kernel makes no Btrfs smaller than this, and moves whole chunks that need a place.
const BTRFS_LEAST: u64 = 256 * MIB;

impl Room<'_> {
    /// Places partitions that end behind where they may, at byte `needed`; what a person should know goes into
    /// `notes`.
    ///
    /// # Errors
    /// [`ReasonCode::CannotShrink`] when nothing can be made smaller, [`ReasonCode::TooSmall`] when it is not
    /// enough.
    pub(super) fn shrink(
        &self,
        partitions: &[TablePartition],
        needed: u64,
        notes: &mut Vec<String>,
    ) -> Result<Placement, Refusal> {
        let mut ordered: Vec<_> = partitions.iter().collect();
        ordered.sort_by_key(|partition| partition.first_lba);
        let excess = needed.saturating_sub(self.usable_end);
        let excess = excess.div_ceil(MIB).saturating_mul(MIB);
        // What is before a partition that must not move keeps its size.
        let staying = ordered
            .iter()
            .rposition(|partition| self.must_stay(partition));
        let candidates: Vec<_> = ordered[staying.unwrap_or(0)..]
            .iter()
            .filter_map(|partition| Some((partition.number, self.slack(partition.number)?)))
            .collect();
        let slack = candidates
            .iter()
            .map(|(_, slack)| *slack)
            .fold(0, u64::saturating_add);
        if self.usable_end == 0 || slack < excess {
            return Err(self.too_small(&ordered, needed, slack, candidates.is_empty()));
        }
        let mut by_slack = candidates;
        by_slack.sort_by_key(|(number, slack)| (std::cmp::Reverse(*slack), *number));
        let mut left = excess;
        let mut takes = BTreeMap::new();
        for (number, slack) in by_slack {
            let take = slack.min(left);
            if take > 0 {
                takes.insert(number, take);
                left -= take;
            }
        }
        self.taken(&ordered, &takes, notes)
    }

    /// Where partitions go when these take so much less.
    fn taken(
        &self,
        ordered: &[&TablePartition],
        takes: &BTreeMap<u32, u64>,
        notes: &mut Vec<String>,
    ) -> Result<Placement, Refusal> {
        let mut placement = Placement::default();
        let mut shift = 0;
        let mut moved = Vec::new();
        for partition in ordered {
            let source = partition.range(self.image.logical_sector);
            let take = takes.get(&partition.number).copied().unwrap_or(0);
            let place = source
                .start()
                .checked_sub(shift)
                .zip(source.len().checked_sub(take))
                .and_then(|(start, len)| ByteRange::new(start, len).ok())
                .ok_or_else(|| {
                    refusal(
                        ReasonCode::TableUnsupported,
                        format!("Partition {} cannot move.", partition.number),
                    )
                })?;
            placement.starts.push((source.start(), place.start()));
            if place != source {
                placement.changed.insert(partition.number, place);
            }
            if shift > 0 {
                moved.push(partition.number.to_string());
            }
            let volume = self.region_of(partition.number);
            if let (true, Some(volume)) = (take > 0, volume.and_then(|one| one.volume.as_ref())) {
                placement.shrink.push(Shrink {
                    partition: partition.number,
                    file_system: volume.file_system,
                    from: volume.size,
                    to: place.len(),
                });
            }
            shift += take;
        }
        if !moved.is_empty() {
            notes.push(format!(
                "What is behind a partition that is made smaller moves towards the front of {}: partition {}.",
                self.target.name,
                moved.join(", ")
            ));
        }
        Ok(placement)
    }

    /// Whether something finds the partition by its place. A PC partition table does not say so: the active
    /// partition is started by its place, and Windows looks for its own there.
    fn must_stay(&self, partition: &TablePartition) -> bool {
        let PartitionTable::Mbr(table) = &self.image.table else {
            return partition.fixed;
        };
        /// Windows' recovery environment, which nothing starts by itself.
        const WINDOWS_RECOVERY: u8 = 0x27;
        let entries = table.partitions().unwrap_or_default();
        let Some(entry) = entries.iter().find(|one| one.number == partition.number) else {
            return true;
        };
        let volume = self
            .region_of(partition.number)
            .and_then(|one| one.volume.as_ref());
        let of_windows = volume.is_some_and(|volume| {
            matches!(
                volume.file_system,
                FileSystemKind::Ntfs
                    | FileSystemKind::Bitlocker
                    | FileSystemKind::Exfat
                    | FileSystemKind::Fat12
                    | FileSystemKind::Fat16
                    | FileSystemKind::Fat32
            )
        });
        entry.active || partition.esp || (of_windows && entry.kind != WINDOWS_RECOVERY)
    }

    /// By how much a partition can be made smaller, in whole MiB; `None` when its kind cannot.
    fn slack(&self, number: u32) -> Option<u64> {
        let region = self.region_of(number)?;
        let least = why_not(region).is_none().then(|| least(region))?;
        Some(region.range.len().saturating_sub(least) / MIB * MIB)
    }

    fn too_small(
        &self,
        ordered: &[&TablePartition],
        needed: u64,
        slack: u64,
        none_can: bool,
    ) -> Refusal {
        let reserve = self.size - self.usable_end;
        let least = if self.usable_end == 0 {
            self.image.size
        } else {
            needed.saturating_sub(slack).saturating_add(reserve)
        };
        let staying = ordered
            .iter()
            .rposition(|partition| self.must_stay(partition))
            .unwrap_or(0);
        let said: Vec<_> = ordered
            .iter()
            .enumerate()
            .map(|(index, partition)| self.describe(partition, index < staying))
            .collect();
        let said = if said.is_empty() {
            "What is not in partitions is not made smaller".to_owned()
        } else {
            format!("Partition {}", said.join(", partition "))
        };
        refusal(
            if none_can && self.usable_end > 0 && !ordered.is_empty() {
                ReasonCode::CannotShrink
            } else {
                ReasonCode::TooSmall
            },
            format!(
                "{} is too small for disk {} of the backup: it has {} bytes, and {least} are needed ({} more). {said}. Use a disk of {} or more.",
                self.target.describe(),
                self.image.number,
                self.target.size,
                HumanBytes(least.saturating_sub(self.target.size)),
                HumanBytes(least)
            ),
        )
    }

    /// How far a partition can be made smaller, in words.
    fn describe(&self, partition: &TablePartition, before_staying: bool) -> String {
        let number = partition.number;
        let Some(region) = self.region_of(number) else {
            return format!("{number} has no content");
        };
        let size = HumanBytes(region.range.len());
        if let Some(reason) = why_not(region) {
            return format!("{number} ({size}) keeps its size ({reason})");
        }
        if before_staying {
            return format!(
                "{number} ({size}) keeps its size (one behind it is found by its place)"
            );
        }
        let least = least(region).min(region.range.len());
        format!("{number} ({size}) can have {} at least", HumanBytes(least))
    }
}

/// Why a region's file system cannot be made smaller where it is, if so.
fn why_not(region: &Region) -> Option<String> {
    why_not_at(region, region.range.start())
}

fn why_not_at(region: &Region, start: u64) -> Option<String> {
    let Some(volume) = &region.volume else {
        return Some("it has no file system that is known here".to_owned());
    };
    let kind = volume.file_system;
    match (kind, &region.coverage) {
        (FileSystemKind::Xfs, _) => Some("XFS cannot be made smaller".to_owned()),
        (
            FileSystemKind::Ext2
            | FileSystemKind::Ext3
            | FileSystemKind::Ext4
            | FileSystemKind::Ntfs
            | FileSystemKind::Btrfs,
            coverage,
        ) => match coverage {
            Coverage::UsedBlocks if start < MIB => Some(format!(
                "its {kind} begins within the disk's first MiB, where an unfinished restore leaves its mark"
            )),
            Coverage::UsedBlocks => None,
            Coverage::Whole { reason } => Some(format!("its {kind} was saved whole: {reason}")),
            Coverage::LeftOut { reason } => Some(format!("nothing of it was saved: {reason}")),
        },
        _ => Some(format!("{kind} is not made smaller")),
    }
}

/// Why a region's file system cannot be made smaller wherever it goes, if so.
pub(super) fn kept_whole(region: &Region) -> Option<String> {
    why_not_at(region, MIB)
}

/// The least bytes that its partition has to have, as far as that can be told before.
pub(super) fn least(region: &Region) -> u64 {
    let saved = region
        .content
        .data_bytes
        .saturating_add(region.content.zero_bytes);
    // What Btrfs has in use it may have twice; what was saved of it says so.
    let volume = region.volume.as_ref();
    let used = volume
        .and_then(|volume| volume.used)
        .unwrap_or(0)
        .max(saved);
    let least = used
        .saturating_add(used / SPARE_SHARE)
        .saturating_add(SPARE);
    match volume.map(|volume| volume.file_system) {
        Some(FileSystemKind::Btrfs) => least
            .saturating_add(used / SPARE_SHARE)
            .saturating_add(BTRFS_LEAST),
        _ => least,
    }
}
