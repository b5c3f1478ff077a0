//! The disks of the bench `store`: a machine, the same a month later, and a second machine with the same
//! packages in another layout; once with ext4, once with NTFS.
//!
//! Made once and kept under the bench's folder by the version of the recipe. They are made with loop devices,
//! so this needs root; the sources are a Debian with compilers, and data that no other disk has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::lab::{debian, disk, tool};

/// Raised when a disk is made in another way.
const RECIPE: u32 = 1;
const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
const ESP_START: u64 = 2048;
const ESP_SECTORS: u64 = 100 << 11;
const PACKAGES: &str = "build-essential,clang,git,python3,vim";
/// What notes are made of.
const WORDS: [&str; 12] = [
    "backup", "disk", "of", "the", "machine", "was", "restored", "at", "night", "and", "nobody",
    "noticed",
];
const FILL: &str = include_str!("fill.sh");
const MONTH: &str = include_str!("month.sh");

/// A file system that holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Kind {
    Ext4,
    Ntfs,
}

impl Kind {
    pub(in crate::bench) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Ntfs => "NTFS",
        }
    }

    /// What of the tree is on it: NTFS is filled by a program, which is slow.
    const fn part(self) -> &'static str {
        match self {
            Self::Ext4 => ".",
            Self::Ntfs => {
                "./usr/lib/x86_64-linux-gnu ./usr/lib/gcc ./usr/share ./usr/bin ./usr/include"
            }
        }
    }

    /// sfdisk's word for its partition.
    const fn partition_type(self) -> &'static str {
        match self {
            Self::Ext4 => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            Self::Ntfs => "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
        }
    }
}

/// A raw disk and where its volumes are.
#[derive(Debug, Clone)]
pub(in crate::bench) struct BenchDisk {
    pub(in crate::bench) image: PathBuf,
    /// File system as partclone names it, first byte, length.
    pub(in crate::bench) volumes: Vec<(&'static str, u64, u64)>,
}

/// Three disks of one kind.
#[derive(Debug)]
pub(in crate::bench) struct DiskSet {
    pub(in crate::bench) first: BenchDisk,
    pub(in crate::bench) month_later: BenchDisk,
    pub(in crate::bench) second_machine: BenchDisk,
    /// The data that only the second machine has.
    pub(in crate::bench) unique: PathBuf,
}

/// The disks of a kind, made now if they are not there.
pub(in crate::bench) fn get_or_make(folder: &Path, kind: Kind) -> anyhow::Result<DiskSet> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench's disks are filled through loop devices, which needs root"
    );
    let home = folder.join(format!("store-disks-{RECIPE}"));
    fs::create_dir_all(&home)?;
    let home = fs::canonicalize(home)?;
    let tree = tree(&home)?;
    let data = |name: &str, seed, mib| data_folder(&home.join(name), seed, mib);
    let (own, fresh, unique) = (
        data("own", "first", 40)?,
        data("fresh", "month", 12)?,
        data("unique", "second", 20)?,
    );
    let sizes = match kind {
        Kind::Ext4 => (6 << 30, 8 << 30),
        Kind::Ntfs => (3 << 30, 4 << 30),
    };
    let place = |name: &str, bytes| {
        BenchDisk::of(
            kind,
            home.join(format!("{}-{name}.raw", kind.name())),
            bytes,
        )
    };
    let (first, month_later, second_machine) = (
        place("first", sizes.0),
        place("month-later", sizes.0),
        place("second-machine", sizes.1),
    );
    first.make(|image| {
        format(kind, image, sizes.0, "1")?;
        let list = list(&home, &tree, kind, "LC_ALL=C sort -z")?;
        with_mount(kind, image, |mount| fill(mount, &tree, &list, 150, &own))
    })?;
    month_later.make(|image| {
        disk::copy(&first.image, image)?;
        with_mount(kind, image, |mount| shell(MONTH, &[mount, &fresh]))
    })?;
    second_machine.make(|image| {
        format(kind, image, sizes.1, "2")?;
        // Folders first, so that each file finds its own; then in an order that is none, but always the same.
        let order = "awk 'BEGIN { RS = ORS = \"\\0\" } { print length($0) * 7919 % 1009 \"\\t\" $0 }' | LC_ALL=C sort -z -n | cut -z -f 2-";
        let list = list(&home, &tree, kind, order)?;
        with_mount(kind, image, |mount| fill(mount, &tree, &list, 60, &unique))
    })?;
    Ok(DiskSet {
        first,
        month_later,
        second_machine,
        unique,
    })
}

impl BenchDisk {
    fn of(kind: Kind, image: PathBuf, bytes: u64) -> Self {
        let data_start = ESP_START + ESP_SECTORS;
        let name = match kind {
            Kind::Ext4 => "extfs",
            Kind::Ntfs => "ntfs",
        };
        Self {
            image,
            volumes: vec![
                ("fat32", ESP_START * SECTOR, ESP_SECTORS * SECTOR),
                (name, data_start * SECTOR, data_sectors(bytes) * SECTOR),
            ],
        }
    }

    /// Makes it under another name first: what has the final name is whole.
    fn make(&self, how: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if self.image.exists() {
            return Ok(());
        }
        eprintln!("bench: making {}", self.image.display());
        let making = self.image.with_extension("making");
        let _ = fs::remove_file(&making);
        how(&making).with_context(|| format!("cannot make {}", self.image.display()))?;
        fs::rename(&making, &self.image)?;
        Ok(())
    }
}

const fn data_sectors(bytes: u64) -> u64 {
    bytes / SECTOR - ESP_START - ESP_SECTORS - 2048
}

