//! The boot regions of exFAT (§2, §3): where everything is.
//!
//! Invariant: the numbers of a [`Geometry`] fit each other and the volume, and no sum or product of
//! them overflows.

use super::doubt;
use crate::filesystem::links::{Links, Width};
use crate::filesystem::{Doubt, ReadAt};
use crate::little_endian::{le16, le32, le64};

/// A boot region has twelve sectors (§2): boot sector, eight of extended boot code, OEM parameters,
/// one reserved, checksum.
const REGION_SECTORS: u64 = 12;
/// More clusters than this (32 TiB at 64 KiB) are not surveyed: their bitmap would fill a small
/// machine's memory.
const MAX_CLUSTERS: u64 = 1 << 29;

/// `VolumeFlags` (§3.1.13).
const ACTIVE_FAT: u16 = 0x1;
const VOLUME_DIRTY: u16 = 0x2;
const MEDIA_FAILURE: u16 = 0x4;

/// The checked numbers of a boot sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    sector: u64,
    pub(super) cluster: u64,
    pub(super) clusters: u64,
    /// Byte of the FAT.
    fat: u64,
    /// Byte of cluster 2.
    pub(super) heap: u64,
    pub(super) root: u32,
}

impl Geometry {
    /// Reads the main boot region of a volume of `size` bytes.
    pub(super) fn read(volume: &dyn ReadAt, size: u64) -> Result<Self, Doubt> {
        if size < 512 {
            return Err(doubt("an exFAT volume of less than a sector"));
        }
        let mut boot = [0; 512];
        volume.read_at(0, &mut boot)?;
        let geometry = Self::parse(&boot, size)?;
        check_region(volume, 0, geometry.sector)?;
        Ok(geometry)
    }

    /// Whether the volume was left in a state to rely on.
    pub(super) fn check_state(&self, volume: &dyn ReadAt, size: u64) -> Result<(), Doubt> {
        let (mut main, mut backup) = ([0; 512], [0; 512]);
        volume.read_at(0, &mut main)?;
        let flags = le16(&main, 106);
        if flags & VOLUME_DIRTY != 0 {
            return Err(doubt("the exFAT volume was not cleanly unmounted"));
        }
        if flags & MEDIA_FAILURE != 0 {
            return Err(doubt("the exFAT volume has met read or write errors"));
        }
        // Systems differ in whether they keep it up to date, so it tells nothing of the bitmap.
        let percent = main[112];
        if percent > 100 && percent != 0xff {
            return Err(doubt(format!("the exFAT volume is {percent} % in use")));
        }
        let place = REGION_SECTORS * self.sector;
        volume.read_at(place, &mut backup)?;
        check_region(volume, place, self.sector)?;
        if Self::parse(&backup, size)? == *self {
            Ok(())
        } else {
            Err(doubt("the backup of the boot sector differs from it"))
        }
    }

    fn parse(boot: &[u8; 512], size: u64) -> Result<Self, Doubt> {
        let (sector_shift, cluster_shift) = (u32::from(boot[108]), u32::from(boot[109]));
        let signed = boot[..11] == *b"\xeb\x76\x90EXFAT   "
            && boot[510..] == [0x55, 0xaa]
            && boot[11..64].iter().all(|byte| *byte == 0);
        if !signed || !(9..=12).contains(&sector_shift) || sector_shift + cluster_shift > 25 {
            return Err(doubt("no exFAT boot sector"));
        }
        if le16(boot, 104) >> 8 != 1 {
            return Err(doubt(format!("exFAT of revision {:#06x}", le16(boot, 104))));
        }
        if boot[110] != 1 || le16(boot, 106) & ACTIVE_FAT != 0 {
            return Err(doubt("exFAT with two FATs (TexFAT)"));
        }
        let sectors = le64(boot, 72);
        let (fat, fat_len) = (u64::from(le32(boot, 80)), u64::from(le32(boot, 84)));
        let heap = u64::from(le32(boot, 88));
        let clusters = u64::from(le32(boot, 92));
        if sectors
            .checked_mul(1 << sector_shift)
            .is_none_or(|len| len > size)
        {
            return Err(doubt(format!(
                "the exFAT volume says {sectors} sectors of {} bytes, its place has {size} bytes",
                1u64 << sector_shift
            )));
        }
        if clusters > MAX_CLUSTERS {
            return Err(doubt(format!(
                "{clusters} clusters (at most {MAX_CLUSTERS})"
            )));
        }
        // All below 2^62: 32-bit numbers of at most 2^25 bytes.
        let sane = fat >= 2 * REGION_SECTORS
            && fat + fat_len <= heap
            && (clusters + 2) * 4 <= fat_len << sector_shift
            && clusters > 0
            && heap + (clusters << cluster_shift) <= sectors;
        let root = le32(boot, 96);
        if !sane || !(2..clusters + 2).contains(&u64::from(root)) {
            return Err(doubt(format!(
                "impossible places: FAT of {fat_len} sectors at {fat}, {clusters} clusters at \
                 {heap}, root directory in cluster {root}"
            )));
        }
        Ok(Self {
            sector: 1 << sector_shift,
            cluster: 1 << (sector_shift + cluster_shift),
            clusters,
            fat: fat << sector_shift,
            heap: heap << sector_shift,
            root,
        })
    }

    pub(super) const fn links(&self) -> Links {
        Links::new(self.fat, Width::Exfat, self.clusters)
    }

    /// Byte of a cluster, which the caller knows to exist.
    pub(super) fn place(&self, cluster: u32) -> u64 {
        self.heap + (u64::from(cluster) - 2) * self.cluster
    }

    /// `len` rounded up to whole sectors.
    pub(super) const fn whole_sectors(&self, len: u64) -> u64 {
        len.next_multiple_of(self.sector)
    }
}

/// The last sector of a region repeats the checksum of the others (§3.4), without the flags and the
/// percentage, which change.
fn check_region(volume: &dyn ReadAt, place: u64, sector: u64) -> Result<(), Doubt> {
    let mut region = vec![0; (REGION_SECTORS * sector) as usize];
    volume.read_at(place, &mut region)?;
    let (sectors, checksums) = region.split_at(((REGION_SECTORS - 1) * sector) as usize);
    let fixed = sectors
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 106 | 107 | 112))
        .map(|(_, byte)| *byte);
    let found = checksum32(0, fixed);
    match checksums
        .chunks_exact(4)
        .map(|sum| le32(sum, 0))
        .find(|sum| *sum != found)
    {
        None => Ok(()),
        Some(expected) => Err(doubt(format!(
            "the boot region at byte {place} has checksum {found:08x} (expected {expected:08x})"
        ))),
    }
}

/// The checksum of boot regions and up-case tables (§3.4, §7.2.2).
pub(super) fn checksum32(seed: u32, bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(seed, |sum, byte| {
        sum.rotate_right(1).wrapping_add(u32::from(byte))
    })
}
