//! Power cuts and dead agents in the middle of chosen volumes, on a disk whose table and other partitions stay.
//!
//! **A partition looks whole** when a file system is recognised in it: nothing else is asked by whoever mounts it. At
//! each cut: what is outside of the chosen partitions is to the letter what it was; a partition that looks whole is
//! whole. Then the same restore, left alone, ends with partitions that are. What *whole* means: `kill_tests`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use backup::ByteRange;
use backup::filesystem::detect::detect;
use backup::filesystem::{ReadAt, ReadError, Section};
use backup::hardware::{Disk, ExistingPartition};
use backup::plan::Choices;

use super::crash_tests::{Medium, try_restore_as};
use super::kill_tests::{Dice, Twins};
use super::marker;
use super::tests::{noise, partitions};
use crate::capture::capture;
use crate::job::fake::{Bench, FakeServer, ImageMachine, disk, point, run};

const MIB: u64 = 1 << 20;
const SOURCE: u64 = 14 * MIB;
const TARGET: u64 = 24 * MIB;

/// Bytes as a disk that is read.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl ReadAt for Bytes<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let at = offset as usize;
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }
}

/// Whether something would mount what is in a part of the disk.
pub(super) fn looks_whole(disk: &[u8], range: ByteRange) -> bool {
    let disk = Bytes(disk);
    let found = detect(&Section::new(&disk, range), range.len()).unwrap();
    !found.is_empty()
}

/// Whether all but the parts is the same.
pub(super) fn same_outside(before: &[u8], after: &[u8], parts: &[ByteRange]) -> bool {
    let mut at = 0;
    let mut same = before.len() == after.len();
    for part in parts {
        let start = part.start() as usize;
        same &= before[at..start] == after[at..start];
        at = part.end() as usize;
    }
    same && before[at..] == after[at..]
}

pub(super) fn table(image: &Path, script: &str) {
    let path = image.display();
    run(
        "sh",
        &["-c", &format!("printf '{script}' | sfdisk -q {path}")],
    );
}

/// The disk as a machine reports it.
pub(super) fn reported(image: &Path, len: u64) -> Disk {
    let ranges = partitions(image).into_iter();
    Disk {
        partitions: (1..)
            .zip(ranges)
            .map(|(number, (start, len))| ExistingPartition {
                number,
                range: ByteRange::between(start, start + len),
            })
            .collect(),
        ..disk("target", len)
    }
}

/// A disk with an ext4, a FAT and something that nobody knows, captured.
fn server() -> &'static FakeServer {
    static SERVER: OnceLock<FakeServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (source, volume) = (folder.path().join("source"), folder.path().join("volume"));
        let name = volume.to_str().unwrap();
        File::create(&source).unwrap().set_len(SOURCE).unwrap();
        table(
            &source,
            "label: dos\\nstart=1MiB, size=6MiB\\nstart=7MiB, size=5MiB, type=6\\nstart=12MiB, size=1MiB\\n",
        );
        let file = File::options().write(true).open(&source).unwrap();
        let put = |at: u64| file.write_all_at(&fs::read(&volume).unwrap(), at).unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..8u64 {
            fs::write(tree.join(number.to_string()), noise(number + 1, 500_000)).unwrap();
        }
        let tree = tree.to_str().unwrap();
        run("mke2fs", &["-q", "-t", "ext4", "-d", tree, name, "6M"]);
        put(MIB);
        fs::write(&volume, vec![0; 5 << 20]).unwrap();
        run("mkfs.vfat", &["-F", "16", "-s", "1", name]);
        let content = folder.path().join("content");
        fs::write(&content, noise(20, 3_000_000)).unwrap();
        run("mcopy", &["-i", name, content.to_str().unwrap(), "::/content"]);
        put(7 * MIB);
        file.write_all_at(&noise(30, MIB as usize), 12 * MIB).unwrap();
        let bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", SOURCE)]);
        capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
        bench.server
    })
}

/// Another disk with four partitions, all of them full.
fn target() -> (Disk, Vec<u8>) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = folder.path().join("target");
    fs::write(&image, noise(40, TARGET as usize)).unwrap();
    table(
        &image,
        "label: gpt\\nstart=1MiB, size=6MiB\\nstart=8MiB, size=1MiB\\nstart=9MiB, size=7MiB\\nstart=17MiB, size=5MiB\\n",
    );
    (reported(&image, TARGET), fs::read(&image).unwrap())
}

