//! One job: does it, shows and reports how far it is, reports how it ended.
//!
//! Invariant: the server hears the end of the job, or says that it does not want to; a fault in the
//! engine is a failed job, not the end of the process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use backup::hardware::Inventory;
use protocol::api;
use protocol::beacon::AgentState;
use protocol::job::{Job, JobReport, JobReportReply};
use protocol::progress::Progress;
use protocol::unlock::VolumeKey;

use super::environment::unfinished_job;
use crate::beacon::Station;
use crate::job::platform::Platform;
use crate::job::{self, Context, JobError, ProgressSlot, Summary};
use crate::log::chain;
use crate::net::http::{RequestError, Server};
use crate::screen;

/// Holds the job's id while it is done: what is found there at the start was interrupted by a crash.
pub(crate) const CRASH_MARK: &str = "/run/netboot-job";

/// The engine's word for a job that was taken back.
const CANCELLED: &str = "cancelled";

/// How often progress is shown and reported.
const TICK: Duration = Duration::from_secs(1);

/// How long to wait before a report that the server could not take is sent again.
const DELIVER_AGAIN: Duration = Duration::from_secs(5);

/// How a job ended, once the server knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well; what it did.
    Done(Summary),
    /// Badly.
    Failed(JobError),
    /// The operator took it back; where that left the machine.
    TakenBack(String),
}

/// What a job is done with.
pub(crate) struct Machine {
    /// What the machine is made of.
    pub(crate) inventory: Inventory,
    /// The machine as the engine works with it.
    pub(crate) platform: Arc<dyn Platform>,
    /// Set from outside to stop the job at the next safe place.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Keys of encrypted volumes that were given here.
    pub(crate) keys: Vec<VolumeKey>,
}

/// Does the job with a mark that tells whoever starts next, should the process end by itself.
pub(crate) fn work_marked(job: &Job, server: &Server, machine: Machine) -> Outcome {
    let marked = std::fs::write(CRASH_MARK, &job.id);
    let outcome = work(job, server, machine);
    if marked.is_ok() {
        let _ = std::fs::remove_file(CRASH_MARK);
    }
    outcome
}

/// Does the job and reports it.
pub(crate) fn work(job: &Job, server: &Server, machine: Machine) -> Outcome {
    let Machine {
        inventory,
        platform,
        cancelled,
        keys,
    } = machine;
    let progress = ProgressSlot::default();
    let context = Context {
        server: server.until(Arc::clone(&cancelled)),
        inventory,
        cancelled: Arc::clone(&cancelled),
        progress: progress.clone(),
        platform,
        keys,
    };
    let over = AtomicBool::new(false);
    let over = &over;
    let result = std::thread::scope(|scope| {
        let (done, ended) = sync_channel(1);
        scope.spawn(move || {
            let result = run_guarded(job, &context);
            // The receiver is below, and waits.
            let _ = done.send(result);
        });
        let reports = progress.clone();
        scope.spawn(move || report_progress(job, server, &reports, &cancelled, over));
        let mut shown = None;
        let result = loop {
            match ended.recv_timeout(TICK) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Timeout) => show(progress.get(), &mut shown),
                Err(RecvTimeoutError::Disconnected) => break Err(fault("its thread ended")),
            }
        };
        over.store(true, Ordering::Relaxed);
        result
    });
    screen::update(|view| view.progress = None);
    conclude(job, server, result)
}

fn run_guarded(job: &Job, context: &Context) -> Result<Summary, JobError> {
    let result = catch_unwind(AssertUnwindSafe(|| job::run(job, context)));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(fault(text.unwrap_or("no message")))
    })
}

fn fault(what: &str) -> JobError {
    JobError {
        reason: format!(
            "fault in the agent itself: {what}; if this was a restore, the disk may be partly written and must not be used: start the job again"
        ),
        code: "internal".to_owned(),
    }
}

/// Shows how far the job is, when that has changed.
fn show(progress: Option<Progress>, shown: &mut Option<Progress>) {
    if let Some(now) = progress
        && progress != *shown
    {
        crate::log::serial(&now.to_string());
        screen::update(|view| view.progress = progress);
        *shown = progress;
    }
}

