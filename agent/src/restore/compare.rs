//! Comparing: which pieces a target holds already, so that only the others are fetched.
//!
//! This is how a restore goes on after a power cut, and how a disk is set back to an earlier state: no record of
//! what was done is trusted, only the digest of what is there. Memory: the batch's buffer, and [`STEP`] bytes for zeros.

use backup::chunk::Content;
use backup::plan::reads::is_zero;
use backup::{ByteRange, Digest};

use super::batch::{Loaded, Run};
use super::work::Piece;
use super::write::Target;
use crate::device::{AlignedBuffer, io_error};
use crate::job::error::Fault;

/// The most zeros that are read at a time.
pub(super) const STEP: usize = 1 << 20;

/// Reads what is at the places of a batch, and says of each piece whether it is missing. A piece with parts that
/// are written last always is: they were made zero.
///
/// # Errors
/// A disk that cannot be read.
pub(super) fn compare(
    target: &Target,
    loaded: &mut Loaded,
    scratch: &mut AlignedBuffer,
) -> Result<(), Fault> {
    let device = target.device.as_ref();
    for Run { range, at } in loaded.runs(false) {
        let bytes = &mut loaded.buffer.bytes_mut()[at..at + range.len() as usize];
        device
            .read_at(range.start(), bytes)
            .map_err(io_error("reading", device, range))?;
    }
    for number in 0..loaded.batch.pieces.len() {
        let piece = loaded.batch.pieces[number];
        let is_there = !touches(piece.range, &target.last)
            && match piece.content {
                Content::Data(digest) => Digest::of(loaded.bytes(number)) == digest,
                Content::Zero => reads_as_zeros(target, piece.range, scratch)?,
            };
        loaded.missing[number] = !is_there;
    }
    Ok(())
}

/// Whether any of a disk's samples is there: then the disk is worth comparing. An access that fails says no; the
/// restore itself will say why.
pub(super) fn holds_some(target: &Target, samples: &[Piece]) -> bool {
    let device = target.device.as_ref();
    let mut buffer = AlignedBuffer::new(backup::chunk::MAX_CHUNK_LEN as usize);
    samples.iter().any(|piece| {
        let Some(bytes) = buffer.bytes_mut().get_mut(..piece.range.len() as usize) else {
            return false;
        };
        !touches(piece.range, &target.last)
            && device.read_at(piece.range.start(), bytes).is_ok()
            && matches!(piece.content, Content::Data(digest) if Digest::of(bytes) == digest)
    })
}

pub(super) fn touches(range: ByteRange, last: &[ByteRange]) -> bool {
    let first = last.partition_point(|held| held.end() <= range.start());
    last.get(first).is_some_and(|held| held.overlaps(range))
}

fn reads_as_zeros(
    target: &Target,
    range: ByteRange,
    scratch: &mut AlignedBuffer,
) -> Result<bool, Fault> {
    let device = target.device.as_ref();
    let mut at = range.start();
    while at < range.end() {
        let step = ByteRange::between(at, (at + STEP as u64).min(range.end()));
        let bytes = &mut scratch.bytes_mut()[..step.len() as usize];
        device
            .read_at(at, bytes)
            .map_err(io_error("reading", device, step))?;
        if !is_zero(bytes) {
            return Ok(false);
        }
        at = step.end();
    }
    Ok(true)
}
