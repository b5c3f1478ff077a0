//! C1, F1: exFAT by used clusters, and its files. Images are made by mkfs.exfat, filled and aged
//! through mount.exfat-fuse, and judged by fsck.exfat, dump.exfat and the mounted copy, none of which
//! shares code with this crate. Mounting needs root, /dev/fuse and loop devices.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;
#[path = "images/walk.rs"]
mod walk;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backup::ByteRange;
use backup::filesystem::tree::{self, TreeError};
use backup::filesystem::{Doubt, survey_volume};
use backup::manifest::FileSystemKind;
use images::{Image, Memory, assert_in_order_inside, copy_in_garbage, noise, output, run};
use proptest::prelude::{any, proptest};

const PROGS: &str = "exfatprogs";
const FUSE: &str = "exfat-fuse";
const MIB: u64 = 1 << 20;

/// An image behind a loop device, mounted until it is dropped.
struct Mounted {
    device: String,
    folder: PathBuf,
}

impl Mounted {
    fn new(image: &Path, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let image = image.to_str().unwrap();
        let device = run("mount", "losetup", &["-f", "--show", image])
            .trim()
            .to_owned();
        let mounted = Self {
            device,
            folder: folder.to_owned(),
        };
        run(
            FUSE,
            "mount.exfat-fuse",
            &[&mounted.device, folder.to_str().unwrap()],
        );
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        images::unmount(&self.folder);
        output("mount", "losetup", &["-d", &self.device]);
    }
}

/// Says why when file systems cannot be mounted here.
fn can_mount() -> bool {
    let user = run("coreutils", "id", &["-u"]);
    let reason = if user.trim() != "0" {
        "mounting needs root"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse"
    } else if !output("mount", "losetup", &["-f"]).status.success() {
        "there are no loop devices"
    } else {
        return true;
    };
    eprintln!("skipped: {reason}");
    false
}

fn format(image: &Path, size: u64, options: &[&str]) {
    let _ = fs::remove_file(image);
    images::blank(image, size);
    let mut arguments = options.to_vec();
    arguments.push(image.to_str().unwrap());
    run(PROGS, "mkfs.exfat", &arguments);
}

/// Fills a folder and ages it. The same is done to the mounted image and to a folder beside it.
fn fill(folder: &Path, scale: usize) {
    fs::create_dir_all(folder.join("DCIM/100 CANON/Ünïcødé 写真")).unwrap();
    fs::create_dir_all(folder.join("many")).unwrap();
    let path = |number: usize| folder.join(format!("DCIM/100 CANON/IMG_{number:04}.JPG"));
    for number in 0..24usize {
        let content = noise(number as u64 + 1, number * number * scale);
        fs::write(path(number), content).unwrap();
    }
    let long = "long name ".repeat(25);
    fs::write(folder.join(format!("{long}12345")), noise(100, 3 * scale)).unwrap();
    fs::write(
        folder.join("DCIM/100 CANON/Ünïcødé 写真/🦀.txt"),
        noise(101, 777),
    )
    .unwrap();
    fs::write(folder.join("empty"), b"").unwrap();
    // A folder of more than one small cluster.
    for number in 0..60u64 {
        let content = noise(200 + number, 20 + number as usize);
        fs::write(folder.join(format!("many/file number {number}")), content).unwrap();
    }
    for number in (0..24).step_by(3) {
        fs::remove_file(path(number)).unwrap();
    }
    fs::remove_file(folder.join("many/file number 7")).unwrap();
    // Two files that grow in turn, into the holes.
    for turn in 0..30u64 {
        for name in ["one", "other"] {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(folder.join(name))
                .unwrap();
            file.write_all(&noise(
                1000 + 2 * turn + u64::from(name == "one"),
                11 * scale,
            ))
            .unwrap();
        }
    }
    fs::File::options()
        .write(true)
        .open(path(23))
        .unwrap()
        .set_len(50 * scale as u64)
        .unwrap();
}

