//! Imports: the disk of an image becomes a restore point, as a capture would have made it.
//!
//! What is saved, how it is cut and what it is called is decided by the code that captures use
//! (`backup::plan`, `backup::chunk`, `backup::system`). One thread reads in disk order, workers cut, digest,
//! compress and send ([`send`]).
//!
//! Invariant: the image is opened read only; the manifest is the last thing sent, and only after the image was
//! found to be as it was when it was opened.

use axum::http::Method;
use backup::filesystem::ReadAt;
use backup::hardware::{Disk, FirmwareKind};
use backup::layout::{LayoutError, partitions_of, survey_disk};
use backup::lvm::MappedVolume;
use backup::manifest::{
    ChunkListRef, DiskImage, FORMAT, Firmware, Manifest, PartitionTable, Region, RestorePointId,
    RestorePointKind,
};
use backup::plan::capture::survey_region;
use backup::plan::kept::KeptPlan;
use backup::plan::members::refuse;
use backup::plan::volumes::{PlannedDisk, VolumePlan, plan_groups};
use backup::{SectorSize, member, system};
use protocol::api::RestorePointView;
use protocol::import::{self as api, ImportRequest, ImportView};
use serde::Serialize;

use self::send::{Sent, Source, send};
use super::{ExchangeError, Image, ImageFormat, OnProgress, Progress, Stop};
use crate::control_client::{ClientError, ControlClient};
use crate::store::chain;

mod send;

/// The most bytes of plans that are kept until their region is read.
const KEPT: usize = 64 << 20;

/// What a person says of an image.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    /// The machine that it is of.
    pub(crate) machine: Option<&'a str>,
    /// What the restore point is for.
    pub(crate) kind: RestorePointKind,
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
    /// What the image is.
    pub(crate) format: ImageFormat,
    /// Bytes of its disk that were read.
    pub(crate) read_bytes: u64,
    /// Chunks that the store lacked.
    pub(crate) new_chunks: u64,
    /// What is saved of each region, for people.
    pub(crate) regions: Vec<String>,
}

/// What is saved of the disk.
struct Planned {
    table: PartitionTable,
    regions: Vec<Region>,
    plans: Vec<KeptPlan>,
    volumes: Vec<VolumePlan>,
    warnings: Vec<String>,
    shown: Vec<String>,
}

