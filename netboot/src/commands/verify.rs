//! `verify`: reads the store without the server, and has it take note of what is damaged.

use std::path::Path;

use backup::units::HumanBytes;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::upkeep::{self, DamageView, DamagedPlace};

use super::options::VerifyArgs;
use super::table::counted;
use super::{CommandError, print, print_json};
use crate::control_client::{ClientError, ControlClient};
use crate::store::verify::{DamagedChunk, VerifyReport};
use crate::store::{DamagedRecord, DataLock, Store, chain};

pub(super) fn run(data_directory: &Path, args: &VerifyArgs) -> Result<(), CommandError> {
    if !data_directory.join("store").join("packs").is_dir() {
        return Err(CommandError::NoStore(data_directory.to_owned()));
    }
    let store = Store::look(data_directory)?;
    let bar = if args.json {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(0)
    };
    let template = "{spinner} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    // The template is constant; the default style is only a poorer picture.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    let report = store.verify(args.sample, &mut |progress| {
        bar.set_length(progress.of_bytes);
        bar.set_position(progress.bytes);
    })?;
    bar.finish_and_clear();
    if !report.damaged_chunks.is_empty()
        && let Err(error) = note(data_directory, &report)
    {
        eprintln!("netboot: the damage could not be noted: {}", chain(&error));
    }
    if args.json {
        print_json(&report)?;
    } else {
        print(&describe(&report))?;
    }
    if report.is_sound() {
        return Ok(());
    }
    Err(CommandError::Damaged {
        chunks: report.damaged_chunks.len(),
        restore_points: report.damaged_restore_points.len(),
    })
}

/// Has the server take note of damaged chunks, or does it where none runs.
fn note(data_directory: &Path, report: &VerifyReport) -> Result<(), CommandError> {
    let found: Vec<_> = report
        .damaged_chunks
        .iter()
        .map(DamagedChunk::record)
        .collect();
    let place = |record: &DamagedRecord| DamagedPlace {
        digest: record.digest,
        pack: record.pack,
        offset: record.offset,
    };
    let places: Vec<_> = found.iter().map(place).collect();
    let client = ControlClient::new(data_directory);
    match client.post::<DamageView>(upkeep::DAMAGE, &places) {
        Err(ClientError::NotRunning(_)) => {
            let _lock = DataLock::take(data_directory)?;
            Store::open(data_directory)?.note_damage(&found)?;
            Ok(())
        }
        other => Ok(other.map(drop)?),
    }
}

fn describe(report: &VerifyReport) -> String {
    let mut text = format!(
        "{} of {} chunks ({}) read back and compared, {} checked.\n",
        report.checked_chunks,
        report.all_chunks,
        HumanBytes(report.bytes),
        counted(report.restore_points, "restore point")
    );
    for chunk in &report.damaged_chunks {
        text.push_str(&format!(
            "damaged: chunk {} in {} at byte {}: {}\n",
            chunk.digest,
            chunk.pack.display(),
            chunk.offset,
            chunk.reason
        ));
    }
    for point in &report.damaged_restore_points {
        text.push_str(&format!(
            "restore point {} cannot be restored whole: {}\n",
            point.restore_point, point.reason
        ));
    }
    if report.is_sound() {
        text.push_str("All of it is sound.\n");
    }
    text
}
