//! Directories of FAT: 32-byte entries with short names (§6), and the long names before them (§7).
//!
//! Invariant: deleted entries, volume labels, `.` and `..` are never given. A long name counts only
//! when all its pieces are there in order and bear the checksum of the short name behind them; else
//! it is a left-over and the short name counts, as systems do it.

use super::Geometry;
use crate::ByteRange;
use crate::filesystem::dos_time;
use crate::filesystem::links::Links;
use crate::filesystem::tree::Timestamp;
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le16, le32};

/// Length of an entry.
pub(super) const ENTRY: usize = 32;
/// The longest directory: 65,536 entries.
const MAX_DIRECTORY: u64 = 65_536 * ENTRY as u64;

const VOLUME_LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;

/// Code page 437 from 0x80, which systems take short names for unless they are told otherwise.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Where a directory's entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The root directory of FAT12 and FAT16.
    Fixed(ByteRange),
    /// A chain of clusters.
    Chain(u32),
}

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Where its entry lies on the volume.
    pub(super) place: u64,
    pub(super) is_directory: bool,
    /// 0 for a file without content.
    pub(super) first: u32,
    pub(super) len: u64,
    /// Local time of the machine that wrote it, taken as UTC: FAT keeps no zone.
    pub(super) modified: Option<Timestamp>,
}

impl File {
    /// The entry at byte `place`, unless it is free, a label, or a piece of a long name.
    pub(super) fn parse(geometry: &Geometry, entry: &[u8; 32], place: u64) -> Option<Self> {
        let dots = entry[..11] == *b".          " || entry[..11] == *b"..         ";
        if dots || matches!(entry[0], 0 | DELETED) || entry[11] & VOLUME_LABEL != 0 {
            return None;
        }
        // Elsewhere these bytes are not a part of the number.
        let high = if geometry.wide {
            u32::from(le16(entry, 20)) << 16
        } else {
            0
        };
        Some(Self {
            place,
            is_directory: entry[11] & DIRECTORY != 0,
            first: high | u32::from(le16(entry, 26)),
            len: u64::from(le32(entry, 28)),
            modified: dos_time::timestamp(le16(entry, 24), le16(entry, 22), 0),
        })
    }
}

/// The directory's entries, one after the other.
pub(super) struct Directory<'a> {
    volume: &'a dyn ReadAt,
    geometry: &'a Geometry,
    links: &'a Links,
    /// The cluster whose entries are read; `None` in a fixed root directory.
    cluster: Option<u32>,
    bytes: Vec<u8>,
    place: u64,
    at: usize,
    /// How long the directory may still be.
    left: u64,
}

impl<'a> Directory<'a> {
    pub(super) fn new(
        volume: &'a dyn ReadAt,
        geometry: &'a Geometry,
        links: &'a Links,
        content: Content,
    ) -> Result<Self, Doubt> {
        let mut directory = Self {
            volume,
            geometry,
            links,
            cluster: None,
            bytes: Vec::new(),
            place: 0,
            at: 0,
            left: MAX_DIRECTORY,
        };
        match content {
            // At most 65,535 entries.
            Content::Fixed(range) => directory.load(range.start(), range.len())?,
            Content::Chain(first) if links.exists(first) => {
                directory.cluster = Some(first);
                directory.load(geometry.place(first), u64::from(geometry.cluster_size()))?;
            }
            Content::Chain(first) => {
                return Err(doubt(format!("a directory in cluster {first}")));
            }
        }
        Ok(directory)
    }

    /// The next file or folder and its name; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(File, String)>, Doubt> {
        let mut long = LongName::default();
        while let Some((entry, place)) = self.entry()? {
            // Nothing is behind the first entry that was never used.
            if entry[0] == 0 {
                (self.cluster, self.at) = (None, self.bytes.len());
                break;
            }
            if entry[0] != DELETED && entry[11] & 0x3f == LONG_NAME {
                long.add(&entry);
                continue;
            }
            let name = std::mem::take(&mut long);
            if let Some(file) = File::parse(self.geometry, &entry, place) {
                let name = name.of(&entry).unwrap_or_else(|| short_name(&entry));
                return Ok(Some((file, name)));
            }
        }
        Ok(None)
    }

    /// The next 32 bytes and where on the volume they are.
    fn entry(&mut self) -> Result<Option<([u8; ENTRY], u64)>, Doubt> {
        if self.at == self.bytes.len() {
            let Some(cluster) = self.cluster else {
                return Ok(None);
            };
            let Some(next) = self.links.after(self.volume, cluster)? else {
                return Ok(None);
            };
            self.cluster = Some(next);
            let len = u64::from(self.geometry.cluster_size());
            self.load(self.geometry.place(next), len)?;
        }
        let mut entry = [0; ENTRY];
        entry.copy_from_slice(&self.bytes[self.at..self.at + ENTRY]);
        let place = self.place + self.at as u64;
        self.at += ENTRY;
        Ok(Some((entry, place)))
    }

    fn load(&mut self, place: u64, len: u64) -> Result<(), Doubt> {
        // A chain that is a loop ends here too.
        self.left = self
            .left
            .checked_sub(len)
            .ok_or_else(|| doubt("a directory of more than 65,536 entries".to_owned()))?;
        (self.place, self.at) = (place, 0);
        self.bytes.resize(len as usize, 0);
        self.volume.read_at(place, &mut self.bytes)?;
        Ok(())
    }
}

