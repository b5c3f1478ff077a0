//! Restore points with logical volumes: their chunk lists count as those of regions do.

use std::path::Path;

use backup::chunk::{Chunk, ChunkList, Content};
use backup::lvm::{Area, Segment};
use backup::manifest::{
    ChunkListRef, Coverage, FileSystemKind, LogicalVolume, Manifest, RestorePointId, Volume,
};
use backup::{ByteRange, Digest};

use super::crash_tests::{id, noise};
use super::publish::{CaptureFacts, ContentPlace};
use super::tests::{manifest_of, upload};
use super::{ListName, PublishError, Store};

const SECTOR: u64 = 512;
const EXTENT: u64 = 1 << 20;

fn list_of(chunks: &[Vec<u8>], size: u64) -> ChunkList {
    let mut at = 0;
    let places = chunks.iter().map(|plain| {
        let range = ByteRange::new(at, plain.len() as u64).unwrap();
        at = range.end();
        let content = Content::Data(Digest::of(plain));
        Chunk { range, content }
    });
    ChunkList::new(places.collect(), size).unwrap()
}

fn content_of(list: &ChunkList) -> ChunkListRef {
    ChunkListRef {
        digest: Digest::of(&list.encode()),
        chunks: list.chunks().len() as u64,
        data_bytes: list.data_bytes(),
        zero_bytes: 0,
    }
}

/// A disk that is one physical volume, with `outside` before its extents and `inside` in a logical
/// volume; and both lists.
fn described(
    name: &RestorePointId,
    outside: &[Vec<u8>],
    inside: &[Vec<u8>],
) -> (Manifest, [ChunkList; 2]) {
    let size = 3 * EXTENT;
    let (region_list, volume_list) = (list_of(outside, size), list_of(inside, EXTENT));
    let (mut manifest, _) = manifest_of(name, outside);
    let disk = &mut manifest.disks[0];
    disk.size = size;
    let region = &mut disk.regions[0];
    region.range = ByteRange::new(0, size).unwrap();
    region.content = content_of(&region_list);
    region.volume = Some(Volume {
        file_system: FileSystemKind::Lvm,
        label: None,
        uuid: None,
        block_size: SECTOR as u32,
        size,
        used: None,
        sector_size: None,
    });
    manifest.logical_volumes.push(LogicalVolume {
        name: "root".into(),
        group: "vg".into(),
        uuid: "u".into(),
        segments: vec![Segment {
            stripe: EXTENT,
            areas: vec![Area {
                disk: 0,
                range: ByteRange::new(EXTENT, EXTENT).unwrap(),
            }],
        }],
        volume: None,
        coverage: Coverage::UsedBlocks,
        content: content_of(&volume_list),
    });
    manifest.format = Manifest::format_for(&manifest.logical_volumes);
    (manifest, [region_list, volume_list])
}

/// Sends the lists and publishes; the volume's list only if it is wanted.
fn captured(
    store: &Store,
    name: &str,
    (manifest, lists): &(Manifest, [ChunkList; 2]),
    whole: bool,
) -> Result<(), PublishError> {
    let points = &store.restore_points;
    let sent = if whole { &lists[..] } else { &lists[..1] };
    for (number, list) in sent.iter().enumerate() {
        let bytes = list.encode();
        let list_name = ListName::parse(&format!("0-{number}")).unwrap();
        points.stage_part(&id(name), list_name, 0, &bytes).unwrap();
        let digest = Digest::of(&bytes);
        points
            .finish_list(&id(name), list_name, bytes.len() as u64, &digest)
            .unwrap();
    }
    let facts = CaptureFacts {
        named: false,
        machine: "m".into(),
        machine_name: "machine".into(),
        stored_bytes: 5,
        purpose: Default::default(),
    };
    let bytes = serde_json::to_vec(manifest).unwrap();
    let published = points.publish(&id(name), &bytes, &facts, &store.chunks);
    published.map(drop)
}

