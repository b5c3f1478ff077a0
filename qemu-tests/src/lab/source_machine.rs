//! The source machine: a real Debian with GRUB for BIOS and UEFI, which is what the product backs up.
//!
//! Built once without root and kept in the work directory under a hash of its recipe: mmdebstrap makes the
//! tree, mke2fs the root file system, and the machine installs its own boot loaders in a first start.
//! Invariant: a directory under the final name is complete. The ESP has no loader on the removable path,
//! so that boot repair has work to do. Machines whose root is no ext4 in a partition: [`installed`].

mod installed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

use super::deadline::Deadline;
use super::debian::{self, DebianError};
use super::disk::{self, DiskError};
use super::firmware::{Firmware, FirmwareError, FirmwareKind};
use super::guest::{DirectKernel, DiskBus, DiskDevice, Guest, GuestConfig, GuestError};
use super::test_files;
use super::tool::{self, ToolError};

/// Size of the source machine's disk, bytes.
pub(crate) const DISK_BYTES: u64 = 3 << 30;
const SECTOR: u64 = 512;
const ESP_START: u64 = 4096;
/// With clusters of 4096 bytes, as installers make them, FAT32 needs 256 MiB: it has to have 65525 of them, or firmware
/// takes it for FAT16.
const ESP_SECTORS: u64 = 300 << 11;
const ROOT_START: u64 = ESP_START + ESP_SECTORS;
/// A MiB at the end for the backup GPT.
const ROOT_SECTORS: u64 = DISK_BYTES / SECTOR - ROOT_START - 2048;

// Partitions begin on whole MiB and leave one for the backup table.
const _: () = assert!(ROOT_START.is_multiple_of(2048));
const _: () = assert!((ROOT_START + ROOT_SECTORS) * SECTOR + (1 << 20) <= DISK_BYTES);

const ROOT_UUID: &str = "6c61622d-726f-4f74-8000-000000000001";
/// FAT volume serial number, as mkfs.vfat takes it and as fstab names it.
const ESP_SERIAL: &str = "1AB0E5F0";
const ESP_UUID: &str = "1AB0-E5F0";

const PACKAGES: [&str; 18] = [
    "dosfstools",
    "e2fsprogs",
    "efibootmgr",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "login",
    "mount",
    "passwd",
    "procps",
    "systemd-sysv",
    "udev",
    "util-linux",
    "zstd",
];

/// Not needed to start and log in, and a third of the size.
const LEFT_OUT: [&str; 4] = [
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
];

const CUSTOMIZE: &str = include_str!("source/customize.sh");
const UNITS: [(&str, &str); 2] = [
    (
        "lab-provision.service",
        include_str!("source/lab-provision.service"),
    ),
    (
        "lab-marks.service",
        include_str!("source/lab-marks.service"),
    ),
];

/// What a tree is made of.
struct Recipe {
    packages: &'static [&'static str],
    left_out: &'static [&'static str],
    /// What it does in its first start.
    provision: &'static str,
}

const PLAIN: Recipe = Recipe {
    packages: &PACKAGES,
    left_out: &LEFT_OUT,
    provision: include_str!("source/lab-provision"),
};
/// Type GUIDs of partitions: Linux file systems, and physical volumes of LVM.
const LINUX_TYPE: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
const LVM_TYPE: &str = "E6D6D379-F507-44C2-A23C-238F2A3DF928";
/// Raised when the recipe changes in a way that the texts above don't show.
const RECIPE_VERSION: u32 = 5;

/// The source machine could not be built.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    /// A file of the build failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No packages.
    #[error(transparent)]
    Debian(#[from] DebianError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The disk image failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No firmware.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// The first start failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// What the root file system of a source machine is, or lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum RootKind {
    /// ext4 in a partition.
    Ext4,
    /// XFS in a partition.
    Xfs,
    /// Btrfs in a partition, the root in a subvolume, as Debian's installer makes it.
    Btrfs,
    /// ext4 in a logical volume.
    Lvm,
}

impl std::fmt::Display for RootKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Lvm => "lvm",
        })
    }
}

/// A built source machine: files that are copied, never started themselves.
#[derive(Debug, Clone)]
pub(crate) struct SourceMachine {
    directory: PathBuf,
}

