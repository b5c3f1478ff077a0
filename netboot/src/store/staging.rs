//! What a running capture has sent of its chunk lists.
//!
//! ```text
//! staging/<id>/<disk>-<region>.part     a list that is being sent, from its beginning
//! staging/<id>/<digest>.chunks          a list that is whole and durable
//! ```
//!
//! A list comes in parts, each after the one before it, and may be sent again when an answer was
//! lost. Nothing of it is believed until it is finished: then its length and its digest are compared,
//! over the bytes as they lie on the disk.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::PoisonError;

use backup::Digest;
use backup::manifest::{Manifest, RestorePointId};

use super::lists::{self, ListError, StoredList};
use super::restore_points::RestorePoints;
use super::storage;
use super::{StoreError, chain};

/// The most bytes of a chunk list: more than a region of 64 TiB in chunks of 256 KiB needs.
pub(crate) const MAX_LIST: u64 = 16 * 1024 * 1024 * 1024;
/// The most lists of one capture: GPT has at most 128 partitions on the disks that we know, and a
/// machine has few disks.
const MAX_LISTS: usize = 4096;

/// Which list of a capture: the number of its disk and of its region on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListName {
    disk: u32,
    region: u32,
}

impl ListName {
    /// Reads `<disk>-<region>`, both as decimal numbers without leading zeros.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (disk, region) = text.split_once('-')?;
        let name = Self {
            disk: disk.parse().ok()?,
            region: region.parse().ok()?,
        };
        (name.to_string() == text).then_some(name)
    }
}

impl std::fmt::Display for ListName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.disk, self.region)
    }
}

