//! Logical volumes of a restore point: volumes whose bytes lie in the regions of one or more disks.
//!
//! Invariant: the areas of all logical volumes lie in regions with LVM, are whole sectors and never
//! overlap each other.

use serde::{Deserialize, Serialize};

use super::{ChunkListRef, Coverage, DiskImage, FileSystemKind, ManifestError, Region, Volume};
use crate::lvm::{Mapping, Segment};

/// A logical volume as it was captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalVolume {
    /// Its name.
    pub name: String,
    /// The name of its volume group.
    pub group: String,
    /// Its UUID, as LVM shows it.
    pub uuid: String,
    /// Where its bytes lie on the source disks, in order; none when they are kept with the regions.
    pub segments: Vec<Segment>,
    /// The file system in it, when known.
    pub volume: Option<Volume>,
    /// Which of its bytes were saved apart from the regions.
    pub coverage: Coverage,
    /// Its content; offsets count within the volume, and no chunk of data lies in two places.
    pub content: ChunkListRef,
}

impl LogicalVolume {
    /// Group and name, as people write it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Where its bytes lie.
    ///
    /// # Errors
    /// [`crate::lvm::MappingError`] for a segment that is not possible.
    pub fn mapping(&self) -> Result<Mapping, crate::lvm::MappingError> {
        Mapping::new(self.segments.clone())
    }
}

/// Checks the invariant of this module.
///
/// # Errors
/// [`ManifestError::LogicalVolume`] for the first volume that breaks it.
pub(super) fn check(volumes: &[LogicalVolume], disks: &[DiskImage]) -> Result<(), ManifestError> {
    let mut taken = Vec::new();
    for volume in volumes {
        let refuse = |reason: String| ManifestError::LogicalVolume {
            volume: volume.full_name(),
            reason,
        };
        let mapping = volume
            .mapping()
            .map_err(|error| refuse(error.to_string()))?;
        let content = &volume.content;
        let saved = content.data_bytes.checked_add(content.zero_bytes);
        if saved.is_none_or(|saved| saved > mapping.size()) {
            return Err(refuse("has more content than bytes".to_owned()));
        }
        if volume
            .volume
            .as_ref()
            .is_some_and(|inner| inner.size > mapping.size())
        {
            return Err(refuse("holds a file system that is larger".to_owned()));
        }
        for segment in mapping.segments() {
            for area in &segment.areas {
                let range = area.range;
                let home = disks.get(area.disk as usize).and_then(|disk| {
                    let mut regions = disk.regions.iter();
                    let region = regions.find(|region| region.range.contains(range))?;
                    Some((disk.logical_sector.bytes(), region))
                });
                let Some((sector, region)) = home else {
                    return Err(refuse(format!(
                        "lies at {range} of disk {}, in no region",
                        area.disk
                    )));
                };
                let whole = range.start().is_multiple_of(sector)
                    && range.len().is_multiple_of(sector)
                    && segment.stripe.is_multiple_of(sector);
                if !is_physical_volume(region) || !whole {
                    return Err(refuse(format!(
                        "lies at {range} of disk {}, which is not possible",
                        area.disk
                    )));
                }
                taken.push((area.disk, range, volume));
            }
        }
    }
    taken.sort_unstable_by_key(|(disk, range, _)| (*disk, *range));
    for pair in taken.windows(2) {
        let ((disk, range, one), (other_disk, other_range, other)) = (pair[0], pair[1]);
        if disk == other_disk && range.overlaps(other_range) {
            return Err(ManifestError::LogicalVolume {
                volume: one.full_name(),
                reason: format!(
                    "overlaps `{}` at {other_range} of disk {disk}",
                    other.full_name()
                ),
            });
        }
    }
    Ok(())
}

/// Whether a region is a physical volume of which only parts were saved with it.
fn is_physical_volume(region: &Region) -> bool {
    region.coverage == Coverage::UsedBlocks
        && region
            .volume
            .as_ref()
            .is_some_and(|volume| volume.file_system == FileSystemKind::Lvm)
}
