//! Kill anywhere: at random moments of a restore the agent is killed, or its server with it; or the server alone is
//! killed and started again, or the link is lost for a while, and the agent goes on by itself. The disk must not have
//! its first sector before all of it is there, and must end byte for byte as after a restore that nobody disturbs.
//!
//! The agent runs as a program on this computer, on an image file, which stands for a disk whose cache survives:
//! what a power cut makes of writes that were not flushed is played by the agent's own tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use protocol::job::JobState;

use super::file_systems::{agent, shell};
use super::relay::Relay;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;

/// Bytes of the disk.
pub(super) const SIZE: u64 = 96 << 20;
const TICK: Duration = Duration::from_millis(20);
const POINTS: u64 = 20;
const MANY_POINTS: u64 = 200;
/// A disk with a table, and files that do not compress; `$1` is the image, `$2` a folder.
const MAKE: &str = "for number in $(seq 40); do head -c 1500000 /dev/urandom >\"$2/$number\"; done
    mke2fs -q -F -t ext4 -d \"$2\" -E offset=1048576 \"$1\" 94M";

/// Plays a few points.
pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    kill(stage, POINTS)
}

/// Plays many points.
pub(super) fn play_long(stage: &Stage<'_>) -> anyhow::Result<()> {
    kill(stage, MANY_POINTS)
}

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    AgentDies,
    AgentAndServerDie,
    ServerRestarts,
    LinkIsLost,
}

impl Blow {
    const ALL: [Self; 4] = [
        Self::AgentDies,
        Self::LinkIsLost,
        Self::AgentAndServerDie,
        Self::ServerRestarts,
    ];

    const fn kills_agent(self) -> bool {
        matches!(self, Self::AgentDies | Self::AgentAndServerDie)
    }
}

struct Scene<'a> {
    stage: &'a Stage<'a>,
    agent: PathBuf,
    server: Server,
    /// The way from the agent to the server.
    link: Relay,
    point: String,
    /// Full of old data.
    old: PathBuf,
    target: PathBuf,
}

fn kill(stage: &Stage<'_>, points: u64) -> anyhow::Result<()> {
    let mut scene = Scene::set(stage)?;
    // The longer of two: what the moments are chosen from.
    let mut usual = Duration::ZERO;
    for _ in 0..2 {
        disk::copy(&scene.old, &scene.target)?;
        let (mut agent, job) = scene.order()?;
        let began = Instant::now();
        scene.wait_for_end(&mut agent, &job)?;
        usual = usual.max(began.elapsed());
    }
    stage.say(&format!("undisturbed it takes {usual:.1?}"));
    let whole = fs::read(&scene.target)?;
    ensure!(starts(&whole), "the disk does not start");
    let old = fs::read(&scene.old)?;
    let mut dice = Dice(points);
    let (mut early, mut begun) = ([0; 4], 0);
    for (number, (kind, blow)) in (0..points).zip(Blow::ALL.into_iter().enumerate().cycle()) {
        let wait = usual.mul_f64(dice.share());
        let what = || format!("point {number}, {blow:?} after {wait:.2?}");
        let away = usual.mul_f64(dice.share() / 4.0);
        let (found, ended) = scene.strike(blow, (wait, away)).with_context(what)?;
        ensure!(
            !starts(&found) || found == whole,
            "{}: the disk starts and is not whole",
            what()
        );
        early[kind] += u64::from(!starts(&found));
        begun += u64::from(found != old);
        ended.with_context(what)?;
        ensure!(
            fs::read(&scene.target)? == whole,
            "{}: other bytes than without",
            what()
        );
        if number % 20 == 19 {
            stage.say(&format!("{} of {points} moments", number + 1));
        }
    }
    ensure!(
        begun > 0 && early.iter().all(|early| *early > 0),
        "no restore was disturbed in its middle: {early:?}"
    );
    let kinds = Blow::ALL.map(|blow| format!("{blow:?}"));
    let counts = kinds.iter().zip(early);
    let counts: Vec<_> = counts
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    stage.say(&format!(
        "disturbed {points} times: {begun} disks were begun; of those that did not start yet: {}; each was whole in the end",
        counts.join(", ")
    ));
    Ok(())
}

/// Whether BIOS, UEFI or a system would find anything on the disk: all of them want the signature at the end of its
/// first sector.
fn starts(disk: &[u8]) -> bool {
    disk[510..512] == [0x55, 0xaa]
}

/// Numbers that are the same each time.
struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

