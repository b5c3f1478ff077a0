//! The chunk lists of a restore: fetched and checked before a disk is opened, then read again block by block.
//!
//! Invariant: no entry is used whose bytes were not part of a list with the digest that the manifest names. The
//! first pass checks whole lists and notes the digest of each block; a block that is fetched a second time is
//! compared with it. Memory: [`KEPT`] bytes of blocks, whatever the disk, and 64 bytes for each block more, which is
//! for about a gigabyte of data.

use std::collections::HashMap;

use backup::chunk::{Chunk, ChunkError, ListReader, list_len};
use backup::digest::Hasher;
use backup::manifest::{ChunkListRef, RestorePointId};
use backup::units::HumanBytes;
use backup::{ByteRange, Digest};

use crate::job::Engine;
use crate::job::error::Fault;

/// The most bytes of lists that are kept; what is more is fetched again when it is needed.
pub(super) const KEPT: u64 = 24 << 20;
/// Bytes of a list's header and of an entry.
const HEAD: u64 = list_len(0);
const ENTRY: u64 = list_len(1) - HEAD;
/// Bytes of a block, without the header that the first one has in addition.
const BLOCK: u64 = 16_384 * ENTRY;

/// Says what is wrong with a chunk, if something is.
pub(super) type CheckChunk<'a> = dyn Fn(&Chunk) -> Result<(), Fault> + 'a;

/// A list that is needed.
pub(super) struct Needed<'a> {
    /// What the manifest says of it.
    pub(super) content: &'a ChunkListRef,
    /// Size of the region or volume.
    pub(super) size: u64,
    /// Says what is wrong with a chunk, if something is.
    pub(super) check: Box<CheckChunk<'a>>,
}

/// A part of a list.
struct Block {
    /// Where its first chunk begins in the region.
    first: u64,
    digest: Digest,
    bytes: Option<Vec<u8>>,
}

struct List {
    size: u64,
    len: u64,
    head: Vec<u8>,
    blocks: Vec<Block>,
}

/// The lists of a restore point.
pub(super) struct Lists<'a> {
    engine: &'a Engine<'a>,
    restore_point: RestorePointId,
    lists: HashMap<Digest, List>,
}

/// What can be wrong while a list passes.
enum Wrong {
    List(ChunkError),
    Chunk(Fault),
}

impl From<ChunkError> for Wrong {
    fn from(error: ChunkError) -> Self {
        Self::List(error)
    }
}

/// The bytes of a block of a list of `len` bytes; none past its end.
fn place(block: usize, len: u64) -> Option<ByteRange> {
    let start = (block as u64).checked_mul(BLOCK)?;
    let start = if block == 0 { 0 } else { start + HEAD };
    let end = (block as u64 + 1).checked_mul(BLOCK)?.checked_add(HEAD)?;
    (start < len).then(|| ByteRange::between(start, end.min(len)))
}

