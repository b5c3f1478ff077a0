//! Restore points: staged while a capture runs, published by one rename.
//!
//! ```text
//! staging/<id>/                         what a running capture sent, see `staging`
//! restore-points/<id>/manifest.json     as the agent sent it
//! restore-points/<id>/<digest>.chunks   one for each different list of its regions
//!                    /<digest>.base     a list that some of them refer to, see `short_list`
//! restore-points/<id>/info.json         what lists show: a `RestorePointView`
//! pins/<id>                             it is not to be removed
//! removed/<id>/                         it is no restore point any more and is being deleted
//! ```
//!
//! Invariant: a directory in `restore-points` is whole: its manifest is sound, all its lists are
//! there and agree with it, and all chunks they name are in sealed packs. It never changes; it leaves
//! by one rename. What is *not* here: how it comes about (`staging`, `publish`), how it leaves
//! (`keeping`), who may do what (`http`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use backup::Digest;
use backup::manifest::{Manifest, Purpose, RestorePointId};
use protocol::api::RestorePointView;

use super::chunk_store::BATCH;
use super::lists::StoredList;
use super::publish::{CaptureFacts, view_of};
use super::storage::{self, SharedStorage, Storage};
use super::{Batches, StoreError, chain, lists};

/// A shorter list takes a block of the file system's however short it is.
const SHORTENED_FROM: u64 = 8192;

/// The most bytes of a manifest.
pub(crate) const MAX_MANIFEST: usize = 16 * 1024 * 1024;

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
    pub(super) storage: SharedStorage,
    pub(super) published_root: PathBuf,
    pub(super) staging_root: PathBuf,
    pub(super) pins_root: PathBuf,
    pub(super) removed_root: PathBuf,
    pub(super) published: RwLock<BTreeMap<RestorePointId, RestorePointView>>,
    pub(super) pinned: RwLock<BTreeSet<RestorePointId>>,
    /// Restore points that lack a sound chunk, and what of it was found first.
    pub(super) damaged: RwLock<BTreeMap<RestorePointId, String>>,
    /// One publication or removal at a time: a repeated request finds the first one's result.
    pub(super) publishing: Mutex<()>,
    /// One part of a list at a time.
    pub(super) staging: Mutex<()>,
    /// Lists of at least this many bytes are kept short.
    pub(super) shortened_from: u64,
}

impl RestorePoints {
    pub(super) fn open(storage: SharedStorage, store_root: &Path) -> Result<Self, StoreError> {
        let points = Self::look(storage, store_root)?;
        for root in [
            &points.published_root,
            &points.staging_root,
            &points.pins_root,
            &points.removed_root,
        ] {
            storage::create_directory(points.storage.as_ref(), root)?;
        }
        points.finish_removals()?;
        Ok(points)
    }

    /// Reads what is published and changes nothing.
    pub(super) fn look(storage: SharedStorage, store_root: &Path) -> Result<Self, StoreError> {
        let published_root = store_root.join("restore-points");
        let pins_root = store_root.join("pins");
        let published = read_published(storage.as_ref(), &published_root)?;
        let pins = storage::list_if_there(storage.as_ref(), &pins_root)?;
        let pinned = pins
            .into_iter()
            .filter_map(|entry| RestorePointId::try_from(entry.name).ok())
            .collect();
        Ok(Self {
            storage,
            published_root,
            staging_root: store_root.join("staging"),
            pins_root,
            removed_root: store_root.join("removed"),
            published: RwLock::new(published),
            pinned: RwLock::new(pinned),
            damaged: RwLock::default(),
            publishing: Mutex::new(()),
            staging: Mutex::new(()),
            shortened_from: SHORTENED_FROM,
        })
    }

