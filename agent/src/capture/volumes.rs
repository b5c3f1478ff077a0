//! Logical volumes as sources of a capture.
//!
//! Invariant: a physical volume is read as a whole region unless all of its group is understood; then
//! every allocated byte of it is read once, with the region or with a logical volume.

use std::io;
use std::sync::Arc;

use backup::lvm::Mapping;
use backup::manifest::LogicalVolume;
use backup::plan::volumes::{PlannedDisk, VolumePlan, plan_groups};
use backup::{ByteRange, SectorSize};

use super::source::Source;
use crate::device::{BlockDevice, DiskReader};
use crate::job::error::Fault;

/// Finds the logical volumes on the disks, and plans the regions anew that are their physical volumes.
/// `sources` are the disks by their numbers.
pub(super) fn plan(sources: &mut [Source<'_>]) -> Vec<VolumePlan> {
    let readers: Vec<_> = sources
        .iter()
        .map(|source| DiskReader(source.device.as_ref()))
        .collect();
    let disks: Vec<_> = sources
        .iter()
        .zip(&readers)
        .map(|(source, reader)| PlannedDisk {
            reader,
            sector: source.device.sector(),
            regions: &source.image.regions,
        })
        .collect();
    let groups = plan_groups(&disks);
    for (disk, index, plan) in groups.regions {
        let source = &mut sources[disk];
        log::info!("{}: {plan}", source.device.name());
        source.replace(index, plan);
    }
    let volumes = groups.volumes;
    volumes.iter().for_each(|plan| log::info!("{plan}"));
    volumes
}

/// A logical volume over several disks, for reading only.
pub(super) struct MappedDevice {
    name: String,
    mapping: Mapping,
    /// By their numbers.
    disks: Vec<Arc<dyn BlockDevice>>,
    sector: SectorSize,
}

impl MappedDevice {
    /// The device of a planned volume.
    pub(super) fn new(plan: &VolumePlan, disks: &[Arc<dyn BlockDevice>]) -> Self {
        let sectors = disks.iter().map(|disk| disk.sector());
        Self {
            name: format!("/dev/{}/{}", plan.group, plan.name),
            mapping: plan.mapping.clone(),
            disks: disks.to_vec(),
            sector: sectors.max().unwrap_or(SectorSize::S512),
        }
    }
}

impl BlockDevice for MappedDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.mapping.size()
    }

    fn sector(&self) -> SectorSize {
        self.sector
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = ByteRange::new(offset, buffer.len() as u64)
            .ok()
            .filter(|range| range.end() <= self.size())
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        for place in self.mapping.places(range) {
            let area = self.mapping.on_disk(&place);
            let (area, disk) = area
                .and_then(|area| Some((area, self.disks.get(area.disk as usize)?)))
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let from = (place.volume.start() - offset) as usize;
            let part = &mut buffer[from..from + place.volume.len() as usize];
            disk.read_at(area.range.start(), part)?;
        }
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn zero(&self, _: ByteRange) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Adds a source for each logical volume behind the disks, which are all of `sources` before.
pub(super) fn add_sources(sources: &mut Vec<Source<'_>>, plans: &[VolumePlan]) {
    let disks: Vec<_> = sources
        .iter()
        .map(|source| Arc::clone(&source.device))
        .collect();
    let Some(disk) = sources.first().map(|source| source.disk) else {
        return;
    };
    for plan in plans {
        let Ok(number) = u32::try_from(sources.len()) else {
            return;
        };
        let device: Arc<dyn BlockDevice> = Arc::new(MappedDevice::new(plan, &disks));
        let region = plan.region.clone();
        sources.push(Source::of_volume(disk, device, number, region));
    }
}

/// The volumes for the manifest, from their sources when they have been read.
///
/// # Errors
/// [`Fault::Internal`] when a volume was not read.
pub(super) fn described(
    plans: &[VolumePlan],
    read: &[Source<'_>],
) -> Result<Vec<LogicalVolume>, Fault> {
    if plans.len() != read.len() {
        return Err(Fault::Internal(
            "not every logical volume was read".to_owned(),
        ));
    }
    let contents = read
        .iter()
        .filter_map(|source| source.image.regions.first())
        .map(|region| region.content.clone());
    let volumes = plans.iter().zip(contents);
    Ok(volumes
        .map(|(plan, content)| plan.described(content))
        .collect())
}
