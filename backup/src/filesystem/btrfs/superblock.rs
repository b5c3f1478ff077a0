//! The Btrfs superblock: checksum, features, and numbers checked against each other and the volume.

use super::Fault;
use crate::filesystem::ReadAt;
use crate::filesystem::crc::crc32c;
use crate::little_endian::{le16, le32, le64};

/// Where superblocks are (`btrfs_sb_offset`), as far as the volume reaches.
pub(super) const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
pub(super) const LEN: usize = 4096;
/// Where the chunks that hold the chunk tree are listed.
const SYSTEM_CHUNKS_AT: usize = 811;
const SYSTEM_CHUNKS_LEN: usize = 2048;
const MAX_LEVEL: u8 = 7;

/// Feature and flag bits, `include/uapi/linux/btrfs.h` and `btrfs_tree.h`.
mod feature {
    pub(super) const MIXED_BACKREF: u64 = 0x1;
    pub(super) const METADATA_UUID: u64 = 0x400;
    /// mixed_backref, default_subvol, mixed_groups, compress_lzo, compress_zstd, big_metadata,
    /// extended_iref, raid56 and raid1c34 (the chunks say whether it is used), skinny_metadata,
    /// no_holes, metadata_uuid.
    pub(super) const KNOWN_INCOMPATIBLE: u64 = 0xfff;
    /// free_space_tree, free_space_tree_valid, verity, block_group_tree.
    pub(super) const KNOWN_READ_ONLY: u64 = 0xf;
    pub(super) const BLOCK_GROUP_TREE: u64 = 0x8;

    pub(super) const WRITTEN: u64 = 0x1;
    pub(super) const ERROR: u64 = 0x4;
    pub(super) const SEEDING: u64 = 1 << 32;
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    /// Logical address of its top block.
    pub(super) block: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
    /// Which tree its blocks say they belong to; blocks of subvolumes may be another's.
    pub(super) owner: Option<u64>,
}

/// What is needed of a superblock, all checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// What each tree block bears: the metadata UUID, or the UUID when there is none.
    pub(super) tree_uuid: [u8; 16],
    pub(super) generation: u64,
    pub(super) root_tree: Root,
    pub(super) chunk_tree: Root,
    pub(super) sector_size: u64,
    pub(super) node_size: u64,
    pub(super) bytes_used: u64,
    /// Length of the file system's only device, at most that of the volume.
    pub(super) size: u64,
    pub(super) device: u64,
    pub(super) device_uuid: [u8; 16],
    pub(super) has_block_group_tree: bool,
    /// Keys and chunk items of the chunks that hold the chunk tree.
    pub(super) system_chunks: Vec<u8>,
    uuid: [u8; 16],
    log_root: u64,
    flags: u64,
    read_only_features: u64,
}

fn uuid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[at..at + 16]);
    uuid
}

/// Whether a superblock or tree block has the checksum that its first bytes say.
pub(super) fn is_intact(bytes: &[u8]) -> bool {
    !crc32c(!0, &[&bytes[32..]]) == le32(bytes, 0)
}

impl Superblock {
    /// Reads and checks the superblock of a volume of `size` bytes.
    pub(super) fn read(volume: &dyn ReadAt, size: u64) -> Result<Self, Fault> {
        if size < PLACES[0] + LEN as u64 {
            return Err(Fault::damaged("a Btrfs of less than 68 KiB"));
        }
        let mut bytes = vec![0; LEN];
        volume.read_at(PLACES[0], &mut bytes)?;
        let kind = le16(&bytes, 196);
        if kind != 0 {
            let name = match kind {
                1 => "xxhash",
                2 => "sha256",
                3 => "blake2",
                _ => "unknown",
            };
            return Err(Fault::Unsupported(format!("checksum type {kind} ({name})")));
        }
        if bytes[64..72] != *b"_BHRfS_M" || le64(&bytes, 48) != PLACES[0] {
            return Err(Fault::damaged("no Btrfs superblock at 64 KiB"));
        }
        if !is_intact(&bytes) {
            return Err(Fault::damaged("the superblock's checksum does not fit"));
        }
        check_features(&bytes)?;
        numbers(&bytes, size)
    }

    /// Checks that nothing is under way or in doubt: that the used blocks are what the trees say.
    pub(super) fn check_settled(&self, volume: &dyn ReadAt) -> Result<(), Fault> {
        let unsupported = |reason: &str| Err(Fault::Unsupported(reason.to_owned()));
        if self.log_root != 0 {
            return unsupported("the log tree must be replayed first");
        }
        if self.flags & feature::ERROR != 0 {
            return unsupported("the file system is marked as having errors");
        }
        if self.flags != feature::WRITTEN {
            return Err(Fault::Unsupported(format!(
                "superblock flags {:#x} (expected {:#x})",
                self.flags,
                feature::WRITTEN
            )));
        }
        let unknown = self.read_only_features & !feature::KNOWN_READ_ONLY;
        if unknown != 0 {
            return Err(Fault::Unsupported(format!(
                "unknown read-only compatible features {unknown:#x}"
            )));
        }
        self.check_copies(volume)
    }

