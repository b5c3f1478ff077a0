//! The power is cut at every operation of everything that changes the store, and the store is opened
//! on what is left.
//!
//! After each cut: no restore point that was published is lost or damaged, none is half there, one
//! that is being removed is whole or gone, and the store takes a new capture.

use std::path::{Path, PathBuf};

use backup::manifest::RestorePointId;
use protocol::upkeep::GcRequest;

use super::chunk_store::Added;
use super::memory_storage::{Fault, MemoryStorage, Survival};
use super::pack::PackId;
use super::storage::Storage;
use super::tests::{manifest_of, upload};
use super::*;

/// Small enough that a few chunks fill a pack.
const LIMIT: u64 = 2048;

pub(super) fn id(name: &str) -> RestorePointId {
    name.to_owned().try_into().unwrap()
}

/// Chunks of some hundred bytes that do not compress.
pub(super) fn noise(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    let chunk = |n: u32| {
        let digest = |at: u32| *Digest::of(&[n, at].map(u32::to_le_bytes).concat()).as_bytes();
        (0..4 + n % 9).flat_map(digest).collect()
    };
    numbers.map(chunk).collect()
}

/// How the chunks of a test are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Each for itself.
    Whole,
    /// Two of three as the difference from a third, where that is in the store.
    AsDifferences,
}

/// The number of the chunk that chunk `n` is like.
const fn root_of(n: u32) -> u32 {
    n - n % 3
}

impl Kept {
    pub(super) const BOTH: [Self; 2] = [Self::Whole, Self::AsDifferences];

    pub(super) fn chunks(self, numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
        let like_its_root = |n: u32| {
            let mut chunk = noise(root_of(n)..root_of(n) + 1).remove(0);
            let at = (n % 3) as usize;
            chunk[40 + at] ^= at as u8;
            chunk
        };
        match self {
            Self::Whole => noise(numbers),
            Self::AsDifferences => numbers.map(like_its_root).collect(),
        }
    }

    /// The base of a chunk below number 100.
    fn base(self, digest: &Digest) -> Option<Digest> {
        let root = |n: u32| {
            let chunk = &self.chunks(n..n + 1)[0];
            let root = &self.chunks(root_of(n)..root_of(n) + 1)[0];
            (Digest::of(chunk) == *digest).then(|| Digest::of(root))
        };
        if self == Self::Whole {
            return None;
        }
        (0..100).find_map(root)
    }

    /// Sends chunks in one upload.
    pub(super) fn insert(
        self,
        store: &Store,
        capture: &RestorePointId,
        chunks: &[Vec<u8>],
    ) -> Result<Added, StoreError> {
        let base = |digest: &Digest, _| self.base(digest);
        store.chunks.insert_with(capture, &upload(chunks), &base)
    }
}

/// How many chunks of a store are kept as differences.
pub(super) fn differences(store: &Store) -> usize {
    let index = store.chunks.read_index();
    (0..index.end())
        .filter(|position| index.base(*position).is_some())
        .count()
}

/// A server's disk.
pub(super) struct Machine {
    pub(super) storage: MemoryStorage,
    pub(super) kept: Kept,
}

impl Machine {
    pub(super) fn new(storage: MemoryStorage, kept: Kept) -> Self {
        Self { storage, kept }
    }

