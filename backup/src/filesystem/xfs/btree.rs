//! B+trees: the check of a block, and walking the trees of an allocation group in order.
//!
//! Invariant: a walk ends. It goes down from a level to the next lower one, blocks without records are
//! refused, and neighbours must name each other, so no block is met twice.

use super::big_endian::{be16, be32, be64};
use super::superblock::{Superblock, checksum_fits};
use super::{Fault, damaged};
use crate::filesystem::ReadAt;

/// `XFS_BTREE_MAXLEVELS` and `XFS_BM_MAXLEVELS`.
pub(super) const MAX_LEVELS: u32 = 9;

/// A kind of tree.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Magic numbers of a block in versions 4 and 5.
    pub(super) magic: [u32; 2],
    /// Block numbers of 64 bits, within the volume; else of 32, within the group.
    pub(super) long: bool,
    pub(super) record_len: usize,
    pub(super) key_len: usize,
}

pub(super) const BY_BLOCK: Kind = Kind {
    name: "the free space tree by block",
    magic: [0x4142_5442, 0x4142_3342],
    long: false,
    record_len: 8,
    key_len: 8,
};

pub(super) const BY_COUNT: Kind = Kind {
    name: "the free space tree by size",
    magic: [0x4142_5443, 0x4142_3343],
    ..BY_BLOCK
};

pub(super) const INODES: Kind = Kind {
    name: "the inode tree",
    magic: [0x4941_4254, 0x4941_4233],
    long: false,
    record_len: 16,
    key_len: 4,
};

pub(super) const FILE: Kind = Kind {
    name: "a file's extent tree",
    magic: [0x424d_4150, 0x424d_4133],
    long: true,
    record_len: 16,
    key_len: 8,
};

/// Where a block lies and whose it must be.
pub(super) struct Place {
    /// Byte of the volume.
    pub(super) at: u64,
    /// Group or inode.
    pub(super) owner: u64,
    pub(super) level: u32,
}

/// A block that was checked.
pub(super) struct Block<'a> {
    kind: &'a Kind,
    body: &'a [u8],
    count: usize,
    left: u64,
    right: u64,
}

impl<'a> Block<'a> {
    pub(super) fn check(
        kind: &'a Kind,
        superblock: &Superblock,
        place: &Place,
        bytes: &'a [u8],
    ) -> Result<Self, Fault> {
        let bad = |what: &str| {
            damaged(format!(
                "{} of {} has at byte {} {what}",
                kind.name, place.owner, place.at
            ))
        };
        if be32(bytes, 0) != kind.magic[usize::from(superblock.checksums)] {
            return Err(bad("no block of it"));
        }
        if u32::from(be16(bytes, 4)) != place.level {
            return Err(bad("a block of another level"));
        }
        // Siblings, then for version 5: place, log number, UUID, owner, checksum.
        let (siblings, tail) = if kind.long { (16, 48) } else { (8, 40) };
        let mut header = 8 + siblings;
        if superblock.checksums {
            let owner = if kind.long {
                be64(bytes, header + 32)
            } else {
                u64::from(be32(bytes, header + 32))
            };
            let checksum = header + if kind.long { 40 } else { 36 };
            if !checksum_fits(bytes, checksum) {
                return Err(bad("a checksum that does not fit"));
            }
            let own = be64(bytes, header) == place.at / 512
                && bytes[header + 16..header + 32] == superblock.meta_uuid
                && owner == place.owner;
            if !own {
                return Err(bad("a block from elsewhere"));
            }
            header += tail;
        }
        let (left, right) = if kind.long {
            (be64(bytes, 8), be64(bytes, 16))
        } else {
            let wide = |number: u32| {
                if number == u32::MAX {
                    u64::MAX
                } else {
                    number.into()
                }
            };
            (wide(be32(bytes, 8)), wide(be32(bytes, 12)))
        };
        let block = Self {
            kind,
            body: &bytes[header..],
            count: be16(bytes, 6).into(),
            left,
            right,
        };
        let most = if place.level == 0 {
            block.body.len() / kind.record_len
        } else {
            block.most_children()
        };
        if block.count > most {
            return Err(bad("more records than a block holds"));
        }
        Ok(block)
    }

