//! The store: chunks in packs, restore points made of them.
//!
//! ```text
//! DATA_DIR/store/packs/00000001.pack     chunks
//!                      00000001.idx      where they lie, once the pack is sealed
//!                restore-points/<id>/    what is published
//!                staging/<id>/           what a running capture sent
//! ```
//!
//! The byte formats are in `docs/formats/store.md`. Garbage collection is not built yet: nothing
//! ever removes a chunk, so every operation below may trust that what it found stays.
//!
//! Which lock keeps which two operations apart ("-": none is needed):
//!
//! |         | insert | seal | find, read | stage list | publish | verify |
//! | ---     | ---    | ---  | ---        | ---        | ---     | ---    |
//! | insert  | `writer` (not while decoding) | `writer` | `index`, for a moment | - | `writer`, in its seal | - (sealed packs never change) |
//! | seal    | `writer` | `writer` | - | - | `writer` | - (pack, then index: whole records count) |
//! | find, read | `index`, for a moment | - | - | - | - | - |
//! | stage list | - | - | - | - (whole files are renamed) | - (one job sends both, in order) | - |
//! | publish | `writer`, in its seal | `writer` | - | - | `publishing` | - (one rename) |
//! | two servers | `DATA_DIR/lock` | | | | | |
//!
//! Order of locks: `publishing`, `writer`, `index`.
//!
//! Invariant: the server trusts no size, digest or name that a client sent: a chunk is in the index
//! only after it was decoded and compared, a restore point is visible only when whole.

mod chunk_store;
mod durable;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod lock;
mod opening;
mod pack;
mod publish;
pub(crate) mod record;
pub(crate) mod restore_points;
pub(crate) mod verify;
pub(crate) mod volume_reader;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::Digest;

pub(crate) use chunk_store::ChunkStore;
pub(crate) use lock::DataLock;
pub(crate) use publish::{CaptureFacts, PublishError};
use record::RecordError;
pub(crate) use restore_points::RestorePoints;

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The disk is full.
    #[error(
        "the store is full: {what} {} (no space left). What was published is safe; make room on this file system and try again",
        path.display()
    )]
    Full {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
    },
    /// The disk or the file system refused.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process uses the data directory.
    #[error(
        "the data directory {} is in use by {}; one server at a time can use it. Stop that one, or give this one another data directory",
        path.display(),
        holder.map_or("another server".to_owned(), |id| format!("process {id}"))
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process that has it.
        holder: Option<u32>,
    },
    /// A file in the place of a pack.
    #[error("{} is no pack: {reason}", path.display())]
    NoPack {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A record that is not sound.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A chunk that is not in the store.
    #[error("chunk {digest} is not in the store")]
    Missing {
        /// The chunk.
        digest: Digest,
    },
    /// A capture with more lists than any machine needs.
    #[error("the capture has more than {limit} chunk lists")]
    TooManyLists {
        /// The most allowed.
        limit: usize,
    },
    /// An earlier failure to write makes further writing unsafe.
    #[error(
        "the store takes nothing more because an earlier write was not made durable; see the log, check the disk, start the server again"
    )]
    Broken,
}

impl StoreError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { what, path },
            _ => Self::Io { what, path, source },
        }
    }
}

/// An error with its causes in one line, for people.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Something long that is read in pieces.
pub(crate) trait Batches: Send + 'static {
    /// The next bytes, about 512 KiB of them; `None` after the last.
    ///
    /// # Errors
    /// [`StoreError::Io`] when they cannot be read.
    fn next_batch(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Chunks and restore points of one data directory.
pub(crate) struct Store {
    /// The chunks.
    pub(crate) chunks: Arc<ChunkStore>,
    /// The restore points.
    pub(crate) restore_points: RestorePoints,
}

impl Store {
    /// Opens `DATA_DIR/store`, which is created if it is not there, and recovers what a crash left.
    /// The caller holds the [`DataLock`].
    ///
    /// # Errors
    /// [`StoreError`] when something cannot be read or repaired.
    pub(crate) fn open(data_directory: &Path) -> Result<Self, StoreError> {
        let root = data_directory.join("store");
        Ok(Self {
            chunks: Arc::new(ChunkStore::open(&root.join("packs"))?),
            restore_points: RestorePoints::open(&root)?,
        })
    }

    /// Opens it for reading only, beside a server that may be using it.
    ///
    /// # Errors
    /// [`StoreError`] when something cannot be read.
    pub(crate) fn look(data_directory: &Path) -> Result<Self, StoreError> {
        let root = data_directory.join("store");
        // In this order: the chunks of a restore point lie in packs before it is published, so that
        // one published in between lacks nothing.
        let restore_points = RestorePoints::look(&root)?;
        Ok(Self {
            chunks: Arc::new(ChunkStore::open_read_only(&root.join("packs"))?),
            restore_points,
        })
    }
}
