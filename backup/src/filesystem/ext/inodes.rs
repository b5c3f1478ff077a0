//! Inode tables: where the content of regular files lies.
//!
//! Sources: the kernel's `fs/ext4/ext4.h`, `fs/ext4/ext4_extents.h` and
//! `Documentation/filesystems/ext4` (inodes, extent trees, block maps).
//!
//! Only regular files count. Folders, symbolic links and the file system's own inodes (journal,
//! resize, quota) hold numbers and seeds of this one volume, so no other volume has the same bytes;
//! they are cut like metadata. Extents that were allocated but never written are left out too: the
//! file reads zeros there while the blocks hold whatever was on the disk before.
//!
//! Invariant: these are hints. The first thing that cannot be read ends the collecting, a file that
//! contradicts itself is left where it does; neither makes a [`crate::filesystem::Doubt`]. The work is bounded by
//! [`MAX_MAPPING_BLOCKS`] whatever the pointers say.

use super::groups::{Descriptor, runs};
use super::superblock::Superblock;
use crate::ByteRange;
use crate::filesystem::extents::{FileExtent, FileExtents};
use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le16, le32};

/// Inode tables are read in pieces of this size, a multiple of every inode length.
const PIECE: u64 = 1 << 20;
/// The most blocks of extent trees and block maps that are read; a damaged map may name one block
/// again and again.
const MAX_MAPPING_BLOCKS: u64 = 1 << 20;

const REGULAR: u16 = 0x8000;
const TYPE_MASK: u16 = 0xf000;
/// `EXT4_EXTENTS_FL` and `EXT4_INLINE_DATA_FL`.
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
/// Magic number of an extent tree's node.
const EXTENT_MAGIC: u16 = 0xf30a;
/// `EXT4_MAX_EXTENT_DEPTH`.
const MAX_DEPTH: u16 = 5;
/// Longer extents than this are not written yet; the rest is their length (`EXT_INIT_MAX_LEN`).
const MAX_WRITTEN: u16 = 0x8000;

/// Where the regular files of a file system lie, as far as it can be told.
pub(super) fn extents(
    volume: &dyn ReadAt,
    superblock: &Superblock,
    descriptors: &[Descriptor],
) -> Vec<FileExtent> {
    let mut mapping = Mapping {
        volume,
        superblock,
        extents: FileExtents::new(),
        blocks_left: MAX_MAPPING_BLOCKS.min(superblock.blocks),
    };
    for (group, descriptor) in (0u64..).zip(descriptors) {
        if mapping.extents.is_full() || mapping.group(group, descriptor).is_err() {
            break;
        }
    }
    mapping.extents.finish()
}

/// Why the map of files is not followed further.
enum Stop {
    /// This file contradicts itself; the next one may not.
    File,
    /// The volume cannot be read, or enough was collected.
    Volume,
}

impl From<ReadError> for Stop {
    fn from(_: ReadError) -> Self {
        Self::Volume
    }
}

struct Mapping<'a> {
    volume: &'a dyn ReadAt,
    superblock: &'a Superblock,
    extents: FileExtents,
    /// How many mapping blocks may still be read.
    blocks_left: u64,
}

