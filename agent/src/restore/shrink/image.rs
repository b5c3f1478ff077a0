//! A volume of its old size of which only the front is on the disk.
//!
//! Invariants: bytes below the new size are the partition's, read and written there; those above come from the
//! store, checked against their digests, or are zero where nothing was saved; what is written above is kept in
//! memory, at most [`OVERLAY_LIMIT`] bytes, and nowhere else.
//!
//! Memory: that, and [`KEPT_BATCHES`] answers of the server.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Range;

use backup::{ByteRange, Digest};

use super::Tail;
use crate::device::{BlockDevice, io_error};
use crate::job::Engine;
use crate::job::error::Fault;
use crate::restore::fetch;
use crate::restore::work::{Piece, cut};

/// The most bytes that are written above the new size.
const OVERLAY_LIMIT: u64 = 128 << 20;
/// In what units those are kept.
const PAGE: u64 = 4096;
/// Answers of the server that are kept: the tools read forward, in a few places at a time.
const KEPT_BATCHES: usize = 8;

/// The volume. What went wrong is in `fault`, for whoever reads and writes understands numbers only.
pub(super) struct Image<'a> {
    engine: &'a Engine<'a>,
    device: &'a dyn BlockDevice,
    tail: &'a Tail,
    /// For messages.
    names: Vec<String>,
    batches: Vec<Range<usize>>,
    kept: VecDeque<(usize, HashMap<Digest, Vec<u8>>)>,
    overlay: BTreeMap<u64, Vec<u8>>,
    /// Its size: the tools cut it at the end.
    size: u64,
    pub(super) fault: Option<Fault>,
}

impl<'a> Image<'a> {
    /// The volume of a tail; `name` is what people call what is not on the disk.
    pub(super) fn new(
        engine: &'a Engine<'a>,
        device: &'a dyn BlockDevice,
        tail: &'a Tail,
        name: String,
    ) -> Self {
        let mut names = vec![String::new(); tail.disk];
        names.push(name);
        Self {
            engine,
            device,
            tail,
            names,
            batches: cut(&tail.pieces),
            kept: VecDeque::new(),
            overlay: BTreeMap::new(),
            size: tail.size,
            fault: None,
        }
    }

