//! C1, F1: FAT12/16/32 by used clusters, and their files. Images are made by mkfs.fat, filled and aged by mtools, and
//! judged by fsck.fat and mtools, none of which shares code with this crate.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;
#[path = "images/walk.rs"]
mod walk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::ByteRange;
use backup::filesystem::tree::{self, TreeError};
use backup::filesystem::{Doubt, survey_volume};
use backup::manifest::FileSystemKind;
use images::{Image, Memory, assert_in_order_inside, copy_in_garbage, noise, output, run};
use proptest::prelude::{Strategy, any, proptest};
use proptest::strategy::ValueTree;

const MKFS: &str = "dosfstools";
const MTOOLS: &str = "mtools";
const MIB: u64 = 1 << 20;

/// An image with files in it, some of them deleted again and others written into the holes.
fn make(folder: &Path, size: u64, options: &[&str]) -> PathBuf {
    let image = folder.join("image");
    let _ = fs::remove_file(&image);
    images::blank(&image, size);
    let path = image.to_str().unwrap();
    let mut arguments = vec!["-n", "ESP", "-i", "1234abcd"];
    arguments.extend_from_slice(options);
    arguments.push(path);
    run(MKFS, "mkfs.fat", &arguments);
    let tree = folder.join("tree");
    if !tree.exists() {
        fs::create_dir_all(tree.join("EFI/debian")).unwrap();
        for number in 0..20usize {
            let bytes = noise(number as u64, number * number * 97);
            fs::write(tree.join(format!("EFI/debian/file{number}.efi")), bytes).unwrap();
        }
        fs::write(tree.join("a long name with spaces.txt"), noise(105, 70_000)).unwrap();
        // Names that are kept as short ones, as long ones, and with pairs of surrogates.
        for (number, name) in [
            "UPPER.TXT",
            "lower.txt",
            "Mixed.Txt",
            "Ünïcødé 写真 🦀",
            &"x".repeat(200),
        ]
        .iter()
        .enumerate()
        {
            let bytes = noise(300 + number as u64, 1000 + number);
            fs::write(tree.join("EFI").join(name), bytes).unwrap();
        }
        fs::write(tree.join("EFI/empty"), b"").unwrap();
        fs::write(folder.join("late"), noise(106, 90_000)).unwrap();
    }
    let (efi, long) = (tree.join("EFI"), tree.join("a long name with spaces.txt"));
    let (efi, long) = (efi.to_str().unwrap(), long.to_str().unwrap());
    run(MTOOLS, "mcopy", &["-i", path, "-s", efi, long, "::/"]);
    for number in (0..20).step_by(2) {
        let name = format!("::/EFI/debian/file{number}.efi");
        run(MTOOLS, "mdel", &["-i", path, &name]);
    }
    forget_next_free(&image);
    let late = folder.join("late");
    run(
        MTOOLS,
        "mcopy",
        &["-i", path, late.to_str().unwrap(), "::/late"],
    );
    image
}

/// Makes mtools look for free clusters from the first one on also on FAT32, whose FSInfo sector has a
/// hint behind the last one that was taken (§5).
fn forget_next_free(image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    let field = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    if field(22) == 0 {
        let hint = field(48) * field(11) + 492;
        bytes[hint..hint + 4].fill(0xff);
        fs::write(image, bytes).unwrap();
    }
}

fn dump(folder: &Path, image: &Path, name: &str) -> PathBuf {
    let place = folder.join(name);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir(&place).unwrap();
    let (image, to) = (image.to_str().unwrap(), place.to_str().unwrap());
    // FAT keeps local time.
    let arguments = ["TZ=UTC", "mcopy", "-i", image, "-s", "-n", "-m", "::/*", to];
    run(MTOOLS, "env", &arguments);
    place
}

/// `N files, used/total clusters`, the last line of fsck.fat.
fn used_clusters(image: &Path) -> u64 {
    let text = run(MKFS, "fsck.fat", &["-n", image.to_str().unwrap()]);
    let line = text.lines().last().unwrap();
    let count = line.split(", ").nth(1).unwrap().split('/').next().unwrap();
    count.parse().unwrap()
}

