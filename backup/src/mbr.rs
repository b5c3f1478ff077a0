//! PC partition tables with extended partitions, kept to the letter.
//!
//! Layout: boot code, then at byte 446 four entries of 16 bytes, then `55 aa`. An extended
//! partition holds a chain of extended boot records of the same form: one entry for a logical
//! partition (relative to its record) and one for the next record (relative to the extended
//! partition). Numbers are as the kernel gives them (`block/partitions/msdos.c`).
//!
//! Invariant: bytes are patched, never made anew; a chain that loops, leaves the extended partition
//! or says more than one thing at a time is refused.
//!
//! What is *not* here: disk labels of other systems inside a partition (BSD, Solaris, Minix): such
//! a partition is kept as one piece.

mod moved;

use serde::{Deserialize, Serialize};

use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le32, put32};
use crate::manifest::Blob;
use crate::plan::TableWrite;
use crate::{ByteRange, SectorSize};

/// More logical partitions than this are taken for a lie (the kernel gives up at 256 in all).
const MAX_LOGICAL: usize = 251;

const ENTRIES: usize = 446;
const ENTRY_LEN: usize = 16;
const SIGNATURE: usize = 510;
/// The disk's own signature; 0 where no system has set one.
const DISK_SIGNATURE: usize = 440;

/// A PC partition table that cannot be read or carried to another disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MbrError {
    /// The disk could not be read.
    #[error("the partition table could not be read")]
    Read(#[from] ReadError),
    /// A record without its signature, or of the wrong length.
    #[error("the record at LBA {lba} is no partition table: {reason}")]
    Record {
        /// Where the record is.
        lba: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry that describes no possible partition.
    #[error(
        "entry {slot} of the record at LBA {lba} ({sectors} sectors from LBA {first_lba}): {reason}"
    )]
    Entry {
        /// Where the record is.
        lba: u64,
        /// The entry, counted from 1.
        slot: usize,
        /// First LBA on the disk.
        first_lba: u64,
        /// How many sectors.
        sectors: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// No partition has the number.
    #[error("the table has no partition {number}")]
    NoPartition {
        /// The number asked for.
        number: u32,
    },
    /// The new end of a partition is not possible.
    #[error("partition {number} cannot end at LBA {last_lba}: {reason}")]
    Grow {
        /// The partition.
        number: u32,
        /// The last LBA asked for.
        last_lba: u64,
        /// Why not.
        reason: &'static str,
    },
    /// The disk has no room for the partitions.
    #[error("the disk has {found} sectors (its partitions need {needed})")]
    TooSmall {
        /// Sectors needed.
        needed: u64,
        /// Sectors of the disk.
        found: u64,
    },
}

/// An MBR as it stood on the source disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MbrTable {
    /// Sector 0: boot code, disk signature and table.
    pub first_sector: Blob,
    /// Sectors with extended boot records in the order of their chain: LBA and bytes.
    pub extended: Vec<(u64, Blob)>,
}

/// One partition that holds data; the extended partition itself is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MbrPartition {
    /// 1 to 4 for a primary partition (its place in the table), from 5 for logical ones.
    pub number: u32,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, itself part of the partition.
    pub last_lba: u64,
    /// The type byte.
    pub kind: u8,
    /// Whether the boot flag is set.
    pub active: bool,
    /// Whether it is inside the extended partition.
    pub logical: bool,
}

