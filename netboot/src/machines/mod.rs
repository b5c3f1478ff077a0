//! The machines that ever sent a beacon: who is who, what they are called, where they are now.
//!
//! Invariant: what is in memory is in the database too, but for the time of the last beacon and
//! what goes with it, which is written at most once a minute. What is *not* here: how a beacon is
//! matched to a machine (`identity`), what a machine has to do (`jobs`).

mod identity;
mod naming;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use backup::hardware::Inventory;
use protocol::api::MachineView;
use protocol::beacon::{AgentState, Beacon};
use protocol::dhcp::MacAddress;
use rusqlite::params;
use uuid::Uuid;

use self::identity::{Match, is_sane_uuid};
pub(crate) use self::naming::NameError;
use crate::state::{Database, StateError, from_json, integer, now, to_json, unsigned};

/// How many machines are remembered; a flood of made-up beacons fills no more than this.
const MAX_MACHINES: usize = 10_000;
/// After this many seconds without a word a machine is taken to have left the environment.
const GONE_AFTER: u64 = 60;
/// A beacon that says nothing new is written at most this often, in seconds.
const WRITE_EVERY: u64 = 60;

/// A machine that is not taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// There are too many already.
    #[error("{MAX_MACHINES} machines are known and this one is new; no more are taken")]
    TooMany,
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A machine as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    id: String,
    host_name: Option<String>,
    inventory: Inventory,
    agent_state: AgentState,
    error: Option<String>,
    pairing_code: String,
    boot_id: String,
    since_link_ms: Option<u64>,
    /// The card it booted from, since this server started.
    boot_mac: Option<String>,
    last_beacon: u64,
    /// It said good-bye: it restarts or switches off after its job.
    left: bool,
    written_at: u64,
}

impl Machine {
    fn of(id: String, host_name: Option<String>, beacon: &Beacon, now: u64) -> Self {
        Self {
            id,
            host_name,
            inventory: beacon.inventory.clone(),
            agent_state: beacon.state,
            error: beacon.error.clone(),
            pairing_code: beacon.pairing_code.clone(),
            boot_id: beacon.boot_id.clone(),
            since_link_ms: beacon.since_link_ms,
            boot_mac: beacon.boot_mac.clone(),
            last_beacon: now,
            left: false,
            written_at: 0,
        }
    }

    /// Whether a person would see no difference but the time.
    fn says_the_same_as(&self, other: &Self) -> bool {
        let timeless = |machine: &Self| Self {
            last_beacon: 0,
            written_at: 0,
            ..machine.clone()
        };
        timeless(self) == timeless(other)
    }

    fn view(&self, now: u64) -> MachineView {
        let here = !self.left && now.saturating_sub(self.last_beacon) <= GONE_AFTER;
        MachineView {
            id: self.id.clone(),
            name: self.name(),
            state: here.then_some(self.agent_state),
            error: self.error.clone(),
            pairing_code: here.then(|| self.pairing_code.clone()),
            last_beacon: self.last_beacon,
            since_link_ms: self.since_link_ms,
            next_boot: None,
            inventory: self.inventory.clone(),
        }
    }

    fn name(&self) -> String {
        naming::name_of(
            &self.id,
            self.host_name.as_deref(),
            &self.inventory.identity,
        )
    }
}

/// What a beacon brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The server's id of the machine.
    pub(crate) id: String,
    /// What the server calls it.
    pub(crate) name: String,
    /// Whether it is the first beacon since the machine was started.
    pub(crate) new_boot: bool,
    /// When it was last heard of before this beacon: seconds since 1970-01-01 UTC.
    pub(crate) heard_before: Option<u64>,
}

/// All machines.
pub(crate) struct Machines {
    database: Arc<Database>,
    known: RwLock<HashMap<String, Machine>>,
    limit: usize,
}

