//! Restores that something goes wrong in the middle of, and that end right all the same.

use anyhow::ensure;

use super::compare;
use super::machine::{Machine, wait_for_login};
use super::restore::backup;
use super::site::Site;
use super::stage::{Backup, Stage};
use crate::lab::deadline::Deadline;
use crate::lab::fault::{Chance, Faults};
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::Guest;
use crate::lab::link::{Direction, Port};

const KIND: FirmwareKind = FirmwareKind::Bios;
/// Where the middle is, percent.
const MIDDLE: u8 = 40;

/// A bare machine in front of a server that has a backup for it.
struct Scene<'a> {
    backup: Backup,
    bare: Machine,
    site: Site<'a>,
    port: Port,
}

impl<'a> Scene<'a> {
    fn set(stage: &'a Stage<'a>) -> anyhow::Result<Self> {
        let backup = backup(stage, KIND)?;
        let mut site = Site::open_with_data(stage, &backup.data_dir)?;
        let port = site.add_port()?;
        Ok(Self {
            bare: Machine::bare(stage, KIND)?,
            backup,
            site,
            port,
        })
    }

    /// Starts a restore and lets it come to its middle.
    fn restore_to_the_middle(&self) -> anyhow::Result<(Guest, String)> {
        self.site
            .stage
            .say("the bare machine boots from the network to be restored");
        let mut guest = self
            .bare
            .switch_on(self.site.stage, Some(&self.port), "restore")?;
        let job = self
            .site
            .order_restore(&self.bare, &mut guest, &self.backup.restore_point)?;
        self.site.wait_for_percent(&job.id, MIDDLE, &mut guest)?;
        Ok((guest, job.id))
    }

    /// Lets a restore come to its end and checks the disk.
    fn finish(&self, mut guest: Guest, job: &str) -> anyhow::Result<()> {
        self.site.wait_for_success(job, &mut guest)?;
        guest.wait_until_off(Deadline::seconds(60))?;
        compare::check_restored(&self.backup.source_disk, &self.bare.disk)?;
        self.site
            .stage
            .say("every file is there with the same content, owner, mode and times");
        Ok(())
    }
}

pub(super) fn power_cut(stage: &Stage<'_>) -> anyhow::Result<()> {
    let scene = Scene::set(stage)?;
    let (guest, job) = scene.restore_to_the_middle()?;
    stage.say("power cut");
    guest.cut_power();

    compare::check_unbootable(&scene.bare.disk)?;
    let guest = scene.bare.switch_on(stage, None, "without-network")?;
    guest
        .console()
        .wait_for("No bootable device", Deadline::seconds(60))?;
    ensure!(
        !guest.console().has_shown("GRUB"),
        "the half-restored disk started GRUB"
    );
    guest.cut_power();
    stage.say("the disk does not boot by itself");

    let guest = scene.bare.switch_on(stage, Some(&scene.port), "resumed")?;
    scene.finish(guest, &job)?;
    let mut guest = scene.bare.switch_on(stage, Some(&scene.port), "restored")?;
    wait_for_login(stage, &mut guest)
}

pub(super) fn server_restart(stage: &Stage<'_>) -> anyhow::Result<()> {
    let mut scene = Scene::set(stage)?;
    let (guest, job) = scene.restore_to_the_middle()?;
    stage.say("the server is killed");
    scene.site.server.kill();
    std::thread::sleep(std::time::Duration::from_secs(5));
    scene.site.server.start_again()?;
    stage.say("the server is back");
    scene.finish(guest, &job)
}

pub(super) fn packet_loss(stage: &Stage<'_>) -> anyhow::Result<()> {
    let scene = Scene::set(stage)?;
    let faults = Faults {
        loss: Chance::percent(2.0),
        ..Faults::default()
    };
    for direction in [Direction::FromGuest, Direction::ToGuest] {
        scene
            .site
            .link
            .set_faults(scene.port.id, direction, faults)?;
    }
    stage.say("from now on 2 % of all packets are lost, each way");
    scene
        .site
        .restore(&scene.bare, &scene.port, &scene.backup.restore_point)?;
    let counters = scene.site.link.counters(scene.port.id)?;
    let all = counters.frames_from_guest + counters.frames_to_guest;
    stage.say(&format!("{} of {all} packets were lost", counters.dropped));
    ensure!(
        counters.dropped > 100,
        "hardly any packet was lost: {}",
        counters.dropped
    );
    compare::check_restored(&scene.backup.source_disk, &scene.bare.disk)
}
