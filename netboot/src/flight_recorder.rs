//! The time line of each machine: DHCP, TFTP, HTTP, beacon, and where it stopped.
//!
//! Invariants: bounded in memory and on disk, whoever sends what; recording never waits for the
//! disk and never fails the thing it records.
//!
//! Not here: names of machines other than their cards; the caller resolves those.

use std::{
    collections::{HashMap, VecDeque},
    net::Ipv4Addr,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protocol::dhcp::MacAddress;
use rusqlite::{Connection, params};
use serde::Serialize;

/// Events kept of a machine.
const EVENTS_OF_A_MACHINE: usize = 200;
/// Machines kept; past it the one silent for longest goes.
const MACHINES: usize = 2_000;
/// Events that may wait for the disk; more are kept in memory only.
const WAITING: usize = 4_096;
/// Events kept on disk; the oldest go first.
const ON_DISK: i64 = 200_000;
/// Events older than this are deleted at start.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Loaders told that are remembered, and for how long.
const TOLD: usize = 256;
const TOLD_MS: u64 = 30_000;

/// Which part of a boot an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// An address and a file name.
    Dhcp,
    /// A loader.
    Tftp,
    /// Script, kernel, initial file system.
    Http,
    /// The agent speaks.
    Beacon,
}

impl Stage {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Dhcp, "dhcp"),
        (Self::Tftp, "tftp"),
        (Self::Http, "http"),
        (Self::Beacon, "beacon"),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(stage, _)| *stage == self)
            .map_or("dhcp", |(_, name)| name)
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(stage, _)| *stage)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) at: u64,
    /// Which part.
    pub(crate) stage: Stage,
    /// True when the machine cannot go on from here.
    pub(crate) trouble: bool,
    /// A sentence.
    pub(crate) text: String,
}

/// What is known of one machine's boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Timeline {
    /// Its card.
    pub(crate) mac: MacAddress,
    /// Oldest first.
    pub(crate) events: Vec<Event>,
    /// Where it stopped and why, if it did.
    pub(crate) diagnosis: Option<String>,
}

/// The recorder.
pub(crate) struct FlightRecorder {
    memory: Mutex<Memory>,
    disk: Option<Disk>,
}

