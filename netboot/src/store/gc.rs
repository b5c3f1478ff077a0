//! Garbage collection: marks what is needed, then removes packs that hold nothing of it and rewrites
//! packs that hold little of it.
//!
//! Needed is what a published restore point names, what the staged lists of captures name, and what a
//! running capture was told is stored or has sent (`claims`). When something was last used plays no
//! part. If one restore point cannot be read, nothing is removed.
//!
//! A pack is rewritten by copying its live records, each compared with its digest, into the pack that
//! is being written; that is sealed, and only then does the old one go: first its index, then, when
//! that is durable, the pack, so that no stop leaves an index without its pack. A stop leaves at
//! most a record twice.
//!
//! Memory: a bit for each position of the index, one pack's index, one batch of records.
//!
//! Invariant: a pack is removed only after the index in memory names no place in it, and the chunks
//! that leave the index are those that nothing claims at that moment.

use std::collections::BTreeMap;
use std::sync::TryLockError;

use backup::Digest;
use backup::chunk::{Chunk, Content, RecordHeader};
use backup::manifest::{Manifest, RestorePointId};
use protocol::upkeep::{GcProgress, GcReport, GcRequest};

use super::bits::Bits;
use super::chunk_store::{BATCH, Location};
use super::damage::{DamagedRecord, Look};
use super::lists::{self, ListError};
use super::opening;
use super::pack::{Entry, PACK_HEADER_LEN, PackId};
use super::resemblance::Features;
use super::storage;
use super::{Store, StoreError, chain};

/// How often a pack is tried again of which captures claimed more while it was copied.
const TRIES: usize = 3;

/// A pack and what of it is needed.
#[derive(Debug, Clone, Copy)]
struct PackUse {
    id: PackId,
    len: u64,
    live: u64,
}

impl Store {
    /// Collects garbage, or says what a collection would do.
    ///
    /// # Errors
    /// [`StoreError::Collecting`] when one runs already, [`StoreError::Unreadable`] when a restore point
    /// cannot be read, and whatever the disk says. Nothing that is needed is lost by any of them.
    pub(crate) fn collect(
        &self,
        request: &GcRequest,
        on_progress: &mut dyn FnMut(GcProgress),
    ) -> Result<GcReport, StoreError> {
        let _one_at_a_time = match self.collecting.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => return Err(StoreError::Collecting),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        self.chunks.lock_claims().collect(true);
        let outcome = self.collect_claimed(request, on_progress);
        self.chunks.lock_claims().collect(false);
        outcome
    }

    fn collect_claimed(
        &self,
        request: &GcRequest,
        on_progress: &mut dyn FnMut(GcProgress),
    ) -> Result<GcReport, StoreError> {
        let mut progress = GcProgress::default();
        let marks = self.mark(&mut |done, of| {
            (progress.restore_points, progress.of_restore_points) = (done, of);
            on_progress(progress);
        })?;
        if !request.dry_run {
            // The open pack may hold garbage too, and is removed only when it is sealed.
            self.chunks.seal()?;
        }
        let (packs, mut report) = self.survey(&marks, request.dry_run)?;
        report.dry_run = request.dry_run;
        let share = u64::from(request.rewrite_below.min(100));
        let little = |pack: &&PackUse| pack.live > 0 && pack.live * 100 < pack.len * share;
        let dead: Vec<_> = packs.iter().filter(|pack| pack.live == 0).collect();
        let thin: Vec<_> = packs.iter().filter(little).collect();
        progress.of_packs = (dead.len() + thin.len()) as u64;
        on_progress(progress);
        if request.dry_run {
            report.removed_packs = dead.len() as u64;
            report.rewritten_packs = thin.len() as u64;
            report.rewritten_bytes = thin.iter().map(|pack| pack.live).sum();
            report.freed_bytes = dead.iter().chain(&thin).map(|pack| pack.len).sum::<u64>();
            report.freed_bytes -= report.rewritten_bytes;
            return Ok(report);
        }
        // What costs no room first.
        let gone = self.retire(&dead, &marks)?;
        report.removed_packs = gone.len() as u64;
        report.freed_bytes = gone.iter().map(|pack| pack.len).sum();
        progress.packs = dead.len() as u64;
        on_progress(progress);
        let mut group = Vec::new();
        let mut copied = 0;
        for (at, pack) in thin.iter().enumerate() {
            match self.copy_live(pack.id, &marks)? {
                Copied::All(bytes) => {
                    copied += bytes;
                    report.rewritten_bytes += bytes;
                    group.push(*pack);
                }
                Copied::Damaged(found) => {
                    report.notes.push(format!(
                        "pack {} is left alone: {} of its records are damaged",
                        pack.id,
                        found.len()
                    ));
                    self.note_damage(&found)?;
                }
            }
            // A pack's worth at a time: that much room is needed before any is made.
            if copied >= self.chunks.limit || at + 1 == thin.len() {
                self.chunks.seal()?;
                let gone = self.retire(&group, &marks)?;
                report.rewritten_packs += gone.len() as u64;
                report.freed_bytes += gone.iter().map(|pack| pack.len).sum::<u64>();
                (group, copied) = (Vec::new(), 0);
            }
            progress.packs += 1;
            on_progress(progress);
        }
        report.freed_bytes = report.freed_bytes.saturating_sub(report.rewritten_bytes);
        log::info!(
            "garbage collection: {} freed, {} packs removed, {} rewritten",
            backup::units::HumanBytes(report.freed_bytes),
            report.removed_packs,
            report.rewritten_packs
        );
        Ok(report)
    }

