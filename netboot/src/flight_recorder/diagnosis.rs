//! Where a boot stopped and why.
//!
//! Pure functions over events and the time.
//!
//! Not here: what happened (`fact`), which events are one boot (`boots`).

use serde::{Deserialize, Serialize};

use super::{Fact, Stage, boots::Boot};

/// A boot that is quiet for so long has stopped.
const QUIET_MS: u64 = 60_000;

/// Where a boot stopped and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diagnosis {
    /// A word for programs; `docs/diagnoses.md` lists them.
    pub(crate) code: String,
    /// What is the matter.
    pub(crate) sentence: String,
    /// What to do.
    pub(crate) advice: String,
}

impl Diagnosis {
    fn new(code: &str, sentence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            sentence: sentence.into(),
            advice: advice.into(),
        }
    }
}

/// Where a boot stopped; `None` while it goes on or when it arrived.
pub(super) fn diagnose(boot: Boot<'_>, over: bool, now: u64) -> Option<Diagnosis> {
    let last = boot.last()?;
    if last.fact.trouble() {
        return Some(Diagnosis::new("trouble", last.fact.to_string(), ""));
    }
    if !over && now.saturating_sub(last.at) < QUIET_MS {
        return None;
    }
    match last.fact.stage() {
        Stage::Beacon => None,
        _ if boot
            .iter()
            .any(|event| matches!(event.fact, Fact::Told { .. })) =>
        {
            None
        }
        _ => Some(Diagnosis::new(
            "stopped",
            format!("stopped after: {}", last.fact),
            "",
        )),
    }
}
