//! A running Linux as the engine's machine: its own disks, or image files taken for disks.
//!
//! Invariant: only the disks of the inventory are opened, block devices exclusively; the firmware's
//! variables are read when the machine's own disks are captured and never written: what a restore onto
//! another disk of a running system needs to start is not this system's boot order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::hardware::{Disk, FirmwareKind};
use backup::manifest::FileSystemKind;
use backup::plan::{DiskPlan, RestorePlan};
use backup::{ByteRange, SectorSize};
use protocol::unlock::VolumeKey;

use crate::boot_repair::variables::Variables;
use crate::device::{Access, BlockDevice, Device, DeviceError};
use crate::hardware::named::NamedDisk;
use crate::job::encrypted;
use crate::job::error::Fault;
use crate::job::grow::{check_tools, grow_file_system};
use crate::job::kernel::{Kernel, find_tool, run_tool};
use crate::job::platform::{Loader, Platform};
use crate::log::chain;
use crate::running::snapshot::{Lvm, Snapshot, VolumeManager};
use crate::running::{self, Use};

/// The running system, for one job.
pub(crate) struct Native {
    named: Vec<NamedDisk>,
    kernel: Kernel,
    volumes: Arc<dyn VolumeManager>,
}

/// A snapshot read in place of the volume that it is of.
struct OfSnapshot {
    // Closed before the snapshot is removed.
    device: Device,
    snapshot: Snapshot,
}

