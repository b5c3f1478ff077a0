//! One inode: its fields, its checksum, and what is kept in it besides.

use super::damaged;
use crate::filesystem::crc::crc32c;
use crate::filesystem::tree::{NodeKind, Timestamp, TreeError};
use crate::little_endian::{le16, le32};

/// Inode flags, `fs/ext4/ext4.h`.
pub(super) mod flag {
    pub(super) const COMPRESSED: u32 = 0x4;
    pub(super) const ENCRYPTED: u32 = 0x800;
    pub(in super::super) const EXTENTS: u32 = 0x8_0000;
    pub(in super::super) const INLINE_DATA: u32 = 0x1000_0000;
}

/// Where the block map, the extents or the short content begin, and how long that is.
const BLOCK_AT: usize = 40;
/// Bytes of the block map in the inode.
pub(super) const BLOCK_LEN: usize = 60;
const OLD_LEN: usize = 128;
/// Magic number of the extended attributes behind an inode.
pub(super) const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;

/// An inode whose checksum was verified.
pub(super) struct Inode {
    pub(super) number: u64,
    bytes: Vec<u8>,
    mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timestamp,
    pub(super) links: u32,
    pub(super) flags: u32,
    /// The seed of the checksums of its blocks.
    pub(super) seed: Option<u32>,
}

impl Inode {
    /// Takes the bytes of an inode, at least 128.
    pub(super) fn parse(
        number: u64,
        bytes: Vec<u8>,
        volume_seed: Option<u32>,
    ) -> Result<Self, TreeError> {
        if bytes.len() < OLD_LEN {
            return Err(damaged(format!("inode {number} has {} bytes", bytes.len())));
        }
        let extra = extra_len(&bytes);
        // A number that a 32-bit checksum is made of; inode numbers have no more.
        let seed = volume_seed.map(|seed| {
            let number = (number as u32).to_le_bytes();
            crc32c(seed, &[&number, &bytes[100..104]])
        });
        if let Some(seed) = seed {
            check(number, &bytes, seed, extra)?;
        }
        let (mode, links) = (le16(&bytes, 0), u32::from(le16(&bytes, 26)));
        if mode == 0 || (links == 0 && le32(&bytes, 20) != 0) {
            return Err(damaged(format!("inode {number} is named but not in use")));
        }
        let seconds = i64::from(le32(&bytes, 16) as i32);
        let modified = if extra >= 12 {
            let word = le32(&bytes, 136);
            let nanoseconds = word >> 2;
            Timestamp {
                seconds: seconds + (i64::from(word & 3) << 32),
                nanoseconds: if nanoseconds < 1_000_000_000 {
                    nanoseconds
                } else {
                    0
                },
            }
        } else {
            Timestamp {
                seconds,
                nanoseconds: 0,
            }
        };
        Ok(Self {
            number,
            mode,
            uid: u32::from(le16(&bytes, 2)) | u32::from(le16(&bytes, 120)) << 16,
            gid: u32::from(le16(&bytes, 24)) | u32::from(le16(&bytes, 122)) << 16,
            modified,
            links,
            flags: le32(&bytes, 32),
            seed,
            bytes,
        })
    }

    /// What it is; `None` for a type that does not exist.
    pub(super) fn kind(&self) -> Option<NodeKind> {
        Some(match self.mode >> 12 {
            0x1 => NodeKind::Fifo,
            0x2 => {
                let (major, minor) = self.device();
                NodeKind::CharacterDevice { major, minor }
            }
            0x4 => NodeKind::Directory,
            0x6 => {
                let (major, minor) = self.device();
                NodeKind::BlockDevice { major, minor }
            }
            0x8 => NodeKind::File,
            0xa => NodeKind::SymbolicLink,
            0xc => NodeKind::Socket,
            _ => return None,
        })
    }

    pub(super) const fn permissions(&self) -> u32 {
        self.mode as u32 & 0o7777
    }

