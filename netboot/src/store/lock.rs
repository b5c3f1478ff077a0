//! One server at a time on a data directory.
//!
//! The lock is the kernel's (`flock`), on an open file, so that it ends with the process however
//! that ends; the file itself stays.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::StoreError;

/// The data directory is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the lock of a data directory.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it; [`StoreError::Io`] when the lock file
    /// cannot be made.
    pub(crate) fn take(data_directory: &Path) -> Result<Self, StoreError> {
        let path = data_directory.join("lock");
        let cannot = |source| StoreError::io("cannot lock", &path, source);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message; an unreadable number is left out of it.
                let _ = file.take(20).read_to_string(&mut holder);
                return Err(StoreError::InUse {
                    path: data_directory.to_owned(),
                    holder: holder.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(cannot(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(cannot)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_on_the_same_directory_is_refused_and_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataLock::take(directory.path()).unwrap();
        let refusal = DataLock::take(directory.path()).unwrap_err();
        let own = std::process::id();
        assert!(
            matches!(&refusal, StoreError::InUse { holder: Some(holder), .. } if *holder == own),
            "{refusal}"
        );
        drop(first);
        DataLock::take(directory.path()).unwrap();
    }
}