/// Imports an image.
///
/// # Errors
/// [`ExchangeError`]; then there is no restore point, and what was sent is given up.
pub(crate) fn import(
    client: &ControlClient,
    image: &Image,
    origin: &Origin<'_>,
    progress: OnProgress<'_>,
    stop: &Stop,
) -> Result<ImportSummary, ExchangeError> {
    let planned = plan(image, origin.sector, stop)?;
    let name = image.path.file_stem().unwrap_or_default();
    let request = ImportRequest {
        machine: origin.machine.map(str::to_owned),
        otherwise: name
            .to_string_lossy()
            .chars()
            .filter(|letter| !letter.is_control())
            .take(255)
            .collect(),
    };
    let body = json(&request)?;
    let answer = client.send(Method::POST, api::IMPORTS, body);
    let view: ImportView = answered(answer, "beginning the import")?;
    let given_up = GivenUp {
        client,
        id: Some(view.restore_point.clone()),
    };
    let summary = run(client, image, (origin, planned, &view), progress, stop)?;
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
    image: &Image,
    (origin, mut planned, view): (&Origin<'_>, Planned, &ImportView),
    progress: OnProgress<'_>,
    stop: &Stop,
) -> Result<ImportSummary, ExchangeError> {
    let reader = image.reader.as_ref();
    let disks: [&dyn ReadAt; 1] = [reader];
    let mapped: Vec<_> = planned
        .volumes
        .iter()
        .map(|volume| MappedVolume::new(&volume.mapping, &disks))
        .collect();
    let mut sources: Vec<Source<'_>> = Vec::new();
    for (index, (region, plan)) in planned.regions.iter().zip(planned.plans).enumerate() {
        sources.push(Source {
            name: format!("0-{index}"),
            reader,
            start: region.range.start(),
            len: region.range.len(),
            plan,
        });
    }
    for (number, (volume, reader)) in (1u32..).zip(planned.volumes.iter().zip(&mapped)) {
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
    let (lists, sent) = send(&work, &mut sources)?;
    drop(sources);
    let mut lists = lists.into_iter();
    let missing = || ExchangeError::Internal("a region has no list".to_owned());
    for region in &mut planned.regions {
        region.content = lists.next().ok_or_else(missing)?;
    }
    let volumes: Result<Vec<_>, ExchangeError> = planned
        .volumes
        .iter()
        .map(|volume| Ok(volume.described(lists.next().ok_or_else(missing)?)))
        .collect();
    image.check_unchanged()?;
    stop.check()?;
    progress(Progress {
        stage: "publishing",
        done: read_bytes,
        total: read_bytes,
    });
    let shown = std::mem::take(&mut planned.shown);
    let manifest = Manifest {
        logical_volumes: volumes?,
        ..described(
            image,
            origin,
            view,
            Described {
                table: planned.table,
                regions: planned.regions,
                warnings: planned.warnings,
            },
        )
    };
    manifest
        .check()
        .map_err(|error| ExchangeError::Internal(format!("the manifest: {}", chain(&error))))?;
    let path = api::publish(&view.restore_point);
    let answer = client.send(Method::POST, &path, json(&manifest)?);
    let restore_point: RestorePointView = answered(answer, "publishing the restore point")?;
    let Sent { chunks } = sent;
    Ok(ImportSummary {
        restore_point,
        format: image.format,
        read_bytes,
        new_chunks: chunks,
        regions: shown,
    })
}

/// What a manifest says of the disk.
struct Described {
    table: PartitionTable,
    regions: Vec<Region>,
    warnings: Vec<String>,
}

fn described(image: &Image, origin: &Origin<'_>, view: &ImportView, disk: Described) -> Manifest {
    let Described {
        table,
        regions,
        mut warnings,
    } = disk;
    let system = system::find(&image.reader, &regions);
    let found = system::architecture(&image.reader, &regions);
    let architecture = found.or(origin.architecture).unwrap_or_else(|| {
        if system.is_some() {
            warnings.push(format!(
                "the architecture of the imported system could not be told and is taken as this computer's, {}; --architecture says another",
                std::env::consts::ARCH
            ));
        }
        std::env::consts::ARCH
    });
    let esp = partitions_of(&table).is_ok_and(|found| found.iter().any(|one| one.esp));
    let captured_at = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let sector = origin.sector.bytes();
    Manifest {
        format: FORMAT,
        id: view.restore_point.clone(),
        kind: origin.kind,
        captured_at,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: view.identity.clone(),
        architecture: architecture.to_owned(),
        hardware: None,
        // What started the machine is not in the image; what could start from it is.
        firmware: Firmware {
            kind: if esp {
                FirmwareKind::Uefi
            } else {
                FirmwareKind::Bios
            },
            boot_entries: Vec::new(),
            boot_order: Vec::new(),
        },
        system,
        disks: vec![DiskImage {
            number: 0,
            model: Some(format!("{} image", image.format.word())),
            serial: None,
            wwn: None,
            size: image.size,
            logical_sector: origin.sector,
            physical_sector: u32::try_from(sector).unwrap_or(512),
            table,
            regions,
        }],
        logical_volumes: Vec::new(),
        warnings,
    }
}

/// Looks at the disk and plans what is saved of it.
fn plan(image: &Image, sector: SectorSize, stop: &Stop) -> Result<Planned, ExchangeError> {
    let reader = image.reader.as_ref();
    let refused = |error: &dyn std::error::Error| ExchangeError::image(&image.path, chain(error));
    let disk = Disk {
        name: image.path.display().to_string(),
        model: None,
        serial: None,
        wwn: None,
        size: image.size,
        logical_sector: sector,
        physical_sector: 512,
        removable: false,
        read_only: true,
    };
    let found = member::find(reader, image.size, sector).map_err(|error| refused(&error))?;
    if let Some(refusal) = refuse(&disk, &found) {
        return Err(ExchangeError::image(&image.path, refusal.text));
    }
    let layout = survey_disk(reader, image.size, sector).map_err(|error| match error {
        LayoutError::Read(_) => refused(&error),
        error => ExchangeError::image(
            &image.path,
            format!(
                "{}; the file is cut short, damaged, or has sectors of another size than {} bytes (--sector)",
                chain(&error),
                sector.bytes()
            ),
        ),
    })?;
    let mut left = KEPT;
    let mut planned = Planned {
        table: layout.table,
        regions: Vec::new(),
        plans: Vec::new(),
        volumes: Vec::new(),
        warnings: layout.warnings,
        shown: Vec::new(),
    };
    for region in layout.regions {
        stop.check()?;
        let plan = survey_region(reader, region.clone(), sector.bytes());
        planned.shown.push(plan.to_string());
        planned.regions.push(plan.described(ChunkListRef::none()));
        planned.plans.push(KeptPlan::new(region, plan, &mut left));
    }
    let groups = plan_groups(&[PlannedDisk {
        reader,
        sector,
        regions: &planned.regions,
    }]);
    for (_, index, plan) in groups.regions {
        planned.shown[index] = plan.to_string();
        planned.regions[index] = plan.described(ChunkListRef::none());
        planned.plans[index] = KeptPlan::always(plan);
    }
    let volumes = groups.volumes.iter();
    planned
        .shown
        .extend(volumes.map(|volume| volume.to_string()));
    planned.volumes = groups.volumes;
    Ok(planned)
}
