//! Garbage collection, damage, removal, sizes and comparison, on a store in memory.

use protocol::upkeep::GcRequest;

use super::crash_tests::{Kept, Machine, id, noise};
use super::memory_storage::{Fault, MemoryStorage};
use super::pack::PackId;
use super::storage::Storage;
use super::tests::{read_back, upload};
use super::*;

const EVERYTHING: GcRequest = GcRequest {
    dry_run: false,
    rewrite_below: 100,
};

fn machine() -> Machine {
    Machine::new(MemoryStorage::new(), Kept::Whole)
}

fn holds(store: &Store, plain: &[u8]) -> bool {
    store.chunks.find(&Digest::of(plain)).is_some()
}

#[test]
fn what_no_restore_point_needs_is_freed_and_the_rest_stays() {
    let machine = machine();
    let (old, shared, new) = (noise(0..20), noise(20..30), noise(30..40));
    let store = machine.open();
    machine.capture(&store, "old", &[old.clone(), shared.clone()].concat());
    machine.capture(&store, "new", &[shared.clone(), new.clone()].concat());
    store.restore_points.forget(&id("old")).unwrap();
    let dry = GcRequest {
        dry_run: true,
        ..EVERYTHING
    };
    let would = store.collect(&dry, &mut |_| {}).unwrap();
    assert!(old.iter().all(|plain| holds(&store, plain)));
    let before = store.sizes().unwrap();
    let report = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!((report.dead_chunks, report.chunks), (20, 40));
    assert_eq!(would.dead_chunks, 20);
    assert!(
        report.rewritten_packs > 0 && report.removed_packs > 0,
        "{report:?}"
    );
    assert!(!old.iter().any(|plain| holds(&store, plain)));
    let after = store.sizes().unwrap();
    assert_eq!(after.dead_bytes, 0);
    assert!(before.stored_bytes - after.stored_bytes >= before.dead_bytes);
    let freed = before.stored_bytes - after.stored_bytes;
    // But for the heads of the packs that were written.
    assert!(report.freed_bytes.abs_diff(freed) <= 16 * after.packs);
    for store in [&store, &machine.open()] {
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
        let kept = [shared.clone(), new.clone()].concat();
        let digests: Vec<_> = kept.iter().map(|plain| Digest::of(plain)).collect();
        assert_eq!(read_back(&store.chunks, &digests), kept);
    }
    let again = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!((again.dead_chunks, again.removed_packs), (0, 0));
}

#[test]
fn what_a_running_capture_was_told_is_stored_stays_until_it_is_over() {
    let machine = machine();
    let store = machine.open();
    let (told, forgotten, sent) = (noise(0..9), noise(9..18), noise(18..20));
    machine.capture(&store, "old", &[told.clone(), forgotten.clone()].concat());
    let running = id("running");
    for plain in &told {
        assert!(store.chunks.claim(&running, &Digest::of(plain)).is_some());
    }
    store.chunks.insert(&running, &upload(&sent)).unwrap();
    store.restore_points.forget(&id("old")).unwrap();
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert!(told.iter().chain(&sent).all(|plain| holds(&store, plain)));
    assert!(!forgotten.iter().any(|plain| holds(&store, plain)));
    let sizes = store.sizes().unwrap();
    assert!(sizes.captures_bytes > 0 && sizes.unique_bytes == 0);
    // It never sent a list, and it is over.
    store.capture_ended(&running);
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(store.chunks.size().0, 0);
}

#[test]
fn a_capture_that_ran_when_the_server_started_loses_nothing() {
    let machine = machine();
    let store = machine.open();
    store
        .chunks
        .insert(&id("running"), &upload(&noise(0..5)))
        .unwrap();
    store.chunks.seal().unwrap();
    drop(store);
    let store = machine.open();
    store.chunks.claim_all(&id("running"));
    store
        .chunks
        .insert(&id("other"), &upload(&noise(5..6)))
        .unwrap();
    store.capture_ended(&id("other"));
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(store.chunks.size().0, 5);
}

