//! What lies where on a disk: its partition table, its partitions, and the gaps between them.
//!
//! Invariant: the regions of a [`DiskLayout`] are in order, do not overlap, and with the table's own
//! sectors they cover every whole sector of the disk. Partitions that leave the disk, or overlap
//! each other or the table, are refused: such a disk cannot be rebuilt by partitions.
//!
//! What is *not* here: what is inside a partition (`filesystem`), which regions are read
//! (`plan::capture`).

use crate::filesystem::{ReadAt, ReadError, detect};
use crate::gpt::{self, GptError};
use crate::manifest::{FileSystemKind, PartitionTable, RegionKind, Volume};
use crate::mbr::{self, MbrError};
use crate::units::HumanBytes;
use crate::{ByteRange, SectorSize};

/// Gaps up to this long are saved whole: boot loaders live there (GRUB's `core.img` after an MBR).
pub const MAX_SAVED_GAP: u64 = 16 << 20;

/// A disk whose layout cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The disk could not be read.
    #[error("the disk could not be read")]
    Read(#[from] ReadError),
    /// Its GPT is not usable.
    #[error("the disk's GPT is not usable")]
    Gpt(#[from] GptError),
    /// Its PC partition table is not usable.
    #[error("the disk's PC partition table is not usable")]
    Mbr(#[from] MbrError),
    /// A partition that is not on the disk.
    #[error("partition {number} at {range} leaves the disk of {size} bytes")]
    Outside {
        /// Its number.
        number: u32,
        /// Where the table says it is.
        range: ByteRange,
        /// The disk's size in bytes.
        size: u64,
    },
    /// Two partitions share bytes.
    #[error("partition {number} at {range} overlaps partition {other} at {other_range}")]
    Overlap {
        /// The one that begins later.
        number: u32,
        /// Its place.
        range: ByteRange,
        /// The one that begins earlier.
        other: u32,
        /// Its place.
        other_range: ByteRange,
    },
    /// A partition that shares bytes with the table.
    #[error("partition {number} at {range} overlaps the partition table at {table}")]
    OverTable {
        /// Its number.
        number: u32,
        /// Its place.
        range: ByteRange,
        /// The part of the table.
        table: ByteRange,
    },
    /// The disk is too small to hold anything.
    #[error("the disk has {size} bytes, less than a sector")]
    Empty {
        /// Its size in bytes.
        size: u64,
    },
}

/// A partition, of whichever kind of table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePartition {
    /// Its number, as the kernel counts.
    pub number: u32,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, itself part of the partition.
    pub last_lba: u64,
    /// Its unique GUID, for a GPT.
    pub guid: Option<uuid::Uuid>,
    /// Whether it is an EFI system partition.
    pub esp: bool,
    /// Whether something finds it by absolute sector, so that it must not move.
    pub fixed: bool,
}

impl TablePartition {
    /// Its bytes. The tables admit no partition past 2^64 bytes.
    #[must_use]
    pub fn range(&self, sector: SectorSize) -> ByteRange {
        ByteRange::between(
            self.first_lba.saturating_mul(sector.bytes()),
            (self.last_lba.saturating_add(1)).saturating_mul(sector.bytes()),
        )
    }
}

/// A table that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A GPT.
    #[error(transparent)]
    Gpt(#[from] GptError),
    /// A PC partition table.
    #[error(transparent)]
    Mbr(#[from] MbrError),
}

/// The partitions of a table in the order of their numbers; none for a disk without a table.
///
/// # Errors
/// [`TableError`] when the table's bytes are not one.
pub fn partitions_of(table: &PartitionTable) -> Result<Vec<TablePartition>, TableError> {
    Ok(match table {
        PartitionTable::None => Vec::new(),
        PartitionTable::Gpt(table) => table
            .partitions()?
            .into_iter()
            .map(|partition| TablePartition {
                number: partition.number,
                first_lba: partition.first_lba,
                last_lba: partition.last_lba,
                guid: Some(partition.unique_guid),
                esp: partition.type_guid == gpt::ESP_TYPE,
                // Boot entries of UEFI firmware name their partition by its first sector, too.
                fixed: [gpt::BIOS_BOOT_TYPE, gpt::ESP_TYPE].contains(&partition.type_guid),
            })
            .collect(),
        PartitionTable::Mbr(table) => table
            .partitions()?
            .into_iter()
            .map(|partition| TablePartition {
                number: partition.number,
                first_lba: partition.first_lba,
                last_lba: partition.last_lba,
                guid: None,
                esp: partition.kind == 0xef,
                fixed: true,
            })
            .collect(),
    })
}

/// A partition and what its table says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartitionType {
    /// Its number, as the kernel counts.
    pub(crate) number: u32,
    /// Its bytes, as the table says; they may leave the disk.
    pub(crate) range: ByteRange,
    /// The type, for a GPT.
    pub(crate) guid: Option<uuid::Uuid>,
}

/// The partitions of a disk as far as its table can be read; none for a table that is not usable.
///
/// # Errors
/// [`ReadError`] when the disk cannot be read.
pub(crate) fn partition_types(
    disk: &dyn ReadAt,
    size: u64,
    sector: SectorSize,
) -> Result<Vec<PartitionType>, ReadError> {
    let range = |first: u64, last: u64| {
        ByteRange::between(
            first.saturating_mul(sector.bytes()),
            last.saturating_add(1).saturating_mul(sector.bytes()),
        )
    };
    if size < sector.bytes() {
        return Ok(Vec::new());
    }
    match gpt::read_gpt(disk, size, sector) {
        Err(GptError::Read(error)) => return Err(error),
        Err(_) => return Ok(Vec::new()),
        Ok(Some(read)) => {
            let partitions = read.table.partitions().unwrap_or_default();
            let types = partitions.iter().map(|one| PartitionType {
                number: one.number,
                range: range(one.first_lba, one.last_lba),
                guid: Some(one.type_guid),
            });
            return Ok(types.collect());
        }
        Ok(None) => {}
    }
    match has_mbr(disk, size, sector) {
        Err(LayoutError::Read(error)) => return Err(error),
        Ok(true) => {}
        Ok(false) | Err(_) => return Ok(Vec::new()),
    }
    match mbr::read_mbr(disk, size, sector) {
        Err(MbrError::Read(error)) => Err(error),
        Err(_) => Ok(Vec::new()),
        Ok(table) => {
            let partitions = table.partitions().unwrap_or_default();
            let types = partitions.iter().map(|one| PartitionType {
                number: one.number,
                range: range(one.first_lba, one.last_lba),
                guid: None,
            });
            Ok(types.collect())
        }
    }
}

/// A contiguous piece of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutRegion {
    /// What it is.
    pub kind: RegionKind,
    /// Where it is.
    pub range: ByteRange,
    /// Why it is not saved, when it is not.
    pub left_out: Option<String>,
}

