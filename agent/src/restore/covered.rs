//! Disks whose chosen volumes are not recognisable yet, as the tools see them that make volumes smaller.
//!
//! Where a whole disk is restored, it has no table until the commit, so that nothing finds the volumes on it. A
//! chosen volume lies in a table that stays. Its marker is where the bytes are by which it is recognised, and those
//! are kept in memory. Invariant: they are written when all else of the volume is written, made smaller and flushed,
//! the one sector with the file system's signature last: that is the volume's commit. The same sector is what is
//! taken first from the volume that was there before, so that a power cut leaves no half one that looks whole.
//!
//! Memory: [`super::marker::LEN`] bytes for each chosen volume.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup::filesystem::detect::detect;
use backup::filesystem::{Section, heads};
use backup::manifest::FileSystemKind;
use backup::plan::DiskPlan;
use backup::{ByteRange, SectorSize};

use super::commit::{Write, check, put};
use super::held::{Held, contents};
use super::marker;
use super::work::split;
use super::write::Target;
use crate::device::{BlockDevice, DiskReader, io_error};
use crate::job::error::Fault;

/// What a chosen volume is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Head {
    /// Where its marker is until it is whole.
    pub(crate) place: ByteRange,
    /// The sector of it without which nothing is recognised.
    sign: ByteRange,
}

/// The heads of chosen volumes on a disk with sectors of so many bytes, in order; none for a plan that writes a whole
/// disk. A volume that is too small for a marker has none.
pub(super) fn heads_of(plan: &DiskPlan, sector: u64) -> Vec<Head> {
    let chosen = plan.partitions.iter().filter(|_| plan.keeps_table);
    let places = chosen.filter_map(|partition| {
        let (kind, range) = (partition.file_system, partition.range);
        let head = heads(kind, range.len()).first().copied()?;
        let start = range.start() + head.start();
        (head.len() >= marker::LEN).then(|| Head {
            place: ByteRange::between(start, start + marker::LEN),
            sign: sign(kind, range, sector),
        })
    });
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    places
}

/// The sector of a volume that has the signature of its kind.
fn sign(kind: Option<FileSystemKind>, volume: ByteRange, sector: u64) -> ByteRange {
    let offset = match kind {
        // The superblock, from byte 1024 on.
        Some(FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4) => 1024,
        Some(FileSystemKind::Btrfs) => 64 << 10,
        // The last ten bytes of the first page.
        Some(FileSystemKind::Swap) => 4096 - 512,
        _ => 0,
    };
    let start = volume.start() + offset / sector * sector;
    ByteRange::between(start, (start + sector).min(volume.end()))
}

/// The sectors by which something is recognised in the partitions of chosen volumes now. A disk that cannot be read
/// says so later.
pub(super) fn signs_there(device: &dyn BlockDevice, plan: &DiskPlan) -> Vec<ByteRange> {
    let reader = DiskReader(device);
    let partitions = plan.partitions.iter();
    let signs = partitions.flat_map(|partition| {
        let range = partition.range;
        let found = detect(&Section::new(&reader, range), range.len()).unwrap_or_default();
        let kinds = found.into_iter().map(|volume| Some(volume.file_system));
        kinds.map(move |kind| sign(kind, range, device.sector().bytes()))
    });
    signs.collect()
}

/// A disk, and what is kept of it in memory; nothing when all of it is restored.
pub(super) struct Covered<'a> {
    device: &'a dyn BlockDevice,
    /// In order; they do not overlap.
    places: Vec<ByteRange>,
    signs: Vec<ByteRange>,
    heads: Mutex<Vec<Write>>,
}

/// The disks, which hold all but the heads of chosen volumes.
pub(super) fn disks<'a>(targets: &'a [Target], held: &[Held]) -> Vec<Covered<'a>> {
    let targets = targets.iter().enumerate();
    let disks = targets.map(|(disk, target)| {
        let places: Vec<_> = target.volumes.iter().map(|head| head.place).collect();
        let what = "what a volume is recognised by";
        let heads = places
            .iter()
            .map(|place| contents(held, disk, *place, what));
        Covered {
            device: target.device.as_ref(),
            heads: Mutex::new(heads.collect()),
            places,
            signs: target.volumes.iter().map(|head| head.sign).collect(),
        }
    });
    disks.collect()
}

impl Covered<'_> {
    fn heads(&self) -> MutexGuard<'_, Vec<Write>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the heads: the commit of the disk's chosen volumes.
    ///
    /// # Errors
    /// A disk that fails, or does not hold what was written.
    pub(super) fn uncover(&self) -> Result<(), Fault> {
        let heads = self.heads();
        if heads.is_empty() {
            return Ok(());
        }
        let all = ByteRange::between(0, 0);
        self.device
            .flush()
            .map_err(io_error("flushing", self.device, all))?;
        let mut signs = Vec::with_capacity(self.signs.len());
        for ((head, place), sign) in heads.iter().zip(&self.places).zip(&self.signs) {
            for (range, is_sign) in split(*place, &[*sign]) {
                let from = (range.start() - place.start()) as usize;
                let part = Write {
                    what: head.what.clone(),
                    offset: range.start(),
                    bytes: head.bytes[from..from + range.len() as usize].to_vec(),
                };
                if is_sign {
                    signs.push(part);
                } else {
                    put(self.device, &part)?;
                    check(self.device, &part)?;
                }
            }
        }
        for sign in &signs {
            put(self.device, sign)?;
            check(self.device, sign)?;
        }
        Ok(())
    }

    /// Calls `each` with the part of every head that lies in `range`, and where that begins in the range.
    fn in_heads(&self, range: ByteRange, mut each: impl FnMut(&mut [u8], usize)) {
        for (place, head) in self.places.iter().zip(self.heads().iter_mut()) {
            let start = place.start().max(range.start());
            let end = place.end().min(range.end());
            if start < end {
                let (from, to) = (start - place.start(), end - place.start());
                each(
                    &mut head.bytes[from as usize..to as usize],
                    (start - range.start()) as usize,
                );
            }
        }
    }

    /// The parts of a range that are on the disk.
    fn outside(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let parts = split(range, &self.places).into_iter();
        parts
            .filter(|(_, is_head)| !is_head)
            .map(|(range, _)| range)
    }
}

impl BlockDevice for Covered<'_> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn sector(&self) -> SectorSize {
        self.device.sector()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)?;
        let range = ByteRange::between(offset, offset + buffer.len() as u64);
        self.in_heads(range, |head, at| {
            buffer[at..at + head.len()].copy_from_slice(head);
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        for part in self.outside(range) {
            let from = (part.start() - offset) as usize;
            let part_bytes = &bytes[from..from + part.len() as usize];
            self.device.write_at(part.start(), part_bytes)?;
        }
        self.in_heads(range, |head, at| {
            head.copy_from_slice(&bytes[at..at + head.len()]);
        });
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.outside(range)
            .try_for_each(|part| self.device.zero(part))?;
        self.in_heads(range, |head, _| head.fill(0));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
}