#[test]
fn a_restore_that_reads_while_packs_are_moved_gets_its_bytes() {
    let machine = machine();
    let store = machine.open();
    let (dead, kept) = (noise(0..30), noise(30..60));
    let mixed: Vec<_> = dead
        .iter()
        .zip(&kept)
        .flat_map(|(a, b)| [a.clone(), b.clone()])
        .collect();
    machine.capture(&store, "old", &mixed);
    machine.capture(&store, "new", &kept);
    let digests: Vec<_> = kept.iter().map(|plain| Digest::of(plain)).collect();
    // Looked up before, read after; the second as one that looks on from outside.
    let beside = machine.look();
    let mut readers = [
        store.chunks.read_records(&digests).unwrap(),
        beside.chunks.read_records(&digests).unwrap(),
    ];
    store.restore_points.forget(&id("old")).unwrap();
    let report = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert!(report.rewritten_packs > 0);
    for reader in &mut readers {
        let mut bytes = Vec::new();
        while let Some(batch) = reader.next_batch().unwrap() {
            bytes.extend(batch);
        }
        assert!(bytes == upload(&kept));
    }
    assert!(beside.verify(100, &mut |_| {}).unwrap().is_sound());
}

#[test]
fn captures_that_run_beside_collections_lose_no_chunk() {
    let machine = machine();
    let store = machine.open();
    std::thread::scope(|scope| {
        let (store, machine) = (&store, &machine);
        let captures: Vec<_> = (0..3u32)
            .map(|worker| {
                scope.spawn(move || {
                    for round in 0..12 {
                        let chunks = noise(worker * 7 + round..worker * 7 + round + 20);
                        let name = format!("w{worker}-{round}");
                        machine.capture(store, &name, &chunks);
                        store.capture_ended(&id(&name));
                        if round > 0 {
                            let before = id(&format!("w{worker}-{}", round - 1));
                            store.restore_points.forget(&before).unwrap();
                        }
                    }
                })
            })
            .collect();
        while captures.iter().any(|capture| !capture.is_finished()) {
            store.collect(&EVERYTHING, &mut |_| {}).unwrap();
        }
    });
    let report = store.verify(100, &mut |_| {}).unwrap();
    assert!(
        report.is_sound() && report.restore_points == 3,
        "{report:?}"
    );
    assert!(machine.open().verify(100, &mut |_| {}).unwrap().is_sound());
}

#[test]
fn nothing_is_removed_while_a_restore_point_cannot_be_read() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "good", &noise(0..4));
    store
        .chunks
        .insert(&id("gone"), &upload(&noise(4..8)))
        .unwrap();
    store.capture_ended(&id("gone"));
    let list = machine.list_of("good");
    machine.storage.flip(&list, 40);
    let error = store.collect(&EVERYTHING, &mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
    assert_eq!(store.chunks.size().0, 8);
    store.restore_points.forget(&id("good")).unwrap();
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(store.chunks.size().0, 0);
}

#[test]
fn a_number_of_a_pack_is_never_used_twice() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "a", &noise(0..10));
    let highest = |machine: &Machine| machine.packs().into_iter().max().unwrap();
    let before = highest(&machine);
    store.restore_points.forget(&id("a")).unwrap();
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    drop(store);
    let store = machine.open();
    machine.capture(&store, "b", &noise(10..12));
    assert!(machine.packs().iter().all(|pack| *pack > before));
}

#[test]
fn a_damaged_chunk_is_missing_until_a_capture_sends_it_again() {
    let machine = machine();
    let store = machine.open();
    let chunks = noise(0..8);
    machine.capture(&store, "first", &chunks);
    let digest = Digest::of(&chunks[3]);
    let at = store.chunks.find(&digest).unwrap();
    let byte = at.offset as usize + at.record_len() - 5;
    machine
        .storage
        .flip(&at.pack.pack_path(store.chunks.directory()), byte);
    let found = machine.look().verify(100, &mut |_| {}).unwrap();
    let records: Vec<_> = found
        .damaged_chunks
        .iter()
        .map(verify::DamagedChunk::record)
        .collect();
    assert_eq!(records.len(), 1);
    // A claim of damage that is none is not believed.
    let sound = DamagedRecord {
        digest: Digest::of(&chunks[0]),
        ..records[0].clone()
    };
    assert_eq!(store.note_damage(&[sound, records[0].clone()]).unwrap(), 1);
    let status = |store: &Store| store.restore_points.list()[0].status.clone();
    assert_eq!(status(&store), "damaged");
    // It is remembered over a restart, and is missing for captures.
    drop(store);
    let store = machine.open();
    assert_eq!(status(&store), "damaged");
    assert_eq!(store.sizes().unwrap().damaged_chunks, 1);
    assert!(store.chunks.claim(&id("second"), &digest).is_none());
    machine.capture(&store, "second", &chunks);
    store.look_for_healing();
    for store in [&store, &machine.open()] {
        assert_eq!(status(store), "successful");
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
    }
    // The old record is garbage; with its pack goes the note of it.
    store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
    assert!(store.chunks.lock_damage().is_empty());
}

