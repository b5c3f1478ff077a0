//! The machines' API: beacons, reports, uploads of captures, fetches of restores.
//!
//! Invariant: nothing a machine sends is believed before it is checked, bodies are bounded in size
//! and in number, and everything that waits for a disk does so on a thread of its own. Uploads are
//! taken only for a capture that runs, and content is given only while a restore runs; who a machine
//! is, is not proven yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use backup::Digest;
use backup::hardware::Inventory;
use backup::manifest::{Manifest, RestorePointId, RestorePointKind};
use futures_lite::{future, stream};
use protocol::api::{self, FinishList};
use protocol::beacon::{AgentState, Beacon, BeaconReply};
use protocol::job::{Afterwards, JobKind, JobReport, JobReportReply, JobState};
use serde::Deserialize;
use smol::Timer;
use smol::lock::{Semaphore, SemaphoreGuardArc};

use super::answer::{PathParts, Refusal, no_such_method, no_such_path, read_body, read_json};
use super::{PeerAddress, Recovery, silent_jobs};
use crate::flight_recorder::Fact;
use crate::jobs::JobRecord;
use crate::machines::{MachineError, Seen};
use crate::store::restore_points::MAX_MANIFEST;
use crate::store::{Batches, CaptureFacts, ListName, StoreError};

/// The most bytes of a beacon: an inventory of a machine with hundreds of disks.
const MAX_BEACON: usize = 256 * 1024;
/// The most disks of a machine, and the most network cards or other devices that are kept of an
/// inventory.
const MAX_DEVICES: usize = 256;
/// The most characters of one text of an inventory.
const MAX_TEXT: usize = 256;
/// The most bytes of a report.
const MAX_REPORT: usize = 256 * 1024;
/// The most bytes of the end of a chunk list.
pub(super) const MAX_FINISH: usize = 4096;
/// How long a beacon is held when there is no work.
const HOLD: Duration = Duration::from_secs(10);
/// How long a machine waits between beacons; the hold does the waiting when it waits for work.
const AGAIN_IN_SECONDS: u32 = 1;
/// The same for a machine that works.
const AGAIN_WHILE_WORKING: u32 = 10;
/// How many uploads of records and parts of lists are held in memory at once: 32 × 8 MiB.
const UPLOADS: usize = 32;
/// How many manifests are held in memory at once.
const LARGE_BODIES: usize = 8;

/// How many answers of content are given at once, each with two batches in memory.
const ANSWERS: usize = 256;

struct AgentApi {
    recovery: Arc<Recovery>,
    uploads: Semaphore,
    large_bodies: Semaphore,
    answers: Arc<Semaphore>,
}

type Shared = State<Arc<AgentApi>>;

/// The routes that machines reach.
pub(crate) fn router(recovery: Arc<Recovery>) -> Router {
    let state = Arc::new(AgentApi {
        recovery,
        uploads: Semaphore::new(UPLOADS),
        large_bodies: Semaphore::new(LARGE_BODIES),
        answers: Arc::new(Semaphore::new(ANSWERS)),
    });
    Router::new()
        .route(api::BEACON, post(beacon))
        .route(api::CAPTURES, post(ask_capture))
        .route("/api/v1/jobs/{job}/report", post(report))
        .route("/api/v1/jobs/{job}/keys", get(keys))
        .route("/api/v1/jobs/{job}/chunks/missing", post(missing))
        .route("/api/v1/jobs/{job}/chunks", post(upload))
        .route(
            "/api/v1/jobs/{job}/chunk-lists/{name}",
            put(list_part).post(finish_list),
        )
        .route("/api/v1/jobs/{job}/manifest", post(publish))
        .route(api::FETCH_CHUNKS, post(fetch))
        .route("/api/v1/restore-points/{id}/manifest", get(manifest))
        .route(
            "/api/v1/restore-points/{id}/chunk-lists/{digest}",
            get(chunk_list),
        )
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state)
}

