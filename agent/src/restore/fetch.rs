//! Fetching: one request for what a batch is missing, every chunk decoded into its place and checked there.
//!
//! Asking and decoding are apart, so that a connection does not wait for the processor. What is *not* here: disks,
//! and how many threads do either ([`super::pipeline`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use backup::Digest;
use backup::chunk::{Content, RecordHeader};
use zstd::bulk::Decompressor;

use super::batch::{BUFFER, Loaded};
use super::work::{Batch, Piece};
use crate::device::AlignedBuffer;
use crate::job::Engine;
use crate::job::error::Fault;
use crate::net::http::RequestError;

/// Counts what is fetched.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    bytes: AtomicU64,
    chunks: AtomicU64,
}

impl Fetched {
    /// Plain bytes and chunks.
    pub(super) fn so_far(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.bytes), of(&self.chunks))
    }
}

/// Fetches pieces that one request can carry: their plain bytes by digest.
///
/// # Errors
/// What the server did not give.
pub(super) fn batch(
    engine: &Engine<'_>,
    names: &[String],
    pieces: &[Piece],
) -> Result<HashMap<Digest, Vec<u8>>, Fault> {
    let fetched = Fetched::default();
    let batch = Batch {
        number: 0,
        pieces: pieces.to_vec(),
    };
    let mut loaded = Loaded::new(batch, AlignedBuffer::new(BUFFER));
    let mut fetcher = Fetcher::new(engine, names, &fetched)?;
    if let Some(answer) = fetcher.ask(&loaded, Vec::new())? {
        fetcher.decode(&mut loaded, &answer)?;
    }
    let mut plain = HashMap::new();
    for (number, piece) in pieces.iter().enumerate() {
        if let Content::Data(digest) = piece.content {
            plain.insert(digest, loaded.bytes(number).to_vec());
        }
    }
    Ok(plain)
}

/// What the server said to a request for what a batch is missing.
pub(super) struct Answer {
    /// Pieces that are wanted, each digest once, in the order asked for.
    wanted: Vec<(Digest, usize)>,
    /// Pieces with the content of another one: from, to.
    copies: Vec<(usize, usize)>,
    /// Records of the wanted, or that one of them spoilt the answer to all.
    records: Result<Vec<u8>, RequestError>,
}

impl Answer {
    /// Memory to use again.
    pub(super) fn into_memory(self) -> Vec<u8> {
        self.records.unwrap_or_default()
    }
}

/// One thread's means to fetch and to decode.
pub(super) struct Fetcher<'a> {
    engine: &'a Engine<'a>,
    /// Names of the target disks, for messages.
    names: &'a [String],
    fetched: &'a Fetched,
    zstd: Decompressor<'static>,
}

impl<'a> Fetcher<'a> {
    /// A fetcher.
    ///
    /// # Errors
    /// What zstd says.
    pub(super) fn new(
        engine: &'a Engine<'a>,
        names: &'a [String],
        fetched: &'a Fetched,
    ) -> Result<Self, Fault> {
        let zstd = Decompressor::new();
        Ok(Self {
            engine,
            names,
            fetched,
            zstd: zstd.map_err(|error| Fault::Internal(format!("zstd: {error}")))?,
        })
    }

