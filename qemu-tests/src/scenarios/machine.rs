//! The machines of the stories: the source, and the bare one that comes back.

use anyhow::Context;
use std::path::{Path, PathBuf};

use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::firmware::{Firmware, FirmwareKind};
use crate::lab::guest::{
    Attachment, DiskBus, DiskDevice, Guest, GuestConfig, Identity, NetworkCard,
};
use crate::lab::link::Port;
use crate::lab::source_machine::{RootKind, SourceMachine};

/// Size of the bare machine's disk, bytes: larger than the source's, and not by a round number.
pub(crate) const BARE_DISK_BYTES: u64 = (4 << 30) + (7 << 20);
/// The host name of the source's system.
const SOURCE_NAME: &str = "source-debian";
const PASSWORD: &str = "lab";

/// A machine that is switched on and off in a story.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Name in logs.
    pub(crate) name: String,
    /// Its first disk.
    pub(crate) disk: PathBuf,
    /// How that is attached.
    pub(super) bus: DiskBus,
    /// Whether that has sectors of 4096 bytes in place of 512.
    pub(super) large_sectors: bool,
    /// Disks besides the first.
    pub(crate) more_disks: Vec<DiskDevice>,
    /// QEMU's name of its network card.
    pub(crate) network_model: &'static str,
    /// Its Ethernet address.
    pub(super) mac: [u8; 6],
    /// Whether its firmware asks the network before its disks.
    pub(super) network_first: bool,
    firmware: Firmware,
    identity: Identity,
}

