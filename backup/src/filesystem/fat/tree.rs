//! The files of a FAT volume.
//!
//! Times are the local time of the machine that wrote them, which FAT keeps without a zone; they are
//! given as if it were UTC.

use std::sync::Arc;

use super::Geometry;
use super::directory::{Content, Directory, ENTRY, File};
use super::walk::Walk;
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::filesystem::cluster_files::{self, Last, Open, ROOT, damaged};
use crate::filesystem::links::{Links, Met};
use crate::filesystem::tree::{Entry, FileTree, Node, NodeId, TreeError};

/// An open volume. Other nodes have the byte of their entry as number.
pub(super) struct Tree {
    volume: Arc<dyn ReadAt + Send + Sync>,
    geometry: Geometry,
    links: Links,
    met: Met,
    /// The file that was read last.
    last: Last<File>,
}

impl Tree {
    pub(super) fn open(
        volume: Arc<dyn ReadAt + Send + Sync>,
        size: u64,
    ) -> Result<Self, TreeError> {
        let geometry = Geometry::read(volume.as_ref(), size).map_err(damaged)?;
        Ok(Self {
            met: Walk::new(volume.as_ref(), &geometry).met,
            links: geometry.links(),
            geometry,
            volume,
            last: Last::new(),
        })
    }

    fn file(&self, id: NodeId) -> Result<File, TreeError> {
        let none = || TreeError::NotFound(format!("no file at byte {}", id.number));
        let end = id.number.checked_add(ENTRY as u64).ok_or_else(none)?;
        let inside = id.number.is_multiple_of(ENTRY as u64)
            && id.number >= self.geometry.fixed_root().start()
            && end <= self.geometry.size();
        if id.tree != 0 || !inside {
            return Err(none());
        }
        let mut entry = [0; ENTRY];
        self.volume.read_at(id.number, &mut entry)?;
        File::parse(&self.geometry, &entry, id.number).ok_or_else(none)
    }

    fn directory(&self, id: NodeId) -> Result<Content, TreeError> {
        if id.number == ROOT {
            // It can be read also when other folders lead back to it.
            return Ok(if self.geometry.wide {
                Content::Chain(self.geometry.root_cluster)
            } else {
                Content::Fixed(self.geometry.fixed_root())
            });
        }
        let file = self.file(id)?;
        if !file.is_directory {
            return Err(TreeError::NotFound("it is no folder".to_owned()));
        }
        self.check_chain(file.first, 1)?;
        Ok(Content::Chain(file.first))
    }

    /// Follows at least `count` clusters of a chain, all of which must be this chain's alone.
    fn check_chain(&self, first: u32, count: u64) -> Result<(), TreeError> {
        let (mut next, mut len) = (Some(first), 0);
        while let Some(cluster) = next {
            // Also makes sure that it is there.
            let after = self.links.after(self.volume.as_ref(), cluster);
            next = after.map_err(damaged)?;
            if self.met.is_crossed(cluster) {
                return Err(TreeError::Damaged(format!(
                    "cluster {cluster} is in two chains or in a loop"
                )));
            }
            len += 1;
            if len > self.geometry.clusters() {
                return Err(TreeError::Damaged(format!(
                    "the chain of cluster {first} is a loop"
                )));
            }
        }
        if len < count {
            return Err(TreeError::Damaged(format!(
                "the chain of cluster {first} has {len} clusters of {count}"
            )));
        }
        Ok(())
    }

    /// The file with its whole chain followed once.
    fn opened(&self, id: NodeId) -> Result<Open<File>, TreeError> {
        if let Some(open) = self.last.get(id) {
            return Ok(open);
        }
        if id.number == ROOT {
            return Err(TreeError::NotFound("it is no file".to_owned()));
        }
        let file = self.file(id)?;
        if file.is_directory {
            return Err(TreeError::NotFound("it is no file".to_owned()));
        }
        if file.len > 0 {
            let count = file.len.div_ceil(u64::from(self.geometry.cluster_size()));
            self.check_chain(file.first, count)?;
        }
        Ok(Open {
            number: id.number,
            index: 0,
            cluster: file.first,
            file,
        })
    }

    /// Moves to a cluster of the file.
    fn seek(&self, open: &mut Open<File>, index: u64) -> Result<(), TreeError> {
        if index < open.index {
            (open.index, open.cluster) = (0, open.file.first);
        }
        while open.index < index {
            open.cluster = self
                .links
                .after(self.volume.as_ref(), open.cluster)
                .map_err(damaged)?
                .ok_or_else(|| TreeError::Damaged("a chain ends too soon".to_owned()))?;
            open.index += 1;
        }
        Ok(())
    }
}

impl FileTree for Tree {
    fn root(&self) -> NodeId {
        cluster_files::root()
    }

    fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        if id == self.root() {
            return Ok(cluster_files::node(true, 0, None));
        }
        let file = self.file(id)?;
        Ok(cluster_files::node(
            file.is_directory,
            file.len,
            file.modified,
        ))
    }

    fn entries(
        &self,
        directory: NodeId,
        visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let content = self.directory(directory)?;
        let volume = self.volume.as_ref();
        let mut directory =
            Directory::new(volume, &self.geometry, &self.links, content).map_err(damaged)?;
        while let Some((file, name)) = directory.next().map_err(damaged)? {
            visit(Entry {
                name: cluster_files::name(name)?,
                node: NodeId {
                    tree: 0,
                    number: file.place,
                },
            })?;
        }
        Ok(())
    }

    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let mut open = self.opened(file)?;
        let left = open.file.len.saturating_sub(offset);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let size = u64::from(self.geometry.cluster_size());
        let mut at = 0;
        while at < len {
            let place = offset + at as u64;
            self.seek(&mut open, place / size)?;
            let within = place % size;
            let here = (size - within).min((len - at) as u64) as usize;
            let from = self.geometry.place(open.cluster) + within;
            self.volume.read_at(from, &mut buffer[at..at + here])?;
            at += here;
        }
        self.last.set(open);
        Ok(len)
    }

    fn places(&self, file: NodeId) -> Result<Option<Vec<ByteRange>>, TreeError> {
        let mut open = self.opened(file)?;
        let size = u64::from(self.geometry.cluster_size());
        let mut places: Vec<ByteRange> = Vec::new();
        let mut at = 0;
        while at < open.file.len {
            self.seek(&mut open, at / size)?;
            let here = size.min(open.file.len - at);
            let start = self.geometry.place(open.cluster);
            match places.last_mut() {
                Some(last) if last.end() == start => {
                    *last = ByteRange::between(last.start(), start + here);
                }
                _ => places.push(ByteRange::between(start, start + here)),
            }
            at += here;
        }
        Ok(Some(places))
    }

    fn link_target(&self, _link: NodeId) -> Result<Vec<u8>, TreeError> {
        Err(TreeError::NotFound("FAT has no symbolic links".to_owned()))
    }

    fn ignores_case(&self) -> bool {
        true
    }
}
