//! Where the blocks of a file lie: extents, or the block map of ext2 and ext3; and reading them.

use super::inode::{BLOCK_LEN, Inode, flag};
use super::{Reader, damaged, feature};
use crate::filesystem::crc::crc32c;
use crate::filesystem::tree::{NodeKind, TreeError};
use crate::little_endian::{le16, le32};

/// Extent trees are at most this deep.
const MAX_DEPTH: u16 = 5;
/// A file has at most this many blocks: numbers within a file have 32 bits.
const MAX_BLOCKS: u64 = 1 << 32;
/// The most bytes of a symbolic link.
const MAX_LINK: u64 = 4096;
/// Lengths above this mark an extent that is reserved but was never written.
const WRITTEN: u64 = 32768;

/// Blocks of a file side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Where they lie; `None` for a hole.
    pub(super) physical: Option<u64>,
    /// How many, at least 1.
    pub(super) len: u64,
}

const fn hole(len: u64) -> Run {
    Run {
        physical: None,
        len,
    }
}

impl Reader {
    /// Bytes of a file, folder or link.
    pub(super) fn file_size(&self, inode: &Inode) -> u64 {
        let wide = match inode.kind() {
            Some(NodeKind::File) => true,
            // ext2 keeps a folder's access list where the upper half of a length is.
            Some(NodeKind::Directory) => self.incompatible & feature::LARGE_FOLDERS != 0,
            _ => false,
        };
        if wide {
            inode.whole_size()
        } else {
            inode.short_size()
        }
    }

    /// Fills `buffer` from byte `offset` of a file; the bytes that there were.
    pub(super) fn read_file(
        &self,
        inode: &Inode,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, TreeError> {
        let left = self.file_size(inode).saturating_sub(offset);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = &mut buffer[..len];
        if inode.has(flag::INLINE_DATA) {
            read_inline(inode, offset, buffer)?;
            return Ok(len);
        }
        let size = self.superblock.block_size;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let run = self.map(inode, at / size)?;
            let within = at % size;
            let bytes = run.len.saturating_mul(size) - within;
            let count = usize::try_from(bytes).map_or(len - done, |count| count.min(len - done));
            let part = &mut buffer[done..done + count];
            match run.physical {
                None => part.fill(0),
                Some(block) => self.volume.read_at(block * size + within, part)?,
            }
            done += count;
        }
        Ok(len)
    }

    pub(super) fn link_target(&self, inode: &Inode) -> Result<Vec<u8>, TreeError> {
        let size = self.file_size(inode);
        if size > MAX_LINK {
            return Err(damaged(format!(
                "the link in inode {} has {size} bytes",
                inode.number
            )));
        }
        let mut target = vec![0; size as usize];
        let short = size < BLOCK_LEN as u64 && !inode.has(flag::EXTENTS | flag::INLINE_DATA);
        if short {
            target.copy_from_slice(&inode.block()[..size as usize]);
        } else {
            self.read_file(inode, 0, &mut target)?;
        }
        Ok(target)
    }

    /// Where block `logical` of a file lies, and how many follow it there.
    pub(super) fn map(&self, inode: &Inode, logical: u64) -> Result<Run, TreeError> {
        if logical >= MAX_BLOCKS {
            return Err(damaged(format!(
                "inode {} is longer than files can be",
                inode.number
            )));
        }
        let run = if inode.has(flag::EXTENTS) {
            self.map_extents(inode, logical)?
        } else {
            self.map_pointers(inode, logical)?
        };
        if let Some(block) = run.physical {
            let end = block.checked_add(run.len);
            if block == 0 || end.is_none_or(|end| end > self.superblock.blocks) {
                return Err(damaged(format!(
                    "inode {} names {} blocks at block {block}",
                    inode.number, run.len
                )));
            }
        }
        Ok(run)
    }

