//! Sending: from what is read to chunks and chunk lists on the server.
//!
//! One thread reads in disk order; workers cut what the bytes decide, look for zeros, compute digests,
//! ask which chunks the server lacks, compress those and send them; one more thread puts what they
//! found in order and sends the lists ([`super::list`]).
//!
//! Invariant: memory does not grow with the disk. At most, with 16 workers:
//!
//! | what | MiB |
//! | --- | --- |
//! | spans that are read, wait or are worked on: ([`QUEUE`] + 1 + workers) × [`SPAN`] | 40 |
//! | records of each worker, as much compressed, and its zstd context of 1.5 MiB | 57 |
//! | chunks that came out of order: [`WINDOW`](super::list::WINDOW) × 1024 × 64 bytes, a list's part | 6 |
//! | digests that were asked for ([`backup::chunk::known`]) | 17 |
//! | plans of regions that are kept ([`super::source`]) | 16 |
//! | used ranges and file extents of the region that is read: 48 + 16, half as much again while it is \
//!   surveyed | 96 |
//!
//! 232 MiB; half of it without a volume of more than two million file extents.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use backup::chunk::{Content, Known, append_record, compressor};
use backup::manifest::ChunkListRef;
use backup::plan::reads::{MAX_PIECES, Read, SPAN, reads};
use backup::{ByteRange, Digest};
use zstd::bulk::Compressor;

use super::list::{Listed, ListedRegion, Window, send_lists};
use super::read::read;
use super::source::Source;
use crate::device::{AlignedBuffer, DiskReader};
use crate::job::error::Fault;
use crate::job::server::ListName;
use crate::job::{Engine, cores};

/// Reads that wait for a worker.
const QUEUE: usize = 3;
/// Workers wait for the server now and then, so there are more of them than cores.
const MIN_WORKERS: usize = 6;

/// What a capture sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    /// Chunks that the server lacked.
    pub(crate) chunks: u64,
    /// Plain bytes of those.
    pub(crate) plain_bytes: u64,
    /// Bytes that were sent for them.
    pub(crate) sent_bytes: u64,
}

struct Message {
    /// The read's number.
    number: u64,
    /// Which of all regions it is of.
    region: usize,
    read: Read,
    bytes: AlignedBuffer,
}