fn opened(directory: &Path) -> Store {
    Store::open(directory).unwrap()
}

#[test]
fn chunks_of_a_logical_volume_are_kept_verified_and_compared() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path());
    let (outside, old, new) = (noise(0..3), noise(10..20), noise(15..25));
    for (name, inside) in [("a", &old), ("b", &new)] {
        let chunks = [outside.clone(), inside.clone()].concat();
        store.chunks.insert(&id(name), &upload(&chunks)).unwrap();
        let capture = described(&id(name), &outside, inside);
        captured(&store, name, &capture, true).unwrap();
        store.capture_ended(&id(name));
    }
    let everything = protocol::upkeep::GcRequest {
        dry_run: false,
        rewrite_below: 100,
    };
    let report = store.collect(&everything, &mut |_| {}).unwrap();
    assert_eq!((report.chunks, report.dead_chunks), (18, 0));
    let sum = |chunks: &[Vec<u8>]| chunks.iter().map(|plain| plain.len() as u64).sum::<u64>();
    let compared = crate::files::compare(&store, &id("a"), &id("b"), false).unwrap();
    assert_eq!(compared.only_in_a, sum(&old[..5]));
    assert_eq!(compared.only_in_b, sum(&new[5..]));
    assert_eq!(compared.in_both, sum(&outside) + sum(&old[5..]));

    store.restore_points.forget(&id("a")).unwrap();
    let report = store.collect(&everything, &mut |_| {}).unwrap();
    assert_eq!(report.dead_chunks, 5);
    drop(store);
    let store = opened(directory.path());
    let report = store.verify(100, &mut |_| {}).unwrap();
    assert!(report.is_sound() && report.all_chunks == 13, "{report:?}");
    assert_eq!(store.sizes().unwrap().dead_bytes, 0);
}

#[test]
fn a_logical_volume_without_its_list_or_a_chunk_is_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path());
    let (outside, inside) = (noise(0..3), noise(10..20));
    let capture = described(&id("a"), &outside, &inside);
    store.chunks.insert(&id("a"), &upload(&outside)).unwrap();
    let volume = ContentPlace::LogicalVolume("vg/root".into());
    match captured(&store, "a", &capture, false) {
        Err(PublishError::ListMissing { place, .. }) => assert_eq!(place, volume),
        other => panic!("{other:?}"),
    }
    store
        .chunks
        .insert(&id("a"), &upload(&inside[1..]))
        .unwrap();
    match captured(&store, "a", &capture, true) {
        Err(PublishError::ChunkMissing { place, digest }) => {
            assert_eq!((place, digest), (volume, Digest::of(&inside[0])));
        }
        other => panic!("{other:?}"),
    }
    assert!(store.restore_points.list().is_empty());
    store
        .chunks
        .insert(&id("a"), &upload(&inside[..1]))
        .unwrap();
    captured(&store, "a", &capture, true).unwrap();
}

#[test]
fn a_damaged_chunk_of_a_logical_volume_is_named_with_its_restore_point() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path());
    let (outside, inside) = (noise(0..3), noise(10..20));
    let chunks = [outside.clone(), inside.clone()].concat();
    store.chunks.insert(&id("a"), &upload(&chunks)).unwrap();
    let capture = described(&id("a"), &outside, &inside);
    captured(&store, "a", &capture, true).unwrap();
    drop(store);
    // The last record is one of the volume's.
    let pack = directory.path().join("store/packs/00000001.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let report = opened(directory.path()).verify(100, &mut |_| {}).unwrap();
    assert_eq!(report.damaged_chunks.len(), 1);
    assert_eq!(
        report.damaged_chunks[0].digest,
        Digest::of(inside.last().unwrap())
    );
    assert_eq!(report.damaged_restore_points.len(), 1);
    assert_eq!(report.damaged_restore_points[0].restore_point, id("a"));
}
