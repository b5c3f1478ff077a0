//! The files of an NTFS volume.
//!
//! Not here: alternate streams, permissions, and the content of files that are encrypted or that a reparse
//! point keeps elsewhere; such files are listed and say why they are sealed.

use std::cell::RefCell;
use std::sync::Arc;

use super::file::File;
use super::mft::Mft;
use super::record::{DATA, REPARSE_POINT, Reference, STANDARD_INFORMATION};
use super::reparse::{self, Reparse};
use super::stream::{COMPRESSION, ENCRYPTED, SPARSE, Stream};
use super::{FIRST_USER_RECORD, Fault, ROOT, index, lznt1, names};
use crate::filesystem::ReadAt;
use crate::filesystem::tree::{Entry, FileTree, Node, NodeId, NodeKind, Timestamp, TreeError};
use crate::little_endian::{le32, le64};

/// File attributes of `$STANDARD_INFORMATION`.
const SYSTEM: u32 = 0x4;
/// Offline, or to be recalled when opened or read.
const ELSEWHERE: u32 = 0x1000 | 0x4_0000 | 0x40_0000;

/// The most bytes that are compressed together; Windows compresses 64 KiB.
const MAX_UNIT: u64 = 2 << 20;

/// What begins a file that Interix, and ntfs-3g, make a symbolic link; UTF-16LE follows.
const INTERIX_LINK: &[u8] = b"IntxLNK\x01";

/// The longest such link.
const MAX_LINK: u64 = 64 << 10;

pub(super) struct NtfsTree {
    volume: Arc<dyn ReadAt + Send + Sync>,
    mft: Mft,
    /// The file that was read last.
    open: RefCell<Option<Open>>,
}

struct Open {
    id: NodeId,
    stream: Stream,
    /// The unit that was expanded last, and its bytes.
    unit: Option<(u64, Vec<u8>)>,
}

/// What the records of a file tell.
struct Described {
    node: Node,
    target: Option<Vec<u8>>,
    data: Option<Stream>,
}

impl NtfsTree {
    pub(super) fn new(volume: Arc<dyn ReadAt + Send + Sync>, mft: Mft) -> Self {
        Self {
            volume,
            mft,
            open: RefCell::new(None),
        }
    }

    fn describe(&self, id: NodeId) -> Result<Described, TreeError> {
        let (volume, geometry) = (self.volume.as_ref(), &self.mft.geometry);
        let file = File::load(volume, &self.mft, Reference(id.number))?;
        let information = file
            .resident(STANDARD_INFORMATION)?
            .filter(|information| information.len() >= 36);
        let attributes = information.map_or(0, |information| le32(information, 32));
        let reparse = match file.stream(REPARSE_POINT, "", geometry)? {
            Some(stream) => {
                let bytes = stream.read_all(volume, geometry, reparse::MAX_LEN)?;
                Some(Reparse::parse(&bytes)?)
            }
            None => None,
        };
        let directory = file.base().is_directory();
        let data = match directory {
            true => None,
            false => file.stream(DATA, "", geometry)?,
        };
        let mut described = Described {
            node: Node {
                kind: match directory {
                    true => NodeKind::Directory,
                    false => NodeKind::File,
                },
                size: data.as_ref().map_or(0, |data| data.size),
                mode: None,
                uid: None,
                gid: None,
                modified: information.map(|information| timestamp(le64(information, 8))),
                links: file.links()?.max(1),
                sealed: data.as_ref().and_then(sealed),
            },
            target: None,
            data,
        };
        if let Some(reparse) = reparse {
            described.is(reparse, attributes);
        } else if attributes & SYSTEM != 0 {
            described.target = self.interix_link(described.data.as_ref())?;
        }
        if described.target.is_some() {
            described.node.kind = NodeKind::SymbolicLink;
        }
        if described.node.kind != NodeKind::File {
            described.node.size = 0;
            described.node.sealed = None;
        }
        Ok(described)
    }

    fn interix_link(&self, data: Option<&Stream>) -> Result<Option<Vec<u8>>, Fault> {
        let data = data.filter(|data| {
            let len = data.size.saturating_sub(INTERIX_LINK.len() as u64);
            data.flags & (COMPRESSION | ENCRYPTED) == 0
                && len > 0
                && len % 2 == 0
                && len <= MAX_LINK
        });
        let Some(data) = data else {
            return Ok(None);
        };
        let max = MAX_LINK + INTERIX_LINK.len() as u64;
        let bytes = data.read_all(self.volume.as_ref(), &self.mft.geometry, max)?;
        Ok(bytes.strip_prefix(INTERIX_LINK).map(names::utf8))
    }

    /// Puts a file into the place of the one that was read last.
    fn opened(&self, id: NodeId) -> Result<Open, TreeError> {
        let Described { node, data, .. } = self.describe(id)?;
        if node.kind != NodeKind::File {
            let reason = format!("MFT record {} is no file", Reference(id.number).number());
            return Err(TreeError::NotFound(reason));
        }
        match (node.sealed, data) {
            (Some(why), _) => Err(TreeError::Unsupported(format!(
                "a file that is sealed ({why})"
            ))),
            (None, Some(stream)) => Ok(Open {
                id,
                stream,
                unit: None,
            }),
            (None, None) => {
                let number = Reference(id.number).number();
                Err(TreeError::Damaged(format!(
                    "MFT record {number} is a file without data"
                )))
            }
        }
    }
}

