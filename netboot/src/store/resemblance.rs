//! Which chunk of the store is most like another one: where a difference finds its base.
//!
//! A chunk has three *super-features* (as in Finesse, FAST 2019, and Odess, ICDE 2021): a gear hash rolls over its bytes, one
//! window in about 280 bytes is sampled by the hash itself, twelve functions of the sampled hashes are taken to their
//! largest value, and four of those at a time are hashed into one word. Two chunks that share most of
//! their bytes, shifted or not, share at least one of the three words nearly always; two that do not, hardly ever.
//!
//! Memory: about 30 bytes a chunk. Invariant: what is found here is a guess and nothing relies on it: a base is
//! looked up, read and compared with its digest like any other chunk. What is *not* here: differences
//! themselves (`difference`).

use std::collections::HashMap;

/// How many words a chunk's features have.
pub(super) const WORDS: usize = 3;
/// Functions whose largest values make one word.
const FUNCTIONS: usize = 4;
/// How far a byte moves the bits of the hash.
const SHIFT: u32 = 3;
/// Bytes that a hash of 64 bits depends on.
const WINDOW: usize = 22;
/// A window is sampled when this many high bits of its hash are zero.
const SAMPLED_BITS: u32 = 6;
/// Bytes that are passed over after a sampled window: a quarter of them all is looked at.
const SKIPPED: usize = 192;
/// Shorter chunks have no features: a difference would save next to nothing.
pub(super) const SHORTEST: usize = 1024;

/// The super-features of a chunk; all zero when it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Features(pub(super) [u32; WORDS]);

const fn split_mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The `n`th number of a fixed random sequence (SplitMix64).
const fn random(n: u64) -> u64 {
    split_mix(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = random(at as u64);
        at += 1;
    }
    table
};

/// Multiplier (odd) and addend of each function.
const LINEAR: [(u64, u64); WORDS * FUNCTIONS] = {
    let mut table = [(0, 0); WORDS * FUNCTIONS];
    let mut at = 0;
    while at < WORDS * FUNCTIONS {
        table[at] = (random(256 + 2 * at as u64) | 1, random(257 + 2 * at as u64));
        at += 1;
    }
    table
};

impl Features {
    /// The features of these plain bytes.
    pub(super) fn of(plain: &[u8]) -> Self {
        if plain.len() < SHORTEST {
            return Self::default();
        }
        let mut largest = [0u64; WORDS * FUNCTIONS];
        let mut sampled = false;
        each_sample(plain, |hash| {
            sampled = true;
            for (largest, (times, plus)) in largest.iter_mut().zip(LINEAR) {
                *largest = (*largest).max(hash.wrapping_mul(times).wrapping_add(plus));
            }
        });
        if !sampled {
            return Self::default();
        }
        let mut words = [0; WORDS];
        for (word, largest) in words.iter_mut().zip(largest.chunks_exact(FUNCTIONS)) {
            let mixed = largest
                .iter()
                .fold(0, |mixed, largest| split_mix(mixed ^ *largest));
            // 0 means none.
            *word = ((mixed >> 32) as u32).max(1);
        }
        Self(words)
    }
}

/// Hands out the hashes of the sampled windows. After each of them [`SKIPPED`] bytes are passed over: where the bytes
/// are the same, two chunks soon sample the same windows again, wherever they began.
fn each_sample(plain: &[u8], mut take: impl FnMut(u64)) {
    let mut rest = plain;
    while let Some((warm, after)) = rest.split_at_checked(WINDOW - 1) {
        let mut hash = warm.iter().fold(0, |hash, byte| step(hash, *byte));
        let sampled = after.iter().position(|byte| {
            hash = step(hash, *byte);
            hash >> (u64::BITS - SAMPLED_BITS) == 0
        });
        let Some(at) = sampled else { return };
        take(hash);
        rest = after.get(at + 1 + SKIPPED..).unwrap_or_default();
    }
}

const fn step(hash: u64, byte: u8) -> u64 {
    (hash << SHIFT).wrapping_add(GEAR[byte as usize])
}

