//! The header of a GPT (UEFI 2.10 table 5-5): read, checked, sealed.

use super::{GptError, MAX_ENTRIES_LEN};
use crate::SectorSize;
use crate::little_endian::{le32, le64, put32};

const SIGNATURE: &[u8; 8] = b"EFI PART";
const MIN_HEADER_LEN: usize = 92;
pub(super) const PRIMARY_LBA: u64 = 1;
const ENTRY_LEN: u32 = 128;

/// Offsets in the header, UEFI 2.10 table 5-5.
pub(super) mod field {
    pub(in crate::gpt) const HEADER_LEN: usize = 12;
    pub(in crate::gpt) const HEADER_CRC: usize = 16;
    pub(in crate::gpt) const MY_LBA: usize = 24;
    pub(in crate::gpt) const ALTERNATE_LBA: usize = 32;
    pub(in crate::gpt) const FIRST_USABLE: usize = 40;
    pub(in crate::gpt) const LAST_USABLE: usize = 48;
    pub(in crate::gpt) const DISK_GUID: usize = 56;
    pub(in crate::gpt) const ENTRIES_LBA: usize = 72;
    pub(in crate::gpt) const ENTRY_COUNT: usize = 80;
    pub(in crate::gpt) const ENTRY_LEN: usize = 84;
    pub(in crate::gpt) const ENTRIES_CRC: usize = 88;
}

/// The checked numbers of a header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) alternate_lba: u64,
    pub(super) first_usable: u64,
    pub(super) last_usable: u64,
    pub(super) entries_lba: u64,
    pub(super) entry_count: u32,
    pub(super) entry_len: u32,
    pub(super) entries_crc: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8], lba: u64) -> Result<Self, GptError> {
        let refuse = |reason: String| Err(GptError::Copy(reason));
        if bytes.len() < 512 || &bytes[..8] != SIGNATURE {
            return refuse("no header".to_owned());
        }
        let len = le32(bytes, field::HEADER_LEN) as usize;
        if !(MIN_HEADER_LEN..=bytes.len()).contains(&len) {
            return refuse(format!("a header of {len} bytes"));
        }
        let (found, expected) = (header_crc(bytes, len), le32(bytes, field::HEADER_CRC));
        if found != expected {
            return refuse(format!("header CRC {found:08x} (expected {expected:08x})"));
        }
        let my_lba = le64(bytes, field::MY_LBA);
        if my_lba != lba {
            return refuse(format!("a header for LBA {my_lba} at LBA {lba}"));
        }
        let header = Self {
            alternate_lba: le64(bytes, field::ALTERNATE_LBA),
            first_usable: le64(bytes, field::FIRST_USABLE),
            last_usable: le64(bytes, field::LAST_USABLE),
            entries_lba: le64(bytes, field::ENTRIES_LBA),
            entry_count: le32(bytes, field::ENTRY_COUNT),
            entry_len: le32(bytes, field::ENTRY_LEN),
            entries_crc: le32(bytes, field::ENTRIES_CRC),
        };
        // UEFI 2.10 table 5-5: 128 × 2^n.
        if header.entry_len < ENTRY_LEN || !header.entry_len.is_power_of_two() {
            return refuse(format!("entries of {} bytes", header.entry_len));
        }
        if header.entry_count == 0 || header.entries_len() > MAX_ENTRIES_LEN {
            return refuse(format!(
                "{} entries of {} bytes (at most {MAX_ENTRIES_LEN} bytes in all are read)",
                header.entry_count, header.entry_len
            ));
        }
        Ok(header)
    }

    pub(super) fn entries_len(&self) -> u64 {
        u64::from(self.entry_count) * u64::from(self.entry_len)
    }

    pub(super) fn entries_sectors(&self, sector: SectorSize) -> u64 {
        self.entries_len().div_ceil(sector.bytes())
    }
}

/// CRC-32 of a header of `len` bytes, with its own field taken as zero.
fn header_crc(bytes: &[u8], len: usize) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..field::HEADER_CRC]);
    crc.update(&[0; 4]);
    crc.update(&bytes[field::HEADER_CRC + 4..len]);
    crc.finalize()
}

/// Puts the right CRC into a header.
pub(super) fn seal(header: &mut [u8]) {
    let len = le32(header, field::HEADER_LEN) as usize;
    let crc = header_crc(header, len);
    put32(header, field::HEADER_CRC, crc);
}

/// Compares the entries with their CRC in the header.
pub(super) fn check_entries_crc(header: &Header, entries: &[u8]) -> Result<(), GptError> {
    let found = crc32fast::hash(&entries[..header.entries_len() as usize]);
    if found == header.entries_crc {
        Ok(())
    } else {
        Err(GptError::Copy(format!(
            "CRC of the entries {found:08x} (expected {:08x})",
            header.entries_crc
        )))
    }
}
