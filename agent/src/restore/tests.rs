//! Capture and restore together, on image files made by the reference tools.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use backup::hardware::FirmwareKind;
use backup::plan::{Choices, ExtraSpace};

use super::restore;
use crate::capture::capture;
use crate::job::fake::{Bench, ImageMachine, MemoryVariables, disk, point, run};

const MIB: u64 = 1 << 20;
const SOURCE: u64 = 128 * MIB;
const ESP: u64 = 2 * MIB;
const ESP_LEN: u64 = 36 * MIB;
const ROOT: u64 = 38 * MIB;
const ROOT_LEN: u64 = 89 * MIB;

/// Text that does not compress to nothing.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A GPT disk with a BIOS boot partition, an EFI system partition and an ext4 root.
fn make_source(folder: &Path) -> PathBuf {
    let image = folder.join("source");
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(
        tree.join("etc/os-release"),
        "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n",
    )
    .unwrap();
    fs::write(tree.join("etc/hostname"), "lab-1\n").unwrap();
    for number in 0..40u64 {
        let len = (number * 37_003 % 900_000) as usize;
        fs::write(tree.join(format!("file-{number}")), noise(number + 1, len)).unwrap();
    }
    File::create(&image).unwrap().set_len(SOURCE).unwrap();
    let path = image.to_str().unwrap();
    let script = folder.join("table");
    fs::write(
        &script,
        "label: gpt\nstart=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n\
         start=4096, size=73728, type=uefi\nstart=77824, size=182272, type=linux\n",
    )
    .unwrap();
    run(
        "sh",
        &["-c", &format!("sfdisk -q {path} < {}", script.display())],
    );
    run(
        "mkfs.vfat",
        &[
            "-F",
            "32",
            "-n",
            "ESP",
            "--offset",
            "4096",
            path,
            &(ESP_LEN / 1024).to_string(),
        ],
    );
    fs::write(folder.join("loader"), noise(99, 300_000)).unwrap();
    run(
        "mmd",
        &["-i", &format!("{path}@@{ESP}"), "::/EFI", "::/EFI/BOOT"],
    );
    let loader = folder.join("loader");
    run(
        "mcopy",
        &[
            "-i",
            &format!("{path}@@{ESP}"),
            loader.to_str().unwrap(),
            "::/EFI/BOOT/BOOTX64.EFI",
        ],
    );
    run(
        "mke2fs",
        &[
            "-q",
            "-t",
            "ext4",
            "-d",
            tree.to_str().unwrap(),
            "-E",
            &format!("offset={ROOT}"),
            path,
            &format!("{}K", ROOT_LEN / 1024),
        ],
    );
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&noise(7, 440), 0).unwrap();
    file.write_all_at(&noise(8, 60_000), MIB).unwrap();
    image
}

/// An image full of old data, also where a table would be.
pub(super) fn make_target(folder: &Path, name: &str, len: u64) -> PathBuf {
    let path = folder.join(name);
    let file = File::create(&path).unwrap();
    let old = noise(5, MIB as usize);
    for at in (0..len).step_by(MIB as usize) {
        file.write_all_at(&old, at).unwrap();
    }
    path
}

