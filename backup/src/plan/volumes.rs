//! What a capture reads of logical volumes, and where a restore puts them.
//!
//! Invariant: the ranges of a volume are in order, never overlap, are whole sectors, and each lies in one
//! place of one disk, so that no chunk of it ever lies in two. A restored area lies in the destination of
//! its region, where it was relative to it. Nothing is read here.

use crate::ByteRange;
use crate::filesystem::heads;
use crate::layout::LayoutRegion;
use crate::lvm::{Mapping, SurveyedVolume};
use crate::manifest::{ChunkListRef, Coverage, DiskImage, LogicalVolume, RegionKind};
use crate::plan::capture::{RegionPlan, plan_region};
use crate::plan::restore::{MIB, in_order};
use crate::plan::{AreaCopy, RegionCopy};

/// What is read of one logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// Its name.
    pub name: String,
    /// The name of its group.
    pub group: String,
    /// Its UUID.
    pub uuid: String,
    /// Where its bytes lie; nothing when they are kept with the physical volumes.
    pub mapping: Mapping,
    /// What is read of it, as of a region that has its size.
    pub region: RegionPlan,
}

/// Plans the capture of a logical volume on disks with sectors of `sector` bytes, the largest of them.
#[must_use]
pub fn plan_volume(surveyed: SurveyedVolume, sector: u64) -> VolumePlan {
    let (mapping, survey, left_out) = match surveyed.content {
        Ok((mapping, survey)) => (mapping, Some(survey), None),
        Err(reason) => {
            let reason = format!("every byte of it is kept with its physical volumes: {reason}");
            (Mapping::default(), None, Some(reason))
        }
    };
    let region = LayoutRegion {
        kind: RegionKind::WholeDisk,
        range: ByteRange::between(0, mapping.size()),
        left_out,
    };
    let mut region = plan_region(region, survey, sector);
    region.ranges = mapping.cut(&region.ranges);
    VolumePlan {
        name: surveyed.name,
        group: surveyed.group,
        uuid: surveyed.uuid,
        mapping,
        region,
    }
}

impl VolumePlan {
    /// Its description in the manifest, with the name of its chunk list.
    #[must_use]
    pub fn described(&self, content: ChunkListRef) -> LogicalVolume {
        LogicalVolume {
            name: self.name.clone(),
            group: self.group.clone(),
            uuid: self.uuid.clone(),
            segments: self.mapping.segments().to_vec(),
            volume: self.region.volume.clone(),
            coverage: self.region.coverage.clone(),
            content,
        }
    }
}

impl std::fmt::Display for VolumePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let read = crate::units::HumanBytes(self.region.read_bytes());
        write!(
            f,
            "logical volume {}/{}: {read} to read, ",
            self.group, self.name
        )?;
        match &self.region.coverage {
            Coverage::UsedBlocks => write!(f, "used blocks"),
            Coverage::Whole { reason } => write!(f, "whole: {reason}"),
            Coverage::LeftOut { reason } => write!(f, "{reason}"),
        }
    }
}

/// Where the areas on one disk go, whose regions go where `copies` say.
///
/// # Errors
/// Which logical volume does not fit the disk's regions.
pub(super) fn areas(
    image: &DiskImage,
    volumes: &[LogicalVolume],
    copies: &[RegionCopy],
) -> Result<Vec<AreaCopy>, String> {
    let mut areas = Vec::new();
    for (number, volume) in (0u32..).zip(volumes) {
        let mapping = volume
            .mapping()
            .map_err(|error| format!("{}: {error}", volume.full_name()))?;
        let file_system = volume.volume.as_ref().map(|inner| inner.file_system);
        let heads: Vec<_> = heads(file_system, mapping.size())
            .into_iter()
            .flat_map(|head| mapping.places(head))
            .collect();
        for (segment_number, segment) in mapping.segments().iter().enumerate() {
            for (area_number, area) in segment.areas.iter().enumerate() {
                if area.disk != image.number {
                    continue;
                }
                let start = copies.iter().find_map(|copy| {
                    let region = image.regions.get(copy.region as usize)?;
                    let offset = area.range.start().checked_sub(region.range.start())?;
                    let start = copy.destination.start().checked_add(offset)?;
                    region.range.contains(area.range).then_some(start)
                });
                let destination = start
                    .and_then(|start| ByteRange::new(start, area.range.len()).ok())
                    .ok_or_else(|| {
                        format!("{} lies where nothing is restored", volume.full_name())
                    })?;
                let own = heads
                    .iter()
                    .filter(|head| (head.segment, head.area) == (segment_number, area_number));
                let mut last: Vec<_> = own
                    .map(|head| {
                        let start = destination.start() + head.offset;
                        ByteRange::between(start, start + head.volume.len())
                    })
                    .collect();
                // What lies in the first MiB is written last, as of a region.
                let front = ByteRange::between(destination.start(), destination.end().min(MIB));
                last.extend((!front.is_empty()).then_some(front));
                areas.push(AreaCopy {
                    volume: number,
                    segment: u32::try_from(segment_number).map_err(|error| error.to_string())?,
                    area: u32::try_from(area_number).map_err(|error| error.to_string())?,
                    destination,
                    last: in_order(last),
                });
            }
        }
    }
    Ok(areas)
}
