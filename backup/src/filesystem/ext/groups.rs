//! Block groups: descriptors, their checksums, and the bitmaps.

use super::superblock::{Checksums, Superblock};
use super::{crc16, doubt};
use crate::ByteRange;
use crate::filesystem::crc::crc32c;
use crate::filesystem::used::UsedRanges;
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le16, le32};

/// Flag of a group whose bitmap was never written.
const BLOCK_UNINIT: u16 = 0x2;
/// Flag of a group whose inode bitmap and table were never written.
const INODE_UNINIT: u16 = 0x1;

/// What the survey needs of a group descriptor.
pub(super) struct Descriptor {
    block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    free_blocks: u64,
    uninitialised: bool,
    bitmap_checksum: u32,
    /// How many inodes at the end of the table were never used, as far as that is known.
    pub(super) unused_inodes: u64,
}

/// The used ranges, from all groups.
pub(super) fn used(
    volume: &dyn ReadAt,
    superblock: &Superblock,
    descriptors: &[Descriptor],
) -> Result<Vec<ByteRange>, Doubt> {
    let metadata = metadata(superblock, descriptors)?;
    let bytes = |start: u64, end: u64| {
        ByteRange::between(start * superblock.block_size, end * superblock.block_size)
    };
    let mut used = UsedRanges::new();
    // The boot block, when it is outside block 0 of the first group.
    used.add(bytes(0, superblock.first_data_block));
    let mut metadata = &metadata[..];
    let mut bitmap = vec![0; superblock.block_size as usize];
    for (group, descriptor) in (0u64..).zip(descriptors) {
        let start = superblock.group_start(group);
        let count = superblock.group_blocks(group);
        if descriptor.uninitialised {
            bitmap.fill(0);
        } else {
            volume.read_at(descriptor.block_bitmap * superblock.block_size, &mut bitmap)?;
            check_bitmap(superblock, group, descriptor, &bitmap)?;
        }
        let added = add_metadata(&mut bitmap, &mut metadata, start, count);
        if added && !descriptor.uninitialised {
            return Err(doubt(format!(
                "the bitmap of group {group} takes metadata for free"
            )));
        }
        let mut free = count;
        for (from, to) in runs(&bitmap, count) {
            free -= to - from;
            used.add(bytes(start + from, start + to));
        }
        if free != descriptor.free_blocks {
            return Err(doubt(format!(
                "group {group} has {free} free blocks (its descriptor says {})",
                descriptor.free_blocks
            )));
        }
    }
    Ok(used.finish())
}

/// Where block `index` of the group descriptors is (`ext2fs_descriptor_block_loc2`).
fn descriptor_block(superblock: &Superblock, index: u64) -> u64 {
    match superblock.first_meta_group {
        Some(first) if index >= first => {
            let group = index * superblock.descriptors_per_block();
            superblock.group_start(group) + u64::from(superblock.has_super(group))
        }
        _ => superblock.first_data_block + 1 + index,
    }
}

/// All group descriptors, their places checked.
pub(super) fn descriptors(
    volume: &dyn ReadAt,
    superblock: &Superblock,
) -> Result<Vec<Descriptor>, Doubt> {
    let mut descriptors = Vec::new();
    let mut block = vec![0; superblock.block_size as usize];
    for index in 0..superblock.descriptor_blocks() {
        let place = descriptor_block(superblock, index);
        if place >= superblock.blocks {
            return Err(doubt(format!("group descriptors at block {place}")));
        }
        volume.read_at(place * superblock.block_size, &mut block)?;
        for bytes in block.chunks_exact(superblock.descriptor_len as usize) {
            let group = descriptors.len() as u64;
            if group == superblock.groups {
                break;
            }
            descriptors.push(descriptor(superblock, group, bytes)?);
        }
    }
    Ok(descriptors)
}

fn descriptor(superblock: &Superblock, group: u64, bytes: &[u8]) -> Result<Descriptor, Doubt> {
    // The constructor admits at most 2^20 groups.
    let number = (group as u32).to_le_bytes();
    let expected = le16(bytes, 30);
    let found = match superblock.checksums {
        Checksums::None => expected,
        Checksums::Groups => crc16(&[&superblock.uuid, &number, &bytes[..30], &bytes[32..]]),
        Checksums::Metadata(seed) => {
            // The lower half of it is kept.
            (crc32c(seed, &[&number, &bytes[..30], &[0; 2], &bytes[32..]]) & 0xffff) as u16
        }
    };
    if found != expected {
        return Err(doubt(format!(
            "the descriptor of group {group} has checksum {found:04x} (expected {expected:04x})"
        )));
    }
    let wide = bytes.len() >= 64;
    let high32 = |at: usize| {
        if wide {
            u64::from(le32(bytes, at)) << 32
        } else {
            0
        }
    };
    let high16 = |at: usize| {
        if wide {
            u32::from(le16(bytes, at)) << 16
        } else {
            0
        }
    };
    // Without checksums the flags and the count of unused inodes mean nothing.
    let flags = match superblock.checksums {
        Checksums::None => 0,
        Checksums::Groups | Checksums::Metadata(_) => le16(bytes, 18),
    };
    let unused_inodes = match superblock.checksums {
        Checksums::None => 0,
        _ if flags & INODE_UNINIT != 0 => superblock.inodes_per_group,
        _ => u64::from(u32::from(le16(bytes, 28)) | high16(50)),
    };
    let descriptor = Descriptor {
        block_bitmap: u64::from(le32(bytes, 0)) | high32(32),
        inode_bitmap: u64::from(le32(bytes, 4)) | high32(36),
        inode_table: u64::from(le32(bytes, 8)) | high32(40),
        free_blocks: u64::from(u32::from(le16(bytes, 12)) | high16(44)),
        uninitialised: flags & BLOCK_UNINIT != 0,
        bitmap_checksum: u32::from(le16(bytes, 24)) | high16(56),
        unused_inodes,
    };
    let inside = |start: u64, count: u64| {
        start > superblock.first_data_block
            && start
                .checked_add(count)
                .is_some_and(|end| end <= superblock.blocks)
    };
    if inside(descriptor.block_bitmap, 1)
        && inside(descriptor.inode_bitmap, 1)
        && inside(descriptor.inode_table, superblock.inode_table_blocks)
    {
        Ok(descriptor)
    } else {
        Err(doubt(format!(
            "the metadata of group {group} is outside the file system"
        )))
    }
}

