//! Restore points that stay and restore points that leave: pins, and removal by one rename.
//!
//! Removal: `restore-points/<id>` is renamed to `removed/<id>`, both directories are flushed, and only
//! then is anything deleted; a start deletes what is left in `removed/`. So a restore point is whole
//! or gone, whenever the power fails. Its chunks stay until a garbage collection.
//!
//! What is *not* here: which ones leave (`retention`), whether a job needs one (`http::upkeep_api`).

use std::sync::PoisonError;

use backup::manifest::RestorePointId;

use super::StoreError;
use super::restore_points::RestorePoints;
use super::storage;

/// A restore point that is not removed, pinned or unpinned, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// There is none.
    #[error("there is no restore point {id}")]
    Unknown {
        /// What was asked for.
        id: RestorePointId,
    },
    /// An operator said that it stays.
    #[error("restore point {id} is pinned; `netboot unpin {id}` first")]
    Pinned {
        /// Its id.
        id: RestorePointId,
    },
    /// The disk refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RestorePoints {
    /// Says that a restore point stays until it is unpinned.
    ///
    /// # Errors
    /// [`KeepError::Unknown`] and [`KeepError::Store`]; then it is as it was, or, when only the flush
    /// failed, pinned until the power fails.
    pub(crate) fn pin(&self, id: &RestorePointId) -> Result<(), KeepError> {
        let _one_at_a_time = self.lock_publishing();
        self.must_be_there(id)?;
        let path = self.pins_root.join(id.as_str());
        let created = self.storage.create(&path).and_then(|file| file.sync());
        created.map_err(|source| StoreError::io("cannot pin with", &path, source))?;
        self.write_pinned().insert(id.clone());
        storage::sync_directory(self.storage.as_ref(), &self.pins_root)?;
        Ok(())
    }

    /// Takes a pin back; one that is not there is no failure.
    ///
    /// # Errors
    /// [`KeepError::Unknown`] and [`KeepError::Store`].
    pub(crate) fn unpin(&self, id: &RestorePointId) -> Result<(), KeepError> {
        let _one_at_a_time = self.lock_publishing();
        self.must_be_there(id)?;
        let path = self.pins_root.join(id.as_str());
        match self.storage.remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(StoreError::io("cannot unpin with", &path, source).into());
            }
        }
        self.write_pinned().remove(id);
        storage::sync_directory(self.storage.as_ref(), &self.pins_root)?;
        Ok(())
    }

    /// Removes a restore point. The caller has made sure that no job needs it.
    ///
    /// # Errors
    /// [`KeepError`]. After a failed flush it is gone from lists, and may be back after a power cut.
    pub(crate) fn forget(&self, id: &RestorePointId) -> Result<(), KeepError> {
        let _one_at_a_time = self.lock_publishing();
        self.must_be_there(id)?;
        if self.is_pinned(id) {
            return Err(KeepError::Pinned { id: id.clone() });
        }
        let storage = self.storage.as_ref();
        let (from, to) = (
            self.published_root.join(id.as_str()),
            self.removed_root.join(id.as_str()),
        );
        storage::remove_tree(storage, &to)?;
        storage
            .rename(&from, &to)
            .map_err(|source| StoreError::io("cannot remove the restore point", &from, source))?;
        // The rename decides, so that it is not listed even if what follows fails.
        let mut published = self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        published.remove(id);
        drop(published);
        let mut damaged = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        damaged.remove(id);
        drop(damaged);
        storage::sync_directory(storage, &self.removed_root)?;
        storage::sync_directory(storage, &self.published_root)?;
        // What cannot be deleted now is deleted at the next start.
        if let Err(error) = storage::remove_tree(storage, &to) {
            log::warn!("{}", super::chain(&error));
        }
        Ok(())
    }

    /// Whether an operator said that it stays.
    pub(crate) fn is_pinned(&self, id: &RestorePointId) -> bool {
        let pinned = self.pinned.read().unwrap_or_else(PoisonError::into_inner);
        pinned.contains(id)
    }

    /// Deletes what an earlier run removed.
    pub(super) fn finish_removals(&self) -> Result<(), StoreError> {
        let storage = self.storage.as_ref();
        let left = storage::list_if_there(storage, &self.removed_root)?;
        if left.is_empty() {
            return Ok(());
        }
        // The renames first: the stop may have come before they were durable.
        storage::sync_directory(storage, &self.removed_root)?;
        storage::sync_directory(storage, &self.published_root)?;
        for entry in left {
            storage::remove_tree(storage, &self.removed_root.join(entry.name))?;
        }
        Ok(())
    }

    fn must_be_there(&self, id: &RestorePointId) -> Result<(), KeepError> {
        if self.contains(id) {
            Ok(())
        } else {
            Err(KeepError::Unknown { id: id.clone() })
        }
    }

    fn write_pinned(
        &self,
    ) -> std::sync::RwLockWriteGuard<'_, std::collections::BTreeSet<RestorePointId>> {
        self.pinned.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_publishing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.publishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
