//! The manifest: everything needed to rebuild a machine, but for the bytes of its volumes.
//!
//! A manifest is JSON; the content of each region is a [`crate::chunk::ChunkList`] of its own, named
//! by its digest. Format version 1 is described in `docs/formats/manifest.md`.
//!
//! Invariant: [`Manifest::from_json`] returns only manifests that [`Manifest::check`] accepts:
//! regions are in order, do not overlap, are aligned to sectors and stay within their disk.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::gpt::GptTable;
use crate::hardware::{FirmwareKind, Inventory, MachineIdentity};
use crate::mbr::MbrTable;
use crate::{ByteRange, Digest, SectorSize};

mod logical;
mod purpose;

pub use logical::LogicalVolume;
pub use purpose::{ImageLabel, ImageName, ImageNameError, Purpose, RestorePointKind};

/// The version of the manifest format of a restore point without logical volumes.
pub const FORMAT: u32 = 1;
/// The version of one with logical volumes: a program that does not know them would restore the regions
/// around them and take that for the whole, so it has to refuse it.
pub const FORMAT_WITH_VOLUMES: u32 = 2;

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the JSON of a manifest.
    #[error("not a manifest")]
    Json(#[source] serde_json::Error),
    /// A version of the format that this program does not know.
    #[error(
        "manifest of format version {found} (this program reads versions {FORMAT} to {FORMAT_WITH_VOLUMES})"
    )]
    Format {
        /// The version found.
        found: u32,
    },
    /// A disk that breaks the invariant.
    #[error("disk {disk}: {reason}")]
    Disk {
        /// The disk's number in the manifest.
        disk: u32,
        /// What is wrong.
        reason: String,
    },
    /// A logical volume that breaks the invariant.
    #[error("logical volume `{volume}` {reason}")]
    LogicalVolume {
        /// Group and name.
        volume: String,
        /// What is wrong.
        reason: String,
    },
}

/// Text that can not name a restore point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a restore point id (expected 1 to 64 letters, digits or dashes)")]
pub struct RestorePointIdError {
    /// The text, shortened to 80 characters.
    pub found: String,
}

/// The name of a restore point; safe as a file name by construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RestorePointId(String);

impl RestorePointId {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RestorePointId {
    type Error = RestorePointIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if fits {
            Ok(Self(text))
        } else {
            Err(RestorePointIdError {
                found: text.chars().take(80).collect(),
            })
        }
    }
}

impl From<RestorePointId> for String {
    fn from(id: RestorePointId) -> Self {
        id.0
    }
}

impl fmt::Display for RestorePointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes kept to the letter, hexadecimal in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Blob(pub Vec<u8>);

impl TryFrom<String> for Blob {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return Err(format!(
                "{} hexadecimal digits (expected an even number)",
                digits.len()
            ));
        }
        let value = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
                .ok_or_else(|| format!("`{}` is no hexadecimal digit", char::from(digit)))
        };
        let bytes: Result<_, String> = digits
            .chunks_exact(2)
            .map(|pair| Ok(value(pair[0])? << 4 | value(pair[1])?))
            .collect();
        bytes.map(Self)
    }
}

impl From<Blob> for String {
    fn from(blob: Blob) -> Self {
        use fmt::Write;
        blob.0
            .iter()
            .fold(Self::with_capacity(blob.0.len() * 2), |mut text, byte| {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

/// One firmware boot entry: the UEFI variable `Boot####` (UEFI 2.10 §3.1.3, `EFI_LOAD_OPTION`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootEntry {
    /// The number in the variable's name.
    pub number: u16,
    /// The whole load option as the firmware keeps it.
    pub load_option: Blob,
}

/// The firmware of the captured machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// What started the machine.
    pub kind: FirmwareKind,
    /// UEFI boot entries; empty for BIOS.
    pub boot_entries: Vec<BootEntry>,
    /// UEFI `BootOrder`; empty for BIOS.
    pub boot_order: Vec<u16>,
}

/// The operating system found on the captured disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatingSystem {
    /// For example `Debian GNU/Linux`.
    pub name: String,
    /// For example `12`.
    pub version: Option<String>,
    /// The machine's own name for itself.
    pub host_name: Option<String>,
}

/// What keeps a disk's partitions apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PartitionTable {
    /// GUID partition table (UEFI 2.10 §5.3), with its protective MBR.
    Gpt(GptTable),
    /// PC partition table in the first sector.
    Mbr(MbrTable),
    /// None: the disk is one volume, or unknown data.
    None,
}

