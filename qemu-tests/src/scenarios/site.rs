//! A site: the server under test, a link with it as gateway, and machines plugged into the link.

use anyhow::{Context, bail, ensure};
use protocol::api::{JobView, MachineView, RestorePointView};
use protocol::beacon::AgentState;
use protocol::job::JobState;
use protocol::progress;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::machine::Machine;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::guest::Guest;
use crate::lab::link::{Link, LinkConfig, Port};
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;

/// How often the server is asked how a job goes.
const TICK: Duration = Duration::from_millis(250);
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// From power-on to the first beacon, under emulation.
const BEACON_SECONDS: u64 = 240;
/// A capture or restore of the source machine, under emulation.
const JOB_SECONDS: u64 = 900;

/// A running server and its network: a virtual link, or one of the kernel's.
pub(super) struct Site<'a, L = Link> {
    /// Where the story plays.
    pub(super) stage: &'a Stage<'a>,
    /// The server under test.
    pub(super) server: Server,
    /// Its network.
    pub(super) link: L,
    /// The folder of the link's sockets, if it has any.
    _sockets: Option<tempfile::TempDir>,
}

impl<'a> Site<'a> {
    /// Opens a site with an empty server.
    pub(super) fn open(stage: &'a Stage<'a>) -> anyhow::Result<Self> {
        let program = stage.program("netboot")?;
        let boot_files = stage.boot_files()?;
        let data_dir = stage.disks().join("server");
        let config = ServerConfig::on_free_ports(&program, &data_dir, &boot_files, stage.logs())?;
        let pcap = Some(stage.logs().join("link.pcap"));
        let sockets = tempfile::Builder::new().prefix("lab-").tempdir()?;
        let link = Link::start(
            LinkConfig {
                pcap,
                ..config.link()
            },
            sockets.path(),
        )?;
        let server = Server::start(config)?;
        Ok(Self {
            stage,
            server,
            link,
            _sockets: Some(sockets),
        })
    }

    /// Opens a site whose server has the data of an earlier one.
    pub(super) fn open_with_data(stage: &'a Stage<'a>, data_dir: &Path) -> anyhow::Result<Self> {
        copy_folder(data_dir, &stage.disks().join("server"))?;
        Self::open(stage)
    }

    /// A new socket in the wall.
    pub(super) fn add_port(&mut self) -> anyhow::Result<Port> {
        Ok(self.link.add_port()?)
    }
}

impl<'a, L> Site<'a, L> {
    /// A site with a network that was made elsewhere.
    pub(super) fn on(stage: &'a Stage<'a>, server: Server, link: L) -> Self {
        Self {
            stage,
            server,
            link,
            _sockets: None,
        }
    }

    /// Waits until a machine that was switched on asks for work.
    pub(super) fn wait_for_beacon(
        &self,
        machine: &Machine,
        guest: &mut Guest,
    ) -> anyhow::Result<MachineView> {
        let deadline = Deadline::seconds(BEACON_SECONDS);
        loop {
            let machines = self.server.machines()?;
            let known = machines
                .into_iter()
                .find(|view| view.inventory.identity.macs.contains(&machine.mac()));
            match known {
                Some(view) if view.state == Some(AgentState::Waiting) => return Ok(view),
                Some(MachineView {
                    error: Some(error), ..
                }) => bail!("the agent says: {error}"),
                _ => {}
            }
            guest.check_for_panic()?;
            ensure!(
                guest.is_on(),
                "{} went off before its first beacon",
                machine.name
            );
            ensure!(
                deadline.remaining().is_some(),
                "no beacon of {} within {deadline}",
                machine.name
            );
            std::thread::sleep(TICK);
        }
    }

    /// How a job stands.
    pub(super) fn job(&self, id: &str) -> anyhow::Result<JobView> {
        let jobs = self.server.jobs()?;
        jobs.into_iter()
            .find(|job| job.id == id)
            .with_context(|| format!("the server lost job {id}"))
    }

    /// Waits until a job has written or read so many percent of its data.
    pub(super) fn wait_for_percent(
        &self,
        id: &str,
        percent: u8,
        guest: &mut Guest,
    ) -> anyhow::Result<()> {
        let deadline = Deadline::seconds(JOB_SECONDS);
        loop {
            let job = self.job(id)?;
            ensure!(
                !job.state.is_over(),
                "job {id} was {} before {percent} %",
                job.state.word()
            );
            let moving = job.progress.filter(|progress| {
                use protocol::progress::Stage::{Reading, Writing};
                matches!(progress.stage, Reading | Writing)
            });
            if moving
                .and_then(|progress| progress.percent())
                .is_some_and(|done| done >= percent)
            {
                return Ok(());
            }
            ensure!(
                guest.is_on(),
                "the machine went off in the middle of job {id}"
            );
            ensure!(
                deadline.remaining().is_some(),
                "job {id} did not reach {percent} % within {deadline}"
            );
            std::thread::sleep(TICK);
        }
    }

