//! Loop devices: a part of a disk or of a file as a block device of its own.
//!
//! The kernel's structures, from include/uapi/linux/loop.h:
//!
//! ```c
//! struct loop_info64 {
//!         __u64 lo_device;
//!         __u64 lo_inode;
//!         __u64 lo_rdevice;
//!         __u64 lo_offset;
//!         __u64 lo_sizelimit; /* bytes, 0 == max available */
//!         __u32 lo_number;
//!         __u32 lo_encrypt_type;
//!         __u32 lo_encrypt_key_size;
//!         __u32 lo_flags;
//!         __u8  lo_file_name[64];
//!         __u8  lo_crypt_name[64];
//!         __u8  lo_encrypt_key[32];
//!         __u64 lo_init[2];
//! };
//! struct loop_config {
//!         __u32 fd;
//!         __u32 block_size;
//!         struct loop_info64 info;
//!         __u64 __reserved[8];
//! };
//! ```
#![allow(unsafe_code, reason = "ioctl has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use backup::ByteRange;

use crate::device::Access;

const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// The number of a loop device that is free; `control` is `/dev/loop-control`.
///
/// # Errors
/// What the kernel says.
pub(crate) fn free(control: &File) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let code = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(code).map_err(|_| io::Error::last_os_error())
}

/// Makes the loop device show a range of `backing`, until nothing has the loop device open any more. For
/// writing, both must be open for that.
///
/// # Errors
/// What the kernel says: `EBUSY` when the loop device was taken meanwhile.
pub(crate) fn show(
    device: &File,
    backing: BorrowedFd<'_>,
    range: ByteRange,
    access: Access,
) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let read_only = match access {
        Access::Read => LO_FLAGS_READ_ONLY,
        Access::Write => 0,
    };
    let config = Config {
        fd,
        block_size: 0,
        info: Info {
            device: 0,
            inode: 0,
            real_device: 0,
            offset: range.start(),
            size_limit: range.len(),
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: read_only | LO_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the structure has the kernel's layout and outlives the call, which copies it
    // (drivers/block/loop.c, lo_ioctl).
    let code = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
