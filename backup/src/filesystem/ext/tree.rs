//! The files of ext2, ext3 and ext4.
//!
//! Sources: the kernel's `Documentation/filesystems/ext4` and `fs/ext4/ext4.h`, for the journal
//! `include/linux/jbd2.h`.
//!
//! Invariant: what the journal holds and the file system does not have yet is read from the journal
//! ([`journal`]), so that a machine that was switched off shows the files that it would have after its next
//! mount. Every checksum that the features promise for inodes, extent blocks and folders is verified.
//! What is *not* here: deleted files.

mod attributes;
mod blocks;
mod directory;
mod inode;
mod journal;

use std::cell::RefCell;
use std::sync::Arc;

use super::superblock::{Checksums, Superblock};
use crate::filesystem::tree::{Attribute, Entry, FileTree, Node, NodeId, NodeKind, TreeError};
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le16, le32};
use inode::Inode;

/// The inode of the top folder.
const ROOT: u64 = 2;

/// `INCOMPAT_` feature bits, `fs/ext4/ext4.h`.
mod feature {
    pub(super) const FILE_TYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const WIDE: u32 = 0x80;
    pub(super) const LARGE_FOLDERS: u32 = 0x4000;
    /// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data,
    /// encrypt, casefold.
    pub(super) const KNOWN: u32 = 0x2
        | 0x4
        | 0x10
        | 0x40
        | 0x80
        | 0x100
        | 0x200
        | 0x400
        | 0x2000
        | 0x4000
        | 0x8000
        | 0x1_0000
        | 0x2_0000;
}

fn damaged(reason: impl Into<String>) -> TreeError {
    TreeError::Damaged(reason.into())
}

impl From<Doubt> for TreeError {
    fn from(doubt: Doubt) -> Self {
        match doubt {
            Doubt::Read(error) => Self::Read(error),
            Doubt::Untrusted(reason) => Self::Damaged(reason),
        }
    }
}

/// Finds and reads inodes and the blocks of files.
struct Reader {
    volume: Arc<dyn ReadAt + Send + Sync>,
    superblock: Superblock,
    incompatible: u32,
    journal_inode: u32,
    inodes: u64,
    inodes_per_group: u64,
    inode_len: u64,
    /// The seed of all checksums of metadata, when there are any.
    seed: Option<u32>,
}

impl Reader {
    fn open(volume: Arc<dyn ReadAt + Send + Sync>, size: u64) -> Result<Self, TreeError> {
        let (superblock, bytes) = Superblock::read_for_files(volume.as_ref(), size)?;
        let incompatible = le32(&bytes, 96);
        let unknown = incompatible & !feature::KNOWN;
        if unknown != 0 {
            return Err(TreeError::Unsupported(format!(
                "an ext file system with the features {unknown:#x}"
            )));
        }
        Ok(Self {
            volume,
            incompatible,
            journal_inode: le32(&bytes, 224),
            inodes: u64::from(le32(&bytes, 0)),
            inodes_per_group: u64::from(le32(&bytes, 40)),
            inode_len: if le32(&bytes, 76) == 0 {
                128
            } else {
                u64::from(le16(&bytes, 88))
            },
            seed: match superblock.checksums {
                Checksums::Metadata(seed) => Some(seed),
                Checksums::None | Checksums::Groups => None,
            },
            superblock,
        })
    }

    /// Reads one block, whose number came from the volume.
    fn block(&self, number: u64) -> Result<Vec<u8>, TreeError> {
        let size = self.superblock.block_size;
        if number == 0 || number >= self.superblock.blocks {
            return Err(damaged(format!("it names block {number}")));
        }
        // At most 64 KiB: the superblock was checked.
        let mut bytes = vec![0; size as usize];
        self.volume.read_at(number * size, &mut bytes)?;
        Ok(bytes)
    }

    /// The block of a group's descriptor. With blocks of 1024 bytes the superblock is block 1, also when
    /// group 0 begins with block 0.
    fn descriptor_block(&self, group: u64) -> u64 {
        let superblock = &self.superblock;
        let superblock_at = u64::from(superblock.block_size == 1024);
        let meta_group = group / superblock.descriptors_per_block();
        match superblock.first_meta_group {
            Some(first) if meta_group >= first => {
                let group = meta_group * superblock.descriptors_per_block();
                let at = superblock.group_start(group) + u64::from(superblock.has_super(group));
                at.max(superblock_at + u64::from(group == 0))
            }
            _ => superblock_at + 1 + meta_group,
        }
    }

