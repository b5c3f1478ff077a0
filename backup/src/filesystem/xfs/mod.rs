//! XFS, versions 4 and 5 of the superblock: the blocks in use, where files lie, and the files.
//!
//! Sources: the kernel's `fs/xfs/libxfs/{xfs_format,xfs_da_format,xfs_log_format}.h`, and *XFS Algorithms
//! & Data Structures*.
//!
//! Free is what the by-block free space tree of each allocation group lists; everything else is in use,
//! the log and the reserve lists (AGFL) too. Both free space trees are read: they must hold the same.
//!
//! Invariant: every checksum, owner and place that a V5 structure bears is verified; free blocks are
//! counted against each group's header and the superblock; what is known to be needed (headers, log,
//! trees, the root folder) must not be listed as free. A log that is not clean, an unknown feature and
//! everything that does not fit is a [`Doubt`].

mod big_endian;
mod btree;
mod directory;
mod extents;
mod files;
mod groups;
mod inode;
mod log;
mod superblock;

use std::sync::Arc;

use crate::filesystem::tree::{FileTree, TreeError};
use crate::filesystem::{Doubt, ReadAt, ReadError, Usage};
use superblock::Superblock;

/// Why a structure cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Damaged(String),
    /// Sound, but not for this program.
    #[error("{0}")]
    Unsupported(String),
}

impl From<Fault> for Doubt {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Read(error) => Self::Read(error),
            Fault::Damaged(reason) | Fault::Unsupported(reason) => Self::Untrusted(reason),
        }
    }
}

impl From<Fault> for TreeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Read(error) => Self::Read(error),
            Fault::Damaged(reason) => Self::Damaged(reason),
            Fault::Unsupported(what) => Self::Unsupported(format!("this XFS ({what})")),
        }
    }
}

fn damaged(reason: impl Into<String>) -> Fault {
    Fault::Damaged(reason.into())
}

fn unsupported(what: impl Into<String>) -> Fault {
    Fault::Unsupported(what.into())
}

/// The used ranges of a volume of `size` bytes, and where its files lie.
pub(super) fn usage(volume: &dyn ReadAt, size: u64) -> Result<Usage, Doubt> {
    let superblock = Superblock::read(volume, size)?;
    superblock.check_for_survey()?;
    log::check_clean(volume, &superblock)?;
    let (ranges, inodes) = groups::used(volume, &superblock)?;
    let extents = extents::collect(volume, &superblock, &inodes, &ranges)?;
    Ok(Usage { ranges, extents })
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    let superblock = Superblock::read(volume.as_ref(), size)?;
    log::check_clean(volume.as_ref(), &superblock)?;
    Ok(Box::new(files::Files::new(volume, superblock)))
}
