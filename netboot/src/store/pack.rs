//! Packs and their sidecar indexes: the byte formats, written down in `docs/formats/store.md`.
//!
//! ```text
//! pack    "NBPK" version:u32 id:u32 zero:u32 | records one after the other
//! index   "NBPI" version:u32 id:u32 zero:u32 pack_len:u64 entries:u64 | entry × entries
//!         | base:[u8; 32] of each entry that is a difference | blake3:[u8; 32]
//! entry   digest:[u8; 32] offset:u64 plain_len:u32 stored:u32 features:[u32; 3]
//! ```
//!
//! Version 1, which is read and not written, has neither differences nor features.
//!
//! Invariant: a decoded [`PackIndex`] has its checksum right, is sorted by digest without
//! duplicates, and every entry lies within the pack length it names; an entry has a base if and only if it is a
//! difference. What is *not* here: files.

use std::fmt;
use std::path::{Path, PathBuf};

use backup::Digest;
use backup::chunk::MAX_CHUNK_LEN;

use super::record::{PackHeader, Stored};
use super::resemblance::{Features, WORDS};

const PACK_MAGIC: &[u8; 4] = b"NBPK";
const INDEX_MAGIC: &[u8; 4] = b"NBPI";
/// Without differences; read, not written.
const FIRST_VERSION: u32 = 1;
const VERSION: u32 = 2;
const INDEX_HEADER_LEN: usize = 32;
const FIRST_ENTRY_LEN: usize = 48;
const ENTRY_LEN: usize = FIRST_ENTRY_LEN + 4 * WORDS;

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
    pub(super) header: PackHeader,
    /// Byte offset of the record's header in its pack.
    pub(super) offset: u32,
    /// The chunk that it is a difference from, if it is one.
    pub(super) base: Option<Digest>,
    /// What it resembles; of whole records only.
    pub(super) features: Features,
}

impl Entry {
    /// The byte after the record.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + self.header.record_len() as u64
    }
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
    #[error("format version {found} (this program reads versions 1 and 2)")]
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

/// The version of a file of this kind.
fn check_head(bytes: &[u8], magic: &[u8; 4], id: PackId) -> Result<u32, PackError> {
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
    if !(FIRST_VERSION..=VERSION).contains(&version) {
        return Err(PackError::Version { found: version });
    }
    let found = le32(head, 8);
    if found != id.0 {
        return Err(PackError::Id { found });
    }
    Ok(version)
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

/// Checks the first bytes of pack `id`; its version.
pub(super) fn check_pack_header(bytes: &[u8], id: PackId) -> Result<u32, PackError> {
    check_head(bytes, PACK_MAGIC, id)
}

/// The sidecar of a sealed pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackIndex {
    /// The version of its bytes: an index is never of an older one than its pack.
    pub(super) version: u32,
    pub(super) id: PackId,
    pub(super) pack_len: u64,
    pub(super) entries: Vec<Entry>,
}

impl PackIndex {
    /// An index of a pack that this program wrote or read through.
    pub(super) const fn new(id: PackId, pack_len: u64, entries: Vec<Entry>) -> Self {
        Self {
            version: VERSION,
            id,
            pack_len,
            entries,
        }
    }