    /// Marks what restore points and staged lists name.
    fn mark(&self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Bits, StoreError> {
        let points = &self.restore_points;
        let storage = points.storage.as_ref();
        let mut marks = Bits::default();
        let ids = self.all_restore_points()?;
        for (done, id) in ids.iter().enumerate() {
            on_progress(done as u64, ids.len() as u64);
            let mark = |digest: &Digest| {
                let index = self.chunks.read_index();
                index.needed(digest).for_each(|at| marks.set(at));
            };
            match self.each_data_chunk(id, mark) {
                Ok(()) => {}
                // Forgotten meanwhile.
                Err(_) if !points.contains(id) => {}
                Err(error) => return Err(unreadable(id, &chain(&error))),
            }
        }
        on_progress(ids.len() as u64, ids.len() as u64);
        for entry in storage::list_if_there(storage, &points.staging_root)? {
            let directory = points.staging_root.join(&entry.name);
            for list in lists::in_directory(storage, &directory)? {
                let each = |chunk: Chunk| {
                    if let Content::Data(digest) = chunk.content {
                        let index = self.chunks.read_index();
                        index.needed(&digest).for_each(|at| marks.set(at));
                    }
                    Ok::<_, ListError>(())
                };
                // One that cannot be read is refused when it is published; its chunks are claimed.
                let _ = lists::read(storage, &directory, (&list, u64::MAX), each);
            }
        }
        Ok(marks)
    }

    /// Every directory of a restore point, also of those that cannot be used.
    fn all_restore_points(&self) -> Result<Vec<RestorePointId>, StoreError> {
        let points = &self.restore_points;
        // Neither published nor forgotten between the two looks.
        let _publishing = points.lock_publishing();
        let listed = storage::list_if_there(points.storage.as_ref(), &points.published_root)?;
        let mut ids = Vec::new();
        for entry in listed.into_iter().filter(|entry| entry.directory) {
            let name = entry.name.clone();
            match RestorePointId::try_from(entry.name) {
                Ok(id) if points.contains(&id) => ids.push(id),
                _ => {
                    return Err(StoreError::Unreadable {
                        restore_point: name,
                        reason: "it is in the folder of restore points and is none".to_owned(),
                    });
                }
            }
        }
        Ok(ids)
    }

    /// Hands out the digest of every data chunk of a restore point; what was handed out counts only
    /// when it returns well.
    pub(super) fn each_data_chunk(
        &self,
        id: &RestorePointId,
        mut each: impl FnMut(&Digest),
    ) -> Result<(), ListError> {
        let points = &self.restore_points;
        let bytes = points.manifest(id)?;
        let manifest = Manifest::from_json(&bytes).map_err(|error| {
            let path = points.published_root.join(id.as_str());
            StoreError::io(
                "cannot use the manifest in",
                &path,
                std::io::Error::other(error),
            )
        })?;
        let directory = points.published_root.join(id.as_str());
        for (content, size) in manifest.contents() {
            let place = (&content.digest, size);
            lists::read(points.storage.as_ref(), &directory, place, |chunk| {
                if let Content::Data(digest) = &chunk.content {
                    each(digest);
                }
                Ok::<_, ListError>(())
            })?;
        }
        Ok(())
    }

    /// What of each pack that can be removed is needed, and the sums.
    fn survey(&self, marks: &Bits, dry_run: bool) -> Result<(Vec<PackUse>, GcReport), StoreError> {
        // First of all: what is begun later is not looked at.
        let active = self.chunks.active()?;
        let listing = opening::list(self.chunks.storage.as_ref(), self.chunks.directory())?;
        let mut live: BTreeMap<PackId, u64> = BTreeMap::new();
        let mut report = GcReport::default();
        let claims = self.chunks.lock_claims();
        let index = self.chunks.read_index();
        report.chunks = index.size().0;
        for position in 0..index.end() {
            let Some((_, location)) = index.at(position) else {
                continue;
            };
            if marks.has(position) || claims.hold(position) {
                *live.entry(location.pack).or_default() += location.record_len() as u64;
            } else {
                report.dead_chunks += 1;
            }
        }
        drop((index, claims));
        let mut packs = Vec::new();
        for id in listing.packs {
            let path = id.pack_path(self.chunks.directory());
            let len = self.chunks.storage.open(&path).and_then(|file| file.len());
            let len =
                len.map_err(|source| StoreError::io("cannot look at the pack", &path, source))?;
            let live = live.get(&id).copied().unwrap_or(0);
            report.packs += 1;
            report.dead_bytes += len
                .saturating_sub(live)
                .saturating_sub(PACK_HEADER_LEN as u64);
            if Some(id) != active || dry_run {
                packs.push(PackUse { id, len, live });
            }
        }
        Ok((packs, report))
    }

    /// The chunks of a pack that the index finds there.
    fn chunks_in(&self, id: PackId) -> Result<Vec<(Digest, Location)>, StoreError> {
        let storage = self.chunks.storage.as_ref();
        let mut entries = opening::read_pack(storage, self.chunks.directory(), id)?.entries;
        entries.sort_unstable_by_key(|entry| entry.offset);
        let index = self.chunks.read_index();
        let place = |entry: &Entry| (entry.header.digest, Location::new(id, entry));
        let here = entries.iter().map(place);
        Ok(here
            .filter(|(digest, at)| index.find(digest) == Some(*at))
            .collect())
    }

    fn is_live(&self, digest: &Digest, marks: &Bits) -> bool {
        let claims = self.chunks.lock_claims();
        let position = self.chunks.read_index().position(digest);
        position.is_some_and(|position| marks.has(position) || claims.hold(position))
    }

    /// Copies what is needed of a pack into the one that is being written.
    fn copy_live(&self, id: PackId, marks: &Bits) -> Result<Copied, StoreError> {
        let storage = self.chunks.storage.as_ref();
        let path = id.pack_path(self.chunks.directory());
        let cannot = |source| StoreError::io("cannot read the pack", &path, source);
        let file = storage.open(&path).map_err(cannot)?;
        let mut checker = self.chunks.checker()?;
        let mut damaged = Vec::new();
        let mut copied = 0;
        for _ in 0..TRIES {
            let mut live = self.chunks_in(id)?;
            live.retain(|(digest, _)| self.is_live(digest, marks));
            if live.is_empty() {
                break;
            }
            // All are compared before the first is copied: a pack with a damaged record stays as it is.
            for write in [false, true] {
                for (digest, at) in &live {
                    let mut record = vec![0; at.record_len()];
                    let look = match file.read_exact_at(&mut record, u64::from(at.offset)) {
                        Ok(()) => self.chunks.check_record(&record, digest, at, &mut checker),
                        Err(error) => Look::Damaged(format!("cannot be read: {error}")),
                    };
                    let bad = match look {
                        Look::Sound => None,
                        // It lies elsewhere now.
                        Look::Gone => continue,
                        Look::Damaged(reason) => Some((*digest, *at, reason)),
                        Look::BaseDamaged(base, at, reason) => Some((base, at, reason)),
                    };
                    if let Some((digest, at, reason)) = bad {
                        damaged.push(DamagedRecord {
                            digest,
                            pack: at.pack.0,
                            offset: at.offset,
                            reason,
                        });
                    } else if write {
                        let features = Features::of(checker.decoded(at.plain_len as usize));
                        if self.chunks.rewrite(*digest, &record, *at, features)? {
                            copied += record.len() as u64;
                        }
                    }
                }
                if !damaged.is_empty() {
                    return Ok(Copied::Damaged(damaged));
                }
            }
        }
        Ok(Copied::All(copied))
    }

    /// Removes those of the packs in which nothing is needed any more.
    fn retire(&self, packs: &[&PackUse], marks: &Bits) -> Result<Vec<PackUse>, StoreError> {
        let mut gone = Vec::new();
        let mut orphans: BTreeMap<PackId, Vec<u32>> = BTreeMap::new();
        for pack in packs {
            let here = self.chunks_in(pack.id)?;
            // Nobody is told "stored" between the look and the removal.
            let claims = self.chunks.lock_claims();
            let mut index = self.chunks.write_index();
            let mut dead = Vec::new();
            let mut needed = false;
            for (digest, at) in &here {
                let Some(position) = index.position(digest) else {
                    continue;
                };
                if index.find(digest) != Some(*at) {
                    continue;
                }
                needed |= marks.has(position) || claims.hold(position);
                dead.push(position);
            }
            if !needed {
                // What is not needed may be the base of more that is not needed, in other packs.
                let mut bases = Bits::default();
                dead.iter().for_each(|position| bases.set(*position));
                for position in index.differences_from(&bases) {
                    if let Some((_, at)) = index.at(position) {
                        orphans.entry(at.pack).or_default().push(at.offset);
                    }
                    index.remove(position);
                }
                dead.into_iter().for_each(|position| index.remove(position));
                gone.push(**pack);
            }
        }
        orphans.retain(|id, _| !gone.iter().any(|pack| pack.id == *id));
        self.forget_orphans(&orphans)?;
        if gone.is_empty() {
            return Ok(gone);
        }
        let highest = gone.iter().map(|pack| pack.id).max();
        match highest.map_or(Ok(()), |highest| self.chunks.keep_numbering(highest)) {
            // It stays in its place and is found again at the next start.
            Err(StoreError::Full { .. }) => gone.retain(|pack| Some(pack.id) != highest),
            other => other?,
        }
        let (storage, directory) = (self.chunks.storage.as_ref(), self.chunks.directory());
        for index in [true, false] {
            for pack in &gone {
                let path = if index {
                    pack.id.index_path(directory)
                } else {
                    pack.id.pack_path(directory)
                };
                match storage.remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(StoreError::io("cannot remove", &path, error));
                    }
                    _ => {}
                }
            }
            storage::sync_directory(storage, directory)?;
        }
        let ids: Vec<_> = gone.iter().map(|pack| pack.id).collect();
        self.chunks.forget_damage_in(&ids)?;
        Ok(gone)
    }
}

impl Store {
    /// Takes differences whose base is going out of the indexes of their packs, so that no start looks for it.
    fn forget_orphans(&self, orphans: &BTreeMap<PackId, Vec<u32>>) -> Result<(), StoreError> {
        let (storage, directory) = (self.chunks.storage.as_ref(), self.chunks.directory());
        for (id, offsets) in orphans {
            let pack = opening::read_pack(storage, directory, *id)?;
            pack.without(offsets).write_index(storage, directory)?;
        }
        Ok(())
    }
}

/// What copying a pack came to.
enum Copied {
    /// All that is needed of it lies elsewhere too; bytes that were written.
    All(u64),
    /// Some of what is needed is damaged.
    Damaged(Vec<DamagedRecord>),
}

fn unreadable(id: &RestorePointId, reason: &str) -> StoreError {
    StoreError::Unreadable {
        restore_point: id.to_string(),
        reason: reason.to_owned(),
    }
}

// A batch holds any record.
const _: () = assert!(BATCH > backup::chunk::MAX_STORED_LEN as usize + RecordHeader::LEN);
