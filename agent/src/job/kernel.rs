//! The machine as the Linux kernel shows it: block devices, partitions, tools, efivarfs.
//!
//! What is *not* here: the order of things ([`crate::restore`]).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backup::ByteRange;
use backup::hardware::{Disk, FirmwareKind};
use backup::manifest::FileSystemKind;
use backup::plan::{DiskPlan, PlannedPartition, RestorePlan};
use nix::mount::{MsFlags, mount, umount};
use protocol::unlock::VolumeKey;

use crate::boot_repair::loader;
use crate::boot_repair::variables::{EfiVariables, Variables};
use crate::device::{Access, BlockDevice, Device, DeviceError};
use crate::hardware::disks::block_device;
use crate::job::encrypted;
use crate::job::error::Fault;
use crate::job::grow::{check_tools, grow_file_system};
use crate::job::platform::{Loader, Platform};
use crate::log::chain;
use crate::sys;

const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Where the EFI system partition is mounted while a loader is copied.
const MOUNT_POINT: &str = "/run/netboot-esp";
/// Where tools are looked for.
const TOOL_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// How long a partition's node may take to appear.
const NODE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a disk may stay busy after something else has closed it.
const BUSY_DEADLINE: Duration = Duration::from_secs(5);

/// The machine this process runs on.
#[derive(Debug)]
pub(crate) struct Kernel {
    variables: Option<EfiVariables>,
    fallback: Option<&'static str>,
}

impl Kernel {
    /// The machine, started by `firmware`.
    pub(crate) fn new(firmware: FirmwareKind, architecture: &str) -> Self {
        let variables = (firmware == FirmwareKind::Uefi).then(|| EfiVariables::new(EFI_VARIABLES));
        Self {
            variables,
            fallback: loader::fallback_name(architecture),
        }
    }
}

impl Platform for Kernel {
    fn open(&self, disk: &Disk, access: Access) -> Result<Box<dyn BlockDevice>, DeviceError> {
        let device = open_exclusively(&disk.name, access)?;
        // While it is open its name stays its own, so this cannot be outdated.
        check_identity(disk)?;
        Ok(Box::new(device))
    }

    fn unlock(
        &self,
        disk: &Disk,
        range: ByteRange,
        kind: FileSystemKind,
        key: &VolumeKey,
    ) -> Result<Box<dyn BlockDevice>, Fault> {
        let node = Path::new("/dev").join(&disk.name);
        encrypted::open(&node, range, kind, &key.key, &key.place.to_string())
    }

    fn check_tools(&self, plan: &RestorePlan) -> Result<(), Fault> {
        for grow in plan.disks.iter().flat_map(|disk| &disk.grow) {
            check_tools(grow)?;
        }
        Ok(())
    }

    fn finish_volumes(&self, disk: &DiskPlan, loaders: &[Loader]) -> Result<Vec<String>, Fault> {
        let esp = disk.partitions.iter().find(|partition| partition.esp);
        let esp = if self.variables.is_some() { esp } else { None };
        let grows = |partition: &PlannedPartition| {
            disk.grow
                .iter()
                .any(|grow| grow.partition == partition.number)
        };
        let is_esp =
            |partition: &PlannedPartition| esp.is_some_and(|esp| esp.number == partition.number);
        let needed = disk
            .partitions
            .iter()
            .filter(|one| grows(one) || is_esp(one));
        let added = if disk.keeps_table {
            Added::known(&disk.target.name, needed)?
        } else {
            Added::new(&disk.target.name, needed)?
        };
        let mut sentences = Vec::new();
        for grow in &disk.grow {
            sentences.extend(grow_file_system(&added.node(grow.partition), grow)?);
        }
        if let (Some(esp), Some(name)) = (esp, self.fallback) {
            let same = |loader: &&Loader| esp.guid.as_deref() == Some(loader.partition.as_str());
            let paths: Vec<_> = loaders
                .iter()
                .filter(same)
                .map(|loader| loader.path.clone())
                .collect();
            sentences.extend(repair_esp(&added.node(esp.number), name, &paths));
        }
        added.remove()?;
        Ok(sentences)
    }

