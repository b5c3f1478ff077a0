//! Disks whose chosen volumes are not recognisable yet, as the tools see them that make volumes smaller.
//!
//! Where a whole disk is restored, it has no table until the commit, so that nothing finds the volumes on it. A
//! chosen volume lies in a table that stays. Its marker is where the bytes are by which it is recognised, and those
//! are kept in memory. Invariant: they are written when all else of the volume is written, made smaller and flushed:
//! that is the volume's commit.
//!
//! Memory: [`super::marker::LEN`] bytes for each chosen volume.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup::{ByteRange, SectorSize};

use super::commit::{Write, check, put};
use super::held::{Held, contents};
use super::work::split;
use super::write::Target;
use crate::device::{BlockDevice, io_error};
use crate::job::error::Fault;

/// A disk, and what is kept of it in memory; nothing when all of it is restored.
pub(super) struct Covered<'a> {
    device: &'a dyn BlockDevice,
    /// In order; they do not overlap.
    places: Vec<ByteRange>,
    heads: Mutex<Vec<Write>>,
}

/// The disks, which hold all but the heads of chosen volumes.
pub(super) fn disks<'a>(targets: &'a [Target], held: &[Held]) -> Vec<Covered<'a>> {
    let targets = targets.iter().enumerate();
    let disks = targets.map(|(disk, target)| {
        let places = target.volumes.iter();
        let heads =
            places.map(|place| contents(held, disk, *place, "what a volume is recognised by"));
        Covered {
            device: target.device.as_ref(),
            places: target.volumes.clone(),
            heads: Mutex::new(heads.collect()),
        }
    });
    disks.collect()
}

impl Covered<'_> {
    fn heads(&self) -> MutexGuard<'_, Vec<Write>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the heads: the commit of the disk's chosen volumes.
    ///
    /// # Errors
    /// A disk that fails, or does not hold what was written.
    pub(super) fn uncover(&self) -> Result<(), Fault> {
        let heads = self.heads();
        if heads.is_empty() {
            return Ok(());
        }
        let all = ByteRange::between(0, 0);
        self.device
            .flush()
            .map_err(io_error("flushing", self.device, all))?;
        for head in heads.iter() {
            put(self.device, head)?;
            check(self.device, head)?;
        }
        Ok(())
    }

    /// Calls `each` with the part of every head that lies in `range`, and where that begins in the range.
    fn in_heads(&self, range: ByteRange, mut each: impl FnMut(&mut [u8], usize)) {
        for (place, head) in self.places.iter().zip(self.heads().iter_mut()) {
            let start = place.start().max(range.start());
            let end = place.end().min(range.end());
            if start < end {
                let (from, to) = (start - place.start(), end - place.start());
                each(
                    &mut head.bytes[from as usize..to as usize],
                    (start - range.start()) as usize,
                );
            }
        }
    }

    /// The parts of a range that are on the disk.
    fn outside(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let parts = split(range, &self.places).into_iter();
        parts
            .filter(|(_, is_head)| !is_head)
            .map(|(range, _)| range)
    }
}

impl BlockDevice for Covered<'_> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn sector(&self) -> SectorSize {
        self.device.sector()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)?;
        let range = ByteRange::between(offset, offset + buffer.len() as u64);
        self.in_heads(range, |head, at| {
            buffer[at..at + head.len()].copy_from_slice(head);
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        for part in self.outside(range) {
            let from = (part.start() - offset) as usize;
            let part_bytes = &bytes[from..from + part.len() as usize];
            self.device.write_at(part.start(), part_bytes)?;
        }
        self.in_heads(range, |head, at| {
            head.copy_from_slice(&bytes[at..at + head.len()]);
        });
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.outside(range)
            .try_for_each(|part| self.device.zero(part))?;
        self.in_heads(range, |head, _| head.fill(0));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
}
