//! The beacon: tells the server who and what this machine is, and brings back work.
//!
//! Invariant: a job is handed on once in a boot, however often the server names it; the beacon goes on
//! while a job runs, so that the server sees the machine alive. What is *not* here: doing the job
//! ([`crate::job`]), what happens when it ends ([`crate::run`]).

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backup::hardware::Inventory;
use protocol::api;
use protocol::beacon::{AgentState, Beacon, BeaconReply};
use protocol::job::Job;

use crate::hardware::Roots;
use crate::log::chain;
use crate::net::http::{RequestError, Server};
use crate::screen;

/// The least and the most time between two beacons, whatever the server says.
const LEAST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(60);
/// Waits after beacons that were not answered.
const BACK_OFF_MS: [u64; 5] = [250, 500, 1000, 2000, 5000];
/// How often the hardware is looked at for something new: often while drivers find it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same later, when only a person can change it.
const LOOK_LATER: Duration = Duration::from_secs(5);
/// How long drivers are given to find everything.
const SETTLING: Duration = Duration::from_secs(30);

/// What is random at each boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Tells this boot from others.
    pub(crate) id: String,
    /// Six digits for the screen and the console.
    pub(crate) pairing_code: String,
    /// For transactions of the DHCP clients.
    pub(crate) seed: u64,
}

impl Boot {
    /// From 32 random bytes.
    fn from_bytes(bytes: [u8; 32]) -> Self {
        let (id, rest) = bytes.split_at(16);
        let mut word = [0; 8];
        word.copy_from_slice(&rest[..8]);
        let mut seed = [0; 8];
        seed.copy_from_slice(&rest[8..]);
        Self {
            id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            pairing_code: format!("{:06}", u64::from_le_bytes(word) % 1_000_000),
            seed: u64::from_le_bytes(seed),
        }
    }

    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be read.
    pub(crate) fn new() -> io::Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }
}

#[derive(Debug)]
struct Now {
    state: AgentState,
    error: Option<String>,
    /// When the port got link, until the first beacon has told it.
    link_at: Option<Instant>,
    /// Jobs that were handed on, and those that are not to be done.
    known_jobs: HashSet<String>,
    /// What the server last heard of the hardware.
    told: Option<Inventory>,
}

/// The sender of beacons.
#[derive(Debug)]
pub(crate) struct Station {
    server: Server,
    boot: Boot,
    boot_mac: Option<String>,
    roots: Roots,
    now: Mutex<Now>,
    jobs: Sender<Job>,
    kick: Mutex<Option<Sender<()>>>,
}

impl Station {
    /// A station that has work handed to the receiver.
    pub(crate) fn new(
        server: Server,
        boot: Boot,
        boot_mac: Option<String>,
        roots: Roots,
        link_at: Instant,
    ) -> (Self, Receiver<Job>) {
        let (jobs, taken) = channel();
        let now = Now {
            state: AgentState::Waiting,
            error: None,
            link_at: Some(link_at),
            known_jobs: HashSet::new(),
            told: None,
        };
        let station = Self {
            server,
            boot,
            boot_mac,
            roots,
            now: Mutex::new(now),
            jobs,
            kick: Mutex::default(),
        };
        (station, taken)
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the machine does from now on; the server hears it at once.
    pub(crate) fn set_state(&self, state: AgentState, error: Option<String>) {
        {
            let mut now = self.now();
            now.state = state;
            now.error = error;
        }
        let kick = self.kick.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kick) = kick.as_ref() {
            // Without a loop there is nothing to wake.
            let _ = kick.send(());
        }
    }

    /// Never does this job: it is what ended the agent before.
    pub(crate) fn refuse(&self, job: &str) {
        self.now().known_jobs.insert(job.to_owned());
    }

