//! What a restore would do: planned here by the code that the agent plans with, from what the machine last
//! reported. Nothing is started, kept or touched.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use backup::identity::Identity;
use backup::manifest::{Manifest, RestorePointKind};
use backup::plan::restore::plan_restore;
use protocol::api::{PlanRequest, PlanView};

use super::Recovery;
use super::answer::{Refusal, read_json};
use super::operator_api::MAX_REQUEST;
use crate::copies;

pub(super) async fn plan(
    State(recovery): State<Arc<Recovery>>,
    body: Body,
) -> Result<Json<PlanView>, Refusal> {
    let request: PlanRequest = read_json(body, MAX_REQUEST).await?;
    Ok(Json(
        smol::unblock(move || plan_for(&recovery, &request)).await?,
    ))
}

fn plan_for(recovery: &Recovery, request: &PlanRequest) -> Result<PlanView, Refusal> {
    let machine = recovery.machines.resolve(&request.machine)?;
    let points = &recovery.store.restore_points;
    let id = points.resolve(&request.restore_point, (&machine.id, &machine.name))?;
    let bytes = points.manifest(&id)?;
    let manifest = Manifest::from_json(&bytes)
        .map_err(|error| Refusal::conflict(format!("restore point {id}: {error}")))?;
    let usual = match manifest.kind {
        RestorePointKind::Backup => Identity::Kept,
        RestorePointKind::Factory => Identity::New,
    };
    let choices = request.choices.clone();
    let machines = &recovery.machines;
    let choices = copies::settle(choices, usual, &machine, machines, Some(&manifest))
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    let outcome = plan_restore(&manifest, &machine.inventory, &choices);
    let picture = outcome
        .as_ref()
        .map_or_else(|_| String::new(), |plan| plan.picture(&manifest));
    let (plan, refusals) = match outcome {
        Ok(plan) => (Some(plan), Vec::new()),
        Err(refusals) => (None, refusals),
    };
    Ok(PlanView {
        machine: machine.id,
        machine_name: machine.name,
        last_beacon: machine.last_beacon,
        restore_point: id,
        plan,
        refusals,
        picture,
    })
}
