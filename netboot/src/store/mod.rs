//! The store: chunks in packs, restore points made of them.
//!
//! ```text
//! DATA_DIR/store/packs/00000001.pack     chunks
//!                      00000001.idx      where they lie, once the pack is sealed
//!                restore-points/<id>/    what is published
//!                staging/<id>/           what a running capture sent
//!                pins/<id>               what stays
//!                removed/<id>/           what is being deleted
//!                damaged.json            records that are not what they should be
//! ```
//!
//! The byte formats are in `docs/formats/store.md`. Which lock keeps which two operations apart ("-":
//! none is needed):
//!
//! |         | insert | seal | find, read | stage list | publish | verify | gc | forget, pin |
//! | ---     | ---    | ---  | ---        | ---        | ---     | ---    | --- | --- |
//! | insert  | `writer` (not while decoding) | `writer` | `index`, for a moment | - | `writer`, in its seal | - (sealed packs never change) | `claims`: told "stored" or removed, never both | - |
//! | seal    | `writer` | `writer` | - | - | `writer` | - (pack, then index: whole records count) | `writer`: a copied record is sealed before its old pack goes | - |
//! | find, read | `index`, for a moment | - | - | - | - | - | `index`; a pack that is gone is looked up again | - |
//! | stage list | - | - | - | `staging` | - (one job sends both, in order) | - | - (what it names is claimed) | - |
//! | publish | `writer`, in its seal | `writer` | - | - | `publishing` | - (one rename) | `claims`: every chunk is claimed as it is checked, and claims that end are kept to the end of a collection | `publishing` |
//! | verify  | - | - | - | - | - | - | - (packs that are gone are left out, new ones read) | - (a restore point that is gone is left out) |
//! | gc      | see above | | | | `publishing`, while it lists | | `collecting`: one at a time | - (what is forgotten meanwhile is collected the next time) |
//! | two servers | `DATA_DIR/lock`, also taken by commands that change the store without a server | | | | | | | |
//!
//! Order of locks: `collecting`, `publishing`, `staging`, `writer`, `damaged`, `claims`, `index`.
//!
//! Invariant: the server trusts no size, digest or name that a client sent: a chunk is in the index
//! only after it was decoded and compared, a restore point is visible only when whole. A chunk leaves
//! the index only when no restore point and no running capture needs it.

mod bits;
mod chunk_store;
mod claims;
pub(crate) mod content;
mod damage;
mod difference;
#[cfg(test)]
mod difference_tests;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod gc;
mod index;
mod keeping;
mod lists;
mod lock;
mod opening;
mod pack;
mod publish;
mod reader;
pub(crate) mod record;
mod resemblance;
pub(crate) mod restore_points;
pub(crate) mod retention;
mod short_list;
mod shorten;
mod sizes;
mod staging;
mod storage;
pub(crate) mod verify;
pub(crate) mod volume_reader;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod gc_tests;
#[cfg(test)]
mod memory_storage;
#[cfg(test)]
mod sample_tests;
#[cfg(test)]
mod shorten_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod volume_tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use backup::Digest;
use backup::manifest::RestorePointId;

pub(crate) use chunk_store::ChunkStore;
use chunk_store::PACK_LIMIT;
pub(crate) use damage::DamagedRecord;
pub(crate) use keeping::KeepError;
pub(crate) use lock::DataLock;
pub(crate) use publish::{CaptureFacts, PublishError};
use record::RecordError;
pub(crate) use restore_points::RestorePoints;
pub(crate) use staging::{ListName, StageError};
use storage::{RealStorage, SharedStorage};

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
    /// A file in the place of a pack or an index that this program cannot use.
    #[error("{} cannot be used: {reason}", path.display())]
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
    /// A restore point whose chunks cannot be told.
    #[error(
        "nothing is removed while restore point {restore_point} cannot be read: {reason}. Put it right, or remove it with `netboot forget`"
    )]
    Unreadable {
        /// Its id, or the name of its folder.
        restore_point: String,
        /// Why not.
        reason: String,
    },
    /// A garbage collection runs already.
    #[error("a garbage collection runs already")]
    Collecting,
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

/// What a capture must find free on the disk to be begun: what uploads leave free, and as much again.
const CAPTURE_FLOOR: u64 = 2 * chunk_store::RESERVE;

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
    /// One garbage collection at a time.
    collecting: Mutex<()>,
}

impl Store {
    /// Opens `DATA_DIR/store`, which is created if it is not there, and recovers what a crash left.
    /// The caller holds the [`DataLock`].
    ///
    /// # Errors
    /// [`StoreError`] when something cannot be read or repaired.
    pub(crate) fn open(data_directory: &Path) -> Result<Self, StoreError> {
        let root = data_directory.join("store");
        Self::open_in(Arc::new(RealStorage), &root, PACK_LIMIT)
    }

