//! Partitions that the kernel is told of without a table on the disk.
//!
//! A restore needs `/dev/vda2` before the table exists, because the table is the commit. The
//! kernel's structures, from include/uapi/linux/blkpg.h:
//!
//! ```c
//! struct blkpg_ioctl_arg {
//!         int op;
//!         int flags;
//!         int datalen;
//!         void __user *data;
//! };
//! struct blkpg_partition {
//!         long long start;                /* starting offset in bytes */
//!         long long length;               /* length in bytes */
//!         int pno;                        /* partition number */
//!         char devname[BLKPG_DEVNAMELTH]; /* unused / ignored */
//!         char volname[BLKPG_VOLNAMELTH]; /* unused / ignore */
//! };
//! ```
#![allow(unsafe_code, reason = "ioctl has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use backup::ByteRange;

const BLKPG: libc::Ioctl = 0x1269;
const ADD_PARTITION: libc::c_int = 1;
const DEL_PARTITION: libc::c_int = 2;

#[repr(C)]
struct Argument {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut Partition,
}

#[repr(C)]
struct Partition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

const _: () = assert!(size_of::<Partition>() == 152);

/// Tells the kernel of partition `number` of the disk; a node appears in `/dev`.
///
/// # Errors
/// What the kernel says: `EBUSY` when it overlaps one that is there.
pub(crate) fn add(disk: BorrowedFd<'_>, number: u32, range: ByteRange) -> io::Result<()> {
    request(disk, ADD_PARTITION, number, range)
}

/// Makes the kernel forget partition `number`; the disk's bytes are left alone.
///
/// # Errors
/// What the kernel says: `EBUSY` when it is open, `ENXIO` when there is none.
pub(crate) fn remove(disk: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    request(disk, DEL_PARTITION, number, ByteRange::between(0, 0))
}

fn request(disk: BorrowedFd<'_>, op: libc::c_int, number: u32, range: ByteRange) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = Partition {
        start: range.start().try_into().map_err(invalid)?,
        length: range.len().try_into().map_err(invalid)?,
        number: number.try_into().map_err(invalid)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = Argument {
        op,
        flags: 0,
        datalen: size_of::<Partition>() as libc::c_int,
        data: &raw mut partition,
    };
    // SAFETY: both structures have the kernel's layout and outlive the call, which copies them
    // (block/ioctl.c, blkpg_ioctl).
    let code = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const argument) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
