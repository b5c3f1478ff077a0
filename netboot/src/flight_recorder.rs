//! The time line of each machine: DHCP, TFTP, HTTP, kernel, beacon, and where it stopped.
//!
//! Invariants: bounded in memory and on disk, whoever sends what; recording never waits for the
//! disk and never fails the thing it records. A client that did not ask for a boot file costs a
//! count and nothing else, unless it is a machine in the middle of a boot.
//!
//! Not here: names of machines other than their cards (the caller resolves those), what happened
//! (`fact`), how events make boots (`boots`) and what follows from them (`diagnosis`).

mod boots;
mod diagnosis;
mod disk;
mod fact;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protocol::dhcp::MacAddress;

pub(crate) use boots::{BootView, EventView, MachineTimeline, Part, Seen, SeenMachine, Timeline};
pub(crate) use diagnosis::Diagnosis;
use disk::Disk;
pub(crate) use fact::{Asker, Decided, Fact, Over, Stage, Stopped, printable};

/// Events kept of a machine.
const EVENTS_OF_A_MACHINE: usize = 200;
/// Machines kept; past it the one silent for longest goes.
const MACHINES: usize = 2_000;
/// Addresses kept; past it the one known for longest goes.
const ADDRESSES: usize = 4 * MACHINES;

/// Loaders told that are remembered, and for how long.
const TOLD: usize = 256;
const TOLD_MS: u64 = 30_000;

/// A client that asks for an address only is taken for a system that this boot started when the
/// boot's last event is no older than this, and for at most so many events in a row.
const SAME_BOOT_MS: u64 = 10 * 60_000;
const SYSTEM_EVENTS: usize = 8;
/// Trouble of clients that are nobody's boot is said at most this often.
const COUNTED_TROUBLE_MS: u64 = 60_000;

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// When it ended, in milliseconds since 1970-01-01 UTC.
    pub(crate) at: u64,
    /// What.
    pub(crate) fact: Fact,
}

/// The recorder.
pub(crate) struct FlightRecorder {
    memory: Mutex<Memory>,
    disk: Option<Disk>,
    /// Answers to clients that did not ask for a boot file.
    counted: AtomicU64,
    counted_trouble_at: AtomicU64,
}

#[derive(Default)]
struct Memory {
    machines: HashMap<MacAddress, VecDeque<Event>>,
    addresses: HashMap<Ipv4Addr, MacAddress>,
    /// The keys of `addresses`, oldest first.
    address_order: VecDeque<Ipv4Addr>,
    /// Who was told which loader when, oldest first.
    told: VecDeque<(u64, MacAddress, String)>,
}

