//! Ours under test: `netboot serve` on a bridge, the agent as an ordinary program in a namespace on its cable.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use protocol::api::RestorePointView;
use protocol::job::JobState;

use super::super::store;
use crate::lab::deadline::Deadline;
use crate::lab::namespace::{BRIDGE_ADDRESS, Bridge, Namespace, Place};
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;
use crate::scenarios::Settings;

/// How often the agent is looked at.
const TICK: Duration = Duration::from_millis(5);
/// What the agent's log says when it begins a job.
const BEGINS: &str = ": restore of ";

/// The server's side and the machine's side of one cable.
pub(super) struct Network {
    pub(super) bridge: Bridge,
    pub(super) client: Namespace,
}

impl Network {
    /// Lays the cable; with a rate, what goes to the machine is held to it.
    pub(super) fn with_rate(rate: Option<&str>) -> anyhow::Result<Self> {
        let mut bridge = Bridge::up().context("the server needs a network of its own")?;
        let client = Namespace::create()?;
        bridge.connect(&client)?;
        client.ip(&["addr", "add", "10.78.0.2/24", "dev", "eth0"])?;
        if let Some(rate) = rate {
            bridge.limit_last_cable(rate)?;
        }
        Ok(Self { bridge, client })
    }

    /// Bytes of all frames that the machine received.
    pub(super) fn received(&self) -> anyhow::Result<u64> {
        let mut command = self.client.place().command("cat");
        let said = tool::run(command.arg("/sys/class/net/eth0/statistics/rx_bytes"))?;
        said.trim()
            .parse()
            .with_context(|| format!("rx_bytes: {said}"))
    }
}

/// One restore.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// From the job's beginning to the end of the process.
    pub(super) time: Duration,
    /// Most memory that the process had (`VmHWM`, proc(5)).
    pub(super) memory: u64,
    /// Plain bytes of the chunks that it fetched.
    pub(super) fetched: u64,
}

/// Server and agent.
pub(super) struct Ours {
    server: Server,
    agent: PathBuf,
    place: Place,
    scratch: PathBuf,
    address: String,
}

impl Ours {
    /// Starts the server, on the data of an earlier one if there is some.
    pub(super) fn start(
        settings: &Settings,
        network: &Network,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let files = scratch.join("files");
        fs::create_dir_all(&files)?;
        let config = ServerConfig::on_bridge(
            &settings.bin_dir.join("netboot"),
            &scratch.join("data"),
            &files,
            scratch,
            network.bridge.place(),
        );
        Ok(Self {
            server: Server::start(config)?,
            agent: settings.bin_dir.join("agent"),
            place: network.client.place().clone(),
            scratch: scratch.to_owned(),
            address: format!("http://{BRIDGE_ADDRESS}"),
        })
    }

    /// Where the server keeps its data.
    pub(super) fn data(&self) -> &Path {
        self.server.data_dir()
    }

    fn agent(&self, words: &[&str], disk: &Path) -> anyhow::Result<Child> {
        let mut command = self.place.command_on_this_computer(&self.agent);
        command
            .args(words)
            .args(["--server", &self.address, "--disk"]);
        command.arg(disk);
        let log = File::create(self.log())?;
        let mut bound = tool::bound_to_us(&command);
        bound
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(bound.spawn()?)
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("agent.log")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Captures a disk.
    pub(super) fn capture(&self, disk: &Path) -> anyhow::Result<RestorePointView> {
        let before = self.server.restore_points()?;
        let status = self.agent(&["backup"], disk)?.wait()?;
        ensure!(status.success(), "agent backup: {}", self.said());
        let mut points = self.server.restore_points()?.into_iter();
        let is_new = |point: &RestorePointView| before.iter().all(|old| old.id != point.id);
        points
            .find(is_new)
            .context("the capture made no restore point")
    }

    /// Restores a restore point onto a disk.
    pub(super) fn restore(&self, point: &str, disk: &Path) -> anyhow::Result<Turn> {
        let mut agent = self.agent(&["join", "--once"], disk)?;
        let turn = self.watch(point, disk, &mut agent);
        // It ends by itself; after a fault it may not.
        let _ = agent.kill();
        let _ = agent.wait();
        turn.with_context(|| format!("agent join: {}", self.said()))
    }

    fn watch(&self, point: &str, disk: &Path, agent: &mut Child) -> anyhow::Result<Turn> {
        let disk = fs::canonicalize(disk)?;
        let deadline = Deadline::seconds(300);
        let machine = loop {
            let has_disk = |name: &str| Path::new(name) == disk;
            let mut machines = self.server.machines()?.into_iter();
            let found = machines.find(|machine| {
                let mut disks = machine.inventory.disks.iter();
                machine.state.is_some() && disks.any(|disk| has_disk(&disk.name))
            });
            if let Some(machine) = found {
                break machine.id;
            }
            ensure!(deadline.remaining().is_some(), "the agent does not beacon");
            thread::sleep(TICK);
        };
        let job = self.server.restore(&machine, point)?;
        while !self.said().contains(BEGINS) {
            ensure!(agent.try_wait()?.is_none(), "the agent ended without a job");
            ensure!(deadline.remaining().is_some(), "the job does not begin");
            thread::sleep(TICK);
        }
        let began = Instant::now();
        let status = PathBuf::from(format!("/proc/{}/status", agent.id()));
        let mut memory = 0;
        let ended = loop {
            if let Some(ended) = agent.try_wait()? {
                break ended;
            }
            let text = fs::read_to_string(&status).unwrap_or_default();
            memory = memory.max(store::high_water(&text).unwrap_or(0));
            ensure!(deadline.remaining().is_some(), "the restore does not end");
            thread::sleep(TICK);
        };
        let time = began.elapsed();
        ensure!(ended.success(), "the agent ended with {ended}");
        let jobs = self.server.jobs()?;
        let job = jobs
            .iter()
            .find(|one| one.id == job.id)
            .context("the job is gone")?;
        if job.state != JobState::Succeeded {
            bail!("the restore failed: {:?}", job.error);
        }
        let fetched = fetched(&self.said()).context("the agent does not say what it fetched")?;
        Ok(Turn {
            time,
            memory,
            fetched,
        })
    }
}

/// The number in `fetched N bytes of data`.
fn fetched(log: &str) -> Option<u64> {
    let (_, after) = log.rsplit_once("fetched ")?;
    let (number, _) = after.split_once(" bytes of data")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_is_read_from_the_log() {
        assert_eq!(
            fetched("x\nfetched 12 bytes of data in 3 chunks\ny"),
            Some(12)
        );
        assert_eq!(fetched("fetched much"), None);
    }
}
