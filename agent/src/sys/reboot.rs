//! Ending: restart and switch off.

use std::convert::Infallible;
use std::io;

use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It starts again.
    Restart,
    /// It switches off.
    PowerOff,
}

/// Writes everything back and ends. Does not return when it works.
///
/// # Errors
/// What the system said, for example `EPERM` when this is no root process.
pub(crate) fn end(how: Ending) -> io::Result<Infallible> {
    nix::unistd::sync();
    let mode = match how {
        Ending::Restart => RebootMode::RB_AUTOBOOT,
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
    };
    reboot(mode).map_err(io::Error::from)
}

/// Has the kernel send SIGINT to PID 1 on Ctrl-Alt-Del in place of restarting at once (`reboot(2)`).
///
/// # Errors
/// What the system said.
pub(crate) fn catch_ctrl_alt_del() -> io::Result<()> {
    set_cad_enabled(false).map_err(io::Error::from)
}
