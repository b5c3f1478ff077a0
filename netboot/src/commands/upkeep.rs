//! `gc`, `prune`, `forget`, `pin`, `unpin`, `store`: the store's upkeep, by the server that runs, or,
//! when none does, by this process under the data directory's lock.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup::units::HumanBytes;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::RestorePointView;
use protocol::upkeep::{
    self as api, GcProgress, GcReport, GcRequest, GcView, PruneRequest, PruneView, RetentionRules,
    StoreView,
};

use super::lists::escaped;
use super::table::{Table, clean, counted, local_time};
use super::upkeep_options::{GcArgs, PruneArgs, RestorePointArgs};
use super::{CommandError, print, print_json};
use crate::control_client::{ClientError, ControlClient};
use crate::flight_recorder::FlightRecorder;
use crate::http::Recovery;
use crate::store::{DataLock, chain};
use crate::upkeep::{self, UpkeepError};

/// How often a server is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// Asks the server, or does it here.
pub(super) fn ask_or_do<T, E>(
    data_directory: &Path,
    ask: impl FnOnce(&ControlClient) -> Result<T, ClientError>,
    act: impl FnOnce(&Recovery) -> Result<T, E>,
) -> Result<T, CommandError>
where
    CommandError: From<E>,
{
    match ask(&ControlClient::new(data_directory)) {
        Err(ClientError::NotRunning(_)) => {}
        other => return Ok(other?),
    }
    if !data_directory.join("store").join("packs").is_dir() {
        return Err(CommandError::NoStore(data_directory.to_owned()));
    }
    // From here on no server can start: what is looked at stays as it is.
    let _lock = DataLock::take(data_directory)?;
    let recorder = Arc::new(FlightRecorder::in_memory());
    let recovery = Recovery::open(data_directory, recorder)?;
    Ok(act(&recovery)?)
}

pub(super) fn gc(data_directory: &Path, args: &GcArgs) -> Result<(), CommandError> {
    let request = GcRequest {
        dry_run: args.dry_run,
        rewrite_below: args.rewrite_below,
    };
    let bar = if args.json {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(0)
    };
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let outcome = ask_or_do(
        data_directory,
        |client| collect_there(client, &request, &bar),
        |recovery| -> Result<_, UpkeepError> {
            let report = upkeep::collect(recovery, &request, &mut |progress| show(&bar, progress));
            Ok(report.map_err(|error| chain(&error)))
        },
    );
    bar.finish_and_clear();
    let report = outcome?.map_err(CommandError::Collection)?;
    if args.json {
        return print_json(&report);
    }
    print(&describe(&report))
}

/// Has the server do it and waits; what it says in the end.
fn collect_there(
    client: &ControlClient,
    request: &GcRequest,
    bar: &ProgressBar,
) -> Result<Result<GcReport, String>, ClientError> {
    let mut view: GcView = client.post(api::COLLECTION, request)?;
    while view.running {
        show(bar, view.progress);
        std::thread::sleep(EVERY);
        view = client.get(api::COLLECTION)?;
    }
    let unknown =
        || "the server was started again meanwhile; nothing that is needed is lost".into();
    Ok(view
        .report
        .ok_or_else(|| view.error.unwrap_or_else(unknown)))
}

fn show(bar: &ProgressBar, progress: GcProgress) {
    if progress.of_packs == 0 {
        bar.set_length(progress.of_restore_points);
        bar.set_position(progress.restore_points);
        bar.set_message(format!(
            "restore point {} of {}",
            progress.restore_points, progress.of_restore_points
        ));
    } else {
        bar.set_length(progress.of_packs);
        bar.set_position(progress.packs);
        bar.set_message(format!("pack {} of {}", progress.packs, progress.of_packs));
    }
}

fn describe(report: &GcReport) -> String {
    let would = if report.dry_run { "would be " } else { "" };
    let mut text = format!(
        "{} of {} chunks are not needed: {}.\n{} {would}freed: {} of {} packs {would}removed, {} \
         {would}rewritten ({}).\n",
        report.dead_chunks,
        report.chunks,
        HumanBytes(report.dead_bytes),
        HumanBytes(report.freed_bytes),
        report.removed_packs,
        report.packs,
        report.rewritten_packs,
        HumanBytes(report.rewritten_bytes),
    );
    for note in &report.notes {
        text.push_str(&format!("{note}\n"));
    }
    text
}

