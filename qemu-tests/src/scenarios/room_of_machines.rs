//! Two hundred machines switched on at the same moment, as after a power cut: all are served, and none
//! waits much longer than another.

use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::path::Path;

use super::real_network::skip_when_unavailable;
use super::stage::Stage;
use crate::lab::namespace::Bridge;
use crate::lab::room::{Boot, Files, POOL, Room};
use crate::lab::server::{Server, ServerConfig};

const MACHINES: u16 = 200;
/// The server's line.
const LINE: &str = "1gbit";
/// The slowest may take this much longer than the fastest.
const FAIR: f64 = 3.0;
/// Where Debian's package has the loaders that the boot folder lacks.
const LOADERS: &str = "/usr/lib/ipxe";
/// The files of a BIOS machine's boot.
const FILES: [&str; 3] = ["undionly.kpxe", "vmlinuz", "initramfs"];

pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let program = stage.program("netboot")?;
    let boot_files = stage.boot_files()?;
    let files = Files::read(&[&boot_files, Path::new(LOADERS)], &FILES)?;
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
    // Without a limit, the first machines are through before the last are switched on.
    bridge
        .limit_last_cable(LINE)
        .map_err(skip_when_unavailable)?;
    // Outside of what counts: the files are read from the disk, once.
    room.place()
        .inside(|| Ok(room.machine(MACHINES, &files).boot()))??;

    stage.say(&format!(
        "{MACHINES} machines are switched on together, on a line of {LINE}"
    ));
    let boots = Mutex::new(Vec::new());
    let together = Barrier::new(usize::from(MACHINES));
    let began = Instant::now();
    room.place().inside(|| {
        std::thread::scope(|scope| {
            for number in 0..MACHINES {
                let (room, files, boots) = (&room, &files, &boots);
                let together = &together;
                scope.spawn(move || {
                    let mut machine = room.machine(number, files);
                    // One that comes to an empty line is through before the others are on: that
                    // would say nothing about how the server shares it.
                    together.wait();
                    let boot = machine.boot();
                    let mut boots = boots.lock().unwrap_or_else(PoisonError::into_inner);
                    boots.push((number, boot));
                });
            }
        });
        Ok(())
    })?;
    let whole = began.elapsed();
    let boots = boots.into_inner().unwrap_or_else(PoisonError::into_inner);
    let boots: Result<Vec<Boot>, _> = boots
        .into_iter()
        .map(|(number, boot)| boot.with_context(|| format!("machine {number}")))
        .collect();
    judge(stage, &boots?, whole)?;
    let known = server.machines()?.len();
    ensure!(
        known > usize::from(MACHINES),
        "the server knows {known} machines of {MACHINES}"
    );
    Ok(())
}

fn judge(stage: &Stage<'_>, boots: &[Boot], whole: Duration) -> anyhow::Result<()> {
    ensure!(
        boots.len() == usize::from(MACHINES),
        "{} machines came back",
        boots.len()
    );
    let addresses: BTreeSet<_> = boots.iter().map(|boot| boot.address).collect();
    ensure!(addresses.len() == boots.len(), "machines share addresses");
    let steps = boots.first().context("no machine")?.steps.iter();
    for (index, (name, _)) in steps.enumerate() {
        let mut at: Vec<_> = boots
            .iter()
            .map(|boot| boot.steps[index].1.as_secs_f64())
            .collect();
        at.sort_by(f64::total_cmp);
        stage.say(&format!(
            "{name:22} first {:6.2} s, middle {:6.2} s, last {:6.2} s",
            at[0],
            at[at.len() / 2],
            at[at.len() - 1]
        ));
    }
    let took = boots.iter().map(|boot| boot.took().as_secs_f64());
    let fastest = took.clone().fold(f64::INFINITY, f64::min);
    let slowest = took.fold(0.0, f64::max);
    stage.milestone(&format!(
        "all {MACHINES} booted in {:.1} s; fastest {fastest:.2} s, slowest {slowest:.2} s, {:.2} times",
        whole.as_secs_f64(),
        slowest / fastest
    ));
    ensure!(
        slowest <= FAIR * fastest,
        "the slowest machine took {slowest:.2} s, the fastest {fastest:.2} s; {FAIR} times are allowed"
    );
    Ok(())
}
