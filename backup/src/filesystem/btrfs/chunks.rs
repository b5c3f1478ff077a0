//! The chunk tree: where logical addresses lie on the volume.
//!
//! Invariant: chunks do not overlap, neither by logical address nor on the volume, and lie inside it. Only
//! the profiles SINGLE and DUP on one device are understood.

use std::ops::ControlFlow;

use super::Fault;
use super::superblock::Superblock;
use super::tree_blocks::{Key, TreeBlocks, kind};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::little_endian::{le16, le32, le64};

/// More chunks than this (1 PiB at usual sizes) are not surveyed.
const MAX_CHUNKS: usize = 1 << 20;
/// Length of a chunk item without stripes, and of one stripe.
const HEAD_LEN: usize = 48;
const STRIPE_LEN: usize = 32;

/// What a chunk is for.
pub(super) const DATA: u64 = 0x1;
pub(super) const SYSTEM: u64 = 0x2;
pub(super) const METADATA: u64 = 0x4;
const DUP: u64 = 0x20;

/// A range of logical addresses and its copies on the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) logical: ByteRange,
    /// Purpose and profile.
    pub(super) flags: u64,
    first: u64,
    second: Option<u64>,
}

impl Chunk {
    /// Where each copy begins on the volume.
    pub(super) fn copies(&self) -> impl Iterator<Item = u64> + use<> {
        std::iter::once(self.first).chain(self.second)
    }
}

/// All chunks, in order of their logical addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunks(Vec<Chunk>);

impl Chunks {
    /// Reads and checks the chunk tree.
    pub(super) fn read(volume: &dyn ReadAt, superblock: &Superblock) -> Result<Self, Fault> {
        let system = system_chunks(superblock)?;
        let blocks = TreeBlocks::new(volume, superblock, &system);
        let (mut chunks, mut devices) = (Vec::new(), 0);
        blocks.walk(&superblock.chunk_tree, Key::FIRST, &mut |item| {
            match item.key.kind {
                kind::CHUNK_ITEM if chunks.len() < MAX_CHUNKS => {
                    chunks.push(chunk(superblock, item.key, item.data)?);
                }
                kind::CHUNK_ITEM => {
                    return Err(Fault::Unsupported(format!("more than {MAX_CHUNKS} chunks")));
                }
                kind::DEV_ITEM => devices += 1,
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if devices != 1 {
            return Err(Fault::Unsupported(format!("a Btrfs of {devices} devices")));
        }
        let chunks = Self::ordered(chunks)?;
        match system.0.iter().find(|chunk| !chunks.0.contains(chunk)) {
            Some(chunk) => Err(Fault::damaged(format!(
                "the system chunk at {} is not in the chunk tree",
                chunk.logical.start()
            ))),
            None => Ok(chunks),
        }
    }

    fn ordered(mut chunks: Vec<Chunk>) -> Result<Self, Fault> {
        chunks.sort_unstable_by_key(|chunk| chunk.logical.start());
        let overlap = |ranges: &[ByteRange]| {
            ranges
                .windows(2)
                .any(|pair| pair[0].end() > pair[1].start())
        };
        let logical: Vec<_> = chunks.iter().map(|chunk| chunk.logical).collect();
        let chunks = Self(chunks);
        let physical: Vec<_> = chunks
            .on_volume()
            .into_iter()
            .map(|(range, _)| range)
            .collect();
        if overlap(&logical) || overlap(&physical) {
            return Err(Fault::damaged("chunks overlap"));
        }
        Ok(chunks)
    }

    pub(super) fn as_slice(&self) -> &[Chunk] {
        &self.0
    }

    /// The number of the chunk in which `range` of logical addresses lies as a whole.
    pub(super) fn find(&self, range: ByteRange) -> Option<usize> {
        let after = self
            .0
            .partition_point(|chunk| chunk.logical.start() <= range.start());
        let index = after.checked_sub(1)?;
        self.0[index].logical.contains(range).then_some(index)
    }

    /// Where the copies of a range of logical addresses begin on the volume; none when no chunk holds it.
    pub(super) fn places(&self, range: ByteRange) -> impl Iterator<Item = u64> + use<'_> {
        self.find(range).into_iter().flat_map(move |index| {
            let chunk = &self.0[index];
            let offset = range.start() - chunk.logical.start();
            chunk.copies().map(move |start| start + offset)
        })
    }

    /// Each copy of each chunk as its range on the volume, in order of the volume.
    pub(super) fn on_volume(&self) -> Vec<(ByteRange, usize)> {
        let mut copies: Vec<_> = self
            .0
            .iter()
            .enumerate()
            .flat_map(|(index, chunk)| {
                let len = chunk.logical.len();
                // The constructor has checked that they end inside the volume.
                chunk
                    .copies()
                    .map(move |start| (ByteRange::between(start, start + len), index))
            })
            .collect();
        copies.sort_unstable();
        copies
    }
}

/// The chunks that the superblock lists, because the chunk tree lies in them.
fn system_chunks(superblock: &Superblock) -> Result<Chunks, Fault> {
    let mut rest = &superblock.system_chunks[..];
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let short = || Fault::damaged("the superblock's system chunks are cut off");
        let (key, tail) = rest.split_at_checked(Key::LEN).ok_or_else(short)?;
        let key = Key::parse(key);
        if key.kind != kind::CHUNK_ITEM || tail.len() < HEAD_LEN {
            return Err(short());
        }
        let len = HEAD_LEN + usize::from(le16(tail, 44)) * STRIPE_LEN;
        let (item, tail) = tail.split_at_checked(len).ok_or_else(short)?;
        chunks.push(chunk(superblock, key, item)?);
        rest = tail;
    }
    Chunks::ordered(chunks)
}

fn chunk(superblock: &Superblock, key: Key, item: &[u8]) -> Result<Chunk, Fault> {
    let bad = || Fault::damaged(format!("the chunk at {} makes no sense", key.offset));
    if item.len() < HEAD_LEN + STRIPE_LEN {
        return Err(bad());
    }
    let (len, flags) = (le64(item, 0), le64(item, 24));
    let profile = flags & !(DATA | SYSTEM | METADATA);
    let copies = match profile {
        0 => 1,
        DUP => 2,
        _ => {
            return Err(Fault::Unsupported(format!(
                "chunks with profile {profile:#x} (neither SINGLE nor DUP)"
            )));
        }
    };
    let stripes = usize::from(le16(item, 44));
    if stripes != copies || item.len() != HEAD_LEN + copies * STRIPE_LEN || flags == profile {
        return Err(bad());
    }
    let aligned = |number: u64| number.is_multiple_of(superblock.sector_size);
    let logical = ByteRange::new(key.offset, len).map_err(|_| bad())?;
    if len == 0
        || !aligned(len)
        || !aligned(key.offset)
        || u64::from(le32(item, 40)) != superblock.sector_size
    {
        return Err(bad());
    }
    let mut starts = [0; 2];
    for (start, stripe) in starts.iter_mut().zip(item[HEAD_LEN..].chunks(STRIPE_LEN)) {
        *start = le64(stripe, 8);
        let inside = start
            .checked_add(len)
            .is_some_and(|end| end <= superblock.size);
        let here = le64(stripe, 0) == superblock.device && stripe[16..32] == superblock.device_uuid;
        if !inside || !here || !aligned(*start) {
            return Err(bad());
        }
    }
    Ok(Chunk {
        logical,
        flags,
        first: starts[0],
        second: (copies == 2).then_some(starts[1]),
    })
}
