//! What a capture reads of logical volumes, and where a restore puts them.
//!
//! Invariant: the ranges of a volume are in order, never overlap, are whole sectors, and each lies in one
//! place of one disk, so that no chunk of it ever lies in two. A restored area lies in the destination of
//! its region, where it was relative to it. Nothing is read here.

use crate::filesystem::{Doubt, ReadAt, Survey, heads};
use crate::layout::LayoutRegion;
use crate::lvm::{Candidate, Mapping, SurveyedVolume, survey};
use crate::manifest::{
    ChunkListRef, Coverage, DiskImage, FileSystemKind, LogicalVolume, Region, RegionKind,
};
use crate::plan::capture::{RegionPlan, plan_region};
use crate::plan::restore::{MIB, in_order};
use crate::plan::{AreaCopy, RegionCopy};
use crate::{ByteRange, SectorSize};

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

/// A disk whose regions are planned, and may hold physical volumes.
#[derive(Clone, Copy)]
pub struct PlannedDisk<'a> {
    /// The disk.
    pub reader: &'a dyn ReadAt,
    /// Its sector size.
    pub sector: SectorSize,
    /// Its regions as they are planned.
    pub regions: &'a [Region],
}

/// The plans that follow from the logical volumes on some disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupPlan {
    /// The regions that are physical volumes, planned anew: index of the disk, index of the region.
    pub regions: Vec<(usize, usize, RegionPlan)>,
    /// The logical volumes.
    pub volumes: Vec<VolumePlan>,
}

/// Finds the logical volumes on the disks, which are in the order of their numbers from 0, and plans the
/// regions anew that are their physical volumes.
///
/// A physical volume is read as a whole region unless all of its group is understood; then every
/// allocated byte of it is read once, with the region or with a logical volume.
#[must_use]
pub fn plan_groups(disks: &[PlannedDisk<'_>]) -> GroupPlan {
    let mut found = Vec::new();
    for (number, disk) in (0u32..).zip(disks) {
        for (index, region) in disk.regions.iter().enumerate() {
            let volume = region.volume.as_ref();
            let is_lvm = volume.is_some_and(|volume| volume.file_system == FileSystemKind::Lvm);
            if is_lvm && !matches!(region.coverage, Coverage::LeftOut { .. }) {
                let candidate = Candidate {
                    disk: number,
                    range: region.range,
                    sector: disk.sector.bytes(),
                };
                found.push((index, candidate));
            }
        }
    }
    if found.is_empty() {
        return GroupPlan::default();
    }
    let candidates: Vec<_> = found.iter().map(|(_, candidate)| *candidate).collect();
    let readers: Vec<_> = disks.iter().map(|disk| disk.reader).collect();
    let groups = survey(&candidates, &readers);
    let mut plan = GroupPlan::default();
    for ((index, candidate), used) in found.into_iter().zip(groups.physical_volumes) {
        let disk = candidate.disk as usize;
        let region = &disks[disk].regions[index];
        let layout = LayoutRegion {
            kind: region.kind.clone(),
            range: region.range,
            left_out: None,
        };
        let survey = Survey {
            volume: region.volume.clone(),
            used: used.map_err(Doubt::Untrusted),
            extents: Vec::new(),
            heads: Vec::new(),
        };
        let replanned = plan_region(layout, Some(survey), candidate.sector);
        plan.regions.push((disk, index, replanned));
    }
    let sectors = disks.iter().map(|disk| disk.sector.bytes());
    let sector = sectors.max().unwrap_or(512);
    let volumes = groups.logical_volumes.into_iter();
    plan.volumes = volumes.map(|volume| plan_volume(volume, sector)).collect();
    plan
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
