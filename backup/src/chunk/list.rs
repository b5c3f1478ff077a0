//! The list that names the chunks of a region, whole or as it passes.
//!
//! A list of a large disk is long: whoever can, writes it with a [`ListWriter`] while chunks become
//! known and reads it with a [`ListReader`] as its bytes arrive, and holds none of it.
//!
//! ```text
//! chunk list   "NBCL" version:u32 reserved:u64 (0) | entry, until the list ends
//! entry        offset:u64 len:u32 kind:u32 (0 zero, 1 data) digest:[u8; 32] (zeros for kind 0)
//! ```

use super::{Chunk, ChunkError, Content, MAX_CHUNK_LEN};
use crate::little_endian::{le32, le64};
use crate::{ByteRange, Digest};

const MAGIC: &[u8; 4] = b"NBCL";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 48;

/// How many bytes a list of `chunks` entries has.
#[must_use]
pub const fn list_len(chunks: u64) -> u64 {
    chunks
        .saturating_mul(ENTRY_LEN as u64)
        .saturating_add(HEADER_LEN as u64)
}

/// What a list comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListTotals {
    /// Entries.
    pub chunks: u64,
    /// Bytes of data chunks.
    pub data_bytes: u64,
    /// Bytes of zero ranges.
    pub zero_bytes: u64,
}

/// The invariant of a list, checked one entry after the other.
#[derive(Debug, Clone, Copy)]
struct Order {
    region_len: u64,
    end: u64,
    totals: ListTotals,
}

impl Order {
    const fn new(region_len: u64) -> Self {
        Self {
            region_len,
            end: 0,
            totals: ListTotals {
                chunks: 0,
                data_bytes: 0,
                zero_bytes: 0,
            },
        }
    }

    fn admit(&mut self, chunk: &Chunk) -> Result<(), ChunkError> {
        let range = chunk.range;
        let refuse = |reason| {
            Err(ChunkError::Entry {
                index: self.totals.chunks,
                offset: range.start(),
                len: u32::try_from(range.len()).unwrap_or(u32::MAX),
                reason,
            })
        };
        let is_data = matches!(chunk.content, Content::Data(_));
        if range.is_empty() {
            return refuse("is empty");
        }
        if range.len() > u64::from(u32::MAX) {
            return refuse("is longer than 4 GiB");
        }
        if is_data && range.len() > u64::from(MAX_CHUNK_LEN) {
            return refuse("is longer than a data chunk may be (256 KiB)");
        }
        if range.start() < self.end {
            return refuse("overlaps or precedes the entry before it");
        }
        if range.end() > self.region_len {
            return refuse("ends past its region");
        }
        self.end = range.end();
        self.totals.chunks += 1;
        if is_data {
            self.totals.data_bytes += range.len();
        } else {
            self.totals.zero_bytes += range.len();
        }
        Ok(())
    }
}

fn write_entry(chunk: &Chunk, bytes: &mut Vec<u8>) {
    let (kind, digest) = match chunk.content {
        Content::Zero => (0u32, [0; Digest::LEN]),
        Content::Data(digest) => (1, *digest.as_bytes()),
    };
    bytes.extend_from_slice(&chunk.range.start().to_le_bytes());
    // No length past u32 is admitted.
    bytes.extend_from_slice(&(chunk.range.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&digest);
}

fn write_header(bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
}

/// Writes a list while its chunks become known, in order of offset.
#[derive(Debug, Clone)]
pub struct ListWriter {
    order: Order,
    begun: bool,
}

impl ListWriter {
    /// A list for a region of `region_len` bytes.
    #[must_use]
    pub const fn new(region_len: u64) -> Self {
        Self {
            order: Order::new(region_len),
            begun: false,
        }
    }

    /// Appends the chunk's bytes to `bytes`, and before the first one those of the header.
    ///
    /// # Errors
    /// [`ChunkError::Entry`] for a chunk that breaks the invariant; nothing is appended then.
    pub fn push(&mut self, chunk: &Chunk, bytes: &mut Vec<u8>) -> Result<(), ChunkError> {
        self.order.admit(chunk)?;
        self.begin(bytes);
        write_entry(chunk, bytes);
        Ok(())
    }

    /// Ends the list, and returns what it came to. A list without chunks is its header.
    #[must_use]
    pub fn finish(mut self, bytes: &mut Vec<u8>) -> ListTotals {
        self.begin(bytes);
        self.order.totals
    }

    fn begin(&mut self, bytes: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun, true) {
            write_header(bytes);
        }
    }
}