    fn root() -> &'static Path {
        Path::new("/store")
    }

    pub(super) fn packs_directory() -> PathBuf {
        Self::root().join("packs")
    }

    pub(super) fn try_open(&self) -> Result<Store, StoreError> {
        Store::open_in(Arc::new(self.storage.clone()), Self::root(), LIMIT)
    }

    pub(super) fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    pub(super) fn look(&self) -> Store {
        Store::look_in(Arc::new(self.storage.clone()), Self::root()).unwrap()
    }

    /// The packs that are there.
    pub(super) fn packs(&self) -> Vec<PackId> {
        let listed = self.storage.list(&Self::packs_directory()).unwrap();
        let packs = listed.iter();
        packs
            .filter_map(|entry| PackId::from_file_name(&entry.name, "pack"))
            .collect()
    }

    /// The one list of a restore point.
    pub(super) fn list_of(&self, name: &str) -> PathBuf {
        let directory = Self::root().join("restore-points").join(name);
        let lists = lists::in_directory(&self.storage, &directory).unwrap();
        lists::path(&directory, &lists[0])
    }

    /// A capture as an agent does it: asks, sends what is missing, lists, publishes.
    pub(super) fn try_capture(
        &self,
        store: &Store,
        name: &str,
        chunks: &[Vec<u8>],
    ) -> Result<(), String> {
        let missing: Vec<_> = chunks
            .iter()
            .filter(|plain| store.chunks.claim(&id(name), &Digest::of(plain)).is_none())
            .cloned()
            .collect();
        // A base is looked for in what earlier uploads brought.
        let at_once = if self.kept == Kept::Whole { 4 } else { 1 };
        for part in missing.chunks(at_once) {
            let added = self.kept.insert(store, &id(name), part);
            added.map_err(|error| chain(&error))?;
        }
        publish(store, name, chunks)
    }

    pub(super) fn capture(&self, store: &Store, name: &str, chunks: &[Vec<u8>]) {
        self.try_capture(store, name, chunks).unwrap();
        store.capture_ended(&id(name));
    }
}

