//! Restores to disks that are too small, on image files and file systems of the reference tools. Only root mounts
//! what the tools work on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use backup::manifest::FileSystemKind;
use backup::plan::{Choices, Shrink};

use super::{served, tools};
use crate::capture::capture;
use crate::job::fake::{Bench, ImageMachine, disk, point, run};
use crate::job::mounted::check_kernel;
use crate::job::own_mounts::{Mounted, with_own_mounts};
use crate::restore::restore;
use crate::restore::tests::{files_of, make_target, noise, part, partitions};

const MIB: u64 = 1 << 20;

pub(super) fn is_possible() -> bool {
    match served::check() {
        Ok(()) => true,
        Err(fault) => {
            eprintln!("skipped: {fault}");
            false
        }
    }
}

/// The files of volume `number`.
fn content(number: u64) -> Vec<(String, Vec<u8>)> {
    (0..9u64)
        .map(|file| (file.to_string(), noise(100 * number + file, 300_000)))
        .collect()
}

/// An ext4 whose files lie behind the room that a large one had which is gone.
pub(super) fn make_ext4(volume: &Path, len: u64, hole: u64, number: u64) {
    let tree = volume.with_extension("tree");
    fs::create_dir(&tree).unwrap();
    let name = volume.to_str().unwrap();
    File::create(volume).unwrap().set_len(len).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", name]);
    let put = |name: &str, bytes: &[u8]| {
        let file = tree.join(name);
        fs::write(&file, bytes).unwrap();
        let command = format!("write {} {name}", file.display());
        run("debugfs", &["-w", "-R", &command, volume.to_str().unwrap()]);
    };
    put("hole", &noise(3, hole as usize));
    for (name, bytes) in content(number) {
        put(&name, &bytes);
    }
    run("debugfs", &["-w", "-R", "rm hole", name]);
    run("e2fsck", &["-f", "-n", name]);
    fs::remove_dir_all(&tree).unwrap();
}

pub(super) fn check_ext4(volume: &Path, number: u64) {
    run("e2fsck", &["-f", "-n", volume.to_str().unwrap()]);
    let mut found = files_of(volume, &volume.with_extension("found"));
    found.retain(|(name, _)| name != "lost+found");
    assert!(found == content(number), "volume {number}");
}

/// How many of the volume's files begin behind byte `end`.
fn files_behind(volume: &[u8], end: u64, number: u64) -> usize {
    let tail = &volume[end as usize..];
    let begins = |bytes: &[u8]| {
        tail.chunks(512)
            .any(|sector| sector.starts_with(&bytes[..64]))
    };
    content(number)
        .iter()
        .filter(|(_, bytes)| begins(bytes))
        .count()
}

fn table(image: &Path, script: &str) {
    let path = image.display();
    run(
        "sh",
        &["-c", &format!("printf '{script}' | sfdisk -q {path}")],
    );
}

pub(super) fn put(image: &Path, at: u64, volume: &Path) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&fs::read(volume).unwrap(), at).unwrap();
}

