//! Directories: names in the inode itself (short form), in one block, or in many.
//!
//! Only the blocks with names are read, which lie below byte 2^35 of a directory; above are indexes.
//!
//! Invariant: an entry lies within its block and moves on by at least 8 bytes.

use super::big_endian::{be16, be32, be64};
use super::superblock::{Superblock, checksum_fits};
use super::{Fault, damaged};
use crate::filesystem::tree::{Entry, NodeId, TreeError};

/// The byte of a directory where its indexes begin (`XFS_DIR2_LEAF_OFFSET`).
pub(super) const INDEX_AT: u64 = 1 << 35;

/// Magic numbers of a block with names and its index, and of one with names alone; versions 4 and 5.
const ONE_BLOCK: [u32; 2] = [0x5844_3242, 0x5844_4233];
const NAMES: [u32; 2] = [0x5844_3244, 0x5844_4433];
const FREE: u16 = 0xffff;

/// What takes the entries.
pub(super) type Visit<'a> = dyn FnMut(Entry) -> Result<(), TreeError> + 'a;

/// A name as an entry; `None` for `.` and `..`.
fn entry(directory: u64, name: &[u8], number: u64) -> Result<Option<Entry>, Fault> {
    if name == b"." || name == b".." {
        return Ok(None);
    }
    if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
        return Err(bad(directory, "an impossible name"));
    }
    Ok(Some(Entry {
        name: name.to_vec(),
        node: NodeId { tree: 0, number },
    }))
}

fn bad(directory: u64, what: &str) -> Fault {
    damaged(format!("the directory of inode {directory} has {what}"))
}

/// The names of a directory that is kept in its inode: counts, parent, then entries of name length,
/// place, name, type, inode.
pub(super) fn short_form(
    superblock: &Superblock,
    directory: u64,
    bytes: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), TreeError> {
    let short = || bad(directory, "too few bytes");
    let (count, wide) = match bytes {
        [count, wide, ..] => (*count, *wide != 0),
        _ => return Err(short().into()),
    };
    let number_len = if wide { 8 } else { 4 };
    let mut rest = bytes.get(2 + number_len..).ok_or_else(short)?;
    for _ in 0..count {
        let name_len = usize::from(*rest.first().ok_or_else(short)?);
        let number_at = 3 + name_len + usize::from(superblock.file_types);
        let end = number_at + number_len;
        let (this, after) = rest.split_at_checked(end).ok_or_else(short)?;
        let number = if wide {
            be64(this, number_at)
        } else {
            be32(this, number_at).into()
        };
        if let Some(entry) = entry(directory, &this[3..3 + name_len], number)? {
            visit(entry)?;
        }
        rest = after;
    }
    Ok(())
}

/// The names of a directory block that lies at byte `at` of the volume.
pub(super) fn block(
    superblock: &Superblock,
    directory: u64,
    at: u64,
    bytes: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), TreeError> {
    let version = usize::from(superblock.checksums);
    let magic = be32(bytes, 0);
    let header = [16, 64][version];
    if superblock.checksums {
        if !checksum_fits(bytes, 4) {
            return Err(bad(directory, "a checksum that does not fit").into());
        }
        let own = be64(bytes, 8) == at / 512
            && bytes[24..40] == superblock.meta_uuid
            && be64(bytes, 40) == directory;
        if !own {
            return Err(bad(directory, "a block from elsewhere").into());
        }
    }
    let end = if magic == NAMES[version] {
        bytes.len()
    } else if magic == ONE_BLOCK[version] {
        // The index is at the end: 8 bytes a name, then their count and how many are stale.
        let index = 8 + 8 * u64::from(be32(bytes, bytes.len() - 8));
        usize::try_from(index)
            .ok()
            .and_then(|index| bytes.len().checked_sub(index))
            .filter(|end| *end >= header)
            .ok_or_else(|| bad(directory, "a wrong index"))?
    } else {
        return Err(bad(directory, "no block of names").into());
    };
    let wrong = || bad(directory, "a wrong entry");
    let mut from = header;
    while from < end {
        let rest = &bytes[from..end];
        if rest.len() < 8 {
            return Err(wrong().into());
        }
        // Free space: tag, length. A name: inode, name length, name, type. At the end of both: their place.
        let is_free = be16(rest, 0) == FREE;
        let name_len = if is_free {
            0
        } else {
            usize::from(*rest.get(8).ok_or_else(wrong)?)
        };
        let len = if is_free {
            usize::from(be16(rest, 2))
        } else {
            (9 + name_len + usize::from(superblock.file_types) + 2).next_multiple_of(8)
        };
        let sane = len >= 8
            && len.is_multiple_of(8)
            && len <= rest.len()
            && usize::from(be16(rest, len - 2)) == from;
        if !sane {
            return Err(wrong().into());
        }
        if !is_free && let Some(entry) = entry(directory, &rest[9..9 + name_len], be64(rest, 0))? {
            visit(entry)?;
        }
        from += len;
    }
    Ok(())
}
