//! The environment: drivers, network, beacon, jobs.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use protocol::beacon::AgentState;
use protocol::boot_args::BootArgs;
use protocol::job::{Afterwards, Job};

use super::work::{self, CRASH_MARK, Machine, Outcome};
use crate::beacon::{Boot, Station, WAITING};
use crate::hardware::Roots;
use crate::job::JobError;
use crate::job::kernel::Kernel;
use crate::net::http::Server;
use crate::net::way::{self, Search, Way};
use crate::screen;
use crate::sys::reboot::{Ending, end};

/// How long disks that appear late are waited for, when there is none, from when every driver was
/// loaded.
const LATE_DISKS: Duration = Duration::from_secs(10);
/// How long after every driver was loaded a disk can no longer be late.
const SETTLED: Duration = Duration::from_secs(3);
/// How long no new disk may appear before a job begins.
const QUIET_DISKS: Duration = Duration::from_millis(600);

/// Runs the environment. `after` says how the one before ended, if there was one.
pub(crate) fn run(after: Option<&str>) -> ! {
    // PID 1 blocks its signals, and a child inherits that; tools must not.
    let _ = SigSet::empty().thread_set_mask();
    crate::log::start(true);
    std::panic::set_hook(Box::new(|panic| {
        log::error!("fault in the agent itself: {panic}");
    }));
    let roots = Roots::real();
    let sysfs = roots.sysfs.clone();
    spawn("drivers", move || crate::drivers::watch(&sysfs));

    let line = std::fs::read_to_string(roots.procfs.join("cmdline")).unwrap_or_default();
    let (server, boot_mac) = match BootArgs::parse(&line) {
        Ok(BootArgs { server, mac }) => (server, mac),
        Err(error) => stop(&error.to_string()),
    };
    let boot = match Boot::new() {
        Ok(boot) => boot,
        Err(error) => stop(&format!("no random numbers: {error}")),
    };
    screen::update(|view| {
        view.pairing_code.clone_from(&boot.pairing_code);
        view.server.clone_from(&server);
        view.state = "Looking for the server".to_owned();
    });

    let (ways, found) = sync_channel(4);
    let search = Search {
        server,
        boot_mac: boot_mac.clone(),
        seed: boot.seed,
    };
    let sysfs = roots.sysfs.clone();
    spawn("network", move || way::find(&search, &sysfs, &ways));
    let way = first_way(&found);

    let server = Server::new(&way.server);
    let (station, jobs) = Station::new(server.clone(), boot, boot_mac, roots.clone(), way.link_at);
    let station = Arc::new(station);
    if let Some(how) = after {
        work::settle_crash(&server, &station, how);
    }
    let sender = Arc::clone(&station);
    spawn("beacon", move || sender.run());
    let watcher = Arc::clone(&station);
    spawn("hardware", move || watcher.watch_hardware());
    spawn("ways", move || {
        while let Ok(way) = found.recv() {
            show(&way);
        }
    });
    loop {
        match jobs.recv() {
            Ok(job) => take(&job, &server, &station, &roots),
            Err(_) => stop("the beacon ended"),
        }
    }
}

/// Does a job and what is to be done then.
fn take(job: &Job, server: &Server, station: &Station, roots: &Roots) {
    let restore_point = job.kind.restore_point();
    log::info!("job {}: {} of {restore_point}", job.id, job.kind.word());
    station.set_state(AgentState::Working, None);
    screen::update(|view| {
        view.state = format!("Working: {} of {restore_point}", job.kind.word());
    });
    wait_for_disks(roots);
    match work::work_marked(job, server, machine(roots)) {
        Outcome::Done(_) => match job.afterwards {
            Afterwards::Reboot => leave(Ending::Restart, "restarting"),
            Afterwards::PowerOff => leave(Ending::PowerOff, "switching off"),
            Afterwards::Wait => {
                station.set_state(AgentState::Waiting, None);
                screen::update(|view| view.state = WAITING.to_owned());
            }
        },
        Outcome::TakenBack(reason) => {
            station.set_state(AgentState::Waiting, None);
            screen::update(|view| view.state = format!("{WAITING}. {reason}"));
        }
        Outcome::Failed(JobError { reason, .. }) => {
            screen::update(|view| view.state = format!("FAILED: {reason}"));
            station.set_state(AgentState::Failed, Some(reason));
        }
    }
    log::info!("waiting");
}

/// This machine, all of it.
fn machine(roots: &Roots) -> Machine {
    let inventory = roots.inventory();
    let kernel = Kernel::new(inventory.firmware, &inventory.architecture);
    Machine {
        inventory,
        platform: Arc::new(kernel),
        cancelled: Arc::default(),
        keys: Vec::new(),
    }
}

/// Disks behind slow controllers appear some time after their driver: waits until nothing new came
/// for a while. A machine that has been waiting for work has that behind it.
fn wait_for_disks(roots: &Roots) {
    let began = Instant::now();
    let mut known = crate::hardware::disks::disks(&roots.sysfs).len();
    let mut since = began;
    while began.elapsed() < LATE_DISKS {
        let settled = crate::drivers::settled_for();
        let long_ago = settled > Some(SETTLED);
        let quiet = since.elapsed() >= QUIET_DISKS
            && !crate::hardware::disks::usb_disk_is_coming(&roots.sysfs);
        if settled.is_some() && (quiet || long_ago) && known > 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
        let count = crate::hardware::disks::disks(&roots.sysfs).len();
        if count != known {
            (known, since) = (count, Instant::now());
        }
    }
}

fn first_way(found: &Receiver<Way>) -> Way {
    match found.recv() {
        Ok(way) => {
            show(&way);
            way
        }
        Err(_) => stop("the search for the network ended"),
    }
}

fn show(way: &Way) {
    screen::update(|view| view.address = Some(format!("{} ({})", way.address, way.port)));
}

fn leave(how: Ending, word: &str) {
    log::info!("{word}");
    screen::update(|view| {
        view.state = format!("Done: {word}");
        view.progress = None;
    });
    crate::log::flush();
    let Err(error) = end(how);
    log::error!("{word} failed: {error}; switch the machine off and on by hand");
}

/// Says why the machine can do nothing, and waits for a person.
fn stop(reason: &str) -> ! {
    log::error!("STOPPED: {reason}");
    screen::update(|view| view.state = format!("STOPPED: {reason}"));
    log::info!("waiting");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Starts a thread that works to the end. When it cannot, or faults, the process ends, and PID 1 starts
/// the environment again.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let guarded = move || {
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        if worked.is_err() {
            crate::log::flush();
            std::process::exit(101);
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(guarded)
    {
        log::error!("thread {name} cannot be started: {error}");
        crate::log::flush();
        std::process::exit(101);
    }
}

/// Whether the environment before this one left a job unfinished.
pub(crate) fn unfinished_job() -> Option<String> {
    let text = std::fs::read_to_string(Path::new(CRASH_MARK)).ok()?;
    Some(text.trim().to_owned()).filter(|job| !job.is_empty())
}
