//! The way through all folders of a FAT volume: where files lie, and which clusters contradict
//! themselves.
//!
//! Invariant: every cluster is followed once, so that loops end and the work is bounded by the size
//! of the volume. Whatever is damaged is left out, and the way goes on behind it.

use super::Geometry;
use super::directory::{Content, Directory, File};
use crate::ByteRange;
use crate::filesystem::extents::FileExtents;
use crate::filesystem::links::{Links, Met};
use crate::filesystem::{Doubt, ReadAt};

/// What was found.
pub(super) struct Walk {
    pub(super) extents: FileExtents,
    /// The first thing that could make readers take a free cluster for a file's.
    pub(super) doubt: Option<Doubt>,
    pub(super) met: Met,
}

impl Walk {
    /// Goes through a volume whose geometry fits its size.
    pub(super) fn new(volume: &dyn ReadAt, geometry: &Geometry) -> Self {
        let mut walk = Self {
            extents: FileExtents::new(),
            doubt: None,
            met: Met::new(geometry.clusters()),
        };
        let links = geometry.links();
        let mut folders = Vec::new();
        if geometry.wide {
            if walk.chain(volume, &links, geometry.root_cluster).is_some() {
                folders.push(Content::Chain(geometry.root_cluster));
            }
        } else {
            folders.push(Content::Fixed(geometry.fixed_root()));
        }
        while let Some(folder) = folders.pop() {
            let Ok(mut directory) = Directory::new(volume, geometry, &links, folder) else {
                continue;
            };
            while let Ok(Some((file, _))) = directory.next() {
                walk.file(volume, geometry, &links, &file, &mut folders);
            }
        }
        walk
    }

    fn file(
        &mut self,
        volume: &dyn ReadAt,
        geometry: &Geometry,
        links: &Links,
        file: &File,
        folders: &mut Vec<Content>,
    ) {
        if file.first == 0 {
            return;
        }
        let Some(runs) = self.chain(volume, links, file.first) else {
            if file.is_directory {
                // What is in it is not looked at.
                self.doubt.get_or_insert_with(|| {
                    Doubt::Untrusted(format!("a bad chain of the folder at byte {}", file.place))
                });
            }
            return;
        };
        if file.is_directory {
            folders.push(Content::Chain(file.first));
            return;
        }
        let size = u64::from(geometry.cluster_size());
        // Systems fill the last sector with zeros, but leave in the rest of the cluster what was
        // there before.
        let len = geometry.whole_sectors(file.len);
        if runs.iter().map(|(_, count)| count * size).sum::<u64>() < file.len {
            return;
        }
        let mut offset = 0;
        for (first, count) in runs {
            let start = geometry.place(first);
            let here = (count * size).min(len - offset);
            self.extents
                .add(ByteRange::between(start, start + here), offset);
            offset += here;
        }
    }

    /// Follows a chain to its end: the first cluster and the number of clusters of each contiguous
    /// part. `None` when something is wrong with it.
    fn chain(&mut self, volume: &dyn ReadAt, links: &Links, first: u32) -> Option<Vec<(u32, u64)>> {
        let mut runs: Vec<(u32, u64)> = Vec::new();
        let mut next = Some(first);
        while let Some(cluster) = next {
            if !links.exists(cluster) {
                return None;
            }
            if !self.met.meet(cluster) {
                return None;
            }
            match runs.last_mut() {
                Some((first, count)) if u64::from(*first) + *count == u64::from(cluster) => {
                    *count += 1;
                }
                _ => runs.push((cluster, 1)),
            }
            next = match links.after(volume, cluster) {
                Ok(next) => next,
                Err(doubt) => {
                    if matches!(doubt, Doubt::Untrusted(_)) {
                        self.doubt.get_or_insert(doubt);
                    }
                    return None;
                }
            };
        }
        Some(runs)
    }
}
