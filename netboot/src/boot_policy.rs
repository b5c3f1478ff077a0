//! What a machine that asks gets to boot, and the iPXE script that makes it so.
//!
//! Pure functions: the caller looks the machine up and sends the text.
//!
//! Not here: which loader a firmware gets (`dhcp::boot_table`), the routes (`http::boot_files`), what
//! counts as work for a machine (whoever implements [`MachineDirectory`]).

use std::fmt::Write;

use protocol::{
    boot_args::BootArgs,
    dhcp::{ArchitectureCode, MacAddress},
};
use uuid::Uuid;

/// Path of the script on the HTTP server.
pub(crate) const SCRIPT_PATH: &str = "/boot/ipxe";
/// Path below which UEFI HTTP Boot finds its loader: `/boot/for/MAC/FILE`. The firmware tells what it
/// fetched by the end of the path, so the machine's name goes before it.
pub(crate) const LOADER_PATH: &str = "/boot/for";
/// Name of the kernel in the boot folder.
pub(crate) const KERNEL: &str = "vmlinuz";
/// Name of the initial file system in the boot folder.
pub(crate) const INITRAMFS: &str = "initramfs";

/// The screen last: the kernel's own messages go to both, `/dev/console` is the serial line.
const CONSOLES: &str = "console=tty0 console=ttyS0,115200";

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

/// Where the state of machines is known.
pub(crate) trait MachineDirectory: Send + Sync {
    /// What is known of the machine with this card or this SMBIOS UUID.
    fn boot_state(&self, mac: MacAddress, uuid: Option<Uuid>) -> MachineState;
}

/// What a machine that is not known gets (`boot.unknown_machines`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnknownMachines {
    /// The recovery environment, so that it becomes known.
    Recovery,
    /// Its own disk.
    LocalDisk,
}

/// What a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BootDecision {
    /// The recovery environment.
    Recovery,
    /// Its own disk, so that network-first boot order is safe to leave on.
    LocalDisk,
}

/// Decides.
pub(crate) fn decide(state: MachineState, unknown: UnknownMachines) -> BootDecision {
    match (state, unknown) {
        (MachineState::HasWork, _) | (MachineState::Unknown, UnknownMachines::Recovery) => {
            BootDecision::Recovery
        }
        (MachineState::Idle, _) | (MachineState::Unknown, UnknownMachines::LocalDisk) => {
            BootDecision::LocalDisk
        }
    }
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
    let mac = mac.to_string().replace(':', "-");
    format!("{base}{LOADER_PATH}/{mac}/{file}")
}

/// The script for an iPXE that came without saying who it is (its URL was typed or is burnt in).
pub(crate) fn chain_script(base: &str) -> String {
    format!(
        "#!ipxe\nchain --replace {base}{SCRIPT_PATH}?mac=${{netX/mac:hexhyp}}&platform=${{platform}}&uuid=${{uuid}}\n"
    )
}

/// The script for a machine. `base` is the server's URL as this machine reaches it, without a
/// slash at the end.
pub(crate) fn script(
    decision: BootDecision,
    base: &str,
    mac: MacAddress,
    platform: Platform,
) -> String {
    let mut text = String::from("#!ipxe\n");
    match (decision, platform) {
        (BootDecision::Recovery, _) => {
            let args = BootArgs {
                server: Some(base.to_owned()),
                mac: Some(mac.to_string()),
            };
            // The query tells the flight recorder whose fetch it is, even behind address
            // translation. `initrd=` is for kernels that find it by name (EFI stub before 5.8).
            let _ = write!(
                text,
                "echo netboot: starting the recovery environment from {base}\n\
                 :again\n\
                 imgfree\n\
                 kernel --name {KERNEL} {base}/boot/{KERNEL}?mac={mac} initrd={INITRAMFS} {args} {CONSOLES} || goto failed\n\
                 initrd --name {INITRAMFS} {base}/boot/{INITRAMFS}?mac={mac} || goto failed\n\
                 boot || goto failed\n\
                 :failed\n\
                 echo netboot: the boot files could not be fetched or started; again in 5 seconds\n\
                 sleep 5\n\
                 goto again\n"
            );
        }
        (BootDecision::LocalDisk, Platform::PcBios) => text.push_str(
            "echo netboot: nothing to do for this machine; starting its local disk\n\
             sanboot --no-describe --drive 0x80 || exit 1\n",
        ),
        // UEFI goes on to the next boot entry only after a failure: after a success it stops in
        // its menu (UEFI specification, "Boot Manager", Boot Option Recovery).
        (BootDecision::LocalDisk, Platform::Efi) => text.push_str(
            "echo netboot: nothing to do for this machine; going on to its local disk\n\
             exit 1\n",
        ),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://10.77.0.1:8080";

    fn mac() -> MacAddress {
        MacAddress::new([0x52, 0x54, 0, 0, 0, 1])
    }

    #[test]
    fn a_machine_without_work_goes_on_to_its_disk_whatever_the_policy() {
        for unknown in [UnknownMachines::Recovery, UnknownMachines::LocalDisk] {
            assert_eq!(decide(MachineState::Idle, unknown), BootDecision::LocalDisk);
            assert_eq!(
                decide(MachineState::HasWork, unknown),
                BootDecision::Recovery
            );
        }
    }

    #[test]
    fn unknown_machines_follow_the_policy() {
        assert_eq!(
            decide(MachineState::Unknown, UnknownMachines::Recovery),
            BootDecision::Recovery
        );
        assert_eq!(
            decide(MachineState::Unknown, UnknownMachines::LocalDisk),
            BootDecision::LocalDisk
        );
    }

    #[test]
    fn the_longest_script_url_fits_the_file_field() {
        let url = script_url(
            "http://255.255.255.255:65535",
            mac(),
            Some([7; 16]),
            Platform::PcBios,
        );
        assert!(url.len() < 128, "{} bytes", url.len());
    }

    #[test]
    fn the_recovery_script_hands_over_server_and_card() {
        let text = script(BootDecision::Recovery, BASE, mac(), Platform::Efi);
        assert!(text.starts_with("#!ipxe\n"));
        assert!(
            text.contains("netboot.server=http://10.77.0.1:8080 netboot.mac=52:54:00:00:00:01 ")
        );
        assert!(text.contains("initrd --name initramfs http://10.77.0.1:8080/boot/initramfs"));
    }

    #[test]
    fn the_local_disk_is_started_as_the_platform_can() {
        let bios = script(BootDecision::LocalDisk, BASE, mac(), Platform::PcBios);
        assert!(bios.contains("sanboot --no-describe --drive 0x80"));
        let efi = script(BootDecision::LocalDisk, BASE, mac(), Platform::Efi);
        assert!(efi.ends_with("exit 1\n") && !efi.contains("sanboot"));
    }
}