    fn inode(&self, number: u64) -> Result<Inode, TreeError> {
        if number == 0 || number > self.inodes {
            return Err(damaged(format!(
                "inode {number} of {} is named",
                self.inodes
            )));
        }
        let group = (number - 1) / self.inodes_per_group;
        let index = (number - 1) % self.inodes_per_group;
        let block = self.block(self.descriptor_block(group))?;
        let at = (group % self.superblock.descriptors_per_block()) * self.superblock.descriptor_len;
        // The block holds whole descriptors of at least 32 bytes.
        let descriptor = &block[at as usize..][..self.superblock.descriptor_len as usize];
        let high = if self.incompatible & feature::WIDE != 0 {
            u64::from(le32(descriptor, 0x28)) << 32
        } else {
            0
        };
        let table = u64::from(le32(descriptor, 8)) | high;
        let end = table.checked_add(self.superblock.inode_table_blocks);
        if table == 0 || end.is_none_or(|end| end > self.superblock.blocks) {
            return Err(damaged(format!(
                "the inode table of group {group} is at block {table}"
            )));
        }
        // At most a block.
        let mut bytes = vec![0; self.inode_len as usize];
        let at = table * self.superblock.block_size + index * self.inode_len;
        self.volume.read_at(at, &mut bytes)?;
        Inode::parse(number, bytes, self.seed)
    }
}

/// The files of an ext volume.
pub(super) struct ExtTree {
    reader: Reader,
    /// The inode that was asked for last: a file is read in many pieces.
    last: RefCell<Option<Arc<Inode>>>,
}

impl ExtTree {
    pub(super) fn open(
        volume: Arc<dyn ReadAt + Send + Sync>,
        size: u64,
    ) -> Result<Self, TreeError> {
        let mut reader = Reader::open(Arc::clone(&volume), size)?;
        if reader.incompatible & feature::RECOVER != 0 {
            let replayed = journal::replay(&reader)?;
            reader = Reader::open(Arc::new(replayed), size)?;
        }
        let root = reader.inode(ROOT)?;
        if root.kind() != Some(NodeKind::Directory) {
            return Err(damaged("its top folder is none"));
        }
        Ok(Self {
            reader,
            last: RefCell::new(None),
        })
    }

    fn inode(&self, id: NodeId) -> Result<Arc<Inode>, TreeError> {
        let mut last = self.last.borrow_mut();
        if let Some(inode) = last.as_ref().filter(|inode| inode.number == id.number) {
            return Ok(Arc::clone(inode));
        }
        let inode = Arc::new(self.reader.inode(id.number)?);
        *last = Some(Arc::clone(&inode));
        Ok(inode)
    }
}

const fn node_id(number: u64) -> NodeId {
    NodeId { tree: 0, number }
}

impl FileTree for ExtTree {
    fn root(&self) -> NodeId {
        node_id(ROOT)
    }

    fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        let inode = self.inode(id)?;
        let kind = inode
            .kind()
            .ok_or_else(|| damaged(format!("inode {} is of no known kind", id.number)))?;
        Ok(Node {
            kind,
            size: match kind {
                NodeKind::File | NodeKind::SymbolicLink => self.reader.file_size(&inode),
                _ => 0,
            },
            mode: Some(inode.permissions()),
            uid: Some(inode.uid),
            gid: Some(inode.gid),
            modified: Some(inode.modified),
            links: inode.links.max(1),
            sealed: inode.sealed(),
        })
    }

    fn attributes(&self, id: NodeId) -> Result<Vec<Attribute>, TreeError> {
        self.reader.attributes(&*self.inode(id)?)
    }

    fn entries(
        &self,
        directory: NodeId,
        visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let inode = self.inode(directory)?;
        if inode.kind() != Some(NodeKind::Directory) {
            return Err(TreeError::NotFound(format!(
                "inode {} is no folder",
                directory.number
            )));
        }
        self.reader.entries(&inode, visit)
    }

    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let inode = self.inode(file)?;
        if inode.kind() != Some(NodeKind::File) {
            return Err(TreeError::NotFound(format!(
                "inode {} is no file",
                file.number
            )));
        }
        if let Some(reason) = inode.sealed() {
            return Err(TreeError::Unsupported(format!("{reason} content")));
        }
        self.reader.read_file(&inode, offset, buffer)
    }

    fn link_target(&self, link: NodeId) -> Result<Vec<u8>, TreeError> {
        let inode = self.inode(link)?;
        if inode.kind() != Some(NodeKind::SymbolicLink) {
            return Err(TreeError::NotFound(format!(
                "inode {} is no symbolic link",
                link.number
            )));
        }
        if let Some(reason) = inode.sealed() {
            return Err(TreeError::Unsupported(format!("an {reason} link")));
        }
        self.reader.link_target(&inode)
    }
}
