//! Jobs: what the server wants a machine to do, and how it went.

use backup::manifest::{ImageLabel, Purpose, RestorePointId, RestorePointKind};
use backup::plan::Choices;
use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use crate::unlock::VolumePlace;

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobKind {
    /// Save the machine's disks as a new restore point.
    Capture {
        /// The id that the restore point will have.
        restore_point: RestorePointId,
        /// What it will be for.
        #[serde(default)]
        point_kind: RestorePointKind,
        /// What it will be called, if it is to be a factory image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<ImageLabel>,
        /// The encrypted volumes that are to be opened; [`crate::api::job_keys`] has their keys.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unlock: Vec<VolumePlace>,
        /// A program on the machine's running system asked for it: it does it itself, and nobody else.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        native: bool,
    },
    /// Rebuild the machine from a restore point.
    Restore {
        /// Which one.
        restore_point: RestorePointId,
        /// Of which kind that is: a backup is restored, to a factory image a machine is reset.
        #[serde(default)]
        point_kind: RestorePointKind,
        /// What the operator chose.
        choices: Choices,
    },
}

impl JobKind {
    /// The restore point it makes or uses.
    #[must_use]
    pub const fn restore_point(&self) -> &RestorePointId {
        match self {
            Self::Capture { restore_point, .. } | Self::Restore { restore_point, .. } => {
                restore_point
            }
        }
    }

    /// What the restore point it makes or uses is for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        match self {
            Self::Capture {
                point_kind, image, ..
            } => Purpose {
                kind: *point_kind,
                image: image.clone(),
            },
            Self::Restore { point_kind, .. } => Purpose {
                kind: *point_kind,
                image: None,
            },
        }
    }

    /// One word for lists.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Capture { .. } => "capture",
            Self::Restore {
                point_kind: RestorePointKind::Backup,
                ..
            } => "restore",
            Self::Restore {
                point_kind: RestorePointKind::Factory,
                ..
            } => "reset",
        }
    }
}

/// What the machine does after a job that went well. After a failure it always waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Afterwards {
    /// Starts again.
    #[default]
    Reboot,
    /// Switches off.
    PowerOff,
    /// Stays in the environment.
    Wait,
}

/// A job as the agent gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The job's id.
    pub id: String,
    /// What to do.
    #[serde(flatten)]
    pub kind: JobKind,
    /// What to do then.
    pub afterwards: Afterwards,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// The machine has not taken it yet.
    Waiting,
    /// The machine took it and has not ended it.
    Running,
    /// It ended well.
    Succeeded,
    /// It ended badly; the reason is with it.
    Failed,
    /// An operator took it back.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen to it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word that lists, the API and the state file use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A report of the agent on its job, sent by POST to [`crate::api::job_report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum JobReport {
    /// It goes on.
    Progress {
        /// How far.
        progress: Progress,
    },
    /// It ended well.
    Succeeded {
        /// One sentence per fact a person wants to know: bytes, time, what to do next.
        summary: Vec<String>,
    },
    /// It ended badly.
    Failed {
        /// What, where, expected and found, whether the disk was touched, what to do next.
        reason: String,
        /// A machine-readable word: `damaged-chunk`, `refused`, `disk-error`, `network`, `server`,
        /// `tool`, `boot-repair`, `identity`, `wrong-key`, `key-needed`, `cancelled`, `internal`.
        code: String,
    },
}

/// The server's answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReportReply {
    /// The operator took the job back: stop at the next safe place.
    pub cancelled: bool,
}
