//! Files that are on the disk when the call returns, whatever happens to the power afterwards.
//!
//! What is *not* here: appending to packs, which are made durable once, when they are sealed.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::StoreError;

/// The end of the name of a file that is not whole yet.
pub(super) const UNFINISHED: &str = ".tmp";

/// Makes the names in a directory durable: without it a file may be whole and still not be found.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| StoreError::io("cannot make durable the directory", path, source))
}

/// Creates a directory with its parents and makes each new name durable. What it creates is for its
/// owner alone: backups hold everything that their machines hold.
pub(super) fn create_directory(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directory(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(StoreError::io("cannot create the directory", path, source));
        }
    }
    path.parent().map_or(Ok(()), sync_directory)
}

/// Writes a file so that at every moment either nothing, the old content or all of the new content
/// carries its name: temporary file, fsync, rename, fsync of the directory.
pub(super) fn replace(path: &Path, parts: &[&[u8]]) -> Result<(), StoreError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = Path::new(&unfinished);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(unfinished)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(unfinished, path)
    };
    if let Err(source) = write() {
        // The unfinished file would be removed at the next start too; its space is wanted now.
        let _ = fs::remove_file(unfinished);
        return Err(StoreError::io("cannot write", path, source));
    }
    path.parent().map_or(Ok(()), sync_directory)
}
