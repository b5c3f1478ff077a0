//! What differs between two restore points: disks, bytes, chunks, and on request files.
//!
//! Chunk lists are read in pieces from their files. What is held in memory are the digests of both
//! restore points' chunks, 40 bytes each. Chunks themselves, and so the store's index, are needed only for
//! files.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use backup::Digest;
use backup::filesystem::tree::{Node, NodeKind};
use backup::layout;
use backup::manifest::{ChunkListRef, DiskImage, Manifest, RestorePointId};
use backup::units::HumanBytes;
use serde::Serialize;

use super::name::shown;
use super::tree_walk::{Step, walk};
use super::volumes::list;
use super::{FilesError, manifest, open};
use crate::store::Store;
use crate::store::volume_reader::{ListFile, Place};

/// How much of a list is read at once.
const PIECE: usize = 48 << 12;

/// How two restore points differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Comparison {
    /// The first.
    pub(crate) a: RestorePointId,
    /// The second.
    pub(crate) b: RestorePointId,
    /// What differs in disks and partitions, in words.
    pub(crate) layout: Vec<String>,
    /// Plain bytes of chunks that only the first has, each chunk counted once.
    pub(crate) only_in_a: u64,
    /// The same of the second.
    pub(crate) only_in_b: u64,
    /// The same of chunks that both have.
    pub(crate) in_both: u64,
    /// Volumes of this number in both.
    pub(crate) volumes: Vec<VolumeChange>,
}

/// How a volume differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct VolumeChange {
    /// Its number.
    pub(crate) volume: String,
    /// Its size in the second restore point.
    pub(crate) size: u64,
    /// Bytes of the second that are not the same chunk at the same place in the first.
    pub(crate) different: u64,
    /// Its files, when they were compared.
    pub(crate) files: Option<FileChanges>,
    /// Why they were not.
    pub(crate) reason: Option<String>,
}

/// How the files of a volume differ: by kind, size, time, mode and owner.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct FileChanges {
    /// Only in the second.
    pub(crate) added: u64,
    /// Only in the first.
    pub(crate) removed: u64,
    /// In both, and not the same.
    pub(crate) changed: u64,
    /// `+`, `-` or `*` and the path, harmless to a terminal.
    pub(crate) paths: Vec<(char, String)>,
}

/// Compares two restore points; their files only `with_files`.
///
/// # Errors
/// [`FilesError`] when a manifest or list cannot be read.
pub(crate) fn compare(
    store: &Store,
    a: &RestorePointId,
    b: &RestorePointId,
    with_files: bool,
) -> Result<Comparison, FilesError> {
    let (first, second) = (manifest(store, a)?, manifest(store, b)?);
    let mut comparison = Comparison {
        a: a.clone(),
        b: b.clone(),
        layout: layout_changes(&first, &second),
        only_in_a: 0,
        only_in_b: 0,
        in_both: 0,
        volumes: Vec::new(),
    };
    count_chunks(store, (a, &first), (b, &second), &mut comparison)?;
    let before = list(&first);
    for (view, saved) in list(&second) {
        let same = before.iter().find(|(old, _)| old.volume == view.volume);
        let Some((_, old)) = same else {
            continue;
        };
        let mut change = VolumeChange {
            volume: view.volume.clone(),
            size: view.size,
            different: different(store, (a, old.content), (b, saved.content))?,
            files: None,
            reason: None,
        };
        if with_files && change.different > 0 {
            match compare_files(store, (a, &first), (b, &second), &view.volume) {
                Ok(files) => change.files = Some(files),
                Err(error @ FilesError::Unreadable { .. }) => {
                    change.reason = Some(crate::store::chain(&error));
                }
                Err(error) => return Err(error),
            }
        }
        comparison.volumes.push(change);
    }
    Ok(comparison)
}

