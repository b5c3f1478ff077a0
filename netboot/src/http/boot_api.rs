//! The operators' API of booting: what a machine boots next, which firmware gets which loader.
//!
//! Not here: what a wish means (`boot_policy`, `next_boot`), the ladder (`dhcp::boot_table`).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use protocol::api::{self, LoaderView, MachineNextBoot, NextBootRequest};
use protocol::dhcp::MacAddress;

use super::Recovery;
use super::answer::{PathParts, Refusal, read_json};
use crate::boot_desk::BootDesk;
use crate::state::now;

/// The most bytes of a request.
const MAX_REQUEST: usize = 4096;

/// What the routes need.
#[derive(Clone)]
struct Shared {
    recovery: Arc<Recovery>,
    desk: Arc<BootDesk>,
}

/// The routes that operators reach.
pub(crate) fn router(recovery: Arc<Recovery>, desk: Arc<BootDesk>) -> Router {
    Router::new()
        .route(
            "/api/v1/machines/{machine}/next-boot",
            get(next_boot).post(set_next_boot),
        )
        .route(api::LOADERS, get(loaders))
        .with_state(Shared { recovery, desk })
}

/// Who is meant: a machine, or the card of one that nobody knows.
struct Subject {
    /// What its wish is kept under.
    key: String,
    name: String,
    macs: Vec<String>,
    job: Option<&'static str>,
}

impl Subject {
    fn find(recovery: &Recovery, name: &str) -> Result<Self, Refusal> {
        match recovery.machines.resolve(name) {
            Ok(machine) => Ok(Self {
                job: recovery
                    .jobs
                    .unfinished(&machine.id)?
                    .map(|record| record.job.kind.word()),
                key: machine.id,
                name: machine.name,
                macs: machine.inventory.identity.macs,
            }),
            Err(error) => match name.parse::<MacAddress>() {
                Ok(mac) => Ok(Self {
                    key: mac.to_string(),
                    name: mac.to_string(),
                    macs: Vec::new(),
                    job: None,
                }),
                Err(_) => Err(error.into()),
            },
        }
    }

    fn names(&self) -> Vec<&str> {
        let keys = std::iter::once(&self.key).chain(&self.macs);
        keys.map(String::as_str).collect()
    }

    fn view(&self, recovery: &Recovery) -> MachineNextBoot {
        MachineNextBoot {
            machine: self.key.clone(),
            name: self.name.clone(),
            next_boot: recovery.next_boots.of(&self.names(), now()),
            has_job: self.job.is_some(),
            job: self.job.map(str::to_owned),
        }
    }
}

async fn next_boot(
    State(Shared { recovery, .. }): State<Shared>,
    PathParts(name): PathParts<String>,
) -> Result<Json<MachineNextBoot>, Refusal> {
    let view = smol::unblock(move || -> Result<_, Refusal> {
        Ok(Subject::find(&recovery, &name)?.view(&recovery))
    });
    Ok(Json(view.await?))
}

async fn set_next_boot(
    State(Shared { recovery, .. }): State<Shared>,
    PathParts(name): PathParts<String>,
    body: Body,
) -> Result<Json<MachineNextBoot>, Refusal> {
    let request: NextBootRequest = read_json(body, MAX_REQUEST).await?;
    let view = smol::unblock(move || -> Result<_, Refusal> {
        let subject = Subject::find(&recovery, &name)?;
        recovery.next_boots.set(&subject.key, request.next_boot)?;
        // What was said of a card before its machine was known would outlive this.
        for mac in &subject.macs {
            recovery.next_boots.set(mac, None)?;
        }
        log::info!("next boot of {}: {:?}", subject.name, request.next_boot);
        Ok(subject.view(&recovery))
    });
    Ok(Json(view.await?))
}

async fn loaders(State(Shared { desk, .. }): State<Shared>) -> Json<Vec<LoaderView>> {
    Json(smol::unblock(move || desk.loaders()).await)
}
