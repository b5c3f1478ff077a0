//! A backup whose system starts by one type of firmware, for a machine that starts by the other one.
//!
//! To UEFI: the disk gets an EFI system partition, unless it has one, and a PC partition table becomes a GPT with
//! the same partitions under the same numbers. To BIOS: the disk gets a partition for GRUB's second stage, unless it
//! has one. What goes into the new partition, and what is changed in the system's files, is the agent's part.
//!
//! Invariant: a partition of the backup keeps its number, and its place but for what `placement` and `shrink`
//! decide; the new one lies in room that nobody has, at the front, at the end, or between others. All new ids follow
//! from the restore point, so that the same restore is the same plan.
//!
//! Refused, before anything is written: what is no Linux, Windows on the same disk, what has no room, and file systems
//! that lie where an unfinished restore leaves its mark.

use uuid::{Builder, Uuid};

use crate::gpt::{BIOS_BOOT_TYPE, ESP_TYPE, GptTable, NewPartition};
use crate::hardware::{Disk, FirmwareKind, Inventory};
use crate::layout::TablePartition;
use crate::manifest::{
    ChunkListRef, Coverage, DiskImage, FileSystemKind, Manifest, PartitionTable, Region, RegionKind,
};
use crate::mbr::MbrTable;
use crate::plan::restore::{MIB, refusal};
use crate::plan::{Choices, FirmwareChoice, FirmwareConversion, PlannedPartition};
use crate::plan::{ReasonCode, Refusal};
use crate::units::HumanBytes;
use crate::{ByteRange, Digest, SectorSize};

/// Size of an EFI system partition that is made: FAT32 has at least 65525 clusters, and there is room for a second
/// loader.
const ESP_SIZE: u64 = 64 * MIB;
/// What an EFI system partition that is there must have free: two copies of shim and GRUB.
const ESP_FREE: u64 = 12 * MIB;
/// Size of a partition for GRUB's second stage, where it is not in the room before the first partition.
const BIOS_BOOT_SIZE: u64 = MIB;
/// What it must have at least.
const BIOS_BOOT_LEAST: u64 = 512 << 10;
/// Where the last part of the first MiB begins, which has the mark of an unfinished restore until the commit. The agent
/// reads and mounts file systems before that.
const MARK: u64 = MIB - 4096;

const LINUX: Uuid = Uuid::from_u128(0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4);
const SWAP: Uuid = Uuid::from_u128(0x0657_fd6d_a4ab_43c4_84e5_0933_c84b_4f4f);
const LVM: Uuid = Uuid::from_u128(0xe6d6_d379_f507_44c2_a23c_238f_2a3d_f928);
const RAID: Uuid = Uuid::from_u128(0xa19d_880f_05fc_4d3b_a006_743f_0f84_911e);
/// FAT, exFAT and NTFS with data.
const BASIC_DATA: Uuid = Uuid::from_u128(0xebd0_a0a2_b9e5_4433_87c0_68b6_b726_99c7);

/// What is to be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The disk of the backup that the machine is to start from.
    pub(super) disk: u32,
    /// How it is to start.
    pub(super) to: FirmwareKind,
}

/// Whether and what a restore converts. What a person should know goes into `notes`.
///
/// # Errors
/// [`ReasonCode::FirmwareType`] when the types differ and nothing was said of it, [`ReasonCode::CannotConvert`] with
/// the reason.
pub(super) fn wanted(
    manifest: &Manifest,
    target: &Inventory,
    choices: &Choices,
    notes: &mut Vec<String>,
) -> Result<Option<Wanted>, Refusal> {
    let (backup, machine) = (manifest.firmware.kind, target.firmware);
    if backup == machine {
        return Ok(None);
    }
    match choices.firmware {
        FirmwareChoice::Insist => {
            notes.push(format!(
                "The backup starts by {backup}, this machine was started by {machine}: what is restored starts only when its firmware set-up is changed to {backup}."
            ));
            Ok(None)
        }
        FirmwareChoice::Same => Err(refusal(
            ReasonCode::FirmwareType,
            format!(
                "The backup starts by {backup}, this machine was started by {machine}. Start it by {backup} (see its firmware set-up), then restore again; or have a Linux converted to {machine}; or insist, if the disk is for a machine that starts by {backup}."
            ),
        )),
        FirmwareChoice::Convert => {
            if let Some(reason) = why_not(manifest, choices) {
                return Err(cannot(machine, &reason));
            }
            let disk = start_disk(manifest)
                .ok_or_else(|| cannot(machine, "no disk of it has a system"))?;
            notes.push(packages_note(machine));
            Ok(Some(Wanted { disk, to: machine }))
        }
    }
}

