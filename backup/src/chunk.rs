//! Chunks: the pieces a region is cut into, the list that names them, and the record that carries one.
//!
//! Two byte formats, both little endian, both documented in `docs/formats/chunks.md`:
//!
//! ```text
//! chunk list   "NBCL" version:u32 entries:u64 | entry × entries
//! entry        offset:u64 len:u32 kind:u32 (0 zero, 1 data) digest:[u8; 32] (zeros for kind 0)
//! record       digest:[u8; 32] plain_len:u32 stored_len:u32 | stored_len bytes: one zstd frame
//! ```
//!
//! Invariant: a decoded [`ChunkList`] is in order of offset, its entries never overlap, no data
//! chunk is empty or longer than [`MAX_CHUNK_LEN`], and it stays within the region length it was
//! decoded for. Decoding never trusts a length it has not checked.

use crate::{ByteRange, Digest};

/// The most plain bytes in one data chunk.
pub const MAX_CHUNK_LEN: u32 = 256 * 1024;

/// The most bytes a stored frame of a chunk may have: zstd's bound for incompressible input.
pub const MAX_STORED_LEN: u32 = MAX_CHUNK_LEN + MAX_CHUNK_LEN / 128 + 1024;

/// What is in a range of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Only zero bytes; they are part of the backup and must be zero after a restore.
    Zero,
    /// The bytes with this digest.
    Data(Digest),
}

/// One piece of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Where it is, counted in bytes from the start of its region.
    pub range: ByteRange,
    /// What is there.
    pub content: Content,
}

/// Bytes that are no chunk list or record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// It does not begin with the magic number.
    #[error("not a chunk list: begins with {found:02x?} (expected \"NBCL\")")]
    Magic {
        /// The first four bytes, or fewer.
        found: Vec<u8>,
    },
    /// A version of the format that this program does not know.
    #[error("chunk list of format version {found} (this program reads version 1)")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Too few or too many bytes.
    #[error("{what} has {found} bytes (expected {expected})")]
    Length {
        /// What was being read.
        what: &'static str,
        /// Bytes expected.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// An entry that breaks an invariant of the list.
    #[error("chunk list entry {index} at byte {offset}, {len} bytes: {reason}")]
    Entry {
        /// The entry's number from 0.
        index: u64,
        /// Its offset in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record header with an impossible length.
    #[error("chunk {digest}: {what} is {found} bytes (expected 1 to {limit})")]
    RecordLength {
        /// The chunk.
        digest: Digest,
        /// Which of the lengths.
        what: &'static str,
        /// The length found.
        found: u32,
        /// The most allowed.
        limit: u32,
    },
}

/// All the saved content of one region, in order of offset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkList {
    chunks: Vec<Chunk>,
}

const MAGIC: &[u8; 4] = b"NBCL";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 48;