/// The pieces of a long name, which come last piece first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    /// The number of the piece that came last; 1 when all are there, 0 when none is.
    piece: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8; 32]) {
        let (number, checksum) = (entry[0] & 0x3f, entry[13]);
        if entry[0] & 0x40 != 0 && (1..=20).contains(&number) {
            self.units = vec![0; usize::from(number) * 13];
            self.checksum = checksum;
        } else if self.piece < 2 || number != self.piece - 1 || checksum != self.checksum {
            *self = Self::default();
            return;
        }
        self.piece = number;
        let at = usize::from(number - 1) * 13;
        let bytes = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
        for (unit, bytes) in self.units[at..].iter_mut().zip(bytes.chunks_exact(2)) {
            *unit = le16(bytes, 0);
        }
    }

    /// The name in UTF-8, half a surrogate pair as U+FFFD, when it belongs to this entry.
    fn of(&self, entry: &[u8; 32]) -> Option<String> {
        if self.piece != 1 || checksum(entry) != self.checksum {
            return None;
        }
        let end = self.units.iter().position(|unit| *unit == 0);
        let units = &self.units[..end.unwrap_or(self.units.len())];
        (!units.is_empty()).then(|| String::from_utf16_lossy(units))
    }
}

/// §7.2: of the short name, in each piece of its long one.
fn checksum(entry: &[u8; ENTRY]) -> u8 {
    entry[..11]
        .iter()
        .fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn short_name(entry: &[u8; 32]) -> String {
    let part = |bytes: &[u8], lower: bool| -> String {
        let name: String = bytes.iter().map(|byte| character(*byte)).collect();
        let name = name.trim_end_matches(' ');
        if lower {
            name.to_ascii_lowercase()
        } else {
            name.to_owned()
        }
    };
    let mut base = [0; 8];
    base.copy_from_slice(&entry[..8]);
    // A name that begins with what marks a deleted one.
    if base[0] == 0x05 {
        base[0] = DELETED;
    }
    // How Windows NT keeps names that are lower case only.
    let (base, extension) = (
        part(&base, entry[12] & 0x08 != 0),
        part(&entry[8..11], entry[12] & 0x10 != 0),
    );
    if extension.is_empty() {
        base
    } else {
        format!("{base}.{extension}")
    }
}

fn character(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => char::from(byte),
        Some(upper) => CODE_PAGE
            .chars()
            .nth(usize::from(upper))
            .unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

fn doubt(reason: String) -> Doubt {
    Doubt::Untrusted(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_what_systems_show() {
        assert_eq!(CODE_PAGE.chars().count(), 128);
        for (entry, case, name) in [
            (b"README  TXT", 0, "README.TXT"),
            (b"README  TXT", 0x18, "readme.txt"),
            (b"README  TXT", 0x08, "readme.TXT"),
            (b"A B        ", 0, "A B"),
            (b"\x05\x81      \x9a  ", 0, "\u{3c3}ü.Ü"),
        ] {
            let mut bytes = [0; 32];
            bytes[..11].copy_from_slice(entry);
            bytes[12] = case;
            assert_eq!(short_name(&bytes), name);
        }
    }

    #[test]
    fn a_long_name_without_its_entry_is_left_over() {
        let mut piece = [0xff; 32];
        piece[..2].copy_from_slice(&[0x41, b'x']);
        piece[2..5].fill(0);
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(b"X          ");
        piece[13] = checksum(&entry);
        let mut name = LongName::default();
        name.add(&piece);
        assert_eq!(name.of(&entry).as_deref(), Some("x"));
        entry[0] = b'Y';
        assert_eq!(name.of(&entry), None);
        // A first piece without those before it.
        piece[0] = 1;
        let mut name = LongName::default();
        name.add(&piece);
        entry[0] = b'X';
        assert_eq!(name.of(&entry), None);
    }
}