fn captured(folder: &Path, len: u64) -> Bench<ImageMachine> {
    let mut bench = Bench::new(ImageMachine::new(folder), vec![disk("source", len)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench.inventory.disks.clear();
    bench
}

#[test]
fn ext4_and_ntfs_come_back_whole_on_a_disk_of_half_the_size() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, len, small) = (folder.path().join("source"), 196 * MIB, 98 * MIB);
    File::create(&source).unwrap().set_len(len).unwrap();
    table(
        &source,
        "label: gpt\\nstart=1MiB, size=80MiB\\nstart=82MiB, size=80MiB\\nstart=162MiB, size=32MiB\\n",
    );
    let places = partitions(&source);
    let file = File::options().write(true).open(&source).unwrap();
    // What is between the first two is nobody's, and saved all the same.
    let between = places[0].0 + places[0].1;
    file.write_all_at(&noise(11, MIB as usize), between)
        .unwrap();
    let volume = folder.path().join("volume");
    let name = volume.to_str().unwrap();
    make_ext4(&volume, places[0].1, 40 * MIB, 1);
    assert!(files_behind(&fs::read(&volume).unwrap(), 40 * MIB, 1) > 3);
    put(&source, places[0].0, &volume);
    make_ext4(&volume, places[2].1, MIB, 2);
    put(&source, places[2].0, &volume);
    fs::write(&volume, vec![0; places[1].1 as usize]).unwrap();
    run("mkntfs", &["-q", "-F", name]);
    let inside = folder.path().join("content");
    fs::write(&inside, noise(12, 3_000_000)).unwrap();
    run("ntfscp", &["-q", name, inside.to_str().unwrap(), "content"]);
    put(&source, places[1].0, &volume);

    let mut bench = captured(folder.path(), len);
    let target = make_target(folder.path(), "target", small);
    bench.inventory.disks = vec![disk("target", small)];
    let summary = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    for line in [
        "Made the ext4 in partition 1 smaller, from 80.0 MiB",
        "Made the NTFS in partition 2 smaller, from 80.0 MiB",
        "Windows checks partition 2",
    ] {
        assert!(
            summary.iter().any(|said| said.contains(line)),
            "{summary:?}"
        );
    }
    let verified = run("sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verified.contains("No problems found"), "{verified}");
    let now = partitions(&target);
    assert!(now[0].0 == places[0].0 && now[1].0 < places[1].0, "{now:?}");
    for (number, index) in [(1, 0), (2, 2)] {
        fs::write(&volume, part(&target, now[index].0, now[index].1)).unwrap();
        check_ext4(&volume, number);
    }
    fs::write(&volume, part(&target, now[1].0, now[1].1)).unwrap();
    run("ntfsfix", &["-n", name]);
    let info = run("ntfsresize", &["--info", "--force", name]);
    assert!(info.contains("Current volume size"), "{info}");
    let out = folder.path().join("out");
    let get = format!("ntfscat -f -q {name} content > {}", out.display());
    run("sh", &["-c", &get]);
    assert!(fs::read(out).unwrap() == noise(12, 3_000_000));
    let moved = now[1].0 - (places[1].0 - between);
    assert!(part(&target, moved, MIB) == noise(11, MIB as usize));
}

#[test]
fn logical_partitions_move_and_an_interrupted_restore_goes_on() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, len, small) = (folder.path().join("source"), 112 * MIB, 64 * MIB);
    File::create(&source).unwrap().set_len(len).unwrap();
    table(
        &source,
        "label: dos\\nstart=2048, size=80MiB, type=83, bootable\\nstart=82MiB, size=29MiB, type=5\\n\
         start=83MiB, size=8MiB, type=82\\nstart=92MiB, size=18MiB\\n",
    );
    let places = partitions(&source);
    let volume = folder.path().join("volume");
    make_ext4(&volume, 80 * MIB, 40 * MIB, 1);
    let behind = files_behind(&fs::read(&volume).unwrap(), 40 * MIB, 1);
    assert!(behind > 3, "{behind}");
    put(&source, MIB, &volume);
    make_ext4(&volume, 18 * MIB, MIB, 2);
    put(&source, 92 * MIB, &volume);
    let swap = folder.path().join("swap");
    File::create(&swap).unwrap().set_len(8 * MIB).unwrap();
    run("mkswap", &["-q", swap.to_str().unwrap()]);
    put(&source, 83 * MIB, &swap);

    let mut bench = captured(folder.path(), len);
    let target = make_target(folder.path(), "target", small);
    bench.inventory.disks = vec![disk("target", small)];
    // A chunk that is in the tail alone: the first file there.
    let (_, lost) = content(1).pop().unwrap();
    let lost = lost[..256 * 1024].to_vec();
    bench.server.forget(&backup::Digest::of(&lost));
    let error = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap_err();
    assert_eq!(error.code, "damaged-chunk", "{error}");
    assert!(error.reason.contains("does not boot"), "{error}");
    assert!(part(&target, 0, 512).iter().all(|byte| *byte == 0));

    bench.inventory.disks = vec![disk("source", len)];
    capture(&bench.engine(), &point("rp-2"), Default::default()).unwrap();
    bench.inventory.disks = vec![disk("target", small)];
    restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    let verified = run("sfdisk", &["--verify", target.to_str().unwrap()]);
    assert!(verified.contains("No errors detected"), "{verified}");
    let now = partitions(&target);
    assert_eq!(now.len(), places.len());
    fs::write(&volume, part(&target, now[0].0, now[0].1)).unwrap();
    check_ext4(&volume, 1);
    let last = now.last().unwrap();
    assert!(last.0 + last.1 <= small && last.1 == 18 * MIB, "{now:?}");
    fs::write(&volume, part(&target, last.0, last.1)).unwrap();
    check_ext4(&volume, 2);
    assert!(part(&target, now[2].0, 4096) == fs::read(&swap).unwrap()[..4096]);
}

