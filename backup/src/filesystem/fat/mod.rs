//! FAT12, FAT16 and FAT32: the clusters in use, and the files.
//!
//! Source: Microsoft, *FAT32 File System Specification* 1.03 (§3 boot sector, §4 FAT), and what the
//! kernel and dosfstools write beyond it (dirty byte in the boot sector).
//!
//! Invariant: reserved sectors, all FATs and the fixed root directory always count as used; a volume
//! that is not cleanly unmounted, whose FATs differ, or which has a file in a free cluster or a
//! folder whose chain contradicts itself, is a [`Doubt`].

mod directory;
pub mod made;
pub mod sectors;
mod tree;
mod walk;

use std::sync::Arc;

use crate::ByteRange;
use crate::filesystem::links::{Links, Width};
use crate::filesystem::tree::{FileTree, TreeError};
use crate::filesystem::used::UsedRanges;
use crate::filesystem::{Doubt, ReadAt, Usage};
use crate::little_endian::{le16, le32};
use crate::manifest::FileSystemKind;

/// A FAT is read in pieces of this size, a multiple of every sector size.
const PIECE: u64 = 256 << 10;

/// The checked numbers of a boot sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    sector: u64,
    sectors_per_cluster: u64,
    reserved: u64,
    fats: u64,
    fat_sectors: u64,
    root_sectors: u64,
    total: u64,
    wide: bool,
    root_cluster: u32,
    mirrored: bool,
    active_fat: u64,
}

impl Geometry {
    /// Reads a boot sector of at least 512 bytes; `None` when it is none.
    pub(crate) fn parse(boot: &[u8]) -> Option<Self> {
        let jump = matches!((boot[0], boot[2]), (0xeb, 0x90) | (0xe9, _) | (0xeb, _));
        if boot[510..512] != [0x55, 0xaa] || !jump {
            return None;
        }
        let (short_fat, long_fat) = (le16(boot, 22), le32(boot, 36));
        let (short_total, long_total) = (le16(boot, 19), le32(boot, 32));
        let wide = short_fat == 0;
        let geometry = Self {
            sector: u64::from(le16(boot, 11)),
            sectors_per_cluster: u64::from(boot[13]),
            reserved: u64::from(le16(boot, 14)),
            fats: u64::from(boot[16]),
            fat_sectors: if wide {
                u64::from(long_fat)
            } else {
                u64::from(short_fat)
            },
            root_sectors: (u64::from(le16(boot, 17)) * 32)
                .div_ceil(u64::from(le16(boot, 11)).max(1)),
            total: if short_total == 0 {
                u64::from(long_total)
            } else {
                u64::from(short_total)
            },
            wide,
            root_cluster: if wide { le32(boot, 44) } else { 0 },
            // §3.3: bit 7 of BPB_ExtFlags: only one FAT is kept up to date.
            mirrored: !wide || le16(boot, 40) & 0x80 == 0,
            active_fat: if wide && le16(boot, 40) & 0x80 != 0 {
                u64::from(le16(boot, 40) & 0xf)
            } else {
                0
            },
        };
        let sane = geometry.sector.is_power_of_two()
            && (512..=4096).contains(&geometry.sector)
            && geometry.sectors_per_cluster.is_power_of_two()
            && geometry.sectors_per_cluster <= 128
            && geometry.reserved > 0
            && (1..=4).contains(&geometry.fats)
            && geometry.active_fat < geometry.fats
            && geometry.fat_sectors > 0
            && (boot[21] == 0xf0 || boot[21] >= 0xf8)
            // FAT32 has no fixed root directory, the others must have one.
            && wide == (geometry.root_sectors == 0)
            && geometry.data_start() < geometry.total
            && geometry.clusters() > 0
            && geometry.clusters() < 0x0fff_fff5;
        sane.then_some(geometry)
    }

    /// Reads the boot sector of a volume of `size` bytes and checks it against that size.
    fn read(volume: &dyn ReadAt, size: u64) -> Result<Self, Doubt> {
        let doubt = |reason: String| Err(Doubt::Untrusted(reason));
        let mut boot = [0; 512];
        if size < boot.len() as u64 {
            return doubt("a FAT volume of less than a sector".to_owned());
        }
        volume.read_at(0, &mut boot)?;
        let Some(geometry) = Self::parse(&boot) else {
            return doubt("no FAT boot sector".to_owned());
        };
        if geometry.size() > size {
            return doubt(format!(
                "the FAT volume says {} bytes, its place has {size}",
                geometry.size()
            ));
        }
        let entries = geometry.clusters() + 2;
        if (entries * geometry.entry_bits()).div_ceil(8) > geometry.fat_sectors * geometry.sector {
            return doubt(format!(
                "the FAT of {} sectors is too short for {} clusters",
                geometry.fat_sectors,
                geometry.clusters()
            ));
        }
        Ok(geometry)
    }