/// Lists and manifest of chunks that were sent.
pub(super) fn publish(store: &Store, name: &str, chunks: &[Vec<u8>]) -> Result<(), String> {
    let (manifest, list) = manifest_of(&id(name), chunks);
    let digest = manifest.disks[0].regions[0].content.digest;
    let (points, list_name) = (&store.restore_points, ListName::parse("0-0").unwrap());
    let mut at = 0;
    for part in list.chunks(list.len() / 2 + 1) {
        let staged = points.stage_part(&id(name), list_name, at, part);
        staged.map_err(|error| chain(&error))?;
        at += part.len() as u64;
    }
    points
        .finish_list(&id(name), list_name, at, &digest)
        .map_err(|error| chain(&error))?;
    let facts = CaptureFacts {
        machine: "m".into(),
        machine_name: "machine".into(),
        named: false,
        stored_bytes: 5,
        purpose: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let published = points.publish(&id(name), &bytes, &facts, &store.chunks);
    published.map(drop).map_err(|error| chain(&error))
}

const SURVIVALS: [Survival; 6] = [
    Survival::Nothing,
    Survival::Everything,
    Survival::First(60),
    Survival::Some(1),
    Survival::Some(2),
    Survival::Some(3),
];

/// Cuts `work` at every operation. `must` were published before and stay; `may` are whole or gone.
fn cut_everywhere(
    base: &Machine,
    (must, may): (&[&str], &[&str]),
    work: impl Fn(&Machine, &Store) -> Result<(), String>,
) {
    let run = |fault| {
        let machine = Machine::new(base.storage.copy(fault), base.kept);
        let outcome = machine
            .try_open()
            .map_err(|error| chain(&error))
            .and_then(|store| work(&machine, &store));
        (machine, outcome)
    };
    let (machine, outcome) = run(None);
    outcome.unwrap();
    let operations = machine.storage.operations();
    for at in 0..operations {
        let (machine, outcome) = run(Some(Fault::Cut(at)));
        // A pin or a removal may be told as done only when it is.
        assert!(
            outcome.is_err(),
            "cut at {at} of {operations} was not noticed"
        );
        for survival in SURVIVALS {
            let case = format!("cut at {at} of {operations}, {survival:?}");
            let found = Machine::new(machine.storage.after_cut(survival), base.kept);
            let store = found.open();
            let report = store.verify(100, &mut |_| {}).unwrap();
            assert!(report.is_sound(), "{case}: {report:?}");
            let views = store.restore_points.list();
            let names: Vec<_> = views.iter().map(|view| view.id.as_str()).collect();
            for name in must {
                assert!(names.contains(name), "{case}: {name} is lost");
            }
            for name in &names {
                assert!(must.contains(name) || may.contains(name), "{case}: {name}");
            }
            assert!(
                views.iter().all(|view| view.status == "successful"),
                "{case}"
            );
            // Everything goes on: a capture, a collection, one more start.
            store
                .restore_points
                .discard_staging_except(&Default::default());
            found.capture(&store, "next", &base.kept.chunks(2..17));
            let everything = GcRequest {
                dry_run: false,
                rewrite_below: 100,
            };
            store
                .collect(&everything, &mut |_| {})
                .unwrap_or_else(|error| panic!("{case}: {error}"));
            drop(store);
            let report = found.open().verify(100, &mut |_| {}).unwrap();
            assert!(report.is_sound(), "{case}, later: {report:?}");
            assert_eq!(report.restore_points, names.len() as u64 + 1, "{case}");
        }
    }
    println!(
        "{operations} operations, {} stops",
        operations * SURVIVALS.len() as u64
    );
}

fn has_short_list(machine: &Machine, name: &str) -> bool {
    let folder = Machine::root().join("restore-points").join(name);
    let listed = machine.storage.list(&folder).unwrap();
    listed.iter().any(|entry| entry.name.ends_with(".base"))
}

/// A store with two restore points that share chunks, and garbage of a third one.
fn scene(kept: Kept) -> Machine {
    let machine = Machine::new(MemoryStorage::new(), kept);
    let store = machine.open();
    machine.capture(&store, "gone", &kept.chunks(0..12));
    machine.capture(&store, "old", &kept.chunks(7..16));
    machine.capture(&store, "kept", &kept.chunks(11..20));
    store.restore_points.forget(&id("gone")).unwrap();
    assert_eq!(differences(&store) > 9, kept == Kept::AsDifferences);
    // Its list refers to that of "gone".
    assert!(has_short_list(&machine, "old") && !has_short_list(&machine, "kept"));
    drop(store);
    Machine::new(machine.storage.after_cut(Survival::Everything), kept)
}

#[test]
fn a_first_start_and_a_capture_cut_anywhere() {
    for kept in Kept::BOTH {
        let empty = Machine::new(MemoryStorage::new(), kept);
        cut_everywhere(&empty, (&[], &["new"]), |machine, store| {
            machine.try_capture(store, "new", &kept.chunks(0..14))
        });
    }
}

#[test]
fn a_capture_beside_others_cut_anywhere() {
    for kept in Kept::BOTH {
        let scene = scene(kept);
        cut_everywhere(&scene, (&["old", "kept"], &["new"]), |machine, store| {
            machine.try_capture(store, "new", &kept.chunks(8..26))?;
            assert!(has_short_list(machine, "new"));
            Ok(())
        });
    }
}

#[test]
fn a_collection_that_rewrites_cut_anywhere() {
    for (kept, rewrite_below) in Kept::BOTH
        .into_iter()
        .flat_map(|kept| [(kept, 0), (kept, 100)])
    {
        let scene = scene(kept);
        cut_everywhere(&scene, (&["old", "kept"], &[]), |_, store| {
            let request = GcRequest {
                dry_run: false,
                rewrite_below,
            };
            let report = store.collect(&request, &mut |_| {});
            let report = report.map_err(|error| chain(&error))?;
            assert!(rewrite_below == 0 || report.rewritten_packs > 0);
            Ok(())
        });
    }
}

#[test]
fn a_removal_and_the_collection_after_it_cut_anywhere() {
    for kept in Kept::BOTH {
        cut_everywhere(&scene(kept), (&["kept"], &["old"]), |_, store| {
            let forgotten = store.restore_points.forget(&id("old"));
            forgotten.map_err(|error| chain(&error))?;
            let request = GcRequest {
                dry_run: false,
                rewrite_below: 100,
            };
            let report = store.collect(&request, &mut |_| {});
            report.map(drop).map_err(|error| chain(&error))
        });
    }
}

#[test]
fn a_pin_that_was_told_is_there_after_any_cut() {
    let scene = scene(Kept::Whole);
    let pin = |store: &Store, on: bool| {
        let points = &store.restore_points;
        let done = if on {
            points.pin(&id("kept"))
        } else {
            points.unpin(&id("kept"))
        };
        done.map_err(|error| chain(&error))
    };
    cut_everywhere(&scene, (&["old", "kept"], &[]), |_, store| {
        pin(store, true)?;
        pin(store, false)
    });
    for on in [true, false] {
        let machine = Machine::new(scene.storage.copy(None), scene.kept);
        pin(&machine.open(), true).unwrap();
        pin(&machine.open(), on).unwrap();
        let found = Machine::new(machine.storage.after_cut(Survival::Nothing), scene.kept);
        assert_eq!(found.open().restore_points.is_pinned(&id("kept")), on);
    }
}
