//! Differences: chunks that the store keeps as what they do not share with another chunk, their base.
//!
//! Only the store knows of them: a difference is made when a whole record arrives, and becomes a whole
//! record again when it is read. A base is always whole, so that no chunk needs more than two records.
//!
//! Invariant: a difference is kept only after it was decoded again and compared with the chunk's digest. What is *not*
//! here: how a base is found (`resemblance`), and that it stays (`index`, `claims`, `gc`).

use std::io;

use backup::Digest;
use backup::chunk::{MAX_CHUNK_LEN, RecordHeader};
use zstd::zstd_safe::{self, CCtx};

use super::StoreError;
use super::chunk_store::{ChunkStore, Location};
use super::record::{Checker, PackHeader, Stored, pack_record_at};

/// How often the same record may be moved while it is read.
pub(super) const MOVES: usize = 5;

/// zstd's level for differences: most of one is found in its base whatever the level.
const LEVEL: i32 = 3;

/// What a raw dictionary must not begin with: zstd would take it for one of its own making.
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// Why a record does not give its chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unsound {
    /// Its own bytes are not what they should be.
    Record(String),
    /// It is a difference, and its base cannot be had.
    Base {
        /// The base.
        digest: Digest,
        /// Where that lies, if it is in the store.
        at: Option<Location>,
        /// What is wrong with it.
        reason: String,
    },
}

impl std::fmt::Display for Unsound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record(reason) => f.write_str(reason),
            Self::Base { digest, reason, .. } => {
                write!(f, "it is a difference from chunk {digest}: {reason}")
            }
        }
    }
}

/// How the record of a base is read.
pub(super) type ReadBase<'a> = dyn Fn(&Digest) -> Result<(Location, Vec<u8>), StoreError> + 'a;

/// The plain bytes of the chunk whose record was read at a place, compared with what the index says of it and
/// with its digest.
pub(super) fn decode<'a>(
    bytes: &[u8],
    (digest, at): (&Digest, &Location),
    checker: &'a mut Checker,
    read_base: &ReadBase<'_>,
) -> Result<&'a [u8], Unsound> {
    let own = |error: &dyn std::fmt::Display| Unsound::Record(error.to_string());
    let record = pack_record_at(bytes, 0).map_err(|error| own(&error))?;
    if record.header != at.header(*digest) {
        return Err(own(&"its record's header differs from the index"));
    }
    let Some(base) = record.base else {
        let header = whole_header(&record.header);
        let plain = checker.decode(&header, record.frame);
        return plain.map_err(|error| own(&error));
    };
    take_base(&base, checker, read_base)?;
    let plain = checker.decode_difference(&record.header, record.frame);
    plain.map_err(|error| own(&error))
}

const fn whole_header(header: &PackHeader) -> RecordHeader {
    RecordHeader {
        digest: header.digest,
        plain_len: header.plain_len,
        stored_len: header.stored.len(),
    }
}

fn take_base(
    digest: &Digest,
    checker: &mut Checker,
    read_base: &ReadBase<'_>,
) -> Result<(), Unsound> {
    let unsound = |at, reason: String| Unsound::Base {
        digest: *digest,
        at,
        reason,
    };
    let (at, bytes) = read_base(digest).map_err(|error| unsound(None, super::chain(&error)))?;
    let bad = |reason: String| unsound(Some(at), reason);
    let record = pack_record_at(&bytes, 0).map_err(|error| bad(error.to_string()))?;
    if record.header != at.header(*digest) {
        return Err(bad("its record's header differs from the index".to_owned()));
    }
    if record.base.is_some() {
        return Err(bad("it is a difference itself".to_owned()));
    }
    let set = checker.set_base(&record.header, record.frame);
    set.map_err(|error| bad(error.to_string()))
}

/// Makes differences, with the same buffers for all of them.
pub(super) struct Maker {
    compressor: CCtx<'static>,
    checker: Checker,
    frame: Vec<u8>,
}

