//! C9: a running Debian with real LVM makes a backup of a volume that is mounted and written to.
//!
//! The volume group is made in the machine, by its own kernel. What comes back is judged on this computer.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};

use super::Skipped;
use super::file_systems::{agent, restore_to, shell};
use super::site::Site;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::firmware::{Firmware, FirmwareKind};
use crate::lab::guest::{
    Attachment, DiskBus, DiskDevice, Guest, GuestConfig, Identity, NetworkCard,
};
use crate::lab::running_host::{self, RunningHost};

const SCRIPT: &str = include_str!("running_host.sh");
const LVM_DISK: u64 = 640 << 20;
const LUKS_DISK: u64 = 200 << 20;
/// Where the volume in LUKS begins on a restored disk: behind the table, and behind LVM's own first MiB; its size.
const INNER: (u64, u64) = (2 << 20, 100 << 20);
/// The volume's size, as the script makes it.
const VOLUME: u64 = 320 << 20;

/// The files from before the backup, as the script lists them.
const FILES: &str =
    "cd \"$1/before\" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";

/// Plays it.
pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Skipped {
            reason: "file systems are mounted to be compared, which needs root".to_owned(),
        }
        .into());
    }
    let agent = agent(stage)?;
    let host = RunningHost::get_or_build(&stage.settings.work)?;
    let place = |name: &str| stage.disks().join(name);
    let (root, lvm, script) = (place("root.raw"), place("lvm.raw"), place("script"));
    disk::copy(&host.root(), &root)?;
    std::fs::write(&script, SCRIPT)?;
    running_host::equip(&root, &script, &[(&agent, "/agent")])?;
    disk::create_empty(&lvm, LVM_DISK)?;
    let luks = place("luks.raw");
    disk::create_empty(&luks, LUKS_DISK)?;
    for image in [&lvm, &luks] {
        disk::partition(image, "label: gpt\nstart=2048, type=lvm\n")?;
    }

    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let drive = |image: &Path, serial: &str| DiskDevice {
        image: image.to_owned(),
        bus: DiskBus::Virtio,
        serial: serial.to_owned(),
        large_sectors: false,
    };
    let config = GuestConfig {
        name: "running-host".to_owned(),
        firmware: Firmware::fresh(FirmwareKind::Bios, stage.disks())?,
        memory_mib: 1024,
        cpus: 2,
        disks: vec![
            drive(&root, "HOST-ROOT"),
            drive(&lvm, "HOST-LVM"),
            drive(&luks, "HOST-LUKS"),
        ],
        network: Some(NetworkCard {
            model: "virtio-net-pci".to_owned(),
            mac: [0x52, 0x54, 0, 0x77, 3, 3],
            attachment: Attachment::SwitchPort(port),
        }),
        network_first: false,
        identity: Some(Identity {
            manufacturer: "Netboot Lab".to_owned(),
            product: "running host".to_owned(),
            serial: "LAB-0033".to_owned(),
            uuid: "6c616200-0000-4000-8000-000000000033".to_owned(),
        }),
        kernel: Some(host.kernel()),
        ends_at_reset: true,
        logs: stage.logs().to_owned(),
    };
    let mut guest = Guest::start(&config)?;
    guest.wait_for("lab: backup begins", Deadline::seconds(300))?;
    stage.milestone("the host runs, its volume is mounted and written to");
    guest.wait_for("lab: done", Deadline::seconds(600))?;
    guest.wait_until_off(Deadline::seconds(120))?;

    let said = |name: &str| running_host::read(&root, &format!("/lab/{name}"));
    let log = said("log")?;
    std::fs::write(stage.logs().join("agent.log"), &log)?;
    std::fs::write(stage.logs().join("seen"), said("seen")?)?;
    ensure!(said("code")?.trim() == "0", "the backup failed: {log}");
    ensure!(
        said("seen")?.contains("netboot-data"),
        "no snapshot was seen"
    );
    for name in ["after", "after-stop"] {
        let volumes = said(name)?;
        ensure!(
            volumes.split_whitespace().eq(["data"]),
            "{name} the backup there are the volumes {volumes}"
        );
    }
    ensure!(
        !said("dm")?.contains("netboot"),
        "a device is left: {}",
        said("dm")?
    );
    ensure!(
        said("in-the-middle")?.contains("netboot-data"),
        "the second backup was over before it was stopped"
    );
    stage.milestone("the snapshot was made, and taken away after the end and after a stop");

    let points = site.server.restore_points()?;
    let made: Vec<_> = points
        .iter()
        .filter(|point| point.status != "failed")
        .collect();
    ensure!(made.len() == 2, "restore points: {points:?}");
    let point = made.first().context("no restore point")?;
    ensure!(
        point.data_bytes < VOLUME,
        "{} of {VOLUME} bytes were saved: not by used blocks",
        point.data_bytes
    );
    let restored = place("restored.raw");
    File::create(&restored)?.set_len(VOLUME)?;
    let url = site.server.url();
    restore_to(
        stage,
        &agent,
        (&site.server, &url),
        point.id.as_str(),
        &restored,
    )?;
    shell("e2fsck -f -n \"$1\"", &[&restored]).context("the restored file system is not clean")?;
    let folder = place("mounted");
    std::fs::create_dir_all(&folder)?;
    shell("mount -o loop,ro \"$1\" \"$2\"", &[&restored, &folder])?;
    let listed = shell(FILES, &[&folder]);
    let busy = shell("tail -n 1 \"$1/busy/log\"", &[&folder]);
    shell("umount \"$1\"", &[&folder])?;
    ensure!(
        listed? == said("before")?,
        "files from before the snapshot differ"
    );
    let (at_snapshot, at_end) = (busy?, said("written")?);
    let number = |text: &str| text.trim().parse::<u64>();
    ensure!(
        number(&at_snapshot)? < number(&at_end)?,
        "nothing was written while the backup ran"
    );
    stage.milestone(&format!(
        "it comes back clean, as it was at the snapshot (write {} of {})",
        at_snapshot.trim(),
        at_end.trim()
    ));
    let point = made.last().context("no second restore point")?;
    in_luks(stage, &root, (&site, &agent), point.id.as_str())
}

