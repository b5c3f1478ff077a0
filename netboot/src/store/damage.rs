//! Records that were found damaged, remembered until they are replaced.
//!
//! ```text
//! store/damaged.json     [{"digest": …, "pack": 3, "offset": 16, "reason": …}, …]
//! ```
//!
//! A chunk whose record is in this list counts as missing for captures: the next machine that has it
//! sends it again, and the new record takes the old one's place. The list names places, not chunks, so
//! that a start knows which of two records of a chunk is the good one.
//!
//! Invariant: it holds nothing that reading the packs would not find again; losing it costs the next
//! `verify`, no data.

use std::path::{Path, PathBuf};

use backup::Digest;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::chunk_store::{ChunkStore, Location};
use super::difference::{Unsound, decode};
use super::pack::PackId;
use super::record::Checker;
use super::storage::{self, Storage};

/// A record that is not what its chunk's name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamagedRecord {
    /// The chunk.
    pub(crate) digest: Digest,
    /// The number of its pack.
    pub(crate) pack: u32,
    /// Byte offset of the record in the pack.
    pub(crate) offset: u32,
    /// What is wrong.
    pub(crate) reason: String,
}

impl DamagedRecord {
    pub(super) const fn is_at(&self, pack: PackId, offset: u32) -> bool {
        self.pack == pack.0 && self.offset == offset
    }
}

fn path(packs: &Path) -> PathBuf {
    packs.with_file_name("damaged.json")
}

/// The list as it was written last.
pub(super) fn read(storage: &dyn Storage, packs: &Path) -> Result<Vec<DamagedRecord>, StoreError> {
    let path = path(packs);
    let Some(bytes) = storage::read_if_there(storage, &path)? else {
        return Ok(Vec::new());
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        log::error!(
            "{} cannot be read ({error}): run `netboot verify` to find damaged chunks again",
            path.display()
        );
        Vec::new()
    }))
}

/// What a look at one record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is the chunk.
    Sound,
    /// Its pack is not there any more.
    Gone,
    /// It is not the chunk, or cannot be read.
    Damaged(String),
    /// It is a difference, and the record of its base is not what it should be.
    BaseDamaged(Digest, Location, String),
}

impl ChunkStore {
    /// Reads a record back and compares it with its chunk's digest.
    pub(super) fn look_at(&self, digest: &Digest, at: &Location, checker: &mut Checker) -> Look {
        let path = at.pack.pack_path(self.directory());
        let mut bytes = vec![0; at.record_len()];
        let read = self
            .storage
            .open(&path)
            .and_then(|file| file.read_exact_at(&mut bytes, u64::from(at.offset)));
        match read {
            Ok(()) => self.check_record(&bytes, digest, at, checker),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Look::Gone,
            Err(error) => Look::Damaged(format!("cannot be read: {error}")),
        }
    }

    /// Compares the bytes of a record with what the index says of it and with its chunk's digest.
    pub(super) fn check_record(
        &self,
        record: &[u8],
        digest: &Digest,
        at: &Location,
        checker: &mut Checker,
    ) -> Look {
        match decode(record, (digest, at), checker, &|base| self.read_raw(base)) {
            Ok(_) => Look::Sound,
            Err(Unsound::Record(reason)) => Look::Damaged(reason),
            // Replaced by a whole record, and its base collected, since it was looked up.
            Err(Unsound::Base { .. }) if self.find(digest) != Some(*at) => Look::Gone,
            Err(Unsound::Base {
                digest,
                at: Some(at),
                reason,
            }) => Look::BaseDamaged(digest, at, reason),
            Err(error) => Look::Damaged(error.to_string()),
        }
    }

    /// Takes note of damaged records, each of which is looked at again first; how many are.
    ///
    /// # Errors
    /// [`StoreError`] when the list cannot be written.
    pub(crate) fn note_damage(&self, found: &[DamagedRecord]) -> Result<u64, StoreError> {
        let mut checker = self.checker()?;
        let mut real = Vec::new();
        for record in found {
            let location = self.find(&record.digest);
            let Some(at) = location.filter(|at| record.is_at(at.pack, at.offset)) else {
                continue;
            };
            if let Look::Damaged(reason) = self.look_at(&record.digest, &at, &mut checker) {
                real.push((
                    DamagedRecord {
                        reason,
                        ..record.clone()
                    },
                    at,
                ));
            }
        }
        let mut known = self.lock_damage();
        let mut noted = known.clone();
        for (record, at) in &real {
            if !noted.iter().any(|known| known.is_at(at.pack, at.offset)) {
                log::error!(
                    "chunk {} in pack {} at byte {} is damaged: {}; the next capture that has it \
                     replaces it",
                    record.digest,
                    at.pack,
                    at.offset,
                    record.reason
                );
                noted.push(record.clone());
            }
        }
        self.write_damage(&noted)?;
        *known = noted;
        let mut index = self.write_index();
        for (record, at) in &real {
            let position = index.position(&record.digest);
            if let Some(position) = position.filter(|_| index.find(&record.digest) == Some(*at)) {
                index.set_damaged(position);
            }
        }
        Ok(real.len() as u64)
    }

    /// Takes records off the list whose packs are not there any more.
    pub(super) fn forget_damage_in(&self, packs: &[PackId]) -> Result<(), StoreError> {
        let mut known = self.lock_damage();
        let gone = |record: &DamagedRecord| packs.iter().any(|pack| pack.0 == record.pack);
        if known.iter().any(gone) {
            let mut kept = known.clone();
            kept.retain(|record| !gone(record));
            self.write_damage(&kept)?;
            *known = kept;
        }
        Ok(())
    }

    fn write_damage(&self, records: &[DamagedRecord]) -> Result<(), StoreError> {
        let path = path(self.directory());
        let bytes = serde_json::to_vec_pretty(records)
            .map_err(|source| StoreError::io("cannot describe", &path, source.into()))?;
        storage::replace(self.storage.as_ref(), &path, &bytes)
    }

    pub(super) fn checker(&self) -> Result<Checker, StoreError> {
        Checker::new().map_err(|source| {
            StoreError::io(
                "cannot prepare to decode chunks of",
                self.directory(),
                source,
            )
        })
    }
}