    /// The places of all superblocks of the file system.
    pub(super) fn places(&self) -> impl Iterator<Item = u64> + '_ {
        PLACES
            .into_iter()
            .filter(|place| place + LEN as u64 <= self.size)
    }

    fn check_copies(&self, volume: &dyn ReadAt) -> Result<(), Fault> {
        let mut bytes = vec![0; LEN];
        for place in self.places().skip(1) {
            volume.read_at(place, &mut bytes)?;
            let is_copy = bytes[64..72] == *b"_BHRfS_M"
                && le64(&bytes, 48) == place
                && uuid_at(&bytes, 32) == self.uuid
                && is_intact(&bytes);
            if is_copy && le64(&bytes, 72) > self.generation {
                return Err(Fault::damaged(format!(
                    "the superblock at byte {place} is newer than the first one"
                )));
            }
        }
        Ok(())
    }
}

fn check_features(bytes: &[u8]) -> Result<(), Fault> {
    let unsupported = |reason: String| Err(Fault::Unsupported(reason));
    let incompatible = le64(bytes, 188);
    let unknown = incompatible & !feature::KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        return unsupported(format!("unknown incompatible features {unknown:#x}"));
    }
    if incompatible & feature::MIXED_BACKREF == 0 {
        return unsupported("back references of the first Btrfs versions".to_owned());
    }
    if le64(bytes, 56) & feature::SEEDING != 0 {
        return unsupported("a seed device".to_owned());
    }
    match le64(bytes, 136) {
        1 => Ok(()),
        devices => unsupported(format!("a Btrfs of {devices} devices")),
    }
}

fn numbers(bytes: &[u8], size: u64) -> Result<Superblock, Fault> {
    let (sector_size, node_size) = (le32(bytes, 144), le32(bytes, 148));
    let sane = |len: u32| len.is_power_of_two() && (4096..=65536).contains(&len);
    if !sane(sector_size) || !sane(node_size) || node_size < sector_size {
        return Err(Fault::damaged(format!(
            "sectors of {sector_size} and tree blocks of {node_size} bytes"
        )));
    }
    let (total, device_size) = (le64(bytes, 112), le64(bytes, 209));
    if total.max(device_size) > size {
        return Err(Fault::damaged(format!(
            "it says {} bytes, its place has {size} bytes",
            total.max(device_size)
        )));
    }
    let uuid = uuid_at(bytes, 32);
    let tree_uuid = if le64(bytes, 188) & feature::METADATA_UUID != 0 {
        uuid_at(bytes, 571)
    } else {
        uuid
    };
    if uuid_at(bytes, 283) != tree_uuid {
        return Err(Fault::damaged("its device belongs to another file system"));
    }
    let generation = le64(bytes, 72);
    let system_chunks_len = le32(bytes, 160) as usize;
    if system_chunks_len > SYSTEM_CHUNKS_LEN {
        return Err(Fault::damaged(format!(
            "{system_chunks_len} bytes of system chunks (at most {SYSTEM_CHUNKS_LEN})"
        )));
    }
    let superblock = Superblock {
        tree_uuid,
        generation,
        root_tree: Root {
            block: le64(bytes, 80),
            level: bytes[198],
            generation,
            owner: Some(1),
        },
        chunk_tree: Root {
            block: le64(bytes, 88),
            level: bytes[199],
            generation: le64(bytes, 164),
            owner: Some(3),
        },
        sector_size: u64::from(sector_size),
        node_size: u64::from(node_size),
        bytes_used: le64(bytes, 120),
        size: device_size,
        device: le64(bytes, 201),
        device_uuid: uuid_at(bytes, 267),
        has_block_group_tree: le64(bytes, 180) & feature::BLOCK_GROUP_TREE != 0,
        system_chunks: bytes[SYSTEM_CHUNKS_AT..SYSTEM_CHUNKS_AT + system_chunks_len].to_vec(),
        uuid,
        log_root: le64(bytes, 96),
        flags: le64(bytes, 56),
        read_only_features: le64(bytes, 180),
    };
    if superblock.root_tree.level > MAX_LEVEL
        || superblock.chunk_tree.level > MAX_LEVEL
        || superblock.chunk_tree.generation > generation
        || superblock.size < PLACES[0] + LEN as u64
    {
        return Err(Fault::damaged("impossible numbers in the superblock"));
    }
    Ok(superblock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::ReadError;

    struct Short;
    impl ReadAt for Short {
        fn read_at(&self, _: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            buffer.fill(0);
            Ok(())
        }
    }

    #[test]
    fn zeros_are_no_superblock() {
        for size in [0, 65536, 1 << 20] {
            assert!(Superblock::read(&Short, size).is_err());
        }
    }
}
