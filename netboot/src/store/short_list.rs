//! A chunk list that names most of its chunks by their numbers in another list, its base.
//!
//! ```text
//! list    "NBSL" version:u32 entries:u64 base:[u8; 32] | position:u64 × (blocks + 1) | block × blocks
//! block   one zstd frame of 1024 entries, the last one of fewer
//! entry   gap:varint len:varint what:varint [digest:[u8; 32]]
//! gap     bytes from the end of the entry before, or from 0 for the first of a block
//! what    0 zeros; 1 the chunk whose digest follows; 2 + zigzag(number in the base - the one before - 1)
//! ```
//!
//! The base is a whole list (`docs/formats/chunks.md`) and lies beside it, as a hard link to the file of the restore point
//! that it was sent for: no restore point needs another one's folder.
//!
//! Invariant: what is read through [`ShortList`] has the length and form of the list that was shortened; whether it
//! is that list is told by its digest. Memory: one block. What is *not* here: which base is taken (`shorten`).

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use backup::Digest;
use backup::chunk::{Chunk, Content, list_len};

use super::storage::OpenFile;

pub(super) const MAGIC: &[u8; 4] = b"NBSL";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 48;
const BLOCK: u64 = 1024;
/// The most plain bytes of a block: no entry has more than three varints and a digest.
const MAX_BLOCK: usize = BLOCK as usize * (3 * 10 + Digest::LEN);
/// Of a whole list.
const LIST_HEADER: u64 = 16;
const ENTRY: u64 = 48;
/// Entries of the base that are read at once.
const WINDOW: u64 = 128;
const LEVEL: i32 = 3;

