//! Faults on demand: what a bad cable, a busy switch or a slow link does to frames.
//!
//! A [`Lane`] is one direction of one port. It takes frames and `now`, and gives them back when they
//! are due; it never sleeps and opens nothing. Invariant: the same seed, settings, frames and times give
//! the same result, so a failed scenario can be repeated.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// A chance between never and always, kept in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Chance(u32);

impl Chance {
    const ALWAYS: u32 = 1_000_000;

    /// A chance in percent; more than 100 is always.
    pub(crate) fn percent(percent: f64) -> Self {
        let parts = (percent.clamp(0.0, 100.0) * 10_000.0).round();
        // In 0..=1_000_000 by the clamp above.
        Self(parts as u32)
    }

    fn happens(self, random: &mut SplitMix) -> bool {
        self.0 > 0 && random.below(Self::ALWAYS) < self.0
    }
}

/// What happens to frames in one direction. The default is a perfect wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Faults {
    /// Frames that vanish.
    pub(crate) loss: Chance,
    /// Frames that arrive twice.
    pub(crate) duplication: Chance,
    /// Frames that are held back by [`Faults::reorder_by`], so that later ones overtake them.
    pub(crate) reordering: Chance,
    /// How long a reordered frame is held back.
    pub(crate) reorder_by: Duration,
    /// Delay of every frame.
    pub(crate) delay: Duration,
    /// Bits a second; `None` is as fast as the computer.
    pub(crate) bandwidth: Option<u64>,
}

/// Bytes that may wait for a slow wire before the newest are dropped, as in a switch's port buffer.
const QUEUE_LIMIT: usize = 2 << 20;
/// Ethernet preamble, frame check sequence and gap between frames, bytes (IEEE 802.3 §4.4.2).
const WIRE_OVERHEAD: u64 = 24;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and the same on every platform.
#[derive(Debug, Clone)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..limit` up to a bias of 2^-32.
    fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }
}

/// A frame on its way, ordered by when it is due, then by arrival.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    due: Instant,
    order: u64,
    frame: Vec<u8>,
}

/// One direction of one port, with its faults.
#[derive(Debug)]
pub(crate) struct Lane {
    faults: Faults,
    random: SplitMix,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    waiting_bytes: usize,
    accepted: u64,
    wire_free_at: Option<Instant>,
    dropped: u64,
}

impl Lane {
    /// A perfect lane; `seed` decides the faults that are set later.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            faults: Faults::default(),
            random: SplitMix(seed),
            in_flight: BinaryHeap::new(),
            waiting_bytes: 0,
            accepted: 0,
            wire_free_at: None,
            dropped: 0,
        }
    }

    /// Changes the faults for frames from now on; frames in flight keep their times.
    pub(crate) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Frames lost so far: by chance, or because the slow wire's queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes one frame at time `now`.
    pub(crate) fn push(&mut self, now: Instant, frame: Vec<u8>) {
        if self.faults.loss.happens(&mut self.random)
            || self.waiting_bytes + frame.len() > QUEUE_LIMIT
        {
            self.dropped += 1;
            return;
        }
        let copies = if self.faults.duplication.happens(&mut self.random) {
            2
        } else {
            1
        };
        for _ in 1..copies {
            self.schedule(now, frame.clone());
        }
        self.schedule(now, frame);
    }

    /// The next frame that is due at `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(InFlight { frame, .. }) = self.in_flight.pop()?;
        self.waiting_bytes -= frame.len();
        Some(frame)
    }

    /// When the next frame is due, if one is in flight.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse(first)| first.due)
    }

    fn schedule(&mut self, now: Instant, frame: Vec<u8>) {
        let mut due = now;
        if let Some(bits_per_second) = self.faults.bandwidth {
            let bits = (frame.len() as u64 + WIRE_OVERHEAD) * 8;
            let nanos = bits.saturating_mul(1_000_000_000) / bits_per_second.max(1);
            let start = self.wire_free_at.map_or(now, |free| free.max(now));
            due = start + Duration::from_nanos(nanos);
            self.wire_free_at = Some(due);
        }
        due += self.faults.delay;
        if self.faults.reordering.happens(&mut self.random) {
            due += self.faults.reorder_by;
        }
        self.waiting_bytes += frame.len();
        self.accepted += 1;
        self.in_flight.push(Reverse(InFlight {
            due,
            order: self.accepted,
            frame,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: u32) -> Vec<u8> {
        n.to_be_bytes().to_vec()
    }

    fn number(frame: &[u8]) -> u32 {
        u32::from_be_bytes(frame.try_into().unwrap())
    }

    /// Pushes `count` frames a millisecond apart and returns their numbers in order of delivery.
    fn deliver(seed: u64, faults: Faults, count: u32) -> Vec<u32> {
        let start = Instant::now();
        let mut lane = Lane::new(seed);
        lane.set_faults(faults);
        let mut seen = Vec::new();
        for n in 0..count {
            let now = start + Duration::from_millis(u64::from(n));
            lane.push(now, numbered(n));
            seen.extend(std::iter::from_fn(|| lane.pop_due(now)).map(|f| number(&f)));
        }
        let end = start + Duration::from_secs(3600);
        seen.extend(std::iter::from_fn(|| lane.pop_due(end)).map(|f| number(&f)));
        seen
    }

    #[test]
    fn a_perfect_lane_delivers_at_once_and_in_order() {
        assert_eq!(
            deliver(1, Faults::default(), 100),
            (0..100).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_losses() {
        let faults = Faults {
            loss: Chance::percent(10.0),
            ..Faults::default()
        };
        let first = deliver(7, faults, 5000);
        assert_eq!(first, deliver(7, faults, 5000));
        assert_ne!(first, deliver(8, faults, 5000));
        assert!(
            (4400..4600).contains(&first.len()),
            "{} of 5000 arrived",
            first.len()
        );
    }

    #[test]
    fn duplicated_frames_arrive_twice() {
        let faults = Faults {
            duplication: Chance::percent(100.0),
            ..Faults::default()
        };
        assert_eq!(deliver(1, faults, 3), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_held_back_frame_is_overtaken_but_not_lost() {
        let faults = Faults {
            reordering: Chance::percent(20.0),
            reorder_by: Duration::from_millis(5),
            ..Faults::default()
        };
        let seen = deliver(3, faults, 1000);
        assert!(seen.windows(2).any(|pair| pair[0] > pair[1]));
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_delayed_frame_is_due_after_its_delay() {
        let now = Instant::now();
        let mut lane = Lane::new(1);
        lane.set_faults(Faults {
            delay: Duration::from_millis(10),
            ..Faults::default()
        });
        lane.push(now, numbered(1));
        assert_eq!(lane.pop_due(now + Duration::from_millis(9)), None);
        assert_eq!(lane.next_due(), Some(now + Duration::from_millis(10)));
        assert_eq!(
            lane.pop_due(now + Duration::from_millis(10)),
            Some(numbered(1))
        );
    }

    #[test]
    fn a_slow_wire_spaces_frames_and_drops_when_its_queue_is_full() {
        let now = Instant::now();
        let mut lane = Lane::new(1);
        lane.set_faults(Faults {
            bandwidth: Some(8_000_000),
            ..Faults::default()
        });
        for _ in 0..3000 {
            lane.push(now, vec![0; 976]);
        }
        assert!(lane.dropped() > 0);
        // 976 + 24 bytes at 1 MB/s: a millisecond each.
        let second = now + Duration::from_millis(2);
        assert_eq!(std::iter::from_fn(|| lane.pop_due(second)).count(), 2);
    }
}
