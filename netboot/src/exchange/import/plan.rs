//! What is saved of the disks of images: as a capture of a machine with these disks would plan it.
//!
//! Invariant: every disk is looked at before anything of any disk is sent.

use backup::SectorSize;
use backup::hardware::Disk;
use backup::layout::{LayoutError, partitions_of, survey_disk};
use backup::manifest::{ChunkListRef, OperatingSystem, PartitionTable, Region};
use backup::plan::capture::survey_region;
use backup::plan::kept::KeptPlan;
use backup::plan::members::refuse;
use backup::plan::volumes::{PlannedDisk, VolumePlan, plan_groups};
use backup::{member, system};

use super::super::{ExchangeError, Image, Stop};
use crate::store::chain;

/// The most bytes of plans that are kept until their region is read.
const KEPT: usize = 64 << 20;

/// What is saved of one disk.
pub(super) struct DiskPlan {
    pub(super) table: PartitionTable,
    pub(super) regions: Vec<Region>,
    pub(super) plans: Vec<KeptPlan>,
    /// For people.
    shown: Vec<String>,
}

/// What is saved of all disks, and what they say of their machine.
pub(super) struct Planned {
    /// In the order of the images.
    pub(super) disks: Vec<DiskPlan>,
    pub(super) volumes: Vec<VolumePlan>,
    pub(super) system: Option<OperatingSystem>,
    /// Of the programs of the system.
    pub(super) architecture: Option<&'static str>,
    /// Whether there is an EFI system partition.
    pub(super) esp: bool,
    pub(super) warnings: Vec<String>,
    /// A line for each region and logical volume.
    pub(super) shown: Vec<String>,
}

/// Looks at the disks and plans what is saved of them.
///
/// # Errors
/// [`ExchangeError::Image`] for a disk that cannot be saved.
pub(super) fn plan(
    images: &[Image],
    sector: SectorSize,
    stop: &Stop,
) -> Result<Planned, ExchangeError> {
    let (mut left, mut warnings) = (KEPT, Vec::new());
    let mut disks = Vec::new();
    for image in images {
        disks.push(plan_disk(image, sector, (&mut left, &mut warnings), stop)?);
    }
    let found: Vec<_> = images
        .iter()
        .zip(&disks)
        .map(|(image, disk)| PlannedDisk {
            reader: image.reader.as_ref(),
            sector,
            regions: &disk.regions,
        })
        .collect();
    let groups = plan_groups(&found);
    for (disk, index, plan) in groups.regions {
        let disk = &mut disks[disk];
        disk.shown[index] = plan.to_string();
        disk.regions[index] = plan.described(ChunkListRef::none());
        disk.plans[index] = KeptPlan::always(plan);
    }
    let several = images.len() > 1;
    let mut shown = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let lines = disk.shown.iter().map(|line| {
            if several {
                format!("disk {number}  {line}")
            } else {
                line.clone()
            }
        });
        shown.extend(lines);
    }
    shown.extend(groups.volumes.iter().map(|volume| volume.to_string()));
    let mut pairs = images.iter().zip(&disks);
    let system = pairs.find_map(|(image, disk)| system::find(&image.reader, &disk.regions));
    let mut pairs = images.iter().zip(&disks);
    let architecture =
        pairs.find_map(|(image, disk)| system::architecture(&image.reader, &disk.regions));
    let is_esp = |disk: &DiskPlan| {
        partitions_of(&disk.table).is_ok_and(|found| found.iter().any(|one| one.esp))
    };
    Ok(Planned {
        esp: disks.iter().any(is_esp),
        disks,
        volumes: groups.volumes,
        system,
        architecture,
        warnings,
        shown,
    })
}

fn plan_disk(
    image: &Image,
    sector: SectorSize,
    (left, warnings): (&mut usize, &mut Vec<String>),
    stop: &Stop,
) -> Result<DiskPlan, ExchangeError> {
    let reader = image.reader.as_ref();
    let refused = |error: &dyn std::error::Error| ExchangeError::image(&image.path, chain(error));
    let disk = Disk {
        name: image.path.display().to_string(),
        model: None,
        serial: None,
        wwn: None,
        size: image.size,
        logical_sector: sector,
        physical_sector: 512,
        removable: false,
        read_only: true,
        partitions: Vec::new(),
    };
    let found = member::find(reader, image.size, sector).map_err(|error| refused(&error))?;
    if let Some(refusal) = refuse(&disk, &found) {
        return Err(ExchangeError::image(&image.path, refusal.text));
    }
    let layout = survey_disk(reader, image.size, sector).map_err(|error| match error {
        LayoutError::Read(_) => refused(&error),
        error => ExchangeError::image(
            &image.path,
            format!(
                "{}; the file is cut short, damaged, or has sectors of another size than {} bytes (--sector)",
                chain(&error),
                sector.bytes()
            ),
        ),
    })?;
    warnings.extend(layout.warnings);
    let mut planned = DiskPlan {
        table: layout.table,
        regions: Vec::new(),
        plans: Vec::new(),
        shown: Vec::new(),
    };
    for region in layout.regions {
        stop.check()?;
        let plan = survey_region(reader, region.clone().into(), sector.bytes());
        planned.shown.push(plan.to_string());
        planned.regions.push(plan.described(ChunkListRef::none()));
        planned.plans.push(KeptPlan::new(region.into(), plan, left));
    }
    let known = planned.regions.iter().any(|region| region.volume.is_some());
    if image.assumed && planned.table == PartitionTable::None && !known {
        return Err(ExchangeError::image(
            &image.path,
            "nothing says that it is a disk image: it has no partition table, no file system and no format that are known here. If it is a raw disk after all, say --format raw",
        ));
    }
    Ok(planned)
}
