//! A disk made of a fuzzer's bytes, for the targets that read disks.
//!
//! ```text
//! size:u8 pieces: (sector:u24 len:u16 bytes)*        little endian, sector of 512 bytes
//! ```
//!
//! All that no piece covers is zero, so that a few bytes can describe a large disk.

use backup::ByteRange;
use backup::filesystem::{ReadAt, ReadError};
use backup::plan::TableWrite;

/// Sizes in bytes: from less than a partition table to more than 32 bits of sectors.
const SIZES: [u64; 8] = [
    1024,
    64 << 10,
    1 << 20,
    4 << 20,
    (4 << 20) + 1536,
    64 << 20,
    40 << 30,
    5 << 40,
];

/// The disk.
#[derive(Debug, Clone)]
pub struct SparseDisk {
    size: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl SparseDisk {
    /// A disk of zeros.
    #[must_use]
    pub fn empty(size: u64) -> Self {
        Self {
            size,
            pieces: Vec::new(),
        }
    }

    /// The disk that the bytes describe.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let Some((&size, mut rest)) = bytes.split_first() else {
            return Self::empty(SIZES[0]);
        };
        let mut disk = Self::empty(SIZES[usize::from(size) % SIZES.len()]);
        while let [a, b, c, low, high, body @ ..] = rest {
            let sector = u64::from(u32::from_le_bytes([*a, *b, *c, 0]));
            let len = usize::from(u16::from_le_bytes([*low, *high])).min(body.len());
            disk.write(sector * 512 % disk.size, &body[..len]);
            rest = &body[len..];
        }
        disk
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Puts bytes on it, as far as it goes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.pieces
            .push((offset, bytes[..bytes.len().min(room)].to_vec()));
    }

    /// Puts parts of a partition table on it, all of which have to fit.
    pub fn commit(&mut self, writes: &[TableWrite]) {
        for write in writes {
            let end = write.offset + write.bytes.0.len() as u64;
            assert!(end <= self.size, "{} ends past the disk", write.what);
            self.write(write.offset, &write.bytes.0);
        }
    }

    /// Makes the checksums of both GPT headers right, so that what is behind them is reached.
    pub fn seal_gpt(&mut self, sector: u64) {
        for lba in [1, (self.size / sector).saturating_sub(1)] {
            let mut header = vec![0; 92];
            if self.read_at(lba * sector, &mut header).is_err() || header[..8] != *b"EFI PART" {
                continue;
            }
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[24..32].copy_from_slice(&lba.to_le_bytes());
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let entries_lba = u64::from_le_bytes(header[72..80].try_into().unwrap());
            let len = u64::from(word(80)) * u64::from(word(84));
            let mut entries = vec![0; usize::try_from(len.min(1 << 20)).unwrap()];
            let place = entries_lba.saturating_mul(sector);
            if self.read_at(place, &mut entries).is_err() {
                continue;
            }
            header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            header[16..20].fill(0);
            let crc = crc32fast::hash(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            self.write(lba * sector, &header);
        }
    }
}

impl ReadAt for SparseDisk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(ReadError {
                offset,
                len,
                reason: "past the end of the disk".to_owned(),
            });
        }
        buffer.fill(0);
        for (start, bytes) in &self.pieces {
            let from = offset.max(*start);
            let to = (offset + len).min(start + bytes.len() as u64);
            if from < to {
                buffer[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }
}

/// Fails unless the ranges are in order, apart, not empty and within `size` bytes.
pub fn assert_in_order(ranges: &[ByteRange], size: u64) {
    let mut end = 0;
    for range in ranges {
        assert!(!range.is_empty(), "an empty range in {ranges:?}");
        assert!(range.start() >= end, "{ranges:?} are not in order");
        end = range.end();
    }
    assert!(end <= size, "{ranges:?} go past {size}");
}
