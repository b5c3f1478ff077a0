//! The files in a restore point: finding them and taking them out.
//!
//! It works on the store's files alone, beside a running server or without one, with no mount and without
//! root: a volume is read through [`crate::store::volume_reader`], its files through
//! [`backup::filesystem::tree`]. What is *not* here: how commands print (`commands::files`).
//!
//! Invariant: names and links come from the captured disk and are believed nothing: a name never leads
//! outside the folder that is written to, and what cannot be read is reported by its path while the rest
//! goes on.

mod archive;
mod attributes;
mod compare;
mod content;
mod folder;
pub(crate) mod name;
mod path;
mod take;
mod tree_walk;
mod volumes;

#[cfg(test)]
mod logical_tests;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use backup::filesystem::tree::TreeError;
use backup::manifest::{Manifest, ManifestError, RestorePointId};

use crate::store::restore_points::RestorePointNameError;
use crate::store::{Store, StoreError};

pub(crate) use archive::ArchiveKind;
pub(crate) use compare::{Comparison, compare};
pub(crate) use folder::OnClash;
pub(crate) use path::{Spec, find};
pub(crate) use take::{Destination, Progress, Summary, take};
pub(crate) use tree_walk::{Step, walk};
pub(crate) use volumes::{VolumeView, coverage, open, place, view_all};

/// Why files cannot be shown or taken out at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such restore point.
    #[error(transparent)]
    Name(#[from] RestorePointNameError),
    /// No such machine in the catalogue, or several.
    #[error("{0}")]
    Machine(String),
    /// The manifest cannot be used.
    #[error("the manifest of restore point {id} cannot be used")]
    Manifest {
        /// The restore point.
        id: RestorePointId,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A volume that is not there, or not named clearly.
    #[error("{0}")]
    Volume(String),
    /// A volume whose files cannot be read.
    #[error("the files of volume {volume} cannot be read")]
    Unreadable {
        /// Its number.
        volume: String,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// A path that leads nowhere.
    #[error("{path}: {reason}")]
    Path {
        /// The path, harmless to a terminal.
        path: String,
        /// Why.
        reason: String,
    },
    /// What would be written is there already.
    #[error(
        "{count} of the names to be written are there already:\n{}\nNothing was written. Choose with --on-clash overwrite, skip or keep-both",
        names.join("\n")
    )]
    Clashes {
        /// How many.
        count: u64,
        /// The first of them.
        names: Vec<String>,
    },
    /// The place to write to refused.
    #[error("{what} {}", path.display())]
    Output {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The id of the restore point that `name` means; `machine` says whose `latest`.
///
/// # Errors
/// [`FilesError::Name`] and [`FilesError::Machine`].
pub(crate) fn resolve(
    store: &Store,
    name: &str,
    machine: Option<&str>,
) -> Result<RestorePointId, FilesError> {
    let own = match machine {
        Some(machine) => machine_of(store, machine)?,
        None if name == "latest" => {
            return Err(FilesError::Machine(
                "`latest` needs --machine to say of which machine".to_owned(),
            ));
        }
        None => (String::new(), String::new()),
    };
    let id = store.restore_points.resolve(name, (&own.0, &own.1))?;
    Ok(id)
}

/// Id and name of the machine with restore points that `name` means: its name, its id, or the beginning of
/// its id.
///
/// # Errors
/// [`FilesError::Machine`] when none or several do.
pub(crate) fn machine_of(store: &Store, name: &str) -> Result<(String, String), FilesError> {
    let mut found: Vec<(String, String)> = Vec::new();
    for view in store.restore_points.list() {
        let Some(id) = view.machine.clone() else {
            continue;
        };
        let means = view.machine_name.eq_ignore_ascii_case(name)
            || (!name.is_empty() && id.starts_with(name));
        if means {
            found.retain(|(other, _)| *other != id);
            found.push((id, view.machine_name));
        }
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => Err(FilesError::Machine(format!(
            "no restore point is of a machine `{name}` (`netboot restore-points` lists them)"
        ))),
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|(id, name)| format!("{name} ({id})"))
                .collect();
            Err(FilesError::Machine(format!(
                "`{name}` is the name of several machines: {}",
                names.join(", ")
            )))
        }
    }
}

/// The manifest of a restore point.
///
/// # Errors
/// [`FilesError::Store`] and [`FilesError::Manifest`].
pub(crate) fn manifest(store: &Store, id: &RestorePointId) -> Result<Manifest, FilesError> {
    let bytes = store.restore_points.manifest(id)?;
    Manifest::from_json(&bytes).map_err(|source| FilesError::Manifest {
        id: id.clone(),
        source,
    })
}
