//! Records as they arrive and as they lie in packs, checked down to their plain bytes.
//!
//! In a pack a record may be a *difference*: the highest bit of its stored length is set, and its bytes are
//! the digest of another chunk, its base, and one zstd frame that is decoded with the base's plain bytes as a raw
//! dictionary. On the wire there are whole records only.
//!
//! Invariant: a record that passed the [`Checker`] decodes to exactly the length its header says
//! and to bytes of exactly its digest. Memory is bounded by the limits of [`backup::chunk`], whatever
//! the bytes claim. What is *not* here: where records are kept, and how a base is found (`difference`).

use backup::Digest;
use backup::chunk::{ChunkError, MAX_CHUNK_LEN, MAX_STORED_LEN, RecordHeader};
use zstd::zstd_safe::{self, DCtx};

/// Bytes that are no sound record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// The bytes end within a record.
    #[error("the record at byte {at} is cut short: {found} bytes are left of {expected}")]
    Short {
        /// Where the record begins.
        at: u64,
        /// Bytes it needs.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Its header is impossible.
    #[error("the record at byte {at} has an impossible header: {error}")]
    Header {
        /// Where the record begins.
        at: u64,
        /// What is wrong with it.
        error: ChunkError,
    },
    /// Its frame does not decode.
    #[error("chunk {digest}: its {stored_len} stored bytes are no zstd frame ({reason})")]
    Frame {
        /// The chunk.
        digest: Digest,
        /// Bytes of the frame.
        stored_len: u32,
        /// What the decoder said.
        reason: String,
    },
    /// It decodes to fewer bytes than its header says.
    #[error("chunk {digest}: decodes to {found} bytes (expected {expected})")]
    PlainLength {
        /// The chunk.
        digest: Digest,
        /// Bytes the header promised.
        expected: u32,
        /// Bytes that came out.
        found: usize,
    },
    /// It decodes to other bytes than its digest names.
    #[error("chunk {digest}: its bytes have the digest {found}")]
    Content {
        /// The chunk.
        digest: Digest,
        /// The digest of what it decodes to.
        found: Digest,
    },
}

/// The stored length of a record and whether it is a difference, in the one word that packs and indexes keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored(u32);

impl Stored {
    const DIFFERENCE: u32 = 1 << 31;

    /// A record of `len` bytes that stands for itself.
    pub(super) const fn whole(len: u32) -> Self {
        Self(len)
    }

    /// A difference of `len` bytes, its base's digest among them.
    pub(super) const fn difference(len: u32) -> Self {
        Self(len | Self::DIFFERENCE)
    }

    /// The word of a pack or an index, if it is a possible one.
    pub(super) fn from_word(word: u32) -> Option<Self> {
        let stored = Self(word);
        let least = if stored.is_difference() {
            Digest::LEN as u32 + 1
        } else {
            1
        };
        (least..=MAX_STORED_LEN)
            .contains(&stored.len())
            .then_some(stored)
    }

    /// As packs and indexes keep it.
    pub(super) const fn word(self) -> u32 {
        self.0
    }

    /// Bytes after the record's header.
    pub(super) const fn len(self) -> u32 {
        self.0 & !Self::DIFFERENCE
    }

    /// Whether it takes another chunk to decode it.
    pub(super) const fn is_difference(self) -> bool {
        self.0 & Self::DIFFERENCE != 0
    }
}

/// What precedes a chunk's bytes in a pack: as long as a [`RecordHeader`], and the same bytes for a whole record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackHeader {
    pub(super) digest: Digest,
    pub(super) plain_len: u32,
    pub(super) stored: Stored,
}

impl PackHeader {
    pub(super) const fn of_whole(header: &RecordHeader) -> Self {
        Self {
            digest: header.digest,
            plain_len: header.plain_len,
            stored: Stored::whole(header.stored_len),
        }
    }

    /// Bytes of the whole record.
    pub(super) const fn record_len(&self) -> usize {
        RecordHeader::LEN + self.stored.len() as usize
    }

    pub(super) fn encode(&self) -> [u8; RecordHeader::LEN] {
        let header = RecordHeader {
            digest: self.digest,
            plain_len: self.plain_len,
            stored_len: self.stored.word(),
        };
        header.encode()
    }

