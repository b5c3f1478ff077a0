//! The superblock: its numbers checked against each other and the volume, and its features against what
//! is understood here.

use super::big_endian::{be16, be32, be64};
use super::{Fault, damaged, unsupported};
use crate::filesystem::ReadAt;
use crate::filesystem::crc::crc32c;
use crate::little_endian::le32;

pub(super) const MAGIC: u32 = 0x5846_5342;
/// Bytes of the superblock that are looked at; sectors are at least as long.
const LEN: usize = 512;
/// More allocation groups than this are not surveyed.
const MAX_GROUPS: u64 = 1 << 20;
/// `XFS_MIN_AG_BLOCKS` and `XFS_MAX_AG_BYTES`.
const MIN_GROUP_BLOCKS: u64 = 64;
const MAX_GROUP_BYTES: u64 = 1 << 40;
/// `XFS_MAX_LOG_BYTES`.
const MAX_LOG_BYTES: u64 = 1 << 31;

/// Feature bits, `xfs_format.h`.
mod feature {
    /// `sb_versionnum`.
    pub(super) const SHARED: u16 = 0x0200;
    pub(super) const LOG_V2: u16 = 0x0400;
    pub(super) const DIRECTORY_V2: u16 = 0x2000;
    pub(super) const IGNORES_CASE: u16 = 0x4000;
    pub(super) const MORE_BITS: u16 = 0x8000;

    /// `sb_features2`.
    pub(super) const LAZY_COUNTERS: u32 = 0x2;
    pub(super) const FILE_TYPES_V4: u32 = 0x200;
    /// lazysbcount, attr2, projid32bit, crc, ftype.
    pub(super) const KNOWN_MORE: u32 = LAZY_COUNTERS | 0x8 | 0x80 | 0x100 | FILE_TYPES_V4;

    /// `sb_features_ro_compat`: finobt, rmapbt, reflink, inobtcount.
    pub(super) const RMAP: u32 = 0x2;
    pub(super) const KNOWN_READ_ONLY: u32 = 0x1 | RMAP | 0x4 | 0x8;

    /// `sb_features_incompat`: ftype, spinodes, meta_uuid, bigtime, needsrepair, nrext64.
    pub(super) const FILE_TYPES: u32 = 0x1;
    pub(super) const SPARSE_INODES: u32 = 0x2;
    pub(super) const META_UUID: u32 = 0x4;
    pub(super) const NEEDS_REPAIR: u32 = 0x10;
    pub(super) const KNOWN_INCOMPATIBLE: u32 =
        FILE_TYPES | SPARSE_INODES | META_UUID | 0x8 | NEEDS_REPAIR | 0x20;

    /// `sb_features_log_incompat`: logged extended attributes.
    pub(super) const KNOWN_LOG: u32 = 0x1;
}

/// The CRC of a structure whose checksum field is the 4 bytes at `at`: whether it fits.
pub(super) fn checksum_fits(bytes: &[u8], at: usize) -> bool {
    !crc32c(!0, &[&bytes[..at], &[0; 4], &bytes[at + 4..]]) == le32(bytes, at)
}

/// What is needed of a superblock, all checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
    pub(super) inode_size: u64,
    pub(super) blocks: u64,
    pub(super) group_blocks: u64,
    pub(super) groups: u64,
    /// Bits of a block number that count blocks within a group.
    pub(super) group_log: u32,
    /// Bits of an inode number that count inodes within a group.
    pub(super) inode_log: u32,
    /// Blocks of a directory block.
    pub(super) directory_blocks: u64,
    pub(super) root_inode: u64,
    /// Group block (as in [`Self::group_log`]) of the log; 0 when it is on another device.
    pub(super) log_start: u64,
    pub(super) log_blocks: u64,
    pub(super) free_blocks: u64,
    /// The UUID that the log bears.
    pub(super) uuid: [u8; 16],
    /// The UUID that V5 metadata bears.
    pub(super) meta_uuid: [u8; 16],
    /// Version 5: structures have checksums and say whose they are.
    pub(super) checksums: bool,
    pub(super) lazy_counters: bool,
    pub(super) sparse_inodes: bool,
    pub(super) file_types: bool,
    pub(super) ignores_case: bool,
    pub(super) reverse_map: bool,
    pub(super) log_v2: bool,
    realtime: bool,
    needs_repair: bool,
    unknown_read_only: u32,
}