fn survives(folder: &Path, size: u64, kind: FileSystemKind, options: &[&str]) {
    let image = make(folder, size, options);
    let size = fs::metadata(&image).unwrap().len();
    let survey = survey_volume(&Image::open(&image), size);
    let volume = survey.volume.unwrap();
    assert_eq!(volume.file_system, kind, "{options:?}");
    assert_eq!(volume.label.as_deref(), Some("ESP"));
    assert_eq!(volume.uuid.as_deref(), Some("1234-ABCD"));
    let used = survey
        .used
        .unwrap_or_else(|doubt| panic!("{options:?}: {doubt}"));
    assert_in_order_inside(&used, size);
    let saved: u64 = used.iter().map(|range| range.len()).sum();
    assert_eq!(volume.used, Some(saved), "{options:?}");
    // What is not in clusters is small; what is must be what fsck.fat counts.
    let clusters = used_clusters(&image) * u64::from(volume.block_size);
    let metadata = saved.checked_sub(clusters).unwrap();
    assert!(metadata < size / 16 + 64 * 1024, "{options:?} {metadata}");
    assert!(saved < size / 2, "{options:?}");
    let copy = folder.join("copy");
    copy_in_garbage(&image, &copy, size, &used);
    run(MKFS, "fsck.fat", &["-n", copy.to_str().unwrap()]);
    let (one, other) = (dump(folder, &image, "one"), dump(folder, &copy, "other"));
    assert!(one.join("EFI/debian/file7.efi").exists() && one.join("late").exists());
    run(
        "diffutils",
        "diff",
        &["-r", one.to_str().unwrap(), other.to_str().unwrap()],
    );
    let files = walk::of_folder(&one);
    let bytes = fs::read(&image).unwrap();
    walk::assert_extents_are_files(&bytes, &survey.extents, &files);
    for extent in &survey.extents {
        assert!(
            used.iter().any(|range| range.contains(extent.range)),
            "{extent:?}"
        );
    }
    // The late file filled the holes.
    assert!(survey.extents.iter().any(|extent| extent.file_offset > 0));
    let tree = tree::open(Arc::new(Image::open(&image)), size).unwrap();
    assert!(tree.ignores_case());
    let found = walk::all(tree.as_ref());
    for (name, found) in found.iter().filter(|(_, found)| found.content.is_some()) {
        let expected = fs::metadata(one.join(name)).unwrap().mtime();
        assert_eq!(found.modified.unwrap().seconds, expected, "{name}");
    }
    let found: BTreeMap<_, _> = found
        .into_iter()
        .map(|(name, found)| (name, found.content))
        .collect();
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        files.keys().collect::<Vec<_>>()
    );
    assert!(found == files, "{options:?}");
}

#[test]
fn fat12_comes_back_from_its_used_clusters() {
    let folder = images::folder();
    for options in [
        &["-F", "12"][..],
        &["-F", "12", "-s", "8"],
        &["-F", "12", "-f", "1", "-r", "112"],
        &["-F", "12", "-S", "1024", "-R", "4"],
    ] {
        survives(folder.path(), 4 * MIB, FileSystemKind::Fat12, options);
    }
}

#[test]
fn fat16_comes_back_from_its_used_clusters() {
    let folder = images::folder();
    for options in [
        &["-F", "16"][..],
        &["-F", "16", "-s", "1"],
        &["-F", "16", "-s", "4", "-f", "1"],
        &["-F", "16", "-S", "2048", "-s", "1"],
    ] {
        survives(folder.path(), 30 * MIB, FileSystemKind::Fat16, options);
    }
}

#[test]
fn fat32_comes_back_from_its_used_clusters() {
    let folder = images::folder();
    for (size, options) in [
        (36 * MIB, &["-F", "32", "-s", "1"][..]),
        (64 * MIB, &["-F", "32"]),
        (80 * MIB, &["-F", "32", "-s", "2", "-f", "1"]),
        (300 * MIB, &["-F", "32", "-S", "4096"]),
    ] {
        survives(folder.path(), size, FileSystemKind::Fat32, options);
    }
}