    /// Sends beacons for ever.
    pub(crate) fn run(&self) -> ! {
        let (kick, kicked) = channel();
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = Some(kick);
        let mut failures = 0;
        loop {
            let wait = match self.send(self.roots.inventory()) {
                Ok(wait) => {
                    failures = 0;
                    wait
                }
                Err(error) => {
                    self.explain(&error);
                    let step = BACK_OFF_MS.get(failures).or(BACK_OFF_MS.last());
                    failures += 1;
                    Duration::from_millis(step.copied().unwrap_or(1000))
                }
            };
            if kicked.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                std::thread::sleep(wait);
            }
            while kicked.try_recv().is_ok() {}
        }
    }

    /// Sends a beacon whenever the hardware has changed: drivers may find disks while the server
    /// holds the last one.
    pub(crate) fn watch_hardware(&self) -> ! {
        let began = Instant::now();
        loop {
            let early = began.elapsed() < SETTLING;
            std::thread::sleep(if early { LOOK_EVERY } else { LOOK_LATER });
            let inventory = self.roots.inventory();
            let changed = self
                .now()
                .told
                .as_ref()
                .is_some_and(|told| *told != inventory);
            if changed && let Err(error) = self.send(inventory) {
                log::debug!("beacon: {}", chain(&error));
            }
        }
    }

    fn explain(&self, error: &RequestError) {
        let trouble = match error {
            // The client speaks of outages in the log.
            RequestError::Unreachable { .. } => {
                "The server does not answer; trying again".to_owned()
            }
            error => {
                let text = chain(error);
                log::error!("the beacon was not accepted: {text}; trying again");
                format!("The server refused this machine: {text}")
            }
        };
        screen::update(|view| view.trouble = Some(trouble));
    }

    fn beacon(&self, inventory: Inventory) -> Beacon {
        let now = self.now();
        let since_link = now.link_at.map(|link_at| link_at.elapsed().as_millis());
        Beacon {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot.id.clone(),
            pairing_code: self.boot.pairing_code.clone(),
            since_link_ms: since_link.and_then(|ms| u64::try_from(ms).ok()),
            boot_mac: self.boot_mac.clone(),
            state: now.state,
            error: now.error.clone(),
            inventory,
        }
    }

    /// Sends one; returns how long to wait until the next.
    fn send(&self, inventory: Inventory) -> Result<Duration, RequestError> {
        let beacon = self.beacon(inventory);
        // Before the answer, which the server may hold: what is new meanwhile is a difference to this.
        self.now().told = Some(beacon.inventory.clone());
        let reply: BeaconReply = self.server.post_json(api::BEACON, &beacon)?;
        let first = self.now().link_at.take().map(|_| beacon.since_link_ms);
        if let Some(since_link) = first {
            log::info!(
                "beacon accepted by {} as {}, {} ms after link",
                self.server.base(),
                reply.name,
                since_link.unwrap_or(0)
            );
            log::info!("pairing code {}", self.boot.pairing_code);
        }
        let idle = first.is_some() && reply.job.is_none();
        self.show(&reply.name, first.is_some());
        if let Some(job) = reply.job {
            self.hand_on(job);
        } else if idle {
            log::info!("waiting");
        }
        let again = Duration::from_secs(reply.again_in_seconds.into());
        Ok(again.clamp(LEAST, MOST))
    }

    /// Asks the server for a capture of this machine; the job is not handed on but returned.
    ///
    /// # Errors
    /// [`RequestError`]: the machine has a job already, or the server does not answer.
    pub(crate) fn ask_capture(&self) -> Result<BeaconReply, RequestError> {
        let beacon = self.beacon(self.roots.inventory());
        let reply: BeaconReply = self.server.post_json(api::CAPTURES, &beacon)?;
        if let Some(job) = &reply.job {
            self.refuse(&job.id);
        }
        Ok(reply)
    }

    fn show(&self, name: &str, first: bool) {
        let now = self.now();
        screen::update(|view| {
            view.machine = Some(name.to_owned());
            view.trouble = None;
            if first && now.state == AgentState::Waiting {
                view.state = WAITING.to_owned();
            }
        });
    }

    fn hand_on(&self, job: Job) {
        if self.now().known_jobs.insert(job.id.clone()) {
            // The receiver lives as long as the process.
            let _ = self.jobs.send(job);
        }
    }
}

/// What a machine without work shows.
pub(crate) const WAITING: &str = "Waiting for work from the server";

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    proptest! {
        #[test]
        fn a_pairing_code_is_always_six_digits(bytes in any::<[u8; 32]>()) {
            let boot = Boot::from_bytes(bytes);
            prop_assert!(boot.pairing_code.len() == 6);
            prop_assert!(boot.pairing_code.bytes().all(|byte| byte.is_ascii_digit()));
            prop_assert!(boot.id.len() == 32);
        }
    }

    #[test]
    fn two_boots_differ() {
        assert_ne!(Boot::new().unwrap(), Boot::new().unwrap());
    }

    #[test]
    fn a_job_is_handed_on_once() {
        let (station, jobs) = Station::new(
            Server::new("http://127.0.0.1:9"),
            Boot::from_bytes([0; 32]),
            None,
            Roots::real(),
            Instant::now(),
        );
        let job = |id: &str| -> Job {
            let text = format!(
                r#"{{"id":"{id}","kind":"capture","restore_point":"rp-1","afterwards":"wait"}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        station.refuse("crashed");
        for id in ["a", "a", "crashed", "b", "a"] {
            station.hand_on(job(id));
        }
        let ids: Vec<_> = jobs.try_iter().map(|job| job.id).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
