//! Numbers that differ between machines and boots: transactions, and waits that must not run in step.
//!
//! Invariant: the same seed gives the same numbers, so that state machines stay without a clock. What is
//! *not* here: secrets.

use std::time::Duration;

/// The splitmix64 sequence: spread, not secrecy, is what is wanted here.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence that begins at `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A DHCP transaction.
    pub(crate) fn transaction(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// `wait` and up to a quarter more: machines that were switched on together must not stay
    /// together.
    pub(crate) fn jittered(&mut self, wait: Duration) -> Duration {
        let share = (self.next() >> 40) as u32;
        wait + wait / 4 * (share >> 8) / (1 << 16)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_at_most_a_quarter_longer_and_differ() {
        let second = Duration::from_secs(1);
        let mut random = Random::new(1);
        let waits: Vec<_> = (0..100).map(|_| random.jittered(second)).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (second..=second * 5 / 4).contains(wait))
        );
        assert!(waits.iter().any(|wait| *wait != waits[0]));
        assert_ne!(Random::new(1).transaction(), Random::new(2).transaction());
    }
}
