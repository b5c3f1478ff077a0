//! A restored volume, mounted while its files are changed.
//!
//! Invariant: mounted so that nothing in it is run or opened as a device; what was mounted is unmounted,
//! whatever happens in between.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup::manifest::FileSystemKind as Kind;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use uuid::Uuid;

use super::fault;
use super::rooted::Root;
use super::volumes::Volume;
use crate::device::Access;
use crate::job::error::Fault;
use crate::job::loops;

/// Where volumes are mounted; in memory on every system.
const FOLDER: &str = "/run";

/// How long a volume may stay busy after our last file in it is closed.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

/// A block device that shows a volume, for tools and mounts; gone when dropped.
pub(in crate::job) struct Shown {
    file: File,
    /// Its node.
    pub(in crate::job) node: PathBuf,
}

impl Shown {
    /// Shows a volume of the disk or file `backing`.
    pub(in crate::job) fn new(backing: &Path, volume: &Volume) -> Result<Self, Fault> {
        if let Err(error) = crate::drivers::load("loop") {
            log::debug!("loop: {error}");
        }
        let (file, node) = loops::attach(backing, volume.range, Access::Write)
            .map_err(fault(format!("{}: a loop device", volume.place)))?;
        Ok(Self { file, node })
    }

    /// Returns when everything that was written to it is on the disk.
    pub(in crate::job) fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// A volume that is mounted.
pub(in crate::job) struct Mounted {
    /// Its top folder.
    pub(in crate::job) root: Root,
    folder: PathBuf,
    shown: Shown,
    unmounted: bool,
}

impl Mounted {
    /// Mounts a volume of the disk or file `backing`.
    pub(in crate::job) fn new(backing: &Path, volume: &Volume) -> Result<Self, Fault> {
        let shown = Shown::new(backing, volume)?;
        // One that is left by a program that was killed is in nobody's way.
        let name = format!("netboot-copy-{}", Uuid::new_v4());
        let folder = Path::new(FOLDER).join(name);
        let failed = |what: &str| fault(format!("{}: {what}", volume.place));
        std::fs::create_dir(&folder).map_err(failed("a folder to mount it on"))?;
        let (kind, options) = match volume.kind {
            Kind::Xfs => ("xfs", "nouuid"),
            // All subvolumes are below the top one.
            Kind::Btrfs => ("btrfs", "subvolid=5"),
            Kind::Fat12 | Kind::Fat16 | Kind::Fat32 => ("vfat", ""),
            // Whatever the volume says: an error must not stop the machine.
            _ => ("ext4", "errors=remount-ro"),
        };
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let flags = quiet | MsFlags::MS_NOATIME;
        let mounted = mount(Some(&shown.node), &folder, Some(kind), flags, Some(options));
        if let Err(errno) = mounted {
            let _ = std::fs::remove_dir(&folder);
            return Err(failed("mounting it")(errno.into()));
        }
        let root = match Root::open(&folder) {
            Ok(root) => root,
            Err(error) => {
                let _ = umount2(&folder, MntFlags::MNT_DETACH);
                return Err(failed("its top folder")(error));
            }
        };
        Ok(Self {
            root,
            folder,
            shown,
            unmounted: false,
        })
    }

    /// Writes everything out and unmounts it.
    pub(in crate::job) fn close(mut self) -> io::Result<()> {
        self.root.sync()?;
        // The root's descriptor keeps the mount busy.
        self.root = Root::open(Path::new("/"))?;
        self.unmount()?;
        self.unmounted = true;
        std::fs::remove_dir(&self.folder)?;
        self.shown.flush()
    }
}

impl Mounted {
    /// A program that is just being started has our descriptors until it runs.
    fn unmount(&self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            match umount2(&self.folder, MntFlags::empty()) {
                Err(Errno::EBUSY) if began.elapsed() < BUSY_DEADLINE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return Ok(other?),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.unmounted {
            if let Err(errno) = umount2(&self.folder, MntFlags::MNT_DETACH) {
                log::error!("{} stays mounted: {errno}", self.folder.display());
            }
            let _ = std::fs::remove_dir(&self.folder);
        }
    }
}
