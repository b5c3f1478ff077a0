//! A batch in memory: each piece of data has its place in one aligned buffer, and pieces that touch on the disk
//! touch there, so that they are read and written at once.
//!
//! Pure: no I/O.

use backup::ByteRange;

use super::work::{BATCH_BYTES, BATCH_CHUNKS, Batch, Piece};
use crate::device::AlignedBuffer;

/// Where a run of pieces begins in memory: direct access asks for it.
const ALIGN: usize = 4096;
/// Bytes of a buffer: all data of a batch, and what is lost where runs begin.
pub(super) const BUFFER: usize = BATCH_BYTES as usize + BATCH_CHUNKS * ALIGN;

/// A batch that is being worked on.
pub(super) struct Loaded {
    pub(super) batch: Batch,
    pub(super) buffer: AlignedBuffer,
    /// For each piece where its bytes are; none for zeros.
    places: Vec<Option<usize>>,
    /// For each piece whether it has to be written.
    pub(super) missing: Vec<bool>,
    /// For each piece whether its bytes are here without being fetched.
    pub(super) filled: Vec<bool>,
}

/// Pieces that touch, on the disk and in memory.
pub(super) struct Run {
    pub(super) range: ByteRange,
    pub(super) at: usize,
}

impl Loaded {
    /// Gives each piece its place. A buffer has room for any batch that keeps the limits.
    pub(super) fn new(batch: Batch, buffer: AlignedBuffer) -> Self {
        let (mut places, mut at) = (Vec::with_capacity(batch.pieces.len()), 0);
        let mut end = None;
        for piece in &batch.pieces {
            if piece.data_bytes() == 0 {
                places.push(None);
                end = None;
                continue;
            }
            if end != Some(piece.range.start()) {
                at = usize::next_multiple_of(at, ALIGN);
            }
            places.push(Some(at));
            at += piece.range.len() as usize;
            end = Some(piece.range.end());
        }
        let missing = vec![true; batch.pieces.len()];
        let filled = vec![false; batch.pieces.len()];
        Self {
            batch,
            buffer,
            places,
            missing,
            filled,
        }
    }

    /// The bytes of a piece of data; none of zeros.
    pub(super) fn bytes(&self, piece: usize) -> &[u8] {
        let place = self.place(piece);
        self.buffer.bytes().get(place).unwrap_or_default()
    }

    /// The same, to be filled.
    pub(super) fn bytes_mut(&mut self, piece: usize) -> &mut [u8] {
        let place = self.place(piece);
        self.buffer.bytes_mut().get_mut(place).unwrap_or_default()
    }

    /// Fills a piece with the bytes of another one, which has the same content.
    pub(super) fn copy(&mut self, from: usize, to: usize) {
        let (from, to) = (self.place(from), self.place(to));
        if from.len() == to.len() && from.end <= BUFFER && to.end <= BUFFER {
            self.buffer.bytes_mut().copy_within(from, to.start);
        }
    }

    fn place(&self, piece: usize) -> std::ops::Range<usize> {
        let at = self.places.get(piece).copied().flatten();
        let len = self.batch.pieces.get(piece).map_or(0, Piece::data_bytes);
        at.map_or(0..0, |at| at..at + len as usize)
    }

    /// The pieces of data as runs; with `missing_only` without those that are on the disk already.
    pub(super) fn runs(&self, missing_only: bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let pieces = self
            .batch
            .pieces
            .iter()
            .zip(&self.places)
            .zip(&self.missing);
        for ((piece, place), missing) in pieces {
            let Some(at) = *place else { continue };
            if missing_only && !missing {
                continue;
            }
            match runs.last_mut() {
                Some(run)
                    if run.range.end() == piece.range.start()
                        && run.at + run.range.len() as usize == at =>
                {
                    run.range = ByteRange::between(run.range.start(), piece.range.end());
                }
                _ => runs.push(Run {
                    range: piece.range,
                    at,
                }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use backup::Digest;
    use backup::chunk::Content;

    use super::*;

    #[test]
    fn pieces_that_touch_are_one_run_and_each_run_begins_aligned() {
        let piece = |start, end, content| Piece {
            disk: 0,
            range: ByteRange::between(start, end),
            content,
        };
        let data = Content::Data(Digest::of(b"x"));
        let pieces = vec![
            piece(512, 1536, data),
            piece(1536, 2048, data),
            piece(2048, 4096, Content::Zero),
            piece(4096, 4608, data),
            piece(9216, 9728, data),
        ];
        let batch = Batch { number: 0, pieces };
        let mut loaded = Loaded::new(batch, AlignedBuffer::new(BUFFER));
        let runs = |loaded: &Loaded, missing| -> Vec<_> {
            let runs = loaded.runs(missing).into_iter();
            runs.map(|run| (run.range.start(), run.range.end(), run.at))
                .collect()
        };
        let all = [(512, 2048, 0), (4096, 4608, 4096), (9216, 9728, 8192)];
        assert_eq!(runs(&loaded, false), all);
        assert!(loaded.bytes(2).is_empty() && loaded.bytes(9).is_empty());
        loaded.bytes_mut(1).fill(7);
        loaded.copy(1, 3);
        assert_eq!(loaded.bytes(3), [7; 512]);
        assert!(loaded.bytes(0).iter().all(|byte| *byte == 0));
        loaded.missing[0] = false;
        assert_eq!(runs(&loaded, true), [(1536, 2048, 1024), all[1], all[2]]);
    }

    #[test]
    fn the_largest_batch_fits_a_buffer() {
        let content = Content::Data(Digest::of(b"x"));
        let len = BATCH_BYTES / BATCH_CHUNKS as u64 - 1;
        let pieces = (0..BATCH_CHUNKS as u64).map(|number| Piece {
            disk: 0,
            range: ByteRange::between(number << 20, (number << 20) + len),
            content,
        });
        let batch = Batch {
            number: 0,
            pieces: pieces.collect(),
        };
        let loaded = Loaded::new(batch, AlignedBuffer::new(BUFFER));
        assert_eq!(loaded.bytes(BATCH_CHUNKS - 1).len() as u64, len);
    }
}
