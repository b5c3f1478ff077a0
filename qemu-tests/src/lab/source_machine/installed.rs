//! Source machines whose root is XFS, Btrfs or a logical volume: installed by a Debian that runs.
//!
//! One tree, started by QEMU itself, makes the file system or the volume group on the machine's disk, copies itself
//! there and installs the boot loaders, as an installer does. So this computer needs neither root nor a device
//! mapper. Its kernel is Debian's usual one: the one for clouds has no driver for AHCI.

use std::path::{Path, PathBuf};

use super::{LINUX_TYPE, LVM_TYPE, Recipe, RootKind, SourceError};
use super::{assemble, made_once, make_tree, provision, recipe_id, remove_files, say};
use crate::lab::disk;
use crate::lab::guest::{DiskBus, DiskDevice};

const INSTALLER: Recipe = Recipe {
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
    provision: include_str!("../source/lab-install"),
};

/// The folder of the machine with such a root, built now if it is not there yet.
pub(super) fn get_or_build(work: &Path, root: RootKind) -> Result<PathBuf, SourceError> {
    let id = recipe_id(&INSTALLER);
    let installer = made_once(work, &format!("installer-{id}"), |building| {
        make_tree(building, &INSTALLER)
    })?;
    made_once(work, &format!("source-{root}-{id}"), |building| {
        install(building, &installer, root)
    })
}

/// Has the tree in the folder `installer` install itself on a new disk in the folder `work`.
fn install(work: &Path, installer: &Path, root: RootKind) -> Result<(), SourceError> {
    say(&format!("a running Debian installs itself to {root}"));
    let root_type = match root {
        RootKind::Lvm => LVM_TYPE,
        RootKind::Ext4 | RootKind::Xfs | RootKind::Btrfs => LINUX_TYPE,
    };
    assemble(work, root_type)?;
    let running = work.join("root.ext4");
    disk::copy(&installer.join("root.ext4"), &running)?;
    let disk = DiskDevice {
        image: running,
        bus: DiskBus::Virtio,
        serial: "INSTALLER".to_owned(),
        large_sectors: false,
    };
    provision(work, installer, vec![disk], &format!(" lab.root={root}"))?;
    remove_files(work, &["root.ext4"])
}
