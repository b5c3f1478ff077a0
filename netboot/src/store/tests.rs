//! The store as a whole: against an oracle, and after every kind of stop.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use backup::chunk::{Chunk, ChunkList, Content};
use backup::hardware::{FirmwareKind, MachineIdentity};
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, Firmware, Manifest, PartitionTable, Region, RegionKind,
    RestorePointId,
};
use backup::{ByteRange, SectorSize};
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::chunk_store::ChunkStore;
use super::pack::{PACK_HEADER_LEN, PackId};
use super::record::record_of;
use super::*;

/// Small enough that a few chunks fill a pack.
const SMALL: u64 = 4096;

pub(super) fn plain(number: u8) -> Vec<u8> {
    // Incompressible enough that records have different lengths.
    (0..=u16::from(number) * 7)
        .flat_map(|n| Digest::of(&[number, n as u8, (n >> 8) as u8]).as_bytes()[..8].to_vec())
        .collect()
}

fn packs(directory: &Path) -> PathBuf {
    directory.join("store").join("packs")
}

fn open_chunks(directory: &Path, limit: u64) -> Arc<ChunkStore> {
    Arc::new(ChunkStore::open(Arc::new(RealStorage), &packs(directory), limit).unwrap())
}

/// A capture that sends chunks and is never published.
fn capturing() -> RestorePointId {
    "capturing".to_owned().try_into().unwrap()
}

fn open_small(directory: &Path) -> Arc<ChunkStore> {
    open_chunks(directory, SMALL)
}

/// Reads chunks back the way a restore does, and decodes them.
pub(super) fn read_back(chunks: &Arc<ChunkStore>, digests: &[Digest]) -> Vec<Vec<u8>> {
    let mut reader = chunks.read_records(digests).unwrap();
    let expected = reader.total_bytes();
    let mut bytes = Vec::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        bytes.extend_from_slice(&batch);
    }
    assert!(expected.is_none_or(|expected| bytes.len() as u64 == expected));
    let mut at = 0;
    let mut plain = Vec::new();
    while at < bytes.len() {
        let (header, frame) = record::record_at(&bytes, at).unwrap();
        record::Checker::new()
            .unwrap()
            .decode(&header, frame)
            .unwrap();
        plain.push(zstd::bulk::decompress(frame, header.plain_len as usize).unwrap());
        at += backup::chunk::RecordHeader::LEN + frame.len();
    }
    plain
}

#[derive(Debug, Clone)]
enum Step {
    Insert(Vec<u8>),
    Seal,
    Reopen,
    Read(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let numbers = || proptest::collection::vec(0..40u8, 0..8);
    let step = prop_oneof![
        4 => numbers().prop_map(Step::Insert),
        1 => any::<()>().prop_map(|()| Step::Seal),
        1 => any::<()>().prop_map(|()| Step::Reopen),
        3 => numbers().prop_map(Step::Read),
    ];
    proptest::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
    #[test]
    fn it_holds_what_a_map_would_hold(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let mut chunks = open_small(directory.path());
        let mut oracle: HashMap<Digest, Vec<u8>> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(numbers) => {
                    let new = numbers.iter().map(|n| Digest::of(&plain(*n)));
                    let new: std::collections::HashSet<_> =
                        new.filter(|digest| !oracle.contains_key(digest)).collect();
                    let upload: Vec<u8> =
                        numbers.iter().flat_map(|n| record_of(&plain(*n))).collect();
                    let added = chunks.insert(&capturing(), &upload).unwrap();
                    prop_assert_eq!(added.chunks, new.len() as u64);
                    oracle.extend(numbers.iter().map(|n| (Digest::of(&plain(*n)), plain(*n))));
                }
                Step::Seal => chunks.seal().unwrap(),
                Step::Reopen => {
                    drop(chunks);
                    chunks = open_small(directory.path());
                }
                Step::Read(numbers) => {
                    let digests: Vec<_> = numbers.iter().map(|n| Digest::of(&plain(*n))).collect();
                    let expected: Option<Vec<_>> =
                        digests.iter().map(|digest| oracle.get(digest).cloned()).collect();
                    match expected {
                        Some(expected) => prop_assert_eq!(read_back(&chunks, &digests), expected),
                        None => assert!(matches!(
                            chunks.read_records(&digests),
                            Err(StoreError::Missing { .. })
                        )),
                    }
                }
            }
        }
        prop_assert_eq!(chunks.size().0, oracle.len() as u64);
        for entry in fs::read_dir(packs(directory.path())).unwrap() {
            let entry = entry.unwrap();
            if entry.path().extension().is_some_and(|kind| kind == "pack") {
                assert!(entry.metadata().unwrap().len() <= SMALL.max(3000 + 16));
            }
        }
    }
}

