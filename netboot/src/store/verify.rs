//! Verify: reads chunks back, decodes them and compares their digests; finds restore points that
//! lack something.
//!
//! It changes nothing and takes no lock, so that it runs beside a server. What is *not* here:
//! repair.

use std::collections::HashSet;
use std::path::PathBuf;

use backup::Digest;
use backup::chunk::{ChunkList, Content, RecordHeader};
use backup::manifest::{Manifest, RestorePointId};
use serde::Serialize;

use super::chunk_store::Location;
use super::publish::{PublishError, check_lists};
use super::record::{Checker, record_at};
use super::restore_points::{list_path, read_if_there};
use super::{Store, StoreError};

/// A chunk that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DamagedChunk {
    /// Its digest.
    pub(crate) digest: Digest,
    /// The pack's file.
    pub(crate) pack: PathBuf,
    /// Byte offset of its record in the pack.
    pub(crate) offset: u64,
    /// What is wrong.
    pub(crate) reason: String,
}

/// A restore point that cannot be restored as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DamagedRestorePoint {
    /// Its id.
    pub(crate) restore_point: RestorePointId,
    /// What is wrong.
    pub(crate) reason: String,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct VerifyProgress {
    /// Chunks read.
    pub(crate) chunks: u64,
    /// Chunks to read.
    pub(crate) of_chunks: u64,
    /// Bytes read from packs.
    pub(crate) bytes: u64,
    /// Bytes to read.
    pub(crate) of_bytes: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct VerifyReport {
    /// Chunks read back and compared.
    pub(crate) checked_chunks: u64,
    /// Chunks in the store.
    pub(crate) all_chunks: u64,
    /// Bytes read from packs.
    pub(crate) bytes: u64,
    /// Restore points whose manifest and lists were checked: all of them.
    pub(crate) restore_points: u64,
    /// The damaged chunks.
    pub(crate) damaged_chunks: Vec<DamagedChunk>,
    /// The restore points that need a damaged chunk, or lack one.
    pub(crate) damaged_restore_points: Vec<DamagedRestorePoint>,
}

impl VerifyReport {
    /// Whether all that was looked at is as it should be.
    pub(crate) fn is_sound(&self) -> bool {
        self.damaged_chunks.is_empty() && self.damaged_restore_points.is_empty()
    }
}

impl Store {
    /// Verifies every restore point's manifest and lists, and the content of `percent` % of the
    /// chunks, spread evenly (100 is all of them, 0 none).
    ///
    /// # Errors
    /// [`StoreError`] when verifying itself is not possible; damage is in the report.
    pub(crate) fn verify(
        &self,
        percent: u8,
        on_progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StoreError> {
        let all = self.chunks.all();
        let mut report = VerifyReport {
            all_chunks: all.len() as u64,
            ..VerifyReport::default()
        };
        let share = u64::from(percent.min(100));
        // Chunk n is taken when n × share crosses a multiple of 100: an even spread over all packs.
        let picked: Vec<_> = all
            .into_iter()
            .zip(0u64..)
            .filter(|(_, n)| (n + 1) * share / 100 > n * share / 100)
            .map(|(chunk, _)| chunk)
            .collect();
        let mut progress = VerifyProgress {
            of_chunks: picked.len() as u64,
            of_bytes: picked.iter().map(|(_, at)| at.record_len() as u64).sum(),
            ..VerifyProgress::default()
        };
        let mut checker = Checker::new().map_err(|source| {
            StoreError::io("cannot prepare to decode", self.chunks.directory(), source)
        })?;
        for (digest, at) in &picked {
            if let Err(reason) = self.check_chunk(digest, at, &mut checker) {
                report.damaged_chunks.push(DamagedChunk {
                    digest: *digest,
                    pack: at.pack.pack_path(self.chunks.directory()),
                    offset: u64::from(at.offset),
                    reason,
                });
            }
            progress.chunks += 1;
            progress.bytes += at.record_len() as u64;
            on_progress(progress);
        }
        report.checked_chunks = progress.chunks;
        report.bytes = progress.bytes;
        self.verify_restore_points(&mut report);
        Ok(report)
    }

    fn check_chunk(
        &self,
        digest: &Digest,
        at: &Location,
        checker: &mut Checker,
    ) -> Result<(), String> {
        let path = at.pack.pack_path(self.chunks.directory());
        let mut bytes = vec![0; at.record_len()];
        std::fs::File::open(&path)
            .and_then(|file| {
                use std::os::unix::fs::FileExt;
                file.read_exact_at(&mut bytes, u64::from(at.offset))
            })
            .map_err(|error| format!("cannot be read: {error}"))?;
        let (header, frame) = record_at(&bytes, 0).map_err(|error| error.to_string())?;
        let expected = RecordHeader {
            digest: *digest,
            plain_len: at.plain_len,
            stored_len: at.stored_len,
        };
        if header != expected {
            return Err("its record's header differs from the index".to_owned());
        }
        checker
            .check(&header, frame)
            .map_err(|error| error.to_string())
    }

    fn verify_restore_points(&self, report: &mut VerifyReport) {
        let damaged: HashSet<Digest> = report
            .damaged_chunks
            .iter()
            .map(|chunk| chunk.digest)
            .collect();
        for view in self.restore_points.list() {
            report.restore_points += 1;
            let reason = match self.recheck(&view.id) {
                Err(error) => Some(crate::store::chain(&error)),
                Ok(()) if !damaged.is_empty() && self.uses_any(&view.id, &damaged) => {
                    Some("it needs a damaged chunk".to_owned())
                }
                Ok(()) => None,
            };
            if let Some(reason) = reason {
                report.damaged_restore_points.push(DamagedRestorePoint {
                    restore_point: view.id,
                    reason,
                });
            }
        }
    }
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