    /// All restore points, oldest first.
    pub(crate) fn list(&self) -> Vec<RestorePointView> {
        let published = self
            .published
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = published.values().cloned().collect();
        drop(published);
        let pinned = self.pinned.read().unwrap_or_else(PoisonError::into_inner);
        let damaged = self.damaged.read().unwrap_or_else(PoisonError::into_inner);
        for view in &mut all {
            view.pinned = pinned.contains(&view.id);
            if let Some(reason) = damaged.get(&view.id) {
                view.status = "damaged".to_owned();
                view.warnings.push(reason.clone());
            }
        }
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

    /// Whether its folder is on the disk now, whatever this process knows.
    pub(super) fn is_there(&self, id: &RestorePointId) -> bool {
        let path = self.published_root.join(id.as_str());
        self.storage.list(&path).is_ok()
    }

    /// Finds a restore point by its id, by the name of the factory image that it is, by the beginning
    /// of its id, or as the `latest` backup of the machine with this id and name.
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
            let own = |view: &&RestorePointView| {
                view.machine.as_deref() == Some(machine) && !view.is_factory()
            };
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
        let named = |view: &&RestorePointView| view.image_name().is_some_and(|own| own.is(name));
        if let Some(image) = all.iter().find(named) {
            return Ok(image.id.clone());
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
        let bytes = storage::read_if_there(self.storage.as_ref(), &path)?;
        bytes.ok_or_else(|| StoreError::io("cannot read", &path, io::ErrorKind::NotFound.into()))
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
        let directory = self.published_root.join(id.as_str());
        let path = lists::path(&directory, digest);
        match StoredList::open(self.storage.as_ref(), &directory, digest) {
            Ok(list) => Ok(Some(ListReader {
                end: list.len(),
                list,
                path,
                at: 0,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("cannot read", &path, source)),
        }
    }
}

/// Reads a chunk list piece by piece: lists of large disks are long, and many machines may fetch one.
pub(crate) struct ListReader {
    list: StoredList,
    path: PathBuf,
    at: u64,
    /// The byte after the last that it gives.
    end: u64,
}

impl ListReader {
    /// How many bytes it will give.
    pub(crate) const fn len(&self) -> u64 {
        self.end - self.at
    }

    /// Only `len` bytes from byte `offset`; what is past the end is left out.
    pub(crate) fn part(self, offset: u64, len: u64) -> Self {
        let at = offset.min(self.end);
        let end = at.saturating_add(len).min(self.end);
        Self { at, end, ..self }
    }
}

impl Batches for ListReader {
    fn next_batch(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let wanted = (self.end - self.at).min(BATCH as u64);
        // At most one batch.
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        if bytes.is_empty() {
            return Ok(None);
        }
        self.list
            .read_exact_at(&mut bytes, self.at)
            .map_err(|source| StoreError::io("cannot read", &self.path, source))?;
        self.at += wanted;
        Ok(Some(bytes))
    }
}

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const INFO: &str = "info.json";

fn read_published(
    storage: &dyn Storage,
    root: &Path,
) -> Result<BTreeMap<RestorePointId, RestorePointView>, StoreError> {
    let mut published = BTreeMap::new();
    for entry in storage::list_if_there(storage, root)? {
        let path = root.join(&entry.name);
        let Ok(id) = RestorePointId::try_from(entry.name) else {
            log::warn!("{} is no restore point; left alone", path.display());
            continue;
        };
        match read_view(storage, &path, &id) {
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
fn read_view(
    storage: &dyn Storage,
    path: &Path,
    id: &RestorePointId,
) -> Result<RestorePointView, String> {
    let read = |name| storage::read_if_there(storage, &path.join(name));
    let view = read(INFO)
        .ok()
        .flatten()
        .and_then(|bytes| serde_json::from_slice::<RestorePointView>(&bytes).ok());
    if let Some(view) = view.filter(|view| view.id == *id) {
        return Ok(view);
    }
    let bytes = read(MANIFEST).map_err(|error| chain(&error))?;
    let bytes = bytes.ok_or("it has no manifest")?;
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
        named: false,
        stored_bytes: 0,
        purpose: Purpose::default(),
    };
    Ok(view_of(&manifest, &facts))
}