impl SourceMachine {
    /// The source machine under `work`, built now if it is not there yet.
    pub(crate) fn get_or_build(work: &Path) -> Result<Self, SourceError> {
        let directory = made_once(work, &format!("source-{}", recipe_id(&PLAIN)), build)?;
        Ok(Self { directory })
    }

    /// The same with a root of this kind.
    pub(crate) fn with_root(work: &Path, root: RootKind) -> Result<Self, SourceError> {
        match root {
            RootKind::Ext4 => Self::get_or_build(work),
            RootKind::Xfs | RootKind::Btrfs | RootKind::Lvm => {
                let directory = installed::get_or_build(work, root)?;
                Ok(Self { directory })
            }
        }
    }

    /// Where the disk is kept as it was after its system had run once, by this firmware.
    pub(crate) fn used_disk(&self, kind: FirmwareKind) -> PathBuf {
        self.directory.join(format!("used-{kind}.raw"))
    }

    /// The disk image, to be copied.
    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("disk.raw")
    }

    /// The UEFI variable store with the entry that grub-install made, to be copied.
    pub(crate) fn uefi_variables(&self) -> PathBuf {
        self.directory.join("uefi-variables.fd")
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SourceError + use<> {
    let path = path.to_owned();
    move |source| SourceError::Io { what, path, source }
}

/// A folder under `work` that is made by `build` unless it is there, and is complete under its name.
fn made_once(
    work: &Path,
    name: &str,
    build: impl FnOnce(&Path) -> Result<(), SourceError>,
) -> Result<PathBuf, SourceError> {
    let directory = work.join(name);
    if !directory.is_dir() {
        let building = work.join(format!("{name}.building"));
        if building.exists() {
            fs::remove_dir_all(&building).map_err(io("remove", &building))?;
        }
        fs::create_dir_all(&building).map_err(io("create", &building))?;
        build(&building)?;
        fs::rename(&building, &directory).map_err(io("rename", &building))?;
    }
    Ok(directory)
}

/// Names a recipe: the same texts and sizes give the same machine, but for newer packages.
fn recipe_id(recipe: &Recipe) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&RECIPE_VERSION.to_le_bytes());
    hash.update(&DISK_BYTES.to_le_bytes());
    for text in recipe.packages.iter().chain(recipe.left_out).chain(&[
        recipe.provision,
        CUSTOMIZE,
        ROOT_UUID,
        ESP_UUID,
    ]) {
        hash.update(text.as_bytes());
    }
    for (name, text) in UNITS {
        hash.update(name.as_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().to_hex()[..12].to_owned()
}

fn build(work: &Path) -> Result<(), SourceError> {
    make_tree(work, &PLAIN)?;
    say("assembling the disk");
    assemble(work, LINUX_TYPE)?;
    disk::write_sparse_at(
        &work.join("disk.raw"),
        ROOT_START * SECTOR,
        &work.join("root.ext4"),
    )?;
    say("first start: the machine installs its boot loaders");
    provision(work, work, &format!("UUID={ROOT_UUID}"))?;
    remove_files(work, &["root.ext4", "vmlinuz", "initrd"])
}

/// Makes a tree, and of it a root file system, a kernel and an initial RAM file system in the folder `work`.
fn make_tree(work: &Path, recipe: &Recipe) -> Result<(), SourceError> {
    say("unpacking Debian and making its root file system");
    write_inputs(work, recipe)?;
    unpack(work, recipe)?;
    remove_files(work, &["settings", "customize.sh", "sources.list"])?;
    for leftover in ["data", "units", "plain"] {
        let path = work.join(leftover);
        fs::remove_dir_all(&path).map_err(io("remove", &path))?;
    }
    Ok(())
}

fn remove_files(work: &Path, names: &[&str]) -> Result<(), SourceError> {
    for name in names {
        let path = work.join(name);
        fs::remove_file(&path).map_err(io("remove", &path))?;
    }
    Ok(())
}

fn say(what: &str) {
    eprintln!("lab: source machine: {what}");
}

fn write_inputs(work: &Path, recipe: &Recipe) -> Result<(), SourceError> {
    let put = |name: &str, text: &str| {
        let path = work.join(name);
        fs::write(&path, text).map_err(io("write", &path))
    };
    let units = work.join("units");
    fs::create_dir_all(&units).map_err(io("create", &units))?;
    for (name, text) in UNITS {
        put(&format!("units/{name}"), text)?;
    }
    put("units/lab-provision", recipe.provision)?;
    put("customize.sh", CUSTOMIZE)?;
    put("sources.list", &debian::sources()?)?;
    let root_kib = ROOT_SECTORS * SECTOR / 1024;
    put(
        "settings",
        &format!("ROOT_UUID={ROOT_UUID}\nESP_UUID={ESP_UUID}\nROOT_KIB={root_kib}\n"),
    )?;
    let data = work.join("data");
    test_files::write(&data).map_err(io("write", &data))?;
    // Without root, mmdebstrap's hooks run as a mapped user who owns nothing here.
    fs::set_permissions(work, fs::Permissions::from_mode(0o777)).map_err(io("open up", work))
}

fn unpack(work: &Path, recipe: &Recipe) -> Result<(), SourceError> {
    let shown = work.display();
    let mut command = Command::new("mmdebstrap");
    let mode = if nix::unistd::geteuid().is_root() {
        "root"
    } else {
        "unshare"
    };
    command.args([
        &format!("--mode={mode}"),
        "--variant=minbase",
        "--format=null",
    ]);
    command.arg(format!("--include={}", recipe.packages.join(",")));
    let left_out = recipe.left_out.iter();
    command.args(left_out.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(format!(
        "--customize-hook=sh '{shown}/customize.sh' \"$1\" '{shown}'"
    ));
    command
        .args([debian::RELEASE, "-"])
        .arg(work.join("sources.list"));
    tool::run(&mut command)?;
    Ok(())
}

/// Makes the disk with its table, whose last partition has the type `root_type`, and its ESP.
fn assemble(work: &Path, root_type: &str) -> Result<(), SourceError> {
    let (image, esp) = (work.join("disk.raw"), work.join("esp.fat"));
    disk::create_empty(&image, DISK_BYTES)?;
    let table = format!(
        "label: gpt\nlabel-id: 1AB00000-0000-4000-8000-000000000000\n\
         start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, name=\"BIOS boot\"\n\
         start={ESP_START}, size={ESP_SECTORS}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"EFI system\"\n\
         start={ROOT_START}, size={ROOT_SECTORS}, type={root_type}, name=\"root\"\n"
    );
    disk::partition(&image, &table)?;
    disk::create_empty(&esp, ESP_SECTORS * SECTOR)?;
    tool::run(
        Command::new("mkfs.vfat")
            .args(["-F", "32", "-s", "8", "-n", "ESP", "-i", ESP_SERIAL])
            .arg(&esp),
    )?;
    disk::write_sparse_at(&image, ESP_START * SECTOR, &esp)?;
    remove_files(work, &["esp.fat"])
}

/// The first start, under UEFI so that grub-install can make a boot entry. Kernel and initial RAM file system are
/// in the folder `tree`; `root` is where the kernel finds its root.
fn provision(work: &Path, tree: &Path, root: &str) -> Result<(), SourceError> {
    let config = GuestConfig {
        name: "source-provisioning".to_owned(),
        firmware: Firmware::fresh(FirmwareKind::Uefi, work)?,
        memory_mib: 1024,
        cpus: 2,
        disks: vec![DiskDevice {
            image: work.join("disk.raw"),
            bus: DiskBus::Virtio,
            serial: "SOURCE-DISK".to_owned(),
            large_sectors: false,
        }],
        network: None,
        network_first: false,
        identity: None,
        kernel: Some(DirectKernel {
            kernel: tree.join("vmlinuz"),
            initrd: tree.join("initrd"),
            command_line: format!("root={root} console=ttyS0,115200 no_timer_check lab.provision"),
        }),
        ends_at_reset: true,
        logs: work.to_owned(),
    };
    let guest = Guest::start(&config)?;
    let done = "lab: provisioned";
    guest
        .console()
        .wait_for(done, Deadline::seconds(900))
        .map_err(GuestError::from)?;
    guest.wait_until_off(Deadline::seconds(180))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_has_one_short_name() {
        assert_eq!(recipe_id(&PLAIN), recipe_id(&PLAIN));
        assert_eq!(recipe_id(&PLAIN).len(), 12);
    }
}
