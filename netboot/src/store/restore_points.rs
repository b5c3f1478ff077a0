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
//! *not* here: who may publish what (`http::agent_api`).

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use backup::Digest;
use backup::chunk::{ChunkError, ChunkList, Content};
use backup::manifest::{Manifest, ManifestError, RestorePointId};
use protocol::api::RestorePointView;

use super::chunk_store::{BATCH, ChunkStore};
use super::durable;
use super::{Batches, Store, StoreError};

/// The most bytes of a manifest.
pub(crate) const MAX_MANIFEST: usize = 16 * 1024 * 1024;
/// The most bytes of a chunk list: more than a region of 1 TiB in chunks of 256 KiB needs.
pub(crate) const MAX_LIST: usize = 256 * 1024 * 1024;
/// The most lists of one capture: GPT has at most 128 partitions on the disks that we know, and a
/// machine has few disks.
const MAX_LISTS: usize = 4096;

/// A restore point that is not published, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// The manifest cannot be used.
    #[error("the manifest cannot be used")]
    Manifest(#[source] ManifestError),
    /// It is of another restore point.
    #[error("the manifest is of restore point {found} (expected {expected}, which the job makes)")]
    OtherId {
        /// The job's.
        expected: RestorePointId,
        /// The manifest's.
        found: RestorePointId,
    },
    /// There is a restore point of this id with other content.
    #[error("restore point {id} exists already and is another one")]
    Exists {
        /// Its id.
        id: RestorePointId,
    },
    /// A list that a region names was not sent.
    #[error("disk {disk}, region {region}: its chunk list {digest} was not uploaded")]
    ListMissing {
        /// The disk's number.
        disk: u32,
        /// The region's number from 0.
        region: usize,
        /// The list.
        digest: Digest,
    },
    /// A list that is none, or does not fit its region.
    #[error("disk {disk}, region {region}: its chunk list {digest} cannot be used")]
    List {
        /// The disk's number.
        disk: u32,
        /// The region's number from 0.
        region: usize,
        /// The list.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ChunkError,
    },
    /// A list that does not count what the manifest says.
    #[error(
        "disk {disk}, region {region}: its chunk list has {found} {what}, the manifest says {expected}"
    )]
    Count {
        /// The disk's number.
        disk: u32,
        /// The region's number from 0.
        region: usize,
        /// What was counted.
        what: &'static str,
        /// By the manifest.
        expected: u64,
        /// In the list.
        found: u64,
    },
    /// A chunk that is not in the store.
    #[error("disk {disk}, region {region}: chunk {digest} is not in the store")]
    ChunkMissing {
        /// The disk's number.
        disk: u32,
        /// The region's number from 0.
        region: usize,
        /// The chunk.
        digest: Digest,
    },
    /// A chunk that has another length than its place.
    #[error(
        "disk {disk}, region {region}: chunk {digest} has {found} bytes, its place at byte {offset} has {expected}"
    )]
    ChunkLength {
        /// The disk's number.
        disk: u32,
        /// The region's number from 0.
        region: usize,
        /// The chunk.
        digest: Digest,
        /// Where it is in the region.
        offset: u64,
        /// Bytes of its place.
        expected: u64,
        /// Bytes of the chunk.
        found: u32,
    },
    /// The disk refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the server knows of a capture and the manifest does not say.
#[derive(Debug, Clone)]
pub(crate) struct CaptureFacts {
    /// The server's id of the machine.
    pub(crate) machine: String,
    /// The machine's name if the captured system has none.
    pub(crate) machine_name: String,
    /// Bytes that the capture added to the store.
    pub(crate) stored_bytes: u64,
}

