//! Opening the packs: what a start makes of what the last stop, or the last power cut, left.
//!
//! | found | means | done |
//! | --- | --- | --- |
//! | pack and sound index | sealed | the index is believed |
//! | newest pack without index | was being written | cut at the first unsound byte, written further |
//! | other pack without sound index | the index was lost or damaged | sound records are indexed anew, nothing is cut |
//! | index without pack | the pack was lost | reported; its chunks count as missing |
//! | `*.tmp` | an index that was being written | removed |
//!
//! Invariant: bytes are cut off only from a pack that was never sealed; no published restore point
//! needs such bytes, because publishing seals first.

use std::collections::HashSet;
use std::path::Path;

use super::chunk_store::{ActivePack, Location, Writer};
use super::damage::DamagedRecord;
use super::index::ChunkIndex;
use super::pack::{
    Entry, PACK_HEADER_LEN, PackId, PackIndex, check_pack_header, pack_header, record_len,
};
use super::record::{Checker, record_at};
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
    let (listing, damaged) = (list(storage, directory)?, places(damaged));
    for path in &listing.unfinished {
        storage
            .remove_file(path)
            .map_err(|source| StoreError::io("cannot remove the unfinished", path, source))?;
    }
    let mut index = ChunkIndex::default();
    let mut active = None;
    let mut lost = false;
    for &id in &listing.packs {
        let newest = listing.packs.last() == Some(&id);
        let sealed = listing.indexes.binary_search(&id).is_ok();
        let entries = if newest && !sealed {
            let pack = reopen(storage, directory, id)?;
            let entries = pack.entries.clone();
            active = Some(pack);
            entries
        } else {
            sealed_entries(storage, directory, id, Repair::Write)?
        };
        learn(&mut index, id, &entries, &damaged);
    }
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
        index,
        writer,
        lost,
    })
}

/// Reads the packs without changing one; for looking at a store that a server may be using. One
/// that collects garbage removes packs meanwhile, but never before what is needed of them lies
/// elsewhere: then everything is read again.
pub(super) fn look(storage: &dyn Storage, directory: &Path) -> Result<ChunkIndex, StoreError> {
    let damaged = places(&damage::read(storage, directory)?);
    let mut tries = 0;
    loop {
        let mut index = ChunkIndex::default();
        let read = |id| sealed_entries(storage, directory, id, Repair::None);
        let mut learn_all = || -> Result<(), StoreError> {
            for id in list(storage, directory)?.packs {
                learn(&mut index, id, &read(id)?, &damaged);
            }
            Ok(())
        };
        match learn_all() {
            Ok(()) => return Ok(index),
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

/// Of two records of a chunk, which a stop during garbage collection leaves, the first one counts,
/// but one that is known to be damaged only when there is no other.
fn learn(index: &mut ChunkIndex, id: PackId, entries: &[Entry], damaged: &Places) {
    for entry in entries {
        let location = Location::new(id, entry);
        let bad = damaged.contains(&(id.0, entry.offset));
        match index.position(&entry.header.digest) {
            None => {
                let position = index.put(entry.header.digest, location);
                if let Some(position) = position.filter(|_| bad) {
                    index.set_damaged(position);
                }
            }
            Some(position) if index.is_damaged(position) && !bad => {
                index.move_to(position, location);
            }
            Some(_) => {}
        }
    }
}

/// Whether an index that had to be made anew is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    Write,
    None,
}

/// The entries of a pack that is not written any more.
pub(super) fn sealed_entries(
    storage: &dyn Storage,
    directory: &Path,
    id: PackId,
    repair: Repair,
) -> Result<Vec<Entry>, StoreError> {
    let (pack, index) = (id.pack_path(directory), id.index_path(directory));
    let len = storage
        .open(&pack)
        .and_then(|file| file.len())
        .map_err(|source| StoreError::io("cannot look at the pack", &pack, source))?;
    let trouble = match storage::read_if_there(storage, &index)? {
        Some(bytes) => match PackIndex::decode(&bytes, id) {
            Ok(decoded) if decoded.pack_len == len => return Ok(decoded.entries),
            Ok(decoded) => format!("it is of {} bytes, the pack has {len}", decoded.pack_len),
            Err(error) => error.to_string(),
        },
        None => "it is missing".to_owned(),
    };
    let scan = scan(storage, &pack, id, Unsound::Skip)?;
    if repair == Repair::Write {
        log::warn!(
            "the index {} cannot be used ({trouble}); made anew from the pack: {} sound chunks",
            index.display(),
            scan.entries.len()
        );
        let anew = PackIndex {
            id,
            pack_len: len,
            entries: scan.entries.clone(),
        };
        storage::replace(storage, &index, &anew.encode())?;
    }
    Ok(scan.entries)
}

/// Cuts off what is not sound and goes on writing after it.
fn reopen(storage: &dyn Storage, directory: &Path, id: PackId) -> Result<ActivePack, StoreError> {
    let path = id.pack_path(directory);
    let scan = scan(storage, &path, id, Unsound::Stop)?;
    let reopen = || -> std::io::Result<OpenFile> {
        let file = storage.open_to_write(&path)?;
        file.set_len(scan.sound_len)?;
        file.write_all_at(&pack_header(id), 0)?;
        file.sync()?;
        Ok(file)
    };
    let file =
        reopen().map_err(|source| StoreError::io("cannot repair the pack", &path, source))?;
    if scan.found_len > scan.sound_len {
        log::warn!(
            "the pack {} was being written when the server stopped: {} unsound bytes cut off at \
             byte {}, {} chunks kept; no restore point needs what was cut off",
            path.display(),
            scan.found_len - scan.sound_len,
            scan.sound_len,
            scan.entries.len()
        );
    }
    Ok(ActivePack {
        id,
        file,
        len: scan.sound_len.max(PACK_HEADER_LEN as u64),
        entries: scan.entries,
    })
}

/// What a scan does at a record whose content is wrong but whose length is possible.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unsound {
    Stop,
    Skip,
}

struct Scan {
    entries: Vec<Entry>,
    /// Where the last sound record ends; 0 without a sound header.
    sound_len: u64,
    found_len: u64,
}

/// Reads a whole pack, at most [`chunk_store::PACK_LIMIT`] and what a record may be over it.
fn scan(
    storage: &dyn Storage,
    path: &Path,
    id: PackId,
    unsound: Unsound,
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
        if unsound == Unsound::Skip && !bytes.is_empty() {
            log::error!("{} is no pack: {error}", path.display());
        }
        return Ok(scan);
    }
    let mut at = PACK_HEADER_LEN;
    scan.sound_len = at as u64;
    while at < bytes.len() {
        let Ok((header, frame)) = record_at(&bytes, at) else {
            break;
        };
        let sound = checker.check(&header, frame);
        let next = at as u64 + record_len(&header);
        match (sound, u32::try_from(at)) {
            (Ok(()), Ok(offset)) => {
                scan.entries.push(Entry { header, offset });
                scan.sound_len = next;
            }
            (Err(error), _) if unsound == Unsound::Skip => {
                log::error!("{} at byte {at}: {error}", path.display());
            }
            _ => break,
        }
        at += frame.len() + backup::chunk::RecordHeader::LEN;
    }
    Ok(scan)
}
