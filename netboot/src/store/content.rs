//! The chunks of one content of a restore point, in order: what an export writes.
//!
//! Nothing is held in memory but one chunk and a part of its list; no lock is taken and nothing is written,
//! so that it works beside a running server.
//!
//! Invariant: every chunk that is given out was compared with its digest, and lies in order within the
//! content.

use backup::ByteRange;
use backup::manifest::{ChunkListRef, RestorePointId};

use super::record::Checker;
use super::volume_reader::{ListFile, Place};
use super::{Store, StoreError};

/// Entries of a list that are read at once.
const ENTRIES: usize = 1024;
/// Bytes of an entry (`docs/formats/chunks.md`).
const ENTRY: usize = 48;

/// A content that cannot be read whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError<E> {
    /// Its list cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A chunk, or its place, is not what it should be.
    #[error("at byte {at}: {reason}")]
    Damaged {
        /// Where in the content.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// Whoever took the chunks has enough.
    #[error("{0}")]
    Taker(E),
}

/// Who takes chunks: where one lies in its content, and its bytes.
pub(crate) type TakeChunk<'a, E> = dyn FnMut(ByteRange, &[u8]) -> Result<(), E> + 'a;

/// Gives the data of a content of `len` bytes to `take`, in order; zeros and what was not saved are left out.
///
/// # Errors
/// [`ContentError`] for the first chunk that cannot be given.
pub(crate) fn read_content<E>(
    store: &Store,
    id: &RestorePointId,
    (content, len): (&ChunkListRef, u64),
    take: &mut TakeChunk<'_, E>,
) -> Result<(), ContentError<E>> {
    let list = ListFile::open(store, id, &content.digest)?;
    let mut checker = Checker::new().map_err(|source| {
        StoreError::io("cannot prepare to decode", store.chunks.directory(), source)
    })?;
    let mut bytes = vec![0; ENTRIES * ENTRY];
    let (mut places, mut next, mut end): (Vec<Place>, u64, u64) = (Vec::new(), 0, 0);
    while next < list.len() {
        next += list.read(next, &mut bytes, &mut places)? as u64;
        if places.is_empty() {
            break;
        }
        for place in &places {
            let damaged = |reason: String| ContentError::Damaged {
                at: place.start,
                reason,
            };
            if place.start < end || place.end < place.start || place.end > len {
                return Err(damaged(format!(
                    "its chunk list is not in order (an entry to byte {} after byte {end} of {len})",
                    place.end
                )));
            }
            end = place.end;
            let Some(digest) = place.digest else {
                continue;
            };
            let plain = store.chunks.plain(&digest, &mut checker).map_err(damaged)?;
            if plain.len() as u64 != place.end - place.start {
                return Err(damaged(format!(
                    "chunk {digest} has {} bytes (expected {}, its place in the list)",
                    plain.len(),
                    place.end - place.start
                )));
            }
            take(ByteRange::between(place.start, place.end), plain).map_err(ContentError::Taker)?;
        }
    }
    Ok(())
}