    fn decode(bytes: &[u8; RecordHeader::LEN]) -> Result<Self, ChunkError> {
        let mut plain = *bytes;
        let difference = plain[RecordHeader::LEN - 1] & 0x80 != 0;
        plain[RecordHeader::LEN - 1] &= 0x7f;
        let header = RecordHeader::decode(&plain)?;
        let len = header.stored_len;
        let stored = if difference {
            Stored::difference(len)
        } else {
            Stored::whole(len)
        };
        Ok(Self {
            digest: header.digest,
            plain_len: header.plain_len,
            stored: Stored::from_word(stored.word()).ok_or(ChunkError::RecordLength {
                digest: header.digest,
                what: "stored length of a difference",
                found: len,
                limit: MAX_STORED_LEN,
            })?,
        })
    }
}

/// A record of a pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackRecord<'a> {
    pub(super) header: PackHeader,
    /// The chunk that it is a difference from, if it is one.
    pub(super) base: Option<Digest>,
    pub(super) frame: &'a [u8],
}

/// Reads the record of a pack at `at`; the bytes after it are not looked at.
pub(super) fn pack_record_at(bytes: &[u8], at: usize) -> Result<PackRecord<'_>, RecordError> {
    let rest = bytes.get(at..).unwrap_or_default();
    let short = |expected: usize| RecordError::Short {
        at: at as u64,
        expected: expected as u64,
        found: rest.len() as u64,
    };
    let (head, stored) = rest
        .split_first_chunk::<{ RecordHeader::LEN }>()
        .ok_or_else(|| short(RecordHeader::LEN))?;
    let header = PackHeader::decode(head).map_err(|error| RecordError::Header {
        at: at as u64,
        error,
    })?;
    let stored = stored
        .get(..header.stored.len() as usize)
        .ok_or_else(|| short(header.record_len()))?;
    let (base, frame) = match stored.split_first_chunk::<{ Digest::LEN }>() {
        Some((base, frame)) if header.stored.is_difference() => {
            (Some(Digest::from_bytes(*base)), frame)
        }
        _ => (None, stored),
    };
    Ok(PackRecord {
        header,
        base,
        frame,
    })
}

/// Whether these bytes are one zstd frame, from the first to the last.
pub(super) fn is_one_frame(frame: &[u8]) -> Result<(), String> {
    match zstd_safe::find_frame_compressed_size(frame) {
        Ok(len) if len == frame.len() => Ok(()),
        Ok(len) => Err(format!("the frame ends after {len} bytes")),
        Err(code) => Err(zstd_safe::get_error_name(code).to_owned()),
    }
}

/// Reads the record of an upload at `at`; the bytes after it are not looked at.
pub(super) fn record_at(bytes: &[u8], at: usize) -> Result<(RecordHeader, &[u8]), RecordError> {
    let rest = bytes.get(at..).unwrap_or_default();
    let short = |expected: usize| RecordError::Short {
        at: at as u64,
        expected: expected as u64,
        found: rest.len() as u64,
    };
    let (header, frames) = rest
        .split_first_chunk::<{ RecordHeader::LEN }>()
        .ok_or_else(|| short(RecordHeader::LEN))?;
    let header = RecordHeader::decode(header).map_err(|error| RecordError::Header {
        at: at as u64,
        error,
    })?;
    let frame = frames
        .get(..header.stored_len as usize)
        .ok_or_else(|| short(RecordHeader::LEN + header.stored_len as usize))?;
    Ok((header, frame))
}

/// Checks frames against their headers, with the same buffers for all of them.
pub(super) struct Checker {
    decoder: DCtx<'static>,
    plain: Vec<u8>,
    /// The plain bytes that differences are decoded with.
    base: Vec<u8>,
}

