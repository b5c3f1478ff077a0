//! A FAT volume for a disk with sectors of another size.
//!
//! A FAT counts in its own sectors, which may not be smaller than the disk's. Its clusters stay where they are: all
//! that changes is what lies before them, the reserved sectors and the FATs, which are laid out anew in the same
//! room. What is in the reserved sectors besides boot sector and FSInfo (start code of BIOS machines) counts
//! in sectors too, and is left out.

use super::Geometry;
use crate::SectorSize;
use crate::little_endian::{le16, le32, put32};

/// No volume has more before its first cluster: two FATs of 2^28 clusters of four bytes, and reserved sectors.
const MOST: u64 = 4 << 30;

/// Why a FAT volume cannot have sectors of the wanted size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SectorsError {
    /// Its boot sector is none, or is cut short.
    #[error("no FAT boot sector with all that is before its first cluster")]
    NoBootSector,
    /// Its clusters are not whole sectors.
    #[error(
        "its clusters of {cluster} bytes, the first of them at byte {first}, are not whole sectors of {sector} bytes"
    )]
    Clusters {
        /// Bytes of a cluster.
        cluster: u64,
        /// Where the first one is.
        first: u64,
        /// Bytes of the wanted sectors.
        sector: u64,
    },
    /// What is before the clusters does not fit into its room.
    #[error(
        "its reserved sectors and FATs do not fit before its first cluster in sectors of {sector} bytes"
    )]
    Room {
        /// Bytes of the wanted sectors.
        sector: u64,
    },
}

/// Offsets in the boot sector, §3.1 to §3.3 of Microsoft's specification.
mod field {
    pub(super) const SECTOR: usize = 11;
    pub(super) const CLUSTER: usize = 13;
    pub(super) const RESERVED: usize = 14;
    pub(super) const SHORT_TOTAL: usize = 19;
    pub(super) const SHORT_FAT: usize = 22;
    pub(super) const HIDDEN: usize = 28;
    pub(super) const LONG_TOTAL: usize = 32;
    pub(super) const LONG_FAT: usize = 36;
    pub(super) const INFO: usize = 48;
    pub(super) const BACKUP: usize = 50;
}

/// How many bytes of a volume come before its first cluster, from its first sector; `None` when that is none of a
/// FAT.
#[must_use]
pub fn front_len(boot: &[u8]) -> Option<u64> {
    let geometry = (boot.len() >= 512).then(|| Geometry::parse(boot))??;
    let len = geometry.data_start() * geometry.sector;
    (len <= MOST).then_some(len)
}

/// What comes before the first cluster of a volume, for sectors of another size; `front` is what is there, as long
/// as [`front_len`] says.
///
/// # Errors
/// [`SectorsError`] when that is not possible.
pub fn front_for(front: &[u8], sector: SectorSize) -> Result<Vec<u8>, SectorsError> {
    if front_len(front) != Some(front.len() as u64) {
        return Err(SectorsError::NoBootSector);
    }
    let old = Geometry::parse(front).ok_or(SectorsError::NoBootSector)?;
    let sector = sector.bytes();
    let cluster = u64::from(old.cluster_size());
    let first = front.len() as u64;
    if !cluster.is_multiple_of(sector) || !first.is_multiple_of(sector) {
        return Err(SectorsError::Clusters {
            cluster,
            first,
            sector,
        });
    }
    let no_room = SectorsError::Room { sector };
    let root = old.root_sectors * old.sector;
    let entries = ((old.clusters() + 2) * old.entry_bits()).div_ceil(8);
    let fat_sectors = entries.div_ceil(sector);
    // Boot sector, and for FAT32 FSInfo and a copy of the boot sector.
    let least = if old.wide { 3 } else { 1 };
    let reserved = ((first - root) / sector)
        .checked_sub(old.fats * fat_sectors)
        .filter(|reserved| *reserved >= least && root.is_multiple_of(sector))
        .and_then(|reserved| u16::try_from(reserved).ok())
        .ok_or_else(|| no_room.clone())?;
    let total = old.total * old.sector / sector;
    let mut boot = front[..512].to_vec();
    let put16 = |boot: &mut [u8], at: usize, value: u16| {
        boot[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    let narrow = |value: u64| u16::try_from(value).map_err(|_| no_room.clone());
    let wide = |value: u64| u32::try_from(value).map_err(|_| no_room.clone());
    put16(&mut boot, field::SECTOR, narrow(sector)?);
    boot[field::CLUSTER] = u8::try_from(cluster / sector)
        .ok()
        .filter(|count| *count <= 128)
        .ok_or_else(|| no_room.clone())?;
    put16(&mut boot, field::RESERVED, reserved);
    let short_total = u16::try_from(total).ok().filter(|_| !old.wide);
    put16(&mut boot, field::SHORT_TOTAL, short_total.unwrap_or(0));
    let long_total = if short_total.is_some() {
        0
    } else {
        wide(total)?
    };
    put32(&mut boot, field::LONG_TOTAL, long_total);
    let hidden = u64::from(le32(&boot, field::HIDDEN)) * old.sector / sector;
    put32(&mut boot, field::HIDDEN, wide(hidden)?);
    if old.wide {
        put32(&mut boot, field::LONG_FAT, wide(fat_sectors)?);
    } else {
        put16(&mut boot, field::SHORT_FAT, narrow(fat_sectors)?);
    }

    let mut new = vec![0; front.len()];
    let mut put = |at: u64, bytes: &[u8]| {
        let part = new.get_mut(at as usize..at as usize + bytes.len());
        part.map(|part| part.copy_from_slice(bytes))
            .ok_or_else(|| no_room.clone())
    };
    if old.wide {
        let info = u64::from(le16(front, field::INFO)) * old.sector;
        // Where the copies are: at 6 and 7 by convention, or as far behind as there is room.
        let backup = if reserved >= 8 { 6 } else { 2 };
        put16(&mut boot, field::INFO, 1);
        put16(&mut boot, field::BACKUP, backup);
        if let Some(info) = front.get(info as usize..info as usize + 512)
            && info[..4] == *b"RRaA"
        {
            put(sector, info)?;
            if backup + 1 < reserved {
                put(u64::from(backup + 1) * sector, info)?;
            }
        }
        put(u64::from(backup) * sector, &boot)?;
    }
    put(0, &boot)?;
    for number in 0..old.fats {
        let from = (old.reserved + number * old.fat_sectors) * old.sector;
        let fat = front
            .get(from as usize..(from + entries) as usize)
            .ok_or(SectorsError::NoBootSector)?;
        put((u64::from(reserved) + number * fat_sectors) * sector, fat)?;
    }
    put(first - root, &front[(first - root) as usize..])?;
    let same = Geometry::parse(&new).is_some_and(|geometry| {
        (
            geometry.clusters(),
            geometry.file_system(),
            geometry.data_start() * geometry.sector,
        ) == (old.clusters(), old.file_system(), first)
    });
    if same { Ok(new) } else { Err(no_room) }
}