fn layout_changes(first: &Manifest, second: &Manifest) -> Vec<String> {
    let mut changes = Vec::new();
    if first.firmware.kind != second.firmware.kind {
        changes.push(format!(
            "firmware {} became {}",
            first.firmware.kind, second.firmware.kind
        ));
    }
    if first.system != second.system {
        let name = |manifest: &Manifest| {
            manifest.system.as_ref().map_or_else(
                || "no system".to_owned(),
                |system| {
                    let version = system.version.as_deref().unwrap_or("");
                    format!("{} {version}", system.name).trim_end().to_owned()
                },
            )
        };
        changes.push(format!("{} became {}", name(first), name(second)));
    }
    for number in 0..first.disks.len().max(second.disks.len()) {
        match (first.disks.get(number), second.disks.get(number)) {
            (Some(_), None) => changes.push(format!("disk {number} is gone")),
            (None, Some(disk)) => {
                changes.push(format!("disk {number} of {} is new", HumanBytes(disk.size)))
            }
            (Some(old), Some(new)) => disk_changes(old, new, &mut changes),
            (None, None) => {}
        }
    }
    changes
}

fn disk_changes(old: &DiskImage, new: &DiskImage, changes: &mut Vec<String>) {
    let number = new.number;
    if old.size != new.size {
        changes.push(format!(
            "disk {number} of {} has {} now",
            HumanBytes(old.size),
            HumanBytes(new.size)
        ));
    }
    if old.serial != new.serial {
        changes.push(format!(
            "disk {number} is another one (serial {}, was {})",
            new.serial.as_deref().unwrap_or("unknown"),
            old.serial.as_deref().unwrap_or("unknown")
        ));
    }
    let places = |disk: &DiskImage| -> BTreeMap<u32, backup::ByteRange> {
        let table = layout::partitions_of(&disk.table).unwrap_or_default();
        table
            .iter()
            .map(|entry| (entry.number, entry.range(disk.logical_sector)))
            .collect()
    };
    let (before, after) = (places(old), places(new));
    for (partition, range) in &before {
        match after.get(partition) {
            None => changes.push(format!("partition {number}-{partition} is gone")),
            Some(now) if now != range => {
                changes.push(format!(
                    "partition {number}-{partition}: {range} became {now}"
                ));
            }
            Some(_) => {}
        }
    }
    for (partition, range) in after {
        if !before.contains_key(&partition) {
            changes.push(format!("partition {number}-{partition} at {range} is new"));
        }
    }
}

/// Gives every entry of a list to `visit`.
fn each(
    store: &Store,
    id: &RestorePointId,
    content: &ChunkListRef,
    visit: &mut dyn FnMut(&Place),
) -> Result<(), FilesError> {
    let list = ListFile::open(store, id, &content.digest)?;
    let (mut bytes, mut places) = (vec![0; PIECE], Vec::new());
    let mut at = 0;
    while at < list.len() {
        let count = list.read(at, &mut bytes, &mut places)?;
        places.iter().for_each(&mut *visit);
        at += count.max(1) as u64;
    }
    Ok(())
}

/// The chunks of a restore point and their lengths, each once, in order of their digests.
fn chunks_of(
    store: &Store,
    id: &RestorePointId,
    manifest: &Manifest,
) -> Result<Vec<(Digest, u64)>, FilesError> {
    let mut chunks = Vec::new();
    for (content, _) in manifest.contents() {
        each(store, id, content, &mut |place| {
            let len = place.end - place.start;
            chunks.extend(place.digest.map(|digest| (digest, len)));
        })?;
    }
    // In order, and not in a table: no choice of chunks makes sorting slow. Digests are as good as random,
    // so the first bytes nearly always decide.
    let first = |digest: &Digest| {
        digest
            .as_bytes()
            .first_chunk()
            .copied()
            .map(u64::from_be_bytes)
    };
    chunks.sort_unstable_by(|(one, _), (other, _)| {
        first(one).cmp(&first(other)).then_with(|| one.cmp(other))
    });
    chunks.dedup_by_key(|(digest, _)| *digest);
    Ok(chunks)
}

