//! Directories of exFAT: their 32-byte entries and the sets that describe files (§6, §7).
//!
//! Invariant: a set is given only when its checksum fits. Whether its clusters are in use, and its
//! alone, is not looked at here.

use super::boot::Geometry;
use super::doubt;
use crate::filesystem::dos_time;
use crate::filesystem::links::Links;
use crate::filesystem::tree::Timestamp;
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le16, le32, le64};

const ENTRY: usize = 32;
/// Directories are read in pieces of at most this size.
const PIECE: u64 = 32 << 10;
/// The longest directory (§7.4: 256 MiB).
const MAX_DIRECTORY: u64 = 256 << 20;

/// Bits of an entry's type (§6.2.1).
const IN_USE: u8 = 0x80;
const SECONDARY: u8 = 0x40;
const BENIGN: u8 = 0x20;

/// Clusters that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) first: u32,
    /// In bytes.
    pub(super) len: u64,
    /// Whether they follow each other, and the FAT says nothing of them.
    pub(super) contiguous: bool,
}

impl Stream {
    /// The cluster after one of it.
    pub(super) fn after(
        &self,
        volume: &dyn ReadAt,
        links: &Links,
        cluster: u32,
    ) -> Result<u32, Doubt> {
        if !self.contiguous {
            return links
                .after(volume, cluster)?
                .ok_or_else(|| doubt(format!("a chain ends too soon, in cluster {cluster}")));
        }
        match cluster.checked_add(1) {
            Some(next) if links.exists(next) => Ok(next),
            _ => Err(doubt("a contiguous file leaves the volume")),
        }
    }

    /// Gives the first cluster and the length in clusters of each contiguous part, in order, and
    /// makes sure that a chain ends where its length does.
    pub(super) fn runs(
        &self,
        volume: &dyn ReadAt,
        geometry: &Geometry,
        links: &Links,
        mut visit: impl FnMut(u32, u64) -> Result<(), Doubt>,
    ) -> Result<(), Doubt> {
        let count = self.len.div_ceil(geometry.cluster);
        if count == 0 {
            return Ok(());
        }
        let exists = links.exists(self.first) && count <= geometry.clusters;
        if !exists || (self.contiguous && u64::from(self.first) + count > geometry.clusters + 2) {
            return Err(doubt(format!(
                "{count} clusters from cluster {} of {}",
                self.first, geometry.clusters
            )));
        }
        if self.contiguous {
            return visit(self.first, count);
        }
        let (mut start, mut last, mut len) = (self.first, self.first, 1);
        for _ in 1..count {
            let next = self.after(volume, links, last)?;
            if next == last + 1 {
                len += 1;
            } else {
                visit(start, len)?;
                (start, len) = (next, 1);
            }
            last = next;
        }
        visit(start, len)?;
        match links.after(volume, last)? {
            None => Ok(()),
            Some(_) => Err(doubt(format!(
                "the chain of cluster {} is longer than its {} bytes",
                self.first, self.len
            ))),
        }
    }
}

/// The entry set of a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Where the first entry of the set lies on the volume.
    pub(super) place: u64,
    pub(super) name: Vec<u16>,
    pub(super) is_directory: bool,
    pub(super) modified: Option<Timestamp>,
    pub(super) content: Stream,
    /// Bytes of the content that were written; those behind read as zeros.
    pub(super) valid: u64,
    /// What vendors keep beside the content.
    pub(super) others: Vec<Stream>,
}

/// What a directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Bitmap { second: bool, content: Stream },
    UpCase { checksum: u32, content: Stream },
    Label(String),
    File(File),
}

/// Where a directory's entries are read, one after the other.
pub(super) struct Directory<'a> {
    volume: &'a dyn ReadAt,
    geometry: &'a Geometry,
    links: &'a Links,
    content: Stream,
    cluster: u32,
    /// The next entry, in bytes from the start of `cluster`, and what is left of the directory.
    at: u64,
    left: u64,
    piece: Vec<u8>,
}

impl<'a> Directory<'a> {
    pub(super) fn new(
        volume: &'a dyn ReadAt,
        geometry: &'a Geometry,
        links: &'a Links,
        content: Stream,
    ) -> Result<Self, Doubt> {
        let len = content.len;
        if len > MAX_DIRECTORY || (len > 0 && !links.exists(content.first)) {
            return Err(doubt(format!(
                "a directory of {len} bytes in cluster {}",
                content.first
            )));
        }
        Ok(Self {
            volume,
            geometry,
            links,
            content,
            cluster: content.first,
            at: 0,
            left: len,
            piece: Vec::new(),
        })
    }

    /// The same from an entry at byte `place` of the volume, for the one set that begins there.
    pub(super) fn resume(
        volume: &'a dyn ReadAt,
        geometry: &'a Geometry,
        links: &'a Links,
        place: u64,
        contiguous: bool,
    ) -> Result<Self, Doubt> {
        let within = place
            .checked_sub(geometry.heap)
            .filter(|within| within / geometry.cluster < geometry.clusters)
            .ok_or_else(|| doubt(format!("no directory entry at byte {place}")))?;
        // Below the number of clusters, which fits.
        let cluster = (within / geometry.cluster) as u32 + 2;
        Ok(Self {
            volume,
            geometry,
            links,
            content: Stream {
                first: cluster,
                len: 0,
                contiguous,
            },
            cluster,
            at: within % geometry.cluster,
            left: 256 * ENTRY as u64,
            piece: Vec::new(),
        })
    }

