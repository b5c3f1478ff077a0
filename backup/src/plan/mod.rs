//! Plans: what a restore or a capture is going to do, computed without touching a disk.
//!
//! Invariant: a plan is a value. It can be printed, serialised and compared; every refusal is made
//! here, before the first write; planned ranges never overlap and never leave the target.

use serde::{Deserialize, Serialize};

use crate::hardware::{Disk, FirmwareKind};
use crate::identity::{HostName, Identity};
use crate::manifest::{Blob, FileSystemKind, RestorePointId};
use crate::{ByteRange, SectorSize};

mod assign;
pub mod capture;
mod check;
mod firmware;
pub mod kept;
pub mod mapping;
pub mod members;
mod picture;
mod placement;
pub mod reads;
pub mod restore;
mod sectors;
mod shrink;
pub mod volumes;

/// What a person or a policy decided about a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choices {
    /// Which target disk each source disk goes to; a source disk that is not named is placed by
    /// the planner, if there is exactly one way.
    pub disks: Vec<DiskChoice>,
    /// Who gets the room that a larger disk has more than the source.
    pub extra_space: ExtraSpace,
    /// What becomes of a backup of the other type of firmware.
    pub firmware: FirmwareChoice,
    /// Volumes that go to partitions which are there, and nothing else does; or volumes that are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<mapping::VolumeChoice>,
    /// Whose identity the machine has then; absent: kept by a restore, new after a reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// What the machine is called then, with an identity of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_name: Option<HostName>,
}

impl Choices {
    /// Whether the machine gets an identity of its own.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.identity == Some(Identity::New)
    }
}

/// Who gets the room that a larger disk has more than the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtraSpace {
    /// The last partition, if its file system can grow.
    #[default]
    Last,
    /// All partitions whose file systems can grow, by their sizes; what lies behind them moves. Only
    /// on a GPT: with a PC partition table Windows finds itself by the byte where its partition begins.
    Proportional,
    /// Nobody: it stays free.
    None,
}

/// What becomes of a backup whose system starts by the other type of firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareChoice {
    /// It is refused.
    #[default]
    Same,
    /// It is restored, and does not start here by itself.
    Insist,
    /// A Linux is given what it needs to start by this machine's type.
    Convert,
}

/// One source disk bound to one target disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskChoice {
    /// The disk's number in the manifest.
    pub source: u32,
    /// The target's serial number, WWN or kernel name.
    pub target: String,
}

/// Why a restore or a capture is not possible as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// The target has no disk that could be written.
    NoDisk,
    /// More than one target disk would do and none was chosen.
    AmbiguousDisk,
    /// The chosen target disk is not there, or two source disks were given the same one.
    DiskNotFound,
    /// The target is smaller than what must go there.
    TooSmall,
    /// The target is smaller than the source, and nothing on it can be made smaller.
    CannotShrink,
    /// Logical sector sizes differ and the layout cannot be carried over.
    SectorSize,
    /// The backup starts by BIOS and the machine by UEFI, or the other way round.
    FirmwareType,
    /// The backup is to be converted to the machine's type of firmware, and cannot be.
    CannotConvert,
    /// The backup is of another processor architecture.
    Architecture,
    /// The kernel refuses writes to the target.
    ReadOnly,
    /// The backup's own table is damaged or of a kind that can not be rebuilt.
    TableUnsupported,
    /// The volume or partition that was chosen is not there.
    VolumeNotFound,
    /// The volume that was chosen cannot go to a partition by itself.
    VolumeUnsupported,
    /// A disk to be captured is a member of a RAID, a pool or a set of dynamic disks.
    MemberDisk,
}

/// A reason code with the facts in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The code, documented in `docs/reason-codes.md`.
    pub code: ReasonCode,
    /// One sentence: what, where, expected and found, and what to do.
    pub text: String,
}

/// What a restore will do, in the order in which it does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The restore point.
    pub restore_point: RestorePointId,
    /// One entry for each disk of the restore point.
    pub disks: Vec<DiskPlan>,
    /// What a person should know before confirming.
    pub notes: Vec<String>,
}

