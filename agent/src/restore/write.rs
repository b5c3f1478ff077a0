//! Writing: pieces in disk order, merged into large aligned writes; the last parts are held back.
//!
//! Memory: one buffer of [`RUN`] bytes and the held parts, at most [`HELD_LIMIT`] bytes.

use backup::ByteRange;
use backup::chunk::Content;

use super::fetch::Fetched;
use super::held::Held;
use super::work::{Piece, split};
use crate::device::{AlignedBuffer, BlockDevice, io_error};
use crate::job::error::Fault;

/// The most bytes of one write.
const RUN: usize = 4 << 20;
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
}

/// Merges pieces into writes.
pub(crate) struct Writer<'a> {
    targets: &'a [Target],
    buffer: AlignedBuffer,
    disk: usize,
    start: u64,
    len: usize,
    held: Vec<Held>,
    held_bytes: u64,
}

impl<'a> Writer<'a> {
    /// A writer to `targets`, which are numbered as in the plan.
    pub(crate) fn new(targets: &'a [Target]) -> Self {
        let buffer = AlignedBuffer::new(RUN);
        Self {
            targets,
            buffer,
            disk: 0,
            start: 0,
            len: 0,
            held: Vec::new(),
            held_bytes: 0,
        }
    }

    /// Writes a batch, or holds parts of it back.
    ///
    /// # Errors
    /// A disk that fails.
    pub(crate) fn batch(&mut self, fetched: &Fetched, pieces: &[Piece]) -> Result<(), Fault> {
        for piece in &pieces[fetched.pieces.clone()] {
            let target = self.target(piece.disk)?;
            let parts = split(piece.range, &target.last);
            for (part, is_last) in parts {
                match piece.content {
                    // What is written last was made zero before anything else.
                    Content::Zero if is_last => {}
                    Content::Zero => self.zero(piece.disk, part)?,
                    Content::Data(digest) => {
                        let plain = fetched.plain.get(&digest).map_or(&[][..], Vec::as_slice);
                        let from = (part.start() - piece.range.start()) as usize;
                        let bytes = plain
                            .get(from..from + part.len() as usize)
                            .ok_or_else(|| Fault::Internal(format!("chunk {digest} is short")))?;
                        if is_last {
                            self.hold(piece.disk, part.start(), bytes)?;
                        } else {
                            self.append(piece.disk, part.start(), bytes)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes what is left and returns what was held back.
    ///
    /// # Errors
    /// A disk that fails.
    pub(crate) fn finish(mut self) -> Result<Vec<Held>, Fault> {
        self.write_run()?;
        Ok(self.held)
    }

    fn target(&self, disk: usize) -> Result<&'a Target, Fault> {
        self.targets
            .get(disk)
            .ok_or_else(|| Fault::Internal(format!("no target disk {disk}")))
    }

    fn zero(&mut self, disk: usize, range: ByteRange) -> Result<(), Fault> {
        self.write_run()?;
        let device = self.target(disk)?.device.as_ref();
        Ok(device
            .zero(range)
            .map_err(io_error("zeroing", device, range))?)
    }

    fn hold(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.held_bytes += bytes.len() as u64;
        if self.held_bytes > HELD_LIMIT {
            return Err(Fault::Internal(format!(
                "the plan holds back more than {HELD_LIMIT} bytes"
            )));
        }
        self.held.push(Held {
            disk,
            offset,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }

    fn append(&mut self, disk: usize, offset: u64, mut bytes: &[u8]) -> Result<(), Fault> {
        let mut at = offset;
        while !bytes.is_empty() {
            let continues = self.disk == disk && self.start + self.len as u64 == at;
            if self.len > 0 && !continues || self.len == RUN {
                self.write_run()?;
            }
            if self.len == 0 {
                (self.disk, self.start) = (disk, at);
            }
            let step = bytes.len().min(RUN - self.len);
            self.buffer.bytes_mut()[self.len..self.len + step].copy_from_slice(&bytes[..step]);
            self.len += step;
            at += step as u64;
            bytes = &bytes[step..];
        }
        Ok(())
    }

    fn write_run(&mut self) -> Result<(), Fault> {
        if self.len == 0 {
            return Ok(());
        }
        let device = self.target(self.disk)?.device.as_ref();
        let bytes = &self.buffer.bytes()[..self.len];
        if let Err(error) = device.write_at(self.start, bytes) {
            log::warn!(
                "{}: a write failed ({error}); trying each sector",
                device.name()
            );
            write_by_sectors(device, self.start, bytes)?;
        }
        self.len = 0;
        Ok(())
    }
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
