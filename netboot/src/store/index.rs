//! Where each chunk lies, in memory: by digest, and by a position that does not change.
//!
//! About 57 bytes a chunk: a slot of 48 and its place in the table; and about 30 for what it resembles. Positions let
//! a look over all chunks (garbage collection, sizes, comparison) do with a bit or a word for each instead of a set
//! of digests.
//!
//! Invariant: a position means the same chunk until that chunk is removed; then it may be given to
//! another one. A chunk that lies in the store as a difference has a base here, which is whole; when the base goes, so
//! do its differences. What is *not* here: locks.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use backup::Digest;
use hashbrown::HashTable;

use super::bits::Bits;
use super::chunk_store::Location;
use super::resemblance::{Features, Resemblance};

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
    /// The position of the base of every chunk that lies there as a difference.
    bases: HashMap<u32, u32>,
    resemblance: Resemblance,
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
    /// chunks than positions, and when its base is not one.
    pub(super) fn put(
        &mut self,
        digest: Digest,
        location: Location,
        base: Option<u32>,
    ) -> Option<u32> {
        let is_base = |base: u32| {
            let found = self.at(base);
            found.is_some_and(|(other, at)| other != digest && !at.is_difference())
        };
        if location.is_difference() != base.is_some() || !base.is_none_or(is_base) {
            return None;
        }
        if let Some(position) = self.position(&digest) {
            self.place(position, location);
            self.set_base(position, base);
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
        self.set_base(position, base);
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

    fn place(&mut self, position: u32, location: Location) {
        if let Some(Some((_, old))) = self.slots.get_mut(position as usize) {
            self.bytes -= old.record_len() as u64;
            self.bytes += location.record_len() as u64;
            *old = location;
            self.damaged.clear(position);
        }
    }

    fn set_base(&mut self, position: u32, base: Option<u32>) {
        match base {
            Some(base) => drop(self.bases.insert(position, base)),
            None => drop(self.bases.remove(&position)),
        }
    }

    /// The position of the chunk that the one at `position` is a difference from.
    pub(super) fn base(&self, position: u32) -> Option<u32> {
        let (_, location) = self.at(position)?;
        self.bases
            .get(&position)
            .copied()
            .filter(|_| location.is_difference())
    }

    /// The positions of all that is needed for a chunk: its own and its base's.
    pub(super) fn needed(&self, digest: &Digest) -> impl Iterator<Item = u32> + use<> {
        let position = self.position(digest);
        let base = position.and_then(|position| self.base(position));
        position.into_iter().chain(base)
    }

    /// A whole chunk can be found by these features.
    pub(super) fn learn_features(&mut self, position: u32, features: Features) {
        if self.at(position).is_some_and(|(_, at)| !at.is_difference()) {
            self.resemblance.add(features, position);
        }
    }

    /// A chunk that can be a base and is probably much like one of these features.
    pub(super) fn resembling(&self, features: Features) -> Option<Digest> {
        let position = self.resemblance.find(features)?;
        let (digest, location) = self.at(position)?;
        let usable = !location.is_difference() && !self.is_damaged(position);
        usable.then_some(digest)
    }

    /// The chunks that cannot be decoded without one of those at `bases`.
    pub(super) fn differences_from(&self, bases: &Bits) -> Vec<u32> {
        let mut found = Vec::new();
        for (position, base) in &self.bases {
            if bases.has(*base) {
                found.push(*position);
            }
        }
        found
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
        self.bases.remove(&position);
        self.damaged.clear(position);
        self.bytes -= location.record_len() as u64;
    }

    /// Whether the chunk at this position cannot be had: its record, or that of its base, was found damaged.
    pub(super) fn is_damaged(&self, position: u32) -> bool {
        let base = || self.base(position);
        !self.damaged.is_empty()
            && (self.damaged.has(position) || base().is_some_and(|base| self.damaged.has(base)))
    }

    /// Whether the record at this position itself was found damaged.
    pub(super) fn has_damaged_record(&self, position: u32) -> bool {
        self.damaged.has(position)
    }

    /// The record at this position was found damaged.
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
    use super::super::record::Stored;
    use super::*;

    fn at(offset: u32, stored: Stored) -> Location {
        Location {
            pack: PackId(1),
            offset,
            plain_len: 1,
            stored,
        }
    }

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
                    let location = at(offset, Stored::whole(offset));
                    index.put(digest, location, None).unwrap();
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

    #[test]
    fn a_difference_needs_a_whole_base_and_shares_its_fate() {
        let mut index = ChunkIndex::default();
        let [base, other, changed] = [b"base", b"othe", b"chan"].map(|plain| Digest::of(plain));
        let whole = |offset| at(offset, Stored::whole(50));
        let difference = at(300, Stored::difference(40));
        let base_at = index.put(base, whole(16), None).unwrap();
        // No base, a place that is empty, itself, a base for a whole record.
        assert_eq!(index.put(changed, difference, None), None);
        assert_eq!(index.put(changed, difference, Some(9)), None);
        assert_eq!(index.put(base, difference, Some(base_at)), None);
        assert_eq!(index.put(other, whole(100), Some(base_at)), None);
        let position = index.put(changed, difference, Some(base_at)).unwrap();
        // A difference is no base.
        assert_eq!(index.put(other, difference, Some(position)), None);
        assert_eq!(index.base(position), Some(base_at));
        let needed: Vec<_> = index.needed(&changed).collect();
        assert_eq!(needed, [position, base_at]);
        assert_eq!(index.needed(&other).count(), 0);

        assert!(!index.is_damaged(position));
        index.set_damaged(base_at);
        assert!(index.is_damaged(position) && index.is_damaged(base_at));
        index.put(base, whole(500), None).unwrap();
        assert!(!index.is_damaged(position));

        let mut bases = Bits::default();
        bases.set(base_at);
        assert_eq!(index.differences_from(&bases), [position]);
        index.put(changed, whole(700), None).unwrap();
        assert!(index.base(position).is_none() && index.differences_from(&bases).is_empty());
    }
}