#[test]
fn a_btrfs_comes_back_whole_on_a_smaller_disk() {
    if !is_possible() {
        return;
    }
    if let Err(fault) = check_kernel(FileSystemKind::Btrfs) {
        eprintln!("skipped: {fault}");
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, len, small) = (folder.path().join("source"), 642 * MIB, 402 * MIB);
    File::create(&source).unwrap().set_len(len).unwrap();
    table(&source, "label: gpt\\nstart=1MiB, size=640MiB\\n");
    let node = |image: &Path, len: u64| {
        let (offset, size) = (MIB.to_string(), (len - 2 * MIB).to_string());
        let image = image.to_str().unwrap();
        let arguments = ["-f", "--show", "-o", &offset, "--sizelimit", &size, image];
        run("losetup", &arguments).trim().to_owned()
    };
    let made = node(&source, len);
    run("mkfs.btrfs", &["-q", &made]);
    with_own_mounts(|| {
        let mounted = Mounted::new(Path::new(&made), "btrfs", None).unwrap();
        // Full, so that the files come to where the last ones were.
        let hole = |number: u32| mounted.path().join(format!("hole{number}"));
        let fill = |number: u32, size: &str| {
            let mut command = Command::new("fallocate");
            let ended = command.args(["-l", size]).arg(hole(number)).output();
            ended.unwrap().status.success()
        };
        let holes = (0..60).take_while(|hole| fill(*hole, "16M")).count() as u32;
        let _ = (60..90).take_while(|hole| fill(*hole, "1M")).count();
        fs::remove_file(hole(holes - 3)).unwrap();
        let path = mounted.path().to_str().unwrap();
        run("btrfs", &["filesystem", "sync", path]);
        for (name, bytes) in content(1) {
            fs::write(mounted.path().join(name), bytes).unwrap();
        }
        run("btrfs", &["filesystem", "sync", path]);
        for number in 0..=90 {
            let _ = fs::remove_file(hole(number));
        }
        mounted.unmount().unwrap();
        Ok(())
    })
    .unwrap();
    run("losetup", &["-d", &made]);
    assert!(files_behind(&part(&source, MIB, 640 * MIB), 400 * MIB, 1) > 3);

    let mut bench = captured(folder.path(), len);
    let target = folder.path().join("target");
    File::create(&target).unwrap().set_len(small).unwrap();
    bench.inventory.disks = vec![disk("target", small)];
    let summary = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    assert!(
        summary.iter().any(|said| said
            .starts_with("Made the Btrfs in partition 1 smaller, from 640 MiB to 400 MiB")),
        "{summary:?}"
    );
    let made = node(&target, small);
    run("btrfs", &["check", &made]);
    with_own_mounts(|| {
        let mounted = Mounted::new(Path::new(&made), "btrfs", None).unwrap();
        for (name, bytes) in content(1) {
            assert!(fs::read(mounted.path().join(name)).unwrap() == bytes);
        }
        mounted.unmount().unwrap();
        Ok(())
    })
    .unwrap();
    run("losetup", &["-d", &made]);
}

#[test]
fn data_that_does_not_fit_after_all_is_an_error_that_says_so() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let volume = folder.path().join("volume");
    make_ext4(&volume, 40 * MIB, 8 * MIB, 1);
    let shrink = Shrink {
        partition: 3,
        file_system: FileSystemKind::Ext4,
        from: 40 * MIB,
        to: 2 * MIB,
    };
    let fault = tools::run(&volume, &shrink).unwrap_err().to_string();
    assert!(fault.starts_with("resize2fs: "), "{fault}");
    assert!(
        fault.contains("in partition 3 was to be made smaller, to 2.00 MiB"),
        "{fault}"
    );
}
