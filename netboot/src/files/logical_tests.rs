//! Files in logical volumes: an ext4 file system that lies in a volume group of one disk.

use std::ffi::OsStr;
use std::fs;

use backup::chunk::{Chunk, ChunkList, Content, Cutting};
use backup::filesystem::survey_volume;
use backup::lvm::{Area, Segment};
use backup::manifest::{Coverage, FileSystemKind, LogicalVolume, Manifest, RestorePointId, Volume};
use backup::{ByteRange, Digest};

use super::tests::{Scene, described};
use super::*;
use crate::store::Store;
use crate::store::record::record_of;

const MIB: u64 = 1 << 20;

/// Publishes the tree in the logical volume `vg/root`, which begins in the middle of its disk and goes
/// on at its beginning; beside it one that was not mapped.
fn published(scene: &Scene, label: &str) -> (RestorePointId, Manifest) {
    let id = RestorePointId::try_from("20260101-000000-aaaa".to_owned()).unwrap();
    let image = scene.image();
    let size = image.0.len() as u64;
    let survey = survey_volume(&image, size);
    let mut upload = Vec::new();
    let pieces = Cutting::Grid.pieces(survey.used.as_ref().unwrap()).unwrap();
    let chunks: Vec<Chunk> = pieces
        .map(|range| {
            let plain = &image.0[range.start() as usize..range.end() as usize];
            upload.extend(record_of(plain));
            let content = Content::Data(Digest::of(plain));
            Chunk { range, content }
        })
        .collect();
    scene.store.chunks.insert(&id, &upload).unwrap();
    let volume_list = ChunkList::new(chunks, size).unwrap();
    let content = scene.stage(&id, "0-1", &volume_list);
    let disk = size + 8 * MIB;
    let region_list = scene.stage(&id, "0-0", &ChunkList::new(Vec::new(), disk).unwrap());
    let physical = Volume {
        file_system: FileSystemKind::Lvm,
        label: Some(label.to_owned()),
        uuid: None,
        block_size: 512,
        size: disk,
        used: None,
        sector_size: None,
    };
    let mut manifest = described(&id, disk, Some(physical), region_list);
    let linear = |start, len| Segment {
        stripe: len,
        areas: vec![Area {
            disk: 0,
            range: ByteRange::new(start, len).unwrap(),
        }],
    };
    manifest.logical_volumes = vec![
        LogicalVolume {
            name: "thin".into(),
            group: "vg".into(),
            uuid: "1".into(),
            segments: Vec::new(),
            volume: None,
            coverage: Coverage::LeftOut {
                reason: "a thin volume".into(),
            },
            content: scene.stage(&id, "0-2", &ChunkList::new(Vec::new(), 0).unwrap()),
        },
        LogicalVolume {
            name: "root".into(),
            group: "vg".into(),
            uuid: "2".into(),
            segments: vec![linear(12 * MIB, size - 8 * MIB), linear(2 * MIB, 8 * MIB)],
            volume: survey.volume,
            coverage: Coverage::UsedBlocks,
            content,
        },
    ];
    manifest.format = Manifest::format_for(&manifest.logical_volumes);
    scene.commit(&manifest);
    (id, manifest)
}

fn spec(text: &str) -> Spec {
    Spec::parse(OsStr::new(text)).unwrap()
}

#[test]
fn files_of_a_logical_volume_are_found_by_its_name_and_by_its_number() {
    let scene = Scene::new();
    let (id, manifest) = published(&scene, "");
    let store = Store::look(&scene.path("data")).unwrap();
    let views = view_all(&store, &id, &manifest).unwrap();
    let shown: Vec<_> = views
        .iter()
        .map(|view| (view.volume.as_str(), view.readable))
        .collect();
    assert_eq!(shown, [("0", false), ("vg/thin", false), ("vg/root", true)]);
    let why = views[1].reason.as_deref().unwrap();
    assert!(why.contains("a thin volume"), "{why}");
    for text in [
        "p:vg/root/etc/hostname",
        "p:lvm-1/etc/hostname",
        "p:System/etc/hostname",
        "p:/etc/hostname",
    ] {
        let place = place(&manifest, &spec(text)).unwrap();
        assert_eq!(place.path, b"etc/hostname", "{text}");
        let volume = open(&store, &id, &manifest, place.volume.as_deref()).unwrap();
        assert_eq!(volume.volume, "vg/root");
        let file = find(volume.tree.as_ref(), &place.path).unwrap();
        let mut content = [0; 100];
        let len = volume.tree.read(file, 0, &mut content).unwrap();
        assert_eq!(&content[..len], b"lab-17\n", "{text}");
    }
    let refused = |text: &str| {
        let place = place(&manifest, &spec(text)).unwrap();
        let opened = open(&store, &id, &manifest, place.volume.as_deref());
        opened.err().unwrap().to_string()
    };
    let unknown = refused("p:vg/home/x");
    assert!(unknown.contains("has no volume `vg`"), "{unknown}");
    assert!(unknown.contains("vg/root (ext4"), "{unknown}");
    assert!(refused("p:lvm-2").contains("has no volume"));
    assert!(refused("p:vg/thin").contains("vg/thin"));
}

#[test]
fn all_files_of_a_logical_volume_are_taken_out() {
    let scene = Scene::new();
    let (id, manifest) = published(&scene, "");
    let store = Store::look(&scene.path("data")).unwrap();
    let volume = open(&store, &id, &manifest, Some(b"vg/root")).unwrap();
    let out = scene.path("out");
    let destination = Destination::Folder {
        path: out.clone(),
        on_clash: None,
    };
    let summary = take(&volume, &[Vec::new()], &destination, &mut |_| {}).unwrap();
    assert_eq!(summary.failed, 0, "{summary:?}");
    for name in ["etc/hostname", "etc/large", "etc/holes"] {
        let (got, was) = (out.join(name), scene.path("tree").join(name));
        assert!(fs::read(got).unwrap() == fs::read(was).unwrap(), "{name}");
    }
}

#[test]
fn a_group_whose_name_is_a_label_too_is_not_guessed_at() {
    let scene = Scene::new();
    let (_, manifest) = published(&scene, "VG");
    let refusal = place(&manifest, &spec("p:vg/root/etc")).unwrap_err();
    let refusal = refusal.to_string();
    assert!(
        refusal.contains("`lvm-1`") && refusal.contains("`0`"),
        "{refusal}"
    );
    let other = place(&manifest, &spec("p:lvm-1/etc")).unwrap();
    assert_eq!(other.volume.as_deref(), Some(&b"lvm-1"[..]));
    // Without a logical volume of that name the label is meant.
    let label = place(&manifest, &spec("p:vg/etc")).unwrap();
    assert_eq!(label.volume.as_deref(), Some(&b"vg"[..]));
}