impl<'a> Lists<'a> {
    /// Fetches and checks the lists; keeps at most `kept` bytes of them.
    ///
    /// # Errors
    /// A list that is not what the manifest says, and what `check` says of its chunks.
    pub(super) fn fetch(
        engine: &'a Engine<'a>,
        restore_point: &RestorePointId,
        needed: &[Needed<'_>],
        kept: u64,
    ) -> Result<Self, Fault> {
        let mut all = Self {
            engine,
            restore_point: restore_point.clone(),
            lists: HashMap::new(),
        };
        let (mut chunks, mut bytes, mut room) = (0, 0, kept);
        for one in needed {
            let digest = one.content.digest;
            if let Some(list) = all.lists.get(&digest) {
                // The same content in a second place.
                for block in 0..list.blocks.len() {
                    let again = all.chunks(&digest, block)?;
                    again.iter().try_for_each(&one.check)?;
                }
                continue;
            }
            let list = all.fetch_list(one, &mut room)?;
            all.lists.insert(digest, list);
            chunks += one.content.chunks;
            bytes += list_len(one.content.chunks);
        }
        log::info!(
            "{chunks} chunks in {} lists ({}, {} of it kept)",
            all.lists.len(),
            HumanBytes(bytes),
            HumanBytes(kept - room)
        );
        Ok(all)
    }

    fn fetch_list(&self, needed: &Needed<'_>, room: &mut u64) -> Result<List, Fault> {
        let content = needed.content;
        let mut list = List {
            size: needed.size,
            len: list_len(content.chunks),
            head: Vec::new(),
            blocks: Vec::new(),
        };
        let (mut reader, mut whole) = (ListReader::new(needed.size), Hasher::new());
        while let Some(range) = place(list.blocks.len(), list.len) {
            self.engine.check_cancelled()?;
            let bytes = self.part(&content.digest, range)?;
            whole.update(&bytes);
            if list.blocks.is_empty() {
                list.head = bytes.iter().take(HEAD as usize).copied().collect();
            }
            let mut first = None;
            let fed = reader.feed(&bytes, |chunk| {
                first.get_or_insert(chunk.range.start());
                (needed.check)(&chunk).map_err(Wrong::Chunk)
            });
            fed.map_err(|wrong| match wrong {
                Wrong::Chunk(fault) => fault,
                Wrong::List(source) => unusable(content.digest)(source),
            })?;
            let digest = Digest::of(&bytes);
            let fits = bytes.len() as u64 <= *room;
            if fits {
                *room -= bytes.len() as u64;
            }
            list.blocks.push(Block {
                first: first.unwrap_or(needed.size),
                digest,
                bytes: fits.then_some(bytes),
            });
        }
        let found = whole.digest();
        if found != content.digest {
            return Err(Fault::OtherAnswer {
                found: format!("chunk list {found}"),
                expected: content.digest.to_string(),
            });
        }
        let totals = reader.finish().map_err(unusable(content.digest))?;
        let lens = (totals.data_bytes, totals.zero_bytes);
        if lens != (content.data_bytes, content.zero_bytes) {
            return Err(Fault::OtherAnswer {
                found: format!("{} bytes of data and {} of zeros", lens.0, lens.1),
                expected: format!(
                    "{} and {} in chunk list {}",
                    content.data_bytes, content.zero_bytes, content.digest
                ),
            });
        }
        Ok(list)
    }

    fn part(&self, digest: &Digest, range: ByteRange) -> Result<Vec<u8>, Fault> {
        let server = self.engine.server;
        let bytes = server
            .chunk_list(&self.restore_point, digest, range)
            .map_err(Fault::server(format!("fetching chunk list {digest}")))?;
        self.engine.tracker.network(bytes.len() as u64);
        if bytes.len() as u64 != range.len() {
            return Err(Fault::OtherAnswer {
                found: format!("{} bytes of chunk list {digest}", bytes.len()),
                expected: format!("{} from byte {}", range.len(), range.start()),
            });
        }
        Ok(bytes)
    }

    fn list(&self, digest: &Digest) -> Result<&List, Fault> {
        self.lists.get(digest).ok_or_else(|| {
            Fault::Internal(format!("plan and manifest do not fit: no list {digest}"))
        })
    }

    /// The blocks of a list with chunks of a part of its region.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a list that was not fetched.
    pub(super) fn blocks(
        &self,
        digest: &Digest,
        part: ByteRange,
    ) -> Result<std::ops::Range<usize>, Fault> {
        let blocks = &self.list(digest)?.blocks;
        let start = blocks.partition_point(|block| block.first <= part.start());
        let end = blocks.partition_point(|block| block.first < part.end());
        Ok(start.saturating_sub(1)..end)
    }

    /// The chunks of a block.
    ///
    /// # Errors
    /// When it is fetched again: a server that does not answer, or with something else than before.
    pub(super) fn chunks(&self, digest: &Digest, number: usize) -> Result<Vec<Chunk>, Fault> {
        let list = self.list(digest)?;
        let (Some(block), Some(range)) = (list.blocks.get(number), place(number, list.len)) else {
            return Ok(Vec::new());
        };
        let fetched;
        let bytes = if let Some(bytes) = &block.bytes {
            bytes
        } else {
            fetched = self.part(digest, range)?;
            let found = Digest::of(&fetched);
            if found != block.digest {
                return Err(Fault::OtherAnswer {
                    found: format!(
                        "other bytes of chunk list {digest} from byte {}",
                        range.start()
                    ),
                    expected: "what it sent before".to_owned(),
                });
            }
            &fetched
        };
        let mut reader = ListReader::new(list.size);
        let mut chunks = Vec::with_capacity(bytes.len() / ENTRY as usize);
        let mut take = |chunk| {
            chunks.push(chunk);
            Ok::<_, ChunkError>(())
        };
        let head = if number == 0 { &[][..] } else { &list.head };
        reader
            .feed(head, &mut take)
            .and_then(|()| reader.feed(bytes, take))
            .map_err(unusable(*digest))?;
        Ok(chunks)
    }
}

fn unusable(digest: Digest) -> impl FnOnce(ChunkError) -> Fault {
    move |source| Fault::ChunkList { digest, source }
}

#[cfg(test)]
mod tests {
    use backup::chunk::{ChunkList, Content};