/// The file systems that are known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the file systems' own")]
pub enum FileSystemKind {
    Ext2,
    Ext3,
    Ext4,
    Fat12,
    Fat16,
    Fat32,
    Exfat,
    Ntfs,
    Xfs,
    Btrfs,
    Swap,
    Luks,
    Bitlocker,
    Lvm,
}

impl fmt::Display for FileSystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Fat12 => "FAT12",
            Self::Fat16 => "FAT16",
            Self::Fat32 => "FAT32",
            Self::Exfat => "exFAT",
            Self::Ntfs => "NTFS",
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::Swap => "swap",
            Self::Luks => "LUKS",
            Self::Bitlocker => "BitLocker",
            Self::Lvm => "LVM",
        })
    }
}

/// A file system as it was found in a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Which file system.
    pub file_system: FileSystemKind,
    /// Its label, when it has one.
    pub label: Option<String>,
    /// Its UUID or serial, as `blkid` shows it.
    pub uuid: Option<String>,
    /// Block or cluster size in bytes.
    pub block_size: u32,
    /// The size it says it has, in bytes; at most the region's.
    pub size: u64,
    /// Bytes in use, when the file system says.
    pub used: Option<u64>,
    /// Size of the sectors that it counts in, when it has such: a disk may not have larger ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u32>,
}

/// Which bytes of a region were saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Coverage {
    /// The blocks that the file system has in use.
    UsedBlocks,
    /// Every byte, because of `reason`.
    Whole {
        /// Why not by used blocks.
        reason: String,
    },
    /// None, because of `reason`.
    LeftOut {
        /// Why nothing was saved.
        reason: String,
    },
}

/// What a region is on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RegionKind {
    /// The partition with this number in the table.
    Partition {
        /// Counted from 1, as the kernel does.
        number: u32,
    },
    /// Bytes that belong to no partition.
    Gap,
    /// The whole disk, when it has no partition table.
    WholeDisk,
}

/// Names the chunk list of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkListRef {
    /// Digest of the encoded list.
    pub digest: Digest,
    /// How many entries it has.
    pub chunks: u64,
    /// Bytes of data in it.
    pub data_bytes: u64,
    /// Bytes of zero ranges in it.
    pub zero_bytes: u64,
}

impl ChunkListRef {
    /// Names no list: stands where one will be named when it is written.
    #[must_use]
    pub fn none() -> Self {
        Self {
            digest: Digest::of(&[]),
            chunks: 0,
            data_bytes: 0,
            zero_bytes: 0,
        }
    }
}

/// A contiguous piece of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// What it is.
    pub kind: RegionKind,
    /// Where it was on the source disk.
    pub range: ByteRange,
    /// The file system in it, when known.
    pub volume: Option<Volume>,
    /// Which of its bytes were saved.
    pub coverage: Coverage,
    /// What it was encrypted with, when it was opened with its key and is kept plain: all else of the region is
    /// of the plain volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_encrypted: Option<String>,
    /// Its content.
    pub content: ChunkListRef,
}

impl Region {
    /// Whether it is the partition of this number.
    #[must_use]
    pub fn is_partition(&self, number: u32) -> bool {
        self.kind == RegionKind::Partition { number }
    }

    /// What it is called among the regions of disk `number`, in the middle of a sentence.
    #[must_use]
    pub fn place(&self, number: u32) -> String {
        match self.kind {
            RegionKind::Partition { number: partition } => {
                format!("partition {partition} of disk {number}")
            }
            RegionKind::WholeDisk => format!("disk {number}"),
            RegionKind::Gap => format!("the gap at {} of disk {number}", self.range),
        }
    }
}

/// One captured disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// Its number in the manifest, from 0.
    pub number: u32,
    /// Model of the source.
    pub model: Option<String>,
    /// Serial number of the source.
    pub serial: Option<String>,
    /// World wide name of the source.
    pub wwn: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector size.
    pub logical_sector: SectorSize,
    /// Physical sector size in bytes.
    pub physical_sector: u32,
    /// Its partition table, to the letter.
    pub table: PartitionTable,
    /// Its regions in order of offset.
    pub regions: Vec<Region>,
}

/// A restore point's description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format, see [`Manifest::format_for`].
    pub format: u32,
    /// The restore point; the server gives it.
    pub id: RestorePointId,
    /// What it is for.
    #[serde(default)]
    pub kind: RestorePointKind,
    /// What it is called, if it is a factory image; absent in others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageLabel>,
    /// When the capture began, seconds since 1970-01-01 UTC.
    pub captured_at: u64,
    /// Version of the agent that captured.
    pub agent_version: String,
    /// The machine.
    pub machine: MachineIdentity,
    /// Its architecture as `uname -m` says it.
    pub architecture: String,
    /// Everything that was found in it, for a comparison with the machine that it is restored to.
    #[serde(default)]
    pub hardware: Option<Inventory>,
    /// Its firmware.
    pub firmware: Firmware,
    /// The operating system found, if any.
    pub system: Option<OperatingSystem>,
    /// Its disks.
    pub disks: Vec<DiskImage>,
    /// Volumes that lie within regions of the disks; none before they were told apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logical_volumes: Vec<LogicalVolume>,
    /// What a person should know about this restore point; empty means `successful`.
    pub warnings: Vec<String>,
}

