//! What must be replayed, repaired or is not in the volume at all makes a doubt.

use std::fs;
use std::sync::Arc;

use backup::filesystem::tree::{self, TreeError};

use crate::files::open;
use crate::images::{self, Image, noise, run};
use crate::made::{MIB, Mount, PACKAGE, assert_doubt, make, no_mounts, survey, text};

#[test]
fn a_log_that_must_be_replayed_is_a_doubt() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = make(folder.path(), 64 * MIB, &[]);
    let mount = Mount::new(&image, folder.path().join("mount"), "rw");
    for number in 0..200 {
        let name = mount.path.join(format!("file{number}"));
        fs::write(name, noise(number, 20_000)).unwrap();
    }
    run("coreutils", "sync", &["-f", text(&mount.path)]);
    fs::remove_file(mount.path.join("file7")).unwrap();
    let copy = folder.path().join("copy");
    fs::copy(&image, &copy).unwrap();
    assert_doubt(&copy, "log");
    let size = 64 * MIB;
    let refused = tree::open(Arc::new(Image::open(&copy)), size)
        .err()
        .unwrap();
    assert!(matches!(refused, TreeError::Unsupported(_)), "{refused}");
    mount.unmount();
    survey(&image).0.used.unwrap();
    // The kernel replays the copy; then it is clean too.
    Mount::new(&copy, folder.path().join("mount"), "rw").unmount();
    survey(&copy).0.used.unwrap();
}

#[test]
fn a_file_system_that_was_shut_down_is_a_doubt() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    for how in ["shutdown -f", "shutdown"] {
        let folder = images::folder();
        let image = make(folder.path(), 64 * MIB, &["-m", "rmapbt=1"]);
        let mount = Mount::new(&image, folder.path().join("mount"), "rw");
        for number in 0..50 {
            fs::create_dir(mount.path.join(format!("{number}"))).unwrap();
        }
        run("coreutils", "sync", &["-f", text(&mount.path)]);
        fs::write(mount.path.join("late"), noise(3, 100_000)).unwrap();
        run(PACKAGE, "xfs_io", &["-x", "-c", how, text(&mount.path)]);
        mount.unmount();
        assert_doubt(&image, "log");
        // It writes a new log.
        run(PACKAGE, "xfs_repair", &["-L", "-f", text(&image)]);
        survey(&image).0.used.unwrap();
    }
}

#[test]
fn a_log_that_went_around_is_clean_after_an_unmount_and_dirty_before() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = make(
        folder.path(),
        64 * MIB,
        &["-b", "size=1024", "-l", "size=4m"],
    );
    let copy = folder.path().join("copy");
    let mut heads = Vec::new();
    for turn in 0..6u64 {
        let mount = Mount::new(&image, folder.path().join("mount"), "rw");
        let many = mount.path.join("many");
        for _ in 0..=turn % 3 {
            fs::create_dir(&many).unwrap();
            for number in 0..700 {
                fs::write(many.join(format!("{turn}-{number}")), [0; 3000]).unwrap();
            }
            run("coreutils", "sync", &["-f", text(&mount.path)]);
            fs::remove_dir_all(&many).unwrap();
            run("coreutils", "sync", &["-f", text(&mount.path)]);
        }
        fs::write(mount.path.join(format!("{turn}")), b"kept").unwrap();
        run("coreutils", "sync", &["-f", text(&mount.path)]);
        fs::copy(&image, &copy).unwrap();
        assert_doubt(&copy, "log");
        mount.unmount();
        survey(&image)
            .0
            .used
            .unwrap_or_else(|doubt| panic!("turn {turn}: {doubt}"));
        let print = run(PACKAGE, "xfs_logprint", &["-t", text(&image)]);
        assert!(print.contains("<CLEAN>"), "{print}");
        let head = print.split("head: ").nth(1).unwrap();
        let head = head.split_whitespace().next().unwrap();
        heads.push(head.parse::<u64>().unwrap());
    }
    let turns = heads.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(turns > 0, "the log never went around: {heads:?}");
}

#[test]
fn logs_and_data_on_other_devices_are_doubts() {
    let folder = images::folder();
    let other = folder.path().join("other");
    images::blank(&other, 32 * MIB);
    let device = format!("logdev={},size=16m", text(&other));
    let image = make(folder.path(), 64 * MIB, &["-l", &device]);
    assert_doubt(&image, "another device");
    let device = format!("rtdev={}", text(&other));
    let image = make(
        folder.path(),
        64 * MIB,
        &["-r", &device, "-m", "reflink=0,rmapbt=0"],
    );
    assert_doubt(&image, "realtime");
    let tree = open(&image);
    assert!(tree.node(tree.root()).is_ok());
}

#[test]
fn features_that_are_not_known_and_marks_of_damage_are_doubts() {
    let folder = images::folder();
    let image = make(folder.path(), 64 * MIB, &[]);
    let copy = folder.path().join("copy");
    let write = |field: &str, value: &str| {
        fs::copy(&image, &copy).unwrap();
        let write = format!("write -d {field} {value}");
        let commands = ["-x", "-c", "sb 0", "-c", &write, text(&copy)];
        run(PACKAGE, "xfs_db", &commands);
    };
    write("features_incompat", "0x1b");
    assert_doubt(&copy, "xfs_repair");
    write("features_incompat", "0x4b");
    assert_doubt(&copy, "incompatible features 0x40");
    write("features_ro_compat", "0x15");
    assert_doubt(&copy, "read-only compatible features 0x10");
    assert!(open(&copy).root().number > 0);
    write("features_log_incompat", "0x2");
    assert_doubt(&copy, "features of the log 0x2");
    write("inprogress", "1");
    assert_doubt(&copy, "mkfs did not finish");
    write("fdblocks", "17");
    assert_doubt(&copy, "(the superblock says 17)");
    write("dblocks", "9999999");
    assert_doubt(&copy, "9999999 blocks");
    write("fname", "\"plain\"");
    survey(&copy).0.used.unwrap();
    assert!(!open(&copy).ignores_case());
    let image = make(folder.path(), 64 * MIB, &["-n", "version=ci"]);
    survey(&image).0.used.unwrap();
    assert!(open(&image).ignores_case());
}