/// A part or the end of a list that does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// It does not begin where the list ends.
    #[error("chunk list {name}: a part at byte {offset} (expected {expected}, where it ends)")]
    Gap {
        /// Which list.
        name: ListName,
        /// Where the part was to begin.
        offset: u64,
        /// Where the list ends.
        expected: u64,
    },
    /// It repeats a part with other bytes.
    #[error("chunk list {name}: other bytes at {offset} than were sent before; begin it anew")]
    Differs {
        /// Which list.
        name: ListName,
        /// Where the part begins.
        offset: u64,
    },
    /// Longer than any list.
    #[error("chunk list {name} is longer than {MAX_LIST} bytes")]
    TooLong {
        /// Which list.
        name: ListName,
    },
    /// More lists than any machine needs.
    #[error("the capture has more than {MAX_LISTS} chunk lists")]
    TooMany,
    /// What is there is not what was finished.
    #[error("chunk list {name}: {found} (expected {length} bytes with the digest {digest})")]
    Other {
        /// Which list.
        name: ListName,
        /// What is there.
        found: String,
        /// What it should have.
        length: u64,
        /// What it should be.
        digest: Digest,
    },
    /// The disk refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RestorePoints {
    fn staging_of(&self, id: &RestorePointId) -> PathBuf {
        self.staging_root.join(id.as_str())
    }

    /// Takes a part of a list; one at byte 0 begins the list anew.
    ///
    /// # Errors
    /// [`StageError`]; then the list is as it was before.
    pub(crate) fn stage_part(
        &self,
        id: &RestorePointId,
        name: ListName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), StageError> {
        let storage = self.storage.as_ref();
        let end = offset.checked_add(bytes.len() as u64);
        let Some(end) = end.filter(|end| *end <= MAX_LIST) else {
            return Err(StageError::TooLong { name });
        };
        let _one_at_a_time = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.staging_of(id);
        let path = directory.join(format!("{name}.part"));
        let cannot = |source| StoreError::io("cannot write", &path, source);
        if offset == 0 {
            storage::create_directory(storage, &directory)?;
            if storage::list_if_there(storage, &directory)?.len() >= MAX_LISTS {
                return Err(StageError::TooMany);
            }
            let file = storage.create(&path).map_err(cannot)?;
            file.write_all_at(bytes, 0).map_err(cannot)?;
            return Ok(());
        }
        let file = match storage.open_to_write(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let expected = 0;
                return Err(StageError::Gap {
                    name,
                    offset,
                    expected,
                });
            }
            Err(source) => return Err(cannot(source).into()),
        };
        let len = file.len().map_err(cannot)?;
        if offset > len {
            let expected = len;
            return Err(StageError::Gap {
                name,
                offset,
                expected,
            });
        }
        // What is there already, because the answer to it was lost, or a full disk took half of it.
        let repeated = usize::try_from(len.min(end) - offset).unwrap_or(bytes.len());
        let mut there = vec![0; repeated];
        file.read_exact_at(&mut there, offset).map_err(cannot)?;
        let (old, new) = bytes.split_at(repeated);
        if there != old {
            return Err(StageError::Differs { name, offset });
        }
        file.write_all_at(new, offset + repeated as u64)
            .map_err(cannot)?;
        Ok(())
    }

    /// The list is whole: compares it with what was sent and makes it durable.
    ///
    /// # Errors
    /// [`StageError`]; then the list is as it was before.
    pub(crate) fn finish_list(
        &self,
        id: &RestorePointId,
        name: ListName,
        length: u64,
        digest: &Digest,
    ) -> Result<(), StageError> {
        let storage = self.storage.as_ref();
        let _one_at_a_time = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.staging_of(id);
        let part = directory.join(format!("{name}.part"));
        let whole = lists::path(&directory, digest);
        let other = |found: String| StageError::Other {
            name,
            found,
            length,
            digest: *digest,
        };
        let cannot = |source| StoreError::io("cannot finish", &part, source);
        let file = match storage.open_to_write(&part) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Finished already, and the answer was lost.
                return match StoredList::open(storage, &directory, digest) {
                    Ok(found) if found.len() == length => Ok(()),
                    _ => Err(other("nothing was sent".to_owned())),
                };
            }
            Err(source) => return Err(cannot(source).into()),
        };
        let found = file.len().map_err(cannot)?;
        if found != length {
            return Err(other(format!("it has {found} bytes")));
        }
        // What is hashed is what is on the disk after this: a failed flush is noticed first.
        file.sync().map_err(cannot)?;
        let found = lists::hash(storage, &part, |_| Ok::<_, ListError>(()));
        match found {
            Ok(found) if found == *digest => {}
            Ok(found) => return Err(other(format!("its bytes have the digest {found}"))),
            Err(ListError::Store(error)) => return Err(error.into()),
            Err(error) => return Err(other(error.to_string())),
        }
        storage.rename(&part, &whole).map_err(cannot)?;
        storage::sync_directory(storage, &directory)?;
        Ok(())
    }

    /// Stages copies of the chunk lists of a restore point that is published, for another one over the
    /// same chunks. They are checked when that one is published.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn stage_copies(
        &self,
        from: &RestorePointId,
        to: &RestorePointId,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        let storage = self.storage.as_ref();
        let _one_at_a_time = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (self.published_root.join(from.as_str()), self.staging_of(to));
        storage::create_directory(storage, &to)?;
        let digests: HashSet<_> = manifest
            .contents()
            .map(|(content, _)| content.digest)
            .collect();
        for digest in &digests {
            let path = lists::path(&to, digest);
            let cannot = |source| StoreError::io("cannot copy to", &path, source);
            let copy = storage.create(&path).map_err(cannot)?;
            let mut at = 0;
            let source = lists::path(&from, digest);
            let list = StoredList::open(storage, &from, digest);
            let list = list.map_err(|error| StoreError::io("cannot read", &source, error))?;
            let copied = list.hash(&source, |bytes| {
                copy.write_all_at(bytes, at).map_err(cannot)?;
                at += bytes.len() as u64;
                Ok::<_, ListError>(())
            });
            match copied {
                Ok(found) if found == *digest => {}
                Err(ListError::Store(error)) => return Err(error),
                // Published lists are whole; the disk has had this one since.
                _ => {
                    return Err(StoreError::io(
                        "cannot use the chunk list",
                        &source,
                        std::io::ErrorKind::InvalidData.into(),
                    ));
                }
            }
            copy.sync().map_err(cannot)?;
        }
        storage::sync_directory(storage, &to)
    }

    /// Throws away what a capture staged that will not be published.
    pub(crate) fn discard_staging(&self, id: &RestorePointId) {
        let removed = storage::remove_tree(self.storage.as_ref(), &self.staging_of(id));
        if let Err(error) = removed {
            log::warn!("{}", chain(&error));
        }
    }

    /// Throws away what earlier captures staged, but for those in `keep`.
    pub(crate) fn discard_staging_except(&self, keep: &HashSet<RestorePointId>) {
        let listed = storage::list_if_there(self.storage.as_ref(), &self.staging_root);
        for entry in listed.unwrap_or_default() {
            if let Ok(id) = RestorePointId::try_from(entry.name)
                && !keep.contains(&id)
            {
                self.discard_staging(&id);
            }
        }
    }

    /// Lists that were sent and that no region names do not become part of the restore point.
    pub(super) fn remove_strays(
        &self,
        id: &RestorePointId,
        lists: &HashSet<Digest>,
    ) -> Result<(), StoreError> {
        let storage = self.storage.as_ref();
        let directory = self.staging_of(id);
        for entry in storage::list_if_there(storage, &directory)? {
            let list = lists::digest_of_name(&entry.name);
            let base = lists::digest_of_base(&entry.name);
            let named = list.is_some_and(|digest| lists.contains(&digest))
                || base.is_some_and(|base| lists::is_base_used(storage, &directory, &base));
            if !named {
                let path = directory.join(&entry.name);
                storage
                    .remove_file(&path)
                    .map_err(|source| StoreError::io("cannot tidy", &path, source))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_plain_numbers_name_a_list() {
        assert_eq!(ListName::parse("0-12").unwrap().to_string(), "0-12");
        for text in [
            "",
            "0",
            "-",
            "0-",
            "00-1",
            "0-+1",
            "0-1-2",
            "../x",
            "0-4294967296",
        ] {
            assert_eq!(ListName::parse(text), None, "{text}");
        }
    }
}
