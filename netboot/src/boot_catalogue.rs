//! The boot files: a table from names to files, made by reading the boot folder.
//!
//! Invariant: a client chooses a key of this table and nothing else; no name from the network ever
//! becomes a path. Files changed or added while the server runs are seen: a look-up that misses or
//! finds its file changed reads the folder again, at most once a second.
//!
//! Not here: protocols. TFTP and HTTP both serve from this table.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crate::boot_content::{Content, ContentCache};
use crate::dhcp::boot_table::loader_names;

/// Folders are read this deep.
const MAX_DEPTH: usize = 4;
/// More files than this are not boot files: somebody gave us the root folder.
const MAX_FILES: usize = 10_000;
const RESCAN_INTERVAL: Duration = Duration::from_secs(1);

/// A file that machines may fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootFile {
    /// Where it is.
    path: PathBuf,
    /// Its length in bytes.
    pub(crate) len: u64,
    modified: Option<SystemTime>,
    /// BLAKE3 of its content in hexadecimal.
    pub(crate) digest: String,
}

/// The boot folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogueError {
    /// A folder or file in it.
    #[error("the boot file {} cannot be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too much in it.
    #[error(
        "the boot folder {} has more than {MAX_FILES} files; name a folder that holds boot files only",
        .0.display()
    )]
    TooManyFiles(PathBuf),
}

/// The table.
#[derive(Debug)]
pub(crate) struct BootCatalogue {
    folder: PathBuf,
    /// Where loaders come from that the boot folder lacks: the distribution's package.
    loaders: PathBuf,
    table: Mutex<Table>,
    contents: ContentCache,
}

#[derive(Debug)]
struct Table {
    files: HashMap<String, Arc<BootFile>>,
    read_at: Instant,
}

impl BootCatalogue {
    /// Reads the boot folder.
    ///
    /// # Errors
    /// When it, or a file in it, cannot be read.
    pub(crate) fn read(folder: &Path, loaders: &Path) -> Result<Self, CatalogueError> {
        let files = scan(folder, loaders, &HashMap::new())?;
        Ok(Self {
            folder: folder.to_owned(),
            loaders: loaders.to_owned(),
            table: Mutex::new(Table {
                files,
                read_at: Instant::now(),
            }),
            contents: ContentCache::default(),
        })
    }

