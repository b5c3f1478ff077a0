//! Inode flags: the kernel marks firmware variables immutable, and they must be written.
#![allow(unsafe_code, reason = "ioctl has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// include/uapi/linux/fs.h; declared with `long`, but the kernel moves an `int`.
const FS_IOC_GETFLAGS: libc::Ioctl = 0x8008_6601_u32 as libc::Ioctl;
const FS_IOC_SETFLAGS: libc::Ioctl = 0x4008_6602;
const FS_IMMUTABLE_FL: libc::c_long = 0x10;

/// Takes the immutable flag off a file, so that it can be written or removed.
///
/// # Errors
/// What the kernel says.
pub(crate) fn clear_immutable(file: BorrowedFd<'_>) -> io::Result<()> {
    // As wide as the declaration, so that neither reading of it writes past the variable.
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes at most one long through the pointer (fs/ioctl.c).
    let code = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & FS_IMMUTABLE_FL == 0 {
        return Ok(());
    }
    flags &= !FS_IMMUTABLE_FL;
    // SAFETY: the kernel reads at most one long through the pointer (fs/ioctl.c).
    let code = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
