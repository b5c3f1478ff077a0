//! Packs and their sidecar indexes: the byte formats, written down in `docs/formats/store.md`.
//!
//! ```text
//! pack    "NBPK" version:u32 id:u32 zero:u32 | records one after the other
//! index   "NBPI" version:u32 id:u32 zero:u32 pack_len:u64 entries:u64 | entry × entries | blake3:[u8; 32]
//! entry   digest:[u8; 32] offset:u64 plain_len:u32 stored_len:u32
//! ```
//!
//! Invariant: a decoded [`PackIndex`] has its checksum right, is sorted by digest without
//! duplicates, and every entry lies within the pack length it names. What is *not* here: files.

use std::fmt;
use std::path::{Path, PathBuf};

use backup::Digest;
use backup::chunk::{MAX_CHUNK_LEN, MAX_STORED_LEN, RecordHeader};

const PACK_MAGIC: &[u8; 4] = b"NBPK";
const INDEX_MAGIC: &[u8; 4] = b"NBPI";
const VERSION: u32 = 1;
const INDEX_HEADER_LEN: usize = 32;
const ENTRY_LEN: usize = 48;

/// Length of a pack's header in bytes.
pub(super) const PACK_HEADER_LEN: usize = 16;

/// A pack's number; packs are written in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PackId(pub(super) u32);

impl PackId {
    /// The file of the pack.
    pub(crate) fn file_name(self) -> String {
        format!("{self}.pack")
    }

    pub(super) fn pack_path(self, directory: &Path) -> PathBuf {
        directory.join(self.file_name())
    }

    pub(super) fn index_path(self, directory: &Path) -> PathBuf {
        directory.join(format!("{self}.idx"))
    }

    /// The pack of a file name with this extension, if it is one.
    pub(super) fn from_file_name(name: &str, extension: &str) -> Option<Self> {
        let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
        let plain = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = Self(u32::from_str_radix(digits, 16).ok()?);
        (plain && id.to_string() == digits).then_some(id)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A record's place and lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) header: RecordHeader,
    /// Byte offset of the record's header in its pack.
    pub(super) offset: u32,
}

impl Entry {
    /// The byte after the record.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + record_len(&self.header)
    }
}

/// Bytes of a whole record.
pub(super) fn record_len(header: &RecordHeader) -> u64 {
    RecordHeader::LEN as u64 + u64::from(header.stored_len)
}

/// Why bytes are no pack or index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PackError {
    /// Too short, or another kind of file.
    #[error("it does not begin like {what}")]
    Magic {
        /// What was expected.
        what: &'static str,
    },
    /// A later version.
    #[error("format version {found} (this program reads version 1)")]
    Version {
        /// The version found.
        found: u32,
    },
    /// It is of another pack.
    #[error("it names pack {found:08x}")]
    Id {
        /// The number found.
        found: u32,
    },
    /// An index whose length, checksum or entries are wrong.
    #[error("{reason}")]
    Index {
        /// What is wrong.
        reason: &'static str,
    },
}

fn check_head(bytes: &[u8], magic: &[u8; 4], id: PackId) -> Result<(), PackError> {
    let what = if magic == PACK_MAGIC {
        "a pack"
    } else {
        "the index of a pack"
    };
    let head = bytes
        .first_chunk::<PACK_HEADER_LEN>()
        .filter(|head| head.starts_with(magic))
        .ok_or(PackError::Magic { what })?;
    let version = le32(head, 4);
    if version != VERSION {
        return Err(PackError::Version { found: version });
    }
    let found = le32(head, 8);
    if found != id.0 {
        return Err(PackError::Id { found });
    }
    Ok(())
}

fn head(magic: &[u8; 4], id: PackId) -> [u8; PACK_HEADER_LEN] {
    let mut bytes = [0; PACK_HEADER_LEN];
    bytes[..4].copy_from_slice(magic);
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..12].copy_from_slice(&id.0.to_le_bytes());
    bytes
}

/// The first bytes of pack `id`.
pub(super) fn pack_header(id: PackId) -> [u8; PACK_HEADER_LEN] {
    head(PACK_MAGIC, id)
}

/// Checks the first bytes of pack `id`.
pub(super) fn check_pack_header(bytes: &[u8], id: PackId) -> Result<(), PackError> {
    check_head(bytes, PACK_MAGIC, id)
}

/// The sidecar of a sealed pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackIndex {
    pub(super) id: PackId,
    pub(super) pack_len: u64,
    pub(super) entries: Vec<Entry>,
}