impl Described {
    fn is(&mut self, reparse: Reparse, attributes: u32) {
        let folder = self.node.kind == NodeKind::Directory;
        match reparse {
            Reparse::Link(target) => self.target = Some(target),
            // What a folder has is in its index, whatever else it stands for.
            _ if folder => {}
            Reparse::Fifo => self.node.kind = NodeKind::Fifo,
            Reparse::Socket => self.node.kind = NodeKind::Socket,
            Reparse::Cloud => {
                let sparse = self
                    .data
                    .as_ref()
                    .is_none_or(|data| data.flags & SPARSE != 0);
                if sparse || attributes & ELSEWHERE != 0 {
                    self.node.sealed = Some("kept in the cloud");
                }
            }
            Reparse::Sealed(why) => self.node.sealed = Some(why),
        }
    }
}

fn sealed(data: &Stream) -> Option<&'static str> {
    if data.flags & ENCRYPTED != 0 {
        Some("encrypted")
    } else if data.flags & COMPRESSION > 1 {
        Some("compressed in an unknown way")
    } else {
        None
    }
}

/// From 100 ns since 1601.
fn timestamp(ticks: u64) -> Timestamp {
    const SECOND: u64 = 10_000_000;
    Timestamp {
        seconds: (ticks / SECOND) as i64 - 11_644_473_600,
        nanoseconds: (ticks % SECOND) as u32 * 100,
    }
}

impl FileTree for NtfsTree {
    fn root(&self) -> NodeId {
        NodeId {
            tree: 0,
            number: ROOT,
        }
    }

    fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        self.describe(id).map(|described| described.node)
    }

    fn entries(
        &self,
        directory: NodeId,
        visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let volume = self.volume.as_ref();
        if self.node(directory)?.kind != NodeKind::Directory {
            let number = Reference(directory.number).number();
            return Err(TreeError::NotFound(format!(
                "MFT record {number} is no folder"
            )));
        }
        index::names(volume, &self.mft, directory.number, &mut |file, name| {
            // The metadata files, and `.` in the root.
            if file.number() < FIRST_USER_RECORD {
                return Ok(());
            }
            let name = names::utf8(name);
            if name.is_empty()
                || name == b"."
                || name == b".."
                || name.contains(&b'/')
                || name.contains(&0)
            {
                return Err(TreeError::Damaged(format!(
                    "MFT record {} has a name that is none",
                    file.number()
                )));
            }
            let node = NodeId {
                tree: 0,
                number: file.0,
            };
            visit(Entry { name, node })
        })
    }

    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let before = self.open.borrow_mut().take().filter(|open| open.id == file);
        let mut open = match before {
            Some(open) => open,
            None => self.opened(file)?,
        };
        let volume = self.volume.as_ref();
        let read = if open.stream.flags & COMPRESSION == 0 || open.stream.is_resident() {
            open.stream.read(volume, &self.mft.geometry, offset, buffer)
        } else {
            open.read_compressed(volume, &self.mft, offset, buffer)
        };
        *self.open.borrow_mut() = Some(open);
        Ok(read?)
    }

    fn link_target(&self, link: NodeId) -> Result<Vec<u8>, TreeError> {
        self.describe(link)?.target.ok_or_else(|| {
            let number = Reference(link.number).number();
            TreeError::NotFound(format!("MFT record {number} is no symbolic link"))
        })
    }

    fn ignores_case(&self) -> bool {
        true
    }
}

impl Open {
    fn read_compressed(
        &mut self,
        volume: &dyn ReadAt,
        mft: &Mft,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Fault> {
        let unit = mft
            .geometry
            .cluster
            .checked_shl(u32::from(self.stream.unit));
        let unit = unit
            .filter(|unit| self.stream.unit > 0 && self.stream.unit < 16 && *unit <= MAX_UNIT)
            .ok_or_else(|| Fault::damaged("a file has compression units that do not fit"))?;
        let len = self
            .stream
            .size
            .saturating_sub(offset)
            .min(buffer.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let bytes = match &self.unit {
                Some((number, bytes)) if *number == at / unit => bytes,
                _ => {
                    let bytes = self.expand(volume, mft, at / unit, unit as usize)?;
                    &self.unit.insert((at / unit, bytes)).1
                }
            };
            let bytes = &bytes[(at % unit) as usize..];
            let now = bytes.len().min(len - done);
            buffer[done..done + now].copy_from_slice(&bytes[..now]);
            done += now;
        }
        Ok(len)
    }

    /// A unit that is all holes is zeros, one without a hole is kept as it is; else the clusters before its
    /// hole are compressed.
    fn expand(
        &self,
        volume: &dyn ReadAt,
        mft: &Mft,
        number: u64,
        size: usize,
    ) -> Result<Vec<u8>, Fault> {
        let geometry = &mft.geometry;
        let in_unit = 1_u64 << self.stream.unit;
        let (from, end) = (number * in_unit, (number + 1) * in_unit);
        let runs = self.stream.runs();
        let first = runs.partition_point(|run| run.end() <= from);
        let mut kept = 0;
        let mut after_hole = false;
        for run in runs[first..].iter().take_while(|run| run.at < end) {
            let len = run.end().min(end) - run.at.max(from);
            match run.start {
                Some(_) if after_hole => {
                    return Err(Fault::damaged(
                        "a compressed file has clusters behind a hole",
                    ));
                }
                Some(_) => kept += len,
                None => after_hole = true,
            }
        }
        let start = number * size as u64;
        let mut bytes = vec![0; (kept * geometry.cluster) as usize];
        self.stream
            .read_clusters(volume, geometry, start, &mut bytes)?;
        if kept < in_unit {
            bytes = lznt1::expand(&bytes, size)
                .ok_or_else(|| Fault::damaged("the content of a compressed file is damaged"))?;
        }
        // What was never written is zeros.
        let written = self
            .stream
            .initialized
            .saturating_sub(start)
            .min(size as u64) as usize;
        bytes[written..].fill(0);
        Ok(bytes)
    }
}
