//! Reading records for a restore, while garbage collection may move them.
//!
//! Invariant: bytes are only ever read from the pack that the index names, and packs' numbers are not
//! used twice: a record that was moved is looked up again, never mistaken for another one.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use backup::Digest;
use backup::chunk::RecordHeader;

use super::chunk_store::{BATCH, ChunkStore, Location};
use super::pack::PackId;
use super::storage::OpenFile;
use super::{Batches, StoreError};

/// How often the same records may be moved while they are read.
const MOVES: usize = 5;

/// Reads records for a restore, some at a time, in the order that was asked for.
///
/// The headers are made from the index, whose checksum was checked; frames are passed on as they
/// lie in the pack. A reader checks each against its digest, so a damaged frame is found there, by
/// name, and costs the server no decoding.
pub(crate) struct RecordReader {
    store: Arc<ChunkStore>,
    wanted: Vec<(Digest, Location)>,
    at: usize,
    open: Option<(PackId, OpenFile)>,
}

impl RecordReader {
    pub(super) const fn new(store: Arc<ChunkStore>, wanted: Vec<(Digest, Location)>) -> Self {
        Self {
            store,
            wanted,
            at: 0,
            open: None,
        }
    }

    /// Bytes of all records that were asked for.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.wanted
            .iter()
            .map(|(_, at)| at.record_len() as u64)
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
            let header = RecordHeader {
                digest: *digest,
                plain_len: at.plain_len,
                stored_len: at.stored_len,
            };
            into[position..position + RecordHeader::LEN].copy_from_slice(&header.encode());
            position += at.record_len();
        }
        Ok(())
    }

    fn read(&mut self, batch: Range<usize>) -> Result<Vec<u8>, StoreError> {
        let batch = &self.wanted[batch];
        let len = batch.iter().map(|(_, at)| at.record_len()).sum();
        // At most one batch: lengths come from the index, whose limits are checked.
        let mut bytes = vec![0; len];
        let mut filled = 0;
        let beside = |(_, a): &(Digest, Location), (_, b): &(Digest, Location)| a.is_before(b);
        for run in batch.chunk_by(beside) {
            let len: usize = run.iter().map(|(_, at)| at.record_len()).sum();
            let into = &mut bytes[filled..filled + len];
            Self::read_run(run, &self.store, &mut self.open, into)?;
            filled += len;
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
            // The length of the whole answer was announced.
            if now.record_len() != at.record_len() {
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
            if count > 0 && len + at.record_len() > BATCH {
                break;
            }
            len += at.record_len();
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