impl Machines {
    /// Reads what earlier runs wrote.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be read.
    pub(crate) fn load(database: Arc<Database>) -> Result<Self, StateError> {
        let known = database.with(|connection| {
            let mut query = connection.prepare(
                "SELECT id, host_name, inventory, agent_state, error, pairing_code, boot_id,
                        since_link_ms, last_beacon FROM machine",
            )?;
            let rows = query.query_map([], |row| {
                let last_beacon = unsigned(row.get(8)?);
                Ok(Machine {
                    id: row.get(0)?,
                    host_name: row.get(1)?,
                    inventory: from_json(row, 2)?,
                    agent_state: from_json(row, 3)?,
                    error: row.get(4)?,
                    pairing_code: row.get(5)?,
                    boot_id: row.get(6)?,
                    since_link_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
                    boot_mac: None,
                    last_beacon,
                    left: false,
                    written_at: last_beacon,
                })
            })?;
            rows.map(|machine| machine.map(|machine| (machine.id.clone(), machine)))
                .collect()
        })?;
        Ok(Self {
            database,
            known: RwLock::new(known),
            limit: MAX_MACHINES,
        })
    }

    /// Takes note of a beacon.
    ///
    /// # Errors
    /// [`MachineError`] when there are too many machines or the database cannot be written.
    pub(crate) fn beacon(&self, beacon: &Beacon) -> Result<Seen, MachineError> {
        let now = now();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let candidates = known
            .values()
            .map(|machine| (machine.id.as_str(), &machine.inventory.identity));
        let id = match identity::find(&beacon.inventory.identity, candidates) {
            Match::Known(id) => id.to_owned(),
            Match::New { doubt } => {
                if known.len() >= self.limit {
                    return Err(MachineError::TooMany);
                }
                let id = Uuid::new_v4().to_string();
                if let Some(doubt) = doubt {
                    log::warn!("machine {id} is taken for a new one: {doubt}");
                }
                id
            }
        };
        let before = known.get(&id);
        let host_name = before.and_then(|machine| machine.host_name.clone());
        let heard_before = before.map(|machine| machine.last_beacon);
        let mut machine = Machine::of(id.clone(), host_name, beacon, now);
        let new_boot = before.is_none_or(|before| before.boot_id != machine.boot_id);
        if let Some(before) = before {
            if !new_boot && machine.since_link_ms.is_none() {
                machine.since_link_ms = before.since_link_ms;
            }
            machine.written_at = before.written_at;
        }
        let fresh = before.is_none_or(|before| !machine.says_the_same_as(before));
        if fresh || now.saturating_sub(machine.written_at) >= WRITE_EVERY {
            machine.written_at = now;
            self.write(&machine)?;
        }
        let name = machine.name();
        known.insert(id.clone(), machine);
        Ok(Seen {
            id,
            name,
            new_boot,
            heard_before,
        })
    }