/// The way to the disk: dropping the sender ends the thread once everything is written.
struct Disk {
    sender: Option<SyncSender<(MacAddress, Event)>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Memory {
    machines: HashMap<MacAddress, VecDeque<Event>>,
    addresses: HashMap<Ipv4Addr, MacAddress>,
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
        }
    }

    /// A recorder on the state database.
    pub(crate) fn open(path: &Path) -> Result<Self, RecorderError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A power cut may cost the last events, which nobody was told of.
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS flight_event (
                 mac TEXT NOT NULL,
                 at INTEGER NOT NULL, -- milliseconds since 1970-01-01 UTC
                 stage TEXT NOT NULL,
                 trouble INTEGER NOT NULL,
                 text TEXT NOT NULL
             ) STRICT;
             CREATE INDEX IF NOT EXISTS flight_event_at ON flight_event (at);",
        )?;
        let oldest = now_ms().saturating_sub(u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX));
        connection.execute("DELETE FROM flight_event WHERE at < ?1", [signed(oldest)])?;
        let mut recorder = Self::in_memory();
        recorder.load(&connection)?;
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("flight-recorder".into())
            .spawn(move || write_events(connection, &receiver))?;
        recorder.disk = Some(Disk {
            sender: Some(sender),
            thread: Some(thread),
        });
        Ok(recorder)
    }

    fn load(&self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let mut query = connection.prepare(
            "SELECT mac, at, stage, trouble, text FROM
               (SELECT rowid AS number, * FROM flight_event ORDER BY rowid DESC LIMIT 100000)
             ORDER BY number",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let (mac, stage): (String, String) = (row.get(0)?, row.get(2)?);
            let (Ok(mac), Some(stage)) = (mac.parse(), Stage::of(&stage)) else {
                continue;
            };
            let at = u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default();
            let event = Event {
                at,
                stage,
                trouble: row.get(3)?,
                text: row.get(4)?,
            };
            self.lock().add(mac, event);
        }
        Ok(())
    }

    /// Records an event now.
    pub(crate) fn record(&self, mac: MacAddress, stage: Stage, trouble: bool, text: String) {
        if trouble {
            log::warn!("{mac}: {text}");
        } else {
            log::info!("{mac}: {text}");
        }
        let event = Event {
            at: now_ms(),
            stage,
            trouble,
            text,
        };
        self.lock().add(mac, event.clone());
        if let Some(sender) = self.disk.as_ref().and_then(|disk| disk.sender.as_ref()) {
            // Full: the disk is slower than the machines. The event is in memory.
            let _ = sender.try_send((mac, event));
        }
    }

    /// Remembers which machine has an address, so that its TFTP and HTTP requests are known.
    pub(crate) fn granted(&self, mac: MacAddress, address: Ipv4Addr) {
        let mut memory = self.lock();
        if memory.addresses.len() >= MACHINES * 4 {
            memory.addresses.clear();
        }
        memory.addresses.insert(address, mac);
    }

    /// The machine that was granted an address last.
    pub(crate) fn machine_at(&self, address: Ipv4Addr) -> Option<MacAddress> {
        self.lock().addresses.get(&address).copied()
    }

    /// Remembers which machine was told to fetch which loader.
    pub(crate) fn told(&self, mac: MacAddress, loader: &str) {
        let mut memory = self.lock();
        memory.told.push_back((now_ms(), mac, loader.to_owned()));
        if memory.told.len() > TOLD {
            memory.told.pop_front();
        }
    }

    /// The one machine that can be asking for a loader from an address that is nobody's: behind
    /// address translation a machine does not have its own. `None` when it could be several.
    pub(crate) fn machine_told(&self, loader: &str) -> Option<MacAddress> {
        let memory = self.lock();
        let since = now_ms().saturating_sub(TOLD_MS);
        let mut machines = memory
            .told
            .iter()
            .filter(|(at, _, told)| *at >= since && *told == loader)
            .map(|(_, mac, _)| *mac);
        let first = machines.next()?;
        machines.all(|other| other == first).then_some(first)
    }

    /// The machine's time line.
    pub(crate) fn timeline(&self, mac: MacAddress) -> Timeline {
        let events: Vec<Event> = self
            .lock()
            .machines
            .get(&mac)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let diagnosis = diagnose(&events, now_ms());
        Timeline {
            mac,
            events,
            diagnosis,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Each change is one insertion: a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has said so; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

impl Memory {
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
        if events.len() == EVENTS_OF_A_MACHINE {
            events.pop_front();
        }
        events.push_back(event);
    }
}

/// Where the last boot stopped, in a sentence; `None` while it goes on or when it arrived.
fn diagnose(events: &[Event], now: u64) -> Option<String> {
    const QUIET_MS: u64 = 60_000;
    let last = events.last()?;
    if last.trouble {
        return Some(last.text.clone());
    }
    if now.saturating_sub(last.at) < QUIET_MS {
        return None;
    }
    let reached = |text: &str| {
        events
            .iter()
            .rev()
            .take(20)
            .any(|event| event.text.contains(text))
    };
    match last.stage {
        Stage::Beacon => None,
        Stage::Dhcp if reached(" and the file ") => Some(
            "the machine was given an address and a file name and fetched nothing: it took another \
             server's answer, or TFTP or HTTP to this server is blocked"
                .to_owned(),
        ),
        Stage::Dhcp => Some(
            "the machine was given an address and asked for no boot file: network boot is not \
             what it was started for"
                .to_owned(),
        ),
        Stage::Tftp => Some(
            "the first file was fetched and nothing after it: the firmware refused to start it \
             (Secure Boot), or it found no way back to this server"
                .to_owned(),
        ),
        Stage::Http if reached("its local disk") => None,
        Stage::Http => Some(
            "the boot files were fetched and the agent never spoke: the kernel did not start, or \
             has no driver for the network card"
                .to_owned(),
        ),
    }
}

impl std::fmt::Display for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut before = None;
        for event in &self.events {
            let since = before.map_or(0, |before| event.at.saturating_sub(before));
            before = Some(event.at);
            writeln!(
                f,
                "{}  +{}.{:03} s  {:6}  {}{}",
                clock(event.at),
                since / 1000,
                since % 1000,
                event.stage.name(),
                if event.trouble { "! " } else { "" },
                event.text
            )?;
        }
        match &self.diagnosis {
            Some(diagnosis) => writeln!(f, "Diagnosis: {diagnosis}."),
            None => Ok(()),
        }
    }
}

