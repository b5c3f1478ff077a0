//! Upkeep of the store, where it meets jobs: what may be removed, and what holds what.
//!
//! The same functions serve the control socket of a running server (`http::upkeep_api`) and commands
//! that hold the lock of a data directory on which no server runs (`commands::upkeep`).
//!
//! Invariant: a restore point that an unfinished restore is of is not removed; the two are decided
//! under one lock.

use std::sync::PoisonError;

use backup::manifest::RestorePointId;
use jiff::tz::TimeZone;
use protocol::api::RestorePointView;
use protocol::upkeep::{
    GcProgress, GcReport, GcRequest, PruneRequest, PruneView, RetentionRules, Verdict,
};

use crate::http::Recovery;
use crate::jobs::JobError;
use crate::machines::NameError;
use crate::store::restore_points::RestorePointNameError;
use crate::store::retention::{self, machine_of};
use crate::store::{KeepError, StoreError, chain};

/// What is not done to the store, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpkeepError {
    /// A restore point that is not named, or not alone.
    #[error(transparent)]
    Name(#[from] RestorePointNameError),
    /// A machine that is not named, or not alone.
    #[error(transparent)]
    Machine(#[from] NameError),
    /// It stays.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// A restore needs it.
    #[error(
        "restore point {id} is being restored (job {job}, {state}); wait for it or cancel it first"
    )]
    InUse {
        /// The restore point.
        id: RestorePointId,
        /// The restore.
        job: String,
        /// Where it stands.
        state: &'static str,
    },
    /// Nothing says what is to stay.
    #[error(
        "no rule says what to keep, so nothing was removed: give one (--keep-daily 7, for example), or put [retention] into the configuration"
    )]
    NoRules,
    /// The state cannot be read.
    #[error(transparent)]
    Jobs(#[from] JobError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Collects garbage.
///
/// # Errors
/// [`StoreError`].
pub(crate) fn collect(
    recovery: &Recovery,
    request: &GcRequest,
    on_progress: &mut dyn FnMut(GcProgress),
) -> Result<GcReport, StoreError> {
    let mut report = recovery.store.collect(request, on_progress)?;
    let old = recovery.captures_before_start();
    for capture in old.iter().filter(|id| recovery.capture_runs(id)) {
        report.notes.push(format!(
            "the capture of restore point {capture} began before the server started and holds every \
             chunk that was there; when it is over, or cancelled, more can be freed"
        ));
    }
    Ok(report)
}

/// The restore point that a name or the beginning of an id means.
fn named(recovery: &Recovery, name: &str) -> Result<RestorePointView, UpkeepError> {
    let points = &recovery.store.restore_points;
    // `latest` is a machine's; here it is a name that nothing has.
    let id = points.resolve(name, ("", "no machine"))?;
    let found = points.list().into_iter().find(|view| view.id == id);
    found.ok_or_else(|| KeepError::Unknown { id }.into())
}

/// Pins a restore point, or takes its pin back; what it is then.
///
/// # Errors
/// [`UpkeepError`].
pub(crate) fn pin(
    recovery: &Recovery,
    name: &str,
    pinned: bool,
) -> Result<RestorePointView, UpkeepError> {
    let mut view = named(recovery, name)?;
    let points = &recovery.store.restore_points;
    if pinned {
        points.pin(&view.id)?;
    } else {
        points.unpin(&view.id)?;
    }
    view.pinned = pinned;
    Ok(view)
}

/// Removes a restore point; what it was.
///
/// # Errors
/// [`UpkeepError`].
pub(crate) fn forget(recovery: &Recovery, name: &str) -> Result<RestorePointView, UpkeepError> {
    let view = named(recovery, name)?;
    forget_if_free(recovery, &view.id)?;
    log::info!("restore point {} of {} removed", view.id, view.machine_name);
    Ok(view)
}

fn forget_if_free(recovery: &Recovery, id: &RestorePointId) -> Result<(), UpkeepError> {
    let _choosing = recovery
        .choosing
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(restore) = recovery.jobs.restore_of(id)? {
        return Err(UpkeepError::InUse {
            id: id.clone(),
            job: restore.job.id,
            state: restore.state.word(),
        });
    }
    Ok(recovery.store.restore_points.forget(id)?)
}

/// Removes what rules do not keep.
///
/// # Errors
/// [`UpkeepError`]; restore points that could not be removed are in the answer.
pub(crate) fn prune(
    recovery: &Recovery,
    request: &PruneRequest,
    configured: RetentionRules,
) -> Result<PruneView, UpkeepError> {
    let rules = request.rules.unwrap_or(configured);
    if rules.are_empty() {
        return Err(UpkeepError::NoRules);
    }
    let mut points = recovery.store.restore_points.list();
    if let Some(name) = &request.machine {
        // One that only restore points remember is named as they do.
        let own = points.iter().any(|point| point.machine_name == *name);
        let machine = match recovery.machines.resolve(name) {
            Ok(machine) => machine.id,
            Err(NameError::Unknown { .. }) if own => name.clone(),
            Err(error) => return Err(error.into()),
        };
        points.retain(|point| machine_of(point) == machine || point.machine_name == machine);
    }
    let mut view = PruneView {
        dry_run: request.dry_run,
        rules,
        restore_points: retention::decide(&points, &rules, &TimeZone::system(), request.factory),
        failed: Vec::new(),
    };
    for verdict in view.restore_points.iter_mut().filter(|one| !one.keep) {
        remove(recovery, verdict, request.dry_run, &mut view.failed)?;
    }
    Ok(view)
}

fn remove(
    recovery: &Recovery,
    verdict: &mut Verdict,
    dry_run: bool,
    failed: &mut Vec<String>,
) -> Result<(), UpkeepError> {
    let outcome = if dry_run {
        match recovery.jobs.restore_of(&verdict.id)? {
            Some(restore) => {
                let reason = format!("being restored (job {})", restore.job.id);
                (verdict.keep, verdict.reasons) = (true, vec![reason]);
                return Ok(());
            }
            None => Ok(()),
        }
    } else {
        forget_if_free(recovery, &verdict.id)
    };
    match outcome {
        Ok(()) => {
            if !dry_run {
                log::info!(
                    "restore point {} of {} removed by the rules",
                    verdict.id,
                    verdict.machine_name
                );
            }
        }
        Err(UpkeepError::InUse { job, .. }) => {
            (verdict.keep, verdict.reasons) = (true, vec![format!("being restored (job {job})")]);
        }
        Err(UpkeepError::Keep(KeepError::Pinned { .. })) => {
            (verdict.keep, verdict.reasons) = (true, vec!["pinned".to_owned()]);
        }
        Err(error) => {
            verdict.keep = true;
            verdict.reasons.push("could not be removed".to_owned());
            failed.push(format!("{}: {}", verdict.id, chain(&error)));
        }
    }
    Ok(())
}