fn make(folder: &Path, size: u64, scale: usize, options: &[&str]) -> (PathBuf, PathBuf) {
    let (image, same) = (folder.join("image"), folder.join("same"));
    format(&image, size, options);
    let _ = fs::remove_dir_all(&same);
    fs::create_dir(&same).unwrap();
    fill(&same, scale);
    let mounted = Mounted::new(&image, &folder.join("mount"));
    fill(&mounted.folder, scale);
    drop(mounted);
    run(PROGS, "fsck.exfat", &["-n", image.to_str().unwrap()]);
    (image, same)
}

/// What dump.exfat says: total and free clusters.
fn clusters(image: &Path) -> (u64, u64) {
    let text = run(PROGS, "dump.exfat", &[image.to_str().unwrap()]);
    let number = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(':')
            .nth(1)
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    (number("Total Clusters"), number("Free Clusters"))
}

fn used_of(bytes: &[u8]) -> Result<Vec<ByteRange>, String> {
    survey_volume(&Memory(bytes), bytes.len() as u64)
        .used
        .map_err(|doubt| match doubt {
            Doubt::Untrusted(reason) => reason,
            Doubt::Read(error) => panic!("{error}"),
        })
}

fn survives(size: u64, scale: usize, options: &[&str]) {
    let folder = images::folder();
    let (image, same) = make(folder.path(), size, scale, options);
    let survey = survey_volume(&Image::open(&image), size);
    let volume = survey.volume.unwrap();
    assert_eq!(volume.file_system, FileSystemKind::Exfat, "{options:?}");
    let used = survey
        .used
        .unwrap_or_else(|doubt| panic!("{options:?}: {doubt}"));
    assert_in_order_inside(&used, size);
    let saved: u64 = used.iter().map(|range| range.len()).sum();
    let (total, free) = clusters(&image);
    let in_clusters = (total - free) * u64::from(volume.block_size);
    let bytes = fs::read(&image).unwrap();
    let sector = 1u64 << bytes[108];
    let heap = u64::from(u32::from_le_bytes(bytes[88..92].try_into().unwrap())) * sector;
    assert_eq!(saved, heap + in_clusters, "{options:?}");

    let files = walk::of_folder(&same);
    walk::assert_extents_are_files(&bytes, &survey.extents, &files);
    for extent in &survey.extents {
        assert!(
            used.iter().any(|range| range.contains(extent.range)),
            "{extent:?}"
        );
    }

    let copy = folder.path().join("copy");
    copy_in_garbage(&image, &copy, size, &used);
    run(PROGS, "fsck.exfat", &["-n", copy.to_str().unwrap()]);
    let mounted = Mounted::new(&copy, &folder.path().join("mount"));
    assert!(walk::of_folder(&mounted.folder) == files, "{options:?}");
    drop(mounted);

    let mounted = Mounted::new(&image, &folder.path().join("mount"));
    let tree = tree::open(Arc::new(Image::open(&image)), size).unwrap();
    assert!(tree.ignores_case());
    let found = walk::all(tree.as_ref());
    for (name, found) in &found {
        let expected = fs::metadata(mounted.folder.join(name)).unwrap();
        assert_eq!(found.modified.unwrap().seconds, expected.mtime(), "{name}");
    }
    let found: BTreeMap<_, _> = found
        .into_iter()
        .map(|(name, found)| (name, found.content))
        .collect();
    assert!(found == files, "{options:?}");
}

#[test]
fn exfat_comes_back_with_any_size_of_clusters() {
    if !can_mount() {
        return;
    }
    for (size, scale, options) in [
        (8 * MIB, 200, &["-c", "512"][..]),
        (12 * MIB, 700, &["-c", "1K"]),
        (16 * MIB, 1111, &["-c", "4K"]),
        (32 * MIB, 1111, &["-c", "32K", "-b", "64K"]),
        (64 * MIB, 1111, &["-c", "128K", "--pack-bitmap"]),
        (160 * MIB, 20, &["-c", "1M"]),
    ] {
        survives(size, scale, options);
    }
}

