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

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use backup::Digest;

use super::chunk_store::{ActivePack, Location, Writer};
use super::durable::{self, UNFINISHED};
use super::pack::{
    Entry, PACK_HEADER_LEN, PackId, PackIndex, check_pack_header, pack_header, record_len,
};
use super::record::{Checker, record_at};
use super::{StoreError, chunk_store};

/// What opening found.
pub(super) struct Opened {
    pub(super) index: HashMap<Digest, Location>,
    pub(super) writer: Writer,
}

/// The packs and indexes of a directory by their names.
struct Listing {
    packs: Vec<PackId>,
    indexes: Vec<PackId>,
    unfinished: Vec<std::path::PathBuf>,
}

fn list(directory: &Path) -> Result<Listing, StoreError> {
    let cannot = |source| StoreError::io("cannot list the packs in", directory, source);
    let mut listing = Listing {
        packs: Vec::new(),
        indexes: Vec::new(),
        unfinished: Vec::new(),
    };
    for entry in fs::read_dir(directory).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some(id) = PackId::from_file_name(&name, "pack") {
            listing.packs.push(id);
        } else if let Some(id) = PackId::from_file_name(&name, "idx") {
            listing.indexes.push(id);
        } else if name.ends_with(UNFINISHED) {
            listing.unfinished.push(entry.path());
        } else {
            log::warn!(
                "{} is no part of the store; left alone",
                entry.path().display()
            );
        }
    }
    listing.packs.sort_unstable();
    listing.indexes.sort_unstable();
    Ok(listing)
}

/// Reads all indexes, repairs what has none, and says where writing goes on.
pub(super) fn recover(directory: &Path) -> Result<Opened, StoreError> {
    let listing = list(directory)?;
    for path in &listing.unfinished {
        fs::remove_file(path)
            .map_err(|source| StoreError::io("cannot remove the unfinished", path, source))?;
    }
    let mut index = HashMap::new();
    let mut active = None;
    for &id in &listing.packs {
        let newest = listing.packs.last() == Some(&id);
        let sealed = listing.indexes.binary_search(&id).is_ok();
        let entries = if newest && !sealed {
            let pack = reopen(directory, id)?;
            let entries = pack.entries.clone();
            active = Some(pack);
            entries
        } else {
            sealed_entries(directory, id, Repair::Write)?
        };
        learn(&mut index, id, &entries);
    }
    for &id in &listing.indexes {
        if listing.packs.binary_search(&id).is_err() {
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
    Ok(Opened { index, writer })
}

/// Reads the packs without changing one; for looking at a store that a server may be using.
pub(super) fn look(directory: &Path) -> Result<HashMap<Digest, Location>, StoreError> {
    let listing = list(directory)?;
    let mut index = HashMap::new();
    for &id in &listing.packs {
        let entries = sealed_entries(directory, id, Repair::None)?;
        learn(&mut index, id, &entries);
    }
    Ok(index)
}

fn learn(index: &mut HashMap<Digest, Location>, id: PackId, entries: &[Entry]) {
    for entry in entries {
        index
            .entry(entry.header.digest)
            .or_insert_with(|| Location::new(id, entry));
    }
}

/// Whether an index that had to be made anew is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repair {
    Write,
    None,
}

/// The entries of a pack that is not written any more.
fn sealed_entries(directory: &Path, id: PackId, repair: Repair) -> Result<Vec<Entry>, StoreError> {
    let (pack, index) = (id.pack_path(directory), id.index_path(directory));
    let len = fs::metadata(&pack)
        .map_err(|source| StoreError::io("cannot look at the pack", &pack, source))?
        .len();
    let trouble = match fs::read(&index) {
        Ok(bytes) => match PackIndex::decode(&bytes, id) {
            Ok(decoded) if decoded.pack_len == len => return Ok(decoded.entries),
            Ok(decoded) => format!("it is of {} bytes, the pack has {len}", decoded.pack_len),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "it is missing".to_owned(),
        Err(source) => return Err(StoreError::io("cannot read the index", &index, source)),
    };
    let scan = scan(&pack, id, Unsound::Skip)?;
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
        durable::replace(&index, &[&anew.encode()])?;
    }
    Ok(scan.entries)
}

/// Cuts off what is not sound and goes on writing after it.
fn reopen(directory: &Path, id: PackId) -> Result<ActivePack, StoreError> {
    let path = id.pack_path(directory);
    let scan = scan(&path, id, Unsound::Stop)?;
    let reopen = || -> std::io::Result<File> {
        let file = File::options().read(true).write(true).open(&path)?;
        file.set_len(scan.sound_len)?;
        file.write_all_at(&pack_header(id), 0)?;
        file.sync_all()?;
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
fn scan(path: &Path, id: PackId, unsound: Unsound) -> Result<Scan, StoreError> {
    let cannot = |source| StoreError::io("cannot read the pack", path, source);
    let found_len = fs::metadata(path).map_err(cannot)?.len();
    if found_len > 2 * chunk_store::PACK_LIMIT {
        return Err(StoreError::NoPack {
            path: path.to_owned(),
            reason: format!(
                "it has {found_len} bytes (expected at most {})",
                chunk_store::PACK_LIMIT
            ),
        });
    }
    let bytes = fs::read(path).map_err(cannot)?;
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
