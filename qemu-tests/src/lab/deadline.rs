//! Deadlines of waits, stretched on slow computers.
//!
//! Every wait of the lab has one. The environment variable `LAB_SLOW` multiplies them all: emulated
//! machines on a busy computer are several times slower.

use std::fmt;
use std::time::{Duration, Instant};

/// The point in time at which a wait gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// A deadline in so many seconds, times `LAB_SLOW`.
    pub(crate) fn seconds(seconds: u64) -> Self {
        Self::after(Duration::from_secs(seconds))
    }

    /// A deadline after a duration, times `LAB_SLOW`.
    pub(crate) fn after(duration: Duration) -> Self {
        let allowed = duration.mul_f64(slowness(std::env::var("LAB_SLOW").ok().as_deref()));
        Self {
            at: Instant::now() + allowed,
            allowed,
        }
    }

    /// What is left, or `None` when the time is over.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.at
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} s", self.allowed.as_secs_f64())
    }
}

fn slowness(setting: Option<&str>) -> f64 {
    let factor = setting
        .and_then(|text| text.parse::<f64>().ok())
        .filter(|factor| factor.is_finite());
    factor.unwrap_or(1.0).clamp(0.1, 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_one_unless_a_sensible_number_is_set() {
        assert_eq!(slowness(None), 1.0);
        assert_eq!(slowness(Some("3")), 3.0);
        assert_eq!(slowness(Some("fast")), 1.0);
        assert_eq!(slowness(Some("nan")), 1.0);
        assert_eq!(slowness(Some("-5")), 0.1);
    }

    #[test]
    fn a_deadline_that_has_passed_leaves_no_time() {
        assert_eq!(Deadline::after(Duration::ZERO).remaining(), None);
        assert!(Deadline::seconds(60).remaining().is_some());
    }
}
