//! Chosen volumes onto partitions of a disk that has others, on image files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use backup::ByteRange;
use backup::hardware::{Disk, ExistingPartition};
use backup::plan::Choices;

use super::restore;
use super::tests::{files_of, make_target, noise, part, partitions};
use crate::capture::capture;
use crate::job::fake::{Bench, ImageMachine, disk, point, run};

const MIB: u64 = 1 << 20;

fn table(image: &Path, script: &str) {
    let path = image.display();
    run(
        "sh",
        &["-c", &format!("printf '{script}' | sfdisk -q {path}")],
    );
}

/// The disk as a machine reports it.
fn reported(image: &Path, len: u64) -> Disk {
    let ranges = partitions(image).into_iter();
    Disk {
        partitions: (1..)
            .zip(ranges)
            .map(|(number, (start, len))| ExistingPartition {
                number,
                range: ByteRange::between(start, start + len),
            })
            .collect(),
        ..disk(image.file_name().unwrap().to_str().unwrap(), len)
    }
}

#[test]
fn two_volumes_go_to_other_partitions_and_all_else_stays() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, len) = (folder.path().join("source"), 124 * MIB);
    File::create(&source).unwrap().set_len(len).unwrap();
    table(
        &source,
        "label: dos\\nstart=1MiB, size=60MiB\\nstart=61MiB, size=60MiB, type=7\\n",
    );
    let file = File::options().write(true).open(&source).unwrap();
    let (volume, tree) = (folder.path().join("volume"), folder.path().join("tree"));
    let name = volume.to_str().unwrap();
    fs::create_dir(&tree).unwrap();
    for number in 0..9u64 {
        fs::write(tree.join(number.to_string()), noise(number, 700_000)).unwrap();
    }
    run(
        "mke2fs",
        &[
            "-q",
            "-t",
            "ext4",
            "-d",
            tree.to_str().unwrap(),
            name,
            "60M",
        ],
    );
    file.write_all_at(&fs::read(&volume).unwrap(), MIB).unwrap();
    fs::write(&volume, vec![0; 60 << 20]).unwrap();
    run("mkntfs", &["-q", "-F", name]);
    let content = folder.path().join("content");
    fs::write(&content, noise(12, 3_000_000)).unwrap();
    run(
        "ntfscp",
        &["-q", name, content.to_str().unwrap(), "content"],
    );
    file.write_all_at(&fs::read(&volume).unwrap(), 61 * MIB)
        .unwrap();
    let mut bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", len)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();

    let to = 200 * MIB;
    let target = make_target(folder.path(), "target", to);
    table(
        &target,
        "label: gpt\\nstart=1MiB, size=30MiB\\nstart=32MiB, size=40MiB\\nstart=73MiB, size=80MiB\\n\
         start=160MiB, size=10MiB\\n",
    );
    let before = fs::read(&target).unwrap();
    bench.inventory.disks = vec![reported(&target, to)];
    // Without a look at what mounts: the NTFS alone; with it, the ext4 into a smaller one, too.
    let mut volumes = vec!["0:2=SERIAL-target:3"];
    if nix::unistd::Uid::effective().is_root() {
        volumes.push("0:1=target:2");
    } else {
        eprintln!("not as root: no volume is made smaller");
    }
    let choices = Choices {
        volumes: volumes.iter().map(|text| text.parse().unwrap()).collect(),
        ..Choices::default()
    };
    let summary = restore(&bench.engine(), &point("rp-1"), &choices).unwrap();
    assert!(
        summary
            .iter()
            .any(|line| line.starts_with("Grew the NTFS in partition 3 from 60.0 MiB to 80.0 MiB")),
        "{summary:?}"
    );

    let after = fs::read(&target).unwrap();
    let mut at = 0;
    for range in [32..72u64, 73..153] {
        let (start, end) = (range.start * MIB, range.end * MIB);
        let same = before[at as usize..start as usize] == after[at as usize..start as usize];
        assert!(same, "before {range:?}");
        at = end;
    }
    assert!(before[at as usize..] == after[at as usize..]);
    fs::write(&volume, part(&target, 73 * MIB, 80 * MIB)).unwrap();
    run("ntfsfix", &["-n", name]);
    let info = run("ntfsresize", &["--info", "--force", name]);
    assert!(info.contains("Current volume size"), "{info}");
    let out = folder.path().join("out");
    let get = format!("ntfscat -f -q {name} content > {}", out.display());
    run("sh", &["-c", &get]);
    assert!(fs::read(out).unwrap() == noise(12, 3_000_000));
    if volumes.len() < 2 {
        return;
    }
    assert!(
        summary
            .iter()
            .any(|line| line.contains("ext4 in partition 2 smaller, from 60.0 MiB to 40.0 MiB")),
        "{summary:?}"
    );
    fs::write(&volume, part(&target, 32 * MIB, 40 * MIB)).unwrap();
    run("e2fsck", &["-f", "-n", name]);
    let mut found = files_of(&volume, &folder.path().join("found"));
    found.retain(|(name, _)| name != "lost+found");
    let expected = (0..9u64).map(|number| (number.to_string(), noise(number, 700_000)));
    assert!(found == expected.collect::<Vec<_>>());
}

#[test]
fn a_volume_that_does_not_come_leaves_the_rest_of_the_disk_as_it_was() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, len) = (folder.path().join("source"), 24 * MIB);
    File::create(&source).unwrap().set_len(len).unwrap();
    table(&source, "label: dos\\nstart=1MiB, size=20MiB\\n");
    let file = File::options().write(true).open(&source).unwrap();
    file.write_all_at(&noise(1, 20 << 20), MIB).unwrap();
    let mut bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", len)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    let lost = bench.server.any_digest();
    bench.server.forget(&lost);

    let target = make_target(folder.path(), "target", 40 * MIB);
    table(
        &target,
        "label: dos\\nstart=2MiB, size=10MiB\\nstart=12MiB, size=20MiB\\n",
    );
    let before = fs::read(&target).unwrap();
    bench.inventory.disks = vec![reported(&target, 40 * MIB)];
    let choices = Choices {
        volumes: vec!["0:1=target:2".parse().unwrap()],
        ..Choices::default()
    };
    let error = restore(&bench.engine(), &point("rp-1"), &choices).unwrap_err();
    assert!(error.reason.contains("the chosen partitions"), "{error}");
    let after = fs::read(&target).unwrap();
    assert!(before[..12 << 20] == after[..12 << 20]);
    assert!(before[32 << 20..] == after[32 << 20..]);
    // It says of itself that it is not whole.
    let front = &after[12 << 20..(12 << 20) + 4096];
    assert!(front.starts_with(b"NBMARKER"));
    let summary = capture(&bench.engine(), &point("rp-3"), Default::default()).unwrap();
    assert!(
        summary
            .iter()
            .any(|line| line.contains("holds only a part of rp-1")),
        "{summary:?}"
    );

    bench.inventory.disks = vec![disk("source", len)];
    capture(&bench.engine(), &point("rp-2"), Default::default()).unwrap();
    bench.inventory.disks = vec![reported(&target, 40 * MIB)];
    restore(&bench.engine(), &point("rp-1"), &choices).unwrap();
    assert!(part(&target, 12 * MIB, 20 * MIB) == noise(1, 20 << 20));
}