#[test]
fn an_empty_volume_is_its_metadata_and_has_its_label() {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 64 * MIB, &["-L", "Päckchen"]);
    let survey = survey_volume(&Image::open(&image), 64 * MIB);
    let volume = survey.volume.unwrap();
    assert_eq!(volume.label.as_deref(), Some("Päckchen"));
    let (total, free) = clusters(&image);
    let saved: u64 = survey.used.unwrap().iter().map(|range| range.len()).sum();
    assert!(saved >= (total - free) * u64::from(volume.block_size) && saved < 4 * MIB);
    assert_eq!(survey.extents, []);
    let copy = folder.path().join("copy");
    let used = survey_volume(&Image::open(&image), 64 * MIB).used.unwrap();
    copy_in_garbage(&image, &copy, 64 * MIB, &used);
    run(PROGS, "fsck.exfat", &["-n", copy.to_str().unwrap()]);
    let tree = tree::open(Arc::new(Image::open(&image)), 64 * MIB).unwrap();
    assert!(walk::all(tree.as_ref()).is_empty());
    let mut buffer = [0];
    let root = tree.read(tree.root(), 0, &mut buffer);
    assert!(matches!(root, Err(TreeError::NotFound(_))), "{root:?}");
}

/// Where things are in an image.
struct Places {
    cluster: usize,
    heap: usize,
    fat: usize,
    root: usize,
}

impl Places {
    fn of(bytes: &[u8]) -> Self {
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let (sector, cluster) = (1 << bytes[108], 1 << (bytes[108] + bytes[109]));
        let heap = field(88) * sector;
        Self {
            cluster,
            heap,
            fat: field(80) * sector,
            root: heap + (field(96) - 2) * cluster,
        }
    }

    fn place(&self, cluster: u32) -> usize {
        self.heap + (cluster as usize - 2) * self.cluster
    }

    /// The entry of a type in the root directory and the cluster that it names.
    fn entry(&self, bytes: &[u8], kind: u8) -> (usize, u32) {
        let at = (self.root..)
            .step_by(32)
            .find(|at| bytes[*at] == kind)
            .unwrap();
        (
            at,
            u32::from_le_bytes(bytes[at + 20..at + 24].try_into().unwrap()),
        )
    }
}

