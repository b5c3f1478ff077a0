//! Fetching: several requests in flight, every chunk decoded and checked before anyone sees it.
//!
//! Memory is bounded by [`WINDOW`] × [`BATCH_BYTES`], compressed and plain: a fetcher takes a batch
//! only when it is less than a window ahead of what is written. What is *not* here: disks.
//!
//! [`BATCH_BYTES`]: super::work::BATCH_BYTES

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use backup::Digest;
use backup::chunk::{Content, RecordHeader};
use zstd::bulk::Decompressor;

use super::work::Piece;
use crate::job::Engine;
use crate::job::error::Fault;
use crate::net::http::RequestError;

/// How many batches may be between the oldest that is not written and the newest that is asked for.
pub(crate) const WINDOW: usize = 24;
/// Requests in flight: with 16 a restore was 2.7 to 5 times faster than with one; 8 to 16 fill a link.
const FETCHERS: usize = 12;

/// The plain bytes of a batch, each checked against its digest.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The batch's pieces.
    pub(crate) pieces: Range<usize>,
    /// Plain bytes by digest.
    pub(crate) plain: HashMap<Digest, Vec<u8>>,
}

/// Fetches all batches and hands them to `consume` in order.
///
/// # Errors
/// The first fault of a fetcher or of `consume`; everything is stopped then.
pub(crate) fn in_order(
    engine: &Engine<'_>,
    names: &[String],
    pieces: &[Piece],
    batches: &[Range<usize>],
    mut consume: impl FnMut(Fetched) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let gate = Gate::new(batches.len());
    let fetcher = Fetcher {
        engine,
        names,
        pieces,
    };
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(WINDOW);
        for _ in 0..FETCHERS.min(batches.len()) {
            let (sender, gate, fetcher) = (sender.clone(), &gate, &fetcher);
            scope.spawn(move || fetcher.run(gate, batches, &sender));
        }
        drop(sender);
        let result = drain(&receiver, &gate, batches.len(), &mut consume);
        // Lets fetchers that wait for the window or for room in the channel end.
        gate.stop();
        drop(receiver);
        result
    })
}

/// Fetches one batch: its plain bytes by digest.
///
/// # Errors
/// What the server did not give.
pub(super) fn batch(
    engine: &Engine<'_>,
    names: &[String],
    pieces: &[Piece],
    range: &Range<usize>,
) -> Result<HashMap<Digest, Vec<u8>>, Fault> {
    let mut zstd =
        Decompressor::new().map_err(|error| Fault::Internal(format!("zstd: {error}")))?;
    let fetcher = Fetcher {
        engine,
        names,
        pieces,
    };
    Ok(fetcher.batch(range, &mut zstd)?.plain)
}

type Message = (usize, Result<Fetched, Fault>);

fn drain(
    receiver: &Receiver<Message>,
    gate: &Gate,
    count: usize,
    consume: &mut impl FnMut(Fetched) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    while next < count {
        let (number, fetched) = receiver
            .recv()
            .map_err(|_| Fault::Internal("the fetchers ended early".to_owned()))?;
        early.insert(number, fetched?);
        while let Some(fetched) = early.remove(&next) {
            consume(fetched)?;
            next += 1;
            gate.written(next);
        }
    }
    Ok(())
}

/// Keeps fetchers within a window of what is written.
#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    moved: Condvar,
    count: usize,
}

#[derive(Debug, Default)]
struct GateState {
    claimed: usize,
    written: usize,
    stopped: bool,
}

impl Gate {
    fn new(count: usize) -> Self {
        Self {
            state: Mutex::default(),
            moved: Condvar::new(),
            count,
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch, when the window has room for it; none at the end.
    fn claim(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.claimed == self.count {
                return None;
            }
            if state.claimed < state.written + WINDOW {
                state.claimed += 1;
                return Some(state.claimed - 1);
            }
            state = self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self, count: usize) {
        self.lock().written = count;
        self.moved.notify_all();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }
}

/// A batch that never comes must not be waited for.
struct StopOnPanic<'a>(&'a Gate);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

struct Fetcher<'a> {
    engine: &'a Engine<'a>,
    /// Names of the target disks, for messages.
    names: &'a [String],
    pieces: &'a [Piece],
}