async fn beacon(
    State(shared): Shared,
    peer: Option<Extension<PeerAddress>>,
    body: Body,
) -> Result<Json<BeaconReply>, Refusal> {
    let recorder = &shared.recovery.recorder;
    let mut card = peer.and_then(|Extension(peer)| recorder.machine_of(peer.0));
    let heard = match read_json::<Beacon>(body, MAX_BEACON).await {
        Ok(beacon) => {
            let named = beacon.boot_mac.as_ref().and_then(|mac| mac.parse().ok());
            card = named.or(card);
            hear(&shared.recovery, beacon).await
        }
        Err(refusal) => Err(refusal),
    };
    let (beacon, seen) = heard.inspect_err(|refusal| {
        if let Some(mac) = card {
            let reason = printable(refusal.message(), 200);
            recorder.record(mac, Fact::BeaconRefused { reason });
        }
    })?;
    let reply = |job: Option<JobRecord>| BeaconReply {
        machine: seen.id.clone(),
        name: seen.name.clone(),
        job: job.map(|record| record.job),
        again_in_seconds: match beacon.state {
            AgentState::Working => AGAIN_WHILE_WORKING,
            AgentState::Waiting | AgentState::Failed => AGAIN_IN_SECONDS,
        },
    };
    let until = Instant::now() + HOLD;
    loop {
        // Listening comes first, so that a job created from here on is not missed.
        let changed = shared.recovery.jobs.listen();
        let recovery = Arc::clone(&shared.recovery);
        let (by, state) = (seen.clone(), beacon.state);
        let job = smol::unblock(move || hand_out(&recovery, &by, state)).await?;
        // The first beacon of a boot is answered at once: the machine shows that it was heard.
        if job.is_some() || state == AgentState::Working || seen.new_boot {
            return Ok(Json(reply(job)));
        }
        let timeout = async {
            Timer::at(until).await;
        };
        future::or(changed, timeout).await;
        if Instant::now() >= until {
            return Ok(Json(reply(None)));
        }
    }
}

/// A machine asks to be captured: a running system that makes its own backup. It is given the job at
/// once, or told which one it has already.
async fn ask_capture(State(shared): Shared, body: Body) -> Result<Json<BeaconReply>, Refusal> {
    let beacon = read_json::<Beacon>(body, MAX_BEACON).await?;
    let (_, seen) = hear(&shared.recovery, beacon).await?;
    let (recovery, by) = (Arc::clone(&shared.recovery), seen.clone());
    let job = smol::unblock(move || -> Result<_, Refusal> {
        silent_jobs::end(&recovery, crate::state::now())?;
        let restore_point = recovery.new_restore_point()?;
        let kind = JobKind::Capture {
            restore_point,
            point_kind: RestorePointKind::Backup,
            image: None,
            unlock: Vec::new(),
            native: true,
        };
        let record = recovery.jobs.create(&by.id, kind, Afterwards::Wait)?;
        log::info!("job {}: {} asks for its capture", record.job.id, by.name);
        hand_out(&recovery, &by, AgentState::Waiting)
    })
    .await?;
    Ok(Json(BeaconReply {
        machine: seen.id,
        name: seen.name,
        job: job.map(|record| record.job),
        again_in_seconds: AGAIN_WHILE_WORKING,
    }))
}

/// Takes a beacon in.
async fn hear(recovery: &Arc<Recovery>, beacon: Beacon) -> Result<(Arc<Beacon>, Seen), Refusal> {
    let beacon = Arc::new(checked(beacon)?);
    let (recovery, said) = (Arc::clone(recovery), Arc::clone(&beacon));
    let seen = smol::unblock(move || note_beacon(&recovery, &said)).await?;
    Ok((beacon, seen))
}

/// Texts of a beacon are shown to people: they are bounded and carry no control characters.
fn checked(mut beacon: Beacon) -> Result<Beacon, Refusal> {
    let refuse = |what: &str| Refusal::bad_request(format!("the beacon's {what} is impossible"));
    if beacon.boot_id.is_empty() || beacon.boot_id.len() > 128 {
        return Err(refuse("boot_id"));
    }
    if beacon.pairing_code.len() > 16 {
        return Err(refuse("pairing_code"));
    }
    let identity = &mut beacon.inventory.identity;
    for mac in &mut identity.macs {
        *mac = mac
            .parse::<protocol::dhcp::MacAddress>()
            .map_err(|_| refuse("Ethernet address"))?
            .to_string();
    }
    identity.macs.sort_unstable();
    identity.macs.dedup();
    if identity.macs.len() > MAX_DEVICES {
        return Err(refuse("number of Ethernet addresses"));
    }
    // Not cut: a person is shown the disks before a restore overwrites them, so all of them.
    if beacon.inventory.disks.len() > MAX_DEVICES {
        return Err(refuse("number of disks"));
    }
    bound_inventory(&mut beacon.inventory);
    let boot_mac = beacon.boot_mac.take();
    beacon.boot_mac = boot_mac
        .and_then(|mac| mac.parse::<protocol::dhcp::MacAddress>().ok())
        .map(|mac| mac.to_string());
    beacon.error = beacon.error.take().map(|text| printable(&text, 2000));
    beacon.agent_version = printable(&beacon.agent_version, MAX_TEXT);
    beacon.boot_id = printable(&beacon.boot_id, 128);
    beacon.pairing_code = printable(&beacon.pairing_code, 16);
    Ok(beacon)
}