impl ChunkList {
    /// A list from chunks, checked against the invariant for a region of `region_len` bytes.
    ///
    /// # Errors
    /// [`ChunkError::Entry`] for the first chunk that breaks it.
    pub fn new(chunks: Vec<Chunk>, region_len: u64) -> Result<Self, ChunkError> {
        let mut end = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            let refuse = |reason| {
                Err(ChunkError::Entry {
                    index: index as u64,
                    offset: chunk.range.start(),
                    len: u32::try_from(chunk.range.len()).unwrap_or(u32::MAX),
                    reason,
                })
            };
            if chunk.range.is_empty() {
                return refuse("is empty");
            }
            if chunk.range.len() > u64::from(u32::MAX) {
                return refuse("is longer than 4 GiB");
            }
            if matches!(chunk.content, Content::Data(_))
                && chunk.range.len() > u64::from(MAX_CHUNK_LEN)
            {
                return refuse("is longer than a data chunk may be (256 KiB)");
            }
            if chunk.range.start() < end {
                return refuse("overlaps or precedes the entry before it");
            }
            if chunk.range.end() > region_len {
                return refuse("ends past its region");
            }
            end = chunk.range.end();
        }
        Ok(Self { chunks })
    }

    /// The chunks in order of offset.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Bytes of data chunks.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.chunks
            .iter()
            .filter(|chunk| matches!(chunk.content, Content::Data(_)))
            .map(|chunk| chunk.range.len())
            .sum()
    }

    /// Bytes of zero ranges.
    #[must_use]
    pub fn zero_bytes(&self) -> u64 {
        self.chunks
            .iter()
            .filter(|chunk| chunk.content == Content::Zero)
            .map(|chunk| chunk.range.len())
            .sum()
    }

    /// The byte form, as documented at the top of this module.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.chunks.len() * ENTRY_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.chunks.len() as u64).to_le_bytes());
        for chunk in &self.chunks {
            let (kind, digest) = match chunk.content {
                Content::Zero => (0u32, [0; Digest::LEN]),
                Content::Data(digest) => (1, *digest.as_bytes()),
            };
            bytes.extend_from_slice(&chunk.range.start().to_le_bytes());
            // The constructor admits no length past u32.
            bytes.extend_from_slice(&(chunk.range.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&digest);
        }
        bytes
    }

    /// Reads the byte form of a list for a region of `region_len` bytes.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes, see [`ChunkError`].
    pub fn decode(bytes: &[u8], region_len: u64) -> Result<Self, ChunkError> {
        let header = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(ChunkError::Length {
                what: "chunk list",
                expected: HEADER_LEN as u64,
                found: bytes.len() as u64,
            })?;
        if &header[..4] != MAGIC {
            return Err(ChunkError::Magic {
                found: header[..4].to_vec(),
            });
        }
        let version = le32(header, 4);
        if version != VERSION {
            return Err(ChunkError::Version { found: version });
        }
        let body = &bytes[HEADER_LEN..];
        let expected = le64(header, 8).saturating_mul(ENTRY_LEN as u64);
        if body.len() as u64 != expected {
            return Err(ChunkError::Length {
                what: "chunk list after its header",
                expected,
                found: body.len() as u64,
            });
        }
        let mut chunks = Vec::with_capacity(body.len() / ENTRY_LEN);
        for (index, entry) in body.chunks_exact(ENTRY_LEN).enumerate() {
            let (offset, len, kind) = (le64(entry, 0), le32(entry, 8), le32(entry, 12));
            let refuse = |reason| ChunkError::Entry {
                index: index as u64,
                offset,
                len,
                reason,
            };
            let range =
                ByteRange::new(offset, u64::from(len)).map_err(|_| refuse("ends past 2^64"))?;
            let mut digest = [0; Digest::LEN];
            digest.copy_from_slice(&entry[16..]);
            let content = match kind {
                0 if digest == [0; Digest::LEN] => Content::Zero,
                0 => return Err(refuse("is zero but names a digest")),
                1 => Content::Data(Digest::from_bytes(digest)),
                _ => return Err(refuse("is of an unknown kind")),
            };
            chunks.push(Chunk { range, content });
        }
        Self::new(chunks, region_len)
    }
}

/// What precedes a stored chunk on the wire and in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// The digest of the plain bytes.
    pub digest: Digest,
    /// How many plain bytes it decodes to, 1 to [`MAX_CHUNK_LEN`].
    pub plain_len: u32,
    /// How many bytes of zstd frame follow, 1 to [`MAX_STORED_LEN`].
    pub stored_len: u32,
}

impl RecordHeader {
    /// Length of the header in bytes.
    pub const LEN: usize = 40;

    /// The byte form.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(self.digest.as_bytes());
        bytes[32..36].copy_from_slice(&self.plain_len.to_le_bytes());
        bytes[36..].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes
    }

    /// Reads the byte form; both lengths are checked before anyone allocates by them.
    ///
    /// # Errors
    /// [`ChunkError::RecordLength`] for a length of 0 or past its limit.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, ChunkError> {
        let mut digest = [0; Digest::LEN];
        digest.copy_from_slice(&bytes[..32]);
        let header = Self {
            digest: Digest::from_bytes(digest),
            plain_len: le32(bytes, 32),
            stored_len: le32(bytes, 36),
        };
        for (what, found, limit) in [
            ("plain length", header.plain_len, MAX_CHUNK_LEN),
            ("stored length", header.stored_len, MAX_STORED_LEN),
        ] {
            if found == 0 || found > limit {
                let digest = header.digest;
                return Err(ChunkError::RecordLength {
                    digest,
                    what,
                    found,
                    limit,
                });
            }
        }
        Ok(header)
    }
}

