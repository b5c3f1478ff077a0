//! Restores that start: Debian on every kind of root, by both firmwares, to disks of another size, on another bus,
//! with other sectors.
//!
//! One table, one story. Each row is a scenario of its own; rows with the same source share its backup. What a
//! kind of root cannot do is a row too: it must be refused, with the reason, and nothing written. Not here: the
//! rows that other stories play (`ELSEWHERE`, with the tests), and data disks.

mod judge;
mod table;

use anyhow::{Context, ensure};
use protocol::job::JobState;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::Skipped;
use super::machine::{BARE_DISK_BYTES, Machine, wait_for_login};
use super::restore::{SMALL_DISK_BYTES, backup_of};
use super::site::Site;
use super::stage::{Backup, Source, Stage};
use crate::lab::deadline::Deadline;
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::{DiskBus, Guest};
use crate::lab::source_machine::{DISK_BYTES, RootKind};
pub(super) use table::SCENARIOS;

/// How often the server is asked for the machine's disks.
const TICK: Duration = Duration::from_millis(500);

/// The target's disk beside the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Equal,
    Larger,
    Smaller,
}

impl Size {
    const fn bytes(self) -> u64 {
        match self {
            Self::Equal => DISK_BYTES,
            Self::Larger => BARE_DISK_BYTES,
            Self::Smaller => SMALL_DISK_BYTES,
        }
    }
}

/// How a row ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With a login prompt.
    Login,
    /// Without a byte written; the plan has a reason with this code and these words.
    Refused(&'static str, &'static str),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Name of the scenario.
    name: &'static str,
    /// What it proves, in one line.
    about: &'static str,
    root: RootKind,
    firmware: FirmwareKind,
    size: Size,
    /// How the source's disk was attached.
    from: DiskBus,
    /// How the target's is.
    to: DiskBus,
    /// Whether the target's sectors have 4096 bytes in place of 512.
    large_sectors: bool,
    end: End,
}

fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let row = table::find(stage.name()).context("this scenario is not in the table")?;
    if row.root != RootKind::Ext4 && !nix::unistd::geteuid().is_root() {
        return Err(Skipped {
            reason: format!(
                "the disk with its root on {} is made by mounting it, which needs root",
                row.root
            ),
        }
        .into());
    }
    let source = Source {
        root: row.root,
        firmware: row.firmware,
        bus: row.from,
    };
    let backup = backup_of(stage, source)?;
    let mut bare = Machine::bare_with_disk(stage, row.firmware, row.size.bytes())?;
    bare.bus = row.to;
    bare.large_sectors = row.large_sectors;
    let site = Site::open_with_data(stage, &backup.data_dir)?;
    match row.end {
        End::Login => comes_back(stage, row, &backup, site, bare),
        End::Refused(code, words) => is_refused(stage, &backup, site, &bare, (code, words)),
    }
}

fn comes_back(
    stage: &Stage<'_>,
    row: &Row,
    backup: &Backup,
    mut site: Site<'_>,
    mut bare: Machine,
) -> anyhow::Result<()> {
    let port = site.add_port()?;
    site.restore(&bare, &port, &backup.restore_point)?;
    stage.milestone("the bare machine is restored");
    judge::check(stage, row, &backup.source_disk, &bare.disk)?;
    stage.milestone("its disk is what it should be");
    // Nothing but its disk can start it.
    bare.network_first = false;
    let mut guest = bare.switch_on(stage, None, "restored")?;
    wait_for_login(stage, &mut guest)?;
    stage.milestone("it reached its login prompt");
    Ok(())
}

fn is_refused(
    stage: &Stage<'_>,
    backup: &Backup,
    mut site: Site<'_>,
    bare: &Machine,
    (code, words): (&str, &str),
) -> anyhow::Result<()> {
    let port = site.add_port()?;
    let mut guest = bare.switch_on(stage, Some(&port), "refused")?;
    wait_for_disk(&site, bare, &mut guest)?;
    let job = site.order_restore(bare, &mut guest, &backup.restore_point)?;
    let refusals = site.server.refusals(&bare.mac(), &backup.restore_point)?;
    let is_it = |code_of: serde_json::Value| code_of.as_str() == Some(code);
    let mut right = refusals.iter();
    ensure!(
        right
            .any(|one| serde_json::to_value(one.code).is_ok_and(is_it) && one.text.contains(words)),
        "the plan is not refused with {code} because {words}: {refusals:?}"
    );
    let job = site.wait_until_over(&job.id, &mut guest)?;
    let reason = job.error.unwrap_or_default();
    ensure!(
        job.state == JobState::Failed && reason.contains(words),
        "the restore {}: {reason}",
        job.state.word()
    );
    guest.cut_power();
    let written = std::fs::metadata(&bare.disk)?.blocks();
    ensure!(written == 0, "{written} blocks of its disk were written");
    stage.milestone(&format!("refused ({code}), its disk untouched: {reason}"));
    Ok(())
}

/// Waits until the server knows the machine's disk, which may come up later than its network.
fn wait_for_disk(site: &Site<'_>, bare: &Machine, guest: &mut Guest) -> anyhow::Result<()> {
    let deadline = Deadline::seconds(60);
    while site
        .wait_for_beacon(bare, guest)?
        .inventory
        .disks
        .is_empty()
    {
        ensure!(deadline.remaining().is_some(), "the beacon names no disk");
        std::thread::sleep(TICK);
    }
    Ok(())
}