impl Superblock {
    /// Reads and checks the superblock of a volume of `size` bytes.
    pub(super) fn read(volume: &dyn ReadAt, size: u64) -> Result<Self, Fault> {
        if size < LEN as u64 {
            return Err(damaged("an XFS volume of less than 512 bytes"));
        }
        let mut bytes = [0; LEN];
        volume.read_at(0, &mut bytes)?;
        if be32(&bytes, 0) != MAGIC {
            return Err(damaged("no XFS superblock"));
        }
        let superblock = numbers(&bytes, size)?;
        if superblock.checksums {
            // The constructor admits sectors of at most 32 KiB.
            let mut sector = vec![0; superblock.sector_size as usize];
            volume.read_at(0, &mut sector)?;
            if !checksum_fits(&sector, 224) {
                return Err(damaged("the superblock's checksum does not fit"));
            }
        }
        if bytes[126] != 0 {
            return Err(damaged("its mkfs did not finish"));
        }
        check_features(&bytes)?;
        Ok(superblock)
    }

    /// What does not hinder reading files, but telling used blocks.
    pub(super) fn check_for_survey(&self) -> Result<(), Fault> {
        if self.realtime {
            return Err(unsupported("it has a realtime device"));
        }
        if self.needs_repair {
            return Err(damaged("it is marked as in need of xfs_repair"));
        }
        match self.unknown_read_only {
            0 => Ok(()),
            unknown => Err(unsupported(format!(
                "unknown read-only compatible features {unknown:#x}"
            ))),
        }
    }

    /// How many blocks a group has; the last may be shorter.
    pub(super) fn blocks_of(&self, group: u64) -> u64 {
        self.group_blocks
            .min(self.blocks.saturating_sub(group * self.group_blocks))
    }

    /// The byte of the volume where a block of a group begins; both must be in range.
    pub(super) const fn byte_of(&self, group: u64, block: u64) -> u64 {
        (group * self.group_blocks + block) * self.block_size
    }

    /// Where `count` blocks lie from the block with this number, when they lie in one group.
    pub(super) fn locate(&self, number: u64, count: u64) -> Option<u64> {
        let (group, block) = (
            number >> self.group_log,
            number & ((1 << self.group_log) - 1),
        );
        let fits = group < self.groups
            && block
                .checked_add(count)
                .is_some_and(|end| end <= self.blocks_of(group));
        fits.then(|| self.byte_of(group, block))
    }

    /// Where an inode lies.
    pub(super) fn locate_inode(&self, number: u64) -> Option<u64> {
        let group = number >> self.inode_log;
        let within = (number & ((1 << self.inode_log) - 1)) * self.inode_size;
        (group < self.groups && within < self.blocks_of(group) * self.block_size)
            .then(|| self.byte_of(group, 0) + within)
    }

    /// Blocks at each group's start that hold the four sectors of its headers.
    pub(super) const fn header_blocks(&self) -> u64 {
        (4 * self.sector_size).div_ceil(self.block_size)
    }
}

fn check_features(bytes: &[u8; LEN]) -> Result<(), Fault> {
    let version = be16(bytes, 100);
    if version & feature::SHARED != 0 || bytes[179] != 0 {
        return Err(unsupported("a shared XFS"));
    }
    if version & feature::DIRECTORY_V2 == 0 {
        return Err(unsupported("directories of version 1"));
    }
    let more = be32(bytes, 200);
    if version & feature::MORE_BITS != 0 || version & 0xf == 5 {
        let unknown = more & !feature::KNOWN_MORE;
        if unknown != 0 {
            return Err(unsupported(format!("unknown features {unknown:#x}")));
        }
        if be32(bytes, 204) != more {
            return Err(damaged("its two feature fields differ"));
        }
    }
    if version & 0xf == 5 {
        let unknown = be32(bytes, 216) & !feature::KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Err(unsupported(format!(
                "unknown incompatible features {unknown:#x}"
            )));
        }
        let unknown = be32(bytes, 220) & !feature::KNOWN_LOG;
        if unknown != 0 {
            return Err(unsupported(format!(
                "unknown features of the log {unknown:#x}"
            )));
        }
    }
    Ok(())
}

/// Whether `log` is the binary logarithm of `value`.
fn is_log(value: u64, log: u8) -> bool {
    1u64.checked_shl(u32::from(log)) == Some(value)
}

