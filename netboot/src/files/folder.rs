//! Files written into a folder of this machine.
//!
//! Invariant: nothing is written outside the folder. Every step into it opens one name, from the folder
//! above it that is open already, and never through a symbolic link; a link in the way is a refusal. Links
//! from the backup are made as they are and never followed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup::filesystem::tree::{Node, NodeKind, Timestamp};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, Uid, UnlinkatFlags, fchown, fchownat, geteuid, linkat, symlinkat, unlinkat,
};

use super::FilesError;
use super::content::Content;
use super::name::{is_plain, join, shown, split};
use super::take::{Sink, TakeError, Taken};

/// Zeros of this length and place become a hole.
const HOLE: usize = 4096;
/// Names that are tried for `keep-both`.
const MAX_NUMBER: u32 = 9999;

/// What happens to a name that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnClash {
    /// The one from the backup takes its place; a folder is never replaced
    Overwrite,
    /// The one that is there stays
    Skip,
    /// Both stay; the one from the backup gets a number
    KeepBoth,
}

/// A folder that files are written into.
pub(super) struct Folder {
    root: OwnedFd,
    root_path: PathBuf,
    on_clash: Option<OnClash>,
    /// Folders that are open, from the root down.
    open: Vec<(Vec<u8>, OwnedFd)>,
    /// Folders that were made here and get their mode and times at the end.
    made: HashSet<Vec<u8>>,
    is_root: bool,
    temporary: u64,
}

fn item(what: &str, errno: Errno) -> TakeError {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EIO => {
            TakeError::Fatal(format!("{what}: {errno}"))
        }
        Errno::ELOOP | Errno::ENOTDIR => TakeError::Item(
            "a symbolic link or file is in the way; nothing is written through it".to_owned(),
        ),
        errno => TakeError::Item(format!("{what}: {}", errno.desc())),
    }
}

