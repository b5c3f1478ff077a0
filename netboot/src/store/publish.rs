//! Publishing: the commit of a capture.
//!
//! Invariant: either everything of a capture is checked, durable and visible, or nothing of it is
//! visible. The one rename in [`RestorePoints::publish`] decides.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use backup::Digest;
use backup::chunk::{ChunkError, ChunkList, Content};
use backup::manifest::{Manifest, ManifestError, RestorePointId};
use protocol::api::RestorePointView;

use super::chunk_store::ChunkStore;
use super::restore_points::{INFO, MANIFEST, RestorePoints, list_path, read_if_there};
use super::{StoreError, durable};

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

impl RestorePoints {
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
        // The commit is done: the rename decides, so that it is listed even if what follows fails.
        self.published
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), view.clone());
        // The capture is told only when the rename is durable; both directories changed.
        durable::sync_directory(&self.published_root)?;
        durable::sync_directory(&self.staging_root)?;
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
            durable::sync_directory(&self.published_root)?;
            durable::sync_directory(&self.staging_root)?;
            Ok(Some(view))
        } else {
            Err(PublishError::Exists { id: id.clone() })
        }
    }
}

/// Checks every list of the manifest and every chunk of every list; the digests of the lists.
pub(super) fn check_lists(
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

pub(super) fn view_of(manifest: &Manifest, facts: &CaptureFacts) -> RestorePointView {
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
