//! Reading chunk lists of any length in the memory of one piece.
//!
//! Invariant: what [`read`] handed out counts only once it has returned: the digest of the whole list
//! is compared at its end.

use std::io;
use std::path::{Path, PathBuf};

use backup::Digest;
use backup::chunk::{Chunk, ChunkError, ListReader, ListTotals};

use super::chunk_store::BATCH;
use super::storage::Storage;
use super::{StoreError, storage};

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    /// There is none.
    #[error("it is not there")]
    NotThere,
    /// Its bytes are others.
    #[error("its bytes have the digest {found}")]
    OtherDigest {
        /// Theirs.
        found: Digest,
    },
    /// It breaks the format, or does not fit its region.
    #[error(transparent)]
    Format(#[from] ChunkError),
    /// The disk refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The file of a list.
pub(super) fn path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(format!("{digest}.chunks"))
}

/// The digest of a list's file, by its name.
pub(super) fn digest_of_name(name: &str) -> Option<Digest> {
    name.strip_suffix(".chunks")?.parse().ok()
}

enum Stop<E> {
    Format(ChunkError),
    Each(E),
}

impl<E> From<ChunkError> for Stop<E> {
    fn from(error: ChunkError) -> Self {
        Self::Format(error)
    }
}

/// Reads the list of this digest in `directory`, for a region of `region_len` bytes.
pub(super) fn read<E: From<ListError>>(
    storage: &dyn Storage,
    directory: &Path,
    (digest, region_len): (&Digest, u64),
    mut each: impl FnMut(Chunk) -> Result<(), E>,
) -> Result<ListTotals, E> {
    let path = path(directory, digest);
    let mut reader = ListReader::new(region_len);
    let found = hash(storage, &path, |bytes| {
        let take = |chunk| each(chunk).map_err(Stop::Each);
        reader.feed(bytes, take).map_err(|stop| match stop {
            Stop::Format(error) => E::from(ListError::Format(error)),
            Stop::Each(error) => error,
        })
    })?;
    let totals = reader.finish().map_err(ListError::Format)?;
    if found != *digest {
        return Err(ListError::OtherDigest { found }.into());
    }
    Ok(totals)
}

/// Reads a whole file in pieces; its digest.
pub(super) fn hash<E: From<ListError>>(
    storage: &dyn Storage,
    path: &Path,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ListError::NotThere,
        _ => ListError::Store(StoreError::io("cannot read", path, error)),
    };
    let file = storage.open(path).map_err(cannot)?;
    let len = file.len().map_err(cannot)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; BATCH];
    let mut at = 0;
    while at < len {
        let wanted = usize::try_from(len - at).map_or(BATCH, |left| left.min(BATCH));
        let piece = &mut piece[..wanted];
        file.read_exact_at(piece, at).map_err(cannot)?;
        hasher.update(piece);
        each(piece)?;
        at += wanted as u64;
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// The lists of a directory, by their names.
pub(super) fn in_directory(
    storage: &dyn Storage,
    directory: &Path,
) -> Result<Vec<Digest>, StoreError> {
    let listed = storage::list_if_there(storage, directory)?;
    Ok(listed
        .iter()
        .filter_map(|entry| digest_of_name(&entry.name))
        .collect())
}