/// All blocks of metadata as ranges from–to, in order, none twice.
fn metadata(superblock: &Superblock, descriptors: &[Descriptor]) -> Result<Vec<(u64, u64)>, Doubt> {
    let mut ranges = Vec::with_capacity(descriptors.len() * 4);
    for (group, descriptor) in (0u64..).zip(descriptors) {
        let start = superblock.group_start(group);
        let front = start + front_blocks(superblock, group);
        if front > superblock.blocks {
            return Err(doubt(format!(
                "the descriptors in group {group} leave the file system"
            )));
        }
        if front > start {
            ranges.push((start, front));
        }
        for (start, count) in [
            (descriptor.block_bitmap, 1),
            (descriptor.inode_bitmap, 1),
            (descriptor.inode_table, superblock.inode_table_blocks),
        ] {
            ranges.push((start, start + count));
        }
    }
    ranges.sort_unstable();
    // Metadata in one place for two purposes is damage. It would also make the work quadratic.
    match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(doubt(format!(
            "two kinds of metadata at block {}",
            pair[1].0
        ))),
        None => Ok(ranges),
    }
}

/// How many blocks of superblock and group descriptors a group begins with
/// (`ext2fs_super_and_bgd_loc2`).
fn front_blocks(superblock: &Superblock, group: u64) -> u64 {
    let has_super = superblock.has_super(group);
    let per_block = superblock.descriptors_per_block();
    match superblock.first_meta_group {
        Some(first) if group / per_block >= first => {
            let place = group % per_block;
            let descriptors = place == 0 || place == 1 || place == per_block - 1;
            u64::from(has_super) + u64::from(descriptors)
        }
        Some(first) if has_super => 1 + first,
        None if has_super => 1 + superblock.descriptor_blocks() + superblock.reserved_gdt_blocks,
        _ => 0,
    }
}

fn check_bitmap(
    superblock: &Superblock,
    group: u64,
    descriptor: &Descriptor,
    bitmap: &[u8],
) -> Result<(), Doubt> {
    let Checksums::Metadata(seed) = superblock.checksums else {
        return Ok(());
    };
    let len = (superblock.blocks_per_group / 8) as usize;
    // Short descriptors have room for the lower half only.
    let mask = if superblock.descriptor_len >= 64 {
        u32::MAX
    } else {
        0xffff
    };
    let found = crc32c(seed, &[&bitmap[..len]]) & mask;
    if found == descriptor.bitmap_checksum & mask {
        Ok(())
    } else {
        Err(doubt(format!(
            "the bitmap of group {group} has checksum {found:08x} (expected {:08x})",
            descriptor.bitmap_checksum
        )))
    }
}

/// Marks metadata in the bitmap of the group of `count` blocks from block `start`, and drops from
/// `metadata` what ends there. Returns whether any of it was not marked before.
fn add_metadata(bitmap: &mut [u8], metadata: &mut &[(u64, u64)], start: u64, count: u64) -> bool {
    let end = start + count;
    let mut added = false;
    for &(from, to) in metadata.iter().take_while(|(from, _)| *from < end) {
        for block in from.max(start)..to.min(end) {
            let bit = (block - start) as usize;
            let mask = 1 << (bit % 8);
            added |= bitmap[bit / 8] & mask == 0;
            bitmap[bit / 8] |= mask;
        }
    }
    while let Some(((_, to), rest)) = metadata.split_first()
        && *to <= end
    {
        *metadata = rest;
    }
    added
}

/// The runs of set bits among the first `count` bits, as from–to.
pub(super) fn runs(bitmap: &[u8], count: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let is_set = |bit: u64| bitmap[(bit / 8) as usize] >> (bit % 8) & 1 == 1;
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < count && !is_set(at) {
            at += 1;
        }
        let from = at;
        while at < count && is_set(at) {
            at += 1;
        }
        (from < at).then_some((from, at))
    })
}
