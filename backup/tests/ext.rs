//! C1: ext2/3/4 by used blocks. Images are made by mke2fs, aged by debugfs, and judged by e2fsck,
//! debugfs and dumpe2fs, none of which shares code with this crate.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::fs;
use std::path::{Path, PathBuf};

use backup::ByteRange;
use backup::filesystem::{Doubt, Survey, survey_volume};
use backup::manifest::FileSystemKind;
use images::{Image, Memory, assert_in_order_inside, copy_in_garbage, noise, output, run};
use proptest::prelude::{any, proptest};

const PACKAGE: &str = "e2fsprogs";
const MIB: u64 = 1 << 20;

/// A tree with what real ones have: large and small files, holes, links, many names.
fn tree(folder: &Path) {
    fs::create_dir_all(folder.join("deep/er/still")).unwrap();
    for number in 0..60usize {
        let len = number * number * 211 % 90_000;
        fs::write(
            folder.join(format!("file{number}")),
            noise(number as u64, len),
        )
        .unwrap();
    }
    for number in 0..300 {
        fs::write(folder.join(format!("deep/er/name-{number:04}")), b"x").unwrap();
    }
    fs::write(folder.join("deep/er/still/large"), noise(99, 3 << 20)).unwrap();
    std::os::unix::fs::symlink("file7", folder.join("short-link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(200), folder.join("long-link")).unwrap();
    let holes = fs::File::create(folder.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"end", 2_000_000).unwrap();
}

/// An image with a tree in it, aged: files deleted and others written into the holes.
fn make(folder: &Path, size: u64, options: &[&str]) -> PathBuf {
    let source = folder.join("tree");
    if !source.exists() {
        tree(&source);
        fs::write(folder.join("late"), noise(7, 400_000)).unwrap();
    }
    let image = folder.join("image");
    let _ = fs::remove_file(&image);
    images::blank(&image, size);
    let mut arguments = vec!["-q", "-F", "-d", source.to_str().unwrap()];
    arguments.extend_from_slice(options);
    arguments.push(image.to_str().unwrap());
    run(PACKAGE, "mke2fs", &arguments);
    let mut commands: String = (0..60)
        .step_by(3)
        .map(|number| format!("rm file{number}\n"))
        .collect();
    commands.push_str(&format!(
        "write {} late\n",
        folder.join("late").to_str().unwrap()
    ));
    let script = folder.join("age");
    fs::write(&script, commands).unwrap();
    run(
        PACKAGE,
        "debugfs",
        &[
            "-w",
            "-f",
            script.to_str().unwrap(),
            image.to_str().unwrap(),
        ],
    );
    // debugfs leaves counts that e2fsck would correct; a real machine's file system is right.
    let fixed = output(PACKAGE, "e2fsck", &["-fy", image.to_str().unwrap()]);
    assert!(fixed.status.code() < Some(2), "{fixed:?}");
    image
}

fn survey(image: &Path) -> (Survey, u64) {
    let size = fs::metadata(image).unwrap().len();
    (survey_volume(&Image::open(image), size), size)
}

/// The used blocks as dumpe2fs says: all that it does not list as free.
fn used_by_dumpe2fs(image: &Path) -> Vec<ByteRange> {
    let text = run(PACKAGE, "dumpe2fs", &[image.to_str().unwrap()]);
    let number = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].trim().parse().unwrap()
    };
    let (block, blocks) = (number("Block size:"), number("Block count:"));
    let mut free: Vec<(u64, u64)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("  Free blocks: "))
        .flat_map(|list| list.split(", "))
        .filter(|item| !item.is_empty())
        .map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            (first.trim().parse().unwrap(), last.trim().parse().unwrap())
        })
        .collect();
    free.sort_unstable();
    let mut used: Vec<ByteRange> = Vec::new();
    let mut at = 0;
    for (first, last) in free {
        if first > at {
            used.push(ByteRange::between(at * block, first * block));
        }
        at = last + 1;
    }
    if at < blocks {
        used.push(ByteRange::between(at * block, blocks * block));
    }
    used
}

