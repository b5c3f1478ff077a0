//! Power cuts and dead agents in the middle of restores that make a file system smaller, of a whole disk and of a
//! chosen volume. The reference tools work on a simulated disk, through the same file as on a real one.
//!
//! Whole is a file system here when its own checker finds it clean and all its files are equal: the tools write the
//! time into it. What boots and what looks whole: `kill_tests` and `mapping_crash_tests`.

use std::fs::{self, File};
use std::path::Path;

use backup::ByteRange;
use backup::hardware::Disk;
use backup::plan::Choices;

use super::tests::{check_ext4, is_possible, make_ext4, put};
use crate::capture::capture;
use crate::job::fake::{Bench, FakeServer, ImageMachine, disk, point, run};
use crate::restore::crash_tests::{Medium, try_restore_as};
use crate::restore::kill_tests::Dice;
use crate::restore::mapping_crash_tests::{looks_whole, reported, same_outside, table};
use crate::restore::tests::{noise, partitions};

const MIB: u64 = 1 << 20;
const SOURCE: u64 = 44 * MIB;

/// A disk with an ext4 of 40 MiB whose files lie at its end.
fn captured(folder: &Path) -> FakeServer {
    let (source, volume) = (folder.join("source"), folder.join("volume"));
    File::create(&source).unwrap().set_len(SOURCE).unwrap();
    table(&source, "label: gpt\\nstart=1MiB, size=40MiB\\n");
    make_ext4(&volume, 40 * MIB, 28 * MIB, 1);
    put(&source, MIB, &volume);
    let bench = Bench::new(ImageMachine::new(folder), vec![disk("source", SOURCE)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench.server
}

fn check_volume(disk: &[u8], range: ByteRange) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let volume = folder.path().join("volume");
    let place = range.start() as usize..range.end() as usize;
    fs::write(&volume, &disk[place]).unwrap();
    check_ext4(&volume, 1);
}

struct Scene {
    server: FakeServer,
    disk: Disk,
    choices: Choices,
    old: Vec<u8>,
}

impl Scene {
    fn restore(&self, medium: Medium) -> (Medium, bool) {
        let (medium, _, result) =
            try_restore_as(&self.server, self.disk.clone(), &self.choices, medium);
        if let Err(error) = &result
            && medium.cut_at == u64::MAX
        {
            panic!("{error}");
        }
        (medium, result.is_ok())
    }

    /// Cuts, judges what is found, and lets it end.
    fn play(&self, seeds: std::ops::Range<u64>, judge: impl Fn(&[u8], u64), end: impl Fn(&[u8])) {
        let (whole, _) = self.restore(Medium::new(self.old.clone()));
        end(&whole.durable);
        let mut killed = 0;
        for seed in seeds {
            let mut dice = Dice(seed);
            let mut medium = Medium::new(self.old.clone());
            for _ in 0..1 + dice.below(2) {
                // Most of the time where the tool is at work: the last part of the operations.
                let at = dice.below(whole.operations);
                medium.cut_at = if seed % 3 == 0 {
                    at
                } else {
                    whole.operations - at / 2 - 1
                };
                let (after, ended) = self.restore(medium);
                killed += u32::from(!ended);
                medium = dice.after_cut(&after);
                judge(&medium.durable, seed);
            }
            let (medium, _) = self.restore(medium);
            assert!(
                medium.live == medium.durable,
                "seed {seed}: not all is flushed"
            );
            end(&medium.durable);
        }
        eprintln!("killed {killed} times in {} operations", whole.operations);
        assert!(killed > 0);
    }
}

fn whole_disk(seeds: std::ops::Range<u64>) {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let len = 30 * MIB;
    let scene = Scene {
        server: captured(folder.path()),
        disk: disk("target", len),
        choices: Choices::default(),
        old: noise(40, len as usize),
    };
    let check = |bytes: &[u8]| {
        let image = folder.path().join("found");
        fs::write(&image, bytes).unwrap();
        let verified = run("sgdisk", &["-v", image.to_str().unwrap()]);
        assert!(verified.contains("No problems found"), "{verified}");
        let (start, len) = partitions(&image)[0];
        check_volume(bytes, ByteRange::between(start, start + len));
    };
    let starts = |bytes: &[u8]| bytes[510..512] == [0x55, 0xaa];
    let judge = |bytes: &[u8], seed| {
        if starts(bytes) {
            eprintln!("seed {seed}: it starts");
            check(bytes);
        }
    };
    scene.play(seeds, judge, |bytes| {
        assert!(starts(bytes));
        check(bytes);
    });
}

fn chosen_volume(seeds: std::ops::Range<u64>) {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, len) = (folder.path().join("target"), 36 * MIB);
    fs::write(&image, noise(40, len as usize)).unwrap();
    table(
        &image,
        "label: gpt\\nstart=1MiB, size=2MiB\\nstart=3MiB, size=28MiB\\nstart=32MiB, size=2MiB\\n",
    );
    let disk = reported(&image, len);
    let range = disk.partitions[1].range;
    let scene = Scene {
        server: captured(folder.path()),
        disk,
        choices: Choices {
            volumes: vec!["0:1=target:2".parse().unwrap()],
            ..Choices::default()
        },
        old: fs::read(&image).unwrap(),
    };
    let judge = |bytes: &[u8], seed| {
        assert!(same_outside(&scene.old, bytes, &[range]), "seed {seed}");
        if looks_whole(bytes, range) {
            eprintln!("seed {seed}: it looks whole");
            check_volume(bytes, range);
        }
    };
    scene.play(seeds, judge, |bytes| {
        assert!(looks_whole(bytes, range));
        check_volume(bytes, range);
    });
}

#[test]
fn a_disk_whose_file_system_is_being_made_smaller_never_starts_half() {
    whole_disk(0..3);
}

#[test]
fn a_chosen_volume_that_is_being_made_smaller_never_looks_whole() {
    chosen_volume(0..3);
}

#[test]
#[ignore = "takes minutes; `scripts/test --full` runs it"]
fn kill_tests_of_smaller_disks() {
    whole_disk(0..60);
}

#[test]
#[ignore = "takes minutes; `scripts/test --full` runs it"]
fn kill_tests_of_smaller_volumes() {
    chosen_volume(0..60);
}
