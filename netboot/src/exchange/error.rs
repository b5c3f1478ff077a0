//! Why a disk image is not imported or a restore point not exported.

use std::io;
use std::path::{Path, PathBuf};

use backup::manifest::RestorePointId;
use backup::units::HumanBytes;

use crate::control_client::ClientError;
use crate::files::FilesError;
use crate::store::StoreError;

/// What stopped it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The file is no disk image that can be imported.
    #[error("{}: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The image cannot be read.
    #[error("cannot read {}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A tool is missing or failed.
    #[error("{tool} {reason}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// What happened.
        reason: String,
    },
    /// The server said no, or is gone.
    #[error("{what}: {source}; nothing was imported")]
    Server {
        /// What was asked of it.
        what: String,
        /// Why not.
        source: ClientError,
    },
    /// A restore point or the store cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Part of a restore point is damaged.
    #[error(
        "restore point {restore_point} is damaged, so it is not exported: {place}, {reason}. \
         `netboot verify` lists what is damaged; the next capture that has it replaces it"
    )]
    Damaged {
        /// Which one.
        restore_point: RestorePointId,
        /// Which disk and region.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// Something is there already.
    #[error("{} is there already and was not touched; choose another name, or --force to replace it", .0.display())]
    Exists(PathBuf),
    /// It may not be there.
    #[error("{} is not a place to export to: {reason}", path.display())]
    Place {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// No room, known before anything was written.
    #[error(
        "{} has {} of room, the export needs at least {}; nothing was written. Make room or choose another place",
        path.display(), HumanBytes(*free), HumanBytes(*needed)
    )]
    Room {
        /// The folder.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// No room, found while writing.
    #[error(
        "the file system of {} is full; what was written of the export was removed. Make room or choose another place",
        .0.display()
    )]
    Full(PathBuf),
    /// The target cannot be written.
    #[error("{what} {}; what was written of the export was removed", path.display())]
    Output {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A disk that the restore point does not have.
    #[error("restore point {restore_point} has no disk {found}; it has: {disks}")]
    NoDisk {
        /// Which one.
        restore_point: RestorePointId,
        /// What was asked for.
        found: u32,
        /// What there is.
        disks: String,
    },
    /// Something in our own work is not as it must be.
    #[error("internal: {0}")]
    Internal(String),
    /// Somebody ended it.
    #[error("stopped as asked; nothing is left of it")]
    Stopped,
}

impl ExchangeError {
    /// For writing to a target.
    pub(super) fn output(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path),
            _ => Self::Output { what, path, source },
        }
    }

    /// For a file that is no image that can be imported.
    pub(super) fn image(path: &Path, reason: impl Into<String>) -> Self {
        Self::Image {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
