//! Random frames at a running server: it keeps serving, its memory and files stay bounded.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::real_network::skip_when_unavailable;
use super::stage::Stage;
use crate::lab::namespace::Bridge;
use crate::lab::noise::Noise;
use crate::lab::room::{Files, POOL, Room};
use crate::lab::server::{Server, ServerConfig};

/// All noise follows from it.
const SEED: u64 = 0x6e65_7462_6f6f_7431;
const SHORT: Duration = Duration::from_secs(20);
const WHOLE: Duration = Duration::from_secs(600);
/// How often the control client comes.
const EVERY: Duration = Duration::from_secs(1);
/// Resident memory of the server at most, KiB.
const MOST_MEMORY: u64 = 160 << 10;
/// Open files of the server at most: two for each of 4096 TFTP transfers, some for HTTP.
const MOST_FILES: usize = 8192 + 512;
/// What the noise began has ended by then: TFTP gives up after some seconds, HTTP after a minute.
const CALM: Duration = Duration::from_secs(90);
/// Files that may be open afterwards beyond those before.
const LEFT_OPEN: usize = 16;
const LOADERS: &str = "/usr/lib/ipxe";

/// Twenty seconds of it.
pub(super) fn short(stage: &Stage<'_>) -> anyhow::Result<()> {
    play(stage, SHORT)
}

/// Ten minutes of it.
pub(super) fn whole(stage: &Stage<'_>) -> anyhow::Result<()> {
    play(stage, WHOLE)
}

fn play(stage: &Stage<'_>, duration: Duration) -> anyhow::Result<()> {
    let program = stage.program("netboot")?;
    let boot_files = stage.boot_files()?;
    let files = Files::read(
        &[&boot_files, Path::new(LOADERS)],
        &["undionly.kpxe", "vmlinuz"],
    )?;
    let mut bridge = Bridge::up().map_err(skip_when_unavailable)?;
    let data_dir = stage.disks().join("server");
    let mut config = ServerConfig::on_bridge(
        &program,
        &data_dir,
        &boot_files,
        stage.logs(),
        bridge.place(),
    );
    config.pool = POOL;
    let server = Server::start(config)?;
    let room = Room::open(&mut bridge)?;
    let visit = |number| {
        room.place()
            .inside(|| Ok(room.machine(number, &files).visit("vmlinuz")))
    };
    visit(1)??;
    let before = Usage::of(&server)?;
    stage.say(&format!("before: {before}"));

    let noise = Noise::start(&mut bridge, SEED)?;
    let (began, mut most, mut visits, mut slowest) =
        (Instant::now(), before, 0_u32, Duration::ZERO);
    while began.elapsed() < duration {
        let came = Instant::now();
        visit(1)?.with_context(|| {
            format!(
                "the control client after {:.0} s",
                began.elapsed().as_secs_f64()
            )
        })?;
        visits += 1;
        slowest = slowest.max(came.elapsed());
        let now = Usage::of(&server)?;
        most = most.larger(now);
        ensure!(
            now.memory <= MOST_MEMORY && now.files <= MOST_FILES,
            "the server has {now}; {MOST_MEMORY} KiB and {MOST_FILES} files are allowed"
        );
        std::thread::sleep(EVERY.saturating_sub(came.elapsed()));
    }
    let (frames, requests) = noise.sent();
    drop(noise);
    stage.milestone(&format!(
        "{frames} frames and {requests} HTTP connections of noise; {visits} visits of the control \
         client, the slowest {:.1} s; at most {most}",
        slowest.as_secs_f64()
    ));

    let calm = Instant::now();
    let mut after = Usage::of(&server)?;
    while after.files > before.files + LEFT_OPEN && calm.elapsed() < CALM {
        std::thread::sleep(EVERY);
        after = Usage::of(&server)?;
    }
    stage.say(&format!(
        "{:.0} s after the noise: {after}",
        calm.elapsed().as_secs_f64()
    ));
    ensure!(
        after.files <= before.files + LEFT_OPEN,
        "{} files are still open, {} were before the noise",
        after.files,
        before.files
    );
    // A card that the server never saw: the noise has not used the pool up.
    visit(2)?.context("a new machine after the noise")?;
    Ok(())
}

/// What a server holds.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// Resident memory, KiB.
    memory: u64,
    /// Open files and sockets.
    files: usize,
}

impl Usage {
    fn of(server: &Server) -> anyhow::Result<Self> {
        let process = Path::new("/proc").join(server.pid().to_string());
        let status = fs::read_to_string(process.join("status")).context("has the server ended?")?;
        let memory = status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .context("/proc has no VmRSS")?;
        let files = fs::read_dir(process.join("fd"))?.count();
        Ok(Self { memory, files })
    }

    fn larger(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            files: self.files.max(other.files),
        }
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} KiB in memory, {} open files",
            self.memory, self.files
        )
    }
}