/// Reports progress each second until the job is over; sets `cancelled` when the server says so.
fn report_progress(
    job: &Job,
    server: &Server,
    progress: &ProgressSlot,
    cancelled: &AtomicBool,
    over: &AtomicBool,
) {
    let path = api::job_report(&job.id);
    let mut since = std::time::Instant::now();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        if since.elapsed() < TICK {
            continue;
        }
        since = std::time::Instant::now();
        let Some(progress) = progress.get() else {
            continue;
        };
        match server.post_json::<JobReportReply>(&path, &JobReport::Progress { progress }) {
            Ok(reply) => {
                if reply.cancelled && !cancelled.swap(true, Ordering::Relaxed) {
                    log::warn!("job {} was taken back; stopping", job.id);
                }
            }
            // The next one says the same, and more.
            Err(error) => log::debug!("report: {}", chain(&error)),
        }
    }
}

/// Says how the job ended, here and to the server.
fn conclude(job: &Job, server: &Server, result: Result<Summary, JobError>) -> Outcome {
    let (report, outcome) = match result {
        Ok(Summary(summary)) => {
            log::info!("job {} succeeded", job.id);
            for line in &summary {
                log::info!("{line}");
            }
            let outcome = Outcome::Done(Summary(summary.clone()));
            (JobReport::Succeeded { summary }, outcome)
        }
        Err(JobError { reason, code }) if code == CANCELLED => {
            log::warn!("job {} stopped: {reason}", job.id);
            let outcome = Outcome::TakenBack(reason.clone());
            (JobReport::Failed { reason, code }, outcome)
        }
        Err(JobError { reason, code }) => {
            log::error!("job {} FAILED: {reason}", job.id);
            let outcome = Outcome::Failed(JobError {
                reason: reason.clone(),
                code: code.clone(),
            });
            (JobReport::Failed { reason, code }, outcome)
        }
    };
    deliver(&job.id, server, &report, DELIVER_AGAIN);
    outcome
}

/// Delivers the end of a job, however long the server is away or in trouble: as long as the server
/// believes that the job runs, a machine that starts again is given the whole job again.
fn deliver(job: &str, server: &Server, report: &JobReport, wait: Duration) {
    let server = server.until(Arc::new(AtomicBool::new(false)));
    let path = api::job_report(job);
    loop {
        match server.post_json::<JobReportReply>(&path, report) {
            Ok(_) => return,
            Err(RequestError::Refused { status, error, .. }) if (400..500).contains(&status) => {
                log::warn!("the server does not want the report of job {job}: {error}");
                return;
            }
            Err(error) => log::error!(
                "the report of job {job}, trying again in {} s: {}",
                wait.as_secs(),
                chain(&error)
            ),
        }
        std::thread::sleep(wait);
    }
}

/// After the environment was started again: fails the job that was being done, so that it does not end
/// the environment again and again, and says what happened.
pub(crate) fn settle_crash(server: &Server, station: &Station, how: &str) {
    let Some(job) = unfinished_job() else {
        station.set_state(
            AgentState::Failed,
            Some(format!("the agent ended by itself ({how})")),
        );
        return;
    };
    station.refuse(&job);
    let reason = format!(
        "the agent ended by itself during the job ({how}); if this was a restore, the disk may be partly written and must not be used: start the job again"
    );
    log::error!("job {job} FAILED: {reason}");
    screen::update(|view| view.state = format!("FAILED: {reason}"));
    station.set_state(AgentState::Failed, Some(reason.clone()));
    let report = JobReport::Failed {
        reason,
        code: "internal".to_owned(),
    };
    deliver(&job, server, &report, DELIVER_AGAIN);
    let _ = std::fs::remove_file(CRASH_MARK);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::tests::{answer, serve};

    fn asked_when_answered(answers: &[(&str, &str)]) -> usize {
        let answers = answers.iter().map(|(status, body)| answer(status, body));
        let (server, asked) = serve(answers.collect());
        let report = JobReport::Succeeded {
            summary: Vec::new(),
        };
        deliver("7", &server, &report, Duration::ZERO);
        asked.join().unwrap().len()
    }

    #[test]
    fn a_report_that_the_server_could_not_take_is_sent_until_it_is_taken() {
        let error = r#"{"code":"internal","message":"the database is busy"}"#;
        let taken = r#"{"cancelled":false}"#;
        let answers = [
            ("500 Internal Server Error", error),
            ("500 Internal Server Error", ""),
            ("503 Service Unavailable", ""),
            ("200 OK", taken),
        ];
        assert_eq!(asked_when_answered(&answers), 4);
    }

    #[test]
    fn a_report_that_the_server_does_not_want_is_given_up() {
        let error = r#"{"code":"not-found","message":"no such job"}"#;
        assert_eq!(asked_when_answered(&[("404 Not Found", error)]), 1);
    }
}
