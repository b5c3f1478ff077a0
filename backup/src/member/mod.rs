//! Disks and partitions that are only a part of something larger: members of a RAID that software or
//! firmware puts together, of Windows dynamic disks, of Storage Spaces, of a ZFS pool, of bcache.
//!
//! A copy of one member is no copy of what the machine sees, and two copies that were made one after
//! the other need not fit together. Such a disk is named before anything of it is saved, see
//! [`crate::plan::members`].
//!
//! Invariant: only signs that leave no doubt count: a magic number at its place together with a field
//! that agrees, a type in the partition table, or a long text. No number read here is used to
//! allocate. What is *not* here: putting members together; LVM, whose volumes are saved ([`crate::lvm`]).

use std::fmt;

use crate::filesystem::{ReadAt, ReadError, Section};
use crate::layout::{PartitionType, partition_types};
use crate::{ByteRange, SectorSize};

mod firmware;
mod md;
mod pool;
mod windows;

/// What a disk or partition is a member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A Linux software RAID (`drivers/md`).
    LinuxRaid {
        /// The format of its superblock: `0.90`, `1.0`, `1.1`, `1.2`.
        metadata: &'static str,
        /// The RAID level, `linear` or a number.
        level: String,
        /// The array's name, when it has one.
        name: Option<String>,
    },
    /// A RAID of the firmware or of a simple controller.
    FirmwareRaid {
        /// Whose it is.
        maker: &'static str,
    },
    /// A Windows dynamic disk (Logical Disk Manager).
    DynamicDisk,
    /// A disk of Windows Storage Spaces.
    StorageSpaces,
    /// A disk of a ZFS pool.
    Zfs,
    /// A cache or a cached disk of bcache.
    Bcache,
}

impl Member {
    /// What to do about it, one sentence.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::LinuxRaid { .. } => {
                "Arrays are not captured yet, not even when they are assembled; back this machine up \
                 from its running system. If the disk is no longer part of an array, remove the sign \
                 with `mdadm --zero-superblock` and capture again."
            }
            Self::FirmwareRaid { .. } => {
                "Back this machine up from its running system. If the disk is no longer part of a \
                 RAID, remove the sign in the firmware's RAID set-up and capture again."
            }
            Self::DynamicDisk => {
                "Back this machine up from its running Windows, or convert the disk to a basic one \
                 there and capture again."
            }
            Self::StorageSpaces => "Back this machine up from its running Windows.",
            Self::Zfs => {
                "Back this machine up from its running system (`zfs send`). If the disk is no longer \
                 part of a pool, remove the sign with `zpool labelclear` and capture again."
            }
            Self::Bcache => {
                "Back this machine up from its running system, or take the cache off there and \
                 capture again."
            }
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinuxRaid {
                metadata,
                level,
                name,
            } => {
                write!(f, "a Linux software RAID (level {level}, ")?;
                if let Some(name) = name {
                    write!(f, "name `{name}`, ")?;
                }
                write!(f, "md metadata {metadata})")
            }
            Self::FirmwareRaid { maker } => write!(f, "a firmware RAID ({maker})"),
            Self::DynamicDisk => f.write_str("a set of Windows dynamic disks"),
            Self::StorageSpaces => f.write_str("a Windows Storage Spaces pool"),
            Self::Zfs => f.write_str("a ZFS pool"),
            Self::Bcache => f.write_str("a bcache set"),
        }
    }
}

/// A member and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The partition's number, or none for the disk itself.
    pub partition: Option<u32>,
    /// What it is a member of.
    pub member: Member,
}

/// What a disk of `size` bytes and its partitions are members of; nothing for most disks.
///
/// # Errors
/// [`ReadError`] for a part of the disk that cannot be read.
pub fn find(disk: &dyn ReadAt, size: u64, sector: SectorSize) -> Result<Vec<Found>, ReadError> {
    let size = size - size % sector.bytes();
    let mut found = Vec::new();
    let whole = match of_volume(disk, size)? {
        Some(member) => Some(member),
        None => firmware::member(disk, size)?,
    };
    let whole = match whole {
        None if windows::is_dynamic(disk, size, sector)? => Some(Member::DynamicDisk),
        other => other,
    };
    found.extend(whole.map(|member| Found {
        partition: None,
        member,
    }));
    for partition in partition_types(disk, size, sector)? {
        let PartitionType { number, range, .. } = partition;
        let member = match windows::of_type(partition.guid) {
            Some(member) => Some(member),
            None if range.end() <= size => of_volume(&Section::new(disk, range), range.len())?,
            None => None,
        };
        found.extend(member.map(|member| Found {
            partition: Some(number),
            member,
        }));
    }
    Ok(found)
}

/// What a volume, a partition or a whole disk, is a member of by what is written in it.
fn of_volume(volume: &dyn ReadAt, size: u64) -> Result<Option<Member>, ReadError> {
    for look in [md::member, pool::zfs, pool::bcache] {
        if let Some(member) = look(volume, size)? {
            return Ok(Some(member));
        }
    }
    Ok(None)
}

/// Reads `LEN` bytes at `at`; nothing when the volume ends before them.
fn read<const LEN: usize>(
    volume: &dyn ReadAt,
    size: u64,
    at: u64,
) -> Result<Option<[u8; LEN]>, ReadError> {
    let inside = ByteRange::new(at, LEN as u64).is_ok_and(|range| range.end() <= size);
    if !inside {
        return Ok(None);
    }
    let mut bytes = [0; LEN];
    volume.read_at(at, &mut bytes)?;
    Ok(Some(bytes))
}