/// One 16-byte entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Entry {
    fn of(record: &[u8], slot: usize) -> Self {
        let at = ENTRIES + slot * ENTRY_LEN;
        Self {
            status: record[at],
            kind: record[at + 4],
            start: le32(record, at + 8),
            sectors: le32(record, at + 12),
        }
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// Where in the records a partition is described.
struct Found {
    partition: MbrPartition,
    /// Index into the records: 0 is the first sector, then the extended ones.
    record: usize,
    slot: usize,
}

/// What a walk through the records finds.
struct Walk {
    found: Vec<Found>,
    /// The extended partition's slot in the first sector, and its first and last LBA.
    extended: Option<(usize, u64, u64)>,
    records: Vec<(u64, Vec<u8>)>,
    /// For each record after the first extended one, the slot in its predecessor that links to it.
    links: Vec<usize>,
}

fn check_signature(lba: u64, record: &[u8]) -> Result<(), MbrError> {
    let reason = if record.len() < 512 {
        "it is shorter than 512 bytes"
    } else if record[SIGNATURE..SIGNATURE + 2] != [0x55, 0xaa] {
        "it does not end with 55 aa"
    } else {
        return Ok(());
    };
    Err(MbrError::Record { lba, reason })
}

/// Walks from the first sector through the chain. `read` gives the record at an LBA.
fn walk(
    first_sector: &[u8],
    mut read: impl FnMut(u64) -> Result<Vec<u8>, MbrError>,
) -> Result<Walk, MbrError> {
    check_signature(0, first_sector)?;
    let mut walk = Walk {
        found: Vec::new(),
        extended: None,
        records: Vec::new(),
        links: Vec::new(),
    };
    for slot in 0..4 {
        let entry = Entry::of(first_sector, slot);
        if !entry.is_used() {
            continue;
        }
        let (first_lba, sectors) = (u64::from(entry.start), u64::from(entry.sectors));
        let refuse = |reason| MbrError::Entry {
            lba: 0,
            slot: slot + 1,
            first_lba,
            sectors,
            reason,
        };
        if first_lba == 0 {
            return Err(refuse("covers the table itself"));
        }
        if entry.is_extended() {
            if walk.extended.is_some() {
                return Err(refuse("is a second extended partition"));
            }
            walk.extended = Some((slot, first_lba, first_lba + sectors - 1));
            continue;
        }
        walk.found.push(Found {
            partition: MbrPartition {
                number: slot as u32 + 1,
                first_lba,
                last_lba: first_lba + sectors - 1,
                kind: entry.kind,
                active: entry.status & 0x80 != 0,
                logical: false,
            },
            record: 0,
            slot,
        });
    }
    let Some((_, base, last)) = walk.extended else {
        return Ok(walk);
    };
    let mut number = 5;
    let mut next = Some(base);
    while let Some(lba) = next.take() {
        if walk.records.iter().any(|(seen, _)| *seen == lba) {
            return Err(MbrError::Record {
                lba,
                reason: "the chain of logical partitions loops",
            });
        }
        if walk.records.len() > MAX_LOGICAL {
            return Err(MbrError::Record {
                lba,
                reason: "the chain of logical partitions is too long",
            });
        }
        let record = read(lba)?;
        check_signature(lba, &record)?;
        let mut data = None;
        for slot in 0..4 {
            let entry = Entry::of(&record, slot);
            if !entry.is_used() {
                continue;
            }
            let origin = if entry.is_extended() { base } else { lba };
            let (first_lba, sectors) = (origin + u64::from(entry.start), u64::from(entry.sectors));
            let refuse = |reason| MbrError::Entry {
                lba,
                slot: slot + 1,
                first_lba,
                sectors,
                reason,
            };
            if entry.is_extended() {
                if next.is_some() {
                    return Err(refuse("is a second link of the chain"));
                }
                // Only its start counts for the kernel; its length may lie.
                if first_lba > last {
                    return Err(refuse("links to outside the extended partition"));
                }
                next = Some(first_lba);
                walk.links.push(slot);
                continue;
            }
            if data.is_some() {
                return Err(refuse("is a second partition in one record"));
            }
            if entry.start == 0 || first_lba + sectors - 1 > last {
                return Err(refuse("leaves its extended partition"));
            }
            data = Some(Found {
                partition: MbrPartition {
                    number,
                    first_lba,
                    last_lba: first_lba + sectors - 1,
                    kind: entry.kind,
                    active: entry.status & 0x80 != 0,
                    logical: true,
                },
                record: walk.records.len() + 1,
                slot,
            });
        }
        if let Some(found) = data {
            walk.found.push(found);
            number += 1;
        }
        walk.records.push((lba, record));
    }
    Ok(walk)
}

/// Reads the PC partition table of a disk. The caller has seen that sector 0 ends with `55 aa`, and
/// has decided that it is no file system's boot sector.
///
/// # Errors
/// [`MbrError`] for a read that failed, or the first thing wrong with the table.
pub fn read_mbr(disk: &dyn ReadAt, size: u64, sector: SectorSize) -> Result<MbrTable, MbrError> {
    let read = |lba: u64| {
        if lba >= size / sector.bytes() {
            return Err(MbrError::Record {
                lba,
                reason: "it is past the end of the disk",
            });
        }
        let mut record = vec![0; sector.bytes() as usize];
        disk.read_at(lba * sector.bytes(), &mut record)?;
        Ok(record)
    };
    let first_sector = read(0)?;
    let walk = walk(&first_sector, read)?;
    Ok(MbrTable {
        first_sector: Blob(first_sector),
        extended: walk
            .records
            .into_iter()
            .map(|(lba, record)| (lba, Blob(record)))
            .collect(),
    })
}

/// Gives a first sector that has a disk signature another one.
pub(crate) fn put_signature(first_sector: &mut [u8], signature: u32) {
    if first_sector.len() >= 512 && le32(first_sector, DISK_SIGNATURE) != 0 {
        put32(first_sector, DISK_SIGNATURE, signature);
    }
}

impl MbrTable {
    /// The disk's signature, if it has one.
    #[must_use]
    pub fn signature(&self) -> Option<u32> {
        let bytes = &self.first_sector.0;
        (bytes.len() >= 512)
            .then(|| le32(bytes, DISK_SIGNATURE))
            .filter(|signature| *signature != 0)
    }

    /// The table of a copy: with another signature, where the disk has one.
    #[must_use]
    pub fn with_signature(&self, signature: u32) -> Self {
        let mut table = self.clone();
        put_signature(&mut table.first_sector.0, signature);
        table
    }

    fn walk(&self) -> Result<Walk, MbrError> {
        let sector = self.first_sector.0.len();
        let walk = walk(&self.first_sector.0, |lba| {
            self.extended
                .iter()
                .find(|(at, _)| *at == lba)
                .filter(|(_, record)| record.0.len() == sector)
                .map(|(_, record)| record.0.clone())
                .ok_or(MbrError::Record {
                    lba,
                    reason: "it is not among the records that were kept",
                })
        })?;
        if walk.records.len() != self.extended.len() {
            return Err(MbrError::Record {
                lba: 0,
                reason: "records were kept that no chain leads to",
            });
        }
        Ok(walk)
    }

    /// The sector size that the table was made for.
    ///
    /// # Errors
    /// [`MbrError::Record`] when the first sector has an impossible length.
    pub fn sector_size(&self) -> Result<SectorSize, MbrError> {
        SectorSize::try_from(self.first_sector.0.len() as u64).map_err(|_| MbrError::Record {
            lba: 0,
            reason: "its length is no sector size",
        })
    }

    /// The partitions that hold data, primary ones first, then logical ones in their chain's order.
    ///
    /// # Errors
    /// [`MbrError`] for the first thing wrong with the table.
    pub fn partitions(&self) -> Result<Vec<MbrPartition>, MbrError> {
        Ok(self
            .walk()?
            .found
            .into_iter()
            .map(|found| found.partition)
            .collect())
    }

    /// The sectors that the table itself takes, in order of offset.
    ///
    /// # Errors
    /// [`MbrError::Record`] when the first sector has an impossible length.
    pub fn sectors(&self) -> Result<Vec<ByteRange>, MbrError> {
        let sector = self.sector_size()?.bytes();
        let mut ranges: Vec<_> = std::iter::once(0)
            .chain(self.extended.iter().map(|(lba, _)| *lba))
            .map(|lba| {
                let start = lba.saturating_mul(sector);
                ByteRange::between(start, start.saturating_add(sector))
            })
            .collect();
        ranges.sort();
        Ok(ranges)
    }

    /// The table for a disk of `disk_size` bytes, in the order in which it is to be written:
    /// extended boot records from the last to the first, then the MBR. `grown` gives the last
    /// partition (by position) a new last LBA; the extended partition around it grows with it, and
    /// is cut back to its last logical partition where it would leave a smaller disk.
    ///
    /// # Errors
    /// [`MbrError::TooSmall`] when a partition does not fit; [`MbrError::NoPartition`];
    /// [`MbrError::Grow`] when the partition is not the last one or the new end is not possible;
    /// else whatever is wrong with the table.
    pub fn resized_for(
        &self,
        disk_size: u64,
        grown: Option<(u32, u64)>,
    ) -> Result<Vec<TableWrite>, MbrError> {
        let sector = self.sector_size()?;
        let disk_sectors = disk_size / sector.bytes();
        let walk = self.walk()?;
        let mut records: Vec<(u64, Vec<u8>)> = std::iter::once((0, self.first_sector.0.clone()))
            .chain(walk.records.iter().cloned())
            .collect();
        let mut end = walk
            .found
            .iter()
            .map(|found| found.partition.last_lba + 1)
            .chain(walk.records.iter().map(|(lba, _)| lba + 1))
            .max()
            .unwrap_or(1);
        let mut logical_end = walk
            .found
            .iter()
            .filter(|found| found.partition.logical)
            .map(|found| found.partition.last_lba + 1)
            .chain(walk.records.iter().map(|(lba, _)| lba + 1))
            .max();
        if let Some((number, last_lba)) = grown {
            let refuse = |reason| MbrError::Grow {
                number,
                last_lba,
                reason,
            };
            let found = walk
                .found
                .iter()
                .find(|found| found.partition.number == number)
                .ok_or(MbrError::NoPartition { number })?;
            if found.partition.last_lba + 1 != end {
                return Err(refuse("it is not the last partition of the disk"));
            }
            if last_lba < found.partition.last_lba {
                return Err(refuse("it would become smaller"));
            }
            if last_lba > u64::from(u32::MAX) {
                return Err(refuse("a PC partition table counts sectors in 32 bits"));
            }
            end = last_lba + 1;
            let record_lba = records[found.record].0;
            let origin = if found.partition.logical {
                record_lba
            } else {
                0
            };
            set_end(&mut records[found.record].1, found.slot, origin, end);
            if found.partition.logical {
                logical_end = Some(end);
                if let Some(link) = found
                    .record
                    .checked_sub(2)
                    .and_then(|at| walk.links.get(at))
                {
                    // The link's length conventionally reaches to the end of its partition.
                    let base = walk.extended.map_or(0, |(_, base, _)| base);
                    set_end(&mut records[found.record - 1].1, *link, base, end);
                }
            }
        }
        if end > disk_sectors {
            return Err(MbrError::TooSmall {
                needed: end,
                found: disk_sectors,
            });
        }
        if let (Some((slot, _, last)), Some(logical_end)) = (walk.extended, logical_end) {
            let wanted = (last + 1).max(logical_end).min(disk_sectors);
            if wanted != last + 1 {
                set_end(&mut records[0].1, slot, 0, wanted);
            }
        }
        Ok(records
            .into_iter()
            .rev()
            .map(|(lba, bytes)| TableWrite {
                what: if lba == 0 {
                    "MBR".to_owned()
                } else {
                    "extended boot record".to_owned()
                },
                offset: lba * sector.bytes(),
                bytes: Blob(bytes),
            })
            .collect())
    }
}

/// Makes an entry end before LBA `end`; its start is relative to `origin`. The caller has checked
/// that the length fits in 32 bits and is not zero.
fn set_end(record: &mut [u8], slot: usize, origin: u64, end: u64) {
    let at = ENTRIES + slot * ENTRY_LEN;
    let start = origin + u64::from(le32(record, at + 8));
    let sectors = u32::try_from(end.saturating_sub(start)).unwrap_or(u32::MAX);
    put32(record, at + 12, sectors);
    record[at + 5..at + 8].copy_from_slice(&chs(end - 1));
}

/// The cylinder/head/sector form of an LBA in the 255 × 63 geometry that all BIOSes pretend, and
/// the conventional last value past cylinder 1023.
fn chs(lba: u64) -> [u8; 3] {
    const HEADS: u64 = 255;
    const SECTORS: u64 = 63;
    let cylinder = lba / (HEADS * SECTORS);
    if cylinder > 1023 {
        return [0xfe, 0xff, 0xff];
    }
    let head = lba / SECTORS % HEADS;
    let sector = lba % SECTORS + 1;
    // Bits 8 and 9 of the cylinder sit above the six bits of the sector.
    [
        head as u8,
        (sector | cylinder >> 2 & 0xc0) as u8,
        (cylinder & 0xff) as u8,
    ]
}