    /// Opens a store in any storage, with packs of any size.
    fn open_in(storage: SharedStorage, root: &Path, limit: u64) -> Result<Self, StoreError> {
        let chunks = ChunkStore::open(Arc::clone(&storage), &root.join("packs"), limit)?;
        let mut restore_points = RestorePoints::open(storage, root)?;
        if limit < PACK_LIMIT {
            // The stores of tests are small in all.
            restore_points.shortened_from = 0;
        }
        let store = Self {
            chunks: Arc::new(chunks),
            restore_points,
            collecting: Mutex::new(()),
        };
        if store.chunks.lost_packs || !store.chunks.lock_damage().is_empty() {
            store.look_for_damage();
        }
        Ok(store)
    }

    /// Opens it for reading only, beside a server that may be using it.
    ///
    /// # Errors
    /// [`StoreError`] when something cannot be read.
    pub(crate) fn look(data_directory: &Path) -> Result<Self, StoreError> {
        Self::look_in(Arc::new(RealStorage), &data_directory.join("store"))
    }

    /// Opens it for reading only, and for what needs no chunk: lists, manifests, chunk lists. Every chunk
    /// counts as missing; in return, their index is not read.
    ///
    /// # Errors
    /// [`StoreError`] when something cannot be read.
    pub(crate) fn look_at_lists(data_directory: &Path) -> Result<Self, StoreError> {
        let root = data_directory.join("store");
        let storage: SharedStorage = Arc::new(RealStorage);
        Ok(Self {
            restore_points: RestorePoints::look(Arc::clone(&storage), &root)?,
            chunks: Arc::new(ChunkStore::without_index(storage, &root.join("packs"))),
            collecting: Mutex::new(()),
        })
    }

    fn look_in(storage: SharedStorage, root: &Path) -> Result<Self, StoreError> {
        // In this order: the chunks of a restore point lie in packs before it is published, so that
        // one published in between lacks nothing.
        let restore_points = RestorePoints::look(Arc::clone(&storage), root)?;
        Ok(Self {
            chunks: Arc::new(ChunkStore::open_read_only(storage, &root.join("packs"))?),
            restore_points,
            collecting: Mutex::new(()),
        })
    }

    /// Refuses a capture that would soon find the disk full.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub(crate) fn check_room_for_capture(&self) -> Result<(), StoreError> {
        let directory = self.chunks.directory();
        let free = self.chunks.storage.free_bytes(directory);
        let free = free.map_err(|source| {
            StoreError::io("cannot see how much room is left for", directory, source)
        })?;
        if free < CAPTURE_FLOOR {
            return Err(StoreError::Full {
                what: "too little room for a capture in",
                path: directory.to_owned(),
            });
        }
        Ok(())
    }

    /// A capture is over, published or not: what it staged and claimed is given up.
    pub(crate) fn capture_ended(&self, id: &RestorePointId) {
        if !self.restore_points.contains(id) {
            self.restore_points.discard_staging(id);
        }
        self.chunks.end_claims(id);
    }

    /// Takes note of damaged records, and of the restore points that need them; how many are
    /// damaged indeed.
    ///
    /// # Errors
    /// [`StoreError`] when that cannot be written down.
    pub(crate) fn note_damage(&self, found: &[DamagedRecord]) -> Result<u64, StoreError> {
        let noted = self.chunks.note_damage(found)?;
        if noted > 0 {
            self.look_for_damage();
        }
        Ok(noted)
    }

    /// Looks at all restore points for chunks that are damaged or gone.
    fn look_for_damage(&self) {
        let ids = self.restore_points.list();
        self.look_for_damage_of(ids.into_iter().map(|view| view.id));
    }

    /// Looks again at the restore points that lacked something: a capture may have sent it.
    pub(crate) fn look_for_healing(&self) {
        let damaged = &self.restore_points.damaged;
        let ids: Vec<_> = {
            let damaged = damaged.read().unwrap_or_else(PoisonError::into_inner);
            damaged.keys().cloned().collect()
        };
        self.look_for_damage_of(ids.into_iter());
    }

    fn look_for_damage_of(&self, ids: impl Iterator<Item = RestorePointId>) {
        for id in ids {
            let lacks = self.lacks(&id);
            let mut damaged = self
                .restore_points
                .damaged
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            match lacks {
                Some(reason) if self.restore_points.contains(&id) => {
                    log::warn!("restore point {id} is damaged: {reason}");
                    damaged.insert(id, reason);
                }
                _ => {
                    damaged.remove(&id);
                }
            }
        }
    }

    /// What a restore point lacks, if anything.
    fn lacks(&self, id: &RestorePointId) -> Option<String> {
        let error = self
            .recheck(id, &|digest| self.chunks.find_sound(digest))
            .err()?;
        if let PublishError::ChunkMissing { digest, .. } = &error
            && self.chunks.find(digest).is_some()
        {
            return Some(format!(
                "chunk {digest} is damaged in the store; the next capture that has it replaces it"
            ));
        }
        Some(chain(&error))
    }
}
