//! The label of a physical volume and the header behind it.
//!
//! Source: the structures of LVM2's `lib/format_text/layout.h` and `lib/label/label.h`, little endian:
//!
//! ```text
//! label    "LABELONE" sector:u64 crc:u32 (from here to the sector's end) offset:u32 "LVM2 001"
//! header   uuid:[u8; 32] device size:u64 | data areas | metadata areas | extension
//! area     offset:u64 size:u64; a list ends with an offset of 0
//! extension version:u32 flags:u32 | boot loader areas
//! ```

use crate::ByteRange;
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le32, le64};

use super::{crc, doubt, uuid_text};

const SECTOR: usize = 512;
/// LVM looks for a label in this many sectors.
const SECTORS: usize = 4;

/// What the label of a physical volume says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// Its UUID, as LVM shows it.
    pub(super) uuid: String,
    /// Where its extents begin, in bytes.
    pub(super) data_start: u64,
    /// Its metadata areas.
    pub(super) metadata_areas: Vec<ByteRange>,
    /// Its boot loader areas.
    pub(super) boot_loader_areas: Vec<ByteRange>,
}

/// Reads the label of a volume of `size` bytes.
///
/// # Errors
/// [`Doubt`] when there is not exactly one label, or it does not check out.
pub(super) fn read(volume: &dyn ReadAt, size: u64) -> Result<Label, Doubt> {
    let mut bytes = [0; SECTOR * SECTORS];
    if size < bytes.len() as u64 {
        return Err(doubt("too small for a physical volume"));
    }
    volume.read_at(0, &mut bytes)?;
    let mut labels = (0u64..)
        .zip(bytes.chunks_exact(SECTOR))
        .filter(|(_, sector)| sector[..8] == *b"LABELONE");
    let (number, sector) = labels.next().ok_or_else(|| doubt("no LVM label"))?;
    if labels.next().is_some() {
        return Err(doubt("more than one LVM label"));
    }
    if le64(sector, 8) != number || le32(sector, 16) != crc(&sector[20..]) {
        return Err(doubt("the LVM label's checksum does not fit"));
    }
    if sector[24..32] != *b"LVM2 001" {
        return Err(doubt("the LVM label is of another format"));
    }
    parse(sector, le32(sector, 20) as usize, size)
}

fn parse(sector: &[u8], at: usize, size: u64) -> Result<Label, Doubt> {
    let short = || doubt("the physical volume's header leaves its sector");
    let header = sector
        .get(at..)
        .filter(|header| header.len() >= 40)
        .ok_or_else(short)?;
    let uuid = uuid_text(&header[..32]).ok_or_else(|| doubt("the physical volume has no UUID"))?;
    let device_size = le64(header, 32);
    if device_size > size {
        return Err(doubt(format!(
            "the physical volume has {device_size} bytes (its place has {size})"
        )));
    }
    let mut rest = &header[40..];
    let data_areas = areas(&mut rest).ok_or_else(short)?;
    let metadata = areas(&mut rest).ok_or_else(short)?;
    let [(data_start, _)] = data_areas[..] else {
        return Err(doubt(format!(
            "{} data areas (expected 1)",
            data_areas.len()
        )));
    };
    let boot_loader = match rest.get(..8) {
        // Version 0 is no extension, from before there were any.
        Some(extension) if le32(extension, 0) > 0 => {
            rest = &rest[8..];
            areas(&mut rest).ok_or_else(short)?
        }
        _ => Vec::new(),
    };
    let inside = |areas: Vec<(u64, u64)>| -> Result<Vec<ByteRange>, Doubt> {
        let range = |(start, len)| {
            ByteRange::new(start, len)
                .ok()
                .filter(|range| range.end() <= size)
                .ok_or_else(|| doubt(format!("an area at byte {start} leaves the volume")))
        };
        areas.into_iter().map(range).collect()
    };
    Ok(Label {
        uuid,
        data_start,
        metadata_areas: inside(metadata)?,
        boot_loader_areas: inside(boot_loader)?,
    })
}

/// Offsets and sizes up to the end of a list, which is taken off `rest`.
fn areas(rest: &mut &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    loop {
        let area = rest.get(..16)?;
        *rest = &rest[16..];
        match le64(area, 0) {
            0 => return Some(found),
            offset => found.push((offset, le64(area, 8))),
        }
    }
}
