//! Imports of disk images over the control socket: what a capture's uploads are to a machine.
//!
//! The same router serves a command that holds the lock of a data directory on which no server runs
//! (`commands::exchange`).
//!
//! Invariant: nothing is taken for an import that did not begin or is over; one whose command is silent for
//! [`IDLE`] is over, and then what it staged and relied on is given up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, post, put};
use axum::{Json, Router};
use backup::manifest::RestorePointId;
use protocol::api::{self, FinishList, RestorePointView};
use protocol::import::{self, ImportRequest, ImportView};
use smol::Timer;

use super::Recovery;
use super::agent_api::{MAX_FINISH, Offset, octets, parse_id, parse_list_name, read_digests};
use super::answer::{PathParts, Refusal, read_body, read_json};
use crate::factory;
use crate::files;
use crate::machines::NameError;
use crate::store::CaptureFacts;
use crate::store::restore_points::MAX_MANIFEST;

/// The most bytes of a request for an import.
const MAX_REQUEST: usize = 64 * 1024;
/// After this long without a word an import is over: its command was killed.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// An import that runs.
struct Running {
    facts: CaptureFacts,
    heard: Instant,
}

struct ImportApi {
    recovery: Arc<Recovery>,
    running: Mutex<HashMap<RestorePointId, Running>>,
}

type Shared = State<Arc<ImportApi>>;

/// The routes.
pub(crate) fn router(recovery: Arc<Recovery>) -> Router {
    let state = Arc::new(ImportApi {
        recovery,
        running: Mutex::default(),
    });
    Router::new()
        .route(import::IMPORTS, post(begin))
        .route("/api/v1/imports/{id}", delete(give_up))
        .route("/api/v1/imports/{id}/chunks/missing", post(missing))
        .route("/api/v1/imports/{id}/chunks", post(upload))
        .route(
            "/api/v1/imports/{id}/chunk-lists/{name}",
            put(list_part).post(finish_list),
        )
        .route("/api/v1/imports/{id}/manifest", post(publish))
        .with_state(state)
}

impl ImportApi {
    fn running(&self) -> MutexGuard<'_, HashMap<RestorePointId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The import of this id, which is heard of now.
    fn hear(&self, id: String) -> Result<RestorePointId, Refusal> {
        let id = parse_id(id)?;
        match self.running().get_mut(&id) {
            Some(import) => import.heard = Instant::now(),
            None => {
                return Err(Refusal::not_found(format!(
                    "the import {id} does not run: it is over, or the server was started again; import the image anew"
                )));
            }
        }
        Ok(id)
    }

    /// Ends an import, published or not.
    fn end(&self, id: &RestorePointId) {
        if self.running().remove(id).is_some() {
            self.recovery.store.capture_ended(id);
        }
    }

    /// Begins an import.
    fn begin(&self, request: &ImportRequest) -> Result<ImportView, Refusal> {
        let recovery = &self.recovery;
        factory::check_purpose(recovery, &request.purpose)?;
        recovery.store.check_room_for_capture()?;
        let view = self.machine(request)?;
        let facts = CaptureFacts {
            machine: view.machine.clone(),
            machine_name: view.machine_name.clone(),
            named: request.machine.is_some(),
            stored_bytes: 0,
            purpose: request.purpose.clone(),
        };
        let heard = Instant::now();
        let mut running = self.running();
        if running.contains_key(&view.restore_point) {
            let text = format!("the import {} runs already; try again", view.restore_point);
            return Err(Refusal::conflict(text));
        }
        running.insert(view.restore_point.clone(), Running { facts, heard });
        Ok(view)
    }

