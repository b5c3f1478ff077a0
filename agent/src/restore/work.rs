//! What a restore has to write, as a list in disk order, cut into batches.
//!
//! Pure: no I/O. Invariant: pieces are in order of disk and offset and never overlap; each stays
//! within the destination of its region, which the plan keeps within the disk.

use std::collections::HashMap;
use std::ops::Range;

use backup::chunk::{ChunkList, Content};
use backup::manifest::Manifest;
use backup::plan::{DiskPlan, RestorePlan};
use backup::{ByteRange, Digest};

use super::{shrink, volumes};
use crate::job::error::Fault;

/// The most chunks that one request asks for.
const BATCH_CHUNKS: usize = 64;
/// The most plain bytes of one request.
pub(crate) const BATCH_BYTES: u64 = 4 << 20;
/// The most pieces of a batch, so that long runs of zeros stay small too.
const BATCH_PIECES: usize = 256;

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

/// The pieces of all disks, from the chunk lists by their digests.
///
/// # Errors
/// [`Fault::Internal`] when plan and manifest do not fit together.
pub(crate) fn pieces(
    plan: &RestorePlan,
    manifest: &Manifest,
    lists: &HashMap<Digest, ChunkList>,
) -> Result<Vec<Piece>, Fault> {
    let misfit = |what: &str| Fault::Internal(format!("plan and manifest do not fit: {what}"));
    let mut pieces = Vec::new();
    for (disk, disk_plan) in plan.disks.iter().enumerate() {
        let image = manifest.disks.get(disk_plan.source as usize);
        let image = image.ok_or_else(|| misfit("no such source disk"))?;
        for copy in &disk_plan.copies {
            let region = image.regions.get(copy.region as usize);
            let region = region.ok_or_else(|| misfit("no such region"))?;
            let list = lists.get(&region.content.digest);
            let list = list.ok_or_else(|| misfit("no chunk list"))?;
            for chunk in list.chunks() {
                if shrink::is_in_tail(disk_plan, copy.destination, chunk.range) {
                    continue;
                }
                let range = copy
                    .destination
                    .start()
                    .checked_add(chunk.range.start())
                    .and_then(|start| ByteRange::new(start, chunk.range.len()).ok())
                    .filter(|range| copy.destination.contains(*range))
                    .ok_or_else(|| misfit("a chunk leaves its destination"))?;
                pieces.push(Piece {
                    disk,
                    range,
                    content: chunk.content,
                });
            }
        }
    }
    volumes::add_pieces(&mut pieces, plan, manifest, lists)?;
    pieces.sort_unstable_by_key(|piece| (piece.disk, piece.range.start()));
    for piece in &pieces {
        if piece.range.end() > plan.disks[piece.disk].target.size {
            return Err(misfit("a chunk leaves the disk"));
        }
    }
    let overlap = pieces
        .windows(2)
        .any(|pair| pair[0].disk == pair[1].disk && pair[0].range.end() > pair[1].range.start());
    if overlap {
        return Err(misfit("two chunks have the same place"));
    }
    Ok(pieces)
}

/// Cuts a list of pieces into batches that one request can carry.
pub(crate) fn batches(pieces: &[Piece]) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut chunks, mut bytes) = (0, 0, 0);
    for (index, piece) in pieces.iter().enumerate() {
        let data = piece.data_bytes();
        let full = chunks + usize::from(data > 0) > BATCH_CHUNKS
            || bytes + data > BATCH_BYTES
            || index - start >= BATCH_PIECES;
        if full && index > start {
            batches.push(start..index);
            (start, chunks, bytes) = (index, 0, 0);
        }
        chunks += usize::from(data > 0);
        bytes += data;
    }
    if start < pieces.len() {
        batches.push(start..pieces.len());
    }
    batches
}

/// The parts of a disk that are written after the rest is flushed, in order and merged: what the
/// plan says, the sector of the marker, and the first sector when writing it is the commit.
pub(crate) fn last_ranges(
    plan: &DiskPlan,
    marker: Option<ByteRange>,
    first: Option<ByteRange>,
) -> Vec<ByteRange> {
    let mut ranges: Vec<_> = plan
        .copies
        .iter()
        .flat_map(|copy| copy.last.iter().copied())
        .chain(plan.areas.iter().flat_map(|area| area.last.iter().copied()))
        .chain(marker)
        .chain(first)
        .filter(|range| !range.is_empty())
        .collect();
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

/// `range` without the bytes of `hole`.
pub(crate) fn without(range: ByteRange, hole: Option<ByteRange>) -> Vec<ByteRange> {
    let holes: Vec<_> = hole.into_iter().collect();
    split(range, &holes)
        .into_iter()
        .filter(|(_, held)| !held)
        .map(|(part, _)| part)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn batches_cover_every_piece_once_and_keep_the_limits(
            lens in proptest::collection::vec((1u64..=256 * 1024, any::<bool>()), 0..700),
        ) {
            let mut at = 0;
            let pieces: Vec<_> = lens
                .into_iter()
                .map(|(len, data)| {
                    let range = ByteRange::between(at, at + len);
                    at += len;
                    let content = if data { Content::Data(Digest::of(&[])) } else { Content::Zero };
                    Piece { disk: 0, range, content }
                })
                .collect();
            let mut next = 0;
            for batch in batches(&pieces) {
                prop_assert_eq!(batch.start, next);
                prop_assert!(!batch.is_empty() && batch.len() <= BATCH_PIECES);
                let data: Vec<_> =
                    pieces[batch.clone()].iter().map(Piece::data_bytes).filter(|len| *len > 0).collect();
                prop_assert!(data.len() <= BATCH_CHUNKS && data.iter().sum::<u64>() <= BATCH_BYTES);
                next = batch.end;
            }
            prop_assert_eq!(next, pieces.len());
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