    /// Whether there is such a file, as far as the table knows.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().files.contains_key(name)
    }

    /// The file of a name as a client wrote it: `\` is `/`, empty parts do not count.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<BootFile>> {
        let key = key(name);
        let known = self.lock().files.get(&key).cloned();
        match known {
            Some(file) if file.is_current() => Some(file),
            known => {
                self.read_again();
                self.lock().files.get(&key).cloned().or(known)
            }
        }
    }

    /// The content of a file of the table. What is sent has the length of the content: the file may
    /// be newer than the table.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn open(&self, file: &BootFile) -> io::Result<Content> {
        self.contents.content(File::open(&file.path)?, &file.digest)
    }

    /// Reads the folder again unless that was done a moment ago.
    pub(crate) fn refresh(&self) {
        self.read_again();
    }

    fn read_again(&self) {
        let known = {
            let mut table = self.lock();
            if table.read_at.elapsed() < RESCAN_INTERVAL {
                return;
            }
            table.read_at = Instant::now();
            table.files.clone()
        };
        match scan(&self.folder, &self.loaders, &known) {
            Ok(files) => self.lock().files = files,
            Err(error) => log::warn!("{error}; the files known before stay in use"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is replaced whole, so a panic elsewhere cannot leave half of one.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BootFile {
    fn is_current(&self) -> bool {
        self.path
            .metadata()
            .is_ok_and(|now| now.len() == self.len && now.modified().ok() == self.modified)
    }

    fn read(path: PathBuf, known: Option<&Arc<Self>>) -> io::Result<Arc<Self>> {
        if let Some(file) = known.filter(|file| file.path == path && file.is_current()) {
            return Ok(Arc::clone(file));
        }
        let mut file = File::open(&path)?;
        let metadata = file.metadata()?;
        let mut hasher = blake3::Hasher::new();
        let len = io::copy(&mut file, &mut hasher)?;
        let digest = hasher.finalize().to_hex().to_string();
        Ok(Arc::new(Self {
            path,
            len,
            modified: metadata.modified().ok(),
            digest,
        }))
    }
}

fn key(name: &str) -> String {
    let parts: Vec<_> = name
        .split(['/', '\\'])
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("/")
}

type Files = HashMap<String, Arc<BootFile>>;

fn scan(folder: &Path, loaders: &Path, known: &Files) -> Result<Files, CatalogueError> {
    let mut files = HashMap::new();
    scan_folder(folder, "", MAX_DEPTH, known, &mut files)?;
    for name in loader_names() {
        let path = loaders.join(name);
        if !files.contains_key(name) && path.is_file() {
            add(&mut files, known, name.to_owned(), path)?;
        }
    }
    Ok(files)
}

fn scan_folder(
    folder: &Path,
    prefix: &str,
    depth: usize,
    known: &Files,
    files: &mut Files,
) -> Result<(), CatalogueError> {
    let error = |source| CatalogueError::Read {
        path: folder.to_owned(),
        source,
    };
    for entry in folder.read_dir().map_err(error)? {
        let entry = entry.map_err(error)?;
        let path = entry.path();
        // Names that are not UTF-8 are asked for by no firmware; hidden files are being written.
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let Ok(metadata) = path.metadata() else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        if metadata.is_dir() && depth > 0 {
            scan_folder(&path, &format!("{prefix}{name}/"), depth - 1, known, files)?;
        } else if metadata.is_file() {
            add(files, known, format!("{prefix}{name}"), path)?;
        }
        if files.len() > MAX_FILES {
            return Err(CatalogueError::TooManyFiles(folder.to_owned()));
        }
    }
    Ok(())
}

fn add(files: &mut Files, known: &Files, key: String, path: PathBuf) -> Result<(), CatalogueError> {
    let file = BootFile::read(path.clone(), known.get(&key))
        .map_err(|source| CatalogueError::Read { path, source })?;
    files.insert(key, file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_keys_and_never_paths() {
        let folder = tempfile::tempdir().expect("a folder");
        let boot = folder.path().join("boot");
        std::fs::create_dir_all(boot.join("grub")).expect("made");
        std::fs::write(folder.path().join("secret"), "no").expect("written");
        std::fs::write(boot.join("grub/grub.cfg"), "yes").expect("written");
        let catalogue = BootCatalogue::read(&boot, Path::new("/nonexistent")).expect("read");
        for name in [
            "grub/grub.cfg",
            "/grub/grub.cfg",
            "\\grub\\grub.cfg",
            "//grub//grub.cfg",
        ] {
            assert!(catalogue.find(name).is_some(), "{name}");
        }
        for name in [
            "../secret",
            "grub/../../secret",
            "/etc/passwd",
            "..\\secret",
            "",
        ] {
            assert_eq!(catalogue.find(name), None, "{name}");
        }
    }

    #[test]
    fn the_boot_folder_wins_over_the_distributions_loader() {
        let folder = tempfile::tempdir().expect("a folder");
        let (boot, loaders) = (folder.path().join("boot"), folder.path().join("ipxe"));
        for (path, text) in [(&boot, "ours"), (&loaders, "the package's")] {
            std::fs::create_dir(path).expect("made");
            std::fs::write(path.join("snponly.efi"), text).expect("written");
        }
        std::fs::write(loaders.join("undionly.kpxe"), "x").expect("written");
        std::fs::write(loaders.join("other"), "x").expect("written");
        let catalogue = BootCatalogue::read(&boot, &loaders).expect("read");
        assert_eq!(catalogue.find("snponly.efi").expect("found").len, 4);
        assert!(catalogue.has("undionly.kpxe"));
        assert!(!catalogue.has("other"));
    }
}
