//! Where the store's files are: everything it does with a disk goes through here.
//!
//! [`RealStorage`] is the file system. The tests have one in memory that keeps what is live and what
//! is durable apart, and that can stop at every operation (`memory_storage`).
//!
//! Invariant: nothing in `store` touches a file but through [`Storage`]; the lock of the data
//! directory (`lock`) is the exception, because it is no data. What is *not* here: what the files
//! mean.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::Arc;

use super::StoreError;

/// The end of the name of a file that is not whole yet.
pub(super) const UNFINISHED: &str = ".tmp";

/// An open file.
pub(super) trait StoredFile: Send + Sync {
    /// Fills `into` from this byte on.
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` from this byte on.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts it, or makes it longer with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Makes its content durable; its name is made durable by [`Storage::sync_directory`].
    fn sync(&self) -> io::Result<()>;
}

/// A file that nobody else sees the kind of.
pub(super) type OpenFile = Box<dyn StoredFile>;

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    /// The name; what is not UTF-8 is shown with replacement characters, and is none of ours.
    pub(super) name: String,
    /// Whether it is a directory.
    pub(super) directory: bool,
}

/// A file system.
pub(super) trait Storage: Send + Sync {
    /// Creates a file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<OpenFile>;
    /// Creates a file that is not there.
    fn create_new(&self, path: &Path) -> io::Result<OpenFile>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<OpenFile>;
    /// Opens a file that is there for reading and writing.
    fn open_to_write(&self, path: &Path) -> io::Result<OpenFile>;
    /// Creates one directory, for its owner alone: backups hold everything that their machines hold.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or a directory another name; a file of that name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must not be there.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable: without it a file may be whole and still not be found.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>>;
    /// Bytes that can still be written in the file system of `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// A file system that several parts of the store use.
pub(super) type SharedStorage = Arc<dyn Storage>;

/// The file system of this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct RealStorage;

impl StoredFile for File {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Storage for RealStorage {
    fn create(&self, path: &Path) -> io::Result<OpenFile> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Box::new(options.open(path)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<OpenFile> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        Ok(Box::new(options.open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<OpenFile> {
        Ok(Box::new(File::open(path)?))
    }

    fn open_to_write(&self, path: &Path) -> io::Result<OpenFile> {
        Ok(Box::new(File::options().read(true).write(true).open(path)?))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let each = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok(Listed {
                name: entry.file_name().to_string_lossy().into_owned(),
                directory: entry.file_type()?.is_dir(),
            })
        };
        fs::read_dir(path)?.map(each).collect()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = nix::sys::statvfs::statvfs(path)?;
        Ok(found
            .blocks_available()
            .saturating_mul(found.fragment_size()))
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(storage: &dyn Storage, path: &Path) -> Result<(), StoreError> {
    storage
        .sync_directory(path)
        .map_err(|source| StoreError::io("cannot make durable the directory", path, source))
}

/// Creates a directory with its parents and makes each new name durable.
pub(super) fn create_directory(storage: &dyn Storage, path: &Path) -> Result<(), StoreError> {
    if storage.list(path).is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directory(storage, parent)?;
    }
    match storage.create_directory(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(StoreError::io("cannot create the directory", path, source));
        }
    }
    path.parent()
        .map_or(Ok(()), |parent| sync_directory(storage, parent))
}

/// Writes a file so that at every moment either nothing, the old content or all of the new content
/// carries its name: temporary file, fsync, rename, fsync of the directory.
pub(super) fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = Path::new(&unfinished);
    let write = || -> io::Result<()> {
        let file = storage.create(unfinished)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        storage.rename(unfinished, path)
    };
    if let Err(source) = write() {
        // The unfinished file would be removed at the next start too; its space is wanted now.
        let _ = storage.remove_file(unfinished);
        return Err(StoreError::io("cannot write", path, source));
    }
    path.parent()
        .map_or(Ok(()), |parent| sync_directory(storage, parent))
}

/// Reads a whole file, if it is there.
pub(super) fn read_if_there(
    storage: &dyn Storage,
    path: &Path,
) -> Result<Option<Vec<u8>>, StoreError> {
    let read = || -> io::Result<Vec<u8>> {
        let file = storage.open(path)?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::io("cannot read", path, source)),
    }
}

/// The names in a directory; none when it is not there.
pub(super) fn list_if_there(storage: &dyn Storage, path: &Path) -> Result<Vec<Listed>, StoreError> {
    match storage.list(path) {
        Ok(listed) => Ok(listed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(StoreError::io("cannot list", path, source)),
    }
}

/// Removes a directory of files; what is not there is no failure.
pub(super) fn remove_tree(storage: &dyn Storage, path: &Path) -> Result<(), StoreError> {
    let remove = |path: &Path| -> io::Result<()> {
        for listed in storage.list(path)? {
            storage.remove_file(&path.join(&listed.name))?;
        }
        storage.remove_directory(path)
    };
    match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("cannot remove", path, error))
        }
        _ => Ok(()),
    }
}