/// A disk's table and regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLayout {
    /// The partition table.
    pub table: PartitionTable,
    /// Everything but the table's own sectors, in order.
    pub regions: Vec<LayoutRegion>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Reads the layout of a disk of `size` bytes.
///
/// # Errors
/// [`LayoutError`] for a read that failed, or a table that does not describe the disk.
pub fn survey_disk(
    disk: &dyn ReadAt,
    size: u64,
    sector: SectorSize,
) -> Result<DiskLayout, LayoutError> {
    let size = size - size % sector.bytes();
    if size == 0 {
        return Err(LayoutError::Empty { size });
    }
    let mut warnings = Vec::new();
    let (table, own) = if let Some(read) = gpt::read_gpt(disk, size, sector)? {
        warnings = read.warnings;
        (PartitionTable::Gpt(read.table), read.sectors)
    } else if has_mbr(disk, size, sector)? {
        let table = mbr::read_mbr(disk, size, sector)?;
        let own = table.sectors()?;
        (PartitionTable::Mbr(table), own)
    } else {
        (PartitionTable::None, Vec::new())
    };
    let regions = if table == PartitionTable::None {
        vec![LayoutRegion {
            kind: RegionKind::WholeDisk,
            range: ByteRange::between(0, size),
            left_out: None,
        }]
    } else {
        let partitions = partitions_of(&table).map_err(|error| match error {
            TableError::Gpt(error) => LayoutError::Gpt(error),
            TableError::Mbr(error) => LayoutError::Mbr(error),
        })?;
        regions(&partitions, &own, size, sector)?
    };
    Ok(DiskLayout {
        table,
        regions,
        warnings,
    })
}

