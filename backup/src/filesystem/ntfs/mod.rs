//! NTFS: the clusters in use from `$Bitmap`, where files lie, and the files themselves.
//!
//! Sources: what is publicly known of the format (the documentation of the Linux-NTFS project, the field
//! offsets in the kernel's `fs/ntfs3/ntfs.h`), and for the volume's flags what Windows 10 sets.
//!
//! Invariant: `$Bitmap` decides what is in use, and it is checked against every data run of every MFT record
//! in use: a run that it does not mark is a [`Doubt`], as are a volume or a log that is not clean, a hibernated
//! Windows, and any structure that does not fit. The log is never replayed.

mod bitmap;
mod boot;
mod file;
mod health;
mod index;
mod lznt1;
mod mft;
mod names;
mod record;
mod reparse;
mod runs;
mod stream;
mod tree;
mod walk;

use std::sync::Arc;

use super::tree::{FileTree, TreeError};
use super::{Doubt, ReadAt, ReadError, Usage};

/// The MFT records of the metadata files that are looked at here.
const MFT: u64 = 0;
const MFT_MIRROR: u64 = 1;
const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;
const BAD_CLUSTERS: u64 = 8;

/// Records up to this one are metadata files or kept for them.
const FIRST_USER_RECORD: u64 = 24;

/// Why a structure cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    /// The volume could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What is wrong, and where.
    #[error("{0}")]
    Damaged(String),
}

impl Fault {
    fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged(reason.into())
    }
}

impl From<Fault> for Doubt {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Read(error) => Self::Read(error),
            Fault::Damaged(reason) => Self::Untrusted(reason),
        }
    }
}

impl From<Fault> for TreeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Read(error) => Self::Read(error),
            Fault::Damaged(reason) => Self::Damaged(reason),
        }
    }
}

/// The used ranges of a volume of `size` bytes, and where its files lie.
pub(super) fn usage(volume: &dyn ReadAt, size: u64) -> Result<Usage, Doubt> {
    let geometry = boot::Geometry::read(volume, size)?;
    let mft = mft::Mft::open(volume, geometry)?;
    health::check(volume, &mft)?;
    let ranges = bitmap::used(volume, &mft, size)?;
    let extents = walk::extents(volume, &mft, &ranges)?;
    Ok(Usage { ranges, extents })
}

/// The label of a volume of `size` bytes; `None` when it has none or none that can be read.
pub(super) fn label(volume: &dyn ReadAt, size: u64) -> Option<String> {
    let geometry = boot::Geometry::read(volume, size).ok()?;
    let mft = mft::Mft::open(volume, geometry).ok()?;
    health::label(volume, &mft)
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    let geometry = boot::Geometry::read(volume.as_ref(), size)?;
    let mft = mft::Mft::open(volume.as_ref(), geometry)?;
    Ok(Box::new(tree::NtfsTree::new(volume, mft)))
}
