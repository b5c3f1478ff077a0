//! Which ids a copy gets anew, and which stay and why.
//!
//! Invariant: an id changes only when everything that can refer to it is known and can be changed with it.
//! Nothing is written here.

use std::collections::BTreeMap;
use std::sync::Arc;

use backup::SectorSize;
use backup::identity::References;
use backup::identity::core_image::{self, CoreImage};
use backup::manifest::{DiskImage, FileSystemKind as Kind, Manifest, PartitionTable};
use backup::plan::{DiskPlan, RestorePlan};
use uuid::Uuid;

use super::fat_files;
use super::start_image::{self, Named};
use super::systems::{self, StartImage, System};
use super::volumes::{Id, Volume};
use crate::device::BlockDevice;
use crate::job::error::Fault;

/// What becomes of the ids in a partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Table {
    /// New ones.
    New {
        /// The disk's GUID.
        disk: Uuid,
        /// Number, old and new GUID of each partition.
        partitions: Vec<(u32, Uuid, Uuid)>,
        /// The disk's signature.
        signature: u32,
    },
    /// They stay.
    Kept(String),
}

/// An initramfs that names a swap which gets another id.
pub(super) struct Resume {
    /// Index of the system.
    pub(super) system: usize,
    /// Its path in the system.
    pub(super) path: String,
    /// The swap's new id.
    pub(super) swap: Id,
}

/// What becomes of all ids.
pub(super) struct Decision {
    /// For each volume its new id, if it gets one.
    pub(super) ids: Vec<Option<Id>>,
    /// For each disk of the plan.
    pub(super) tables: Vec<Table>,
    /// For each system its new machine id, if it has one.
    pub(super) machine_ids: Vec<Option<Uuid>>,
    /// What systems start from, where it must be told of a swap's new id.
    pub(super) resumes: Vec<Resume>,
    /// Everything that is replaced in files.
    pub(super) references: References,
    /// What stays, and why.
    pub(super) kept: Vec<String>,
}

/// The GUIDs of the partitions and the index of the volume in each.
pub(in crate::job) fn partition_ids(
    volumes: &[Volume],
    manifest: &Manifest,
    plan: &RestorePlan,
) -> Vec<(Uuid, usize)> {
    let of_disk = |disk: usize| -> BTreeMap<u32, Uuid> {
        let image = image_of(manifest, &plan.disks[disk]);
        guids(image).into_iter().collect()
    };
    volumes
        .iter()
        .enumerate()
        .filter_map(|(index, volume)| Some((*of_disk(volume.disk).get(&volume.partition?)?, index)))
        .collect()
}

fn image_of<'m>(manifest: &'m Manifest, plan: &DiskPlan) -> Option<&'m DiskImage> {
    manifest.disks.get(plan.source as usize)
}

/// Number and GUID of each partition of a GPT.
fn guids(image: Option<&DiskImage>) -> Vec<(u32, Uuid)> {
    let Some(PartitionTable::Gpt(table)) = image.map(|image| &image.table) else {
        return Vec::new();
    };
    let partitions = table.partitions().unwrap_or_default();
    partitions
        .into_iter()
        .map(|partition| (partition.number, partition.unique_guid))
        .collect()
}

