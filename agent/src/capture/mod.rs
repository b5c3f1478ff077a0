//! Capturing: a machine's disks to a restore point.
//!
//! Invariant: sources are opened read only, and the manifest is the last thing sent: a capture that
//! ends early leaves no restore point. Memory: see [`send`] and [`read`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use backup::Digest;
use backup::chunk::ChunkList;
use backup::filesystem::{Section, survey_volume};
use backup::hardware::Disk;
use backup::layout::{LayoutRegion, survey_disk};
use backup::manifest::{
    ChunkListRef, DiskImage, FORMAT, Manifest, Region, RegionKind, RestorePointId,
};
use backup::plan::capture::plan_capture;
use backup::units::HumanBytes;
use protocol::progress::Stage;

use crate::boot_repair;
use crate::device::{Access, BlockDevice, DiskReader};
use crate::job::error::{Fault, Touched, report};
use crate::job::{Engine, JobError};
use crate::log::chain;
use read::Saved;
use send::{Sent, send_disk};

mod read;
mod send;
mod system;

/// Saves the machine's disks as `restore_point`. Returns sentences for people.
///
/// # Errors
/// [`JobError`]; nothing is published then.
pub(crate) fn capture(
    engine: &Engine<'_>,
    restore_point: &RestorePointId,
) -> Result<Vec<String>, JobError> {
    run(engine, restore_point).map_err(|fault| report(&fault, Touched::ReadOnly))
}

/// A disk that is open, and what is saved of it.
struct Source<'a> {
    disk: &'a Disk,
    device: Arc<dyn BlockDevice>,
    image: DiskImage,
    saved: Vec<Saved>,
}

fn run(engine: &Engine<'_>, restore_point: &RestorePointId) -> Result<Vec<String>, Fault> {
    let captured_at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut warnings = Vec::new();
    let mut sources = Vec::new();
    for disk in engine.inventory.disks.iter().filter(|disk| !disk.removable) {
        let number = u32::try_from(sources.len())
            .map_err(|_| Fault::Internal("too many disks".to_owned()))?;
        sources.push(open(engine, disk, number, &mut warnings)?);
    }
    if sources.is_empty() {
        return Err(Fault::NotAsPlanned(
            "the machine has no fixed disk that could be captured".to_owned(),
        ));
    }
    let system = sources
        .iter()
        .find_map(|source| system::find(&source.device, &source.image.regions));
    let total = sources
        .iter()
        .flat_map(|source| &source.saved)
        .flat_map(|saved| &saved.ranges)
        .map(|range| range.len())
        .sum();
    engine.tracker.stage(Stage::Reading, total);

    let known = Mutex::new(HashSet::new());
    let mut sent = Sent::default();
    for source in &mut sources {
        let device = source.device.as_ref();
        let (chunks, more) = send_disk(engine, device, &source.saved, &known)?;
        sent.chunks += more.chunks;
        sent.plain_bytes += more.plain_bytes;
        sent.sent_bytes += more.sent_bytes;
        for (region, chunks) in source.image.regions.iter_mut().zip(chunks) {
            let list = ChunkList::new(chunks, region.range.len())
                .map_err(|error| Fault::Internal(chain(&error)))?;
            region.content = upload_list(engine, &list)?;
        }
    }

    engine.check_cancelled()?;
    engine.tracker.stage(Stage::Publishing, 0);
    let manifest = Manifest {
        format: FORMAT,
        id: restore_point.clone(),
        captured_at,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: engine.inventory.identity.clone(),
        architecture: engine.inventory.architecture.clone(),
        firmware: boot_repair::captured_firmware(
            engine.inventory.firmware,
            engine.platform.variables(),
            &mut warnings,
        ),
        system,
        disks: sources.iter().map(|source| source.image.clone()).collect(),
        warnings,
    };
    manifest.check().map_err(|source| Fault::Manifest {
        restore_point: restore_point.to_string(),
        source,
    })?;
    let json = serde_json::to_vec(&manifest)
        .map_err(|error| Fault::Internal(format!("the manifest cannot be written: {error}")))?;
    engine.server.publish(&json).map_err(Fault::server(format!(
        "publishing restore point {restore_point}"
    )))?;
    Ok(summary(engine, &manifest, &sources, total, sent))
}