/// Writes the right checksum into the entry set at `at` (§6.3.3).
fn sign(bytes: &mut [u8], at: usize) {
    let len = 32 * (1 + usize::from(bytes[at + 1]));
    let sum = (0..len)
        .filter(|byte| !matches!(byte, 2 | 3))
        .fold(0u16, |sum, byte| {
            sum.rotate_right(1)
                .wrapping_add(u16::from(bytes[at + byte]))
        });
    bytes[at + 2..at + 4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn what_does_not_fit_is_in_doubt() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let (image, _) = make(folder.path(), 8 * MIB, 100, &["-c", "1K", "-b", "64K"]);
    let good = fs::read(&image).unwrap();
    used_of(&good).unwrap();
    let places = Places::of(&good);
    let (bitmap_entry, bitmap) = places.entry(&good, 0x81);
    let (_, up_case) = places.entry(&good, 0x82);
    let (file, _) = places.entry(&good, 0x85);
    let stream = places.entry(&good, 0xc0).0;
    let first_of_file = u32::from_le_bytes(good[stream + 20..stream + 24].try_into().unwrap());
    let bit = first_of_file as usize - 2;
    let bitmap = places.place(bitmap);
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let changes: [(&str, Change<'_>); 13] = [
        ("cleanly", &|bytes| bytes[106] |= 2),
        ("errors", &|bytes| bytes[106] |= 4),
        ("in use", &|bytes| bytes[112] = 101),
        ("TexFAT", &|bytes| bytes[110] = 2),
        ("checksum", &|bytes| bytes[130] ^= 1),
        ("checksum", &|bytes| bytes[12 * 512 + 700] ^= 1),
        ("its place has", &|bytes| bytes.truncate(bytes.len() - 512)),
        ("TexFAT", &|bytes| bytes[bitmap_entry + 1] |= 1),
        ("no allocation bitmap", &|bytes| bytes[bitmap_entry] = 0x01),
        ("up-case", &|bytes| bytes[places.place(up_case) + 100] ^= 1),
        ("and free", &|bytes| {
            bytes[bitmap + bit / 8] &= !(1 << (bit % 8))
        }),
        ("entry set", &|bytes| bytes[file + 8] ^= 1),
        ("unknown directory entry", &|bytes| bytes[file] = 0x86),
    ];
    for (reason, change) in changes {
        let mut bytes = good.clone();
        change(&mut bytes);
        let doubt = used_of(&bytes).unwrap_err();
        assert!(doubt.contains(reason), "{reason}: {doubt}");
    }
    // Two owners of a cluster: the root directory's, with a checksum that fits.
    let mut bytes = good.clone();
    bytes.copy_within(96..100, stream + 20);
    bytes[stream + 1] |= 2;
    sign(&mut bytes, file);
    assert!(used_of(&bytes).unwrap_err().contains("twice"));
    // A root directory without end.
    let mut bytes = good.clone();
    let root = u32::from_le_bytes(bytes[96..100].try_into().unwrap()) as usize;
    bytes.copy_within(96..100, places.fat + root * 4);
    assert!(used_of(&bytes).unwrap_err().contains("loop"));
    // Bits set too much cost space only.
    let mut bytes = good.clone();
    let free = (bitmap..).find(|at| bytes[*at] == 0).unwrap();
    bytes[free] = 1;
    let (before, after) = (used_of(&good).unwrap(), used_of(&bytes).unwrap());
    let sum = |ranges: &[ByteRange]| ranges.iter().map(|range| range.len()).sum::<u64>();
    assert_eq!(sum(&after), sum(&before) + 1024);
}

#[test]
fn bytes_that_were_never_written_read_as_zeros_and_times_know_their_zone() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 8 * MIB, &["-c", "1K"]);
    let mounted = Mounted::new(&image, &folder.path().join("mount"));
    fs::write(mounted.folder.join("file"), noise(1, 10_000)).unwrap();
    drop(mounted);
    let mut bytes = fs::read(&image).unwrap();
    let places = Places::of(&bytes);
    let (file, stream) = (places.entry(&bytes, 0x85).0, places.entry(&bytes, 0xc0).0);
    bytes[stream + 8..stream + 16].copy_from_slice(&3000u64.to_le_bytes());
    // 2024-02-29 12:34:56.5, an hour and a half west of UTC (-6 quarters of an hour).
    let (date, time) = (44u16 << 9 | 2 << 5 | 29, 12u16 << 11 | 34 << 5 | 28);
    bytes[file + 12..file + 14].copy_from_slice(&time.to_le_bytes());
    bytes[file + 14..file + 16].copy_from_slice(&date.to_le_bytes());
    (bytes[file + 21], bytes[file + 23]) = (50, 0x80 | 0x7a);
    sign(&mut bytes, file);
    let survey = survey_volume(&Memory(&bytes), 8 * MIB);
    assert_eq!(survey.extents.len(), 1);
    assert_eq!(survey.extents[0].range.len(), 3072);
    let tree = tree::open(Arc::new(walk::Owned(bytes)), 8 * MIB).unwrap();
    let found = walk::all(tree.as_ref());
    let mut expected = noise(1, 10_000);
    expected[3000..].fill(0);
    assert!(found["file"].content.as_ref() == Some(&expected));
    let modified = found["file"].modified.unwrap();
    // `date -ud '2024-02-29 14:04:56' +%s`.
    assert_eq!(modified.seconds, 1_709_215_496);
    assert_eq!(modified.nanoseconds, 500_000_000);
}

#[test]
fn folders_that_lead_to_themselves_are_damaged() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 8 * MIB, &["-c", "1K"]);
    let mounted = Mounted::new(&image, &folder.path().join("mount"));
    fs::create_dir_all(mounted.folder.join("a/b")).unwrap();
    fs::write(mounted.folder.join("file"), b"content").unwrap();
    drop(mounted);
    let mut bytes = fs::read(&image).unwrap();
    let good = tree::open(Arc::new(walk::Owned(bytes.clone())), 8 * MIB).unwrap();
    let found = walk::all(good.as_ref());
    let (a, b) = (
        found["a"].node.number as usize & !31,
        found["a/b"].node.number as usize & !31,
    );
    bytes.copy_within(a + 32..a + 64, b + 32);
    bytes.copy_within(a + 4..a + 32, b + 4);
    // The name's length and hash are those of `a`, which is as long as `b`.
    sign(&mut bytes, b);
    assert!(used_of(&bytes).unwrap_err().contains("twice"));
    let tree = tree::open(Arc::new(walk::Owned(bytes)), 8 * MIB).unwrap();
    let result = tree.entries(found["a"].node, &mut |_| Ok(()));
    assert!(matches!(result, Err(TreeError::Damaged(_))), "{result:?}");
    let mut names = Vec::new();
    tree.entries(tree.root(), &mut |entry| {
        names.push(String::from_utf8(entry.name).unwrap());
        Ok(())
    })
    .unwrap();
    assert_eq!(names, ["a", "file"]);
    let mut buffer = [0; 20];
    assert_eq!(tree.read(found["file"].node, 0, &mut buffer), Ok(7));
    assert_eq!(&buffer[..7], b"content");
}

