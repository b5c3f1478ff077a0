//! Reading records for a restore, while garbage collection may move them.
//!
//! Invariant: bytes are only ever read from the pack that the index names, and packs' numbers are not
//! used twice: a record that was moved is looked up again, never mistaken for another one.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use backup::Digest;
use backup::chunk::{RecordHeader, append_record};

use super::chunk_store::{BATCH, ChunkStore, Location};
use super::difference::MOVES;
use super::pack::PackId;
use super::record::Checker;
use super::storage::OpenFile;
use super::{Batches, StoreError};

/// Reads records for a restore, some at a time, in the order that was asked for.
///
/// The headers are made from the index, whose checksum was checked; frames are passed on as they
/// lie in the pack. A reader checks each against its digest, so a damaged frame is found there, by
/// name, and costs the server no decoding. Only differences are decoded here and compressed again.
pub(crate) struct RecordReader {
    store: Arc<ChunkStore>,
    wanted: Vec<(Digest, Location)>,
    at: usize,
    open: Option<(PackId, OpenFile)>,
    /// For differences, once there is one.
    expander: Option<Expander>,
}

/// Makes whole records of differences.
struct Expander {
    checker: Checker,
    compressor: zstd::bulk::Compressor<'static>,
}

/// zstd's level for them: what is sent once is compressed for speed.
const FAST: i32 = 1;

impl Expander {
    fn new() -> io::Result<Self> {
        Ok(Self {
            checker: Checker::new()?,
            compressor: zstd::bulk::Compressor::new(FAST)?,
        })
    }

    /// Appends the whole record of a chunk.
    fn append(
        &mut self,
        digest: &Digest,
        chunks: &ChunkStore,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let cannot =
            |source| StoreError::io("cannot compress chunks of", chunks.directory(), source);
        match chunks.plain(digest, &mut self.checker) {
            Ok(plain) => append_record(&mut self.compressor, *digest, plain, into).map_err(cannot),
            Err(reason) => {
                log::error!("{reason}");
                // As it lies there: whoever asked finds that it is not the chunk, as with any damaged record.
                let (at, bytes) = chunks.read_raw(digest)?;
                let stored = &bytes[RecordHeader::LEN..];
                let header = RecordHeader {
                    digest: *digest,
                    plain_len: at.plain_len,
                    stored_len: at.stored.len(),
                };
                into.extend_from_slice(&header.encode());
                into.extend_from_slice(stored);
                Ok(())
            }
        }
    }
}

impl RecordReader {
    pub(super) const fn new(store: Arc<ChunkStore>, wanted: Vec<(Digest, Location)>) -> Self {
        Self {
            store,
            wanted,
            at: 0,
            open: None,
            expander: None,
        }
    }

    /// Bytes of all records that were asked for, if that is known before they are read.
    pub(crate) fn total_bytes(&self) -> Option<u64> {
        let len = |(_, at): &(Digest, Location)| (!at.is_difference()).then_some(at.record_len());
        self.wanted
            .iter()
            .map(|wanted| len(wanted).map(|len| len as u64))
            .sum()
    }

    /// Reads records that lie side by side in one pack by one call, and puts their headers in front.
    fn read_run(
        run: &[(Digest, Location)],
        chunks: &ChunkStore,
        open: &mut Option<(PackId, OpenFile)>,
        into: &mut [u8],
    ) -> Result<(), StoreError> {
        let Some((_, first)) = run.first() else {
            return Ok(());
        };
        let path = first.pack.pack_path(chunks.directory());
        let mut read = || -> io::Result<()> {
            let file = match open.take() {
                Some((id, file)) if id == first.pack => file,
                _ => chunks.storage.open(&path)?,
            };
            file.read_exact_at(into, u64::from(first.offset))?;
            *open = Some((first.pack, file));
            Ok(())
        };
        read().map_err(|source| StoreError::io("cannot read the pack", &path, source))?;
        let mut position = 0;
        for (digest, at) in run {
            let header = at.header(*digest);
            into[position..position + RecordHeader::LEN].copy_from_slice(&header.encode());
            position += at.record_len();
        }
        Ok(())
    }

    fn read(&mut self, batch: Range<usize>) -> Result<Vec<u8>, StoreError> {
        let batch = &self.wanted[batch];
        let mut bytes = Vec::new();
        let beside = |(_, a): &(Digest, Location), (_, b): &(Digest, Location)| {
            a.is_before(b) && !a.is_difference() && !b.is_difference()
        };
        for run in batch.chunk_by(beside) {
            if let [(digest, at)] = run
                && at.is_difference()
            {
                let expander = match &mut self.expander {
                    Some(expander) => expander,
                    none => none.insert(Expander::new().map_err(|source| {
                        let directory = self.store.directory();
                        StoreError::io("cannot prepare to decode chunks of", directory, source)
                    })?),
                };
                expander.append(digest, &self.store, &mut bytes)?;
                continue;
            }
            let filled = bytes.len();
            let len: usize = run.iter().map(|(_, at)| at.record_len()).sum();
            // At most one batch: lengths come from the index, whose limits are checked.
            bytes.resize(filled + len, 0);
            Self::read_run(run, &self.store, &mut self.open, &mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    /// Garbage collection moved them since they were looked up.
    fn find_again(&mut self, batch: Range<usize>) -> Result<(), StoreError> {
        self.store.look_again()?;
        let index = self.store.read_index();
        for (digest, at) in &mut self.wanted[batch] {
            let digest = *digest;
            let now = index.find(&digest).ok_or(StoreError::Missing { digest })?;
            // The length of the whole answer was announced, if there was no difference in it.
            if now.is_difference() != at.is_difference()
                || (!now.is_difference() && now.record_len() != at.record_len())
            {
                return Err(StoreError::Missing { digest });
            }
            *at = now;
        }
        Ok(())
    }
}

/// Whether the pack that should be read is not there.
fn is_gone(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

impl Batches for RecordReader {
    fn next_batch(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let rest = &self.wanted[self.at..];
        let mut len = 0;
        let mut count = 0;
        for (_, at) in rest {
            // A difference is sent whole.
            let most = if at.is_difference() {
                RecordHeader::LEN + zstd::zstd_safe::compress_bound(at.plain_len as usize)
            } else {
                at.record_len()
            };
            if count > 0 && len + most > BATCH {
                break;
            }
            len += most;
            count += 1;
        }
        let batch = self.at..self.at + count;
        let mut bytes = self.read(batch.clone());
        for _ in 0..MOVES {
            if !bytes.as_ref().is_err_and(is_gone) {
                break;
            }
            self.find_again(batch.clone())?;
            bytes = self.read(batch.clone());
        }
        self.at += count;
        Ok((count > 0).then_some(bytes?))
    }
}
