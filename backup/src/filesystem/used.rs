//! A growing list of used ranges with bounded memory.
//!
//! Invariant: the list covers at least every range that was added, is in order and never overlaps.
//! A volume in a million fragments costs some free bytes saved too, never a used one left out.

use crate::ByteRange;

/// The most ranges that are kept: 16 MiB of memory.
const MAX_RANGES: usize = 1 << 20;

/// Ranges in use, added in order of their start.
#[derive(Debug)]
pub(crate) struct UsedRanges {
    ranges: Vec<ByteRange>,
    max_ranges: usize,
    /// Free bytes between two ranges that are taken as used.
    slack: u64,
}

impl UsedRanges {
    pub(crate) const fn new() -> Self {
        Self {
            ranges: Vec::new(),
            max_ranges: MAX_RANGES,
            slack: 0,
        }
    }

    /// Adds a range that begins no earlier than the last one added.
    pub(crate) fn add(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        self.push(range);
        while self.ranges.len() > self.max_ranges {
            self.slack = (self.slack * 2).max(4096);
            for range in std::mem::take(&mut self.ranges) {
                self.push(range);
            }
        }
    }

    fn push(&mut self, range: ByteRange) {
        match self.ranges.last_mut() {
            Some(last) if range.start() <= last.end().saturating_add(self.slack) => {
                *last = ByteRange::between(last.start(), last.end().max(range.end()));
            }
            _ => self.ranges.push(range),
        }
    }

    pub(crate) fn finish(self) -> Vec<ByteRange> {
        self.ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    proptest! {
        #[test]
        fn everything_added_is_covered_in_order_within_the_limit(
            pieces in proptest::collection::vec((0u64..100_000, 0u64..10_000), 0..60),
        ) {
            let mut used = UsedRanges { max_ranges: 8, ..UsedRanges::new() };
            let mut at = 0;
            let added: Vec<_> = pieces
                .into_iter()
                .map(|(gap, len)| {
                    at += gap;
                    ByteRange::new(at, len).unwrap()
                })
                .collect();
            for range in &added {
                used.add(*range);
            }
            let ranges = used.finish();
            prop_assert!(ranges.len() <= 8);
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end() < pair[1].start());
            }
            for range in added.iter().filter(|range| !range.is_empty()) {
                prop_assert!(ranges.iter().any(|used| used.contains(*range)));
            }
        }
    }
}