fn count_chunks(
    store: &Store,
    (a, first): (&RestorePointId, &Manifest),
    (b, second): (&RestorePointId, &Manifest),
    comparison: &mut Comparison,
) -> Result<(), FilesError> {
    // A core for each: reading, checking and sorting a list take as long as each other.
    let (old, new) = std::thread::scope(|scope| {
        let other = scope.spawn(|| chunks_of(store, b, second));
        let old = chunks_of(store, a, first);
        match other.join() {
            Ok(new) => (old, new),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let (old, new) = (old?, new?);
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((one, _)), Some((other, _))) => one.cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Ok(()),
        };
        let (from, to) = match order {
            Ordering::Less => (old.next(), &mut comparison.only_in_a),
            Ordering::Greater => (new.next(), &mut comparison.only_in_b),
            Ordering::Equal => {
                new.next();
                (old.next(), &mut comparison.in_both)
            }
        };
        let len = from.map_or(0, |(_, len)| len);
        *to = to.saturating_add(len);
    }
}

/// Bytes of the second that are not the same entry at the same place in the first.
fn different(
    store: &Store,
    (a, old): (&RestorePointId, &ChunkListRef),
    (b, new): (&RestorePointId, &ChunkListRef),
) -> Result<u64, FilesError> {
    if old.digest == new.digest {
        return Ok(0);
    }
    let before = ListFile::open(store, a, &old.digest)?;
    let (mut bytes, mut places) = (vec![0; PIECE], Vec::new());
    let (mut next, mut at) = (0, 0);
    let (mut sum, mut trouble) = (0, None);
    each(store, b, new, &mut |place| {
        // Both lists are in order: go forward in the first as far as this entry.
        loop {
            if next == places.len() {
                if at >= before.len() || trouble.is_some() {
                    break;
                }
                match before.read(at, &mut bytes, &mut places) {
                    Ok(count) => at += count as u64,
                    Err(error) => trouble = Some(error),
                }
                next = 0;
                continue;
            }
            if places[next].start >= place.start {
                break;
            }
            next += 1;
        }
        let same = places.get(next).is_some_and(|other| {
            (other.start, other.end, other.digest) == (place.start, place.end, place.digest)
        });
        if !same {
            sum += place.end - place.start;
        }
    })?;
    match trouble {
        Some(error) => Err(error.into()),
        None => Ok(sum),
    }
}

/// What a file is told by.
#[derive(PartialEq, Eq)]
struct Sign(u64);

fn sign(node: &Node) -> Sign {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (node.kind, node.size, node.mode, node.uid, node.gid).hash(&mut hasher);
    if node.kind != NodeKind::Directory {
        node.modified.hash(&mut hasher);
    }
    Sign(hasher.finish())
}

fn compare_files(
    store: &Store,
    (a, first): (&RestorePointId, &Manifest),
    (b, second): (&RestorePointId, &Manifest),
    volume: &str,
) -> Result<FileChanges, FilesError> {
    let mut before: HashMap<Vec<u8>, Sign> = HashMap::new();
    let old = open(store, a, first, Some(volume.as_bytes()))?;
    walk(old.tree.as_ref(), old.tree.root(), b"", &mut |step| {
        if let Step::Node { path, node, .. } = step {
            before.insert(path.to_vec(), sign(node));
        }
        Ok(true)
    })?;
    let mut changes = FileChanges::default();
    let new = open(store, b, second, Some(volume.as_bytes()))?;
    walk(new.tree.as_ref(), new.tree.root(), b"", &mut |step| {
        let Step::Node { path, node, .. } = step else {
            return Ok(true);
        };
        match before.remove(path) {
            None => {
                changes.added += 1;
                changes.paths.push(('+', shown(path)));
            }
            Some(old) if old != sign(node) => {
                changes.changed += 1;
                changes.paths.push(('*', shown(path)));
            }
            Some(_) => {}
        }
        Ok(true)
    })?;
    changes.removed = before.len() as u64;
    let gone = before.into_keys().map(|path| ('-', shown(&path)));
    changes.paths.extend(gone);
    changes.paths.sort_by(|one, other| one.1.cmp(&other.1));
    Ok(changes)
}
