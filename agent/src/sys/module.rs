//! Kernel modules.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};

/// Loads the module in `path` with `parameters` (`finit_module(2)`).
///
/// # Errors
/// What the system said. A module that is there already (`EEXIST`) is success.
pub(crate) fn load(path: &Path, parameters: &std::ffi::CStr) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(file, parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
