//! Building a chunk list while its region is read: runs of zeros are joined, and the bytes come in parts.
//!
//! Invariant: only the part that was not taken yet is in memory; the digest is of all parts in order.

use super::{Chunk, ChunkError, Content, ListWriter};
use crate::ByteRange;
use crate::digest::Hasher;
use crate::manifest::ChunkListRef;

/// The longest run of zeros in one entry of a chunk list.
const ZERO_RUN: u64 = 1 << 30;

/// A list that is being built.
#[derive(Debug)]
pub struct ListBuilder {
    writer: ListWriter,
    hasher: Hasher,
    /// What was not taken yet.
    part: Vec<u8>,
    /// How much was taken.
    taken: u64,
    /// Zeros that may go on.
    zeros: Option<ByteRange>,
}

/// A piece of an encoded list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPart {
    /// How many bytes of the list are before it.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The end of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltList {
    /// Its last part; none when all was taken.
    pub last: Option<ListPart>,
    /// Its length in bytes.
    pub length: u64,
    /// What names it.
    pub name: ChunkListRef,
}

impl ListBuilder {
    /// A list for a region of `region_len` bytes.
    #[must_use]
    pub fn new(region_len: u64) -> Self {
        Self {
            writer: ListWriter::new(region_len),
            hasher: Hasher::new(),
            part: Vec::new(),
            taken: 0,
            zeros: None,
        }
    }

    /// Appends a chunk; zeros that follow zeros become one entry.
    ///
    /// # Errors
    /// [`ChunkError::Entry`] for a chunk that is out of order or leaves the region.
    pub fn push(&mut self, chunk: &Chunk) -> Result<(), ChunkError> {
        let range = chunk.range;
        if chunk.content != Content::Zero {
            self.write_zeros()?;
            return self.writer.push(chunk, &mut self.part);
        }
        match &mut self.zeros {
            Some(zeros)
                if zeros.end() == range.start() && zeros.len() + range.len() <= ZERO_RUN =>
            {
                *zeros = ByteRange::between(zeros.start(), range.end());
                Ok(())
            }
            _ => {
                self.write_zeros()?;
                self.zeros = Some(range);
                Ok(())
            }
        }
    }

    fn write_zeros(&mut self) -> Result<(), ChunkError> {
        let Some(range) = self.zeros.take() else {
            return Ok(());
        };
        let content = Content::Zero;
        self.writer.push(&Chunk { range, content }, &mut self.part)
    }

    /// How many bytes were not taken yet.
    #[must_use]
    pub const fn part_len(&self) -> usize {
        self.part.len()
    }

    /// Takes what is there of the list and was not taken yet.
    #[must_use]
    pub fn take_part(&mut self) -> ListPart {
        self.hasher.update(&self.part);
        let offset = self.taken;
        self.taken += self.part.len() as u64;
        let bytes = std::mem::take(&mut self.part);
        ListPart { offset, bytes }
    }

    /// Ends the list.
    ///
    /// # Errors
    /// [`ChunkError::Entry`] when the last zeros leave the region.
    pub fn finish(mut self) -> Result<BuiltList, ChunkError> {
        self.write_zeros()?;
        let writer = std::mem::replace(&mut self.writer, ListWriter::new(0));
        let totals = writer.finish(&mut self.part);
        let last = (!self.part.is_empty()).then(|| self.take_part());
        Ok(BuiltList {
            last,
            length: self.taken,
            name: ChunkListRef {
                digest: self.hasher.digest(),
                chunks: totals.chunks,
                data_bytes: totals.data_bytes,
                zero_bytes: totals.zero_bytes,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::chunk::ChunkList;

    #[test]
    fn parts_make_the_list_that_is_named_and_zeros_that_touch_are_one_entry() {
        let chunk = |start, end, content| Chunk {
            range: ByteRange::between(start, end),
            content,
        };
        let data = Content::Data(Digest::of(b"x"));
        let mut builder = ListBuilder::new(1 << 20);
        let mut bytes = Vec::new();
        for (start, content) in [
            (0, Content::Zero),
            (10, Content::Zero),
            (20, data),
            (40, Content::Zero),
        ] {
            builder.push(&chunk(start, start + 10, content)).unwrap();
            let part = builder.take_part();
            assert_eq!(part.offset, bytes.len() as u64);
            bytes.extend(part.bytes);
        }
        let built = builder.finish().unwrap();
        bytes.extend(built.last.map(|part| part.bytes).unwrap_or_default());
        assert_eq!(built.length, bytes.len() as u64);
        assert_eq!(built.name.digest, Digest::of(&bytes));
        let list = ChunkList::decode(&bytes, 1 << 20).unwrap();
        let expected = [
            chunk(0, 20, Content::Zero),
            chunk(20, 30, data),
            chunk(40, 50, Content::Zero),
        ];
        assert_eq!(list.chunks(), expected);
        assert_eq!((built.name.chunks, built.name.zero_bytes), (3, 30));
    }
}
