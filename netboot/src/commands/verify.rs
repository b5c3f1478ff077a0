//! `verify`: reads the store without the server.

use std::path::Path;

use backup::units::HumanBytes;
use indicatif::{ProgressBar, ProgressStyle};

use super::options::VerifyArgs;
use super::{CommandError, print, print_json};
use crate::store::Store;
use crate::store::verify::VerifyReport;

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

fn describe(report: &VerifyReport) -> String {
    let mut text = format!(
        "{} of {} chunks ({}) read back and compared, {} restore points checked.\n",
        report.checked_chunks,
        report.all_chunks,
        HumanBytes(report.bytes),
        report.restore_points
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
