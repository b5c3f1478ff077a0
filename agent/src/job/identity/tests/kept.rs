//! Ids that stay, and what refers to those that do not.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{
    ESP, Files, MACHINE_ID, ROOT, SWAP, bench, blkid, copy, copy_of_changed, folder, gpt, image,
    initramfs, is_root, partition, partitions, put_partition, size_for, tree,
};
use crate::job::fake::run;

#[test]
fn what_an_initramfs_names_keeps_its_id_and_the_rest_is_new() {
    let change = |tree: &Path| {
        // Not one of initramfs-tools, so that nobody knows what it does with the id.
        fs::remove_dir_all(tree.join("usr/share/initramfs-tools")).unwrap();
        fs::write(tree.join("boot/initramfs-6.1.img"), initramfs(ROOT)).unwrap();
        fs::remove_file(tree.join("boot/initrd.img-6.1")).unwrap();
    };
    let Some((_folder, target, result)) = copy_of_changed(change, |_| {}) else {
        return;
    };
    let said = result.unwrap().join("\n");
    let kept = "The ext4 in partition 3 of";
    assert!(
        said.contains(kept) && said.contains("keeps its id: /boot/initramfs-6.1.img"),
        "{said}"
    );
    let root = partition(&target, 3);
    assert_eq!(blkid(&root), ROOT);
    let files = Files::of(&root);
    assert!(files.cat("/etc/fstab").contains(&format!("UUID={ROOT} / ")));
    assert_ne!(files.cat("/etc/machine-id").trim(), MACHINE_ID);
    assert_ne!(blkid(&partition(&target, 1)), ESP);
    assert_ne!(blkid(&partition(&target, 2)), SWAP);
}

/// A disk with a PC partition table of the same partitions.
fn pc_table() -> String {
    let partitions: Vec<_> = partitions(size_for("ext4"))
        .iter()
        .zip(["ef", "82", "83"])
        .map(|((start, len), kind)| format!("start={start}M,size={len}M,type={kind}\\n"))
        .collect();
    format!(
        "label: dos\\nlabel-id: 0x1ab01ab0\\n{}",
        partitions.concat()
    )
}

#[test]
fn a_pc_table_gets_another_signature_and_what_refers_to_it_follows() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let table = "cryptswap PARTUUID=1ab01ab0-02 /dev/urandom swap\n";
    fs::write(tree.join("etc/crypttab"), table).unwrap();
    let source = image(folder.path(), "ext4", &tree, &pc_table());
    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    copy(&mut bench, &target, "pc-1").unwrap();
    let dump = run("sfdisk", &["-d", target.to_str().unwrap()]);
    let signature = dump
        .lines()
        .find_map(|line| line.strip_prefix("label-id: 0x"));
    let signature = signature.unwrap();
    assert_ne!(signature, "1ab01ab0");
    let files = Files::of(&partition(&target, 3));
    let expected = table.replace("1ab01ab0", signature);
    assert_eq!(files.cat("/etc/crypttab"), expected);
}

/// Puts GRUB for BIOS machines, with this built in, into the gap before the first partition.
fn put_grub(folder: &Path, disk: &Path, config: &str) {
    let (core, load) = (folder.join("core.img"), folder.join("load.cfg"));
    fs::write(&load, config).unwrap();
    let (core_at, load) = (core.to_str().unwrap(), load.to_str().unwrap());
    let modules = ["biosdisk", "part_msdos", "ext2", "search_fs_uuid", "normal"];
    let mut arguments = vec![
        "-O",
        "i386-pc",
        "-o",
        core_at,
        "-p",
        "/boot/grub",
        "-c",
        load,
    ];
    arguments.extend(modules);
    run("grub-mkimage", &arguments);
    let boot = fs::read("/usr/lib/grub/i386-pc/boot.img").unwrap();
    let mut core = fs::read(core).unwrap();
    core[500..508].copy_from_slice(&2u64.to_le_bytes());
    let file = fs::File::options().write(true).open(disk).unwrap();
    file.write_all_at(&boot[..440], 0).unwrap();
    file.write_all_at(&1u64.to_le_bytes(), 0x5c).unwrap();
    file.write_all_at(&core, 512).unwrap();
}