    /// Asks for all pieces that are missing and not here yet, with memory for the answer; none when nothing is.
    ///
    /// # Errors
    /// A server that does not answer.
    pub(super) fn ask(&self, loaded: &Loaded, memory: Vec<u8>) -> Result<Option<Answer>, Fault> {
        let mut wanted: Vec<(Digest, usize)> = Vec::new();
        let mut first_with = HashMap::new();
        let mut copies = Vec::new();
        for (number, piece) in loaded.batch.pieces.iter().enumerate() {
            let Content::Data(digest) = piece.content else {
                continue;
            };
            if !loaded.missing[number] || loaded.filled[number] {
                continue;
            }
            match first_with.entry((digest, piece.range.len())) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    copies.push((*first.get(), number));
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(number);
                    wanted.push((digest, number));
                }
            }
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let digests: Vec<_> = wanted.iter().map(|(digest, _)| *digest).collect();
        let mut records = memory;
        let records = match self.request(&digests, &mut records) {
            Ok(()) => Ok(records),
            Err(error) if is_about_a_chunk(&error) => Err(error),
            Err(error) => return Err(Fault::server("fetching chunks")(error)),
        };
        Ok(Some(Answer {
            wanted,
            copies,
            records,
        }))
    }

    /// Puts the bytes of an answer into their places.
    ///
    /// # Errors
    /// A server that does not have them, or twice sent something else.
    pub(super) fn decode(&mut self, loaded: &mut Loaded, answer: &Answer) -> Result<(), Fault> {
        match &answer.records {
            Ok(records) => {
                let mut rest = records.as_slice();
                for (digest, number) in &answer.wanted {
                    let out = loaded.bytes_mut(*number);
                    // Damage on the wire is possible; damage in the store stays.
                    if let Err(reason) = take_record(&mut self.zstd, &mut rest, *digest, out) {
                        self.again(*digest, *number, loaded, &reason)?;
                    }
                }
            }
            // One bad chunk spoils the answer to all: ask for each, to name the one.
            Err(_) => {
                for (digest, number) in &answer.wanted {
                    self.again(*digest, *number, loaded, "the server refused it")?;
                }
            }
        }
        for (from, to) in &answer.copies {
            loaded.copy(*from, *to);
        }
        let lens = answer.wanted.iter();
        let bytes: u64 = lens
            .map(|(_, number)| loaded.bytes(*number).len() as u64)
            .sum();
        self.fetched.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.fetched
            .chunks
            .fetch_add(answer.wanted.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn request(&self, digests: &[Digest], answer: &mut Vec<u8>) -> Result<(), RequestError> {
        self.engine.server.fetch(digests, answer)?;
        self.engine.tracker.network(answer.len() as u64);
        Ok(())
    }

    /// Asks for one chunk once more; a second failure is final.
    fn again(
        &mut self,
        digest: Digest,
        number: usize,
        loaded: &mut Loaded,
        first: &str,
    ) -> Result<(), Fault> {
        log::warn!("chunk {digest}: {first}; asking for it again");
        let piece: Option<Piece> = loaded.batch.pieces.get(number).copied();
        let disk = piece.map_or(0, |piece| piece.disk);
        let damaged = |reason: String| Fault::DamagedChunk {
            digest,
            device: self.names.get(disk).cloned().unwrap_or_default(),
            offset: piece.map_or(0, |piece| piece.range.start()),
            reason,
        };
        let mut answer = Vec::new();
        match self.request(&[digest], &mut answer) {
            Ok(()) => {
                let out = loaded.bytes_mut(number);
                take_record(&mut self.zstd, &mut answer.as_slice(), digest, out).map_err(damaged)
            }
            Err(error) if is_about_a_chunk(&error) => Err(damaged(error.to_string())),
            Err(error) => Err(Fault::server(format!("fetching chunk {digest}"))(error)),
        }
    }
}

fn is_about_a_chunk(error: &RequestError) -> bool {
    matches!(error.code(), Some("damaged-chunk" | "missing-chunk"))
}

/// Takes one record off the front of an answer and decodes it into `out`; checked against the digest.
fn take_record(
    zstd: &mut Decompressor<'_>,
    rest: &mut &[u8],
    digest: Digest,
    out: &mut [u8],
) -> Result<(), String> {
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
    if header.plain_len as usize != out.len() {
        return Err(format!(
            "it is {} bytes (expected {})",
            header.plain_len,
            out.len()
        ));
    }
    let (frame, after) = body
        .split_at_checked(header.stored_len as usize)
        .ok_or_else(|| "the answer ends within its record".to_owned())?;
    *rest = after;
    let len = zstd
        .decompress_to_buffer(frame, out)
        .map_err(|error| format!("it does not decompress ({error})"))?;
    if len != out.len() {
        return Err(format!("it decompresses to {len} bytes"));
    }
    let found = Digest::of(out);
    if found != digest {
        return Err(format!("its bytes have digest {found}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup::chunk::compressor;

    use crate::job::server::encode_record;

    fn take(rest: &mut &[u8], digest: Digest, len: usize) -> Result<Vec<u8>, String> {
        let mut out = vec![0; len];
        let mut zstd = Decompressor::new().unwrap();
        take_record(&mut zstd, rest, digest, &mut out).map(|()| out)
    }

    #[test]
    fn a_record_is_taken_and_the_rest_is_left() {
        let (one, two) = (vec![1; 5000], vec![2; 70]);
        let mut zstd = compressor().unwrap();
        let mut answer = encode_record(&mut zstd, Digest::of(&one), &one).unwrap();
        answer.extend(encode_record(&mut zstd, Digest::of(&two), &two).unwrap());
        let mut rest = answer.as_slice();
        assert_eq!(take(&mut rest, Digest::of(&one), 5000), Ok(one));
        assert_eq!(take(&mut rest, Digest::of(&two), 70), Ok(two));
        assert!(rest.is_empty());
    }

    #[test]
    fn no_flipped_byte_and_no_cut_gets_through() {
        let plain: Vec<u8> = (0..600u32).map(|value| (value % 251) as u8).collect();
        let digest = Digest::of(&plain);
        let record = encode_record(&mut compressor().unwrap(), digest, &plain).unwrap();
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x10;
            match take(&mut damaged.as_slice(), digest, 600) {
                // A bit of the frame's header that means nothing to the decoder.
                Ok(bytes) => assert_eq!(bytes, plain, "byte {at}"),
                Err(reason) => assert!(!reason.is_empty()),
            }
            assert!(
                take(&mut &record[..at], digest, 600).is_err(),
                "cut at {at}"
            );
        }
        assert!(take(&mut record.as_slice(), digest, 599).is_err());
    }
}
