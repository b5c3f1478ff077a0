//! The HTTP API: paths, and the JSON that goes over them.
//!
//! Two listeners share these types. Machines reach [`BEACON`] to [`restore_point_list`] over TCP;
//! operators reach [`MACHINES`] to [`timeline`] over the control socket in the data directory.
//! Every error answer is an [`ApiError`]. Bodies that are not JSON are `application/octet-stream`:
//!
//! | path | request | answer |
//! | --- | --- | --- |
//! | [`missing_chunks`] | digests, 32 bytes each, at most [`MAX_DIGESTS`] | a byte each: 1 missing, 0 stored |
//! | [`upload_chunks`] | [`backup::chunk`] records, at most [`MAX_UPLOAD`] bytes | 204 |
//! | [`list_part`] | PUT `?offset=`: a part of an encoded chunk list, at most [`MAX_UPLOAD`] bytes | 204 |
//! | [`list_part`] | POST: the [`FinishList`] (JSON) | 204, then it is a list of the manifest |
//! | [`publish`] | the manifest (JSON) | 201, then it is a restore point |
//! | [`FETCH_CHUNKS`] | digests | records, in the order asked for |

use backup::Digest;
use backup::hardware::Inventory;
use backup::manifest::{ImageLabel, ImageName, RestorePointId, RestorePointKind};
use backup::plan::{Choices, Refusal, RestorePlan};
use serde::{Deserialize, Serialize};

use crate::beacon::AgentState;
use crate::job::{Afterwards, JobKind, JobState};
use crate::progress::Progress;
use crate::unlock::VolumeKey;

/// POST a [`crate::beacon::Beacon`].
pub const BEACON: &str = "/api/v1/beacon";
/// POST a [`crate::beacon::Beacon`]: a machine asks to be captured. Answered like one, with the job.
pub const CAPTURES: &str = "/api/v1/captures";
/// POST digests, get records.
pub const FETCH_CHUNKS: &str = "/api/v1/chunks/fetch";
/// GET the list of [`MachineView`].
pub const MACHINES: &str = "/api/v1/machines";
/// GET the list of [`JobView`]; POST a [`JobRequest`].
pub const JOBS: &str = "/api/v1/jobs";
/// POST a [`PlanRequest`], get the [`PlanView`]; nothing is started or touched.
pub const PLANS: &str = "/api/v1/plans";
/// GET the list of [`LoaderView`].
pub const LOADERS: &str = "/api/v1/loaders";
/// GET the list of [`RestorePointView`].
pub const RESTORE_POINTS: &str = "/api/v1/restore-points";

/// POST a [`FactoryRequest`], get the [`RestorePointView`]: a factory image is made from a restore
/// point that is there.
pub const FACTORY_IMAGES: &str = "/api/v1/factory-images";

/// GET the flight recorder's list of machines.
pub const TIMELINES: &str = "/api/v1/timelines";

/// GET the [`ServerView`].
pub const SERVER: &str = "/api/v1/server";

/// The most digests in one request.
pub const MAX_DIGESTS: usize = 1024;
/// The most bytes in one upload of records.
pub const MAX_UPLOAD: usize = 8 * 1024 * 1024;

/// POST a [`crate::job::JobReport`].
#[must_use]
pub fn job_report(job: &str) -> String {
    format!("/api/v1/jobs/{job}/report")
}

/// POST digests, get which are missing.
#[must_use]
pub fn missing_chunks(job: &str) -> String {
    format!("/api/v1/jobs/{job}/chunks/missing")
}

/// POST records.
#[must_use]
pub fn upload_chunks(job: &str) -> String {
    format!("/api/v1/jobs/{job}/chunks")
}

/// GET the [`VolumeKey`]s of a capture that runs. 409 with the code `key-needed` when the server has them no
/// more: it keeps keys in memory only.
#[must_use]
pub fn job_keys(job: &str) -> String {
    format!("/api/v1/jobs/{job}/keys")
}

/// A chunk list while it is being captured; `name` is `{disk}-{region}`, decimal.
///
/// PUT with `?offset=BYTES`: a part, 204 when the list now ends at offset + length, also when that was
/// there already; offset 0 begins it anew, a gap is 409. POST: [`FinishList`].
#[must_use]
pub fn list_part(job: &str, name: &str) -> String {
    format!("/api/v1/jobs/{job}/chunk-lists/{name}")
}

/// Says that a chunk list is whole: 204 when length and BLAKE3 are right, and it then is the list of
/// that digest; else 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishList {
    /// Its length in bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// POST the manifest: the commit of a capture.
#[must_use]
pub fn publish(job: &str) -> String {
    format!("/api/v1/jobs/{job}/manifest")
}

