//! Sending: from what is read of an image to chunks and chunk lists in the store.
//!
//! Invariant: memory does not grow with the disk: at most [`WINDOW`] reads are under way, of which each is in
//! memory until a worker has sent it; workers and their queue hold at most [`QUEUE`] + 1 + their number of
//! them. Lists leave in the order of the reads, whatever order the workers end in.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use axum::http::Method;
use backup::chunk::{Chunk, Content, Known, ListBuilder, ListPart, append_record, compressor};
use backup::filesystem::ReadAt;
use backup::manifest::{ChunkListRef, RestorePointId};
use backup::plan::kept::KeptPlan;
use backup::plan::reads::{MAX_PIECES, Read, SPAN, reads};
use backup::{ByteRange, Digest};
use protocol::api::FinishList;
use protocol::import as api;

use super::super::{ExchangeError, OnProgress, Progress, Stop};
use super::{json, server};
use crate::control_client::ControlClient;
use crate::store::chain;

/// How many reads may be under way or done before the first of them that is not done.
const WINDOW: usize = 64;
/// Reads that wait for a worker.
const QUEUE: usize = 3;
/// A part of a list is sent when it has this many bytes.
const PART: usize = 1 << 20;

/// A region of the disk, or a logical volume.
pub(super) struct Source<'a> {
    /// What its list is called.
    pub(super) name: String,
    /// What it lies on.
    pub(super) reader: &'a dyn ReadAt,
    /// Its first byte there.
    pub(super) start: u64,
    /// Its length in bytes.
    pub(super) len: u64,
    /// What is read of it.
    pub(super) plan: KeptPlan,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    /// Chunks that the store lacked.
    pub(super) chunks: u64,
}

/// What the work is done with.
pub(super) struct Work<'a> {
    pub(super) client: &'a ControlClient,
    pub(super) id: &'a RestorePointId,
    /// Bytes of a sector.
    pub(super) sector: u64,
    pub(super) progress: OnProgress<'a>,
    /// Bytes that will be read.
    pub(super) total: u64,
    pub(super) stop: &'a Stop,
}

struct Message {
    number: u64,
    source: usize,
    read: Read,
    bytes: Vec<u8>,
}

struct Listed {
    source: usize,
    chunks: Vec<Chunk>,
}

struct Sender<'a> {
    work: &'a Work<'a>,
    /// Digests that were asked for already.
    known: Mutex<Known>,
    done: Mutex<(u64, Sent)>,
    fault: Mutex<Option<ExchangeError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads all sources and sends what the store lacks; the names of their lists, in their order.
///
/// # Errors
/// The first fault; everything is stopped then.
pub(super) fn send(
    work: &Work<'_>,
    sources: &mut [Source<'_>],
) -> Result<(Vec<ChunkListRef>, Sent), ExchangeError> {
    let names: Vec<_> = sources
        .iter()
        .map(|source| (source.name.clone(), source.len))
        .collect();
    let sender = Sender {
        work,
        known: Mutex::default(),
        done: Mutex::default(),
        fault: Mutex::new(None),
    };
    let lists = thread::scope(|scope| {
        let (sender, names) = (&sender, &names);
        let (queue, messages) = sync_channel::<Message>(QUEUE);
        let (results, listed) = sync_channel::<(u64, Listed)>(WINDOW);
        let (give, tokens) = sync_channel::<()>(WINDOW);
        for _ in 0..WINDOW {
            // There is room for exactly these.
            let _ = give.send(());
        }
        let messages = Arc::new(Mutex::new(messages));
        let workers = thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..workers.clamp(2, 16) {
            let (messages, results) = (Arc::clone(&messages), results.clone());
            scope.spawn(move || {
                if let Err(fault) = sender.work(&messages, &results) {
                    sender.fail(fault);
                }
            });
        }
        // Only the workers hold these: when none is left, reader and lister hear it.
        drop((messages, results));
        let lister = scope.spawn(move || {
            sender
                .list(names, &listed, &give)
                .map_err(|fault| sender.fail(fault))
                .unwrap_or_default()
        });
        if let Err(fault) = sender.read_all(sources, &queue, &tokens) {
            sender.fail(fault);
        }
        drop((queue, tokens));
        lister.join()
    });
    let Sender { done, fault, .. } = sender;
    if let Some(fault) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(fault);
    }
    let lists =
        lists.map_err(|_| ExchangeError::Internal("the lister ended by itself".to_owned()))?;
    Ok((
        lists,
        done.into_inner().unwrap_or_else(PoisonError::into_inner).1,
    ))
}

