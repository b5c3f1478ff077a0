//! Copies that are whole, and share nothing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::{
    Files, bench, check_copy, copy, folder, gpt, image, is_root, is_without_table, partition, tree,
};

fn copies(kind: &str, count: usize) {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let source = image(folder.path(), kind, &tree, &gpt(kind));
    let before = check_copy(&source, kind, "golden");
    let targets: Vec<_> = (0..count)
        .map(|number| folder.path().join(format!("copy{number}.raw")))
        .collect();
    let mut bench = bench(&source, &targets);
    let mut seen: BTreeSet<String> = before.iter().cloned().collect();
    for (number, target) in targets.iter().enumerate() {
        let name = format!("pc-{number}");
        let said = copy(&mut bench, target, &name).unwrap().join("\n");
        for part in ["ids of its own", "machine id", "SSH host keys", &name] {
            assert!(said.contains(part), "{said}");
        }
        let ids = check_copy(target, kind, &name);
        assert_eq!(ids.len(), before.len());
        for id in ids {
            assert!(seen.insert(id.clone()), "{id} was there before");
        }
    }
}

#[test]
fn ten_copies_share_nothing_and_each_is_whole() {
    copies("ext4", 10);
}

#[test]
fn copies_on_xfs_share_nothing() {
    copies("xfs", 2);
}

#[test]
fn copies_on_btrfs_share_nothing() {
    copies("btrfs", 2);
}

#[test]
fn what_was_interrupted_is_done_again_from_the_beginning() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let source = image(folder.path(), "ext4", &tree, &gpt("ext4"));
    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    // Opened to write the data and to change the identity, and no more to commit.
    bench.platform.opens_left.store(2, Ordering::Relaxed);
    copy(&mut bench, &target, "pc-1").unwrap_err();
    assert!(is_without_table(&target));
    bench
        .platform
        .opens_left
        .store(usize::MAX, Ordering::Relaxed);
    let half = Files::of(&partition(&target, 3));
    assert_eq!(half.cat("/etc/hostname"), "pc-1\n");
    copy(&mut bench, &target, "pc-2").unwrap();
    check_copy(&target, "ext4", "pc-2");
}
