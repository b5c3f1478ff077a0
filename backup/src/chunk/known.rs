//! The digests that a capture has asked for already.
//!
//! Invariant: bounded memory, whatever the disk: when the set is full, the older half is forgotten.
//! What is forgotten is asked for again, which costs a few bytes and nothing else. Memory: two tables
//! of 2¹⁸ places, 17 MiB.

use std::collections::HashSet;

use crate::Digest;

/// How many digests one half has: what a table of 2¹⁸ places holds before it grows.
const HALF: usize = (1 << 18) / 8 * 7;

/// A bounded set that forgets the oldest.
#[derive(Debug, Default)]
pub struct Known {
    newer: HashSet<Digest>,
    older: HashSet<Digest>,
}

impl Known {
    /// Remembers a digest; false when it was known.
    pub fn insert(&mut self, digest: Digest) -> bool {
        // Looked for before it is inserted: a full table grows even for what it has.
        if self.newer.contains(&digest) || self.older.contains(&digest) {
            return false;
        }
        if self.newer.len() >= HALF {
            // The table is used again: it never grows past its size.
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_new_and_the_set_stays_within_its_bound() {
        let mut known = Known::default();
        let digest = |number: u64| {
            let mut bytes = [0; Digest::LEN];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            Digest::from_bytes(bytes)
        };
        let all = 3 * HALF as u64;
        for number in 0..all {
            assert!(known.insert(digest(number)));
            assert!(!known.insert(digest(number)));
        }
        assert!(known.newer.len() <= HALF && known.older.len() <= HALF);
        assert!(known.newer.capacity() <= HALF && known.older.capacity() <= HALF);
        assert!(known.insert(digest(0)), "the oldest are forgotten");
        assert!(!known.insert(digest(all - 1)));
    }
}
