//! What a machine is made of, as the agent found it: identity, firmware, disks, network cards.
//!
//! These are facts as reported; nothing here is trusted for a size or a name without a check.

use serde::{Deserialize, Serialize};

use crate::{ByteRange, SectorSize};

/// The kind of firmware that started the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareKind {
    /// PC BIOS, or UEFI's compatibility module: boots by code in the first sector.
    Bios,
    /// UEFI: boots a file from the EFI system partition.
    Uefi,
}

impl std::fmt::Display for FirmwareKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        })
    }
}

/// Who a machine is, from SMBIOS (DMTF DSP0134, structures 1 and 2) and its network cards.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineIdentity {
    /// System UUID in lower-case canonical text, unless all zeros or all ones.
    pub uuid: Option<String>,
    /// System serial number.
    pub serial: Option<String>,
    /// System manufacturer.
    pub manufacturer: Option<String>,
    /// System product name.
    pub product: Option<String>,
    /// Ethernet addresses, `52:54:00:12:34:56`, lower case, sorted.
    pub macs: Vec<String>,
}

/// A block device that could be a source or a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name without `/dev/`, for example `sda` or `nvme0n1`. Not stable over boots.
    pub name: String,
    /// Model text.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// World wide name or NVMe identifier (EUI-64, NGUID).
    pub wwn: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector size.
    pub logical_sector: SectorSize,
    /// Physical sector size in bytes.
    pub physical_sector: u32,
    /// Whether the medium can be taken out or sits on USB.
    pub removable: bool,
    /// Whether the kernel refuses to write to it.
    pub read_only: bool,
    /// The partitions on it, as the kernel sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<ExistingPartition>,
}

/// A partition that is on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistingPartition {
    /// Its number, as the kernel counts.
    pub number: u32,
    /// Where it is.
    pub range: ByteRange,
}

impl Disk {
    /// How a person recognises it: `sda "QEMU HARDDISK" serial TARGET01, 8.00 GiB`.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.name.clone();
        if let Some(model) = &self.model {
            text.push_str(&format!(" \"{model}\""));
        }
        if let Some(serial) = &self.serial {
            text.push_str(&format!(" serial {serial}"));
        }
        text.push_str(&format!(", {}", crate::units::HumanBytes(self.size)));
        text
    }
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Kernel name, for example `eth0`.
    pub name: String,
    /// Ethernet address, lower case with colons.
    pub mac: String,
    /// Driver module, when known.
    pub driver: Option<String>,
    /// Whether it has link.
    pub link: bool,
    /// Its IPv4 address, when it has one.
    pub address: Option<std::net::Ipv4Addr>,
}

/// Everything found in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Who it is.
    pub identity: MachineIdentity,
    /// What started it.
    pub firmware: FirmwareKind,
    /// Machine architecture as `uname -m` says it, for example `x86_64`.
    pub architecture: String,
    /// Its disks, in kernel order.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// Memory in bytes.
    pub memory: u64,
    /// Devices for which no driver was found, by name.
    pub without_driver: Vec<String>,
}