/// Reads a list as its bytes arrive, in pieces of any length.
///
/// Invariant: a chunk is given only after it was checked against all that came before it.
#[derive(Debug, Clone)]
pub struct ListReader {
    order: Order,
    /// The header or an entry of which not all bytes have come.
    pending: [u8; ENTRY_LEN],
    pending_len: usize,
    read: u64,
}

impl ListReader {
    /// A reader of a list for a region of `region_len` bytes.
    #[must_use]
    pub const fn new(region_len: u64) -> Self {
        Self {
            order: Order::new(region_len),
            pending: [0; ENTRY_LEN],
            pending_len: 0,
            read: 0,
        }
    }

    /// Takes the next bytes of the list, and gives each chunk that is whole to `each`.
    ///
    /// # Errors
    /// [`ChunkError`] for what is wrong with the bytes, and whatever `each` says. The reader is of no
    /// further use then.
    pub fn feed<E: From<ChunkError>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Chunk) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let wanted = if self.read < HEADER_LEN as u64 {
                HEADER_LEN
            } else {
                ENTRY_LEN
            };
            let (now, rest) = bytes.split_at(bytes.len().min(wanted - self.pending_len));
            self.pending[self.pending_len..self.pending_len + now.len()].copy_from_slice(now);
            self.pending_len += now.len();
            bytes = rest;
            if self.pending_len < wanted {
                break;
            }
            self.pending_len = 0;
            self.read += wanted as u64;
            if wanted == HEADER_LEN {
                check_header(&self.pending)?;
            } else {
                let chunk = read_entry(&self.pending, self.order.totals.chunks)?;
                self.order.admit(&chunk)?;
                each(chunk)?;
            }
        }
        Ok(())
    }

    /// Says that no more bytes come, and returns what the list came to.
    ///
    /// # Errors
    /// [`ChunkError::Length`] when the list ends within its header or an entry.
    pub fn finish(self) -> Result<ListTotals, ChunkError> {
        if self.read < HEADER_LEN as u64 || self.pending_len > 0 {
            let whole = if self.read < HEADER_LEN as u64 {
                HEADER_LEN
            } else {
                ENTRY_LEN
            };
            return Err(ChunkError::Length {
                what: "chunk list",
                expected: self.read + whole as u64,
                found: self.read + self.pending_len as u64,
            });
        }
        Ok(self.order.totals)
    }
}

fn check_header(header: &[u8]) -> Result<(), ChunkError> {
    if &header[..4] != MAGIC {
        return Err(ChunkError::Magic {
            found: header[..4].to_vec(),
        });
    }
    let version = le32(header, 4);
    if version != VERSION {
        return Err(ChunkError::Version { found: version });
    }
    let found = le64(header, 8);
    if found != 0 {
        return Err(ChunkError::Reserved { found });
    }
    Ok(())
}

fn read_entry(entry: &[u8; ENTRY_LEN], index: u64) -> Result<Chunk, ChunkError> {
    let (offset, len, kind) = (le64(entry, 0), le32(entry, 8), le32(entry, 12));
    let refuse = |reason| ChunkError::Entry {
        index,
        offset,
        len,
        reason,
    };
    let range = ByteRange::new(offset, u64::from(len)).map_err(|_| refuse("ends past 2^64"))?;
    let mut digest = [0; Digest::LEN];
    digest.copy_from_slice(&entry[16..]);
    let content = match kind {
        0 if digest == [0; Digest::LEN] => Content::Zero,
        0 => return Err(refuse("is zero but names a digest")),
        1 => Content::Data(Digest::from_bytes(digest)),
        _ => return Err(refuse("is of an unknown kind")),
    };
    Ok(Chunk { range, content })
}

/// All the saved content of one region, in order of offset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkList {
    chunks: Vec<Chunk>,
    totals: ListTotals,
}

impl ChunkList {
    /// A list from chunks, checked against the invariant for a region of `region_len` bytes.
    ///
    /// # Errors
    /// [`ChunkError::Entry`] for the first chunk that breaks it.
    pub fn new(chunks: Vec<Chunk>, region_len: u64) -> Result<Self, ChunkError> {
        let mut order = Order::new(region_len);
        chunks.iter().try_for_each(|chunk| order.admit(chunk))?;
        let totals = order.totals;
        Ok(Self { chunks, totals })
    }

