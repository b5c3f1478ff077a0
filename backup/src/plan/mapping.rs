//! Chosen volumes onto partitions that are on the target already.
//!
//! Invariant: the target's table, and all that is outside of the chosen partitions, stays to the letter. Nothing is
//! guessed: each volume and each partition is named, and is one of what is there.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ByteRange;
use crate::hardware::{Disk, ExistingPartition, Inventory};
use crate::manifest::{Coverage, DiskImage, FileSystemKind, Manifest, Region, RegionKind};
use crate::plan::assign::chosen;
use crate::plan::restore::{MIB, last_parts, refusal};
use crate::plan::{
    Choices, DiskPlan, ExtraSpace, Grow, PlannedPartition, ReasonCode, Refusal, RegionCopy,
    SectorChange, Shrink, placement, sectors, shrink,
};
use crate::units::HumanBytes;

/// One volume of the backup, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeChoice {
    /// The disk's number in the manifest.
    pub disk: u32,
    /// The partition's number in its table.
    pub partition: u32,
    /// A partition of the machine; nothing to leave the volume out.
    pub target: Option<TargetPartition>,
}

/// A partition of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetPartition {
    /// Its disk's serial number, WWN or kernel name.
    pub disk: String,
    /// Its number in that disk's table.
    pub partition: u32,
}

/// Text that names no volume and place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is not DISK:PARTITION=DISK:PARTITION or DISK:PARTITION=none, for example 0:2=sda:3 (left: disk and partition of the restore point, right: of the machine)"
)]
pub struct VolumeChoiceError {
    /// The text.
    pub found: String,
}

impl FromStr for VolumeChoice {
    type Err = VolumeChoiceError;

    fn from_str(text: &str) -> Result<Self, VolumeChoiceError> {
        let parse = || {
            let (source, target) = text.split_once('=')?;
            let (disk, partition) = source.split_once(':')?;
            let target = if target == "none" {
                None
            } else {
                // Serial numbers may have colons.
                let (disk, partition) = target.rsplit_once(':')?;
                Some(TargetPartition {
                    disk: Some(disk).filter(|disk| !disk.is_empty())?.to_owned(),
                    partition: partition.parse().ok()?,
                })
            };
            Some(Self {
                disk: disk.parse().ok()?,
                partition: partition.parse().ok()?,
                target,
            })
        };
        parse().ok_or_else(|| VolumeChoiceError {
            found: text.to_owned(),
        })
    }
}

impl Choices {
    /// Whether only chosen volumes are restored, onto partitions that are there.
    #[must_use]
    pub fn maps_volumes(&self) -> bool {
        self.volumes.iter().any(|choice| choice.target.is_some())
    }
}

/// A volume and the partition that it goes to, both found.
struct Pair<'a> {
    image: &'a DiskImage,
    index: u32,
    region: &'a Region,
    disk: &'a Disk,
    partition: &'a ExistingPartition,
}

/// Plans the chosen volumes: one plan for each target disk.
///
/// # Errors
/// Every reason why they do not go where they were said to go.
pub(super) fn plan_volumes(
    manifest: &Manifest,
    target: &Inventory,
    choices: &Choices,
    notes: &mut Vec<String>,
) -> Result<Vec<DiskPlan>, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut plans: Vec<DiskPlan> = Vec::new();
    for choice in &choices.volumes {
        match find(manifest, target, choice)
            .and_then(|pair| pair.map_or(Ok(()), |pair| add(&mut plans, &pair, choices)))
        {
            Ok(()) => {}
            Err(refusal) => refusals.push(refusal),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    for plan in &plans {
        let numbers: Vec<_> = plan
            .partitions
            .iter()
            .map(|partition| partition.number.to_string())
            .collect();
        notes.push(format!(
            "Only partition {} of {} is overwritten; its table, its other partitions and the boot entries stay.",
            numbers.join(", "),
            plan.target.name
        ));
    }
    Ok(plans)
}

fn not_found(text: String) -> Refusal {
    refusal(ReasonCode::VolumeNotFound, text)
}

/// The region that a choice names.
pub(super) fn source<'a>(
    manifest: &'a Manifest,
    choice: &VolumeChoice,
) -> Result<(&'a DiskImage, u32, &'a Region), Refusal> {
    let image = manifest.disks.get(choice.disk as usize).ok_or_else(|| {
        not_found(format!(
            "The backup has no disk {} (it has {}, counted from 0).",
            choice.disk,
            manifest.disks.len()
        ))
    })?;
    let kind = RegionKind::Partition {
        number: choice.partition,
    };
    let mut regions = (0u32..).zip(&image.regions);
    let (index, region) = regions
        .find(|(_, region)| region.kind == kind)
        .ok_or_else(|| {
            let numbers: Vec<_> = image
                .regions
                .iter()
                .filter_map(|region| match region.kind {
                    RegionKind::Partition { number } => Some(number.to_string()),
                    _ => None,
                })
                .collect();
            not_found(format!(
                "Disk {} of the backup has no partition {} (it has: {}).",
                choice.disk,
                choice.partition,
                numbers.join(", ")
            ))
        })?;
    if region
        .volume
        .as_ref()
        .is_some_and(|volume| volume.file_system == FileSystemKind::Lvm)
    {
        return Err(refusal(
            ReasonCode::VolumeUnsupported,
            format!(
                "Partition {} of disk {} of the backup is a part of an LVM group, which is restored as a whole only, with its disk.",
                choice.partition, choice.disk
            ),
        ));
    }
    Ok((image, index, region))
}