/// What stays for the person to do: the system updates its own loader, not the new one.
fn packages_note(machine: FirmwareKind) -> String {
    let package = match machine {
        FirmwareKind::Uefi => "grub-efi-amd64-signed and shim-signed",
        FirmwareKind::Bios => "grub-pc",
    };
    format!(
        "The system is given a boot loader for {machine}, which reads the system's own GRUB configuration, so that its kernel updates go on. Its packages are still those of the other firmware: install those for {machine} when it runs ({package} on Debian)."
    )
}

fn cannot(machine: FirmwareKind, reason: &str) -> Refusal {
    refusal(
        ReasonCode::CannotConvert,
        format!(
            "The backup cannot be converted to start by {machine}: {reason}. Start the machine by the backup's type of firmware, or insist, if the disk is for another machine."
        ),
    )
}

/// The partition that the loader goes to is not to be restored.
pub(super) fn left_out(conversion: FirmwareConversion) -> Refusal {
    let number = conversion.partition;
    cannot(
        conversion.to,
        &format!("its loader goes to partition {number}, which is left out"),
    )
}

fn why_not(manifest: &Manifest, choices: &Choices) -> Option<String> {
    let Some(system) = &manifest.system else {
        return Some(
            "no system was found in it (its volumes are encrypted or unknown), and only a Linux is converted"
                .to_owned(),
        );
    };
    if system.name == "Windows" {
        return Some("it is a Windows, and only a Linux is converted".to_owned());
    }
    if manifest.architecture != "x86_64" {
        return Some(format!(
            "there are no boot loaders of both types for {}",
            manifest.architecture
        ));
    }
    if choices.is_copy() {
        return Some(
            "it is to get an identity of its own as well, and both at a time are not built; restore with --identity kept"
                .to_owned(),
        );
    }
    None
}

/// The disk that a machine starts from: of one that starts by UEFI the first with an EFI system partition; else the
/// first with boot code and a file system of Linux; else the first with an EFI system partition, which one that starts
/// by BIOS may have from before; else the first with a file system of Linux.
fn start_disk(manifest: &Manifest) -> Option<u32> {
    let has_table = |disk: &&DiskImage| !matches!(disk.table, PartitionTable::None);
    let disks = || manifest.disks.iter().filter(has_table);
    let has_esp = |disk: &&DiskImage| {
        let partitions = crate::layout::partitions_of(&disk.table).unwrap_or_default();
        partitions.iter().any(|partition| partition.esp)
    };
    let has_linux = |disk: &&DiskImage| {
        let kinds = disk.regions.iter().filter_map(|one| one.volume.as_ref());
        kinds.map(|volume| volume.file_system).any(is_linux)
    };
    let has_code = |disk: &&DiskImage| {
        let first = match &disk.table {
            PartitionTable::Gpt(table) => &table.first_sector.0,
            PartitionTable::Mbr(table) => &table.first_sector.0,
            PartitionTable::None => return false,
        };
        has_linux(disk) && first.iter().take(440).any(|byte| *byte != 0)
    };
    let esp = || disks().find(has_esp);
    let code = || disks().find(has_code);
    let found = match manifest.firmware.kind {
        FirmwareKind::Uefi => esp().or_else(code),
        FirmwareKind::Bios => code().or_else(esp),
    };
    let found = found.or_else(|| disks().find(has_linux));
    found.map(|disk| disk.number)
}

const fn is_linux(kind: FileSystemKind) -> bool {
    matches!(
        kind,
        FileSystemKind::Ext2
            | FileSystemKind::Ext3
            | FileSystemKind::Ext4
            | FileSystemKind::Xfs
            | FileSystemKind::Btrfs
            | FileSystemKind::Lvm
    )
}

