//! Encrypted volumes that are captured plain: which ones, and the disk as it is with them opened.
//!
//! Invariant: a volume is opened only when a key was given for it; a key that is for no encrypted volume,
//! and one that does not fit, end the capture before anything is sent. What is *not* here: how a volume
//! is opened ([`crate::job::encrypted`]).

use std::io;

use backup::filesystem::{Section, encryption, survey_volume};
use backup::hardware::Disk;
use backup::layout::LayoutRegion;
use backup::manifest::{FileSystemKind, RegionKind};
use backup::{ByteRange, SectorSize};
use protocol::unlock::{VolumeKey, VolumePlace};

use crate::device::{BlockDevice, DiskReader};
use crate::job::Engine;
use crate::job::error::Fault;

/// Whether a person means this disk by these words.
fn is_meant(disk: &Disk, words: &str) -> bool {
    let name = words.strip_prefix("/dev/").unwrap_or(words);
    disk.name == words
        || disk.name == name
        || disk.serial.as_deref() == Some(words)
        || disk.wwn.as_deref() == Some(words)
}

/// Checks that each key is for one disk of the machine, before any is opened.
///
/// # Errors
/// [`Fault::NotAsPlanned`] with the disks that there are.
pub(super) fn check_places(keys: &[VolumeKey], disks: &[&Disk]) -> Result<(), Fault> {
    for key in keys {
        let meant = disks
            .iter()
            .filter(|disk| is_meant(disk, &key.place.disk))
            .count();
        if meant != 1 {
            let names: Vec<_> = disks.iter().map(|disk| disk.describe()).collect();
            return Err(Fault::NotAsPlanned(format!(
                "there is a key for {}, and {meant} disks of the machine are called that; its fixed \
                 disks are: {}",
                key.place,
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// The key for a region, if there is one.
fn key_for<'a>(keys: &'a [VolumeKey], disk: &Disk, kind: &RegionKind) -> Option<&'a VolumeKey> {
    let partition = match kind {
        RegionKind::Partition { number } => Some(*number),
        RegionKind::WholeDisk => None,
        RegionKind::Gap => return None,
    };
    keys.iter()
        .find(|key| key.place.partition == partition && is_meant(disk, &key.place.disk))
}

/// A volume that is open.
struct Opened {
    /// Where it lies on the disk, with its encryption's header.
    range: ByteRange,
    /// The plain volume, which may be shorter.
    plain: Box<dyn BlockDevice>,
    /// What it is encrypted with.
    with: String,
}

/// A disk with some of its volumes opened: in their place it has the plain volume, and zeros behind it.
pub(super) struct PlainDisk {
    disk: Box<dyn BlockDevice>,
    opened: Vec<Opened>,
}

impl PlainDisk {
    /// Opens the volumes of `disk` for which there are keys. `regions` are all of the disk's.
    ///
    /// # Errors
    /// A key for what is no encrypted volume, one that does not fit, and a tool that fails.
    pub(super) fn open(
        engine: &Engine<'_>,
        disk: &Disk,
        device: Box<dyn BlockDevice>,
        regions: &[LayoutRegion],
    ) -> Result<Self, Fault> {
        let own = engine
            .keys
            .iter()
            .filter(|key| is_meant(disk, &key.place.disk));
        for key in own {
            let is_there = |region: &LayoutRegion| {
                key_for(std::slice::from_ref(key), disk, &region.kind).is_some()
            };
            if !regions.iter().any(is_there) {
                return Err(Fault::NotAsPlanned(format!(
                    "there is a key for {}, which the disk does not have",
                    key.place
                )));
            }
        }
        let mut opened = Vec::new();
        for region in regions {
            let Some(key) = key_for(engine.keys, disk, &region.kind) else {
                continue;
            };
            let (kind, with) = encrypted(device.as_ref(), region.range, &key.place)?;
            let plain = engine.platform.unlock(disk, region.range, kind, key)?;
            if plain.size() > region.range.len() || plain.size() == 0 {
                return Err(Fault::NotAsPlanned(format!(
                    "{} has {} bytes opened and {} as it is",
                    key.place,
                    plain.size(),
                    region.range.len()
                )));
            }
            log::info!("{}: opened with its key ({with})", key.place);
            opened.push(Opened {
                range: region.range,
                plain,
                with,
            });
        }
        Ok(Self {
            disk: device,
            opened,
        })
    }

    /// What the volume in this region is encrypted with and how many bytes the plain one has, when it is
    /// open.
    pub(super) fn opened(&self, range: ByteRange) -> Option<(&str, u64)> {
        let opened = self.opened.iter().find(|opened| opened.range == range);
        opened.map(|opened| (opened.with.as_str(), opened.plain.size()))
    }
}

/// What a volume for which there is a key is encrypted with.
fn encrypted(
    device: &dyn BlockDevice,
    range: ByteRange,
    place: &VolumePlace,
) -> Result<(FileSystemKind, String), Fault> {
    let reader = DiskReader(device);
    let section = Section::new(&reader, range);
    let found = survey_volume(&section, range.len()).volume;
    match found.map(|volume| volume.file_system) {
        Some(kind @ (FileSystemKind::Luks | FileSystemKind::Bitlocker)) => {
            let with = encryption::name(&section, range.len(), kind)
                .map_err(|error| Fault::NotAsPlanned(format!("{place}: {error}")))?;
            Ok((kind, with))
        }
        other => {
            let found = other.map_or_else(
                || "nothing that is known here".to_owned(),
                |kind| kind.to_string(),
            );
            Err(Fault::NotAsPlanned(format!(
                "there is a key for {place}, which is not encrypted with LUKS or BitLocker: it holds \
                 {found}"
            )))
        }
    }
}

impl BlockDevice for PlainDisk {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn sector(&self) -> SectorSize {
        self.disk.sector()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut at, mut buffer) = (offset, buffer);
        while !buffer.is_empty() {
            let left = buffer.len() as u64;
            let inside = self
                .opened
                .iter()
                .find(|opened| (opened.range.start()..opened.range.end()).contains(&at));
            // Up to the next border.
            let border = match inside {
                Some(opened) => {
                    let plain_end = opened.range.start() + opened.plain.size();
                    if at < plain_end {
                        plain_end
                    } else {
                        opened.range.end()
                    }
                }
                None => {
                    let starts = self.opened.iter().map(|opened| opened.range.start());
                    starts.filter(|start| *start > at).min().unwrap_or(u64::MAX)
                }
            };
            let len = left.min(border - at);
            let (part, rest) = buffer.split_at_mut(usize::try_from(len).unwrap_or(usize::MAX));
            match inside {
                Some(opened) if at - opened.range.start() < opened.plain.size() => {
                    opened.plain.read_at(at - opened.range.start(), part)?;
                }
                Some(_) => part.fill(0),
                None => self.disk.read_at(at, part)?,
            }
            (at, buffer) = (at + len, rest);
        }
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn zero(&self, _: ByteRange) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "unlock_tests.rs"]
mod tests;