#[test]
fn a_pack_with_a_damaged_record_is_not_rewritten() {
    let machine = machine();
    let store = machine.open();
    let chunks = noise(0..4);
    machine.capture(&store, "all", &chunks);
    machine.capture(&store, "one", &chunks[..1]);
    store.restore_points.forget(&id("all")).unwrap();
    let at = store.chunks.find(&Digest::of(&chunks[0])).unwrap();
    let path = at.pack.pack_path(store.chunks.directory());
    machine
        .storage
        .flip(&path, at.offset as usize + at.record_len() - 5);
    let report = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    assert_eq!(
        (report.rewritten_packs, report.notes.len()),
        (0, 1),
        "{report:?}"
    );
    assert!(machine.packs().contains(&at.pack));
    assert_eq!(store.restore_points.list()[0].status, "damaged");
}

#[test]
fn sizes_say_what_each_restore_point_alone_takes() {
    let machine = machine();
    let store = machine.open();
    let (own, shared) = (noise(0..5), noise(5..9));
    machine.capture(
        &store,
        "a",
        &[own.clone(), shared.clone(), own.clone()].concat(),
    );
    machine.capture(&store, "b", &shared);
    store.capture_ended(&id("a"));
    store.capture_ended(&id("b"));
    let sizes = store.sizes().unwrap();
    let unique = upload(&own).len() as u64;
    assert_eq!((sizes.unique_bytes, sizes.dead_bytes), (unique, 0));
    assert_eq!(sizes.shared_bytes, upload(&shared).len() as u64);
    let each: Vec<_> = sizes
        .restore_points
        .iter()
        .map(|point| point.unique_bytes)
        .collect();
    assert_eq!(each, [unique, 0]);
    store.restore_points.forget(&id("a")).unwrap();
    let sizes = store.sizes().unwrap();
    assert_eq!((sizes.dead_bytes, sizes.shared_bytes), (unique, 0));
}

#[test]
fn pins_are_kept_over_a_restart_and_keep_their_restore_point() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "a", &noise(0..2));
    store.restore_points.pin(&id("a")).unwrap();
    assert!(matches!(
        store.restore_points.pin(&id("b")),
        Err(KeepError::Unknown { .. })
    ));
    let store = machine.open();
    assert!(store.restore_points.list()[0].pinned);
    assert!(matches!(
        store.restore_points.forget(&id("a")),
        Err(KeepError::Pinned { .. })
    ));
    store.restore_points.unpin(&id("a")).unwrap();
    let store = machine.open();
    assert!(!store.restore_points.list()[0].pinned);
    store.restore_points.forget(&id("a")).unwrap();
    assert!(
        store.restore_points.list().is_empty() && machine.open().restore_points.list().is_empty()
    );
}

#[test]
fn a_full_disk_fails_a_capture_before_its_commit_and_never_after() {
    let base = machine();
    let store = base.open();
    base.capture(&store, "old", &noise(0..6));
    drop(store);
    let count = |fault| {
        let machine = Machine::new(base.storage.copy(fault), Kept::Whole);
        let store = machine.open();
        let outcome = machine.try_capture(&store, "new", &noise(3..12));
        let published = store.restore_points.contains(&id("new"));
        (machine, store, outcome, published)
    };
    let operations = count(None).0.storage.operations();
    for at in 0..operations {
        let (machine, store, outcome, published) = count(Some(Fault::Full(at)));
        assert_eq!(outcome.is_ok(), published, "full at {at}: {outcome:?}");
        if let Err(error) = &outcome {
            assert!(error.contains("no space left"), "{error}");
        }
        assert!(store.verify(100, &mut |_| {}).unwrap().is_sound());
        machine.storage.make_room();
        machine.try_capture(&store, "new", &noise(3..12)).unwrap();
        drop(store);
        let store = machine.open();
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert!(
            report.is_sound() && report.restore_points == 2,
            "full at {at}: {report:?}"
        );
    }
    assert!(operations > 20);
}

