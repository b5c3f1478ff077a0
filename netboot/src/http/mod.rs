//! HTTP: boot files, the machines' API and the operators' API.
//!
//! Machines come over TCP, operators over the control socket, whose file permissions are the
//! access control until there are log-ons. What is *not* here: the types on the wire
//! (`protocol::api`), what they stand for (`machines`, `jobs`, `store`).

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use backup::manifest::RestorePointId;
use protocol::api::MachineView;
use protocol::dhcp::MacAddress;
use uuid::Uuid;

use crate::boot_policy::{AtBoot, BootDecision, MachineDirectory, MachineState};
use crate::flight_recorder::FlightRecorder;
use crate::jobs::Jobs;
use crate::machines::Machines;
use crate::next_boot::NextBoots;
use crate::state::{Database, StateError, now};
use crate::store::{Store, StoreError};

pub(crate) mod agent_api;
mod answer;
pub(crate) mod boot_api;
pub(crate) mod boot_files;
pub(crate) mod import_api;
pub(crate) mod operator_api;
mod plan_api;
mod send_share;
pub(crate) mod server;
pub(crate) mod silent_jobs;
pub(crate) mod upkeep_api;

#[cfg(test)]
mod tests;

/// Who sent a request: an extension of each request that came over TCP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) std::net::SocketAddr);

/// What both APIs work on.
pub(crate) struct Recovery {
    /// Chunks and restore points.
    pub(crate) store: Store,
    /// Machines.
    pub(crate) machines: Machines,
    /// Jobs.
    pub(crate) jobs: Jobs,
    /// What machines boot next.
    pub(crate) next_boots: NextBoots,
    /// The time lines.
    pub(crate) recorder: Arc<FlightRecorder>,
    /// When this server started.
    pub(crate) started: Instant,
    /// Held while a job is created, while a restore point is removed and while an image is made of one:
    /// each of them sees the others.
    pub(crate) choosing: Mutex<()>,
    /// Captures that ran when this server started.
    before_start: HashSet<RestorePointId>,
}

/// Why the server's state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoveryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database.
    #[error(transparent)]
    State(#[from] StateError),
}

/// An id for a restore point that is not given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewIdError {
    /// It is in use: two were asked for in one second, and chance made them the same.
    #[error("the restore point {id} exists already; try again")]
    Exists {
        /// The id.
        id: String,
    },
    /// The database.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Recovery {
    /// An id that says when, in UTC, and that no other restore point has.
    ///
    /// # Errors
    /// [`NewIdError`].
    pub(crate) fn new_restore_point(&self) -> Result<RestorePointId, NewIdError> {
        let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let random = Uuid::new_v4().simple().to_string();
        let text = format!("{now}-{}", random.get(..4).unwrap_or("0000"));
        let id = RestorePointId::try_from(text);
        let id = id.map_err(|error| NewIdError::Exists { id: error.found })?;
        let reserved = self.jobs.unfinished_captures()?;
        if self.store.restore_points.contains(&id) || reserved.contains(&id) {
            return Err(NewIdError::Exists { id: id.to_string() });
        }
        Ok(id)
    }

    /// Opens store and state of a data directory, whose lock the caller holds, and tidies up after
    /// captures that nobody will go on with.
    ///
    /// # Errors
    /// [`RecoveryError`] when something cannot be read or repaired.
    pub(crate) fn open(
        data_directory: &Path,
        recorder: Arc<FlightRecorder>,
    ) -> Result<Self, RecoveryError> {
        let database = Arc::new(Database::open(&data_directory.join("state.sqlite"))?);
        let store = Store::open(data_directory)?;
        let machines = Machines::load(Arc::clone(&database))?;
        let next_boots = NextBoots::load(Arc::clone(&database))?;
        let jobs = Jobs::new(database);
        let unfinished = jobs.unfinished_captures()?;
        store.restore_points.discard_staging_except(&unfinished);
        let before_start = jobs.running_captures()?;
        for capture in &before_start {
            store.chunks.claim_all(capture);
        }
        let (chunks, bytes) = store.chunks.size();
        log::info!(
            "store: restore points: {}, chunks: {chunks} in {}",
            store.restore_points.list().len(),
            backup::units::HumanBytes(bytes)
        );
        Ok(Self {
            store,
            machines,
            jobs,
            next_boots,
            recorder,
            started: Instant::now(),
            choosing: Mutex::new(()),
            before_start,
        })
    }

    /// Captures that ran when this server started: what they rely on is not known.
    pub(crate) const fn captures_before_start(&self) -> &HashSet<RestorePointId> {
        &self.before_start
    }

    /// Whether this capture runs.
    pub(crate) fn capture_runs(&self, id: &RestorePointId) -> bool {
        self.jobs
            .running_captures()
            .is_ok_and(|running| running.contains(id))
    }
}

impl MachineDirectory for Recovery {
    fn at_boot(&self, mac: MacAddress, uuid: Option<Uuid>) -> AtBoot {
        let (card, machine) = (mac.to_string(), self.machines.at_boot(mac, uuid));
        let names: Vec<&str> = machine.iter().chain([&card]).map(String::as_str).collect();
        let next = self.next_boots.of(&names, now());
        AtBoot {
            state: self.boot_state(mac, machine.as_deref()),
            next: next.map(|next| next.boots),
        }
    }

    fn told(&self, mac: MacAddress, uuid: Option<Uuid>, decision: BootDecision) {
        let (card, machine) = (mac.to_string(), self.machines.at_boot(mac, uuid));
        let names: Vec<&str> = machine.iter().chain([&card]).map(String::as_str).collect();
        // The machine is told all the same: at worst it hears it once more.
        if let Err(error) = self.next_boots.told(&names, decision, now()) {
            log::error!("{mac}: {}", crate::store::chain(&error));
        }
    }
}

impl Recovery {
    /// All machines, by name.
    pub(crate) fn machine_views(&self) -> Vec<MachineView> {
        let now = now();
        let mut views = self.machines.list();
        for view in &mut views {
            let macs = &view.inventory.identity.macs;
            let names: Vec<&str> = [&view.id]
                .into_iter()
                .chain(macs)
                .map(String::as_str)
                .collect();
            view.next_boot = self.next_boots.of(&names, now);
        }
        views
    }

    fn boot_state(&self, mac: MacAddress, machine: Option<&str>) -> MachineState {
        let Some(machine) = machine else {
            return MachineState::Unknown;
        };
        match self.jobs.unfinished(machine) {
            Ok(None) => MachineState::Idle,
            Ok(Some(_)) => MachineState::HasWork,
            Err(error) => {
                // A machine sent to its disk by mistake is found again at its next boot; one held
                // in the environment by mistake is a machine that does not come up.
                log::error!("{mac}: {}", crate::store::chain(&error));
                MachineState::Idle
            }
        }
    }
}