    use super::*;
    use crate::job::fake::{Bench, ImageMachine, point};

    const CHUNK: u64 = 8192;
    const COUNT: u64 = 40_000;

    fn chunk_list() -> (ChunkList, ChunkListRef) {
        let chunk = |number: u64| Chunk {
            range: ByteRange::between(number * 2 * CHUNK, (number * 2 + 1) * CHUNK),
            content: if number.is_multiple_of(5) {
                Content::Zero
            } else {
                Content::Data(Digest::of(&number.to_le_bytes()))
            },
        };
        let chunks = (0..COUNT).map(chunk).collect();
        let list = ChunkList::new(chunks, 2 * CHUNK * COUNT).unwrap();
        let content = ChunkListRef {
            digest: Digest::of(&list.encode()),
            chunks: COUNT,
            data_bytes: list.data_bytes(),
            zero_bytes: list.zero_bytes(),
        };
        (list, content)
    }

    fn needed(content: &ChunkListRef) -> Vec<Needed<'_>> {
        vec![Needed {
            content,
            size: 2 * CHUNK * COUNT,
            check: Box::new(|_| Ok(())),
        }]
    }

    #[test]
    fn a_list_is_the_same_kept_in_part_or_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::new(ImageMachine::new(folder.path()), Vec::new());
        let (list, content) = chunk_list();
        bench.server.put_list(content.digest, list.encode());
        for (kept, times) in [(0, 2), (BLOCK + HEAD, 2), (KEPT, 1)] {
            let engine = bench.engine();
            let lists = Lists::fetch(&engine, &point("rp-1"), &needed(&content), kept).unwrap();
            let all = ByteRange::between(0, 2 * CHUNK * COUNT);
            let blocks = lists.blocks(&content.digest, all).unwrap();
            assert_eq!(blocks, 0..3);
            let chunks: Vec<_> = blocks
                .flat_map(|block| lists.chunks(&content.digest, block).unwrap())
                .collect();
            assert_eq!(chunks, list.chunks());
            let crossed = engine.tracker.network_bytes();
            let len = list_len(COUNT);
            assert!(
                crossed >= len && crossed <= times * len,
                "{kept}: {crossed}"
            );
        }
    }

    #[test]
    fn a_part_is_found_without_the_blocks_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::new(ImageMachine::new(folder.path()), Vec::new());
        let (list, content) = chunk_list();
        bench.server.put_list(content.digest, list.encode());
        let engine = bench.engine();
        let lists = Lists::fetch(&engine, &point("rp-1"), &needed(&content), 0).unwrap();
        let first_of_second = 16_384 * 2 * CHUNK;
        let part = |start, end| {
            let part = ByteRange::between(start, end);
            lists.blocks(&content.digest, part).unwrap()
        };
        assert_eq!(part(0, 1), 0..1);
        assert_eq!(part(first_of_second - 1, first_of_second), 0..1);
        assert_eq!(part(first_of_second, first_of_second + 1), 1..2);
        assert_eq!(part(first_of_second - 1, first_of_second + 1), 0..2);
    }

    #[test]
    fn a_list_that_changes_on_the_way_is_refused_in_either_pass() {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::new(ImageMachine::new(folder.path()), Vec::new());
        let (list, content) = chunk_list();
        let mut other = list.encode();
        // In the digest of the last entry: still a list, but another one.
        *other.last_mut().unwrap() ^= 1;
        bench.server.put_list(content.digest, other.clone());
        let engine = bench.engine();
        let fetch = || Lists::fetch(&engine, &point("rp-1"), &needed(&content), 0);
        assert!(matches!(fetch(), Err(Fault::OtherAnswer { .. })));
        bench.server.put_list(content.digest, list.encode());
        let lists = fetch().unwrap();
        bench.server.put_list(content.digest, other);
        assert!(lists.chunks(&content.digest, 0).is_ok());
        let refused = lists.chunks(&content.digest, 2);
        assert!(matches!(refused, Err(Fault::OtherAnswer { .. })));
    }
}
