//! Imports of disk images over the control socket: paths, and the JSON that goes over them.
//!
//! An import goes as a capture does, with the restore point in place of the job:
//!
//! | path | request | answer |
//! | --- | --- | --- |
//! | [`IMPORTS`] | POST the [`ImportRequest`] | 201 and the [`ImportView`] |
//! | [`missing_chunks`] | digests, 32 bytes each | a byte each: 1 missing, 0 stored |
//! | [`upload_chunks`] | records | 204 |
//! | [`list_part`] | PUT `?offset=`: a part of an encoded chunk list | 204 |
//! | [`list_part`] | POST: the [`FinishList`](crate::api::FinishList) | 204 |
//! | [`publish`] | the manifest (JSON) | 201 and the [`RestorePointView`](crate::api::RestorePointView) |
//! | [`import`] | DELETE: it is given up | 204 |

use backup::hardware::MachineIdentity;
use backup::manifest::{Purpose, RestorePointId};
use serde::{Deserialize, Serialize};

/// POST an [`ImportRequest`].
pub const IMPORTS: &str = "/api/v1/imports";

/// A disk image is going to be imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The machine that it is of, as a person named it.
    pub machine: Option<String>,
    /// What the machine is called when nobody named it and the image has no host name.
    pub otherwise: String,
    /// What the restore point is for.
    #[serde(default)]
    pub purpose: Purpose,
}

/// An import that may begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportView {
    /// What the restore point will be called.
    pub restore_point: RestorePointId,
    /// The server's id of the machine.
    pub machine: String,
    /// What the machine is called, unless the image has a host name and nobody named it.
    pub machine_name: String,
    /// Who the machine is, when the server knows it.
    pub identity: MachineIdentity,
}

/// One import.
#[must_use]
pub fn import(id: &RestorePointId) -> String {
    format!("{IMPORTS}/{id}")
}

/// POST digests, get which are missing.
#[must_use]
pub fn missing_chunks(id: &RestorePointId) -> String {
    format!("{IMPORTS}/{id}/chunks/missing")
}

/// POST records.
#[must_use]
pub fn upload_chunks(id: &RestorePointId) -> String {
    format!("{IMPORTS}/{id}/chunks")
}

/// A chunk list; `name` is `{disk}-{region}`, decimal.
#[must_use]
pub fn list_part(id: &RestorePointId, name: &str) -> String {
    format!("{IMPORTS}/{id}/chunk-lists/{name}")
}

/// POST the manifest.
#[must_use]
pub fn publish(id: &RestorePointId) -> String {
    format!("{IMPORTS}/{id}/manifest")
}
