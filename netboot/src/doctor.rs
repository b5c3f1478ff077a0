//! `netboot doctor`: looks at everything a server needs and says what is wrong and how to put it right.
//!
//! Facts are gathered first (`gather`), then judged by pure functions (`judge`), then shown.
//! Invariant: it changes nothing, but for an empty file that it makes and removes to see whether the
//! data directory can be written; of the network it asks DHCPDISCOVER only.
//!
//! Not here: why one machine's boot stopped (`flight_recorder::diagnosis`).

mod boot_files;
mod facts;
mod firewall;
mod gather;
mod judge;
mod proc_files;

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    cli::{ExitCode, Place},
    commands::{CommandError, print, print_json},
};

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Network interface to look at; may be repeated [default: the
    /// configuration's, or every Ethernet interface]
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Where kernel, initramfs and loaders are [default: boot in the data
    /// directory]
    #[arg(long, value_name = "DIR")]
    boot_files: Option<PathBuf>,
    /// Do not ask the network for other DHCP servers (it takes 4 s)
    #[arg(long)]
    no_search: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// As it should be.
    Ok,
    /// Works, or works for some.
    Warning,
    /// Does not work.
    Problem,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// How bad.
    level: Level,
    /// A word for programs: what was looked at.
    code: &'static str,
    /// What was found.
    what: String,
    /// What to do, as a sentence or a command.
    fix: Option<String>,
}

impl Finding {
    fn ok(code: &'static str, what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            code,
            what: what.into(),
            fix: None,
        }
    }

    fn warning(code: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            code,
            what: what.into(),
            fix: Some(fix.into()),
        }
    }

    fn problem(code: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            ..Self::warning(code, what, fix)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        writeln!(f, "{word:8} {}", self.what)?;
        match &self.fix {
            Some(fix) => writeln!(f, "         -> {fix}"),
            None => Ok(()),
        }
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    /// This program's.
    version: &'static str,
    /// How many problems.
    problems: usize,
    /// How many warnings.
    warnings: usize,
    /// Each.
    findings: Vec<Finding>,
}

/// Looks, and prints what it found.
///
/// # Errors
/// When it cannot be printed. Problems that it found are no error of this function: they are its
/// exit code.
pub(crate) fn run(args: &DoctorArgs, place: Place) -> Result<Option<ExitCode>, CommandError> {
    let facts = gather::facts(args, place);
    let findings = judge::judge(&facts);
    let count = |level| findings.iter().filter(|found| found.level == level).count();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        problems: count(Level::Problem),
        warnings: count(Level::Warning),
        findings,
    };
    if args.json {
        print_json(&report)?;
    } else {
        let mut text: String = report.findings.iter().map(ToString::to_string).collect();
        text.push_str(&match (report.problems, report.warnings) {
            (0, 0) => "Everything is as it should be.\n".to_owned(),
            (problems, warnings) => format!(
                "{} and {}.\n",
                counted(problems, "problem"),
                counted(warnings, "warning")
            ),
        });
        print(&text)?;
    }
    Ok((report.problems > 0).then_some(ExitCode::Failure))
}

fn counted(number: usize, what: &str) -> String {
    let more = if number == 1 { "" } else { "s" };
    format!("{number} {what}{more}")
}
