//! Machines that come back with the other type of firmware (R5): a Linux that only knew BIOS starts by UEFI, one that
//! only knew UEFI starts by BIOS.
//!
//! The sources are made of the lab's source machine, which has the loaders of both: its root file system without the
//! other's files and packages, in a partition table that such a machine has. They are captured as they are and not
//! started before: the one with a PC partition table has no GRUB in its first track.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::compare;
use super::machine::{Machine, wait_for_login};
use super::restore;
use super::site::Site;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::Guest;
use crate::lab::source_machine::{DISK_BYTES, SourceMachine};
use crate::lab::tool;
use crate::lab::tree::{self, Tree};

const MIB: u64 = 1 << 20;
/// Index of the EFI system partition and of the root in the table of the lab's source machine.
const ESP: usize = 1;
const ROOT: usize = 2;
/// What only the other firmware's GRUB has, in the root file system.
const OF_UEFI: [&str; 2] = ["/boot/grub/x86_64-efi", "/usr/lib/grub/x86_64-efi"];
const OF_BIOS: [&str; 2] = ["/boot/grub/i386-pc", "/usr/lib/grub/i386-pc"];
/// What a conversion to UEFI changes in it.
const CHANGED: [&str; 2] = ["/etc/fstab", "/boot/efi"];

/// A PC partition table with a root in an extended partition, named by its `PARTUUID`.
pub(super) fn to_uefi(stage: &Stage<'_>) -> anyhow::Result<()> {
    let source = Machine::source(stage, FirmwareKind::Bios)?;
    let parts = Parts::of(stage)?;
    parts.remove(&OF_UEFI)?;
    parts.put_fstab(
        "PARTUUID=1ab0e5f0-05 / ext4 errors=remount-ro 0 1\nPARTUUID=1ab0e5f0-01 none swap sw 0 0\n",
    )?;
    let (swap_mib, root_mib) = (64, parts.root_mib);
    disk::create_empty(&source.disk, DISK_BYTES)?;
    let table = format!(
        "label: dos\nlabel-id: 0x1ab0e5f0\nstart=1M, size={swap_mib}M, type=82\nstart=65M, size={}M, type=5\n\
         start=66M, size={root_mib}M, type=83\n",
        root_mib + 1
    );
    disk::partition(&source.disk, &table)?;
    disk::write_sparse_at(&source.disk, 66 * MIB, &parts.root)?;
    let swap = stage.disks().join("swap");
    disk::create_empty(&swap, swap_mib * MIB)?;
    tool::run(Command::new("mkswap").arg(&swap))?;
    disk::write_sparse_at(&source.disk, MIB, &swap)?;

    let (bare, said) = bring_back(stage, &source, FirmwareKind::Uefi)?;
    ensure!(
        said.contains("Made an EFI system partition (partition 6"),
        "the job says: {said}"
    );
    let table = disk::table(&bare.disk)?;
    let kinds: Vec<_> = table
        .partitions
        .iter()
        .map(|one| one.start / 2048)
        .collect();
    ensure!(
        table.label == "gpt" && kinds.len() == 3 && kinds[..2] == [1, 66],
        "the restored disk has the table {table:?}"
    );
    check_files((&source.disk, 66 * MIB), (&bare.disk, 66 * MIB))?;
    check_esp(&bare.disk, compare::offset_of(&table, 2)?)?;
    stage.milestone("its disk is whole, and every other file as it was");
    let found = "found:vfat:/dev/vda5:/dev/vda1";
    starts(stage, bare, found)
}

/// A GPT without a partition for GRUB's second stage.
pub(super) fn to_bios(stage: &Stage<'_>) -> anyhow::Result<()> {
    let source = Machine::source(stage, FirmwareKind::Uefi)?;
    let parts = Parts::of(stage)?;
    parts.remove(&OF_BIOS)?;
    disk::create_empty(&source.disk, DISK_BYTES)?;
    let table = format!(
        "label: gpt\nfirst-lba: 34\nstart=1M, size=100M, type=uefi\nstart=101M, size={}M, type=linux\n",
        parts.root_mib
    );
    disk::partition(&source.disk, &table)?;
    disk::write_sparse_at(&source.disk, MIB, &parts.esp)?;
    disk::write_sparse_at(&source.disk, 101 * MIB, &parts.root)?;

    let (bare, said) = bring_back(stage, &source, FirmwareKind::Bios)?;
    ensure!(said.contains("Put GRUB for BIOS"), "the job says: {said}");
    let table = disk::table(&bare.disk)?;
    ensure!(
        table.partitions.len() == 3 && table.partitions.iter().any(|one| one.start == 34),
        "the restored disk has the table {table:?}"
    );
    check_files((&source.disk, 101 * MIB), (&bare.disk, 101 * MIB))?;
    stage.milestone("its disk is whole, and every file as it was");
    starts(stage, bare, "found:vfat:/dev/vda2:")
}