/// The table of events cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecorderError {
    /// The database refused.
    #[error("the flight recorder's table of the state database cannot be used")]
    Database(#[from] rusqlite::Error),
    /// No thread for writing.
    #[error("the flight recorder's thread cannot be started")]
    Thread(#[from] std::io::Error),
}

impl FlightRecorder {
    /// A recorder that forgets when the process ends.
    pub(crate) fn in_memory() -> Self {
        Self {
            memory: Mutex::default(),
            disk: None,
            counted: AtomicU64::new(0),
            counted_trouble_at: AtomicU64::new(0),
        }
    }

    /// A recorder on the state database.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub(crate) fn open(path: &Path) -> Result<Self, RecorderError> {
        let mut recorder = Self::in_memory();
        let mut memory = Memory::default();
        recorder.disk = Some(Disk::open(path, |mac, event| memory.add(mac, event))?);
        recorder.memory = Mutex::new(memory);
        Ok(recorder)
    }

    /// Records a fact now, with what follows from it: the machine's address, the loader it was told.
    pub(crate) fn record(&self, mac: MacAddress, fact: Fact) {
        let event = Event { at: now_ms(), fact };
        let mut memory = self.lock();
        if memory.is_known(mac, &event.fact) {
            return;
        }
        say(mac, &event.fact);
        if let Some(address) = event.fact.address() {
            memory.granted(mac, address);
        }
        if let Some(file) = event.fact.told_file()
            && !file.contains("://")
        {
            memory.told.push_back((event.at, mac, file.to_owned()));
            if memory.told.len() > TOLD {
                memory.told.pop_front();
            }
        }
        // A fetch that goes on is worth no row: its end will have one.
        if let Some(disk) = &self.disk
            && !matches!(event.fact, Fact::FetchBegun { .. })
        {
            disk.send(mac, event.clone());
        }
        memory.add(mac, event);
    }

    /// Records what DHCP did, when it is part of a boot: for a client that asked for a boot file
    /// (`boots`), or one that did so a moment ago. Anything else is counted.
    pub(crate) fn record_dhcp(&self, mac: MacAddress, boots: bool, fact: Fact) {
        if boots || self.lock().is_booting(mac, now_ms()) {
            return self.record(mac, fact);
        }
        self.counted.fetch_add(1, Ordering::Relaxed);
        if let Some(address) = fact.address() {
            self.lock().taken_over(mac, address);
        }
        log::debug!("{mac}: {fact}");
        if fact.trouble() {
            let now = now_ms();
            let before = self.counted_trouble_at.load(Ordering::Relaxed);
            if now.saturating_sub(before) >= COUNTED_TROUBLE_MS {
                self.counted_trouble_at.store(now, Ordering::Relaxed);
                log::warn!("{mac}: {fact} (said once a minute)");
            }
        }
    }

    /// Remembers which machine has an address, so that its TFTP and HTTP requests are known.
    pub(crate) fn granted(&self, mac: MacAddress, address: Ipv4Addr) {
        self.lock().granted(mac, address);
    }

    /// The machine that was granted an address last.
    pub(crate) fn machine_at(&self, address: Ipv4Addr) -> Option<MacAddress> {
        self.lock().addresses.get(&address).copied()
    }

    /// Whether the machine fetched, or asked for, any file within the time given, back from now.
    pub(crate) fn fetched_within(&self, mac: MacAddress, back: Duration) -> bool {
        let back = u64::try_from(back.as_millis()).unwrap_or(u64::MAX);
        let since = now_ms().saturating_sub(back);
        let memory = self.lock();
        let events = memory.machines.get(&mac).into_iter().flatten().rev();
        events
            .take_while(|event| event.at >= since)
            .any(|event| event.fact.stage() != Stage::Dhcp)
    }

    /// The machine that a connection comes from.
    pub(crate) fn machine_of(&self, peer: SocketAddr) -> Option<MacAddress> {
        match peer.ip().to_canonical() {
            IpAddr::V4(address) => self.machine_at(address),
            IpAddr::V6(_) => None,
        }
    }

    /// The one machine that can be asking for a loader from an address that is nobody's: behind
    /// address translation a machine does not have its own, and a proxy gives none. `None` when it
    /// could be several.
    pub(crate) fn machine_told(&self, loader: &str) -> Option<MacAddress> {
        let memory = self.lock();
        let since = now_ms().saturating_sub(TOLD_MS);
        let mut machines = memory
            .told
            .iter()
            .filter(|(at, _, told)| *at >= since && told == loader)
            .map(|(_, mac, _)| *mac);
        let first = machines.next()?;
        machines.all(|other| other == first).then_some(first)
    }

    /// The loaders that this machine's firmware refuses: fetched whole, followed by nothing, though
    /// the firmware came back. The one refused last comes last. To be asked when a firmware's
    /// DISCOVER has come, before the answer to it is recorded.
    pub(crate) fn abandoned_loaders(&self, mac: MacAddress) -> Vec<String> {
        let mut memory = self.lock();
        let events = memory.machines.get_mut(&mac);
        // Asked for each DHCP message of a boot: nothing is copied.
        events.map_or_else(Vec::new, |events| {
            boots::abandoned_loaders(events.make_contiguous())
        })
    }

    /// The boots of a machine with these cards.
    pub(crate) fn timeline(&self, macs: &[MacAddress]) -> Timeline {
        let now = now_ms();
        let (mut views, mut refused_loaders) = (Vec::new(), Vec::new());
        for mac in macs {
            refused_loaders.extend(self.abandoned_loaders(*mac));
            let events = self.events(*mac);
            let boots = boots::boots(&events);
            let last = boots.len().saturating_sub(1);
            for (index, boot) in boots.into_iter().enumerate() {
                let diagnosis = diagnosis::diagnose(boot, index < last, now);
                views.push(boots::view(*mac, boot, diagnosis));
            }
        }
        views.sort_by_key(|boot| boot.began);
        let came_to: Vec<_> = views
            .iter()
            .map(|boot| (boot.began, boot.diagnosis.clone()))
            .collect();
        let diagnosis = diagnosis::diagnose_machine(&came_to);
        Timeline {
            boots: views,
            refused_loaders,
            diagnosis,
        }
    }

    /// Every machine that asked, the last one first; `name` says what a card's machine is called.
    pub(crate) fn seen(&self, name: impl Fn(MacAddress) -> String) -> Seen {
        let macs: Vec<MacAddress> = self.lock().machines.keys().copied().collect();
        let mut machines: Vec<_> = macs
            .into_iter()
            .filter_map(|mac| {
                let timeline = self.timeline(&[mac]);
                let last = timeline.boots.last()?.events.last()?;
                Some(SeenMachine {
                    mac,
                    name: name(mac),
                    boots: timeline.boots.len(),
                    last_at: last.at,
                    last_stage: last.stage,
                    last: last.text.clone(),
                    diagnosis: timeline.diagnosis.clone(),
                })
            })
            .collect();
        machines.sort_by_key(|machine| std::cmp::Reverse(machine.last_at));
        Seen {
            machines,
            others: self.counted.load(Ordering::Relaxed),
        }
    }

    /// The events of a machine, oldest first.
    fn events(&self, mac: MacAddress) -> Vec<Event> {
        let memory = self.lock();
        memory
            .machines
            .get(&mac)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Each change is one insertion: a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(mac: MacAddress, fact: &Fact) {
    if fact.trouble() {
        log::warn!("{mac}: {fact}");
    } else if matches!(fact, Fact::FetchBegun { .. }) {
        log::debug!("{mac}: {fact}");
    } else {
        log::info!("{mac}: {fact}");
    }
}

impl Memory {
    /// A job begins once in a boot, however often the agent asks for it: an answer that was held
    /// back while the agent asked again hands the job out twice.
    ///
    /// An agent that is refused asks again every few seconds and is told the same.
    fn is_known(&self, mac: MacAddress, fact: &Fact) -> bool {
        let mut events = self.machines.get(&mac).into_iter().flatten().rev();
        let job = match fact {
            Fact::JobBegins { job, .. } => job,
            Fact::BeaconRefused { .. } => {
                return events.next().is_some_and(|last| last.fact == *fact);
            }
            _ => return false,
        };
        let mut this_boot = events.take_while(|event| !matches!(event.fact, Fact::Beacon { .. }));
        this_boot.any(
            |event| matches!(&event.fact, Fact::JobBegins { job: earlier, .. } if earlier == job),
        )
    }

    fn add(&mut self, mac: MacAddress, event: Event) {
        if !self.machines.contains_key(&mac) && self.machines.len() >= MACHINES {
            let silent = self
                .machines
                .iter()
                .min_by_key(|(_, events)| events.back().map(|event| event.at))
                .map(|(mac, _)| *mac);
            if let Some(silent) = silent {
                self.machines.remove(&silent);
            }
        }
        let events = self.machines.entry(mac).or_default();
        let ended = match &event.fact {
            Fact::Fetched { file, over, .. } | Fact::FetchStopped { file, over, .. } => {
                Some((file, *over))
            }
            Fact::Probed { file, .. } => Some((file, Over::Tftp)),
            _ => None,
        };
        if let Some((file, over)) = ended {
            let begun = events.iter().rposition(|earlier| {
                matches!(&earlier.fact, Fact::FetchBegun { file: same, over: way, .. }
                    if same == file && *way == over)
            });
            begun.and_then(|index| events.remove(index));
        }
        if events.len() == EVENTS_OF_A_MACHINE {
            events.pop_front();
        }
        events.push_back(event);
    }

    fn granted(&mut self, mac: MacAddress, address: Ipv4Addr) {
        if self.addresses.insert(address, mac).is_none() {
            self.address_order.push_back(address);
        }
        while self.addresses.len() > ADDRESSES {
            let Some(oldest) = self.address_order.pop_front() else {
                return;
            };
            self.addresses.remove(&oldest);
        }
    }

    /// A client that boots nothing has an address now: it is no longer the machine's that had it.
    fn taken_over(&mut self, mac: MacAddress, address: Ipv4Addr) {
        if let Some(holder) = self.addresses.get_mut(&address) {
            *holder = mac;
        }
    }

    /// A machine that is in a boot: what asks for an address there is the system that it started.
    fn is_booting(&self, mac: MacAddress, now: u64) -> bool {
        let Some(events) = self.machines.get(&mac) else {
            return false;
        };
        let lately = |event: &Event| now.saturating_sub(event.at) < SAME_BOOT_MS;
        let of_system = |event: &Event| {
            let asker = event.fact.asker();
            asker.is_some_and(|asker| !asker.boots())
        };
        let row = events.iter().rev().take_while(|event| of_system(event));
        events.back().is_some_and(lately) && row.count() < SYSTEM_EVENTS
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