fn find<'a>(
    manifest: &'a Manifest,
    target: &'a Inventory,
    choice: &VolumeChoice,
) -> Result<Option<Pair<'a>>, Refusal> {
    let (image, index, region) = source(manifest, choice)?;
    let Some(wanted) = &choice.target else {
        return Ok(None);
    };
    if let Coverage::LeftOut { reason } = &region.coverage {
        return Err(not_found(format!(
            "Nothing of partition {} of disk {} was saved: {reason}.",
            choice.partition, choice.disk
        )));
    }
    let disk = chosen(&target.disks, &wanted.disk)?;
    if disk.read_only {
        return Err(refusal(
            ReasonCode::ReadOnly,
            format!(
                "{} is write-protected. Take the protection off, or choose another disk.",
                disk.describe()
            ),
        ));
    }
    let same = |one: &&ExistingPartition| one.number == wanted.partition;
    let partition = disk.partitions.iter().find(same).ok_or_else(|| {
        let numbers: Vec<_> = disk
            .partitions
            .iter()
            .map(|one| one.number.to_string())
            .collect();
        not_found(format!(
            "{} has no partition {} (it has: {}).",
            disk.describe(),
            wanted.partition,
            if numbers.is_empty() {
                "none".to_owned()
            } else {
                numbers.join(", ")
            }
        ))
    })?;
    let range = partition.range;
    let sector = disk.logical_sector.bytes();
    let others = disk.partitions.iter();
    let mut others = others.filter(|other| other.number != partition.number);
    if range.is_empty()
        || range.start() < sector
        || range.end() > disk.size
        || !range.start().is_multiple_of(sector)
        || !range.len().is_multiple_of(sector)
        || others.any(|other| other.range.overlaps(range))
    {
        return Err(refusal(
            ReasonCode::VolumeUnsupported,
            format!(
                "Partition {} of {} at {range} is no place for a volume: an extended partition, over another one, or not on the disk.",
                partition.number, disk.name
            ),
        ));
    }
    Ok(Some(Pair {
        image,
        index,
        region,
        disk,
        partition,
    }))
}