    /// Makes room for a new machine: forgets the one not heard of for longest among those that never
    /// had a job and are not in `backed_up`. False when there is none.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be read or written.
    pub(crate) fn forget_oldest(&self, backed_up: &HashSet<String>) -> Result<bool, StateError> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let with_jobs: HashSet<String> = self.database.with(|connection| {
            let mut query = connection.prepare_cached("SELECT DISTINCT machine FROM job")?;
            let machines = query.query_map([], |row| row.get(0))?;
            machines.collect()
        })?;
        let oldest = known
            .values()
            .filter(|machine| !with_jobs.contains(&machine.id) && !backed_up.contains(&machine.id))
            .min_by_key(|machine| machine.last_beacon)
            .map(|machine| machine.id.clone());
        let Some(oldest) = oldest else {
            return Ok(false);
        };
        // A job that was ordered meanwhile keeps it.
        let sql = "DELETE FROM machine
            WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM job WHERE machine = ?1)";
        let deleted = self
            .database
            .with(|connection| connection.execute(sql, [&oldest]))?;
        if deleted > 0 {
            log::warn!("machine {oldest} is forgotten: too many are known");
            known.remove(&oldest);
        }
        Ok(deleted > 0)
    }

    /// A machine's job was heard of: it is there and works.
    pub(crate) fn works(&self, id: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = known.get_mut(id) {
            machine.agent_state = AgentState::Working;
            machine.last_beacon = now();
        }
    }

    /// A machine said that it leaves the environment.
    pub(crate) fn leaves(&self, id: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = known.get_mut(id) {
            machine.left = true;
        }
    }

    /// A capture found out what the system on the machine calls itself.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written.
    pub(crate) fn set_host_name(&self, id: &str, host_name: &str) -> Result<(), StateError> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Some(machine) = known.get_mut(id) else {
            return Ok(());
        };
        machine.host_name = Some(host_name.to_owned());
        self.write(machine)
    }

    /// All machines, by name.
    pub(crate) fn list(&self) -> Vec<MachineView> {
        let now = now();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut views: Vec<_> = known.values().map(|machine| machine.view(now)).collect();
        views.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        views
    }

    /// What the system on a machine calls itself, if that was ever found out.
    pub(crate) fn host_name(&self, id: &str) -> Option<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id)?.host_name.clone()
    }

    /// What the machine with this id is called; the id itself when there is none.
    pub(crate) fn name(&self, id: &str) -> String {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).map_or_else(|| id.to_owned(), Machine::name)
    }

    /// The card under which the flight recorder keeps a machine's time line: the one it booted
    /// from, else its first.
    pub(crate) fn card(&self, id: &str) -> Option<MacAddress> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let machine = known.get(id)?;
        let macs = &machine.inventory.identity.macs;
        let booted = machine.boot_mac.as_ref().and_then(|mac| mac.parse().ok());
        booted.or_else(|| macs.first().and_then(|mac| mac.parse().ok()))
    }

    /// Whether the machine with this id has this network card.
    pub(crate) fn has_card(&self, id: &str, card: MacAddress) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).is_some_and(|machine| {
            let macs = machine.inventory.identity.macs.iter();
            macs.chain(&machine.boot_mac)
                .any(|mac| mac.parse() == Ok(card))
        })
    }

    /// The machine that a person means by `name`: host name, Ethernet address with any separator,
    /// serial number, or id or at least four characters of its beginning.
    ///
    /// # Errors
    /// [`NameError`] when none or several answer to it.
    pub(crate) fn resolve(&self, name: &str) -> Result<MachineView, NameError> {
        naming::resolve(name, self.list())
    }

    /// The id of the machine that starts with this Ethernet address or SMBIOS UUID, if it is known.
    pub(crate) fn at_boot(&self, mac: MacAddress, uuid: Option<Uuid>) -> Option<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mac = mac.to_string();
        let by_mac = known.values().find(|machine| {
            let macs = &machine.inventory.identity.macs;
            macs.iter().any(|own| own.eq_ignore_ascii_case(&mac))
        });
        let by_uuid = || {
            let uuid = uuid?.to_string();
            let mut same = known.values().filter(|machine| {
                is_sane_uuid(&uuid) && machine.inventory.identity.uuid.as_deref() == Some(&uuid)
            });
            // Several with one UUID: the number says nothing.
            same.next().filter(|_| same.next().is_none())
        };
        by_mac.or_else(by_uuid).map(|machine| machine.id.clone())
    }

    fn write(&self, machine: &Machine) -> Result<(), StateError> {
        self.database.with(|connection| {
            connection
                .prepare_cached(
                    "INSERT INTO machine (id, host_name, inventory, agent_state, error,
                         pairing_code, boot_id, since_link_ms, last_beacon)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                     ON CONFLICT (id) DO UPDATE SET host_name = ?2, inventory = ?3,
                         agent_state = ?4, error = ?5, pairing_code = ?6, boot_id = ?7,
                         since_link_ms = ?8, last_beacon = ?9",
                )?
                .execute(params![
                    machine.id,
                    machine.host_name,
                    to_json(&machine.inventory)?,
                    to_json(&machine.agent_state)?,
                    machine.error,
                    machine.pairing_code,
                    machine.boot_id,
                    machine.since_link_ms.map(integer),
                    integer(machine.last_beacon),
                ])
                .map(drop)
        })
    }
}

#[cfg(test)]
mod tests;