/// A store with one published restore point of `published` and an unsealed pack of `pending`.
struct Scene {
    directory: tempfile::TempDir,
    id: RestorePointId,
    published: Vec<Vec<u8>>,
    pending: Vec<Vec<u8>>,
}

pub(super) fn manifest_of(id: &RestorePointId, chunks: &[Vec<u8>]) -> (Manifest, Vec<u8>) {
    let mut at = 0;
    let places = chunks.iter().map(|plain| {
        let range = ByteRange::new(at, plain.len() as u64).unwrap();
        at = range.end();
        let content = Content::Data(Digest::of(plain));
        Chunk { range, content }
    });
    let places: Vec<_> = places.collect();
    let size = at.next_multiple_of(512);
    let list = ChunkList::new(places, size).unwrap();
    let encoded = list.encode();
    let region = Region {
        kind: RegionKind::WholeDisk,
        range: ByteRange::new(0, size).unwrap(),
        volume: None,
        coverage: Coverage::UsedBlocks,
        was_encrypted: None,
        content: ChunkListRef {
            digest: Digest::of(&encoded),
            chunks: list.chunks().len() as u64,
            data_bytes: list.data_bytes(),
            zero_bytes: 0,
        },
    };
    let disk = DiskImage {
        number: 0,
        model: None,
        serial: None,
        wwn: None,
        size,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        table: PartitionTable::None,
        regions: vec![region],
    };
    let manifest = Manifest {
        format: 1,
        id: id.clone(),
        kind: Default::default(),
        image: None,
        hardware: None,
        captured_at: 1,
        agent_version: "0".into(),
        machine: MachineIdentity::default(),
        architecture: "x86_64".into(),
        firmware: Firmware {
            kind: FirmwareKind::Bios,
            boot_entries: Vec::new(),
            boot_order: Vec::new(),
        },
        system: None,
        disks: vec![disk],
        logical_volumes: Vec::new(),
        warnings: Vec::new(),
    };
    (manifest, encoded)
}

/// Sends a list in two parts.
fn stage(store: &Store, id: &RestorePointId, digest: &Digest, list: &[u8]) {
    let (points, name) = (&store.restore_points, ListName::parse("0-0").unwrap());
    let (first, second) = list.split_at(list.len() / 2);
    points.stage_part(id, name, 0, first).unwrap();
    let at = first.len() as u64;
    points.stage_part(id, name, at, second).unwrap();
    points
        .finish_list(id, name, list.len() as u64, digest)
        .unwrap();
}

fn publish(store: &Store, id: &RestorePointId, chunks: &[Vec<u8>]) -> Result<(), PublishError> {
    let (manifest, list) = manifest_of(id, chunks);
    let digest = manifest.disks[0].regions[0].content.digest;
    stage(store, id, &digest, &list);
    let facts = CaptureFacts {
        machine: "m".into(),
        machine_name: "machine".into(),
        named: false,
        stored_bytes: 5,
        purpose: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).unwrap();
    store
        .restore_points
        .publish(id, &bytes, &facts, &store.chunks)
        .map(drop)
}

