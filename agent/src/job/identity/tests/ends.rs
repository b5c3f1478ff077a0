//! What ends a restore before its commit, and what does no harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use backup::manifest::Manifest;
use backup::plan::Choices;
use backup::plan::restore::plan_restore;

use super::{bench, copy_of_changed, folder, gpt, image, is_root, is_without_table, named, tree};
use crate::job::fake::{point, run};
use crate::job::identity;
use crate::job::server::ChunkServer;

#[test]
fn a_link_that_leads_out_of_the_system_does_no_harm() {
    let outside = folder();
    let file = outside.path().join("hosts");
    fs::write(&file, "127.0.1.1 golden\n").unwrap();
    let change = |tree: &Path| {
        fs::remove_file(tree.join("etc/hosts")).unwrap();
        symlink(&file, tree.join("etc/hosts")).unwrap();
        symlink("/", tree.join("etc/default")).unwrap();
        fs::remove_dir_all(tree.join("var/lib/dhcp")).unwrap();
        symlink(outside.path(), tree.join("var/lib/dhcp")).unwrap();
    };
    fs::write(outside.path().join("host.leases"), "lease").unwrap();
    let Some((_folder, target, result)) = copy_of_changed(change, |_| {}) else {
        return;
    };
    result.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "127.0.1.1 golden\n");
    assert!(outside.path().join("host.leases").is_file());
    assert!(!is_without_table(&target));
}

#[test]
fn a_damaged_table_of_mounts_ends_the_restore_before_the_commit() {
    let damage = |tree: &Path| fs::write(tree.join("etc/fstab"), [0; 300]).unwrap();
    let Some((_folder, target, result)) = copy_of_changed(damage, |_| {}) else {
        return;
    };
    let error = result.unwrap_err();
    assert!(error.reason.contains("/etc/fstab"), "{error}");
    assert!(error.reason.contains("partition 3"), "{error}");
    assert!(is_without_table(&target));
}

#[test]
fn a_full_file_system_ends_the_restore_before_the_commit() {
    // To the last block: nothing is reserved for root.
    let fill = |volume: &Path| {
        let on = volume.with_extension("mounted");
        fs::create_dir(&on).unwrap();
        let at = on.to_str().unwrap();
        run("mount", &["-o", "loop", volume.to_str().unwrap(), at]);
        let fill = format!("dd if=/dev/zero of={at}/fill bs=4k 2>/dev/null; sync; true");
        run("sh", &["-c", &fill]);
        run("umount", &[at]);
    };
    let Some((_folder, target, result)) = copy_of_changed(|_| {}, fill) else {
        return;
    };
    let error = result.unwrap_err();
    assert_eq!(error.code, "identity");
    assert!(error.reason.contains("No space left"), "{error}");
    assert!(error.reason.contains("does not boot"), "{error}");
    assert!(is_without_table(&target));
}

#[test]
fn a_file_system_that_can_only_be_read_ends_the_restore_before_the_commit() {
    let read_only = |volume: &Path| {
        let volume = volume.to_str().unwrap();
        run("tune2fs", &["-O", "read-only", volume]);
    };
    let Some((_folder, target, result)) = copy_of_changed(|_| {}, read_only) else {
        return;
    };
    result.unwrap_err();
    assert!(is_without_table(&target));
}

#[test]
fn a_restore_that_leaves_the_table_is_refused_before_it_begins() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let source = image(folder.path(), "ext4", &tree, &gpt("ext4"));
    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    bench.inventory.disks = vec![named(&target).disk(Path::new("/sys")).unwrap()];
    let json = bench.server.manifest(&point("rp-1")).unwrap();
    let manifest = Manifest::from_json(&json).unwrap();
    let plan = plan_restore(&manifest, &bench.inventory, &Choices::default());
    let mut plan = plan.unwrap();
    identity::check(&manifest, &plan).unwrap();
    // As when the first partition begins at sector 63.
    let mut early = plan.clone();
    let partitions = &mut early.disks[0].partitions;
    let first = partitions.iter_mut().find(|one| one.file_system.is_some());
    let first = first.unwrap();
    first.range = backup::ByteRange::between(63 * 512, first.range.end());
    let error = identity::check(&manifest, &early).unwrap_err();
    assert!(error.to_string().contains("leaves its mark"), "{error}");
    plan.disks[0].commit.clear();
    let error = identity::check(&manifest, &plan).unwrap_err();
    assert!(error.to_string().contains("is not written"), "{error}");
}
