//! File listings: what is on a file system, compared by everything that a restore must keep.
//!
//! ext4 is read with a library that has nothing to do with the product (read only, without root), FAT with
//! mtools. Not compared: inode numbers, access and change times, free space.

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, PathBuf as ExtPath};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

use super::tool::{self, ToolError};

/// Bytes read from a file at a time.
const PIECE: usize = 256 << 10;
/// Differences that a report names; the rest is counted.
const NAMED_DIFFERENCES: usize = 20;

/// A file system could not be listed.
#[derive(Debug, Error)]
pub(crate) enum TreeError {
    /// The image could not be opened or read.
    #[error("cannot read {path}")]
    Io {
        /// The image or a folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The ext4 file system is not right.
    #[error("the ext4 file system in {image} cannot be read at {at}")]
    Ext4 {
        /// The image.
        image: PathBuf,
        /// Path in the file system.
        at: String,
        /// Why not.
        source: Ext4Error,
    },
    /// mtools failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Everything about one file that a restore must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    kind: &'static str,
    mode: u16,
    owner: (u32, u32),
    size: u64,
    /// Seconds and nanoseconds since 1970; `None` on FAT, where times have no zone.
    modified: Option<(i64, u32)>,
    /// BLAKE3 of the content, or the target of a symbolic link.
    content: String,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uid, gid) = self.owner;
        write!(
            f,
            "{} {:04o} {uid}:{gid} {} bytes",
            self.kind, self.mode, self.size
        )?;
        if let Some((seconds, nanos)) = self.modified {
            write!(f, ", time {seconds}.{nanos:09}")?;
        }
        write!(f, ", {}", self.content.get(..16).unwrap_or(&self.content))
    }
}

/// Every file of a file system by its path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

/// One difference between two file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Path in the file system.
    pub(crate) path: String,
    /// What was expected; `None` when the file should not be there.
    pub(crate) expected: Option<Entry>,
    /// What was found; `None` when the file is missing.
    pub(crate) found: Option<Entry>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.expected, &self.found) {
            (Some(_), None) => write!(f, "{}: missing", self.path),
            (None, Some(found)) => write!(f, "{}: not expected: {found}", self.path),
            (Some(expected), Some(found)) => {
                write!(f, "{}: expected {expected}; found {found}", self.path)
            }
            (None, None) => write!(f, "{}", self.path),
        }
    }
}

impl Tree {
    /// How many files, directories and links there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a path is there.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Where `found` is not what `self` says, in order of path.
    pub(crate) fn differences(&self, found: &Self) -> Vec<Difference> {
        let paths = self
            .entries
            .keys()
            .chain(found.entries.keys().filter(|path| !self.contains(path)));
        let mut differences: Vec<Difference> = paths
            .filter_map(|path| {
                let (expected, found) = (self.entries.get(path), found.entries.get(path));
                let differs = expected != found;
                differs.then(|| Difference {
                    path: path.clone(),
                    expected: expected.cloned(),
                    found: found.cloned(),
                })
            })
            .collect();
        differences.sort_by(|a, b| a.path.cmp(&b.path));
        differences
    }

    /// Lists the ext4 file system that begins `offset` bytes into an image.
    pub(crate) fn of_ext4(image: &Path, offset: u64) -> Result<Self, TreeError> {
        let file = File::open(image).map_err(|source| TreeError::Io {
            path: image.to_owned(),
            source,
        })?;
        let error = |at: &str| {
            let (image, at) = (image.to_owned(), at.to_owned());
            move |source| TreeError::Ext4 { image, at, source }
        };
        let ext4 =
            Ext4::load(Box::new(Window { file, offset })).map_err(error("the superblock"))?;
        let mut entries = BTreeMap::new();
        let mut folders = vec![ExtPath::new("/")];
        while let Some(folder) = folders.pop() {
            let shown = folder.display().to_string();
            for entry in ext4.read_dir(&folder).map_err(error(&shown))? {
                let entry = entry.map_err(error(&shown))?;
                if matches!(entry.file_name().as_ref(), b"." | b"..") {
                    continue;
                }
                let path = entry.path();
                let name = path.display().to_string();
                let listed = list_ext4(&ext4, &path).map_err(error(&name))?;
                if listed.kind == "directory" {
                    folders.push(path);
                }
                entries.insert(name, listed);
            }
        }
        Ok(Self { entries })
    }

    /// Lists the FAT file system that begins `offset` bytes into an image.
    pub(crate) fn of_fat(image: &Path, offset: u64) -> Result<Self, TreeError> {
        let folder = tempfile::tempdir().map_err(|source| TreeError::Io {
            path: image.to_owned(),
            source,
        })?;
        let mut command = Command::new("mcopy");
        command
            .env("MTOOLS_SKIP_CHECK", "1")
            .args(["-s", "-n", "-Q", "-i"]);
        command
            .arg(format!("{}@@{offset}", image.display()))
            .arg("::/")
            .arg(folder.path());
        tool::run(&mut command)?;
        let mut entries = BTreeMap::new();
        list_folder(folder.path(), "", &mut entries)?;
        Ok(Self { entries })
    }
}