impl Sender<'_> {
    /// Stops everything; the first fault is the one that is told.
    fn fail(&self, fault: ExchangeError) {
        lock(&self.fault).get_or_insert(fault);
    }

    fn has_failed(&self) -> bool {
        lock(&self.fault).is_some()
    }

    /// Reads source after source; ends early when something has failed.
    fn read_all(
        &self,
        sources: &mut [Source<'_>],
        queue: &SyncSender<Message>,
        tokens: &Receiver<()>,
    ) -> Result<(), ExchangeError> {
        let mut number = 0;
        for (index, source) in sources.iter_mut().enumerate() {
            let plan = source.plan.take(source.reader, self.work.sector);
            let plan = plan.map_err(|changed| ExchangeError::Internal(changed.to_string()))?;
            for next in reads(&plan.ranges, &plan.cutting) {
                if !self.may_go_on(tokens)? {
                    return Ok(());
                }
                // At most SPAN.
                let mut bytes = vec![0; next.span.len() as usize];
                let at = source.start + next.span.start();
                source
                    .reader
                    .read_at(at, &mut bytes)
                    .map_err(|error| ExchangeError::Source {
                        path: format!(
                            "the image, {}",
                            ByteRange::between(at, at + next.span.len())
                        )
                        .into(),
                        source: std::io::Error::other(error.to_string()),
                    })?;
                let message = Message {
                    number,
                    source: index,
                    read: next,
                    bytes,
                };
                if queue.send(message).is_err() {
                    return Ok(());
                }
                number += 1;
            }
        }
        Ok(())
    }

    /// Waits until one more read may be made; false when something has failed.
    fn may_go_on(&self, tokens: &Receiver<()>) -> Result<bool, ExchangeError> {
        loop {
            self.work.stop.check()?;
            if self.has_failed() {
                return Ok(false);
            }
            match tokens.recv_timeout(Duration::from_millis(100)) {
                Ok(()) => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
        }
    }

    fn work(
        &self,
        messages: &Mutex<Receiver<Message>>,
        results: &SyncSender<(u64, Listed)>,
    ) -> Result<(), ExchangeError> {
        let internal = |what: String| ExchangeError::Internal(what);
        let mut compressor = compressor().map_err(|error| internal(format!("zstd: {error}")))?;
        let mut records = Vec::new();
        loop {
            let message = lock(messages).recv();
            let Ok(message) = message else {
                return Ok(());
            };
            // After a fault the queue is only emptied, so that the reader never waits for ever.
            if self.has_failed() {
                continue;
            }
            let cut = message.read.chunks(&message.bytes);
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
            let missing = self.missing(&new)?;
            records.clear();
            let mut count = 0;
            for ((digest, plain), _) in new.iter().zip(missing).filter(|(_, missing)| *missing) {
                append_record(&mut compressor, *digest, plain, &mut records)
                    .map_err(|error| internal(format!("compressing {digest}: {error}")))?;
                count += 1;
            }
            if count > 0 {
                let path = api::upload_chunks(self.work.id);
                let client = self.work.client;
                client
                    .send(Method::POST, &path, records.clone())
                    .map_err(server("storing chunks"))?;
            }
            let chunks: Vec<_> = cut.into_iter().map(|(chunk, _)| chunk).collect();
            self.advance(chunks.iter().map(|chunk| chunk.range.len()).sum(), count);
            let listed = Listed {
                source: message.source,
                chunks,
            };
            if results.send((message.number, listed)).is_err() {
                return Ok(());
            }
        }
    }

    fn missing(&self, chunks: &[(Digest, &[u8])]) -> Result<Vec<bool>, ExchangeError> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let digests = chunks.iter().flat_map(|(digest, _)| *digest.as_bytes());
        let path = api::missing_chunks(self.work.id);
        let answer = self
            .work
            .client
            .send(Method::POST, &path, digests.collect())
            .map_err(server("asking which chunks are missing"))?;
        if answer.len() != chunks.len() {
            return Err(ExchangeError::Internal(format!(
                "{} answers to {} digests",
                answer.len(),
                chunks.len()
            )));
        }
        Ok(answer.iter().map(|byte| *byte != 0).collect())
    }

    fn advance(&self, bytes: u64, chunks: u64) {
        let done = {
            let mut done = lock(&self.done);
            done.0 += bytes;
            done.1.chunks += chunks;
            done.0
        };
        (self.work.progress)(Progress {
            stage: "reading and storing",
            done,
            total: self.work.total,
        });
    }

    /// Puts what the workers found in order and sends the lists of all sources.
    fn list(
        &self,
        names: &[(String, u64)],
        listed: &Receiver<(u64, Listed)>,
        give: &SyncSender<()>,
    ) -> Result<Vec<ChunkListRef>, ExchangeError> {
        let mut lists: Vec<ChunkListRef> = Vec::with_capacity(names.len());
        let mut open: Option<ListBuilder> = None;
        let (mut early, mut next) = (BTreeMap::new(), 0);
        while let Ok((number, one)) = listed.recv() {
            early.insert(number, one);
            while let Some(one) = early.remove(&next) {
                next += 1;
                while lists.len() < one.source {
                    let (name, len) = &names[lists.len()];
                    lists.push(self.close(name, open.take(), *len)?);
                }
                let (name, len) = &names[one.source];
                let builder = open.get_or_insert_with(|| ListBuilder::new(*len));
                for chunk in &one.chunks {
                    let pushed = builder.push(chunk);
                    pushed.map_err(|error| ExchangeError::Internal(chain(&error)))?;
                    if builder.part_len() >= PART {
                        self.send_part(name, builder.take_part())?;
                    }
                }
                // A reader that is gone needs none.
                let _ = give.try_send(());
            }
        }
        // What stopped the others is told by them.
        if self.has_failed() {
            return Ok(lists);
        }
        while let Some((name, len)) = names.get(lists.len()) {
            lists.push(self.close(name, open.take(), *len)?);
        }
        Ok(lists)
    }

    fn send_part(&self, name: &str, part: ListPart) -> Result<(), ExchangeError> {
        let path = api::list_part(self.work.id, name);
        self.work
            .client
            .send(
                Method::PUT,
                &format!("{path}?offset={}", part.offset),
                part.bytes,
            )
            .map_err(server("storing a chunk list"))?;
        Ok(())
    }

    fn close(
        &self,
        name: &str,
        open: Option<ListBuilder>,
        len: u64,
    ) -> Result<ChunkListRef, ExchangeError> {
        let builder = open.unwrap_or_else(|| ListBuilder::new(len));
        let built = builder.finish();
        let built = built.map_err(|error| ExchangeError::Internal(chain(&error)))?;
        if let Some(part) = built.last {
            self.send_part(name, part)?;
        }
        let whole = FinishList {
            length: built.length,
            digest: built.name.digest,
        };
        self.work
            .client
            .send(
                Method::POST,
                &api::list_part(self.work.id, name),
                json(&whole)?,
            )
            .map_err(server("ending a chunk list"))?;
        Ok(built.name)
    }
}

// The records of one read, none of which compresses, are one upload, and its digests one question.
const _: () = assert!(SPAN as usize * 2 + MAX_PIECES * 1024 <= protocol::api::MAX_UPLOAD);
const _: () = assert!(MAX_PIECES <= protocol::api::MAX_DIGESTS);
