//! Writing: what is missing of a batch, in runs; the last parts are held back.
//!
//! Several threads write different batches at a time. Memory: the held parts, at most [`HELD_LIMIT`] bytes.

use std::sync::{Mutex, PoisonError};

use backup::ByteRange;
use backup::chunk::Content;

use super::batch::{Loaded, Run};
use super::covered::Head;
use super::held::Held;
use super::work::split;
use crate::device::{BlockDevice, io_error};
use crate::job::error::Fault;

/// The most bytes that are held back in memory.
const HELD_LIMIT: u64 = 64 << 20;

/// A target disk that is open, and the parts of it that are written last.
pub(crate) struct Target {
    /// The disk.
    pub(crate) device: Box<dyn BlockDevice>,
    /// In order and merged.
    pub(crate) last: Vec<ByteRange>,
    /// The first sector of a disk without a table: writing it is the commit.
    pub(crate) first: Option<ByteRange>,
    /// Where the marker is; none where the disk is too small, or not all of it is written.
    pub(crate) marker: Option<ByteRange>,
    /// What chosen volumes are recognised by, in order, when they are all that is written.
    pub(crate) volumes: Vec<Head>,
}

impl Target {
    /// Where its markers are, in order.
    pub(crate) fn markers(&self) -> impl Iterator<Item = ByteRange> {
        let volumes = self.volumes.iter().map(|head| head.place);
        self.marker.into_iter().chain(volumes)
    }
}

/// Writes to the targets, which are numbered as in the plan.
pub(super) struct Writer<'a> {
    targets: &'a [Target],
    held: Mutex<(Vec<Held>, u64)>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(targets: &'a [Target]) -> Self {
        let held = Mutex::default();
        Self { targets, held }
    }

    /// Writes what is missing of a batch, or holds parts of it back.
    ///
    /// # Errors
    /// A disk that fails.
    pub(super) fn write(&self, loaded: &Loaded) -> Result<(), Fault> {
        let disk = loaded.batch.disk();
        let target = self.targets.get(disk);
        let target = target.ok_or_else(|| Fault::Internal(format!("no target disk {disk}")))?;
        let device = target.device.as_ref();
        for (piece, missing) in loaded.batch.pieces.iter().zip(&loaded.missing) {
            if piece.content != Content::Zero || !missing {
                continue;
            }
            // What is written last was made zero before anything else.
            for (part, _) in without_last(piece.range, &target.last) {
                device
                    .zero(part)
                    .map_err(io_error("zeroing", device, part))?;
            }
        }
        for Run { range, at } in loaded.runs(true) {
            for (part, is_last) in split(range, &target.last) {
                let from = at + (part.start() - range.start()) as usize;
                let bytes = &loaded.buffer.bytes()[from..from + part.len() as usize];
                if is_last {
                    self.hold(disk, part.start(), bytes)?;
                } else {
                    write_run(device, part.start(), bytes)?;
                }
            }
        }
        Ok(())
    }

    /// What was held back, in order.
    pub(super) fn finish(self) -> Vec<Held> {
        let (mut held, _) = self
            .held
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        held.sort_by_key(|part| (part.disk, part.offset));
        held
    }

    fn hold(&self, disk: usize, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.1 += bytes.len() as u64;
        if held.1 > HELD_LIMIT {
            return Err(Fault::Internal(format!(
                "the plan holds back more than {HELD_LIMIT} bytes"
            )));
        }
        held.0.push(Held {
            disk,
            offset,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }
}

fn without_last(range: ByteRange, last: &[ByteRange]) -> impl Iterator<Item = (ByteRange, bool)> {
    split(range, last)
        .into_iter()
        .filter(|(_, is_last)| !is_last)
}

fn write_run(device: &dyn BlockDevice, start: u64, bytes: &[u8]) -> Result<(), Fault> {
    if let Err(error) = device.write_at(start, bytes) {
        log::warn!(
            "{}: a write failed ({error}); trying each sector",
            device.name()
        );
        write_by_sectors(device, start, bytes)?;
    }
    Ok(())
}

/// Writes sector by sector what could not be written at once: either it goes, or the error names the
/// sector that cannot be written.
fn write_by_sectors(device: &dyn BlockDevice, start: u64, bytes: &[u8]) -> Result<(), Fault> {
    let sector = device.sector().bytes();
    for (number, piece) in bytes.chunks(sector as usize).enumerate() {
        let at = start + number as u64 * sector;
        let range = ByteRange::between(at, at + piece.len() as u64);
        device
            .write_at(at, piece)
            .map_err(io_error("writing", device, range))?;
    }
    Ok(())
}
