//! The source machine: a real Debian with GRUB for BIOS and UEFI, which is what the product backs up.
//!
//! Built once without root and kept in the work directory under a hash of its recipe: mmdebstrap makes the
//! tree, mke2fs the root file system, and the machine installs its own boot loaders in a first start.
//! Invariant: a directory under the final name is complete. The ESP has no loader on the removable path,
//! so that boot repair has work to do.

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
const UNITS: [(&str, &str); 3] = [
    ("lab-provision", include_str!("source/lab-provision")),
    (
        "lab-provision.service",
        include_str!("source/lab-provision.service"),
    ),
    (
        "lab-marks.service",
        include_str!("source/lab-marks.service"),
    ),
];
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

/// A built source machine: files that are copied, never started themselves.
#[derive(Debug, Clone)]
pub(crate) struct SourceMachine {
    directory: PathBuf,
}

impl SourceMachine {
    /// The source machine under `work`, built now if it is not there yet.
    pub(crate) fn get_or_build(work: &Path) -> Result<Self, SourceError> {
        let directory = work.join(format!("source-{}", recipe_id()));
        if !directory.is_dir() {
            let building = work.join(format!("source-{}.building", recipe_id()));
            if building.exists() {
                fs::remove_dir_all(&building).map_err(io("remove", &building))?;
            }
            fs::create_dir_all(&building).map_err(io("create", &building))?;
            build(&building)?;
            fs::rename(&building, &directory).map_err(io("rename", &building))?;
        }
        Ok(Self { directory })
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

/// Names a recipe: the same texts and sizes give the same machine, but for newer packages.
fn recipe_id() -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&RECIPE_VERSION.to_le_bytes());
    hash.update(&DISK_BYTES.to_le_bytes());
    for text in PACKAGES
        .iter()
        .chain(&LEFT_OUT)
        .chain(&[CUSTOMIZE, ROOT_UUID, ESP_UUID])
    {
        hash.update(text.as_bytes());
    }
    for (name, text) in UNITS {
        hash.update(name.as_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().to_hex()[..12].to_owned()
}

fn build(work: &Path) -> Result<(), SourceError> {
    say("unpacking Debian and making its root file system");
    write_inputs(work)?;
    unpack(work)?;
    say("assembling the disk");
    assemble(work)?;
    say("first start: the machine installs its boot loaders");
    provision(work)?;
    for leftover in [
        "root.ext4",
        "esp.fat",
        "vmlinuz",
        "initrd",
        "settings",
        "customize.sh",
        "sources.list",
    ] {
        let path = work.join(leftover);
        fs::remove_file(&path).map_err(io("remove", &path))?;
    }
    for leftover in ["data", "units", "plain"] {
        let path = work.join(leftover);
        fs::remove_dir_all(&path).map_err(io("remove", &path))?;
    }
    Ok(())
}

fn say(what: &str) {
    eprintln!("lab: source machine: {what}");
}

fn write_inputs(work: &Path) -> Result<(), SourceError> {
    let put = |name: &str, text: &str| {
        let path = work.join(name);
        fs::write(&path, text).map_err(io("write", &path))
    };
    let units = work.join("units");
    fs::create_dir_all(&units).map_err(io("create", &units))?;
    for (name, text) in UNITS {
        put(&format!("units/{name}"), text)?;
    }
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

fn unpack(work: &Path) -> Result<(), SourceError> {
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
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(format!(
        "--customize-hook=sh '{shown}/customize.sh' \"$1\" '{shown}'"
    ));
    command
        .args([debian::RELEASE, "-"])
        .arg(work.join("sources.list"));
    tool::run(&mut command)?;
    Ok(())
}

fn assemble(work: &Path) -> Result<(), SourceError> {
    let (image, esp) = (work.join("disk.raw"), work.join("esp.fat"));
    disk::create_empty(&image, DISK_BYTES)?;
    let table = format!(
        "label: gpt\nlabel-id: 1AB00000-0000-4000-8000-000000000000\n\
         start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, name=\"BIOS boot\"\n\
         start={ESP_START}, size={ESP_SECTORS}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"EFI system\"\n\
         start={ROOT_START}, size={ROOT_SECTORS}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=\"root\"\n"
    );
    disk::partition(&image, &table)?;
    disk::create_empty(&esp, ESP_SECTORS * SECTOR)?;
    tool::run(
        Command::new("mkfs.vfat")
            .args(["-F", "32", "-s", "8", "-n", "ESP", "-i", ESP_SERIAL])
            .arg(&esp),
    )?;
    disk::write_sparse_at(&image, ESP_START * SECTOR, &esp)?;
    disk::write_sparse_at(&image, ROOT_START * SECTOR, &work.join("root.ext4"))?;
    Ok(())
}

/// The first start, under UEFI so that grub-install can make a boot entry.
fn provision(work: &Path) -> Result<(), SourceError> {
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
            kernel: work.join("vmlinuz"),
            initrd: work.join("initrd"),
            command_line: format!(
                "root=UUID={ROOT_UUID} console=ttyS0,115200 no_timer_check lab.provision"
            ),
        }),
        ends_at_reset: true,
        logs: work.to_owned(),
    };
    let guest = Guest::start(&config)?;
    let done = "lab: provisioned";
    guest
        .console()
        .wait_for(done, Deadline::seconds(600))
        .map_err(GuestError::from)?;
    guest.wait_until_off(Deadline::seconds(180))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_has_one_short_name() {
        assert_eq!(recipe_id(), recipe_id());
        assert_eq!(recipe_id().len(), 12);
    }
}
