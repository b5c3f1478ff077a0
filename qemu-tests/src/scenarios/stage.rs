//! Where a scenario plays: its folders, its messages, and what scenarios hand on to each other.

use anyhow::Context;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Skipped;
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::DiskBus;
use crate::lab::source_machine::RootKind;

/// What the command line says about all scenarios.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where everything that the lab makes is kept.
    pub(crate) work: PathBuf,
    /// Where the programs under test are.
    pub(crate) bin_dir: PathBuf,
    /// Kernel and initramfs under test.
    pub(crate) boot_files: PathBuf,
    /// Whether disks and data are kept afterwards.
    pub(crate) keep: bool,
    /// Backups that a scenario has made and others may start from.
    pub(crate) backups: RefCell<HashMap<Source, Backup>>,
}

/// What a backup is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// What its root is.
    pub(crate) root: RootKind,
    /// What starts it.
    pub(crate) firmware: FirmwareKind,
    /// How its disk is attached.
    pub(crate) bus: DiskBus,
}

impl Source {
    /// The source of all stories that are not about another one.
    pub(crate) const fn usual(firmware: FirmwareKind) -> Self {
        Self {
            root: RootKind::Ext4,
            firmware,
            bus: DiskBus::Virtio,
        }
    }
}

/// A server's data with one restore point in it, and the disk that it was made of.
#[derive(Debug, Clone)]
pub(crate) struct Backup {
    /// A stopped server's data directory, to be copied.
    pub(crate) data_dir: PathBuf,
    /// The disk as it was captured.
    pub(crate) source_disk: PathBuf,
    /// Id of the restore point.
    pub(crate) restore_point: String,
}

/// The place of one scenario.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// Settings of the whole run.
    pub(crate) settings: &'a Settings,
    name: &'static str,
    logs: PathBuf,
    disks: PathBuf,
    began: Instant,
    milestones: RefCell<Vec<(Duration, String)>>,
}

impl<'a> Stage<'a> {
    /// Makes empty folders for a scenario.
    pub(crate) fn set_up(settings: &'a Settings, name: &'static str) -> anyhow::Result<Self> {
        let logs = settings.work.join("results").join(name);
        let disks = settings.work.join("run").join(name);
        for folder in [&logs, &disks] {
            if folder.exists() {
                fs::remove_dir_all(folder)
                    .with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(Self {
            settings,
            name,
            logs,
            disks,
            began: Instant::now(),
            milestones: RefCell::default(),
        })
    }

    /// The scenario's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Where logs and captures go.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Where disks and data go; removed afterwards unless they are to be kept.
    pub(crate) fn disks(&self) -> &Path {
        &self.disks
    }

    /// Tells who watches what is going on.
    pub(crate) fn say(&self, what: &str) {
        eprintln!(
            "[{:6.1} s] {}: {what}",
            self.began.elapsed().as_secs_f64(),
            self.name
        );
    }

    /// Tells that a part of the story is done, and keeps it for the time line.
    pub(crate) fn milestone(&self, what: &str) {
        self.say(what);
        self.milestones
            .borrow_mut()
            .push((self.began.elapsed(), what.to_owned()));
    }

    /// The milestones as a picture: when each was reached, and a bar for the time that it took.
    pub(crate) fn time_line(&self) -> String {
        draw_time_line(&self.milestones.borrow())
    }

    /// A program under test, or a reason to skip.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf, Skipped> {
        let path = self.settings.bin_dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Skipped {
            reason: format!(
                "{} is not built; build it or give --bin-dir",
                path.display()
            ),
        })
    }

    /// The boot files under test, or a reason to skip.
    pub(crate) fn boot_files(&self) -> Result<PathBuf, Skipped> {
        let folder = &self.settings.boot_files;
        for file in ["vmlinuz", "initramfs"] {
            if !folder.join(file).is_file() {
                let reason = format!(
                    "{} has no {file}; make the boot files with `initramfs build` or give --boot-files",
                    folder.display()
                );
                return Err(Skipped { reason });
            }
        }
        Ok(folder.clone())
    }

    /// Removes disks and data unless they are to be kept.
    pub(crate) fn clear_up(&self) {
        if self.settings.keep {
            eprintln!("lab: disks and data are kept in {}", self.disks.display());
        } else if let Err(error) = fs::remove_dir_all(&self.disks) {
            log::warn!("cannot remove {}: {error}", self.disks.display());
        }
    }
}

/// Columns that the whole time takes.
const BAR: f64 = 30.0;

/// Draws each milestone's part of the whole where it lies: a line fits 80 columns and 44 letters.
fn draw_time_line(milestones: &[(Duration, String)]) -> String {
    let whole = milestones
        .last()
        .map_or(1.0, |(at, _)| at.as_secs_f64().max(f64::MIN_POSITIVE));
    let column = |at: Duration| (at.as_secs_f64() / whole * BAR).round() as usize;
    let mut lines = String::new();
    let mut before = Duration::ZERO;
    for (at, what) in milestones {
        let (from, to) = (column(before), column(*at));
        let bar = if to > from {
            "█".repeat(to - from)
        } else {
            "▏".to_owned()
        };
        let bar = format!("{}{bar}", " ".repeat(from));
        let (at_seconds, took) = (at.as_secs_f64(), (*at - before).as_secs_f64());
        lines.push_str(&format!(
            "{at_seconds:6.1} s {bar:31} {took:6.1} s  {what}\n"
        ));
        before = *at;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bar_begins_where_the_one_before_ends() {
        let seconds = |seconds, what: &str| (Duration::from_secs(seconds), what.to_owned());
        let drawn = draw_time_line(&[seconds(10, "a"), seconds(10, "b"), seconds(30, "c")]);
        let lines: Vec<_> = drawn.lines().collect();
        let bars = |line: &str| line.matches('█').count();
        assert_eq!(
            (bars(lines[0]), bars(lines[1]), bars(lines[2])),
            (10, 0, 20)
        );
        let place = |line: &str, mark: char| line.chars().position(|letter| letter == mark);
        assert_eq!(place(lines[1], '▏'), place(lines[0], '█').map(|at| at + 10));
        assert_eq!(place(lines[2], '█'), place(lines[1], '▏'));
        assert!(lines[2].ends_with("20.0 s  c"));
    }

    #[test]
    fn a_story_without_milestones_draws_nothing() {
        assert_eq!(draw_time_line(&[]), "");
    }
}
