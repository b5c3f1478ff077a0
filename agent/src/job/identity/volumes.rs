//! The volumes that a restore has written: where they are, what they are, which id they have.
//!
//! Invariant: what is said here is read from the restored disks, not taken from the manifest. Nothing is
//! written.

use std::sync::Arc;

use backup::ByteRange;
use backup::filesystem::detect::detect;
use backup::filesystem::tree::{self, FileTree};
use backup::filesystem::{ReadAt, ReadError};
use backup::manifest::{Coverage, FileSystemKind as Kind, Manifest, PartitionTable};
use backup::plan::{DiskPlan, RestorePlan};
use uuid::Uuid;

use super::fault;
use crate::device::{Access, BlockDevice};
use crate::job::Engine;
use crate::job::error::Fault;
use crate::restore::marker_place;

/// The id of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::job) enum Id {
    /// Of Linux's file systems and of swap.
    Uuid(Uuid),
    /// Of FAT and exFAT.
    Short(u32),
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(f, "{uuid}"),
            Self::Short(number) => write!(f, "{:04X}-{:04X}", number >> 16, number & 0xffff),
        }
    }
}

impl Id {
    /// As `blkid` writes it.
    fn parse(text: &str) -> Option<Self> {
        if let Ok(uuid) = text.parse() {
            return Some(Self::Uuid(uuid));
        }
        let (high, low) = text.split_once('-')?;
        let half = |digits: &str| u16::from_str_radix(digits, 16).ok();
        let number = u32::from(half(high)?) << 16 | u32::from(half(low)?);
        (number != 0).then_some(Self::Short(number))
    }
}

/// A volume on a restored disk.
pub(in crate::job) struct Volume {
    /// Index of the disk in the plan.
    pub(in crate::job) disk: usize,
    /// Its partition's number.
    pub(in crate::job) partition: Option<u32>,
    /// Where it is on the disk.
    pub(in crate::job) range: ByteRange,
    /// What it is called to people: `partition 2 of sda`.
    pub(in crate::job) place: String,
    /// Its file system.
    pub(in crate::job) kind: Kind,
    /// Its label.
    pub(in crate::job) label: Option<String>,
    /// Its id, if it has one.
    pub(in crate::job) id: Option<Id>,
    /// Nodes that are always this volume's: those of a logical volume.
    pub(in crate::job) nodes: Vec<String>,
    /// The disk, open.
    device: Arc<dyn BlockDevice>,
}

/// A volume's bytes.
pub(in crate::job) struct Reader {
    device: Arc<dyn BlockDevice>,
    range: ByteRange,
}

impl ReadAt for Reader {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let refuse = |reason: String| ReadError {
            offset,
            len,
            reason,
        };
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.range.len()) {
            return Err(refuse("past the end of the volume".to_owned()));
        }
        self.device
            .read_at(self.range.start() + offset, buffer)
            .map_err(|error| refuse(format!("{}: {error}", self.device.name())))
    }
}

impl Volume {
    /// Its bytes.
    pub(in crate::job) fn reader(&self) -> Reader {
        Reader {
            device: Arc::clone(&self.device),
            range: self.range,
        }
    }

    /// Writes to it while the disks are open.
    pub(in crate::job) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let at = self.range.start() + offset;
        let end = offset.checked_add(bytes.len() as u64);
        let inside = end.is_some_and(|end| end <= self.range.len());
        let write = || {
            if !inside {
                return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
            }
            self.device.write_at(at, bytes)?;
            let mut found = vec![0; bytes.len()];
            self.device.flush()?;
            self.device.read_at(at, &mut found)?;
            if found == bytes {
                Ok(())
            } else {
                Err(std::io::Error::other(
                    "what was written reads back differently",
                ))
            }
        };
        write().map_err(fault(format!("writing to {}", self.place)))
    }

    /// Whether it is a file system that Linux systems are in.
    pub(in crate::job) const fn is_linux(&self) -> bool {
        is_linux(self.kind)
    }

    /// Whether its files can be changed where they lie only.
    pub(in crate::job) const fn is_fat(&self) -> bool {
        matches!(self.kind, Kind::Fat12 | Kind::Fat16 | Kind::Fat32)
    }

    /// Its files, for reading.
    pub(in crate::job) fn tree(&self) -> Result<Box<dyn FileTree>, Fault> {
        tree::open(Arc::new(self.reader()), self.range.len())
            .map_err(|error| self.unreadable(&error))
    }

    /// What it means when its files cannot be read.
    pub(in crate::job) fn unreadable(&self, error: &dyn std::fmt::Display) -> Fault {
        Fault::NotAsPlanned(format!(
            "the files of the {} in {} cannot be read ({error}), so that nothing in them can be changed",
            self.kind, self.place
        ))
    }
}

pub(in crate::job) const fn is_linux(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 | Kind::Xfs | Kind::Btrfs
    )
}

