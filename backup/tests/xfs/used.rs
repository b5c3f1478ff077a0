//! The used ranges are all that a file system needs, and no more than xfs_db takes for used.

use std::fs;
use std::path::Path;

use backup::ByteRange;
use backup::manifest::FileSystemKind;

use crate::files::{Place, assert_tree_is};
use crate::images::{self, assert_in_order_inside, copy_in_garbage, noise, run};
use crate::made::{
    MIB, Mount, PACKAGE, aged, assert_sound, make, no_mounts, prototype, survey, text,
};

/// Numbers that xfs_db prints as `name = number`.
fn numbers(image: &Path, commands: &[&str], name: &str) -> Vec<u64> {
    let mut arguments = vec!["-r"];
    commands
        .iter()
        .for_each(|one| arguments.extend(["-c", *one]));
    arguments.push(text(image));
    run(PACKAGE, "xfs_db", &arguments)
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
        .map(|number| number.parse().unwrap())
        .collect()
}

/// Asserts that exactly what xfs_db lists as free is not used, but for the reserve lists, which it lists too.
fn assert_free_as_xfs_db_says(image: &Path, used: &[ByteRange]) {
    let one = |name| numbers(image, &["sb 0", "p"], name)[0];
    let (block, group_blocks, blocks, groups) = (
        one("blocksize"),
        one("agblocks"),
        one("dblocks"),
        one("agcount"),
    );
    let reserved: u64 = (0..groups)
        .map(|group| {
            let group = format!("agf {group}");
            numbers(image, &[group.as_str(), "p flcount"], "flcount")[0]
        })
        .sum();
    let listed = run(PACKAGE, "xfs_db", &["-r", "-c", "freesp -d", text(image)]);
    let mut free: Vec<(u64, u64)> = listed
        .lines()
        .skip(1)
        .map_while(|line| {
            let fields = line.split_whitespace().map(str::parse::<u64>);
            match fields.collect::<Result<Vec<_>, _>>().ok()?[..] {
                [group, start, len] => Some((group * group_blocks + start, len)),
                _ => None,
            }
        })
        .collect();
    free.sort_unstable();
    let listed: u64 = free.iter().map(|(_, len)| len).sum();
    assert!(listed > 0, "xfs_db lists nothing");
    let used_blocks: u64 = used.iter().map(|range| range.len()).sum::<u64>() / block;
    assert_eq!(blocks - used_blocks, listed - reserved);
    let mut at = 0;
    for range in used {
        for unused in at..range.start() / block {
            let after = free.partition_point(|(start, _)| *start <= unused);
            let (start, len) = free[after - 1];
            assert!(unused < start + len, "block {unused} is left out");
        }
        at = range.end() / block;
    }
}

/// Copied by used ranges into garbage: sound, the same files, and it can be written to.
fn assert_comes_back(folder: &Path, image: &Path) {
    let (survey, size) = survey(image);
    assert_eq!(
        survey.volume.unwrap().file_system,
        FileSystemKind::Xfs,
        "detected"
    );
    let used = survey.used.unwrap_or_else(|doubt| panic!("{doubt}"));
    assert_in_order_inside(&used, size);
    assert_free_as_xfs_db_says(image, &used);
    let copy = folder.join("copy");
    copy_in_garbage(image, &copy, size, &used);
    assert_sound(&copy);
    if no_mounts().is_some() || image.with_file_name("source").exists() {
        return;
    }
    let original = Mount::new(image, folder.join("original"), "ro");
    let mount = Mount::new(&copy, folder.join("restored"), "ro");
    let arguments = [
        "-r",
        "--no-dereference",
        text(&original.path),
        text(&mount.path),
    ];
    let mut compared = vec!["-x", "pipe", "-x", "disk", "-x", "tty", "-x", "socket"];
    compared.extend(arguments);
    run("diffutils", "diff", &compared);
    assert_tree_is(&copy, Place::Mounted(&original.path));
    original.unmount();
    mount.unmount();
    let mount = Mount::new(&copy, folder.join("restored"), "rw");
    for number in 0..50 {
        let name = mount.path.join(format!("new{number}"));
        fs::write(name, noise(number, 30_000)).unwrap();
    }
    let _ = fs::remove_dir_all(mount.path.join("small"));
    mount.unmount();
    assert_sound(&copy);
    let (again, _) = super::made::survey(&copy);
    assert_free_as_xfs_db_says(&copy, &again.used.unwrap());
    fs::remove_file(copy).unwrap();
}

fn all_come_back(size: u64, sets: &[&[&str]]) {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    for options in sets {
        let folder = images::folder();
        let image = aged(folder.path(), size, options);
        assert_tree_is(&image, Place::Image);
        assert_comes_back(folder.path(), &image);
    }
}

#[test]
fn version_5_comes_back_from_its_used_blocks() {
    all_come_back(
        88 * MIB,
        &[
            &[],
            &["-b", "size=1024", "-m", "reflink=1,rmapbt=1,bigtime=1"],
        ],
    );
}

#[test]
fn version_5_comes_back_with_other_sectors_groups_and_inodes() {
    all_come_back(
        88 * MIB,
        &[
            &["-s", "size=4096", "-d", "agcount=4", "-i", "nrext64=1"],
            &[
                "-m",
                "finobt=0,reflink=0,inobtcount=0,bigtime=0",
                "-i",
                "size=1024,sparse=0",
                "-b",
                "size=2048",
                "-n",
                "size=16384",
                "-l",
                "su=32768",
            ],
        ],
    );
}