/// Opens a disk read only and plans what is saved of it.
fn open<'a>(
    engine: &Engine<'_>,
    disk: &'a Disk,
    number: u32,
    warnings: &mut Vec<String>,
) -> Result<Source<'a>, Fault> {
    let device: Arc<dyn BlockDevice> = Arc::from(engine.platform.open(disk, Access::Read)?);
    let (size, sector) = (device.size(), device.sector());
    if (size, sector) != (disk.size, disk.logical_sector) {
        return Err(Fault::NotAsPlanned(format!(
            "{} has {size} bytes (the inventory says {}); it is another disk",
            device.name(),
            disk.size
        )));
    }
    let reader = DiskReader(device.as_ref());
    let layout = survey_disk(&reader, size, sector)
        .map_err(|error| Fault::NotAsPlanned(format!("{}: {}", device.name(), chain(&error))))?;
    let survey = |region: &LayoutRegion| match region.kind {
        RegionKind::Gap => None,
        RegionKind::Partition { .. } | RegionKind::WholeDisk => {
            let section = Section::new(&reader, region.range);
            Some(survey_volume(&section, region.range.len()))
        }
    };
    let surveys = layout.regions.iter().map(survey).collect();
    let plan = plan_capture(disk, layout, surveys);
    plan.to_string()
        .lines()
        .for_each(|line| log::info!("{line}"));
    warnings.extend(
        plan.warnings
            .iter()
            .map(|warning| format!("{}: {warning}", disk.name)),
    );
    let saved = plan
        .regions
        .iter()
        .map(|region| Saved {
            region: region.range,
            ranges: region.ranges.clone(),
        })
        .collect();
    let regions = plan
        .regions
        .into_iter()
        .map(|region| Region {
            kind: region.kind,
            range: region.range,
            volume: region.volume,
            coverage: region.coverage,
            // Known when the region has been read.
            content: ChunkListRef {
                digest: Digest::of(&[]),
                chunks: 0,
                data_bytes: 0,
                zero_bytes: 0,
            },
        })
        .collect();
    let image = DiskImage {
        number,
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        wwn: disk.wwn.clone(),
        size,
        logical_sector: sector,
        physical_sector: disk.physical_sector,
        table: plan.table,
        regions,
    };
    Ok(Source {
        disk,
        device,
        image,
        saved,
    })
}

/// Sends a chunk list and returns its name.
fn upload_list(engine: &Engine<'_>, list: &ChunkList) -> Result<ChunkListRef, Fault> {
    let bytes = list.encode();
    let digest = Digest::of(&bytes);
    engine
        .server
        .upload_list(&digest, &bytes)
        .map_err(Fault::server(format!("sending chunk list {digest}")))?;
    engine.tracker.network(bytes.len() as u64);
    Ok(ChunkListRef {
        digest,
        chunks: list.chunks().len() as u64,
        data_bytes: list.data_bytes(),
        zero_bytes: list.zero_bytes(),
    })
}

fn summary(
    engine: &Engine<'_>,
    manifest: &Manifest,
    sources: &[Source<'_>],
    total: u64,
    sent: Sent,
) -> Vec<String> {
    let seconds = engine.tracker.seconds();
    let rate = (total as f64 / seconds.max(0.001)) as u64;
    let mut sentences = vec![format!("Captured restore point {}.", manifest.id)];
    for source in sources {
        sentences.push(format!(
            "Disk {}: {}, {} regions, {} of data.",
            source.image.number,
            source.disk.describe(),
            source.image.regions.len(),
            HumanBytes(
                source
                    .image
                    .regions
                    .iter()
                    .map(|region| region.content.data_bytes)
                    .sum()
            )
        ));
    }
    sentences.push(format!(
        "Read {} in {seconds:.1} s ({}/s); sent {} new chunks, {} as {}.",
        HumanBytes(total),
        HumanBytes(rate),
        sent.chunks,
        HumanBytes(sent.plain_bytes),
        HumanBytes(sent.sent_bytes)
    ));
    if let Some(system) = &manifest.system {
        let version = system.version.as_deref().unwrap_or("");
        let host = system.host_name.as_deref().unwrap_or("unnamed");
        sentences.push(format!("Found {} {version} on {host}.", system.name));
    }
    sentences.extend(manifest.warnings.iter().cloned());
    sentences
}