impl Fetcher<'_> {
    fn run(&self, gate: &Gate, batches: &[Range<usize>], sender: &SyncSender<Message>) {
        let _stop = StopOnPanic(gate);
        let mut decompressor = Decompressor::new();
        while let Some(number) = gate.claim() {
            let result = match self.engine.check_cancelled() {
                Ok(()) => match &mut decompressor {
                    Ok(decompressor) => self.batch(&batches[number], decompressor),
                    Err(error) => Err(Fault::Internal(format!("zstd: {error}"))),
                },
                Err(fault) => Err(fault),
            };
            let failed = result.is_err();
            if sender.send((number, result)).is_err() || failed {
                return;
            }
        }
    }

    fn batch(&self, range: &Range<usize>, zstd: &mut Decompressor<'_>) -> Result<Fetched, Fault> {
        let mut wanted: Vec<(Digest, &Piece)> = Vec::new();
        let mut plain = HashMap::new();
        for piece in &self.pieces[range.clone()] {
            if let Content::Data(digest) = piece.content
                && plain.insert(digest, Vec::new()).is_none()
            {
                wanted.push((digest, piece));
            }
        }
        if wanted.is_empty() {
            return Ok(Fetched {
                pieces: range.clone(),
                plain,
            });
        }
        let digests: Vec<_> = wanted.iter().map(|(digest, _)| *digest).collect();
        match self.request(&digests) {
            Ok(body) => {
                let mut rest = body.as_slice();
                for (digest, piece) in &wanted {
                    // Damage on the wire is possible; damage in the store stays.
                    let bytes = match take_record(zstd, &mut rest, *digest, piece.range.len()) {
                        Ok(bytes) => bytes,
                        Err(reason) => self.again(zstd, *digest, piece, &reason)?,
                    };
                    plain.insert(*digest, bytes);
                }
            }
            // One bad chunk spoils the answer to all: ask for each, to name the one.
            Err(error) if is_about_a_chunk(&error) => {
                for (digest, piece) in &wanted {
                    plain.insert(
                        *digest,
                        self.again(zstd, *digest, piece, "the server refused it")?,
                    );
                }
            }
            Err(error) => return Err(Fault::server("fetching chunks")(error)),
        }
        Ok(Fetched {
            pieces: range.clone(),
            plain,
        })
    }

    fn request(&self, digests: &[Digest]) -> Result<Vec<u8>, RequestError> {
        let body = self.engine.server.fetch(digests)?;
        self.engine.tracker.network(body.len() as u64);
        Ok(body)
    }

    /// Asks for one chunk once more; a second failure is final.
    fn again(
        &self,
        zstd: &mut Decompressor<'_>,
        digest: Digest,
        piece: &Piece,
        first: &str,
    ) -> Result<Vec<u8>, Fault> {
        log::warn!("chunk {digest}: {first}; asking for it again");
        let damaged = |reason: String| Fault::DamagedChunk {
            digest,
            device: self.names.get(piece.disk).cloned().unwrap_or_default(),
            offset: piece.range.start(),
            reason,
        };
        match self.request(&[digest]) {
            Ok(body) => {
                take_record(zstd, &mut body.as_slice(), digest, piece.range.len()).map_err(damaged)
            }
            Err(error) if is_about_a_chunk(&error) => Err(damaged(error.to_string())),
            Err(error) => Err(Fault::server(format!("fetching chunk {digest}"))(error)),
        }
    }
}

fn is_about_a_chunk(error: &RequestError) -> bool {
    matches!(error.code(), Some("damaged-chunk" | "missing-chunk"))
}

/// Takes one record off the front of an answer: the plain bytes, checked against the digest.
fn take_record(
    zstd: &mut Decompressor<'_>,
    rest: &mut &[u8],
    digest: Digest,
    plain_len: u64,
) -> Result<Vec<u8>, String> {
    let (head, body) = rest
        .split_first_chunk::<{ RecordHeader::LEN }>()
        .ok_or_else(|| format!("the answer ends {} bytes into its record", rest.len()))?;
    let header = RecordHeader::decode(head).map_err(|error| error.to_string())?;
    if header.digest != digest {
        return Err(format!(
            "the server sent chunk {} in its place",
            header.digest
        ));
    }
    if u64::from(header.plain_len) != plain_len {
        return Err(format!(
            "it is {} bytes (expected {plain_len})",
            header.plain_len
        ));
    }
    let (frame, after) = body
        .split_at_checked(header.stored_len as usize)
        .ok_or_else(|| "the answer ends within its record".to_owned())?;
    *rest = after;
    let plain = zstd
        .decompress(frame, header.plain_len as usize)
        .map_err(|error| format!("it does not decompress ({error})"))?;
    let found = Digest::of(&plain);
    if found != digest {
        return Err(format!("its bytes have digest {found}"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup::chunk::compressor;

    use crate::job::server::encode_record;

    #[test]
    fn a_record_is_taken_and_the_rest_is_left() {
        let (one, two) = (vec![1; 5000], vec![2; 70]);
        let mut zstd = compressor().unwrap();
        let mut answer = encode_record(&mut zstd, Digest::of(&one), &one).unwrap();
        answer.extend(encode_record(&mut zstd, Digest::of(&two), &two).unwrap());
        let mut zstd = Decompressor::new().unwrap();
        let mut rest = answer.as_slice();
        assert_eq!(
            take_record(&mut zstd, &mut rest, Digest::of(&one), 5000),
            Ok(one)
        );
        assert_eq!(
            take_record(&mut zstd, &mut rest, Digest::of(&two), 70),
            Ok(two)
        );
        assert!(rest.is_empty());
    }

    #[test]
    fn no_flipped_byte_and_no_cut_gets_through() {
        let plain: Vec<u8> = (0..600u32).map(|value| (value % 251) as u8).collect();
        let digest = Digest::of(&plain);
        let record = encode_record(&mut compressor().unwrap(), digest, &plain).unwrap();
        let mut zstd = Decompressor::new().unwrap();
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x10;
            match take_record(&mut zstd, &mut damaged.as_slice(), digest, 600) {
                // A bit of the frame's header that means nothing to the decoder.
                Ok(bytes) => assert_eq!(bytes, plain, "byte {at}"),
                Err(reason) => assert!(!reason.is_empty()),
            }
            assert!(
                take_record(&mut zstd, &mut &record[..at], digest, 600).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn the_window_holds_fetchers_back_until_something_is_written() {
        let gate = Gate::new(WINDOW + 2);
        for number in 0..WINDOW {
            assert_eq!(gate.claim(), Some(number));
        }
        gate.written(1);
        assert_eq!(gate.claim(), Some(WINDOW));
        gate.stop();
        assert_eq!(gate.claim(), None);
    }
}