/// A machine with everything for both: its EFI system partition stays.
pub(super) fn with_esp(stage: &Stage<'_>) -> anyhow::Result<()> {
    let backup = restore::backup(stage, FirmwareKind::Bios)?;
    let bare = Machine::bare(stage, FirmwareKind::Uefi)?;
    let mut site = Site::open_with_data(stage, &backup.data_dir)?;
    let said = convert(&mut site, &bare, &backup.restore_point)?;
    ensure!(said.contains("Put shim and GRUB"), "the job says: {said}");
    compare::check_root(&backup.source_disk, &bare.disk)?;
    let table = disk::table(&bare.disk)?;
    check_esp(&bare.disk, compare::offset_of(&table, ESP)?)?;
    stage.milestone("its disk is whole, and every file of its root as it was");
    starts(stage, bare, "found:vfat:/dev/vda3:")
}

/// The file systems of the lab's source machine as files.
struct Parts {
    root: PathBuf,
    root_mib: u64,
    esp: PathBuf,
    folder: PathBuf,
}

impl Parts {
    fn of(stage: &Stage<'_>) -> anyhow::Result<Self> {
        let built = SourceMachine::get_or_build(&stage.settings.work)?.disk();
        let table = disk::table(&built)?;
        let cut = |index: usize, name: &str| {
            let part = table.partitions.get(index);
            let part = part.with_context(|| format!("no partition {}", index + 1))?;
            let to = stage.disks().join(name);
            // All partitions begin and end on whole MiB.
            let words = [
                format!("if={}", built.display()),
                format!("of={}", to.display()),
                "bs=1M".to_owned(),
                format!("skip={}", part.start / 2048),
                format!("count={}", part.size / 2048),
                "conv=sparse".to_owned(),
                "status=none".to_owned(),
            ];
            tool::run(Command::new("dd").args(words))?;
            anyhow::Ok((to, part.size / 2048))
        };
        let (root, root_mib) = cut(ROOT, "source-root")?;
        let (esp, _) = cut(ESP, "source-esp")?;
        Ok(Self {
            root,
            root_mib,
            esp,
            folder: stage.disks().to_owned(),
        })
    }

    /// Removes folders with everything in them from the root file system.
    fn remove(&self, folders: &[&str]) -> anyhow::Result<()> {
        let mut commands = String::new();
        for folder in folders {
            self.removing(folder, &mut commands)?;
        }
        self.edit(&commands)
    }

    fn removing(&self, folder: &str, commands: &mut String) -> anyhow::Result<()> {
        let listed = tool::run(
            Command::new("debugfs")
                .args(["-R", &format!("ls -p {folder}")])
                .arg(&self.root),
        )?;
        let mut names = 0;
        for line in listed.lines() {
            // `/inode/mode/user/group/name/size/`
            let fields: Vec<_> = line.split('/').collect();
            let (Some(mode), Some(name)) = (fields.get(2), fields.get(5)) else {
                continue;
            };
            if name.is_empty() || [".", ".."].contains(name) {
                continue;
            }
            names += 1;
            let path = format!("{folder}/{name}");
            if mode.starts_with("04") {
                self.removing(&path, commands)?;
            } else {
                commands.push_str(&format!("rm {path}\n"));
            }
        }
        ensure!(names > 0, "there is nothing in {folder}: {listed}");
        commands.push_str(&format!("rmdir {folder}\n"));
        Ok(())
    }

    fn put_fstab(&self, text: &str) -> anyhow::Result<()> {
        let file = self.folder.join("fstab");
        std::fs::write(&file, text)?;
        let file = file.display();
        self.edit(&format!(
            "rm /etc/fstab\nwrite {file} /etc/fstab\nsif /etc/fstab mode 0100644\nrmdir /boot/efi\n"
        ))
    }

    /// Runs commands of debugfs, and puts right what it does not count.
    fn edit(&self, commands: &str) -> anyhow::Result<()> {
        let file = self.folder.join("debugfs-commands");
        std::fs::write(&file, commands)?;
        tool::run(
            Command::new("debugfs")
                .arg("-w")
                .arg("-f")
                .arg(&file)
                .arg(&self.root),
        )?;
        let checked = Command::new("e2fsck").arg("-fy").arg(&self.root).output()?;
        ensure!(
            matches!(checked.status.code(), Some(0 | 1)),
            "e2fsck: {}",
            String::from_utf8_lossy(&checked.stdout)
        );
        Ok(())
    }
}

