//! Why a job fails, and what that means for the machine's disks.
//!
//! Invariant: every fault says what, where, expected and found; whether a disk was touched and what
//! to do next is added once, in [`report`], from how far the job was.

use backup::Digest;
use backup::chunk::ChunkError;
use backup::manifest::ManifestError;
use backup::plan::Refusal;

use crate::device::DeviceError;
use crate::job::JobError;
use crate::log::chain;
use crate::net::http::RequestError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The server gave no usable answer.
    #[error("{doing} failed")]
    Server {
        /// What the engine wanted of it.
        doing: String,
        /// Why it did not get it.
        #[source]
        source: RequestError,
    },
    /// The plan says no.
    #[error("the plan refuses: {}", .0.iter().map(|refusal| refusal.text.as_str()).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// The machine is not as the plan expects it.
    #[error("{0}")]
    NotAsPlanned(String),
    /// The server sent something else than what was asked for.
    #[error("the server sent {found} (expected {expected})")]
    OtherAnswer {
        /// What came.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The manifest is not usable.
    #[error("the manifest of restore point {restore_point} is not usable")]
    Manifest {
        /// Which one.
        restore_point: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A chunk list is not usable.
    #[error("chunk list {digest} is not usable")]
    ChunkList {
        /// Which one.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ChunkError,
    },
    /// The server sent bytes that are not the chunk, twice, or has it no more.
    #[error("chunk {digest} for {device} at byte {offset} is damaged: {reason}")]
    DamagedChunk {
        /// Which one.
        digest: Digest,
        /// Where it belongs.
        device: String,
        /// Byte offset on that disk.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A disk failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What was written reads back differently.
    #[error("{device} does not hold what was written to it: {what} at byte {offset} differs")]
    ReadBack {
        /// Which disk.
        device: String,
        /// What was compared.
        what: String,
        /// Byte offset of the compared piece.
        offset: u64,
    },
    /// A key does not open its volume.
    #[error("the key for {place} does not open it: {reason}; nothing was sent")]
    Key {
        /// The volume.
        place: String,
        /// Why not.
        reason: String,
    },
    /// A tool is not there or failed.
    #[error("{tool}: {reason}")]
    Tool {
        /// Which tool, with its arguments.
        tool: String,
        /// What it said.
        reason: String,
    },
    /// The firmware's variables or the files that start the machine could not be changed.
    #[error("{what}")]
    Boot {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A copy could not be given an identity of its own.
    #[error("the copy gets no identity of its own: {what}")]
    Identity {
        /// What was tried, and where.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What was restored is not such that it can be changed as was asked for, which only the written disks show. The
    /// same restore ends the same way each time.
    #[error("{reason}")]
    Unchangeable {
        /// What was wanted, and why it cannot be.
        reason: String,
        /// What to do instead of the same restore.
        instead: String,
        /// The word for programs.
        code: &'static str,
    },
    /// The operator took the job back.
    #[error("the job was taken back")]
    Cancelled,
    /// Something that should not be.
    #[error("{0}")]
    Internal(String),
}

impl Fault {
    /// The word for programs, see [`protocol::job::JobReport::Failed`].
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Server { source, .. } => match source {
                RequestError::Unreachable { .. } => "network",
                RequestError::Cancelled => "cancelled",
                _ if source.code() == Some("damaged-chunk") => "damaged-chunk",
                _ if source.code() == Some("key-needed") => "key-needed",
                _ => "server",
            },
            Self::Refused(_) | Self::NotAsPlanned(_) => "refused",
            Self::OtherAnswer { .. } | Self::Manifest { .. } | Self::ChunkList { .. } => "server",
            Self::DamagedChunk { .. } => "damaged-chunk",
            Self::Device(
                DeviceError::Busy { .. } | DeviceError::InUse { .. } | DeviceError::Other { .. },
            ) => "refused",
            Self::Device(_) | Self::ReadBack { .. } => "disk-error",
            Self::Key { .. } => "wrong-key",
            Self::Tool { .. } => "tool",
            Self::Boot { .. } => "boot-repair",
            Self::Identity { .. } => "identity",
            Self::Unchangeable { code, .. } => code,
            Self::Cancelled => "cancelled",
            Self::Internal(_) => "internal",
        }
    }

    /// Names what was wanted of the server.
    pub(crate) fn server(doing: impl Into<String>) -> impl FnOnce(RequestError) -> Self {
        move |source| match source {
            RequestError::Cancelled => Self::Cancelled,
            source => Self::Server {
                doing: doing.into(),
                source,
            },
        }
    }
}

/// What a job has done to the machine's disks so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touched {
    /// Nothing is ever written: a capture.
    ReadOnly,
    /// Nothing was written yet.
    Nothing,
    /// Writing has begun; the disks do not boot.
    Begun,
    /// Writing has begun, to some partitions only.
    Volumes,
    /// Those partitions are written; their file systems grow.
    VolumesWhole,
    /// All but the first sectors is written and checked; those, by which a disk starts, are being
    /// written.
    Committing,
    /// The tables are written.
    Committed,
}

/// The fault as it goes to people and to the server.
pub(crate) fn report(fault: &Fault, touched: Touched) -> JobError {
    let mut reason = chain(fault);
    let next = match touched {
        Touched::ReadOnly => {
            "the machine's disks were only read; no restore point was made; start the capture again"
        }
        Touched::Nothing => "no disk was touched",
        Touched::Begun => {
            "the disk was partly written and does not boot; start the same restore again, it goes \
             on where it stopped"
        }
        Touched::Volumes => {
            "the chosen partitions were partly written and hold nothing usable, all else on the disk \
             is as it was; start the same restore again"
        }
        Touched::VolumesWhole => {
            "the data of the chosen partitions is written and whole; only what is named above is not done; \
             start the same restore again"
        }
        Touched::Committing => {
            "the data is written and whole, but not each disk is known to have its first sector, by \
             which it starts; start the same restore again"
        }
        Touched::Committed => {
            "the data and the partition table are written and whole; only what is named above is \
             not done; start the same restore again or set the boot entry in the firmware's menu"
        }
    };
    reason.push_str("; ");
    match fault {
        Fault::Unchangeable { instead, .. } if touched == Touched::Begun => {
            reason.push_str("the disk was partly written and does not boot; ");
            reason.push_str(instead);
        }
        _ => reason.push_str(next),
    }
    JobError {
        reason,
        code: fault.code().to_owned(),
    }
}
