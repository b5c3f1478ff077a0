//! Progress of long work: stages, bytes, rate and time left.
//!
//! The meter has no clock; whoever uses it says what time it is.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The part of a job that is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Looking at disks and making a plan.
    Planning,
    /// Reading the source, cutting it into chunks and sending those that the server lacks.
    Reading,
    /// Having the server check and publish the restore point.
    Publishing,
    /// Hashing what is on the target already; what differs is fetched, checked and written.
    Comparing,
    /// Fetching, checking and writing chunks.
    Writing,
    /// Reading the target again.
    Verifying,
    /// Making file systems as large as their partitions.
    Growing,
    /// Giving a copy an identity of its own.
    Identity,
    /// Repairing what starts the machine.
    BootRepair,
    /// Writing the partition table, the last write.
    Committing,
}

impl Stage {
    /// What it does, for a line on a screen.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Reading => "reading and sending",
            Self::Publishing => "publishing",
            Self::Comparing => "comparing, and fetching what differs",
            Self::Writing => "fetching and writing",
            Self::Verifying => "verifying",
            Self::Growing => "growing file systems",
            Self::Identity => "giving the copy its own identity",
            Self::BootRepair => "repairing the boot path",
            Self::Committing => "committing the partition table",
        }
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on.
    pub stage: Stage,
    /// Bytes of this stage that are done.
    pub done: u64,
    /// Bytes of this stage; 0 when it has no measure.
    pub total: u64,
    /// Bytes per second over the last seconds.
    pub rate: u64,
    /// Seconds left of this stage, when they can be told.
    pub seconds_left: Option<u64>,
    /// Bytes that crossed the network so far in this job.
    pub network_bytes: u64,
}

impl Progress {
    /// A stage without a measure.
    #[must_use]
    pub const fn of(stage: Stage) -> Self {
        Self {
            stage,
            done: 0,
            total: 0,
            rate: 0,
            seconds_left: None,
            network_bytes: 0,
        }
    }

    /// Share done in percent, when there is a measure.
    #[must_use]
    pub fn percent(&self) -> Option<u8> {
        if self.total == 0 {
            return None;
        }
        let share = u128::from(self.done.min(self.total)) * 100 / u128::from(self.total);
        u8::try_from(share).ok()
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use backup::units::HumanBytes;
        write!(f, "{}", self.stage.text())?;
        if let Some(percent) = self.percent() {
            let (done, total) = (HumanBytes(self.done), HumanBytes(self.total));
            write!(
                f,
                " {percent} %, {done} of {total}, {}/s",
                HumanBytes(self.rate)
            )?;
            if let Some(left) = self.seconds_left {
                write!(f, ", {}:{:02} left", left / 60, left % 60)?;
            }
        }
        Ok(())
    }
}

/// Turns byte counts into rate and time left.
#[derive(Debug)]
pub struct Meter {
    stage: Stage,
    total: u64,
    done: u64,
    network_bytes: u64,
    window: VecDeque<(Duration, u64)>,
    /// Samples of the whole stage, ever farther apart.
    history: Vec<(Duration, u64)>,
    /// How far apart the samples of the history are now.
    every: Duration,
}

/// How much of the recent past the rate is of.
const WINDOW: Duration = Duration::from_secs(10);
/// How far apart samples are kept: bounds the window's memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How many samples of the whole stage are kept; with one more, every second one goes.
const HISTORY: usize = 128;

impl Meter {
    /// A meter for `total` bytes that begins at `now` (any monotonic clock).
    #[must_use]
    pub fn new(stage: Stage, total: u64, now: Duration) -> Self {
        Self {
            stage,
            total,
            done: 0,
            network_bytes: 0,
            window: VecDeque::from([(now, 0)]),
            history: vec![(now, 0)],
            every: SAMPLE_EVERY,
        }
    }

    /// `bytes` more of the stage are done.
    pub fn advance(&mut self, bytes: u64, now: Duration) {
        self.done = self.done.saturating_add(bytes);
        let newest = self.window.back().map_or(Duration::ZERO, |sample| sample.0);
        if now.saturating_sub(newest) >= SAMPLE_EVERY {
            self.window.push_back((now, self.done));
        }
        let newest = self
            .history
            .last()
            .map_or(Duration::ZERO, |sample| sample.0);
        if now.saturating_sub(newest) >= self.every {
            self.history.push((now, self.done));
            if self.history.len() > HISTORY {
                let mut number = 0;
                self.history.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                self.every *= 2;
            }
        }
        while self.window.len() > 2
            && self
                .window
                .front()
                .is_some_and(|sample| now.saturating_sub(sample.0) > WINDOW)
        {
            self.window.pop_front();
        }
    }

    /// `bytes` more have crossed the network.
    pub fn network(&mut self, bytes: u64) {
        self.network_bytes = self.network_bytes.saturating_add(bytes);
    }

    fn rate_since(&self, (since, before): (Duration, u64), now: Duration) -> f64 {
        let elapsed = now.saturating_sub(since).as_secs_f64();
        if elapsed > 0.0 {
            self.done.saturating_sub(before) as f64 / elapsed
        } else {
            0.0
        }
    }