/// Captures the source and restores it to a bare machine of the other firmware; what the job said.
fn bring_back(
    stage: &Stage<'_>,
    source: &Machine,
    to: FirmwareKind,
) -> anyhow::Result<(Machine, String)> {
    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let point = site.capture(source, &port)?;
    stage.milestone("the source machine is captured");
    let bare = Machine::bare(stage, to)?;
    let said = convert(&mut site, &bare, point.id.as_str())?;
    Ok((bare, said))
}

/// Restores a machine with `--convert-firmware`; without it, it is refused.
fn convert(site: &mut Site<'_>, bare: &Machine, restore_point: &str) -> anyhow::Result<String> {
    let port = site.add_port()?;
    let stage = site.stage;
    stage.say("the bare machine of the other firmware boots from the network");
    let mut guest = bare.switch_on(stage, Some(&port), "restore")?;
    site.wait_for_beacon(bare, &mut guest)?;
    let refused = site.server.restore(&bare.mac(), restore_point)?;
    let refused = site.wait_until_over(&refused.id, &mut guest)?;
    let why = refused.error.unwrap_or_default();
    ensure!(
        why.contains("converted") && why.contains("no disk was touched"),
        "without --convert-firmware the job says: {why}"
    );
    stage.milestone("without --convert-firmware it is refused");
    let words = ["--convert-firmware"];
    let job = site
        .server
        .restore_with(&bare.mac(), restore_point, &words)?;
    let job = site.wait_for_success(&job.id, &mut guest)?;
    guest.wait_until_off(Deadline::seconds(60))?;
    stage.milestone("the bare machine is restored and converted");
    Ok(job.summary.join("\n"))
}

/// Compares the root file systems, each at a byte of its image, but for what a conversion changes.
fn check_files(source: (&Path, u64), restored: (&Path, u64)) -> anyhow::Result<()> {
    let complaints = disk::verify_table(restored.0)?;
    ensure!(complaints.is_empty(), "sfdisk says: {complaints}");
    let place = format!("{}?offset={}", restored.0.display(), restored.1);
    tool::run(Command::new("e2fsck").args(["-f", "-n"]).arg(place))?;
    let before = Tree::of_ext4(source.0, source.1)?;
    let mut differences = before.differences(&Tree::of_ext4(restored.0, restored.1)?);
    // A folder has another time when something is made in it.
    differences.retain(|difference| {
        let path = difference.path.trim_end_matches('/');
        !CHANGED.contains(&path) && !["/etc", "/boot"].contains(&path)
    });
    ensure!(
        differences.is_empty(),
        "the root file system is not the source's: {}",
        tree::describe(&differences)
    );
    Ok(())
}

/// Whether the EFI system partition has what firmware looks for.
fn check_esp(image: &Path, offset: u64) -> anyhow::Result<()> {
    let esp = Tree::of_fat(image, offset)?;
    for file in ["/EFI/BOOT/BOOTX64.EFI", "/EFI/BOOT/grubx64.efi"] {
        ensure!(esp.contains(file), "the EFI system partition has no {file}");
    }
    Ok(())
}

/// Starts the restored machine from its disk, and asks it what it is.
fn starts(stage: &Stage<'_>, mut bare: Machine, found: &str) -> anyhow::Result<()> {
    // As in the story of a restore: OVMF would try the network for minutes first.
    bare.network_first = false;
    let mut guest = bare.switch_on(stage, None, "restored")?;
    wait_for_login(stage, &mut guest)?;
    stage.milestone("the converted machine reached its login prompt");
    ask(&guest, found)?;
    guest.wait_until_off(Deadline::seconds(120))?;
    stage.milestone("its partitions are mounted by its own table, and it switched off");
    compare_clean(&bare.disk)
}

/// Logs in, has it say what it has mounted, and switches it off.
fn ask(guest: &Guest, found: &str) -> anyhow::Result<()> {
    let console = guest.console();
    console.send_line("root")?;
    console.wait_for("Password:", Deadline::seconds(60))?;
    console.send_line("lab")?;
    console.wait_for("root@", Deadline::seconds(60))?;
    let esp = "$(findmnt -no FSTYPE /boot/efi)";
    let (root, swap) = (
        "$(findmnt -no SOURCE /)",
        "$(swapon --noheadings --show=NAME)",
    );
    console.send_line(&format!(
        "systemctl start boot-efi.mount; echo found:{esp}:{root}:{swap}"
    ))?;
    console.wait_for(found, Deadline::seconds(90))?;
    console.send_line("poweroff")?;
    Ok(())
}

/// The table is as it was after the restore: nothing at the start had to repair it.
fn compare_clean(image: &Path) -> anyhow::Result<()> {
    let complaints = disk::verify_table(image)?;
    ensure!(complaints.is_empty(), "sfdisk says: {complaints}");
    Ok(())
}