/// Adds a volume to the plan of its disk.
fn add(plans: &mut Vec<DiskPlan>, pair: &Pair<'_>, choices: &Choices) -> Result<(), Refusal> {
    let place = format!("partition {} of {}", pair.partition.number, pair.disk.name);
    let fits = fit(pair, &place, choices.extra_space)?;
    let known = plans
        .iter()
        .position(|plan| plan.target.name == pair.disk.name);
    let plan = match known {
        Some(index) => &mut plans[index],
        None => {
            plans.push(DiskPlan {
                source: pair.image.number,
                target: pair.disk.clone(),
                keeps_table: true,
                invalidate: Vec::new(),
                copies: Vec::new(),
                areas: Vec::new(),
                partitions: Vec::new(),
                grow: Vec::new(),
                shrink: Vec::new(),
                sectors: Vec::new(),
                conversion: None,
                commit: Vec::new(),
            });
            let last = plans.len() - 1;
            &mut plans[last]
        }
    };
    if plan.source != pair.image.number {
        return Err(refusal(
            ReasonCode::VolumeUnsupported,
            format!(
                "{} gets volumes of disk {} and of disk {} of the backup; restore them one after the other.",
                pair.disk.name, plan.source, pair.image.number
            ),
        ));
    }
    let range = pair.partition.range;
    let twice = plan.copies.iter().any(|copy| copy.region == pair.index);
    if twice
        || plan
            .partitions
            .iter()
            .any(|one| one.number == pair.partition.number)
    {
        return Err(not_found(format!(
            "The volume for {place} or that partition itself is named twice; each goes to one place."
        )));
    }
    // Signs of what is there now, at its front and its end.
    let ends = [
        ByteRange::between(range.start(), range.start() + range.len().min(MIB)),
        ByteRange::between(range.end() - range.len().min(MIB), range.end()),
    ];
    plan.invalidate.extend(ends);
    plan.invalidate = super::restore::in_order(std::mem::take(&mut plan.invalidate));
    plan.copies.push(RegionCopy {
        region: pair.index,
        destination: range,
        last: last_parts(pair.region, range),
    });
    plan.copies.sort_by_key(|copy| copy.destination);
    let volume = pair.region.volume.as_ref();
    plan.partitions.push(PlannedPartition {
        number: pair.partition.number,
        range,
        // Boot entries are left alone.
        guid: None,
        file_system: volume.map(|volume| volume.file_system),
        esp: false,
    });
    plan.partitions.sort_by_key(|partition| partition.number);
    plan.grow.extend(fits.grow);
    plan.shrink.extend(fits.shrink);
    plan.sectors.extend(fits.sectors);
    Ok(())
}

/// What has to be done to a volume so that it fits its partition.
#[derive(Default)]
struct Fit {
    grow: Option<Grow>,
    shrink: Option<Shrink>,
    sectors: Option<SectorChange>,
}

fn fit(pair: &Pair<'_>, place: &str, extra_space: ExtraSpace) -> Result<Fit, Refusal> {
    let (region, to) = (pair.region, pair.partition.range.len());
    let number = pair.partition.number;
    let mut fit = Fit::default();
    let sector = pair.disk.logical_sector;
    if sector != pair.image.logical_sector {
        let change = sectors::works(region, &pair.image.table, sector).map_err(|reason| {
            refusal(
                ReasonCode::SectorSize,
                format!(
                    "Disk {} of the backup has sectors of {} bytes, {} has {}: {}: {reason}.",
                    pair.image.number,
                    pair.image.logical_sector.bytes(),
                    pair.disk.name,
                    sector.bytes(),
                    region.place(pair.image.number)
                ),
            )
        })?;
        if let (true, Some(volume)) = (change, &region.volume) {
            fit.sectors = Some(SectorChange {
                partition: number,
                file_system: volume.file_system,
                to: sector,
            });
        }
    }
    if to >= region.range.len() {
        if extra_space != ExtraSpace::None
            && let (Some(volume), Some(most)) = (&region.volume, placement::most(region))
            && volume.size < to
            && to > region.range.len()
            && to <= most
        {
            fit.grow = Some(Grow {
                partition: number,
                file_system: volume.file_system,
                from: volume.size,
                to,
            });
        }
        return Ok(fit);
    }
    let what = format!(
        "{place} has {} and is too small for {} of the backup ({})",
        HumanBytes(to),
        region.place(pair.image.number),
        HumanBytes(region.range.len())
    );
    if let Some(reason) = shrink::kept_whole(region) {
        return Err(refusal(
            ReasonCode::CannotShrink,
            format!("{what}, which keeps its size: {reason}. Choose a larger partition."),
        ));
    }
    let least = shrink::least(region);
    let Some(volume) = region.volume.as_ref().filter(|_| to >= least) else {
        return Err(refusal(
            ReasonCode::TooSmall,
            format!(
                "{what}, which needs {} at least. Choose a larger partition.",
                HumanBytes(least)
            ),
        ));
    };
    fit.shrink = Some(Shrink {
        partition: number,
        file_system: volume.file_system,
        from: volume.size,
        to,
    });
    Ok(fit)
}
