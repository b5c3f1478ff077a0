//! Sending: from what was read to chunks on the server.
//!
//! One thread reads in disk order; workers look for zeros, compute digests, ask which chunks the
//! server lacks, compress those and send them. Memory is bounded by
//! ([`QUEUE`] + workers + 1) × [`SPAN`] bytes of plain data and as much compressed for each worker.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use backup::chunk::{Chunk, Content};
use backup::{ByteRange, Digest};
use zstd::bulk::Compressor;

use super::read::{Read, SPAN, Saved, read, reads};
use crate::device::{AlignedBuffer, BlockDevice};
use crate::job::error::Fault;
use crate::job::server::{compressor, encode_record};
use crate::job::{Engine, cores};
use crate::restore::is_zero;

/// Reads that wait for a worker.
const QUEUE: usize = 4;
/// Workers wait for the server now and then, so there are more of them than cores.
const MIN_WORKERS: usize = 8;
/// The longest run of zeros in one entry of a chunk list.
const ZERO_RUN: u64 = 1 << 30;

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
    read: Read,
    bytes: AlignedBuffer,
}

/// Reads the regions of one disk, sends what the server lacks, and returns the chunks of each region.
///
/// # Errors
/// The first fault of reader or workers; everything is stopped then.
pub(crate) fn send_disk(
    engine: &Engine<'_>,
    device: &dyn BlockDevice,
    regions: &[Saved],
    known: &Mutex<HashSet<Digest>>,
) -> Result<(Vec<Vec<Chunk>>, Sent), Fault> {
    let sender = Sender {
        engine,
        known,
        chunks: Mutex::new(vec![Vec::new(); regions.len()]),
        sent: Mutex::default(),
        fault: Mutex::new(None),
    };
    thread::scope(|scope| {
        let (queue, receiver) = sync_channel::<Message>(QUEUE);
        let receiver = Arc::new(Mutex::new(receiver));
        let sender = &sender;
        for _ in 0..cores().max(MIN_WORKERS) {
            let receiver = Arc::clone(&receiver);
            scope.spawn(move || sender.work(&receiver));
        }
        // Only the workers hold it: when none is left, the reader hears that instead of waiting.
        drop(receiver);
        sender.read_all(device, regions, &queue);
    });
    if let Some(fault) = sender
        .fault
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        return Err(fault);
    }
    let chunks = sender
        .chunks
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let sent = sender
        .sent
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok((chunks.into_iter().map(in_order).collect(), sent))
}

