//! What the engine needs of the machine it runs on, apart from how the machine gives it.
//!
//! The engine is tested on image files; [`crate::job::kernel`] is the real one,
//! [`crate::job::native`] a running system with what was named of it.

use std::io;
use std::path::{Path, PathBuf};

use backup::ByteRange;
use backup::hardware::Disk;
use backup::manifest::FileSystemKind;
use backup::plan::{DiskPlan, RestorePlan};
use protocol::unlock::VolumeKey;

use crate::boot_repair::variables::Variables;
use crate::device::{Access, BlockDevice, DeviceError};
use crate::job::error::Fault;

/// The machine.
pub(crate) trait Platform: Send + Sync {
    /// Opens a disk of the inventory, exclusively.
    fn open(&self, disk: &Disk, access: Access) -> Result<Box<dyn BlockDevice>, DeviceError>;

    /// Opens the encrypted volume of `kind` in a range of a disk that is open already, for reading only.
    fn unlock(
        &self,
        _disk: &Disk,
        _range: ByteRange,
        kind: FileSystemKind,
        key: &VolumeKey,
    ) -> Result<Box<dyn BlockDevice>, Fault> {
        Err(Fault::NotAsPlanned(format!(
            "{}: {kind} is not opened on this machine",
            key.place
        )))
    }

    /// Whether every tool that the plan needs is there; asked before the first write.
    fn check_tools(&self, plan: &RestorePlan) -> Result<(), Fault>;

    /// Grows the planned file systems and puts a fallback loader on the EFI system partition; the
    /// disk is not open meanwhile and has no table yet. `loaders` are the paths that the backup's
    /// boot entries name for each partition GUID. Returns sentences for the summary.
    fn finish_volumes(&self, disk: &DiskPlan, loaders: &[Loader]) -> Result<Vec<String>, Fault>;

    /// The node or file of a disk, of which loop devices show parts while the disk is not open.
    fn backing(&self, disk: &Disk) -> PathBuf {
        Path::new("/dev").join(&disk.name)
    }

    /// Where files of packages are: loaders, and what they are made of.
    fn packages(&self) -> PathBuf {
        PathBuf::from("/")
    }

    /// Makes the kernel read the table of a committed disk.
    fn reread_table(&self, disk: &Disk) -> io::Result<()>;

    /// The firmware's variables, when the machine was started by UEFI.
    fn variables(&self) -> Option<&dyn Variables>;
}

/// A boot loader that a boot entry of the backup names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loader {
    /// The partition's GUID in lower-case canonical text.
    pub(crate) partition: String,
    /// The path in the partition with backslashes, for example `\EFI\debian\shimx64.efi`.
    pub(crate) path: String,
}
