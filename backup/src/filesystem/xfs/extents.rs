//! Where files lie: the extents of all inodes in use.
//!
//! Unwritten extents are left out: what is in them is not the file's, but whatever the blocks held before.
//!
//! Invariant: what cannot be read or understood is left out. Only a file in blocks that are listed as free
//! makes a fault, because then one of the two is wrong.

use super::big_endian::{be16, be32, be64};
use super::btree::Tree;
use super::groups::covers;
use super::inode::Inode;
use super::superblock::Superblock;
use super::{Fault, damaged};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::filesystem::extents::{FileExtent, FileExtents};

/// Inodes of a record of the inode tree.
const CHUNK: u64 = 64;
/// How many bytes of inodes are read at once, when they lie side by side.
const PIECE: u64 = 1 << 20;

/// Inodes of a group, from the first of a chunk, and which of them are in use.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    first: u64,
    in_use: u64,
    /// Has holes, which are not to be read.
    sparse: bool,
}

/// Where the files of all groups lie; `used` are the used ranges.
pub(super) fn collect(
    volume: &dyn ReadAt,
    superblock: &Superblock,
    trees: &[Tree],
    used: &[ByteRange],
) -> Result<Vec<FileExtent>, Fault> {
    let mut collector = Collector {
        volume,
        superblock,
        used,
        extents: FileExtents::new(),
        misplaced: None,
    };
    for tree in trees {
        // An error ends the search; what was found stays.
        if collector.group(tree).is_err() || collector.extents.is_full() {
            break;
        }
    }
    match collector.misplaced {
        Some(fault) => Err(fault),
        None => Ok(collector.extents.finish()),
    }
}

struct Collector<'a> {
    volume: &'a dyn ReadAt,
    superblock: &'a Superblock,
    used: &'a [ByteRange],
    extents: FileExtents,
    misplaced: Option<Fault>,
}

impl Collector<'_> {
    fn group(&mut self, tree: &Tree) -> Result<(), Fault> {
        let (volume, superblock, group) = (self.volume, self.superblock, tree.group);
        let most = (PIECE / (CHUNK * superblock.inode_size)).max(1) as usize;
        let mut batch: Vec<Chunk> = Vec::with_capacity(most);
        let blocks = tree.walk(volume, superblock, &mut |record| {
            let chunk = chunk(superblock, record);
            let follows = batch.last().is_none_or(|last| {
                chunk.first == last.first + CHUNK && !chunk.sparse && !last.sparse
            });
            if !follows || batch.len() == most {
                self.chunks(group, &batch)?;
                batch.clear();
            }
            batch.push(chunk);
            Ok(())
        })?;
        self.chunks(group, &batch)?;
        for block in blocks {
            let at = superblock.byte_of(group, block);
            self.check_used(ByteRange::between(at, at + superblock.block_size))?;
        }
        Ok(())
    }

    /// The inodes in use of chunks side by side.
    fn chunks(&mut self, group: u64, batch: &[Chunk]) -> Result<(), Fault> {
        let size = self.superblock.inode_size;
        let numbers: Vec<u64> = batch
            .iter()
            .flat_map(|chunk| {
                (0..CHUNK)
                    .filter(|at| chunk.in_use >> at & 1 == 1)
                    .map(|at| chunk.first + at)
            })
            .collect();
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            return Ok(());
        };
        let len = (last + 1 - first) * size;
        let limit = self.superblock.blocks_of(group) * self.superblock.block_size;
        if first * size + len > limit || self.extents.is_full() {
            return Err(damaged(format!(
                "inode {last} is outside its group {group}"
            )));
        }
        let mut bytes = vec![0; len as usize];
        let at = self.superblock.byte_of(group, 0) + first * size;
        self.volume.read_at(at, &mut bytes)?;
        for number in &numbers {
            let offset = (number - first) * size;
            self.check_used(ByteRange::between(at + offset, at + offset + size))?;
            let bytes = &bytes[offset as usize..(offset + size) as usize];
            let number = group << self.superblock.inode_log | number;
            match Inode::parse(self.superblock, number, bytes).and_then(|inode| self.inode(&inode))
            {
                // One damaged inode does not hide the others.
                Err(Fault::Damaged(_)) if self.misplaced.is_none() => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn inode(&mut self, inode: &Inode) -> Result<(), Fault> {
        if inode.realtime {
            return Ok(());
        }
        let (volume, superblock) = (self.volume, self.superblock);
        let is_file = inode.mode >> 12 == 0o10;
        inode.mappings(volume, superblock, (0, u64::MAX), &mut |mapping| {
            let len = mapping.count * superblock.block_size;
            let range = ByteRange::between(mapping.at, mapping.at + len);
            self.check_used(range)?;
            if is_file && !mapping.unwritten {
                self.extents
                    .add(range, mapping.offset * superblock.block_size);
            }
            Ok(())
        })
    }

    fn check_used(&mut self, range: ByteRange) -> Result<(), Fault> {
        if covers(self.used, range) {
            return Ok(());
        }
        let fault = damaged(format!(
            "a file lies at byte {} in what is listed as free",
            range.start()
        ));
        self.misplaced = Some(fault.clone());
        Err(fault)
    }
}

/// A record: the first inode, then a count of 32 bits or, with sparse chunks, a mask of holes (a bit for
/// four inodes) and two counts; then the mask of free inodes.
fn chunk(superblock: &Superblock, record: &[u8]) -> Chunk {
    let holes = if superblock.sparse_inodes {
        be16(record, 4)
    } else {
        0
    };
    let there = (0..16)
        .filter(|bit| holes >> bit & 1 == 0)
        .fold(0, |mask, bit| mask | 0xf << (bit * 4));
    Chunk {
        first: be32(record, 0).into(),
        in_use: !be64(record, 8) & there,
        sparse: holes != 0,
    }
}
