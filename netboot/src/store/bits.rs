//! A bit for each position of the index: the memory of everything that looks at all chunks.

/// Bits that are 0 until they are set; as long as they need be.
#[derive(Debug, Clone, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// The first `len` bits set.
    pub(super) fn first(len: u32) -> Self {
        let mut bits = Self {
            words: vec![u64::MAX; (len / 64) as usize],
        };
        (len - len % 64..len).for_each(|at| bits.set(at));
        bits
    }

    pub(super) fn set(&mut self, at: u32) {
        let word = (at / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (at % 64);
    }

    pub(super) fn clear(&mut self, at: u32) {
        if let Some(word) = self.words.get_mut((at / 64) as usize) {
            *word &= !(1 << (at % 64));
        }
    }

    pub(super) fn has(&self, at: u32) -> bool {
        let word = self.words.get((at / 64) as usize);
        word.is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// Sets all bits that are set in `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_set_is_set() {
        let mut bits = Bits::first(70);
        assert!(bits.has(0) && bits.has(69) && !bits.has(70) && !bits.has(100_000));
        bits.clear(69);
        bits.clear(100_000);
        let mut other = Bits::default();
        assert!(other.is_empty());
        other.set(200);
        bits.merge(&other);
        assert!(!bits.has(69) && bits.has(200) && !bits.has(201));
    }
}
