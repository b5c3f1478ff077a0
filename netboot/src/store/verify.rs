//! Verify: reads chunks back, decodes them and compares their digests; finds restore points that
//! lack something.
//!
//! It changes nothing and takes no lock, so that it runs beside a server. Memory: one pack's index, and
//! what is damaged. What is *not* here: what is done about damage (`damage`).

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use backup::Digest;
use backup::manifest::{Manifest, RestorePointId};
use serde::Serialize;

use super::chunk_store::Location;
use super::damage::Look;
use super::opening;
use super::pack::PackId;
use super::publish::{Find, PublishError, check_lists};
use super::record::Checker;
use super::{DamagedRecord, Store, StoreError};

/// A chunk that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DamagedChunk {
    /// Its digest.
    pub(crate) digest: Digest,
    /// The pack's file.
    pub(crate) pack: PathBuf,
    /// The pack's number.
    pub(crate) pack_number: u32,
    /// Byte offset of its record in the pack.
    pub(crate) offset: u64,
    /// What is wrong.
    pub(crate) reason: String,
}

impl DamagedChunk {
    /// Where it lies, as the store takes note of it.
    pub(crate) fn record(&self) -> DamagedRecord {
        DamagedRecord {
            digest: self.digest,
            pack: self.pack_number,
            // Offsets in packs come from 32 bits.
            offset: u32::try_from(self.offset).unwrap_or(u32::MAX),
            reason: self.reason.clone(),
        }
    }
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
    /// chunks, spread evenly (100 is all of them, 0 none). Records that a stop left twice are read
    /// where the index finds them.
    ///
    /// # Errors
    /// [`StoreError`] when verifying itself is not possible; damage is in the report.
    pub(crate) fn verify(
        &self,
        percent: u8,
        on_progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StoreError> {
        let share = u64::from(percent.min(100));
        let (chunks, bytes) = self.chunks.size();
        let mut reading = Reading {
            share,
            number: 0,
            progress: VerifyProgress {
                of_chunks: chunks * share / 100,
                of_bytes: bytes / 100 * share,
                ..VerifyProgress::default()
            },
            checker: self.chunks.checker()?,
            damaged: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        // Packs that come while we read are read too: a collection may have moved chunks to them.
        for _ in 0..PASSES {
            let storage = self.chunks.storage.as_ref();
            let listing = opening::list(storage, self.chunks.directory())?;
            for id in listing.packs {
                if seen.insert(id) {
                    self.verify_pack(id, &mut reading, on_progress)?;
                }
            }
        }
        let mut report = VerifyReport {
            all_chunks: chunks,
            checked_chunks: reading.progress.chunks,
            bytes: reading.progress.bytes,
            damaged_chunks: reading.damaged,
            ..VerifyReport::default()
        };
        self.verify_restore_points(&mut report);
        Ok(report)
    }

    fn verify_pack(
        &self,
        id: PackId,
        reading: &mut Reading,
        on_progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(), StoreError> {
        let (storage, directory) = (self.chunks.storage.as_ref(), self.chunks.directory());
        let entries = match opening::read_pack(storage, directory, id) {
            Ok(pack) => pack.entries,
            // Collected since it was listed; what was needed of it lies in a later pack.
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut here: Vec<_> = entries
            .iter()
            .map(|entry| (entry.header.digest, Location::new(id, entry)))
            .filter(|(digest, at)| self.chunks.find(digest).is_none_or(|found| found == *at))
            .collect();
        here.sort_unstable_by_key(|(_, at)| at.offset);
        for (digest, at) in &here {
            // Chunk n is taken when n × share crosses a multiple of 100: an even spread.
            let n = reading.number;
            reading.number += 1;
            if (n + 1) * reading.share / 100 == n * reading.share / 100 {
                continue;
            }
            match self.chunks.look_at(digest, at, &mut reading.checker) {
                Look::Sound => {}
                Look::Gone if self.chunks.find(digest) == Some(*at) => return Ok(()),
                Look::Gone => {}
                Look::Damaged(reason) => reading.note(directory, *digest, *at, reason),
                Look::BaseDamaged(base, at, reason) => reading.note(directory, base, at, reason),
            }
            reading.progress.chunks += 1;
            reading.progress.bytes += at.record_len() as u64;
            on_progress(reading.progress);
        }
        Ok(())
    }

    fn verify_restore_points(&self, report: &mut VerifyReport) {
        let damaged: HashSet<Digest> = report
            .damaged_chunks
            .iter()
            .map(|chunk| chunk.digest)
            .collect();
        let find = |digest: &Digest| self.chunks.find(digest);
        let sound = |digest: &Digest| {
            let found = self.chunks.find_sound(digest);
            let base = || self.chunks.base_of(digest);
            found.filter(|at| {
                let base = at.is_difference().then(base).flatten();
                ![Some(*digest), base]
                    .iter()
                    .flatten()
                    .any(|one| damaged.contains(one))
            })
        };
        let suspect = !damaged.is_empty() || self.chunks.read_index().any_damaged();
        for view in self.restore_points.list() {
            let reason = match self.recheck(&view.id, &find) {
                Err(error) if self.restore_points.is_there(&view.id) => {
                    Some(crate::store::chain(&error))
                }
                // Forgotten while we read.
                Err(_) => continue,
                Ok(()) if suspect && self.recheck(&view.id, &sound).is_err() => {
                    Some("it needs a damaged chunk".to_owned())
                }
                Ok(()) => None,
            };
            report.restore_points += 1;
            if let Some(reason) = reason {
                report.damaged_restore_points.push(DamagedRestorePoint {
                    restore_point: view.id,
                    reason,
                });
            }
        }
    }

    /// Checks the manifest, the lists and the chunks of a published restore point.
    ///
    /// # Errors
    /// [`PublishError`] for what a restore would be refused for.
    pub(super) fn recheck(&self, id: &RestorePointId, find: Find<'_>) -> Result<(), PublishError> {
        let points = &self.restore_points;
        let path = points.published_root.join(id.as_str());
        let bytes = points.manifest(id)?;
        let manifest = Manifest::from_json(&bytes).map_err(PublishError::Manifest)?;
        check_lists(points.storage.as_ref(), &manifest, &path, find).map(drop)
    }
}

/// How often the packs are listed.
const PASSES: usize = 3;

/// A verification on its way through the packs.
struct Reading {
    share: u64,
    /// Chunks seen so far, read or not.
    number: u64,
    progress: VerifyProgress,
    checker: Checker,
    damaged: Vec<DamagedChunk>,
}

impl Reading {
    /// A record is damaged; one that many are differences from is found many times.
    fn note(&mut self, packs: &Path, digest: Digest, at: Location, reason: String) {
        let pack = at.pack.pack_path(packs);
        let offset = u64::from(at.offset);
        let known = |chunk: &DamagedChunk| chunk.pack == pack && chunk.offset == offset;
        if !self.damaged.iter().any(known) {
            self.damaged.push(DamagedChunk {
                digest,
                pack,
                pack_number: at.pack.0,
                offset,
                reason,
            });
        }
    }
}
