//! C1: Btrfs by used blocks. Images are made by mkfs.btrfs, filled and compared through the kernel, and
//! judged by `btrfs check` and scrub, none of which shares code with this crate. Filling needs root and
//! loop mounts; without them these tests say so and are skipped.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::ByteRange;
use backup::filesystem::tree::{self, FileTree, NodeId, NodeKind};
use backup::filesystem::{Doubt, Survey, survey_volume};
use backup::manifest::FileSystemKind;
use images::{Image, Memory, assert_in_order_inside, copy_in_garbage, noise, output, run};
use proptest::prelude::{any, proptest};

const PACKAGE: &str = "btrfs-progs";
const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Whether the kernel mounts Btrfs for this user; if not, says why the test is skipped.
fn can_mount() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let known = fs::read_to_string("/proc/filesystems")
        .unwrap()
        .contains("btrfs");
    if !root || !known {
        eprintln!("skipped: mounting Btrfs needs root ({root}) and a kernel that has it ({known})");
    }
    root && known
}

/// A mounted image; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, options: &str) -> Self {
        let place = image.with_extension("mount");
        fs::create_dir_all(&place).unwrap();
        run(
            "mount",
            "mount",
            &["-o", options, text(image), text(&place)],
        );
        Self(place)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        images::unmount(&self.0);
    }
}

fn make(image: &Path, size: u64, options: &[&str]) {
    let _ = fs::remove_file(image);
    images::blank(image, size);
    let mut arguments = vec!["-q"];
    arguments.extend_from_slice(options);
    arguments.push(text(image));
    run(PACKAGE, "mkfs.btrfs", &arguments);
}

/// Fills a mounted file system with what real ones have.
fn fill(top: &Path, scale: usize) {
    fs::create_dir_all(top.join("deep/er")).unwrap();
    for number in 0..40usize {
        let len = number * number * 97 % 60_000 * scale;
        fs::write(top.join(format!("file{number}")), noise(number as u64, len)).unwrap();
    }
    for number in 0..300 {
        fs::write(
            top.join(format!("deep/er/name-{number:04}")),
            vec![b'x'; number],
        )
        .unwrap();
    }
    for subvolume in ["sub", "sub/nested"] {
        let place = top.join(subvolume);
        run(
            PACKAGE,
            "btrfs",
            &["-q", "subvolume", "create", text(&place)],
        );
        fs::write(place.join("inside"), noise(3, 70_000)).unwrap();
    }
    let (sub, snapshot) = (top.join("sub"), top.join("snapshot"));
    run(
        PACKAGE,
        "btrfs",
        &["-q", "subvolume", "snapshot", text(&sub), text(&snapshot)],
    );
    fs::write(sub.join("after"), noise(4, 30_000)).unwrap();
    let large = top.join("large");
    fs::write(&large, noise(99, scale << 20)).unwrap();
    run(
        "coreutils",
        "cp",
        &["--reflink=always", text(&large), text(&top.join("reflink"))],
    );
    run(
        "util-linux",
        "fallocate",
        &["-l", "300000", text(&top.join("reserved"))],
    );
    let holes = fs::File::create(top.join("holes")).unwrap();
    holes.write_all_at(b"end", 2_000_000).unwrap();
    std::os::unix::fs::symlink("file7", top.join("link")).unwrap();
    run(
        "coreutils",
        "mknod",
        &[text(&top.join("device")), "c", "300", "70000"],
    );
    for method in ["zlib", "lzo", "zstd"] {
        let path = top.join(method);
        fs::File::create(&path).unwrap();
        run(
            PACKAGE,
            "btrfs",
            &["property", "set", text(&path), "compression", method],
        );
        let text: String = (0..40_000)
            .map(|line| format!("line {line} of it\n"))
            .collect();
        fs::write(&path, text).unwrap();
    }
    run("coreutils", "sync", &["-f", text(top)]);
    for number in (0..40).step_by(3) {
        fs::remove_file(top.join(format!("file{number}"))).unwrap();
    }
    fs::write(top.join("late"), noise(7, 400_000)).unwrap();
}

/// Everything under a mounted folder in order: name, mode, owner, time, and content or target.
fn listing(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![top.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // What a snapshot shows of a subvolume in it: an empty folder with the time of the look.
            if path.ends_with("snapshot/nested") {
                assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
                continue;
            }
            let data = fs::symlink_metadata(&path).unwrap();
            let content = if data.is_dir() {
                open.push(path.clone());
                String::new()
            } else if data.is_symlink() {
                fs::read_link(&path).unwrap().to_str().unwrap().to_owned()
            } else if data.is_file() {
                backup::Digest::of(&fs::read(&path).unwrap()).to_string()
            } else {
                "300 70000".to_owned()
            };
            lines.push(format!(
                "{:?} {:o} {}:{} {}.{} {content}",
                path.strip_prefix(top).unwrap(),
                data.mode() & 0o7777,
                data.uid(),
                data.gid(),
                data.mtime(),
                data.mtime_nsec(),
            ));
        }
    }
    lines.sort();
    lines
}

