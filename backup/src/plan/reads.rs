//! Reads: in which steps the saved ranges of a region are read.
//!
//! Where it is known before the bytes are, a region is cut into pieces ([`Cutting::pieces`]), and
//! neighbouring pieces are read together; else it is read in steps of [`SPAN`], and each step is cut by
//! what is in it.
//!
//! Invariant: reads are in order, none is longer than [`SPAN`] or has more than [`MAX_PIECES`] pieces, and
//! every saved byte is in exactly one piece of one of them.

use crate::chunk::{Chunk, Content, Cutting, cut_by_content};
use crate::{ByteRange, Digest};

/// The most bytes of one read.
pub const SPAN: u64 = 2 << 20;
/// Unused bytes up to this many are read along, which is faster than a second read.
const GAP: u64 = 128 << 10;
/// The most pieces of one read: one request asks which of them the server lacks.
pub const MAX_PIECES: usize = 1024;

/// One read and the pieces in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The bytes to read, counted from the region's start.
    pub span: ByteRange,
    /// The pieces in it, counted from the region's start; `None` when the bytes decide.
    pub pieces: Option<Vec<ByteRange>>,
}

/// The reads for the saved `ranges` of a region.
#[must_use]
pub fn reads<'a>(
    ranges: &'a [ByteRange],
    cutting: &'a Cutting,
) -> Box<dyn Iterator<Item = Read> + 'a> {
    let Some(pieces) = cutting.pieces(ranges) else {
        return Box::new(steps(ranges));
    };
    let mut pieces = pieces.peekable();
    Box::new(std::iter::from_fn(move || {
        let first = pieces.next()?;
        let (mut span, mut together) = (first, vec![first]);
        while together.len() < MAX_PIECES
            && let Some(next) = pieces.next_if(|next| {
                next.start() - span.end() <= GAP && next.end() - span.start() <= SPAN
            })
        {
            span = ByteRange::between(span.start(), next.end());
            together.push(next);
        }
        Some(Read {
            span,
            pieces: Some(together),
        })
    }))
}

/// Reads up to multiples of [`SPAN`] from the region's start.
fn steps(ranges: &[ByteRange]) -> impl Iterator<Item = Read> + '_ {
    ranges.iter().flat_map(|range| {
        let mut at = range.start();
        std::iter::from_fn(move || {
            let end = (at - at % SPAN).saturating_add(SPAN).min(range.end());
            let span = ByteRange::between(at, end);
            at = end;
            (!span.is_empty()).then_some(Read { span, pieces: None })
        })
    })
}

impl Read {
    /// The chunks of a read whose bytes are `bytes`, each with its own bytes.
    #[must_use]
    pub fn chunks<'a>(&self, bytes: &'a [u8]) -> Vec<(Chunk, &'a [u8])> {
        let cut = |range: ByteRange, bytes: &'a [u8]| {
            let content = if is_zero(bytes) {
                Content::Zero
            } else {
                Content::Data(Digest::of(bytes))
            };
            (Chunk { range, content }, bytes)
        };
        let start = self.span.start();
        if let Some(pieces) = &self.pieces {
            let inside = pieces.iter().map(|piece| {
                let from = (piece.start() - start) as usize;
                cut(*piece, &bytes[from..from + piece.len() as usize])
            });
            return inside.collect();
        }
        let mut from = 0;
        let cuts = cut_by_content(bytes).map(|len| {
            let range = ByteRange::between(start + from as u64, start + (from + len) as u64);
            let own = &bytes[from..from + len];
            from += len;
            cut(range, own)
        });
        cuts.collect()
    }
}

/// Whether these bytes are all zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen bytes at a time: the optimiser makes vector compares of it.
    let (blocks, rest) = bytes.as_chunks::<16>();
    blocks.iter().all(|block| u128::from_ne_bytes(*block) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn every_saved_byte_is_in_exactly_one_piece_of_one_read(
            gaps in proptest::collection::vec((0u64..400_000, 1u64..3_000_000), 0..12),
        ) {
            let mut end = 0;
            let ranges: Vec<_> = gaps
                .into_iter()
                .map(|(gap, len)| {
                    let range = ByteRange::between(end + gap, end + gap + len);
                    end = range.end();
                    range
                })
                .collect();
            let total: u64 = ranges.iter().map(|range| range.len()).sum();
            for cutting in [Cutting::Grid, Cutting::ContentDefined] {
                let (mut at, mut sum) = (0, 0);
                for read in reads(&ranges, &cutting) {
                    prop_assert!(!read.span.is_empty());
                    prop_assert!(read.span.len() <= SPAN && read.span.start() >= at);
                    at = read.span.end();
                    let pieces = read.pieces.unwrap_or_else(|| vec![read.span]);
                    prop_assert!(pieces.len() <= MAX_PIECES);
                    for piece in pieces {
                        prop_assert!(read.span.contains(piece));
                        prop_assert!(ranges.iter().any(|range| range.contains(piece)));
                        sum += piece.len();
                    }
                }
                prop_assert_eq!(sum, total);
            }
        }
    }
}
