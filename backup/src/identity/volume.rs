//! The ids of volumes, and the bytes that change them where bytes are all it takes.
//!
//! FAT and exFAT have the number in each copy of the boot sector, a swap in its header, Btrfs in each copy of
//! the superblock (with the old one kept beside it, for everything that the trees are marked with). Ext and
//! XFS have theirs in checksums of all their metadata and are changed by their own tools.
//!
//! Invariant: what is not as expected is [`VolumeIdError::Untrusted`], and then nothing is changed.

use uuid::Uuid;

use crate::filesystem::crc::crc32c;
use crate::filesystem::fat::Geometry;
use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le16, le32, le64, put32, put64};
use crate::manifest::FileSystemKind;

/// An id that cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeIdError {
    /// The volume could not be read.
    #[error("the volume could not be read")]
    Read(#[from] ReadError),
    /// It is not as it should be.
    #[error("{0}")]
    Untrusted(String),
}

/// Bytes to be written to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where, in bytes from the start of the volume.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Byte of the UUID in a swap header (`union swap_header`, include/linux/swap.h).
const SWAP_UUID: u64 = 1036;
/// Sectors of an exFAT boot region that its checksum covers.
const EXFAT_SUMMED: usize = 11;
/// Places of the superblocks of Btrfs.
const BTRFS_PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// Its length.
const BTRFS_SUPERBLOCK: usize = 4096;
/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`: the trees are marked with another id than the file system's.
const BTRFS_METADATA_UUID: u64 = 1 << 10;

/// Offsets in a Btrfs superblock (`struct btrfs_super_block`, include/uapi/linux/btrfs_tree.h).
mod btrfs {
    pub(super) const FSID: usize = 32;
    pub(super) const BYTENR: usize = 48;
    pub(super) const MAGIC: usize = 64;
    pub(super) const DEVICES: usize = 136;
    pub(super) const INCOMPATIBLE: usize = 188;
    pub(super) const CHECKSUM_KIND: usize = 196;
    pub(super) const METADATA_UUID: usize = 571;
}

fn untrusted<T>(reason: impl Into<String>) -> Result<T, VolumeIdError> {
    Err(VolumeIdError::Untrusted(reason.into()))
}

/// The patches that give a FAT volume another serial number.
///
/// # Errors
/// [`VolumeIdError`] when it is no FAT volume with a serial number.
pub fn fat(volume: &dyn ReadAt, new: u32) -> Result<Vec<Patch>, VolumeIdError> {
    let mut boot = [0; 512];
    volume.read_at(0, &mut boot)?;
    let Some(geometry) = Geometry::parse(&boot) else {
        return untrusted("no FAT boot sector");
    };
    let at = geometry.extended_at();
    if !matches!(boot[at], 0x28 | 0x29) {
        return untrusted("its boot sector has no serial number");
    }
    let bytes = new.to_le_bytes().to_vec();
    let place = at as u64 + 1;
    let mut patches = vec![Patch {
        offset: place,
        bytes: bytes.clone(),
    }];
    // FAT32 says where its copy is; 0 and 0xffff are none.
    let copy = u64::from(le16(&boot, 50));
    if geometry.file_system() == FileSystemKind::Fat32 && (1..geometry.reserved()).contains(&copy) {
        let start = copy * geometry.sector();
        let mut backup = [0; 512];
        volume.read_at(start, &mut backup)?;
        let same =
            Geometry::parse(&backup) == Some(geometry) && backup[at..at + 5] == boot[at..at + 5];
        if same {
            patches.push(Patch {
                offset: start + place,
                bytes,
            });
        }
    }
    Ok(patches)
}

/// The patches that give an exFAT volume another serial number.
///
/// # Errors
/// [`VolumeIdError`] when it is none, or a checksum of its boot regions is wrong.
pub fn exfat(volume: &dyn ReadAt, new: u32) -> Result<Vec<Patch>, VolumeIdError> {
    let mut boot = [0; 512];
    volume.read_at(0, &mut boot)?;
    if boot[3..11] != *b"EXFAT   " || !(9..=12).contains(&boot[108]) {
        return untrusted("no exFAT boot sector");
    }
    let sector = 1usize << boot[108];
    let region_len = (EXFAT_SUMMED + 1) * sector;
    let mut patches = Vec::new();
    for region in 0..2u64 {
        let start = region * region_len as u64;
        let mut bytes = vec![0; region_len];
        volume.read_at(start, &mut bytes)?;
        let kept = le32(&bytes, EXFAT_SUMMED * sector);
        if exfat_checksum(&bytes[..EXFAT_SUMMED * sector]) != kept {
            return untrusted("the checksum of an exFAT boot region is wrong");
        }
        put32(&mut bytes, 100, new);
        let sum = exfat_checksum(&bytes[..EXFAT_SUMMED * sector]);
        for word in bytes[EXFAT_SUMMED * sector..].chunks_exact_mut(4) {
            word.copy_from_slice(&sum.to_le_bytes());
        }
        patches.push(Patch {
            offset: start,
            bytes,
        });
    }
    Ok(patches)
}

/// §3.4 of the exFAT specification: all bytes but `VolumeFlags` and `PercentInUse`.
fn exfat_checksum(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 106 | 107 | 112))
        .fold(0u32, |sum, (_, byte)| {
            sum.rotate_right(1).wrapping_add(u32::from(*byte))
        })
}

/// The patch that gives a swap another UUID.
///
/// # Errors
/// [`VolumeIdError`] when it is no swap of version 1.
pub fn swap(volume: &dyn ReadAt, new: Uuid) -> Result<Vec<Patch>, VolumeIdError> {
    let (mut head, mut signature) = ([0; 4], [0; 10]);
    volume.read_at(1024, &mut head)?;
    volume.read_at(4086, &mut signature)?;
    if signature != *b"SWAPSPACE2" || le32(&head, 0) != 1 {
        return untrusted("no swap header");
    }
    Ok(vec![Patch {
        offset: SWAP_UUID,
        bytes: new.as_bytes().to_vec(),
    }])
}

/// The patches that give a Btrfs of `size` bytes another UUID. Its trees stay marked with the old one, which
/// kernels since 5.0 read beside it.
///
/// # Errors
/// [`VolumeIdError`] when a superblock is not right, or the file system has more than one device.
pub fn btrfs(volume: &dyn ReadAt, size: u64, new: Uuid) -> Result<Vec<Patch>, VolumeIdError> {
    let mut patches = Vec::new();
    for place in BTRFS_PLACES {
        if place + BTRFS_SUPERBLOCK as u64 > size {
            break;
        }
        let mut bytes = vec![0; BTRFS_SUPERBLOCK];
        volume.read_at(place, &mut bytes)?;
        let right = bytes[btrfs::MAGIC..btrfs::MAGIC + 8] == *b"_BHRfS_M"
            && le64(&bytes, btrfs::BYTENR) == place;
        if !right && !patches.is_empty() {
            // The file system may end before its place.
            continue;
        }
        if !right || le16(&bytes, btrfs::CHECKSUM_KIND) != 0 {
            return untrusted("its superblock is not one with a checksum by CRC-32C");
        }
        if !crc32c(!0, &[&bytes[32..]]) != le32(&bytes, 0) {
            return untrusted(format!(
                "the checksum of the superblock at byte {place} is wrong"
            ));
        }
        if le64(&bytes, btrfs::DEVICES) != 1 {
            return untrusted("it lies on more than one device");
        }
        let features = le64(&bytes, btrfs::INCOMPATIBLE);
        if features & BTRFS_METADATA_UUID == 0 {
            let old: Vec<u8> = bytes[btrfs::FSID..btrfs::FSID + 16].to_vec();
            bytes[btrfs::METADATA_UUID..btrfs::METADATA_UUID + 16].copy_from_slice(&old);
            put64(
                &mut bytes,
                btrfs::INCOMPATIBLE,
                features | BTRFS_METADATA_UUID,
            );
        }
        bytes[btrfs::FSID..btrfs::FSID + 16].copy_from_slice(new.as_bytes());
        let sum = !crc32c(!0, &[&bytes[32..]]);
        put32(&mut bytes, 0, sum);
        patches.push(Patch {
            offset: place,
            bytes,
        });
    }
    if patches.is_empty() {
        return untrusted("no Btrfs superblock");
    }
    Ok(patches)
}

/// Whether the metadata of the ext file system with this superblock have its UUID in their checksums, so that
/// all of them change with it: `metadata_csum` without `metadata_csum_seed` (fs/ext4/ext4.h).
#[must_use]
pub fn ext_checksums_have_uuid(superblock: &[u8; 1024]) -> bool {
    le32(superblock, 100) & 0x400 != 0 && le32(superblock, 96) & 0x2000 == 0
}
