//! Which file system a volume holds, by its signature.
//!
//! Invariant: detection decides names only; which bytes are in use is decided by the file system's
//! own module, which checks everything again. No number read here is used to allocate.

use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le16, le32, le64};
use crate::manifest::{FileSystemKind, Volume};

/// The first bytes of a volume that hold all signatures but that of Btrfs.
const HEAD_LEN: usize = 8192;

/// Where Btrfs keeps its first superblock.
const BTRFS_SUPERBLOCK: u64 = 64 << 10;

/// All file systems whose signs a volume of `size` bytes bears, in the order in which they count.
/// More than one means that a formatting left signs of what was there before.
///
/// # Errors
/// [`ReadError`] when the volume's first bytes cannot be read.
pub fn detect(volume: &dyn ReadAt, size: u64) -> Result<Vec<Volume>, ReadError> {
    let mut head = vec![0; HEAD_LEN];
    let have = usize::try_from(size).unwrap_or(HEAD_LEN).min(HEAD_LEN);
    volume.read_at(0, &mut head[..have])?;
    // Containers first: a LUKS or LVM header may be followed by what the disk held before.
    let signs = [luks, lvm, bitlocker, xfs, exfat, ntfs, swap, ext, fat];
    let mut found: Vec<Volume> = signs.iter().filter_map(|sign| sign(&head, size)).collect();
    for found in &mut found {
        if found.file_system == FileSystemKind::Exfat {
            found.label = crate::filesystem::exfat::label(volume, size);
        }
    }
    if size >= BTRFS_SUPERBLOCK + 4096 {
        let mut superblock = vec![0; 4096];
        volume.read_at(BTRFS_SUPERBLOCK, &mut superblock)?;
        found.extend(btrfs(&superblock, size));
    }
    Ok(found)
}

/// Whether a volume is a member of an md RAID with its superblock at the end (metadata 0.90 and 1.0,
/// `Documentation/admin-guide/md.rst`): such a member of a mirror looks like its file system.
///
/// # Errors
/// [`ReadError`] when the volume's end cannot be read.
pub fn is_raid_member(volume: &dyn ReadAt, size: u64) -> Result<bool, ReadError> {
    const MAGIC: u32 = 0xa92b_4efc;
    const OLD_RESERVED: u64 = 64 << 10;
    let old = (size - size % OLD_RESERVED).checked_sub(OLD_RESERVED);
    // 8 KiB before the end, on a border of 4 KiB.
    let new = (size - size % 512)
        .checked_sub(8192)
        .map(|at| at - at % 4096);
    for place in [old, new].into_iter().flatten() {
        let mut magic = [0; 4];
        volume.read_at(place, &mut magic)?;
        // Metadata 0.90 has the byte order of the machine that made it.
        if le32(&magic, 0) == MAGIC || u32::from_be_bytes(magic) == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A volume without label, UUID and used bytes.
fn plain(file_system: FileSystemKind, block_size: u32, size: u64) -> Volume {
    Volume {
        file_system,
        label: None,
        uuid: None,
        block_size,
        size,
        used: None,
        sector_size: None,
    }
}

/// Text up to its first NUL, without padding spaces; `None` when nothing is left.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// A UUID stored in the order of its text; `None` for all zeros.
pub(crate) fn uuid(bytes: &[u8]) -> Option<String> {
    let uuid = uuid::Uuid::from_slice(bytes).ok()?;
    (!uuid.is_nil()).then(|| uuid.to_string())
}

/// cryptsetup's on-disk format documents: `LUKS\xba\xbe`, version, …, UUID text at byte 168.
fn luks(head: &[u8], size: u64) -> Option<Volume> {
    let version = u16::from_be_bytes([head[6], head[7]]);
    (head[..6] == *b"LUKS\xba\xbe" && matches!(version, 1 | 2)).then(|| Volume {
        uuid: text(&head[168..208]),
        label: (version == 2).then(|| text(&head[24..72])).flatten(),
        ..plain(FileSystemKind::Luks, 512, size)
    })
}

/// LVM2: `LABELONE` in one of the first four 512-byte sectors, type `LVM2 001`; the PV UUID follows
/// the label's header.
fn lvm(head: &[u8], size: u64) -> Option<Volume> {
    head[..2048]
        .chunks_exact(512)
        .find(|label| label[..8] == *b"LABELONE" && label[24..32] == *b"LVM2 001")
        .map(|label| {
            let id = le32(label, 20) as usize;
            let uuid = label
                .get(id..id.saturating_add(32))
                .and_then(|id| std::str::from_utf8(id).ok())
                .filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric()))
                .map(|id| {
                    let groups = [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32];
                    groups.map(|group| &id[group]).join("-")
                });
            Volume {
                uuid,
                ..plain(FileSystemKind::Lvm, 512, size)
            }
        })
}

fn bitlocker(head: &[u8], size: u64) -> Option<Volume> {
    (head[3..11] == *b"-FVE-FS-").then(|| plain(FileSystemKind::Bitlocker, 512, size))
}

/// XFS superblock, big endian: `XFSB`, block size, blocks, UUID at 32, label at 108.
fn xfs(head: &[u8], size: u64) -> Option<Volume> {
    if head[..4] != *b"XFSB" {
        return None;
    }
    let block_size = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let mut blocks = [0; 8];
    blocks.copy_from_slice(&head[8..16]);
    let bytes = u64::from_be_bytes(blocks).saturating_mul(u64::from(block_size));
    (block_size.is_power_of_two() && (512..=65536).contains(&block_size)).then(|| Volume {
        label: text(&head[108..120]),
        uuid: uuid(&head[32..48]),
        sector_size: Some(u32::from(u16::from_be_bytes([head[102], head[103]]))),
        ..plain(FileSystemKind::Xfs, block_size, bytes.min(size))
    })
}