fn captured(folder: &Path) -> Bench<ImageMachine> {
    make_source(folder);
    let mut bench = Bench::new(ImageMachine::new(folder), vec![disk("source", SOURCE)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench.inventory.disks.clear();
    bench
}

pub(super) fn part(image: &Path, start: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    File::open(image)
        .unwrap()
        .read_exact_at(&mut bytes, start)
        .unwrap();
    bytes
}

/// Copies a partition out of an image and checks it with e2fsck.
fn check_root(folder: &Path, image: &Path, len: u64) -> PathBuf {
    let root = folder.join("root");
    fs::write(&root, part(image, ROOT, len)).unwrap();
    run("e2fsck", &["-f", "-n", root.to_str().unwrap()]);
    root
}

pub(super) fn files_of(root: &Path, into: &Path) -> Vec<(String, Vec<u8>)> {
    fs::create_dir_all(into).unwrap();
    run(
        "debugfs",
        &[
            "-R",
            &format!("rdump / {}", into.display()),
            root.to_str().unwrap(),
        ],
    );
    let mut files: Vec<_> = fs::read_dir(into)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_restored_disk_of_the_same_size_is_the_source_in_every_used_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let target = make_target(folder.path(), "target", SOURCE);
    bench.inventory.disks = vec![disk("target", SOURCE)];
    let summary = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    assert!(summary[0].contains("SERIAL-target"), "{summary:?}");

    let source = folder.path().join("source");
    for (start, len) in [(0, MIB), (MIB, MIB), (SOURCE - MIB, MIB)] {
        assert!(
            part(&source, start, len) == part(&target, start, len),
            "byte {start}"
        );
    }
    run("sfdisk", &["--verify", target.to_str().unwrap()]);
    let esp = |image: &Path| {
        let place = format!("{}@@{ESP}", image.display());
        let out = folder.path().join("out");
        run(
            "mcopy",
            &[
                "-n",
                "-o",
                "-i",
                &place,
                "::/EFI/BOOT/BOOTX64.EFI",
                out.to_str().unwrap(),
            ],
        );
        fs::read(out).unwrap()
    };
    assert!(esp(&source) == esp(&target));
    let root = check_root(folder.path(), &target, ROOT_LEN);
    let found = files_of(&root, &folder.path().join("found"));
    let expected = files_of(
        &check_root(folder.path(), &source, ROOT_LEN),
        &folder.path().join("expected"),
    );
    assert!(found.len() > 39 && found == expected);
}

#[test]
fn a_larger_disk_is_filled_by_its_last_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let size = SOURCE + 64 * MIB;
    let target = make_target(folder.path(), "target", size);
    bench.inventory.disks = vec![disk("target", size)];
    restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();

    run("sfdisk", &["--verify", target.to_str().unwrap()]);
    let verified = run("sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verified.contains("No problems found"), "{verified}");
    let root = check_root(folder.path(), &target, size - ROOT - MIB);
    let said = run("dumpe2fs", &["-h", root.to_str().unwrap()]);
    let blocks: u64 = said
        .lines()
        .find_map(|line| line.strip_prefix("Block count:"))
        .and_then(|text| text.trim().parse().ok())
        .unwrap();
    let block: u64 = said
        .lines()
        .find_map(|line| line.strip_prefix("Block size:"))
        .and_then(|text| text.trim().parse().ok())
        .unwrap();
    assert!(
        blocks * block > ROOT_LEN + 60 * MIB,
        "{blocks} blocks of {block}"
    );
}

#[test]
fn a_second_capture_sends_no_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let first = bench.server.uploaded.load(Ordering::Relaxed);
    bench.inventory.disks = vec![disk("source", SOURCE)];
    let before = fs::read(folder.path().join("source")).unwrap();
    let summary = capture(&bench.engine(), &point("rp-2"), Default::default()).unwrap();
    assert!(first > 0 && bench.server.uploaded.load(Ordering::Relaxed) == first);
    assert!(
        summary
            .iter()
            .any(|line| line.contains("sent 0 new chunks")),
        "{summary:?}"
    );
    assert!(
        summary
            .iter()
            .any(|line| line.contains("Debian GNU/Linux 12 on lab-1")),
        "{summary:?}"
    );
    assert!(
        before == fs::read(folder.path().join("source")).unwrap(),
        "the source was changed"
    );
}

#[test]
fn a_chunk_damaged_in_the_store_is_named_and_the_disk_stays_without_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let target = make_target(folder.path(), "target", SOURCE);
    bench.inventory.disks = vec![disk("target", SOURCE)];
    let digest = bench.server.damage_one();
    let error = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap_err();
    assert_eq!(error.code, "damaged-chunk");
    assert!(
        error.reason.contains(&digest.to_string()),
        "{}",
        error.reason
    );
    assert!(part(&target, 0, 34 * 512).iter().all(|byte| *byte == 0));
}

#[test]
fn a_chunk_that_the_server_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    make_target(folder.path(), "target", SOURCE);
    bench.inventory.disks = vec![disk("target", SOURCE)];
    let digest = bench.server.any_digest();
    bench.server.forget(&digest);
    let error = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap_err();
    assert_eq!(error.code, "damaged-chunk");
    assert!(
        error.reason.contains(&digest.to_string()),
        "{}",
        error.reason
    );
}

#[test]
fn a_chunk_damaged_on_the_wire_only_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    make_target(folder.path(), "target", SOURCE);
    bench.inventory.disks = vec![disk("target", SOURCE)];
    let digest = bench.server.any_digest();
    bench.server.noisy.lock().unwrap().insert(digest);
    restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    assert!(bench.server.noisy.lock().unwrap().is_empty());
}

#[test]
fn a_disk_that_is_too_small_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let target = make_target(folder.path(), "target", SOURCE / 2);
    let before = fs::read(&target).unwrap();
    bench.inventory.disks = vec![disk("target", SOURCE / 2)];
    let error = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap_err();
    assert_eq!(error.code, "refused");
    assert!(
        error.reason.contains("no disk was touched"),
        "{}",
        error.reason
    );
    assert!(before == fs::read(&target).unwrap());
}