impl Manifest {
    /// The version of the format for a manifest with these logical volumes.
    #[must_use]
    pub const fn format_for(logical_volumes: &[LogicalVolume]) -> u32 {
        if logical_volumes.is_empty() {
            FORMAT
        } else {
            FORMAT_WITH_VOLUMES
        }
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] for what is wrong with it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        // The version first: a later format need not have our fields.
        let version: Version = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        // Version 1 with logical volumes was written before there was a version 2: it is read as well.
        if !(FORMAT..=FORMAT_WITH_VOLUMES).contains(&version.format) {
            return Err(ManifestError::Format {
                found: version.format,
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks the invariant of this module.
    ///
    /// # Errors
    /// [`ManifestError::Disk`] for the first disk that breaks it.
    pub fn check(&self) -> Result<(), ManifestError> {
        for (index, disk) in self.disks.iter().enumerate() {
            let refuse = |reason: String| ManifestError::Disk {
                disk: disk.number,
                reason,
            };
            if disk.number as usize != index {
                return Err(refuse(format!(
                    "is numbered {} (expected {index})",
                    disk.number
                )));
            }
            let sector = disk.logical_sector.bytes();
            if disk.size == 0 || !disk.size.is_multiple_of(sector) {
                return Err(refuse(format!(
                    "has {} bytes, no multiple of {sector}",
                    disk.size
                )));
            }
            let mut end = 0;
            for region in &disk.regions {
                let range = region.range;
                if range.start() < end {
                    return Err(refuse(format!(
                        "region at {range} overlaps the one before it"
                    )));
                }
                if range.end() > disk.size {
                    return Err(refuse(format!("region at {range} ends past {}", disk.size)));
                }
                if range.is_empty()
                    || !range.start().is_multiple_of(sector)
                    || !range.len().is_multiple_of(sector)
                {
                    return Err(refuse(format!(
                        "region at {range} is no whole number of sectors"
                    )));
                }
                let saved = region
                    .content
                    .data_bytes
                    .checked_add(region.content.zero_bytes);
                if saved.is_none_or(|saved| saved > range.len()) {
                    return Err(refuse(format!(
                        "region at {range} has more content than bytes"
                    )));
                }
                if region
                    .volume
                    .as_ref()
                    .is_some_and(|volume| volume.size > range.len())
                {
                    return Err(refuse(format!(
                        "volume in {range} is larger than its region"
                    )));
                }
                end = range.end();
            }
        }
        logical::check(&self.logical_volumes, &self.disks)
    }

    /// Bytes of data in all disks, before deduplication and compression.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.contents()
            .map(|(content, _)| content.data_bytes)
            .fold(0, u64::saturating_add)
    }

    /// For each region that was encrypted and is kept plain, a sentence for whoever restores it.
    #[must_use]
    pub fn encrypt_again(&self) -> Vec<String> {
        let regions = self
            .disks
            .iter()
            .flat_map(|disk| disk.regions.iter().map(|region| (disk.number, region)));
        regions
            .filter_map(|(number, region)| {
                let with = region.was_encrypted.as_ref()?;
                let place = region.place(number);
                let mut text = format!(
                    "Encryption must be switched on again: {place} was encrypted ({with}) and is \
                     restored plain."
                );
                if with.starts_with("LUKS") {
                    text.push_str(
                        " A Linux that starts from it still looks for the encrypted volume: take it \
                         out of /etc/crypttab, and name the plain one in /etc/fstab and for the \
                         kernel.",
                    );
                }
                Some(text)
            })
            .collect()
    }

    /// All regions of all disks.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.disks.iter().flat_map(|disk| &disk.regions)
    }

    /// The content of all regions and logical volumes, each with the size of what it is of.
    pub fn contents(&self) -> impl Iterator<Item = (&ChunkListRef, u64)> {
        let regions = self
            .regions()
            .map(|region| (&region.content, region.range.len()));
        // A size that does not fit was refused by `check`.
        let volumes = self.logical_volumes.iter().map(|volume| {
            let sizes = volume.segments.iter().filter_map(crate::lvm::Segment::size);
            (&volume.content, sizes.fold(0, u64::saturating_add))
        });
        regions.chain(volumes)
    }
}