/// A disk that starts by the other type of firmware.
pub(super) struct Converted {
    /// As a backup of such a disk would be, but for the partition that is made.
    pub(super) image: DiskImage,
    /// The partition that is made.
    pub(super) made: Option<Made>,
    /// For the agent.
    pub(super) conversion: FirmwareConversion,
}

/// A partition that is made, whose place is not known yet.
#[derive(Debug, Clone)]
pub(super) struct Made {
    number: u32,
    kind: Uuid,
    id: Uuid,
    len: u64,
}

/// The same with its place.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    made: Made,
    pub(super) range: ByteRange,
    /// Whether the others have to end before it.
    at_the_end: bool,
}

/// Carries a disk over to the other type of firmware; what a person should know goes into `notes`.
///
/// # Errors
/// [`ReasonCode::CannotConvert`] with the first reason.
pub(super) fn converted(
    manifest: &Manifest,
    image: &DiskImage,
    target: &Disk,
    to: FirmwareKind,
    notes: &mut Vec<String>,
) -> Result<Converted, Refusal> {
    let refuse = |reason: String| cannot(to, &reason);
    let name = &target.name;
    if let Some(region) = image.regions.iter().find(|region| is_windows(region)) {
        let place = region.place(image.number);
        return Err(refuse(format!(
            "a Windows in {place} would not start any more"
        )));
    }
    if to == FirmwareKind::Bios && target.logical_sector != SectorSize::S512 {
        return Err(refuse(format!(
            "BIOS reads sectors of 512 bytes, and {name} has sectors of {}",
            target.logical_sector.bytes()
        )));
    }
    let id = |what: &str| made_id(&format!("{} disk {} {what}", manifest.id, image.number));
    let table = match &image.table {
        PartitionTable::Gpt(table) => table.clone(),
        PartitionTable::Mbr(table) if to == FirmwareKind::Uefi => {
            notes.push(format!(
                "{name} gets a GUID partition table in place of the backup's PC partition table; partitions keep their numbers."
            ));
            gpt_of(image, table, &id).map_err(refuse)?
        }
        PartitionTable::Mbr(_) => {
            return Err(refuse("its disk has no GUID partition table".to_owned()));
        }
        PartitionTable::None => return Err(refuse("its disk has no partitions".to_owned())),
    };
    if let Some(place) = under_mark(manifest) {
        return Err(refuse(format!(
            "the file system in {place} begins within the disk's first MiB, where an unfinished restore leaves its mark"
        )));
    }
    let wrong = |error: crate::gpt::GptError| refuse(error.to_string());
    let (kind, len, article, what) = match to {
        FirmwareKind::Uefi => (ESP_TYPE, ESP_SIZE, "an", "EFI system partition"),
        FirmwareKind::Bios => (
            BIOS_BOOT_TYPE,
            BIOS_BOOT_SIZE,
            "a",
            "partition for GRUB's second stage",
        ),
    };
    let partitions = table.partitions().map_err(wrong)?;
    let (partition, made) = match partitions.iter().find(|one| one.type_guid == kind) {
        Some(there) => {
            let region = image
                .regions
                .iter()
                .find(|region| region.is_partition(there.number));
            is_usable(region, to)
                .map_err(|reason| refuse(format!("its {what} {} {reason}", there.number)))?;
            if to == FirmwareKind::Uefi {
                notes.push(format!(
                    "{name} keeps its {what}, partition {}. If a boot loader is where firmware looks for it, that one is used, although this system started by BIOS: whether it starts the system is not checked.",
                    there.number
                ));
            }
            (there.number, None)
        }
        None => {
            let number = table.next_number().map_err(wrong)?;
            let number = number.ok_or_else(|| refuse("its table has no entry left".to_owned()))?;
            let id = id(&format!("partition {number}"));
            notes.push(format!("{name} gets {article} {what}: partition {number}."));
            let made = Made {
                number,
                kind,
                id,
                len,
            };
            (number, Some(made))
        }
    };
    let mut regions = image.regions.clone();
    for region in regions.iter_mut().filter(|one| one.kind == RegionKind::Gap) {
        let is_saved = !matches!(region.coverage, Coverage::LeftOut { .. });
        let data = HumanBytes(region.content.data_bytes);
        // Before the first MiB is what starts the machine, which is made anew.
        if is_saved && region.content.data_bytes > 0 && region.range.start() >= MIB {
            let place = region.place(image.number);
            notes.push(format!(
                "{data} of data in {place} are not restored: what is outside of partitions is of the other type of firmware."
            ));
        }
        region.coverage = Coverage::LeftOut {
            reason: "what is outside of partitions is of the other type of firmware".to_owned(),
        };
        region.content = ChunkListRef::none();
    }
    Ok(Converted {
        image: DiskImage {
            table: PartitionTable::Gpt(table),
            regions,
            ..image.clone()
        },
        conversion: FirmwareConversion {
            to,
            partition,
            made: made.is_some(),
        },
        made,
    })
}