const FOLDER: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Folder {
    /// Opens the folder, which is made if it is not there.
    pub(super) fn open(path: &Path, on_clash: Option<OnClash>) -> Result<Self, FilesError> {
        let cannot = |what, source| FilesError::Output {
            what,
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(|source| cannot("cannot make the folder", source))?;
        let root = File::open(path).map_err(|source| cannot("cannot open", source))?;
        Ok(Self {
            root: root.into(),
            root_path: path.to_owned(),
            on_clash,
            open: Vec::new(),
            made: HashSet::new(),
            is_root: geteuid().is_root(),
            temporary: 0,
        })
    }

    /// Opens a folder below the root, which is there.
    fn folder(&mut self, path: &[u8]) -> Result<&OwnedFd, Errno> {
        let names: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .collect();
        let same = self
            .open
            .iter()
            .zip(&names)
            .take_while(|((open, _), name)| open == *name)
            .count();
        self.open.truncate(same);
        for name in &names[same..] {
            if !is_plain(name) {
                return Err(Errno::EINVAL);
            }
            let above = self.open.last().map_or(&self.root, |(_, folder)| folder);
            let folder = openat(above, OsStr::from_bytes(name), FOLDER, Mode::empty())?;
            self.open.push((name.to_vec(), folder));
        }
        Ok(self.open.last().map_or(&self.root, |(_, folder)| folder))
    }

    /// What is at a path: whether it is a folder; `None` for nothing.
    fn there(&mut self, path: &[u8]) -> Result<Option<bool>, Errno> {
        let (above, name) = split(path);
        let folder = match self.folder(above) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other?,
        };
        match fstatat(
            folder,
            OsStr::from_bytes(name),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        ) {
            Ok(found) => Ok(Some(
                SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR,
            )),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether writing a node would meet something that is there.
    pub(super) fn clashes(&mut self, path: &[u8], node: &Node) -> bool {
        match self.there(path) {
            Ok(None) => false,
            Ok(Some(folder)) => !(folder && node.kind == NodeKind::Directory),
            // Something on the way is no folder; that name itself was counted.
            Err(_) => false,
        }
    }

    /// The name to write to, and whether it then replaces `path`; `None` to leave it out.
    fn target(&mut self, path: &[u8]) -> Result<Option<(Vec<u8>, bool)>, TakeError> {
        let found = self
            .there(path)
            .map_err(|errno| item("cannot look", errno))?;
        let Some(is_folder) = found else {
            return Ok(Some((path.to_vec(), false)));
        };
        match self.on_clash {
            None => Err(TakeError::Item(
                "something of this name is there already".to_owned(),
            )),
            Some(OnClash::Skip) => Ok(None),
            Some(OnClash::Overwrite) if is_folder => Err(TakeError::Item(
                "a folder of this name is there; folders are never replaced".to_owned(),
            )),
            Some(OnClash::Overwrite) => {
                self.temporary += 1;
                let name = format!(".netboot-{}-{}", std::process::id(), self.temporary);
                Ok(Some((join(split(path).0, name.as_bytes()), true)))
            }
            Some(OnClash::KeepBoth) => {
                for number in 2..=MAX_NUMBER {
                    let other = numbered(path, number);
                    let there = self.there(&other);
                    if there.map_err(|errno| item("cannot look", errno))?.is_none() {
                        return Ok(Some((other, false)));
                    }
                }
                Err(TakeError::Item(
                    "too many of this name are there already".to_owned(),
                ))
            }
        }
    }

    /// Makes something at a path by the clash rule.
    fn make(
        &mut self,
        path: &[u8],
        make: &mut dyn FnMut(&OwnedFd, &OsStr) -> Result<(), TakeError>,
    ) -> Result<Taken, TakeError> {
        let Some((target, replaces)) = self.target(path)? else {
            return Ok(Taken::Skipped);
        };
        let (above, name) = split(&target);
        let name = OsStr::from_bytes(name);
        let folder = self
            .folder(above)
            .map_err(|errno| item("cannot open the folder", errno))?;
        make(folder, name)?;
        if !replaces {
            return Ok(Taken::As(target));
        }
        let last = OsStr::from_bytes(split(path).1);
        if let Err(errno) = renameat(folder, name, folder, last) {
            let _ = unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
            return Err(item("cannot replace the one that is there", errno));
        }
        Ok(Taken::As(path.to_vec()))
    }

    fn owner(&self, node: &Node) -> (Option<Uid>, Option<Gid>) {
        if self.is_root {
            (node.uid.map(Uid::from_raw), node.gid.map(Gid::from_raw))
        } else {
            (None, None)
        }
    }

    /// The permissions a node gets: the bits that lend an owner's rights only with that owner.
    fn mode(&self, node: &Node, otherwise: u32) -> Mode {
        let bits = node.mode.unwrap_or(otherwise);
        Mode::from_bits_truncate(if self.is_root {
            bits & 0o7777
        } else {
            bits & 0o777
        })
    }
}

/// `name (2).txt` for `name.txt`.
fn numbered(path: &[u8], number: u32) -> Vec<u8> {
    let (above, name) = split(path);
    let dot = name
        .iter()
        .rposition(|byte| *byte == b'.')
        .filter(|at| *at > 0);
    let (stem, end) = name.split_at(dot.unwrap_or(name.len()));
    join(
        above,
        &[stem, format!(" ({number})").as_bytes(), end].concat(),
    )
}

fn time(stamp: Option<Timestamp>) -> (TimeSpec, TimeSpec) {
    match stamp {
        Some(stamp) => {
            let spec = TimeSpec::new(stamp.seconds, i64::from(stamp.nanoseconds));
            (spec, spec)
        }
        None => (TimeSpec::UTIME_OMIT, TimeSpec::UTIME_OMIT),
    }
}

fn set_all(
    fd: impl AsFd,
    node: &Node,
    owner: (Option<Uid>, Option<Gid>),
    mode: Mode,
) -> Result<(), Errno> {
    // Changing the owner takes the set-user-id bit away, so it comes first.
    if owner.0.is_some() || owner.1.is_some() {
        fchown(&fd, owner.0, owner.1)?;
    }
    fchmod(&fd, mode)?;
    let (accessed, modified) = time(node.modified);
    futimens(&fd, &accessed, &modified)
}

/// Writes a file's content, holes where there are only zeros.
fn write(file: &File, content: &mut Content<'_>) -> Result<(), TakeError> {
    let size = content.size;
    loop {
        let at = content.at;
        let Some(piece) = content.piece().map_err(TakeError::Item)? else {
            break;
        };
        let mut place = at;
        for part in piece.chunks(HOLE) {
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, place).map_err(|error| {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    item("cannot write", errno)
                })?;
            }
            place += part.len() as u64;
        }
    }
    file.set_len(size).map_err(|error| {
        item(
            "cannot write",
            Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        )
    })
}

