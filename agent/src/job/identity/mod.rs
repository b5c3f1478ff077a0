//! A copy's own identity: what a restore changes on its disks so that no two copies of an image are the same
//! machine. Decision 0020 says what, and why.
//!
//! Order: the restored disks are read and all is decided; then file systems get their ids, then files what
//! refers to them. The tables with their new ids come back to the caller, whose commit writes them: until
//! then the disk does not start, and after an interruption the restore puts back what was captured and all
//! this is done anew.
//!
//! Invariant: everything that an id is known by changes together, or the id stays and the result says why. An
//! error ends the restore before its commit.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use backup::hardware::MachineIdentity;
use backup::identity::{HostName, name_by_address};
use backup::manifest::{FileSystemKind as Kind, Manifest, PartitionTable};
use backup::plan::restore::plan_restore;
use backup::plan::{Choices, RestorePlan, TableWrite};
use uuid::Uuid;

use crate::job::Engine;
use crate::job::error::Fault;
use crate::job::kernel::find_tool;

use decide::{Decision, Table};
use systems::System;
use volumes::Volume;

pub(in crate::job) mod decide;
pub(in crate::job) mod edits;
mod fat_files;
mod host_keys;
pub(in crate::job) mod mounted;
mod renumber;
pub(in crate::job) mod rooted;
mod start_image;
pub(in crate::job) mod systems;
pub(in crate::job) mod volumes;

#[cfg(test)]
mod tests;

/// What a copy has anew, as far as others need it.
#[derive(Debug, Default)]
pub(crate) struct Renewed {
    /// For each disk of the plan the writes of its commit.
    pub(crate) commits: Vec<Vec<TableWrite>>,
    /// New GUIDs of partitions, by their old ones.
    pub(crate) partitions: BTreeMap<Uuid, Uuid>,
    /// Sentences for the summary.
    pub(crate) sentences: Vec<String>,
}

/// What was tried, for [`Fault::Identity`].
pub(in crate::job) fn fault(what: String) -> impl FnOnce(io::Error) -> Fault {
    move |source| Fault::Identity { what, source }
}

/// A file of a volume, to people.
pub(in crate::job) fn at(path: &str, place: &str) -> String {
    format!("/{path} in {place}")
}

/// Whether a copy can get an identity of its own, before anything is written.
///
/// # Errors
/// The reason why it cannot.
pub(crate) fn check(manifest: &Manifest, plan: &RestorePlan) -> Result<(), Fault> {
    let refuse = |reason: String| {
        Fault::NotAsPlanned(format!(
            "the machine cannot get an identity of its own: {reason}; restore with --identity kept"
        ))
    };
    let regions = manifest
        .regions()
        .filter_map(|region| region.volume.as_ref());
    let logical = manifest.logical_volumes.iter();
    let inner = logical.filter_map(|volume| volume.volume.as_ref());
    let kinds: Vec<Kind> = regions
        .chain(inner)
        .map(|volume| volume.file_system)
        .collect();
    if let Some(reason) = volumes::out_of_reach(manifest) {
        return Err(refuse(reason));
    }
    if let Some(place) = volumes::under_marker(plan) {
        return Err(refuse(format!(
            "the file system in {place} begins within the disk's first MiB, where an unfinished restore leaves its \
             mark"
        )));
    }
    let is_sealed = |kind: &Kind| matches!(kind, Kind::Luks);
    if manifest.system.is_none() && kinds.iter().any(is_sealed) {
        return Err(refuse(
            "no system was found outside its encrypted volume".to_owned(),
        ));
    }
    let table_stays = plan.disks.iter().any(|disk| {
        let image = manifest.disks.get(disk.source as usize);
        disk.commit.is_empty()
            && image.is_some_and(|image| !matches!(image.table, PartitionTable::None))
    });
    if table_stays {
        return Err(refuse(
            "the partition table of a disk is not written, so that only parts of it are a copy"
                .to_owned(),
        ));
    }
    let bare = |table: &PartitionTable| matches!(table, PartitionTable::None);
    let mut disks = manifest.disks.iter().filter(|disk| bare(&disk.table));
    let has_system = |volume: &backup::manifest::Volume| volumes::is_linux(volume.file_system);
    let is_bare_system = disks.find(|disk| {
        let mut volumes = disk
            .regions
            .iter()
            .filter_map(|region| region.volume.as_ref());
        volumes.any(has_system)
    });
    if let Some(disk) = is_bare_system {
        return Err(refuse(format!(
            "disk {} has a file system and no partition table",
            disk.number
        )));
    }
    if kinds.iter().any(|kind| volumes::is_linux(*kind)) {
        if !nix::unistd::Uid::effective().is_root() {
            return Err(refuse("only root can change files in it".to_owned()));
        }
        find_tool(host_keys::TOOL)?;
    }
    for kind in kinds {
        for tool in renumber::tools(kind) {
            find_tool(tool)?;
        }
        let module = match kind {
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            _ => continue,
        };
        if !kernel_has(module) {
            return Err(refuse(format!(
                "this environment's kernel has no driver for {kind}"
            )));
        }
    }
    Ok(())
}

