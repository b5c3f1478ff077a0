//! Cutting: where chunks begin and end.
//!
//! Where a byte is saved is decided by the used ranges of a volume; this only decides how what is saved
//! is divided, so that equal content gives equal chunks wherever it lies:
//!
//! - where files lie is known ([`Cutting::Files`]): along their extents, at multiples of 256 KiB of the
//!   *file*; what no extent covers, which is the file system's own, on a grid of 64 KiB;
//! - nothing is understood ([`Cutting::ContentDefined`]): where the bytes themselves say so (`FastCDC`);
//! - encrypted, or too small to be worth more ([`Cutting::Grid`]): on a grid of 64 KiB.
//!
//! Invariant: pieces are in order, cover each byte of the ranges once and no other, and none is empty or
//! longer than [`MAX_CHUNK_LEN`], whatever the extents say.

use fastcdc::v2020::FastCDC;
use serde::{Deserialize, Serialize};

use super::MAX_CHUNK_LEN;
use crate::ByteRange;
use crate::filesystem::FileExtent;

/// What no file extent covers is cut at multiples of this, counted from the region's start.
pub const GRID: u64 = 64 * 1024;

/// Content-defined cuts: least and usual distance in bytes. The most is [`MAX_CHUNK_LEN`].
const CONTENT_MIN: u32 = 16 * 1024;
const CONTENT_AVERAGE: u32 = 32 * 1024;
/// Content-defined cuts are moved to the next multiple of this from the start of what is cut: whole
/// sectors are written faster, and content moves by whole sectors.
const CONTENT_ALIGN: usize = 512;

/// How the saved bytes of a region are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "extents", rename_all = "kebab-case")]
pub enum Cutting {
    /// Along these pieces of files, in order of the region.
    Files(Vec<FileExtent>),
    /// By what the bytes are.
    ContentDefined,
    /// On a grid.
    Grid,
}

impl Cutting {
    /// The pieces of `ranges`, which are in order and do not overlap; `None` when the bytes have to be
    /// seen, see [`cut_by_content`].
    #[must_use]
    pub fn pieces<'a>(&'a self, ranges: &'a [ByteRange]) -> Option<Pieces<'a>> {
        let extents = match self {
            Self::Files(extents) => extents,
            Self::Grid => &[][..],
            Self::ContentDefined => return None,
        };
        Some(Pieces {
            ranges,
            extents,
            at: 0,
        })
    }
}

/// The pieces of a region's ranges, by [`Cutting::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    /// What is still to be cut; of the first one what is before `at` is done.
    ranges: &'a [ByteRange],
    /// Extents that do not end before `at`.
    extents: &'a [FileExtent],
    at: u64,
}

impl Iterator for Pieces<'_> {
    type Item = ByteRange;

    fn next(&mut self) -> Option<ByteRange> {
        let range = loop {
            let range = *self.ranges.first()?;
            self.at = self.at.max(range.start());
            if self.at < range.end() {
                break range;
            }
            self.ranges = &self.ranges[1..];
        };
        while let Some(extent) = self.extents.first()
            && extent.range.end() <= self.at
        {
            self.extents = &self.extents[1..];
        }
        let to = match self.extents.first() {
            Some(extent) if extent.range.start() <= self.at => {
                // Modulo a power of two, so that an impossible offset that wraps does no harm.
                let in_file = extent
                    .file_offset
                    .wrapping_add(self.at - extent.range.start());
                next_multiple(self.at, in_file, u64::from(MAX_CHUNK_LEN)).min(extent.range.end())
            }
            Some(extent) => next_multiple(self.at, self.at, GRID).min(extent.range.start()),
            None => next_multiple(self.at, self.at, GRID),
        };
        let piece = ByteRange::between(self.at, to.min(range.end()));
        self.at = piece.end();
        Some(piece)
    }
}

/// Where in the region a count that is `counted` at byte `at` comes to the next multiple of `step`.
const fn next_multiple(at: u64, counted: u64, step: u64) -> u64 {
    at.saturating_add(step - counted % step)
}

/// Cuts bytes by their content: the lengths of the pieces, in order. The same bytes give the same cuts,
/// and after a difference the cuts find their way back.
pub fn cut_by_content(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let cutter = FastCDC::new(bytes, CONTENT_MIN, CONTENT_AVERAGE, MAX_CHUNK_LEN);
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = bytes.len() - at;
        if left == 0 {
            return None;
        }
        let (_, end) = cutter.cut(at, left);
        // At least one byte, at most what is left and what a chunk may be.
        let end = end.max(at + 1).next_multiple_of(CONTENT_ALIGN);
        let len = (end - at).min(left).min(MAX_CHUNK_LEN as usize);
        at += len;
        Some(len)
    })
}