/// Bounds everything of an inventory but how many Ethernet addresses and disks it has: that is
/// checked.
fn bound_inventory(inventory: &mut Inventory) {
    let shorten = |text: &mut String| *text = printable(text, MAX_TEXT);
    let identity = &mut inventory.identity;
    let uuid = identity.uuid.take();
    identity.uuid = uuid
        .and_then(|uuid| uuid::Uuid::parse_str(&uuid).ok())
        .map(|uuid| uuid.to_string());
    for text in [
        &mut identity.serial,
        &mut identity.manufacturer,
        &mut identity.product,
    ] {
        text.iter_mut().for_each(shorten);
    }
    shorten(&mut inventory.architecture);
    for disk in &mut inventory.disks {
        shorten(&mut disk.name);
        for text in [&mut disk.model, &mut disk.serial, &mut disk.wwn] {
            text.iter_mut().for_each(shorten);
        }
    }
    inventory.nics.truncate(MAX_DEVICES);
    for nic in &mut inventory.nics {
        shorten(&mut nic.name);
        shorten(&mut nic.mac);
        nic.driver.iter_mut().for_each(shorten);
    }
    inventory.without_driver.truncate(MAX_DEVICES);
    inventory.without_driver.iter_mut().for_each(shorten);
}

/// At most `limit` characters, none of which moves a terminal's cursor.
fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(limit)
        .collect()
}

fn note_beacon(recovery: &Recovery, beacon: &Beacon) -> Result<Seen, Refusal> {
    let mut seen = recovery.machines.beacon(beacon);
    if matches!(seen, Err(MachineError::TooMany)) {
        let points = recovery.store.restore_points.list();
        let backed_up = points
            .into_iter()
            .filter_map(|point| point.machine)
            .collect();
        if recovery.machines.forget_oldest(&backed_up)? {
            seen = recovery.machines.beacon(beacon);
        }
    }
    let seen = seen?;
    if seen.new_boot {
        let (name, since_link_ms) = (seen.name.clone(), beacon.since_link_ms);
        let fact = Fact::Beacon {
            name,
            since_link_ms,
        };
        note(recovery, &seen.id, fact);
        let macs = &beacon.inventory.identity.macs;
        let names: Vec<_> = std::iter::once(&seen.id)
            .chain(macs)
            .map(String::as_str)
            .collect();
        recovery.next_boots.came_up(&names)?;
    }
    Ok(seen)
}

/// Puts a fact on a machine's time line, or into the log when it has no card.
fn note(recovery: &Recovery, machine: &str, fact: Fact) {
    match recovery.machines.card(machine) {
        Some(mac) => recovery.recorder.record(mac, fact),
        None => log::info!("machine {machine}: {fact}"),
    }
}

/// Puts the end of a job that its machine did not report on the time line.
pub(super) fn note_end(recovery: &Recovery, record: &JobRecord) {
    note(
        recovery,
        &record.machine,
        job_ended(record, record.error.clone()),
    );
}

fn job_ended(record: &JobRecord, error: Option<String>) -> Fact {
    Fact::JobEnded {
        job_kind: record.job.kind.word().to_owned(),
        restore_point: record.job.kind.restore_point().to_string(),
        job: record.job.id.clone(),
        error,
    }
}