impl Sink for Folder {
    fn directory(&mut self, path: &[u8], _: &Node) -> Result<bool, TakeError> {
        match self
            .there(path)
            .map_err(|errno| item("cannot look", errno))?
        {
            Some(true) => return Ok(true),
            Some(false) if self.on_clash == Some(OnClash::Skip) => return Ok(false),
            Some(false) => {
                return Err(TakeError::Item(
                    "something that is no folder has this name; nothing below it is written"
                        .to_owned(),
                ));
            }
            None => {}
        }
        let (above, name) = split(path);
        let folder = self
            .folder(above)
            .map_err(|errno| item("cannot open the folder", errno))?;
        mkdirat(folder, OsStr::from_bytes(name), Mode::S_IRWXU)
            .map_err(|errno| item("cannot make the folder", errno))?;
        self.made.insert(path.to_vec());
        Ok(true)
    }

    fn left(&mut self, path: &[u8], node: &Node) -> Result<(), TakeError> {
        if !self.made.remove(path) {
            return Ok(());
        }
        let (owner, mode) = (self.owner(node), self.mode(node, 0o755));
        let folder = self
            .folder(path)
            .map_err(|errno| item("cannot open the folder", errno))?;
        set_all(folder, node, owner, mode).map_err(|errno| item("cannot set owner and mode", errno))
    }

    fn file(
        &mut self,
        path: &[u8],
        node: &Node,
        content: &mut Content<'_>,
    ) -> Result<Taken, TakeError> {
        let (owner, mode) = (self.owner(node), self.mode(node, 0o644));
        self.make(path, &mut |folder, name| {
            let flags = OFlag::O_WRONLY
                | OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            let file = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|errno| item("cannot make the file", errno))?;
            let file = File::from(file);
            let written = write(&file, content).and_then(|()| {
                set_all(&file, node, owner, mode)
                    .map_err(|errno| item("cannot set owner and mode", errno))
            });
            written.inspect_err(|_| {
                // Half a file must not pass for one.
                let _ = unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
            })
        })
    }

    fn link(&mut self, path: &[u8], node: &Node, target: &[u8]) -> Result<Taken, TakeError> {
        let owner = self.owner(node);
        self.make(path, &mut |folder, name| {
            symlinkat(OsStr::from_bytes(target), folder, name)
                .and_then(|()| {
                    fchownat(folder, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                    let (accessed, modified) = time(node.modified);
                    let flag = UtimensatFlags::NoFollowSymlink;
                    utimensat(folder, name, &accessed, &modified, flag)
                })
                .map_err(|errno| item("cannot make the link", errno))
        })
    }

    fn hard_link(&mut self, path: &[u8], first: &[u8], _: &Node) -> Result<Taken, TakeError> {
        let (above, first_name) = split(first);
        let from = self
            .folder(above)
            .and_then(|folder| folder.try_clone().map_err(|_| Errno::EMFILE))
            .map_err(|errno| item("cannot open the folder", errno))?;
        self.make(path, &mut |folder, name| {
            linkat(
                &from,
                OsStr::from_bytes(first_name),
                folder,
                name,
                AtFlags::empty(),
            )
            .map_err(|errno| item("cannot make another name of a file", errno))
        })
    }

    fn special(&mut self, path: &[u8], node: &Node) -> Result<Taken, TakeError> {
        let (kind, device) = match node.kind {
            NodeKind::Fifo => (SFlag::S_IFIFO, 0),
            NodeKind::CharacterDevice { major, minor } => {
                (SFlag::S_IFCHR, makedev(u64::from(major), u64::from(minor)))
            }
            NodeKind::BlockDevice { major, minor } => {
                (SFlag::S_IFBLK, makedev(u64::from(major), u64::from(minor)))
            }
            _ => {
                let reason = "a socket is made by the program that listens on it; left out";
                return Err(TakeError::Item(reason.to_owned()));
            }
        };
        if kind != SFlag::S_IFIFO && !self.is_root {
            return Err(TakeError::Item(
                "only root can make devices; left out".to_owned(),
            ));
        }
        let (owner, mode) = (self.owner(node), self.mode(node, 0o600));
        self.make(path, &mut |folder, name| {
            mknodat(folder, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, device)
                .and_then(|()| {
                    fchownat(folder, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                    fchmodat(folder, name, mode, FchmodatFlags::NoFollowSymlink)?;
                    let (accessed, modified) = time(node.modified);
                    let flag = UtimensatFlags::NoFollowSymlink;
                    utimensat(folder, name, &accessed, &modified, flag)
                })
                .map_err(|errno| item("cannot make the device", errno))
        })
    }

    fn finish(self: Box<Self>) -> Result<(), FilesError> {
        Ok(())
    }

    fn place(&self) -> String {
        shown(self.root_path.as_os_str().as_bytes())
    }
}
