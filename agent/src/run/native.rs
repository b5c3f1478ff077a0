//! The agent as an ordinary program on a running Linux.
//!
//! `join` is a machine of the server like one in the recovery environment; `backup` asks for a capture of
//! this machine and does it. The machine is the same to the server as when it is in the environment: it
//! has the same SMBIOS UUID and Ethernet addresses.
//!
//! Invariant: only the named disks are touched; the system is never restarted or switched off, whatever
//! a job says of afterwards. A signal that ends the program stops the job at the next safe place, and the
//! server hears it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, bail};
use backup::hardware::Inventory;
use nix::sys::signal::{SigSet, Signal};
use protocol::beacon::AgentState;
use protocol::job::{Afterwards, Job, JobKind};
use protocol::unlock::VolumeKey;
use serde::Serialize;

use super::environment::spawn;
use super::work::{self, Machine, Outcome};
use crate::beacon::{Boot, Station};
use crate::hardware::Roots;
use crate::hardware::named::NamedDisk;
use crate::job::native::Native;
use crate::job::{JobError, Summary};
use crate::net::http::Server;

/// Beacons and does jobs; with `once` one job.
///
/// # Errors
/// A disk that is none.
pub(crate) fn join(server: &str, disks: &[String], once: bool) -> anyhow::Result<ExitCode> {
    let stop = Stop::on_signals();
    crate::log::start(false);
    let roots = roots(disks)?;
    let server = Server::new(server);
    let boot = Boot::new().context("no random numbers")?;
    let (station, jobs) = Station::new(server.clone(), boot, None, roots.clone(), Instant::now());
    let station = Arc::new(station);
    beacon(&station);
    loop {
        let job = jobs.recv().context("the beacon ended")?;
        let outcome = take(&job, (&server, &station), &roots, &stop, Vec::new());
        if once || stop.is_wanted() {
            crate::log::flush();
            return Ok(code(&outcome));
        }
    }
}

/// Captures this machine.
///
/// # Errors
/// A disk that is none, and a server that does not want a capture of this machine.
pub(crate) fn backup(
    server: &str,
    disks: &[String],
    keys: Vec<VolumeKey>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let stop = Stop::on_signals();
    crate::log::start(false);
    let roots = roots(disks)?;
    check_sources(&roots)?;
    let server = Server::new(server);
    let boot = Boot::new().context("no random numbers")?;
    let (station, _jobs) = Station::new(server.clone(), boot, None, roots.clone(), Instant::now());
    let station = Arc::new(station);
    let reply = station
        .ask_capture()
        .context("the server does not make a backup of this machine")?;
    let Some(job) = reply.job else {
        bail!("the server gave {} no capture to do", reply.name);
    };
    log::info!("backup of {} to {}", reply.name, server.base());
    beacon(&station);
    let outcome = take(&job, (&server, &station), &roots, &stop, keys);
    crate::log::flush();
    if json {
        let done = Done::new(&job, &reply.name, &outcome);
        println!("{}", serde_json::to_string_pretty(&done)?);
    } else if let Outcome::Done(Summary(sentences)) = &outcome {
        sentences.iter().for_each(|sentence| println!("{sentence}"));
    }
    Ok(code(&outcome))
}

/// What a backup did, as JSON.
#[derive(Debug, Serialize)]
struct Done<'a> {
    restore_point: &'a str,
    job: &'a str,
    machine: &'a str,
    /// `succeeded`, `failed` or `cancelled`.
    state: &'static str,
    summary: &'a [String],
    error: Option<&'a str>,
    error_code: Option<&'a str>,
}

impl<'a> Done<'a> {
    fn new(job: &'a Job, machine: &'a str, outcome: &'a Outcome) -> Self {
        let (state, summary, error, error_code) = match outcome {
            Outcome::Done(Summary(summary)) => ("succeeded", &summary[..], None, None),
            Outcome::Failed(JobError { reason, code }) => (
                "failed",
                &[][..],
                Some(reason.as_str()),
                Some(code.as_str()),
            ),
            Outcome::TakenBack(reason) => (
                "cancelled",
                &[][..],
                Some(reason.as_str()),
                Some("cancelled"),
            ),
        };
        Self {
            restore_point: job.kind.restore_point().as_str(),
            job: &job.id,
            machine,
            state,
            summary,
            error,
            error_code,
        }
    }
}

