//! Chunks that are kept as differences: they are read like any other, need their base, and share its fate.

use backup::chunk::RecordHeader;
use protocol::upkeep::GcRequest;

use super::chunk_store::Location;
use super::crash_tests::{Kept, Machine, differences, id, publish};
use super::memory_storage::{MemoryStorage, Survival};
use super::pack::PackId;
use super::record::record_of;
use super::storage::Storage;
use super::tests::{read_back, upload};
use super::*;

const KEPT: Kept = Kept::AsDifferences;

const EVERYTHING: GcRequest = GcRequest {
    dry_run: false,
    rewrite_below: 100,
};

fn machine() -> Machine {
    Machine::new(MemoryStorage::new(), KEPT)
}

fn digests(chunks: &[Vec<u8>]) -> Vec<Digest> {
    chunks.iter().map(|plain| Digest::of(plain)).collect()
}

/// The root of a family and the two that are like it.
fn family(n: u32) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut chunks = KEPT.chunks(3 * n..3 * n + 3);
    (chunks.remove(0), chunks)
}

fn at(store: &Store, plain: &[u8]) -> Location {
    store.chunks.find(&Digest::of(plain)).unwrap()
}

fn flip(machine: &Machine, at: &Location, byte: u64) {
    let path = at.pack.pack_path(&Machine::packs_directory());
    let file = machine.storage.open_to_write(&path).unwrap();
    let mut one = [0];
    let place = u64::from(at.offset) + byte;
    file.read_exact_at(&mut one, place).unwrap();
    file.write_all_at(&[one[0] ^ 4], place).unwrap();
}

/// Records as they are sent for a restore, decoded one by one.
fn fetch(store: &Store, wanted: &[Digest]) -> Vec<Result<Vec<u8>, record::RecordError>> {
    let mut reader = store.chunks.read_records(wanted).unwrap();
    let mut bytes = Vec::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        bytes.extend_from_slice(&batch);
    }
    let mut at = 0;
    let mut checker = record::Checker::new().unwrap();
    let mut decoded = Vec::new();
    while at < bytes.len() {
        let (header, frame) = record::record_at(&bytes, at).unwrap();
        decoded.push(checker.decode(&header, frame).map(<[u8]>::to_vec));
        at += RecordHeader::LEN + frame.len();
    }
    decoded
}

#[test]
fn differences_are_small_and_read_like_any_chunk() {
    let machine = machine();
    let store = machine.open();
    let chunks = KEPT.chunks(0..30);
    machine.capture(&store, "all", &chunks);
    assert_eq!(differences(&store), 20);
    for (number, plain) in chunks.iter().enumerate() {
        let location = at(&store, plain);
        assert_eq!(location.is_difference(), number % 3 != 0, "{number}");
        assert!(!location.is_difference() || location.record_len() < 120);
    }
    for store in [&store, &machine.look(), &machine.open()] {
        assert_eq!(read_back(&store.chunks, &digests(&chunks)), chunks);
        assert_eq!(differences(store), 20);
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert!(
            report.is_sound() && report.checked_chunks == 30,
            "{report:?}"
        );
    }
    // The length of an answer is announced only where it is known.
    let (whole, like) = family(4);
    let total = |wanted: &[Digest]| store.chunks.read_records(wanted).unwrap().total_bytes();
    assert_eq!(
        total(&[Digest::of(&whole)]),
        Some(at(&store, &whole).record_len() as u64)
    );
    assert_eq!(total(&[Digest::of(&whole), Digest::of(&like[0])]), None);
}

#[test]
fn a_difference_is_never_the_base_of_another() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(1);
    KEPT.insert(&store, &id("a"), &[root]).unwrap();
    KEPT.insert(&store, &id("a"), &like[..1]).unwrap();
    assert_eq!(differences(&store), 1);
    let wrong = Digest::of(&like[0]);
    let chosen = |_: &Digest, _| Some(wrong);
    let added = store
        .chunks
        .insert_with(&id("a"), &upload(&like[1..]), &chosen);
    assert_eq!(added.unwrap().chunks, 1);
    assert!(!at(&store, &like[1]).is_difference());
}

#[test]
fn nobody_can_send_a_difference() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(2);
    KEPT.insert(&store, &id("a"), &[root]).unwrap();
    KEPT.insert(&store, &id("a"), &like).unwrap();
    let (_, record) = store.chunks.read_raw(&Digest::of(&like[0])).unwrap();
    let error = store.chunks.insert(&id("b"), &record).unwrap_err();
    assert!(matches!(error, StoreError::Record(_)), "{error}");
    let (header, _) = (record.split_at(RecordHeader::LEN), ());
    assert!(RecordHeader::decode(header.0.first_chunk().unwrap()).is_err());
}