#[test]
fn a_job_taken_back_ends_before_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let target = make_target(folder.path(), "target", SOURCE);
    let before = fs::read(&target).unwrap();
    bench.inventory.disks = vec![disk("target", SOURCE)];
    bench.cancelled.store(true, Ordering::Relaxed);
    let error = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap_err();
    assert_eq!(error.code, "cancelled");
    assert!(before == fs::read(&target).unwrap());
}

#[test]
fn uefi_entries_are_captured_and_come_back_once_however_often_it_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    make_source(folder.path());
    let mut machine = ImageMachine::new(folder.path());
    machine.variables = Some(MemoryVariables::default());
    let mut bench = Bench::new(machine, vec![disk("source", SOURCE)]);
    bench.inventory.firmware = FirmwareKind::Uefi;
    let values = &bench.platform.variables.as_ref().unwrap().values;
    // Boot0001 is the network's, of a card; Boot0002 names the source's ESP by its GUID.
    let network = vec![1, 0, 0, 0, 4, 0, b'N', 0, 0, 0, 0x7f, 0xff, 4, 0];
    let said = run(
        "sfdisk",
        &[
            "--part-uuid",
            folder.path().join("source").to_str().unwrap(),
            "2",
        ],
    );
    let guid: uuid::Uuid = said.trim().parse().unwrap();
    let mut entry = vec![1, 0, 0, 0, 98, 0, b'd', 0, 0, 0, 4, 1, 42, 0, 2, 0, 0, 0];
    entry.extend(4096u64.to_le_bytes());
    entry.extend(73728u64.to_le_bytes());
    entry.extend(guid.to_bytes_le());
    entry.extend([2, 2, 4, 4, 52, 0]);
    entry.extend(
        "\\EFI\\debian\\grubx64.efi\0"
            .encode_utf16()
            .flat_map(u16::to_le_bytes),
    );
    entry.extend([0x7f, 0xff, 4, 0]);
    values.lock().unwrap().extend([
        ("Boot0001".to_owned(), network.clone()),
        ("Boot0002".to_owned(), entry.clone()),
        ("BootOrder".to_owned(), vec![2, 0, 1, 0]),
        ("BootCurrent".to_owned(), vec![1, 0]),
    ]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();

    // The bare machine knows the network only, under the number that the entry had.
    *values.lock().unwrap() = [
        ("Boot0002".to_owned(), network.clone()),
        ("BootOrder".to_owned(), vec![2, 0]),
        ("BootCurrent".to_owned(), vec![2, 0]),
    ]
    .into();
    make_target(folder.path(), "target", SOURCE);
    bench.inventory.disks = vec![disk("target", SOURCE)];
    for round in ["are set", "were there already"] {
        let summary = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
        let line = format!("Firmware boot entries Boot0000 \"d\" {round}.");
        assert!(summary.contains(&line), "{summary:?}");
    }
    let expected = [
        ("Boot0000".to_owned(), entry),
        ("Boot0002".to_owned(), network),
        ("BootCurrent".to_owned(), vec![2, 0]),
        ("BootOrder".to_owned(), vec![2, 0, 0, 0]),
    ];
    assert_eq!(*values.lock().unwrap(), expected.into());
}

/// Start and length of each partition in bytes, as sfdisk reads the table.
pub(super) fn partitions(image: &Path) -> Vec<(u64, u64)> {
    let dump = run("sfdisk", &["-d", image.to_str().unwrap()]);
    let number = |line: &str, key: &str| -> Option<u64> {
        let text = line.split(key).nth(1)?.trim_start().split(',').next()?;
        text.trim().parse().ok()
    };
    dump.lines()
        .filter_map(|line| Some((number(line, "start=")? * 512, number(line, "size=")? * 512)))
        .collect()
}

