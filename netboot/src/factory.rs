//! Factory images (C5): restore points to reset machines to, tied to none.
//!
//! A factory image is a restore point of its own, with a manifest and chunk lists of its own, whether a
//! capture made it or it was made from a restore point that was there. In the second case nothing is
//! read from a machine: the lists name the same chunks, so that it takes no more room than they do,
//! and either of the two can be forgotten without the other.
//!
//! Invariant: no two images, and no image and a capture that is to be one, have the same name; names
//! are given, and images are chosen, under one lock ([`Recovery::choosing`]).

use std::sync::PoisonError;

use backup::manifest::{
    ImageLabel, ImageName, Manifest, ManifestError, Purpose, RestorePointId, RestorePointKind,
};
use protocol::api::{FactoryRequest, RestorePointView};
use protocol::job::JobKind;

use crate::http::{NewIdError, Recovery};
use crate::jobs::JobError;
use crate::store::restore_points::RestorePointNameError;
use crate::store::{CaptureFacts, PublishError, StoreError};

/// The most characters of a description.
const MAX_DESCRIPTION: usize = 500;

/// What is not done with a factory image, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FactoryError {
    /// A restore point that is not named, or not alone.
    #[error(transparent)]
    Name(#[from] RestorePointNameError),
    /// Another image has the name.
    #[error("the name `{name}` is taken: {by} has it; choose another one")]
    Taken {
        /// The name.
        name: ImageName,
        /// What has it.
        by: String,
    },
    /// The description is none.
    #[error(
        "a description has 1 to {MAX_DESCRIPTION} characters and no line breaks (found {found} characters)"
    )]
    Description {
        /// How long it is.
        found: usize,
    },
    /// Only factory images are called something.
    #[error("only a factory image has a name or a description, a backup goes by its id")]
    Backup,
    /// There is nothing to reset to.
    #[error("there is no factory image yet: make one with `netboot factory create`")]
    NoImage,
    /// There are several.
    #[error("there are {} factory images, say which: {}", images.len(), images.join(", "))]
    SeveralImages {
        /// What they are called.
        images: Vec<String>,
    },
    /// A backup is no factory image.
    #[error(
        "{id} is a backup of {machine}, no factory image: `netboot restore` brings it back, `netboot factory create --from {id}` makes an image of it"
    )]
    NotFactory {
        /// The restore point.
        id: String,
        /// The machine it is of.
        machine: String,
    },
    /// A factory image is no backup.
    #[error("{image} is a factory image, no backup: `netboot reset` resets a machine to it")]
    NotBackup {
        /// What it is called.
        image: String,
    },
    /// The manifest of a restore point that was published cannot be used.
    #[error("the manifest of restore point {id} cannot be used")]
    Manifest {
        /// The restore point.
        id: String,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// The manifest cannot be written.
    #[error("cannot make a manifest")]
    Json(#[from] serde_json::Error),
    /// It is not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// There is no id for it.
    #[error(transparent)]
    Id(#[from] NewIdError),
    /// The state cannot be read.
    #[error(transparent)]
    Jobs(#[from] JobError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an image is called where it is spoken of: its name, else its id.
pub(crate) fn called(view: &RestorePointView) -> String {
    match view.image_name() {
        Some(name) => format!("{name} ({})", view.id),
        None => view.id.to_string(),
    }
}

/// Checks what a capture that is ordered is to be called; the caller holds the lock until it has a
/// job.
///
/// # Errors
/// [`FactoryError::Taken`], [`FactoryError::Description`] and [`FactoryError::Backup`].
pub(crate) fn check_purpose(recovery: &Recovery, purpose: &Purpose) -> Result<(), FactoryError> {
    let Some(image) = &purpose.image else {
        return Ok(());
    };
    if purpose.kind != RestorePointKind::Factory {
        return Err(FactoryError::Backup);
    }
    check_label(recovery, image)
}

fn check_label(recovery: &Recovery, image: &ImageLabel) -> Result<(), FactoryError> {
    if let Some(text) = &image.description {
        let found = text.chars().count();
        if !(1..=MAX_DESCRIPTION).contains(&found) || text.chars().any(char::is_control) {
            return Err(FactoryError::Description { found });
        }
    }
    let Some(name) = &image.name else {
        return Ok(());
    };
    let taken = |by: String| FactoryError::Taken {
        name: name.clone(),
        by,
    };
    for view in recovery.store.restore_points.list() {
        if view.image_name() == Some(name) {
            return Err(taken(format!("factory image {}", view.id)));
        }
        // It could not be told from the id then.
        if name.is(view.id.as_str()) {
            return Err(taken(format!("restore point {}, as its id,", view.id)));
        }
    }
    for record in recovery.jobs.all_unfinished_captures()? {
        if let JobKind::Capture {
            image: Some(image), ..
        } = &record.job.kind
            && image.name.as_ref() == Some(name)
        {
            return Err(taken(format!("the capture of job {}", record.job.id)));
        }
    }
    Ok(())
}

/// The image that a machine is to be reset to: the one that is named, or the only one.
///
/// # Errors
/// [`FactoryError`] when none, or more than one, is meant.
pub(crate) fn resolve(
    recovery: &Recovery,
    name: Option<&str>,
) -> Result<RestorePointView, FactoryError> {
    let points = &recovery.store.restore_points;
    let mut all = points.list();
    let Some(name) = name else {
        all.retain(RestorePointView::is_factory);
        return match all.pop() {
            None => Err(FactoryError::NoImage),
            Some(only) if all.is_empty() => Ok(only),
            Some(last) => Err(FactoryError::SeveralImages {
                images: all.iter().chain([&last]).map(called).collect(),
            }),
        };
    };
    // `latest` is a machine's backup; here it is a name that nothing has.
    let id = points.resolve(name, ("", "no machine"))?;
    let unknown = || RestorePointNameError::Unknown {
        name: name.chars().take(80).collect(),
    };
    let found = all.into_iter().find(|view| view.id == id);
    let view = found.ok_or_else(unknown)?;
    if !view.is_factory() {
        return Err(FactoryError::NotFactory {
            id: view.id.to_string(),
            machine: view.machine_name,
        });
    }
    Ok(view)
}

/// Refuses to restore a factory image: that is a reset, and is asked for by its own name.
///
/// # Errors
/// [`FactoryError::NotBackup`].
pub(crate) fn check_is_backup(
    recovery: &Recovery,
    id: &RestorePointId,
) -> Result<(), FactoryError> {
    let all = recovery.store.restore_points.list();
    match all.iter().find(|view| view.id == *id) {
        Some(view) if view.is_factory() => Err(FactoryError::NotBackup {
            image: called(view),
        }),
        _ => Ok(()),
    }
}

/// Makes a factory image from a restore point that is there: the same chunks, by a manifest of its own,
/// published as a capture is.
///
/// # Errors
/// [`FactoryError`]; then nothing is published.
pub(crate) fn create_from(
    recovery: &Recovery,
    request: &FactoryRequest,
) -> Result<RestorePointView, FactoryError> {
    // Held to the end: neither the name nor the restore point may be gone before the image is there.
    let _choosing = recovery
        .choosing
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    check_label(recovery, &request.image)?;
    let points = &recovery.store.restore_points;
    let from = points.resolve(&request.from, ("", "no machine"))?;
    let found = points.list().into_iter().find(|view| view.id == from);
    let source = found.ok_or_else(|| RestorePointNameError::Unknown {
        name: from.to_string(),
    })?;
    let manifest = Manifest::from_json(&points.manifest(&from)?);
    let mut manifest = manifest.map_err(|source| FactoryError::Manifest {
        id: from.to_string(),
        source,
    })?;
    let id = recovery.new_restore_point()?;
    let purpose = Purpose {
        kind: RestorePointKind::Factory,
        image: Some(request.image.clone()).filter(|image| *image != ImageLabel::default()),
    };
    manifest.id = id.clone();
    manifest.kind = purpose.kind;
    manifest.image.clone_from(&purpose.image);
    let bytes = serde_json::to_vec(&manifest)?;
    let facts = CaptureFacts {
        machine: source.machine.unwrap_or_default(),
        machine_name: source.machine_name,
        named: true,
        stored_bytes: 0,
        purpose,
    };
    // Publishing checks the copies and claims what they name, as if a machine had sent them.
    let published = points
        .stage_copies(&from, &id, &manifest)
        .map_err(FactoryError::from)
        .and_then(|()| Ok(points.publish(&id, &bytes, &facts, &recovery.store.chunks)?));
    recovery.store.capture_ended(&id);
    let view = published?;
    log::info!(
        "factory image {} made from restore point {from}",
        called(&view)
    );
    Ok(view)
}
