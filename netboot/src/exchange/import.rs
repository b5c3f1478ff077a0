//! Imports: the disk of an image becomes a restore point, as a capture would have made it.
//!
//! What is saved, how it is cut and what it is called is decided by the code that captures use
//! (`backup::plan`, `backup::chunk`, `backup::system`). One thread reads in disk order, workers cut, digest,
//! compress and send ([`mod@send`]).
//!
//! Invariant: the image is opened read only; the manifest is the last thing sent, and only after the image was
//! found to be as it was when it was opened.

use axum::http::Method;
use backup::SectorSize;
use backup::filesystem::ReadAt;
use backup::hardware::FirmwareKind;
use backup::lvm::MappedVolume;
use backup::manifest::{ChunkListRef, DiskImage, Firmware, Manifest, Purpose, RestorePointId};
use backup::plan::kept::KeptPlan;
use protocol::api::RestorePointView;
use protocol::import::{self as api, ImportRequest, ImportView};
use serde::Serialize;

use self::plan::{Planned, plan};
use self::send::{Sent, Source, send};
use super::{ExchangeError, Image, ImageFormat, OnProgress, Progress, Stop};
use crate::control_client::{ClientError, ControlClient};
use crate::store::chain;

mod plan;
mod send;

/// What a person says of an image.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    /// The machine that it is of.
    pub(crate) machine: Option<&'a str>,
    /// What the restore point is for.
    pub(crate) purpose: Purpose,
    /// The sector size of its disk.
    pub(crate) sector: SectorSize,
    /// The architecture of the machine, if it cannot be told from the image.
    pub(crate) architecture: Option<&'a str>,
}

/// What an import did.
#[derive(Debug, Serialize)]
pub(crate) struct ImportSummary {
    /// The restore point.
    pub(crate) restore_point: RestorePointView,
    /// What the images are.
    pub(crate) formats: Vec<ImageFormat>,
    /// Bytes of their disks that were read.
    pub(crate) read_bytes: u64,
    /// Chunks that the store lacked.
    pub(crate) new_chunks: u64,
    /// What is saved of each region, for people.
    pub(crate) regions: Vec<String>,
}

/// Imports the disks of a machine, each in an image.
///
/// # Errors
/// [`ExchangeError`]; then there is no restore point, and what was sent is given up.
pub(crate) fn import(
    client: &ControlClient,
    images: &[Image],
    origin: &Origin<'_>,
    progress: OnProgress<'_>,
    stop: &Stop,
) -> Result<ImportSummary, ExchangeError> {
    let planned = plan(images, origin.sector, stop)?;
    let stem = images.first().and_then(|image| image.path.file_stem());
    let stem = stem.unwrap_or_default().to_string_lossy().into_owned();
    let host_name = planned
        .system
        .as_ref()
        .and_then(|one| one.host_name.clone());
    let request = ImportRequest {
        machine: origin.machine.map(str::to_owned),
        otherwise: host_name
            .unwrap_or(stem)
            .chars()
            .filter(|letter| !letter.is_control())
            .take(255)
            .collect(),
        purpose: origin.purpose.clone(),
    };
    let body = json(&request)?;
    let answer = client.send(Method::POST, api::IMPORTS, body);
    let view: ImportView = answered(answer, "beginning the import")?;
    let given_up = GivenUp {
        client,
        id: Some(view.restore_point.clone()),
    };
    let summary = run(client, images, (origin, planned, &view), progress, stop)?;
    given_up.not();
    Ok(summary)
}

/// Tells the server that an import is over when it ends early.
struct GivenUp<'a> {
    client: &'a ControlClient,
    id: Option<RestorePointId>,
}

impl GivenUp<'_> {
    fn not(mut self) {
        self.id = None;
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            // A server that is gone gives it up when it starts again, and one that hears nothing in time.
            let _ = self
                .client
                .send(Method::DELETE, &api::import(id), Vec::new());
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, ExchangeError> {
    serde_json::to_vec(value).map_err(|error| ExchangeError::Internal(error.to_string()))
}

fn server(what: &str) -> impl FnOnce(ClientError) -> ExchangeError {
    let what = what.to_owned();
    move |source| ExchangeError::Server { what, source }
}

fn answered<T: serde::de::DeserializeOwned>(
    answer: Result<Vec<u8>, ClientError>,
    what: &str,
) -> Result<T, ExchangeError> {
    let bytes = answer.map_err(server(what))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ExchangeError::Internal(format!("{what}: the answer is strange: {error}")))
}