    /// Which machine the image is of: one that the server knows, one that only restore points remember, or a
    /// new one, whose id its name makes.
    fn machine(&self, request: &ImportRequest) -> Result<ImportView, Refusal> {
        let recovery = &self.recovery;
        let restore_point = recovery.new_restore_point()?;
        let named = request.machine.as_deref();
        let name = named.unwrap_or(&request.otherwise).trim();
        if name.is_empty() || name.chars().count() > 255 || name.chars().any(char::is_control) {
            return Err(Refusal::bad_request(
                "a machine's name has 1 to 255 characters, none of them a control character"
                    .to_owned(),
            ));
        }
        if named.is_some() {
            match recovery.machines.resolve(name) {
                Ok(known) => {
                    return Ok(ImportView {
                        restore_point,
                        machine: known.id,
                        machine_name: known.name,
                        identity: known.inventory.identity,
                    });
                }
                Err(NameError::Unknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let remembered = named.and_then(|name| files::machine_of(&recovery.store, name).ok());
        let (machine, machine_name) =
            remembered.unwrap_or_else(|| (id_of_name(name), name.to_owned()));
        Ok(ImportView {
            restore_point,
            machine,
            machine_name,
            identity: Default::default(),
        })
    }
}

/// The id of a machine that has no more than a name: the same name gives the same id.
fn id_of_name(name: &str) -> String {
    let digest = backup::Digest::of(format!("machine of an imported image\0{name}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    // RFC 9562 §5.8: version 8 is for ids made in one's own way.
    uuid::Builder::from_custom_bytes(bytes)
        .into_uuid()
        .to_string()
}

/// Gives up an import that is not heard of any more.
async fn watch(shared: Arc<ImportApi>, id: RestorePointId) {
    loop {
        Timer::after(LOOK_EVERY).await;
        let Some(silent) = shared.running().get(&id).map(|one| one.heard.elapsed()) else {
            return;
        };
        if silent > IDLE {
            log::warn!(
                "the import {id} is not heard of for {} minutes and given up",
                silent.as_secs() / 60
            );
            let shared = Arc::clone(&shared);
            smol::unblock(move || shared.end(&id)).await;
            return;
        }
    }
}

async fn begin(State(shared): Shared, body: Body) -> Result<Response, Refusal> {
    let request: ImportRequest = read_json(body, MAX_REQUEST).await?;
    let begun = Arc::clone(&shared);
    let view = smol::unblock(move || begun.begin(&request)).await?;
    log::info!(
        "import {} of {} begins",
        view.restore_point,
        view.machine_name
    );
    smol::spawn(watch(shared, view.restore_point.clone())).detach();
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

async fn give_up(
    State(shared): Shared,
    PathParts(id): PathParts<String>,
) -> Result<StatusCode, Refusal> {
    let id = shared.hear(id)?;
    log::info!("import {id} is given up");
    smol::unblock(move || shared.end(&id)).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn missing(
    State(shared): Shared,
    PathParts(id): PathParts<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let id = shared.hear(id)?;
    let digests = read_digests(body).await?;
    let answer: Vec<u8> = smol::unblock(move || {
        let chunks = &shared.recovery.store.chunks;
        let missing = |digest| u8::from(chunks.claim(&id, digest).is_none());
        digests.iter().map(missing).collect()
    })
    .await;
    Ok(octets(answer))
}

async fn upload(
    State(shared): Shared,
    PathParts(id): PathParts<String>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let id = shared.hear(id)?;
    let bytes = read_body(body, api::MAX_UPLOAD).await?;
    smol::unblock(move || -> Result<(), Refusal> {
        let added = shared.recovery.store.chunks.insert(&id, &bytes)?;
        if let Some(import) = shared.running().get_mut(&id) {
            import.facts.stored_bytes += added.bytes;
        }
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_part(
    State(shared): Shared,
    PathParts((id, name)): PathParts<(String, String)>,
    query: Result<Query<Offset>, QueryRejection>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let (id, name) = (shared.hear(id)?, parse_list_name(&name)?);
    let Query(Offset { offset }) =
        query.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let bytes = read_body(body, api::MAX_UPLOAD).await?;
    smol::unblock(move || -> Result<(), Refusal> {
        let points = &shared.recovery.store.restore_points;
        Ok(points.stage_part(&id, name, offset, &bytes)?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn finish_list(
    State(shared): Shared,
    PathParts((id, name)): PathParts<(String, String)>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let (id, name) = (shared.hear(id)?, parse_list_name(&name)?);
    let finish: FinishList = read_json(body, MAX_FINISH).await?;
    smol::unblock(move || -> Result<(), Refusal> {
        let points = &shared.recovery.store.restore_points;
        Ok(points.finish_list(&id, name, finish.length, &finish.digest)?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn publish(
    State(shared): Shared,
    PathParts(id): PathParts<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let id = shared.hear(id)?;
    let bytes = read_body(body, MAX_MANIFEST).await?;
    let view = smol::unblock(move || -> Result<RestorePointView, Refusal> {
        let facts = shared.running().get(&id).map(|import| import.facts.clone());
        let facts = facts.ok_or_else(|| Refusal::not_found(format!("the import {id} is over")))?;
        let store = &shared.recovery.store;
        let view = store
            .restore_points
            .publish(&id, &bytes, &facts, &store.chunks)?;
        store.look_for_healing();
        shared.end(&id);
        log::info!(
            "restore point {id} of {} published: imported, {} of data, {} new in the store",
            view.machine_name,
            backup::units::HumanBytes(view.data_bytes),
            backup::units::HumanBytes(view.stored_bytes)
        );
        Ok(view)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(view)).into_response())
}
