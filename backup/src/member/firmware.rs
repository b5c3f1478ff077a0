//! Members of a RAID that the firmware of a board or a simple controller puts together: their
//! metadata lies near the end of the whole disk.
//!
//! Sources: mdadm's `super-intel.c` and `super-ddf.c` for Intel's and SNIA's formats (field places
//! only), util-linux' `libblkid` for where the others keep their texts. What is *not* here: formats
//! whose sign is only two to four bytes (Silicon Image, JMicron, VIA, Adaptec, HighPoint).

use super::{Member, read};
use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::le32;

/// `struct imsm_super` begins with this text and a version.
const INTEL: &[u8] = b"Intel Raid ISM Cfg Sig. ";
/// SNIA DDF 2.0, §4.2: the anchor header, in the last sector.
const DDF: u32 = 0xde11_de11;
const PROMISE: &[u8] = b"Promise Technology, Inc.";
/// Sectors from the end at which Promise controllers keep their metadata.
const PROMISE_SECTORS: [u64; 13] = [
    63, 255, 256, 16, 399, 591, 675, 735, 911, 974, 991, 951, 3087,
];

pub(super) fn member(disk: &dyn ReadAt, size: u64) -> Result<Option<Member>, ReadError> {
    let from_end =
        |count: u64, sector: u64| (size / sector).checked_sub(count).map(|at| at * sector);
    let begins = |place: Option<u64>, sign: &[u8]| -> Result<bool, ReadError> {
        let Some(place) = place else { return Ok(false) };
        Ok(read::<32>(disk, size, place)?.is_some_and(|bytes| bytes.starts_with(sign)))
    };
    let found = |maker| Ok(Some(Member::FirmwareRaid { maker }));
    // Intel counts in the disk's own sectors, which may be of either size.
    if begins(from_end(2, 512), INTEL)? || begins(from_end(2, 4096), INTEL)? {
        return found("Intel Matrix Storage / Rapid Storage");
    }
    for count in [1, 257] {
        if let Some(place) = from_end(count, 512)
            && read(disk, size, place)?.is_some_and(|header| is_ddf(&header))
        {
            return found("SNIA DDF");
        }
    }
    if begins(from_end(2, 512), b"NVIDIA  ")? {
        return found("NVIDIA");
    }
    if begins(from_end(1, 512), b"$XIDE$")? {
        return found("LSI MegaRAID");
    }
    for count in PROMISE_SECTORS {
        if begins(from_end(count, 512), PROMISE)? {
            return found("Promise FastTrak");
        }
    }
    Ok(None)
}

/// Magic number and CRC, big endian; the CRC is computed over the header with all ones in its place.
fn is_ddf(header: &[u8; 512]) -> bool {
    let big = |at: usize| le32(header, at).swap_bytes();
    let crc = |big_endian: bool| {
        let mut copy = *header;
        copy[4..8].fill(0xff);
        let crc = crc32fast::hash(&copy);
        crc == if big_endian { big(4) } else { le32(header, 4) }
    };
    big(0) == DDF && crc(true) || le32(header, 0) == DDF && crc(false)
}