/// Microsoft's exFAT specification, §3.1.
fn exfat(head: &[u8], size: u64) -> Option<Volume> {
    let (sector, cluster) = (head[108], head[109]);
    let known = head[3..11] == *b"EXFAT   "
        && (9..=12).contains(&sector)
        && u32::from(sector) + u32::from(cluster) <= 25;
    known.then(|| {
        let serial = le32(head, 100);
        let bytes = le64(head, 72).saturating_mul(1 << sector);
        Volume {
            uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
            sector_size: Some(1 << sector),
            ..plain(
                FileSystemKind::Exfat,
                1 << (sector + cluster),
                bytes.min(size),
            )
        }
    })
}

/// NTFS boot sector: OEM id, sector size at 11, sectors in a cluster at 13, serial at 72.
fn ntfs(head: &[u8], size: u64) -> Option<Volume> {
    let sector = u32::from(le16(head, 11));
    // Counts over 128 are powers of two, negated.
    let cluster = match head[13] {
        count @ 1..=128 => u32::from(count),
        count @ 0xf4.. => 1 << (256 - u32::from(count)),
        _ => return None,
    };
    let known = head[3..11] == *b"NTFS    "
        && sector.is_power_of_two()
        && (256..=4096).contains(&sector)
        && cluster.is_power_of_two();
    known.then(|| {
        let bytes = le64(head, 40).saturating_mul(u64::from(sector));
        Volume {
            uuid: Some(format!("{:016X}", le64(head, 72))),
            sector_size: Some(sector),
            ..plain(FileSystemKind::Ntfs, sector * cluster, bytes.min(size))
        }
    })
}

/// `mm/swapfile.c`: the signature ends the first page, the header is at byte 1024: version, last
/// page, bad pages, UUID, label.
fn swap(head: &[u8], size: u64) -> Option<Volume> {
    if head[4086..4096] != *b"SWAPSPACE2" || le32(head, 1024) != 1 {
        return None;
    }
    let pages = u64::from(le32(head, 1028)) + 1;
    Some(Volume {
        label: text(&head[1052..1068]),
        uuid: uuid(&head[1036..1052]),
        ..plain(FileSystemKind::Swap, 4096, (pages * 4096).min(size))
    })
}

/// ext2/3/4 (`fs/ext4/ext4.h`): superblock at byte 1024, magic number at its byte 56.
fn ext(head: &[u8], size: u64) -> Option<Volume> {
    let superblock = &head[1024..2048];
    let log = le32(superblock, 24);
    if le16(superblock, 56) != 0xef53 || log > 6 {
        return None;
    }
    let block_size = 1024u32 << log;
    let (compat, incompat, read_only) = (
        le32(superblock, 92),
        le32(superblock, 96),
        le32(superblock, 100),
    );
    let wide = incompat & 0x80 != 0;
    let high = |at: usize| {
        if wide {
            u64::from(le32(superblock, at)) << 32
        } else {
            0
        }
    };
    let blocks = u64::from(le32(superblock, 4)) | high(336);
    let free = u64::from(le32(superblock, 12)) | high(344);
    // As libblkid tells them apart: ext4 has what ext3 never had, ext3 has a journal.
    let file_system = if incompat & !0x16 != 0 || read_only & !0x7 != 0 {
        FileSystemKind::Ext4
    } else if compat & 0x4 != 0 {
        FileSystemKind::Ext3
    } else {
        FileSystemKind::Ext2
    };
    let bytes = blocks.saturating_mul(u64::from(block_size));
    Some(Volume {
        label: text(&superblock[120..136]),
        uuid: uuid(&superblock[104..120]),
        used: blocks
            .checked_sub(free)
            .map(|used| used.saturating_mul(u64::from(block_size)).min(size)),
        ..plain(file_system, block_size, bytes.min(size))
    })
}

/// Microsoft's FAT specification, §3: the BIOS parameter block must make sense in every field that
/// FAT uses, because it has no signature of its own.
fn fat(head: &[u8], size: u64) -> Option<Volume> {
    let geometry = crate::filesystem::fat::Geometry::parse(head)?;
    let (at, kind) = (geometry.extended_at(), geometry.file_system());
    let (label, serial) = match head[at] {
        0x29 => (text(&head[at + 5..at + 16]), Some(le32(head, at + 1))),
        0x28 => (None, Some(le32(head, at + 1))),
        _ => (None, None),
    };
    Some(Volume {
        label: label.filter(|label| label != "NO NAME"),
        uuid: serial.map(|serial| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
        sector_size: Some(u32::from(le16(head, 11))),
        ..plain(kind, geometry.cluster_size(), geometry.size().min(size))
    })
}

/// Btrfs superblock: magic number at byte 64, UUID at 32, total and used bytes at 112 and 120,
/// sector size at 144, label at 299.
fn btrfs(superblock: &[u8], size: u64) -> Option<Volume> {
    (superblock[64..72] == *b"_BHRfS_M").then(|| Volume {
        label: text(&superblock[299..555]),
        uuid: uuid(&superblock[32..48]),
        used: Some(le64(superblock, 120).min(size)),
        ..plain(
            FileSystemKind::Btrfs,
            le32(superblock, 144),
            le64(superblock, 112).min(size),
        )
    })
}
