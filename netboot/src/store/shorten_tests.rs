//! Short lists in a store: which lists become short, what they need, and what their damage does.

use std::path::PathBuf;

use protocol::upkeep::GcRequest;

use super::crash_tests::{Kept, Machine, id, noise};
use super::lists::{ListError, StoredList};
use super::memory_storage::MemoryStorage;
use super::storage::Storage;
use super::tests::read_back;
use super::*;

fn machine() -> Machine {
    Machine::new(MemoryStorage::new(), Kept::Whole)
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from("/store/restore-points").join(name)
}

/// The files of a restore point's one list: list, base.
fn files(machine: &Machine, name: &str) -> (PathBuf, Option<PathBuf>) {
    let listed = machine.storage.list(&folder(name)).unwrap();
    let ending = |end: &str| {
        let mut found = listed.iter().filter(|entry| entry.name.ends_with(end));
        let first = found.next().map(|entry| folder(name).join(&entry.name));
        assert!(found.next().is_none());
        first
    };
    (ending(".chunks").unwrap(), ending(".base"))
}

/// The digests that the list of a restore point names.
fn named(machine: &Machine, name: &str) -> Result<Vec<Digest>, ListError> {
    let (path, _) = files(machine, name);
    let digest = lists::digest_of_name(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let mut digests = Vec::new();
    let place = (&digest, u64::MAX);
    lists::read(&machine.storage, &folder(name), place, |chunk| {
        if let backup::chunk::Content::Data(digest) = chunk.content {
            digests.push(digest);
        }
        Ok::<_, ListError>(())
    })?;
    Ok(digests)
}

fn digests(chunks: &[Vec<u8>]) -> Vec<Digest> {
    chunks.iter().map(|plain| Digest::of(plain)).collect()
}

#[test]
fn a_list_much_like_an_earlier_one_is_short_and_outlives_it() {
    let machine = machine();
    let store = machine.open();
    let chunks = [noise(0..60), noise(30..90), noise(200..260)];
    for (name, chunks) in ["first", "like-it", "other"].iter().zip(&chunks) {
        machine.capture(&store, name, chunks);
    }
    for name in ["first", "other"] {
        assert!(files(&machine, name).1.is_none(), "{name}");
    }
    let (list, base) = files(&machine, "like-it");
    let len = |path: &PathBuf| machine.storage.open(path).unwrap().len().unwrap();
    // Half of its chunks are new: their digests are in it.
    assert!(len(&list) < 48 * 60 * 2 / 3);
    assert!(base.is_some());
    store.restore_points.forget(&id("first")).unwrap();
    let everything = GcRequest {
        dry_run: false,
        rewrite_below: 100,
    };
    store.collect(&everything, &mut |_| {}).unwrap();
    for store in [&store, &machine.look(), &machine.open()] {
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
        assert_eq!(read_back(&store.chunks, &digests(&chunks[1])), chunks[1]);
    }
    assert_eq!(named(&machine, "like-it").unwrap(), digests(&chunks[1]));
    // The base of a restore point that is gone is still one for the next.
    machine.capture(&store, "again", &noise(0..61));
    assert!(files(&machine, "again").1.is_some());
    assert_eq!(named(&machine, "again").unwrap(), digests(&noise(0..61)));
}

#[test]
fn the_same_list_again_is_the_same_file() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "first", &noise(0..40));
    machine.capture(&store, "same", &noise(0..40));
    let (list, base) = files(&machine, "same");
    assert!(base.is_none());
    let list = machine.storage.open(&list).and_then(StoredList::whole);
    assert_eq!(list.unwrap().len(), 16 + 48 * 40);
    assert_eq!(named(&machine, "same").unwrap(), digests(&noise(0..40)));
}

#[test]
fn a_damaged_base_or_short_list_is_found_and_nothing_is_collected() {
    for damage_base in [true, false] {
        let machine = machine();
        let store = machine.open();
        machine.capture(&store, "first", &noise(0..60));
        machine.capture(&store, "second", &noise(1..60));
        store.restore_points.forget(&id("first")).unwrap();
        let (list, base) = files(&machine, "second");
        let place = if damage_base { base.unwrap() } else { list };
        let len = machine.storage.open(&place).unwrap().len().unwrap() as usize;
        machine.storage.flip(&place, len - 20);
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert_eq!(report.damaged_restore_points.len(), 1, "{report:?}");
        let everything = GcRequest {
            dry_run: false,
            rewrite_below: 100,
        };
        let error = store.collect(&everything, &mut |_| {}).unwrap_err();
        assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
        assert_eq!(store.chunks.size().0, 60);
        // What is published next does not rely on it.
        machine.capture(&store, "third", &noise(0..59));
        assert_eq!(named(&machine, "third").unwrap(), digests(&noise(0..59)));
    }
}

#[test]
fn a_base_that_is_gone_is_said_to_be() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "first", &noise(0..60));
    machine.capture(&store, "second", &noise(1..60));
    let (_, base) = files(&machine, "second");
    machine.storage.remove_file(&base.unwrap()).unwrap();
    let error = named(&machine, "second").unwrap_err();
    let ListError::Store(error) = error else {
        panic!("{error}");
    };
    assert!(chain(&error).contains("its base"), "{}", chain(&error));
    assert!(named(&machine, "first").is_ok());
}
