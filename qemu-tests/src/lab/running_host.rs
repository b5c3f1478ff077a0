//! The running host: a small Debian with systemd, udev and LVM, started by QEMU itself, that does what a script says.
//!
//! Built once without a virtual machine and kept in the work directory under a hash of its recipe. Its disk is one
//! ext4; programs and scripts are put into a copy of it by debugfs. Invariant: a directory under the final
//! name is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use super::debian::{self, DebianError};
use super::guest::DirectKernel;
use super::tool::{self, ToolError};

const PACKAGES: [&str; 12] = [
    "cryptsetup-bin",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "lvm2",
    "mount",
    "systemd-sysv",
    "udev",
    "util-linux",
    "zstd",
];
const LEFT_OUT: [&str; 4] = [
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
];
/// Size of its root file system in MiB.
const ROOT_MIB: u32 = 1024;
/// Where its script is.
const SCRIPT: &str = "/lab-run";
const UNIT: &str = "[Unit]\nDescription=What the lab wants of this host\nAfter=local-fs.target\n\n\
    [Service]\nType=oneshot\nExecStart=/bin/sh /lab-run\nStandardOutput=journal+console\n\
    StandardError=journal+console\n\n[Install]\nWantedBy=multi-user.target\n";
/// Makes the tree at `$1` the host, and its root file system in the folder `$2`.
const CUSTOMIZE: &str = "#!/bin/sh
set -eu
tree=$1
work=$2
echo running-host > \"$tree/etc/hostname\"
echo 'LABEL=host-root / ext4 errors=remount-ro 0 1' > \"$tree/etc/fstab\"
cp \"$work/lab-run.service\" \"$tree/etc/systemd/system/\"
chroot \"$tree\" systemctl -q enable lab-run.service
chroot \"$tree\" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
rm -rf \"$tree\"/var/lib/apt/lists/* \"$tree\"/var/cache/apt/* \"$tree\"/var/log/*.log
cp \"$tree\"/boot/vmlinuz-* \"$work/vmlinuz\"
cp \"$tree\"/boot/initrd.img-* \"$work/initrd\"
chmod 644 \"$work/vmlinuz\" \"$work/initrd\"
plain=$work/plain
mkdir \"$plain\"
mount --bind \"$tree\" \"$plain\"
trap 'umount \"$plain\"' EXIT
mke2fs -q -t ext4 -L host-root -d \"$plain\" \"$work/root.ext4\" \"$ROOT_MIB\"M
chmod 644 \"$work/root.ext4\"
";

/// The running host could not be made.
#[derive(Debug, Error)]
pub(crate) enum HostError {
    /// A file failed.
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
}

/// A built host: files that are copied, never started themselves.
#[derive(Debug, Clone)]
pub(crate) struct RunningHost {
    directory: PathBuf,
}

impl RunningHost {
    /// The host under `work`, built now if it is not there yet.
    pub(crate) fn get_or_build(work: &Path) -> Result<Self, HostError> {
        let directory = work.join(format!("host-{}", recipe_id()));
        if !directory.is_dir() {
            let building = work.join(format!("host-{}.building", recipe_id()));
            if building.exists() {
                fs::remove_dir_all(&building).map_err(io("remove", &building))?;
            }
            fs::create_dir_all(&building).map_err(io("create", &building))?;
            build(&building)?;
            fs::rename(&building, &directory).map_err(io("rename", &building))?;
        }
        Ok(Self { directory })
    }

    /// Its root file system, to be copied.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root.ext4")
    }

    /// How QEMU starts it; its root is the first disk.
    pub(crate) fn kernel(&self) -> DirectKernel {
        DirectKernel {
            kernel: self.directory.join("vmlinuz"),
            initrd: self.directory.join("initrd"),
            command_line: "root=LABEL=host-root console=ttyS0,115200 no_timer_check quiet"
                .to_owned(),
        }
    }
}

/// Puts the script, and programs by their paths in the host, into a copy of its root.
pub(crate) fn equip(
    root: &Path,
    script: &Path,
    programs: &[(&Path, &str)],
) -> Result<(), HostError> {
    for (file, path) in programs.iter().copied().chain([(script, SCRIPT)]) {
        let put = format!("write {} {path}", file.display());
        debugfs(root, &put)?;
        debugfs(root, &format!("set_inode_field {path} mode 0100755"))?;
    }
    Ok(())
}

/// What a file in the root of a host that is off has.
pub(crate) fn read(root: &Path, path: &str) -> Result<String, HostError> {
    debugfs(root, &format!("cat {path}"))
}

fn debugfs(root: &Path, request: &str) -> Result<String, HostError> {
    let mut command = Command::new("debugfs");
    Ok(tool::run(command.args(["-w", "-R", request]).arg(root))?)
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HostError + use<> {
    let path = path.to_owned();
    move |source| HostError::Io { what, path, source }
}

fn recipe_id() -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&ROOT_MIB.to_le_bytes());
    for text in PACKAGES.iter().chain(&LEFT_OUT).chain(&[UNIT, CUSTOMIZE]) {
        hash.update(text.as_bytes());
    }
    hash.finalize().to_hex()[..12].to_owned()
}

fn build(work: &Path) -> Result<(), HostError> {
    eprintln!("lab: running host: unpacking Debian and making its file system");
    let put = |name: &str, text: &str| {
        let path = work.join(name);
        fs::write(&path, text).map_err(io("write", &path))
    };
    put("lab-run.service", UNIT)?;
    put("customize.sh", CUSTOMIZE)?;
    put("sources.list", &debian::sources()?)?;
    let shown = work.display();
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=null"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(format!(
        "--customize-hook=ROOT_MIB={ROOT_MIB} sh '{shown}/customize.sh' \"$1\" '{shown}'"
    ));
    command
        .args([debian::RELEASE, "-"])
        .arg(work.join("sources.list"));
    tool::run(&mut command)?;
    for leftover in ["lab-run.service", "customize.sh", "sources.list"] {
        let path = work.join(leftover);
        fs::remove_file(&path).map_err(io("remove", &path))?;
    }
    let plain = work.join("plain");
    fs::remove_dir(&plain).map_err(io("remove", &plain))
}