#[test]
fn a_failed_flush_is_never_taken_for_a_good_one() {
    let base = machine();
    drop(base.open());
    let run = |fault| {
        let machine = Machine::new(base.storage.copy(fault), Kept::Whole);
        let store = machine.open();
        let outcome = machine.try_capture(&store, "new", &noise(0..9));
        (machine, outcome.is_ok())
    };
    let operations = run(None).0.storage.operations();
    for at in 0..operations {
        let (machine, told) = run(Some(Fault::SyncFails(at)));
        let found = machine
            .storage
            .after_cut(super::memory_storage::Survival::Nothing);
        let store = Machine::new(found, Kept::Whole).open();
        let report = store.verify(100, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "flush {at} failed: {report:?}");
        assert!(!told || report.restore_points == 1, "flush {at} failed");
    }
}

/// `cargo test --release -p netboot a_million -- --ignored --nocapture`
#[test]
#[ignore = "measures, and asserts nothing about time"]
fn a_million_chunks() {
    const CHUNKS: u32 = 1_000_000;
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
                / 1024
        };
        println!(
            "  resident {} MiB, at most {} MiB so far",
            line("VmRSS"),
            line("VmHWM")
        );
        line("VmRSS")
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let timed = |what: &str, begin: std::time::Instant| println!("{what}: {:?}", begin.elapsed());
    let plain = |n: u32| n.to_le_bytes().repeat(2);
    let store = Store::open(directory.path()).unwrap();
    let begin = std::time::Instant::now();
    for (name, first) in [("a", 0), ("b", CHUNKS / 10)] {
        for from in (first..first + CHUNKS).step_by(20_000) {
            let chunks: Vec<_> = (from..from + 20_000).map(plain).collect();
            store.chunks.insert(&id(name), &upload(&chunks)).unwrap();
        }
        let chunks: Vec<_> = (first..first + CHUNKS).map(plain).collect();
        super::crash_tests::publish(&store, name, &chunks).unwrap();
        store.capture_ended(&id(name));
    }
    timed("two restore points of 1,000,000 chunks captured", begin);
    drop(store);
    resident();
    let begin = std::time::Instant::now();
    let store = Store::look(directory.path()).unwrap();
    timed("opened for reading", begin);
    let begin = std::time::Instant::now();
    assert_eq!(store.restore_points.list().len(), 2);
    timed("list", begin);
    let begin = std::time::Instant::now();
    let bytes = store.restore_points.manifest(&id("a")).unwrap();
    let manifest = backup::manifest::Manifest::from_json(&bytes).unwrap();
    assert_eq!(
        manifest.disks[0].regions[0].content.chunks,
        u64::from(CHUNKS)
    );
    timed("show", begin);
    let begin = std::time::Instant::now();
    let compared = crate::files::compare(&store, &id("a"), &id("b"), false).unwrap();
    assert_eq!(compared.only_in_b, u64::from(CHUNKS / 10) * 8);
    timed("compare", begin);
    let begin = std::time::Instant::now();
    store.sizes().unwrap();
    timed("sizes", begin);
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    println!(
        "before gc, the index of {} chunks in memory:",
        store.chunks.size().0
    );
    let before = resident();
    store.restore_points.forget(&id("a")).unwrap();
    let begin = std::time::Instant::now();
    let report = store.collect(&EVERYTHING, &mut |_| {}).unwrap();
    timed("gc, one of two forgotten", begin);
    println!("{report:?}");
    let after = resident();
    println!(
        "gc added {} MiB of resident memory",
        after.saturating_sub(before)
    );
}

#[test]
fn an_index_that_was_torn_is_made_anew_whatever_of_it_is_there() {
    let machine = machine();
    let store = machine.open();
    machine.capture(&store, "a", &noise(0..6));
    drop(store);
    let index = PackId(1).index_path(&Machine::packs_directory());
    let file = machine.storage.open(&index).unwrap();
    let len = file.len().unwrap();
    for keep in 0..len {
        let torn = machine.storage.copy(None);
        torn.open_to_write(&index).unwrap().set_len(keep).unwrap();
        // And as a file system leaves it that wrote the length first: zeros.
        for zeros in [false, true] {
            if zeros {
                torn.open_to_write(&index).unwrap().set_len(len).unwrap();
            }
            let store = Machine::new(torn.copy(None), Kept::Whole).open();
            let report = store.verify(100, &mut |_| {}).unwrap();
            assert!(
                report.is_sound() && report.restore_points == 1,
                "{keep} {zeros}"
            );
        }
    }
}