#[test]
fn version_4_comes_back_from_its_used_blocks() {
    for options in [
        &["-m", "crc=0"][..],
        &[
            "-m",
            "crc=0",
            "-b",
            "size=1024",
            "-n",
            "size=4096",
            "-i",
            "size=256",
        ],
        &[
            "-m",
            "crc=0",
            "-b",
            "size=512",
            "-n",
            "ftype=0",
            "-l",
            "lazy-count=0,version=1",
        ],
        &["-m", "crc=0", "-s", "size=4096", "-l", "su=16384"],
    ] {
        let folder = images::folder();
        let (source, image) = prototype(folder.path(), 64 * MIB, options);
        assert_tree_is(&image, Place::Files(&source));
        assert_comes_back(folder.path(), &image);
        assert_tree_is(&folder.path().join("copy"), Place::Files(&source));
    }
}

#[test]
fn a_new_file_system_has_a_clean_log() {
    for options in [
        &[][..],
        &["-l", "su=65536"],
        &["-l", "size=12m", "-s", "size=4096"],
        &["-m", "crc=0", "-l", "version=1"],
    ] {
        let folder = images::folder();
        let image = make(folder.path(), 64 * MIB, options);
        let used = survey(&image).0.used.unwrap();
        assert_free_as_xfs_db_says(&image, &used);
    }
}

#[test]
fn another_uuid_and_label_change_nothing() {
    let folder = images::folder();
    let image = make(folder.path(), 64 * MIB, &[]);
    let before = survey(&image).0;
    let new = "01234567-89ab-4cde-8f01-23456789abcd";
    run(
        PACKAGE,
        "xfs_admin",
        &["-U", new, "-L", "renamed", text(&image)],
    );
    let after = survey(&image).0;
    let volume = after.volume.unwrap();
    assert_eq!(volume.uuid.as_deref(), Some(new));
    assert_eq!(volume.label.as_deref(), Some("renamed"));
    assert_eq!(after.used.unwrap(), before.used.unwrap());
}

#[test]
fn inode_chunks_with_holes_come_back() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = make(folder.path(), 32 * MIB, &["-i", "sparse=1"]);
    let mount = Mount::new(&image, folder.path().join("mount"), "rw");
    // Full of files of a block, then every second one gone: no room for a whole chunk is left.
    let mut count = 0;
    while fs::write(mount.path.join(format!("{count}")), [1; 4096]).is_ok() {
        count += 1;
    }
    assert!(count > 1000, "only {count} files");
    run("coreutils", "sync", &["-f", text(&mount.path)]);
    for number in (0..count).step_by(2) {
        fs::remove_file(mount.path.join(format!("{number}"))).unwrap();
    }
    for number in 0..count {
        if fs::write(mount.path.join(format!("new{number}")), []).is_err() {
            break;
        }
    }
    mount.unmount();
    let groups = numbers(&image, &["sb 0", "p"], "agcount")[0];
    // first inode, mask of holes, count, free, mask of free inodes
    let has_holes = (0..groups).any(|group| {
        let group = format!("agi {group}");
        let commands = [
            "-r",
            "-c",
            &group,
            "-c",
            "addr root",
            "-c",
            "p",
            text(&image),
        ];
        run(PACKAGE, "xfs_db", &commands).contains(",0xff")
    });
    assert!(has_holes, "no chunk has holes");
    assert_tree_is(&image, Place::Image);
    assert_comes_back(folder.path(), &image);
}

#[test]
fn files_lie_where_their_extents_say() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = aged(folder.path(), 88 * MIB, &["-m", "reflink=1"]);
    let extents = survey(&image).0.extents;
    for pair in extents.windows(2) {
        assert!(pair[0].range.end() <= pair[1].range.start());
    }
    let group_bytes = {
        let one = |name| numbers(&image, &["sb 0", "p"], name)[0];
        one("agblocks") * one("blocksize")
    };
    let mount = Mount::new(&image, folder.path().join("mount"), "ro");
    let mut pieces = 0;
    for name in ["pieces", "late", "reserved", "file59", "holes"] {
        let file = mount.path.join(name);
        // number: [from..to]: from..to group (from..to) count flags, in sectors of 512 bytes.
        let map = run(PACKAGE, "xfs_io", &["-r", "-c", "bmap -vp", text(&file)]);
        for line in map.lines().skip(2).filter(|line| !line.contains("hole")) {
            let numbers: Vec<u64> = line
                .split(|sign: char| !sign.is_ascii_digit())
                .filter(|number| !number.is_empty())
                .map(|number| number.parse().unwrap())
                .collect();
            let [_, file_from, file_to, from, to, group, within, ..] = numbers[..] else {
                panic!("{line}");
            };
            let unwritten = numbers.get(9).is_some_and(|flags| flags / 10_000 % 10 == 1);
            assert_eq!(group * group_bytes / 512 + within, from, "{line}");
            let (start, end) = (from * 512, (to + 1) * 512);
            assert_eq!(file_to - file_from, to - from);
            let found = extents.iter().find(|extent| {
                extent.range.start() <= start
                    && end <= extent.range.end()
                    && extent.file_offset + (start - extent.range.start()) == file_from * 512
            });
            assert_eq!(found.is_none(), unwritten, "{name}: {line}");
            pieces += 1;
        }
    }
    assert!(pieces > 1000, "only {pieces} extents were compared");
    mount.unmount();
}

#[test]
fn a_file_system_that_grew_comes_back() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = make(folder.path(), 40 * MIB, &["-d", "agcount=2"]);
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(90 * MIB + 512)
        .unwrap();
    let mount = Mount::new(&image, folder.path().join("mount"), "rw");
    fs::write(mount.path.join("before"), noise(1, 5_000_000)).unwrap();
    run(PACKAGE, "xfs_growfs", &["-d", text(&mount.path)]);
    fs::write(mount.path.join("after"), noise(2, 50_000_000)).unwrap();
    mount.unmount();
    assert_comes_back(folder.path(), &image);
}
