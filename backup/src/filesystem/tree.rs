//! The files of a volume: names, what they are, and their content, read only.
//!
//! Each file system has a [`FileTree`]; what lists, finds and takes out files works on that alone.
//!
//! Invariant: nothing read from the volume is believed. A tree of damaged structures gives
//! [`TreeError::Damaged`], never a panic, an endless loop, or an allocation by a number that was not checked.

use std::sync::Arc;

use super::{ReadAt, ReadError, btrfs, detect, exfat, ext, fat, ntfs, xfs};
use crate::ByteRange;
use crate::manifest::FileSystemKind;

/// Why files cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The volume could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its structures contradict themselves.
    #[error("the file system is damaged: {0}")]
    Damaged(String),
    /// Something that this program does not read.
    #[error("{0} cannot be read by this program")]
    Unsupported(String),
    /// A name that is not there, or a step through something that is no folder.
    #[error("{0}")]
    NotFound(String),
}

/// Names a file or folder within its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Which tree of the volume: the subvolume of Btrfs, 0 elsewhere.
    pub tree: u64,
    /// The file system's own number: inode, MFT record, or where the entry lies.
    pub number: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A file with content.
    File,
    /// A folder.
    Directory,
    /// A symbolic link (on NTFS a symbolic link or junction).
    SymbolicLink,
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A moment as file systems keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// And nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What is known of a file or folder but for its name and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Length of its content in bytes; 0 for what has none.
    pub size: u64,
    /// POSIX permission bits (the lower 12 of `st_mode`), where the file system keeps them.
    pub mode: Option<u32>,
    /// Owner, where the file system keeps one.
    pub uid: Option<u32>,
    /// Group, where the file system keeps one.
    pub gid: Option<u32>,
    /// When its content last changed.
    pub modified: Option<Timestamp>,
    /// How many names it has, at least 1.
    pub links: u32,
    /// Why its content cannot be read though it is there, for example `encrypted`.
    pub sealed: Option<&'static str>,
}

/// An extended attribute of a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name with the prefix: `user.comment`, `system.posix_acl_access`; bytes without NUL.
    pub name: Vec<u8>,
    /// Its value, as Linux gives it to programs.
    pub value: Vec<u8>,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as the file system keeps it: bytes without NUL and `/`; UTF-8 where the file system
    /// keeps UTF-16.
    pub name: Vec<u8>,
    /// What it stands for.
    pub node: NodeId,
}

/// The files of one volume.
pub trait FileTree: Send {
    /// The top folder.
    fn root(&self) -> NodeId;

    /// What is known of a node.
    ///
    /// # Errors
    /// [`TreeError`] when it cannot be read.
    fn node(&self, id: NodeId) -> Result<Node, TreeError>;

    /// The extended attributes of a node, access lists among them; none from a file system whose
    /// attributes are not read.
    ///
    /// # Errors
    /// [`TreeError`] when they cannot be read.
    fn attributes(&self, _id: NodeId) -> Result<Vec<Attribute>, TreeError> {
        Ok(Vec::new())
    }

    /// Gives each name of a folder but `.` and `..`, in the order of the file system, to `visit`, which may
    /// end it with an error.
    ///
    /// # Errors
    /// [`TreeError`] when the folder cannot be read, or what `visit` returned.
    fn entries(
        &self,
        directory: NodeId,
        visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
    ) -> Result<(), TreeError>;

    /// Fills `buffer` with a file's content from byte `offset`; holes are zeros. Returns how many bytes
    /// there were: fewer than the buffer has only at the end of the file.
    ///
    /// # Errors
    /// [`TreeError`] when it cannot be read.
    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError>;

    /// Where a file's content lies, in order: the bytes of the volume for each part of it. `None` from a
    /// file system in which a file cannot be changed where it lies.
    ///
    /// # Errors
    /// [`TreeError`] when that cannot be told.
    fn places(&self, _file: NodeId) -> Result<Option<Vec<ByteRange>>, TreeError> {
        Ok(None)
    }

    /// Where a symbolic link points, as it is kept.
    ///
    /// # Errors
    /// [`TreeError`] when it cannot be read or is no link.
    fn link_target(&self, link: NodeId) -> Result<Vec<u8>, TreeError>;

    /// Whether `Name` and `name` are the same file.
    fn ignores_case(&self) -> bool {
        false
    }
}

/// The files of a volume of `size` bytes.
///
/// # Errors
/// [`TreeError::Unsupported`] when it holds no file system whose files can be read, other errors when it
/// is damaged.
pub fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    use FileSystemKind as Kind;
    let found = detect::detect(volume.as_ref(), size)?;
    let Some(found) = found.first() else {
        return Err(TreeError::Unsupported(
            "a volume without a known file system".to_owned(),
        ));
    };
    match found.file_system {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => ext::open(volume, size),
        Kind::Fat12 | Kind::Fat16 | Kind::Fat32 => fat::open(volume, size),
        Kind::Exfat => exfat::open(volume, size),
        Kind::Ntfs => ntfs::open(volume, size),
        Kind::Xfs => xfs::open(volume, size),
        Kind::Btrfs => btrfs::open(volume, size),
        kind @ (Kind::Swap | Kind::Luks | Kind::Bitlocker | Kind::Lvm) => {
            Err(TreeError::Unsupported(format!("the inside of {kind}")))
        }
    }
}
