//! The ext superblock: numbers checked against each other and the volume, features against what
//! the bitmaps' meaning depends on.

use super::doubt;
use crate::filesystem::crc::crc32c;
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le16, le32, le64};

/// Byte of the superblock on the volume.
const OFFSET: u64 = 1024;
const LEN: usize = 1024;
/// More block groups than this (128 TiB at usual sizes) are not surveyed.
const MAX_GROUPS: u64 = 1 << 20;
const MMP_CLEAN: u32 = 0xff4d_4d50;
const MMP_MAGIC: u32 = 0x004d_4d50;

/// Feature bits, `fs/ext4/ext4.h`.
mod feature {
    pub(super) const HAS_JOURNAL: u32 = 0x4;
    pub(super) const SPARSE_SUPER2: u32 = 0x200;

    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const JOURNAL_DEVICE: u32 = 0x8;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const WIDE: u32 = 0x80;
    pub(super) const MMP: u32 = 0x100;
    pub(super) const CHECKSUM_SEED: u32 = 0x2000;
    /// filetype, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
    /// inline_data, encrypt, casefold: none changes what a bitmap says.
    pub(super) const KNOWN_INCOMPATIBLE: u32 = 0x2
        | META_BG
        | 0x40
        | WIDE
        | MMP
        | 0x200
        | 0x400
        | CHECKSUM_SEED
        | 0x4000
        | 0x8000
        | 0x1_0000
        | 0x2_0000;

    pub(super) const SPARSE_SUPER: u32 = 0x1;
    pub(super) const GROUP_CHECKSUMS: u32 = 0x10;
    pub(super) const BIGALLOC: u32 = 0x200;
    pub(super) const METADATA_CHECKSUMS: u32 = 0x400;
    pub(super) const ORPHANS_PRESENT: u32 = 0x1_0000;
    /// sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota,
    /// metadata_csum, read-only, project, verity.
    pub(super) const KNOWN_READ_ONLY: u32 = SPARSE_SUPER
        | 0x2
        | 0x4
        | 0x8
        | GROUP_CHECKSUMS
        | 0x20
        | 0x40
        | 0x100
        | METADATA_CHECKSUMS
        | 0x1000
        | 0x2000
        | 0x8000;
}

/// How group descriptors are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    /// `gdt_csum`: CRC-16 of each descriptor.
    Groups,
    /// `metadata_csum`: CRC-32C of descriptors and bitmaps, from this seed.
    Metadata(u32),
}

/// What the survey needs of a superblock, all checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) block_size: u64,
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) groups: u64,
    pub(super) descriptor_len: u64,
    pub(super) inode_table_blocks: u64,
    pub(super) inodes_per_group: u64,
    pub(super) inode_len: u64,
    /// The first inode that may be a file of a user; those before it are the file system's own.
    pub(super) first_inode: u64,
    pub(super) reserved_gdt_blocks: u64,
    /// The first meta block group, when the feature is on.
    pub(super) first_meta_group: Option<u64>,
    pub(super) checksums: Checksums,
    pub(super) uuid: [u8; 16],
    sparse: bool,
    /// With `sparse_super2`: the groups with backups.
    backup_groups: Option<[u64; 2]>,
}

impl Superblock {
    /// Reads and checks the superblock of a volume of `size` bytes.
    pub(super) fn read(volume: &dyn ReadAt, size: u64) -> Result<Self, Doubt> {
        let mut bytes = [0; LEN];
        if size < OFFSET + LEN as u64 {
            return Err(doubt("an ext volume of less than 2048 bytes"));
        }
        volume.read_at(OFFSET, &mut bytes)?;
        if le16(&bytes, 56) != 0xef53 {
            return Err(doubt("no ext superblock"));
        }
        let incompatible = le32(&bytes, 96);
        check_revision(&bytes)?;
        check_state(&bytes)?;
        let checksums = checksums(&bytes)?;
        let superblock = numbers(&bytes, size, checksums)?;
        if incompatible & feature::MMP != 0 {
            check_mmp(volume, &superblock, le64(&bytes, 0x168))?;
        }
        Ok(superblock)
    }

    /// Reads it for reading files, with its bytes: a file system that is not clean, or whose bitmaps this
    /// program does not understand, may still have files that it does.
    pub(super) fn read_for_files(
        volume: &dyn ReadAt,
        size: u64,
    ) -> Result<(Self, [u8; LEN]), Doubt> {
        let mut bytes = [0; LEN];
        if size < OFFSET + LEN as u64 {
            return Err(doubt("an ext volume of less than 2048 bytes"));
        }
        volume.read_at(OFFSET, &mut bytes)?;
        if le16(&bytes, 56) != 0xef53 {
            return Err(doubt("no ext superblock"));
        }
        check_revision(&bytes)?;
        let checksums = checksums(&bytes)?;
        Ok((numbers(&bytes, size, checksums)?, bytes))
    }