    /// Whether these are the bytes of an index of any version, with the right checksum.
    pub(super) fn is_whole(bytes: &[u8]) -> bool {
        let split = bytes.split_last_chunk::<{ Digest::LEN }>();
        split.is_some_and(|(body, checksum)| Digest::of(body).as_bytes() == checksum)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut sorted: Vec<&Entry> = self.entries.iter().collect();
        sorted.sort_unstable_by_key(|entry| entry.header.digest);
        sorted.dedup_by_key(|entry| entry.header.digest);
        let mut bytes =
            Vec::with_capacity(INDEX_HEADER_LEN + sorted.len() * ENTRY_LEN + Digest::LEN);
        bytes.extend_from_slice(&head(INDEX_MAGIC, self.id));
        bytes.extend_from_slice(&self.pack_len.to_le_bytes());
        bytes.extend_from_slice(&(sorted.len() as u64).to_le_bytes());
        for entry in &sorted {
            bytes.extend_from_slice(entry.header.digest.as_bytes());
            bytes.extend_from_slice(&u64::from(entry.offset).to_le_bytes());
            bytes.extend_from_slice(&entry.header.plain_len.to_le_bytes());
            bytes.extend_from_slice(&entry.header.stored.word().to_le_bytes());
            for word in entry.features.0 {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        for base in sorted.iter().filter_map(|entry| entry.base) {
            bytes.extend_from_slice(base.as_bytes());
        }
        let checksum = Digest::of(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], id: PackId) -> Result<Self, PackError> {
        let version = check_head(bytes, INDEX_MAGIC, id)?;
        let refuse = |reason| PackError::Index { reason };
        let (body, _) = bytes
            .split_last_chunk::<{ Digest::LEN }>()
            .filter(|(body, _)| body.len() >= INDEX_HEADER_LEN)
            .ok_or_else(|| refuse("it is cut short"))?;
        if !Self::is_whole(bytes) {
            return Err(refuse("its checksum is wrong"));
        }
        let pack_len = le64(body, 16);
        let entry_len = if version == FIRST_VERSION {
            FIRST_ENTRY_LEN
        } else {
            ENTRY_LEN
        };
        let wrong_length = || refuse("its length does not fit its number of entries");
        let fields = &body[INDEX_HEADER_LEN..];
        let split = usize::try_from(le64(body, 24))
            .ok()
            .and_then(|entries| entries.checked_mul(entry_len))
            .and_then(|len| fields.split_at_checked(len));
        let (fields, bases) = split.ok_or_else(wrong_length)?;
        let (bases, rest) = bases.as_chunks::<{ Digest::LEN }>();
        let mut bases = bases.iter().copied().map(Digest::from_bytes);
        let mut entries: Vec<Entry> = Vec::with_capacity(fields.len() / entry_len);
        for field in fields.chunks_exact(entry_len) {
            let entry = decode_entry(field, version).map_err(refuse)?;
            if (entry.offset as usize) < PACK_HEADER_LEN || entry.end() > pack_len {
                return Err(refuse("an entry lies outside the pack"));
            }
            if entries
                .last()
                .is_some_and(|last| last.header.digest >= entry.header.digest)
            {
                return Err(refuse("its entries are not sorted"));
            }
            let base = if entry.header.stored.is_difference() {
                Some(bases.next().ok_or_else(wrong_length)?)
            } else {
                None
            };
            entries.push(Entry { base, ..entry });
        }
        if bases.next().is_some() || !rest.is_empty() {
            return Err(wrong_length());
        }
        Ok(Self {
            version,
            id,
            pack_len,
            entries,
        })
    }
}

/// An entry but for its base.
fn decode_entry(field: &[u8], version: u32) -> Result<Entry, &'static str> {
    let mut digest = [0; Digest::LEN];
    digest.copy_from_slice(&field[..32]);
    let plain_len = le32(field, 40);
    let stored = Stored::from_word(le32(field, 44))
        .filter(|stored| version > FIRST_VERSION || !stored.is_difference())
        .filter(|_| (1..=MAX_CHUNK_LEN).contains(&plain_len))
        .ok_or("an entry has an impossible length")?;
    let mut features = Features::default();
    if version > FIRST_VERSION {
        for (at, word) in features.0.iter_mut().enumerate() {
            *word = le32(field, FIRST_ENTRY_LEN + 4 * at);
        }
    }
    Ok(Entry {
        header: PackHeader {
            digest: Digest::from_bytes(digest),
            plain_len,
            stored,
        },
        offset: u32::try_from(le64(field, 32)).map_err(|_| "an entry lies outside the pack")?,
        base: None,
        features,
    })
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

    /// Records of odd lengths are differences.
    fn index_of(records: &BTreeMap<[u8; 32], u32>) -> PackIndex {
        let mut offset = PACK_HEADER_LEN as u32;
        let entries: Vec<Entry> = records
            .iter()
            .map(|(digest, len)| {
                let difference = len % 2 == 1;
                let stored = if difference {
                    Stored::difference(len + 32)
                } else {
                    Stored::whole(*len)
                };
                let header = PackHeader {
                    digest: Digest::from_bytes(*digest),
                    plain_len: *len,
                    stored,
                };
                let entry = Entry {
                    header,
                    offset,
                    base: difference.then(|| Digest::of(digest)),
                    features: Features([*len, 0, u32::from(digest[0])]),
                };
                offset = u32::try_from(entry.end()).unwrap();
                entry
            })
            .collect();
        PackIndex::new(PackId(7), u64::from(offset), entries)
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
            let records = BTreeMap::from([([1; 32], 10), ([2; 32], 21)]);
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
