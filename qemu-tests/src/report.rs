//! What is said about the scenarios of a run: lines for people, JSON for programs.

use serde::Serialize;
use std::time::Duration;

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should.
    Failed,
    /// It was not played.
    Skipped,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Name of the scenario.
    pub(crate) scenario: &'static str,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Why it failed or was skipped.
    pub(crate) reason: Option<String>,
    /// How long it took.
    pub(crate) seconds: f64,
}

impl Line {
    /// A line about one scenario.
    pub(crate) fn new(
        scenario: &'static str,
        outcome: Outcome,
        reason: Option<String>,
        took: Duration,
    ) -> Self {
        Self {
            scenario,
            outcome,
            reason,
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = match self.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
        };
        write!(f, "{word:8}{:34}{:7.1} s", self.scenario, self.seconds)?;
        match &self.reason {
            Some(reason) => write!(f, "  {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_the_agreed_fields() {
        let line = Line::new(
            "x",
            Outcome::Skipped,
            Some("why".to_owned()),
            Duration::from_millis(1240),
        );
        assert_eq!(
            serde_json::to_string(&[line]).unwrap(),
            r#"[{"scenario":"x","outcome":"skipped","reason":"why","seconds":1.2}]"#
        );
    }
}