    /// The next thing of the directory; `None` at its end.
    pub(super) fn next(&mut self) -> Result<Option<Item>, Doubt> {
        while let Some((entry, place)) = self.entry()? {
            match entry[0] {
                // Nothing is behind the first entry that was never used.
                0 => return Ok(None),
                kind if kind & IN_USE == 0 => {}
                0x81 => {
                    return Ok(Some(Item::Bitmap {
                        second: entry[1] & 1 != 0,
                        content: allocation(&entry, false),
                    }));
                }
                0x82 => {
                    return Ok(Some(Item::UpCase {
                        checksum: le32(&entry, 4),
                        content: allocation(&entry, false),
                    }));
                }
                0x83 => {
                    let units = utf16(&entry[2..2 + 2 * usize::from(entry[1].min(11))]);
                    return Ok(Some(Item::Label(String::from_utf16_lossy(&units))));
                }
                0x85 => return self.file(entry, place).map(|file| Some(Item::File(file))),
                // Benign: volume GUID, TexFAT's padding, and what vendors add; with secondary
                // entries that are benign then too.
                kind if kind & BENIGN != 0 => {}
                kind => return Err(doubt(format!("unknown directory entry {kind:#04x}"))),
            }
        }
        Ok(None)
    }

    fn file(&mut self, first: [u8; ENTRY], place: u64) -> Result<File, Doubt> {
        let damaged = |what: &str| doubt(format!("{what} in the entry set at byte {place}"));
        let count = first[1];
        if count < 2 {
            return Err(damaged("too few entries"));
        }
        let mut sum = first
            .iter()
            .enumerate()
            .filter(|(at, _)| !matches!(at, 2 | 3))
            .fold(0, |sum, (_, byte)| checksum16(sum, *byte));
        let (mut stream, mut names, mut others) = (None, Vec::new(), Vec::new());
        for _ in 0..count {
            let (entry, _) = self.entry()?.ok_or_else(|| damaged("no end"))?;
            sum = entry.iter().fold(sum, |sum, byte| checksum16(sum, *byte));
            match (entry[0], &stream) {
                (0xc0, None) => stream = Some(entry),
                (0xc1, Some(_)) => names.extend(utf16(&entry[2..])),
                (kind, Some(_)) if kind & (IN_USE | SECONDARY | BENIGN) == 0xe0 => {
                    // Bit 0 says whether it has clusters (§6.4.2.1).
                    if entry[1] & 1 != 0 && le32(&entry, 20) != 0 {
                        others.push(allocation(&entry, entry[1] & 2 != 0));
                    }
                }
                (kind, _) => return Err(damaged(&format!("an entry {kind:#04x}"))),
            }
        }
        let stream = stream.ok_or_else(|| damaged("no stream"))?;
        if sum != le16(&first, 2) {
            return Err(damaged(&format!(
                "checksum {sum:04x} (expected {:04x})",
                le16(&first, 2)
            )));
        }
        let len = usize::from(stream[3]);
        if len == 0 || len > names.len() {
            return Err(damaged("no whole name"));
        }
        names.truncate(len);
        let content = allocation(&stream, stream[1] & 2 != 0);
        let valid = le64(&stream, 8);
        if valid > content.len {
            return Err(damaged("more bytes written than there are"));
        }
        Ok(File {
            place,
            name: names,
            is_directory: le16(&first, 4) & 0x10 != 0,
            modified: modified(&first),
            content,
            valid,
            others,
        })
    }

    /// The next 32 bytes and where on the volume they are.
    fn entry(&mut self) -> Result<Option<([u8; ENTRY], u64)>, Doubt> {
        if self.left < ENTRY as u64 {
            return Ok(None);
        }
        if self.at == self.geometry.cluster {
            self.cluster = self.content.after(self.volume, self.links, self.cluster)?;
            self.at = 0;
        }
        let piece = PIECE.min(self.geometry.cluster);
        let place = self.geometry.place(self.cluster) + self.at;
        let within = (self.at % piece) as usize;
        if within == 0 || self.piece.is_empty() {
            self.piece.resize(piece as usize, 0);
            self.volume
                .read_at(place - within as u64, &mut self.piece)?;
        }
        let mut entry = [0; ENTRY];
        entry.copy_from_slice(&self.piece[within..within + ENTRY]);
        self.at += ENTRY as u64;
        self.left -= ENTRY as u64;
        Ok(Some((entry, place)))
    }
}

fn allocation(entry: &[u8; ENTRY], contiguous: bool) -> Stream {
    Stream {
        first: le32(entry, 20),
        len: le64(entry, 24),
        contiguous,
    }
}

fn utf16(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|unit| le16(unit, 0)).collect()
}

/// §6.3.3.
fn checksum16(sum: u16, byte: u8) -> u16 {
    sum.rotate_right(1).wrapping_add(u16::from(byte))
}

/// §7.4.8–10: local time with its offset from UTC in quarters of an hour; UTC where none is given.
fn modified(entry: &[u8; ENTRY]) -> Option<Timestamp> {
    let local = dos_time::timestamp(le16(entry, 14), le16(entry, 12), entry[21])?;
    let offset = entry[23];
    // Seven bits with a sign.
    let quarters = i64::from((offset << 1).cast_signed() >> 1);
    let offset = if offset & 0x80 == 0 {
        0
    } else {
        quarters * 900
    };
    Some(Timestamp {
        seconds: local.seconds - offset,
        ..local
    })
}
