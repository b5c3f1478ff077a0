//! File systems: which one is in a volume, and which of its bytes are in use.
//!
//! Invariant: the used ranges decide what a backup saves, so any doubt (a journal that must be
//! replayed, an unknown feature flag, a checksum that does not fit, a number out of range) is a
//! [`Doubt`], and the caller then saves the whole volume. Reading goes through [`ReadAt`]; this
//! crate opens nothing.

use crate::ByteRange;
use crate::manifest::Volume;

/// Random access to the bytes of a volume, given by whoever can do I/O.
pub trait ReadAt {
    /// Fills `buffer` from byte `offset` of the volume.
    ///
    /// # Errors
    /// Whatever the reader met, in words with the place, for example a failing sector.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError>;
}

/// A read that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reading {len} bytes at byte {offset}: {reason}")]
pub struct ReadError {
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: u64,
    /// What the system said.
    pub reason: String,
}

/// Why the used blocks of a volume cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The volume could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its own description is not one to rely on.
    #[error("{0}")]
    Untrusted(String),
}

/// What a volume is and which of its bytes are in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The file system, when one was recognised.
    pub volume: Option<Volume>,
    /// Used ranges in order, not overlapping, relative to the volume; or why they are not known.
    pub used: Result<Vec<ByteRange>, Doubt>,
    /// The bytes that make the volume mountable (superblocks and boot sectors), written last.
    pub heads: Vec<ByteRange>,
}
