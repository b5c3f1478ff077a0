//! Source machines whose root is XFS, Btrfs or a logical volume.
//!
//! One tree for all of them; it is copied into the file system by this computer's kernel, which needs root, but no
//! device mapper. Then the machine installs its own boot loaders, as the one with ext4 does. Its kernel is Debian's
//! usual one: the one for clouds has no driver for AHCI.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ESP_UUID, LINUX_TYPE, LVM_TYPE, PLAIN, ROOT_SECTORS, ROOT_START, SECTOR};
use super::{Recipe, RootKind, SourceError, tool};
use super::{assemble, made_once, make_tree, provision, recipe_id, say};

const PUT_ROOT: &str = include_str!("../source/put-root.sh");

const TREE: Recipe = Recipe {
    packages: &[
        "btrfs-progs",
        "dosfstools",
        "e2fsprogs",
        "efibootmgr",
        "grub-efi-amd64-bin",
        "grub-pc-bin",
        "grub2-common",
        "initramfs-tools",
        "iproute2",
        "kmod",
        "linux-image-amd64",
        "login",
        "lvm2",
        "mount",
        "passwd",
        "procps",
        "systemd-sysv",
        "udev",
        "util-linux",
        "xfsprogs",
        "zstd",
    ],
    left_out: &[
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/doc/*",
        "/usr/share/info/*",
        // Drivers of what these machines do not have, which is most of them.
        "/lib/modules/*/kernel/net/*",
        "/lib/modules/*/kernel/sound/*",
        "/lib/modules/*/kernel/drivers/bluetooth/*",
        "/lib/modules/*/kernel/drivers/gpu/*",
        "/lib/modules/*/kernel/drivers/hwmon/*",
        "/lib/modules/*/kernel/drivers/iio/*",
        "/lib/modules/*/kernel/drivers/infiniband/*",
        "/lib/modules/*/kernel/drivers/media/*",
        "/lib/modules/*/kernel/drivers/net/*",
        "/lib/modules/*/kernel/drivers/platform/*",
        "/lib/modules/*/kernel/drivers/staging/*",
        "/lib/modules/*/kernel/drivers/usb/*",
    ],
    provision: PLAIN.provision,
};

/// The folder of the machine with such a root, built now if it is not there yet.
pub(super) fn get_or_build(work: &Path, root: RootKind) -> Result<PathBuf, SourceError> {
    let tree = made_once(work, &format!("tree-{}", recipe_id(&TREE)), |building| {
        make_tree(building, &TREE)
    })?;
    made_once(work, &format!("source-{root}-{}", id()), |building| {
        install(building, &tree, root)
    })
}

/// Names the recipe of the tree and of what is done with it.
fn id() -> String {
    let text = format!("{}{PUT_ROOT}", recipe_id(&TREE));
    blake3::hash(text.as_bytes()).to_hex()[..12].to_owned()
}

/// Puts the tree in the folder `tree` onto a new disk in the folder `work`.
fn install(work: &Path, tree: &Path, root: RootKind) -> Result<(), SourceError> {
    say(&format!("assembling a disk with its root on {root}"));
    let (root_type, root_is) = match root {
        RootKind::Lvm => (LVM_TYPE, "/dev/mapper/source--vg-root"),
        RootKind::Btrfs => (LINUX_TYPE, "/dev/vda3 rootflags=subvol=@rootfs"),
        RootKind::Ext4 | RootKind::Xfs => (LINUX_TYPE, "/dev/vda3"),
    };
    assemble(work, root_type)?;
    let (first, length) = (ROOT_START * SECTOR, ROOT_SECTORS * SECTOR);
    let mut command = Command::new("sh");
    command
        .args(["-c", PUT_ROOT, "put-root", &root.to_string()])
        .arg(work.join("disk.raw"))
        .args([first.to_string(), length.to_string()])
        .arg(tree.join("root.ext4"))
        .arg(ESP_UUID);
    tool::run(&mut command)?;
    say("first start: the machine installs its boot loaders");
    provision(work, tree, root_is)
}
