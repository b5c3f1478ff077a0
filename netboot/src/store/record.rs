//! Records as they arrive and as they lie in packs, checked down to their plain bytes.
//!
//! Invariant: a record that passed [`Checker::check`] decodes to exactly the length its header says
//! and to bytes of exactly its digest. Memory is bounded by the limits of [`backup::chunk`], whatever
//! the bytes claim. What is *not* here: where records are kept.

use backup::Digest;
use backup::chunk::{ChunkError, MAX_CHUNK_LEN, RecordHeader};

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

/// Reads the record at `at`; the bytes after it are not looked at.
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

/// Checks frames against their headers, with one buffer for all of them.
pub(super) struct Checker {
    decoder: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl Checker {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            decoder: zstd::bulk::Decompressor::new()?,
            plain: vec![0; MAX_CHUNK_LEN as usize],
        })
    }

    /// Decodes the frame, at most the length the header promises, and compares the digest.
    pub(super) fn check(&mut self, header: &RecordHeader, frame: &[u8]) -> Result<(), RecordError> {
        let digest = header.digest;
        let no_frame = |reason: String| RecordError::Frame {
            digest,
            stored_len: header.stored_len,
            reason,
        };
        // The decoder would silently go on to a second frame; a record carries exactly one.
        match zstd::zstd_safe::find_frame_compressed_size(frame) {
            Ok(len) if len == frame.len() => {}
            Ok(len) => return Err(no_frame(format!("the frame ends after {len} bytes"))),
            Err(code) => {
                return Err(no_frame(zstd::zstd_safe::get_error_name(code).to_owned()));
            }
        }
        // The length of the slice bounds the decoder: a frame that wants more is an error.
        let plain = &mut self.plain[..header.plain_len as usize];
        let found = self
            .decoder
            .decompress_to_buffer(frame, plain)
            .map_err(|error| no_frame(error.to_string()))?;
        if found != header.plain_len as usize {
            return Err(RecordError::PlainLength {
                digest,
                expected: header.plain_len,
                found,
            });
        }
        let found = Digest::of(&self.plain[..found]);
        if found != digest {
            return Err(RecordError::Content { digest, found });
        }
        Ok(())
    }
}

impl Checker {
    /// The plain bytes of a frame, checked as by [`Self::check`].
    pub(super) fn decode(
        &mut self,
        header: &RecordHeader,
        frame: &[u8],
    ) -> Result<&[u8], RecordError> {
        self.check(header, frame)?;
        Ok(&self.plain[..header.plain_len as usize])
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
        Checker::new().unwrap().check(&header, frame)
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
