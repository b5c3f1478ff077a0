//! The files of a volume.
//!
//! Not here: files on the realtime device, whose content is not in the volume; they are sealed.

use std::sync::Arc;

use super::big_endian::{be32, be64};
use super::directory::{self, INDEX_AT};
use super::inode::{Format, Inode};
use super::superblock::{Superblock, checksum_fits};
use super::{Fault, damaged};
use crate::filesystem::ReadAt;
use crate::filesystem::tree::{Entry, FileTree, Node, NodeId, NodeKind, TreeError};

/// `XFS_SYMLINK_MAXLEN`.
const MAX_LINK: u64 = 1024;
const LINK_MAGIC: u32 = 0x5853_4c4d;
/// Header of a piece of a link's target in version 5.
const LINK_HEADER: usize = 56;

/// The tree of an XFS volume.
pub(super) struct Files {
    volume: Arc<dyn ReadAt + Send + Sync>,
    superblock: Superblock,
}

impl Files {
    pub(super) fn new(volume: Arc<dyn ReadAt + Send + Sync>, superblock: Superblock) -> Self {
        Self { volume, superblock }
    }

    fn inode(&self, id: NodeId) -> Result<Inode, TreeError> {
        if id.tree != 0 {
            return Err(TreeError::NotFound(format!("there is no tree {}", id.tree)));
        }
        let inode = Inode::read(self.volume.as_ref(), &self.superblock, id.number)?;
        if inode.mode == 0 {
            return Err(damaged(format!("inode {} is free", id.number)).into());
        }
        Ok(inode)
    }

    /// Fills `buffer` from byte `offset` of what the inode maps; the rest of it is zeros.
    fn fill(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.fill(0);
        let block = self.superblock.block_size;
        let end = offset.saturating_add(buffer.len() as u64);
        let blocks = (offset / block, end.div_ceil(block));
        let volume = self.volume.as_ref();
        inode.mappings(volume, &self.superblock, blocks, &mut |mapping| {
            let start = mapping.offset * block;
            let from = offset.max(start);
            let to = end.min(start + mapping.count * block);
            if mapping.unwritten || from >= to {
                return Ok(());
            }
            // Both lie within the buffer.
            let place = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            Ok(volume.read_at(mapping.at + (from - start), place)?)
        })
    }

    fn remote_target(&self, inode: &Inode) -> Result<Vec<u8>, TreeError> {
        let mut target = Vec::new();
        let len = inode.size as usize;
        let block = self.superblock.block_size;
        let mut next = 0;
        let bad = || damaged(format!("the link of inode {} is wrong", inode.number));
        inode.mappings(
            self.volume.as_ref(),
            &self.superblock,
            (0, u64::MAX),
            &mut |mapping| {
                // At most three blocks are needed, each run of them has a header of its own.
                if mapping.offset != next || mapping.unwritten || mapping.count > 3 {
                    return Err(bad());
                }
                next += mapping.count;
                let mut bytes = vec![0; (mapping.count * block) as usize];
                self.volume.read_at(mapping.at, &mut bytes)?;
                let missing = len - target.len();
                if !self.superblock.checksums {
                    target.extend_from_slice(&bytes[..missing.min(bytes.len())]);
                    return Ok(());
                }
                let count = be32(&bytes, 8) as usize;
                let own = be32(&bytes, 0) == LINK_MAGIC
                    && be32(&bytes, 4) as usize == target.len()
                    && count <= missing.min(bytes.len() - LINK_HEADER)
                    && checksum_fits(&bytes, 12)
                    && bytes[16..32] == self.superblock.meta_uuid
                    && be64(&bytes, 32) == inode.number
                    && be64(&bytes, 40) == mapping.at / 512;
                if !own {
                    return Err(bad());
                }
                target.extend_from_slice(&bytes[LINK_HEADER..LINK_HEADER + count]);
                Ok(())
            },
        )?;
        if target.len() == len {
            Ok(target)
        } else {
            Err(bad().into())
        }
    }
}

/// A device number: 14 bits major, 18 bits minor.
fn device(inode: &Inode) -> Result<(u32, u32), Fault> {
    match inode.fork.get(..4) {
        Some(bytes) if inode.format == Format::Device => {
            let number = be32(bytes, 0);
            Ok((number >> 18, number & 0x3_ffff))
        }
        _ => Err(damaged(format!("inode {} is no device", inode.number))),
    }
}

