//! Members of ZFS pools and of bcache.
//!
//! Sources: OpenZFS' "ZFS On-Disk Specification", chapter 1 (vdev labels), and the kernel's
//! `include/uapi/linux/bcache.h` (before 5.16; now `drivers/md/bcache/bcache_ondisk.h`).

use super::{Member, read};
use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::le64;

const LABEL_LEN: u64 = 256 << 10;
/// The uberblocks of a label, from its byte 128 KiB; each begins on a border of 1 KiB or more.
const UBERBLOCKS: u64 = 128 << 10;
const UBERBLOCK_MAGIC: u64 = 0x00ba_b10c;
/// Where the label's list of names and values begins.
const NAMES: u64 = 16 << 10;

/// A ZFS label: a name list that names the pool, and an uberblock. There are two labels at the
/// start and two at the end of a member.
pub(super) fn zfs(volume: &dyn ReadAt, size: u64) -> Result<Option<Member>, ReadError> {
    let aligned = size - size % LABEL_LEN;
    let places = [
        Some(0),
        Some(LABEL_LEN),
        aligned.checked_sub(2 * LABEL_LEN),
        aligned.checked_sub(LABEL_LEN),
    ];
    for place in places.into_iter().flatten() {
        let Some(names) = read::<4096>(volume, size, place + NAMES)? else {
            continue;
        };
        // Encoding 1 (XDR), byte order, two reserved bytes; then strings as XDR has them.
        let named = names[0] == 1
            && names[1] <= 1
            && names[2..4] == [0, 0]
            && names.windows(9).any(|text| text == b"pool_guid");
        if named && has_uberblock(volume, size, place)? {
            return Ok(Some(Member::Zfs));
        }
    }
    Ok(None)
}

fn has_uberblock(volume: &dyn ReadAt, size: u64, label: u64) -> Result<bool, ReadError> {
    for at in (UBERBLOCKS..LABEL_LEN).step_by(1024) {
        let magic = read::<8>(volume, size, label + at)?.map(u64::from_le_bytes);
        if magic
            .is_some_and(|magic| magic == UBERBLOCK_MAGIC || magic.swap_bytes() == UBERBLOCK_MAGIC)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `struct cache_sb_disk`: csum, its own place in sectors (8), version, then the magic number. An
/// old bcachefs has the same magic number and a checksum where the place is.
pub(super) fn bcache(volume: &dyn ReadAt, size: u64) -> Result<Option<Member>, ReadError> {
    const MAGIC: [u8; 16] = [
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d,
        0x81,
    ];
    let superblock = read::<40>(volume, size, 4096)?;
    Ok(superblock
        .filter(|superblock| superblock[24..40] == MAGIC && le64(superblock, 8) == 8)
        .map(|_| Member::Bcache))
}
