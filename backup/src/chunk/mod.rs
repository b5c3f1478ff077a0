//! Chunks: the pieces a region is cut into, the list that names them, and the record that carries one.
//!
//! Byte formats, little endian, documented in `docs/formats/chunks.md`: the list is in [`mod@list`], the
//! record in [`record`]. Where chunks begin is decided in [`mod@cut`].
//!
//! Invariant: the chunks of a list are in order of offset and never overlap, no data chunk is empty or
//! longer than [`MAX_CHUNK_LEN`], and they stay within the region length that the list was read for.
//! Decoding never trusts a length it has not checked.

use crate::{ByteRange, Digest};

pub mod build;
pub mod cut;
pub mod known;
pub mod list;
pub mod record;

pub use build::{BuiltList, ListBuilder, ListPart};
pub use cut::{Cutting, cut_by_content};
pub use known::Known;
pub use list::{ChunkList, ListReader, ListTotals, ListWriter, list_len};
pub use record::{RecordHeader, append_record, compressor};

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
    /// The reserved field of the header is not zero.
    #[error("chunk list with {found:#x} in its reserved field (expected 0)")]
    Reserved {
        /// What is there.
        found: u64,
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