    pub(super) const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Why its content cannot be read.
    pub(super) const fn sealed(&self) -> Option<&'static str> {
        if self.has(flag::ENCRYPTED) {
            Some("encrypted")
        } else if self.has(flag::COMPRESSED) {
            Some("compressed")
        } else {
            None
        }
    }

    /// Its length as the two halves say it.
    pub(super) fn whole_size(&self) -> u64 {
        self.short_size() | u64::from(le32(&self.bytes, 108)) << 32
    }

    /// The lower half of its length.
    pub(super) fn short_size(&self) -> u64 {
        u64::from(le32(&self.bytes, 4))
    }

    /// The block map, the head of the extents, or the first bytes of its content.
    pub(super) fn block(&self) -> &[u8] {
        &self.bytes[BLOCK_AT..BLOCK_AT + BLOCK_LEN]
    }

    /// `old_decode_dev` and `new_decode_dev` of the kernel.
    fn device(&self) -> (u32, u32) {
        let (old, new) = (le32(self.block(), 0), le32(self.block(), 4));
        if old != 0 {
            return ((old >> 8) & 0xff, old & 0xff);
        }
        (
            (new & 0xf_ff00) >> 8,
            (new & 0xff) | ((new >> 12) & 0xf_ff00),
        )
    }

    /// The list of attributes behind the inode, without its magic number.
    pub(super) fn attribute_area(&self) -> Option<&[u8]> {
        let area = self.bytes.get(OLD_LEN + extra_len(&self.bytes)..)?;
        let (magic, area) = area.split_first_chunk::<4>()?;
        (u32::from_le_bytes(*magic) == ATTRIBUTES_MAGIC).then_some(area)
    }

    /// The block with more of them, or 0; its number has 48 bits on a volume whose numbers are `wide`.
    pub(super) fn attribute_block(&self, wide: bool) -> u64 {
        let high = if wide {
            u64::from(le16(&self.bytes, 118))
        } else {
            0
        };
        u64::from(le32(&self.bytes, 104)) | high << 32
    }

    /// The rest of a content that is kept in the inode: the attribute `system.data`.
    pub(super) fn inline_rest(&self) -> Result<&[u8], TreeError> {
        let broken = || {
            damaged(format!(
                "the attributes of inode {} are no list",
                self.number
            ))
        };
        let Some(area) = self.attribute_area() else {
            return Ok(&[]);
        };
        let mut at = 0;
        // Each round moves on by at least 16 bytes.
        while let Some(entry) = area.get(at..at + 16) {
            if le32(entry, 0) == 0 {
                break;
            }
            let (name_len, index) = (usize::from(entry[0]), entry[1]);
            let name = area.get(at + 16..at + 16 + name_len).ok_or_else(broken)?;
            if index == 7 && name == b"data" {
                let from = usize::from(le16(entry, 2));
                let len = usize::try_from(le32(entry, 8)).map_err(|_| broken())?;
                let end = from.checked_add(len).ok_or_else(broken)?;
                return area.get(from..end).ok_or_else(broken);
            }
            at += 16 + name_len.next_multiple_of(4);
        }
        Ok(&[])
    }
}

/// Bytes beyond the first 128 that have a meaning (`i_extra_isize`).
fn extra_len(bytes: &[u8]) -> usize {
    if bytes.len() < OLD_LEN + 4 {
        return 0;
    }
    let extra = usize::from(le16(bytes, 128));
    if extra >= 4 && OLD_LEN + extra <= bytes.len() {
        extra
    } else {
        0
    }
}

/// The checksum over the whole inode with its own two fields as zeros.
fn check(number: u64, bytes: &[u8], seed: u32, extra: usize) -> Result<(), TreeError> {
    let mut plain = bytes.to_vec();
    plain[124..126].fill(0);
    let wide = extra >= 4;
    let mut expected = u32::from(le16(bytes, 124));
    if wide {
        plain[130..132].fill(0);
        expected |= u32::from(le16(bytes, 130)) << 16;
    }
    let mut found = crc32c(seed, &[&plain]);
    if !wide {
        found &= 0xffff;
    }
    if found != expected {
        return Err(damaged(format!(
            "inode {number} has the checksum {found:08x} (expected {expected:08x})"
        )));
    }
    Ok(())
}