/// GET a manifest.
#[must_use]
pub fn restore_point_manifest(id: &RestorePointId) -> String {
    format!("/api/v1/restore-points/{id}/manifest")
}

/// GET an encoded chunk list of a restore point.
#[must_use]
pub fn restore_point_list(id: &RestorePointId, digest: &Digest) -> String {
    format!("/api/v1/restore-points/{id}/chunk-lists/{digest}")
}

/// GET `len` bytes of an encoded chunk list of a restore point, from byte `offset`; what is past its end is left
/// out.
#[must_use]
pub fn restore_point_list_part(
    id: &RestorePointId,
    digest: &Digest,
    offset: u64,
    len: u64,
) -> String {
    let list = restore_point_list(id, digest);
    format!("{list}?offset={offset}&len={len}")
}

/// POST, without a body: take a job back.
#[must_use]
pub fn cancel_job(job: &str) -> String {
    format!("/api/v1/jobs/{job}/cancel")
}

/// GET the flight recorder's view of a machine, by any name a machine has.
#[must_use]
pub fn timeline(machine: &str) -> String {
    format!("/api/v1/machines/{machine}/timeline")
}

/// The running server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Its release.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Its process id.
    pub process: u32,
}

/// GET the [`MachineNextBoot`] of a machine, by any name a machine has; POST a [`NextBootRequest`].
#[must_use]
pub fn next_boot(machine: &str) -> String {
    format!("/api/v1/machines/{machine}/next-boot")
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// A word for programs: `not-found`, `ambiguous`, `bad-request`, `conflict`, `damaged-chunk`,
    /// `missing-chunk`, `key-needed`, `store-full`, `wrong-kind` (a factory image where a backup is
    /// meant, or the other way round), `internal`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
}

/// A machine as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// The server's id.
    pub id: String,
    /// Host name if known, else product and serial number, else the Ethernet address.
    pub name: String,
    /// What it does now; `None` when it is not in the environment.
    pub state: Option<AgentState>,
    /// What its agent last complained of.
    pub error: Option<String>,
    /// The code on its screen while it is in the environment.
    pub pairing_code: Option<String>,
    /// Seconds since 1970-01-01 UTC of the last beacon.
    pub last_beacon: u64,
    /// Milliseconds from link to the first beacon at its last boot.
    pub since_link_ms: Option<u64>,
    /// What an operator set for its next boot.
    #[serde(default)]
    pub next_boot: Option<NextBootView>,
    /// What it is made of.
    pub inventory: Inventory,
}

/// A request for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Which machine: host name, Ethernet address, serial number or the beginning of its id.
    pub machine: String,
    /// What to do.
    pub action: Action,
    /// What then.
    #[serde(default)]
    pub afterwards: Afterwards,
}

/// What an operator asks a machine to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Save its disks.
    Capture {
        /// What the restore point is for.
        #[serde(default)]
        point_kind: RestorePointKind,
        /// What it is called, if it is a factory image.
        #[serde(default)]
        image: Option<ImageLabel>,
        /// Encrypted volumes that are to be opened, with their keys.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unlock: Vec<VolumeKey>,
    },
    /// Rebuild it from a backup.
    Restore {
        /// Id of the restore point, or its beginning, or `latest` of this machine.
        restore_point: String,
        /// Which disk goes where.
        #[serde(default)]
        choices: Choices,
    },
    /// Rebuild it from a factory image.
    Reset {
        /// Name of the image, its id or its beginning; without it the only one that there is.
        #[serde(default)]
        image: Option<String>,
        /// Which disk goes where.
        #[serde(default)]
        choices: Choices,
    },
}

/// What a machine is to boot next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextBoot {
    /// The recovery environment.
    Recovery,
    /// Its local disk.
    LocalDisk,
    /// The menu.
    Menu,
}

impl NextBoot {
    /// What is booted, in the middle of a sentence.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Recovery => "the recovery environment",
            Self::LocalDisk => "its local disk",
            Self::Menu => "the menu",
        }
    }
}

/// What an operator set for a machine's next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextBootView {
    /// What it boots.
    pub boots: NextBoot,
    /// Every time, not once.
    #[serde(default)]
    pub always: bool,
}

impl NextBootView {
    /// What is booted and how often, in the middle of a sentence.
    #[must_use]
    pub fn words(self) -> String {
        let often = if self.always { "every time" } else { "once" };
        format!("{}, {often}", self.boots.words())
    }
}

/// A request to set what a machine boots next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextBootRequest {
    /// What; `None` for what the server decides.
    pub next_boot: Option<NextBootView>,
}

