//! Publishing: the commit of a capture.
//!
//! Invariant: either everything of a capture is checked, durable and visible, or nothing of it is
//! visible. The one rename in [`RestorePoints::publish`] decides.

use std::collections::HashSet;
use std::path::Path;
use std::sync::PoisonError;

use backup::Digest;
use backup::chunk::{Chunk, ChunkError, Content};
use backup::manifest::{Manifest, ManifestError, Purpose, RestorePointId};
use protocol::api::RestorePointView;

use super::StoreError;
use super::chunk_store::{ChunkStore, Location};
use super::lists::{self, ListError};
use super::restore_points::{INFO, MANIFEST, RestorePoints};
use super::storage::{self, Storage};

/// What a chunk list is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContentPlace {
    /// A region of a disk, by their numbers from 0.
    Region {
        /// The disk's.
        disk: u32,
        /// The region's.
        region: usize,
    },
    /// A logical volume, by group and name.
    LogicalVolume(String),
}

impl std::fmt::Display for ContentPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Region { disk, region } => write!(f, "disk {disk}, region {region}"),
            Self::LogicalVolume(name) => write!(f, "logical volume {name}"),
        }
    }
}

/// The place of each content of a manifest, in the order of [`Manifest::contents`].
fn places(manifest: &Manifest) -> impl Iterator<Item = ContentPlace> + '_ {
    let regions = manifest.disks.iter().flat_map(|disk| {
        (0..disk.regions.len()).map(|region| ContentPlace::Region {
            disk: disk.number,
            region,
        })
    });
    let volumes = manifest.logical_volumes.iter();
    regions.chain(volumes.map(|volume| ContentPlace::LogicalVolume(volume.full_name())))
}

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
    /// It is for something else.
    #[error("the manifest is of a {found} (expected a {expected}, as the job says, by its name)")]
    OtherPurpose {
        /// The job's kind.
        expected: &'static str,
        /// The manifest's kind.
        found: &'static str,
    },
    /// There is a restore point of this id with other content.
    #[error("restore point {id} exists already and is another one")]
    Exists {
        /// Its id.
        id: RestorePointId,
    },
    /// A list that a region names was not sent.
    #[error("{place}: its chunk list {digest} was not uploaded")]
    ListMissing {
        /// What it is of.
        place: ContentPlace,
        /// The list.
        digest: Digest,
    },
    /// A list that is none, or does not fit its region.
    #[error("{place}: its chunk list {digest} cannot be used")]
    List {
        /// What it is of.
        place: ContentPlace,
        /// The list.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ChunkError,
    },
    /// A list that does not count what the manifest says.
    #[error("{place}: its chunk list has {found} {what}, the manifest says {expected}")]
    Count {
        /// What it is of.
        place: ContentPlace,
        /// What was counted.
        what: &'static str,
        /// By the manifest.
        expected: u64,
        /// In the list.
        found: u64,
    },
    /// A chunk that is not in the store.
    #[error("{place}: chunk {digest} is not in the store")]
    ChunkMissing {
        /// What it is of.
        place: ContentPlace,
        /// The chunk.
        digest: Digest,
    },
    /// A chunk that has another length than its place.
    #[error("{place}: chunk {digest} has {found} bytes, its place at byte {offset} has {expected}")]
    ChunkLength {
        /// What it is of.
        place: ContentPlace,
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
    /// Whether a person gave that name, so that it counts before the captured system's own.
    pub(crate) named: bool,
    /// Bytes that the capture added to the store.
    pub(crate) stored_bytes: u64,
    /// What it was ordered for.
    pub(crate) purpose: Purpose,
}