fn assert_same_files(folder: &Path, one: &Path, other: &Path) {
    let dump = |image: &Path, name: &str| {
        let place = folder.join(name);
        let _ = fs::remove_dir_all(&place);
        fs::create_dir(&place).unwrap();
        let command = format!("rdump / {}", place.to_str().unwrap());
        run(
            PACKAGE,
            "debugfs",
            &["-R", &command, image.to_str().unwrap()],
        );
        place
    };
    let (one, other) = (dump(one, "one"), dump(other, "other"));
    assert!(one.join("late").exists() && one.join("deep/er/still/large").exists());
    run(
        "diffutils",
        "diff",
        &[
            "-r",
            "--no-dereference",
            one.to_str().unwrap(),
            other.to_str().unwrap(),
        ],
    );
}

/// Made, aged, copied by used ranges into garbage: clean, the same files, and exactly the blocks
/// that dumpe2fs knows as used.
fn survives(folder: &Path, size: u64, kind: FileSystemKind, options: &[&str]) {
    let image = make(folder, size, options);
    let (survey, size) = survey(&image);
    let volume = survey.volume.as_ref().unwrap();
    assert_eq!(volume.file_system, kind, "{options:?}");
    let used = survey
        .used
        .unwrap_or_else(|doubt| panic!("{options:?}: {doubt}"));
    assert_in_order_inside(&used, size);
    assert_eq!(used, used_by_dumpe2fs(&image), "{options:?}");
    assert_eq!(
        used.iter().map(|range| range.len()).sum::<u64>(),
        volume.used.unwrap(),
        "{options:?}"
    );
    let copy = folder.join("copy");
    copy_in_garbage(&image, &copy, size, &used);
    run(PACKAGE, "e2fsck", &["-fn", copy.to_str().unwrap()]);
    assert_same_files(folder, &image, &copy);
}

fn all_survive(size: u64, kind: FileSystemKind, sets: &[&[&str]]) {
    let folder = images::folder();
    for options in sets {
        survives(folder.path(), size, kind, options);
    }
}

#[test]
fn ext2_comes_back_from_its_used_blocks() {
    all_survive(
        24 * MIB,
        FileSystemKind::Ext2,
        &[
            &["-t", "ext2", "-b", "1024"],
            &["-t", "ext2", "-b", "1024", "-r", "0"],
            &[
                "-t",
                "ext2",
                "-b",
                "1024",
                "-O",
                "^sparse_super,^resize_inode",
            ],
            &["-t", "ext2", "-b", "2048", "-g", "1024"],
            &[
                "-t",
                "ext2",
                "-b",
                "4096",
                "-O",
                "meta_bg,^resize_inode",
                "-g",
                "256",
            ],
        ],
    );
}

#[test]
fn ext3_comes_back_from_its_used_blocks() {
    all_survive(
        32 * MIB,
        FileSystemKind::Ext3,
        &[
            &["-t", "ext3", "-b", "1024"],
            &["-t", "ext3", "-b", "4096", "-g", "1024"],
        ],
    );
}

#[test]
fn ext4_comes_back_from_its_used_blocks_with_any_block_size() {
    all_survive(
        64 * MIB,
        FileSystemKind::Ext4,
        &[
            &["-t", "ext4", "-b", "1024"],
            &["-t", "ext4", "-b", "2048"],
            &["-t", "ext4", "-b", "4096", "-g", "1024"],
            &["-t", "ext4", "-b", "16384", "-g", "512"],
            &["-t", "ext4", "-b", "65536"],
        ],
    );
}

