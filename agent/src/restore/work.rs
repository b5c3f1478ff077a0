//! What a restore has to write, cut into batches, and what of it is written last.
//!
//! Not here: where the pieces come from ([`super::sources`]).

use backup::ByteRange;
use backup::chunk::Content;
use backup::plan::DiskPlan;

use super::sources::Pieces;
use crate::job::error::Fault;

/// The most chunks that one request asks for.
pub(super) const BATCH_CHUNKS: usize = 64;
/// The most plain bytes of one request.
pub(super) const BATCH_BYTES: u64 = 3 << 19;
/// The most bytes of its answer, as a rule: data that does not compress.
pub(super) const ANSWER: usize = BATCH_BYTES as usize + BATCH_CHUNKS * 128;
/// The most pieces of a batch.
const BATCH_PIECES: usize = 256;
/// The most zeros of a batch, if it has more than one piece: reading them takes time.
const BATCH_ZEROS: u64 = 64 << 20;

/// Something to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the disk in the plan.
    pub(crate) disk: usize,
    /// Where on the target.
    pub(crate) range: ByteRange,
    /// What.
    pub(crate) content: Content,
}

impl Piece {
    /// Bytes of data in it: none for zeros.
    pub(crate) const fn data_bytes(&self) -> u64 {
        match self.content {
            Content::Data(_) => self.range.len(),
            Content::Zero => 0,
        }
    }
}

/// Pieces of one disk that one request can carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Counted from 0 in the order of the disks.
    pub(crate) number: usize,
    /// At least one, in order.
    pub(crate) pieces: Vec<Piece>,
}

impl Batch {
    /// Index of its disk in the plan.
    pub(crate) fn disk(&self) -> usize {
        self.pieces.first().map_or(0, |piece| piece.disk)
    }
}

/// Cuts pieces, as they come, into batches.
pub(super) struct Batches<'a> {
    pieces: Pieces<'a>,
    /// The first piece of the next batch.
    ahead: Option<Piece>,
    number: usize,
}

impl<'a> Batches<'a> {
    pub(super) const fn new(pieces: Pieces<'a>) -> Self {
        Self {
            pieces,
            ahead: None,
            number: 0,
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// See [`Pieces::next`].
    pub(super) fn next(&mut self) -> Result<Option<Batch>, Fault> {
        let mut batch = Filling::default();
        loop {
            let piece = match self.ahead.take() {
                Some(piece) => piece,
                None => match self.pieces.next()? {
                    Some(piece) => piece,
                    None => break,
                },
            };
            if let Err(piece) = batch.take(piece) {
                self.ahead = Some(piece);
                break;
            }
        }
        let (number, pieces) = (self.number, batch.pieces);
        if pieces.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Batch { number, pieces }))
    }

    /// How many there were so far.
    pub(super) const fn count(&self) -> usize {
        self.number
    }
}

/// Pieces that are there already, as ranges of batches.
pub(super) fn cut(pieces: &[Piece]) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut filling) = (0, Filling::default());
    for (index, piece) in pieces.iter().enumerate() {
        if let Err(piece) = filling.take(*piece) {
            batches.push(start..index);
            (start, filling) = (index, Filling::default());
            // An empty batch takes any piece.
            let _ = filling.take(piece);
        }
    }
    if start < pieces.len() {
        batches.push(start..pieces.len());
    }
    batches
}

/// A batch that has room.
#[derive(Debug, Default)]
struct Filling {
    pieces: Vec<Piece>,
    chunks: usize,
    data: u64,
    zeros: u64,
}

impl Filling {
    /// Takes a piece, or gives it back when it is for the next batch.
    fn take(&mut self, piece: Piece) -> Result<(), Piece> {
        let data = piece.data_bytes();
        let zeros = piece.range.len() - data;
        let chunks = self.chunks + usize::from(data > 0);
        let is_full = self.pieces.len() >= BATCH_PIECES
            || chunks > BATCH_CHUNKS
            || self.data + data > BATCH_BYTES
            || self.zeros + zeros > BATCH_ZEROS;
        let begins = self.pieces.first();
        if begins.is_some_and(|first| is_full || first.disk != piece.disk) {
            return Err(piece);
        }
        self.chunks = chunks;
        self.data += data;
        self.zeros += zeros;
        self.pieces.push(piece);
        Ok(())
    }
}

