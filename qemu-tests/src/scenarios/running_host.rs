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
/// The volume's size, as the script makes it.
const VOLUME: u64 = 320 << 20;

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
    disk::partition(&lvm, "label: gpt\nstart=2048, type=lvm\n")?;

    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let drive = |image: &Path, serial: &str| DiskDevice {
        image: image.to_owned(),
        bus: DiskBus::Virtio,
        serial: serial.to_owned(),
    };
    let config = GuestConfig {
        name: "running-host".to_owned(),
        firmware: Firmware::fresh(FirmwareKind::Bios, stage.disks())?,
        memory_mib: 1024,
        cpus: 2,
        disks: vec![drive(&root, "HOST-ROOT"), drive(&lvm, "HOST-LVM")],
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
    ensure!(made.len() == 1, "restore points: {points:?}");
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
    let list = "cd \"$1/before\" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    let listed = shell(list, &[&folder]);
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
    Ok(())
}