#[test]
fn ext4_comes_back_with_every_way_to_place_and_check_groups() {
    all_survive(
        48 * MIB,
        FileSystemKind::Ext4,
        &[
            &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "meta_bg,^resize_inode",
                "-g",
                "512",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "meta_bg,^resize_inode,^flex_bg,^64bit",
                "-g",
                "256",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "^64bit,^metadata_csum,uninit_bg",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "64bit,^metadata_csum,uninit_bg",
                "-g",
                "1024",
            ],
            &["-t", "ext4", "-b", "1024", "-O", "^64bit,metadata_csum"],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "64bit,^metadata_csum,^uninit_bg",
            ],
            // What ext3 became with uninit_bg: a journal, no extents, checksummed groups.
            &["-t", "ext3", "-b", "1024", "-O", "uninit_bg"],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "^sparse_super,^resize_inode",
                "-g",
                "1024",
            ],
            &["-t", "ext4", "-b", "1024", "-G", "4", "-g", "1024"],
            &["-t", "ext4", "-b", "1024", "-E", "packed_meta_blocks=1"],
        ],
    );
}

#[test]
fn ext4_comes_back_with_rare_features() {
    all_survive(
        32 * MIB,
        FileSystemKind::Ext4,
        &[
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "sparse_super2,^resize_inode",
                "-g",
                "1024",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "sparse_super2,^resize_inode",
                "-E",
                "num_backup_sb=1",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "sparse_super2,^resize_inode",
                "-E",
                "num_backup_sb=0",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "metadata_csum_seed,inline_data",
                "-I",
                "256",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "quota,project,large_dir,ea_inode",
            ],
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "^has_journal,encrypt,casefold,verity",
            ],
        ],
    );
}

#[test]
fn a_volume_that_another_machine_may_have_mounted_is_in_doubt() {
    let folder = images::folder();
    let image = folder.path().join("image");
    images::blank(&image, 16 * MIB);
    let path = image.to_str().unwrap();
    // No other tool here: with mmp they wait 11 s each.
    run(
        PACKAGE,
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "mmp", path],
    );
    assert_eq!(survey(&image).0.used.unwrap(), used_by_dumpe2fs(&image));
    let mut bytes = fs::read(&image).unwrap();
    let mmp = bytes
        .chunks_exact(1024)
        .position(|block| block[..8] == *b"PMM\0PMM\xff")
        .unwrap();
    bytes[mmp * 1024 + 4..mmp * 1024 + 8].copy_from_slice(&77u32.to_le_bytes());
    let doubt = survey_volume(&Memory(&bytes), 16 * MIB).used.unwrap_err();
    assert!(doubt.to_string().contains("in use"), "{doubt}");
}

#[test]
fn ext4_comes_back_at_its_usual_sizes() {
    // Two groups of 128 MiB, the last one short.
    let folder = images::folder();
    survives(
        folder.path(),
        160 * MIB,
        FileSystemKind::Ext4,
        &["-t", "ext4", "-b", "4096"],
    );
}

#[test]
fn a_volume_larger_than_its_file_system_has_nothing_in_use_behind_it() {
    let folder = images::folder();
    let image = make(folder.path(), 32 * MIB, &["-t", "ext4", "-b", "1024"]);
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(40 * MIB)
        .unwrap();
    let (survey, _) = survey(&image);
    assert_eq!(survey.volume.unwrap().size, 32 * MIB);
    let used = survey.used.unwrap();
    assert!(used.last().unwrap().end() <= 32 * MIB);
    assert_eq!(survey.heads, [ByteRange::between(0, 4096)]);
}