impl RestorePoints {
    /// Verifies a capture and makes it a restore point. Asked again with the same manifest, it
    /// answers as the first time. What it needs is then kept by the restore point itself.
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
        if manifest.kind != facts.purpose.kind || manifest.image != facts.purpose.image {
            return Err(PublishError::OtherPurpose {
                expected: facts.purpose.kind.word(),
                found: manifest.kind.word(),
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
        let storage = self.storage.as_ref();
        // Claimed as they are checked: from here to the rename no collection removes one.
        let find = |digest: &Digest| chunks.claim(id, digest);
        let lists = check_lists(storage, &manifest, &staging, &find)?;
        chunks.seal()?;
        let view = view_of(&manifest, facts);
        storage::create_directory(storage, &staging)?;
        self.remove_strays(id, &lists)?;
        self.shorten_lists(id, &facts.machine, lists.iter());
        storage::replace(storage, &staging.join(MANIFEST), manifest_bytes)?;
        let info = serde_json::to_vec_pretty(&view)
            .map_err(|source| StoreError::io("cannot describe", &staging, source.into()))?;
        storage::replace(storage, &staging.join(INFO), &info)?;
        storage::sync_directory(storage, &staging)?;
        let path = self.published_root.join(id.as_str());
        storage
            .rename(&staging, &path)
            .map_err(|source| StoreError::io("cannot publish", &path, source))?;
        // The commit is done: the rename decides, so that it is listed even if what follows fails.
        self.published
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), view.clone());
        // The capture is told only when the rename is durable; both directories changed.
        storage::sync_directory(storage, &self.published_root)?;
        storage::sync_directory(storage, &self.staging_root)?;
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
            // The first answer may have been that this failed.
            storage::sync_directory(self.storage.as_ref(), &self.published_root)?;
            storage::sync_directory(self.storage.as_ref(), &self.staging_root)?;
            Ok(Some(view))
        } else {
            Err(PublishError::Exists { id: id.clone() })
        }
    }
}

/// How the chunks of a restore point are looked for.
pub(super) type Find<'a> = &'a dyn Fn(&Digest) -> Option<Location>;

/// Checks every list of the manifest and every chunk of every list; the digests of the lists.
pub(super) fn check_lists(
    storage: &dyn Storage,
    manifest: &Manifest,
    directory: &Path,
    find: Find<'_>,
) -> Result<HashSet<Digest>, PublishError> {
    let mut lists = HashSet::new();
    for (place, (wanted, size)) in places(manifest).zip(manifest.contents()) {
        let digest = wanted.digest;
        let each = |chunk| check_chunk(&chunk, find).map_err(InList::Chunk);
        let read: Result<_, InList> = lists::read(storage, directory, (&digest, size), each);
        let counts = read.map_err(|error| error.at(place.clone(), digest))?;
        for (what, expected, found) in [
            ("chunks", wanted.chunks, counts.chunks),
            ("bytes of data", wanted.data_bytes, counts.data_bytes),
            ("bytes of zeros", wanted.zero_bytes, counts.zero_bytes),
        ] {
            if expected != found {
                return Err(PublishError::Count {
                    place,
                    what,
                    expected,
                    found,
                });
            }
        }
        lists.insert(digest);
    }
    Ok(lists)
}

/// What is wrong within a list.
enum InList {
    List(ListError),
    Chunk(BadChunk),
}

/// A chunk that is not there, or not as long as its place.
struct BadChunk {
    digest: Digest,
    offset: u64,
    expected: u64,
    found: Option<u32>,
}

impl From<ListError> for InList {
    fn from(error: ListError) -> Self {
        Self::List(error)
    }
}

impl InList {
    fn at(self, place: ContentPlace, list: Digest) -> PublishError {
        match self {
            // The digest was compared when the list was finished; the disk has had it since.
            Self::List(ListError::NotThere | ListError::OtherDigest { .. }) => {
                PublishError::ListMissing {
                    place,
                    digest: list,
                }
            }
            Self::List(ListError::Format(source)) => PublishError::List {
                place,
                digest: list,
                source,
            },
            Self::List(ListError::Store(error)) => error.into(),
            Self::Chunk(BadChunk {
                digest,
                offset,
                expected,
                found: Some(found),
            }) => PublishError::ChunkLength {
                place,
                digest,
                offset,
                expected,
                found,
            },
            Self::Chunk(BadChunk { digest, .. }) => PublishError::ChunkMissing { place, digest },
        }
    }
}

fn check_chunk(chunk: &Chunk, find: Find<'_>) -> Result<(), BadChunk> {
    let Content::Data(digest) = chunk.content else {
        return Ok(());
    };
    let found = find(&digest).map(|location| location.plain_len());
    if found.map(u64::from) == Some(chunk.range.len()) {
        return Ok(());
    }
    Err(BadChunk {
        digest,
        offset: chunk.range.start(),
        expected: chunk.range.len(),
        found,
    })
}

/// What lists show of a restore point.
pub(super) fn view_of(manifest: &Manifest, facts: &CaptureFacts) -> RestorePointView {
    let system = manifest.system.as_ref();
    let host_name = system.and_then(|system| system.host_name.clone());
    RestorePointView {
        id: manifest.id.clone(),
        machine: Some(facts.machine.clone()).filter(|machine| !machine.is_empty()),
        machine_name: host_name
            .filter(|_| !facts.named)
            .unwrap_or_else(|| facts.machine_name.clone()),
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
        kind: manifest.kind.word().to_owned(),
        image: manifest.image.clone(),
        pinned: false,
    }
}
