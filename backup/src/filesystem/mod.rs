//! File systems: which one is in a volume, and which of its bytes are in use.
//!
//! Invariant: the used ranges decide what a backup saves, so any doubt (a journal that must be
//! replayed, an unknown feature flag, a checksum that does not fit, a number out of range) is a
//! [`Doubt`], and the caller then saves the whole volume. Reading goes through [`ReadAt`]; this
//! crate opens nothing.

use crate::ByteRange;
use crate::manifest::{FileSystemKind, Volume};

mod btrfs;
mod cluster_files;
pub(crate) mod crc;
pub mod detect;
mod dos_time;
pub mod encryption;
mod exfat;
mod ext;
pub mod extents;
pub(crate) mod fat;
mod links;
mod ntfs;
pub mod tree;
pub mod tree_path;
mod used;
mod xfs;

pub use extents::FileExtent;
pub use fat::made as new_fat;
pub use fat::sectors as fat_sectors;

/// Random access to the bytes of a volume, given by whoever can do I/O.
pub trait ReadAt {
    /// Fills `buffer` from byte `offset` of the volume.
    ///
    /// # Errors
    /// Whatever the reader met, in words with the place, for example a failing sector.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError>;
}

/// A read that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reading {len} bytes at byte {offset}: {reason}")]
pub struct ReadError {
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: u64,
    /// What the system said.
    pub reason: String,
}

/// Why the used blocks of a volume cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The volume could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its own description is not one to rely on.
    #[error("{0}")]
    Untrusted(String),
}

/// What a volume is and which of its bytes are in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The file system, when one was recognised.
    pub volume: Option<Volume>,
    /// Used ranges in order, not overlapping, relative to the volume; or why they are not known.
    pub used: Result<Vec<ByteRange>, Doubt>,
    /// Where files lie, in order and not overlapping: hints for cutting, see [`extents`].
    pub extents: Vec<FileExtent>,
    /// The bytes that make the volume mountable (superblocks and boot sectors), written last.
    pub heads: Vec<ByteRange>,
}

/// A contiguous part of a disk as a volume of its own.
#[derive(Clone, Copy)]
pub struct Section<'a> {
    disk: &'a dyn ReadAt,
    range: ByteRange,
}

impl<'a> Section<'a> {
    /// The bytes `range` of `disk`, counted from 0.
    #[must_use]
    pub const fn new(disk: &'a dyn ReadAt, range: ByteRange) -> Self {
        Self { disk, range }
    }
}

impl ReadAt for Section<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.range.len()) {
            return Err(ReadError {
                offset,
                len,
                reason: format!("past the end of the volume of {} bytes", self.range.len()),
            });
        }
        self.disk.read_at(self.range.start() + offset, buffer)
    }
}

/// What a file system's own module tells of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Used ranges in order, not overlapping.
    pub(crate) ranges: Vec<ByteRange>,
    /// Where files lie.
    pub(crate) extents: Vec<FileExtent>,
}

/// What a volume of `size` bytes is, and which of its bytes are in use. Whatever it holds, this
/// returns: what is not understood is a [`Doubt`].
#[must_use]
pub fn survey_volume(volume: &dyn ReadAt, size: u64) -> Survey {
    let signs = detect::detect(volume, size)
        .and_then(|found| Ok((found, detect::is_raid_member(volume, size)?)));
    let (found, usage) = match signs {
        Err(error) => (None, Err(Doubt::Read(error))),
        Ok((found, raid)) => {
            let usage = usage(volume, size, &found, raid);
            (found.into_iter().next(), usage)
        }
    };
    let (used, extents) = match usage {
        Ok(usage) => (Ok(usage.ranges), usage.extents),
        Err(doubt) => (Err(doubt), Vec::new()),
    };
    let found = found.map(|found| Volume {
        // A FAT does not say how much of it is in use, its clusters do.
        used: found.used.or_else(|| {
            let ranges = used.as_ref().ok()?;
            Some(ranges.iter().map(|range| range.len()).sum())
        }),
        // NTFS keeps its label in a file.
        label: found.label.or_else(|| match found.file_system {
            FileSystemKind::Ntfs => ntfs::label(volume, size),
            _ => None,
        }),
        ..found
    });
    Survey {
        heads: heads(found.as_ref().map(|found| found.file_system), size),
        used,
        extents,
        volume: found,
    }
}

fn usage(volume: &dyn ReadAt, size: u64, found: &[Volume], raid: bool) -> Result<Usage, Doubt> {
    let untrusted = |reason: String| Err(Doubt::Untrusted(reason));
    let kind = match found {
        [] => return untrusted("no file system that is known here".to_owned()),
        [one] => one.file_system,
        [one, other, ..] => {
            return untrusted(format!(
                "it bears signs of both {} and {}",
                one.file_system, other.file_system
            ));
        }
    };
    if raid {
        return untrusted("it is a member of a software RAID".to_owned());
    }
    match kind {
        FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4 => {
            ext::usage(volume, size)
        }
        FileSystemKind::Fat12 | FileSystemKind::Fat16 | FileSystemKind::Fat32 => {
            fat::usage(volume, size)
        }
        FileSystemKind::Exfat => exfat::usage(volume, size),
        FileSystemKind::Ntfs => ntfs::usage(volume, size),
        FileSystemKind::Xfs => xfs::usage(volume, size),
        FileSystemKind::Btrfs => btrfs::usage(volume, size),
        // The content of swap is dead once its machine is off; its first page makes it swap.
        FileSystemKind::Swap => Ok(Usage {
            ranges: vec![ByteRange::between(0, 4096)],
            extents: Vec::new(),
        }),
        FileSystemKind::Luks | FileSystemKind::Bitlocker => {
            untrusted(encryption::reason(volume, size, kind)?)
        }
        kind => untrusted(format!("{kind} is saved whole")),
    }
}

/// The bytes of a volume of `size` bytes that make it mountable or bootable; a restore writes them
/// after everything else of the volume is flushed. Multiples of 4096 bytes but for the volume's end.
#[must_use]
pub fn heads(file_system: Option<FileSystemKind>, size: u64) -> Vec<ByteRange> {
    let ranges: &[(u64, u64)] = match file_system {
        // Boot sector, FSInfo and their backup at sectors 6 and 7, also with sectors of 4096 bytes.
        Some(
            FileSystemKind::Fat12
            | FileSystemKind::Fat16
            | FileSystemKind::Fat32
            | FileSystemKind::Exfat,
        ) => &[(0, 32 << 10)],
        // The superblock at 64 KiB; its copies at 64 MiB and 256 GiB are not mounted by themselves.
        Some(FileSystemKind::Btrfs) => &[(64 << 10, 4096)],
        // Both headers of LUKS2 with areas of the usual size; the second one alone is enough to open it.
        Some(FileSystemKind::Luks) => &[(0, 4096), (16 << 10, 4096)],
        // ext: the superblock at byte 1024, in block 0 or 1. The others begin at byte 0.
        _ => &[(0, 4096)],
    };
    ranges
        .iter()
        .map(|(start, len)| ByteRange::between(*start, (start + len).min(size)))
        .filter(|range| !range.is_empty())
        .collect()
}