/// What the tool sees of an image, or nothing when it does not mount.
fn seen_by_the_tool(folder: &Path, bytes: &[u8]) -> Option<BTreeMap<String, Option<Vec<u8>>>> {
    let image = folder.join("damaged");
    fs::write(&image, bytes).unwrap();
    let place = folder.join("seen");
    fs::create_dir_all(&place).unwrap();
    let device = run(
        "mount",
        "losetup",
        &["-f", "--show", image.to_str().unwrap()],
    );
    let mounted = Mounted {
        device: device.trim().to_owned(),
        folder: place.clone(),
    };
    let arguments = ["-o", "ro", &mounted.device, place.to_str().unwrap()];
    let status = output(FUSE, "mount.exfat-fuse", &arguments).status;
    status.success().then(|| walk::of_folder(&place))
}

#[test]
fn random_damage_never_panics_and_never_loses_a_file_that_the_tool_still_sees() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let size = 4 * MIB;
    let (image, _) = make(folder.path(), size, 30, &["-c", "1K", "-b", "64K"]);
    let good = fs::read(&image).unwrap();
    let places = Places::of(&good);
    let folders = walk::all(
        tree::open(Arc::new(walk::Owned(good.clone())), size)
            .unwrap()
            .as_ref(),
    );
    // Folders' entries lie where the nodes of what is in them are.
    let mut metadata: Vec<usize> = folders
        .values()
        .map(|found| found.node.number as usize & !31)
        .collect();
    metadata.extend([places.root, places.root + 32, places.root + 64, places.heap]);
    let used_before = used_of(&good).unwrap();
    let bitmap_len = (places.heap..places.heap + 512)
        .rposition(|at| good[at] != 0)
        .unwrap();
    let judged = AtomicU32::new(0);
    let config = proptest::test_runner::Config::with_cases(200);
    proptest!(config, |(flips in proptest::collection::vec((0u8..5, any::<u32>(), 0u8..8), 1..4))| {
        let mut damaged = good.clone();
        for (kind, place, bit) in flips {
            let place = place as usize;
            let at = match kind {
                0 => place % (24 * 512),
                1 => places.fat + place % 8192,
                2 => places.heap + place % bitmap_len,
                _ => metadata[place % metadata.len()] + (place / 64) % 96,
            };
            damaged[at] ^= 1 << bit;
        }
        let survey = survey_volume(&Memory(&damaged), size);
        if let Ok(used) = &survey.used {
            assert_in_order_inside(used, size);
            // Mounting takes its time: all that lack something, and a few of the others.
            let whole = used_before
                .iter()
                .all(|before| used.iter().any(|range| range.contains(*before)));
            if !whole || judged.fetch_add(1, Ordering::Relaxed) < 10 {
                let mut garbage = vec![0xa5; damaged.len()];
                for range in used {
                    let range = range.start() as usize..range.end() as usize;
                    garbage[range.clone()].copy_from_slice(&damaged[range]);
                }
                let before = seen_by_the_tool(folder.path(), &damaged);
                assert!(before == seen_by_the_tool(folder.path(), &garbage));
            }
        }
        // The tree may find damage, and ends.
        if let Ok(tree) = tree::open(Arc::new(walk::Owned(damaged)), size) {
            walk::visit(tree.as_ref(), tree.root(), 0);
        }
    });
    assert!(judged.into_inner() > 5);
}