fn survey(image: &Path) -> (Survey, u64) {
    let size = fs::metadata(image).unwrap().len();
    (survey_volume(&Image::open(image), size), size)
}

fn doubt_of(image: &Path) -> String {
    match survey(image).0.used {
        Err(Doubt::Untrusted(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// The same listing by this crate alone.
fn listing_by_tree(image: &Path) -> Vec<String> {
    let size = fs::metadata(image).unwrap().len();
    let files = tree::open(Arc::new(Image::open(image)), size).unwrap();
    let mut lines = Vec::new();
    list(files.as_ref(), files.root(), "", &mut lines);
    lines.sort();
    lines
}

fn list(files: &dyn FileTree, folder: NodeId, path: &str, lines: &mut Vec<String>) {
    let mut entries = Vec::new();
    let mut keep = |entry| {
        entries.push(entry);
        Ok(())
    };
    files.entries(folder, &mut keep).unwrap();
    for entry in entries {
        let path = format!("{path}{}", String::from_utf8(entry.name).unwrap());
        let node = files.node(entry.node).unwrap();
        let content = match node.kind {
            NodeKind::File => {
                // In odd pieces, so that extents are met in their middle.
                let (mut content, mut piece) = (Vec::new(), vec![0; 50_001]);
                loop {
                    let len = files
                        .read(entry.node, content.len() as u64, &mut piece)
                        .unwrap();
                    content.extend_from_slice(&piece[..len]);
                    if len < piece.len() {
                        break backup::Digest::of(&content).to_string();
                    }
                }
            }
            NodeKind::SymbolicLink => {
                let target = files.link_target(entry.node).unwrap();
                String::from_utf8(target).unwrap()
            }
            NodeKind::Directory => {
                list(files, entry.node, &format!("{path}/"), lines);
                String::new()
            }
            NodeKind::CharacterDevice { major, minor } => format!("{major} {minor}"),
            other => panic!("{other:?}"),
        };
        if path == "snapshot/nested" {
            continue;
        }
        let time = node.modified.unwrap();
        lines.push(format!(
            "{path:?} {:o} {}:{} {}.{} {content}",
            node.mode.unwrap(),
            node.uid.unwrap(),
            node.gid.unwrap(),
            time.seconds,
            time.nanoseconds,
        ));
    }
}

/// Copied by used ranges into garbage: clean with all data checksums, no error in a scrub, the same files.
fn survives(image: &Path, expected: &[String]) -> Survey {
    let (survey, size) = survey(image);
    let used = survey
        .used
        .clone()
        .unwrap_or_else(|doubt| panic!("{doubt}"));
    assert_in_order_inside(&used, size);
    assert_eq!(
        survey.volume.as_ref().unwrap().file_system,
        FileSystemKind::Btrfs
    );
    let copy = image.with_extension("copy");
    copy_in_garbage(image, &copy, size, &used);
    let check = output(
        PACKAGE,
        "btrfs",
        &["check", "--check-data-csum", text(&copy)],
    );
    let said = String::from_utf8_lossy(&check.stderr).to_lowercase();
    assert!(
        check.status.success() && !said.contains("error:"),
        "{check:?}"
    );
    let mount = Mount::new(&copy, "loop,ro");
    for (found, expected) in listing(&mount.0).iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(listing(&mount.0).len(), expected.len());
    let scrub = run(
        PACKAGE,
        "btrfs",
        &["scrub", "start", "-B", "-r", text(&mount.0)],
    );
    assert!(scrub.contains("no errors found"), "{scrub}");
    survey
}

fn used_len(used: &[ByteRange]) -> u64 {
    used.iter().map(|range| range.len()).sum()
}

fn all_survive(size: u64, scale: usize, sets: &[&[&str]]) {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let image = folder.path().join("image");
    for options in sets {
        eprintln!("{options:?}");
        make(&image, size, options);
        let mount = Mount::new(&image, "loop");
        fill(&mount.0, scale);
        let expected = listing(&mount.0);
        drop(mount);
        let survey = survives(&image, &expected);
        for (found, expected) in listing_by_tree(&image).iter().zip(&expected) {
            assert_eq!(found, expected);
        }
        assert_eq!(listing_by_tree(&image).len(), expected.len());
        // Not everything was kept: the test would show nothing.
        assert!(used_len(&survey.used.unwrap()) < size * 3 / 4);
        assert!(!survey.extents.is_empty());
    }
}

#[test]
fn it_comes_back_from_its_used_blocks() {
    all_survive(
        160 * MIB,
        2,
        &[
            &[],
            &["-m", "single", "-n", "4096", "-O", "^no-holes,^extref"],
            &["-M", "-n", "4096", "-R", "^free-space-tree"],
            &["-n", "65536"],
        ],
    );
}

#[test]
fn a_newly_made_one_has_in_use_what_the_superblock_says() {
    let folder = images::folder();
    let image = folder.path().join("image");
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), noise(5, 500_000)).unwrap();
    for metadata in ["single", "dup"] {
        make(&image, 128 * MIB, &["-m", metadata, "-r", text(&tree)]);
        let (survey, size) = survey(&image);
        let used = survey.used.unwrap();
        assert_in_order_inside(&used, size);
        let dump = run(
            PACKAGE,
            "btrfs",
            &[
                "inspect-internal",
                "dump-tree",
                "-t",
                "extent",
                text(&image),
            ],
        );
        let data: u64 = numbers(&dump, "EXTENT_ITEM ").iter().sum();
        let blocks = dump.matches(" METADATA_ITEM ").count() as u64 * 16384;
        let copies = if metadata == "dup" { 2 } else { 1 };
        // The first MiB, and the copy of the superblock at 64 MiB, which is in no extent here.
        assert_eq!(
            used_len(&used),
            MIB + 4096 + data + copies * blocks,
            "{metadata}"
        );
        let whole = used
            .iter()
            .any(|range| range.contains(ByteRange::between(64 * MIB, 64 * MIB + 4096)));
        assert!(whole && data >= 500_000);
        assert!(
            survey
                .extents
                .iter()
                .any(|extent| extent.file_offset == 0 && extent.range.len() >= 500_000)
        );
    }
}

/// The numbers that follow a word.
fn numbers(text: &str, word: &str) -> Vec<u64> {
    let number = |rest: &str| {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    text.split(word).skip(1).filter_map(number).collect()
}

#[test]
fn more_than_one_device_is_in_doubt() {
    let folder = images::folder();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    images::blank(&one, 160 * MIB);
    make(
        &other,
        160 * MIB,
        &["-f", "-d", "raid1", "-m", "raid1", text(&one)],
    );
    for image in [&one, &other] {
        let doubt = doubt_of(image);
        assert!(doubt.contains("2 devices"), "{doubt}");
    }
}

#[test]
fn other_kinds_of_checksum_are_in_doubt() {
    let folder = images::folder();
    let image = folder.path().join("image");
    for kind in ["xxhash", "sha256", "blake2"] {
        make(&image, 128 * MIB, &["--csum", kind]);
        let doubt = doubt_of(&image);
        assert!(
            doubt.contains("checksum type") && doubt.contains(kind),
            "{doubt}"
        );
    }
}

#[test]
fn a_log_that_must_be_replayed_is_in_doubt() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
    make(&image, 128 * MIB, &[]);
    let mount = Mount::new(&image, "loop,commit=300");
    fs::write(mount.0.join("file"), noise(1, 50_000)).unwrap();
    run("coreutils", "sync", &["-f", text(&mount.0)]);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(mount.0.join("file"))
        .unwrap();
    file.write_all_at(&noise(2, 30_000), 10_000).unwrap();
    file.sync_all().unwrap();
    fs::copy(&image, &copy).unwrap();
    drop(file);
    drop(mount);
    let doubt = doubt_of(&copy);
    assert!(doubt.contains("log tree"), "{doubt}");
    // Unmounted, the same volume is understood.
    assert!(survey(&image).0.used.is_ok());
}

#[test]
fn random_damage_never_panics_and_never_leaves_the_volume() {
    let folder = images::folder();
    let image = folder.path().join("image");
    make(&image, 128 * MIB, &["-m", "single"]);
    let (survey, size) = survey(&image);
    let used = survey.used.unwrap();
    let whole = std::cell::RefCell::new(fs::read(&image).unwrap());
    let config = proptest::test_runner::Config::with_cases(100);
    proptest!(config, |(flips in proptest::collection::vec(
        (any::<u64>(), 1u8..), 1..8))| {
        let places: Vec<usize> = flips.iter().map(|(place, _)| {
            let range = used[(place % used.len() as u64) as usize];
            let range = if range.start() == 0 { ByteRange::between(65536, 69632) } else { range };
            (range.start() + (place >> 8) % range.len()) as usize
        }).collect();
        let mut bytes = whole.borrow_mut();
        for (place, (_, value)) in places.iter().zip(&flips) {
            bytes[*place] ^= value;
        }
        let survey = survey_volume(&Memory(&bytes), size);
        for (place, (_, value)) in places.iter().zip(&flips) {
            bytes[*place] ^= value;
        }
        if let Ok(found) = &survey.used {
            assert_eq!(found, &used);
        }
    });
}
