//! `lab`: virtual machines booted from the network without root, and the scenarios that prove the product.
//!
//! Not here: anything that the product does itself. The lab runs the real programs as processes.

mod bench;
mod lab;
mod report;
mod scenarios;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use lab::firmware::FirmwareKind;
use lab::source_machine::{RootKind, SourceMachine};
use report::{Line, Outcome};
use scenarios::{Scenario, Settings, Skipped, Stage};

/// Virtual machines booted from the network, without root.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 80,
    after_help = "\
Exit codes:
  0  every scenario passed or was skipped with a reason
  1  a scenario failed, or something else went wrong
  2  wrong usage

Deadlines are multiplied by the environment variable LAB_SLOW."
)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Places {
    /// Where the lab keeps what it makes [default: target/lab].
    #[arg(long, global = true, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Where the program `netboot` is [default: where `lab` is].
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where the boot files are [default: target/boot].
    #[arg(long, global = true, value_name = "DIR")]
    boot_files: Option<PathBuf>,
    /// Keep disks and server data after a scenario.
    #[arg(long, global = true)]
    keep: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Name every scenario.
    List,
    /// Play scenarios; without a name, all but the long ones.
    Run {
        /// Names of scenarios, or what names begin with (`restore-matrix`).
        #[arg(value_name = "SCENARIO")]
        names: Vec<String>,
        /// Play every scenario, however long.
        #[arg(long, conflicts_with = "names")]
        full: bool,
        /// Write a report as JSON.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Measure the product beside its peers; `scripts/bench` fetches those.
    Bench {
        /// Which bench.
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(bench::ALL.iter().map(bench::Bench::value)))]
        name: String,
        /// One JSON line for each row instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Build the source machine now, and say where its disk is.
    SourceDisk {
        /// What its root is.
        #[arg(long, value_enum, default_value_t = RootKind::Ext4)]
        root: RootKind,
    },
    /// Show a whole restore, from the backup to the login prompt.
    Demo {
        /// Firmware of the machines.
        #[arg(long, value_enum, default_value_t = FirmwareKind::Uefi)]
        firmware: FirmwareKind,
        /// Show it for both firmwares.
        #[arg(long, conflicts_with = "firmware")]
        all: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::List => {
            for Scenario {
                name, about, long, ..
            } in scenarios::all()
            {
                let mark = if *long { " (long)" } else { "" };
                println!("{name:34}{about}{mark}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::SourceDisk { root } => {
            let source = SourceMachine::with_root(&settings(cli.places)?.work, root)?;
            println!("{}", source.disk().display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run {
            names,
            report,
            full,
        } => {
            let chosen = choose(&names, full)?;
            let settings = settings(cli.places)?;
            let lines: Vec<Line> = chosen
                .iter()
                .map(|scenario| play(scenario, &settings))
                .collect();
            println!();
            for line in &lines {
                println!("{line}");
            }
            if let Some(path) = report {
                let json = serde_json::to_string_pretty(&lines)?;
                std::fs::write(&path, json)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            let failed = lines.iter().any(|line| line.outcome == Outcome::Failed);
            Ok(if failed {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            })
        }
        Command::Bench { name, json } => {
            let bench = bench::find(&name).context("no bench of that name")?;
            let settings = settings(cli.places)?;
            let mut report = bench::Report::new(json);
            let ran = (bench.run)(&settings, &mut report);
            // What was measured before something went wrong is true all the same.
            report.finish();
            ran.with_context(|| format!("the bench {name} cannot be run here"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { firmware, all } => {
            let settings = settings(cli.places)?;
            let kinds = if all {
                vec![FirmwareKind::Bios, FirmwareKind::Uefi]
            } else {
                vec![firmware]
            };
            for kind in kinds {
                demonstrate(&settings, kind)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn demonstrate(settings: &Settings, kind: FirmwareKind) -> anyhow::Result<()> {
    let name = match kind {
        FirmwareKind::Bios => "demo-bios",
        FirmwareKind::Uefi => "demo-uefi",
    };
    let stage = Stage::set_up(settings, name)?;
    let shown = scenarios::demonstrate(&stage, kind);
    stage.clear_up();
    shown.with_context(|| format!("logs and packets are in {}", stage.logs().display()))?;
    println!("\n{}", stage.time_line());
    println!("The restored machine reached its login prompt ({kind}).\n");
    Ok(())
}

fn settings(places: Places) -> anyhow::Result<Settings> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let own_folder = own.parent().unwrap_or(Path::new("."));
    // Cargo puts programs into target/PROFILE.
    let target = own_folder.parent().unwrap_or(own_folder);
    let work = places.work_dir.unwrap_or_else(|| target.join("lab"));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    Ok(Settings {
        // QEMU and mmdebstrap run in other folders.
        work: std::path::absolute(&work)?,
        bin_dir: std::path::absolute(places.bin_dir.unwrap_or_else(|| own_folder.to_owned()))?,
        boot_files: std::path::absolute(places.boot_files.unwrap_or_else(|| target.join("boot")))?,
        keep: places.keep,
        backups: RefCell::new(HashMap::new()),
    })
}

fn choose(names: &[String], full: bool) -> anyhow::Result<Vec<&'static Scenario>> {
    if let Some(unknown) = names.iter().find(|name| called(name).is_empty()) {
        bail!("no scenario is called {unknown}; `lab list` names them");
    }
    if names.is_empty() {
        let wanted = |scenario: &&Scenario| full || !scenario.long;
        return Ok(scenarios::all().filter(wanted).collect());
    }
    Ok(names.iter().flat_map(|name| called(name)).collect())
}

/// The scenario of this name, or else all whose names begin with these words.
fn called(name: &str) -> Vec<&'static Scenario> {
    let begins = |scenario: &&Scenario| {
        let rest = scenario.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with('-'))
    };
    match scenarios::all().find(|scenario| scenario.name == name) {
        Some(scenario) => vec![scenario],
        None => scenarios::all().filter(begins).collect(),
    }
}

/// Plays one scenario and says how it ended; logs of a failure stay where they are.
fn play(scenario: &Scenario, settings: &Settings) -> Line {
    let began = Instant::now();
    let stage = match Stage::set_up(settings, scenario.name) {
        Ok(stage) => stage,
        Err(error) => {
            return Line::new(
                scenario.name,
                Outcome::Failed,
                Some(chain(&error)),
                began.elapsed(),
            );
        }
    };
    let line = match (scenario.play)(&stage) {
        Ok(()) => Line::new(scenario.name, Outcome::Passed, None, began.elapsed()),
        Err(error) => {
            let skipped = error.is::<Skipped>();
            let outcome = if skipped {
                Outcome::Skipped
            } else {
                Outcome::Failed
            };
            if !skipped {
                eprintln!(
                    "lab: {} failed; logs and packets are in {}",
                    scenario.name,
                    stage.logs().display()
                );
            }
            Line::new(scenario.name, outcome, Some(chain(&error)), began.elapsed())
        }
    };
    eprintln!("{line}");
    stage.clear_up();
    line
}

/// An error with all its reasons, once.
fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_fits_a_terminal() {
        Cli::command().debug_assert();
        for line in Cli::command().render_long_help().to_string().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn an_unknown_scenario_is_named() {
        let names = ["no-such".to_owned()];
        let error = choose(&names, false).err().unwrap().to_string();
        assert!(error.contains("no-such"), "{error}");
    }

    #[test]
    fn the_beginning_of_names_chooses_all_of_them() {
        let rows = choose(&["restore-matrix-xfs".to_owned()], false).unwrap();
        assert!(rows.len() > 1);
        assert!(
            rows.iter()
                .all(|row| row.name.starts_with("restore-matrix-xfs-"))
        );
        assert_eq!(
            choose(&["killed-agent".to_owned()], false).unwrap().len(),
            1
        );
        assert!(choose(&["restore-mat".to_owned()], false).is_err());
    }

    #[test]
    fn long_scenarios_are_played_when_asked_for() {
        let all = choose(&[], true).unwrap();
        assert_eq!(all.len(), scenarios::all().count());
        let usual = choose(&[], false).unwrap();
        assert!(!usual.is_empty() && usual.iter().all(|scenario| !scenario.long));
        assert!(
            all.iter()
                .filter(|one| one.long)
                .all(|long| { choose(&[long.name.to_owned()], false).unwrap().len() == 1 })
        );
    }
}
