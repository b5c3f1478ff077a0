//! Captures that a running system makes of itself, and that nobody goes on with.
//!
//! A machine in the recovery environment that is silent comes back and is given its job again. The
//! program that a person started on a running system does not come back when it is killed: its job is
//! ended after some minutes without a word, so that the machine is free for another one and the store
//! may let go of what the capture held.

use std::sync::Arc;
use std::time::Duration;

use smol::Timer;

use super::Recovery;
use super::agent_api::note_end;
use crate::jobs::JobError;
use crate::state::now;
use crate::store::chain;

/// How often they are looked for.
const EVERY: Duration = Duration::from_secs(60);

/// Ends those that were silent for too long by now; how many.
///
/// # Errors
/// [`JobError::State`].
pub(crate) fn end(recovery: &Recovery, now: u64) -> Result<usize, JobError> {
    let ended = recovery.jobs.end_silent(now)?;
    for record in &ended {
        recovery
            .store
            .capture_ended(record.job.kind.restore_point());
        note_end(recovery, record);
    }
    Ok(ended.len())
}

/// Looks for them as long as the server runs.
pub(crate) async fn watch(recovery: Arc<Recovery>) -> std::io::Result<()> {
    loop {
        Timer::after(EVERY).await;
        let recovery = Arc::clone(&recovery);
        let outcome = smol::unblock(move || end(&recovery, now())).await;
        // The next look may do better.
        if let Err(error) = outcome {
            log::error!("{}", chain(&error));
        }
    }
}