/// The parts of a disk that are written after the rest is flushed, in order and merged: what the
/// plan says, the sector of the marker, and the first sector when writing it is the commit.
pub(crate) fn last_ranges(
    plan: &DiskPlan,
    marker: Option<ByteRange>,
    first: Option<ByteRange>,
) -> Vec<ByteRange> {
    let of_copies = plan.copies.iter().flat_map(|copy| &copy.last);
    let of_areas = plan.areas.iter().flat_map(|area| &area.last);
    merged(
        of_copies
            .chain(of_areas)
            .copied()
            .chain(marker)
            .chain(first),
    )
}

/// Ranges in order, those that touch as one, without empty ones.
pub(super) fn merged(ranges: impl Iterator<Item = ByteRange>) -> Vec<ByteRange> {
    let mut ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
    ranges.sort();
    let mut merged: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(before) if before.end() >= range.start() => {
                *before = ByteRange::between(before.start(), before.end().max(range.end()));
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// `range` cut along the sorted `last`: each part, and whether it is one of the last.
pub(crate) fn split(range: ByteRange, last: &[ByteRange]) -> Vec<(ByteRange, bool)> {
    let mut parts = Vec::with_capacity(1);
    let mut at = range.start();
    let first = last.partition_point(|held| held.end() <= range.start());
    for held in &last[first..] {
        if held.start() >= range.end() {
            break;
        }
        if held.start() > at {
            parts.push((ByteRange::between(at, held.start()), false));
        }
        let end = held.end().min(range.end());
        parts.push((ByteRange::between(held.start().max(at), end), true));
        at = end;
    }
    if at < range.end() {
        parts.push((ByteRange::between(at, range.end()), false));
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use backup::Digest;

    use super::*;

    proptest! {
        #[test]
        fn a_batch_takes_pieces_while_it_keeps_the_limits(
            lens in proptest::collection::vec((1u64..=256 * 1024, any::<bool>()), 1..700),
        ) {
            let mut at = 0;
            let mut filling = Filling::default();
            for (len, data) in lens {
                let range = ByteRange::between(at, at + len);
                at += len;
                let content = if data { Content::Data(Digest::of(&[])) } else { Content::Zero };
                let piece = Piece { disk: usize::from(at > 40 << 20), range, content };
                if let Err(back) = filling.take(piece) {
                    prop_assert_eq!(back, piece);
                    filling = Filling::default();
                    prop_assert_eq!(filling.take(piece), Ok(()), "an empty batch takes any piece");
                }
                let pieces = &filling.pieces;
                let data: Vec<_> = pieces.iter().map(Piece::data_bytes).filter(|len| *len > 0).collect();
                prop_assert!(pieces.len() <= BATCH_PIECES && pieces.iter().all(|one| one.disk == piece.disk));
                prop_assert!(data.len() <= BATCH_CHUNKS && data.iter().sum::<u64>() <= BATCH_BYTES);
            }
        }

        #[test]
        fn splitting_agrees_with_a_byte_by_byte_oracle(
            start in 0u64..60, len in 1u64..40,
            held in proptest::collection::vec((0u64..20, 1u64..12), 0..5),
        ) {
            let mut end = 0;
            let last: Vec<_> = held
                .into_iter()
                .map(|(gap, len)| {
                    let range = ByteRange::between(end + gap, end + gap + len);
                    end = range.end();
                    range
                })
                .collect();
            let range = ByteRange::between(start, start + len);
            let mut at = start;
            for (part, is_last) in split(range, &last) {
                prop_assert_eq!(part.start(), at);
                for byte in part.start()..part.end() {
                    let expected = last.iter().any(|held| held.start() <= byte && byte < held.end());
                    prop_assert_eq!(is_last, expected);
                }
                at = part.end();
            }
            prop_assert_eq!(at, range.end());
        }
    }
}