/// What happens to one target disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// The disk's number in the manifest.
    pub source: u32,
    /// The target as it was in the inventory; the agent checks it again before it writes.
    pub target: Disk,
    /// Whether the table that is there stays, and all that is outside of [`Self::partitions`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_table: bool,
    /// Made zero and flushed before anything else, so that the disk does not boot: the first MiB
    /// (or all of a smaller disk) and the place of the backup GPT.
    pub invalidate: Vec<ByteRange>,
    /// Where the regions go.
    pub copies: Vec<RegionCopy>,
    /// Where the parts of logical volumes that lie on this disk go.
    #[serde(default)]
    pub areas: Vec<AreaCopy>,
    /// The partitions as they will be, for those that grow a file system before the commit.
    pub partitions: Vec<PlannedPartition>,
    /// File systems that are made larger after their data is verified.
    pub grow: Vec<Grow>,
    /// File systems that are made smaller before that: their partitions hold their front, and what lies behind it
    /// moves there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shrink: Vec<Shrink>,
    /// File systems whose own sectors get another size, before the commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sectors: Vec<SectorChange>,
    /// What makes its system start by the other type of firmware, before the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversion: Option<FirmwareConversion>,
    /// The commit, in this order, each flushed: backup GPT, primary GPT, first sector.
    pub commit: Vec<TableWrite>,
}

/// One region's way to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionCopy {
    /// Index in the source disk's `regions`.
    pub region: u32,
    /// Where it goes on the target; at least as long as the region, unless it is made smaller: then this is its
    /// front.
    pub destination: ByteRange,
    /// Parts of the destination that are written last, after the rest is flushed: file system
    /// superblocks and boot sectors (and what lies inside the first MiB). Relative to the disk.
    pub last: Vec<ByteRange>,
}

/// The way of one area of a logical volume to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaCopy {
    /// Index in the manifest's `logical_volumes`.
    pub volume: u32,
    /// Index in its `segments`.
    pub segment: u32,
    /// Index in the segment's `areas`.
    pub area: u32,
    /// Where it goes on the target; as long as the area.
    pub destination: ByteRange,
    /// Parts of the destination that are written last, as of a [`RegionCopy`].
    pub last: Vec<ByteRange>,
}

/// A partition on the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPartition {
    /// Counted from 1.
    pub number: u32,
    /// Where it is.
    pub range: ByteRange,
    /// Its unique GUID in canonical lower-case text, for a GPT.
    pub guid: Option<String>,
    /// What is in it.
    pub file_system: Option<FileSystemKind>,
    /// Whether it is an EFI system partition.
    pub esp: bool,
}

/// A file system that grows into its larger partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grow {
    /// The partition's number.
    pub partition: u32,
    /// Which file system.
    pub file_system: FileSystemKind,
    /// Its size before, in bytes.
    pub from: u64,
    /// The size of its partition, in bytes.
    pub to: u64,
}

/// A file system that is made smaller, to fit its smaller partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shrink {
    /// The partition's number.
    pub partition: u32,
    /// Which file system.
    pub file_system: FileSystemKind,
    /// Its size before, in bytes.
    pub from: u64,
    /// The size of its partition, in bytes.
    pub to: u64,
}

/// A file system that counts in sectors, for a disk whose sectors have another size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectorChange {
    /// The partition's number.
    pub partition: u32,
    /// Which file system.
    pub file_system: FileSystemKind,
    /// The sectors that it gets.
    pub to: SectorSize,
}

/// A system that starts by the other type of firmware than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareConversion {
    /// How it starts then.
    pub to: FirmwareKind,
    /// The number of the partition that its loader goes to: an EFI system partition, or that of GRUB's second stage.
    pub partition: u32,
    /// Whether that partition is made, and nothing of it is in the backup.
    pub made: bool,
}

/// Bytes of a partition table at their place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableWrite {
    /// What it is: `backup GPT`, `primary GPT`, `protective MBR`, `MBR`.
    pub what: String,
    /// Byte offset on the disk, a multiple of the sector size.
    pub offset: u64,
    /// The bytes, a whole number of sectors.
    pub bytes: Blob,
}

impl RestorePlan {
    /// Bytes of the target that are going to be overwritten with the backup's content or zeros.
    #[must_use]
    pub fn destinations(&self) -> Vec<ByteRange> {
        self.disks
            .iter()
            .flat_map(|disk| &disk.copies)
            .map(|copy| copy.destination)
            .collect()
    }
}
