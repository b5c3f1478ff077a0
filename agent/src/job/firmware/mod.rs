//! A restored Linux that is made to start by the other type of firmware. Decision 0022 says how, and why so.
//!
//! Order: the restored disks are read without mounting anything, and where the system's GRUB has its configuration is
//! found; then the loader gets there: to UEFI a new EFI system partition as a whole, or files in the one that is
//! there; to BIOS GRUB's second stage; then files of the system that name what has changed. The code of the first
//! sector goes back to the caller, whose commit writes it.
//!
//! Invariant: no program of the restored system is run. Until the commit the disk does not start; after an interruption
//! the restore puts back what was captured, and all this is done anew.
//!
//! What is *not* here: where the new partition is (the planner), the loaders themselves and the firmware's boot
//! entries ([`crate::boot_repair`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::filesystem::new_fat::{NewFat, NewFile, made};
use backup::hardware::FirmwareKind;
use backup::identity::fstab;
use backup::manifest::{FileSystemKind as Kind, Manifest, PartitionTable};
use backup::plan::{DiskPlan, FirmwareConversion, PlannedPartition, RestorePlan};
use uuid::Uuid;

use crate::boot_repair::bios::{self, BiosGrub};
use crate::boot_repair::uefi::SignedLoaders;
use crate::device::{BlockDevice, io_error};
use crate::job::Engine;
use crate::job::error::Fault;
use crate::job::identity::edits::Mounts;
use crate::job::identity::mounted::Mounted;
use crate::job::identity::rooted::Root;
use crate::job::identity::systems::{self, System};
use crate::job::identity::volumes::{self, Volume};
use crate::job::identity::{decide, kernel_has};

use grub::Grub;
use references::PartitionIds;

mod grub;
mod references;

#[cfg(test)]
mod tests;

/// The variable that says whether the firmware starts signed programs only (UEFI 2.10 §3.3).
const SECURE_BOOT: &str = "SecureBoot";
/// Where systems mount their EFI system partition.
const ESP_FOLDERS: [&str; 2] = ["/boot/efi", "/efi"];
/// The file that firmware starts by itself.
const FALLBACK: &str = "EFI/BOOT/BOOTX64.EFI";
/// Environments of GRUB, whose length is fixed.
const FIXED_LENGTH: &str = "grubenv";

/// The code of the first sector, for each disk of the plan that gets another one.
pub(crate) type BootCodes = Vec<Option<Vec<u8>>>;

/// The conversion of a plan, and the index of its disk.
fn wanted(plan: &RestorePlan) -> Option<(usize, &DiskPlan, FirmwareConversion)> {
    let mut disks = plan.disks.iter().enumerate();
    disks.find_map(|(index, disk)| Some((index, disk, disk.conversion?)))
}

/// Whether what the plan wants can be done, as far as that is known before anything is written.
///
/// # Errors
/// The reason why it cannot.
pub(crate) fn check(
    engine: &Engine<'_>,
    manifest: &Manifest,
    plan: &RestorePlan,
) -> Result<(), Fault> {
    let Some((.., conversion)) = wanted(plan) else {
        return Ok(());
    };
    let to = conversion.to;
    let refuse = |reason: String| {
        Fault::NotAsPlanned(format!(
            "the system cannot be made to start by {to}: {reason}; restore without --convert-firmware"
        ))
    };
    if !nix::unistd::Uid::effective().is_root() {
        return Err(refuse("only root can change files in it".to_owned()));
    }
    if let Some(reason) = volumes::out_of_reach(manifest) {
        return Err(refuse(reason));
    }
    let root = engine.platform.packages();
    match to {
        FirmwareKind::Bios => bios::check(&root)?,
        FirmwareKind::Uefi => {
            let loaders = SignedLoaders::read(&root)?;
            let variables = engine.platform.variables();
            let on = variables.and_then(|variables| variables.read(SECURE_BOOT).ok().flatten());
            let is_on = on.is_some_and(|value| value.first() == Some(&1));
            let system = manifest.system.as_ref();
            let name = system.map_or("a system without a name", |system| &system.name);
            if is_on && !name.to_lowercase().contains(&loaders.vendor) {
                return Err(refuse(format!(
                    "Secure Boot is on, and the loaders here, which are signed for {}, start only its kernels, not \
                     those of {name}. Switch Secure Boot off",
                    loaders.vendor
                )));
            }
        }
    }
    let regions = manifest
        .regions()
        .filter_map(|region| region.volume.as_ref());
    let logical = manifest.logical_volumes.iter();
    let logical = logical.filter_map(|volume| volume.volume.as_ref());
    let mut kinds: Vec<&str> = regions
        .chain(logical)
        .filter_map(|volume| match volume.file_system {
            Kind::Xfs => Some("xfs"),
            Kind::Btrfs => Some("btrfs"),
            _ => None,
        })
        .collect();
    if to == FirmwareKind::Uefi && !conversion.made {
        kinds.push("vfat");
    }
    match kinds.into_iter().find(|module| !kernel_has(module)) {
        Some(module) => Err(refuse(format!(
            "this environment's kernel has no driver for {module}"
        ))),
        None => Ok(()),
    }
}

