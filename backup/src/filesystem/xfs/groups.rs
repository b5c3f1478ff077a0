//! Allocation groups: their headers, their free space, and what of it must not be free.

use super::big_endian::{be32, be64};
use super::btree::{BY_BLOCK, BY_COUNT, INODES, Tree};
use super::superblock::{self, Superblock, checksum_fits};
use super::{Fault, damaged};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::filesystem::used::UsedRanges;

const FREE_MAGIC: u32 = 0x5841_4746;
const INODES_MAGIC: u32 = 0x5841_4749;
const LIST_MAGIC: u32 = 0x5841_464c;

/// What the header of a group says.
struct Group {
    number: u64,
    by_block: Tree,
    by_count: Tree,
    inodes: Tree,
    /// Blocks kept for the group's trees.
    list: Vec<u64>,
    free: u64,
    longest: u64,
    /// Blocks of the free space and reverse map trees but for their roots.
    tree_blocks: u64,
    reverse_map_blocks: u64,
}

/// The used ranges, and the inode tree of each group.
pub(super) fn used(
    volume: &dyn ReadAt,
    superblock: &Superblock,
) -> Result<(Vec<ByteRange>, Vec<Tree>), Fault> {
    let mut used = UsedRanges::new();
    let mut needed = Vec::new();
    let mut inodes = Vec::new();
    let mut free = 0;
    for number in 0..superblock.groups {
        let group = Group::read(volume, superblock, number)?;
        let tree_blocks = group.free_space(volume, superblock, &mut used)?;
        let block = |block: u64| {
            let at = superblock.byte_of(number, block);
            ByteRange::between(at, at + superblock.block_size)
        };
        needed.extend((0..superblock.header_blocks()).map(block));
        needed.extend(tree_blocks.into_iter().map(block));
        needed.extend(group.list.iter().copied().map(block));
        needed.push(block(group.inodes.root));
        free += group.free + group.list.len() as u64;
        if superblock.lazy_counters {
            free += group.tree_blocks;
        }
        inodes.push(group.inodes);
    }
    if free != superblock.free_blocks {
        return Err(damaged(format!(
            "its groups have {free} free blocks (the superblock says {})",
            superblock.free_blocks
        )));
    }
    if let Some(at) = superblock.locate(superblock.log_start, superblock.log_blocks) {
        let len = superblock.log_blocks * superblock.block_size;
        needed.push(ByteRange::between(at, at + len));
    }
    if let Some(at) = superblock.locate_inode(superblock.root_inode) {
        needed.push(ByteRange::between(at, at + superblock.inode_size));
    }
    let used = used.finish();
    match needed.into_iter().find(|needed| !covers(&used, *needed)) {
        Some(needed) => Err(damaged(format!(
            "it takes what it needs at byte {} for free",
            needed.start()
        ))),
        None => Ok((used, inodes)),
    }
}

/// Whether one of `ranges`, which are in order, holds all of `range`.
pub(super) fn covers(ranges: &[ByteRange], range: ByteRange) -> bool {
    let after = ranges.partition_point(|other| other.start() <= range.start());
    after
        .checked_sub(1)
        .is_some_and(|at| ranges[at].contains(range))
}

impl Group {
    fn read(volume: &dyn ReadAt, superblock: &Superblock, number: u64) -> Result<Self, Fault> {
        let sector = superblock.sector_size as usize;
        let mut headers = vec![0; 4 * sector];
        volume.read_at(superblock.byte_of(number, 0), &mut headers)?;
        let bad = |what: &str| damaged(format!("{what} of group {number} is not one"));
        let (copy, rest) = headers.split_at(sector);
        let (free, rest) = rest.split_at(sector);
        let (inodes, list) = rest.split_at(sector);
        let is_copy = be32(copy, 0) == superblock::MAGIC
            && u64::from(be32(copy, 4)) == superblock.block_size
            && u64::from(be32(copy, 84)) == superblock.group_blocks
            && copy[32..48] == superblock.uuid
            && (!superblock.checksums || checksum_fits(copy, 224));
        if !is_copy {
            return Err(bad("the superblock"));
        }
        let len = superblock.blocks_of(number);
        let is_own = |bytes: &[u8], magic: u32, uuid: usize, checksum: usize| {
            be32(bytes, 0) == magic
                && be32(bytes, 4) == 1
                && u64::from(be32(bytes, 8)) == number
                && u64::from(be32(bytes, 12)) == len
                && (!superblock.checksums
                    || bytes[uuid..uuid + 16] == superblock.meta_uuid
                        && checksum_fits(bytes, checksum))
        };
        if !is_own(free, FREE_MAGIC, 64, 216) {
            return Err(bad("the free space header"));
        }
        if !is_own(inodes, INODES_MAGIC, 296, 312) {
            return Err(bad("the inode header"));
        }
        let is_list = !superblock.checksums
            || be32(list, 0) == LIST_MAGIC
                && u64::from(be32(list, 4)) == number
                && list[8..24] == superblock.meta_uuid
                && checksum_fits(list, 32);
        if !is_list {
            return Err(bad("the reserve list"));
        }
        let tree = |kind, bytes: &[u8], root: usize, levels: usize| Tree {
            kind,
            group: number,
            root: be32(bytes, root).into(),
            levels: be32(bytes, levels),
        };
        let list = &list[if superblock.checksums { 36 } else { 0 }..];
        let group = Self {
            number,
            by_block: tree(&BY_BLOCK, free, 16, 28),
            by_count: tree(&BY_COUNT, free, 20, 32),
            inodes: tree(&INODES, inodes, 20, 24),
            list: reserve(list, free).ok_or_else(|| bad("the reserve list"))?,
            free: be32(free, 52).into(),
            longest: be32(free, 56).into(),
            tree_blocks: be32(free, 60).into(),
            reverse_map_blocks: be32(free, 80).into(),
        };
        let inside = group.list.iter().all(|block| *block < len) && group.inodes.root < len;
        if inside {
            Ok(group)
        } else {
            Err(damaged(format!(
                "group {number} keeps blocks outside itself"
            )))
        }
    }