    fn map_extents(&self, inode: &Inode, logical: u64) -> Result<Run, TreeError> {
        let broken = || damaged(format!("the extents of inode {} are none", inode.number));
        let mut node = inode.block().to_vec();
        let mut expected_depth = None;
        // Where what the parents say of this place ends.
        let mut limit = MAX_BLOCKS;
        loop {
            let (magic, entries, depth) = (le16(&node, 0), le16(&node, 2), le16(&node, 6));
            let entries = usize::from(entries);
            let sound = magic == 0xf30a
                && 12 + entries * 12 <= node.len()
                && depth <= MAX_DEPTH
                && expected_depth.is_none_or(|expected| expected == depth);
            if !sound {
                return Err(broken());
            }
            let entry = |index: usize| &node[12 + 12 * index..24 + 12 * index];
            let first = |index: usize| u64::from(le32(entry(index), 0));
            let following = (0..entries)
                .find(|index| first(*index) > logical)
                .unwrap_or(entries);
            if following < entries {
                limit = limit.min(first(following));
            }
            let Some(index) = following.checked_sub(1) else {
                return Ok(hole(limit - logical));
            };
            if depth == 0 {
                return extent(entry(index), logical, limit).ok_or_else(broken);
            }
            let child = u64::from(le32(entry(index), 4)) | u64::from(le16(entry(index), 8)) << 32;
            node = self.block(child)?;
            if let Some(seed) = inode.seed {
                check_extent_block(&node, seed).ok_or_else(broken)?;
            }
            expected_depth = Some(depth - 1);
        }
    }

    fn map_pointers(&self, inode: &Inode, logical: u64) -> Result<Run, TreeError> {
        let fan = self.superblock.block_size / 4;
        if logical < 12 {
            return Ok(run_of(&inode.block()[..48], logical));
        }
        let mut index = logical - 12;
        let mut span = 1;
        for level in 1..=3u32 {
            // 2^14 pointers a block at most: no overflow.
            let covered = span * fan;
            if index >= covered {
                index -= covered;
                span = covered;
                continue;
            }
            let mut table = u64::from(le32(inode.block(), 44 + 4 * level as usize));
            loop {
                if table == 0 {
                    // The rest of what this missing table would name.
                    return Ok(hole(span * fan - index % (span * fan)));
                }
                let block = self.block(table)?;
                if span == 1 {
                    return Ok(run_of(&block, index % fan));
                }
                let slot = (index / span % fan) as usize;
                table = u64::from(le32(&block, 4 * slot));
                span /= fan;
            }
        }
        Err(damaged(format!(
            "inode {} is longer than its block map reaches",
            inode.number
        )))
    }
}

/// What a leaf says of a block that is not before it.
fn extent(entry: &[u8], logical: u64, limit: u64) -> Option<Run> {
    let (first, raw) = (u64::from(le32(entry, 0)), u64::from(le16(entry, 4)));
    let physical = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
    let (len, written) = if raw > WRITTEN {
        (raw - WRITTEN, false)
    } else {
        (raw, true)
    };
    let end = first + len;
    if len == 0 || end > limit {
        return None;
    }
    if logical >= end {
        return Some(hole(limit - logical));
    }
    Some(Run {
        physical: written.then_some(physical + (logical - first)),
        len: end - logical,
    })
}

/// The checksum behind the entries of an extent block.
fn check_extent_block(block: &[u8], seed: u32) -> Option<()> {
    let tail = 12 + 12 * usize::from(le16(block, 4));
    let stored = block.get(tail..tail + 4)?;
    (crc32c(seed, &[&block[..tail]]) == le32(stored, 0)).then_some(())
}

/// The run that begins with pointer `index` of a table.
fn run_of(table: &[u8], index: u64) -> Run {
    let mut pointers = table[4 * index as usize..]
        .chunks_exact(4)
        .map(|pointer| u64::from(le32(pointer, 0)));
    let first = pointers.next().unwrap_or(0);
    let mut len = 1;
    for pointer in pointers {
        let follows = if first == 0 {
            pointer == 0
        } else {
            pointer == first + len
        };
        if !follows {
            break;
        }
        len += 1;
    }
    Run {
        physical: (first != 0).then_some(first),
        len,
    }
}

/// A content kept in the inode: 60 bytes in place of the block map, the rest as an attribute.
fn read_inline(inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<(), TreeError> {
    let content = [inode.block(), inode.inline_rest()?].concat();
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let part = from
        .checked_add(buffer.len())
        .and_then(|end| content.get(from..end))
        .ok_or_else(|| {
            damaged(format!(
                "inode {} is longer than what is in it",
                inode.number
            ))
        })?;
    buffer.copy_from_slice(part);
    Ok(())
}
