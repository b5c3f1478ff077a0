//! Kill anywhere: the agent is killed at random moments of a restore, now and then the server with it; the disk
//! must not have its first sector before all of it is there, and the next agent must make it byte for byte what a
//! restore that nobody disturbs makes of it.
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
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;

const SIZE: u64 = 96 << 20;
const TICK: Duration = Duration::from_millis(20);
const POINTS: u64 = 6;
const MANY_POINTS: u64 = 200;
/// Of so many points one takes the server away, too.
const SERVER_EVERY: u64 = 3;
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

struct Scene<'a> {
    stage: &'a Stage<'a>,
    agent: PathBuf,
    server: Server,
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
    let whole = fs::read(&scene.target)?;
    ensure!(whole[510..512] == [0x55, 0xaa], "the disk does not start");
    let mut dice = Dice(points);
    let (mut early, mut begun) = (0, 0);
    for number in 0..points {
        disk::copy(&scene.old, &scene.target)?;
        let (mut agent, job) = scene.order()?;
        let wait = usual.mul_f64(dice.share());
        thread::sleep(wait);
        if number % SERVER_EVERY == 0 {
            scene.server.kill();
            thread::sleep(usual.mul_f64(dice.share() / 4.0));
        }
        agent.kill()?;
        agent.wait()?;
        let found = fs::read(&scene.target)?;
        let starts = found[510..512] == [0x55, 0xaa];
        ensure!(
            !starts || found == whole,
            "point {number}, killed after {wait:?}: the disk starts and is not whole"
        );
        early += u64::from(!starts);
        begun += u64::from(found[..] != fs::read(&scene.old)?[..]);
        if number % SERVER_EVERY == 0 {
            scene.server.start_again()?;
        }
        let mut agent = scene.join()?;
        scene
            .wait_for_end(&mut agent, &job)
            .with_context(|| format!("point {number}, killed after {wait:?}"))?;
        ensure!(
            fs::read(&scene.target)? == whole,
            "point {number}, killed after {wait:?}: other bytes than without"
        );
    }
    ensure!(
        begun > 0 && early > 0,
        "no restore was killed in its middle"
    );
    stage.say(&format!(
        "killed {points} times: {begun} disks were begun, {early} did not start, each was whole in the end"
    ));
    Ok(())
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
        let (files, tree, source) = (place("boot"), place("tree"), place("source.raw"));
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&tree)?;
        File::create(&source)?.set_len(SIZE)?;
        disk::partition(&source, "label: gpt\nstart=2048, type=linux\n")?;
        shell(MAKE, &[&source, &tree])?;
        let config = ServerConfig::on_free_ports(
            &stage.program("netboot")?,
            &place("server"),
            &files,
            stage.logs(),
        )?;
        let server = Server::start(config)?;
        let url = server.url();
        let mut command = Command::new(&agent);
        command.args(["backup", "--server", &url, "--json", "--disk"]);
        tool::run(command.arg(&source))?;
        let points = server.restore_points()?;
        let point = points.first().context("no restore point")?.id.to_string();
        let (old, target) = (place("old.raw"), place("target.raw"));
        fs::write(&old, vec![0x6f; SIZE as usize])?;
        disk::copy(&old, &target)?;
        Ok(Self {
            stage,
            agent,
            server,
            point,
            old,
            target,
        })
    }

    fn join(&self) -> anyhow::Result<Child> {
        let url = self.server.url();
        let mut command = Command::new(&self.agent);
        command.args(["join", "--server", &url, "--once", "--disk"]);
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