/// Decides, from what was restored.
///
/// # Errors
/// A disk or volume that cannot be read.
pub(super) fn decide(
    devices: &[Arc<dyn BlockDevice>],
    (manifest, plan): (&Manifest, &RestorePlan),
    volumes: &[Volume],
    systems: &[System],
) -> Result<Decision, Fault> {
    let mut reasons: Vec<Option<String>> = volumes.iter().map(by_kind).collect();
    let mut pin = |index: usize, reason: String| {
        reasons[index].get_or_insert(reason);
    };
    for (index, volume) in volumes.iter().enumerate() {
        let twin = |(other, two): (usize, &Volume)| other != index && two.id == volume.id;
        if volume.id.is_some() && volumes.iter().enumerate().any(twin) {
            pin(index, "another volume has the same id".to_owned());
        }
    }
    let mut resumes = Vec::new();
    for (number, system) in systems.iter().enumerate() {
        let mut named = Vec::new();
        systems::start_images(system, volumes, |image| {
            let named_here = named_in_image(&image, system, volumes);
            named.push((image.path, named_here));
        })?;
        for (path, named) in named {
            for (index, reason) in named {
                let volume = &volumes[index];
                // The one id for which there is a way round.
                if volume.kind == Kind::Swap && system.has_initramfs_tools && reason.is_none() {
                    resumes.push((number, path.clone(), index));
                } else {
                    let why = reason.unwrap_or_else(|| "names it".to_owned());
                    pin(
                        index,
                        format!("/{path}, which its system starts from, {why}"),
                    );
                }
            }
        }
    }
    for index in built_into_loaders(volumes)? {
        pin(
            index,
            "a signed boot loader has this id built in".to_owned(),
        );
    }
    for (disk_plan, device) in plan.disks.iter().zip(devices) {
        for (index, reason) in built_into_grub(device.as_ref(), disk_plan, volumes, systems)? {
            pin(index, reason);
        }
    }

    let mut references = References::new();
    let mut kept = Vec::new();
    let mut ids = Vec::new();
    for (volume, reason) in volumes.iter().zip(reasons) {
        let new = match (volume.id, reason) {
            (None, None) => None,
            (_, Some(reason)) => {
                kept.push(format!(
                    "The {} in {} keeps its id: {reason}.",
                    volume.kind, volume.place
                ));
                None
            }
            (Some(Id::Uuid(old)), None) => {
                let new = Uuid::new_v4();
                references.uuid(old, new);
                Some(Id::Uuid(new))
            }
            (Some(Id::Short(old)), None) => {
                let new = number();
                references.short(old, new);
                Some(Id::Short(new))
            }
        };
        ids.push(new);
    }
    let machine_ids = systems
        .iter()
        .map(|system| {
            system.machine_id.map(|old| {
                let new = Uuid::new_v4();
                references.machine_id(old, new);
                new
            })
        })
        .collect();
    let mut tables = Vec::new();
    for (index, disk_plan) in plan.disks.iter().enumerate() {
        let table = table(
            index,
            image_of(manifest, disk_plan),
            volumes,
            &mut references,
        );
        if let Table::Kept(reason) = &table {
            let name = &disk_plan.target.name;
            kept.push(format!(
                "The ids of {name} and its partitions stay: {reason}."
            ));
        }
        tables.push(table);
    }
    let resumes = resumes.into_iter().filter_map(|(system, path, index)| {
        Some(Resume {
            system,
            path,
            swap: ids[index]?,
        })
    });
    Ok(Decision {
        resumes: resumes.collect(),
        ids,
        tables,
        machine_ids,
        references,
        kept,
    })
}

/// A number that is not 0.
pub(in crate::job) fn number() -> u32 {
    loop {
        let number = Uuid::new_v4().as_fields().0;
        if number != 0 {
            return number;
        }
    }
}

/// Why a volume's id stays by what the volume is.
fn by_kind(volume: &Volume) -> Option<String> {
    let reason = match volume.kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 | Kind::Xfs | Kind::Btrfs => return None,
        Kind::Fat12 | Kind::Fat16 | Kind::Fat32 | Kind::Exfat | Kind::Swap => return None,
        Kind::Ntfs => "Windows knows it by more than that, which is not changed",
        Kind::Luks | Kind::Bitlocker => "its inside cannot be seen",
        Kind::Lvm => "the ids of LVM are not changed",
    };
    Some(reason.to_owned())
}

/// The volumes that an initramfs names, or could name, with the reason.
fn named_in_image(
    image: &StartImage,
    system: &System,
    volumes: &[Volume],
) -> Vec<(usize, Option<String>)> {
    let (indexes, ids): (Vec<usize>, Vec<String>) = volumes
        .iter()
        .enumerate()
        .filter_map(|(index, volume)| Some((index, volume.id?.to_string())))
        .unzip();
    let named = match &image.bytes {
        Some(bytes) => start_image::named(bytes, &ids),
        None => Named::Unknown("too large".to_owned()),
    };
    match named {
        Named::These(these) => these.iter().map(|at| (indexes[*at], None)).collect(),
        Named::Unknown(reason) => {
            let reason = format!("cannot be read ({reason}) and could name it");
            let needed = system.needed.iter();
            needed.map(|index| (*index, Some(reason.clone()))).collect()
        }
    }
}

