//! What a machine that asks gets to boot: the decision, and the names by which it asks.
//!
//! Pure functions: the caller looks the machine up and sends the text.
//!
//! Not here: which loader a firmware gets (`dhcp::boot_table`), what counts as work for a machine
//! (whoever implements [`MachineDirectory`]), asking and answering (`boot_desk`).

pub(crate) mod grub_config;
pub(crate) mod ipxe_script;
pub(crate) mod tftp_name;

use protocol::{
    api::NextBoot,
    dhcp::{ArchitectureCode, MacAddress},
};
use uuid::Uuid;

use crate::dhcp::boot_table::{LoaderChoice, LoaderKind};

/// Path of the script on the HTTP server.
pub(crate) const SCRIPT_PATH: &str = "/boot/ipxe";
/// Path below which a machine finds its files by HTTP: `/boot/for/MAC/FILE`. The firmware tells what
/// it fetched by the end of the path, so the machine's name goes before it. By TFTP: `for/MAC/FILE`.
pub(crate) const LOADER_PATH: &str = "/boot/for";
/// Name of the kernel in the boot folder.
pub(crate) const KERNEL: &str = "vmlinuz";
/// Name of the initial file system in the boot folder.
pub(crate) const INITRAMFS: &str = "initramfs";
/// Folder of the boot folder with both for 64-bit Arm.
pub(crate) const ARM64_FOLDER: &str = "arm64";

/// The screen last: the kernel's own messages go to both, `/dev/console` is the serial line.
const CONSOLES: &str = "console=tty0 console=ttyS0,115200";
/// The same on 64-bit Arm, whose first serial port is a PL011.
const CONSOLES_ARM64: &str = "console=tty0 console=ttyS0,115200 console=ttyAMA0,115200";

/// What the server knows of a machine when it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MachineState {
    /// Never seen, or never more than its card.
    Unknown,
    /// Known, and nothing is to be done with it.
    Idle,
    /// Known, and a job waits or runs.
    HasWork,
}

/// What the server knows and an operator said of a machine when it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AtBoot {
    /// What is known.
    pub(crate) state: MachineState,
    /// What an operator wants it to boot next.
    pub(crate) next: Option<NextBoot>,
}

/// Where the state of machines is known. May wait for the disk.
pub(crate) trait MachineDirectory: Send + Sync {
    /// What is known of the machine with this card or this SMBIOS UUID.
    fn at_boot(&self, mac: MacAddress, uuid: Option<Uuid>) -> AtBoot;

    /// The machine was told to boot this.
    fn told(&self, mac: MacAddress, uuid: Option<Uuid>, decision: BootDecision);
}

/// What a machine that is not known gets (`boot.unknown_machines`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnknownMachines {
    /// The recovery environment, so that it becomes known.
    #[default]
    Recovery,
    /// Its own disk.
    LocalDisk,
    /// The menu, with the recovery environment marked.
    Menu,
}

/// What operators set for all machines (`[boot]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootPolicy {
    /// What machines that nobody knows boot.
    pub(crate) unknown: UnknownMachines,
    /// How long the menu waits before it starts what is marked; 0 for no menu.
    pub(crate) menu_seconds: u16,
    /// Which loaders come first.
    pub(crate) loaders: LoaderChoice,
}

/// What a menu offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The recovery environment: full system restore.
    Recovery,
    /// The machine's own disk.
    LocalDisk,
}

impl Entry {
    /// All, in the menu's order.
    pub(crate) const ALL: [Self; 2] = [Self::Recovery, Self::LocalDisk];

    /// Its label in scripts.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Recovery => "recovery",
            Self::LocalDisk => "local-disk",
        }
    }

    /// What the menu says.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Recovery => "Full system restore (recovery environment)",
            Self::LocalDisk => "Start from the local disk",
        }
    }
}

/// What a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BootDecision {
    /// The recovery environment.
    Recovery,
    /// Its own disk, so that network-first boot order is safe to leave on.
    LocalDisk,
    /// What a person at it chooses, else this.
    Menu(Entry),
}

