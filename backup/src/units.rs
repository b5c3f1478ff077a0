//! Units of disks: sector sizes, sector numbers and byte ranges.
//!
//! Invariant: going from sectors to bytes takes a [`SectorSize`]; arithmetic that could leave
//! `u64` is checked. Byte offsets and lengths are plain `u64` only inside a [`ByteRange`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// A size or sector number that is no valid value of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A logical sector size that no disk layout here supports.
    #[error("sector size {found} bytes is not supported (expected 512 or 4096)")]
    SectorSize {
        /// The size in bytes that was found.
        found: u64,
    },
    /// A range whose end does not fit in 64 bits.
    #[error("range of {len} bytes at byte {start} ends past 2^64")]
    Range {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// The logical sector size of a disk in bytes: 512 or 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SectorSize(u16);

impl SectorSize {
    /// 512 bytes.
    pub const S512: Self = Self(512);
    /// 4096 bytes.
    pub const S4096: Self = Self(4096);

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }
}

impl TryFrom<u64> for SectorSize {
    type Error = UnitError;

    fn try_from(found: u64) -> Result<Self, UnitError> {
        match found {
            512 => Ok(Self::S512),
            4096 => Ok(Self::S4096),
            _ => Err(UnitError::SectorSize { found }),
        }
    }
}

impl From<SectorSize> for u64 {
    fn from(size: SectorSize) -> Self {
        size.bytes()
    }
}

/// A logical block address: the number of a sector, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lba(u64);

impl Lba {
    /// The sector with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number of the sector.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The byte offset of the sector's first byte, or `None` past 2^64.
    #[must_use]
    pub const fn byte(self, sector: SectorSize) -> Option<u64> {
        self.0.checked_mul(sector.bytes())
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LBA {}", self.0)
    }
}

/// A range of bytes, on a disk or in a volume: where it starts and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawRange")]
pub struct ByteRange {
    start: u64,
    len: u64,
}

#[derive(Deserialize)]
struct RawRange {
    start: u64,
    len: u64,
}

impl TryFrom<RawRange> for ByteRange {
    type Error = UnitError;

    fn try_from(raw: RawRange) -> Result<Self, UnitError> {
        Self::new(raw.start, raw.len)
    }
}

impl ByteRange {
    /// `len` bytes from byte `start`.
    ///
    /// # Errors
    /// [`UnitError::Range`] when the end does not fit in 64 bits.
    pub const fn new(start: u64, len: u64) -> Result<Self, UnitError> {
        match start.checked_add(len) {
            Some(_) => Ok(Self { start, len }),
            None => Err(UnitError::Range { start, len }),
        }
    }

    /// From byte `start` up to, and not with, byte `end`; empty when `end` is not after `start`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The byte after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether it has no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether every byte of `other` is in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end())
    }
}

/// Shows a number of bytes the way people read it: `1.5 GiB`, three significant digits.
#[derive(Debug, Clone, Copy)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if unit == 0 || value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        write!(f, "{value:.digits$} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn only_512_and_4096_are_sector_sizes() {
        assert_eq!(SectorSize::try_from(512), Ok(SectorSize::S512));
        assert_eq!(SectorSize::try_from(4096), Ok(SectorSize::S4096));
        for found in [0, 1, 511, 520, 4097, u64::MAX] {
            assert_eq!(
                SectorSize::try_from(found),
                Err(UnitError::SectorSize { found })
            );
        }
    }

    #[test]
    fn a_range_past_the_end_of_u64_is_refused_also_from_json() {
        assert!(ByteRange::new(u64::MAX, 1).is_err());
        let text = format!("{{\"start\":{},\"len\":1}}", u64::MAX);
        assert!(serde_json::from_str::<ByteRange>(&text).is_err());
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(HumanBytes(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn ranges_survive_json(start in any::<u64>(), len in any::<u64>()) {
            if let Ok(range) = ByteRange::new(start, len) {
                let back: ByteRange =
                    serde_json::from_str(&serde_json::to_string(&range).unwrap()).unwrap();
                prop_assert_eq!(back, range);
            }
        }

        #[test]
        fn overlap_is_symmetric_and_agrees_with_a_byte_by_byte_oracle(
            a in 0u64..40, al in 0u64..10, b in 0u64..40, bl in 0u64..10,
        ) {
            let (x, y) = (ByteRange::new(a, al).unwrap(), ByteRange::new(b, bl).unwrap());
            let common = (a..a + al).any(|byte| (b..b + bl).contains(&byte));
            if al > 0 && bl > 0 {
                prop_assert_eq!(x.overlaps(y), common);
            }
            prop_assert_eq!(x.overlaps(y), y.overlaps(x));
            prop_assert!(x.contains(x));
        }

        #[test]
        fn a_sector_number_turns_into_bytes_or_says_that_it_cannot(number in any::<u64>()) {
            for sector in [SectorSize::S512, SectorSize::S4096] {
                let wide = u128::from(number) * u128::from(sector.bytes());
                let expected = u64::try_from(wide).ok();
                prop_assert_eq!(Lba::new(number).byte(sector), expected);
            }
        }
    }
}
