//! Sources: disks that are open for reading, and what is saved of each of their regions.
//!
//! Invariant: a disk is opened read only. The used ranges and file extents of a large volume are large
//! themselves (up to 16 and 48 MiB): those of all regions together are kept up to [`KEPT`] bytes; a region
//! whose plan does not fit is surveyed again when its turn comes, and must be what it was.

use std::sync::Arc;

use backup::Digest;
use backup::filesystem::{Section, Survey, encryption, survey_volume};
use backup::hardware::Disk;
use backup::layout::{LayoutRegion, survey_disk};
use backup::manifest::{ChunkListRef, DiskImage, PartitionTable, Region, RegionKind};
use backup::plan::capture::{RegionPlan, plan_region};
use backup::units::HumanBytes;

use super::unlock::PlainDisk;
use crate::device::{BlockDevice, DiskReader};
use crate::job::Engine;
use crate::job::error::Fault;
use crate::log::chain;

/// The most bytes of plans that are kept until their region is read.
pub(crate) const KEPT: usize = 16 << 20;

/// A disk that is open, and what is saved of it.
pub(crate) struct Source<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) device: Arc<dyn BlockDevice>,
    /// What the manifest says of it; what its regions contain is known when they have been read.
    pub(crate) image: DiskImage,
    /// One for each region.
    pub(crate) planned: Vec<Planned>,
}

/// What is read of a region.
pub(crate) struct Planned {
    layout: LayoutRegion,
    /// The plain volume's bytes, when it is an encrypted one that is open.
    plain: Option<u64>,
    pub(crate) read_bytes: u64,
    /// `None` when it is too large to be kept.
    plan: Option<RegionPlan>,
}

impl<'a> Source<'a> {
    /// Opens what of an open disk there are keys for, and plans what is saved of it. `number` is the disk's in the manifest, `kept` the
    /// bytes of plans that are kept already.
    ///
    /// # Errors
    /// A disk that cannot be read, is another one than the inventory says, or whose table
    /// does not describe it.
    pub(crate) fn open(
        engine: &Engine<'_>,
        (disk, device): (&'a Disk, Box<dyn BlockDevice>),
        number: u32,
        kept: &mut usize,
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
        for layout in layout.regions {
            engine.check_cancelled()?;
            let opened = device.opened(layout.range);
            let plain = opened.map(|(_, plain)| plain);
            let plan = survey(device.as_ref(), &layout, plain);
            log::info!("  {plan}");
            regions.push(Region {
                was_encrypted: opened.map(|(with, _)| with.to_owned()),
                ..region(&plan)
            });
            let memory = plan.memory();
            let fits = *kept + memory <= KEPT;
            *kept += if fits { memory } else { 0 };
            planned.push(Planned {
                layout,
                plain,
                read_bytes: plan.read_bytes(),
                plan: fits.then_some(plan),
            });
        }
        for warning in layout.warnings {
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
            planned: vec![Planned::kept(plan)],
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
            *planned = Planned::kept(plan);
        }
    }

    /// Bytes that will be read of it.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.planned.iter().map(|planned| planned.read_bytes).sum()
    }
}

/// What the manifest says of a region before it is read.
fn region(plan: &RegionPlan) -> Region {
    Region {
        kind: plan.kind.clone(),
        range: plan.range,
        volume: plan.volume.clone(),
        coverage: plan.coverage.clone(),
        was_encrypted: None,
        content: ChunkListRef {
            digest: Digest::of(&[]),
            chunks: 0,
            data_bytes: 0,
            zero_bytes: 0,
        },
    }
}

impl Planned {
    /// A plan that is kept whatever its size.
    fn kept(plan: RegionPlan) -> Self {
        Self {
            layout: LayoutRegion {
                kind: plan.kind.clone(),
                range: plan.range,
                left_out: None,
            },
            plain: None,
            read_bytes: plan.read_bytes(),
            plan: Some(plan),
        }
    }

    /// The plan for the region, made again when it was not kept; to be dropped when the region is read.
    ///
    /// # Errors
    /// [`Fault::NotAsPlanned`] when the region is not what it was.
    pub(crate) fn plan(&mut self, device: &dyn BlockDevice) -> Result<RegionPlan, Fault> {
        if let Some(plan) = self.plan.take() {
            return Ok(plan);
        }
        let plan = survey(device, &self.layout, self.plain);
        let found = plan.read_bytes();
        if found != self.read_bytes {
            return Err(Fault::NotAsPlanned(format!(
                "{}: the volume in {} uses {found} bytes (expected {}, as before); something writes to \
                 it",
                device.name(),
                self.layout.range,
                self.read_bytes
            )));
        }
        Ok(plan)
    }
}

/// `plain` is the length of the volume when it is an encrypted one that is open.
fn survey(device: &dyn BlockDevice, layout: &LayoutRegion, plain: Option<u64>) -> RegionPlan {
    let reader = DiskReader(device);
    let survey = match layout.kind {
        RegionKind::Gap => None,
        RegionKind::Partition { .. } | RegionKind::WholeDisk => {
            let section = Section::new(&reader, layout.range);
            let survey = survey_volume(&section, layout.range.len());
            Some(match plain {
                Some(plain) => Survey {
                    used: survey
                        .used
                        .map(|used| encryption::with_header_places(&used, plain)),
                    ..survey
                },
                None => survey,
            })
        }
    };
    plan_region(layout.clone(), survey, device.sector().bytes())
}
