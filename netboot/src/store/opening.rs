//! Opening the packs: what a start makes of what the last stop, or the last power cut, left.
//!
//! | found | means | done |
//! | --- | --- | --- |
//! | pack and sound index | sealed | the index is believed |
//! | newest pack without index | was being written | cut at the first unsound byte, written further |
//! | other pack without sound index | the index was lost or damaged | sound records are indexed anew, nothing is cut |
//! | index without pack | the pack was lost | reported; its chunks count as missing |
//! | `*.tmp` | an index that was being written | removed |
//! | a difference whose base is not there, or is one itself | the base's pack was lost | counts as missing |
//! | a sound index of a later version | a later program wrote here | the store is not opened |
//!
//! Whole records are learned first, then the pack that was being written, then the differences of the others: so a
//! base may lie in any pack.
//!
//! Invariant: bytes are cut off only from a pack that was never sealed; no published restore point
//! needs such bytes, because publishing seals first.

use std::collections::HashSet;
use std::path::Path;

use super::chunk_store::{ActivePack, Location, Writer};
use super::damage::DamagedRecord;
use super::difference::{Unsound, decode};
use super::index::ChunkIndex;
use super::pack::{
    Entry, PACK_HEADER_LEN, PackError, PackId, PackIndex, check_pack_header, pack_header,
};
use super::record::{Checker, is_one_frame, pack_record_at};
use super::resemblance::Features;
use super::storage::{self, OpenFile, Storage, UNFINISHED};
use super::{StoreError, chunk_store, damage};

/// What opening found.
pub(super) struct Opened {
    pub(super) index: ChunkIndex,
    pub(super) writer: Writer,
    /// Whether a pack is gone whose index is there.
    pub(super) lost: bool,
}

/// The packs and indexes of a directory by their names.
pub(super) struct Listing {
    pub(super) packs: Vec<PackId>,
    indexes: Vec<PackId>,
    unfinished: Vec<std::path::PathBuf>,
}

pub(super) fn list(storage: &dyn Storage, directory: &Path) -> Result<Listing, StoreError> {
    let cannot = |source| StoreError::io("cannot list the packs in", directory, source);
    let mut listing = Listing {
        packs: Vec::new(),
        indexes: Vec::new(),
        unfinished: Vec::new(),
    };
    for entry in storage.list(directory).map_err(cannot)? {
        let path = directory.join(&entry.name);
        if let Some(id) = PackId::from_file_name(&entry.name, "pack") {
            listing.packs.push(id);
        } else if let Some(id) = PackId::from_file_name(&entry.name, "idx") {
            listing.indexes.push(id);
        } else if entry.name.ends_with(UNFINISHED) {
            listing.unfinished.push(path);
        } else {
            log::warn!("{} is no part of the store; left alone", path.display());
        }
    }
    listing.packs.sort_unstable();
    listing.indexes.sort_unstable();
    Ok(listing)
}

/// Reads all indexes, repairs what has none, and says where writing goes on.
pub(super) fn recover(
    storage: &dyn Storage,
    directory: &Path,
    damaged: &[DamagedRecord],
) -> Result<Opened, StoreError> {
    let listing = list(storage, directory)?;
    for path in &listing.unfinished {
        storage
            .remove_file(path)
            .map_err(|source| StoreError::io("cannot remove the unfinished", path, source))?;
    }
    let mut learning = Learning::new(storage, directory, damaged)?;
    let mut unsealed = None;
    for &id in &listing.packs {
        let newest = listing.packs.last() == Some(&id);
        if newest && listing.indexes.binary_search(&id).is_err() {
            unsealed = Some(id);
        } else {
            learning.learn_pack(read_pack(storage, directory, id)?, Repair::Write)?;
        }
    }
    let active = match unsealed {
        Some(id) => Some(learning.reopen(id)?),
        None => None,
    };
    learning.learn_differences(Repair::Write)?;
    let mut lost = false;
    for &id in &listing.indexes {
        if listing.packs.binary_search(&id).is_err() {
            lost = true;
            log::error!(
                "the pack {} is gone; its index is there. Restore points that need its chunks \
                 will be refused by name; put the file back",
                id.pack_path(directory).display()
            );
        }
    }
    let last = listing.packs.iter().chain(&listing.indexes).max();
    let writer = Writer {
        active,
        next: last.map_or(1, |id| id.0.saturating_add(1)),
        broken: false,
    };
    Ok(Opened {
        lost: lost || learning.without_base > 0,
        index: learning.index,
        writer,
    })
}

