//! Restore points: staged while a capture runs, published by one rename.
//!
//! ```text
//! staging/<id>/<digest>.chunks          lists of a capture that runs
//! restore-points/<id>/manifest.json     as the agent sent it
//! restore-points/<id>/<digest>.chunks   one for each different list of its regions
//! restore-points/<id>/info.json         what lists show: a `RestorePointView`
//! ```
//!
//! Invariant: a directory in `restore-points` is whole: its manifest is sound, all its lists are
//! there and agree with it, and all chunks they name are in sealed packs. It never changes. What is
//! *not* here: how that comes about (`publish`), who may publish what (`http::agent_api`).

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use backup::Digest;
use backup::manifest::{Manifest, RestorePointId};
use protocol::api::RestorePointView;

use super::chunk_store::BATCH;
use super::publish::{CaptureFacts, view_of};
use super::{Batches, StoreError, durable};

/// The most bytes of a manifest.
pub(crate) const MAX_MANIFEST: usize = 16 * 1024 * 1024;
/// The most bytes of a chunk list: more than a region of 1 TiB in chunks of 256 KiB needs.
pub(crate) const MAX_LIST: usize = 256 * 1024 * 1024;
/// The most lists of one capture: GPT has at most 128 partitions on the disks that we know, and a
/// machine has few disks.
const MAX_LISTS: usize = 4096;

/// A text that names no restore point, or several.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RestorePointNameError {
    /// None begins like this.
    #[error("there is no restore point `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// `latest` of a machine that has none.
    #[error(
        "the machine {machine} has no restore point yet: make one with `netboot capture`, or name another machine's by its id (`netboot restore-points` lists them)"
    )]
    NoneYet {
        /// What the machine is called.
        machine: String,
    },
    /// More than one does.
    #[error("`{name}` is the beginning of {} restore points: {}", candidates.len(), candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Their ids.
        candidates: Vec<String>,
    },
}

/// All restore points of a store.
pub(crate) struct RestorePoints {
    pub(super) published_root: PathBuf,
    pub(super) staging_root: PathBuf,
    pub(super) published: RwLock<BTreeMap<RestorePointId, RestorePointView>>,
    /// One publication at a time: a repeated request finds the first one's result.
    pub(super) publishing: Mutex<()>,
}

impl RestorePoints {
    pub(super) fn open(store_root: &Path) -> Result<Self, StoreError> {
        let points = Self::look(store_root)?;
        durable::create_directory(&points.published_root)?;
        durable::create_directory(&points.staging_root)?;
        Ok(points)
    }

    /// Reads what is published and changes nothing.
    pub(super) fn look(store_root: &Path) -> Result<Self, StoreError> {
        let published_root = store_root.join("restore-points");
        Ok(Self {
            published: RwLock::new(read_published(&published_root)?),
            published_root,
            staging_root: store_root.join("staging"),
            publishing: Mutex::new(()),
        })
    }

    /// All restore points, oldest first.
    pub(crate) fn list(&self) -> Vec<RestorePointView> {
        let published = self
            .published
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = published.values().cloned().collect();
        all.sort_by(|a, b| (a.captured_at, &a.id).cmp(&(b.captured_at, &b.id)));
        all
    }

    /// Whether this one is published.
    pub(crate) fn contains(&self, id: &RestorePointId) -> bool {
        let published = self
            .published
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        published.contains_key(id)
    }

    /// Finds a restore point by its id, by the beginning of its id, or as the `latest` of the
    /// machine with this id and name.
    ///
    /// # Errors
    /// [`RestorePointNameError`] when none or several answer to `name`.
    pub(crate) fn resolve(
        &self,
        name: &str,
        (machine, machine_name): (&str, &str),
    ) -> Result<RestorePointId, RestorePointNameError> {
        let unknown = || RestorePointNameError::Unknown {
            name: name.chars().take(80).collect(),
        };
        let all = self.list();
        if name == "latest" {
            let own = |view: &&RestorePointView| view.machine.as_deref() == Some(machine);
            let latest = all.iter().rev().find(own);
            return latest.map(|view| view.id.clone()).ok_or_else(|| {
                RestorePointNameError::NoneYet {
                    machine: machine_name.to_owned(),
                }
            });
        }
        if name.is_empty() {
            return Err(unknown());
        }
        if let Some(exact) = all.iter().find(|view| view.id.as_str() == name) {
            return Ok(exact.id.clone());
        }
        let mut begin = all.iter().filter(|view| view.id.as_str().starts_with(name));
        match (begin.next(), begin.next()) {
            (Some(only), None) => Ok(only.id.clone()),
            (None, _) => Err(unknown()),
            (Some(first), Some(second)) => {
                let ids = [first, second].into_iter().chain(begin);
                Err(RestorePointNameError::Ambiguous {
                    name: name.to_owned(),
                    candidates: ids.map(|view| view.id.to_string()).collect(),
                })
            }
        }
    }