    /// The links of the FAT that is kept up to date.
    fn links(&self) -> Links {
        let fat = (self.reserved + self.active_fat * self.fat_sectors) * self.sector;
        let width = match self.file_system() {
            FileSystemKind::Fat12 => Width::Fat12,
            FileSystemKind::Fat16 => Width::Fat16,
            _ => Width::Fat32,
        };
        Links::new(fat, width, self.clusters())
    }

    /// Byte of a cluster, which the caller knows to exist.
    fn place(&self, cluster: u32) -> u64 {
        let size = u64::from(self.cluster_size());
        self.data_start() * self.sector + (u64::from(cluster) - 2) * size
    }

    /// The fixed root directory, empty on FAT32.
    fn fixed_root(&self) -> ByteRange {
        let end = self.data_start() * self.sector;
        ByteRange::between(end - self.root_sectors * self.sector, end)
    }

    /// `len` rounded up to whole sectors.
    const fn whole_sectors(&self, len: u64) -> u64 {
        len.next_multiple_of(self.sector)
    }

    /// Where the fields after the BIOS parameter block are (boot signature, serial, label).
    pub(crate) const fn extended_at(&self) -> usize {
        if self.wide { 66 } else { 38 }
    }

    /// Bytes of a sector.
    pub(crate) const fn sector(&self) -> u64 {
        self.sector
    }

    /// Sectors before the first FAT.
    pub(crate) const fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(crate) const fn size(&self) -> u64 {
        self.total * self.sector
    }

    pub(crate) const fn cluster_size(&self) -> u32 {
        // At most 128 sectors of 4096 bytes.
        (self.sectors_per_cluster * self.sector) as u32
    }

    /// First sector of cluster 2.
    const fn data_start(&self) -> u64 {
        self.reserved + self.fats * self.fat_sectors + self.root_sectors
    }

    const fn clusters(&self) -> u64 {
        (self.total - self.data_start()) / self.sectors_per_cluster
    }

    pub(crate) const fn file_system(&self) -> FileSystemKind {
        // §3.5. dosfstools and the kernel take the long FAT size for the sign of FAT32, whatever
        // the number of clusters is.
        if self.wide {
            FileSystemKind::Fat32
        } else if self.clusters() < 4085 {
            FileSystemKind::Fat12
        } else {
            FileSystemKind::Fat16
        }
    }

    const fn entry_bits(&self) -> u64 {
        match self.file_system() {
            FileSystemKind::Fat12 => 12,
            FileSystemKind::Fat16 => 16,
            _ => 32,
        }
    }
}

/// The used ranges of a FAT volume of `size` bytes, relative to it, and where its files lie.
pub(super) fn usage(volume: &dyn ReadAt, size: u64) -> Result<Usage, Doubt> {
    let ranges = used(volume, size)?;
    let walk = walk::Walk::new(volume, &Geometry::read(volume, size)?);
    match walk.doubt {
        Some(doubt) => Err(doubt),
        None => Ok(Usage {
            ranges,
            extents: walk.extents.finish(),
        }),
    }
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    volume: Arc<dyn ReadAt + Send + Sync>,
    size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    Ok(Box::new(tree::Tree::open(volume, size)?))
}

/// The used ranges of a FAT volume of `size` bytes, relative to it.
fn used(volume: &dyn ReadAt, size: u64) -> Result<Vec<ByteRange>, Doubt> {
    let doubt = |reason: String| Err(Doubt::Untrusted(reason));
    let geometry = Geometry::read(volume, size)?;
    let mut boot = [0; 512];
    volume.read_at(0, &mut boot)?;
    if !geometry.mirrored {
        return doubt("the FATs are not mirrored".to_owned());
    }
    // The kernel's and dosfstools' dirty and surface-test bits.
    if boot[if geometry.wide { 65 } else { 37 }] & 0x3 != 0 {
        return doubt("the FAT volume was not cleanly unmounted".to_owned());
    }
    let mut clusters = Clusters {
        geometry,
        used: UsedRanges::new(),
        root_seen: !geometry.wide,
        next: 0,
    };
    clusters.used.add(ByteRange::between(
        0,
        geometry.data_start() * geometry.sector,
    ));
    read_fats(volume, &geometry, |piece| clusters.take(piece))?;
    if !clusters.root_seen {
        return doubt(format!(
            "the root directory's cluster {} is not in use",
            geometry.root_cluster
        ));
    }
    Ok(clusters.used.finish())
}

