//! The threads of a restore: many that read, compare and fetch a batch each, one for each core that decode, a few that
//! write, in order.
//!
//! Invariant: batches are written in the order of the disks, [`WRITERS`] at a time. Memory is bounded by the
//! [`WINDOW`] of buffers: a batch begins when there is one for it, and gives it back when it is written; it has at
//! most one answer of the server. The oldest batch has its buffer already, so it never waits for the others.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::batch::{BUFFER, Loaded};
use super::compare::{STEP, compare, touches};
use super::fetch::{Answer, Fetched, Fetcher};
use super::work::{ANSWER, Batches, Piece};
use super::write::{Target, Writer};
use super::written::Written;
use crate::device::AlignedBuffer;
use crate::job::Engine;
use crate::job::error::Fault;

/// Batches in memory: those that are worked on, and those that wait for their turn to be written.
pub(super) const WINDOW: usize = 24;
/// Requests and reads in flight: with 16 a restore was 2.7 to 5 times faster than with one; 8 to 16 fill a link. A
/// thread that has an answer asks for the next one at once: a sender that paces each connection by what it took
/// before (BBR) leaves the line idle while one waits.
const FETCHERS: usize = 16;
/// The most threads that decode.
const MAX_DECODERS: usize = 8;
/// Writes in flight.
const WRITERS: usize = 3;

/// What is to be done with the pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose<'a> {
    /// Write what is missing; a disk is compared first when its flag says so.
    Write { compares: &'a [bool] },
    /// Find what is not as it was written, but for what is written last.
    Verify,
}

/// What the threads work with.
pub(super) struct Pipeline<'a> {
    pub(super) engine: &'a Engine<'a>,
    pub(super) targets: &'a [Target],
    pub(super) purpose: Purpose<'a>,
    pub(super) fetched: &'a Fetched,
    pub(super) written: Written,
}

#[derive(Default)]
struct State {
    buffers: Vec<AlignedBuffer>,
    made: usize,
    /// Memory of answers that were decoded.
    spare: Vec<Vec<u8>>,
    /// Batches with the answers that fill them, by number.
    answered: BTreeMap<usize, (Loaded, Answer)>,
    /// Threads that may still add to them.
    fetching: usize,
    /// Batches that are filled, by number.
    filled: BTreeMap<usize, Loaded>,
    /// The next one to be written.
    next: usize,
    /// How many there are, once the last is known.
    total: Option<usize>,
    fault: Option<Fault>,
    stopped: bool,
}

/// The threads' meeting place.
#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes those who wait for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` has an answer; none when all has been stopped.
    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(answer) = ready(&mut state) {
                return Some(answer);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A free buffer.
    fn buffer(&self) -> Option<AlignedBuffer> {
        self.wait(|state| {
            let free = state.buffers.pop();
            free.or_else(|| {
                let may_make = state.made < WINDOW;
                may_make.then(|| {
                    state.made += 1;
                    AlignedBuffer::new(BUFFER)
                })
            })
        })
    }

    /// The oldest batch to be decoded; `Some(None)` at the end.
    fn answered(&self) -> Option<Option<(Loaded, Answer)>> {
        self.wait(|state| match state.answered.pop_first() {
            Some((_, answered)) => Some(Some(answered)),
            None => (state.fetching == 0).then_some(None),
        })
    }

    /// The next batch to be written; `Some(None)` at the end.
    fn filled(&self) -> Option<Option<Loaded>> {
        self.wait(|state| {
            if state.total == Some(state.next) {
                return Some(None);
            }
            let next = state.next;
            let loaded = state.filled.remove(&next)?;
            state.next += 1;
            Some(Some(loaded))
        })
    }

    fn end(&self, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.change(|state| {
                state.stopped = true;
                state.fault.get_or_insert(fault);
            });
        }
    }
}

/// A batch that never comes must not be waited for.
struct StopOnPanic<'a>(&'a Desk);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.change(|state| state.stopped = true);
        }
    }
}