impl BlockDevice for OfSnapshot {
    fn name(&self) -> &str {
        self.snapshot.origin()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn sector(&self) -> SectorSize {
        self.device.sector()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn zero(&self, _: ByteRange) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Native {
    /// The system for a job that `captures` or restores, with these disks named; none for all its own.
    pub(crate) fn new(
        named: Vec<NamedDisk>,
        firmware: FirmwareKind,
        architecture: &str,
        captures: bool,
    ) -> Self {
        let images = named.iter().any(|named| named.image.is_some());
        // The boot entries of this system say nothing of what is in an image.
        let firmware = if captures && !images {
            firmware
        } else {
            FirmwareKind::Bios
        };
        Self {
            named,
            kernel: Kernel::new(firmware, architecture),
            volumes: Arc::new(Lvm),
        }
    }

    /// Opens a disk to be captured: itself when nothing uses it, else a snapshot of it.
    fn open_source(&self, disk: &Disk) -> Result<Box<dyn BlockDevice>, DeviceError> {
        let uses = self.uses(disk);
        if uses.is_empty() {
            return self.kernel.open(disk, Access::Read);
        }
        let in_use = |reason: String| DeviceError::InUse { reason };
        let node = Path::new("/dev").join(&disk.name);
        let snapshot = Snapshot::of(&self.volumes, &node).map_err(|fault| in_use(chain(&fault)))?;
        let snapshot = snapshot.ok_or_else(|| in_use(running::refusal(&disk.name, &uses)))?;
        let device = Device::open(&snapshot.node, Access::Read)?;
        Ok(Box::new(OfSnapshot { device, snapshot }))
    }

    /// Why this disk cannot be captured while the system runs, if it cannot.
    ///
    /// # Errors
    /// What LVM says when it is asked.
    pub(crate) fn refusal(&self, disk: &Disk) -> Result<Option<String>, Fault> {
        let uses = self.uses(disk);
        let node = Path::new("/dev").join(&disk.name);
        if uses.is_empty() || self.volumes.volume(&node)?.is_some() {
            return Ok(None);
        }
        Ok(Some(running::refusal(&disk.name, &uses)))
    }

    fn uses(&self, disk: &Disk) -> Vec<Use> {
        if self.image(disk).is_some() {
            return Vec::new();
        }
        running::uses(Path::new("/sys"), Path::new("/proc"), &disk.name)
    }

    /// The image file that this disk is.
    fn image(&self, disk: &Disk) -> Option<&NamedDisk> {
        self.named
            .iter()
            .find(|named| named.image.is_some() && named.path.as_os_str() == disk.name.as_str())
    }
}

impl Platform for Native {
    fn open(&self, disk: &Disk, access: Access) -> Result<Box<dyn BlockDevice>, DeviceError> {
        match self.image(disk) {
            Some(NamedDisk {
                path,
                image: Some(sector),
            }) => Ok(Box::new(Device::open_image(path, access, *sector)?)),
            _ if access == Access::Read => self.open_source(disk),
            _ => self.kernel.open(disk, access),
        }
    }

    fn unlock(
        &self,
        disk: &Disk,
        range: ByteRange,
        kind: FileSystemKind,
        key: &VolumeKey,
    ) -> Result<Box<dyn BlockDevice>, Fault> {
        let place = key.place.to_string();
        if let Some(image) = self.image(disk) {
            return encrypted::open(&image.path, range, kind, &key.key, &place);
        }
        let uses = self.uses(disk);
        if !uses.is_empty() {
            // What is read is a snapshot of it, and the volume itself changes meanwhile.
            return Err(Fault::NotAsPlanned(format!(
                "{place} is in use and cannot be opened a second time; {}",
                running::refusal(&disk.name, &uses)
            )));
        }
        self.kernel.unlock(disk, range, kind, key)
    }

    fn check_tools(&self, plan: &RestorePlan) -> Result<(), Fault> {
        self.kernel.check_tools(plan)?;
        let grows = |disk: &&DiskPlan| self.image(&disk.target).is_some() && !disk.grow.is_empty();
        if plan.disks.iter().any(|disk| grows(&disk)) {
            find_tool("losetup")?;
            if !nix::unistd::Uid::effective().is_root() {
                return Err(Fault::Tool {
                    tool: "losetup".to_owned(),
                    reason: "only root can grow the file system in an image file; restore to a \
                             file of the source's size, or as root"
                        .to_owned(),
                });
            }
        }
        Ok(())
    }

    fn finish_volumes(&self, disk: &DiskPlan, loaders: &[Loader]) -> Result<Vec<String>, Fault> {
        let Some(image) = self.image(&disk.target) else {
            return self.kernel.finish_volumes(disk, loaders);
        };
        let mut sentences = Vec::new();
        for grow in &disk.grow {
            check_tools(grow)?;
            let partition = disk
                .partitions
                .iter()
                .find(|one| one.number == grow.partition);
            let partition = partition.ok_or_else(|| {
                Fault::Internal(format!("the plan grows no partition {}", grow.partition))
            })?;
            let node = attach(&image.path, partition.range)?;
            let grown = grow_file_system(Path::new(&node), grow);
            let detached = losetup(&["--detach".as_ref(), node.as_ref()]);
            sentences.extend(grown?);
            detached?;
        }
        Ok(sentences)
    }

    fn backing(&self, disk: &Disk) -> PathBuf {
        match self.image(disk) {
            Some(image) => image.path.clone(),
            None => self.kernel.backing(disk),
        }
    }

    fn reread_table(&self, disk: &Disk) -> io::Result<()> {
        match self.image(disk) {
            Some(_) => Ok(()),
            None => self.kernel.reread_table(disk),
        }
    }

    fn variables(&self) -> Option<&dyn Variables> {
        self.kernel.variables()
    }
}

/// Makes a range of a file a block device; returns its node.
fn attach(path: &Path, range: ByteRange) -> Result<String, Fault> {
    let (offset, len) = (range.start().to_string(), range.len().to_string());
    losetup(&[
        "--find".as_ref(),
        "--show".as_ref(),
        "--offset".as_ref(),
        offset.as_ref(),
        "--sizelimit".as_ref(),
        len.as_ref(),
        path.as_os_str(),
    ])
}

fn losetup(arguments: &[&std::ffi::OsStr]) -> Result<String, Fault> {
    let (code, output) = run_tool("losetup", arguments)?;
    if code == Some(0) {
        return Ok(output);
    }
    Err(Fault::Tool {
        tool: "losetup".to_owned(),
        reason: output,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use backup::Digest;
    use backup::plan::Choices;

    use super::*;
    use crate::capture::capture;
    use crate::job::fake::{Bench, point, run};
    use crate::restore::restore;

    fn named(path: &Path) -> (NamedDisk, Disk) {
        let named = NamedDisk::parse(path.to_str().unwrap()).unwrap();
        let disk = named.disk(Path::new("/sys")).unwrap();
        (named, disk)
    }

    #[test]
    fn an_image_file_is_captured_unchanged_and_comes_back_in_another() {
        let folder = tempfile::tempdir().unwrap();
        let (source, tree) = (folder.path().join("source"), folder.path().join("tree"));
        fs::create_dir(&tree).unwrap();
        for number in 0..50u32 {
            let text = format!("file {number} ").repeat(number as usize * 300);
            fs::write(tree.join(number.to_string()), text).unwrap();
        }
        let (path, from) = (source.to_str().unwrap(), tree.to_str().unwrap());
        run("mke2fs", &["-q", "-t", "ext4", "-d", from, path, "32M"]);
        let target = folder.path().join("target");
        File::create(&target).unwrap().set_len(32 << 20).unwrap();
        let before = Digest::of(&fs::read(&source).unwrap());

        let disks = [named(&source), named(&target)];
        let all = disks.iter().map(|(named, _)| named.clone()).collect();
        let native = Native::new(all, FirmwareKind::Uefi, "x86_64", true);
        assert!(native.variables().is_none(), "an image has no boot entries");
        let mut bench = Bench::new(native, vec![disks[0].1.clone()]);
        capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
        assert_eq!(Digest::of(&fs::read(&source).unwrap()), before);

        bench.inventory.disks = vec![disks[1].1.clone()];
        restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
        // What the file system does not use is zero in a new one, and in the target.
        assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
    }
}