/// The first region of any disk with a file system where an unfinished restore leaves its mark, if there is one.
fn under_mark(manifest: &Manifest) -> Option<String> {
    let with_table = |disk: &&DiskImage| !matches!(disk.table, PartitionTable::None);
    manifest.disks.iter().filter(with_table).find_map(|disk| {
        let mut regions = disk.regions.iter();
        let found = regions.find(|one| one.volume.is_some() && is_under_mark(one.range));
        Some(found?.place(disk.number))
    })
}

const fn is_under_mark(range: ByteRange) -> bool {
    range.start() < MIB && range.end() > MARK
}

fn is_windows(region: &Region) -> bool {
    let volume = region.volume.as_ref();
    volume.is_some_and(|volume| {
        matches!(
            volume.file_system,
            FileSystemKind::Ntfs | FileSystemKind::Bitlocker
        )
    })
}

/// Whether the partition for the loader that the backup has can take one; why not, after its name.
fn is_usable(region: Option<&Region>, to: FirmwareKind) -> Result<(), String> {
    let Some(region) = region else {
        return Err("was not saved".to_owned());
    };
    if is_under_mark(region.range) {
        return Err(
            "begins within the disk's first MiB, where an unfinished restore leaves its mark"
                .to_owned(),
        );
    }
    let size = HumanBytes(region.range.len());
    if to == FirmwareKind::Bios {
        return if region.range.len() < BIOS_BOOT_LEAST {
            Err(format!("is too small ({size})"))
        } else {
            Ok(())
        };
    }
    let volume = region.volume.as_ref();
    let volume = volume.filter(|volume| {
        matches!(
            volume.file_system,
            FileSystemKind::Fat12 | FileSystemKind::Fat16 | FileSystemKind::Fat32
        )
    });
    let Some(volume) = volume else {
        return Err("has no FAT in it".to_owned());
    };
    let free = volume.size.saturating_sub(volume.used.unwrap_or(0));
    if free < ESP_FREE {
        let free = HumanBytes(free);
        return Err(format!(
            "has {free} free, and the loaders take {}",
            HumanBytes(ESP_FREE)
        ));
    }
    Ok(())
}

/// A GPT with the partitions of a PC partition table.
fn gpt_of(
    image: &DiskImage,
    table: &MbrTable,
    id: &dyn Fn(&str) -> Uuid,
) -> Result<GptTable, String> {
    let sector = image.logical_sector;
    let partitions = table.partitions().map_err(|error| error.to_string())?;
    let mut gpt = GptTable::empty(id("table"), sector, image.size / sector.bytes())
        .map_err(|error| error.to_string())?;
    let first = gpt.front().map_err(|error| error.to_string())?;
    for partition in partitions {
        let number = partition.number;
        if partition.first_lba < first {
            return Err(format!(
                "partition {number} begins at sector {}, and a GUID partition table takes the first {first}",
                partition.first_lba
            ));
        }
        let new = NewPartition {
            number,
            first_lba: partition.first_lba,
            last_lba: partition.last_lba,
            type_guid: type_of(partition.kind),
            unique_guid: id(&format!("partition {number}")),
            name: "",
        };
        gpt = gpt
            .with_partition(&new)
            .map_err(|error| error.to_string())?;
    }
    Ok(gpt)
}

/// The type of a GPT for a PC partition's.
const fn type_of(kind: u8) -> Uuid {
    match kind {
        0x82 => SWAP,
        0x8e => LVM,
        0xfd => RAID,
        0xef => ESP_TYPE,
        0x01 | 0x04 | 0x06 | 0x07 | 0x0b | 0x0c | 0x0e => BASIC_DATA,
        _ => LINUX,
    }
}

