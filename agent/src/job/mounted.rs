//! Resizing file systems that only the kernel can resize, while they are mounted: XFS and Btrfs.
//!
//! Invariant: they are mounted where nobody else sees them, and never as anything but what the plan says they
//! are; what the device holds afterwards says itself that it has grown.
//!
//! What is *not* here: the others, whose tools work on the device ([`crate::job::grow`]).

use std::io;
use std::path::Path;

use backup::ByteRange;
use backup::filesystem::ReadAt;
use backup::filesystem::detect::detect;
use backup::manifest::{FileSystemKind, Volume};

use backup::plan::{Grow, Shrink};
use backup::units::HumanBytes;

use crate::device::{Access, BlockDevice, Device, DiskReader};
use crate::job::error::Fault;
use crate::job::kernel::{failed, run_tool};
use crate::job::loops::attach;
use crate::job::own_mounts::{Mounted, with_own_mounts};
use crate::log::chain;

/// The superblock of a Btrfs (`struct btrfs_super_block`): where it is, its UUID in it, and the number of the
/// device in `dev_item`.
const BTRFS_SUPERBLOCK: u64 = 64 << 10;
const BTRFS_UUID: u64 = 32;
const BTRFS_DEVICE: u64 = 201;
/// Where the kernel lists the Btrfs that are mounted.
const BTRFS_MOUNTED: &str = "/sys/fs/btrfs";

/// What the kernel calls a file system.
const fn name(kind: FileSystemKind) -> &'static str {
    match kind {
        FileSystemKind::Btrfs => "btrfs",
        _ => "xfs",
    }
}

/// Looks whether the kernel can mount such a file system.
///
/// # Errors
/// [`Fault::Tool`] when it cannot.
pub(crate) fn check_kernel(kind: FileSystemKind) -> Result<(), Fault> {
    let name = name(kind);
    if let Err(error) = crate::drivers::load(name) {
        log::debug!("{name}: {}", chain(&error));
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim() == name) {
        return Ok(());
    }
    Err(Fault::Tool {
        tool: format!("kernel, {name}"),
        reason: format!(
            "it cannot mount {kind}, which is only resized while it is mounted; make the boot files again \
             with the module, or restore with --extra-space none, to a disk of at least the source's size"
        ),
    })
}

/// What is resized.
#[derive(Clone, Copy)]
struct Subject {
    partition: u32,
    kind: FileSystemKind,
}

impl Subject {
    fn fault(self, reason: String) -> Fault {
        Fault::Tool {
            tool: format!("resizing the {} in partition {}", self.kind, self.partition),
            reason,
        }
    }
}

/// Makes the file system as large as the block device it is on. Returns a sentence when it was left as it is.
///
/// # Errors
/// A kernel or tool that fails, and what is not the file system that was planned.
pub(super) fn grow(node: &Path, grow: &Grow) -> Result<Option<String>, Fault> {
    let subject = Subject {
        partition: grow.partition,
        kind: grow.file_system,
    };
    let before = volume_on(node, subject)?;
    let device = match grow.file_system {
        FileSystemKind::Btrfs => Some(btrfs_device(node, subject)?),
        _ => None,
    };
    let left = with_own_mounts(|| resize(node, subject, device, None))?;
    if let Some(reason) = left {
        return Ok(Some(format!(
            "The {} in partition {} keeps its size of {}: the kernel of this environment does not mount it \
             ({reason}). Make it larger in the restored system.",
            grow.file_system,
            grow.partition,
            HumanBytes(before.size)
        )));
    }
    let after = volume_on(node, subject)?;
    // XFS leaves out a last allocation group that would be too small to be one.
    if after.size <= before.size || after.size > grow.to {
        return Err(subject.fault(format!(
            "it has {} bytes (before {}, partition {})",
            after.size, before.size, grow.to
        )));
    }
    Ok(None)
}

