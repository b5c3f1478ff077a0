//! HTTP: boot files, the machines' API and the operators' API.
//!
//! Machines come over TCP, operators over the control socket, whose file permissions are the
//! access control until there are log-ons. What is *not* here: the types on the wire
//! (`protocol::api`), what they stand for (`machines`, `jobs`, `store`).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use protocol::dhcp::MacAddress;
use uuid::Uuid;

use crate::boot_policy::{MachineDirectory, MachineState};
use crate::flight_recorder::FlightRecorder;
use crate::jobs::Jobs;
use crate::machines::Machines;
use crate::state::{Database, StateError};
use crate::store::{Store, StoreError};

pub(crate) mod agent_api;
mod answer;
pub(crate) mod boot_files;
pub(crate) mod operator_api;
pub(crate) mod server;

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
    /// The time lines.
    pub(crate) recorder: Arc<FlightRecorder>,
    /// When this server started.
    pub(crate) started: Instant,
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

impl Recovery {
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
        let jobs = Jobs::new(database);
        let unfinished = jobs.unfinished_captures()?;
        store.restore_points.discard_staging_except(&unfinished);
        let (chunks, bytes) = store.chunks.size();
        log::info!(
            "store: {} restore points, {chunks} chunks in {}",
            store.restore_points.list().len(),
            backup::units::HumanBytes(bytes)
        );
        Ok(Self {
            store,
            machines,
            jobs,
            recorder,
            started: Instant::now(),
        })
    }
}

impl MachineDirectory for Recovery {
    fn boot_state(&self, mac: MacAddress, uuid: Option<Uuid>) -> MachineState {
        let Some(machine) = self.machines.at_boot(mac, uuid) else {
            return MachineState::Unknown;
        };
        match self.jobs.unfinished(&machine) {
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