struct Sender<'a> {
    engine: &'a Engine<'a>,
    /// Digests that this job has asked for already.
    known: &'a Mutex<HashSet<Digest>>,
    chunks: Mutex<Vec<Vec<Chunk>>>,
    sent: Mutex<Sent>,
    fault: Mutex<Option<Fault>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender<'_> {
    fn read_all(&self, device: &dyn BlockDevice, regions: &[Saved], queue: &SyncSender<Message>) {
        for request in reads(regions) {
            if lock(&self.fault).is_some() {
                return;
            }
            let start = regions[request.region].region.start() + request.span.start();
            let place = ByteRange::between(start, start + request.span.len());
            let result = self
                .engine
                .check_cancelled()
                .and_then(|()| Ok(read(device, place)?));
            match result {
                Ok(bytes) => {
                    if queue
                        .send(Message {
                            read: request,
                            bytes,
                        })
                        .is_err()
                    {
                        return;
                    }
                }
                Err(fault) => {
                    lock(&self.fault).get_or_insert(fault);
                    return;
                }
            }
        }
    }

    fn work(&self, receiver: &Mutex<Receiver<Message>>) {
        let mut compressor = compressor();
        loop {
            let message = lock(receiver).recv();
            let Ok(message) = message else {
                return;
            };
            // After a fault the queue is only emptied, so that the reader never waits for ever.
            if lock(&self.fault).is_some() {
                continue;
            }
            let result = match &mut compressor {
                Ok(compressor) => self.handle(&message, compressor),
                Err(error) => Err(Fault::Internal(format!("zstd: {error}"))),
            };
            if let Err(fault) = result {
                lock(&self.fault).get_or_insert(fault);
            }
        }
    }

    fn handle(&self, message: &Message, compressor: &mut Compressor<'_>) -> Result<(), Fault> {
        let bytes_of = |piece: ByteRange| {
            let from = (piece.start() - message.read.span.start()) as usize;
            &message.bytes.bytes()[from..from + piece.len() as usize]
        };
        let chunks: Vec<_> = message
            .read
            .pieces
            .iter()
            .map(|piece| {
                let bytes = bytes_of(*piece);
                let content = if is_zero(bytes) {
                    Content::Zero
                } else {
                    Content::Data(Digest::of(bytes))
                };
                Chunk {
                    range: *piece,
                    content,
                }
            })
            .collect();
        let mut new: Vec<(Digest, &[u8])> = Vec::new();
        {
            let mut known = lock(self.known);
            for chunk in &chunks {
                if let Content::Data(digest) = chunk.content
                    && known.insert(digest)
                {
                    new.push((digest, bytes_of(chunk.range)));
                }
            }
        }
        self.send_missing(&new, compressor)?;
        let done = chunks.iter().map(|chunk| chunk.range.len()).sum();
        lock(&self.chunks)[message.read.region].extend(chunks);
        self.engine.tracker.advance(done);
        Ok(())
    }

    fn send_missing(
        &self,
        chunks: &[(Digest, &[u8])],
        compressor: &mut Compressor<'_>,
    ) -> Result<(), Fault> {
        if chunks.is_empty() {
            return Ok(());
        }
        let server = self.engine.server;
        for part in chunks.chunks(protocol::api::MAX_DIGESTS) {
            let digests: Vec<_> = part.iter().map(|(digest, _)| *digest).collect();
            let missing = server
                .missing(&digests)
                .map_err(Fault::server("asking which chunks are missing"))?;
            let mut records = Vec::new();
            let mut sent = Sent::default();
            for ((digest, plain), _) in part.iter().zip(missing).filter(|(_, missing)| *missing) {
                let record = encode_record(compressor, *digest, plain)
                    .map_err(|error| Fault::Internal(format!("compressing {digest}: {error}")))?;
                if records.len() + record.len() > protocol::api::MAX_UPLOAD {
                    server
                        .upload(&records)
                        .map_err(Fault::server("sending chunks"))?;
                    records.clear();
                }
                sent.chunks += 1;
                sent.plain_bytes += plain.len() as u64;
                sent.sent_bytes += record.len() as u64;
                records.extend(record);
            }
            if !records.is_empty() {
                server
                    .upload(&records)
                    .map_err(Fault::server("sending chunks"))?;
            }
            self.engine.tracker.network(sent.sent_bytes);
            let mut total = lock(&self.sent);
            total.chunks += sent.chunks;
            total.plain_bytes += sent.plain_bytes;
            total.sent_bytes += sent.sent_bytes;
        }
        Ok(())
    }
}

/// Chunks in order of offset, with runs of zeros merged.
fn in_order(mut chunks: Vec<Chunk>) -> Vec<Chunk> {
    chunks.sort_by_key(|chunk| chunk.range.start());
    let mut merged: Vec<Chunk> = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        match merged.last_mut() {
            Some(before)
                if before.content == Content::Zero
                    && chunk.content == Content::Zero
                    && before.range.end() == chunk.range.start()
                    && before.range.len() + chunk.range.len() <= ZERO_RUN =>
            {
                before.range = ByteRange::between(before.range.start(), chunk.range.end());
            }
            _ => merged.push(chunk),
        }
    }
    merged
}

// A read of single small pieces is one upload.
const _: () = assert!(SPAN <= protocol::api::MAX_UPLOAD as u64 / 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_zeros_become_one_entry_and_data_stays() {
        let zero = |start, end| Chunk {
            range: ByteRange::between(start, end),
            content: Content::Zero,
        };
        let data = Chunk {
            range: ByteRange::between(30, 40),
            content: Content::Data(Digest::of(b"x")),
        };
        let chunks = vec![zero(20, 30), data, zero(0, 10), zero(10, 20), zero(41, 50)];
        assert_eq!(in_order(chunks), [zero(0, 30), data, zero(41, 50)]);
    }
}