/// A text that names no restore point, or several.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RestorePointNameError {
    /// None begins like this.
    #[error("there is no restore point `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
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
    published_root: PathBuf,
    staging_root: PathBuf,
    published: RwLock<BTreeMap<RestorePointId, RestorePointView>>,
    /// One publication at a time: a repeated request finds the first one's result.
    publishing: Mutex<()>,
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
    /// machine with this id.
    ///
    /// # Errors
    /// [`RestorePointNameError`] when none or several answer to `name`.
    pub(crate) fn resolve(
        &self,
        name: &str,
        machine: &str,
    ) -> Result<RestorePointId, RestorePointNameError> {
        let unknown = || RestorePointNameError::Unknown {
            name: name.chars().take(80).collect(),
        };
        let all = self.list();
        if name == "latest" {
            let own = |view: &&RestorePointView| view.machine.as_deref() == Some(machine);
            let latest = all.iter().rev().find(own);
            return latest.map(|view| view.id.clone()).ok_or_else(unknown);
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

    /// Verifies a capture and makes it a restore point. Asked again with the same manifest, it
    /// answers as the first time.
    ///
    /// # Errors
    /// [`PublishError`]; then nothing is published and the staged lists are kept.
    pub(crate) fn publish(
        &self,
        id: &RestorePointId,
        manifest_bytes: &[u8],
        facts: &CaptureFacts,
        chunks: &ChunkStore,
    ) -> Result<RestorePointView, PublishError> {
        let manifest = Manifest::from_json(manifest_bytes).map_err(PublishError::Manifest)?;
        if manifest.id != *id {
            return Err(PublishError::OtherId {
                expected: id.clone(),
                found: manifest.id,
            });
        }
        let _one_at_a_time = self
            .publishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = self.published_already(id, manifest_bytes)? {
            return Ok(view);
        }
        let staging = self.staging_root.join(id.as_str());
        let lists = check_lists(&manifest, &staging, chunks)?;
        chunks.seal()?;
        let view = view_of(&manifest, facts);
        durable::create_directory(&staging)?;
        remove_strays(&staging, &lists)?;
        durable::replace(&staging.join(MANIFEST), &[manifest_bytes])?;
        let info = serde_json::to_vec_pretty(&view)
            .map_err(|source| StoreError::io("cannot describe", &staging, source.into()))?;
        durable::replace(&staging.join(INFO), &[&info])?;
        durable::sync_directory(&staging)?;
        let path = self.published_root.join(id.as_str());
        fs::rename(&staging, &path)
            .map_err(|source| StoreError::io("cannot publish", &path, source))?;
        // The commit is done: the rename decides. Its durability is asked for before anyone is
        // told, and both directories changed.
        durable::sync_directory(&self.published_root)?;
        durable::sync_directory(&self.staging_root)?;
        let mut published = self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        published.insert(id.clone(), view.clone());
        Ok(view)
    }

    fn published_already(
        &self,
        id: &RestorePointId,
        manifest_bytes: &[u8],
    ) -> Result<Option<RestorePointView>, PublishError> {
        let published = self
            .published
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(view) = published.get(id).cloned() else {
            return Ok(None);
        };
        drop(published);
        if self.manifest(id)? == manifest_bytes {
            Ok(Some(view))
        } else {
            Err(PublishError::Exists { id: id.clone() })
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

const MANIFEST: &str = "manifest.json";
const INFO: &str = "info.json";

fn list_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(format!("{digest}.chunks"))
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::io("cannot read", path, source)),
    }
}

/// Checks every list of the manifest and every chunk of every list; the digests of the lists.
fn check_lists(
    manifest: &Manifest,
    staging: &Path,
    chunks: &ChunkStore,
) -> Result<HashSet<Digest>, PublishError> {
    let mut lists = HashSet::new();
    for disk in &manifest.disks {
        for (region, description) in disk.regions.iter().enumerate() {
            let (disk, wanted) = (disk.number, &description.content);
            let digest = wanted.digest;
            let bytes = read_if_there(&list_path(staging, &digest))?
                // The digest was compared at the upload; the disk has had it since.
                .filter(|bytes| Digest::of(bytes) == digest)
                .ok_or(PublishError::ListMissing {
                    disk,
                    region,
                    digest,
                })?;
            let list = ChunkList::decode(&bytes, description.range.len()).map_err(|source| {
                PublishError::List {
                    disk,
                    region,
                    digest,
                    source,
                }
            })?;
            drop(bytes);
            for (what, expected, found) in [
                ("chunks", wanted.chunks, list.chunks().len() as u64),
                ("bytes of data", wanted.data_bytes, list.data_bytes()),
                ("bytes of zeros", wanted.zero_bytes, list.zero_bytes()),
            ] {
                if expected != found {
                    return Err(PublishError::Count {
                        disk,
                        region,
                        what,
                        expected,
                        found,
                    });
                }
            }
            for chunk in list.chunks() {
                let Content::Data(digest) = chunk.content else {
                    continue;
                };
                let found = chunks.find(&digest).ok_or(PublishError::ChunkMissing {
                    disk,
                    region,
                    digest,
                })?;
                if u64::from(found.plain_len()) != chunk.range.len() {
                    return Err(PublishError::ChunkLength {
                        disk,
                        region,
                        digest,
                        offset: chunk.range.start(),
                        expected: chunk.range.len(),
                        found: found.plain_len(),
                    });
                }
            }
            lists.insert(digest);
        }
    }
    Ok(lists)
}

/// Lists that were sent and that no region names do not become part of the restore point.
fn remove_strays(staging: &Path, lists: &HashSet<Digest>) -> Result<(), StoreError> {
    let cannot = |source| StoreError::io("cannot tidy", staging, source);
    let named: HashSet<PathBuf> = lists
        .iter()
        .map(|digest| list_path(staging, digest))
        .collect();
    for entry in fs::read_dir(staging).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if !named.contains(&path) {
            fs::remove_file(&path).map_err(cannot)?;
        }
    }
    Ok(())
}