#[test]
fn a_base_that_only_differences_need_stays() {
    let machine = machine();
    let store = machine.open();
    let chunks = KEPT.chunks(0..30);
    let roots: Vec<_> = chunks.iter().step_by(3).cloned().collect();
    let like: Vec<_> = (0..10).flat_map(|n| family(n).1).collect();
    machine.capture(&store, "old", &roots);
    machine.capture(&store, "new", &like);
    store.restore_points.forget(&id("old")).unwrap();
    let sizes = store.sizes().unwrap();
    assert_eq!(sizes.dead_bytes, 0, "{sizes:?}");
    let report = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(report.dead_chunks, 0);
    for store in [&store, &machine.open()] {
        assert_eq!(read_back(&store.chunks, &digests(&like)), like);
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
    }
    store.restore_points.forget(&id("new")).unwrap();
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(store.chunks.size().0, 0);
    assert_eq!(differences(&store), 0);
}

#[test]
fn a_capture_that_was_told_a_difference_is_stored_keeps_its_base() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(3);
    machine.capture(&store, "old", &[vec![root.clone()], like.clone()].concat());
    let claimed = store.chunks.claim(&id("running"), &Digest::of(&like[0]));
    assert!(claimed.is_some_and(|at| at.is_difference()));
    store.restore_points.forget(&id("old")).unwrap();
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(store.chunks.size().0, 2);
    assert_eq!(
        read_back(&store.chunks, &digests(&like[..1])),
        like[..1].to_vec()
    );
    store.capture_ended(&id("running"));
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(store.chunks.size().0, 0);
}

#[test]
fn what_a_capture_sends_as_a_difference_keeps_its_base_while_garbage_is_collected() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(3);
    machine.capture(&store, "old", std::slice::from_ref(&root));
    store.restore_points.forget(&id("old")).unwrap();
    KEPT.insert(&store, &id("running"), &like).unwrap();
    assert_eq!(differences(&store), 2);
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    publish(&store, "running", &like).unwrap();
    store.capture_ended(&id("running"));
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(read_back(&store.chunks, &digests(&like)), like);
    assert!(machine.open().verify(100, &mut |_| {}).unwrap().is_sound());
}

/// Roots 0 to 30 alone in old packs; what is like them, beside chunks that stay, in later ones.
fn base_goes_first() -> (Machine, Store, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let machine = machine();
    let store = machine.open();
    let roots: Vec<_> = (0..10).map(|n| family(n).0).collect();
    let like: Vec<_> = (0..10).flat_map(|n| family(n).1).collect();
    let stays = Kept::Whole.chunks(60..80);
    machine.capture(&store, "roots", &roots);
    machine.capture(&store, "like", &[stays.clone(), like.clone()].concat());
    machine.capture(&store, "stays", &stays);
    for name in ["roots", "like"] {
        store.restore_points.forget(&id(name)).unwrap();
    }
    let only_dead = GcRequest {
        dry_run: false,
        rewrite_below: 0,
    };
    let report = store.collect(&only_dead, &mut |_| {}).unwrap();
    assert!(report.removed_packs > 0 && report.rewritten_packs == 0);
    (machine, store, roots, like)
}

#[test]
fn a_difference_that_nobody_needs_goes_with_its_base() {
    let (machine, store, roots, like) = base_goes_first();
    let gone = roots
        .iter()
        .filter(|root| store.chunks.find(&Digest::of(root)).is_none());
    assert!(gone.count() > 0);
    for plain in &like {
        let claimed = store.chunks.claim(&id("new"), &Digest::of(plain));
        let base = |n: &u32| family(*n).1.contains(plain);
        let root = family((0..10).find(base).unwrap()).0;
        assert_eq!(
            claimed.is_some(),
            store.chunks.find(&Digest::of(&root)).is_some()
        );
    }
    store.capture_ended(&id("new"));
    // No start looks for the base of what is garbage.
    let again = machine.open();
    assert!(!again.chunks.lost_packs);
    assert_eq!(again.chunks.size(), store.chunks.size());
    // Sent again, they are there again, also where their old records lie on.
    machine.capture(&again, "again", &like);
    for store in [&again, &machine.open()] {
        assert_eq!(read_back(&store.chunks, &digests(&like)), like);
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
    }
}