    fn reread_table(&self, disk: &Disk) -> io::Result<()> {
        let device = open_exclusively(&disk.name, Access::Read).map_err(io::Error::other)?;
        device.reread_table()
    }

    fn variables(&self) -> Option<&dyn Variables> {
        self.variables
            .as_ref()
            .map(|variables| variables as &dyn Variables)
    }
}

/// Checks that the name still belongs to the disk that the inventory saw: names are given anew when
/// a disk is pulled and put back.
fn check_identity(expected: &Disk) -> Result<(), DeviceError> {
    let found = block_device(Path::new("/sys"), &expected.name);
    let same = found.as_ref().is_some_and(|found| {
        (found.size, &found.serial, &found.wwn, &found.model)
            == (
                expected.size,
                &expected.serial,
                &expected.wwn,
                &expected.model,
            )
    });
    if same {
        return Ok(());
    }
    Err(DeviceError::Other {
        device: expected.name.clone(),
        found: found.map_or_else(|| "none".to_owned(), |found| found.describe()),
        expected: expected.describe(),
    })
}

/// Opens a disk. For a moment after a tool has ended, the kernel may still hold it.
pub(crate) fn open_exclusively(name: &str, access: Access) -> Result<Device, DeviceError> {
    let path = Path::new("/dev").join(name);
    let began = Instant::now();
    loop {
        match Device::open(&path, access) {
            Err(DeviceError::Busy { .. }) if began.elapsed() < BUSY_DEADLINE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}

/// Partitions that the kernel knows of without a table.
struct Added {
    disk: String,
    numbers: Vec<u32>,
}

impl Added {
    fn new<'p>(
        disk: &str,
        partitions: impl Iterator<Item = &'p PlannedPartition>,
    ) -> Result<Self, Fault> {
        let partitions: Vec<_> = partitions.collect();
        let mut added = Self {
            disk: disk.to_owned(),
            numbers: Vec::new(),
        };
        if partitions.is_empty() {
            return Ok(added);
        }
        let device = open_exclusively(disk, Access::Write)?;
        // What the kernel remembers of the table that was there before would be in the way.
        device
            .reread_table()
            .map_err(|error| added.fault("forget the old table", &error))?;
        for partition in partitions {
            sys::partition::add(device.descriptor(), partition.number, partition.range).map_err(
                |error| added.fault(&format!("add partition {}", partition.number), &error),
            )?;
            added.numbers.push(partition.number);
        }
        drop(device);
        for number in &added.numbers {
            wait_for(&added.node(*number))?;
        }
        Ok(added)
    }

    /// Partitions of the table that is there; nothing to add.
    fn known<'p>(
        disk: &str,
        partitions: impl Iterator<Item = &'p PlannedPartition>,
    ) -> Result<Self, Fault> {
        let known = Self {
            disk: disk.to_owned(),
            numbers: Vec::new(),
        };
        let partitions: Vec<_> = partitions.collect();
        if partitions.is_empty() {
            return Ok(known);
        }
        // What the kernel remembers of their content is from before.
        let device = open_exclusively(disk, Access::Write)?;
        device
            .reread_table()
            .map_err(|error| known.fault("read the table again", &error))?;
        drop(device);
        for partition in partitions {
            wait_for(&known.node(partition.number))?;
        }
        Ok(known)
    }

    fn fault(&self, what: &str, error: &io::Error) -> Fault {
        Fault::Tool {
            tool: format!("kernel, disk {}", self.disk),
            reason: format!("{what}: {error}"),
        }
    }

    /// `/dev/vda2`, `/dev/nvme0n1p2`.
    fn node(&self, number: u32) -> PathBuf {
        let ends_in_digit = self.disk.ends_with(|last: char| last.is_ascii_digit());
        let between = if ends_in_digit { "p" } else { "" };
        PathBuf::from(format!("/dev/{}{between}{number}", self.disk))
    }

    fn remove(self) -> Result<(), Fault> {
        if self.numbers.is_empty() {
            return Ok(());
        }
        let device = open_exclusively(&self.disk, Access::Write)?;
        for number in &self.numbers {
            sys::partition::remove(device.descriptor(), *number)
                .map_err(|error| self.fault(&format!("remove partition {number}"), &error))?;
        }
        device.flush().map_err(|error| self.fault("flush", &error))
    }
}