#[test]
fn partitions_that_grow_and_move_come_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (source, len) = (folder.path().join("source"), 72 * MIB);
    fs::write(&source, vec![0; len as usize]).unwrap();
    let file = File::options().write(true).open(&source).unwrap();
    let script = "label: gpt\\nstart=2048, size=32768\\nstart=36864, size=32768\\nstart=71680, size=40960\\n";
    let path = source.to_str().unwrap();
    run(
        "sh",
        &["-c", &format!("printf '{script}' | sfdisk -q {path}")],
    );
    let places = partitions(&source);
    assert_eq!(places.len(), 3);
    // What is between the first two is nobody's, and saved all the same.
    let between = places[0].0 + places[0].1;
    file.write_all_at(&noise(11, MIB as usize), between)
        .unwrap();
    let volume = folder.path().join("volume");
    for (number, (start, len)) in places.iter().enumerate() {
        fs::write(&volume, vec![0; *len as usize]).unwrap();
        let name = volume.to_str().unwrap();
        if number == 1 {
            run("mkntfs", &["-q", "-F", name]);
            let content = folder.path().join("content");
            fs::write(&content, noise(12, 3_000_000)).unwrap();
            run(
                "ntfscp",
                &["-q", name, content.to_str().unwrap(), "content"],
            );
        } else {
            let tree = folder.path().join(format!("tree{number}"));
            fs::create_dir(&tree).unwrap();
            for file in 0..9u64 {
                let bytes = noise(100 * number as u64 + file, 300_000);
                fs::write(tree.join(file.to_string()), bytes).unwrap();
            }
            run(
                "mke2fs",
                &["-q", "-t", "ext4", "-d", tree.to_str().unwrap(), name],
            );
        }
        file.write_all_at(&fs::read(&volume).unwrap(), *start)
            .unwrap();
    }
    let mut bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", len)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();

    let target = make_target(folder.path(), "target", 2 * len);
    bench.inventory.disks = vec![disk("target", 2 * len)];
    let choices = Choices {
        extra_space: ExtraSpace::Proportional,
        ..Choices::default()
    };
    let summary = restore(&bench.engine(), &point("rp-1"), &choices).unwrap();
    assert!(
        summary
            .iter()
            .any(|line| line.contains("Windows checks partition 2")),
        "{summary:?}"
    );
    let verified = run("sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verified.contains("No problems found"), "{verified}");
    let now = partitions(&target);
    assert!(now[1].0 > places[1].0 && now[2].0 > now[1].0, "{now:?}");
    for (number, ((start, len), (_, before))) in now.iter().zip(&places).enumerate() {
        assert!(len > before, "partition {number} grew: {now:?}");
        fs::write(&volume, part(&target, *start, *len)).unwrap();
        let name = volume.to_str().unwrap();
        if number == 1 {
            run("ntfsfix", &["-n", name]);
            let info = run("ntfsresize", &["--info", "--force", name]);
            assert!(info.contains("Current volume size"), "{info}");
            let out = folder.path().join("out");
            let get = format!("ntfscat -f -q {name} content > {}", out.display());
            run("sh", &["-c", &get]);
            assert!(fs::read(out).unwrap() == noise(12, 3_000_000));
        } else {
            run("e2fsck", &["-f", "-n", name]);
            let found = files_of(&volume, &folder.path().join(format!("found{number}")));
            let expected = (0..9u64).map(|file| {
                let bytes = noise(100 * number as u64 + file, 300_000);
                (file.to_string(), bytes)
            });
            assert!(found == expected.collect::<Vec<_>>(), "partition {number}");
        }
    }
    let moved = now[1].0 - (places[1].0 - between);
    assert!(part(&target, moved, MIB) == noise(11, MIB as usize));
}

#[test]
fn reading_everything_again_finds_nothing_wrong_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let target = make_target(folder.path(), "target", SOURCE);
    bench.inventory.disks = vec![disk("target", SOURCE)];
    let mut engine = bench.engine();
    engine.read_back = true;
    restore(&engine, &point("rp-1"), &Choices::default()).unwrap();
    check_root(folder.path(), &target, ROOT_LEN);
}

#[test]
fn a_disk_with_a_pc_table_and_logical_partitions_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let len = 64 * MIB;
    fs::write(&source, vec![0; len as usize]).unwrap();
    let path = source.to_str().unwrap();
    let table = "label: dos\\n,8M,83,*\\n,,5\\n,12M\\n,20M";
    run(
        "sh",
        &["-c", &format!("printf '{table}\\n' | sfdisk -q {path}")],
    );
    run(
        "mke2fs",
        &["-q", "-t", "ext2", "-E", "offset=1048576", path, "8M"],
    );
    let file = File::options().write(true).open(&source).unwrap();
    file.write_all_at(&noise(3, 446), 0).unwrap();
    // GRUB's core image, in the gap and in the way of the marker.
    file.write_all_at(&noise(4, (MIB - 512) as usize), 512)
        .unwrap();
    let mut bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", len)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();

    let target = make_target(folder.path(), "target", len);
    bench.inventory.disks = vec![disk("target", len)];
    restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    assert!(part(&source, 0, MIB) == part(&target, 0, MIB));
    let dump = |image: &Path| run("sfdisk", &["-d", image.to_str().unwrap()]);
    let plain = |text: String, name: &str| text.replace(name, "disk");
    assert_eq!(
        plain(dump(&target), target.to_str().unwrap()),
        plain(dump(&source), source.to_str().unwrap())
    );
    let boot = folder.path().join("boot");
    fs::write(&boot, part(&target, MIB, 8 * MIB)).unwrap();
    run("e2fsck", &["-f", "-n", boot.to_str().unwrap()]);
}