#[test]
fn a_damaged_base_damages_its_differences_until_one_or_the_other_is_sent_again() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(5);
    let all = [vec![root.clone()], like.clone()].concat();
    machine.capture(&store, "old", &all);
    let place = at(&store, &root);
    flip(&machine, &place, place.record_len() as u64 - 3);

    let found = fetch(&store, &digests(&all));
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(Result::is_err), "{found:?}");
    let report = store.verify(100, &mut |_| {}).unwrap();
    let [damaged] = &report.damaged_chunks[..] else {
        panic!("{report:?}");
    };
    assert_eq!(damaged.digest, Digest::of(&root));
    assert_eq!(report.damaged_restore_points.len(), 1);
    assert_eq!(store.note_damage(&[damaged.record()]).unwrap(), 1);
    for plain in &all {
        assert!(store.chunks.find_sound(&Digest::of(plain)).is_none());
        assert!(store.chunks.claim(&id("new"), &Digest::of(plain)).is_none());
    }

    // A machine that has only one of them sends that, and it needs no base any more.
    machine.capture(&store, "one", &like[..1]);
    assert!(!at(&store, &like[0]).is_difference());
    assert_eq!(
        read_back(&store.chunks, &digests(&like[..1])),
        like[..1].to_vec()
    );
    assert!(store.chunks.find_sound(&Digest::of(&like[1])).is_none());
    let again = machine.open();
    assert!(again.chunks.find_sound(&Digest::of(&like[0])).is_some());
    assert!(again.chunks.find_sound(&Digest::of(&like[1])).is_none());
    drop(again);

    // One that has the base heals both.
    let store = machine.open();
    machine.capture(&store, "base", std::slice::from_ref(&root));
    store.look_for_healing();
    for store in [&store, &machine.open()] {
        assert_eq!(read_back(&store.chunks, &digests(&all)), all);
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
        assert!(
            store
                .restore_points
                .list()
                .iter()
                .all(|view| view.status == "successful")
        );
    }
}

#[test]
fn a_damaged_difference_is_found_and_replaced_whole() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(6);
    let all = [vec![root.clone()], like.clone()].concat();
    machine.capture(&store, "old", &all);
    // Its base's name, its frame.
    for (plain, byte) in [(&like[0], 45), (&like[1], 80)] {
        flip(&machine, &at(&store, plain), byte);
    }
    let report = store.verify(100, &mut |_| {}).unwrap();
    assert_eq!(report.damaged_chunks.len(), 2, "{report:?}");
    let records: Vec<_> = report
        .damaged_chunks
        .iter()
        .map(verify::DamagedChunk::record)
        .collect();
    assert_eq!(store.note_damage(&records).unwrap(), 2);
    assert!(fetch(&store, &digests(&like)).iter().all(Result::is_err));
    assert!(store.chunks.find_sound(&Digest::of(&root)).is_some());
    // A collection leaves the pack alone, and nothing that can still be read is lost.
    let report = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert!(
        report.rewritten_packs == 0 || report.notes.is_empty(),
        "{report:?}"
    );
    machine.capture(&store, "new", &all);
    assert!(like.iter().all(|plain| !at(&store, plain).is_difference()));
    for store in [&store, &machine.open()] {
        assert_eq!(read_back(&store.chunks, &digests(&all)), all);
    }
}

#[test]
fn an_index_that_is_lost_is_made_again_with_its_differences() {
    let machine = machine();
    let chunks = KEPT.chunks(0..40);
    let store = machine.open();
    machine.capture(&store, "all", &chunks);
    let (count, size) = (differences(&store), store.chunks.size());
    drop(store);
    for id in machine.packs() {
        machine
            .storage
            .remove_file(&id.index_path(&Machine::packs_directory()))
            .unwrap();
    }
    // Looking changes nothing; opening writes them again.
    for store in [machine.look(), machine.open(), machine.open()] {
        assert_eq!((differences(&store), store.chunks.size()), (count, size));
        assert_eq!(read_back(&store.chunks, &digests(&chunks)), chunks);
    }
    let newest = machine.packs().into_iter().max().unwrap();
    let indexed = |id: &PackId| {
        let path = id.index_path(&Machine::packs_directory());
        storage::read_if_there(&machine.storage, &path)
            .unwrap()
            .is_some()
    };
    // The newest was taken for one that is being written.
    assert!(
        machine
            .packs()
            .iter()
            .all(|id| indexed(id) != (*id == newest))
    );
}