    /// The chunks in order of offset.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Bytes of data chunks.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        self.totals.data_bytes
    }

    /// Bytes of zero ranges.
    #[must_use]
    pub const fn zero_bytes(&self) -> u64 {
        self.totals.zero_bytes
    }

    /// The byte form, as documented at the top of this module.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.chunks.len() * ENTRY_LEN);
        write_header(&mut bytes);
        for chunk in &self.chunks {
            write_entry(chunk, &mut bytes);
        }
        bytes
    }

    /// Reads the byte form of a list for a region of `region_len` bytes.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes, see [`ChunkError`].
    pub fn decode(bytes: &[u8], region_len: u64) -> Result<Self, ChunkError> {
        let mut reader = ListReader::new(region_len);
        let mut chunks = Vec::with_capacity(bytes.len() / ENTRY_LEN);
        reader.feed(bytes, |chunk| {
            chunks.push(chunk);
            Ok::<_, ChunkError>(())
        })?;
        let totals = reader.finish()?;
        Ok(Self { chunks, totals })
    }
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
            prop_assert_eq!(bytes.len() as u64, list_len(list.chunks().len() as u64));
            prop_assert_eq!(ChunkList::decode(&bytes, region_len).unwrap(), list.clone());
            if region_len > 0 && !list.chunks().is_empty() {
                prop_assert!(ChunkList::decode(&bytes, region_len - 1).is_err());
            }
        }

        #[test]
        fn a_list_that_passes_is_the_list_that_is_whole(
            (chunks, region_len) in lists(), steps in proptest::collection::vec(1usize..200, 1..20),
        ) {
            let list = ChunkList::new(chunks, region_len).unwrap();
            let (mut writer, mut written) = (ListWriter::new(region_len), Vec::new());
            for chunk in list.chunks() {
                writer.push(chunk, &mut written).unwrap();
            }
            let totals = writer.finish(&mut written);
            prop_assert_eq!(&written, &list.encode());
            prop_assert_eq!((totals.data_bytes, totals.zero_bytes), (list.data_bytes(), list.zero_bytes()));

            let (mut reader, mut read) = (ListReader::new(region_len), Vec::new());
            let mut rest = &written[..];
            for step in steps.iter().cycle() {
                let (now, after) = rest.split_at(rest.len().min(*step));
                reader.feed(now, |chunk| { read.push(chunk); Ok::<_, ChunkError>(()) }).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(reader.finish().unwrap(), totals);
            prop_assert_eq!(&read[..], list.chunks());
        }

        #[test]
        fn a_list_that_was_cut_short_is_refused((chunks, region_len) in lists(), cut in 0usize..2000) {
            let list = ChunkList::new(chunks, region_len).unwrap();
            let bytes = list.encode();
            let cut = cut % bytes.len();
            let whole = cut >= HEADER_LEN && (cut - HEADER_LEN).is_multiple_of(ENTRY_LEN);
            prop_assert_eq!(ChunkList::decode(&bytes[..cut], region_len).is_ok(), whole);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ChunkList::decode(&bytes, u64::MAX);
            let mut framed = b"NBCL\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
            framed.extend_from_slice(&bytes);
            if let Ok(list) = ChunkList::decode(&framed, u64::MAX) {
                prop_assert_eq!(list.encode(), framed);
            }
        }
    }

    #[test]
    fn overlapping_entries_are_refused_also_across_pieces() {
        let chunk = |start, len| Chunk {
            range: ByteRange::new(start, len).unwrap(),
            content: Content::Zero,
        };
        let refused = [
            [chunk(0, 10), chunk(9, 10)],
            [chunk(10, 10), chunk(0, 10)],
            [chunk(0, 10), chunk(10, 91)],
        ];
        for chunks in refused {
            let mut bytes = Vec::new();
            write_header(&mut bytes);
            chunks
                .iter()
                .for_each(|chunk| write_entry(chunk, &mut bytes));
            assert!(ChunkList::new(chunks.to_vec(), 100).is_err());
            let mut reader = ListReader::new(100);
            let fed = bytes
                .chunks(7)
                .try_for_each(|piece| reader.feed(piece, |_| Ok::<_, ChunkError>(())));
            assert!(matches!(fed, Err(ChunkError::Entry { index: 1, .. })));
        }
        assert!(ChunkList::new(vec![chunk(0, 10), chunk(10, 90)], 100).is_ok());
    }

    #[test]
    fn a_header_of_something_else_is_refused() {
        let list = ChunkList::default().encode();
        assert_eq!(list.len(), HEADER_LEN);
        for (at, is_right) in [
            (0, matches as fn(&ChunkError) -> bool),
            (4, |error| {
                matches!(error, ChunkError::Version { found: 0x81 })
            }),
            (15, |error| matches!(error, ChunkError::Reserved { .. })),
        ] {
            let mut bytes = list.clone();
            bytes[at] ^= 0x80;
            let error = ChunkList::decode(&bytes, 10).unwrap_err();
            assert!(is_right(&error), "{error}");
        }
        fn matches(error: &ChunkError) -> bool {
            matches!(error, ChunkError::Magic { .. })
        }
    }
}