    /// Whether a group holds a copy of the superblock (`ext2fs_bg_has_super`).
    pub(super) fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if let Some(groups) = self.backup_groups {
            return groups.contains(&group);
        }
        if group == 1 || !self.sparse {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        })
    }

    pub(super) const fn group_start(&self, group: u64) -> u64 {
        self.first_data_block + group * self.blocks_per_group
    }

    pub(super) fn group_blocks(&self, group: u64) -> u64 {
        self.blocks_per_group
            .min(self.blocks - self.group_start(group))
    }

    pub(super) const fn descriptors_per_block(&self) -> u64 {
        self.block_size / self.descriptor_len
    }

    pub(super) const fn descriptor_blocks(&self) -> u64 {
        self.groups.div_ceil(self.descriptors_per_block())
    }
}

fn check_revision(bytes: &[u8]) -> Result<(), Doubt> {
    let (compatible, incompatible, read_only) =
        (le32(bytes, 92), le32(bytes, 96), le32(bytes, 100));
    match le32(bytes, 76) {
        0 if compatible | incompatible | read_only == 0 => Ok(()),
        0 => Err(doubt("an ext superblock of revision 0 with features")),
        1 => Ok(()),
        revision => Err(doubt(format!("an ext superblock of revision {revision}"))),
    }
}

fn check_state(bytes: &[u8]) -> Result<(), Doubt> {
    let (compatible, incompatible, read_only) =
        (le32(bytes, 92), le32(bytes, 96), le32(bytes, 100));
    if incompatible & feature::RECOVER != 0 {
        return Err(doubt("the journal must be replayed first"));
    }
    if incompatible & feature::JOURNAL_DEVICE != 0 {
        return Err(doubt("it is an external journal"));
    }
    let unknown = incompatible & !feature::KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        return Err(doubt(format!("unknown incompatible features {unknown:#x}")));
    }
    if read_only & feature::BIGALLOC != 0 {
        return Err(doubt("the bigalloc feature (clusters of blocks)"));
    }
    if read_only & feature::ORPHANS_PRESENT != 0 {
        return Err(doubt("orphaned inodes must be cleaned up first"));
    }
    let unknown = read_only & !feature::KNOWN_READ_ONLY;
    if unknown != 0 {
        return Err(doubt(format!(
            "unknown read-only compatible features {unknown:#x}"
        )));
    }
    let state = le16(bytes, 58);
    if state & 0x2 != 0 {
        return Err(doubt("the file system is marked as having errors"));
    }
    if state & 0x1 == 0 {
        return Err(doubt("the file system was not cleanly unmounted"));
    }
    if compatible & feature::HAS_JOURNAL != 0 && le32(bytes, 224) == 0 {
        return Err(doubt("its journal is on another device"));
    }
    Ok(())
}

fn checksums(bytes: &[u8; LEN]) -> Result<Checksums, Doubt> {
    let read_only = le32(bytes, 100);
    if read_only & feature::METADATA_CHECKSUMS == 0 {
        return Ok(if read_only & feature::GROUP_CHECKSUMS == 0 {
            Checksums::None
        } else {
            Checksums::Groups
        });
    }
    let kind = bytes[0x175];
    if kind != 1 {
        return Err(doubt(format!("unknown kind of checksum {kind}")));
    }
    let (found, expected) = (crc32c(!0, &[&bytes[..1020]]), le32(bytes, 1020));
    if found != expected {
        return Err(doubt(format!(
            "superblock checksum {found:08x} (expected {expected:08x})"
        )));
    }
    let seed = if le32(bytes, 96) & feature::CHECKSUM_SEED != 0 {
        le32(bytes, 0x270)
    } else {
        crc32c(!0, &[&bytes[104..120]])
    };
    Ok(Checksums::Metadata(seed))
}