/// Volumes whose id is in a signed program on a FAT volume.
fn built_into_loaders(volumes: &[Volume]) -> Result<Vec<usize>, Fault> {
    let mut found = Vec::new();
    for fat in volumes.iter().filter(|volume| volume.is_fat()) {
        fat_files::visit(fat, |file| {
            if file.is_signed() {
                found.extend(named_in(&file.bytes, volumes));
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// The volumes whose id is a word of the text.
fn named_in(text: &[u8], volumes: &[Volume]) -> Vec<usize> {
    let named = |volume: &Volume| {
        let mut one = References::new();
        match volume.id {
            Some(Id::Uuid(id)) => one.uuid(id, id),
            Some(Id::Short(id)) => one.short(id, id),
            None => return false,
        }
        one.rewrite(&mut text.to_vec()) > 0
    };
    let all = volumes.iter().enumerate();
    all.filter(|(_, volume)| named(volume))
        .map(|(index, _)| index)
        .collect()
}

/// Volumes whose id is, or could be, in the second stage of a GRUB for BIOS machines.
fn built_into_grub(
    device: &dyn BlockDevice,
    plan: &DiskPlan,
    volumes: &[Volume],
    systems: &[System],
) -> Result<Vec<(usize, String)>, Fault> {
    // The commit writes the first sector; on the disk it is not yet.
    let Some(first) = plan.commit.last() else {
        return Ok(Vec::new());
    };
    let image = read_core_image(&first.bytes.0, device)?;
    let found = match image {
        CoreImage::None => return Ok(Vec::new()),
        CoreImage::Plain(image) => {
            let reason = "it is built into GRUB's second stage, which cannot be changed";
            let named = named_in(&image, volumes).into_iter();
            named.map(|index| (index, reason.to_owned())).collect()
        }
        CoreImage::Unknown(why) => {
            let reason = format!("GRUB's second stage could have it built in, and {why}");
            let mut found = Vec::new();
            for (index, volume) in volumes.iter().enumerate() {
                let is_boot = |system: &System| {
                    system.volume == index || system.locate("boot/grub").0 == index
                };
                if systems.iter().any(is_boot) || volume.is_linux() && has_grub(volume)? {
                    found.push((index, reason.clone()));
                }
            }
            found
        }
    };
    Ok(found)
}

fn read_core_image(first_sector: &[u8], device: &dyn BlockDevice) -> Result<CoreImage, Fault> {
    let reader = crate::device::DiskReader(device);
    let sector: SectorSize = device.sector();
    core_image::read(first_sector, &reader, device.size(), sector)
        .map_err(|error| Fault::NotAsPlanned(error.to_string()))
}

fn has_grub(volume: &Volume) -> Result<bool, Fault> {
    let tree = volume.tree()?;
    for folder in ["boot/grub", "boot/grub2", "grub", "grub2"] {
        let found = systems::node(tree.as_ref(), tree.root(), folder);
        if found.map_err(|error| volume.unreadable(&error))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn table(
    disk: usize,
    image: Option<&DiskImage>,
    volumes: &[Volume],
    references: &mut References,
) -> Table {
    let windows = volumes
        .iter()
        .any(|volume| volume.disk == disk && matches!(volume.kind, Kind::Ntfs | Kind::Bitlocker));
    if windows {
        return Table::Kept("Windows finds itself by them".to_owned());
    }
    let new = Table::New {
        disk: Uuid::new_v4(),
        partitions: guids(image)
            .into_iter()
            .map(|(number, old)| (number, old, Uuid::new_v4()))
            .collect(),
        signature: number(),
    };
    match (image.map(|image| &image.table), &new) {
        (
            Some(PartitionTable::Gpt(table)),
            Table::New {
                disk, partitions, ..
            },
        ) => {
            for (_, old, new) in partitions {
                references.uuid(*old, *new);
            }
            if let Ok(old) = table.disk_guid() {
                references.uuid(old, *disk);
            }
            new
        }
        (Some(PartitionTable::Mbr(table)), Table::New { signature, .. }) => {
            if let Some(old) = table.signature() {
                references.signature(old, *signature);
            }
            new
        }
        _ => Table::Kept("it has no partition table".to_owned()),
    }
}
