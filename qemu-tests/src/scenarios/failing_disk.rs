//! Disks that fail in the middle of a restore: one with a sector that refuses to be written, one that is pulled out.
//!
//! The real agent in a virtual machine, on block devices of its kernel. The sector is QEMU's (`blkdebug`): it fails
//! twice, for the write that it is in and when the agent tries it alone, as if the disk then put another in its
//! place. In between the machine is never started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use protocol::api::JobView;
use protocol::job::JobState;

use super::compare;
use super::file_systems::agent;
use super::killed_agent::{SIZE, capture, make_source};
use super::machine::Machine;
use super::site::Site;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::fault::Faults;
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::{DiskBus, DiskDevice, Guest};
use crate::lab::link::Direction;
use crate::lab::tool;

const SECTOR: usize = 512;
const FIRST: &str = "BARE-DISK";
const OTHER: &str = "OTHER-DISK";
/// Slow enough for a disk to be pulled in the middle: 60 MB take 12 s.
const SLOW: u64 = 40_000_000;

/// Plays all of it.
pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let agent = agent(stage).or_else(|_| stage.program("agent"))?;
    let source = make_source(stage)?;
    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let point = capture(&site.server, &agent, &source)?;

    let mut machine = Machine::bare_with_disk(stage, FirmwareKind::Bios, SIZE)?;
    let first = machine.disk.clone();
    let bad = sector_with_data(&source)?;
    machine.disk = with_bad_sector(stage, &first, bad)?;
    let other = stage.disks().join("other.raw");
    disk::create_empty(&other, SIZE)?;
    machine.more_disks.push(DiskDevice {
        image: other,
        bus: DiskBus::Virtio,
        serial: OTHER.to_owned(),
        large_sectors: false,
    });
    let mut guest = machine.switch_on(stage, Some(&port), "restore")?;
    site.wait_for_beacon(&machine, &mut guest)?;
    let order = |target: &str, then: &str| order(&site, &machine, (&point, target), then);

    stage.say(&format!(
        "sector {bad} of the first disk refuses to be written"
    ));
    let job = order(FIRST, "wait")?;
    let said = failed(&site, &job, &mut guest)?;
    for words in [
        &format!("writing /dev/vda failed at LBA {bad} (sectors of 512 bytes"),
        "was partly written and does not boot",
        "start the same restore again",
    ] {
        ensure!(
            said.contains(words),
            "the error does not say `{words}`: {said}"
        );
    }
    compare::check_unbootable(&first)?;
    stage.milestone("the sector is named, the disk does not boot");

    let job = order(FIRST, "wait")?;
    site.wait_for_success(&job.id, &mut guest)?;
    ensure!(
        fs::read(&first)? == fs::read(&source)?,
        "the first disk is not the source"
    );
    stage.milestone("the same agent has restored the disk");

    let faults = Faults {
        bandwidth: Some(SLOW),
        ..Faults::default()
    };
    site.link.set_faults(port.id, Direction::ToGuest, faults)?;
    let job = order(OTHER, "wait")?;
    site.wait_for_percent(&job.id, 20, &mut guest)?;
    stage.say("the other disk is pulled out");
    guest.pull_disk(1)?;
    let said = failed(&site, &job, &mut guest)?;
    for words in [
        "/dev/vdb failed at LBA ",
        "the disk is gone: it was unplugged",
        "was partly written and does not boot",
        "start the same restore again",
    ] {
        ensure!(
            said.contains(words),
            "the error does not say `{words}`: {said}"
        );
    }
    wait_for_one_disk(&site, &machine)?;
    stage.milestone("the disk that vanished is named, and is in the beacon no more");

    let perfect = Faults::default();
    site.link.set_faults(port.id, Direction::ToGuest, perfect)?;
    let job = order(FIRST, "power-off")?;
    site.wait_for_success(&job.id, &mut guest)?;
    guest.wait_until_off(Deadline::seconds(60))?;
    ensure!(
        fs::read(&first)? == fs::read(&source)?,
        "the first disk is not the source"
    );
    Ok(())
}

/// The LBA of a sector in the second half of the disk that is not zero, in the middle of others.
fn sector_with_data(image: &Path) -> anyhow::Result<usize> {
    let bytes = fs::read(image)?;
    let full = |sector: &[u8]| sector.iter().any(|byte| *byte != 0);
    let half = bytes.len() / SECTOR / 2;
    let sectors: Vec<_> = bytes.chunks(SECTOR).collect();
    (half..sectors.len() - 8)
        .find(|lba| lba % 8 == 3 && sectors[lba - 3..lba + 5].iter().all(|sector| full(sector)))
        .context("the source has no data in its second half")
}

/// The name by which QEMU opens the image with a sector that refuses two writes.
fn with_bad_sector(stage: &Stage<'_>, image: &Path, lba: usize) -> anyhow::Result<PathBuf> {
    let rules = stage.disks().join("bad-sector.conf");
    let rule = format!(
        "[inject-error]\nevent = \"none\"\niotype = \"write\"\nerrno = \"5\"\nonce = \"on\"\nsector = \"{lba}\"\n"
    );
    fs::write(&rules, format!("{rule}\n{rule}"))?;
    let name = format!("blkdebug:{}:{}", rules.display(), image.display());
    Ok(PathBuf::from(name))
}

/// Orders a restore to the disk with this serial number.
fn order(
    site: &Site<'_>,
    machine: &Machine,
    (point, target): (&str, &str),
    then: &str,
) -> anyhow::Result<JobView> {
    let mut command = Command::new(site.stage.program("netboot")?);
    command.arg("--data-dir").arg(site.server.data_dir());
    command.args(["restore", &machine.mac(), point, "--json", "--then", then]);
    command.args(["--disk", &format!("0={target}")]);
    let answer = tool::run(&mut command)?;
    serde_json::from_str(&answer).with_context(|| format!("`netboot restore` said {answer}"))
}

/// Waits until the job has failed; what it says, once the machine says so itself.
fn failed(site: &Site<'_>, job: &JobView, guest: &mut Guest) -> anyhow::Result<String> {
    let over = site.wait_until_over(&job.id, guest)?;
    ensure!(
        over.state == JobState::Failed,
        "the restore did not fail: {:?}",
        over.state
    );
    let said = over.error.context("no reason is given")?;
    site.stage.say(&format!("    {said}"));
    Ok(said)
}

fn wait_for_one_disk(site: &Site<'_>, machine: &Machine) -> anyhow::Result<()> {
    let deadline = Deadline::seconds(120);
    loop {
        let machines = site.server.machines()?;
        let known = machines
            .iter()
            .find(|view| view.inventory.identity.macs.contains(&machine.mac()));
        if known.is_some_and(|view| view.inventory.disks.len() == 1) {
            return Ok(());
        }
        ensure!(
            deadline.remaining().is_some(),
            "the disk that was pulled is still in the beacon"
        );
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
}
