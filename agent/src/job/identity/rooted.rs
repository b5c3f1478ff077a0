//! Files of a restored system, changed from outside of it.
//!
//! Invariant: no name and no link in the restored system leads out of it: every path is resolved by the
//! kernel with the system's top folder as root (`openat2`, `RESOLVE_IN_ROOT`). A file is replaced as a whole,
//! with owner, mode and extended attributes kept: written beside, flushed, renamed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid,
    XattrFlags,
};
use rustix::io::Errno;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The most names of a folder that are looked at.
const MAX_NAMES: usize = 4096;
/// Symbolic links at the end of a path that are followed, one by one.
const MAX_LINKS: usize = 16;
/// The longest list of extended attributes, and the longest of them (`XATTR_LIST_MAX`).
const MAX_ATTRIBUTES: usize = 64 << 10;
/// What a new file is called until it takes the old one's place.
const TEMPORARY: &str = ".netboot-identity-new";

/// The top folder of a system.
#[derive(Debug)]
pub(in crate::job) struct Root(OwnedFd);

/// A file that is there: the folder it lies in, and its name in it.
struct Place {
    folder: OwnedFd,
    name: OsString,
    stat: Stat,
}

impl Root {
    /// The folder at `path`, which is ours.
    pub(in crate::job) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// A folder in it, as a root of its own.
    pub(in crate::job) fn below(&self, path: &str) -> io::Result<Self> {
        if path.is_empty() {
            return Ok(Self(self.0.try_clone()?));
        }
        Ok(Self(self.folder(path.as_bytes())?))
    }

    /// Writes everything of its file system out.
    pub(in crate::job) fn sync(&self) -> io::Result<()> {
        let folder = self.resolved(b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(rustix::fs::syncfs(folder)?)
    }

    fn resolved(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(
            &self.0,
            path,
            flags,
            Mode::empty(),
            resolve,
        )?)
    }

    fn folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.resolved(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Where a path leads when a link at its end is followed; `None` when nothing is there.
    fn place(&self, path: &str) -> io::Result<Option<Place>> {
        let mut path = path.as_bytes().to_vec();
        for _ in 0..MAX_LINKS {
            let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
            let (parent, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
                Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
                None => (&b""[..], trimmed),
            };
            let name = OsStr::from_bytes(name).to_owned();
            if name.is_empty() || name == "." || name == ".." {
                return Ok(None);
            }
            let folder = match self.folder(parent) {
                Ok(folder) => folder,
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            let stat = match rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                return Ok(Some(Place { folder, name, stat }));
            }
            let target = rustix::fs::readlinkat(&folder, &name, Vec::new())?.into_bytes();
            path = if target.starts_with(b"/") {
                target
            } else {
                [parent, b"/", &target].concat()
            };
        }
        Err(io::Error::from(Errno::LOOP))
    }

    /// A regular file that is there; what else has its name is taken for none.
    fn regular(&self, path: &str) -> io::Result<Option<Place>> {
        let place = self.place(path)?;
        let is_regular =
            |place: &Place| FileType::from_raw_mode(place.stat.st_mode) == FileType::RegularFile;
        Ok(place.filter(is_regular))
    }

    /// Whether the name is a symbolic link itself.
    pub(in crate::job) fn is_link(&self, folder: &str, name: &str) -> io::Result<bool> {
        let folder = match self.folder(folder.as_bytes()) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Symlink),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The content of a regular file, if it is there.
    pub(in crate::job) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(place) = self.regular(path)? else {
            return Ok(None);
        };
        let file = File::from(place.open()?);
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("more than {MAX_FILE} bytes"),
            ));
        }
        Ok(Some(bytes))
    }

    /// Gives a file that is there another content.
    pub(in crate::job) fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let place = self.regular(path)?;
        let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let old = place.open()?;
        let result = place.write_new(&old, bytes);
        if result.is_err() {
            // It would be left in the restored system.
            let _ = rustix::fs::unlinkat(&place.folder, TEMPORARY, AtFlags::empty());
        }
        result
    }

    /// Makes a file that was not there: root's, for all to read.
    pub(in crate::job) fn create(&self, folder: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder(folder.as_bytes())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let mut file = File::from(rustix::fs::openat(&folder, name, flags, mode)?);
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Makes a folder, with those above it, unless it is there.
    pub(in crate::job) fn make_folder(&self, path: &str) -> io::Result<()> {
        let mut made = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let above = self.folder(made.as_bytes())?;
            match rustix::fs::mkdirat(&above, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            made.push_str(part);
            made.push('/');
        }
        // What was there may be no folder.
        self.folder(made.as_bytes()).map(drop)
    }

    /// The length of a regular file.
    pub(in crate::job) fn len(&self, path: &str) -> io::Result<u64> {
        let place = self.regular(path)?;
        let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let known = File::from(place.open()?).metadata()?;
        Ok(known.len())
    }

    /// Adds bytes to the end of a file that is there, where it lies.
    pub(in crate::job) fn append(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let place = self.regular(path)?;
        let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.folder, &place.name, flags, Mode::empty())?;
        let mut file = File::from(file);
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Removes a file, or a link to one, if it is there.
    pub(in crate::job) fn remove(&self, folder: &str, name: &str) -> io::Result<bool> {
        let folder = match self.folder(folder.as_bytes()) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives what has a name in a folder another one, which nothing has yet: `.old` behind it, or a number as well. The
    /// new name, if anything was there.
    pub(in crate::job) fn set_aside(&self, folder: &str, name: &str) -> io::Result<Option<String>> {
        let folder = self.folder(folder.as_bytes())?;
        let others = (2..10).map(|number| format!("{name}.old{number}"));
        for new in std::iter::once(format!("{name}.old")).chain(others) {
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&folder, name, &folder, &new, flags) {
                Ok(()) => return Ok(Some(new)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::from(Errno::EXIST))
    }

    /// The names in a folder, sorted; none when it is not there. Names that are no text are left out.
    pub(in crate::job) fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = match self.resolved(folder.as_bytes(), flags) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(folder.as_fd())?.take(MAX_NAMES) {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            names.extend(
                name.into_string()
                    .ok()
                    .filter(|name| name != "." && name != ".."),
            );
        }
        names.sort();
        Ok(names)
    }
}

impl Place {
    /// It was a regular file a moment ago; a pipe in its place must not block.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(
            &self.folder,
            &self.name,
            flags,
            Mode::empty(),
        )?)
    }

    fn write_new(&self, old: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let private = Mode::from_raw_mode(0o600);
        let new = rustix::fs::openat(&self.folder, TEMPORARY, flags, private)?;
        let mut file = File::from(new);
        file.write_all(bytes)?;
        let (owner, group) = (self.stat.st_uid, self.stat.st_gid);
        rustix::fs::fchown(
            &file,
            Some(Uid::from_raw(owner)),
            Some(Gid::from_raw(group)),
        )?;
        // After the owner, whose change takes the set-uid bit off.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.stat.st_mode & 0o7777))?;
        copy_attributes(old, &file)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.folder, TEMPORARY, &self.folder, &self.name)?;
        // The folder was opened as a path only, which cannot be flushed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.folder, ".", flags, Mode::empty())?;
        Ok(rustix::fs::fsync(folder)?)
    }
}