fn hand_out(
    recovery: &Recovery,
    seen: &Seen,
    state: AgentState,
) -> Result<Option<JobRecord>, Refusal> {
    let machine = seen.id.as_str();
    if state != AgentState::Working
        && let Some(ended) =
            recovery
                .jobs
                .end_stale_restore(machine, seen.heard_before, crate::state::now())?
    {
        let reason = ended.error.clone();
        let reason = reason.unwrap_or_else(|| "interrupted".to_owned());
        note(recovery, machine, job_ended(&ended, Some(reason)));
        return Ok(None);
    }
    let Some(record) = recovery.jobs.hand_out(machine, state)? else {
        return Ok(None);
    };
    let id = record.job.kind.restore_point();
    let published = recovery.store.restore_points.contains(id);
    if matches!(record.job.kind, JobKind::Capture { .. }) && published {
        // The machine restarted between its commit and its last report. Doing it again would only
        // be refused: the restore point is there.
        let summary = vec![format!(
            "restore point {id} was published before the machine restarted"
        )];
        recovery
            .jobs
            .report(&record.job.id, &JobReport::Succeeded { summary })?;
        recovery.store.capture_ended(id);
        return Ok(None);
    }
    let begins = Fact::JobBegins {
        job_kind: record.job.kind.word().to_owned(),
        restore_point: id.to_string(),
        job: record.job.id.clone(),
    };
    note(recovery, machine, begins);
    Ok(Some(record))
}

async fn report(
    State(shared): Shared,
    PathParts(job): PathParts<String>,
    body: Body,
) -> Result<Json<JobReportReply>, Refusal> {
    let report: JobReport = read_json(body, MAX_REPORT).await?;
    let report = match report {
        JobReport::Succeeded { summary } => JobReport::Succeeded {
            summary: summary
                .iter()
                .take(100)
                .map(|text| printable(text, 1000))
                .collect(),
        },
        JobReport::Failed { reason, code } => JobReport::Failed {
            reason: printable(&reason, 4000),
            code: printable(&code, 64),
        },
        progress @ JobReport::Progress { .. } => progress,
    };
    let recovery = Arc::clone(&shared.recovery);
    smol::unblock(move || note_report(&recovery, &job, &report))
        .await
        .map(Json)
}

fn note_report(
    recovery: &Recovery,
    job: &str,
    report: &JobReport,
) -> Result<JobReportReply, Refusal> {
    let reported = recovery.jobs.report(job, report)?;
    let record = reported.job;
    recovery.machines.works(&record.machine);
    if reported.ended {
        let id = record.job.kind.restore_point();
        let ended = job_ended(&record, record.error.clone());
        note(recovery, &record.machine, ended);
        if matches!(record.job.kind, JobKind::Capture { .. }) {
            recovery.store.capture_ended(id);
        }
        if let JobKind::Restore { choices, .. } = &record.job.kind
            && record.state == JobState::Succeeded
            && let Some(name) = &choices.host_name
        {
            recovery
                .machines
                .set_host_name(&record.machine, name.as_str())?;
        }
        if record.state == JobState::Succeeded && record.job.afterwards != Afterwards::Wait {
            recovery.machines.leaves(&record.machine);
        }
    }
    Ok(JobReportReply {
        cancelled: record.state == JobState::Cancelled,
    })
}

/// The keys of the encrypted volumes that a capture opens: for the machine of the job only, as far as it
/// is known who asks.
async fn keys(
    State(shared): Shared,
    peer: Option<Extension<PeerAddress>>,
    PathParts(job): PathParts<String>,
) -> Result<Response, Refusal> {
    let recorder = &shared.recovery.recorder;
    let card = peer.and_then(|Extension(peer)| recorder.machine_of(peer.0));
    let recovery = Arc::clone(&shared.recovery);
    let keys = smol::unblock(move || -> Result<_, Refusal> {
        let record = recovery.jobs.running(&job, "capture")?;
        if let Some(card) = card
            && !recovery.machines.has_card(&record.machine, card)
        {
            log::warn!("job {job}: {card} asks for its keys and is another machine");
            return Err(Refusal::conflict(format!(
                "job {job} is that of another machine; its keys are for that one"
            )));
        }
        Ok(recovery.jobs.keys(&job)?)
    })
    .await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(keys)).into_response())
}

/// The digests of a request body: 32 bytes each.
pub(super) async fn read_digests(body: Body) -> Result<Vec<Digest>, Refusal> {
    let bytes = read_body(body, api::MAX_DIGESTS * Digest::LEN).await?;
    let (digests, rest) = bytes.as_chunks::<{ Digest::LEN }>();
    if !rest.is_empty() {
        return Err(Refusal::bad_request(format!(
            "{} bytes are no whole number of digests (32 bytes each)",
            bytes.len()
        )));
    }
    Ok(digests.iter().copied().map(Digest::from_bytes).collect())
}

