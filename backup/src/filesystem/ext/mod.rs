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
mod superblock;

use crate::ByteRange;
use crate::filesystem::{Doubt, ReadAt};

/// The used ranges of an ext volume of `size` bytes, relative to it.
pub(crate) fn used(volume: &dyn ReadAt, size: u64) -> Result<Vec<ByteRange>, Doubt> {
    let superblock = superblock::Superblock::read(volume, size)?;
    groups::used(volume, &superblock)
}

fn doubt(reason: impl Into<String>) -> Doubt {
    Doubt::Untrusted(reason.into())
}

/// The kernel's `crc32c(seed, bytes)`: without the final inversion of the published algorithm.
fn crc32c(seed: u32, parts: &[&[u8]]) -> u32 {
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    // The crate takes the initial value in the algorithm's unreflected form.
    let mut digest = CRC.digest_with_initial(seed.reverse_bits());
    for part in parts {
        digest.update(part);
    }
    !digest.finalize()
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
        // Check values of the published algorithms over "123456789".
        assert_eq!(!crc32c(!0, &[b"12345", b"6789"]), 0xe306_9283);
        assert_eq!(crc16(&[b"12345", b"6789"]), 0x4b37);
        // Chaining by seed is the same as one run.
        assert_eq!(
            crc32c(crc32c(!0, &[b"12345"]), &[b"6789"]),
            crc32c(!0, &[b"123456789"])
        );
    }
}