fn choices() -> Choices {
    // The third is larger, and its FAT does not grow.
    let volumes = ["0:1=target:1", "0:3=target:2", "0:2=target:3"];
    Choices {
        volumes: volumes.map(|text| text.parse().unwrap()).to_vec(),
        ..Choices::default()
    }
}

fn cut_at(points: impl Iterator<Item = u64>) {
    let (disk, old) = target();
    let chosen: Vec<_> = disk.partitions[..3].iter().map(|one| one.range).collect();
    let restored = |medium: Medium| {
        let (medium, _, result) = try_restore_as(server(), disk.clone(), &choices(), medium);
        result.unwrap();
        medium
    };
    let whole = restored(Medium::new(old.clone()));
    let twins = Twins::new(&old, restored);
    let is_whole = |found: &[u8], range: ByteRange| {
        // As if all else were right.
        let mut with_it = whole.durable.clone();
        let place = range.start() as usize..range.end() as usize;
        with_it[place.clone()].copy_from_slice(&found[place]);
        twins.are(&with_it)
    };
    let (mut looked, mut marked) = (0, 0);
    for seed in points {
        let mut dice = Dice(seed);
        let mut medium = Medium::new(old.clone());
        for cut in 0..1 + dice.below(2) {
            medium.cut_at = dice.below(whole.operations);
            let at = medium.cut_at;
            let (after, _, _) = try_restore_as(server(), disk.clone(), &choices(), medium);
            medium = dice.after_cut(&after);
            let found = &medium.durable;
            assert!(
                same_outside(&old, found, &chosen),
                "seed {seed}, cut {cut} at {at}: written outside of the chosen partitions"
            );
            for range in &chosen {
                let magic = &found[range.start() as usize..range.start() as usize + 8];
                marked += u32::from(magic == b"NBMARKER");
                if looks_whole(found, *range) {
                    looked += 1;
                    assert!(
                        is_whole(found, *range),
                        "seed {seed}, cut {cut} at {at}: {range} looks whole and is not"
                    );
                }
            }
        }
        let (medium, _, result) = try_restore_as(server(), disk.clone(), &choices(), medium);
        result.unwrap();
        assert!(
            medium.live == medium.durable,
            "seed {seed}: not all is flushed"
        );
        assert!(same_outside(&old, &medium.durable, &chosen), "seed {seed}");
        for range in &chosen {
            assert!(
                is_whole(&medium.durable, *range),
                "seed {seed}: {range} is not whole"
            );
        }
    }
    eprintln!("{looked} partitions looked whole and were, {marked} said that they are not");
    assert!(marked > 0);
}

#[test]
fn no_chosen_volume_looks_whole_before_it_is() {
    cut_at(0..16);
}

#[test]
#[ignore = "200 points take minutes; `scripts/test --full` runs them"]
fn kill_tests_of_200_chosen_volumes() {
    cut_at(0..200);
}

#[test]
fn an_interrupted_volume_goes_on_where_it_was() {
    let (disk, old) = target();
    let (whole, all, result) =
        try_restore_as(server(), disk.clone(), &choices(), Medium::new(old.clone()));
    result.unwrap();
    // The data is there, no volume is recognisable: each commit has three writes, or two, each flushed.
    let mut medium = Medium::new(old);
    medium.cut_at = whole.operations - 16;
    let (medium, _, result) = try_restore_as(server(), disk.clone(), &choices(), medium);
    let error = result.unwrap_err();
    assert!(
        error
            .reason
            .contains("the chosen partitions were partly written"),
        "{error}"
    );
    let places: Vec<_> = disk.partitions[..3].iter().map(|one| one.range).collect();
    for place in &places {
        let start = place.start() as usize;
        let found = &medium.live[start..start + marker::LEN as usize];
        assert!(found.starts_with(b"NBMARKER"), "{place}");
    }
    let (medium, fetched, result) = try_restore_as(server(), disk, &choices(), medium.after_cut(1));
    result.unwrap();
    assert!(medium.durable == whole.durable);
    assert!(fetched * 2 < all, "{fetched} of {all}");
}
