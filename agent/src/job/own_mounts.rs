//! A thread that sees mounts of its own.
//!
//! Invariant: what is mounted in it is seen by no other process but those that it starts, and is gone when it
//! ends, however it ends: a killed agent leaves no mount behind.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::job::error::Fault;

/// Where such a thread mounts.
const FOLDER: &str = "/run/netboot-volumes";
/// What is mounted here is data: no program of it runs, and no device of it is opened.
const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Does `work` in such a thread.
///
/// # Errors
/// What `work` says; [`Fault::Tool`] when the kernel gives no mounts of one's own.
pub(crate) fn with_own_mounts<T: Send>(
    work: impl FnOnce() -> Result<T, Fault> + Send,
) -> Result<T, Fault> {
    let own = || -> Result<T, Fault> {
        let fault = |error: io::Error| Fault::Tool {
            tool: "kernel, mounts of one's own".to_owned(),
            reason: error.to_string(),
        };
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| fault(errno.into()))?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
            .map_err(|errno| fault(errno.into()))?;
        work()
    };
    thread::scope(|scope| scope.spawn(own).join())
        .unwrap_or_else(|_| Err(Fault::Internal("a thread ended by a panic".to_owned())))
}

/// A file system that is mounted; it is unmounted when this is dropped.
pub(crate) struct Mounted {
    path: PathBuf,
    is_mounted: bool,
}

impl Mounted {
    /// Mounts the file system of a block device, for reading and writing. Only within [`with_own_mounts`].
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(node: &Path, kind: &str, options: Option<&str>) -> io::Result<Self> {
        let path = folder("volume")?;
        mount(Some(node), &path, Some(kind), QUIET, options)?;
        Ok(Self {
            path,
            is_mounted: true,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it: everything is on the device when this returns.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn unmount(mut self) -> io::Result<()> {
        self.is_mounted = false;
        unmount(&self.path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = unmount(&self.path)
        {
            log::warn!("{}: {error}", self.path.display());
        }
    }
}

/// How often, and after which wait, a mount that is in use is tried again.
const TRIES: u32 = 200;
const WAIT: Duration = Duration::from_millis(50);

/// Unmounts, and waits while it is in use: a loop device lets go of its file some time after it was detached, and a
/// process that another thread is starting has our files until its program begins.
///
/// # Errors
/// What the kernel says; `EBUSY` after ten seconds.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match umount(path) {
            Err(Errno::EBUSY) if tries < TRIES => {
                tries += 1;
                thread::sleep(WAIT);
            }
            result => return Ok(result?),
        }
    }
}

/// The same; what is in use even then is out of sight at once, and unmounted when the last of its files is closed.
///
/// # Errors
/// What the kernel says.
pub(crate) fn unmount_or_detach(path: &Path) -> io::Result<()> {
    match unmount(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Ok(umount2(path, MntFlags::MNT_DETACH)?)
        }
        result => result,
    }
}

/// A folder to mount on, which only this user may enter.
///
/// # Errors
/// What the system says.
pub(crate) fn folder(name: &str) -> io::Result<PathBuf> {
    let path = Path::new(FOLDER).join(name);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)?;
    Ok(path)
}