/// A file of the ext4 file system that begins `offset` bytes into an image.
pub(crate) fn read_ext4(image: &Path, offset: u64, path: &str) -> Result<Vec<u8>, TreeError> {
    let file = File::open(image).map_err(|source| TreeError::Io {
        path: image.to_owned(),
        source,
    })?;
    let error = |at: &str| {
        let (image, at) = (image.to_owned(), at.to_owned());
        move |source| TreeError::Ext4 { image, at, source }
    };
    let ext4 = Ext4::load(Box::new(Window { file, offset })).map_err(error("the superblock"))?;
    ext4.read(path).map_err(error(path))
}

/// Says how many differences there are and names the first of them.
pub(crate) fn describe(differences: &[Difference]) -> String {
    let named = differences
        .iter()
        .take(NAMED_DIFFERENCES)
        .map(|difference| format!("\n    {difference}"));
    let more = differences.len().saturating_sub(NAMED_DIFFERENCES);
    let rest = if more > 0 {
        format!("\n    and {more} more")
    } else {
        String::new()
    };
    format!(
        "{} differences:{}{rest}",
        differences.len(),
        named.collect::<String>()
    )
}

/// A part of an image, read by the ext4 library.
struct Window {
    file: File,
    offset: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.file.read_exact_at(into, self.offset + start)?)
    }
}

fn list_ext4(ext4: &Ext4, path: &ExtPath) -> Result<Entry, Ext4Error> {
    let metadata = ext4.symlink_metadata(path)?;
    let (kind, content) = match metadata.file_type() {
        FileType::Regular => ("file", digest_ext4(ext4, path)?),
        FileType::Symlink => ("link", ext4.read_link(path)?.display().to_string()),
        FileType::Directory => ("directory", String::new()),
        FileType::Fifo => ("fifo", String::new()),
        FileType::Socket => ("socket", String::new()),
        FileType::BlockDevice => ("block device", String::new()),
        FileType::CharacterDevice => ("character device", String::new()),
    };
    let modified = metadata.modified();
    Ok(Entry {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        // A directory's size depends on the order in which its names were made.
        size: if kind == "directory" {
            0
        } else {
            metadata.len()
        },
        modified: Some((modified.seconds(), modified.nanoseconds())),
        content,
    })
}

fn digest_ext4(ext4: &Ext4, path: &ExtPath) -> Result<String, Ext4Error> {
    let mut file = ext4.open(path)?;
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE];
    loop {
        let length = file.read_bytes(&mut buffer)?;
        if length == 0 {
            return Ok(hash.finalize().to_hex().to_string());
        }
        hash.update(&buffer[..length]);
    }
}

fn list_folder(
    folder: &Path,
    prefix: &str,
    entries: &mut BTreeMap<String, Entry>,
) -> Result<(), TreeError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| TreeError::Io { path, source }
    };
    for entry in std::fs::read_dir(folder).map_err(error(folder))? {
        let path = entry.map_err(error(folder))?.path();
        let name = format!(
            "{prefix}/{}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        let (kind, size, content) = if path.is_dir() {
            list_folder(&path, &name, entries)?;
            ("directory", 0, String::new())
        } else {
            let bytes = std::fs::read(&path).map_err(error(&path))?;
            (
                "file",
                bytes.len() as u64,
                blake3::hash(&bytes).to_hex().to_string(),
            )
        };
        let entry = Entry {
            kind,
            mode: 0,
            owner: (0, 0),
            size,
            modified: None,
            content,
        };
        entries.insert(name, entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::disk;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// An ext4 image of a small tree, 1 MiB into a file.
    fn image_of(tree: &Path, image: &Path) {
        let plain = image.with_extension("ext4");
        let mut mke2fs = Command::new("mke2fs");
        // Two images may be made in different seconds, and lost+found has the time of its making.
        mke2fs
            .env("E2FSPROGS_FAKE_TIME", "1700000000")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(tree)
            .arg(&plain)
            .arg("8192");
        tool::run(&mut mke2fs).unwrap();
        disk::create_empty(image, 10 << 20).unwrap();
        disk::write_sparse_at(image, 1 << 20, &plain).unwrap();
    }

    #[test]
    fn every_kind_of_difference_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for name in ["kept", "changed", "mode", "gone"] {
            fs::write(tree.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("kept", tree.join("link")).unwrap();
        let (before, after) = (folder.path().join("before"), folder.path().join("after"));
        image_of(&tree, &before);
        let times = fs::metadata(tree.join("changed"))
            .unwrap()
            .modified()
            .unwrap();
        fs::write(tree.join("changed"), "CHANGED").unwrap();
        File::options()
            .write(true)
            .open(tree.join("changed"))
            .unwrap()
            .set_modified(times)
            .unwrap();
        fs::set_permissions(tree.join("mode"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::remove_file(tree.join("gone")).unwrap();
        fs::write(tree.join("new"), "new").unwrap();
        image_of(&tree, &after);

        let before = Tree::of_ext4(&before, 1 << 20).unwrap();
        let after = Tree::of_ext4(&after, 1 << 20).unwrap();
        let differences = before.differences(&after);
        let paths: Vec<&str> = differences
            .iter()
            .map(|difference| difference.path.as_str())
            .collect();
        assert_eq!(paths, ["/changed", "/gone", "/mode", "/new"]);
        assert!(describe(&differences).contains("/gone: missing"));
        assert!(before.contains("/lost+found") && before.contains("/link"));
        assert!(before.differences(&before).is_empty());
    }
}
