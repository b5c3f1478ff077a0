//! `import` and `export`: disk images and restore points.

use std::path::Path;
use std::sync::Arc;

use backup::SectorSize;
use backup::manifest::{ImageLabel, Purpose};
use backup::units::HumanBytes;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::{self, ServerView};

use super::exchange_options::{ExportArgs, ImportArgs};
use super::table::clean;
use super::{CommandError, open_store, print, print_json};
use crate::control_client::{ClientError, ControlClient};
use crate::exchange::{
    self, Export, ExportSummary, Format, Image, ImportSummary, Origin, Progress, Stop,
};
use crate::files;
use crate::flight_recorder::FlightRecorder;
use crate::http::{Recovery, import_api};
use crate::store::DataLock;

pub(super) fn import(data_directory: &Path, args: &ImportArgs) -> Result<(), CommandError> {
    let sector = match args.sector.as_str() {
        "4096" => SectorSize::S4096,
        _ => SectorSize::S512,
    };
    let stop = Stop::on_signals();
    let mut images = Vec::new();
    for file in &args.files {
        images.push(Image::open(file, args.format, sector)?);
    }
    let origin = Origin {
        machine: args.machine.as_deref(),
        purpose: purpose(args),
        sector,
        architecture: args.architecture.as_deref(),
    };
    let client = ControlClient::new(data_directory);
    let (client, _lock) = match client.get::<ServerView>(api::SERVER) {
        Ok(_) => (client, None),
        Err(ClientError::NotRunning(_)) => {
            if !data_directory.join("store").join("packs").is_dir() {
                return Err(CommandError::NoStore(data_directory.to_owned()));
            }
            // From here on no server can start.
            let lock = DataLock::take(data_directory)?;
            let recorder = Arc::new(FlightRecorder::in_memory());
            let recovery = Arc::new(Recovery::open(data_directory, recorder)?);
            (
                ControlClient::here(import_api::router(recovery)),
                Some(lock),
            )
        }
        Err(error) => return Err(error.into()),
    };
    let bar = progress_bar(args.json);
    let imported = exchange::import(&client, &images, &origin, &|step| show(&bar, step), &stop);
    bar.finish_and_clear();
    let summary = imported?;
    if args.json {
        return print_json(&summary);
    }
    print(&describe_import(&summary, &images))
}

fn purpose(args: &ImportArgs) -> Purpose {
    let label = ImageLabel {
        name: args.name.clone(),
        description: args.description.clone(),
    };
    Purpose {
        kind: args.kind.into(),
        image: Some(label).filter(|label| *label != ImageLabel::default()),
    }
}

fn describe_import(summary: &ImportSummary, images: &[Image]) -> String {
    let point = &summary.restore_point;
    let files: Vec<_> = images
        .iter()
        .map(|image| {
            let path = clean(&image.path.display().to_string());
            format!("{path} ({})", image.format.word())
        })
        .collect();
    let mut text = format!(
        "{}: restore point {} of {}, {} read, {} of data, {} new in the store.\n",
        files.join(", "),
        point.id,
        clean(&point.machine_name),
        HumanBytes(summary.read_bytes),
        HumanBytes(point.data_bytes),
        HumanBytes(point.stored_bytes),
    );
    if let Some(system) = &point.system {
        text.push_str(&format!("  system: {}\n", clean(system)));
    }
    for region in &summary.regions {
        text.push_str(&format!("  {}\n", clean(region)));
    }
    for warning in &point.warnings {
        text.push_str(&format!("  warning: {}\n", clean(warning)));
    }
    text
}

pub(super) fn export(data_directory: &Path, args: &ExportArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let stop = Stop::on_signals();
    let id = files::resolve(&store, &args.restore_point, args.machine.as_deref())?;
    let manifest = files::manifest(&store, &id)?;
    let is_qcow2 = args.file.extension().is_some_and(|end| end == "qcow2");
    let format = match args.format {
        Some(format) => format,
        None if is_qcow2 => Format::Qcow2,
        None => Format::Raw,
    };
    let wanted = Export {
        id: &id,
        manifest: &manifest,
        target: &args.file,
        format,
        disk: args.disk,
        force: args.force,
        part_mib: args.part_size,
    };
    let bar = progress_bar(args.json);
    let exported = exchange::export(
        &store,
        data_directory,
        &wanted,
        &|step| show(&bar, step),
        &stop,
    );
    bar.finish_and_clear();
    let summary = exported?;
    if args.json {
        return print_json(&summary);
    }
    print(&describe_export(&summary))
}

fn describe_export(summary: &ExportSummary) -> String {
    let mut text = String::new();
    for disk in &summary.disks {
        let files: Vec<_> = disk
            .files
            .iter()
            .map(|file| clean(&file.display().to_string()))
            .collect();
        text.push_str(&format!(
            "Disk {} of restore point {} ({}, {} of data) is written to:\n  {}\n",
            disk.disk,
            summary.restore_point,
            HumanBytes(disk.size),
            HumanBytes(disk.data_bytes),
            files.join("\n  ")
        ));
    }
    for note in &summary.notes {
        text.push_str(&format!("note: {}\n", clean(note)));
    }
    text
}

fn progress_bar(json: bool) -> ProgressBar {
    if json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template =
        "{spinner} [{bar:30}] {msg}, {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    // The template is constant; the default style is only a poorer picture.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn show(bar: &ProgressBar, step: Progress) {
    if bar.message() != step.stage {
        // The rate is of what is done now.
        bar.reset();
        bar.set_message(step.stage);
    }
    bar.set_length(step.total);
    bar.set_position(step.done);
}