/// Whether sector 0 is a PC partition table. FAT and NTFS boot sectors end with the same `55 aa`;
/// a table counts when its entries make sense, else a file system does.
fn has_mbr(disk: &dyn ReadAt, size: u64, sector: SectorSize) -> Result<bool, LayoutError> {
    let mut first = vec![0; sector.bytes() as usize];
    disk.read_at(0, &mut first)?;
    if first[510..512] != [0x55, 0xaa] {
        return Ok(false);
    }
    let sensible = (0..4).all(|slot| matches!(first[446 + 16 * slot], 0 | 0x80));
    let used = (0..4).any(|slot| first[446 + 16 * slot + 4] != 0);
    if !used {
        return Ok(false);
    }
    let table = mbr::read_mbr(disk, size, sector);
    let fits = table.as_ref().is_ok_and(|table| {
        table.partitions().is_ok_and(|partitions| {
            !partitions.is_empty()
                && partitions
                    .iter()
                    .all(|partition| partition.last_lba < size / sector.bytes())
        })
    });
    if sensible && fits {
        return Ok(true);
    }
    // A damaged table is refused by the caller with its reason; a boot sector is no table. Only the
    // file systems whose own first sector ends with `55 aa` speak against a table: what else has a
    // signature may be left from before the disk was partitioned.
    let boot_sector = |volume: &Volume| {
        matches!(
            volume.file_system,
            FileSystemKind::Fat12
                | FileSystemKind::Fat16
                | FileSystemKind::Fat32
                | FileSystemKind::Exfat
                | FileSystemKind::Ntfs
                | FileSystemKind::Bitlocker
        )
    };
    Ok(!detect::detect(disk, size)?.iter().any(boot_sector))
}

fn regions(
    partitions: &[TablePartition],
    own: &[ByteRange],
    size: u64,
    sector: SectorSize,
) -> Result<Vec<LayoutRegion>, LayoutError> {
    let mut placed: Vec<(u32, ByteRange)> = partitions
        .iter()
        .map(|partition| (partition.number, partition.range(sector)))
        .collect();
    placed.sort_by_key(|(_, range)| *range);
    for (number, range) in &placed {
        if range.end() > size {
            return Err(LayoutError::Outside {
                number: *number,
                range: *range,
                size,
            });
        }
        if let Some(table) = own.iter().find(|table| table.overlaps(*range)) {
            return Err(LayoutError::OverTable {
                number: *number,
                range: *range,
                table: *table,
            });
        }
    }
    for pair in placed.windows(2) {
        let ((other, other_range), (number, range)) = (pair[0], pair[1]);
        if other_range.overlaps(range) {
            return Err(LayoutError::Overlap {
                number,
                range,
                other,
                other_range,
            });
        }
    }
    let mut occupied: Vec<(ByteRange, Option<u32>)> = placed
        .iter()
        .map(|(number, range)| (*range, Some(*number)))
        .chain(own.iter().map(|range| (*range, None)))
        .collect();
    occupied.sort();
    occupied.push((ByteRange::between(size, size), None));
    let mut regions = Vec::new();
    let mut at = 0;
    let mut seen_partition = false;
    for (range, number) in occupied {
        if at < range.start() {
            push_gap(
                &mut regions,
                ByteRange::between(at, range.start()),
                !seen_partition,
            );
        }
        if let Some(number) = number {
            seen_partition = true;
            regions.push(LayoutRegion {
                kind: RegionKind::Partition { number },
                range,
                left_out: None,
            });
        }
        at = at.max(range.end());
    }
    Ok(regions)
}

/// A gap is saved whole up to [`MAX_SAVED_GAP`]; of a longer one before the first partition the
/// beginning is saved, because a boot loader may be there.
fn push_gap(regions: &mut Vec<LayoutRegion>, range: ByteRange, first: bool) {
    let gap = |range, left_out| LayoutRegion {
        kind: RegionKind::Gap,
        range,
        left_out,
    };
    if range.len() <= MAX_SAVED_GAP {
        regions.push(gap(range, None));
        return;
    }
    let cut = if first {
        let cut = range.start() + MAX_SAVED_GAP;
        regions.push(gap(ByteRange::between(range.start(), cut), None));
        cut
    } else {
        range.start()
    };
    let rest = ByteRange::between(cut, range.end());
    let reason = format!(
        "{} outside all partitions; gaps up to {} are saved",
        HumanBytes(rest.len()),
        HumanBytes(MAX_SAVED_GAP)
    );
    regions.push(gap(rest, Some(reason)));
}