fn run(
    client: &ControlClient,
    images: &[Image],
    (origin, mut planned, view): (&Origin<'_>, Planned, &ImportView),
    progress: OnProgress<'_>,
    stop: &Stop,
) -> Result<ImportSummary, ExchangeError> {
    let readers: Vec<&dyn ReadAt> = images
        .iter()
        .map(|image| image.reader.as_ref() as &dyn ReadAt)
        .collect();
    let mapped: Vec<_> = planned
        .volumes
        .iter()
        .map(|volume| MappedVolume::new(&volume.mapping, &readers))
        .collect();
    let mut sources: Vec<Source<'_>> = Vec::new();
    for (number, (disk, reader)) in planned.disks.iter_mut().zip(&readers).enumerate() {
        let plans = std::mem::take(&mut disk.plans);
        for (index, (region, plan)) in disk.regions.iter().zip(plans).enumerate() {
            sources.push(Source {
                name: format!("{number}-{index}"),
                reader: *reader,
                start: region.range.start(),
                len: region.range.len(),
                plan,
            });
        }
    }
    // Their lists are named as those of disks that are not there.
    for (number, (volume, reader)) in (images.len()..).zip(planned.volumes.iter().zip(&mapped)) {
        sources.push(Source {
            name: format!("{number}-0"),
            reader,
            start: 0,
            len: volume.region.range.len(),
            plan: KeptPlan::always(volume.region.clone()),
        });
    }
    let read_bytes = sources.iter().map(|source| source.plan.read_bytes()).sum();
    let work = send::Work {
        client,
        id: &view.restore_point,
        sector: origin.sector.bytes(),
        progress,
        total: read_bytes,
        stop,
    };
    let (lists, Sent { chunks }) = send(&work, &mut sources)?;
    drop(sources);
    for image in images {
        image.check_unchanged()?;
    }
    stop.check()?;
    progress(Progress {
        stage: "publishing",
        done: read_bytes,
        total: read_bytes,
    });
    let regions = std::mem::take(&mut planned.shown);
    let manifest = described(images, origin, view, (planned, lists))?;
    manifest
        .check()
        .map_err(|error| ExchangeError::Internal(format!("the manifest: {}", chain(&error))))?;
    let path = api::publish(&view.restore_point);
    let answer = client.send(Method::POST, &path, json(&manifest)?);
    Ok(ImportSummary {
        restore_point: answered(answer, "publishing the restore point")?,
        formats: images.iter().map(|image| image.format).collect(),
        read_bytes,
        new_chunks: chunks,
        regions,
    })
}

/// The manifest; `lists` are those of all regions, then of all logical volumes.
fn described(
    images: &[Image],
    origin: &Origin<'_>,
    view: &ImportView,
    (planned, lists): (Planned, Vec<ChunkListRef>),
) -> Result<Manifest, ExchangeError> {
    let mut lists = lists.into_iter();
    let missing = || ExchangeError::Internal("a region has no list".to_owned());
    let sector = origin.sector.bytes();
    let mut disks = Vec::new();
    for (number, (image, mut disk)) in (0u32..).zip(images.iter().zip(planned.disks)) {
        for region in &mut disk.regions {
            region.content = lists.next().ok_or_else(missing)?;
        }
        disks.push(DiskImage {
            number,
            model: Some(format!("{} image", image.format.word())),
            serial: None,
            wwn: None,
            size: image.size,
            logical_sector: origin.sector,
            physical_sector: u32::try_from(sector).unwrap_or(512),
            table: disk.table,
            regions: disk.regions,
        });
    }
    let volumes: Result<Vec<_>, ExchangeError> = planned
        .volumes
        .iter()
        .map(|volume| Ok(volume.described(lists.next().ok_or_else(missing)?)))
        .collect();
    let volumes = volumes?;
    let mut warnings = planned.warnings;
    let told = planned.architecture.or(origin.architecture);
    let architecture = told.unwrap_or_else(|| {
        if planned.system.is_some() {
            warnings.push(format!(
                "the architecture of the imported system could not be told and is taken as this computer's, {}; --architecture says another",
                std::env::consts::ARCH
            ));
        }
        std::env::consts::ARCH
    });
    let captured_at = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    Ok(Manifest {
        format: Manifest::format_for(&volumes),
        id: view.restore_point.clone(),
        kind: origin.purpose.kind,
        image: origin.purpose.image.clone(),
        captured_at,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: view.identity.clone(),
        architecture: architecture.to_owned(),
        hardware: None,
        // What started the machine is not in an image; what could start from it is.
        firmware: Firmware {
            kind: if planned.esp {
                FirmwareKind::Uefi
            } else {
                FirmwareKind::Bios
            },
            boot_entries: Vec::new(),
            boot_order: Vec::new(),
        },
        system: planned.system,
        disks,
        logical_volumes: volumes,
        warnings,
    })
}
