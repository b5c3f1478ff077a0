//! Folders: the index `$I30` of file names, its root in the record and its blocks in clusters.
//!
//! Blocks are read in order of their place, not from node to node, so that no damage makes a circle.
//!
//! Invariant: each name given out was found to lie within its block and to belong to this folder.

use super::Fault;
use super::file::File;
use super::mft::Mft;
use super::record::{INDEX_ALLOCATION, INDEX_BITMAP, INDEX_ROOT, Reference, fix_up};
use crate::filesystem::ReadAt;
use crate::little_endian::{le16, le32, le64};

/// The namespace of the short names that are kept beside long ones for DOS programs.
pub(super) const DOS_NAME: u8 = 2;

/// The most bytes of the bitmap of an index: folders of 32 GiB.
const MAX_BITMAP: u64 = 1 << 20;

/// The largest block of an index.
const MAX_BLOCK: usize = 64 << 10;

/// What is given the file and the name, in UTF-16LE, of each entry.
pub(super) type Visit<'a, E> = dyn FnMut(Reference, &[u8]) -> Result<(), E> + 'a;

/// Gives each name of the folder that is record `number` to `visit`, without the short ones.
pub(super) fn names<E: From<Fault>>(
    volume: &dyn ReadAt,
    mft: &Mft,
    number: u64,
    visit: &mut Visit<'_, E>,
) -> Result<(), E> {
    let geometry = &mft.geometry;
    let folder = File::load(volume, mft, Reference(number))?;
    let number = Reference(number).number();
    let damaged = |what: &str| Fault::Damaged(format!("the index of folder {number} {what}"));
    let root = folder
        .stream(INDEX_ROOT, "$I30", geometry)?
        .filter(super::stream::Stream::is_resident)
        .ok_or_else(|| damaged("is missing"))?;
    let root = root.read_all(volume, geometry, geometry.record as u64)?;
    if root.len() < 32 {
        return Err(damaged("is cut off").into());
    }
    node(&root[16..], number, visit)?;
    let Some(blocks) = folder.stream(INDEX_ALLOCATION, "$I30", geometry)? else {
        return Ok(());
    };
    let size = le32(&root, 8) as usize;
    if !size.is_power_of_two() || !(512..=MAX_BLOCK).contains(&size) || !blocks.is_plain() {
        return Err(damaged("has blocks that do not fit").into());
    }
    let in_use = folder
        .stream(INDEX_BITMAP, "$I30", geometry)?
        .ok_or_else(|| damaged("lacks its bitmap"))?
        .read_all(volume, geometry, MAX_BITMAP)?;
    let mut block = vec![0; size];
    for (at, byte) in in_use.iter().enumerate() {
        for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
            let offset = (at * 8 + bit) as u64 * size as u64;
            if blocks.read(volume, geometry, offset, &mut block)? < size {
                return Err(damaged("uses a block behind its end").into());
            }
            let what = format_args!("block {} of the index of folder {number}", at * 8 + bit);
            fix_up(&mut block, *b"INDX", what)?;
            node(&block[24..], number, visit)?;
        }
    }
    Ok(())
}

/// The entries of one node; `bytes` begins with its header.
fn node<E: From<Fault>>(bytes: &[u8], folder: u64, visit: &mut Visit<'_, E>) -> Result<(), E> {
    let cut = || Fault::Damaged(format!("an index node of folder {folder} is cut off"));
    let (start, end) = (le32(bytes, 0) as usize, le32(bytes, 4) as usize);
    let mut rest = bytes
        .get(start..end)
        .filter(|_| start >= 16)
        .ok_or_else(cut)?;
    loop {
        if rest.len() < 16 {
            return Err(cut().into());
        }
        let (len, key_len, flags) = (usize::from(le16(rest, 8)), le16(rest, 10), le16(rest, 12));
        if flags & 2 != 0 {
            return Ok(());
        }
        if len < 16 {
            return Err(cut().into());
        }
        let entry = rest.get(..len).ok_or_else(cut)?;
        let key = entry.get(16..16 + usize::from(key_len)).ok_or_else(cut)?;
        if key.len() < 66 {
            return Err(cut().into());
        }
        let name = key.get(66..66 + usize::from(key[64]) * 2).ok_or_else(cut)?;
        if Reference(le64(key, 0)).number() != folder {
            let reason = format!("the index of folder {folder} has a name of another folder");
            return Err(Fault::Damaged(reason).into());
        }
        if key[65] != DOS_NAME {
            visit(Reference(le64(entry, 0)), name)?;
        }
        rest = &rest[len..];
    }
}
