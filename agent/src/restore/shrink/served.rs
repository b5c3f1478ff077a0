//! The volume as a file that a tool opens: served through FUSE, without any other program.
//!
//! Invariant: the file is seen by this thread and the tool only, and is gone when the tool has ended. Requests are
//! answered one after the other, in the order in which the kernel makes them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};

use super::image::Image;
use crate::job::error::Fault;
use crate::job::own_mounts::{folder, unmount_or_detach, with_own_mounts};
use crate::log::chain;

const NAME: &str = "volume";
const FILE: INodeNo = INodeNo(2);
/// What the kernel was told of the file changes by its own doing only.
const FOR_EVER: Duration = Duration::from_secs(86_400);

/// Looks whether the kernel can do it.
///
/// # Errors
/// [`Fault::Tool`] when it cannot.
pub(super) fn check() -> Result<(), Fault> {
    let fault = |reason: &str| {
        Err(Fault::Tool {
            tool: "kernel, fuse".to_owned(),
            reason: format!(
                "{reason}, and a file system is to be made smaller; restore to a disk of the source's size"
            ),
        })
    };
    if let Err(error) = crate::drivers::load("fuse") {
        log::debug!("fuse: {}", chain(&error));
    }
    if !Path::new("/dev/fuse").exists() {
        return fault("the kernel of this environment does not have it");
    }
    if !nix::unistd::Uid::effective().is_root() {
        return fault("only root may mount it");
    }
    Ok(())
}

/// A request of the kernel, to be answered where the volume is.
enum Asked {
    Attributes(ReplyAttr),
    Read(u64, u32, ReplyData),
    Write(u64, Vec<u8>, ReplyWrite),
    SetSize(u64, ReplyAttr),
    Flush(ReplyEmpty),
    Find(ReplyEntry),
}

/// Hands requests on.
struct Front(Sender<Asked>);

impl Front {
    fn ask(&self, asked: Asked) {
        // Nobody is there any more when it is being unmounted; the kernel gets its answer from the dropped reply.
        let _ = self.0.send(asked);
    }
}

fn attributes(inode: INodeNo, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: inode,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory {
            0o700
        } else {
            0o600
        },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Front {
    fn lookup(&self, _: &Request, _: INodeNo, name: &std::ffi::OsStr, reply: ReplyEntry) {
        if name == NAME {
            self.ask(Asked::Find(reply));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if inode == FILE {
            self.ask(Asked::Attributes(reply));
        } else {
            reply.attr(&FOR_EVER, &attributes(inode, FileType::Directory, 0));
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match size {
            Some(size) if inode == FILE => self.ask(Asked::SetSize(size, reply)),
            _ if inode == FILE => self.ask(Asked::Attributes(reply)),
            _ => reply.error(Errno::EPERM),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ask(Asked::Read(offset, size, reply));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.ask(Asked::Write(offset, data.to_vec(), reply));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.ask(Asked::Flush(reply));
    }
}

/// Answers until the file is gone.
fn answer(image: &mut Image<'_>, asked: &Receiver<Asked>) {
    let mut buffer = Vec::new();
    for asked in asked {
        let now = |image: &Image<'_>| attributes(FILE, FileType::RegularFile, image.size());
        match asked {
            Asked::Attributes(reply) => reply.attr(&FOR_EVER, &now(image)),
            Asked::Find(reply) => reply.entry(&FOR_EVER, &now(image), Generation(0)),
            Asked::Read(offset, size, reply) => {
                buffer.resize(size as usize, 0);
                match image.read(offset, &mut buffer) {
                    Ok(len) => reply.data(&buffer[..len]),
                    Err(error) => reply.error(error.into()),
                }
            }
            Asked::Write(offset, bytes, reply) => match image.write(offset, &bytes) {
                // As long as the kernel said.
                Ok(()) => reply.written(bytes.len() as u32),
                Err(error) => reply.error(error.into()),
            },
            Asked::SetSize(size, reply) => match image.set_size(size) {
                Ok(()) => reply.attr(&FOR_EVER, &now(image)),
                Err(error) => reply.error(error.into()),
            },
            Asked::Flush(reply) => match image.flush() {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error.into()),
            },
        }
    }
}

/// Unmounts, however the work ends: else the threads that serve it would wait for ever. fuser's own way does not
/// try a second time when the file is still in use.
struct Served(PathBuf);

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = unmount_or_detach(&self.0) {
            log::warn!("the served volume stays mounted: {error}");
        }
    }
}

/// Serves the volume as a file while `work` is done with it.
///
/// # Errors
/// What `work` says; [`Fault::Tool`] when it cannot be served.
pub(super) fn with_file(
    image: &mut Image<'_>,
    work: impl FnOnce(&Path) -> Result<(), Fault> + Send,
) -> Result<(), Fault> {
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || with_own_mounts(|| serve(sender, work)));
        answer(image, &receiver);
        let result = worker.join();
        result.unwrap_or_else(|_| Err(Fault::Internal("a thread ended by a panic".to_owned())))
    })
}

fn serve(
    sender: Sender<Asked>,
    work: impl FnOnce(&Path) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let fault = |error: io::Error| Fault::Tool {
        tool: "kernel, fuse".to_owned(),
        reason: error.to_string(),
    };
    let place = folder("served").map_err(fault)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("netboot".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
    ];
    let session = Session::new(Front(sender), &place, &config).map_err(fault)?;
    let served = Served(place.clone());
    std::thread::scope(|scope| {
        let running = scope.spawn(move || session.run());
        let result = work(&place.join(NAME));
        drop(served);
        let ended = running.join();
        let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the thread ended by a panic")));
        result.and(ended.map_err(fault))
    })
}