#[test]
fn a_small_fat32_as_installers_make_esps_is_no_fat16() {
    // Fewer clusters than Microsoft's rule asks for; mtools takes it for FAT16.
    let folder = images::folder();
    let image = folder.path().join("image");
    images::blank(&image, 33 * MIB);
    let path = image.to_str().unwrap();
    run(MKFS, "mkfs.fat", &["-F", "32", "-s", "8", path]);
    let survey = survey_volume(&Image::open(&image), 33 * MIB);
    assert_eq!(survey.volume.unwrap().file_system, FileSystemKind::Fat32);
    let copy = folder.path().join("copy");
    copy_in_garbage(&image, &copy, 33 * MIB, &survey.used.unwrap());
    run(MKFS, "fsck.fat", &["-n", copy.to_str().unwrap()]);
}

#[test]
fn bad_clusters_are_not_read() {
    let folder = images::folder();
    let image = make(folder.path(), 8 * MIB, &["-F", "16", "-s", "1", "-f", "1"]);
    let mut bytes = fs::read(&image).unwrap();
    let before = survey_volume(&Memory(&bytes), bytes.len() as u64);
    // Entry 12000 of the FAT behind the reserved sectors.
    let reserved = usize::from(u16::from_le_bytes([bytes[14], bytes[15]]));
    let at = reserved * 512 + 12_000 * 2;
    assert_eq!(bytes[at..at + 2], [0, 0]);
    bytes[at..at + 2].copy_from_slice(&[0xf7, 0xff]);
    let after = survey_volume(&Memory(&bytes), bytes.len() as u64);
    assert_eq!(before.used.unwrap(), after.used.unwrap());
}