pub(super) fn upload(chunks: &[Vec<u8>]) -> Vec<u8> {
    chunks.iter().flat_map(|plain| record_of(plain)).collect()
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let id = RestorePointId::try_from("20260101-000000-abcd".to_owned()).unwrap();
        let published: Vec<_> = (0..6).map(plain).collect();
        let pending = vec![b"tiny".to_vec(), vec![7; 900], plain(6)];
        let store = Store::open(directory.path()).unwrap();
        store
            .chunks
            .insert(&capturing(), &upload(&published))
            .unwrap();
        publish(&store, &id, &published).unwrap();
        store
            .chunks
            .insert(&capturing(), &upload(&pending))
            .unwrap();
        Self {
            directory,
            id,
            published,
            pending,
        }
    }

    fn pack(&self, number: u32) -> PathBuf {
        PackId(number).pack_path(&packs(self.directory.path()))
    }

    fn index(&self, number: u32) -> PathBuf {
        PackId(number).index_path(&packs(self.directory.path()))
    }

    /// Opens the store again: the restore point must be whole, and the store must take the pending
    /// chunks again and give them back, now and after one more start.
    fn recovers(&self) {
        let store = Store::open(self.directory.path()).unwrap();
        self.is_whole(&store);
        store
            .chunks
            .insert(&capturing(), &upload(&self.pending))
            .unwrap();
        store.chunks.seal().unwrap();
        drop(store);
        let store = Store::open(self.directory.path()).unwrap();
        self.is_whole(&store);
        let digests: Vec<_> = self.pending.iter().map(|plain| Digest::of(plain)).collect();
        assert_eq!(read_back(&store.chunks, &digests), self.pending);
    }

    fn is_whole(&self, store: &Store) {
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert!(
            report.is_sound() && report.restore_points == 1,
            "{report:?}"
        );
        let digests: Vec<_> = self
            .published
            .iter()
            .map(|plain| Digest::of(plain))
            .collect();
        assert_eq!(read_back(&store.chunks, &digests), self.published);
        assert!(store.restore_points.contains(&self.id));
    }
}

/// The files of a store, to be put back between experiments.
fn snapshot(scene: &Scene) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(packs(scene.directory.path())).unwrap();
    let paths = files.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