impl Mapping<'_> {
    /// The files among the inodes of a group.
    fn group(&mut self, group: u64, descriptor: &Descriptor) -> Result<(), Stop> {
        let (per_group, len) = (self.superblock.inodes_per_group, self.superblock.inode_len);
        let count = per_group.saturating_sub(descriptor.unused_inodes);
        if count == 0 {
            return Ok(());
        }
        let bitmap = self.block(descriptor.inode_bitmap)?;
        let count = runs(&bitmap, count).last().map_or(0, |(_, end)| end);
        let table = descriptor.inode_table * self.superblock.block_size;
        let per_piece = PIECE / len;
        let mut piece = Vec::new();
        // Inodes in `piece`, from–to.
        let (mut from, mut to) = (0, 0);
        for (first, end) in runs(&bitmap, count) {
            for index in first..end {
                // Inodes count from 1.
                if group * per_group + index + 1 < self.superblock.first_inode {
                    continue;
                }
                if index >= to {
                    (from, to) = (index, count.min(index + per_piece));
                    piece.resize(((to - from) * len) as usize, 0);
                    self.volume.read_at(table + from * len, &mut piece)?;
                }
                let at = ((index - from) * len) as usize;
                match self.inode(&piece[at..at + 128]) {
                    Ok(()) | Err(Stop::File) => {}
                    Err(Stop::Volume) => return Err(Stop::Volume),
                }
            }
        }
        Ok(())
    }

    fn inode(&mut self, inode: &[u8]) -> Result<(), Stop> {
        let (mode, links, flags) = (le16(inode, 0), le16(inode, 26), le32(inode, 32));
        if mode & TYPE_MASK != REGULAR || links == 0 || flags & FLAG_INLINE_DATA != 0 {
            return Ok(());
        }
        let map = &inode[40..100];
        if flags & FLAG_EXTENTS == 0 {
            let size = u64::from(le32(inode, 4)) | u64::from(le32(inode, 108)) << 32;
            self.block_map(map, size.div_ceil(self.superblock.block_size))
        } else {
            let depth = le16(map, 6);
            if depth > MAX_DEPTH {
                return Err(Stop::File);
            }
            self.extent_node(map, depth, &mut 0)
        }
    }

    /// A node of an extent tree. What it maps must begin at logical block `next` or later, so every
    /// node brings the walk forward.
    fn extent_node(&mut self, node: &[u8], depth: u16, next: &mut u64) -> Result<(), Stop> {
        let count = usize::from(le16(node, 2));
        if le16(node, 0) != EXTENT_MAGIC || le16(node, 6) != depth || count > node.len() / 12 - 1 {
            return Err(Stop::File);
        }
        for entry in node.chunks_exact(12).skip(1).take(count) {
            let logical = u64::from(le32(entry, 0));
            if logical < *next {
                return Err(Stop::File);
            }
            if depth == 0 {
                let len = le16(entry, 4);
                let start = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
                let written = len <= MAX_WRITTEN;
                let len = u64::from(if written { len } else { len - MAX_WRITTEN });
                *next = logical + len.max(1);
                if written {
                    self.add(start, len, logical)?;
                }
            } else {
                let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let block = self.mapping_block(child)?;
                *next = logical;
                self.extent_node(&block, depth - 1, next)?;
                // An empty node maps nothing.
                *next = (*next).max(logical + 1);
            }
        }
        Ok(())
    }

    /// The map of ext2 and ext3: twelve blocks, then one, two and three levels of blocks of pointers,
    /// for a file of `blocks` blocks.
    fn block_map(&mut self, map: &[u8], blocks: u64) -> Result<(), Stop> {
        let mut logical = 0;
        self.pointers(&map[..48], 0, &mut logical, blocks)?;
        for depth in 1..=3 {
            let at = 44 + depth * 4;
            self.pointers(&map[at..at + 4], depth as u32, &mut logical, blocks)?;
        }
        Ok(())
    }

    /// Block numbers whose blocks are `depth` levels above the file's content.
    fn pointers(
        &mut self,
        pointers: &[u8],
        depth: u32,
        logical: &mut u64,
        blocks: u64,
    ) -> Result<(), Stop> {
        // At most (64 KiB / 4)³.
        let span = (self.superblock.block_size / 4).pow(depth);
        for pointer in pointers.chunks_exact(4) {
            if *logical >= blocks {
                break;
            }
            match (u64::from(le32(pointer, 0)), depth) {
                (0, _) => *logical += span,
                (block, 0) => {
                    self.add(block, 1, *logical)?;
                    *logical += 1;
                }
                (block, _) => {
                    let block = self.mapping_block(block)?;
                    self.pointers(&block, depth - 1, logical, blocks)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, start: u64, len: u64, logical: u64) -> Result<(), Stop> {
        let end = start + len;
        if start <= self.superblock.first_data_block || end > self.superblock.blocks {
            return Err(Stop::File);
        }
        if self.extents.is_full() {
            return Err(Stop::Volume);
        }
        let size = self.superblock.block_size;
        let range = ByteRange::between(start * size, end * size);
        self.extents.add(range, logical * size);
        Ok(())
    }

    fn mapping_block(&mut self, block: u64) -> Result<Vec<u8>, Stop> {
        if block <= self.superblock.first_data_block || block >= self.superblock.blocks {
            return Err(Stop::File);
        }
        self.blocks_left = self.blocks_left.checked_sub(1).ok_or(Stop::Volume)?;
        Ok(self.block(block)?)
    }

    fn block(&self, block: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; self.superblock.block_size as usize];
        self.volume
            .read_at(block * self.superblock.block_size, &mut bytes)?;
        Ok(bytes)
    }
}