/// Makes what was restored start by the other type of firmware, if the plan wants it. The disks are not open and have
/// no table yet. Sentences for people go into `sentences`.
///
/// # Errors
/// Anything that could not be done; the disks then have no table.
pub(crate) fn convert(
    engine: &Engine<'_>,
    manifest: &Manifest,
    plan: &RestorePlan,
    sentences: &mut Vec<String>,
) -> Result<BootCodes, Fault> {
    let mut codes = vec![None; plan.disks.len()];
    let Some((index, disk, conversion)) = wanted(plan) else {
        return Ok(codes);
    };
    let to = conversion.to;
    let done = Conversion::find(engine, manifest, plan, index, disk)
        .and_then(|work| work.run(engine, conversion, sentences));
    // The errors of changing files are those of an identity; here it is another thing that failed.
    codes[index] = done.map_err(|fault| match fault {
        Fault::Identity { what, source } => Fault::Boot {
            what: format!("the system cannot be made to start by {to}: {what}"),
            source,
        },
        Fault::NotAsPlanned(reason) => Fault::Unchangeable {
            reason: format!("the system cannot be made to start by {to}: {reason}"),
            instead: format!(
                "restore to a machine that starts by {}, or with --insist",
                manifest.firmware.kind
            ),
            code: "boot-repair",
        },
        other => other,
    })?;
    Ok(codes)
}

/// What was found on the restored disks.
struct Conversion<'a> {
    manifest: &'a Manifest,
    disk: &'a DiskPlan,
    /// Index of the disk that it starts from.
    index: usize,
    /// The disks, open: nothing else can open them meanwhile.
    devices: Vec<Arc<dyn BlockDevice>>,
    volumes: Vec<Volume>,
    systems: Vec<System>,
    backing: Vec<PathBuf>,
    grub: Grub,
}

impl<'a> Conversion<'a> {
    fn find(
        engine: &Engine<'_>,
        manifest: &'a Manifest,
        plan: &'a RestorePlan,
        index: usize,
        disk: &'a DiskPlan,
    ) -> Result<Self, Fault> {
        let devices = volumes::open(engine, plan)?;
        let volumes = volumes::find(&devices, manifest, plan)?;
        let partition_ids = decide::partition_ids(&volumes, manifest, plan);
        let systems = systems::find(&volumes, &partition_ids)?;
        let grub = grub::find(&volumes, &systems)?;
        let disks = plan.disks.iter();
        let backing = disks
            .map(|disk| engine.platform.backing(&disk.target))
            .collect();
        Ok(Self {
            manifest,
            disk,
            index,
            devices,
            volumes,
            systems,
            backing,
            grub,
        })
    }

    fn run(
        self,
        engine: &Engine<'_>,
        conversion: FirmwareConversion,
        sentences: &mut Vec<String>,
    ) -> Result<Option<Vec<u8>>, Fault> {
        engine.check_cancelled()?;
        let partitions = self.disk.partitions.iter();
        let partition = partitions
            .clone()
            .find(|partition| partition.number == conversion.partition);
        let partition = partition.ok_or_else(|| {
            Fault::Internal(format!(
                "the plan has no partition {}",
                conversion.partition
            ))
        })?;
        let root = engine.platform.packages();
        let (code, esp) = match conversion.to {
            FirmwareKind::Bios => (Some(self.to_bios(&root, partition, sentences)?), None),
            FirmwareKind::Uefi if conversion.made => {
                let esp = self.new_esp(&root, partition, sentences)?;
                (None, Some(esp))
            }
            FirmwareKind::Uefi => {
                self.old_esp(&root, conversion.partition, sentences)?;
                (None, None)
            }
        };
        self.edit(esp.as_deref(), sentences)?;
        Ok(code)
    }

