//! The operators' API, over the control socket: lists, new jobs, cancellation, time lines.
//!
//! What is *not* here: who may connect (the socket's file permissions), how it is shown
//! (`commands`).

use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use backup::identity::Identity;
use backup::manifest::{Manifest, RestorePointId, RestorePointKind};
use backup::plan::Choices;
use protocol::api::{
    self, Action, FactoryRequest, JobRequest, JobView, MachineView, RestorePointView, ServerView,
};
use protocol::dhcp::MacAddress;
use protocol::job::JobKind;
use protocol::unlock;

use super::Recovery;
use super::answer::{PathParts, Refusal, no_such_method, no_such_path, read_json};
use crate::copies;
use crate::factory::{self, FactoryError};
use crate::flight_recorder::{MachineTimeline, Seen};
use crate::jobs::JobRecord;

/// The most bytes of a request for a job.
pub(super) const MAX_REQUEST: usize = 512 * 1024;

// Every key as hexadecimal digits, and as much again for everything else.
const _: () = assert!(MAX_REQUEST >= 3 * unlock::MAX_KEYS * unlock::MAX_KEY);

type Shared = State<Arc<Recovery>>;

/// The routes that operators reach.
pub(crate) fn router(recovery: Arc<Recovery>) -> Router {
    Router::new()
        .route(api::MACHINES, get(machines))
        .route("/api/v1/machines/{machine}/timeline", get(timeline))
        .route(api::TIMELINES, get(timelines))
        .route(api::SERVER, get(server))
        .route(api::JOBS, get(jobs).post(create_job))
        .route("/api/v1/jobs/{job}/cancel", post(cancel))
        .route(api::RESTORE_POINTS, get(restore_points))
        .route(api::PLANS, post(super::plan_api::plan))
        .route(api::FACTORY_IMAGES, post(create_image))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(recovery)
}

async fn machines(State(recovery): Shared) -> Json<Vec<MachineView>> {
    Json(recovery.machine_views())
}

async fn restore_points(State(recovery): Shared) -> Result<Json<Vec<RestorePointView>>, Refusal> {
    let views = smol::unblock(move || -> Result<_, Refusal> {
        let mut views = recovery.store.restore_points.list();
        for record in recovery.jobs.failed_captures()? {
            let published = views
                .iter()
                .any(|view| view.id == *record.job.kind.restore_point());
            if !published {
                views.push(failed_capture(&recovery, record));
            }
        }
        views.sort_by(|a, b| (a.captured_at, &a.id).cmp(&(b.captured_at, &b.id)));
        Ok(views)
    });
    Ok(Json(views.await?))
}

/// A capture that made no restore point, as lists show it beside those that did.
fn failed_capture(recovery: &Recovery, record: JobRecord) -> RestorePointView {
    let purpose = record.job.kind.purpose();
    RestorePointView {
        id: record.job.kind.restore_point().clone(),
        machine_name: recovery.machines.name(&record.machine),
        machine: Some(record.machine),
        captured_at: record.started_at.unwrap_or(record.created_at),
        system: None,
        status: "failed".to_owned(),
        warnings: record.error.into_iter().collect(),
        disk_bytes: 0,
        data_bytes: 0,
        stored_bytes: record.stored_bytes,
        kind: purpose.kind.word().to_owned(),
        image: purpose.image,
        pinned: false,
    }
}

async fn jobs(State(recovery): Shared) -> Result<Json<Vec<JobView>>, Refusal> {
    let views = smol::unblock(move || -> Result<_, Refusal> {
        let records = recovery.jobs.list()?.into_iter();
        Ok(records.map(|record| view(&recovery, record)).collect())
    });
    Ok(Json(views.await?))
}

fn view(recovery: &Recovery, record: JobRecord) -> JobView {
    JobView {
        id: record.job.id,
        machine_name: recovery.machines.name(&record.machine),
        machine: record.machine,
        kind: record.job.kind,
        afterwards: record.job.afterwards,
        state: record.state,
        progress: record.progress,
        error: record.error,
        error_code: record.error_code,
        summary: record.summary,
        created_at: record.created_at,
        started_at: record.started_at,
        ended_at: record.ended_at,
    }
}