fn bad(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// A short list, read as if it were whole.
pub(super) struct ShortList {
    file: OpenFile,
    base: OpenFile,
    base_entries: u64,
    entries: u64,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// The number of the block that `plain` is of.
    block: Option<u64>,
    /// Entries as in a whole list.
    plain: Vec<u8>,
    window: Window,
}

/// Some of the base's entries.
#[derive(Default)]
struct Window {
    first: u64,
    bytes: Vec<u8>,
}

/// What the head of a short list says of its base.
pub(super) fn base_of(file: &OpenFile) -> io::Result<Digest> {
    let mut head = [0; HEADER_LEN];
    file.read_exact_at(&mut head, 0)?;
    let version = le32(&head[4..8]);
    if !head.starts_with(MAGIC) || version != VERSION {
        return Err(bad(format!(
            "a short chunk list of version {version} (expected {VERSION})"
        )));
    }
    let mut base = [0; Digest::LEN];
    base.copy_from_slice(&head[16..]);
    Ok(Digest::from_bytes(base))
}

impl ShortList {
    pub(super) fn open(file: OpenFile, base: OpenFile) -> io::Result<Self> {
        let mut head = [0; HEADER_LEN];
        file.read_exact_at(&mut head, 0)?;
        let entries = le64(&head[8..16]);
        let blocks = entries.div_ceil(BLOCK);
        let table = blocks
            .checked_add(1)
            .and_then(|positions| positions.checked_mul(8))
            .and_then(|table| table.checked_add(HEADER_LEN as u64));
        if table.is_none_or(|table| table > file.len().unwrap_or(0)) {
            return Err(bad("a short chunk list that ends within its table"));
        }
        let body = base.len()?.checked_sub(LIST_HEADER);
        let body = body.filter(|body| body.is_multiple_of(ENTRY));
        let body =
            body.ok_or_else(|| bad("the base of a chunk list holds no whole number of entries"))?;
        Ok(Self {
            file,
            base,
            base_entries: body / ENTRY,
            entries,
            cache: Mutex::default(),
        })
    }

    /// Bytes of the whole list.
    pub(super) const fn len(&self) -> u64 {
        list_len(self.entries)
    }

    /// Bytes of the whole list, from `offset` on.
    pub(super) fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Nothing panics while the lock is held; a block is named only when it is whole.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let head = list_head();
            let (source, from) = if at < LIST_HEADER {
                (&head[..], at as usize)
            } else {
                let body = at - LIST_HEADER;
                let block = body / (BLOCK * ENTRY);
                self.decode(block, &mut cache)?;
                (&cache.plain[..], (body % (BLOCK * ENTRY)) as usize)
            };
            let source = source.get(from..).unwrap_or_default();
            let count = source.len().min(rest.len());
            if count == 0 {
                return Err(bad("a short chunk list that ends early"));
            }
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&source[..count]);
            rest = later;
            at += count as u64;
        }
        Ok(())
    }

    fn decode(&self, block: u64, cache: &mut Cache) -> io::Result<()> {
        if cache.block == Some(block) {
            return Ok(());
        }
        cache.block = None;
        let mut table = [0; 16];
        self.file
            .read_exact_at(&mut table, HEADER_LEN as u64 + 8 * block)?;
        let (from, to) = (le64(&table[..8]), le64(&table[8..]));
        let len = to
            .checked_sub(from)
            .and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len <= zstd::zstd_safe::compress_bound(MAX_BLOCK));
        let mut frame =
            vec![0; len.ok_or_else(|| bad("a block of a chunk list of impossible length"))?];
        self.file.read_exact_at(&mut frame, from)?;
        let bytes = zstd::bulk::decompress(&frame, MAX_BLOCK)?;
        let mut rest = bytes.as_slice();
        let count = BLOCK.min(self.entries - block * BLOCK);
        let (mut end, mut number) = (0u64, 0u64);
        cache.plain.clear();
        for _ in 0..count {
            let start = end.checked_add(take_varint(&mut rest)?);
            let start = start.ok_or_else(|| bad("an entry past any disk"))?;
            let len = u32::try_from(take_varint(&mut rest)?).map_err(io::Error::other)?;
            end = start.saturating_add(u64::from(len));
            let what = take_varint(&mut rest)?;
            let digest = match what {
                0 => [0; Digest::LEN],
                1 => {
                    let (digest, later) = rest
                        .split_first_chunk()
                        .ok_or_else(|| bad("an entry that is cut short"))?;
                    rest = later;
                    *digest
                }
                _ => {
                    let step = unzigzag(what - 2);
                    let found = number.wrapping_add_signed(step);
                    number = found.wrapping_add(1);
                    self.digest_of_base(found, &mut cache.window)?
                }
            };
            cache.plain.extend_from_slice(&start.to_le_bytes());
            cache.plain.extend_from_slice(&len.to_le_bytes());
            cache
                .plain
                .extend_from_slice(&u32::from(what != 0).to_le_bytes());
            cache.plain.extend_from_slice(&digest);
        }
        if !rest.is_empty() {
            return Err(bad("a block of a chunk list that is too long"));
        }
        cache.block = Some(block);
        Ok(())
    }

    fn digest_of_base(&self, number: u64, window: &mut Window) -> io::Result<[u8; Digest::LEN]> {
        if number >= self.base_entries {
            return Err(bad(
                "a chunk list that names an entry its base does not have",
            ));
        }
        let held = window.bytes.len() as u64 / ENTRY;
        if !(window.first..window.first + held).contains(&number) {
            let count = WINDOW.min(self.base_entries - number);
            window.bytes.resize((count * ENTRY) as usize, 0);
            window.first = number;
            let read = self
                .base
                .read_exact_at(&mut window.bytes, LIST_HEADER + number * ENTRY);
            read.inspect_err(|_| window.bytes.clear())?;
        }
        let at = ((number - window.first) * ENTRY) as usize + 16;
        let mut digest = [0; Digest::LEN];
        digest.copy_from_slice(&window.bytes[at..at + Digest::LEN]);
        Ok(digest)
    }
}

/// The chunks of a list by the beginning of their digests: about 24 bytes each.
#[derive(Default)]
pub(super) struct Numbers {
    numbers: HashMap<u64, u64>,
    next: u64,
}

impl Numbers {
    fn key(digest: &Digest) -> u64 {
        le64(&digest.as_bytes()[..8])
    }