    /// Bytes per second over the later half of the stage, and over at least the window: what the rest will be
    /// like. The last seconds alone jump about, and the beginning of a long stage says little of its end.
    fn usual_rate(&self, now: Duration) -> f64 {
        let begin = self.history.first().map_or(now, |sample| sample.0);
        let span = (now.saturating_sub(begin) / 2).max(WINDOW);
        let since = now.saturating_sub(span);
        let first = self.history.partition_point(|sample| sample.0 <= since);
        let sample = self.history.get(first.saturating_sub(1));
        self.rate_since(sample.copied().unwrap_or((begin, 0)), now)
    }

    /// Where it stands at `now`.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        let oldest = self.window.front().copied().unwrap_or((now, self.done));
        let rate = self.rate_since(oldest, now) as u64;
        let left = self.total.saturating_sub(self.done);
        let usual = self.usual_rate(now);
        let seconds_left = if left == 0 {
            Some(0)
        } else {
            (usual > 0.0).then(|| (left as f64 / usual).ceil() as u64)
        };
        Progress {
            stage: self.stage,
            done: self.done,
            total: self.total,
            rate,
            seconds_left,
            network_bytes: self.network_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_gives_the_time_left() {
        let mut meter = Meter::new(Stage::Writing, 1000, Duration::ZERO);
        for second in 1..=5 {
            meter.advance(100, Duration::from_secs(second));
        }
        let progress = meter.progress(Duration::from_secs(5));
        assert_eq!(
            (progress.done, progress.rate, progress.seconds_left),
            (500, 100, Some(5))
        );
        assert_eq!(progress.percent(), Some(50));
    }

    #[test]
    fn an_old_burst_does_not_count_for_ever() {
        let mut meter = Meter::new(Stage::Writing, 1_000_000, Duration::ZERO);
        meter.advance(900_000, Duration::from_secs(1));
        for second in 2..60 {
            meter.advance(10, Duration::from_secs(second));
        }
        assert!(meter.progress(Duration::from_secs(60)).rate <= 11);
    }

    /// How wrong the time left was at worst after the first tenth, as a share of what was left. `batch_seconds`
    /// says how long the batch of a number takes.
    fn worst_error(batches: u64, batch_seconds: impl Fn(u64) -> f64) -> f64 {
        const BATCH: u64 = 2 << 20;
        let mut ends = vec![0.0];
        for number in 0..batches {
            ends.push(ends[number as usize] + batch_seconds(number));
        }
        let end = ends[batches as usize];
        let mut meter = Meter::new(Stage::Writing, batches * BATCH, Duration::ZERO);
        let mut worst: f64 = 0.0;
        for number in 1..batches {
            let at = ends[number as usize];
            meter.advance(BATCH, Duration::from_secs_f64(at));
            if number * 10 < batches {
                continue;
            }
            let said = meter
                .progress(Duration::from_secs_f64(at))
                .seconds_left
                .unwrap() as f64;
            // It is told in whole seconds.
            let wrong = ((said - (end - at)).abs() - 1.0).max(0.0);
            worst = worst.max(wrong / (end - at));
        }
        worst
    }

    #[test]
    fn after_the_first_tenth_the_time_left_is_not_wrong_by_more_than_a_fifth() {
        // A small generator, so that each run is the same: numbers from 0 to 1.
        let random = |number: u64| {
            let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f64 / (1u64 << 24) as f64
        };
        for (batches, usual) in [(500, 0.02), (500, 0.12), (20_000, 0.018), (20_000, 0.3)] {
            let steady = worst_error(batches, |_| usual);
            assert!(steady < 0.02, "steady: {steady}");
            let noisy = worst_error(batches, |number| usual * (0.2 + 1.6 * random(number)));
            assert!(noisy < 0.2, "noisy: {noisy}");
            // Stops of half a second now and then, as by a disk that writes its cache away.
            let stops = worst_error(batches, |number| {
                let stops = usual >= 0.1 && random(number / 40) > 0.8 && number % 40 == 0;
                usual * (0.5 + random(number)) + if stops { 0.5 } else { 0.0 }
            });
            assert!(stops < 0.2, "stops: {stops}");
            let waves = worst_error(batches, |number| {
                usual * (1.0 + 0.12 * (number as f64 * usual / 5.0).sin())
            });
            assert!(waves < 0.2, "waves: {waves}");
            // The inner tracks of a disk are slower.
            let slower = worst_error(batches, |number| {
                usual * (1.0 + 0.25 * number as f64 / batches as f64)
            });
            assert!(slower < 0.2, "slower: {slower}");
        }
    }

    #[test]
    fn the_history_of_a_long_stage_stays_short() {
        let mut meter = Meter::new(Stage::Writing, u64::MAX, Duration::ZERO);
        for second in 1..100_000 {
            meter.advance(10, Duration::from_secs(second));
            assert!(meter.history.len() <= HISTORY);
        }
        let progress = meter.progress(Duration::from_secs(100_000));
        assert!((8..=10).contains(&progress.rate), "{}", progress.rate);
    }

    #[test]
    fn nothing_done_yet_promises_nothing() {
        let meter = Meter::new(Stage::Writing, 10, Duration::from_secs(3));
        assert_eq!(meter.progress(Duration::from_secs(3)).seconds_left, None);
        assert_eq!(
            Meter::new(Stage::Writing, 0, Duration::ZERO)
                .progress(Duration::ZERO)
                .percent(),
            None
        );
    }
}