impl Pipeline<'_> {
    /// Works through all batches.
    ///
    /// # Errors
    /// The first fault of a thread; everything is stopped then.
    pub(super) fn run(&self, batches: Batches<'_>, writer: &Writer<'_>) -> Result<(), Fault> {
        let desk = Desk::default();
        desk.lock().fetching = FETCHERS;
        let batches = Mutex::new(batches);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let names = self
            .targets
            .iter()
            .map(|target| target.device.name().to_owned());
        let names: Vec<_> = names.collect();
        thread::scope(|scope| {
            for _ in 0..FETCHERS {
                scope.spawn(|| {
                    let _stop = StopOnPanic(&desk);
                    desk.end(self.fetch(&desk, &batches, &names));
                    desk.change(|state| state.fetching -= 1);
                });
            }
            for _ in 0..cores.min(MAX_DECODERS) {
                scope.spawn(|| {
                    let _stop = StopOnPanic(&desk);
                    desk.end(self.decode(&desk, &names));
                });
            }
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    let _stop = StopOnPanic(&desk);
                    desk.end(self.empty(&desk, writer));
                });
            }
        });
        match desk.lock().fault.take() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Begins batches until there are no more.
    fn fetch(
        &self,
        desk: &Desk,
        batches: &Mutex<Batches<'_>>,
        names: &[String],
    ) -> Result<(), Fault> {
        let fetcher = Fetcher::new(self.engine, names, self.fetched)?;
        let mut scratch = AlignedBuffer::new(STEP);
        while let Some(buffer) = desk.buffer() {
            let batch = {
                let mut batches = batches.lock().unwrap_or_else(PoisonError::into_inner);
                let batch = batches.next()?;
                if batch.is_none() {
                    let total = batches.count();
                    desk.change(|state| {
                        state.total = Some(total);
                        state.buffers.push(buffer);
                    });
                    return Ok(());
                }
                batch.map(|batch| Loaded::new(batch, buffer))
            };
            let Some(mut loaded) = batch else {
                return Ok(());
            };
            self.engine.check_cancelled()?;
            let disk = loaded.batch.disk();
            let target = self.targets.get(disk);
            let target = target.ok_or_else(|| Fault::Internal(format!("no target disk {disk}")))?;
            match self.purpose {
                Purpose::Write { compares } => {
                    if compares.get(disk).copied().unwrap_or(false) {
                        compare(target, &mut loaded, &mut scratch)?;
                    }
                    self.written.fill(&mut loaded, self.targets);
                    // Of one size, so that they are used again and none is made larger.
                    let spare = desk.lock().spare.pop();
                    let memory = spare.unwrap_or_else(|| Vec::with_capacity(ANSWER));
                    if let Some(answer) = fetcher.ask(&loaded, memory)? {
                        let number = loaded.batch.number;
                        desk.change(|state| state.answered.insert(number, (loaded, answer)));
                        continue;
                    }
                }
                Purpose::Verify => {
                    compare(target, &mut loaded, &mut scratch)?;
                    check(target, &loaded)?;
                    loaded.missing.fill(false);
                }
            }
            desk.change(|state| state.filled.insert(loaded.batch.number, loaded));
        }
        Ok(())
    }

    /// Decodes answers until there are no more.
    fn decode(&self, desk: &Desk, names: &[String]) -> Result<(), Fault> {
        let mut fetcher = Fetcher::new(self.engine, names, self.fetched)?;
        while let Some(Some((mut loaded, answer))) = desk.answered() {
            fetcher.decode(&mut loaded, &answer)?;
            let number = loaded.batch.number;
            desk.change(|state| {
                state.spare.push(answer.into_memory());
                state.filled.insert(number, loaded);
            });
        }
        Ok(())
    }

    /// Writes batches until there are no more.
    fn empty(&self, desk: &Desk, writer: &Writer<'_>) -> Result<(), Fault> {
        while let Some(Some(loaded)) = desk.filled() {
            writer.write(&loaded)?;
            self.written.add(&loaded, self.targets);
            let counts_zeros = match self.purpose {
                Purpose::Write { compares } => compares.contains(&true),
                Purpose::Verify => true,
            };
            let pieces = loaded.batch.pieces.iter();
            self.engine.tracker.advance(if counts_zeros {
                pieces.map(|piece| piece.range.len()).sum()
            } else {
                pieces.map(Piece::data_bytes).sum()
            });
            desk.change(|state| state.buffers.push(loaded.buffer));
        }
        Ok(())
    }
}

/// Fails for a piece that is not as it was written.
fn check(target: &Target, loaded: &Loaded) -> Result<(), Fault> {
    let pieces = loaded.batch.pieces.iter().zip(&loaded.missing);
    for (piece, missing) in pieces {
        if *missing && !touches(piece.range, &target.last) {
            return Err(Fault::ReadBack {
                device: target.device.name().to_owned(),
                what: format!("a piece of {} bytes", piece.range.len()),
                offset: piece.range.start(),
            });
        }
    }
    Ok(())
}
