//! A file that appears under its name only when it is whole.
//!
//! Invariant: until [`NewFile::keep`] it has another name in the same folder, and is removed when it is
//! dropped.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::ExchangeError;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct NewFile {
    target: PathBuf,
    partial: PathBuf,
    kept: bool,
}

impl NewFile {
    /// A file to become `target`. Nothing is created yet.
    ///
    /// # Errors
    /// [`ExchangeError::Exists`], [`ExchangeError::Place`].
    pub(super) fn new(target: &Path, force: bool) -> Result<Self, ExchangeError> {
        check_target(target, force)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Short enough to be a name when the target's is.
        let name: String = name.chars().take(40).collect();
        let partial = format!(".{name}.{}.partial", std::process::id());
        Ok(Self {
            target: target.to_owned(),
            partial: target.with_file_name(partial),
            kept: false,
        })
    }

    /// What it is called while it is written.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// What it will be called.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Creates it, for its owner alone: a backup holds everything that its machine holds.
    ///
    /// # Errors
    /// [`ExchangeError::Output`].
    pub(super) fn create(&self) -> Result<File, ExchangeError> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options
            .open(&self.partial)
            .map_err(ExchangeError::output("cannot create", &self.partial))
    }

    /// Makes its bytes durable, as far as the file system does that.
    ///
    /// # Errors
    /// [`ExchangeError::Output`].
    pub(super) fn flush(&self) -> Result<(), ExchangeError> {
        File::open(&self.partial)
            .and_then(|file| file.sync_all())
            .map_err(ExchangeError::output("cannot flush", &self.partial))
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`ExchangeError::Exists`] when something took that name meanwhile, [`ExchangeError::Output`].
    pub(super) fn keep(mut self, force: bool) -> Result<PathBuf, ExchangeError> {
        let named = if force {
            fs::rename(&self.partial, &self.target)
        } else {
            rename_new(&self.partial, &self.target)
        };
        match named {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ExchangeError::Exists(self.target.clone()));
            }
            other => other.map_err(ExchangeError::output("cannot name", &self.target))?,
        }
        self.kept = true;
        if let Some(folder) = self.target.parent() {
            // The name is durable with its folder; file systems that cannot flush one (FUSE) say so.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(self.target.clone())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Refuses a target that is there, or that cannot be replaced by a file.
fn check_target(target: &Path, force: bool) -> Result<(), ExchangeError> {
    let Ok(found) = fs::symlink_metadata(target) else {
        return Ok(());
    };
    if !found.is_file() {
        return Err(ExchangeError::Place {
            path: target.to_owned(),
            reason: "it is there already and no ordinary file. To write a disk, restore it: \
                     `netboot restore`, or `agent join --disk`"
                .to_owned(),
        });
    }
    if force {
        Ok(())
    } else {
        Err(ExchangeError::Exists(target.to_owned()))
    }
}

/// Renames to a name that nothing has.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use nix::errno::Errno;
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system that cannot promise it: looked at just before is the best there is.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) if !to.exists() => fs::rename(from, to),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) => {
            Err(io::Error::from(io::ErrorKind::AlreadyExists))
        }
        Err(error) => Err(error.into()),
    }
}
