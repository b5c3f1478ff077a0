//! The boot sector: the sizes that everything else is counted in, and where the MFT is.
//!
//! ```text
//!  3 "NTFS    "   11 sector size:u16   13 sectors in a cluster:u8   40 sectors:u64
//! 48 MFT:u64   56 MFT mirror:u64   64 MFT record size:i8   510 55 aa
//! ```
//!
//! Invariant: a [`Geometry`] lies within its volume; sizes are powers of two and small enough that no
//! product of a cluster number below `clusters` leaves `u64`.

use super::Fault;
use crate::filesystem::ReadAt;
use crate::little_endian::{le16, le64};

/// The largest MFT record that Windows ever made.
const MAX_RECORD: u64 = 4096;

/// The largest cluster of Windows.
const MAX_CLUSTER: u64 = 2 << 20;

/// The checked numbers of a boot sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes in a sector.
    pub(super) sector: u64,
    /// Bytes in a cluster.
    pub(super) cluster: u64,
    /// Sectors of the volume, without the copy of the boot sector that follows them.
    pub(super) sectors: u64,
    /// Whole clusters of the volume.
    pub(super) clusters: u64,
    /// Bytes in an MFT record.
    pub(super) record: usize,
    /// First cluster of the MFT.
    pub(super) mft: u64,
    /// First cluster of the mirror of its first records.
    pub(super) mirror: u64,
}

impl Geometry {
    /// Reads and checks the boot sector of a volume of `size` bytes.
    pub(super) fn read(volume: &dyn ReadAt, size: u64) -> Result<Self, Fault> {
        let mut boot = [0; 512];
        if size < boot.len() as u64 {
            return Err(Fault::damaged("an NTFS volume of less than a sector"));
        }
        volume.read_at(0, &mut boot)?;
        let geometry = Self::parse(&boot)
            .ok_or_else(|| Fault::damaged("the boot sector is none of NTFS or makes no sense"))?;
        match geometry.sectors.checked_mul(geometry.sector) {
            Some(len) if len <= size => Ok(geometry),
            _ => Err(Fault::Damaged(format!(
                "the NTFS volume says {} sectors of {} bytes, its place has {size} bytes",
                geometry.sectors, geometry.sector
            ))),
        }
    }

    fn parse(boot: &[u8; 512]) -> Option<Self> {
        let sector = u64::from(le16(boot, 11));
        // Counts over 128 are powers of two, negated.
        let in_cluster: u64 = match boot[13] {
            count @ 1..=128 => u64::from(count),
            count @ 0xf4.. => 1 << (256 - u64::from(count)),
            _ => return None,
        };
        let cluster = sector * in_cluster;
        // Counts of clusters, or powers of two of bytes, negated.
        let record = match boot[64] {
            count @ 1..=127 => u64::from(count) * cluster,
            count @ 0xe0.. => 1 << (256 - u64::from(count)),
            _ => return None,
        };
        let (sectors, mft, mirror) = (le64(boot, 40), le64(boot, 48), le64(boot, 56));
        let clusters = sectors / in_cluster;
        // Reserved sectors, FATs, root entries, short sector count, sectors of a FAT: not of NTFS.
        let not_fat = boot[14..21]
            .iter()
            .chain(&boot[22..24])
            .all(|byte| *byte == 0);
        let sane = boot[3..11] == *b"NTFS    "
            && boot[510..] == [0x55, 0xaa]
            && not_fat
            && sector.is_power_of_two()
            && (256..=4096).contains(&sector)
            && in_cluster.is_power_of_two()
            && (512..=MAX_CLUSTER).contains(&cluster)
            && record.is_power_of_two()
            && (512..=MAX_RECORD).contains(&record)
            && (1..clusters).contains(&mft)
            && (1..clusters).contains(&mirror);
        sane.then_some(Self {
            sector,
            cluster,
            sectors,
            clusters,
            record: record as usize,
            mft,
            mirror,
        })
    }
}