fn doubt_of(image: &Path) -> String {
    match survey(image).0.used {
        Err(Doubt::Untrusted(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_system_that_is_not_clean_is_in_doubt() {
    let folder = images::folder();
    for (command, reason) in [
        ("feature needs_recovery", "journal"),
        ("ssv state 2", "errors"),
        ("ssv state 0", "cleanly"),
        ("ssv feature_incompat 0x80000000", "unknown incompatible"),
        ("ssv feature_ro_compat 0x4000", "unknown read-only"),
        ("ssv journal_inum 0", "another device"),
        ("ssv rev_level 9", "revision"),
    ] {
        let image = make(folder.path(), 16 * MIB, &["-t", "ext3", "-b", "1024"]);
        run(
            PACKAGE,
            "debugfs",
            &["-w", "-R", command, image.to_str().unwrap()],
        );
        let doubt = doubt_of(&image);
        assert!(doubt.contains(reason), "{command}: {doubt}");
    }
}

#[test]
fn bigalloc_is_in_doubt() {
    let folder = images::folder();
    let image = make(
        folder.path(),
        64 * MIB,
        &["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
    );
    assert!(doubt_of(&image).contains("bigalloc"));
}

#[test]
fn a_shortened_volume_is_in_doubt() {
    let folder = images::folder();
    let image = make(folder.path(), 16 * MIB, &["-t", "ext4", "-b", "1024"]);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(16 * MIB - 1024).unwrap();
    assert!(doubt_of(&image).contains("its place has"));
}

#[test]
fn a_flipped_bit_in_any_bitmap_or_descriptor_is_noticed() {
    let folder = images::folder();
    for options in [
        &["-t", "ext4", "-b", "1024"][..],
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"],
        &["-t", "ext2", "-b", "1024"],
    ] {
        let image = make(folder.path(), 16 * MIB, options);
        let text = run(PACKAGE, "dumpe2fs", &[image.to_str().unwrap()]);
        let bitmap: usize = text
            .split("Block bitmap at ")
            .nth(1)
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
            .unwrap()
            .parse()
            .unwrap();
        let whole = fs::read(&image).unwrap();
        // A bit of the bitmap, and the place of the bitmap in the first descriptor.
        for byte in [bitmap * 1024 + 500, 2048] {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1;
            let survey = survey_volume(&Memory(&damaged), damaged.len() as u64);
            assert!(survey.used.is_err(), "{options:?} byte {byte}");
        }
    }
}

#[test]
fn random_damage_never_panics_and_never_leaves_the_volume() {
    let folder = images::folder();
    for options in [
        &["-t", "ext4", "-b", "1024", "-g", "1024"][..],
        // Without checksums more of the damage gets through to the later checks.
        &[
            "-t",
            "ext2",
            "-b",
            "1024",
            "-O",
            "meta_bg,^resize_inode",
            "-g",
            "256",
        ],
    ] {
        let image = fs::read(make(folder.path(), 12 * MIB, options)).unwrap();
        let config = proptest::test_runner::Config::with_cases(300);
        proptest!(config, |(flips in proptest::collection::vec(
            (0usize..64 * 1024, any::<u8>()), 1..8), in_superblock in any::<bool>())| {
            let mut damaged = image.clone();
            for (place, value) in flips {
                let place = if in_superblock { 1024 + place % 1024 } else { place };
                damaged[place] ^= value;
            }
            let size = damaged.len() as u64;
            let survey = survey_volume(&Memory(&damaged), size);
            if let Ok(used) = &survey.used {
                assert_in_order_inside(used, size);
            }
            assert_in_order_inside(&survey.heads, size);
        });
    }
}

/// A tree whose files have maps of every depth.
fn mapped_tree(folder: &Path) {
    tree(folder);
    let at = std::os::unix::fs::FileExt::write_all_at;
    // Every other block a hole: more extents than fit under one level of a tree.
    let holes = fs::File::create(folder.join("sieve")).unwrap();
    for number in 0..600u64 {
        at(&holes, &noise(number + 1, 1024), number * 8192).unwrap();
    }
    // In 1 KiB blocks the last one is behind three levels of pointers.
    let levels = fs::File::create(folder.join("levels")).unwrap();
    for place in [0, 20 << 10, 400 << 10, 70 << 20] {
        at(&levels, &noise(place + 3, 5000), place).unwrap();
    }
}

fn regular_files(folder: &Path, under: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder.join(under)).unwrap() {
        let entry = entry.unwrap();
        let path = under.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            regular_files(folder, &path, found);
        } else if kind.is_file() {
            found.push(path.to_str().unwrap().to_owned());
        }
    }
}

/// The blocks of each file as debugfs lists them: logical, physical, how many; never the unwritten.
fn blocks_by_debugfs(
    folder: &Path,
    image: &Path,
    files: &[String],
) -> Vec<(String, Vec<[u64; 3]>)> {
    let commands: String = files.iter().map(|file| format!("stat /{file}\n")).collect();
    let script = folder.join("stat");
    fs::write(&script, commands).unwrap();
    let (script, image) = (script.to_str().unwrap(), image.to_str().unwrap());
    let text = run(PACKAGE, "debugfs", &["-f", script, image]);
    text.split("debugfs: stat /")
        .skip(1)
        .map(|part| {
            let (name, rest) = part.split_once('\n').unwrap();
            let list = rest
                .split_once("EXTENTS:\n")
                .or_else(|| rest.split_once("BLOCKS:\n"))
                .map_or("", |(_, list)| list.lines().next().unwrap());
            let blocks = list
                .split(", ")
                .flat_map(|item| item.split(','))
                .filter_map(|item| {
                    let (logical, physical) = item.split_once("):")?;
                    let range = |text: &str| {
                        let text = text.trim_start_matches('(');
                        let (first, last) = text.split_once('-').unwrap_or((text, text));
                        Some([first.parse::<u64>().ok()?, last.parse::<u64>().ok()?])
                    };
                    // `(IND)`, `(ETB0)` are the map itself, `(7[u])` is not written.
                    let ([from, _], [start, last]) = (range(logical)?, range(physical)?);
                    Some([from, start, last - start + 1])
                })
                .collect();
            (name.to_owned(), blocks)
        })
        .collect()
}

fn content_through(image: &[u8], blocks: &[[u64; 3]], block: u64, len: u64) -> Vec<u8> {
    let mut content = vec![0; len as usize];
    for [logical, physical, count] in blocks {
        for index in 0..*count {
            let at = ((logical + index) * block) as usize;
            let from = ((physical + index) * block) as usize;
            let end = content.len().min(at + block as usize);
            content[at..end].copy_from_slice(&image[from..from + (end - at)]);
        }
    }
    content
}

fn extents_are_those_of_debugfs(size: u64, options: &[&str]) {
    let folder = images::folder();
    mapped_tree(&folder.path().join("tree"));
    fs::write(folder.path().join("late"), noise(7, 400_000)).unwrap();
    let image = make(folder.path(), size, options);
    let (survey, _) = survey(&image);
    let block = u64::from(survey.volume.unwrap().block_size);
    let used = survey.used.unwrap();
    let mut files = Vec::new();
    regular_files(&folder.path().join("tree"), Path::new(""), &mut files);
    let deleted = |name: &String| {
        let number = name
            .strip_prefix("file")
            .and_then(|number| number.parse::<u32>().ok());
        number.is_some_and(|number| number % 3 == 0)
    };
    files.retain(|name| !deleted(name));
    let bytes = fs::read(&image).unwrap();
    let mut expected: Vec<(u64, u64, u64)> = Vec::new();
    let listed = blocks_by_debugfs(folder.path(), &image, &files);
    assert_eq!(listed.len(), files.len());
    for (name, blocks) in &listed {
        let content = fs::read(folder.path().join("tree").join(name)).unwrap();
        if !options.contains(&"inline_data") || !blocks.is_empty() {
            let through = content_through(&bytes, blocks, block, content.len() as u64);
            assert!(through == content, "{options:?} {name}");
        }
        expected.extend(blocks.iter().map(|[logical, physical, count]| {
            (
                physical * block,
                (physical + count) * block,
                logical * block,
            )
        }));
    }
    let late = blocks_by_debugfs(folder.path(), &image, &["late".to_owned()]);
    assert!(!late[0].1.is_empty());
    expected.extend(late[0].1.iter().map(|[logical, physical, count]| {
        (
            physical * block,
            (physical + count) * block,
            logical * block,
        )
    }));
    expected.sort_unstable();
    // What goes on in the volume and in the file is one extent.
    let merge = |mut merged: Vec<(u64, u64, u64)>, piece: (u64, u64, u64)| {
        match merged.last_mut() {
            Some(last) if last.1 == piece.0 && last.2 + (last.1 - last.0) == piece.2 => {
                last.1 = piece.1;
            }
            _ => merged.push(piece),
        }
        merged
    };
    let expected = expected.into_iter().fold(Vec::new(), merge);
    let found = survey
        .extents
        .iter()
        .map(|extent| (extent.range.start(), extent.range.end(), extent.file_offset))
        .fold(Vec::new(), merge);
    assert!(expected.len() > 300, "{options:?} {}", expected.len());
    assert_eq!(found, expected, "{options:?}");
    for extent in &survey.extents {
        assert!(
            used.iter().any(|range| range.contains(extent.range)),
            "{extent:?}"
        );
    }
}

#[test]
fn files_lie_where_debugfs_says() {
    for options in [
        &["-t", "ext2", "-b", "1024"][..],
        &["-t", "ext3", "-b", "4096", "-g", "1024"],
        &["-t", "ext4", "-b", "1024"],
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-I",
            "1024",
            "-O",
            "^metadata_csum,uninit_bg",
        ],
        &[
            "-t",
            "ext4",
            "-b",
            "4096",
            "-g",
            "1024",
            "-I",
            "512",
            "-O",
            "inline_data",
        ],
    ] {
        extents_are_those_of_debugfs(32 * MIB, options);
    }
}

#[test]
fn allocated_but_unwritten_blocks_are_used_and_belong_to_no_extent() {
    let folder = images::folder();
    let image = make(folder.path(), 16 * MIB, &["-t", "ext4", "-b", "1024"]);
    let before = survey(&image).0;
    let path = image.to_str().unwrap();
    run(
        PACKAGE,
        "debugfs",
        &["-w", "-R", "fallocate /file1 100 299", path],
    );
    let fixed = output(PACKAGE, "e2fsck", &["-fy", path]);
    assert!(fixed.status.code() < Some(2), "{fixed:?}");
    let after = survey(&image).0;
    assert!(
        after.volume.unwrap().used.unwrap() >= before.volume.unwrap().used.unwrap() + 200 * 1024
    );
    assert_eq!(after.extents, before.extents);
}

#[test]
fn damaged_maps_end_and_never_put_the_used_blocks_in_doubt() {
    let folder = images::folder();
    mapped_tree(&folder.path().join("tree"));
    fs::write(folder.path().join("late"), noise(7, 400_000)).unwrap();
    // No checksums: no damage in an inode or a map reaches the used ranges.
    let image = make(folder.path(), 12 * MIB, &["-t", "ext2", "-b", "1024"]);
    let text = run(PACKAGE, "dumpe2fs", &[image.to_str().unwrap()]);
    let table = text.split("Inode table at ").nth(1).unwrap();
    let table: usize = table.split('-').next().unwrap().parse().unwrap();
    let stat = blocks_by_debugfs(folder.path(), &image, &["levels".to_owned()]);
    let near = stat[0].1.last().unwrap()[1] as usize;
    let image = fs::read(&image).unwrap();
    let good = survey_volume(&Memory(&image), image.len() as u64);
    let config = proptest::test_runner::Config::with_cases(150);
    proptest!(config, |(flips in proptest::collection::vec(
        (0usize..64 * 1024, any::<u8>(), any::<bool>()), 1..40))| {
        let mut damaged = image.clone();
        for (place, value, in_map) in flips {
            // The blocks of pointers are just before the blocks that they lead to.
            let at = if in_map { (near - 3) * 1024 + place % 3072 } else { table * 1024 + place };
            damaged[at] ^= value;
        }
        let survey = survey_volume(&Memory(&damaged), damaged.len() as u64);
        assert_eq!(&survey.used, &good.used);
    });
}
