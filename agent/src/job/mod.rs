//! Doing a job: the seam between the environment, which finds the server and gets work from it, and
//! the engine, which captures and restores.
//!
//! Invariant: a job ends with a [`Summary`] or a [`JobError`], never with the end of the process.
//! What is *not* here: beacons, reports to the server and what happens afterwards ([`crate::beacon`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backup::hardware::Inventory;
use protocol::job::{Job, JobKind};
use protocol::progress::Progress;
use protocol::unlock::{self, VolumeKey};

use crate::net::http::Server;

use error::{Fault, Touched, report};
use platform::Platform;
use server::{ChunkServer, HttpChunkServer};
use tracker::Tracker;

pub(crate) mod encrypted;
pub(crate) mod error;
pub(crate) mod firmware;
pub(crate) mod grow;
pub(crate) mod identity;
pub(crate) mod kernel;
pub(crate) mod loops;
pub(crate) mod mounted;
pub(crate) mod native;
pub(crate) mod own_mounts;
pub(crate) mod platform;
pub(crate) mod server;
pub(crate) mod tracker;

#[cfg(test)]
pub(crate) mod fake;

/// What a job is given.
pub(crate) struct Context {
    /// The server. It is tried again while it is away, until the job is taken back.
    pub(crate) server: Server,
    /// The machine, with every disk that was found when the job began.
    pub(crate) inventory: Inventory,
    /// Set when the operator took the job back: stop at the next safe place.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Where the job says how far it is.
    pub(crate) progress: ProgressSlot,
    /// The machine as the engine works with it.
    pub(crate) platform: Arc<dyn Platform>,
    /// Keys that were given here; others come from the server.
    pub(crate) keys: Vec<VolumeKey>,
}

/// The newest progress of a job: set by the job, read once a second by screen and reports.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProgressSlot(Arc<Mutex<Option<Progress>>>);

impl ProgressSlot {
    /// Says how far the job is.
    pub(crate) fn set(&self, progress: Progress) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }

    /// How far the job is, once it said so.
    pub(crate) fn get(&self) -> Option<Progress> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a job did: one sentence for each fact a person wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary(pub(crate) Vec<String>);

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct JobError {
    /// What, where, expected and found, whether the disk was touched, what to do next.
    pub(crate) reason: String,
    /// The word for programs, see [`protocol::job::JobReport::Failed`].
    pub(crate) code: String,
}

/// What capture and restore work with.
pub(crate) struct Engine<'a> {
    /// Keeps restore points.
    pub(crate) server: &'a dyn ChunkServer,
    /// The machine.
    pub(crate) platform: &'a dyn Platform,
    /// What the machine is made of.
    pub(crate) inventory: &'a Inventory,
    /// The keys of encrypted volumes that a capture opens.
    pub(crate) keys: &'a [VolumeKey],
    /// Set when the operator took the job back.
    pub(crate) cancelled: &'a AtomicBool,
    /// Counts what is done.
    pub(crate) tracker: Tracker<'a>,
    /// Whether a restore reads everything again that it has written. Every byte is checked before
    /// it is written, and superblocks and tables are always read again; this is for disks that are
    /// not trusted, and costs the time of reading them once.
    pub(crate) read_back: bool,
}

impl Engine<'_> {
    /// Ends the work at a safe place when the operator took the job back.
    ///
    /// # Errors
    /// [`Fault::Cancelled`].
    pub(crate) fn check_cancelled(&self) -> Result<(), Fault> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Fault::Cancelled);
        }
        Ok(())
    }
}

/// Threads for work that keeps cores busy: one for each, within the memory bound.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(16)
}

/// Does the job.
///
/// # Errors
/// [`JobError`] with everything a person needs to know.
pub(crate) fn run(job: &Job, context: &Context) -> Result<Summary, JobError> {
    let server = HttpChunkServer::new(&context.server, job);
    let keys = keys(job, context, &server).map_err(|fault| report(&fault, Touched::ReadOnly))?;
    let engine = Engine {
        server: &server,
        keys: &keys,
        platform: context.platform.as_ref(),
        inventory: &context.inventory,
        cancelled: &context.cancelled,
        tracker: Tracker::new(&context.progress),
        read_back: false,
    };
    match &job.kind {
        JobKind::Capture { restore_point, .. } => {
            crate::capture::capture(&engine, restore_point, job.kind.purpose())
        }
        JobKind::Restore {
            restore_point,
            choices,
            ..
        } => crate::restore::restore(&engine, restore_point, choices),
    }
    .map(Summary)
}

/// The keys that the job needs: those that were given here, and those that the server has for it.
fn keys(job: &Job, context: &Context, server: &dyn ChunkServer) -> Result<Vec<VolumeKey>, Fault> {
    let mut keys = context.keys.clone();
    if let JobKind::Capture { unlock, .. } = &job.kind
        && !unlock.is_empty()
    {
        let asked = server.keys();
        keys.extend(asked.map_err(Fault::server("asking for the keys of encrypted volumes"))?);
    }
    if !keys.is_empty() {
        crate::at_need::bring(server)?;
    }
    unlock::check(&keys).map_err(|error| Fault::NotAsPlanned(error.to_string()))?;
    Ok(keys)
}