    /// The next entry of the base.
    pub(super) fn add(&mut self, chunk: &Chunk) {
        if let Content::Data(digest) = &chunk.content {
            self.numbers.insert(Self::key(digest), self.next);
        }
        self.next += 1;
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<u64> {
        self.numbers.get(&Self::key(digest)).copied()
    }
}

/// Writes a short list, one entry after the other.
pub(super) struct ShortListWriter<'a> {
    file: &'a OpenFile,
    entries: u64,
    added: u64,
    positions: Vec<u64>,
    block: Vec<u8>,
    end: u64,
    number: u64,
}

impl<'a> ShortListWriter<'a> {
    /// Begins a list of `entries` entries in an empty file.
    pub(super) fn new(file: &'a OpenFile, entries: u64, base: &Digest) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEADER_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&entries.to_le_bytes());
        head.extend_from_slice(base.as_bytes());
        file.write_all_at(&head, 0)?;
        let table = 8 * (entries.div_ceil(BLOCK) + 1);
        Ok(Self {
            file,
            entries,
            added: 0,
            positions: vec![HEADER_LEN as u64 + table],
            block: Vec::new(),
            end: 0,
            number: 0,
        })
    }

    pub(super) fn add(&mut self, chunk: &Chunk, base: &Numbers) -> io::Result<()> {
        let gap = chunk.range.start().checked_sub(self.end);
        put_varint(
            gap.ok_or_else(|| bad("a chunk list that is not in order"))?,
            &mut self.block,
        );
        put_varint(chunk.range.len(), &mut self.block);
        self.end = chunk.range.end();
        match &chunk.content {
            Content::Zero => put_varint(0, &mut self.block),
            Content::Data(digest) => {
                if let Some(found) = base.find(digest) {
                    // Both are numbers of entries, far below 2^63.
                    let step = found as i64 - self.number as i64;
                    put_varint(2 + zigzag(step), &mut self.block);
                    self.number = found + 1;
                } else {
                    put_varint(1, &mut self.block);
                    self.block.extend_from_slice(digest.as_bytes());
                }
            }
        }
        self.added += 1;
        if self.added.is_multiple_of(BLOCK) || self.added == self.entries {
            self.end_block()?;
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let frame = zstd::bulk::compress(&self.block, LEVEL)?;
        let at = self.positions.last().copied().unwrap_or(0);
        self.file.write_all_at(&frame, at)?;
        self.positions.push(at + frame.len() as u64);
        self.block.clear();
        (self.end, self.number) = (0, 0);
        Ok(())
    }

    /// Writes the table; bytes of the whole file.
    pub(super) fn finish(self) -> io::Result<u64> {
        if self.added != self.entries {
            return Err(bad("a chunk list that has other entries than were counted"));
        }
        let table: Vec<u8> = self
            .positions
            .iter()
            .flat_map(|at| at.to_le_bytes())
            .collect();
        self.file.write_all_at(&table, HEADER_LEN as u64)?;
        self.file.sync()?;
        Ok(self.positions.last().copied().unwrap_or(0))
    }
}

fn list_head() -> [u8; LIST_HEADER as usize] {
    let mut head = [0; LIST_HEADER as usize];
    head[..8].copy_from_slice(b"NBCL\x01\0\0\0");
    head
}

fn le32(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

fn le64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put_varint(mut number: u64, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes
            .split_first()
            .ok_or_else(|| bad("an entry that is cut short"))?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(bad("a number that is too long"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backup::ByteRange;
    use backup::chunk::ChunkList;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::super::memory_storage::MemoryStorage;
    use super::super::storage::Storage;
    use super::*;

    fn file(bytes: &[u8]) -> OpenFile {
        let file = MemoryStorage::new().create(Path::new("/list")).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// Chunks by their numbers; 0 is a range of zeros, and after each there is a gap of some.
    fn list(chunks: &[(u16, u16)]) -> (Vec<Chunk>, Vec<u8>) {
        let mut at = 0;
        let chunk = |(number, gap): &(u16, u16)| {
            let len = 1 + u64::from(*number) * 3;
            let range = ByteRange::between(at, at + len);
            at += len + u64::from(gap % 7);
            let content = match number {
                0 => Content::Zero,
                _ => Content::Data(Digest::of(&number.to_le_bytes())),
            };
            Chunk { range, content }
        };
        let chunks: Vec<_> = chunks.iter().map(chunk).collect();
        let encoded = ChunkList::new(chunks.clone(), u64::MAX).unwrap().encode();
        (chunks, encoded)
    }

    fn shortened(base: &[(u16, u16)], chunks: &[(u16, u16)]) -> (Vec<u8>, OpenFile, OpenFile, u64) {
        let ((base, base_bytes), (chunks, whole)) = (list(base), list(chunks));
        let mut numbers = Numbers::default();
        base.iter().for_each(|chunk| numbers.add(chunk));
        let short = file(&[]);
        let digest = Digest::of(&base_bytes);
        let mut writer = ShortListWriter::new(&short, chunks.len() as u64, &digest).unwrap();
        for chunk in &chunks {
            writer.add(chunk, &numbers).unwrap();
        }
        let len = writer.finish().unwrap();
        assert_eq!(base_of(&short).unwrap(), digest);
        (whole, short, file(&base_bytes), len)
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]
        #[test]
        fn a_short_list_reads_like_the_whole_one(
            base in proptest::collection::vec((0..900u16, any::<u16>()), 0..1500),
            chunks in proptest::collection::vec((0..1200u16, any::<u16>()), 0..2500),
            reads in proptest::collection::vec((any::<u32>(), 0..70_000usize), 0..10),
        ) {
            let (whole, short, base, len) = shortened(&base, &chunks);
            prop_assert_eq!(short.len().unwrap(), len);
            let list = ShortList::open(short, base).unwrap();
            prop_assert_eq!(list.len(), whole.len() as u64);
            let mut read = vec![0; whole.len()];
            list.read_exact_at(&mut read, 0).unwrap();
            prop_assert!(read == whole);
            for (at, len) in reads {
                let at = at as usize % (whole.len() + 1);
                let end = whole.len().min(at + len);
                let mut read = vec![0; end - at];
                list.read_exact_at(&mut read, at as u64).unwrap();
                prop_assert!(read == whole[at..end]);
            }
            prop_assert!(list.read_exact_at(&mut [0], whole.len() as u64).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic_or_read_on(
            entries in 0..3000u64, bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut head = [MAGIC.as_slice(), &1u32.to_le_bytes(), &entries.to_le_bytes(), &[7; 32]].concat();
            head.extend_from_slice(&bytes);
            if let Ok(list) = ShortList::open(file(&head), file(&list(&[(1, 0), (2, 0)]).1)) {
                let mut read = vec![0; 4096];
                let len = list.len().min(4096) as usize;
                let _ = list.read_exact_at(&mut read[..len], 0);
            }
        }

        #[test]
        fn no_entries_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let frame = zstd::bulk::compress(&bytes, 1).unwrap();
            let from = HEADER_LEN as u64 + 16;
            let table = [from, from + frame.len() as u64].map(u64::to_le_bytes).concat();
            let head = [MAGIC.as_slice(), &1u32.to_le_bytes(), &20u64.to_le_bytes(), &[7; 32]].concat();
            let short = file(&[head, table, frame].concat());
            let list = ShortList::open(short, file(&list(&[(1, 0), (2, 0)]).1)).unwrap();
            let mut read = vec![0; list.len() as usize];
            let _ = list.read_exact_at(&mut read, 0);
        }
    }

    #[test]
    fn a_list_of_the_same_chunks_is_a_tenth_as_long() {
        let chunks: Vec<_> = (0..1000).map(|number| (number, number)).collect();
        let (whole, _, _, len) = shortened(&chunks, &chunks);
        assert!(len * 10 < whole.len() as u64, "{len} of {}", whole.len());
    }
}
