//! The operators' upkeep of the store, over the control socket.
//!
//! A garbage collection runs beside everything else; its progress is asked for. What is *not* here:
//! what is done (`upkeep`, `store`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use protocol::api::RestorePointView;
use protocol::upkeep::{
    self, DamageView, DamagedPlace, GcRequest, GcView, PruneRequest, PruneView, RetentionRules,
    StoreView,
};

use super::Recovery;
use super::answer::{PathParts, Refusal, read_json};
use crate::store::{DamagedRecord, chain};
use crate::upkeep::{UpkeepError, collect, forget, pin, prune};

/// The most bytes of a request.
const MAX_REQUEST: usize = 64 * 1024;
/// The most bytes of a list of damaged places: about a million.
const MAX_DAMAGE: usize = 128 * 1024 * 1024;

struct UpkeepApi {
    recovery: Arc<Recovery>,
    retention: RetentionRules,
    collection: Mutex<GcView>,
}

impl UpkeepApi {
    fn collection(&self) -> MutexGuard<'_, GcView> {
        self.collection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

type Shared = State<Arc<UpkeepApi>>;

/// The routes; `retention` are the rules of the configuration.
pub(crate) fn router(recovery: Arc<Recovery>, retention: RetentionRules) -> Router {
    let state = Arc::new(UpkeepApi {
        recovery,
        retention,
        collection: Mutex::default(),
    });
    Router::new()
        .route(upkeep::STORE, get(sizes))
        .route(upkeep::COLLECTION, get(collection).post(begin_collection))
        .route(upkeep::DAMAGE, post(note_damage))
        .route(upkeep::PRUNE, post(remove_by_rules))
        .route(
            "/api/v1/restore-points/{id}/pin",
            post(set_pin).delete(take_pin),
        )
        .route("/api/v1/restore-points/{id}", delete(remove))
        .with_state(state)
}

async fn sizes(State(shared): Shared) -> Result<Json<StoreView>, Refusal> {
    let sizes = smol::unblock(move || shared.recovery.store.sizes());
    Ok(Json(sizes.await?))
}

async fn collection(State(shared): Shared) -> Json<GcView> {
    Json(shared.collection().clone())
}

async fn begin_collection(State(shared): Shared, body: Body) -> Result<Response, Refusal> {
    let request: GcRequest = read_json(body, MAX_REQUEST).await?;
    if request.rewrite_below > 100 {
        let message = format!(
            "packs below {} % cannot be rewritten (expected 0 to 100)",
            request.rewrite_below
        );
        return Err(Refusal::bad_request(message));
    }
    let begun = {
        let mut view = shared.collection();
        if view.running {
            return Err(Refusal::conflict(
                "a garbage collection runs already".to_owned(),
            ));
        }
        *view = GcView {
            running: true,
            ..GcView::default()
        };
        view.clone()
    };
    smol::unblock(move || run_collection(&shared, &request)).detach();
    Ok((StatusCode::ACCEPTED, Json(begun)).into_response())
}

fn run_collection(shared: &UpkeepApi, request: &GcRequest) {
    let outcome = collect(&shared.recovery, request, &mut |progress| {
        shared.collection().progress = progress;
    });
    let mut view = shared.collection();
    view.running = false;
    match outcome {
        Ok(report) => view.report = Some(report),
        Err(error) => {
            let error = chain(&error);
            log::error!("garbage collection: {error}");
            view.error = Some(error);
        }
    }
}

async fn note_damage(State(shared): Shared, body: Body) -> Result<Json<DamageView>, Refusal> {
    let places: Vec<DamagedPlace> = read_json(body, MAX_DAMAGE).await?;
    let noted = smol::unblock(move || {
        let found: Vec<_> = places
            .into_iter()
            .map(|place| DamagedRecord {
                digest: place.digest,
                pack: place.pack,
                offset: place.offset,
                reason: String::new(),
            })
            .collect();
        shared.recovery.store.note_damage(&found)
    });
    Ok(Json(DamageView {
        noted: noted.await?,
    }))
}

async fn remove_by_rules(State(shared): Shared, body: Body) -> Result<Json<PruneView>, Refusal> {
    let request: PruneRequest = read_json(body, MAX_REQUEST).await?;
    let view = smol::unblock(move || prune(&shared.recovery, &request, shared.retention));
    Ok(Json(view.await?))
}

async fn set_pin(
    State(shared): Shared,
    PathParts(name): PathParts<String>,
) -> Result<Json<RestorePointView>, Refusal> {
    let view = smol::unblock(move || pin(&shared.recovery, &name, true));
    Ok(Json(view.await?))
}

async fn take_pin(
    State(shared): Shared,
    PathParts(name): PathParts<String>,
) -> Result<Json<RestorePointView>, Refusal> {
    let view = smol::unblock(move || pin(&shared.recovery, &name, false));
    Ok(Json(view.await?))
}

async fn remove(
    State(shared): Shared,
    PathParts(name): PathParts<String>,
) -> Result<Json<RestorePointView>, Refusal> {
    let view = smol::unblock(move || forget(&shared.recovery, &name));
    Ok(Json(view.await?))
}

impl From<UpkeepError> for Refusal {
    fn from(error: UpkeepError) -> Self {
        use crate::store::KeepError;
        match error {
            UpkeepError::Name(error) => error.into(),
            UpkeepError::Machine(error) => error.into(),
            UpkeepError::Jobs(error) => error.into(),
            UpkeepError::Store(error) | UpkeepError::Keep(KeepError::Store(error)) => error.into(),
            UpkeepError::Keep(KeepError::Unknown { .. }) => Self::not_found(error.to_string()),
            UpkeepError::Keep(KeepError::Pinned { .. }) | UpkeepError::InUse { .. } => {
                Self::conflict(error.to_string())
            }
            UpkeepError::NoRules => Self::bad_request(error.to_string()),
        }
    }
}