/// Makes the Btrfs in a file smaller, to the size of its partition. Only within [`with_own_mounts`].
///
/// # Errors
/// A kernel or tool that fails, most often because the data needs more room.
pub(crate) fn shrink(file: &Path, shrink: &Shrink) -> Result<(), Fault> {
    let subject = Subject {
        partition: shrink.partition,
        kind: shrink.file_system,
    };
    let size = std::fs::metadata(file)
        .map_err(|error| subject.fault(error.to_string()))?
        .len();
    let (held, node) = attach(file, ByteRange::between(0, size), Access::Write)
        .map_err(|error| subject.fault(format!("a loop device for it: {error}")))?;
    let device = btrfs_device(&node, subject)?;
    let left = resize(&node, subject, Some(device), Some(shrink.to))?;
    drop(held);
    left.map_or(Ok(()), |reason| {
        Err(subject.fault(format!(
            "the kernel of this environment does not mount it ({reason}); restore to a disk of the source's size"
        )))
    })
}

/// Mounts it and has it resized: to `size`, or to all of its device. Returns why it was not mounted, when the
/// kernel does not know all of its features: it is whole then.
fn resize(
    node: &Path,
    subject: Subject,
    device: Option<u64>,
    size: Option<u64>,
) -> Result<Option<io::Error>, Fault> {
    // The copy of a mounted XFS may be mounted beside it.
    let options = (subject.kind == FileSystemKind::Xfs).then_some("nouuid");
    let mounted = match Mounted::new(node, name(subject.kind), options) {
        Ok(mounted) => mounted,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Some(error)),
        Err(error) => return Err(subject.fault(format!("mounting it failed: {error}"))),
    };
    let target = mounted.path().as_os_str();
    let (tool, (code, output)) = match device {
        None => {
            let arguments = ["-d".as_ref(), target];
            ("xfs_growfs", run_tool("xfs_growfs", &arguments)?)
        }
        Some(device) => {
            let size = size.map_or_else(|| "max".to_owned(), |size| size.to_string());
            let size = format!("{device}:{size}");
            let arguments = [
                "filesystem".as_ref(),
                "resize".as_ref(),
                size.as_ref(),
                target,
            ];
            ("btrfs", run_tool("btrfs", &arguments)?)
        }
    };
    let unmounted = mounted.unmount();
    if code != Some(0) {
        return Err(failed(tool, code, &output));
    }
    unmounted.map_err(|error| subject.fault(format!("unmounting it failed: {error}")))?;
    Ok(None)
}

/// What is on the device now.
fn volume_on(node: &Path, subject: Subject) -> Result<Volume, Fault> {
    let device = Device::open(node, Access::Read)?;
    let found = detect(&DiskReader(&device), device.size())
        .map_err(|error| subject.fault(error.to_string()))?;
    match <[Volume; 1]>::try_from(found) {
        Ok([volume]) if volume.file_system == subject.kind => Ok(volume),
        Ok([other]) => Err(subject.fault(format!("there is {} now", other.file_system))),
        Err(found) => {
            Err(subject.fault(format!("there are signs of {} file systems", found.len())))
        }
    }
}

/// The number that the file system has given to its device. The kernel tells a Btrfs by its UUID alone: a copy of
/// one that is mounted would be taken for it.
fn btrfs_device(node: &Path, subject: Subject) -> Result<u64, Fault> {
    let device = Device::open(node, Access::Read)?;
    let reader = DiskReader(&device);
    let (mut uuid, mut number) = ([0; 16], [0; 8]);
    reader
        .read_at(BTRFS_SUPERBLOCK + BTRFS_UUID, &mut uuid)
        .and_then(|()| reader.read_at(BTRFS_SUPERBLOCK + BTRFS_DEVICE, &mut number))
        .map_err(|error| subject.fault(error.to_string()))?;
    let uuid = uuid::Uuid::from_bytes(uuid);
    if Path::new(BTRFS_MOUNTED).join(uuid.to_string()).exists() {
        return Err(subject.fault(format!(
            "this system has the same Btrfs ({uuid}) mounted, and the kernel cannot tell them apart; restore \
             with --extra-space none to a disk of at least the source's size, or from the recovery environment"
        )));
    }
    Ok(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests;
