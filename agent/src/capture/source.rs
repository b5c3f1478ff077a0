//! Sources: disks that are open for reading, and what is saved of each of their regions.
//!
//! Invariant: a disk is opened read only. Plans of regions are kept up to [`KEPT`] bytes
//! ([`mod@backup::plan::kept`]).

use std::sync::Arc;

use backup::filesystem::{ReadAt, ReadError};
use backup::hardware::Disk;
use backup::layout::survey_disk;
use backup::manifest::{ChunkListRef, DiskImage, PartitionTable, Region};
use backup::plan::capture::{Place, RegionPlan, survey_region};
use backup::plan::kept::KeptPlan;
use backup::units::HumanBytes;

use super::unlock::PlainDisk;
use crate::device::{BlockDevice, DiskReader};
use crate::job::Engine;
use crate::job::error::Fault;
use crate::log::chain;
use crate::restore::unfinished;

/// The most bytes of plans that are kept until their region is read.
pub(crate) const KEPT: usize = 16 << 20;

/// A disk that is open, and what is saved of it.
pub(crate) struct Source<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) device: Arc<dyn BlockDevice>,
    /// What the manifest says of it; what its regions contain is known when they have been read.
    pub(crate) image: DiskImage,
    /// One for each region.
    pub(crate) planned: Vec<KeptPlan>,
}

impl<'a> Source<'a> {
    /// Opens what of an open disk there are keys for, and plans what is saved of it. `number` is the disk's
    /// in the manifest, `left` the bytes of plans that may still be kept.
    ///
    /// # Errors
    /// A disk that cannot be read, is another one than the inventory says, or whose table
    /// does not describe it.
    pub(crate) fn open(
        engine: &Engine<'_>,
        (disk, device): (&'a Disk, Box<dyn BlockDevice>),
        number: u32,
        left: &mut usize,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Fault> {
        let (size, sector) = (device.size(), device.sector());
        if (size, sector) != (disk.size, disk.logical_sector) {
            return Err(Fault::NotAsPlanned(format!(
                "{} has {size} bytes (the inventory says {}); it is another disk",
                device.name(),
                disk.size
            )));
        }
        let layout = survey_disk(&DiskReader(device.as_ref()), size, sector).map_err(|error| {
            Fault::NotAsPlanned(format!("{}: {}", device.name(), chain(&error)))
        })?;
        log::info!("{}:", disk.describe());
        let device = Arc::new(PlainDisk::open(engine, disk, device, &layout.regions)?);
        let (mut planned, mut regions) = (Vec::new(), Vec::new());
        let mut layout_warnings = layout.warnings;
        for layout in layout.regions {
            engine.check_cancelled()?;
            let reader = DiskReader(device.as_ref());
            let opened = device.opened(layout.range);
            let place = Place {
                layout,
                plain: opened.map(|(_, plain)| plain),
            };
            let plan = survey_region(&reader, place.clone(), sector.bytes());
            log::info!("  {plan}");
            if let Some(point) = unfinished(device.as_ref(), &plan.kind, plan.range) {
                layout_warnings.push(format!(
                    "{} holds only a part of {point}, because its restore was interrupted: restore it again",
                    plan.range
                ));
            }
            regions.push(Region {
                was_encrypted: opened.map(|(with, _)| with.to_owned()),
                ..region(&plan)
            });
            planned.push(KeptPlan::new(place, plan, left));
        }
        for warning in layout_warnings {
            log::warn!("{}: {warning}", disk.name);
            warnings.push(format!("{}: {warning}", disk.name));
        }
        let image = DiskImage {
            number,
            model: disk.model.clone(),
            serial: disk.serial.clone(),
            wwn: disk.wwn.clone(),
            size,
            logical_sector: sector,
            physical_sector: disk.physical_sector,
            table: layout.table,
            regions,
        };
        let source = Self {
            disk,
            device,
            image,
            planned,
        };
        log::info!(
            "  {} of {} to read",
            HumanBytes(source.read_bytes()),
            HumanBytes(size)
        );
        Ok(source)
    }

    /// A logical volume as a disk that is one region. `number` is that of no disk, and names its list.
    pub(super) fn of_volume(
        disk: &'a Disk,
        device: Arc<dyn BlockDevice>,
        number: u32,
        plan: RegionPlan,
    ) -> Self {
        let image = DiskImage {
            number,
            model: None,
            serial: None,
            wwn: None,
            size: plan.range.len(),
            logical_sector: device.sector(),
            physical_sector: disk.physical_sector,
            table: PartitionTable::None,
            regions: vec![region(&plan)],
        };
        Self {
            disk,
            device,
            image,
            planned: vec![KeptPlan::always(plan)],
        }
    }

    /// Reads a region by another plan; it is kept until the region is read.
    pub(super) fn replace(&mut self, index: usize, plan: RegionPlan) {
        let place = self.image.regions.get_mut(index);
        if let (Some(place), Some(planned)) = (place, self.planned.get_mut(index)) {
            *place = Region {
                was_encrypted: place.was_encrypted.take(),
                ..region(&plan)
            };
            *planned = KeptPlan::always(plan);
        }
    }

    /// The disk for reading at any place.
    pub(crate) fn reader(&self) -> Arc<dyn ReadAt + Send + Sync> {
        Arc::new(SharedReader(Arc::clone(&self.device)))
    }

    /// Bytes that will be read of it.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.planned
            .iter()
            .map(|planned| planned.read_bytes())
            .sum()
    }
}

/// A [`DiskReader`] that owns its part of the device.
struct SharedReader(Arc<dyn BlockDevice>);

impl ReadAt for SharedReader {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        DiskReader(self.0.as_ref()).read_at(offset, buffer)
    }
}

/// What the manifest says of a region before it is read.
fn region(plan: &RegionPlan) -> Region {
    plan.described(ChunkListRef::none())
}