/// What a machine boots next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNextBoot {
    /// The machine's id; the Ethernet address of one that nobody knows.
    pub machine: String,
    /// What it is called.
    pub name: String,
    /// What was set.
    pub next_boot: Option<NextBootView>,
    /// It has a job, which comes first.
    pub has_job: bool,
    /// What that job does: `capture`, `restore` or `reset`.
    #[serde(default)]
    pub job: Option<String>,
}

/// Where a loader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoaderState {
    /// It, or what it needs, is not in the boot folder.
    Missing,
    /// It is there; another one comes first.
    There,
    /// A machine of which nothing is known is given this one.
    Served,
}

/// A loader that a kind of firmware may be given; the first one of a firmware is tried first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderView {
    /// What people call the firmware.
    pub firmware: String,
    /// What it says it is (option 93).
    pub architectures: Vec<u16>,
    /// How it fetches: `tftp` or `http`.
    pub protocol: String,
    /// The file.
    pub loader: String,
    /// `ipxe`, `shim` or `unified`.
    pub kind: String,
    /// What of it is missing.
    pub missing: Vec<String>,
    /// Where this server is the DHCP server.
    pub server: LoaderState,
    /// Where it is a proxy beside another one.
    pub proxy: LoaderState,
}

/// A job as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// The machine's id.
    pub machine: String,
    /// The machine's name.
    pub machine_name: String,
    /// What it does.
    #[serde(flatten)]
    pub kind: JobKind,
    /// What then.
    pub afterwards: Afterwards,
    /// Where it stands.
    pub state: JobState,
    /// How far it is, while it runs and as it was at its end.
    pub progress: Option<Progress>,
    /// Why it failed.
    pub error: Option<String>,
    /// The word for programs that goes with `error`.
    pub error_code: Option<String>,
    /// What it did, when it succeeded.
    pub summary: Vec<String>,
    /// Seconds since 1970-01-01 UTC.
    pub created_at: u64,
    /// When the machine took it.
    pub started_at: Option<u64>,
    /// When it ended.
    pub ended_at: Option<u64>,
}

/// A restore point as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePointView {
    /// Its id.
    pub id: RestorePointId,
    /// The machine's id, if that machine is known.
    pub machine: Option<String>,
    /// The machine's name at the time.
    pub machine_name: String,
    /// Seconds since 1970-01-01 UTC.
    pub captured_at: u64,
    /// Operating system, if one was found.
    pub system: Option<String>,
    /// `successful`, `warnings`, `damaged` (a chunk of it is damaged or gone), or `failed` (a capture
    /// that made none).
    pub status: String,
    /// The warnings, what is damaged, or why it failed.
    pub warnings: Vec<String>,
    /// Sum of the disks' sizes in bytes.
    pub disk_bytes: u64,
    /// Bytes of data in it before deduplication and compression.
    pub data_bytes: u64,
    /// Bytes that its capture added to the store.
    pub stored_bytes: u64,
    /// `backup`, or `factory`: an image to reset to, which no rule removes.
    #[serde(default = "restore_point_kind")]
    pub kind: String,
    /// What it is called, if it is a factory image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageLabel>,
    /// Whether an operator said that it stays.
    #[serde(default)]
    pub pinned: bool,
}

/// The kind of a restore point that does not say which it is.
#[must_use]
pub fn restore_point_kind() -> String {
    RestorePointKind::Backup.word().to_owned()
}

impl RestorePointView {
    /// Whether it is an image to reset machines to.
    #[must_use]
    pub fn is_factory(&self) -> bool {
        self.kind == RestorePointKind::Factory.word()
    }

    /// What it is called, if it is a factory image that has a name.
    #[must_use]
    pub fn image_name(&self) -> Option<&ImageName> {
        self.image.as_ref().and_then(|image| image.name.as_ref())
    }
}

/// A request for a factory image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactoryRequest {
    /// The restore point that it is made from: name, id or its beginning.
    pub from: String,
    /// What it will be called.
    #[serde(default)]
    pub image: ImageLabel,
}

/// Asks what a restore would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The machine, by name, Ethernet address, serial number or the beginning of its id.
    pub machine: String,
    /// The restore point's id, its beginning, or `latest` of the machine.
    pub restore_point: String,
    /// What a restore would be told.
    #[serde(default)]
    pub choices: Choices,
}

/// What a restore would do, or why it is not possible: planned from what the machine last reported of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    /// The machine's id.
    pub machine: String,
    /// Its name.
    pub machine_name: String,
    /// When its disks were last seen, in seconds since 1970.
    pub last_beacon: u64,
    /// The restore point.
    pub restore_point: RestorePointId,
    /// The plan, when the restore is possible.
    pub plan: Option<RestorePlan>,
    /// Every reason why it is not; empty when there is a plan.
    pub refusals: Vec<Refusal>,
    /// Both disks as ASCII, at most 80 columns; empty without a plan.
    pub picture: String,
}
