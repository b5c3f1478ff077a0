//! Comparing: which pieces a target holds already, so that only the others are fetched.
//!
//! This is how a restore goes on after a power cut: it trusts no record of what was done, only the
//! digest of what is there. Memory: one buffer of [`STEP`] bytes for each thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use backup::chunk::{Content, MAX_CHUNK_LEN};
use backup::plan::reads::is_zero;
use backup::{ByteRange, Digest};

use super::work::Piece;
use super::write::Target;
use crate::device::{AlignedBuffer, io_error};
use crate::job::Engine;
use crate::job::error::Fault;

/// The most bytes that are read at a time.
const STEP: u64 = 4 << 20;

/// The pieces that the targets do not hold; in the same order. Pieces on disks that are not in
/// `known`, and those that are written last, are taken as not there.
///
/// # Errors
/// A disk that cannot be read, or a job that was taken back.
pub(crate) fn differing(
    engine: &Engine<'_>,
    targets: &[Target],
    known: &[bool],
    pieces: Vec<Piece>,
) -> Result<Vec<Piece>, Fault> {
    let groups = groups(&pieces);
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let fault = Mutex::new(None);
    let same: Mutex<Vec<bool>> = Mutex::new(vec![false; pieces.len()]);
    let work = || -> Result<(), Fault> {
        let mut buffer = AlignedBuffer::new(STEP as usize);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = groups.get(number) else {
                return Ok(());
            };
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            engine.check_cancelled()?;
            let found = compare(targets, known, &pieces[group.clone()], &mut buffer)?;
            let mut same = same.lock().unwrap_or_else(PoisonError::into_inner);
            same[group.clone()].copy_from_slice(&found);
            drop(same);
            let bytes: u64 = pieces[group.clone()]
                .iter()
                .map(|piece| piece.range.len())
                .sum();
            engine.tracker.advance(bytes);
        }
    };
    thread::scope(|scope| {
        for _ in 0..crate::job::cores() {
            scope.spawn(|| {
                if let Err(error) = work() {
                    failed.store(true, Ordering::Relaxed);
                    *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            });
        }
    });
    if let Some(fault) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(fault);
    }
    let same = same.into_inner().unwrap_or_else(PoisonError::into_inner);
    let different = pieces.into_iter().zip(same).filter(|(_, same)| !same);
    Ok(different.map(|(piece, _)| piece).collect())
}

/// Runs of pieces that lie on one disk within [`STEP`] bytes; a longer piece is alone.
fn groups(pieces: &[Piece]) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    for index in 1..=pieces.len() {
        let ends = pieces.get(index).is_none_or(|piece| {
            piece.disk != pieces[start].disk
                || piece.range.end() - pieces[start].range.start() > STEP
        });
        if ends {
            groups.push(start..index);
            start = index;
        }
    }
    groups
}

fn compare(
    targets: &[Target],
    known: &[bool],
    pieces: &[Piece],
    buffer: &mut AlignedBuffer,
) -> Result<Vec<bool>, Fault> {
    let (Some(first), Some(end)) = (pieces.first(), pieces.last()) else {
        return Ok(Vec::new());
    };
    let target = targets
        .get(first.disk)
        .ok_or_else(|| Fault::Internal(format!("no target disk {}", first.disk)))?;
    if !known.get(first.disk).copied().unwrap_or(false) {
        return Ok(vec![false; pieces.len()]);
    }
    let device = target.device.as_ref();
    let read = |range: ByteRange, out: &mut AlignedBuffer| {
        let bytes = &mut out.bytes_mut()[..range.len() as usize];
        device
            .read_at(range.start(), bytes)
            .map_err(io_error("reading", device, range))
    };
    let whole = ByteRange::between(first.range.start(), end.range.end());
    if whole.len() > STEP {
        // A single long run of zeros.
        let mut at = whole.start();
        while at < whole.end() {
            let step = ByteRange::between(at, (at + STEP).min(whole.end()));
            read(step, buffer)?;
            if !is_zero(&buffer.bytes()[..step.len() as usize]) {
                return Ok(vec![false]);
            }
            at = step.end();
        }
        return Ok(vec![touches_no_last(whole, &target.last)]);
    }
    read(whole, buffer)?;
    Ok(pieces
        .iter()
        .map(|piece| {
            let from = (piece.range.start() - whole.start()) as usize;
            let bytes = &buffer.bytes()[from..from + piece.range.len() as usize];
            touches_no_last(piece.range, &target.last)
                && match piece.content {
                    Content::Zero => is_zero(bytes),
                    Content::Data(digest) => Digest::of(bytes) == digest,
                }
        })
        .collect())
}

fn touches_no_last(range: ByteRange, last: &[ByteRange]) -> bool {
    !last.iter().any(|held| held.overlaps(range))
}

const _: () = assert!(MAX_CHUNK_LEN as u64 <= STEP);
