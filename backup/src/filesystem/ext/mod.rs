//! ext2, ext3 and ext4: the blocks in use, from the block bitmaps.
//!
//! Sources: the kernel's `fs/ext4/ext4.h` and `Documentation/filesystems/ext4`, and for what has no
//! bitmap on disk (`BLOCK_UNINIT` groups) the rules of e2fsprogs (`lib/ext2fs`).
//!
//! Invariant: superblocks, group descriptors, bitmaps and inode tables always count as used; every
//! checksum that the features promise is verified, and the free blocks of each bitmap are counted
//! against its descriptor. Anything that does not fit, a file system that is not clean, and every
//! feature that could change the meaning of a bitmap is a [`Doubt`].

mod groups;
mod inodes;
mod superblock;
mod tree;

use std::sync::Arc;

use crate::filesystem::tree::{FileTree, TreeError};
use crate::filesystem::{Doubt, ReadAt, Usage};

/// The used ranges of an ext volume of `size` bytes, relative to it.
pub(super) fn usage(volume: &dyn ReadAt, size: u64) -> Result<Usage, Doubt> {
    let superblock = superblock::Superblock::read(volume, size)?;
    let descriptors = groups::descriptors(volume, &superblock)?;
    Ok(Usage {
        ranges: groups::used(volume, &superblock, &descriptors)?,
        extents: inodes::extents(volume, &superblock, &descriptors),
    })
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    Ok(Box::new(tree::ExtTree::open(volume, size)?))
}

fn doubt(reason: impl Into<String>) -> Doubt {
    Doubt::Untrusted(reason.into())
}

/// The kernel's `crc16(~0, bytes)`.
fn crc16(parts: &[&[u8]]) -> u16 {
    const CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_MODBUS);
    let mut digest = CRC.digest();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_kernels() {
        // Check value of the published algorithm over "123456789".
        assert_eq!(crc16(&[b"12345", b"6789"]), 0x4b37);
    }
}