    /// The manifest as it was published.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read.
    pub(crate) fn manifest(&self, id: &RestorePointId) -> Result<Vec<u8>, StoreError> {
        let path = self.published_root.join(id.as_str()).join(MANIFEST);
        fs::read(&path).map_err(|source| StoreError::io("cannot read", &path, source))
    }

    /// A chunk list as it was uploaded, if the restore point has it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read.
    pub(crate) fn chunk_list(
        &self,
        id: &RestorePointId,
        digest: &Digest,
    ) -> Result<Option<ListReader>, StoreError> {
        let path = list_path(&self.published_root.join(id.as_str()), digest);
        let opened = File::open(&path).and_then(|file| {
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        match opened {
            Ok((file, len)) => Ok(Some(ListReader {
                file,
                path,
                at: 0,
                len,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("cannot read", &path, source)),
        }
    }

    /// Keeps a chunk list for a capture that runs. The caller has compared its digest.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written or the capture has too many lists.
    pub(crate) fn stage_list(
        &self,
        id: &RestorePointId,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let staging = self.staging_root.join(id.as_str());
        durable::create_directory(&staging)?;
        let path = list_path(&staging, digest);
        if path.exists() {
            return Ok(());
        }
        let count = fs::read_dir(&staging)
            .map_err(|source| StoreError::io("cannot list", &staging, source))?
            .count();
        if count >= MAX_LISTS {
            return Err(StoreError::TooManyLists { limit: MAX_LISTS });
        }
        durable::replace(&path, &[bytes])
    }

    /// Throws away what a capture staged that will not be published.
    pub(crate) fn discard_staging(&self, id: &RestorePointId) {
        let staging = self.staging_root.join(id.as_str());
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {error}", staging.display());
            }
            _ => {}
        }
    }

    /// Throws away what earlier captures staged, but for those in `keep`.
    pub(crate) fn discard_staging_except(&self, keep: &HashSet<RestorePointId>) {
        let Ok(entries) = fs::read_dir(&self.staging_root) else {
            return;
        };
        for entry in entries.flatten() {
            let id = RestorePointId::try_from(entry.file_name().to_string_lossy().into_owned());
            if let Ok(id) = id
                && !keep.contains(&id)
            {
                self.discard_staging(&id);
            }
        }
    }
}

/// Reads a chunk list piece by piece: lists of large disks are long, and many machines may fetch one.
pub(crate) struct ListReader {
    file: File,
    path: PathBuf,
    at: u64,
    len: u64,
}

impl ListReader {
    /// Its length in bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }
}

impl Batches for ListReader {
    fn next_batch(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let wanted = (self.len - self.at).min(BATCH as u64);
        // At most one batch.
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        if bytes.is_empty() {
            return Ok(None);
        }
        self.file
            .read_exact_at(&mut bytes, self.at)
            .map_err(|source| StoreError::io("cannot read", &self.path, source))?;
        self.at += wanted;
        Ok(Some(bytes))
    }
}

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const INFO: &str = "info.json";

pub(super) fn list_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(format!("{digest}.chunks"))
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::io("cannot read", path, source)),
    }
}

fn read_published(root: &Path) -> Result<BTreeMap<RestorePointId, RestorePointView>, StoreError> {
    let cannot = |source| StoreError::io("cannot list the restore points in", root, source);
    let mut published = BTreeMap::new();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(published),
        Err(source) => return Err(cannot(source)),
    };
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Ok(id) = RestorePointId::try_from(name.into_owned()) else {
            log::warn!("{} is no restore point; left alone", path.display());
            continue;
        };
        match read_view(&path, &id) {
            Ok(view) => {
                published.insert(id, view);
            }
            Err(reason) => log::error!(
                "restore point {id} in {} cannot be used: {reason}",
                path.display()
            ),
        }
    }
    Ok(published)
}

/// The view of a published restore point; made anew from the manifest when `info.json` is damaged.
fn read_view(path: &Path, id: &RestorePointId) -> Result<RestorePointView, String> {
    let info = fs::read(path.join(INFO)).ok();
    let view = info.and_then(|bytes| serde_json::from_slice::<RestorePointView>(&bytes).ok());
    if let Some(view) = view.filter(|view| view.id == *id) {
        return Ok(view);
    }
    let bytes = fs::read(path.join(MANIFEST)).map_err(|error| error.to_string())?;
    let manifest = Manifest::from_json(&bytes).map_err(|error| error.to_string())?;
    if manifest.id != *id {
        return Err(format!("its manifest is of {}", manifest.id));
    }
    log::warn!(
        "{} is damaged; read from the manifest",
        path.join(INFO).display()
    );
    let facts = CaptureFacts {
        machine: String::new(),
        machine_name: manifest.machine.macs.first().cloned().unwrap_or_default(),
        stored_bytes: 0,
    };
    Ok(view_of(&manifest, &facts))
}
