//! `--watch`: a job's progress until it is over.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::{self, JobView};
use protocol::job::JobState;

use super::table::clean;
use super::{CommandError, print, print_json_line};
use crate::control_client::{ClientError, ControlClient};

/// How often the server is asked.
const EVERY: Duration = Duration::from_millis(500);
/// How long a server may be away (it is restarted, for example) before watching is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Shows the job until it is over.
///
/// # Errors
/// [`CommandError::JobEnded`] when it did not succeed.
pub(super) fn until_over(
    client: &ControlClient,
    job: JobView,
    json: bool,
) -> Result<(), CommandError> {
    let bar = if json {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(0)
    };
    bar.enable_steady_tick(EVERY);
    let mut shown = None;
    let mut job = job;
    loop {
        if shown.as_ref() != Some(&job) {
            if json {
                print_json_line(&job)?;
            }
            show(&bar, &job);
            shown = Some(job.clone());
        }
        if job.state.is_over() {
            bar.finish_and_clear();
            return outcome(&job, json);
        }
        std::thread::sleep(EVERY);
        job = ask(client, &bar, job)?;
    }
}

/// The job as it is now; a server that is away for a while is waited for.
fn ask(client: &ControlClient, bar: &ProgressBar, job: JobView) -> Result<JobView, CommandError> {
    let patience_ends = Instant::now() + PATIENCE;
    loop {
        let answer: Result<Vec<JobView>, ClientError> = client.get(api::JOBS);
        match answer {
            Ok(jobs) => {
                let same = jobs.into_iter().find(|other| other.id == job.id);
                return Ok(same.unwrap_or(job));
            }
            Err(ClientError::NotRunning(_) | ClientError::Broken(_))
                if Instant::now() < patience_ends =>
            {
                bar.set_message("the server does not answer; waiting for it");
                std::thread::sleep(EVERY);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn show(bar: &ProgressBar, job: &JobView) {
    const MEASURED: &str = "{spinner} [{bar:30}] {msg}";
    const UNMEASURED: &str = "{spinner} {msg}";
    let progress = job.progress.filter(|_| job.state == JobState::Running);
    let total = progress.map_or(0, |progress| progress.total);
    let template = if total > 0 { MEASURED } else { UNMEASURED };
    // Both templates are constant; the default style is only a poorer picture.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_length(total);
    bar.set_position(progress.map_or(0, |progress| progress.done));
    bar.set_message(match (job.state, progress) {
        (JobState::Waiting, _) => "waiting for the machine to boot from the network".to_owned(),
        (_, Some(progress)) => progress.to_string(),
        _ => "started".to_owned(),
    });
}

fn outcome(job: &JobView, json: bool) -> Result<(), CommandError> {
    if job.state != JobState::Succeeded {
        return Err(CommandError::JobEnded {
            job: job.id.clone(),
            state: job.state.word(),
            reason: job.error.as_deref().map(clean),
        });
    }
    if json {
        return Ok(());
    }
    let seconds = match (job.started_at, job.ended_at) {
        (Some(start), Some(end)) => end.saturating_sub(start),
        _ => 0,
    };
    let mut text = format!(
        "{} of {} succeeded in {}:{:02}, restore point {}.\n",
        match job.kind.word() {
            "capture" => "Capture",
            "reset" => "Reset",
            _ => "Restore",
        },
        clean(&job.machine_name),
        seconds / 60,
        seconds % 60,
        job.kind.restore_point()
    );
    for line in &job.summary {
        text.push_str(&format!("  {}\n", clean(line)));
    }
    print(&text)
}
