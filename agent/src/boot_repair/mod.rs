//! Boot repair: what a restored machine needs beside its disks' bytes to start.
//!
//! UEFI: a fallback loader on the EFI system partition ([`loader`]) and firmware boot entries
//! ([`mod@reconcile`]). BIOS: nothing more than bytes. The first sector's boot
//! code comes with the table, GRUB's core image with the BIOS boot partition or the gap before the first
//! partition, and both stay where they were. A system that started by the other type of firmware before gets another
//! loader, for BIOS ([`bios`]) or for UEFI ([`uefi`]). Invariant: done twice it changes nothing.

use std::collections::BTreeMap;
use std::io;

use backup::hardware::FirmwareKind;
use backup::manifest::{Blob, BootEntry, Firmware, Manifest};
use backup::plan::{DiskPlan, PlannedPartition, RestorePlan};
use uuid::Uuid;

use crate::job::error::Fault;
use crate::job::platform::Loader;
use load_option::{HardDrive, LoadOption};
use reconcile::{Current, Wanted, reconcile};
use variables::Variables;

pub(crate) mod bios;
mod load_option;
pub(crate) mod loader;
mod reconcile;
pub(crate) mod uefi;
pub(crate) mod variables;

/// The firmware's entries and order, for a manifest. What cannot be read becomes a warning.
pub(crate) fn captured_firmware(
    kind: FirmwareKind,
    variables: Option<&dyn Variables>,
    warnings: &mut Vec<String>,
) -> Firmware {
    let none = Firmware {
        kind,
        boot_entries: Vec::new(),
        boot_order: Vec::new(),
    };
    let Some(variables) = variables else {
        return none;
    };
    match read_current(variables) {
        Ok(current) => Firmware {
            kind,
            boot_entries: current
                .entries
                .into_iter()
                .map(|(number, bytes)| BootEntry {
                    number,
                    load_option: Blob(bytes),
                })
                .collect(),
            boot_order: current.order,
        },
        Err(error) => {
            warnings.push(format!(
                "The firmware's boot entries could not be read: {error}."
            ));
            none
        }
    }
}

/// The boot loaders that the backup's boot entries name, in boot order.
pub(crate) fn loaders(firmware: &Firmware) -> Vec<Loader> {
    in_boot_order(firmware)
        .filter_map(|(_, option)| {
            let (drive, path) = option.target()?;
            Some(Loader {
                partition: drive.guid.to_string(),
                path,
            })
        })
        .collect()
}

/// The backup's entries that are in its boot order, as far as they can be read.
fn in_boot_order(firmware: &Firmware) -> impl Iterator<Item = (u16, LoadOption)> {
    firmware.boot_order.iter().filter_map(|number| {
        let entry = firmware
            .boot_entries
            .iter()
            .find(|entry| entry.number == *number)?;
        let option = LoadOption::parse(&entry.load_option.0)
            .map_err(|error| log::warn!("Boot{number:04X} of the backup: {error}"))
            .ok()?;
        Some((*number, option))
    })
}

/// Makes the firmware start what was restored. `renamed` are the partitions that have another GUID than in the
/// backup, by that one. Returns sentences for people.
///
/// # Errors
/// [`Fault::Boot`] when the firmware refuses.
pub(crate) fn repair_entries(
    variables: &dyn Variables,
    manifest: &Manifest,
    plan: &RestorePlan,
    renamed: &BTreeMap<Uuid, Uuid>,
) -> Result<Vec<String>, Fault> {
    let wanted = wanted(manifest, plan, renamed);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let current = read_current(variables).map_err(|source| Fault::Boot {
        what: "the firmware's boot entries cannot be read".to_owned(),
        source,
    })?;
    let changes = reconcile(&current, &wanted);
    let write = |name: String, value: &[u8]| {
        log::info!("firmware variable {name}: {} bytes", value.len());
        variables.write(&name, value).map_err(|source| Fault::Boot {
            what: format!("the firmware variable {name} cannot be written"),
            source,
        })
    };
    for (number, bytes) in &changes.entries {
        write(variable_name(*number), bytes)?;
    }
    if let Some(order) = &changes.order {
        let bytes: Vec<u8> = order
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        write("BootOrder".to_owned(), &bytes)?;
    }
    let named: Vec<_> = changes
        .numbers
        .iter()
        .zip(&wanted)
        .map(|(number, want)| {
            format!(
                "{} \"{}\"",
                variable_name(*number),
                want.option.description()
            )
        })
        .collect();
    let what = if changes
        == (reconcile::Changes {
            numbers: changes.numbers.clone(),
            ..Default::default()
        }) {
        "were there already"
    } else {
        "are set"
    };
    Ok(vec![format!(
        "Firmware boot entries {} {what}.",
        named.join(", ")
    )])
}

/// The entries that must be there: those of the backup that name a restored partition, else one for
/// the fallback loader of the first EFI system partition.
fn wanted(manifest: &Manifest, plan: &RestorePlan, renamed: &BTreeMap<Uuid, Uuid>) -> Vec<Wanted> {
    let now = |guid: Uuid| renamed.get(&guid).copied().unwrap_or(guid);
    let kept: Vec<_> = in_boot_order(&manifest.firmware)
        .filter_map(|(number, option)| {
            let (drive, _) = option.target()?;
            let place = plan.disks.iter().find_map(|disk| {
                let mut partitions = disk.partitions.iter();
                let same = |one: &&PlannedPartition| guid_of(one) == Some(drive.guid);
                Some(hard_drive(disk, partitions.find(same)?, now(drive.guid)))
            })?;
            Some(Wanted {
                number,
                option: option.moved_to(&place),
            })
        })
        .collect();
    if !kept.is_empty() {
        return kept;
    }
    let Some(name) = loader::fallback_name(&manifest.architecture) else {
        return Vec::new();
    };
    let esp = plan.disks.iter().find_map(|disk| {
        let partition = disk.partitions.iter().find(|partition| partition.esp)?;
        Some(hard_drive(disk, partition, now(guid_of(partition)?)))
    });
    let description = manifest
        .system
        .as_ref()
        .map_or("Restored system", |system| &system.name);
    esp.map(|drive| Wanted {
        number: 0,
        option: LoadOption::of_file(description, &drive, &format!("\\EFI\\BOOT\\{name}")),
    })
    .into_iter()
    .collect()
}

fn guid_of(partition: &PlannedPartition) -> Option<Uuid> {
    partition.guid.as_deref().and_then(|text| text.parse().ok())
}

fn hard_drive(disk: &DiskPlan, partition: &PlannedPartition, guid: Uuid) -> HardDrive {
    let sector = disk.target.logical_sector.bytes();
    HardDrive {
        number: partition.number,
        start: partition.range.start() / sector,
        sectors: partition.range.len() / sector,
        guid,
    }
}

fn variable_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

fn read_current(variables: &dyn Variables) -> io::Result<Current> {
    let mut entries = BTreeMap::new();
    for name in variables.names()? {
        let digits = name.strip_prefix("Boot").filter(|digits| digits.len() == 4);
        let Some(number) = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()) else {
            continue;
        };
        if let Some(bytes) = variables.read(&name)? {
            entries.insert(number, bytes);
        }
    }
    let numbers = |bytes: Vec<u8>| -> Vec<u16> {
        bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u16::from_le_bytes(*pair))
            .collect()
    };
    let order = variables
        .read("BootOrder")?
        .map(numbers)
        .unwrap_or_default();
    let boot_current = variables
        .read("BootCurrent")?
        .and_then(|bytes| numbers(bytes).first().copied());
    Ok(Current {
        entries,
        order,
        boot_current,
    })
}
