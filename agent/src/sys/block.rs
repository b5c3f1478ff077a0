//! Block device requests of the kernel: sizes, zeroing, discarding, reading the table again.
//!
//! Each function makes one request on a descriptor that the caller holds. What is *not* here:
//! reading and writing bytes ([`crate::device`]).
#![allow(unsafe_code, reason = "ioctl has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use backup::ByteRange;

// include/uapi/linux/fs.h
const BLKRRPART: libc::Ioctl = 0x125f;
const BLKSSZGET: libc::Ioctl = 0x1268;
// The number on 64-bit machines; there the kernel writes a `u64`.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKZEROOUT: libc::Ioctl = 0x127f;

fn result(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The size of the block device in bytes.
///
/// # Errors
/// What the kernel says, for example `ENOTTY` when it is no block device.
pub(crate) fn size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes one u64 through the pointer (block/ioctl.c, BLKGETSIZE64).
    let code = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    result(code).map(|()| bytes)
}

/// The logical sector size of the block device in bytes.
///
/// # Errors
/// What the kernel says.
pub(crate) fn logical_sector(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int through the pointer (block/ioctl.c, BLKSSZGET).
    let code = unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &raw mut bytes) };
    result(code)?;
    u64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Says that a range holds nothing any more. Both ends must be on logical sectors.
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` when the device has no such command.
pub(crate) fn discard(device: BorrowedFd<'_>, range: ByteRange) -> io::Result<()> {
    let place = [range.start(), range.len()];
    // SAFETY: the kernel reads two u64 through the pointer (block/ioctl.c, blk_ioctl_discard).
    let code = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, place.as_ptr()) };
    result(code)
}

/// Makes a range read as zeros, by the device's own command where it has one; the kernel writes
/// zeros otherwise. Both ends must be on logical sectors.
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` means that the caller has to write zeros.
pub(crate) fn zero_out(device: BorrowedFd<'_>, range: ByteRange) -> io::Result<()> {
    let place = [range.start(), range.len()];
    // SAFETY: the kernel reads two u64 through the pointer (block/ioctl.c, blk_ioctl_zeroout).
    let code = unsafe { libc::ioctl(device.as_raw_fd(), BLKZEROOUT, place.as_ptr()) };
    result(code)
}

/// Makes the kernel read the partition table again.
///
/// # Errors
/// What the kernel says; `EBUSY` when a partition is in use.
pub(crate) fn reread_table(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    let code = unsafe { libc::ioctl(device.as_raw_fd(), BLKRRPART) };
    result(code)
}
