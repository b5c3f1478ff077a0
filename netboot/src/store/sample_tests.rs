//! A store of each released version of the format, kept for ever in `netboot/tests/samples`, is read
//! back, verified and restored byte for byte.
//!
//! The newest was made by `cargo test -p netboot make_the_sample -- --ignored`, which refuses to
//! replace it: a sample is made once for each version. `store-v1` has packs of version 1; `store-v2` has differences
//! and a short chunk list.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::Digest;
use backup::chunk::Content;
use backup::manifest::{Manifest, RestorePointId};

use super::Store;
use super::crash_tests::{Kept, differences, id, publish};
use super::lists::{self, ListError};
use super::storage::RealStorage;
use super::tests::read_back;

fn sample(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/store-v{version}"))
}

/// The content of a restore point's regions, one after the other.
fn restored(store: &Store, id: &RestorePointId) -> Vec<u8> {
    let manifest = Manifest::from_json(&store.restore_points.manifest(id).unwrap()).unwrap();
    let directory = store.restore_points.published_root.join(id.as_str());
    let mut disk = Vec::new();
    for region in manifest.regions() {
        let begin = disk.len();
        let len = usize::try_from(region.range.len()).unwrap();
        // What nobody saved is something that no content is.
        disk.resize(begin + len, 0xa5);
        let place = (&region.content.digest, region.range.len());
        lists::read(&RealStorage, &directory, place, |chunk| {
            let at = begin + usize::try_from(chunk.range.start()).unwrap();
            let into = &mut disk[at..at + usize::try_from(chunk.range.len()).unwrap()];
            match chunk.content {
                Content::Zero => into.fill(0),
                Content::Data(digest) => {
                    into.copy_from_slice(&read_back(&store.chunks, &[digest])[0]);
                }
            }
            Ok::<_, ListError>(())
        })
        .unwrap();
    }
    disk
}

#[test]
fn a_store_of_version_1_is_verified_and_restored_byte_for_byte() {
    let store = verified(&sample(1));
    assert_eq!(differences(&store), 0);
}

#[test]
fn a_store_of_version_2_is_verified_and_restored_byte_for_byte() {
    let store = verified(&sample(2));
    assert!(differences(&store) > 0);
    let published = sample(2).join("data/store/restore-points/sample-2");
    let mut files = fs::read_dir(published).unwrap();
    assert!(files.any(|file| {
        file.unwrap()
            .path()
            .extension()
            .is_some_and(|kind| kind == "base")
    }));
}

#[test]
fn a_store_of_version_1_takes_captures_of_version_2() {
    let directory = tempfile::tempdir().unwrap();
    copy(
        &sample(1).join("data/store"),
        &directory.path().join("store"),
    );
    for name in ["one", "two"] {
        let store = Store::open(directory.path()).unwrap();
        let chunks = Kept::AsDifferences.chunks(0..30);
        for chunk in chunks.chunks(1) {
            Kept::AsDifferences
                .insert(&store, &id(name), chunk)
                .unwrap();
        }
        publish(&store, name, &chunks).unwrap();
        store.capture_ended(&id(name));
        assert!(differences(&store) > 9);
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
    }
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.restore_points.list().len(), 4);
    assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
}

/// Compares everything of a sample with what it should be; the store, opened.
fn verified(sample: &Path) -> Store {
    // A copy: opening may write, a sample never changes.
    let directory = tempfile::tempdir().unwrap();
    copy(&sample.join("data/store"), &directory.path().join("store"));
    let expected: BTreeMap<String, Digest> =
        serde_json::from_slice(&fs::read(sample.join("expected.json")).unwrap()).unwrap();
    let stores = [Store::look(directory.path()), Store::open(directory.path())];
    let stores = stores.map(Result::unwrap);
    for store in &stores {
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{report:?}");
        let views = store.restore_points.list();
        let found: BTreeMap<_, _> = views
            .iter()
            .map(|view| (view.id.to_string(), Digest::of(&restored(store, &view.id))))
            .collect();
        assert_eq!(found, expected);
        assert!(store.restore_points.is_pinned(&id("sample-1")));
        assert_eq!(views[0].machine.as_deref(), Some("m"));
    }
    let [_, opened] = stores;
    opened
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
#[ignore = "makes the sample of this version of the format, once"]
fn make_the_sample() {
    let root = sample(2);
    assert!(!root.exists(), "{} is there already", root.display());
    let data = root.join("data");
    fs::create_dir_all(&data).unwrap();
    // Small packs, so that there are several; two restore points that share chunks, one pinned.
    let storage = Arc::new(RealStorage);
    let store = Store::open_in(storage, &data.join("store"), 16 * 1024).unwrap();
    let mut expected = BTreeMap::new();
    let kept = Kept::AsDifferences;
    for (name, chunks) in [
        ("sample-1", kept.chunks(0..60)),
        ("sample-2", kept.chunks(31..80)),
    ] {
        for chunk in chunks.chunks(1) {
            kept.insert(&store, &id(name), chunk).unwrap();
        }
        publish(&store, name, &chunks).unwrap();
        store.capture_ended(&id(name));
        expected.insert(name, Digest::of(&restored(&store, &id(name))));
    }
    store.restore_points.pin(&id("sample-1")).unwrap();
    let bytes = serde_json::to_vec_pretty(&expected).unwrap();
    fs::write(root.join("expected.json"), bytes).unwrap();
}
