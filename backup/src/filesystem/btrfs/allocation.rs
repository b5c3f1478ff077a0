//! The extent tree: which blocks are in use, and where files lie.
//!
//! Invariant: extents do not overlap, each lies in one chunk of its purpose, and they add up to what every
//! block group and the superblock say. Memory is bounded by the limits of the lists, not by the volume.

use std::ops::ControlFlow;

use super::Fault;
use super::chunks::{Chunks, DATA, METADATA, SYSTEM};
use super::superblock::{LEN, Root, Superblock};
use super::tree_blocks::{Item, Key, TreeBlocks, kind};
use crate::ByteRange;
use crate::filesystem::extents::FileExtents;
use crate::filesystem::used::UsedRanges;
use crate::filesystem::{ReadAt, Usage};
use crate::little_endian::le64;

/// At the start of the volume, kept free by Btrfs for boot loaders.
const RESERVED: u64 = 1 << 20;

const EXTENT_TREE: u64 = 2;
const BLOCK_GROUP_TREE: u64 = 11;

/// Flags of an extent item.
const IS_DATA: u64 = 1;
const IS_TREE_BLOCK: u64 = 2;

/// References within an extent item, and their lengths with the byte of their kind.
const EXTENT_DATA_REF: u8 = 178;
const SHARED_DATA_REF: u8 = 184;

/// The used ranges, and where files lie.
pub(super) fn usage(
    volume: &dyn ReadAt,
    superblock: &Superblock,
    chunks: &Chunks,
) -> Result<Usage, Fault> {
    let blocks = TreeBlocks::new(volume, superblock, chunks);
    // Its blocks were read to know the chunks; now they are noted too.
    blocks.walk(&superblock.chunk_tree, Key::FIRST, &mut go_on)?;
    let extent_tree = root(&blocks, superblock, EXTENT_TREE)?;
    let mut survey = Survey::new(superblock, chunks);
    blocks.walk(&extent_tree, Key::FIRST, &mut |item| survey.visit(item))?;
    if superblock.has_block_group_tree {
        let tree = root(&blocks, superblock, BLOCK_GROUP_TREE)?;
        blocks.walk(&tree, Key::FIRST, &mut |item| survey.visit_group(item))?;
    }
    survey.check_sums()?;
    let logical = survey.used.finish();
    check_covered(blocks.into_visited(), superblock.node_size, &logical)?;
    Ok(Usage {
        ranges: on_volume(superblock, chunks, &logical),
        extents: survey.extents.finish(),
    })
}

fn go_on(_: Item<'_>) -> Result<ControlFlow<()>, Fault> {
    Ok(ControlFlow::Continue(()))
}

/// Where a subvolume begins; snapshots share blocks, so its blocks may say that they are another's.
pub(super) fn subvolume(
    blocks: &TreeBlocks<'_>,
    superblock: &Superblock,
    id: u64,
) -> Result<Root, Fault> {
    let root = root(blocks, superblock, id)?;
    Ok(Root {
        owner: None,
        ..root
    })
}

/// Where a tree begins, from the root tree.
fn root(blocks: &TreeBlocks<'_>, superblock: &Superblock, id: u64) -> Result<Root, Fault> {
    let mut found = None;
    let from = Key::new(id, kind::ROOT_ITEM, 0);
    blocks.walk(&superblock.root_tree, from, &mut |item| {
        if item.key < from {
            return go_on(item);
        }
        if item.key.object == id && item.key.kind == kind::ROOT_ITEM && item.data.len() >= 239 {
            found = Some(Root {
                block: le64(item.data, 176),
                level: item.data[238],
                generation: le64(item.data, 160),
                owner: Some(id),
            });
        }
        Ok(ControlFlow::Break(()))
    })?;
    found
        .filter(|root| root.level <= 7)
        .ok_or_else(|| Fault::damaged(format!("the root tree has no tree {id}")))
}

/// What was found of a chunk.
#[derive(Clone, Copy, Default)]
struct Sum {
    extents: u64,
    /// What its block group says.
    group: Option<u64>,
}

struct Survey<'a> {
    superblock: &'a Superblock,
    chunks: &'a Chunks,
    sums: Vec<Sum>,
    /// By logical address.
    used: UsedRanges,
    end: u64,
    extents: FileExtents,
}

impl<'a> Survey<'a> {
    fn new(superblock: &'a Superblock, chunks: &'a Chunks) -> Self {
        Self {
            superblock,
            chunks,
            sums: vec![Sum::default(); chunks.as_slice().len()],
            used: UsedRanges::new(),
            end: 0,
            extents: FileExtents::new(),
        }
    }

