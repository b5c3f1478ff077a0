//! Doing a job: the seam between the environment, which finds the server and gets work from it, and
//! the engine, which captures and restores.
//!
//! Invariant: a job ends with a [`Summary`] or a [`JobError`], never with the end of the process.
//! What is *not* here: beacons, reports to the server and what happens afterwards ([`crate::beacon`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backup::hardware::Inventory;
use protocol::job::Job;
use protocol::progress::Progress;

use crate::net::http::Server;

/// What a job is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// The server. It is tried again while it is away, until the job is taken back.
    pub(crate) server: Server,
    /// The machine, with every disk that was found when the job began.
    pub(crate) inventory: Inventory,
    /// Set when the operator took the job back: stop at the next safe place.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Where the job says how far it is.
    pub(crate) progress: ProgressSlot,
}

impl Context {
    /// Whether the operator took the job back.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
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

/// Does the job.
///
/// # Errors
/// [`JobError`] with everything a person needs to know.
pub(crate) fn run(job: &Job, _context: &Context) -> Result<Summary, JobError> {
    Err(JobError {
        reason: format!("this agent cannot do a {} yet; no disk was touched", job.kind.word()),
        code: "internal".to_owned(),
    })
}