fn code(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Done(_) => ExitCode::SUCCESS,
        Outcome::Failed(_) | Outcome::TakenBack(_) => ExitCode::FAILURE,
    }
}

/// The machine with the named disks.
fn roots(disks: &[String]) -> anyhow::Result<Roots> {
    let mut roots = Roots::real();
    if disks.is_empty() {
        return Ok(roots);
    }
    let mut named = Vec::with_capacity(disks.len());
    for disk in disks {
        let one = NamedDisk::parse(disk)?;
        if one.disk(&roots.sysfs).is_none() {
            bail!("--disk {disk}: it is no whole disk; name the disk that it is a part of");
        }
        named.push(one);
    }
    roots.named = Some(named);
    Ok(roots)
}

fn native(roots: &Roots, inventory: &Inventory, captures: bool) -> Native {
    let named = roots.named.clone().unwrap_or_default();
    Native::new(named, inventory.firmware, &inventory.architecture, captures)
}

/// Refuses what cannot be captured while the system runs, before the server hears of it.
fn check_sources(roots: &Roots) -> anyhow::Result<()> {
    let inventory = roots.inventory();
    let native = native(roots, &inventory, true);
    for disk in inventory.disks.iter().filter(|disk| !disk.removable) {
        if let Some(reason) = native.refusal(disk)? {
            bail!(reason);
        }
    }
    Ok(())
}

/// Beacons from now on, whatever else happens.
fn beacon(station: &Arc<Station>) {
    let sender = Arc::clone(station);
    spawn("beacon", move || sender.run());
    let watcher = Arc::clone(station);
    spawn("hardware", move || watcher.watch_hardware());
}

fn take(
    job: &Job,
    (server, station): (&Server, &Station),
    roots: &Roots,
    stop: &Stop,
    keys: Vec<VolumeKey>,
) -> Outcome {
    log::info!(
        "job {}: {} of {}",
        job.id,
        job.kind.word(),
        job.kind.restore_point()
    );
    station.set_state(AgentState::Working, None);
    let inventory = roots.inventory();
    let captures = matches!(job.kind, JobKind::Capture { .. });
    let native = native(roots, &inventory, captures);
    let cancelled = Arc::new(AtomicBool::new(false));
    *stop.lock() = Some(Arc::clone(&cancelled));
    let machine = Machine {
        inventory,
        platform: Arc::new(native),
        cancelled,
        keys,
    };
    let outcome = work::work(job, server, machine);
    *stop.lock() = None;
    match &outcome {
        Outcome::Done(_) => {
            station.set_state(AgentState::Waiting, None);
            if job.afterwards != Afterwards::Wait {
                log::info!("this system goes on running");
            }
        }
        Outcome::TakenBack(_) => station.set_state(AgentState::Waiting, None),
        Outcome::Failed(error) => {
            station.set_state(AgentState::Failed, Some(error.reason.clone()));
        }
    }
    outcome
}

/// Ends the program when somebody wants that: by Ctrl-C, or as `kill` does. A job stops at the next safe
/// place; without one, and the second time, the program ends at once.
#[derive(Debug, Default)]
struct Stop {
    wanted: AtomicBool,
    /// What stops the job that is being done.
    job: Mutex<Option<Arc<AtomicBool>>>,
}

impl Stop {
    fn on_signals() -> Arc<Self> {
        let stop = Arc::new(Self::default());
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        // Blocked here, and so in every thread that is started from now on.
        if signals.thread_block().is_err() {
            return stop;
        }
        let heard = Arc::clone(&stop);
        spawn("signals", move || {
            while signals.wait().is_ok() {
                let job = heard.lock().clone();
                match job {
                    Some(job) if !heard.wanted.swap(true, Ordering::Relaxed) => {
                        log::warn!("stopping at the next safe place; once more to stop at once");
                        job.store(true, Ordering::Relaxed);
                    }
                    _ => std::process::exit(1),
                }
            }
        });
        stop
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<AtomicBool>>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}