fn numbers(bytes: &[u8; LEN], size: u64, checksums: Checksums) -> Result<Superblock, Doubt> {
    let (compatible, incompatible) = (le32(bytes, 92), le32(bytes, 96));
    let wide = incompatible & feature::WIDE != 0;
    let log = le32(bytes, 24);
    if log > 6 {
        return Err(doubt(format!(
            "blocks of 2^{} bytes",
            log.saturating_add(10)
        )));
    }
    let block_size = 1024u64 << log;
    let high = if wide {
        u64::from(le32(bytes, 336)) << 32
    } else {
        0
    };
    let blocks = u64::from(le32(bytes, 4)) | high;
    if blocks.checked_mul(block_size).is_none_or(|len| len > size) {
        return Err(doubt(format!(
            "it says {blocks} blocks of {block_size} bytes, its place has {size} bytes"
        )));
    }
    let first_data_block = u64::from(le32(bytes, 20));
    let blocks_per_group = u64::from(le32(bytes, 32));
    // With bigalloc a bit of a bitmap stands for a cluster of blocks; those who read bitmaps refuse it.
    let clusters = le32(bytes, 28).checked_sub(log).filter(|clusters| {
        *clusters == 0 || (*clusters <= 16 && le32(bytes, 100) & feature::BIGALLOC != 0)
    });
    let most = clusters.map_or(0, |clusters| (8 * block_size) << clusters);
    let groups_sane = (first_data_block == u64::from(block_size == 1024)
        || (first_data_block == 0 && clusters.is_some_and(|clusters| clusters > 0)))
        && blocks > first_data_block
        && blocks_per_group.is_multiple_of(8)
        && (256..=most).contains(&blocks_per_group);
    if !groups_sane {
        return Err(doubt(format!(
            "groups of {blocks_per_group} blocks from block {first_data_block}"
        )));
    }
    let groups = (blocks - first_data_block).div_ceil(blocks_per_group);
    if groups > MAX_GROUPS {
        return Err(doubt(format!(
            "{groups} block groups (at most {MAX_GROUPS})"
        )));
    }
    let inodes_per_group = u64::from(le32(bytes, 40));
    let inode_len = if le32(bytes, 76) == 0 {
        128
    } else {
        u64::from(le16(bytes, 88))
    };
    let inodes_sane = inode_len.is_power_of_two()
        && (128..=block_size).contains(&inode_len)
        && (1..=8 * block_size).contains(&inodes_per_group)
        && u64::from(le32(bytes, 0)) == inodes_per_group * groups;
    if !inodes_sane {
        return Err(doubt(format!(
            "{inodes_per_group} inodes of {inode_len} bytes in each group"
        )));
    }
    let descriptor_len = if wide {
        u64::from(le16(bytes, 0xfe))
    } else {
        32
    };
    if !descriptor_len.is_power_of_two()
        || !(if wide { 64 } else { 32 }..=1024).contains(&descriptor_len)
    {
        return Err(doubt(format!(
            "group descriptors of {descriptor_len} bytes"
        )));
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[104..120]);
    let superblock = Superblock {
        block_size,
        blocks,
        first_data_block,
        blocks_per_group,
        groups,
        descriptor_len,
        inodes_per_group,
        inode_len,
        first_inode: match le32(bytes, 76) {
            0 => 11,
            _ => u64::from(le32(bytes, 84)),
        },
        inode_table_blocks: (inodes_per_group * inode_len).div_ceil(block_size),
        reserved_gdt_blocks: u64::from(le16(bytes, 0xce)),
        first_meta_group: (incompatible & feature::META_BG != 0)
            .then(|| u64::from(le32(bytes, 0x104))),
        checksums,
        uuid,
        sparse: le32(bytes, 100) & feature::SPARSE_SUPER != 0,
        backup_groups: (compatible & feature::SPARSE_SUPER2 != 0)
            .then(|| [le32(bytes, 0x24c), le32(bytes, 0x250)].map(u64::from)),
    };
    if superblock.reserved_gdt_blocks > block_size / 4
        || superblock
            .first_meta_group
            .is_some_and(|first| first > superblock.descriptor_blocks())
    {
        return Err(doubt("impossible places of its group descriptors"));
    }
    Ok(superblock)
}

/// Multiple mount protection: a volume that another machine has in use says so in its MMP block.
fn check_mmp(volume: &dyn ReadAt, superblock: &Superblock, block: u64) -> Result<(), Doubt> {
    if block <= superblock.first_data_block || block >= superblock.blocks {
        return Err(doubt(format!("its MMP block is block {block}")));
    }
    let mut bytes = [0; 8];
    volume.read_at(block * superblock.block_size, &mut bytes)?;
    if le32(&bytes, 0) == MMP_MAGIC && le32(&bytes, 4) == MMP_CLEAN {
        Ok(())
    } else {
        Err(doubt("its MMP block says that it is in use"))
    }
}
