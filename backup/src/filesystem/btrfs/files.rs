//! The files of a Btrfs, from the top subvolume (5); subvolumes and snapshots are folders in it.
//!
//! They are those of the last commit: a log that waits to be replayed is not read. Checksums of data are
//! not checked, those of tree blocks are.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use super::Fault;
use super::allocation::subvolume;
use super::chunks::Chunks;
use super::compression::{MAX_LEN, decompress};
use super::superblock::{Root, Superblock};
use super::tree_blocks::{Key, TreeBlocks, kind};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::filesystem::tree::{Entry, FileTree, Node, NodeId, NodeKind, Timestamp, TreeError};
use crate::little_endian::{le16, le32, le64};

const TOP: u64 = 5;
/// The inode of a subvolume's top folder.
const TOP_FOLDER: u64 = 256;
/// Stands for a subvolume that a snapshot names but does not hold: an empty folder, as in the kernel.
const EMPTY_FOLDER: u64 = 2;
/// Longest target of a symbolic link.
const MAX_TARGET: u64 = 4096;
/// Bytes of an extent item before inline content, and as a whole otherwise.
const INLINE_AT: usize = 21;
const EXTENT_LEN: usize = 53;

const INLINE: u8 = 0;
const PREALLOCATED: u8 = 2;

/// The files of a volume.
pub(super) struct Files {
    volume: Arc<dyn ReadAt + Send + Sync>,
    superblock: Superblock,
    chunks: Chunks,
    /// The compressed extent that was read last, by its place.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

/// What an extent item says.
struct Extent {
    start: u64,
    len: u64,
    /// Of its content when whole and not compressed.
    whole_len: u64,
    compression: u8,
    kind: u8,
    inline: Vec<u8>,
    place: u64,
    place_len: u64,
    offset: u64,
}

impl Files {
    pub(super) fn open(volume: Arc<dyn ReadAt + Send + Sync>, size: u64) -> Result<Self, Fault> {
        let superblock = Superblock::read(volume.as_ref(), size)?;
        let chunks = Chunks::read(volume.as_ref(), &superblock)?;
        Ok(Self {
            volume,
            superblock,
            chunks,
            last: Mutex::new(None),
        })
    }

    fn blocks(&self) -> TreeBlocks<'_> {
        TreeBlocks::new(self.volume.as_ref(), &self.superblock, &self.chunks)
    }

    fn subvolume(&self, id: u64) -> Result<Root, Fault> {
        subvolume(&self.blocks(), &self.superblock, id)
    }

    /// The inode item of a node.
    fn inode(&self, id: NodeId) -> Result<Vec<u8>, Fault> {
        let wanted = Key::new(id.number, kind::INODE_ITEM, 0);
        let mut found = None;
        self.blocks()
            .walk::<Fault>(&self.subvolume(id.tree)?, wanted, &mut |item| {
                if item.key == wanted && item.data.len() >= 160 {
                    found = Some(item.data.to_vec());
                }
                Ok(if item.key < wanted {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                })
            })?;
        found.ok_or_else(|| {
            Fault::damaged(format!("subvolume {} has no inode {}", id.tree, id.number))
        })
    }

    /// Whether the subvolume `child` hangs under this name in this folder.
    fn has_subvolume(&self, folder: NodeId, child: u64, name: &[u8]) -> Result<bool, Fault> {
        let wanted = Key::new(folder.tree, kind::ROOT_REF, child);
        let mut found = false;
        let root_tree = self.superblock.root_tree;
        self.blocks()
            .walk::<Fault>(&root_tree, wanted, &mut |item| {
                if item.key < wanted {
                    return Ok(ControlFlow::Continue(()));
                }
                found = item.key == wanted
                    && item.data.len() >= 18
                    && le64(item.data, 0) == folder.number
                    && item.data[18..] == *name;
                Ok(ControlFlow::Break(()))
            })?;
        Ok(found)
    }