#[test]
fn differences_whose_base_is_lost_count_as_missing_and_are_sent_again() {
    let machine = machine();
    let store = machine.open();
    let roots: Vec<_> = (0..10).map(|n| family(n).0).collect();
    let like: Vec<_> = (0..10).flat_map(|n| family(n).1).collect();
    machine.capture(&store, "roots", &roots);
    let packs_of_roots = machine.packs();
    machine.capture(&store, "like", &like);
    drop(store);
    for id in packs_of_roots {
        machine
            .storage
            .remove_file(&id.pack_path(&Machine::packs_directory()))
            .unwrap();
    }
    let store = machine.open();
    assert!(store.chunks.lost_packs);
    assert_eq!(store.chunks.size().0, 0);
    let views = store.restore_points.list();
    assert!(
        views.iter().all(|view| view.status != "successful"),
        "{views:?}"
    );
    machine.capture(&store, "again", &like);
    store.look_for_healing();
    for store in [&store, &machine.open()] {
        assert_eq!(read_back(&store.chunks, &digests(&like)), like);
        let views = store.restore_points.list();
        let sound = |name: &str| {
            views
                .iter()
                .any(|view| view.id.as_str() == name && view.status == "successful")
        };
        assert!(
            sound("again") && sound("like") && !sound("roots"),
            "{views:?}"
        );
    }
}

#[test]
fn what_was_being_written_is_cut_at_the_first_difference_that_is_wrong() {
    let machine = machine();
    let store = machine.open();
    let (root, like) = family(7);
    machine.capture(&store, "root", std::slice::from_ref(&root));
    KEPT.insert(&store, &id("running"), &like[..1]).unwrap();
    KEPT.insert(&store, &id("running"), &Kept::Whole.chunks(50..51))
        .unwrap();
    KEPT.insert(&store, &id("running"), &like[1..]).unwrap();
    let second = at(&store, &like[1]);
    assert!(second.is_difference());
    drop(store);
    let machine = Machine::new(machine.storage.after_cut(Survival::Everything), KEPT);
    flip(&machine, &second, second.record_len() as u64 - 2);
    let store = machine.open();
    assert_eq!(store.chunks.size().0, 3);
    assert!(at(&store, &like[0]).is_difference());
    assert!(store.chunks.find(&Digest::of(&like[1])).is_none());
    machine.capture(&store, "next", &like);
    assert!(machine.open().verify(100, &mut |_| {}).unwrap().is_sound());
}

#[test]
fn a_store_that_a_later_version_used_is_not_opened() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "one", &KEPT.chunks(0..9));
    drop(store);
    let first = machine.packs()[0];
    let path = first.index_path(&Machine::packs_directory());
    let mut bytes = storage::read_if_there(&machine.storage, &path)
        .unwrap()
        .unwrap();
    bytes[4] = 3;
    let body = bytes.len() - Digest::LEN;
    // With a wrong checksum it is only damaged.
    storage::replace(&machine.storage, &path, &bytes).unwrap();
    assert!(
        Machine::new(machine.storage.copy(None), KEPT)
            .try_open()
            .is_ok()
    );
    let digest = Digest::of(&bytes[..body]);
    bytes[body..].copy_from_slice(digest.as_bytes());
    storage::replace(&machine.storage, &path, &bytes).unwrap();
    let error = machine.try_open().err().unwrap().to_string();
    assert!(error.contains("version 3"), "{error}");
}

#[test]
fn a_chunk_much_like_one_in_the_store_is_kept_as_a_difference() {
    let machine = machine();
    let store = machine.open();
    let bytes = |seed: u64| -> Vec<u8> {
        let words = (0..25_000u64).flat_map(|n| {
            Digest::of(&[seed, n].map(u64::to_le_bytes).concat()).as_bytes()[..8].to_vec()
        });
        words.collect()
    };
    let before = bytes(1);
    let mut after = before.clone();
    after.splice(70_000..70_000, *b"a new version");
    after[150_000..150_020].fill(0);
    let send = |plain: &[u8]| {
        let added = store.chunks.insert(&id("a"), &record_of(plain)).unwrap();
        assert_eq!(added.chunks, 1);
        added.bytes
    };
    assert!(send(&before) > 200_000);
    assert!(send(&bytes(2)) > 200_000);
    assert!(send(&after) < 500);
    // Two that are alike in one upload.
    let (one, mut two) = (bytes(4), bytes(4));
    two[3] ^= 1;
    let both = [record_of(&one), record_of(&two)].concat();
    let added = store.chunks.insert(&id("a"), &both).unwrap();
    assert_eq!(added.chunks, 2);
    assert!(added.bytes < 202_000, "{added:?}");
    // A base that zstd would take for a dictionary of its own making is none.
    let mut magic = bytes(3);
    magic[..4].copy_from_slice(&[0x37, 0xa4, 0x30, 0xec]);
    assert!(send(&magic) > 200_000);
    magic[100_000] ^= 1;
    assert!(send(&magic) > 200_000);
    let plain = [before, after, magic, one, two];
    assert_eq!(read_back(&store.chunks, &digests(&plain)), plain);
}