async fn create_job(State(recovery): Shared, body: Body) -> Result<Response, Refusal> {
    let request: JobRequest = read_json(body, MAX_REQUEST).await?;
    let view = smol::unblock(move || create(&recovery, request)).await?;
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

fn create(recovery: &Recovery, request: JobRequest) -> Result<JobView, Refusal> {
    let machine = recovery.machines.resolve(&request.machine)?;
    let _choosing = recovery
        .choosing
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut keys = Vec::new();
    let kind = match request.action {
        Action::Capture {
            point_kind,
            image,
            unlock,
        } => {
            unlock::check(&unlock).map_err(|error| Refusal::bad_request(error.to_string()))?;
            let kind = JobKind::Capture {
                restore_point: recovery.new_restore_point()?,
                point_kind,
                image,
                unlock: unlock.iter().map(|key| key.place.clone()).collect(),
                native: false,
            };
            factory::check_purpose(recovery, &kind.purpose())?;
            recovery.store.check_room_for_capture()?;
            keys = unlock;
            kind
        }
        Action::Restore {
            restore_point,
            choices,
        } => {
            let points = &recovery.store.restore_points;
            let restore_point = points.resolve(&restore_point, (&machine.id, &machine.name))?;
            factory::check_is_backup(recovery, &restore_point)?;
            JobKind::Restore {
                choices: settled(recovery, &machine, &restore_point, choices, Identity::Kept)?,
                restore_point,
                point_kind: RestorePointKind::Backup,
            }
        }
        Action::Reset { image, choices } => {
            let restore_point = factory::resolve(recovery, image.as_deref())?.id;
            JobKind::Restore {
                choices: settled(recovery, &machine, &restore_point, choices, Identity::New)?,
                restore_point,
                point_kind: RestorePointKind::Factory,
            }
        }
    };
    let record = recovery
        .jobs
        .create_with_keys(&machine.id, kind, request.afterwards, keys)?;
    log::info!(
        "job {}: {} of {} created for {}",
        record.job.id,
        record.job.kind.word(),
        record.job.kind.restore_point(),
        machine.name
    );
    Ok(view(recovery, record))
}

/// The choices with all that the server has to say about the machine's identity.
fn settled(
    recovery: &Recovery,
    machine: &MachineView,
    point: &RestorePointId,
    choices: Choices,
    usual: Identity,
) -> Result<Choices, Refusal> {
    // The agent says what is wrong with a manifest, as ever.
    let bytes = recovery.store.restore_points.manifest(point)?;
    let manifest = Manifest::from_json(&bytes).ok();
    let machines = &recovery.machines;
    copies::settle(choices, usual, machine, machines, manifest.as_ref())
        .map_err(|error| Refusal::bad_request(error.to_string()))
}

/// Makes a factory image from a restore point.
async fn create_image(State(recovery): Shared, body: Body) -> Result<Response, Refusal> {
    let request: FactoryRequest = read_json(body, MAX_REQUEST).await?;
    let view = smol::unblock(move || factory::create_from(&recovery, &request)).await?;
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

impl From<FactoryError> for Refusal {
    fn from(error: FactoryError) -> Self {
        match error {
            FactoryError::Name(error) => error.into(),
            FactoryError::Jobs(error) => error.into(),
            FactoryError::Store(error) => error.into(),
            FactoryError::Publish(error) => error.into(),
            FactoryError::Id(error) => error.into(),
            FactoryError::Taken { .. } => Self::conflict(error.to_string()),
            FactoryError::NoImage => Self::not_found(error.to_string()),
            FactoryError::SeveralImages { .. } => {
                Self::new(StatusCode::CONFLICT, "ambiguous", error.to_string())
            }
            FactoryError::NotFactory { .. } | FactoryError::NotBackup { .. } => {
                Self::new(StatusCode::CONFLICT, "wrong-kind", error.to_string())
            }
            FactoryError::Description { .. } | FactoryError::Backup => {
                Self::bad_request(error.to_string())
            }
            FactoryError::Manifest { .. } | FactoryError::Json(_) => Self::internal(&error),
        }
    }
}

async fn cancel(
    State(recovery): Shared,
    PathParts(job): PathParts<String>,
) -> Result<Json<JobView>, Refusal> {
    let view = smol::unblock(move || -> Result<_, Refusal> {
        let record = recovery.jobs.cancel(&job)?;
        if let JobKind::Capture { restore_point, .. } = &record.job.kind {
            recovery.store.capture_ended(restore_point);
        }
        log::info!("job {} cancelled", record.job.id);
        Ok(view(&recovery, record))
    });
    Ok(Json(view.await?))
}

async fn timeline(
    State(recovery): Shared,
    PathParts(name): PathParts<String>,
) -> Result<Json<MachineTimeline>, Refusal> {
    // A machine that never reached the agent is the one whose time line is wanted most: it is
    // known to the recorder by its card alone.
    let (machine, called, macs) = match recovery.machines.resolve(&name) {
        Ok(machine) => (machine.id, machine.name, machine.inventory.identity.macs),
        Err(error) => match name.parse::<MacAddress>() {
            Ok(mac) => (String::new(), mac.to_string(), vec![mac.to_string()]),
            Err(_) => return Err(error.into()),
        },
    };
    let macs: Vec<_> = macs.iter().filter_map(|mac| mac.parse().ok()).collect();
    Ok(Json(MachineTimeline {
        machine,
        name: called,
        timeline: recovery.recorder.timeline(&macs),
    }))
}

async fn timelines(State(recovery): Shared) -> Json<Seen> {
    let seen = smol::unblock(move || {
        let machines = recovery.machines.list();
        recovery.recorder.seen(|mac| {
            let mac = mac.to_string();
            let own = |machine: &&MachineView| machine.inventory.identity.macs.contains(&mac);
            let machine = machines.iter().find(own);
            machine.map_or_else(String::new, |machine| machine.name.clone())
        })
    });
    Json(seen.await)
}

async fn server(State(recovery): Shared) -> Json<ServerView> {
    Json(ServerView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: recovery.started.elapsed().as_secs(),
        process: std::process::id(),
    })
}