impl Maker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?,
            checker: Checker::new()?,
            frame: vec![0; zstd_safe::compress_bound(MAX_CHUNK_LEN as usize)],
        })
    }

    /// The record of a chunk, whose whole record has this header, as its difference from `base`; `None` when that is
    /// not worth it or the base cannot be had.
    pub(super) fn make(
        &mut self,
        header: &RecordHeader,
        plain: &[u8],
        base: &Digest,
        read_base: &ReadBase<'_>,
    ) -> Option<Vec<u8>> {
        if *base == header.digest {
            return None;
        }
        if let Err(error) = take_base(base, &mut self.checker, read_base) {
            log::debug!("chunk {}: kept whole, {error}", header.digest);
            return None;
        }
        if self.checker.base().starts_with(&DICTIONARY_MAGIC) {
            return None;
        }
        let frame = self.frame.as_mut_slice();
        let made = self
            .compressor
            .compress_using_dict(frame, plain, self.checker.base(), LEVEL);
        let frame = self.frame.get(..made.ok()?)?;
        let stored = u32::try_from(Digest::LEN + frame.len()).ok()?;
        if !is_worth_it(stored, header.stored_len) {
            return None;
        }
        let difference = PackHeader {
            digest: header.digest,
            plain_len: header.plain_len,
            stored: Stored::difference(stored),
        };
        if let Err(error) = self.checker.decode_difference(&difference, frame) {
            log::warn!(
                "chunk {}: kept whole, its difference is wrong: {error}",
                header.digest
            );
            return None;
        }
        Some([difference.encode().as_slice(), base.as_bytes(), frame].concat())
    }
}

/// A base is kept as long as its difference is, and costs a second read: a quarter less must come of it.
const fn is_worth_it(difference: u32, whole: u32) -> bool {
    difference as u64 * 4 <= whole as u64 * 3
}

impl ChunkStore {
    /// The bytes of a chunk's record and where they lie, also while a collection moves it.
    pub(super) fn read_raw(&self, digest: &Digest) -> Result<(Location, Vec<u8>), StoreError> {
        let mut moves = 0;
        loop {
            let at = self
                .find(digest)
                .ok_or(StoreError::Missing { digest: *digest })?;
            let path = at.pack.pack_path(self.directory());
            // Not longer than records are: indexes are checked when they are read.
            let mut bytes = vec![0; at.record_len()];
            let read = self
                .storage
                .open(&path)
                .and_then(|file| file.read_exact_at(&mut bytes, u64::from(at.offset)));
            match read {
                Ok(()) => return Ok((at, bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && moves < MOVES => {
                    // A collection, perhaps of a server beside this process, moved it first.
                    moves += 1;
                    self.look_again()?;
                }
                Err(source) => return Err(StoreError::io("cannot read the pack", &path, source)),
            }
        }
    }

    /// The plain bytes of a chunk, compared with its digest; the sentence of an error names the chunk and
    /// the pack.
    pub(super) fn plain<'a>(
        &self,
        digest: &Digest,
        checker: &'a mut Checker,
    ) -> Result<&'a [u8], String> {
        let mut moves = 0;
        loop {
            let (at, bytes) = self
                .read_raw(digest)
                .map_err(|error| super::chain(&error))?;
            let read_base = |base: &Digest| self.read_raw(base);
            match decode(&bytes, (digest, &at), checker, &read_base) {
                Ok(plain) => {
                    let len = plain.len();
                    return Ok(checker.decoded(len));
                }
                // It came back whole, and a collection removed its base, since it was read.
                Err(Unsound::Base { .. }) if self.find(digest) != Some(at) && moves < MOVES => {
                    moves += 1;
                }
                Err(error) => {
                    return Err(format!(
                        "chunk {digest} in {} at byte {}: {error}",
                        at.pack.pack_path(self.directory()).display(),
                        at.offset
                    ));
                }
            }
        }
    }
}
