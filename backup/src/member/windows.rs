//! Windows dynamic disks and Storage Spaces, by the types in the partition table.
//!
//! Sources: Microsoft's `PARTITION_INFORMATION_GPT` for the GUIDs; the kernel's
//! `block/partitions/ldm.c` for disks with a PC partition table, whose entries all have type 0x42.

use uuid::Uuid;

use super::{Member, read};
use crate::SectorSize;
use crate::filesystem::{ReadAt, ReadError};
use crate::gpt::is_protective_mbr;
use crate::little_endian::le32;

const LDM_METADATA: Uuid = Uuid::from_u128(0x5808_c8aa_7e8f_42e0_85d2_e1e9_0434_cfb3);
const LDM_DATA: Uuid = Uuid::from_u128(0xaf9b_60a0_1431_4f62_bc68_3311_714a_69ad);
const STORAGE_SPACES: Uuid = Uuid::from_u128(0xe75c_af8f_f680_4cee_afa3_b001_e56e_fc2d);

/// The type byte of each partition of a dynamic disk.
const DYNAMIC: u8 = 0x42;
/// Where the first private header of a dynamic disk with a PC partition table is: sector 6.
const PRIVATE_HEADER: u64 = 6 * 512;

/// What the type GUID of a partition says.
pub(super) fn of_type(guid: Option<Uuid>) -> Option<Member> {
    match guid? {
        LDM_METADATA | LDM_DATA => Some(Member::DynamicDisk),
        STORAGE_SPACES => Some(Member::StorageSpaces),
        _ => None,
    }
}

/// Whether a disk with a PC partition table is a dynamic one. The private header alone counts only
/// when the table names no partition: it stays behind when a disk is partitioned anew.
pub(super) fn is_dynamic(
    disk: &dyn ReadAt,
    size: u64,
    sector: SectorSize,
) -> Result<bool, ReadError> {
    let Some(first) = read::<512>(disk, size, 0)? else {
        return Ok(false);
    };
    let signed = first[510..] == [0x55, 0xaa];
    if signed && is_protective_mbr(&first) {
        return Ok(false);
    }
    let entry = |slot: usize| &first[446 + 16 * slot..462 + 16 * slot];
    let sensible = (0..4).all(|slot| matches!(entry(slot)[0], 0 | 0x80));
    let used = (0..4).any(|slot| entry(slot)[4] != 0);
    if signed && sensible && used {
        // A boot sector has text here that could look like an entry; its place could not.
        let inside = |slot: usize| {
            let (start, len) = (le32(entry(slot), 8), le32(entry(slot), 12));
            start > 0 && len > 0 && u64::from(start) < size / sector.bytes()
        };
        return Ok((0..4).any(|slot| entry(slot)[4] == DYNAMIC && inside(slot)));
    }
    let header = read::<8>(disk, size, PRIVATE_HEADER)?;
    Ok(header.is_some_and(|header| header == *b"PRIVHEAD"))
}
