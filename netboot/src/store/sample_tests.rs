//! A store of each released version of the format, kept for ever in `netboot/tests/samples`, is read
//! back, verified and restored byte for byte.
//!
//! `store-v1` was made by `cargo test -p netboot make_the_sample -- --ignored`, which refuses to
//! replace it: a sample is made once for each version.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::Digest;
use backup::chunk::Content;
use backup::manifest::{Manifest, RestorePointId};

use super::Store;
use super::crash_tests::{id, noise, publish};
use super::lists::{self, ListError};
use super::storage::RealStorage;
use super::tests::{read_back, upload};

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/store-v1")
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
    // A copy: opening may write, a sample never changes.
    let directory = tempfile::tempdir().unwrap();
    copy(
        &sample().join("data/store"),
        &directory.path().join("store"),
    );
    let expected: BTreeMap<String, Digest> =
        serde_json::from_slice(&fs::read(sample().join("expected.json")).unwrap()).unwrap();
    let stores = [Store::look(directory.path()), Store::open(directory.path())];
    for store in stores.map(Result::unwrap) {
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{report:?}");
        let views = store.restore_points.list();
        let found: BTreeMap<_, _> = views
            .iter()
            .map(|view| (view.id.to_string(), Digest::of(&restored(&store, &view.id))))
            .collect();
        assert_eq!(found, expected);
        assert!(store.restore_points.is_pinned(&id("sample-1")));
        assert_eq!(views[0].machine.as_deref(), Some("m"));
    }
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
    let root = sample();
    assert!(!root.exists(), "{} is there already", root.display());
    let data = root.join("data");
    fs::create_dir_all(&data).unwrap();
    // Small packs, so that there are several; two restore points that share chunks, one pinned.
    let storage = Arc::new(RealStorage);
    let store = Store::open_in(storage, &data.join("store"), 16 * 1024).unwrap();
    let mut expected = BTreeMap::new();
    for (name, chunks) in [("sample-1", noise(0..60)), ("sample-2", noise(40..90))] {
        store.chunks.insert(&id(name), &upload(&chunks)).unwrap();
        publish(&store, name, &chunks).unwrap();
        store.capture_ended(&id(name));
        expected.insert(name, Digest::of(&restored(&store, &id(name))));
    }
    store.restore_points.pin(&id("sample-1")).unwrap();
    let bytes = serde_json::to_vec_pretty(&expected).unwrap();
    fs::write(root.join("expected.json"), bytes).unwrap();
}
