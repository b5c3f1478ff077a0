//! Members of a Linux software RAID, by the superblocks of `include/uapi/linux/raid/md_p.h`.
//!
//! Metadata 1.x lies 8 KiB before the end (1.0), at the start (1.1) or 4 KiB behind it (1.2), and says
//! itself where it is, so that a superblock of the whole disk is not taken for one of its last
//! partition. Metadata 0.90 lies in the last whole 64 KiB and has the byte order of its machine.

use super::{Member, read};
use crate::filesystem::detect::text;
use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le32, le64};

const MAGIC: u32 = 0xa92b_4efc;
/// Metadata 0.90 begins on a border of this many bytes, and has as many for itself.
const OLD_RESERVED: u64 = 64 << 10;

pub(super) fn member(volume: &dyn ReadAt, size: u64) -> Result<Option<Member>, ReadError> {
    let sectors = size - size % 512;
    let at_end = sectors.checked_sub(8192).map(|at| at - at % 4096);
    let places = [(Some(4096), "1.2"), (Some(0), "1.1"), (at_end, "1.0")];
    for (place, metadata) in places {
        let Some(place) = place else { continue };
        if let Some(member) =
            read(volume, size, place)?.and_then(|superblock| new(&superblock, place, metadata))
        {
            return Ok(Some(member));
        }
    }
    let Some(place) = (size - size % OLD_RESERVED).checked_sub(OLD_RESERVED) else {
        return Ok(None);
    };
    Ok(read(volume, size, place)?.and_then(|superblock| old(&superblock)))
}

/// `struct mdp_superblock_1`.
fn new(superblock: &[u8; 256], place: u64, metadata: &'static str) -> Option<Member> {
    let known = le32(superblock, 0) == MAGIC
        && le32(superblock, 4) == 1
        && le64(superblock, 144).checked_mul(512) == Some(place);
    known.then(|| Member::LinuxRaid {
        metadata,
        level: level(le32(superblock, 72)),
        name: text(&superblock[32..64]),
    })
}

/// `mdp_super_t`: magic, major, minor, …, level in the eighth word.
fn old(superblock: &[u8; 32]) -> Option<Member> {
    let words = |order: fn([u8; 4]) -> u32| {
        let (words, _) = superblock.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| order(*word));
        (word(0) == MAGIC && word(1) == 0 && (90..=91).contains(&word(2))).then(|| word(7))
    };
    words(u32::from_le_bytes)
        .or_else(|| words(u32::from_be_bytes))
        .map(|found| Member::LinuxRaid {
            metadata: "0.90",
            level: level(found),
            name: None,
        })
}

/// Negative numbers stand for what is no RAID level.
fn level(found: u32) -> String {
    match found.cast_signed() {
        -1 => "linear".to_owned(),
        -4 => "multipath".to_owned(),
        -5 => "faulty".to_owned(),
        other => other.to_string(),
    }
}