fn doubt_of(bytes: &[u8]) -> String {
    match survey_volume(&Memory(bytes), bytes.len() as u64).used {
        Err(Doubt::Untrusted(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fat_volume_that_is_not_clean_is_in_doubt() {
    let folder = images::folder();
    for (size, options, dirty_byte, entry) in [
        (30 * MIB, &["-F", "16", "-s", "1"][..], 37, 3),
        (40 * MIB, &["-F", "32", "-s", "1"], 65, 7),
    ] {
        let image = make(folder.path(), size, options);
        let good = fs::read(&image).unwrap();
        let mut bytes = good.clone();
        bytes[dirty_byte] |= 1;
        assert!(doubt_of(&bytes).contains("cleanly"));
        // The clean-unmount bit of FAT[1], in both copies.
        let reserved = usize::from(u16::from_le_bytes([good[14], good[15]]));
        let fat_len = match u16::from_le_bytes([good[22], good[23]]) {
            0 => u32::from_le_bytes([good[36], good[37], good[38], good[39]]) as usize,
            len => usize::from(len),
        };
        let (clean, errors) = if entry == 3 {
            (0x80, 0x40)
        } else {
            (0x08, 0x04)
        };
        for (bit, reason) in [(clean, "cleanly"), (errors, "errors")] {
            let mut bytes = good.clone();
            for copy in 0..2 {
                bytes[(reserved + copy * fat_len) * 512 + entry] &= !bit;
            }
            assert!(doubt_of(&bytes).contains(reason), "{options:?}");
        }
        // One copy only: the FATs differ.
        let mut bytes = good.clone();
        bytes[(reserved + fat_len) * 512 + 100] ^= 1;
        assert!(doubt_of(&bytes).contains("differs"));
        // Too short a place.
        assert!(doubt_of(&good[..good.len() - 512]).contains("its place has"));
    }
}

#[test]
fn random_damage_never_panics_and_never_leaves_the_volume() {
    let folder = images::folder();
    for (size, cases, options) in [
        (2 * MIB, 300, &["-F", "12"][..]),
        (8 * MIB, 200, &["-F", "16", "-s", "1", "-f", "1"]),
        (34 * MIB, 60, &["-F", "32", "-s", "1", "-f", "1"]),
    ] {
        let image = fs::read(make(folder.path(), size, options)).unwrap();
        let config = proptest::test_runner::Config::with_cases(cases);
        proptest!(config, |(flips in proptest::collection::vec(
            (0usize..16 * 1024, any::<u8>()), 1..8), in_boot in any::<bool>())| {
            let mut damaged = image.clone();
            for (place, value) in flips {
                damaged[if in_boot { place % 512 } else { place }] ^= value;
            }
            let size = damaged.len() as u64;
            let survey = survey_volume(&Memory(&damaged), size);
            if let Ok(used) = &survey.used {
                assert_in_order_inside(used, size);
            }
            assert_in_order_inside(&survey.heads, size);
            if let Ok(tree) = tree::open(Arc::new(walk::Owned(damaged)), size) {
                walk::visit(tree.as_ref(), tree.root(), 0);
            }
        });
    }
}

/// What mtools reads of an image.
fn seen_by_the_tool(folder: &Path, bytes: &[u8]) -> BTreeMap<String, Option<Vec<u8>>> {
    let (image, place) = (folder.join("damaged"), folder.join("seen"));
    fs::write(&image, bytes).unwrap();
    let _ = fs::remove_dir_all(&place);
    fs::create_dir(&place).unwrap();
    let (image, to) = (image.to_str().unwrap(), place.to_str().unwrap());
    let arguments = ["20", "mcopy", "-i", image, "-s", "-n", "-Q", "::/*", to];
    // It ends with an error when it meets damage, after having read what it could.
    output(MTOOLS, "timeout", &arguments);
    walk::of_folder(&place)
}

#[test]
fn random_damage_never_loses_a_file_that_mtools_still_sees() {
    let folder = images::folder();
    // One FAT each: of two, a damaged one would differ.
    for (size, options) in [
        (2 * MIB, &["-F", "12", "-f", "1"][..]),
        (4 * MIB, &["-F", "16", "-s", "1", "-f", "1"]),
        (34 * MIB, &["-F", "32", "-s", "1", "-f", "1"]),
    ] {
        let image = fs::read(make(folder.path(), size, options)).unwrap();
        let field = |at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
        let fat = field(14) * field(11);
        let fat_end = fat + field(11) * if field(22) == 0 { field(36) } else { field(22) };
        let fat_len = (fat..fat_end).rposition(|at| image[at] != 0).unwrap();
        let tree = tree::open(Arc::new(walk::Owned(image.clone())), size).unwrap();
        let entries: Vec<usize> = walk::all(tree.as_ref())
            .values()
            .map(|found| found.node.number as usize)
            .collect();
        let used_before = survey_volume(&Memory(&image), size).used.unwrap();
        let mut judged = 0;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let damage = proptest::collection::vec((0u8..4, any::<u32>(), 0u8..8), 1..3);
        for _ in 0..if size > 8 * MIB { 30 } else { 200 } {
            let damage = damage.new_tree(&mut runner).unwrap().current();
            let mut damaged = image.clone();
            for (kind, place, bit) in damage {
                let place = place as usize;
                match kind {
                    0 => damaged[fat + place % fat_len] ^= 1 << bit,
                    // A whole entry: what is in its cluster is free.
                    1 => damaged[fat + place % fat_len / 4 * 4..][..4].fill(0),
                    _ => damaged[entries[place % entries.len()] + place / 64 % 32] ^= 1 << bit,
                }
            }
            let Ok(used) = survey_volume(&Memory(&damaged), size).used else {
                continue;
            };
            // The tool takes its time: all that lack something, and a few of the others.
            let whole = used_before
                .iter()
                .all(|before| used.iter().any(|range| range.contains(*before)));
            judged += 1;
            if whole && judged > 5 {
                continue;
            }
            let mut garbage = vec![0xa5; damaged.len()];
            for range in used {
                let range = range.start() as usize..range.end() as usize;
                garbage[range.clone()].copy_from_slice(&damaged[range]);
            }
            let before = seen_by_the_tool(folder.path(), &damaged);
            assert!(
                before == seen_by_the_tool(folder.path(), &garbage),
                "{options:?}"
            );
        }
        assert!(judged > 5, "{options:?}");
    }
}

/// A FAT16 image, where its first FAT is, how long that is, and what is in it.
fn small() -> (Vec<u8>, usize, usize, BTreeMap<String, walk::Found>) {
    let folder = images::folder();
    let image = make(folder.path(), 8 * MIB, &["-F", "16", "-s", "1"]);
    let bytes = fs::read(image).unwrap();
    let field = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (start, len) = (field(14) * 512, field(22) * 512);
    let tree = tree::open(Arc::new(walk::Owned(bytes.clone())), 8 * MIB).unwrap();
    let found = walk::all(tree.as_ref());
    (bytes, start, len, found)
}

fn first_cluster(bytes: &[u8], found: &walk::Found) -> u16 {
    let at = found.node.number as usize + 26;
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Whether the tree takes these files and folders for damaged, and no others.
fn assert_damaged(bytes: &[u8], names: &[&str], found: &BTreeMap<String, walk::Found>) {
    let tree = tree::open(Arc::new(walk::Owned(bytes.to_vec())), bytes.len() as u64).unwrap();
    for (name, found) in found {
        let result = match &found.content {
            Some(content) => {
                let mut buffer = vec![0; content.len()];
                tree.read(found.node, 0, &mut buffer)
                    .map(|_| assert!(buffer == *content))
            }
            None => tree.entries(found.node, &mut |_| Ok(())),
        };
        let damaged = matches!(result, Err(TreeError::Damaged(_)));
        assert!(damaged || result.is_ok(), "{result:?}");
        assert_eq!(
            damaged,
            names.contains(&name.as_str()),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn chains_that_cross_or_never_end_are_damaged_and_lose_only_their_extents() {
    let (good, start, len, found) = small();
    let before = survey_volume(&Memory(&good), 8 * MIB);
    let (one, other) = ("EFI/debian/file7.efi", "EFI/debian/file9.efi");
    let (at, first) = (
        found[one].node.number as usize + 26,
        first_cluster(&good, &found[other]),
    );
    // Two files in one chain.
    let mut bytes = good.clone();
    bytes[at..at + 2].copy_from_slice(&first.to_le_bytes());
    assert_damaged(&bytes, &[one, other], &found);
    let after = survey_volume(&Memory(&bytes), 8 * MIB);
    assert_eq!(after.used, before.used);
    assert!(after.extents.len() < before.extents.len());
    // A loop.
    let mut bytes = good.clone();
    for copy in 0..2 {
        let entry = start + copy * len + usize::from(first) * 2;
        bytes[entry..entry + 2].copy_from_slice(&first.to_le_bytes());
    }
    assert_damaged(&bytes, &[other], &found);
    assert_eq!(survey_volume(&Memory(&bytes), 8 * MIB).used, before.used);
    // A folder that is in itself.
    let mut bytes = good.clone();
    let at = found["EFI/debian"].node.number as usize + 26;
    let first = first_cluster(&good, &found["EFI"]);
    bytes[at..at + 2].copy_from_slice(&first.to_le_bytes());
    let tree = tree::open(Arc::new(walk::Owned(bytes)), 8 * MIB).unwrap();
    let result = tree.entries(found["EFI/debian"].node, &mut |_| Ok(()));
    assert!(matches!(result, Err(TreeError::Damaged(_))), "{result:?}");
}

#[test]
fn a_file_in_free_clusters_is_in_doubt() {
    let (mut bytes, start, len, found) = small();
    let name = "EFI/debian/file7.efi";
    let first = first_cluster(&bytes, &found[name]);
    for copy in 0..2 {
        let entry = start + copy * len + usize::from(first) * 2;
        bytes[entry..entry + 2].fill(0);
    }
    assert!(doubt_of(&bytes).contains("free"));
    assert_damaged(&bytes, &[name], &found);
}

#[test]
fn the_heads_hold_the_boot_sectors() {
    let folder = images::folder();
    let image = make(folder.path(), 40 * MIB, &["-F", "32"]);
    let survey = survey_volume(&Image::open(&image), 40 * MIB);
    assert_eq!(survey.heads, [ByteRange::between(0, 32 * 1024)]);
}