fn view_of(manifest: &Manifest, facts: &CaptureFacts) -> RestorePointView {
    let system = manifest.system.as_ref();
    let host_name = system.and_then(|system| system.host_name.clone());
    RestorePointView {
        id: manifest.id.clone(),
        machine: Some(facts.machine.clone()).filter(|machine| !machine.is_empty()),
        machine_name: host_name.unwrap_or_else(|| facts.machine_name.clone()),
        captured_at: manifest.captured_at,
        system: system.map(|system| match &system.version {
            Some(version) => format!("{} {version}", system.name),
            None => system.name.clone(),
        }),
        status: if manifest.warnings.is_empty() {
            "successful".to_owned()
        } else {
            "warnings".to_owned()
        },
        warnings: manifest.warnings.clone(),
        disk_bytes: manifest
            .disks
            .iter()
            .map(|disk| disk.size)
            .fold(0, u64::saturating_add),
        data_bytes: manifest.data_bytes(),
        stored_bytes: facts.stored_bytes,
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

impl Store {
    /// The chunk lists of a published restore point, checked, with the numbers of disk and region.
    ///
    /// # Errors
    /// [`PublishError`] for what a restore would be refused for.
    pub(super) fn recheck(&self, id: &RestorePointId) -> Result<(), PublishError> {
        let path = self.restore_points.published_root.join(id.as_str());
        let bytes = self.restore_points.manifest(id)?;
        let manifest = Manifest::from_json(&bytes).map_err(PublishError::Manifest)?;
        check_lists(&manifest, &path, &self.chunks).map(drop)
    }

    /// Whether one of `digests` is a chunk of the restore point.
    pub(super) fn uses_any(&self, id: &RestorePointId, digests: &HashSet<Digest>) -> bool {
        let Ok(bytes) = self.restore_points.manifest(id) else {
            return false;
        };
        let Ok(manifest) = Manifest::from_json(&bytes) else {
            return false;
        };
        manifest.regions().any(|region| {
            let path = self.restore_points.published_root.join(id.as_str());
            let bytes = read_if_there(&list_path(&path, &region.content.digest));
            let Ok(Some(bytes)) = bytes else {
                return false;
            };
            ChunkList::decode(&bytes, region.range.len()).is_ok_and(|list| {
                list.chunks().iter().any(|chunk| {
                    matches!(chunk.content, Content::Data(digest) if digests.contains(&digest))
                })
            })
        })
    }
}
