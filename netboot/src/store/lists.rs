//! Reading chunk lists of any length in the memory of one piece, whether they are kept whole or short.
//!
//! ```text
//! <digest>.chunks     a list: as it was sent, or short (`short_list`)
//! <digest>.base       a whole list that a short one beside it refers to
//! ```
//!
//! Invariant: what [`read`] handed out counts only once it has returned: the digest of the whole list
//! is compared at its end.

use std::io;
use std::path::{Path, PathBuf};

use backup::Digest;
use backup::chunk::{Chunk, ChunkError, ListReader, ListTotals};

use super::chunk_store::BATCH;
use super::short_list::{self, ShortList};
use super::storage::{OpenFile, Storage};
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

/// The file of a whole list that a short one refers to.
pub(super) fn base_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(format!("{digest}.base"))
}

/// The digest of a base's file, by its name.
pub(super) fn digest_of_base(name: &str) -> Option<Digest> {
    name.strip_suffix(".base")?.parse().ok()
}

/// Whether a list of the directory refers to this base, or may do so.
pub(super) fn is_base_used(storage: &dyn Storage, directory: &Path, base: &Digest) -> bool {
    let Ok(lists) = in_directory(storage, directory) else {
        return true;
    };
    lists.iter().any(|list| {
        let file = storage.open(&path(directory, list));
        let found = file.map(|file| short_list::base_of(&file));
        matches!(found, Ok(Ok(found)) if found == *base)
    })
}

/// A list on the disk, read as if it were whole.
pub(super) struct StoredList {
    form: Form,
}

enum Form {
    Whole { file: OpenFile, len: u64 },
    Short(ShortList),
}

impl StoredList {
    /// Opens the list of this digest in `directory`.
    pub(super) fn open(
        storage: &dyn Storage,
        directory: &Path,
        digest: &Digest,
    ) -> io::Result<Self> {
        Self::open_at(storage, &path(directory, digest), directory)
    }

    /// Opens the list of a file whose base, if it has one, lies in `directory`.
    pub(super) fn open_at(
        storage: &dyn Storage,
        path: &Path,
        directory: &Path,
    ) -> io::Result<Self> {
        let file = storage.open(path)?;
        let mut magic = [0; 4];
        if file.len()? >= 4 {
            file.read_exact_at(&mut magic, 0)?;
        }
        if magic != *short_list::MAGIC {
            return Self::whole(file);
        }
        let base = base_path(directory, &short_list::base_of(&file)?);
        let base = storage.open(&base).map_err(|error| {
            // Not "not found": the list is there, and damaged.
            io::Error::other(format!("its base {}: {error}", base.display()))
        })?;
        Ok(Self {
            form: Form::Short(ShortList::open(file, base)?),
        })
    }

    /// A list that is known to be whole.
    pub(super) fn whole(file: OpenFile) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self {
            form: Form::Whole { file, len },
        })
    }

    /// Whether it refers to another list.
    pub(super) const fn is_short(&self) -> bool {
        matches!(self.form, Form::Short(_))
    }

    /// Bytes of the whole list.
    pub(super) const fn len(&self) -> u64 {
        match &self.form {
            Form::Whole { len, .. } => *len,
            Form::Short(list) => list.len(),
        }
    }

    /// Bytes of the whole list, from `offset` on.
    pub(super) fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.form {
            Form::Whole { file, .. } => file.read_exact_at(into, offset),
            Form::Short(list) => list.read_exact_at(into, offset),
        }
    }

    /// Reads all of it in pieces; its digest. `path` is for errors.
    pub(super) fn hash<E: From<ListError>>(
        &self,
        path: &Path,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Digest, E> {
        let cannot = |error| ListError::Store(StoreError::io("cannot read", path, error));
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; BATCH];
        let mut at = 0;
        while at < self.len() {
            let wanted = usize::try_from(self.len() - at).map_or(BATCH, |left| left.min(BATCH));
            let piece = &mut piece[..wanted];
            self.read_exact_at(piece, at).map_err(cannot)?;
            hasher.update(piece);
            each(piece)?;
            at += wanted as u64;
        }
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
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
    each: impl FnMut(Chunk) -> Result<(), E>,
) -> Result<ListTotals, E> {
    let path = path(directory, digest);
    let list = StoredList::open(storage, directory, digest);
    let list = list.map_err(|error| cannot_open(&path, error))?;
    let (found, totals) = read_list(&list, (&path, region_len), each)?;
    if found != *digest {
        return Err(ListError::OtherDigest { found }.into());
    }
    Ok(totals)
}

/// Reads a list; its digest, which the caller compares. The path is for errors.
pub(super) fn read_list<E: From<ListError>>(
    list: &StoredList,
    (path, region_len): (&Path, u64),
    mut each: impl FnMut(Chunk) -> Result<(), E>,
) -> Result<(Digest, ListTotals), E> {
    let mut reader = ListReader::new(region_len);
    let found = list.hash(path, |bytes| {
        let take = |chunk| each(chunk).map_err(Stop::Each);
        reader.feed(bytes, take).map_err(|stop| match stop {
            Stop::Format(error) => E::from(ListError::Format(error)),
            Stop::Each(error) => error,
        })
    })?;
    let totals = reader.finish().map_err(ListError::Format)?;
    Ok((found, totals))
}

fn cannot_open(path: &Path, error: io::Error) -> ListError {
    match error.kind() {
        io::ErrorKind::NotFound => ListError::NotThere,
        _ => ListError::Store(StoreError::io("cannot read", path, error)),
    }
}

/// Reads a whole file in pieces; its digest.
pub(super) fn hash<E: From<ListError>>(
    storage: &dyn Storage,
    path: &Path,
    each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let list = storage.open(path).and_then(StoredList::whole);
    list.map_err(|error| cannot_open(path, error))?
        .hash(path, each)
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
