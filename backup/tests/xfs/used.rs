//! The used ranges are all that a file system needs, and no more than xfs_db takes for used.

use std::fs;
use std::path::Path;

use backup::ByteRange;
use backup::manifest::FileSystemKind;

use crate::files::{Place, assert_tree_is};
use crate::images::{self, assert_in_order_inside, copy_in_garbage, noise, run};
use crate::made::{
    MIB, Mount, PACKAGE, aged, assert_doubt, assert_sound, make, no_mounts, prototype, survey, text,
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
    all_come_back(96 * MIB, &[&[], &["-b", "size=1024", "-m", "reflink=1"]]);
}