/// The volume group in LUKS: opened by the agent, nothing left open, and plain on the restored disk.
fn in_luks(
    stage: &Stage<'_>,
    root: &Path,
    (site, agent): (&Site<'_>, &Path),
    point: &str,
) -> anyhow::Result<()> {
    let said = |name: &str| running_host::read(root, &format!("/lab/{name}"));
    let log = said("inner-log")?;
    ensure!(
        said("inner-code")?.trim() == "0",
        "the backup failed: {log}"
    );
    let (devices, loops) = (said("inner-dm")?, said("inner-loop")?);
    ensure!(
        !devices.contains("netboot") && !devices.contains("hidden") && loops.is_empty(),
        "something is left open: {devices} {loops}"
    );
    let shown = site.server.show(point)?;
    let with = "partition 1 of disk 0 was encrypted (LUKS2, aes-xts-plain64)";
    ensure!(shown.contains(with), "show does not say `{with}`: {shown}");
    let restored = stage.disks().join("restored-luks.raw");
    File::create(&restored)?.set_len(LUKS_DISK)?;
    let url = site.server.url();
    restore_to(stage, agent, (&site.server, &url), point, &restored)?;
    let (volume, folder) = (
        stage.disks().join("inner.raw"),
        stage.disks().join("mounted"),
    );
    let (skip, count) = (INNER.0 >> 20, INNER.1 >> 20);
    shell(
        &format!("dd if=\"$1\" of=\"$2\" bs=1M skip={skip} count={count} status=none"),
        &[&restored, &volume],
    )?;
    shell("e2fsck -f -n \"$1\"", &[&volume]).context("the volume in LUKS is not clean")?;
    shell("mount -o loop,ro \"$1\" \"$2\"", &[&volume, &folder])?;
    let listed = shell(FILES, &[&folder]);
    shell("umount \"$1\"", &[&folder])?;
    ensure!(
        listed? == said("inner")?,
        "files of the volume in LUKS differ"
    );
    stage.milestone("LVM in LUKS is captured plain with its key, and nothing stays open");
    Ok(())
}