pub(super) fn prune(
    data_directory: &Path,
    args: &PruneArgs,
    configured: RetentionRules,
) -> Result<(), CommandError> {
    let rules = args.rules();
    let request = PruneRequest {
        machine: args.machine.clone(),
        rules: (!rules.are_empty()).then_some(rules),
        factory: args.factory,
        dry_run: args.dry_run,
    };
    let view: PruneView = ask_or_do(
        data_directory,
        |client| client.post(api::PRUNE, &request),
        |recovery| upkeep::prune(recovery, &request, configured),
    )?;
    if args.json {
        print_json(&view)?;
    } else {
        print(&verdicts(&view))?;
    }
    if view.failed.is_empty() {
        Ok(())
    } else {
        Err(CommandError::NotRemoved(view.failed.join("; ")))
    }
}

fn verdicts(view: &PruneView) -> String {
    let mut table = Table::new(&["RESTORE POINT", "MACHINE", "CAPTURED", "", "BECAUSE"]);
    for verdict in &view.restore_points {
        let word = match (verdict.keep, view.dry_run) {
            (true, _) => "keep",
            (false, true) => "remove",
            (false, false) => "removed",
        };
        let because = if verdict.keep {
            verdict.reasons.join(", ")
        } else {
            "no rule keeps it".to_owned()
        };
        table.row(vec![
            verdict.id.to_string(),
            verdict.machine_name.clone(),
            local_time(verdict.captured_at),
            word.to_owned(),
            because,
        ]);
    }
    let removed = view.restore_points.iter().filter(|one| !one.keep).count();
    let mut text = table.to_string();
    text.push_str(&match (removed, view.dry_run) {
        (0, _) => "Nothing to remove.\n".to_owned(),
        (_, true) => format!("{removed} would be removed; nothing was changed.\n"),
        (_, false) => format!("{removed} removed; `netboot gc` frees their room.\n"),
    });
    text
}

pub(super) fn forget(data_directory: &Path, args: &RestorePointArgs) -> Result<(), CommandError> {
    let path = api::forget(&escaped(&args.restore_point));
    let view: RestorePointView = ask_or_do(
        data_directory,
        |client| client.delete(&path),
        |recovery| upkeep::forget(recovery, &args.restore_point),
    )?;
    if args.json {
        return print_json(&view);
    }
    print(&format!(
        "Restore point {} of {} is removed; `netboot gc` frees its room.\n",
        view.id,
        clean(&view.machine_name)
    ))
}

pub(super) fn pin(
    data_directory: &Path,
    args: &RestorePointArgs,
    pinned: bool,
) -> Result<(), CommandError> {
    let path = api::pin(&escaped(&args.restore_point));
    let view: RestorePointView = ask_or_do(
        data_directory,
        |client| {
            if pinned {
                client.post(&path, &())
            } else {
                client.delete(&path)
            }
        },
        |recovery| upkeep::pin(recovery, &args.restore_point, pinned),
    )?;
    if args.json {
        return print_json(&view);
    }
    print(&format!(
        "Restore point {} of {} {}.\n",
        view.id,
        clean(&view.machine_name),
        if pinned {
            "is pinned: no rule removes it"
        } else {
            "is not pinned any more"
        }
    ))
}

pub(super) fn sizes(data_directory: &Path, json: bool) -> Result<(), CommandError> {
    let view: StoreView = ask_or_do(
        data_directory,
        |client| client.get(api::STORE),
        |recovery| recovery.store.sizes(),
    )?;
    if json {
        return print_json(&view);
    }
    let mut table = Table::new(&["RESTORE POINT", "MACHINE", "DATA", "STORED", "ALONE"]);
    for point in &view.restore_points {
        table.row(vec![
            point.id.to_string(),
            point.machine_name.clone(),
            HumanBytes(point.logical_bytes).to_string(),
            HumanBytes(point.stored_bytes).to_string(),
            HumanBytes(point.unique_bytes).to_string(),
        ]);
    }
    let mut text = table.to_string();
    text.push_str(&format!(
        "{} of data in {}; {} stored in {} and {}:\n  {} used by one \
         restore point, {} by several, {} by running captures\n  {} not needed (`netboot gc` frees \
         them), {}; {} free on the disk\n",
        HumanBytes(view.logical_bytes),
        counted(view.restore_points.len() as u64, "restore point"),
        HumanBytes(view.stored_bytes),
        counted(view.chunks, "chunk"),
        counted(view.packs, "pack"),
        HumanBytes(view.unique_bytes),
        HumanBytes(view.shared_bytes),
        HumanBytes(view.captures_bytes),
        HumanBytes(view.dead_bytes),
        counted(view.damaged_chunks, "damaged chunk"),
        HumanBytes(view.free_bytes),
    ));
    print(&text)
}
