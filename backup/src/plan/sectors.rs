//! A backup for a disk whose logical sectors have another size.
//!
//! Invariant: what comes out is a backup that could have been made of a disk with such sectors: every partition
//! begins where it did, and its file system works with them, or is made to ([`SectorChange`]). Everything else is
//! refused: a file system that does not start is no restore.

use crate::gpt::{BIOS_BOOT_TYPE, GptTable};
use crate::hardware::FirmwareKind;
use crate::manifest::{Coverage, DiskImage, FileSystemKind, PartitionTable, Region, RegionKind};
use crate::plan::restore::{MIB, refusal};
use crate::plan::{ReasonCode, Refusal, SectorChange};
use crate::units::HumanBytes;
use crate::{ByteRange, SectorSize};

/// The disk with other sectors, and what has to be changed in its volumes.
pub(super) struct Converted {
    pub(super) image: DiskImage,
    pub(super) changes: Vec<SectorChange>,
}

/// Carries a disk of a machine that starts by `firmware` over to sectors of `to` bytes; what a person should know
/// goes into `notes`.
///
/// # Errors
/// [`ReasonCode::SectorSize`] with the first thing that does not work with them.
pub(super) fn converted(
    image: &DiskImage,
    firmware: FirmwareKind,
    to: SectorSize,
    notes: &mut Vec<String>,
) -> Result<Converted, Refusal> {
    let refuse = |reason: &str| {
        refusal(
            ReasonCode::SectorSize,
            format!(
                "Disk {} of the backup has sectors of {} bytes, the target has {}: {reason}. Use a disk with sectors of {} bytes.",
                image.number,
                image.logical_sector.bytes(),
                to.bytes(),
                image.logical_sector.bytes()
            ),
        )
    };
    if firmware == FirmwareKind::Bios && to.bytes() > 512 {
        return Err(refuse(
            "its system starts by BIOS, which reads sectors of 512 bytes",
        ));
    }
    let table = match &image.table {
        PartitionTable::Mbr(_) => {
            return Err(refuse(
                "what starts from a PC partition table counts in its sectors",
            ));
        }
        PartitionTable::None => PartitionTable::None,
        PartitionTable::Gpt(table) => PartitionTable::Gpt(
            table
                .with_sectors(to)
                .map_err(|error| refuse(&error.to_string()))?,
        ),
    };
    let mut changes = Vec::new();
    let mut regions = Vec::with_capacity(image.regions.len());
    for region in &image.regions {
        let mut region = region.clone();
        let place = region.place(image.number);
        let range = rounded(region.range, to);
        if region.kind == RegionKind::Gap {
            if region.content.data_bytes > 0 {
                notes.push(format!(
                    "{} of data in {place} are not restored: what is outside of partitions counts in sectors.",
                    HumanBytes(region.content.data_bytes)
                ));
            }
            region.coverage = Coverage::LeftOut {
                reason: "the target's sectors have another size".to_owned(),
            };
            // Not where the table is now, whose place is not known here: none of it is written.
            regions.push(region);
            continue;
        }
        let range = range.ok_or_else(|| refuse(&format!("{place} begins at {}", region.range)))?;
        let change = works(&region, &image.table, to)
            .map_err(|reason| refuse(&format!("{place}: {reason}")))?;
        if let (true, RegionKind::Partition { number }, Some(volume)) =
            (change, &region.kind, &region.volume)
        {
            changes.push(SectorChange {
                partition: *number,
                file_system: volume.file_system,
                to,
            });
        }
        region.range = range;
        regions.push(region);
    }
    notes.push(format!(
        "Sectors have {} bytes on the source and {} here: partition table and EFI system partition are converted.",
        image.logical_sector.bytes(),
        to.bytes()
    ));
    Ok(Converted {
        image: DiskImage {
            size: image.size - image.size % to.bytes(),
            logical_sector: to,
            table,
            regions,
            ..image.clone()
        },
        changes,
    })
}

/// The range as whole sectors: its end may be within one, its beginning not.
fn rounded(range: ByteRange, to: SectorSize) -> Option<ByteRange> {
    let end = range.end().checked_next_multiple_of(to.bytes())?;
    range
        .start()
        .is_multiple_of(to.bytes())
        .then(|| ByteRange::between(range.start(), end))
}

/// Whether a region's content has to be changed for such sectors; why it cannot.
pub(super) fn works(
    region: &Region,
    table: &PartitionTable,
    to: SectorSize,
) -> Result<bool, String> {
    let content = &region.content;
    if matches!(region.coverage, Coverage::LeftOut { .. }) || content.data_bytes == 0 {
        return Ok(false);
    }
    let sector = to.bytes();
    let Some(volume) = &region.volume else {
        let is_start_code = match table {
            PartitionTable::Gpt(table) => is_bios_boot(table, &region.kind),
            _ => false,
        };
        return if is_start_code {
            Ok(false)
        } else {
            Err("nobody knows whether what is in it counts in sectors".to_owned())
        };
    };
    let kind = volume.file_system;
    let own = volume.sector_size.map(u64::from);
    match kind {
        FileSystemKind::Ext2
        | FileSystemKind::Ext3
        | FileSystemKind::Ext4
        | FileSystemKind::Btrfs => {
            if u64::from(volume.block_size) >= sector {
                Ok(false)
            } else {
                Err(format!(
                    "its {kind} has blocks of {} bytes",
                    volume.block_size
                ))
            }
        }
        FileSystemKind::Xfs => match own {
            Some(own) if own >= sector => Ok(false),
            Some(own) => Err(format!("its XFS is made for sectors of {own} bytes")),
            None if sector == 512 => Ok(false),
            None => Err("the backup does not say for which sectors its XFS is made".to_owned()),
        },
        FileSystemKind::Swap => Ok(false),
        FileSystemKind::Fat12 | FileSystemKind::Fat16 | FileSystemKind::Fat32 => {
            if own == Some(sector) {
                Ok(false)
            } else if u64::from(volume.block_size) < sector {
                Err(format!(
                    "its {kind} has clusters of {} bytes",
                    volume.block_size
                ))
            } else if region.range.start() < MIB
                || !matches!(region.kind, RegionKind::Partition { .. })
            {
                Err(format!(
                    "its {kind} begins within the disk's first MiB, where an unfinished restore leaves its mark"
                ))
            } else {
                Ok(true)
            }
        }
        _ => Err(format!("{kind} is not converted")),
    }
}

/// Whether it is where GRUB's second stage for BIOS machines lies, which nothing else reads.
fn is_bios_boot(table: &GptTable, kind: &RegionKind) -> bool {
    let RegionKind::Partition { number } = kind else {
        return false;
    };
    let partitions = table.partitions().unwrap_or_default();
    let mut same = partitions.iter().filter(|one| one.number == *number);
    same.any(|one| one.type_guid == BIOS_BOOT_TYPE)
}