    const fn front(&self) -> u64 {
        self.tail.range.len()
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Cuts it.
    pub(super) fn set_size(&mut self, size: u64) -> io::Result<()> {
        if size > self.size {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        self.size = size;
        Ok(())
    }

    /// Writes to the partition what of the tail's first piece belongs there.
    pub(super) fn settle_edge(&mut self) -> Result<(), Fault> {
        let Some(first) = self.tail.pieces.first().copied() else {
            return Ok(());
        };
        let Some(len) = self
            .front()
            .checked_sub(first.range.start())
            .filter(|len| *len > 0)
        else {
            return Ok(());
        };
        let at = self.tail.range.start() + first.range.start();
        let place = ByteRange::between(at, at + len);
        let device = self.device;
        if first.digest().is_none() {
            return Ok(device
                .zero(place)
                .map_err(io_error("zeroing", device, place))?);
        }
        let mut bytes = vec![0; len as usize];
        self.copy_of_piece(0, 0, &mut bytes)?;
        Ok(device
            .write_at(at, &bytes)
            .map_err(io_error("writing", device, place))?)
    }

    /// Fills `buffer` from byte `offset`; fewer bytes at the end of the volume.
    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.size.saturating_sub(offset).min(buffer.len() as u64);
        let buffer = &mut buffer[..len as usize];
        let result = self.engine.check_cancelled();
        let result = result.and_then(|()| self.read_all(offset, buffer));
        self.remember(result).map(|()| len as usize)
    }

    fn read_all(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let in_front = self.front().saturating_sub(offset).min(buffer.len() as u64);
        let (front, tail) = buffer.split_at_mut(in_front as usize);
        if !front.is_empty() {
            let at = self.tail.range.start() + offset;
            let place = ByteRange::between(at, at + in_front);
            let device = self.device;
            device
                .read_at(at, front)
                .map_err(io_error("reading", device, place))?;
        }
        if tail.is_empty() {
            return Ok(());
        }
        let start = offset + in_front;
        self.read_tail(start, tail)?;
        let end = start + tail.len() as u64;
        for (page, bytes) in self.overlay.range(start / PAGE * PAGE..end) {
            let both = ByteRange::between((*page).max(start), (page + PAGE).min(end));
            tail[(both.start() - start) as usize..(both.end() - start) as usize].copy_from_slice(
                &bytes[(both.start() - page) as usize..(both.end() - page) as usize],
            );
        }
        Ok(())
    }

    /// What the store has of a part of the tail.
    fn read_tail(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.fill(0);
        let end = start + buffer.len() as u64;
        let pieces = &self.tail.pieces;
        let mut index = pieces.partition_point(|piece| piece.range.end() <= start);
        while let Some(piece) = pieces.get(index).filter(|piece| piece.range.start() < end) {
            if piece.digest().is_some() {
                let from = piece.range.start().max(start);
                let to = piece.range.end().min(end);
                let part = &mut buffer[(from - start) as usize..(to - start) as usize];
                self.copy_of_piece(index, from - piece.range.start(), part)?;
            }
            index += 1;
        }
        Ok(())
    }

    /// Copies bytes of a piece from `skip` on.
    fn copy_of_piece(&mut self, index: usize, skip: u64, to: &mut [u8]) -> Result<(), Fault> {
        let lost = || Fault::Internal("a piece of the tail was not fetched".to_owned());
        let piece: &Piece = self.tail.pieces.get(index).ok_or_else(lost)?;
        let digest = piece.digest().ok_or_else(lost)?;
        let batch = self.batches.partition_point(|batch| batch.end <= index);
        let bytes = self.batch(batch)?.get(&digest).ok_or_else(lost)?;
        let from = skip as usize;
        let part = bytes.get(from..from + to.len()).ok_or_else(lost)?;
        to.copy_from_slice(part);
        Ok(())
    }

    /// The plain bytes of a batch, fetched unless they were just now.
    fn batch(&mut self, number: usize) -> Result<&HashMap<Digest, Vec<u8>>, Fault> {
        let found = self.kept.iter().position(|(kept, _)| *kept == number);
        let entry = match found.and_then(|at| self.kept.remove(at)) {
            Some(entry) => entry,
            None => {
                let range = self.batches.get(number).cloned().unwrap_or_default();
                let pieces = self.tail.pieces.get(range).unwrap_or_default();
                let fetched = fetch::batch(self.engine, &self.names, pieces)?;
                (number, fetched)
            }
        };
        self.kept.push_front(entry);
        self.kept.truncate(KEPT_BATCHES);
        let first = self.kept.front();
        first
            .map(|(_, plain)| plain)
            .ok_or_else(|| Fault::Internal("no batch of the tail".to_owned()))
    }

    /// Writes at byte `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let result = self.engine.check_cancelled();
        let result = result.and_then(|()| self.write_all(offset, bytes));
        self.remember(result)
    }

    fn write_all(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let in_front = self.front().saturating_sub(offset).min(bytes.len() as u64);
        let (front, mut tail) = bytes.split_at(in_front as usize);
        if !front.is_empty() {
            let at = self.tail.range.start() + offset;
            let place = ByteRange::between(at, at + in_front);
            let device = self.device;
            device
                .write_at(at, front)
                .map_err(io_error("writing", device, place))?;
        }
        let mut at = offset + in_front;
        while !tail.is_empty() {
            let page = at / PAGE * PAGE;
            let skip = (at - page) as usize;
            let (now, rest) = tail.split_at(tail.len().min(PAGE as usize - skip));
            if !self.overlay.contains_key(&page) {
                if self.overlay.len() as u64 >= OVERLAY_LIMIT / PAGE {
                    return Err(Fault::Tool {
                        tool: super::tools::name(self.tail.shrink.file_system).to_owned(),
                        reason: format!(
                            "it writes more than {OVERLAY_LIMIT} bytes behind the new end of partition {}, \
                             which are held in memory; restore to a disk of the source's size",
                            self.tail.shrink.partition
                        ),
                    });
                }
                let mut whole = vec![0; PAGE as usize];
                self.read_tail(page, &mut whole)?;
                self.overlay.insert(page, whole);
            }
            if let Some(whole) = self.overlay.get_mut(&page) {
                whole[skip..skip + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            tail = rest;
        }
        Ok(())
    }

    /// Returns when what is on the disk is on its medium.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let device = self.device;
        let place = self.tail.range;
        let result = device.flush();
        let result = result.map_err(|error| io_error("flushing", device, place)(error).into());
        self.remember(result)
    }

    /// Keeps the first fault for people.
    fn remember(&mut self, result: Result<(), Fault>) -> io::Result<()> {
        result.map_err(|fault| {
            if self.fault.is_none() {
                self.fault = Some(fault);
            }
            io::Error::from_raw_os_error(libc::EIO)
        })
    }
}