impl<'a> Scene<'a> {
    fn set(stage: &'a Stage<'a>) -> anyhow::Result<Self> {
        let agent = agent(stage).or_else(|_| stage.program("agent"))?;
        let place = |name: &str| stage.disks().join(name);
        let files = place("boot");
        fs::create_dir_all(&files)?;
        let source = make_source(stage)?;
        let config = ServerConfig::on_free_ports(
            &stage.program("netboot")?,
            &place("server"),
            &files,
            stage.logs(),
        )?;
        let server = Server::start(config)?;
        let point = capture(&server, &agent, &source)?;
        let (old, target) = (place("old.raw"), place("target.raw"));
        fs::write(&old, vec![0x6f; SIZE as usize])?;
        disk::copy(&old, &target)?;
        Ok(Self {
            stage,
            agent,
            link: Relay::to(&server.url())?,
            server,
            point,
            old,
            target,
        })
    }

    /// Begins a restore and disturbs it after `wait`, for as long as `away`. What is on the disk then, and whether
    /// the restore ended.
    fn strike(
        &mut self,
        blow: Blow,
        (wait, away): (Duration, Duration),
    ) -> anyhow::Result<(Vec<u8>, anyhow::Result<()>)> {
        disk::copy(&self.old, &self.target)?;
        let (mut agent, job) = self.order()?;
        thread::sleep(wait);
        match blow {
            Blow::AgentDies => {}
            Blow::AgentAndServerDie | Blow::ServerRestarts => self.server.kill(),
            Blow::LinkIsLost => self.link.lose(),
        }
        thread::sleep(away);
        if blow.kills_agent() {
            agent.kill()?;
            agent.wait()?;
        }
        // From its first byte on: a disk that starts is one to which nothing is written any more.
        let found = fs::read(&self.target)?;
        match blow {
            Blow::AgentDies => {}
            Blow::AgentAndServerDie | Blow::ServerRestarts => self.server.start_again()?,
            Blow::LinkIsLost => self.link.mend(),
        }
        if blow.kills_agent() {
            agent = self.join()?;
        }
        let ended = self.wait_for_end(&mut agent, &job);
        Ok((found, ended))
    }

    fn join(&self) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.agent);
        command.args(["join", "--server", self.link.url(), "--once", "--disk"]);
        let log = File::create(self.stage.logs().join("agent.log"))?;
        let mut bound = tool::bound_to_us(command.arg(&self.target));
        bound
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(bound.spawn()?)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.stage.logs().join("agent.log")).unwrap_or_default()
    }

    /// Orders the restore and returns when the agent has it.
    fn order(&self) -> anyhow::Result<(Child, String)> {
        let agent = self.join()?;
        let target = fs::canonicalize(&self.target)?;
        let deadline = Deadline::seconds(120);
        let machine = loop {
            let found = self.server.machines()?.into_iter().find(|machine| {
                let mut disks = machine.inventory.disks.iter();
                machine.state.is_some() && disks.any(|disk| Path::new(&disk.name) == target)
            });
            if let Some(machine) = found.filter(|_| self.log().contains("waiting")) {
                break machine.id;
            }
            ensure!(deadline.remaining().is_some(), "the agent does not beacon");
            thread::sleep(TICK);
        };
        let job = self.server.restore(&machine, &self.point)?;
        while !self.log().contains(": restore of ") {
            ensure!(deadline.remaining().is_some(), "the job does not begin");
            thread::sleep(TICK);
        }
        Ok((agent, job.id))
    }

    fn wait_for_end(&self, agent: &mut Child, job: &str) -> anyhow::Result<()> {
        let deadline = Deadline::seconds(120);
        loop {
            let jobs = self.server.jobs()?;
            let found = jobs.iter().find(|one| one.id == job);
            let found = found.context("the job is gone")?;
            match found.state {
                JobState::Succeeded => break,
                JobState::Failed | JobState::Cancelled => {
                    bail!("the restore failed: {:?}", found.error)
                }
                _ => {}
            }
            // The job's last report may not have come when the agent was killed: it is done again then.
            ensure!(
                deadline.remaining().is_some(),
                "the restore does not end: {}",
                self.log()
            );
            thread::sleep(TICK);
        }
        // It ends by itself; one that came when the job had ended waits for another.
        let _ = agent.kill();
        agent.wait()?;
        Ok(())
    }
}

/// Makes a disk with files on it.
pub(super) fn make_source(stage: &Stage<'_>) -> anyhow::Result<PathBuf> {
    let (tree, source) = (stage.disks().join("tree"), stage.disks().join("source.raw"));
    fs::create_dir_all(&tree)?;
    File::create(&source)?.set_len(SIZE)?;
    disk::partition(&source, "label: gpt\nstart=2048, type=linux\n")?;
    shell(MAKE, &[&source, &tree])?;
    Ok(source)
}

/// Captures an image by an agent on this computer; returns the restore point.
pub(super) fn capture(server: &Server, agent: &Path, source: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(agent);
    command.args(["backup", "--server", &server.url(), "--json", "--disk"]);
    tool::run(command.arg(source))?;
    let points = server.restore_points()?;
    let point = points.first().context("no restore point")?;
    Ok(point.id.to_string())
}
