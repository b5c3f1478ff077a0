//! The beacon: how a machine in the recovery environment says who and what it is.

use backup::hardware::Inventory;
use serde::{Deserialize, Serialize};

use crate::job::Job;

/// What the agent is doing, in one word for lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// It has nothing to do and asks for work.
    Waiting,
    /// It works on a job.
    Working,
    /// Its last job failed; it waits and says so.
    Failed,
}

/// One beacon, sent as JSON by POST to [`crate::api::BEACON`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Version of the agent.
    pub agent_version: String,
    /// Random text, new at every boot of the environment, so that a restart is noticed.
    pub boot_id: String,
    /// Six digits that are also on the machine's screen.
    pub pairing_code: String,
    /// Milliseconds from the network interface having link to this beacon; the first one only.
    pub since_link_ms: Option<u64>,
    /// The Ethernet address the machine booted from, as the boot arguments said.
    pub boot_mac: Option<String>,
    /// What it does.
    pub state: AgentState,
    /// What went wrong, when `state` is `failed`; one or two sentences.
    pub error: Option<String>,
    /// What it is made of.
    pub inventory: Inventory,
}

/// The server's answer to a beacon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeaconReply {
    /// The server's id of the machine.
    pub machine: String,
    /// What the server calls the machine.
    pub name: String,
    /// Work, if there is some: a new job, or the one that was interrupted.
    pub job: Option<Job>,
    /// How many seconds until the next beacon. The server may hold a beacon for some seconds when
    /// there is no work, so that a new job starts at once.
    pub again_in_seconds: u32,
}