/// Access lists and security labels among them.
fn copy_attributes(from: &OwnedFd, to: &File) -> io::Result<()> {
    let mut list = vec![0; MAX_ATTRIBUTES];
    let len = match rustix::fs::flistxattr(from, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let names = list.get(..len).unwrap_or_default().split(|byte| *byte == 0);
    let mut value = vec![0; MAX_ATTRIBUTES];
    for name in names.filter(|name| !name.is_empty()) {
        let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        let value = value.get(..len).unwrap_or_default();
        rustix::fs::fsetxattr(to, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A system in a folder, and beside it a file that is not its own.
    fn system() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("system/etc")).unwrap();
        fs::write(folder.path().join("outside"), "not ours").unwrap();
        let root = Root::open(&folder.path().join("system")).unwrap();
        (folder, root)
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_attributes() {
        let (folder, root) = system();
        let path = folder.path().join("system/etc/fstab");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let named = File::open(&path).unwrap();
        let labelled =
            rustix::fs::fsetxattr(&named, c"user.label", b"kept", XattrFlags::empty()).is_ok();
        root.replace("etc/fstab", b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        if labelled {
            let mut value = [0; 8];
            let file = File::open(&path).unwrap();
            let len = rustix::fs::fgetxattr(&file, c"user.label", &mut value[..]).unwrap();
            assert_eq!(&value[..len], b"kept");
        } else {
            eprintln!("skipped: attributes (this file system has none)");
        }
        assert_eq!(root.names("etc").unwrap(), ["fstab"]);
    }

    #[test]
    fn links_are_followed_within_the_system_and_never_out_of_it() {
        let (folder, root) = system();
        let system = folder.path().join("system");
        let outside = folder.path().join("outside");
        fs::write(system.join("etc/real"), "old").unwrap();
        symlink("/etc/real", system.join("etc/absolute")).unwrap();
        symlink("real", system.join("etc/relative")).unwrap();
        symlink(&outside, system.join("etc/out")).unwrap();
        symlink("../../outside", system.join("etc/up")).unwrap();
        symlink(folder.path(), system.join("linked")).unwrap();
        symlink("loop", system.join("etc/loop")).unwrap();
        for link in ["etc/absolute", "etc/relative"] {
            root.replace(link, link.as_bytes()).unwrap();
            assert_eq!(fs::read(system.join("etc/real")).unwrap(), link.as_bytes());
        }
        for link in ["etc/out", "etc/up", "linked/outside", "../outside"] {
            assert_eq!(root.read(link).unwrap(), None, "{link}");
            root.replace(link, b"harm").unwrap_err();
        }
        assert!(!root.remove("linked", "outside").unwrap());
        root.read("etc/loop").unwrap_err();
        assert_eq!(fs::read(&outside).unwrap(), b"not ours");
        // A link is removed, not what it points to.
        assert!(root.remove("etc", "out").unwrap());
        assert_eq!(fs::read(&outside).unwrap(), b"not ours");
    }

    #[test]
    fn what_is_no_file_is_none() {
        let (folder, root) = system();
        let pipe = folder.path().join("system/etc/pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(root.read("etc/pipe").unwrap(), None);
        assert_eq!(root.read("etc").unwrap(), None);
        assert_eq!(root.read("etc/none/deeper").unwrap(), None);
        assert!(root.names("none").unwrap().is_empty());
    }
}