    fn device(&self) -> Result<&dyn BlockDevice, Fault> {
        let device = self.devices.get(self.index).map(AsRef::as_ref);
        device.ok_or_else(|| Fault::Internal(format!("the plan has no disk {}", self.index)))
    }

    fn to_bios(
        &self,
        root: &Path,
        partition: &PlannedPartition,
        sentences: &mut Vec<String>,
    ) -> Result<Vec<u8>, Fault> {
        let grub = BiosGrub::new(root, &self.grub.script())?;
        let code = grub.put(self.device()?, partition.range)?;
        sentences.push(format!(
            "Put GRUB for BIOS onto {}, with its second stage in partition {}; it reads {}.",
            self.disk.target.name, partition.number, self.grub
        ));
        Ok(code)
    }

    /// Makes an EFI system partition with the loaders; its id, as fstab has it.
    fn new_esp(
        &self,
        root: &Path,
        partition: &PlannedPartition,
        sentences: &mut Vec<String>,
    ) -> Result<String, Fault> {
        let loaders = SignedLoaders::read(root)?;
        let script = self.grub.script();
        let files: Vec<_> = loaders
            .files(&script)
            .into_iter()
            .map(|(folder, name, content)| (format!("{folder}/{name}"), content))
            .collect();
        let files: Vec<_> = files
            .iter()
            .map(|(path, content)| NewFile { path, content })
            .collect();
        let device = self.device()?;
        let sector = device.sector();
        let serial = decide::number();
        let volume = NewFat {
            size: partition.range.len(),
            sector,
            hidden: partition.range.start() / sector.bytes(),
            serial,
        };
        let bytes = made(&volume, &files)
            .map_err(|error| Fault::Internal(format!("the EFI system partition: {error}")))?;
        let start = partition.range.start();
        let place = backup::ByteRange::between(start, start + bytes.len() as u64);
        device
            .write_at(start, &bytes)
            .map_err(io_error("writing", device, place))?;
        device
            .flush()
            .map_err(io_error("flushing", device, place))?;
        let mut found = vec![0; bytes.len()];
        device
            .read_at(start, &mut found)
            .map_err(io_error("reading", device, place))?;
        if found != bytes {
            return Err(Fault::ReadBack {
                device: device.name().to_owned(),
                what: "the EFI system partition".to_owned(),
                offset: start,
            });
        }
        sentences.push(format!(
            "Made an EFI system partition (partition {} of {}) with shim and GRUB, signed for {}; GRUB reads {}.",
            partition.number, self.disk.target.name, loaders.vendor, self.grub
        ));
        Ok(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff))
    }

    /// Puts the loaders into the EFI system partition that was restored, unless it has one where firmware looks for it.
    fn old_esp(&self, root: &Path, number: u32, sentences: &mut Vec<String>) -> Result<(), Fault> {
        let mut volumes = self.volumes.iter();
        let esp = volumes.find(|volume| {
            volume.disk == self.index && volume.partition == Some(number) && volume.is_fat()
        });
        let esp = esp.ok_or_else(|| {
            Fault::NotAsPlanned(format!("the EFI system partition {number} is no FAT"))
        })?;
        let loaders = SignedLoaders::read(root)?;
        let script = self.grub.script();
        let io = |what: &str| crate::job::identity::fault(format!("{}: {what}", esp.place));
        let mounted = Mounted::new(&self.backing[esp.disk], esp)?;
        let put = put_loaders(&mounted.root, &loaders.files(&script));
        let put = put.map_err(io("boot loaders"))?;
        mounted.close().map_err(io("writing everything out"))?;
        let place = &esp.place;
        let Some(old) = put else {
            sentences.push(format!(
                "{place} has a boot loader where firmware looks for it, which is used and was left as it is. Whether \
                 it starts this system, which started by BIOS, was not checked."
            ));
            return Ok(());
        };
        sentences.push(format!(
            "Put shim and GRUB, signed for {}, into {place}; GRUB reads {}.",
            loaders.vendor, self.grub
        ));
        if !old.is_empty() {
            let old = old.join(", ");
            sentences.push(format!("What had their names in {place} is kept: {old}."));
        }
        Ok(())
    }

    /// Changes what names partitions by ids that their new table does not have, and adds the new EFI system partition
    /// to what is mounted.
    fn edit(&self, esp: Option<&str>, sentences: &mut Vec<String>) -> Result<(), Fault> {
        let ids = self.partition_ids();
        let mut mounts = Mounts::new(&self.volumes, &self.backing);
        for (number, system) in self.systems.iter().enumerate() {
            let place = &self.volumes[system.volume].place;
            let mut changed = Vec::new();
            let files = if ids.is_empty() {
                Vec::new()
            } else {
                mounts.referring(system)?
            };
            for file in files.iter().filter(|file| !file.ends_with(FIXED_LENGTH)) {
                let is_new = mounts.with(system, file, |root, path| {
                    let Some(bytes) = root.read(path)? else {
                        return Ok(false);
                    };
                    let Some(bytes) = ids.rewritten(&bytes) else {
                        return Ok(false);
                    };
                    root.replace(path, &bytes).map(|()| true)
                })?;
                if is_new == Some(true) {
                    changed.push(format!("/{file}"));
                }
            }
            if !changed.is_empty() {
                let files = changed.join(", ");
                sentences.push(format!(
                    "Changed what names partitions by their ids, in {place}: {files}."
                ));
            }
            if let Some(id) = esp.filter(|_| number == self.grub.system) {
                sentences.push(add_mount(&mut mounts, system, id)?);
            }
        }
        mounts.close()
    }

    /// The ids of the partitions of PC partition tables that became GPTs.
    fn partition_ids(&self) -> PartitionIds {
        let mut ids = PartitionIds::default();
        let image = self.manifest.disks.get(self.disk.source as usize);
        let Some(PartitionTable::Mbr(table)) = image.map(|image| &image.table) else {
            return ids;
        };
        let Some(signature) = table.signature() else {
            return ids;
        };
        for partition in &self.disk.partitions {
            let guid = partition.guid.as_deref();
            if let Some(guid) = guid.and_then(|text| text.parse::<Uuid>().ok()) {
                ids.add(signature, partition.number, &guid.to_string());
            }
        }
        ids
    }
}

