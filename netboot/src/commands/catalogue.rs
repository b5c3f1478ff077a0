//! `show`, `compare`, `versions`: what restore points are and how they differ.

use std::path::Path;

use backup::manifest::{DiskImage, Manifest, RegionKind};
use backup::units::HumanBytes;
use protocol::api::RestorePointView;
use serde::Serialize;

use super::file_options::{CompareArgs, ItemsArgs, VersionsArgs};
use super::files::volume_table;
use super::table::{Table, clean, local_time};
use super::{CommandError, open_lists, open_store, print, print_json};
use crate::files::{self, Comparison, VolumeView};
use crate::store::Store;

/// Files that are listed without `--files`.
const LISTED: usize = 20;

#[derive(Serialize)]
struct Shown<'a> {
    /// What lists show.
    restore_point: RestorePointView,
    /// Everything that was captured, but for the bytes.
    manifest: &'a Manifest,
    /// Its volumes.
    volumes: Vec<VolumeView>,
}

fn view_of(store: &Store, manifest: &Manifest) -> Option<RestorePointView> {
    let mut all = store.restore_points.list().into_iter();
    all.find(|view| view.id == manifest.id)
}

pub(super) fn show(data_directory: &Path, args: &ItemsArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let id = files::resolve(&store, &args.restore_point, args.machine.as_deref())?;
    let manifest = files::manifest(&store, &id)?;
    let volumes = files::view_all(&store, &id, &manifest)?;
    let Some(view) = view_of(&store, &manifest) else {
        return print("");
    };
    if args.json {
        return print_json(&Shown {
            restore_point: view,
            manifest: &manifest,
            volumes,
        });
    }
    print(&describe(&view, &manifest, &volumes))
}

fn describe(view: &RestorePointView, manifest: &Manifest, volumes: &[VolumeView]) -> String {
    let mut text = format!(
        "Restore point {} of {}, {}\n",
        view.id,
        clean(&view.machine_name),
        clean(&view.status)
    );
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("  {name:13} {}\n", clean(&value)));
    };
    line("captured", local_time(view.captured_at));
    line(
        "system",
        view.system.clone().unwrap_or_else(|| "none found".into()),
    );
    let machine = &manifest.machine;
    let model: Vec<&str> = [
        machine.manufacturer.as_deref(),
        machine.product.as_deref(),
        machine.serial.as_deref(),
    ]
    .into_iter()
    .flatten()
    .collect();
    line("machine", model.join(", "));
    line("firmware", firmware(manifest));
    line("data", HumanBytes(view.data_bytes).to_string());
    line(
        "new in store",
        format!("{} (compressed)", HumanBytes(view.stored_bytes)),
    );
    for disk in &manifest.disks {
        text.push_str(&format!("\n{}", clean_lines(&disk.picture())));
    }
    if !volumes.is_empty() {
        text.push_str(&format!("\n{}", volume_table(volumes)));
    }
    let whole: Vec<_> = manifest.disks.iter().flat_map(reasons).collect();
    if !whole.is_empty() {
        text.push_str("\nNot saved by used blocks:\n");
        for reason in whole {
            text.push_str(&format!("  {}\n", clean(&reason)));
        }
    }
    for sentence in manifest.encrypt_again() {
        text.push_str(&format!("\n{}\n", clean(&sentence)));
    }
    for warning in &view.warnings {
        text.push_str(&format!("\nWarning: {}\n", clean(warning)));
    }
    text
}

fn firmware(manifest: &Manifest) -> String {
    let firmware = &manifest.firmware;
    let mut text = format!("{}, {}", firmware.kind, manifest.architecture);
    if !firmware.boot_entries.is_empty() {
        text.push_str(&format!(", {} boot entries", firmware.boot_entries.len()));
    }
    text
}

/// Where coverage is not by used blocks, and why.
fn reasons(disk: &DiskImage) -> Vec<String> {
    let regions = disk.regions.iter();
    regions
        .filter_map(|region| {
            let words = files::coverage(&region.coverage);
            let gap = region.kind == RegionKind::Gap;
            // Short gaps are saved whole as a rule; that says nothing.
            if words == "used blocks" || (gap && words.starts_with("whole")) {
                return None;
            }
            let place = match region.kind {
                RegionKind::Partition { number } => format!("{}-{number}", disk.number),
                RegionKind::WholeDisk => disk.number.to_string(),
                RegionKind::Gap => format!("disk {}, {}", disk.number, region.range),
            };
            Some(format!("{place}: {words}"))
        })
        .collect()
}

fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(line) + "\n").collect()
}

pub(super) fn versions(data_directory: &Path, args: &VersionsArgs) -> Result<(), CommandError> {
    let store = open_lists(data_directory)?;
    let (machine, name) = files::machine_of(&store, &args.machine)?;
    let mut own = store.restore_points.list();
    own.retain(|view| view.machine.as_deref() == Some(machine.as_str()));
    if args.json {
        return print_json(&own);
    }
    let mut table = Table::new(&[
        "ID",
        "KIND",
        "CAPTURED",
        "SYSTEM",
        "DATA",
        "NEW IN STORE",
        "STATUS",
    ]);
    for view in own {
        table.row(vec![
            view.id.to_string(),
            super::lists::kind(&view),
            local_time(view.captured_at),
            view.system.unwrap_or_else(|| "-".to_owned()),
            HumanBytes(view.data_bytes).to_string(),
            HumanBytes(view.stored_bytes).to_string(),
            view.status,
        ]);
    }
    print(&format!("{} ({machine})\n{table}", clean(&name)))
}

pub(super) fn compare(data_directory: &Path, args: &CompareArgs) -> Result<(), CommandError> {
    let store = if args.files {
        open_store(data_directory)?
    } else {
        open_lists(data_directory)?
    };
    let machine = args.machine.as_deref();
    let a = files::resolve(&store, &args.a, machine)?;
    let b = files::resolve(&store, &args.b, machine)?;
    let comparison = files::compare(&store, &a, &b, args.files)?;
    if args.json {
        return print_json(&comparison);
    }
    print(&describe_comparison(&comparison, args.files))
}

fn describe_comparison(comparison: &Comparison, all: bool) -> String {
    let mut text = format!("{} compared with {}\n", comparison.a, comparison.b);
    for change in &comparison.layout {
        text.push_str(&format!("  {}\n", clean(change)));
    }
    if comparison.layout.is_empty() {
        text.push_str("  Disks and partitions are the same.\n");
    }
    text.push_str(&format!(
        "  {} of chunks only in the first, {} only in the second, {} in both.\n",
        HumanBytes(comparison.only_in_a),
        HumanBytes(comparison.only_in_b),
        HumanBytes(comparison.in_both)
    ));
    for volume in &comparison.volumes {
        text.push_str(&format!(
            "\nVolume {}: {} of {} differ\n",
            volume.volume,
            HumanBytes(volume.different),
            HumanBytes(volume.size)
        ));
        let Some(files) = &volume.files else {
            if let Some(reason) = &volume.reason {
                text.push_str(&format!("  files are not compared: {}\n", clean(reason)));
            }
            continue;
        };
        text.push_str(&format!(
            "  files: {} added, {} removed, {} changed\n",
            files.added, files.removed, files.changed
        ));
        let limit = if all { usize::MAX } else { LISTED };
        for (sign, path) in files.paths.iter().take(limit) {
            text.push_str(&format!("  {sign} {path}\n"));
        }
    }
    text
}