/// Whether the kernel can mount a kind of file system, now or with its module.
pub(in crate::job) fn kernel_has(module: &str) -> bool {
    let known = || {
        let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        kinds
            .lines()
            .any(|line| line.split_ascii_whitespace().last() == Some(module))
    };
    known() || (crate::drivers::load(module).is_ok() && known())
}

/// Gives what was restored an identity of its own. The disks are not open and have no table yet.
///
/// # Errors
/// Anything that could not be done; the disks then have no table.
pub(crate) fn renew(
    engine: &Engine<'_>,
    manifest: &Manifest,
    plan: &RestorePlan,
    choices: &Choices,
) -> Result<Renewed, Fault> {
    renewed(engine, manifest, plan, choices).map_err(|fault| match fault {
        Fault::NotAsPlanned(reason) => Fault::Unchangeable {
            reason: format!("the machine cannot get an identity of its own: {reason}"),
            instead: "restore with --identity kept".to_owned(),
            code: "identity",
        },
        other => other,
    })
}

fn renewed(
    engine: &Engine<'_>,
    manifest: &Manifest,
    plan: &RestorePlan,
    choices: &Choices,
) -> Result<Renewed, Fault> {
    let devices = volumes::open(engine, plan)?;
    let volumes = volumes::find(&devices, manifest, plan)?;
    let partition_ids = decide::partition_ids(&volumes, manifest, plan);
    let systems = systems::find(&volumes, &partition_ids)?;
    let decision = decide::decide(&devices, (manifest, plan), &volumes, &systems)?;
    let host_name = host_name(manifest, choices, &engine.inventory.identity, &systems);
    let backing: Vec<PathBuf> = plan
        .disks
        .iter()
        .map(|disk| engine.platform.backing(&disk.target))
        .collect();

    let mut renewed = Renewed::default();
    for (volume, id) in volumes.iter().zip(&decision.ids) {
        engine.check_cancelled()?;
        if let Some(id) = id {
            renumber::renumber(&backing[volume.disk], volume, *id)?;
        }
    }
    change_files(
        (&volumes, &systems),
        &decision,
        host_name.as_ref(),
        &backing,
        &mut renewed.sentences,
    )?;
    for device in &devices {
        device
            .flush()
            .map_err(fault(format!("flushing {}", device.name())))?;
    }
    renewed
        .sentences
        .insert(0, ids_sentence(&volumes, &decision));
    renewed.sentences.extend(decision.kept.iter().cloned());
    renewed.sentences.extend(windows_sentence(&volumes));
    renewed.commits = commits(engine, manifest, plan, choices, &decision.tables)?;
    for table in &decision.tables {
        if let Table::New { partitions, .. } = table {
            let pairs = partitions.iter().map(|(_, old, new)| (*old, *new));
            renewed.partitions.extend(pairs);
        }
    }
    Ok(renewed)
}

