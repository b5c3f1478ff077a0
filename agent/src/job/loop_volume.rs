//! A range of a disk or of an image file as a block device of its own, for tools and mounts that know no
//! offsets.
//!
//! Invariant: the device is free again as soon as nothing has it open, also when the agent dies.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use backup::ByteRange;

use crate::device::Access;
use crate::sys;

/// How often another loop device is tried when one was taken meanwhile.
const TRIES: usize = 16;

/// A loop device that shows `range` of `node`; it is free again when nothing has it open.
///
/// # Errors
/// What the system says.
pub(crate) fn attach(node: &Path, range: ByteRange, access: Access) -> io::Result<(File, PathBuf)> {
    let write = access == Access::Write;
    let open = |path: &Path| OpenOptions::new().read(true).write(write).open(path);
    let backing = open(node)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES {
        let path = PathBuf::from(format!("/dev/loop{}", sys::loop_device::free(&control)?));
        let device = open(&path)?;
        match sys::loop_device::show(&device, backing.as_fd(), range, access) {
            Ok(()) => return Ok((device, path)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
