//! Firmware variables: reading and writing them through efivarfs.
//!
//! The kernel shows each variable as a file `NAME-GUID`: four bytes of attributes, then the value
//! (Documentation/filesystems/efivarfs.rst). Files are immutable until told otherwise, and a value
//! must be written by one call.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use crate::sys;

/// `EFI_GLOBAL_VARIABLE` (UEFI 2.10 §3.3).
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Non-volatile, for boot services and run time (UEFI 2.10 §8.2).
const ATTRIBUTES: u32 = 7;

/// The firmware's global variables.
pub(crate) trait Variables: Sync {
    /// The names of all global variables.
    fn names(&self) -> io::Result<Vec<String>>;
    /// A value without its attributes; none when there is no such variable.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Makes or changes a variable.
    fn write(&self, name: &str, value: &[u8]) -> io::Result<()>;
}

/// efivarfs.
#[derive(Debug)]
pub(crate) struct EfiVariables {
    folder: PathBuf,
}

impl EfiVariables {
    /// The variables in `folder`, usually `/sys/firmware/efi/efivars`.
    pub(crate) fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{GLOBAL}"))
    }
}

impl Variables for EfiVariables {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let global = name.to_str().and_then(|name| name.strip_suffix(GLOBAL));
            if let Some(name) = global.and_then(|name| name.strip_suffix('-')) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path(name)) {
            Ok(bytes) => Ok(bytes.get(4..).map(<[u8]>::to_vec)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => match sys::inode_flags::clear_immutable(file.as_fd()) {
                // A file system without flags has no immutable files.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
                other => other?,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut bytes = ATTRIBUTES.to_le_bytes().to_vec();
        bytes.extend_from_slice(value);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        // One call: the kernel hands each write to the firmware as a whole value.
        let written = file.write(&bytes)?;
        if written != bytes.len() {
            return Err(io::Error::new(
                ErrorKind::WriteZero,
                "the firmware took only a part",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_with_attributes_and_read_without() {
        let folder = tempfile::tempdir().unwrap();
        let variables = EfiVariables::new(folder.path());
        assert_eq!(variables.read("BootOrder").unwrap(), None);
        variables.write("BootOrder", &[1, 0, 2, 0]).unwrap();
        variables.write("BootOrder", &[2, 0]).unwrap();
        assert_eq!(variables.read("BootOrder").unwrap(), Some(vec![2, 0]));
        let raw = std::fs::read(variables.path("BootOrder")).unwrap();
        assert_eq!(raw, [7, 0, 0, 0, 2, 0]);
        std::fs::write(
            folder
                .path()
                .join("Other-00000000-0000-0000-0000-000000000000"),
            b"",
        )
        .unwrap();
        assert_eq!(variables.names().unwrap(), ["BootOrder"]);
    }
}
