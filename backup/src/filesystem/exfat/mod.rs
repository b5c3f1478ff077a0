//! exFAT: the clusters in use, from the allocation bitmap, and its files.
//!
//! Source: Microsoft, *exFAT file system specification* 1.00; the sections here are its.
//!
//! Invariant: everything before the clusters counts as used. The bitmap is believed only when both
//! boot regions and the up-case table have their checksums and every cluster of every file and
//! folder is marked in it, for one owner; all else is a [`Doubt`], and so is a volume with two FATs
//! and bitmaps (TexFAT).

mod allocation;
mod boot;
mod directory;
mod tree;

use std::sync::Arc;

use super::tree::{FileTree, TreeError};
use super::{Doubt, ReadAt, Usage};
use directory::{Directory, Item, Stream};

/// The used ranges of a volume of `size` bytes, and where its files lie.
pub(super) fn usage(volume: &dyn ReadAt, size: u64) -> Result<Usage, Doubt> {
    let geometry = boot::Geometry::read(volume, size)?;
    geometry.check_state(volume, size)?;
    allocation::usage(volume, &geometry)
}

/// The label of a volume of `size` bytes, when it has one that can be read.
pub(super) fn label(volume: &dyn ReadAt, size: u64) -> Option<String> {
    let geometry = boot::Geometry::read(volume, size).ok()?;
    let links = geometry.links();
    let root = root(volume, &geometry, &links).ok()?;
    let mut directory = Directory::new(volume, &geometry, &links, root).ok()?;
    while let Ok(Some(item)) = directory.next() {
        if let Item::Label(label) = item {
            return (!label.is_empty()).then_some(label);
        }
    }
    None
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    Ok(Box::new(tree::Tree::open(volume, size)?))
}

/// The root directory: a chain that is as long as the FAT says.
fn root(
    volume: &dyn ReadAt,
    geometry: &boot::Geometry,
    links: &super::links::Links,
) -> Result<Stream, Doubt> {
    Ok(Stream {
        first: geometry.root,
        len: links.count(volume, geometry.root)? * geometry.cluster,
        contiguous: false,
    })
}

fn doubt(reason: impl Into<String>) -> Doubt {
    Doubt::Untrusted(reason.into())
}
