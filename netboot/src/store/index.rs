//! Where each chunk lies, in memory: by digest, and by a position that does not change.
//!
//! About 57 bytes a chunk: a slot of 48 and its place in the table. Positions let a look over all
//! chunks (garbage collection, sizes, comparison) do with a bit or a word for each instead of a set of
//! digests.
//!
//! Invariant: a position means the same chunk until that chunk is removed; then it may be given to
//! another one. What is *not* here: locks.

use std::hash::{BuildHasher, RandomState};

use backup::Digest;
use hashbrown::HashTable;

use super::bits::Bits;
use super::chunk_store::Location;

/// All chunks.
#[derive(Default)]
pub(super) struct ChunkIndex {
    slots: Vec<Option<(Digest, Location)>>,
    /// Positions without a chunk.
    vacant: Vec<u32>,
    table: HashTable<u32>,
    /// Keyed, so that nobody can choose chunks that all fall into one place.
    hasher: RandomState,
    /// Chunks whose record was found damaged and not replaced since.
    damaged: Bits,
    bytes: u64,
}

impl ChunkIndex {
    fn hash(hasher: &RandomState, digest: &Digest) -> u64 {
        // A digest is as good as random: 8 bytes of it are enough.
        hasher.hash_one(digest.as_bytes().first_chunk::<8>())
    }

    /// The position of a chunk.
    pub(super) fn position(&self, digest: &Digest) -> Option<u32> {
        let hash = Self::hash(&self.hasher, digest);
        let same = |at: &u32| matches!(self.slots.get(*at as usize), Some(Some((found, _))) if found == digest);
        self.table.find(hash, same).copied()
    }

    /// The chunk at a position.
    pub(super) fn at(&self, position: u32) -> Option<(Digest, Location)> {
        self.slots.get(position as usize).copied().flatten()
    }

    /// Where a chunk lies.
    pub(super) fn find(&self, digest: &Digest) -> Option<Location> {
        let (_, location) = self.at(self.position(digest)?)?;
        Some(location)
    }

    /// Adds a chunk, or moves the one with this digest; its position. `None` when there are more
    /// chunks than positions.
    pub(super) fn put(&mut self, digest: Digest, location: Location) -> Option<u32> {
        if let Some(position) = self.position(&digest) {
            self.move_to(position, location);
            return Some(position);
        }
        let position = match self.vacant.pop() {
            Some(position) => position,
            None => {
                let position = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(None);
                position
            }
        };
        self.slots[position as usize] = Some((digest, location));
        self.bytes += location.record_len() as u64;
        let (hasher, slots) = (&self.hasher, &self.slots);
        let rehash = |at: &u32| {
            let slot = slots.get(*at as usize).copied().flatten();
            slot.map_or(0, |(digest, _)| Self::hash(hasher, &digest))
        };
        let hash = Self::hash(hasher, &digest);
        self.table.insert_unique(hash, position, rehash);
        Some(position)
    }

    /// The chunk at this position lies there now.
    pub(super) fn move_to(&mut self, position: u32, location: Location) {
        if let Some(Some((_, old))) = self.slots.get_mut(position as usize) {
            self.bytes -= old.record_len() as u64;
            self.bytes += location.record_len() as u64;
            *old = location;
            self.damaged.clear(position);
        }
    }

    /// Forgets the chunk at a position.
    pub(super) fn remove(&mut self, position: u32) {
        let Some((digest, location)) = self.at(position) else {
            return;
        };
        let hash = Self::hash(&self.hasher, &digest);
        if let Ok(entry) = self.table.find_entry(hash, |at| *at == position) {
            entry.remove();
        }
        self.slots[position as usize] = None;
        self.vacant.push(position);
        self.damaged.clear(position);
        self.bytes -= location.record_len() as u64;
    }

    /// Whether the chunk at this position was found damaged.
    pub(super) fn is_damaged(&self, position: u32) -> bool {
        self.damaged.has(position)
    }

    /// The chunk at this position was found damaged.
    pub(super) fn set_damaged(&mut self, position: u32) {
        self.damaged.set(position);
    }

    /// Whether any chunk was.
    pub(super) fn any_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// One past the last position.
    pub(super) fn end(&self) -> u32 {
        // `put` gives out no position past u32.
        self.slots.len() as u32
    }

    /// Chunks and the bytes of their records.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.table.len() as u64, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::super::pack::PackId;
    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_a_map_would_find(
            steps in proptest::collection::vec((any::<bool>(), 0..30u8, 1..100u32), 0..200),
        ) {
            let mut index = ChunkIndex::default();
            let mut oracle: HashMap<Digest, Location> = HashMap::new();
            for (put, chunk, offset) in steps {
                let digest = Digest::of(&[chunk]);
                if put {
                    let location = Location { pack: PackId(1), offset, plain_len: 1, stored_len: offset };
                    index.put(digest, location).unwrap();
                    oracle.insert(digest, location);
                } else if let Some(position) = index.position(&digest) {
                    index.remove(position);
                    oracle.remove(&digest);
                }
            }
            for chunk in 0..30 {
                let digest = Digest::of(&[chunk]);
                prop_assert_eq!(index.find(&digest), oracle.get(&digest).copied());
            }
            let bytes = oracle.values().map(|at| at.record_len() as u64).sum();
            prop_assert_eq!(index.size(), (oracle.len() as u64, bytes));
            prop_assert_eq!((0..index.end()).filter_map(|at| index.at(at)).count(), oracle.len());
        }
    }
}