#[test]
fn an_id_that_is_built_into_grub_stays() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let source = image(folder.path(), "ext4", &tree, &pc_table());
    put_grub(
        folder.path(),
        &source,
        &format!("search.fs_uuid {ROOT} root\n"),
    );
    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    let said = copy(&mut bench, &target, "pc-1").unwrap().join("\n");
    assert!(
        said.contains("keeps its id: it is built into GRUB"),
        "{said}"
    );
    assert_eq!(blkid(&partition(&target, 3)), ROOT);
    assert_ne!(blkid(&partition(&target, 1)), ESP);
    let esp = partition(&target, 1);
    let text = run(
        "mtype",
        &["-i", esp.to_str().unwrap(), "::EFI/debian/grub.cfg"],
    );
    assert_eq!(text, format!("search.fs_uuid {ROOT} root\n"));
}

/// A UEFI program with a text in it, and a table of certificates of this length.
fn program(text: &str, certificates: u32) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x80;
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
    let directories = 0x98 + 112;
    bytes[directories - 4] = 16;
    bytes[directories + 36..directories + 40].copy_from_slice(&certificates.to_le_bytes());
    bytes.extend(text.as_bytes());
    // More than a cluster behind it.
    bytes.resize(9000, b'x');
    bytes
}

/// A copy of an image whose loader names its root by id, with what was said of it.
fn copy_with_loader(folder: &Path, certificates: u32) -> (PathBuf, String) {
    let tree = tree(folder);
    let source = image(folder, "ext4", &tree, &gpt("ext4"));
    let (loader, esp) = (folder.join("loader"), folder.join("made1"));
    let text = format!("search.fs_uuid {ROOT} root ");
    fs::write(&loader, program(&text, certificates)).unwrap();
    let (loader, at) = (loader.to_str().unwrap(), esp.to_str().unwrap());
    run("mcopy", &["-i", at, loader, "::EFI/debian/GRUBX64.EFI"]);
    put_partition(&source, 1, &esp);
    let target = folder.join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    let said = copy(&mut bench, &target, "pc-1").unwrap().join("\n");
    (target, said)
}

fn loader_of(copy: &Path) -> Vec<u8> {
    Files::of(&partition(copy, 1)).bytes("/EFI/debian/grubx64.efi")
}

#[test]
fn a_loader_without_signature_names_the_new_id_and_nothing_else_of_it_changes() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let (target, said) = copy_with_loader(folder.path(), 0);
    assert!(said.contains("/EFI/debian/GRUBX64.EFI"), "{said}");
    let id = blkid(&partition(&target, 3));
    assert_ne!(id, ROOT);
    let expected = program(&format!("search.fs_uuid {id} root "), 0);
    assert!(loader_of(&target) == expected);
    run("fsck.fat", &["-n", partition(&target, 1).to_str().unwrap()]);
}

#[test]
fn an_id_that_a_signed_loader_has_built_in_stays() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let (target, said) = copy_with_loader(folder.path(), 1480);
    assert!(
        said.contains("keeps its id: a signed boot loader"),
        "{said}"
    );
    assert_eq!(blkid(&partition(&target, 3)), ROOT);
    let expected = program(&format!("search.fs_uuid {ROOT} root "), 1480);
    assert!(loader_of(&target) == expected);
}

#[test]
fn an_id_that_grub_could_have_built_in_stays() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path());
    let source = image(folder.path(), "ext4", &tree, &pc_table());
    put_grub(folder.path(), &source, "");
    // The length of what is packed is a lie.
    let file = fs::File::options().write(true).open(&source).unwrap();
    file.write_all_at(&[0xff; 4], 2 * 512 + 8).unwrap();
    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    let said = copy(&mut bench, &target, "pc-1").unwrap().join("\n");
    assert!(said.contains("could have it built in"), "{said}");
    assert_eq!(blkid(&partition(&target, 3)), ROOT);
    assert_ne!(blkid(&partition(&target, 1)), ESP);
}
