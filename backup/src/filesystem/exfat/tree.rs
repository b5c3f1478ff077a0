//! The files of an exFAT volume.

use std::sync::Arc;

use super::boot::Geometry;
use super::directory::{Directory, File, Item, Stream};
use super::{doubt, root};
use crate::filesystem::ReadAt;
use crate::filesystem::cluster_files::{self, Last, Open, ROOT, damaged};
use crate::filesystem::links::{Links, Met};
use crate::filesystem::tree::{Entry, FileTree, Node, NodeId, TreeError};

/// Entries lie at multiples of 32 bytes. In a node's number this bit says that the directory of the
/// entry is contiguous, which tells where an entry set goes on.
const CONTIGUOUS: u64 = 1;

/// An open volume.
pub(super) struct Tree {
    volume: Arc<dyn ReadAt + Send + Sync>,
    geometry: Geometry,
    links: Links,
    root: Stream,
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
        let links = geometry.links();
        let root = root(volume.as_ref(), &geometry, &links).map_err(damaged)?;
        Ok(Self {
            met: met(volume.as_ref(), &geometry, &links, root),
            volume,
            geometry,
            links,
            root,
            last: Last::new(),
        })
    }

    fn file(&self, id: NodeId) -> Result<File, TreeError> {
        let place = id.number & !CONTIGUOUS;
        if id.tree != 0 || !place.is_multiple_of(32) {
            return Err(TreeError::NotFound(format!("no file {id:?}")));
        }
        let mut directory = Directory::resume(
            self.volume.as_ref(),
            &self.geometry,
            &self.links,
            place,
            id.number & CONTIGUOUS != 0,
        )
        .map_err(damaged)?;
        match directory.next().map_err(damaged)? {
            Some(Item::File(file)) if file.place == place => Ok(file),
            _ => Err(TreeError::NotFound(format!("no file at byte {place}"))),
        }
    }

    fn directory(&self, id: NodeId) -> Result<Stream, TreeError> {
        if id.number == ROOT {
            return Ok(self.root);
        }
        let file = self.file(id)?;
        if !file.is_directory {
            return Err(TreeError::NotFound("it is no folder".to_owned()));
        }
        self.check_clusters(&file.content)?;
        Ok(file.content)
    }

    /// Whether clusters are there, and nobody else's.
    fn check_clusters(&self, content: &Stream) -> Result<(), TreeError> {
        let alone = |first: u32, count: u64| {
            // The run is there, so its end fits.
            match (first..first + count as u32).find(|cluster| self.met.is_crossed(*cluster)) {
                None => Ok(()),
                Some(cluster) => Err(doubt(format!("cluster {cluster} is in use twice"))),
            }
        };
        content
            .runs(self.volume.as_ref(), &self.geometry, &self.links, alone)
            .map_err(damaged)
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
        self.check_clusters(&file.content)?;
        Ok(Open {
            number: id.number,
            index: 0,
            cluster: file.content.first,
            file,
        })
    }

    /// Moves to a cluster of the file, which the caller knows to have it.
    fn seek(&self, open: &mut Open<File>, index: u64) -> Result<(), TreeError> {
        let content = &open.file.content;
        if index < open.index {
            (open.index, open.cluster) = (0, content.first);
        }
        if content.contiguous {
            // The whole run was found to exist.
            open.cluster = content.first + index as u32;
            open.index = index;
        }
        while open.index < index {
            open.cluster = content
                .after(self.volume.as_ref(), &self.links, open.cluster)
                .map_err(damaged)?;
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
        let len = file.content.len;
        Ok(cluster_files::node(file.is_directory, len, file.modified))
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
        while let Some(item) = directory.next().map_err(damaged)? {
            if let Item::File(file) = item {
                let contiguous = if content.contiguous { CONTIGUOUS } else { 0 };
                visit(Entry {
                    // Half a surrogate pair becomes U+FFFD.
                    name: cluster_files::name(String::from_utf16_lossy(&file.name))?,
                    node: NodeId {
                        tree: 0,
                        number: file.place | contiguous,
                    },
                })?;
            }
        }
        Ok(())
    }

    fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let mut open = self.opened(file)?;
        let left = open.file.content.len.saturating_sub(offset);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = &mut buffer[..len];
        let written = open.file.valid.saturating_sub(offset);
        let written = usize::try_from(written).map_or(len, |written| written.min(len));
        let (content, behind) = buffer.split_at_mut(written);
        behind.fill(0);
        let mut at = 0;
        while at < content.len() {
            let place = offset + at as u64;
            self.seek(&mut open, place / self.geometry.cluster)?;
            let within = place % self.geometry.cluster;
            let here = (self.geometry.cluster - within).min((content.len() - at) as u64) as usize;
            self.volume.read_at(
                self.geometry.place(open.cluster) + within,
                &mut content[at..at + here],
            )?;
            at += here;
        }
        self.last.set(open);
        Ok(len)
    }

    fn link_target(&self, _link: NodeId) -> Result<Vec<u8>, TreeError> {
        Err(TreeError::NotFound(
            "exFAT has no symbolic links".to_owned(),
        ))
    }

    fn ignores_case(&self) -> bool {
        true
    }
}

/// The way through all folders, to find the clusters that belong to two files or folders. Where
/// something is damaged it goes on behind it; whoever reads that will see.
fn met(volume: &dyn ReadAt, geometry: &Geometry, links: &Links, root: Stream) -> Met {
    let mut met = Met::new(geometry.clusters);
    let mut meet = |stream: &Stream| {
        let alone = |first: u32, count: u64| {
            (first..first + count as u32).try_for_each(|cluster| {
                if met.meet(cluster) {
                    Ok(())
                } else {
                    Err(doubt(format!("cluster {cluster} is in use twice")))
                }
            })
        };
        stream.runs(volume, geometry, links, alone).is_ok()
    };
    meet(&root);
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        let Ok(mut directory) = Directory::new(volume, geometry, links, folder) else {
            continue;
        };
        while let Ok(Some(item)) = directory.next() {
            if let Item::File(file) = item
                && meet(&file.content)
                && file.is_directory
            {
                folders.push(file.content);
            }
        }
    }
    met
}