fn put_back(scene: &Scene, files: &[(PathBuf, Vec<u8>)]) {
    for entry in fs::read_dir(packs(scene.directory.path())).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn an_unsealed_pack_cut_at_any_byte_loses_only_what_was_cut() {
    let scene = Scene::new();
    let files = snapshot(&scene);
    let whole = fs::read(scene.pack(2)).unwrap();
    for len in 0..=whole.len() {
        put_back(&scene, &files);
        fs::write(scene.pack(2), &whole[..len]).unwrap();
        if len % 32 == 0 {
            scene.recovers();
            continue;
        }
        // The same without waiting for the disk so often.
        let chunks = open_chunks(scene.directory.path(), PACK_LIMIT);
        chunks
            .insert(&capturing(), &upload(&scene.pending))
            .unwrap();
        let all = [scene.published.clone(), scene.pending.clone()].concat();
        let digests: Vec<_> = all.iter().map(|plain| Digest::of(plain)).collect();
        assert_eq!(read_back(&chunks, &digests), all, "cut at {len}");
    }
}

#[test]
fn an_unsealed_pack_with_blocks_that_were_never_written_is_cut_there() {
    let scene = Scene::new();
    let files = snapshot(&scene);
    let whole = fs::read(scene.pack(2)).unwrap();
    for from in (0..whole.len()).step_by(7) {
        put_back(&scene, &files);
        let mut bytes = whole.clone();
        bytes[from..].fill(0);
        fs::write(scene.pack(2), &bytes).unwrap();
        scene.recovers();
    }
}

#[test]
fn whole_records_of_an_unsealed_pack_are_kept() {
    let scene = Scene::new();
    let first = record_of(&scene.pending[0]).len() + PACK_HEADER_LEN;
    let whole = fs::read(scene.pack(2)).unwrap();
    fs::write(scene.pack(2), &whole[..first + 1]).unwrap();
    let store = Store::open(scene.directory.path()).unwrap();
    let find = |plain: &[u8]| store.chunks.find(&Digest::of(plain));
    assert!(find(&scene.pending[0]).is_some());
    assert!(find(&scene.pending[1]).is_none());
    assert_eq!(fs::metadata(scene.pack(2)).unwrap().len(), first as u64);
}

#[test]
fn a_stop_between_any_two_steps_of_sealing_is_recovered() {
    let scene = Scene::new();
    let files = snapshot(&scene);
    let index = fs::read(scene.index(1)).unwrap();
    // The index was being written.
    for len in [0, 1, index.len() / 2, index.len()] {
        put_back(&scene, &files);
        let mut unfinished = scene.index(2).into_os_string();
        unfinished.push(".tmp");
        fs::write(&unfinished, &index[..len]).unwrap();
        scene.recovers();
        assert!(!Path::new(&unfinished).exists());
    }
    // The next pack was created and nothing was written to it.
    put_back(&scene, &files);
    let store = Store::open(scene.directory.path()).unwrap();
    store.chunks.seal().unwrap();
    drop(store);
    fs::write(scene.pack(3), b"").unwrap();
    scene.recovers();
}

#[test]
fn a_lost_or_damaged_index_is_made_anew_and_cuts_nothing() {
    let scene = Scene::new();
    let files = snapshot(&scene);
    let index = fs::read(scene.index(1)).unwrap();
    for damage in 0..3 {
        put_back(&scene, &files);
        match damage {
            0 => fs::remove_file(scene.index(1)).unwrap(),
            1 => fs::write(scene.index(1), &index[..index.len() - 1]).unwrap(),
            _ => {
                let mut flipped = index.clone();
                flipped[40] ^= 1;
                fs::write(scene.index(1), flipped).unwrap();
            }
        }
        let before = fs::read(scene.pack(1)).unwrap();
        scene.recovers();
        assert_eq!(fs::read(scene.pack(1)).unwrap(), before);
        assert_eq!(fs::read(scene.index(1)).unwrap(), index);
    }
}

#[test]
fn a_capture_that_stopped_before_its_rename_is_not_visible() {
    let scene = Scene::new();
    let root = scene.directory.path().join("store");
    let other = root.join("staging").join("20260102-000000-abcd");
    fs::create_dir_all(&other).unwrap();
    for entry in fs::read_dir(root.join("restore-points").join(scene.id.as_str())).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, other.join(from.file_name().unwrap())).unwrap();
    }
    let store = Store::open(scene.directory.path()).unwrap();
    assert_eq!(store.restore_points.list().len(), 1);
    scene.is_whole(&store);
    store
        .restore_points
        .discard_staging_except(&Default::default());
    assert!(!other.exists());
    drop(store);
    scene.recovers();
}

#[test]
fn a_damaged_info_is_read_from_the_manifest_again() {
    let scene = Scene::new();
    let root = scene.directory.path().join("store/restore-points");
    fs::write(root.join(scene.id.as_str()).join("info.json"), b"{").unwrap();
    let store = Store::open(scene.directory.path()).unwrap();
    let view = &store.restore_points.list()[0];
    assert!(view.id == scene.id && view.data_bytes > 0);
}