/// Puts files of boot loaders into an EFI system partition, unless it has a loader where firmware looks for it. What has
/// their names is of another system or of an older state, and what the loaders read must be theirs: it is kept under
/// another name, and those names are returned.
fn put_loaders(
    root: &Root,
    files: &[(String, &'static str, &[u8])],
) -> io::Result<Option<Vec<String>>> {
    if root.read(FALLBACK)?.is_some() {
        return Ok(None);
    }
    let mut old = Vec::new();
    for (folder, name, content) in files {
        root.make_folder(folder)?;
        if let Some(kept) = root.set_aside(folder, name)? {
            old.push(format!("/{folder}/{kept}"));
        }
        root.create(folder, name, content)?;
    }
    Ok(Some(old))
}

/// Adds a line to the table of mounts.
fn add_mount(mounts: &mut Mounts<'_>, system: &System, id: &str) -> Result<String, Fault> {
    let folder = ESP_FOLDERS[0];
    let added = mounts.with(system, "etc/fstab", |root, path| {
        let Some(mut bytes) = root.read(path)? else {
            return Ok(false);
        };
        let known = fstab::parse(&bytes);
        let is_there = |mount: &fstab::Mount| ESP_FOLDERS.contains(&mount.on.trim_end_matches('/'));
        if known.iter().any(is_there) {
            return Ok(false);
        }
        if !bytes.is_empty() && !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        // A system that cannot mount it starts all the same.
        let line = format!(
            "# EFI system partition, made when this system was restored for UEFI\n\
             UUID={id} {folder} vfat umask=0077,nofail 0 0\n"
        );
        bytes.extend_from_slice(line.as_bytes());
        root.replace(path, &bytes).map(|()| true)
    })?;
    if added != Some(true) {
        return Ok(format!(
            "/etc/fstab was not changed for the EFI system partition, whose id is {id}: it has none, or names another \
             one for {folder}."
        ));
    }
    mounts.with(system, folder.trim_start_matches('/'), |root, path| {
        root.make_folder(path)
    })?;
    Ok(format!(
        "Added the EFI system partition {id} to /etc/fstab."
    ))
}
