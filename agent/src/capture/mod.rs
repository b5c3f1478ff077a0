//! Capturing: a machine's disks to a restore point.
//!
//! Invariant: sources are opened read only, and the manifest is the last thing sent: a capture that
//! ends early leaves no restore point. Memory: see [`mod@send`].

use std::time::{SystemTime, UNIX_EPOCH};

use backup::manifest::{Coverage, Manifest, Purpose, RestorePointId};
use backup::system;
use backup::units::HumanBytes;
use protocol::progress::Stage;

use crate::boot_repair;
use crate::job::error::{Fault, Touched, report};
use crate::job::{Engine, JobError};
use send::{Sent, send};
use source::Source;

mod list;
mod members;
mod read;
mod send;
mod source;
mod unlock;
mod volumes;

/// Saves the machine's disks as `restore_point`. Returns sentences for people.
///
/// # Errors
/// [`JobError`]; nothing is published then.
pub(crate) fn capture(
    engine: &Engine<'_>,
    restore_point: &RestorePointId,
    purpose: Purpose,
) -> Result<Vec<String>, JobError> {
    run(engine, restore_point, purpose).map_err(|fault| report(&fault, Touched::ReadOnly))
}

fn run(
    engine: &Engine<'_>,
    restore_point: &RestorePointId,
    purpose: Purpose,
) -> Result<Vec<String>, Fault> {
    let captured_at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut warnings = Vec::new();
    let fixed = engine.inventory.disks.iter().filter(|disk| !disk.removable);
    let fixed: Vec<_> = fixed.collect();
    unlock::check_places(engine.keys, &fixed)?;
    let devices = members::open(engine, &fixed)?;
    let (mut sources, mut left) = (Vec::new(), source::KEPT);
    for (disk, device) in fixed.into_iter().zip(devices) {
        let number = u32::try_from(sources.len())
            .map_err(|_| Fault::Internal("too many disks".to_owned()))?;
        let source = Source::open(engine, (disk, device), number, &mut left, &mut warnings)?;
        sources.push(source);
    }
    if sources.is_empty() {
        return Err(Fault::NotAsPlanned(
            "the machine has no fixed disk that could be captured".to_owned(),
        ));
    }
    let volumes = volumes::plan(&mut sources);
    let disks = sources.len();
    volumes::add_sources(&mut sources, &volumes);
    let system = sources
        .iter()
        .find_map(|source| system::find(&source.reader(), &source.image.regions));
    let total = sources.iter().map(Source::read_bytes).sum();
    engine.tracker.stage(Stage::Reading, total);
    let sent = send(engine, &mut sources)?;
    let logical_volumes = volumes::described(&volumes, &sources.split_off(disks))?;

    engine.check_cancelled()?;
    engine.tracker.stage(Stage::Publishing, 0);
    let manifest = Manifest {
        format: Manifest::format_for(&logical_volumes),
        id: restore_point.clone(),
        kind: purpose.kind,
        image: purpose.image,
        captured_at,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: engine.inventory.identity.clone(),
        architecture: engine.inventory.architecture.clone(),
        hardware: Some(engine.inventory.clone()),
        firmware: boot_repair::captured_firmware(
            engine.inventory.firmware,
            engine.platform.variables(),
            &mut warnings,
        ),
        system,
        disks: sources.iter().map(|source| source.image.clone()).collect(),
        logical_volumes,
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
    for source in sources {
        for region in &source.image.regions {
            if let Some(with) = &region.was_encrypted {
                sentences.push(format!(
                    "Opened with its key: {} of {} is encrypted ({with}) and is kept plain in the \
                     store; after a restore, encryption must be switched on again.",
                    region.place(source.image.number),
                    source.disk.name
                ));
            }
        }
    }
    for volume in &manifest.logical_volumes {
        sentences.push(format!(
            "Logical volume {}: {}.",
            volume.full_name(),
            match &volume.coverage {
                Coverage::LeftOut { reason } => reason.clone(),
                _ => format!("{} of data", HumanBytes(volume.content.data_bytes)),
            }
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
