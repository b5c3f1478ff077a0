//! Btrfs: the blocks in use, from the extent tree, and where files lie.
//!
//! Sources: the kernel's `include/uapi/linux/btrfs_tree.h` and `fs/btrfs/tree-checker.c`, and the page
//! "On-disk format" of the Btrfs documentation.
//!
//! Invariant: the first MiB, every copy of the superblock and every extent of the extent tree count as
//! used, in all their copies; the extents are counted against every block group and the superblock.
//! Each tree block is verified before it is believed. Anything that does not fit, more than one device, a
//! log that must be replayed, and every feature that could change the meaning of the extent tree is a
//! [`Doubt`].

mod allocation;
mod chunks;
mod compression;
mod files;
mod superblock;
mod tree_blocks;

use std::sync::Arc;

use crate::filesystem::tree::{FileTree, TreeError};
use crate::filesystem::{Doubt, ReadAt, ReadError, Usage};

/// Why something of a Btrfs is not as it should be.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Unsupported(String),
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
            Fault::Damaged(reason) | Fault::Unsupported(reason) => Self::Untrusted(reason),
        }
    }
}

impl From<Fault> for TreeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Read(error) => Self::Read(error),
            Fault::Damaged(reason) => Self::Damaged(reason),
            Fault::Unsupported(what) => Self::Unsupported(what),
        }
    }
}

/// The used ranges of a volume of `size` bytes, and where its files lie.
pub(super) fn usage(volume: &dyn ReadAt, size: u64) -> Result<Usage, Doubt> {
    let superblock = superblock::Superblock::read(volume, size)?;
    superblock.check_settled(volume)?;
    let chunks = chunks::Chunks::read(volume, &superblock)?;
    Ok(allocation::usage(volume, &superblock, &chunks)?)
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    Ok(Box::new(files::Files::open(volume, size)?))
}