    const fn pointer_len(&self) -> usize {
        if self.kind.long { 8 } else { 4 }
    }

    fn most_children(&self) -> usize {
        self.body.len() / (self.kind.key_len + self.pointer_len())
    }

    /// The records of a leaf.
    pub(super) fn records(&self) -> impl Iterator<Item = &'a [u8]> {
        self.body
            .chunks_exact(self.kind.record_len)
            .take(self.count)
    }

    /// The keys of a node.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a [u8]> {
        self.body.chunks_exact(self.kind.key_len).take(self.count)
    }

    /// The blocks below a node, in the order of the keys.
    pub(super) fn children(&self) -> impl Iterator<Item = u64> {
        let len = self.pointer_len();
        self.body[self.most_children() * self.kind.key_len..]
            .chunks_exact(len)
            .take(self.count)
            .map(move |bytes| {
                if len == 8 {
                    be64(bytes, 0)
                } else {
                    be32(bytes, 0).into()
                }
            })
    }
}

/// A tree of an allocation group.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) kind: &'static Kind,
    pub(super) group: u64,
    pub(super) root: u64,
    pub(super) levels: u32,
}

/// What takes the records of a walk.
pub(super) type Visit<'a> = dyn FnMut(&[u8]) -> Result<(), Fault> + 'a;

impl Tree {
    /// Gives all records in the order of the tree to `visit`. Returns the tree's blocks.
    pub(super) fn walk(
        &self,
        volume: &dyn ReadAt,
        superblock: &Superblock,
        visit: &mut Visit<'_>,
    ) -> Result<Vec<u64>, Fault> {
        if !(1..=MAX_LEVELS).contains(&self.levels) {
            return Err(damaged(format!(
                "{} of {} has {} levels",
                self.kind.name, self.group, self.levels
            )));
        }
        let mut walk = Walk {
            tree: self,
            volume,
            superblock,
            last: vec![None; self.levels as usize],
            blocks: Vec::new(),
        };
        walk.descend(self.root, self.levels - 1, visit)?;
        if walk
            .last
            .iter()
            .flatten()
            .any(|last| last.right != u64::MAX)
        {
            return Err(self.disorder());
        }
        Ok(walk.blocks)
    }

    fn disorder(&self) -> Fault {
        damaged(format!(
            "{} of {} is out of order",
            self.kind.name, self.group
        ))
    }
}

/// The block of a level that was met last.
#[derive(Debug, Clone, Copy)]
struct Last {
    block: u64,
    right: u64,
}

struct Walk<'a> {
    tree: &'a Tree,
    volume: &'a dyn ReadAt,
    superblock: &'a Superblock,
    last: Vec<Option<Last>>,
    blocks: Vec<u64>,
}

impl Walk<'_> {
    fn descend(&mut self, block: u64, level: u32, visit: &mut Visit<'_>) -> Result<(), Fault> {
        let (tree, superblock) = (self.tree, self.superblock);
        let count = superblock.blocks_of(tree.group);
        if block >= count || self.blocks.len() as u64 >= count {
            return Err(tree.disorder());
        }
        self.blocks.push(block);
        let place = Place {
            at: superblock.byte_of(tree.group, block),
            owner: tree.group,
            level,
        };
        let mut bytes = vec![0; superblock.block_size as usize];
        self.volume.read_at(place.at, &mut bytes)?;
        let checked = Block::check(tree.kind, superblock, &place, &bytes)?;
        let is_root = level + 1 == tree.levels;
        let last = self.last[level as usize].replace(Last {
            block,
            right: checked.right,
        });
        let (left, this) = last.map_or((u64::MAX, block), |last| (last.block, last.right));
        if checked.left != left || this != block || checked.count == 0 && !(is_root && level == 0) {
            return Err(tree.disorder());
        }
        if level == 0 {
            return checked.records().try_for_each(visit);
        }
        checked
            .children()
            .try_for_each(|child| self.descend(child, level - 1, visit))
    }
}