impl BootDecision {
    /// What is told to a loader that can show no menu: a unified kernel image is the recovery
    /// environment itself.
    pub(crate) fn without_menu(self) -> Self {
        match self {
            Self::Menu(Entry::Recovery) => Self::Recovery,
            Self::Menu(Entry::LocalDisk) => Self::LocalDisk,
            decided => decided,
        }
    }
}

/// Decides. Work comes first, whatever else was said: a job that an operator ordered must not wait
/// for ever behind a wish of last year.
pub(crate) fn decide(machine: AtBoot, policy: &BootPolicy) -> BootDecision {
    let marked = match (machine.state, policy.unknown) {
        (MachineState::HasWork, _) => return BootDecision::Recovery,
        (MachineState::Idle, _) | (MachineState::Unknown, UnknownMachines::LocalDisk) => {
            Entry::LocalDisk
        }
        (MachineState::Unknown, UnknownMachines::Recovery | UnknownMachines::Menu) => {
            Entry::Recovery
        }
    };
    let asks = machine.state == MachineState::Unknown && policy.unknown == UnknownMachines::Menu;
    let decision = match machine.next {
        Some(NextBoot::Recovery) => BootDecision::Recovery,
        Some(NextBoot::LocalDisk) => BootDecision::LocalDisk,
        Some(NextBoot::Menu) => BootDecision::Menu(marked),
        None if asks => BootDecision::Menu(marked),
        None => BootDecision::Menu(marked).without_menu(),
    };
    if policy.menu_seconds == 0 {
        decision.without_menu()
    } else {
        decision
    }
}

/// Whether a machine for which this was decided is sent a loader of this kind. Firmware that gets
/// none goes on to its next boot entry at once; a BIOS gets its loader all the same, which starts
/// the disk even where the BIOS would not.
pub(crate) fn is_sent(decision: BootDecision, loader: &str, kind: LoaderKind) -> bool {
    let decision = match kind {
        LoaderKind::Unified => decision.without_menu(),
        LoaderKind::Ipxe | LoaderKind::Shim => decision,
    };
    decision != BootDecision::LocalDisk || loader == "undionly.kpxe"
}

/// What an iPXE runs on, in its own words (`${platform}`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub(crate) enum Platform {
    /// A BIOS.
    #[serde(rename = "pcbios")]
    PcBios,
    /// UEFI.
    #[serde(rename = "efi")]
    Efi,
}

impl Platform {
    /// The platform of an architecture: everything but 0 is UEFI.
    pub(crate) fn of(architecture: ArchitectureCode) -> Self {
        if architecture == ArchitectureCode::BIOS {
            Self::PcBios
        } else {
            Self::Efi
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::PcBios => "pcbios",
            Self::Efi => "efi",
        }
    }
}

/// The script's URL for one machine, at most 127 bytes for any IPv4 `base`, so that it fits the
/// `file` field of DHCP. The server knows the machine already, which saves iPXE a chained fetch.
pub(crate) fn script_url(
    base: &str,
    mac: MacAddress,
    uuid: Option<[u8; 16]>,
    platform: Platform,
) -> String {
    let mut url = format!("{base}{SCRIPT_PATH}?mac={mac}&platform={}", platform.name());
    if let Some(uuid) = uuid {
        url.push_str("&uuid=");
        url.push_str(&Uuid::from_bytes(uuid).hyphenated().to_string());
    }
    url
}

/// The URL of the loader for a machine that boots by UEFI HTTP Boot.
pub(crate) fn loader_url(base: &str, mac: MacAddress, file: &str) -> String {
    let mac = with_hyphens(mac);
    format!("{base}{LOADER_PATH}/{mac}/{file}")
}

/// A card's address as a part of a path.
pub(crate) fn with_hyphens(mac: MacAddress) -> String {
    mac.to_string().replace(':', "-")
}

#[cfg(test)]
mod tests;