/// Gives the first FAT piece by piece, each a multiple of three 4-byte words but for the last, after
/// comparing it with the other FATs.
fn read_fats(
    volume: &dyn ReadAt,
    geometry: &Geometry,
    mut take: impl FnMut(&[u8]) -> Result<(), Doubt>,
) -> Result<(), Doubt> {
    let len = geometry.fat_sectors * geometry.sector;
    // Three bytes hold two entries of FAT12: no entry is cut by a piece's end.
    let step = PIECE * 3;
    let start = geometry.reserved * geometry.sector;
    let mut at = 0;
    while at < len {
        let count = step.min(len - at) as usize;
        let (mut first, mut other) = (vec![0; count], vec![0; count]);
        volume.read_at(start + at, &mut first)?;
        for copy in 1..geometry.fats {
            volume.read_at(start + copy * len + at, &mut other)?;
            if first != other {
                return Err(Doubt::Untrusted(format!(
                    "FAT {} differs from the first one",
                    copy + 1
                )));
            }
        }
        take(&first)?;
        at += count as u64;
    }
    Ok(())
}

/// What the entries say, taken in order.
struct Clusters {
    geometry: Geometry,
    used: UsedRanges,
    root_seen: bool,
    next: u64,
}

impl Clusters {
    fn take(&mut self, piece: &[u8]) -> Result<(), Doubt> {
        match self.geometry.entry_bits() {
            12 => piece.chunks_exact(3).try_for_each(|pair| {
                let (a, b, c) = (u32::from(pair[0]), u32::from(pair[1]), u32::from(pair[2]));
                self.entry(a | (b & 0xf) << 8, 0xff7)?;
                self.entry(b >> 4 | c << 4, 0xff7)
            })?,
            16 => piece
                .chunks_exact(2)
                .try_for_each(|entry| self.entry(u32::from(le16(entry, 0)), 0xfff7))?,
            // The high four bits are reserved (§4.1).
            _ => piece
                .chunks_exact(4)
                .try_for_each(|entry| self.entry(le32(entry, 0) & 0x0fff_ffff, 0x0fff_fff7))?,
        }
        // FAT12 ends where a pair may be cut: one entry more.
        if self.geometry.entry_bits() == 12
            && let [a, b] = piece[piece.len() / 3 * 3..]
        {
            self.entry(u32::from(a) | (u32::from(b) & 0xf) << 8, 0xff7)?;
        }
        Ok(())
    }

    fn entry(&mut self, value: u32, bad: u32) -> Result<(), Doubt> {
        let number = self.next;
        self.next += 1;
        let clusters = self.geometry.clusters();
        match number {
            0 => return Ok(()),
            1 => return self.check_clean(value),
            _ if number >= clusters + 2 => return Ok(()),
            _ => {}
        }
        if value == 0 || value == bad {
            return Ok(());
        }
        // A chain that leaves the volume is damage; its clusters may be anywhere.
        if value == 1 || (u64::from(value) >= clusters + 2 && value < bad) {
            return Err(Doubt::Untrusted(format!(
                "cluster {number} is followed by cluster {value} of {clusters}"
            )));
        }
        if self.geometry.wide && number == u64::from(self.geometry.root_cluster) {
            self.root_seen = true;
        }
        let size = u64::from(self.geometry.cluster_size());
        let start = self.geometry.data_start() * self.geometry.sector + (number - 2) * size;
        self.used.add(ByteRange::between(start, start + size));
        Ok(())
    }

    /// §4.2: the second entry has one bit for a clean unmount and one for no hard errors.
    fn check_clean(&self, value: u32) -> Result<(), Doubt> {
        let (clean, no_errors) = match self.geometry.entry_bits() {
            12 => return Ok(()),
            16 => (0x8000, 0x4000),
            _ => (0x0800_0000, 0x0400_0000),
        };
        let reason = if value & clean == 0 {
            "the FAT volume was not cleanly unmounted"
        } else if value & no_errors == 0 {
            "the FAT volume has met read or write errors"
        } else {
            return Ok(());
        };
        Err(Doubt::Untrusted(reason.to_owned()))
    }
}