fn wait_for(node: &Path) -> Result<(), Fault> {
    let began = Instant::now();
    while !node.exists() {
        if began.elapsed() > NODE_DEADLINE {
            return Err(Fault::Tool {
                tool: "kernel".to_owned(),
                reason: format!("{} did not appear in {NODE_DEADLINE:?}", node.display()),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

pub(crate) fn find_tool(name: &str) -> Result<PathBuf, Fault> {
    TOOL_FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Fault::Tool {
            tool: name.to_owned(),
            reason:
                "it is not in this environment and the plan needs it; make the boot files again \
                     with the package that has it"
                    .to_owned(),
        })
}

pub(crate) fn failed(tool: &str, code: Option<i32>, output: &str) -> Fault {
    let code = code.map_or_else(
        || "was killed".to_owned(),
        |code| format!("ended with {code}"),
    );
    Fault::Tool {
        tool: tool.to_owned(),
        reason: format!("{code}: {output}"),
    }
}

/// Runs a tool; its output goes to the log and, shortened to its end, to the caller.
pub(crate) fn run_tool(
    name: &str,
    arguments: &[&std::ffi::OsStr],
) -> Result<(Option<i32>, String), Fault> {
    let path = find_tool(name)?;
    let output = Command::new(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Fault::Tool {
            tool: name.to_owned(),
            reason: error.to_string(),
        })?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.iter().for_each(|line| log::info!("{name}: {line}"));
    let end = lines
        .iter()
        .rev()
        .take(6)
        .rev()
        .copied()
        .collect::<Vec<_>>()
        .join("; ");
    Ok((output.status.code(), end))
}

/// Puts the fallback loader on the EFI system partition when it has none. A partition that cannot be
/// mounted is said and left: it is as it was in the backup, and nothing else is wrong with the disk.
fn repair_esp(node: &Path, name: &str, loaders: &[String]) -> Option<String> {
    if let Err(error) = crate::drivers::load("vfat") {
        log::warn!("vfat: {}", chain(&error));
    }
    // Read only at first: a partition that needs nothing is not even marked as mounted.
    let copied = with_mounted(node, MsFlags::MS_RDONLY, |root| {
        loader::has_fallback(root, name)
    })
    .and_then(|found| {
        if found {
            return Ok(None);
        }
        with_mounted(node, MsFlags::MS_NOATIME, |root| {
            loader::ensure_fallback(root, name, loaders)
        })
        .map(|copied| {
            Some(copied.unwrap_or_else(|| {
                format!("No boot loader is known for \\EFI\\BOOT\\{name}; there is none.")
            }))
        })
    });
    copied.unwrap_or_else(|error| {
        log::warn!("{}: {error}", node.display());
        Some(format!(
            "The EFI system partition was not checked for \\EFI\\BOOT\\{name}: {error}."
        ))
    })
}

fn with_mounted<T>(
    node: &Path,
    flags: MsFlags,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let root = Path::new(MOUNT_POINT);
    std::fs::create_dir_all(root)?;
    mount(Some(node), root, Some("vfat"), flags, None::<&str>)?;
    let result = work(root);
    // Unmounting writes everything out.
    umount(root)?;
    result
}