impl Machine {
    /// The source machine with a copy of its disk, as it was installed.
    pub(crate) fn source(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<Self> {
        Self::source_with_root(stage, kind, RootKind::Ext4)
    }

    /// The same of the source machine that has a root of this kind.
    pub(super) fn source_with_root(
        stage: &Stage<'_>,
        kind: FirmwareKind,
        root: RootKind,
    ) -> anyhow::Result<Self> {
        let built = SourceMachine::with_root(&stage.settings.work, root)?;
        let machine = Self::new(stage, "source", kind, [0x52, 0x54, 0, 0x77, 1, 1])?;
        disk::copy(&built.disk(), &machine.disk)?;
        let firmware = match kind {
            FirmwareKind::Bios => Firmware::Bios,
            FirmwareKind::Uefi => {
                Firmware::with_variables(&built.uefi_variables(), &stage.disks().join("source"))?
            }
        };
        Ok(Self {
            firmware,
            ..machine
        })
    }

    /// A machine fresh from the factory with an empty disk.
    pub(crate) fn bare(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<Self> {
        Self::bare_with_disk(stage, kind, BARE_DISK_BYTES)
    }

    /// The same with a disk of so many bytes.
    pub(crate) fn bare_with_disk(
        stage: &Stage<'_>,
        kind: FirmwareKind,
        bytes: u64,
    ) -> anyhow::Result<Self> {
        let machine = Self::new(stage, "bare", kind, [0x52, 0x54, 0, 0x77, 2, 2])?;
        disk::create_empty(&machine.disk, bytes)?;
        Ok(machine)
    }

    /// One of several machines with empty disks, which are to be copies of an image.
    pub(crate) fn copy(stage: &Stage<'_>, kind: FirmwareKind, number: u8) -> anyhow::Result<Self> {
        let (firmware, letter) = match kind {
            FirmwareKind::Bios => (1, 'b'),
            FirmwareKind::Uefi => (2, 'u'),
        };
        let mac = [0x52, 0x54, 0, 0x78, firmware, number];
        let machine = Self::new(stage, &format!("copy-{letter}{number}"), kind, mac)?;
        disk::create_empty(&machine.disk, BARE_DISK_BYTES)?;
        let identity = Identity {
            uuid: format!("6c616200-0000-4000-8000-{firmware:06}{number:06}"),
            serial: format!("LAB-{firmware}-{number}"),
            ..machine.identity
        };
        Ok(Self {
            identity,
            ..machine
        })
    }

    /// A machine with an empty disk whose firmware `make` makes in the folder that it is given.
    pub(crate) fn bare_with(
        stage: &Stage<'_>,
        make: impl FnOnce(&Path) -> anyhow::Result<Firmware>,
    ) -> anyhow::Result<Self> {
        let mut machine = Self::bare(stage, FirmwareKind::Bios)?;
        machine.firmware = make(&stage.disks().join(&machine.name))?;
        Ok(machine)
    }

    fn new(
        stage: &Stage<'_>,
        name: &str,
        kind: FirmwareKind,
        mac: [u8; 6],
    ) -> anyhow::Result<Self> {
        let folder = stage.disks().join(name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let number = mac[5];
        Ok(Self {
            name: name.to_owned(),
            disk: folder.join("disk.raw"),
            bus: DiskBus::Virtio,
            large_sectors: false,
            more_disks: Vec::new(),
            network_model: "virtio-net-pci",
            mac,
            network_first: true,
            firmware: Firmware::fresh(kind, &folder)?,
            identity: Identity {
                manufacturer: "Netboot Lab".to_owned(),
                product: format!("{name} machine"),
                serial: format!("LAB-{number:04}"),
                uuid: format!("6c616200-0000-4000-8000-{number:012}"),
            },
        })
    }

    /// Its Ethernet address as people write it.
    pub(crate) fn mac(&self) -> String {
        self.mac.map(|octet| format!("{octet:02x}")).join(":")
    }

    /// Switches it on, with its cable in `port` if there is one. `sitting` names the logs.
    pub(crate) fn switch_on(
        &self,
        stage: &Stage<'_>,
        port: Option<&Port>,
        sitting: &str,
    ) -> anyhow::Result<Guest> {
        let cable = port.map(|port| Attachment::SwitchPort(port.clone()));
        self.switch_on_with(stage, cable, sitting)
    }

    /// Switches it on with any kind of cable or none. `sitting` names the logs.
    pub(crate) fn switch_on_with(
        &self,
        stage: &Stage<'_>,
        cable: Option<Attachment>,
        sitting: &str,
    ) -> anyhow::Result<Guest> {
        let network = cable.map(|attachment| NetworkCard {
            model: self.network_model.to_owned(),
            mac: self.mac,
            attachment,
        });
        let first = DiskDevice {
            image: self.disk.clone(),
            bus: self.bus,
            serial: format!("{}-DISK", self.name.to_uppercase()),
            large_sectors: self.large_sectors,
        };
        let config = GuestConfig {
            name: format!("{}-{sitting}", self.name),
            firmware: self.firmware.clone(),
            memory_mib: 1024,
            cpus: 2,
            disks: std::iter::once(first)
                .chain(self.more_disks.iter().cloned())
                .collect(),
            network,
            network_first: self.network_first,
            identity: Some(self.identity.clone()),
            kernel: None,
            ends_at_reset: true,
            logs: stage.logs().to_owned(),
        };
        Ok(Guest::start(&config)?)
    }
}

/// Waits until the restored or original system asks who is there.
pub(crate) fn wait_for_login(stage: &Stage<'_>, guest: &mut Guest) -> anyhow::Result<()> {
    wait_for_login_as(stage, guest, SOURCE_NAME)
}

/// Waits until a system that is called `name` asks who is there.
pub(crate) fn wait_for_login_as(
    stage: &Stage<'_>,
    guest: &mut Guest,
    name: &str,
) -> anyhow::Result<()> {
    let waited = guest.wait_for(&format!("{name} login:"), Deadline::seconds(240));
    if waited.is_err() {
        // Some things are said on the screen only. A machine that has gone off has none.
        let picture = stage.logs().join("screen-without-login.ppm");
        if let Err(error) = guest.screenshot(&picture) {
            log::warn!("no picture of the screen: {error}");
        }
    }
    waited?;
    Ok(())
}

/// Logs in at the prompt and switches the system off in order, so that its file systems are clean.
pub(crate) fn log_in_and_shut_down(guest: Guest) -> anyhow::Result<()> {
    log_in_and_shut_down_as(guest, SOURCE_NAME)
}

/// The same for a system that is called `name`.
pub(crate) fn log_in_and_shut_down_as(guest: Guest, name: &str) -> anyhow::Result<()> {
    let console = guest.console();
    console.send_line("root")?;
    console.wait_for("Password:", Deadline::seconds(60))?;
    console.send_line(PASSWORD)?;
    console.wait_for(&format!("root@{name}"), Deadline::seconds(60))?;
    console.send_line("poweroff")?;
    guest.wait_until_off(Deadline::seconds(120))?;
    Ok(())
}