/// The chunks that can be bases, by their features. Of two with the same word the later one counts: it
/// is likelier that the next version is like the last one.
#[derive(Default)]
pub(super) struct Resemblance {
    tables: [HashMap<u32, u32>; WORDS],
}

impl Resemblance {
    /// A chunk at this position has these features.
    pub(super) fn add(&mut self, features: Features, position: u32) {
        for (table, word) in self.tables.iter_mut().zip(features.0) {
            if word != 0 {
                table.insert(word, position);
            }
        }
    }

    /// The position that most words point to. The chunk that was there may be gone since.
    pub(super) fn find(&self, features: Features) -> Option<u32> {
        let mut found = [None; WORDS];
        for ((found, table), word) in found.iter_mut().zip(&self.tables).zip(features.0) {
            if word != 0 {
                *found = table.get(&word).copied();
            }
        }
        let votes = |position: &u32| found.iter().flatten().filter(|at| *at == position).count();
        found.iter().flatten().copied().max_by_key(votes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let words = (0..len as u64 / 8 + 1).flat_map(|n| random(seed ^ (n << 20)).to_le_bytes());
        words.take(len).collect()
    }

    fn shared(a: &[u8], b: &[u8]) -> usize {
        let (a, b) = (Features::of(a), Features::of(b));
        a.0.iter().zip(b.0).filter(|(a, b)| **a == *b).count()
    }

    proptest! {
        #[test]
        fn samples_are_windows_apart_and_depend_on_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let of_window = |window: &[u8]| window.iter().fold(0, |hash, byte| step(hash, *byte));
            let mut expected = Vec::new();
            let mut at = 0;
            while at + WINDOW <= bytes.len() {
                let hash = of_window(&bytes[at..at + WINDOW]);
                if hash.leading_zeros() >= SAMPLED_BITS {
                    expected.push(hash);
                    at += WINDOW + SKIPPED;
                } else {
                    at += 1;
                }
            }
            let mut found = Vec::new();
            each_sample(&bytes, |hash| found.push(hash));
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn chunks_with_few_changes_share_features_and_others_do_not() {
        let mut alike = 0;
        for seed in 0..40 {
            let before = noise(seed, if seed % 2 == 0 { 65_536 } else { 262_144 });
            let mut after = before.clone();
            // Some bytes written over, some put in between, some taken away.
            after[1000..1020].fill(7);
            after.splice(30_000..30_000, *b"something new");
            after.drain(50_000..50_100);
            alike += usize::from(shared(&before, &after) > 0);
            assert_eq!(shared(&before, &noise(seed + 1000, 65_536)), 0, "{seed}");
        }
        assert!(alike >= 38, "{alike} of 40");
    }

    #[test]
    fn a_chunk_and_a_part_of_it_are_alike() {
        // A fragment of a file ends and begins elsewhere on another machine.
        for part in [0..225_280, 36_864..262_144] {
            let alike = (0..20).filter(|seed| {
                let whole = noise(*seed, 262_144);
                shared(&whole, &whole[part.clone()]) > 0
            });
            assert!(alike.count() >= 16, "{part:?}");
        }
    }

    #[test]
    fn what_has_nothing_to_sample_has_no_features() {
        assert_eq!(Features::of(&[]), Features::default());
        assert_eq!(Features::of(&noise(1, SHORTEST - 1)), Features::default());
        assert_ne!(Features::of(&noise(1, SHORTEST)), Features::default());
        let mut empty = Resemblance::default();
        empty.add(Features::default(), 5);
        assert_eq!(empty.find(Features::default()), None);
    }

    #[test]
    fn the_position_with_most_words_is_found_and_the_later_one_of_two() {
        let mut chunks = Resemblance::default();
        chunks.add(Features([1, 2, 3]), 10);
        chunks.add(Features([1, 9, 8]), 11);
        assert_eq!(chunks.find(Features([1, 2, 3])), Some(10));
        assert_eq!(chunks.find(Features([1, 0, 0])), Some(11));
        assert_eq!(chunks.find(Features([7, 7, 7])), None);
    }
}