    /// Adds what is not free to `used`. Returns the blocks of the free space trees.
    fn free_space(
        &self,
        volume: &dyn ReadAt,
        superblock: &Superblock,
        used: &mut UsedRanges,
    ) -> Result<Vec<u64>, Fault> {
        let number = self.number;
        let len = superblock.blocks_of(number);
        let mut add = |from: u64, to: u64| {
            used.add(ByteRange::between(
                superblock.byte_of(number, from),
                superblock.byte_of(number, to),
            ));
        };
        let disorder = |kind| damaged(format!("{kind} of group {number} is out of order"));
        let (mut end, mut by_block) = (0, Sum::default());
        let mut blocks = self.by_block.walk(volume, superblock, &mut |record| {
            let (start, count) = (u64::from(be32(record, 0)), u64::from(be32(record, 4)));
            if start < end || count == 0 || start + count > len {
                return Err(disorder(BY_BLOCK.name));
            }
            add(end, start);
            end = start + count;
            by_block.add(record);
            Ok(())
        })?;
        add(end, len);
        let (mut last, mut by_count) = ((0, 0), Sum::default());
        blocks.extend(self.by_count.walk(volume, superblock, &mut |record| {
            let this = (be32(record, 4), be32(record, 0));
            if this <= last {
                return Err(disorder(BY_COUNT.name));
            }
            last = this;
            by_count.add(record);
            Ok(())
        })?);
        if by_block != by_count {
            return Err(damaged(format!(
                "the free space trees of group {number} differ"
            )));
        }
        if by_block.free != self.free || u64::from(last.0) != self.longest {
            return Err(damaged(format!(
                "group {number} has {} free blocks, at most {} in a row (its header says {}, {})",
                by_block.free, last.0, self.free, self.longest
            )));
        }
        let mut tree_blocks = blocks.len() as u64 - 2;
        if superblock.reverse_map {
            tree_blocks += self.reverse_map_blocks.saturating_sub(1);
        }
        if superblock.lazy_counters && tree_blocks != self.tree_blocks {
            return Err(damaged(format!(
                "the trees of group {number} have {tree_blocks} blocks (its header says {})",
                self.tree_blocks
            )));
        }
        Ok(blocks)
    }
}

/// The blocks in the ring of reserved blocks, from the places that the free space header says.
fn reserve(ring: &[u8], header: &[u8]) -> Option<Vec<u64>> {
    let [first, last, count] = [40, 44, 48].map(|at| be32(header, at) as usize);
    let places = ring.len() / 4;
    if count == 0 {
        return Some(Vec::new());
    }
    let fits =
        first < places && last < places && count <= places && (first + count - 1) % places == last;
    fits.then(|| {
        (first..first + count)
            .map(|at| be32(ring, at % places * 4).into())
            .collect()
    })
}

/// A sum over records that does not depend on their order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    records: u64,
    free: u64,
    mixed: u64,
}

impl Sum {
    fn add(&mut self, record: &[u8]) {
        self.records += 1;
        self.free += u64::from(be32(record, 4));
        // splitmix64: equal sums of unequal records are as likely as chance has it.
        let mut mixed = be64(record, 0).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.mixed = self.mixed.wrapping_add(mixed ^ mixed >> 31);
    }
}
