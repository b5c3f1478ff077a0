//! The metadata areas of a physical volume: where the text that describes its group is.
//!
//! Source: the structures of LVM2's `lib/format_text/layout.h`, little endian:
//!
//! ```text
//! header    crc:u32 (of the rest of the sector) magic:[u8; 16] version:u32 start:u64 size:u64 | locations
//! location  offset:u64 size:u64 crc:u32 flags:u32; the list ends with an offset of 0
//! ```
//!
//! Behind the header is a ring of texts. The first location is of the one that counts, the second of
//! one that was about to. Invariant: a text is given back only when its checksum fits and no change was
//! under way.

use crate::ByteRange;
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le32, le64};

use super::{crc, doubt};

const HEADER: usize = 512;
const MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// The area is there, but the text in it does not count.
const IGNORED: u32 = 1;
/// The longest text that is read. LVM's default area has 1 MiB.
const MAX_TEXT: u64 = 16 << 20;

/// The text of a metadata area; none when it holds no group, or is not used.
///
/// # Errors
/// [`Doubt`] when it does not check out.
pub(super) fn read(volume: &dyn ReadAt, area: ByteRange) -> Result<Option<Vec<u8>>, Doubt> {
    if area.len() < 2 * HEADER as u64 {
        return Err(doubt("a metadata area is too small"));
    }
    let mut header = [0; HEADER];
    volume.read_at(area.start(), &mut header)?;
    if le32(&header, 0) != crc(&header[4..]) {
        return Err(doubt("the checksum of a metadata area does not fit"));
    }
    let sound = header[4..20] == *MAGIC
        && le32(&header, 20) == 1
        && le64(&header, 24) == area.start()
        && le64(&header, 32) == area.len();
    if !sound {
        return Err(doubt("a metadata area is not of the known format"));
    }
    let location = |number: usize| {
        let at = 40 + 24 * number;
        (
            le64(&header, at),
            le64(&header, at + 8),
            le32(&header, at + 16),
            le32(&header, at + 20),
        )
    };
    let (offset, len, sum, flags) = location(0);
    if offset == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if flags != 0 {
        return Err(doubt(format!(
            "a metadata area has unknown flags {flags:#x}"
        )));
    }
    if location(1).0 != 0 {
        return Err(doubt("a change of the volume group was under way"));
    }
    let ring = area.len() - HEADER as u64;
    if offset < HEADER as u64 || offset >= area.len() || len == 0 || len > ring.min(MAX_TEXT) {
        return Err(doubt("the volume group's description leaves its area"));
    }
    let mut text = vec![0; len as usize];
    // The ring goes on behind the header.
    let first = len.min(area.len() - offset) as usize;
    let (before, behind) = text.split_at_mut(first);
    volume.read_at(area.start() + offset, before)?;
    volume.read_at(area.start() + HEADER as u64, behind)?;
    if crc(&text) != sum {
        return Err(doubt(
            "the checksum of the volume group's description does not fit",
        ));
    }
    while text.last() == Some(&0) {
        text.pop();
    }
    Ok(Some(text))
}
