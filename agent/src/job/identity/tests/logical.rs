//! A system on a logical volume: its file system is renewed where it lies, LVM's own ids stay.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{
    Files, MACHINE_ID, MIB, ROOT, bench, blkid, copy, folder, gpt, image, is_root, partition,
    put_partition, root_volume, tree,
};
use crate::job::fake::run;

/// Where LVM's extents of 4 MiB begin, and how many the root has.
const EXTENTS: u64 = MIB;
const ROOT_LEN: u64 = 7 * 4 * MIB;
const LOGICAL: &str = r#"logical_volumes { root { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 7 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } } }
"#;

/// Makes a physical volume with one logical volume in a file. `lvcreate` wants device-mapper, which is not
/// everywhere; restoring the same description does not.
fn physical_volume(path: &Path) {
    let node = run("losetup", &["-f", "--show", path.to_str().unwrap()]);
    let node = node.trim();
    let config = format!(
        "devices {{ scan_lvs=0 use_devicesfile=0 filter=[\"a|^{node}$|\",\"r|.*|\"] }} \
         activation {{ udev_sync=0 udev_rules=0 monitoring=0 }} backup {{ backup=0 archive=0 }}"
    );
    let text = path.with_extension("lvm");
    let described = text.to_str().unwrap();
    let with = |tool: &str, arguments: &[&str]| {
        let all = [&["--config", &config], arguments].concat();
        run(tool, &all)
    };
    with("pvcreate", &["-q", "--metadatasize", "1000k", node]);
    with("vgcreate", &["-q", "office-pc", node]);
    with("vgcfgbackup", &["-q", "-f", described, "office-pc"]);
    let mut group = fs::read_to_string(&text).unwrap();
    group.insert_str(group.rfind('}').unwrap(), LOGICAL);
    fs::write(&text, group).unwrap();
    with("vgcfgrestore", &["-y", "-f", described, "office-pc"]);
    run("losetup", &["-d", node]);
}

#[test]
fn a_system_on_a_logical_volume_is_one_of_its_own() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let fstab = fs::read_to_string(tree.join("etc/fstab")).unwrap();
    let also = "/dev/mapper/office--pc-root /srv auto bind 0 0\n";
    fs::write(tree.join("etc/fstab"), fstab + also).unwrap();
    let source = image(folder.path(), "ext4", &tree, &gpt("ext4"));
    let group = folder.path().join("made3");
    let root = folder.path().join("root");
    File::create(&root).unwrap().set_len(ROOT_LEN).unwrap();
    root_volume("ext4", &root, &tree);
    fs::write(
        &group,
        vec![0; fs::metadata(&group).unwrap().len() as usize],
    )
    .unwrap();
    physical_volume(&group);
    let file = File::options().write(true).open(&group).unwrap();
    file.write_all_at(&fs::read(&root).unwrap(), EXTENTS)
        .unwrap();
    put_partition(&source, 3, &group);

    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    let said = copy(&mut bench, &target, "pc-1").unwrap().join("\n");
    assert!(said.contains("logical volume office-pc/root"), "{said}");
    assert!(said.contains("the ids of LVM are not changed"), "{said}");
    let group = partition(&target, 3);
    let mut bytes = vec![0; ROOT_LEN as usize];
    let file = File::open(&group).unwrap();
    file.read_exact_at(&mut bytes, EXTENTS).unwrap();
    fs::write(&root, bytes).unwrap();
    run("e2fsck", &["-f", "-n", root.to_str().unwrap()]);
    let id = blkid(&root);
    assert_ne!(id, ROOT);
    let files = Files::of(&root);
    let fstab = files.cat("/etc/fstab");
    assert!(fstab.contains(&format!("UUID={id} / ")), "{fstab}");
    assert!(fstab.contains(also), "{fstab}");
    assert_ne!(files.cat("/etc/machine-id").trim(), MACHINE_ID);
    let esp = partition(&target, 1);
    let text = run(
        "mtype",
        &["-i", esp.to_str().unwrap(), "::EFI/debian/grub.cfg"],
    );
    assert_eq!(text, format!("search.fs_uuid {id} root\n"));
}