/// Reads the packs without changing one; for looking at a store that a server may be using. One
/// that collects garbage removes packs meanwhile, but never before what is needed of them lies
/// elsewhere: then everything is read again.
pub(super) fn look(storage: &dyn Storage, directory: &Path) -> Result<ChunkIndex, StoreError> {
    let damaged = damage::read(storage, directory)?;
    let mut tries = 0;
    loop {
        let mut learning = Learning::new(storage, directory, &damaged)?;
        let mut learn_all = || -> Result<(), StoreError> {
            for id in list(storage, directory)?.packs {
                learning.learn_pack(read_pack(storage, directory, id)?, Repair::None)?;
            }
            learning.learn_differences(Repair::None)
        };
        match learn_all() {
            Ok(()) => return Ok(learning.index),
            Err(StoreError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && tries < LOOKS =>
            {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// How often packs may vanish while they are looked at.
const LOOKS: usize = 20;

/// Pack and offset of records that are known to be damaged.
type Places = HashSet<(u32, u32)>;

fn places(damaged: &[DamagedRecord]) -> Places {
    let place = |record: &DamagedRecord| (record.pack, record.offset);
    damaged.iter().map(place).collect()
}

/// An index that grows by what packs hold.
struct Learning<'a> {
    storage: &'a dyn Storage,
    directory: &'a Path,
    index: ChunkIndex,
    damaged: Places,
    checker: Checker,
    /// Differences, which are learned when all whole records are known.
    differences: Vec<(PackId, Entry)>,
    /// Packs without a sound index that hold differences.
    suspects: Vec<PackContent>,
    /// Differences that cannot be used.
    without_base: u64,
}

impl<'a> Learning<'a> {
    fn new(
        storage: &'a dyn Storage,
        directory: &'a Path,
        damaged: &[DamagedRecord],
    ) -> Result<Self, StoreError> {
        let checker = Checker::new().map_err(|source| {
            StoreError::io("cannot prepare to decode chunks of", directory, source)
        })?;
        Ok(Self {
            storage,
            directory,
            index: ChunkIndex::default(),
            damaged: places(damaged),
            checker,
            differences: Vec::new(),
            suspects: Vec::new(),
            without_base: 0,
        })
    }

    /// Learns the whole records of a pack, and keeps its differences for later.
    fn learn_pack(&mut self, pack: PackContent, repair: Repair) -> Result<(), StoreError> {
        let mut differences = Vec::new();
        for entry in &pack.entries {
            match entry.base {
                None => self.learn(pack.id, entry, None),
                Some(_) => differences.push((pack.id, *entry)),
            }
        }
        if pack.trouble.is_none() {
            self.differences.append(&mut differences);
        } else if !differences.is_empty() {
            self.suspects.push(pack);
        } else if repair == Repair::Write {
            pack.write_index(self.storage, self.directory)?;
        }
        Ok(())
    }

    /// Learns all differences whose base is there, those of packs without an index after a look at each; and writes
    /// the indexes that were missing.
    fn learn_differences(&mut self, repair: Repair) -> Result<(), StoreError> {
        for (id, entry) in std::mem::take(&mut self.differences) {
            match self.base_of(&entry) {
                Some(base) => self.learn(id, &entry, Some(base)),
                None => self.without_base += 1,
            }
        }
        for mut pack in std::mem::take(&mut self.suspects) {
            let mut sound = Vec::with_capacity(pack.entries.len());
            for entry in pack.entries {
                if entry.base.is_none() {
                    sound.push(entry);
                } else if let Some(base) = self.base_of(&entry) {
                    match self.check_difference(pack.id, &entry)? {
                        Ok(()) => {
                            self.learn(pack.id, &entry, Some(base));
                            sound.push(entry);
                        }
                        Err(error) => {
                            let path = pack.id.pack_path(self.directory);
                            log::error!("{} at byte {}: {error}", path.display(), entry.offset);
                        }
                    }
                } else {
                    self.without_base += 1;
                    sound.push(entry);
                }
            }
            pack.entries = sound;
            if repair == Repair::Write {
                pack.write_index(self.storage, self.directory)?;
            }
        }
        if self.without_base > 0 {
            log::error!(
                "{} chunks are kept as differences from chunks that are not there: they count as missing; \
                 the next capture that has them sends them again",
                self.without_base
            );
        }
        Ok(())
    }

    /// The position of a difference's base, if that is there and whole.
    fn base_of(&self, entry: &Entry) -> Option<u32> {
        let position = self.index.position(&entry.base?)?;
        let (_, location) = self.index.at(position)?;
        (!location.is_difference()).then_some(position)
    }

    /// Decodes a difference and compares it.
    fn check_difference(
        &mut self,
        id: PackId,
        entry: &Entry,
    ) -> Result<Result<(), Unsound>, StoreError> {
        let read = |pack: PackId, offset: u32, len: usize| {
            let path = pack.pack_path(self.directory);
            let mut bytes = vec![0; len];
            self.storage
                .open(&path)
                .and_then(|file| file.read_exact_at(&mut bytes, u64::from(offset)))
                .map(|()| bytes)
                .map_err(|source| StoreError::io("cannot read the pack", &path, source))
        };
        let at = Location::new(id, entry);
        let bytes = read(id, entry.offset, at.record_len())?;
        let read_base = |digest: &backup::Digest| {
            let found = self.index.find(digest);
            let at = found.ok_or(StoreError::Missing { digest: *digest })?;
            Ok((at, read(at.pack, at.offset, at.record_len())?))
        };
        let place = (&entry.header.digest, &at);
        Ok(decode(&bytes, place, &mut self.checker, &read_base).map(drop))
    }

    /// Of two records of a chunk, which a stop during garbage collection leaves, the first one counts,
    /// but one that is known to be damaged only when there is no other.
    fn learn(&mut self, id: PackId, entry: &Entry, base: Option<u32>) {
        let location = Location::new(id, entry);
        let bad = self.damaged.contains(&(id.0, entry.offset));
        let known = self.index.position(&entry.header.digest);
        // A whole record may be the base of others: no difference takes its place.
        let whole = |position| self.index.base(position).is_none();
        let better = |position| {
            self.index.has_damaged_record(position) && !bad && !(base.is_some() && whole(position))
        };
        if !known.is_none_or(better) {
            return;
        }
        if let Some(position) = self.index.put(entry.header.digest, location, base) {
            if bad {
                self.index.set_damaged(position);
            }
            self.index.learn_features(position, entry.features);
        }
    }

    /// Cuts off of the pack that was being written what is not sound, and goes on writing after it.
    fn reopen(&mut self, id: PackId) -> Result<ActivePack, StoreError> {
        let path = id.pack_path(self.directory);
        let scan = scan(self.storage, &path, id, Unsoundness::Stop)?;
        let mut sound_len = scan.sound_len;
        let mut entries = Vec::with_capacity(scan.entries.len());
        for entry in scan.entries {
            let base = self.base_of(&entry);
            if entry.base.is_some()
                && (base.is_none() || self.check_difference(id, &entry)?.is_err())
            {
                sound_len = u64::from(entry.offset);
                break;
            }
            self.learn(id, &entry, base);
            entries.push(entry);
        }
        let reopen = || -> std::io::Result<OpenFile> {
            let file = self.storage.open_to_write(&path)?;
            file.set_len(sound_len)?;
            file.write_all_at(&pack_header(id), 0)?;
            file.sync()?;
            Ok(file)
        };
        let file =
            reopen().map_err(|source| StoreError::io("cannot repair the pack", &path, source))?;
        if scan.found_len > sound_len {
            log::warn!(
                "the pack {} was being written when the server stopped: {} unsound bytes cut off at \
                 byte {sound_len}, {} chunks kept; no restore point needs what was cut off",
                path.display(),
                scan.found_len - sound_len,
                entries.len()
            );
        }
        Ok(ActivePack {
            id,
            file,
            len: sound_len.max(PACK_HEADER_LEN as u64),
            entries,
        })
    }
}

/// Whether an index that had to be made anew is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repair {
    Write,
    None,
}

/// What is in a pack that is not written any more.
pub(super) struct PackContent {
    id: PackId,
    len: u64,
    pub(super) entries: Vec<Entry>,
    /// Why its index cannot be used. Then the entries are from the pack itself, and its differences were not decoded.
    trouble: Option<String>,
}

impl PackContent {
    /// All of it but the records at these offsets.
    pub(super) fn without(mut self, offsets: &[u32]) -> Self {
        self.entries
            .retain(|entry| !offsets.contains(&entry.offset));
        self
    }

    /// Writes its index anew.
    pub(super) fn write_index(
        self,
        storage: &dyn Storage,
        directory: &Path,
    ) -> Result<(), StoreError> {
        let path = self.id.index_path(directory);
        if let Some(trouble) = &self.trouble {
            log::warn!(
                "the index {} cannot be used ({trouble}); made anew from the pack: {} sound chunks",
                path.display(),
                self.entries.len()
            );
        }
        let anew = PackIndex::new(self.id, self.len, self.entries);
        storage::replace(storage, &path, &anew.encode())
    }
}

/// Reads the index of a pack that is not written any more, or the pack if that cannot be used.
pub(super) fn read_pack(
    storage: &dyn Storage,
    directory: &Path,
    id: PackId,
) -> Result<PackContent, StoreError> {
    let (pack, index) = (id.pack_path(directory), id.index_path(directory));
    let mut head = [0; PACK_HEADER_LEN];
    let mut look = || -> std::io::Result<u64> {
        let file = storage.open(&pack)?;
        let len = file.len()?;
        if len >= PACK_HEADER_LEN as u64 {
            file.read_exact_at(&mut head, 0)?;
        }
        Ok(len)
    };
    let len = look().map_err(|source| StoreError::io("cannot look at the pack", &pack, source))?;
    let trouble = match storage::read_if_there(storage, &index)? {
        Some(bytes) => match PackIndex::decode(&bytes, id) {
            Ok(decoded) if decoded.pack_len != len => {
                format!("it is of {} bytes, the pack has {len}", decoded.pack_len)
            }
            // A program that could not read the pack made it.
            Ok(decoded)
                if check_pack_header(&head, id).is_ok_and(|pack| pack > decoded.version) =>
            {
                "it is of an older version than the pack".to_owned()
            }
            Ok(decoded) => {
                return Ok(PackContent {
                    id,
                    len,
                    entries: decoded.entries,
                    trouble: None,
                });
            }
            Err(error @ PackError::Version { .. }) if PackIndex::is_whole(&bytes) => {
                return Err(StoreError::NoPack {
                    path: index,
                    reason: format!("{error}: a later netboot has used this store; start that one"),
                });
            }
            Err(error) => error.to_string(),
        },
        None => "it is missing".to_owned(),
    };
    let scan = scan(storage, &pack, id, Unsoundness::Skip)?;
    Ok(PackContent {
        id,
        len,
        entries: scan.entries,
        trouble: Some(trouble),
    })
}

/// What a scan does at a record whose content is wrong but whose length is possible.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unsoundness {
    Stop,
    Skip,
}

struct Scan {
    entries: Vec<Entry>,
    /// Where the last sound record ends; 0 without a sound header.
    sound_len: u64,
    found_len: u64,
}

/// Reads a whole pack and decodes its whole records; differences need their bases, and are only looked at. At most [`chunk_store::PACK_LIMIT`] and what a record may be over it.
fn scan(
    storage: &dyn Storage,
    path: &Path,
    id: PackId,
    unsound: Unsoundness,
) -> Result<Scan, StoreError> {
    let cannot = |source| StoreError::io("cannot read the pack", path, source);
    let file = storage.open(path).map_err(cannot)?;
    let found_len = file.len().map_err(cannot)?;
    if found_len > 2 * chunk_store::PACK_LIMIT {
        return Err(StoreError::NoPack {
            path: path.to_owned(),
            reason: format!(
                "it has {found_len} bytes (expected at most {})",
                chunk_store::PACK_LIMIT
            ),
        });
    }
    // Bounded by what was just compared.
    let mut bytes = vec![0; usize::try_from(found_len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(cannot)?;
    let mut checker = Checker::new().map_err(cannot)?;
    let mut scan = Scan {
        entries: Vec::new(),
        sound_len: 0,
        found_len: bytes.len() as u64,
    };
    if let Err(error) = check_pack_header(&bytes, id) {
        // A pack that was never sealed may have lost even its header to a power cut. Of any other
        // pack, records without a header in front of them are not to be guessed at.
        if unsound == Unsoundness::Skip && !bytes.is_empty() {
            log::error!("{} is no pack: {error}", path.display());
        }
        return Ok(scan);
    }
    let mut at = PACK_HEADER_LEN;
    scan.sound_len = at as u64;
    while at < bytes.len() {
        let Ok(record) = pack_record_at(&bytes, at) else {
            break;
        };
        let header = record.header;
        let features = if record.base.is_some() {
            is_one_frame(record.frame).map(|()| Features::default())
        } else {
            let plain = checker.set_base(&header, record.frame);
            plain
                .map(|()| Features::of(checker.base()))
                .map_err(|error| error.to_string())
        };
        match (features, u32::try_from(at)) {
            (Ok(features), Ok(offset)) => {
                let entry = Entry {
                    header,
                    offset,
                    base: record.base,
                    features,
                };
                scan.sound_len = entry.end();
                scan.entries.push(entry);
            }
            (Err(error), _) if unsound == Unsoundness::Skip => {
                log::error!("{} at byte {at}: {error}", path.display());
            }
            _ => break,
        }
        at += header.record_len();
    }
    Ok(scan)
}