#[test]
fn one_flipped_bit_is_found_by_name_with_pack_and_offset() {
    let scene = Scene::new();
    let store = Store::open(scene.directory.path()).unwrap();
    let victim = Digest::of(&scene.published[4]);
    let at = store.chunks.find(&victim).unwrap();
    drop(store);
    let mut bytes = fs::read(scene.pack(1)).unwrap();
    let frame = at.offset as usize + backup::chunk::RecordHeader::LEN;
    bytes[frame + at.stored.len() as usize / 2] ^= 4;
    fs::write(scene.pack(1), bytes).unwrap();

    let store = Store::look(scene.directory.path()).unwrap();
    let report = store.verify(100, &mut |_| {}).unwrap();
    assert_eq!(report.damaged_chunks.len(), 1);
    let damage = &report.damaged_chunks[0];
    assert_eq!(damage.digest, victim);
    assert_eq!(damage.pack, scene.pack(1));
    assert_eq!(damage.offset, u64::from(at.offset));
    assert_eq!(report.damaged_restore_points[0].restore_point, scene.id);
    // A restore gets the record as it lies there, and finds the damage itself.
    let store = Store::open(scene.directory.path()).unwrap();
    let mut reader = store.chunks.read_records(&[victim]).unwrap();
    let batch = reader.next_batch().unwrap().unwrap();
    let (header, frame) = record::record_at(&batch, 0).unwrap();
    assert_eq!(header.digest, victim);
    assert!(
        record::Checker::new()
            .unwrap()
            .decode(&header, frame)
            .is_err()
    );
}

#[test]
fn a_lost_pack_takes_its_chunks_along_and_says_which_restore_point_suffers() {
    let scene = Scene::new();
    fs::remove_file(scene.pack(1)).unwrap();
    let store = Store::open(scene.directory.path()).unwrap();
    let report = store.verify(100, &mut |_| {}).unwrap();
    assert_eq!(report.damaged_restore_points.len(), 1);
    assert!(
        report.damaged_restore_points[0]
            .reason
            .contains("is not in the store")
    );
    // Its number is not used again: an old backup of the file may come back.
    store
        .chunks
        .insert(&capturing(), &upload(&[plain(30)]))
        .unwrap();
    assert!(!scene.pack(1).exists());
}

#[test]
fn a_sample_is_spread_evenly_and_of_the_size_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let chunks: Vec<_> = (0..100).map(|n| vec![n; 10]).collect();
    store.chunks.insert(&capturing(), &upload(&chunks)).unwrap();
    for percent in [1, 10, 33, 100] {
        let report = store.verify(percent, &mut |_| {}).unwrap();
        assert_eq!(report.checked_chunks, u64::from(percent));
    }
}

#[test]
fn a_full_disk_is_told_apart_from_other_failures() {
    let error = |kind: io::ErrorKind| StoreError::io("cannot write", Path::new("x"), kind.into());
    assert!(matches!(
        error(io::ErrorKind::StorageFull),
        StoreError::Full { .. }
    ));
    assert!(matches!(
        error(io::ErrorKind::QuotaExceeded),
        StoreError::Full { .. }
    ));
    assert!(matches!(
        error(io::ErrorKind::PermissionDenied),
        StoreError::Io { .. }
    ));
}

#[test]
fn large_reads_come_in_bounded_batches() {
    let directory = tempfile::tempdir().unwrap();
    let chunks = open_with_noise(directory.path());
    let digests: Vec<_> = (0..16u8).map(|n| Digest::of(&noise(n))).collect();
    let mut reader = chunks.read_records(&digests).unwrap();
    let mut batches = 0;
    while let Some(batch) = reader.next_batch().unwrap() {
        assert!(batch.len() <= 512 << 10);
        batches += 1;
    }
    assert!(batches >= 4);
    assert_eq!(read_back(&chunks, &digests)[7], noise(7));
}

fn noise(number: u8) -> Vec<u8> {
    let mut bytes = vec![0; backup::chunk::MAX_CHUNK_LEN as usize];
    for (place, block) in bytes.chunks_exact_mut(32).enumerate() {
        block.copy_from_slice(
            Digest::of(&[&[number], place.to_le_bytes().as_slice()].concat()).as_bytes(),
        );
    }
    bytes
}

fn open_with_noise(directory: &Path) -> Arc<ChunkStore> {
    let chunks = open_chunks(directory, PACK_LIMIT);
    for number in 0..16 {
        chunks
            .insert(&capturing(), &record_of(&noise(number)))
            .unwrap();
    }
    chunks
}
