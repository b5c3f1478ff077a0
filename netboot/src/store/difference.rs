//! What one restore point has that another has not: by chunk, for comparisons.
//!
//! Memory: a bit for each position of the index. A chunk that is in no pack counts as different.

use backup::ByteRange;
use backup::Digest;
use backup::chunk::Content;
use backup::manifest::{Manifest, RestorePointId};

use super::bits::Bits;
use super::lists::{self, ListError};
use super::{Store, StoreError};

/// A piece of a restore point that another one has nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Differing {
    /// The number of the disk.
    pub(crate) disk: u32,
    /// The number of the region on it, from 0.
    pub(crate) region: usize,
    /// Where it is, in bytes from the start of its region.
    pub(crate) range: ByteRange,
    /// What is there.
    pub(crate) digest: Digest,
}

impl Store {
    /// Hands out every data chunk of restore point `of` that `from` has on none of its disks, in the
    /// order of disks, regions and offsets. What was handed out counts only when it returns well.
    ///
    /// # Errors
    /// [`ListError`] when one of them cannot be read.
    // `netboot files` compares restore points by it.
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "the comparing command is another branch's")
    )]
    pub(crate) fn difference(
        &self,
        of: &RestorePointId,
        from: &RestorePointId,
        each: &mut dyn FnMut(Differing),
    ) -> Result<(), ListError> {
        let mut known = Bits::default();
        self.each_data_chunk(from, |digest| {
            if let Some(position) = self.chunks.read_index().position(digest) {
                known.set(position);
            }
        })?;
        let points = &self.restore_points;
        let directory = points.published_root.join(of.as_str());
        let manifest = Manifest::from_json(&points.manifest(of)?).map_err(|error| {
            let source = std::io::Error::other(error);
            StoreError::io("cannot use the manifest in", &directory, source)
        })?;
        for disk in &manifest.disks {
            for (region, description) in disk.regions.iter().enumerate() {
                let place = (&description.content.digest, description.range.len());
                lists::read(points.storage.as_ref(), &directory, place, |chunk| {
                    if let Content::Data(digest) = chunk.content {
                        let position = self.chunks.read_index().position(&digest);
                        if !position.is_some_and(|position| known.has(position)) {
                            each(Differing {
                                disk: disk.number,
                                region,
                                range: chunk.range,
                                digest,
                            });
                        }
                    }
                    Ok::<_, ListError>(())
                })?;
            }
        }
        Ok(())
    }
}