/// Time of day, UTC.
fn clock(at: u64) -> String {
    let seconds = at / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

fn write_events(mut connection: Connection, receiver: &Receiver<(MacAddress, Event)>) {
    let mut since_trimmed = 0;
    while let Ok(first) = receiver.recv() {
        let batch: Vec<_> = std::iter::once(first)
            .chain(receiver.try_iter().take(500))
            .collect();
        since_trimmed += batch.len();
        let trim = since_trimmed >= 1000;
        if trim {
            since_trimmed = 0;
        }
        if let Err(error) = write_batch(&mut connection, &batch, trim) {
            log::warn!(
                "{} flight recorder events are in memory only: {error}",
                batch.len()
            );
        }
    }
}

fn write_batch(
    connection: &mut Connection,
    batch: &[(MacAddress, Event)],
    trim: bool,
) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    for (mac, event) in batch {
        transaction
            .prepare_cached("INSERT INTO flight_event (mac, at, stage, trouble, text) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                mac.to_string(),
                signed(event.at),
                event.stage.name(),
                event.trouble,
                event.text
            ])?;
    }
    if trim {
        // Row numbers only grow, because the newest row is never deleted.
        transaction.execute(
            "DELETE FROM flight_event
             WHERE rowid <= (SELECT max(rowid) FROM flight_event) - ?1",
            [ON_DISK],
        )?;
    }
    transaction.commit()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u8) -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, number])
    }

    fn event(stage: Stage, trouble: bool, text: &str) -> Event {
        Event {
            at: 1_000,
            stage,
            trouble,
            text: text.to_owned(),
        }
    }

    #[test]
    fn trouble_is_the_diagnosis_at_once() {
        let recorder = FlightRecorder::in_memory();
        recorder.record(
            mac(1),
            Stage::Dhcp,
            true,
            "nothing serves arch 6".to_owned(),
        );
        let timeline = recorder.timeline(mac(1));
        assert_eq!(timeline.diagnosis.as_deref(), Some("nothing serves arch 6"));
        assert!(
            timeline
                .to_string()
                .ends_with("! nothing serves arch 6\nDiagnosis: nothing serves arch 6.\n")
        );
    }

    #[test]
    fn silence_after_the_first_file_is_diagnosed_only_after_a_while() {
        let events = [event(Stage::Tftp, false, "fetched snponly.efi")];
        assert_eq!(diagnose(&events, 2_000), None);
        let later = diagnose(&events, 100_000).expect("a diagnosis");
        assert!(later.contains("Secure Boot"));
    }

    #[test]
    fn a_loader_asked_for_from_nowhere_is_the_machines_that_was_told_if_it_is_one() {
        let recorder = FlightRecorder::in_memory();
        recorder.told(mac(1), "snponly.efi");
        recorder.told(mac(1), "snponly.efi");
        recorder.told(mac(2), "undionly.kpxe");
        assert_eq!(recorder.machine_told("snponly.efi"), Some(mac(1)));
        recorder.told(mac(3), "snponly.efi");
        assert_eq!(recorder.machine_told("snponly.efi"), None);
    }

    #[test]
    fn a_later_run_knows_the_events_of_an_earlier_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.sqlite");
        let recorder = FlightRecorder::open(&path).expect("a database");
        for number in 0..1500 {
            recorder.record(mac(1), Stage::Http, number == 1499, number.to_string());
        }
        let before = recorder.timeline(mac(1));
        drop(recorder);
        let after = FlightRecorder::open(&path)
            .expect("a database")
            .timeline(mac(1));
        assert_eq!(after.diagnosis.as_deref(), Some("1499"));
        assert_eq!(after.events.last(), before.events.last());
    }

    #[test]
    fn a_machine_keeps_its_latest_events_only() {
        let recorder = FlightRecorder::in_memory();
        for number in 0..EVENTS_OF_A_MACHINE + 5 {
            recorder.record(mac(1), Stage::Dhcp, false, number.to_string());
        }
        let events = recorder.timeline(mac(1)).events;
        assert_eq!(events.len(), EVENTS_OF_A_MACHINE);
        assert_eq!(events[0].text, "5");
    }
}