impl PackIndex {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut sorted: Vec<&Entry> = self.entries.iter().collect();
        sorted.sort_unstable_by_key(|entry| entry.header.digest);
        sorted.dedup_by_key(|entry| entry.header.digest);
        let mut bytes =
            Vec::with_capacity(INDEX_HEADER_LEN + sorted.len() * ENTRY_LEN + Digest::LEN);
        bytes.extend_from_slice(&head(INDEX_MAGIC, self.id));
        bytes.extend_from_slice(&self.pack_len.to_le_bytes());
        bytes.extend_from_slice(&(sorted.len() as u64).to_le_bytes());
        for entry in sorted {
            bytes.extend_from_slice(entry.header.digest.as_bytes());
            bytes.extend_from_slice(&u64::from(entry.offset).to_le_bytes());
            bytes.extend_from_slice(&entry.header.plain_len.to_le_bytes());
            bytes.extend_from_slice(&entry.header.stored_len.to_le_bytes());
        }
        let checksum = Digest::of(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], id: PackId) -> Result<Self, PackError> {
        check_head(bytes, INDEX_MAGIC, id)?;
        let refuse = |reason| PackError::Index { reason };
        let (body, checksum) = bytes
            .split_last_chunk::<{ Digest::LEN }>()
            .filter(|(body, _)| body.len() >= INDEX_HEADER_LEN)
            .ok_or_else(|| refuse("it is cut short"))?;
        if Digest::of(body).as_bytes() != checksum {
            return Err(refuse("its checksum is wrong"));
        }
        let pack_len = le64(body, 16);
        let fields = &body[INDEX_HEADER_LEN..];
        if le64(body, 24).checked_mul(ENTRY_LEN as u64) != Some(fields.len() as u64) {
            return Err(refuse("its length does not fit its number of entries"));
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(fields.len() / ENTRY_LEN);
        for field in fields.chunks_exact(ENTRY_LEN) {
            let mut digest = [0; Digest::LEN];
            digest.copy_from_slice(&field[..32]);
            let header = RecordHeader {
                digest: Digest::from_bytes(digest),
                plain_len: le32(field, 40),
                stored_len: le32(field, 44),
            };
            if !(1..=MAX_CHUNK_LEN).contains(&header.plain_len)
                || !(1..=MAX_STORED_LEN).contains(&header.stored_len)
            {
                return Err(refuse("an entry has an impossible length"));
            }
            let offset = u32::try_from(le64(field, 32))
                .map_err(|_| refuse("an entry lies outside the pack"))?;
            let entry = Entry { header, offset };
            if (offset as usize) < PACK_HEADER_LEN || entry.end() > pack_len {
                return Err(refuse("an entry lies outside the pack"));
            }
            if entries
                .last()
                .is_some_and(|last| last.header.digest >= header.digest)
            {
                return Err(refuse("its entries are not sorted"));
            }
            entries.push(entry);
        }
        Ok(Self {
            id,
            pack_len,
            entries,
        })
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn index_of(records: &BTreeMap<[u8; 32], u32>) -> PackIndex {
        let mut offset = PACK_HEADER_LEN as u32;
        let entries: Vec<Entry> = records
            .iter()
            .map(|(digest, stored_len)| {
                let header = RecordHeader {
                    digest: Digest::from_bytes(*digest),
                    plain_len: *stored_len,
                    stored_len: *stored_len,
                };
                let entry = Entry { header, offset };
                offset = u32::try_from(entry.end()).unwrap();
                entry
            })
            .collect();
        PackIndex {
            id: PackId(7),
            pack_len: u64::from(offset),
            entries,
        }
    }

    proptest! {
        #[test]
        fn an_index_round_trips(
            records in proptest::collection::btree_map(any::<[u8; 32]>(), 1u32..2000, 0..50),
        ) {
            let index = index_of(&records);
            prop_assert_eq!(PackIndex::decode(&index.encode(), PackId(7)).unwrap(), index);
        }

        #[test]
        fn any_flipped_bit_of_an_index_is_noticed(at in any::<usize>(), bit in 0..8u8) {
            let records = BTreeMap::from([([1; 32], 10), ([2; 32], 20)]);
            let mut bytes = index_of(&records).encode();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(PackIndex::decode(&bytes, PackId(7)).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut body = head(INDEX_MAGIC, PackId(7)).to_vec();
            body.extend_from_slice(&bytes);
            body.extend_from_slice(Digest::of(&body.clone()).as_bytes());
            let _ = PackIndex::decode(&body, PackId(7));
            let _ = PackIndex::decode(&bytes, PackId(7));
        }
    }

    #[test]
    fn only_its_own_spelling_names_a_pack() {
        assert_eq!(
            PackId::from_file_name("0000001f.pack", "pack"),
            Some(PackId(31))
        );
        for name in [
            "0000001F.pack",
            "1f.pack",
            "0000001f.idx",
            "+000001f.pack",
            "0000001f.pack.tmp",
        ] {
            assert_eq!(PackId::from_file_name(name, "pack"), None, "{name}");
        }
    }
}
