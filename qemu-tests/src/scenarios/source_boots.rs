//! The source machine by itself: it starts, leaves its mark, and switches off with clean file systems.

use anyhow::ensure;

use super::compare;
use super::machine::{Machine, log_in_and_shut_down, wait_for_login};
use super::stage::Stage;
use crate::lab::disk;
use crate::lab::firmware::FirmwareKind;
use crate::lab::source_machine::SourceMachine;

pub(super) fn bios(stage: &Stage<'_>) -> anyhow::Result<()> {
    boots(stage, FirmwareKind::Bios)
}

pub(super) fn uefi(stage: &Stage<'_>) -> anyhow::Result<()> {
    boots(stage, FirmwareKind::Uefi)
}

fn boots(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<()> {
    let source = start(stage, kind)?;
    let root = compare::root_tree(&source.disk)?;
    stage.say(&format!("its root file system has {} files", root.len()));
    ensure!(
        root.contains("/var/lib/marks"),
        "the machine left no mark in /var/lib/marks"
    );
    Ok(())
}

/// A source machine that has been used: started from its disk, logged in to, and switched off. It is
/// started once only; its disk is kept for later runs.
pub(super) fn started_once(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<Machine> {
    let used = SourceMachine::get_or_build(&stage.settings.work)?.used_disk(kind);
    if used.is_file() {
        stage.say(&format!(
            "the source machine has been started before ({kind}); its disk is as it was then"
        ));
        let source = Machine::source(stage, kind)?;
        disk::copy(&used, &source.disk)?;
        return Ok(source);
    }
    let source = start(stage, kind)?;
    let copying = used.with_extension("copying");
    disk::copy(&source.disk, &copying)?;
    std::fs::rename(&copying, &used)?;
    Ok(source)
}

fn start(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<Machine> {
    stage.say(&format!("the source machine starts from its disk ({kind})"));
    let source = Machine::source(stage, kind)?;
    let mut guest = source.switch_on(stage, None, "first-start")?;
    wait_for_login(stage, &mut guest)?;
    stage.say("it reached its login prompt; it is switched off");
    log_in_and_shut_down(guest)?;
    compare::check_file_systems(&source.disk)?;
    Ok(source)
}
