//! Parts of disks and files as block devices of their own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use backup::ByteRange;

use crate::device::Access;
use crate::log::chain;
use crate::sys;

/// How often another loop device is tried when one was taken meanwhile.
const TRIES: usize = 16;

/// A loop device that shows the range; it is free again when nothing has it open.
///
/// # Errors
/// What the kernel says.
pub(crate) fn attach(node: &Path, range: ByteRange, access: Access) -> io::Result<(File, PathBuf)> {
    if let Err(error) = crate::drivers::load("loop") {
        log::debug!("loop: {}", chain(&error));
    }
    let is_writable = access == Access::Write;
    let open = |path: &Path| OpenOptions::new().read(true).write(is_writable).open(path);
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