async fn missing(
    State(shared): Shared,
    PathParts(job): PathParts<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let digests = read_digests(body).await?;
    let recovery = Arc::clone(&shared.recovery);
    let answer = smol::unblock(move || -> Result<Vec<u8>, Refusal> {
        let record = recovery.jobs.running(&job, "capture")?;
        let (chunks, capture) = (&recovery.store.chunks, record.job.kind.restore_point());
        let missing = |digest| u8::from(chunks.claim(capture, digest).is_none());
        Ok(digests.iter().map(missing).collect())
    })
    .await?;
    Ok(octets(answer))
}

pub(super) fn octets(bytes: Vec<u8>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    (kind, bytes).into_response()
}

async fn upload(
    State(shared): Shared,
    PathParts(job): PathParts<String>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let record = capture(&shared, &job).await?;
    let _permit = shared.uploads.acquire().await;
    let bytes = read_body(body, api::MAX_UPLOAD).await?;
    let recovery = Arc::clone(&shared.recovery);
    smol::unblock(move || -> Result<(), Refusal> {
        let capture = record.job.kind.restore_point();
        let added = recovery.store.chunks.insert(capture, &bytes)?;
        if added.bytes > 0 {
            recovery.jobs.add_stored(&job, added.bytes)?;
        }
        log::debug!(
            "job {job}: {} new chunks, {} bytes",
            added.chunks,
            added.bytes
        );
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The capture that this job is, if it runs: asked before a body is read.
async fn capture(shared: &AgentApi, job: &str) -> Result<JobRecord, Refusal> {
    let (recovery, job) = (Arc::clone(&shared.recovery), job.to_owned());
    let record = smol::unblock(move || recovery.jobs.running(&job, "capture")).await?;
    Ok(record)
}

/// Where a part of a chunk list begins.
#[derive(Deserialize)]
pub(super) struct Offset {
    pub(super) offset: u64,
}

async fn list_part(
    State(shared): Shared,
    PathParts((job, name)): PathParts<(String, String)>,
    query: Result<Query<Offset>, QueryRejection>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let name = parse_list_name(&name)?;
    let Query(Offset { offset }) =
        query.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let record = capture(&shared, &job).await?;
    let _permit = shared.uploads.acquire().await;
    let bytes = read_body(body, api::MAX_UPLOAD).await?;
    let recovery = Arc::clone(&shared.recovery);
    smol::unblock(move || -> Result<(), Refusal> {
        // Again: it may have ended while the body came, and then nothing is staged any more.
        recovery.jobs.running(&job, "capture")?;
        let id = record.job.kind.restore_point();
        let points = &recovery.store.restore_points;
        Ok(points.stage_part(id, name, offset, &bytes)?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn finish_list(
    State(shared): Shared,
    PathParts((job, name)): PathParts<(String, String)>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let name = parse_list_name(&name)?;
    let record = capture(&shared, &job).await?;
    let finish: FinishList = read_json(body, MAX_FINISH).await?;
    let recovery = Arc::clone(&shared.recovery);
    smol::unblock(move || -> Result<(), Refusal> {
        let id = record.job.kind.restore_point();
        let points = &recovery.store.restore_points;
        Ok(points.finish_list(id, name, finish.length, &finish.digest)?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn parse_list_name(text: &str) -> Result<ListName, Refusal> {
    ListName::parse(text).ok_or_else(|| {
        let found: String = text.chars().take(80).collect();
        Refusal::bad_request(format!(
            "`{found}` names no chunk list (expected disk and region, such as 0-3)"
        ))
    })
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|error: backup::digest::DigestError| Refusal::bad_request(error.to_string()))
}

pub(super) fn parse_id(text: String) -> Result<RestorePointId, Refusal> {
    RestorePointId::try_from(text).map_err(|error| Refusal::bad_request(error.to_string()))
}

async fn publish(
    State(shared): Shared,
    PathParts(job): PathParts<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let record = capture(&shared, &job).await?;
    let _permit = shared.large_bodies.acquire().await;
    let bytes = read_body(body, MAX_MANIFEST).await?;
    let recovery = Arc::clone(&shared.recovery);
    let view = smol::unblock(move || -> Result<_, Refusal> {
        let id = record.job.kind.restore_point();
        let facts = CaptureFacts {
            machine: record.machine.clone(),
            machine_name: recovery.machines.name(&record.machine),
            named: false,
            // Read again: uploads may have ended since.
            stored_bytes: recovery.jobs.get(&record.job.id)?.stored_bytes,
            purpose: record.job.kind.purpose(),
        };
        let points = &recovery.store.restore_points;
        let view = points.publish(id, &bytes, &facts, &recovery.store.chunks)?;
        recovery.store.look_for_healing();
        log::info!(
            "restore point {id} of {} published: {} of data, {} new in the store",
            view.machine_name,
            backup::units::HumanBytes(view.data_bytes),
            backup::units::HumanBytes(view.stored_bytes)
        );
        let system = Manifest::from_json(&bytes)
            .ok()
            .and_then(|found| found.system);
        if let Some(host_name) = system.and_then(|system| system.host_name) {
            let host_name = printable(&host_name, 255);
            recovery
                .machines
                .set_host_name(&record.machine, &host_name)?;
        }
        Ok(view)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

async fn restoring(shared: &AgentApi, of: Option<RestorePointId>) -> Result<(), Refusal> {
    let recovery = Arc::clone(&shared.recovery);
    let runs = smol::unblock(move || recovery.jobs.restore_runs(of.as_ref())).await?;
    if runs {
        return Ok(());
    }
    Err(Refusal::conflict(
        "no restore runs that needs this; content is given to running restores only".to_owned(),
    ))
}

async fn manifest(
    State(shared): Shared,
    PathParts(id): PathParts<String>,
) -> Result<Response, Refusal> {
    let id = published(&shared, id)?;
    restoring(&shared, Some(id.clone())).await?;
    let recovery = Arc::clone(&shared.recovery);
    let bytes = smol::unblock(move || recovery.store.restore_points.manifest(&id)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

fn published(shared: &AgentApi, id: String) -> Result<RestorePointId, Refusal> {
    let id = parse_id(id)?;
    if shared.recovery.store.restore_points.contains(&id) {
        Ok(id)
    } else {
        Err(Refusal::not_found(format!(
            "there is no restore point {id}"
        )))
    }
}

/// Which part of a chunk list is wanted; without it, all.
#[derive(Debug, Deserialize)]
struct ListPart {
    #[serde(default)]
    offset: u64,
    len: Option<u64>,
}

async fn chunk_list(
    State(shared): Shared,
    PathParts((id, digest)): PathParts<(String, String)>,
    part: Result<Query<ListPart>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(part) = part.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let id = published(&shared, id)?;
    let digest = parse_digest(&digest)?;
    restoring(&shared, Some(id.clone())).await?;
    let recovery = Arc::clone(&shared.recovery);
    let missing = format!("restore point {id} has no chunk list {digest}");
    let reader =
        smol::unblock(move || recovery.store.restore_points.chunk_list(&id, &digest)).await?;
    let reader = reader.ok_or_else(|| Refusal::not_found(missing))?;
    let reader = reader.part(part.offset, part.len.unwrap_or(u64::MAX));
    let permit = shared.answers.acquire_arc().await;
    Ok(streamed(Some(reader.len()), reader, permit))
}

async fn fetch(State(shared): Shared, body: Body) -> Result<Response, Refusal> {
    let digests = read_digests(body).await?;
    restoring(&shared, None).await?;
    let recovery = Arc::clone(&shared.recovery);
    let reader = smol::unblock(move || recovery.store.chunks.read_records(&digests)).await?;
    let permit = shared.answers.acquire_arc().await;
    Ok(streamed(reader.total_bytes(), reader, permit))
}

/// An answer of `len` bytes, in chunks if that is not known, counted by `permit` until it is given or the
/// client is gone. One batch is read ahead of what is being sent: at most two are in memory.
fn streamed(len: Option<u64>, source: impl Batches, permit: SemaphoreGuardArc) -> Response {
    type Read<B> = (B, Result<Option<Vec<u8>>, StoreError>);
    fn read<B: Batches>(mut source: B) -> smol::Task<Read<B>> {
        smol::unblock(move || {
            let batch = source.next_batch();
            (source, batch)
        })
    }
    let begin = Some((read(source), permit));
    let batches = stream::unfold(begin, |state| async move {
        let (task, permit) = state?;
        match task.await {
            (source, Ok(Some(batch))) => {
                Some((Ok(Bytes::from(batch)), Some((read(source), permit))))
            }
            (_, Ok(None)) => None,
            // Whether its length was announced or it comes in chunks: the client sees that it is cut short.
            (_, Err(error)) => {
                log::error!("{}", crate::store::chain(&error));
                Some((Err(error), None))
            }
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut answer = (kind, Body::from_stream(batches)).into_response();
    if let Some(len) = len {
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_LENGTH, len.into());
    }
    answer
}