fn change_files(
    (volumes, systems): (&[Volume], &[System]),
    decision: &Decision,
    host_name: Option<&HostName>,
    backing: &[PathBuf],
    sentences: &mut Vec<String>,
) -> Result<(), Fault> {
    let mut mounts = edits::Mounts::new(volumes, backing);
    for (number, (system, machine_id)) in systems.iter().zip(&decision.machine_ids).enumerate() {
        let resumes = decision.resumes.iter();
        let resumes = resumes.filter(|resume| resume.system == number);
        let wanted = edits::Wanted {
            references: &decision.references,
            machine_id: *machine_id,
            host_name,
            resumes: resumes
                .map(|resume| (resume.path.as_str(), resume.swap))
                .collect(),
        };
        sentences.extend(edits::edit(&mut mounts, system, &wanted)?);
    }
    mounts.close()?;
    for volume in volumes.iter().filter(|volume| volume.is_fat()) {
        let mut changed = Vec::new();
        fat_files::visit(volume, |mut file| {
            if file.is_random_seed() {
                let fresh = std::iter::repeat_with(|| Uuid::new_v4().into_bytes());
                let len = file.bytes.len();
                file.bytes = fresh.flatten().take(len).collect();
                return file.write(volume);
            }
            if !file.is_signed() && file.rewrite(&decision.references) > 0 {
                file.write(volume)?;
                changed.push(format!("/{}", file.path));
            }
            Ok(())
        })?;
        if !changed.is_empty() {
            let (place, files) = (&volume.place, changed.join(", "));
            sentences.push(format!(
                "Changed what refers to the ids, in {place}: {files}."
            ));
        }
    }
    Ok(())
}

/// What the systems are called.
fn host_name(
    manifest: &Manifest,
    choices: &Choices,
    machine: &MachineIdentity,
    systems: &[System],
) -> Option<HostName> {
    let image = || {
        let found = systems
            .iter()
            .find_map(|system| system.host_name.as_deref());
        found.or(manifest.system.as_ref()?.host_name.as_deref())
    };
    choices
        .host_name
        .clone()
        .or_else(|| name_by_address(image()?, machine.macs.first()?))
}

fn ids_sentence(volumes: &[Volume], decision: &Decision) -> String {
    let changed = volumes.iter().zip(&decision.ids);
    let mut named: Vec<String> = changed
        .filter_map(|(volume, id)| {
            Some(format!("{} in {} is {}", volume.kind, volume.place, (*id)?))
        })
        .collect();
    for table in &decision.tables {
        if let Table::New {
            disk, partitions, ..
        } = table
        {
            named.push(if partitions.is_empty() {
                "the partition table has another signature".to_owned()
            } else {
                format!("disk {disk} with {} new partition GUIDs", partitions.len())
            });
        }
    }
    if named.is_empty() {
        return "No id of a disk or a volume was changed.".to_owned();
    }
    format!("Gave the copy ids of its own: {}.", named.join("; "))
}

fn windows_sentence(volumes: &[Volume]) -> Option<String> {
    let windows = volumes.iter().any(|volume| volume.kind == Kind::Ntfs);
    windows.then(|| {
        "A Windows on these disks keeps its identity (name, security id): prepare its image with sysprep."
            .to_owned()
    })
}

/// The commits of the same plan for tables with new ids.
fn commits(
    engine: &Engine<'_>,
    manifest: &Manifest,
    plan: &RestorePlan,
    choices: &Choices,
    tables: &[Table],
) -> Result<Vec<Vec<TableWrite>>, Fault> {
    let misfit = |what: String| Fault::Internal(format!("new ids of a partition table: {what}"));
    let mut copy = manifest.clone();
    for (disk, table) in plan.disks.iter().zip(tables) {
        let Table::New {
            disk: guid,
            partitions,
            signature,
        } = table
        else {
            continue;
        };
        let image = copy.disks.get_mut(disk.source as usize);
        let image = image.ok_or_else(|| misfit("no such source disk".to_owned()))?;
        match &mut image.table {
            PartitionTable::Gpt(table) => {
                let ids: Vec<_> = partitions
                    .iter()
                    .map(|(number, _, new)| (*number, *new))
                    .collect();
                *table = table
                    .with_ids(*guid, &ids, *signature)
                    .map_err(|error| misfit(error.to_string()))?;
            }
            PartitionTable::Mbr(table) => *table = table.with_signature(*signature),
            PartitionTable::None => {}
        }
    }
    let planned = plan_restore(&copy, engine.inventory, choices).map_err(Fault::Refused)?;
    let places = |plan: &RestorePlan| -> Vec<_> {
        let disks = plan.disks.iter();
        disks
            .map(|disk| {
                let writes = disk.commit.iter();
                let writes: Vec<_> = writes
                    .map(|write| (write.what.clone(), write.offset, write.bytes.0.len()))
                    .collect();
                (disk.target.clone(), disk.copies.clone(), writes)
            })
            .collect()
    };
    if places(&planned) != places(plan) {
        return Err(misfit("they change the plan".to_owned()));
    }
    Ok(planned.disks.into_iter().map(|disk| disk.commit).collect())
}