    /// Waits until a job is over, however it ends.
    pub(super) fn wait_until_over(&self, id: &str, guest: &mut Guest) -> anyhow::Result<JobView> {
        let deadline = Deadline::seconds(JOB_SECONDS);
        let mut shown: Option<(progress::Stage, Instant)> = None;
        loop {
            // Asked before the job, because a machine may end its job and go off in between.
            let on = guest.is_on();
            let job = self.job(id)?;
            if job.state.is_over() {
                return Ok(job);
            }
            if let Some(now) = &job.progress {
                let due =
                    shown.is_none_or(|(stage, at)| stage != now.stage || at.elapsed() > SHOW_EVERY);
                if due {
                    self.stage.say(&format!("    {now}"));
                    shown = Some((now.stage, Instant::now()));
                }
            }
            ensure!(on, "the machine went off in the middle of job {id}");
            ensure!(
                deadline.remaining().is_some(),
                "job {id} is not over within {deadline}"
            );
            std::thread::sleep(TICK);
        }
    }

    /// Waits until a job has succeeded.
    pub(super) fn wait_for_success(&self, id: &str, guest: &mut Guest) -> anyhow::Result<JobView> {
        let job = self.wait_until_over(id, guest)?;
        if job.state != JobState::Succeeded {
            bail!(
                "the {} {}: {}",
                job.kind.word(),
                job.state.word(),
                job.error.as_deref().unwrap_or("no reason given")
            );
        }
        for fact in &job.summary {
            self.stage.say(&format!("    {fact}"));
        }
        Ok(job)
    }

    /// Captures a machine over the network; it is off afterwards.
    pub(super) fn capture(
        &self,
        machine: &Machine,
        port: &Port,
    ) -> anyhow::Result<RestorePointView> {
        self.stage.say(&format!(
            "{} boots from the network to be captured",
            machine.name
        ));
        // A machine that is known goes on to its disk unless there is work for it.
        let known = self
            .server
            .machines()?
            .iter()
            .any(|view| view.inventory.identity.macs.contains(&machine.mac()));
        let early = if known {
            Some(self.server.capture(&machine.mac())?)
        } else {
            None
        };
        let mut guest = machine.switch_on(self.stage, Some(port), "capture")?;
        let job = match early {
            Some(job) => job,
            None => {
                self.wait_for_beacon(machine, &mut guest)?;
                self.stage.say("its beacon is there: capture");
                self.server.capture(&machine.mac())?
            }
        };
        self.wait_for_success(&job.id, &mut guest)?;
        // It starts again after a job, which here switches it off.
        guest.wait_until_off(Deadline::seconds(60))?;
        let points = self.server.restore_points()?;
        let point = points
            .into_iter()
            .find(|point| &point.id == job.kind.restore_point());
        let point = point.context("the capture succeeded but its restore point is not listed")?;
        self.stage.say(&format!(
            "restore point {}: {} MB of data, {} MB stored",
            point.id,
            point.data_bytes / 1_000_000,
            point.stored_bytes / 1_000_000
        ));
        Ok(point)
    }

    /// Orders the restore of a machine that has just been switched on, when it asks for work.
    pub(super) fn order_restore(
        &self,
        machine: &Machine,
        guest: &mut Guest,
        restore_point: &str,
    ) -> anyhow::Result<JobView> {
        self.wait_for_beacon(machine, guest)?;
        self.stage.say("its beacon is there: restore");
        Ok(self.server.restore(&machine.mac(), restore_point)?)
    }

    /// Restores a machine over the network; it is off afterwards.
    pub(super) fn restore(
        &self,
        machine: &Machine,
        port: &Port,
        restore_point: &str,
    ) -> anyhow::Result<()> {
        self.stage.say(&format!(
            "{} boots from the network to be restored",
            machine.name
        ));
        let mut guest = machine.switch_on(self.stage, Some(port), "restore")?;
        let job = self.order_restore(machine, &mut guest, restore_point)?;
        self.wait_for_success(&job.id, &mut guest)?;
        guest.wait_until_off(Deadline::seconds(60))?;
        Ok(())
    }
}

/// Copies a folder with everything in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    tool::run(
        Command::new("cp")
            .args(["-a", "--reflink=auto", "--sparse=always"])
            .arg(from)
            .arg(to),
    )?;
    Ok(())
}