/// A Debian's files, as its packages bring them.
fn tree(home: &Path) -> anyhow::Result<PathBuf> {
    let tree = home.join("tree");
    if tree.is_dir() {
        return Ok(tree);
    }
    eprintln!("bench: unpacking a Debian with compilers");
    let making = home.join("tree.making");
    if making.exists() {
        fs::remove_dir_all(&making)?;
    }
    let sources = home.join("sources.list");
    fs::write(&sources, debian::sources()?)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={PACKAGES}"));
    command.args(["--dpkgopt=path-exclude=/dev/*", debian::RELEASE]);
    tool::run(command.arg(&making).arg(&sources))?;
    let devices = making.join("dev");
    fs::remove_dir_all(&devices)?;
    fs::create_dir(&devices)?;
    fs::rename(&making, &tree)?;
    Ok(tree)
}

/// A folder with data of its own, `mib` MiB of noise and text, and a quarter of it more as a database.
fn data_folder(folder: &Path, seed: &str, mib: u64) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(seed.as_bytes());
    let mut stream = hasher.finalize_xof();
    let mut noise = vec![0; (mib * MIB / 4) as usize];
    for name in ["photo", "film"] {
        stream.fill(&mut noise);
        fs::write(folder.join(format!("{seed}-{name}")), &noise)?;
    }
    let half = (mib * MIB / 2) as usize;
    let mut text = String::with_capacity(half + 16);
    for byte in noise.iter().cycle() {
        if text.len() >= half {
            break;
        }
        text.push_str(WORDS[usize::from(*byte) % WORDS.len()]);
        text.push(if *byte > 240 { '\n' } else { ' ' });
    }
    fs::write(folder.join(format!("{seed}-notes")), text)?;
    stream.fill(&mut noise);
    fs::write(folder.join(format!("{seed}-database")), &noise)?;
    Ok(folder.to_owned())
}

/// The names of the tree in an order, NUL between them, folders before what is in them.
fn list(home: &Path, tree: &Path, kind: Kind, order: &str) -> anyhow::Result<PathBuf> {
    let path = home.join("order");
    let script = format!(
        "set -eu; cd \"$1\"; {{ find {0} -type d -print0 | LC_ALL=C sort -z; find {0} {1} -print0 | {order}; }} >\"$2\"",
        kind.part(),
        // ntfs-3g keeps symbolic links in a way of its own.
        if kind == Kind::Ntfs {
            "-type f"
        } else {
            "! -type d"
        },
    );
    shell(&script, &[tree, &path])?;
    Ok(path)
}

fn format(kind: Kind, image: &Path, bytes: u64, serial: &str) -> anyhow::Result<()> {
    disk::create_empty(image, bytes)?;
    let data_start = ESP_START + ESP_SECTORS;
    let table = format!(
        "label: gpt\nlabel-id: 1AB00000-0000-4000-8000-00000000000{serial}\n\
         start={ESP_START}, size={ESP_SECTORS}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         start={data_start}, size={}, type={}\n",
        data_sectors(bytes),
        kind.partition_type()
    );
    disk::partition(image, &table)?;
    with_loop(image, ESP_START, ESP_SECTORS, |device| {
        tool::run(Command::new("mkfs.vfat").args(["-F", "32", device]))?;
        Ok(())
    })?;
    with_loop(image, data_start, data_sectors(bytes), |device| {
        let mut command = match kind {
            Kind::Ext4 => Command::new("mkfs.ext4"),
            Kind::Ntfs => Command::new("mkntfs"),
        };
        // Both understand these: quiet, and no wiping first (mkntfs -Q).
        command.args(if kind == Kind::Ext4 {
            &["-q", "-F"][..]
        } else {
            &["-q", "-Q", "-F"]
        });
        tool::run(command.arg(device))?;
        Ok(())
    })
}

fn fill(mount: &Path, tree: &Path, list: &Path, stale_mib: u32, own: &Path) -> anyhow::Result<()> {
    shell(
        FILL,
        &[mount, tree, list, Path::new(&stale_mib.to_string())],
    )?;
    let script =
        "set -eu; mkdir -p \"$1/home/data\" \"$1/var/log\"; cp -r \"$2/.\" \"$1/home/data/\"";
    shell(script, &[mount, own])
}

fn shell(script: &str, arguments: &[&Path]) -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", script, "bench"]).args(arguments);
    tool::run(&mut command)?;
    Ok(())
}

/// Runs something with a part of an image as a loop device.
pub(in crate::bench) fn with_loop<T>(
    image: &Path,
    first_sector: u64,
    sectors: u64,
    work: impl FnOnce(&str) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut command = Command::new("losetup");
    command.args([
        "--find",
        "--show",
        "--offset",
        &(first_sector * SECTOR).to_string(),
    ]);
    command
        .args(["--sizelimit", &(sectors * SECTOR).to_string()])
        .arg(image);
    let device = tool::run(&mut command)?.trim().to_owned();
    let result = work(&device);
    tool::run(Command::new("losetup").args(["--detach", &device]))?;
    result
}

fn with_mount(
    kind: Kind,
    image: &Path,
    work: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bytes = fs::metadata(image)?.len();
    with_loop(
        image,
        ESP_START + ESP_SECTORS,
        data_sectors(bytes),
        |device| {
            let mount = tempfile::tempdir()?;
            let mut command = match kind {
                Kind::Ext4 => Command::new("mount"),
                Kind::Ntfs => Command::new("ntfs-3g"),
            };
            tool::run(command.arg(device).arg(mount.path()))?;
            let result = work(mount.path());
            tool::run(Command::new("umount").arg(mount.path()))?;
            result
        },
    )
}
