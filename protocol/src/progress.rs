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
    /// Hashing what is on the target already.
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
            Self::Comparing => "comparing",
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
}

/// How much of the recent past the rate is of.
const WINDOW: Duration = Duration::from_secs(10);
/// How far apart samples are kept: bounds the window's memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

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
        }
    }

    /// `bytes` more of the stage are done.
    pub fn advance(&mut self, bytes: u64, now: Duration) {
        self.done = self.done.saturating_add(bytes);
        let newest = self.window.back().map_or(Duration::ZERO, |sample| sample.0);
        if now.saturating_sub(newest) >= SAMPLE_EVERY {
            self.window.push_back((now, self.done));
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

    /// Where it stands at `now`.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        let (since, before) = self.window.front().copied().unwrap_or((now, self.done));
        let elapsed = now.saturating_sub(since).as_secs_f64();
        let rate = if elapsed > 0.0 {
            (self.done.saturating_sub(before) as f64 / elapsed) as u64
        } else {
            0
        };
        let left = self.total.saturating_sub(self.done);
        let seconds_left = match (left, rate) {
            (0, _) => Some(0),
            (_, 0) => None,
            (left, rate) => Some(left.div_ceil(rate)),
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
