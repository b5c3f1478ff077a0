//! The main story: a machine is captured, another one with an empty disk comes back as it.

use super::compare;
use super::machine::{Machine, wait_for_login};
use super::site::{Site, copy_folder};
use super::source_boots::started_once;
use super::stage::{Backup, Source, Stage};
use crate::lab::firmware::FirmwareKind;
use crate::lab::source_machine::RootKind;

/// Half a GiB less than the source's disk, and not by a round number, bytes.
pub(super) const SMALL_DISK_BYTES: u64 = (5 << 29) + (3 << 20);

pub(super) fn bios(stage: &Stage<'_>) -> anyhow::Result<()> {
    demonstrate(stage, FirmwareKind::Bios)
}

pub(super) fn uefi(stage: &Stage<'_>) -> anyhow::Result<()> {
    demonstrate(stage, FirmwareKind::Uefi)
}

/// The whole story for one firmware.
pub(crate) fn demonstrate(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<()> {
    let source = Source::usual(kind);
    let backup = make_backup(stage, source)?;
    stage
        .settings
        .backups
        .borrow_mut()
        .insert(source, backup.clone());

    let bare = Machine::bare(stage, kind)?;
    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    site.restore(&bare, &port, &backup.restore_point)?;
    stage.milestone("the bare machine is restored");
    stage.say("the restored disk is compared with the source's");
    compare::check_restored(&backup.source_disk, &bare.disk)?;
    stage.milestone("every file is there with the same content, owner, mode and times");

    let mut bare = bare;
    // OVMF would try HTTP Boot over IPv6 for 64 s before it goes on to the disk; network first is the
    // story of `local-disk`.
    bare.network_first = kind == FirmwareKind::Bios;
    let mut guest = bare.switch_on(stage, Some(&port), "restored")?;
    wait_for_login(stage, &mut guest)?;
    stage.milestone(&format!(
        "the restored {kind} machine reached its login prompt"
    ));
    Ok(())
}

/// The machine comes back on a disk that is smaller than the source's partitions reach.
pub(super) fn smaller(stage: &Stage<'_>) -> anyhow::Result<()> {
    let kind = FirmwareKind::Uefi;
    let backup = backup(stage, kind)?;
    let mut bare = Machine::bare_with_disk(stage, kind, SMALL_DISK_BYTES)?;
    let mut site = Site::open_with_data(stage, &backup.data_dir)?;
    let port = site.add_port()?;
    site.restore(&bare, &port, &backup.restore_point)?;
    stage.milestone("the bare machine with a smaller disk is restored");
    compare::check_file_systems(&bare.disk)?;
    compare::check_root(&backup.source_disk, &bare.disk)?;
    stage.milestone("every file is there with the same content, owner, mode and times");
    bare.network_first = false;
    let mut guest = bare.switch_on(stage, Some(&port), "restored")?;
    wait_for_login(stage, &mut guest)?;
    stage.milestone("the machine with the smaller disk reached its login prompt");
    Ok(())
}

/// The machine comes back on a disk whose sectors have 4096 bytes.
pub(super) fn large_sectors(stage: &Stage<'_>) -> anyhow::Result<()> {
    let kind = FirmwareKind::Uefi;
    let backup = backup(stage, kind)?;
    let mut bare = Machine::bare(stage, kind)?;
    bare.large_sectors = true;
    let mut site = Site::open_with_data(stage, &backup.data_dir)?;
    let port = site.add_port()?;
    site.restore(&bare, &port, &backup.restore_point)?;
    stage.milestone("the bare machine with large sectors is restored");
    compare::check_root_in_place(&backup.source_disk, &bare.disk)?;
    stage.milestone("every file is there with the same content, owner, mode and times");
    bare.network_first = false;
    let mut guest = bare.switch_on(stage, Some(&port), "restored")?;
    wait_for_login(stage, &mut guest)?;
    stage.milestone("the machine with large sectors reached its login prompt");
    Ok(())
}

/// A backup of a used source machine, made over the network.
fn make_backup(stage: &Stage<'_>, of: Source) -> anyhow::Result<Backup> {
    stage.program("netboot")?;
    stage.boot_files()?;
    let mut source = match of.root {
        RootKind::Ext4 => started_once(stage, of.firmware)?,
        // What installed it has run on it.
        root => Machine::source_with_root(stage, of.firmware, root)?,
    };
    source.bus = of.bus;
    stage.milestone("the source machine has run and left its marks");
    // A server that has the other firmware's backup already gets to know only what is new.
    let other = {
        let backups = stage.settings.backups.borrow();
        let same_root = backups.iter().find(|(other, _)| other.root == of.root);
        same_root.map(|(_, backup)| backup.clone())
    };
    let mut site = match other {
        Some(other) => Site::open_with_data(stage, &other.data_dir)?,
        None => Site::open(stage)?,
    };
    let port = site.add_port()?;
    let point = site.capture(&source, &port)?;
    stage.milestone("the source machine is captured");
    site.server.stop()?;

    // Kept outside the stage: later scenarios start from it.
    let folder = stage.settings.work.join("run").join(match of.root {
        RootKind::Ext4 => format!("backup-{}", of.firmware),
        root => format!("backup-{root}-{}", of.firmware),
    });
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let data_dir = folder.join("server");
    copy_folder(site.server.data_dir(), &data_dir)?;
    let source_disk = folder.join("disk.raw");
    std::fs::rename(&source.disk, &source_disk)?;
    Ok(Backup {
        data_dir,
        source_disk,
        restore_point: point.id.to_string(),
    })
}

/// The backup that an earlier scenario of this run has made, or a new one.
pub(super) fn backup(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<Backup> {
    backup_of(stage, Source::usual(kind))
}

/// The same of a source machine that is not the usual one.
pub(super) fn backup_of(stage: &Stage<'_>, source: Source) -> anyhow::Result<Backup> {
    let known = stage.settings.backups.borrow().get(&source).cloned();
    if let Some(backup) = known {
        return Ok(backup);
    }
    let backup = make_backup(stage, source)?;
    stage
        .settings
        .backups
        .borrow_mut()
        .insert(source, backup.clone());
    // The next site of this stage copies the data to where this one had it.
    std::fs::remove_dir_all(stage.disks().join("server"))?;
    Ok(backup)
}