/// Cuts ranges of a region into pieces of at most [`MAX_CHUNK_LEN`] bytes on a grid of that size,
/// counted from the region's start, so that a shifted neighbour does not shift every chunk.
///
/// `ranges` must be in order and not overlap; so is the result.
pub fn cut(ranges: &[ByteRange]) -> impl Iterator<Item = ByteRange> + '_ {
    let grid = u64::from(MAX_CHUNK_LEN);
    ranges.iter().flat_map(move |range| {
        let mut at = range.start();
        std::iter::from_fn(move || {
            if at >= range.end() {
                return None;
            }
            let end = (at - at % grid).saturating_add(grid).min(range.end());
            let piece = ByteRange::between(at, end);
            at = end;
            Some(piece)
        })
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
    use proptest::prelude::{
        Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };

    use super::*;

    fn lists() -> impl Strategy<Value = (Vec<Chunk>, u64)> {
        let piece = (
            0u64..5000,
            1u64..=u64::from(MAX_CHUNK_LEN),
            prop_oneof![
                Just(Content::Zero),
                any::<[u8; 32]>().prop_map(|bytes| Content::Data(Digest::from_bytes(bytes))),
            ],
        );
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| {
            let mut end = 0;
            let chunks = pieces
                .into_iter()
                .map(|(gap, len, content)| {
                    let range = ByteRange::new(end + gap, len).unwrap();
                    end = range.end();
                    Chunk { range, content }
                })
                .collect();
            (chunks, end)
        })
    }

    proptest! {
        #[test]
        fn a_list_round_trips((chunks, region_len) in lists()) {
            let list = ChunkList::new(chunks, region_len).unwrap();
            let bytes = list.encode();
            prop_assert_eq!(ChunkList::decode(&bytes, region_len).unwrap(), list.clone());
            if region_len > 0 && !list.chunks().is_empty() {
                prop_assert!(ChunkList::decode(&bytes, region_len - 1).is_err());
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ChunkList::decode(&bytes, u64::MAX);
            let mut framed = b"NBCL\x01\0\0\0".to_vec();
            framed.extend_from_slice(&((bytes.len() / ENTRY_LEN) as u64).to_le_bytes());
            framed.extend_from_slice(&bytes[..bytes.len() / ENTRY_LEN * ENTRY_LEN]);
            if let Ok(list) = ChunkList::decode(&framed, u64::MAX) {
                prop_assert_eq!(list.encode(), framed);
            }
        }

        #[test]
        fn a_record_header_round_trips(
            digest in any::<[u8; 32]>(), plain_len in 1..=MAX_CHUNK_LEN, stored_len in 1..=MAX_STORED_LEN,
        ) {
            let header = RecordHeader { digest: Digest::from_bytes(digest), plain_len, stored_len };
            prop_assert_eq!(RecordHeader::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn cutting_covers_each_byte_once_within_the_limit(
            gaps in proptest::collection::vec((0u64..700_000, 1u64..900_000), 0..12),
        ) {
            let mut end = 0;
            let ranges: Vec<_> = gaps
                .into_iter()
                .map(|(gap, len)| {
                    let range = ByteRange::new(end + gap, len).unwrap();
                    end = range.end();
                    range
                })
                .collect();
            let pieces: Vec<_> = cut(&ranges).collect();
            let total: u64 = ranges.iter().map(|range| range.len()).sum();
            prop_assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<u64>(), total);
            for piece in &pieces {
                prop_assert!(!piece.is_empty() && piece.len() <= u64::from(MAX_CHUNK_LEN));
                prop_assert!(ranges.iter().any(|range| range.contains(*piece)));
            }
            for pair in pieces.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start());
            }
        }
    }

    #[test]
    fn a_record_with_an_impossible_length_is_refused() {
        let good = RecordHeader {
            digest: Digest::of(b"x"),
            plain_len: 1,
            stored_len: 1,
        };
        for (plain_len, stored_len) in [
            (0, 1),
            (1, 0),
            (MAX_CHUNK_LEN + 1, 1),
            (1, MAX_STORED_LEN + 1),
        ] {
            let bad = RecordHeader {
                plain_len,
                stored_len,
                ..good
            };
            assert!(RecordHeader::decode(&bad.encode()).is_err());
        }
    }

    #[test]
    fn overlapping_entries_are_refused() {
        let chunk = |start, len| Chunk {
            range: ByteRange::new(start, len).unwrap(),
            content: Content::Zero,
        };
        assert!(ChunkList::new(vec![chunk(0, 10), chunk(9, 10)], 100).is_err());
        assert!(ChunkList::new(vec![chunk(10, 10), chunk(0, 10)], 100).is_err());
        assert!(ChunkList::new(vec![chunk(0, 10), chunk(10, 91)], 100).is_err());
        assert!(ChunkList::new(vec![chunk(0, 10), chunk(10, 90)], 100).is_ok());
    }
}
