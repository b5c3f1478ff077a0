//! Blocks of Btrfs trees: read, verified, walked in order of their keys.
//!
//! Invariant: a block is believed only with the checksum, address, UUID, owner, level, generation, first key
//! and order of keys that the pointer to it demands. Levels fall and keys rise, so a walk ends after at
//! most all blocks of the volume, whatever they hold.

use std::cell::RefCell;
use std::ops::ControlFlow;

use super::Fault;
use super::chunks::Chunks;
use super::superblock::{Root, Superblock, is_intact};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::little_endian::{le32, le64};

/// The most addresses of visited blocks that are remembered.
const MAX_VISITED: usize = 1 << 20;
const HEADER_LEN: usize = 101;
/// Length of an item's head in a leaf, and of a pointer in a node.
const ITEM_LEN: usize = 25;
const POINTER_LEN: usize = 33;

/// Kinds of keys, `include/uapi/linux/btrfs_tree.h`.
pub(super) mod kind {
    pub(in super::super) const INODE_ITEM: u8 = 1;
    pub(in super::super) const DIR_INDEX: u8 = 96;
    pub(in super::super) const EXTENT_DATA: u8 = 108;
    pub(in super::super) const ROOT_REF: u8 = 156;
    pub(in super::super) const ROOT_ITEM: u8 = 132;
    pub(in super::super) const EXTENT_ITEM: u8 = 168;
    pub(in super::super) const METADATA_ITEM: u8 = 169;
    pub(in super::super) const BLOCK_GROUP_ITEM: u8 = 192;
    pub(in super::super) const DEV_ITEM: u8 = 216;
    pub(in super::super) const CHUNK_ITEM: u8 = 228;
}

/// What a tree is ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const LEN: usize = 17;
    pub(super) const FIRST: Self = Self::new(0, 0, 0);

    pub(super) const fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self {
            object,
            kind,
            offset,
        }
    }

    /// From at least 17 bytes.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self::new(le64(bytes, 0), bytes[8], le64(bytes, 9))
    }
}

/// An item of a leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) key: Key,
    pub(super) data: &'a [u8],
}

/// What a walk calls for each item.
type Visit<'a, E> = &'a mut dyn FnMut(Item<'_>) -> Result<ControlFlow<()>, E>;

/// What a block must be.
#[derive(Clone, Copy)]
struct Expected {
    root: Root,
    /// Its first key; a tree's top block may begin with any.
    first: Option<Key>,
    /// All its keys are below it.
    end: Option<Key>,
}

/// The tree blocks of a volume.
pub(super) struct TreeBlocks<'a> {
    volume: &'a dyn ReadAt,
    superblock: &'a Superblock,
    chunks: &'a Chunks,
    visited: RefCell<Vec<u64>>,
}

impl<'a> TreeBlocks<'a> {
    pub(super) const fn new(
        volume: &'a dyn ReadAt,
        superblock: &'a Superblock,
        chunks: &'a Chunks,
    ) -> Self {
        Self {
            volume,
            superblock,
            chunks,
            visited: RefCell::new(Vec::new()),
        }
    }

    /// Logical addresses of blocks that were read.
    pub(super) fn into_visited(self) -> Vec<u64> {
        self.visited.into_inner()
    }

    /// Gives the items of a tree in order to `visit`, beginning with the last one that is not after `from`
    /// (or the first of all), until it breaks.
    pub(super) fn walk<E: From<Fault>>(
        &self,
        root: &Root,
        from: Key,
        visit: Visit<'_, E>,
    ) -> Result<(), E> {
        let expected = Expected {
            root: *root,
            first: None,
            end: None,
        };
        self.descend(expected, from, visit).map(|_| ())
    }

    fn descend<E: From<Fault>>(
        &self,
        expected: Expected,
        from: Key,
        visit: Visit<'_, E>,
    ) -> Result<ControlFlow<()>, E> {
        let block = self.read(&expected)?;
        let width = if expected.root.level == 0 {
            ITEM_LEN
        } else {
            POINTER_LEN
        };
        let count = le32(&block, 96) as usize;
        let slots = &block[HEADER_LEN..HEADER_LEN + count * width];
        let key = |slot: usize| Key::parse(&slots[slot * width..]);
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if key(middle) <= from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        for slot in low.saturating_sub(1)..count {
            let head = &slots[slot * width..(slot + 1) * width];
            let flow = if expected.root.level == 0 {
                let start = HEADER_LEN + le32(head, 17) as usize;
                visit(Item {
                    key: key(slot),
                    data: &block[start..start + le32(head, 21) as usize],
                })?
            } else {
                let root = Root {
                    block: le64(head, 17),
                    level: expected.root.level - 1,
                    generation: le64(head, 25),
                    owner: expected.root.owner,
                };
                let next = (slot + 1 < count).then(|| key(slot + 1));
                let child = Expected {
                    root,
                    first: Some(key(slot)),
                    end: next.or(expected.end),
                };
                self.descend(child, from, visit)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn read(&self, expected: &Expected) -> Result<Vec<u8>, Fault> {
        let start = expected.root.block;
        let range = ByteRange::new(start, self.superblock.node_size)
            .map_err(|_| Fault::damaged(format!("a tree block at {start}")))?;
        let place =
            self.chunks.places(range).next().ok_or_else(|| {
                Fault::damaged(format!("the tree block at {start} is in no chunk"))
            })?;
        let mut block = vec![0; self.superblock.node_size as usize];
        self.volume.read_at(place, &mut block)?;
        self.check(&block, expected)
            .map_err(|what| Fault::damaged(format!("the tree block at {start} has {what}")))?;
        let mut visited = self.visited.borrow_mut();
        if visited.len() < MAX_VISITED {
            visited.push(start);
        }
        Ok(block)
    }

    fn check(&self, block: &[u8], expected: &Expected) -> Result<(), &'static str> {
        let root = expected.root;
        let demands = [
            (is_intact(block), "a checksum that does not fit"),
            (le64(block, 48) == root.block, "another address"),
            (
                block[32..48] == self.superblock.tree_uuid,
                "the UUID of another file system",
            ),
            (
                le64(block, 80) == root.generation && root.generation <= self.superblock.generation,
                "another generation",
            ),
            (block[100] == root.level, "another level"),
            (
                root.owner.is_none_or(|owner| le64(block, 88) == owner),
                "another owner",
            ),
        ];
        if let Some((_, what)) = demands.iter().find(|(met, _)| !met) {
            return Err(what);
        }
        let width = if root.level == 0 {
            ITEM_LEN
        } else {
            POINTER_LEN
        };
        let space = block.len() - HEADER_LEN;
        let count = le32(block, 96) as usize;
        // Only a leaf that is a whole tree may be empty.
        if count > space / width || (count == 0 && (root.level > 0 || expected.first.is_some())) {
            return Err("an impossible number of items");
        }
        let (mut last, mut data_end) = (None, space);
        for head in block[HEADER_LEN..].chunks_exact(width).take(count) {
            let key = Key::parse(head);
            let first_fits = last.is_some() || expected.first.is_none_or(|first| first == key);
            if !first_fits
                || last.is_some_and(|last| key <= last)
                || expected.end.is_some_and(|end| key >= end)
            {
                return Err("keys out of order");
            }
            last = Some(key);
            if root.level == 0 {
                let (start, len) = (le32(head, 17) as usize, le32(head, 21) as usize);
                // As the kernel writes them: without gaps, the first item last.
                if start < count * width || start.checked_add(len) != Some(data_end) {
                    return Err("items out of bounds");
                }
                data_end = start;
            }
        }
        Ok(())
    }
}