const _: () = assert!((MAX_CHUNK_LEN as usize).is_multiple_of(CONTENT_ALIGN));

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const LIMIT: u64 = MAX_CHUNK_LEN as u64;

    fn ranges(count: usize) -> impl Strategy<Value = Vec<ByteRange>> {
        proptest::collection::vec((0u64..700_000, 1u64..900_000), 0..count).prop_map(|gaps| {
            let mut end = 0;
            gaps.into_iter()
                .map(|(gap, len)| {
                    let range = ByteRange::new(end + gap, len).unwrap();
                    end = range.end();
                    range
                })
                .collect()
        })
    }

    /// Text that does not repeat.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    proptest! {
        #[test]
        fn each_byte_is_in_one_piece_within_the_limit(
            ranges in ranges(12),
            places in ranges(12),
            offsets in proptest::collection::vec(any::<u64>(), 12),
        ) {
            let extents: Vec<_> = places
                .iter()
                .zip(offsets)
                .map(|(range, file_offset)| FileExtent { range: *range, file_offset })
                .collect();
            for cutting in [Cutting::Grid, Cutting::Files(extents.clone())] {
                let pieces: Vec<_> = cutting.pieces(&ranges).unwrap().collect();
                let total: u64 = ranges.iter().map(|range| range.len()).sum();
                prop_assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<u64>(), total);
                for piece in &pieces {
                    prop_assert!(!piece.is_empty() && piece.len() <= LIMIT);
                    prop_assert!(ranges.iter().any(|range| range.contains(*piece)));
                }
                for pair in pieces.windows(2) {
                    prop_assert!(pair[0].end() <= pair[1].start());
                }
                if cutting != Cutting::Grid {
                    for (piece, place) in pieces.iter().flat_map(|piece| {
                        places.iter().map(move |place| (piece, place))
                    }) {
                        prop_assert!(!piece.overlaps(*place) || place.contains(*piece));
                    }
                }
            }
        }

        #[test]
        fn a_file_gives_the_same_chunks_wherever_it_lies(
            pieces in proptest::collection::vec(1u64..900_000, 1..5),
            (here, there) in (0u64..10_000_000, 0u64..10_000_000),
        ) {
            // The same file in the same pieces, one after the other at two places of two volumes.
            let cuts = |from: u64| {
                let (mut at, mut file_offset) = (from, 0);
                let extents: Vec<_> = pieces
                    .iter()
                    .map(|len| {
                        let range = ByteRange::between(at, at + len);
                        let extent = FileExtent { range, file_offset };
                        at += len + 5000;
                        file_offset += len;
                        extent
                    })
                    .collect();
                let whole = [ByteRange::between(from.saturating_sub(9000), at + 9000)];
                let cutting = Cutting::Files(extents.clone());
                let of_file: Vec<_> = cutting
                    .pieces(&whole)
                    .unwrap()
                    .filter(|piece| extents.iter().any(|extent| extent.range.contains(*piece)))
                    .map(|piece| (piece.start() - from, piece.len()))
                    .collect();
                of_file
            };
            prop_assert_eq!(cuts(here), cuts(there));
        }

        #[test]
        fn content_is_cut_within_the_limits(seed in any::<u64>(), len in 0usize..1_500_000, zeros in 0usize..400_000) {
            let mut bytes = noise(seed, len);
            bytes.resize(len + zeros, 0);
            let cuts: Vec<_> = cut_by_content(&bytes).collect();
            prop_assert_eq!(cuts.iter().sum::<usize>(), bytes.len());
            for (index, cut) in cuts.iter().enumerate() {
                prop_assert!((1..=MAX_CHUNK_LEN as usize).contains(cut));
                let is_last = index + 1 == cuts.len();
                prop_assert!(is_last || (*cut >= CONTENT_MIN as usize && cut.is_multiple_of(CONTENT_ALIGN)));
            }
        }
    }

    #[test]
    fn a_file_in_one_piece_is_cut_at_its_own_multiples() {
        let extent = FileExtent {
            range: ByteRange::between(70_000, 70_000 + LIMIT + 10),
            file_offset: LIMIT - 4096,
        };
        let cutting = Cutting::Files(vec![extent]);
        let whole = [ByteRange::between(0, 500_000)];
        let ends: Vec<_> = cutting
            .pieces(&whole)
            .unwrap()
            .map(|piece| piece.end())
            .take(5)
            .collect();
        assert_eq!(ends, [65_536, 70_000, 74_096, 70_010 + LIMIT, 393_216]);
    }

    #[test]
    fn content_that_was_moved_finds_its_cuts_again() {
        let bytes = noise(3, 2 << 20);
        let moved = [&noise(4, 512 * 77)[..], &bytes].concat();
        let ends = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let mut at = 0;
            cut_by_content(bytes)
                .map(|len| {
                    at += len;
                    bytes[at - len..at].to_vec()
                })
                .collect()
        };
        let (before, after) = (ends(&bytes), ends(&moved));
        let again = before
            .iter()
            .filter(|piece| after.contains(piece))
            .map(Vec::len)
            .sum::<usize>();
        assert!(again * 100 > bytes.len() * 85, "{again} bytes again");
    }
}