fn kind(inode: &Inode) -> Result<NodeKind, Fault> {
    Ok(match inode.mode >> 12 {
        0o1 => NodeKind::Fifo,
        0o2 => {
            let (major, minor) = device(inode)?;
            NodeKind::CharacterDevice { major, minor }
        }
        0o4 => NodeKind::Directory,
        0o6 => {
            let (major, minor) = device(inode)?;
            NodeKind::BlockDevice { major, minor }
        }
        0o10 => NodeKind::File,
        0o12 => NodeKind::SymbolicLink,
        0o14 => NodeKind::Socket,
        _ => return Err(damaged(format!("inode {} is of no kind", inode.number))),
    })
}

fn not_a(what: &str, id: NodeId) -> TreeError {
    TreeError::NotFound(format!("inode {} is no {what}", id.number))
}

impl FileTree for Files {
    fn root(&self) -> NodeId {
        NodeId {
            tree: 0,
            number: self.superblock.root_inode,
        }
    }

    fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        let inode = self.inode(id)?;
        let kind = kind(&inode)?;
        let has_content = matches!(kind, NodeKind::File | NodeKind::SymbolicLink);
        let sealed = kind == NodeKind::File && inode.realtime;
        Ok(Node {
            kind,
            size: if has_content { inode.size } else { 0 },
            mode: Some(u32::from(inode.mode & 0o7777)),
            uid: Some(inode.uid),
            gid: Some(inode.gid),
            modified: inode.modified,
            links: inode.links.max(1),
            sealed: sealed.then_some("on a realtime device"),
        })
    }

    fn entries(
        &self,
        directory: NodeId,
        visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let inode = self.inode(directory)?;
        if kind(&inode)? != NodeKind::Directory {
            return Err(not_a("folder", directory));
        }
        let superblock = &self.superblock;
        if inode.format == Format::Local {
            let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
            let bytes = inode.fork.get(..len).ok_or_else(|| {
                damaged(format!("inode {} is too small for itself", inode.number))
            })?;
            return directory::short_form(superblock, inode.number, bytes, visit);
        }
        let unit = superblock.directory_blocks;
        let mut bytes = vec![0; (unit * superblock.block_size) as usize];
        let mut next = 0;
        let end = INDEX_AT / superblock.block_size;
        inode.mappings(
            self.volume.as_ref(),
            superblock,
            (0, end),
            &mut |mapping| -> Result<(), TreeError> {
                let last = mapping.offset + mapping.count;
                // A block of the directory may lie in pieces; it is read when its first one is met.
                while next < last {
                    next = next.max(mapping.offset);
                    if !next.is_multiple_of(unit) {
                        let message = format!("inode {} lacks half a block", inode.number);
                        return Err(damaged(message).into());
                    }
                    self.fill(&inode, next * superblock.block_size, &mut bytes)?;
                    let at = mapping.at + (next - mapping.offset) * superblock.block_size;
                    directory::block(superblock, inode.number, at, &bytes, visit)?;
                    next += unit;
                }
                Ok(())
            },
        )
    }

    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let inode = self.inode(file)?;
        if kind(&inode)? != NodeKind::File {
            return Err(not_a("file", file));
        }
        if inode.realtime {
            return Err(TreeError::Unsupported(
                "the content of a file on a realtime device".to_owned(),
            ));
        }
        if !matches!(inode.format, Format::Extents | Format::Tree) {
            let message = format!("file {} keeps its content in no known way", inode.number);
            return Err(damaged(message).into());
        }
        let left = inode.size.saturating_sub(offset);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.fill(&inode, offset, &mut buffer[..len])?;
        Ok(len)
    }

    fn link_target(&self, link: NodeId) -> Result<Vec<u8>, TreeError> {
        let inode = self.inode(link)?;
        if kind(&inode)? != NodeKind::SymbolicLink {
            return Err(not_a("symbolic link", link));
        }
        if !(1..=MAX_LINK).contains(&inode.size) {
            let message = format!(
                "the link of inode {} has {} bytes",
                inode.number, inode.size
            );
            return Err(damaged(message).into());
        }
        if inode.format != Format::Local {
            return self.remote_target(&inode);
        }
        match inode.fork.get(..inode.size as usize) {
            Some(target) => Ok(target.to_vec()),
            None => Err(damaged(format!("the link of inode {} is wrong", link.number)).into()),
        }
    }

    fn ignores_case(&self) -> bool {
        self.superblock.ignores_case
    }
}