    /// Copies the part of `extent` that falls into `buffer`, which holds zeros from byte `offset` of the file.
    fn copy(&self, extent: &Extent, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let end = offset + buffer.len() as u64;
        let from = extent.start.max(offset);
        let to = (extent.start + extent.len).min(end);
        if from >= to || extent.kind == PREALLOCATED || (extent.kind != INLINE && extent.place == 0)
        {
            return Ok(());
        }
        let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
        let skip = extent
            .offset
            .checked_add(from - extent.start)
            .ok_or_else(|| Fault::damaged("an extent out of bounds"))?;
        if extent.kind != INLINE && extent.compression == 0 {
            let range = extent
                .place
                .checked_add(skip)
                .and_then(|start| ByteRange::new(start, target.len() as u64).ok());
            let place = range.and_then(|range| self.chunks.places(range).next());
            let place = place.ok_or_else(|| Fault::damaged("a file's extent is in no chunk"))?;
            return Ok(self.volume.read_at(place, target)?);
        }
        let copy = |content: &[u8], target: &mut [u8]| {
            let content = usize::try_from(skip)
                .ok()
                .and_then(|skip| content.get(skip..))
                .unwrap_or_default();
            let len = content.len().min(target.len());
            target[..len].copy_from_slice(&content[..len]);
        };
        let sector = self.superblock.sector_size as usize;
        let whole_len = usize::try_from(extent.whole_len).unwrap_or(usize::MAX);
        if extent.kind == INLINE {
            if extent.compression == 0 {
                copy(&extent.inline, target);
            } else {
                copy(
                    &decompress(extent.compression, &extent.inline, whole_len, sector)?,
                    target,
                );
            }
            return Ok(());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((place, content)) = last.as_ref()
            && *place == extent.place
        {
            copy(content, target);
            return Ok(());
        }
        if extent.place_len > MAX_LEN as u64 {
            return Err(Fault::damaged("a compressed extent of more than 128 KiB"));
        }
        let place = ByteRange::new(extent.place, extent.place_len)
            .ok()
            .and_then(|range| self.chunks.places(range).next())
            .ok_or_else(|| Fault::damaged("a file's extent is in no chunk"))?;
        let mut input = vec![0; extent.place_len as usize];
        self.volume.read_at(place, &mut input)?;
        let content = decompress(extent.compression, &input, whole_len, sector)?;
        copy(&content, target);
        *last = Some((extent.place, content));
        Ok(())
    }
}

fn extent(start: u64, item: &[u8]) -> Result<Extent, Fault> {
    let bad = || {
        Fault::damaged(format!(
            "the extent at byte {start} of a file makes no sense"
        ))
    };
    if item.len() < INLINE_AT {
        return Err(bad());
    }
    if item[17] != 0 || le16(item, 18) != 0 {
        return Err(Fault::Unsupported("an encrypted extent".to_owned()));
    }
    let mut extent = Extent {
        start,
        len: le64(item, 8),
        whole_len: le64(item, 8),
        compression: item[16],
        kind: item[20],
        inline: Vec::new(),
        place: 0,
        place_len: 0,
        offset: 0,
    };
    if extent.kind == INLINE {
        extent.inline = item[INLINE_AT..].to_vec();
    } else if extent.kind > PREALLOCATED || item.len() < EXTENT_LEN {
        return Err(bad());
    } else {
        extent.place = le64(item, 21);
        extent.place_len = le64(item, 29);
        extent.offset = le64(item, 37);
        extent.len = le64(item, 45);
    }
    start
        .checked_add(extent.len)
        .map(|_| extent)
        .ok_or_else(bad)
}

fn node(inode: &[u8]) -> Result<Node, TreeError> {
    let (mode, device) = (le32(inode, 52), le64(inode, 56));
    // The kernel's own form of a device number, `MKDEV`.
    let (major, minor) = ((device >> 20) as u32, (device & 0xf_ffff) as u32);
    let kind = match mode >> 12 {
        0o01 => NodeKind::Fifo,
        0o02 => NodeKind::CharacterDevice { major, minor },
        0o04 => NodeKind::Directory,
        0o06 => NodeKind::BlockDevice { major, minor },
        0o10 => NodeKind::File,
        0o12 => NodeKind::SymbolicLink,
        0o14 => NodeKind::Socket,
        _ => return Err(TreeError::Damaged(format!("an inode of mode {mode:o}"))),
    };
    let content = matches!(kind, NodeKind::File | NodeKind::SymbolicLink);
    Ok(Node {
        kind,
        size: if content { le64(inode, 16) } else { 0 },
        mode: Some(mode & 0o7777),
        uid: Some(le32(inode, 44)),
        gid: Some(le32(inode, 48)),
        modified: Some(Timestamp {
            seconds: le64(inode, 136).cast_signed(),
            nanoseconds: le32(inode, 144).min(999_999_999),
        }),
        links: le32(inode, 40).max(1),
        sealed: None,
    })
}

impl FileTree for Files {
    fn root(&self) -> NodeId {
        NodeId {
            tree: TOP,
            number: TOP_FOLDER,
        }
    }

    fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        if id.number == EMPTY_FOLDER {
            return Ok(Node {
                kind: NodeKind::Directory,
                size: 0,
                mode: Some(0o755),
                uid: Some(0),
                gid: Some(0),
                modified: None,
                links: 1,
                sealed: None,
            });
        }
        node(&self.inode(id)?)
    }

    fn entries(
        &self,
        directory: NodeId,
        visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        if directory.number == EMPTY_FOLDER {
            return Ok(());
        }
        let from = Key::new(directory.number, kind::DIR_INDEX, 0);
        let root = self.subvolume(directory.tree)?;
        self.blocks().walk(&root, from, &mut |item| {
            if item.key < from {
                return Ok(ControlFlow::Continue(()));
            }
            if (item.key.object, item.key.kind) != (from.object, from.kind) {
                return Ok(ControlFlow::Break(()));
            }
            let bad = || {
                TreeError::Damaged(format!(
                    "entry {} of folder {} makes no sense",
                    item.key.offset, directory.number
                ))
            };
            if item.data.len() < 30 {
                return Err(bad());
            }
            let name = item.data[30..]
                .get(..usize::from(le16(item.data, 27)))
                .filter(|name| {
                    !matches!(*name, b"" | b"." | b"..")
                        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
                })
                .ok_or_else(bad)?;
            let target = Key::parse(item.data);
            let (tree, number) = match target.kind {
                kind::INODE_ITEM => (directory.tree, target.object),
                kind::ROOT_ITEM if self.has_subvolume(directory, target.object, name)? => {
                    (target.object, TOP_FOLDER)
                }
                kind::ROOT_ITEM => (directory.tree, EMPTY_FOLDER),
                _ => return Err(bad()),
            };
            visit(Entry {
                name: name.to_vec(),
                node: NodeId { tree, number },
            })?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let node = self.node(file)?;
        if !matches!(node.kind, NodeKind::File | NodeKind::SymbolicLink) {
            return Err(TreeError::NotFound("it is no file".to_owned()));
        }
        let len = node.size.saturating_sub(offset).min(buffer.len() as u64);
        // At most the buffer's length.
        let buffer = &mut buffer[..len as usize];
        buffer.fill(0);
        if buffer.is_empty() {
            return Ok(0);
        }
        let root = self.subvolume(file.tree)?;
        let from = Key::new(file.number, kind::EXTENT_DATA, offset);
        self.blocks().walk::<Fault>(&root, from, &mut |item| {
            let is_extent = (item.key.object, item.key.kind) == (file.number, kind::EXTENT_DATA);
            if is_extent && item.key.offset < offset + len {
                self.copy(&extent(item.key.offset, item.data)?, offset, buffer)?;
            } else if item.key > from {
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(buffer.len())
    }

    fn link_target(&self, link: NodeId) -> Result<Vec<u8>, TreeError> {
        let node = self.node(link)?;
        if node.kind != NodeKind::SymbolicLink {
            return Err(TreeError::NotFound("it is no symbolic link".to_owned()));
        }
        if node.size > MAX_TARGET {
            return Err(TreeError::Damaged(format!("a link to {} bytes", node.size)));
        }
        let mut target = vec![0; node.size as usize];
        self.read(link, 0, &mut target)?;
        Ok(target)
    }
}