fn numbers(bytes: &[u8; LEN], size: u64) -> Result<Superblock, Fault> {
    let version = be16(bytes, 100);
    let checksums = match version & 0xf {
        4 => false,
        5 => true,
        other => return Err(unsupported(format!("version {other}"))),
    };
    let block_size = u64::from(be32(bytes, 4));
    let sector_size = u64::from(be16(bytes, 102));
    let inode_size = u64::from(be16(bytes, 104));
    let sizes_sane = is_log(block_size, bytes[120])
        && (if checksums { 1024 } else { 512 }..=65536).contains(&block_size)
        && is_log(sector_size, bytes[121])
        && (512..=block_size.min(32768)).contains(&sector_size)
        && is_log(inode_size, bytes[122])
        && (if checksums { 512 } else { 256 }..=block_size.min(2048)).contains(&inode_size)
        && u64::from(be16(bytes, 106)) == block_size / inode_size
        && is_log(block_size / inode_size, bytes[123])
        && bytes[192] <= 8
        && block_size << bytes[192] <= 65536;
    if !sizes_sane {
        return Err(damaged(format!(
            "blocks of {block_size} bytes, sectors of {sector_size}, inodes of {inode_size}"
        )));
    }
    let blocks = be64(bytes, 8);
    if blocks.checked_mul(block_size).is_none_or(|len| len > size) {
        return Err(damaged(format!(
            "it says {blocks} blocks of {block_size} bytes, its place has {size} bytes"
        )));
    }
    let group_blocks = u64::from(be32(bytes, 84));
    let groups = u64::from(be32(bytes, 88));
    let group_log = u32::from(bytes[124]);
    let groups_sane = group_blocks >= MIN_GROUP_BLOCKS
        && group_blocks * block_size <= MAX_GROUP_BYTES
        && group_log <= 31
        && group_blocks.next_power_of_two() == 1 << group_log
        && groups == blocks.div_ceil(group_blocks)
        && (1..=MAX_GROUPS).contains(&groups)
        && blocks - (groups - 1) * group_blocks >= MIN_GROUP_BLOCKS;
    if !groups_sane {
        return Err(damaged(format!(
            "{groups} groups of {group_blocks} blocks in {blocks} blocks"
        )));
    }
    let uuid = std::array::from_fn(|at| bytes[32 + at]);
    let incompatible = if checksums { be32(bytes, 216) } else { 0 };
    let read_only = if checksums { be32(bytes, 212) } else { 0 };
    let more = be32(bytes, 200);
    let has_more = |bit: u32| version & feature::MORE_BITS != 0 && more & bit != 0;
    let superblock = Superblock {
        block_size,
        sector_size,
        inode_size,
        blocks,
        group_blocks,
        groups,
        group_log,
        inode_log: group_log + u32::from(bytes[123]),
        directory_blocks: 1 << bytes[192],
        root_inode: be64(bytes, 56),
        log_start: be64(bytes, 48),
        log_blocks: u64::from(be32(bytes, 96)),
        free_blocks: be64(bytes, 144),
        uuid,
        meta_uuid: if incompatible & feature::META_UUID == 0 {
            uuid
        } else {
            std::array::from_fn(|at| bytes[248 + at])
        },
        checksums,
        lazy_counters: checksums || has_more(feature::LAZY_COUNTERS),
        sparse_inodes: incompatible & feature::SPARSE_INODES != 0,
        file_types: incompatible & feature::FILE_TYPES != 0
            || !checksums && has_more(feature::FILE_TYPES_V4),
        ignores_case: version & feature::IGNORES_CASE != 0,
        reverse_map: read_only & feature::RMAP != 0,
        log_v2: checksums || version & feature::LOG_V2 != 0,
        realtime: be64(bytes, 16) != 0 || be64(bytes, 24) != 0,
        needs_repair: incompatible & feature::NEEDS_REPAIR != 0,
        unknown_read_only: read_only & !feature::KNOWN_READ_ONLY,
    };
    if superblock.locate_inode(superblock.root_inode).is_none() {
        return Err(damaged(format!(
            "its root folder is inode {}",
            superblock.root_inode
        )));
    }
    let log_sane = superblock.log_start == 0
        || superblock.log_blocks != 0
            && superblock.log_blocks * block_size <= MAX_LOG_BYTES
            && superblock
                .locate(superblock.log_start, superblock.log_blocks)
                .is_some();
    if !log_sane {
        return Err(damaged(format!(
            "a log of {} blocks at block {}",
            superblock.log_blocks, superblock.log_start
        )));
    }
    Ok(superblock)
}