    /// An item of the extent tree.
    fn visit(&mut self, item: Item<'_>) -> Result<ControlFlow<()>, Fault> {
        let node_size = self.superblock.node_size;
        match item.key.kind {
            kind::EXTENT_ITEM => self.add(item, item.key.offset)?,
            kind::METADATA_ITEM => self.add(item, node_size)?,
            kind::BLOCK_GROUP_ITEM if self.superblock.has_block_group_tree => {
                return Err(Fault::damaged("block groups in two trees"));
            }
            kind::BLOCK_GROUP_ITEM => return self.visit_group(item),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn add(&mut self, item: Item<'_>, len: u64) -> Result<(), Fault> {
        let start = item.key.object;
        let bad = || {
            Fault::damaged(format!(
                "the extent of {len} bytes at {start} makes no sense"
            ))
        };
        if item.data.len() < 24 {
            return Err(bad());
        }
        let flags = le64(item.data, 16);
        let is_data = flags & IS_DATA != 0;
        let is_tree_block = flags & IS_TREE_BLOCK != 0;
        let range = ByteRange::new(start, len).map_err(|_| bad())?;
        let sector = self.superblock.sector_size;
        if is_data == is_tree_block
            || (is_data && item.key.kind != kind::EXTENT_ITEM)
            || (is_tree_block && len != self.superblock.node_size)
            || len == 0
            || !len.is_multiple_of(sector)
            || !start.is_multiple_of(sector)
            || start < self.end
        {
            return Err(bad());
        }
        self.end = range.end();
        let index = self.chunks.find(range).ok_or_else(bad)?;
        let chunk = &self.chunks.as_slice()[index];
        let purpose = if is_data { DATA } else { METADATA | SYSTEM };
        if chunk.flags & purpose == 0 {
            return Err(bad());
        }
        // Extents do not overlap, so their sum is at most the chunk's length.
        self.sums[index].extents += len;
        self.used.add(range);
        if is_data && let Some(offset) = file_offset(&item.data[24..]) {
            for place in self.chunks.places(range) {
                self.extents
                    .add(ByteRange::between(place, place + len), offset);
            }
        }
        Ok(())
    }

    /// An item of the tree of block groups, which is the extent tree in older file systems.
    fn visit_group(&mut self, item: Item<'_>) -> Result<ControlFlow<()>, Fault> {
        if item.key.kind != kind::BLOCK_GROUP_ITEM {
            return Ok(ControlFlow::Continue(()));
        }
        let (start, len) = (item.key.object, item.key.offset);
        let bad = || Fault::damaged(format!("the block group at {start} fits no chunk"));
        let range = ByteRange::new(start, len).map_err(|_| bad())?;
        let index = self.chunks.find(range).ok_or_else(bad)?;
        let chunk = &self.chunks.as_slice()[index];
        let fits = item.data.len() == 24
            && chunk.logical == range
            && chunk.flags == le64(item.data, 16)
            && self.sums[index].group.is_none();
        if !fits {
            return Err(bad());
        }
        self.sums[index].group = Some(le64(item.data, 0));
        Ok(ControlFlow::Continue(()))
    }

    fn check_sums(&self) -> Result<(), Fault> {
        let mut total = 0u64;
        for (sum, chunk) in self.sums.iter().zip(self.chunks.as_slice()) {
            let start = chunk.logical.start();
            let Some(group) = sum.group else {
                return Err(Fault::damaged(format!(
                    "the chunk at {start} has no block group"
                )));
            };
            if group != sum.extents {
                return Err(Fault::damaged(format!(
                    "the extents of the block group at {start} have {} bytes (it says {group})",
                    sum.extents
                )));
            }
            total = total.saturating_add(group);
        }
        if total == self.superblock.bytes_used {
            Ok(())
        } else {
            Err(Fault::damaged(format!(
                "all extents have {total} bytes (the superblock says {})",
                self.superblock.bytes_used
            )))
        }
    }
}

/// The first byte of the file that a data extent holds, from the references in its item; the smallest one,
/// so that it is the same in every copy of the file.
fn file_offset(mut references: &[u8]) -> Option<u64> {
    let mut offset = None;
    while let Some((kind, rest)) = references.split_first() {
        let len = match *kind {
            EXTENT_DATA_REF => 28,
            SHARED_DATA_REF => 12,
            _ => break,
        };
        let Some((reference, rest)) = rest.split_at_checked(len) else {
            break;
        };
        if *kind == EXTENT_DATA_REF {
            // Below zero, as two's complement, when a file has only a later part of the extent.
            let this = le64(reference, 16);
            if this <= i64::MAX as u64 {
                offset = Some(offset.map_or(this, |other: u64| other.min(this)));
            }
        }
        references = rest;
    }
    offset
}

/// The trees that say what is in use must themselves be in use.
fn check_covered(blocks: Vec<u64>, node_size: u64, used: &[ByteRange]) -> Result<(), Fault> {
    for block in blocks {
        let range = ByteRange::between(block, block + node_size);
        let after = used.partition_point(|used| used.start() <= block);
        if !after
            .checked_sub(1)
            .is_some_and(|index| used[index].contains(range))
        {
            return Err(Fault::damaged(format!(
                "the tree block at {block} is in no extent"
            )));
        }
    }
    Ok(())
}

/// The used ranges of the volume, from those of logical addresses.
fn on_volume(superblock: &Superblock, chunks: &Chunks, logical: &[ByteRange]) -> Vec<ByteRange> {
    let mut fixed = std::iter::once(ByteRange::between(0, RESERVED.min(superblock.size)))
        .chain(
            superblock
                .places()
                .map(|place| ByteRange::between(place, place + LEN as u64)),
        )
        .peekable();
    let mut used = UsedRanges::new();
    for (place, index) in chunks.on_volume() {
        let chunk = &chunks.as_slice()[index];
        let first = logical.partition_point(|range| range.end() <= chunk.logical.start());
        for range in &logical[first..] {
            if range.start() >= chunk.logical.end() {
                break;
            }
            let offset = |at: u64| place.start() + (at - chunk.logical.start());
            let range = ByteRange::between(
                offset(range.start().max(chunk.logical.start())),
                offset(range.end().min(chunk.logical.end())),
            );
            while let Some(fixed) = fixed.next_if(|fixed| fixed.start() <= range.start()) {
                used.add(fixed);
            }
            used.add(range);
        }
    }
    for fixed in fixed {
        used.add(fixed);
    }
    used.finish()
}