/// An id that follows from what it is for.
fn made_id(what: &str) -> Uuid {
    let digest = Digest::of(format!("netboot, other firmware: {what}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    Builder::from_random_bytes(bytes).into_uuid()
}

/// The room of a target for a partition that is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Free<'a> {
    /// The backup's partitions.
    pub(super) partitions: &'a [TablePartition],
    /// The sectors of both disks.
    pub(super) sector: SectorSize,
    /// Where the first partition may begin, in bytes.
    pub(super) usable_start: u64,
    /// Where the last one may end, in bytes.
    pub(super) usable_end: u64,
    /// Where the backup's partitions end, in bytes.
    pub(super) needed: u64,
}

impl Made {
    /// Finds its place: at the front, when it is GRUB's; at the end; between others. When there is none, it takes the
    /// end, and something is made smaller for it, or the restore is refused.
    pub(super) fn place(self, free: &Free<'_>) -> Placed {
        let here = |range| (range, false);
        let (range, at_the_end) = self
            .at_the_front(free)
            .map(here)
            .or_else(|| Some((self.at_the_end(free)?, true)))
            .or_else(|| self.between(free).map(here))
            .unwrap_or_else(|| {
                let start = free.usable_end.saturating_sub(self.len) / MIB * MIB;
                (ByteRange::between(start, start + self.len), true)
            });
        Placed {
            made: self,
            range,
            at_the_end,
        }
    }

    fn at_the_front(&self, free: &Free<'_>) -> Option<ByteRange> {
        let parts = free.partitions.iter();
        let first = parts.map(|one| one.range(free.sector).start()).min()?;
        let end = first.min(MIB).min(free.usable_end);
        let fits =
            self.kind == BIOS_BOOT_TYPE && end.saturating_sub(free.usable_start) >= BIOS_BOOT_LEAST;
        fits.then(|| ByteRange::between(free.usable_start, end))
    }

    fn at_the_end(&self, free: &Free<'_>) -> Option<ByteRange> {
        let start = free.usable_end.checked_sub(self.len)? / MIB * MIB;
        (start >= free.needed.max(MIB)).then(|| ByteRange::between(start, start + self.len))
    }

    fn between(&self, free: &Free<'_>) -> Option<ByteRange> {
        if free.usable_end < free.needed {
            // Something is made smaller, and what is behind it moves.
            return None;
        }
        let parts = free.partitions.iter();
        let mut taken: Vec<_> = parts.map(|one| one.range(free.sector)).collect();
        taken.sort();
        let mut at = free.usable_start.max(MIB);
        for range in taken {
            let start = at.next_multiple_of(MIB);
            if start.checked_add(self.len)? <= range.start() {
                return Some(ByteRange::between(start, start + self.len));
            }
            at = at.max(range.end());
        }
        None
    }
}

impl Placed {
    /// Where partitions of the backup may end.
    pub(super) const fn end_for_others(&self, usable_end: u64) -> u64 {
        if self.at_the_end {
            self.range.start()
        } else {
            usable_end
        }
    }

    /// The table with it.
    ///
    /// # Errors
    /// What is wrong with its place or number.
    pub(super) fn in_table(
        &self,
        table: &GptTable,
        sector: SectorSize,
    ) -> Result<GptTable, crate::gpt::GptError> {
        table.with_partition(&NewPartition {
            number: self.made.number,
            first_lba: self.range.start() / sector.bytes(),
            last_lba: (self.range.end() / sector.bytes()).saturating_sub(1),
            type_guid: self.made.kind,
            unique_guid: self.made.id,
            name: if self.made.kind == ESP_TYPE {
                "EFI system partition"
            } else {
                "BIOS boot partition"
            },
        })
    }

    /// For the plan.
    pub(super) fn planned(&self) -> PlannedPartition {
        let esp = self.made.kind == ESP_TYPE;
        PlannedPartition {
            number: self.made.number,
            range: self.range,
            guid: Some(self.made.id.to_string()),
            file_system: esp.then_some(FileSystemKind::Fat32),
            esp,
        }
    }

    /// What is made zero so that no sign of what was there before is left.
    pub(super) fn front(&self) -> ByteRange {
        let start = self.range.start();
        ByteRange::between(start, start + self.range.len().min(MIB))
    }
}