/// Opens the disks of the plan.
///
/// # Errors
/// A disk that cannot be opened.
pub(in crate::job) fn open(
    engine: &Engine<'_>,
    plan: &RestorePlan,
) -> Result<Vec<Arc<dyn BlockDevice>>, Fault> {
    let disks = plan.disks.iter();
    disks
        .map(|disk| {
            Ok(Arc::from(
                engine.platform.open(&disk.target, Access::Write)?,
            ))
        })
        .collect()
}

/// The volumes of the disks of the plan.
///
/// # Errors
/// A disk that cannot be read.
pub(in crate::job) fn find(
    devices: &[Arc<dyn BlockDevice>],
    manifest: &Manifest,
    plan: &RestorePlan,
) -> Result<Vec<Volume>, Fault> {
    let mut volumes = Vec::new();
    for (disk, (disk_plan, device)) in plan.disks.iter().zip(devices).enumerate() {
        let image = manifest.disks.get(disk_plan.source as usize);
        if image.is_none_or(|image| matches!(image.table, PartitionTable::None)) {
            // Its first sector, which may be the file system's own, is written by the commit.
            continue;
        }
        for place in places(disk_plan, manifest) {
            let reader = Reader {
                device: Arc::clone(device),
                range: place.range,
            };
            let found = detect(&reader, place.range.len())
                .map_err(|error| Fault::NotAsPlanned(format!("{}: {error}", place.called)))?;
            // More than one: a formatting left signs of what was there before, and blkid decides.
            let [found] = &found[..] else {
                continue;
            };
            volumes.push(Volume {
                disk,
                partition: place.partition,
                range: place.range,
                place: place.called,
                kind: found.file_system,
                label: found.label.clone(),
                id: found.uuid.as_deref().and_then(Id::parse),
                nodes: place.nodes,
                device: Arc::clone(device),
            });
        }
    }
    Ok(volumes)
}

struct Place {
    partition: Option<u32>,
    range: ByteRange,
    called: String,
    nodes: Vec<String>,
}

/// The partitions, and the logical volumes that lie in one piece.
fn places(plan: &DiskPlan, manifest: &Manifest) -> Vec<Place> {
    let disk = &plan.target.name;
    let partitions = plan.partitions.iter().map(|partition| Place {
        partition: Some(partition.number),
        range: partition.range,
        called: format!("partition {} of {disk}", partition.number),
        nodes: Vec::new(),
    });
    let logical = plan.areas.iter().filter_map(|area| {
        let volume = manifest.logical_volumes.get(area.volume as usize)?;
        in_one_piece(volume).then(|| {
            let (group, name) = (&volume.group, &volume.name);
            let doubled = |text: &str| text.replace('-', "--");
            Place {
                partition: None,
                range: area.destination,
                called: format!("logical volume {}", volume.full_name()),
                nodes: vec![
                    format!("/dev/mapper/{}-{}", doubled(group), doubled(name)),
                    format!("/dev/{group}/{name}"),
                ],
            }
        })
    });
    partitions.chain(logical).collect()
}

/// The partition with a file system in which the mark of this restore lies until the commit, if there is one: what is
/// read there then is not its own, and what is written is lost.
pub(in crate::job) fn under_marker(plan: &RestorePlan) -> Option<String> {
    plan.disks.iter().find_map(|disk| {
        let mark = marker_place(disk.target.size)?;
        let mut partitions = disk.partitions.iter();
        let found = partitions.find(|one| one.file_system.is_some() && one.range.overlaps(mark))?;
        Some(format!(
            "partition {} of {}",
            found.number, disk.target.name
        ))
    })
}

/// The Linux in a logical volume whose files cannot be reached, and why, if there is one.
pub(in crate::job) fn out_of_reach(manifest: &Manifest) -> Option<String> {
    manifest.logical_volumes.iter().find_map(|volume| {
        let inner = volume.volume.as_ref()?;
        let why = if !is_linux(inner.file_system) {
            return None;
        } else if matches!(volume.coverage, Coverage::LeftOut { .. }) {
            "was not saved"
        } else if !in_one_piece(volume) {
            "lies in several pieces"
        } else {
            return None;
        };
        Some(format!("the logical volume {} {why}", volume.full_name()))
    })
}

/// Whether a logical volume is one range of one disk.
fn in_one_piece(volume: &backup::manifest::LogicalVolume) -> bool {
    matches!(&volume.segments[..], [segment] if segment.areas.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_blkid_writes_them() {
        for text in ["6c61622d-726f-4f74-8000-000000000001", "1AB0-E5F0"] {
            assert_eq!(Id::parse(text).unwrap().to_string(), text);
        }
        for text in ["0000-0000", "0123456789ABCDEF", "x", "1AB0-E5F0-1"] {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }
}
