//! The size of a console.

#![allow(unsafe_code, reason = "ioctl has no safe form")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Rows and columns of a terminal, when the kernel knows them (`TIOCGWINSZ`, `ioctl_tty(2)`).
pub(crate) fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes one `struct winsize` through the pointer, which is valid for it.
    let code = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (code == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