/// Reads all regions and sends what the server lacks; the names of their lists become part of the
/// sources' images.
///
/// # Errors
/// The first fault of reader, workers or lister; everything is stopped then.
pub(crate) fn send(engine: &Engine<'_>, sources: &mut [Source<'_>]) -> Result<Sent, Fault> {
    let regions: Vec<_> = sources.iter().flat_map(listed_regions).collect();
    let sender = Sender {
        engine,
        known: Mutex::default(),
        window: Window::default(),
        sent: Mutex::default(),
        fault: Mutex::new(None),
    };
    let lists = thread::scope(|scope| {
        let sender = &sender;
        let (queue, receiver) = sync_channel::<Message>(QUEUE);
        let (results, listed) = sync_channel(MIN_WORKERS);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..cores().max(MIN_WORKERS) {
            let (receiver, results) = (Arc::clone(&receiver), results.clone());
            scope.spawn(move || sender.work(&receiver, &results));
        }
        // Only the workers hold these: when none is left, the reader hears that instead of waiting, and
        // so does the lister.
        drop((receiver, results));
        let regions = &regions;
        let lister = scope.spawn(move || {
            send_lists(engine, regions, &sender.window, &listed)
                .map_err(|fault| sender.fail(fault))
                .unwrap_or_default()
        });
        if let Err(fault) = sender.read_all(sources, queue) {
            sender.fail(fault);
        }
        lister.join()
    });
    let Sender { sent, fault, .. } = sender;
    if let Some(fault) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(fault);
    }
    let lists = lists.map_err(|_| lister_ended())?;
    put_lists(sources, lists)?;
    Ok(sent.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn lister_ended() -> Fault {
    Fault::Internal("the lister ended by itself".to_owned())
}

fn listed_regions(source: &Source<'_>) -> Vec<ListedRegion> {
    let disk = source.image.number;
    let regions = source.image.regions.iter().enumerate();
    regions
        .map(|(region, place)| ListedRegion {
            name: ListName { disk, region },
            len: place.range.len(),
        })
        .collect()
}

fn put_lists(sources: &mut [Source<'_>], lists: Vec<ChunkListRef>) -> Result<(), Fault> {
    let mut lists = lists.into_iter();
    let regions = sources.iter_mut().flat_map(|one| &mut one.image.regions);
    for region in regions {
        let list = lists.next();
        region.content = list.ok_or_else(|| Fault::Internal("a region has no list".to_owned()))?;
    }
    Ok(())
}

struct Sender<'a> {
    engine: &'a Engine<'a>,
    /// Digests that this job has asked for already.
    known: Mutex<Known>,
    window: Window,
    sent: Mutex<Sent>,
    fault: Mutex<Option<Fault>>,
}

/// What a worker keeps from one read to the next.
struct Tools {
    compressor: Compressor<'static>,
    records: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender<'_> {
    /// Stops everything; the first fault is the one that is told.
    fn fail(&self, fault: Fault) {
        lock(&self.fault).get_or_insert(fault);
    }

    fn has_failed(&self) -> bool {
        lock(&self.fault).is_some()
    }

    /// Reads region after region; ends early when something has failed.
    fn read_all(
        &self,
        sources: &mut [Source<'_>],
        queue: SyncSender<Message>,
    ) -> Result<(), Fault> {
        let (mut number, mut region) = (0, 0);
        for source in sources {
            let device = source.device.as_ref();
            for (planned, image) in source.planned.iter_mut().zip(&source.image.regions) {
                let taken = planned.take(&DiskReader(device), device.sector().bytes());
                let plan = taken.map_err(|changed| {
                    Fault::NotAsPlanned(format!("{}: {changed}", device.name()))
                })?;
                for read_next in reads(&plan.ranges, &plan.cutting) {
                    let stop = || self.has_failed() || self.engine.check_cancelled().is_err();
                    self.window.wait(number, stop);
                    self.engine.check_cancelled()?;
                    if self.has_failed() {
                        return Ok(());
                    }
                    let start = image.range.start() + read_next.span.start();
                    let place = ByteRange::between(start, start + read_next.span.len());
                    let message = Message {
                        number,
                        region,
                        bytes: read(device, place)?,
                        read: read_next,
                    };
                    if queue.send(message).is_err() {
                        return Ok(());
                    }
                    number += 1;
                }
                region += 1;
            }
        }
        Ok(())
    }

    fn work(&self, receiver: &Mutex<Receiver<Message>>, results: &SyncSender<Listed>) {
        let mut tools = compressor().map(|compressor| Tools {
            compressor,
            records: Vec::new(),
        });
        loop {
            let message = lock(receiver).recv();
            let Ok(message) = message else {
                return;
            };
            // After a fault the queue is only emptied, so that the reader never waits for ever.
            if self.has_failed() {
                continue;
            }
            let result = match &mut tools {
                Ok(tools) => self.handle(message, tools),
                Err(error) => Err(Fault::Internal(format!("zstd: {error}"))),
            };
            match result {
                Ok(listed) => {
                    if results.send(listed).is_err() {
                        self.fail(lister_ended());
                    }
                }
                Err(fault) => self.fail(fault),
            }
        }
    }

    fn handle(&self, message: Message, tools: &mut Tools) -> Result<Listed, Fault> {
        let cut = message.read.chunks(message.bytes.bytes());
        let mut new: Vec<(Digest, &[u8])> = Vec::new();
        {
            let mut known = lock(&self.known);
            for (chunk, bytes) in &cut {
                if let Content::Data(digest) = chunk.content
                    && known.insert(digest)
                {
                    new.push((digest, bytes));
                }
            }
        }
        self.send_missing(&new, tools)?;
        let chunks: Vec<_> = cut.into_iter().map(|(chunk, _)| chunk).collect();
        let done = chunks.iter().map(|chunk| chunk.range.len()).sum();
        self.engine.tracker.advance(done);
        Ok(Listed {
            read: message.number,
            region: message.region,
            chunks,
        })
    }

    /// Sends those of a read's chunks that the server lacks.
    fn send_missing(&self, chunks: &[(Digest, &[u8])], tools: &mut Tools) -> Result<(), Fault> {
        if chunks.is_empty() {
            return Ok(());
        }
        let server = self.engine.server;
        let digests: Vec<_> = chunks.iter().map(|(digest, _)| *digest).collect();
        let missing = server
            .missing(&digests)
            .map_err(Fault::server("asking which chunks are missing"))?;
        let Tools {
            compressor,
            records,
        } = tools;
        records.clear();
        let mut sent = Sent::default();
        for ((digest, plain), _) in chunks.iter().zip(missing).filter(|(_, missing)| *missing) {
            append_record(compressor, *digest, plain, records)
                .map_err(|error| Fault::Internal(format!("compressing {digest}: {error}")))?;
            sent.chunks += 1;
            sent.plain_bytes += plain.len() as u64;
        }
        if records.is_empty() {
            return Ok(());
        }
        sent.sent_bytes = records.len() as u64;
        server
            .upload(records)
            .map_err(Fault::server("sending chunks"))?;
        self.engine.tracker.network(sent.sent_bytes);
        let mut total = lock(&self.sent);
        total.chunks += sent.chunks;
        total.plain_bytes += sent.plain_bytes;
        total.sent_bytes += sent.sent_bytes;
        Ok(())
    }
}

// The records of one read, none of which compresses, are one upload, and its digests one question.
const _: () = assert!(SPAN as usize * 2 + MAX_PIECES * 1024 <= protocol::api::MAX_UPLOAD);
const _: () = assert!(SPAN as usize / (16 << 10) <= MAX_PIECES);
const _: () = assert!(MAX_PIECES <= protocol::api::MAX_DIGESTS);