impl Checker {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            decoder: DCtx::try_create().ok_or(std::io::ErrorKind::OutOfMemory)?,
            plain: vec![0; MAX_CHUNK_LEN as usize],
            base: Vec::new(),
        })
    }

    /// Decodes the frame of a whole record, at most the length the header promises, and compares the digest.
    pub(super) fn decode(
        &mut self,
        header: &RecordHeader,
        frame: &[u8],
    ) -> Result<&[u8], RecordError> {
        self.base.clear();
        self.run(&PackHeader::of_whole(header), frame)
    }

    /// Keeps the chunk of this whole record as the base of the differences that follow.
    pub(super) fn set_base(
        &mut self,
        header: &PackHeader,
        frame: &[u8],
    ) -> Result<(), RecordError> {
        self.base.clear();
        let len = self.run(header, frame)?.len();
        // At most a chunk's length.
        self.base.extend_from_slice(&self.plain[..len]);
        Ok(())
    }

    /// The plain bytes of a difference from the base that was set.
    pub(super) fn decode_difference(
        &mut self,
        header: &PackHeader,
        frame: &[u8],
    ) -> Result<&[u8], RecordError> {
        self.run(header, frame)
    }

    /// The plain bytes of the base that was set.
    pub(super) fn base(&self) -> &[u8] {
        &self.base
    }

    /// The first `len` plain bytes of what was decoded last.
    pub(super) fn decoded(&self, len: usize) -> &[u8] {
        &self.plain[..len]
    }

    fn run(&mut self, header: &PackHeader, frame: &[u8]) -> Result<&[u8], RecordError> {
        let digest = header.digest;
        let no_frame = |reason: String| RecordError::Frame {
            digest,
            stored_len: header.stored.len(),
            reason,
        };
        // The decoder would silently go on to a second frame; a record carries exactly one.
        is_one_frame(frame).map_err(no_frame)?;
        // The length of the slice bounds the decoder: a frame that wants more is an error.
        let plain = &mut self.plain[..header.plain_len as usize];
        let found = if self.base.is_empty() {
            self.decoder.decompress(plain, frame)
        } else {
            self.decoder.decompress_using_dict(plain, frame, &self.base)
        };
        let found = found.map_err(|code| no_frame(zstd_safe::get_error_name(code).to_owned()))?;
        if found != header.plain_len as usize {
            return Err(RecordError::PlainLength {
                digest,
                expected: header.plain_len,
                found,
            });
        }
        let plain = &self.plain[..found];
        let found = Digest::of(plain);
        if found != digest {
            return Err(RecordError::Content { digest, found });
        }
        Ok(plain)
    }
}

/// The record of `plain`, as an agent makes it.
#[cfg(test)]
pub(crate) fn record_of(plain: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(plain, 3).unwrap();
    let header = RecordHeader {
        digest: Digest::of(plain),
        plain_len: u32::try_from(plain.len()).unwrap(),
        stored_len: u32::try_from(frame.len()).unwrap(),
    };
    [header.encode().as_slice(), &frame].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn check(record: &[u8]) -> Result<(), RecordError> {
        let (header, frame) = record_at(record, 0)?;
        Checker::new().unwrap().decode(&header, frame).map(drop)
    }

    #[test]
    fn a_record_of_its_own_bytes_passes() {
        for plain in [&b"x"[..], &[7; 4096], &vec![0; MAX_CHUNK_LEN as usize]] {
            assert_eq!(check(&record_of(plain)), Ok(()));
        }
    }

    #[test]
    fn a_frame_that_decodes_to_more_or_less_than_promised_is_refused() {
        for promised in [99, 101] {
            let mut record = record_of(&[5; 100]);
            record[32..36].copy_from_slice(&u32::to_le_bytes(promised));
            assert!(check(&record).is_err(), "{promised}");
        }
    }

    #[test]
    fn bytes_of_another_digest_are_refused_by_name() {
        let mut record = record_of(b"right");
        let wrong = Digest::of(b"wrong");
        record[..32].copy_from_slice(wrong.as_bytes());
        let found = Digest::of(b"right");
        assert_eq!(
            check(&record),
            Err(RecordError::Content {
                digest: wrong,
                found
            })
        );
    }

    #[test]
    fn two_frames_in_one_record_are_refused() {
        let (one, two) = (
            zstd::bulk::compress(b"one", 3).unwrap(),
            zstd::bulk::compress(b"two", 3).unwrap(),
        );
        let header = RecordHeader {
            digest: Digest::of(b"onetwo"),
            plain_len: 6,
            stored_len: u32::try_from(one.len() + two.len()).unwrap(),
        };
        let record = [header.encode().as_slice(), &one, &two].concat();
        assert!(matches!(check(&record), Err(RecordError::Frame { .. })));
    }

    proptest! {
        #[test]
        fn one_flipped_bit_never_passes_as_the_same_chunk(
            plain in proptest::collection::vec(any::<u8>(), 1..2000), at in any::<usize>(), bit in 0..8u8,
        ) {
            let whole = record_of(&plain);
            let mut record = whole.clone();
            let at = at % record.len();
            record[at] ^= 1 << bit;
            if check(&record).is_ok() {
                // Some bits of a frame's header carry no meaning; the content must be the same.
                prop_assert!(record[..36] == whole[..36]);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
        }
    }
}
