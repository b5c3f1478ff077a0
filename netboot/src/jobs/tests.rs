use backup::manifest::RestorePointId;
use backup::plan::Choices;

use super::*;

const DAY: u64 = 24 * 60 * 60;

struct Bench {
    _directory: tempfile::TempDir,
    jobs: Jobs,
}

impl Bench {
    /// Jobs for a machine `m`.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("state.sqlite")).unwrap();
        let machine = "INSERT INTO machine (id, inventory, agent_state, pairing_code, boot_id,
            last_beacon) VALUES ('m', '{}', '\"waiting\"', '1', 'a', 0)";
        database
            .with(|connection| connection.execute(machine, []))
            .unwrap();
        Self {
            _directory: directory,
            jobs: Jobs::new(Arc::new(database)),
        }
    }

    /// A job that the machine took; when it did.
    fn taken(&self, kind: JobKind) -> (JobRecord, u64) {
        self.jobs.create("m", kind, Afterwards::Reboot).unwrap();
        let record = self.jobs.hand_out("m", AgentState::Waiting).unwrap();
        let record = record.unwrap();
        let started = record.started_at.unwrap();
        (record, started)
    }
}

fn restore_point() -> RestorePointId {
    RestorePointId::try_from("20261120T121212Z-aaaaaaaa".to_owned()).unwrap()
}

fn restore() -> JobKind {
    JobKind::Restore {
        restore_point: restore_point(),
        point_kind: Default::default(),
        choices: Choices::default(),
    }
}

#[test]
fn a_restore_of_a_machine_that_was_silent_for_more_than_a_day_is_ended_and_not_done_again() {
    let bench = Bench::new();
    let (job, started) = bench.taken(restore());
    let heard = Some(started + 10);
    let ended = bench
        .jobs
        .end_stale_restore("m", heard, started + 11 + DAY)
        .unwrap()
        .unwrap();
    assert_eq!(
        (ended.job.id, ended.state),
        (job.job.id.clone(), JobState::Failed)
    );
    assert_eq!(ended.error_code.as_deref(), Some("interrupted"));
    let reason = ended.error.unwrap();
    assert!(reason.contains("nothing was done now"), "{reason}");
    assert!(reason.starts_with("not heard of since 20"), "{reason}");
    // What the boot policy asks, and what the next beacon gets.
    assert_eq!(bench.jobs.unfinished("m").unwrap(), None);
    assert_eq!(bench.jobs.hand_out("m", AgentState::Waiting).unwrap(), None);
}

#[test]
fn a_restore_heard_of_within_a_day_goes_on() {
    let bench = Bench::new();
    let (_, started) = bench.taken(restore());
    let stale = |heard, now| bench.jobs.end_stale_restore("m", heard, now).unwrap();
    assert_eq!(stale(Some(started + 10), started + 10 + DAY), None);
    // It was handed out at the first beacon after long: that counts, too.
    assert_eq!(stale(Some(started - 9 * DAY), started + DAY), None);
    // A clock that was set back.
    assert_eq!(stale(Some(started), started - DAY), None);
    assert!(
        bench
            .jobs
            .hand_out("m", AgentState::Waiting)
            .unwrap()
            .is_some()
    );
}

#[test]
fn a_capture_and_a_restore_not_taken_yet_never_get_old() {
    let bench = Bench::new();
    let waiting = bench
        .jobs
        .create("m", restore(), Afterwards::Reboot)
        .unwrap();
    let late = waiting.created_at + 99 * DAY;
    let stale = || bench.jobs.end_stale_restore("m", Some(1), late).unwrap();
    assert_eq!(stale(), None);
    bench.jobs.cancel(&waiting.job.id).unwrap();
    let restore_point = restore_point();
    bench.taken(JobKind::Capture {
        restore_point,
        point_kind: Default::default(),
        image: None,
        unlock: Vec::new(),
        native: false,
    });
    assert_eq!(stale(), None);
}

#[test]
fn a_decision_that_another_request_overtook_is_made_again_and_tells_what_is() {
    let bench = Bench::new();
    let (job, _) = bench.taken(restore());
    let running = bench.jobs.get(&job.job.id).unwrap();
    bench.jobs.cancel(&job.job.id).unwrap();
    let failed = JobReport::Failed {
        reason: "the disk is gone".into(),
        code: "internal".into(),
    };
    // As it was read before the cancellation.
    assert_eq!(
        bench.jobs.report_on(running.clone(), &failed).unwrap(),
        None
    );
    let overtaken = std::cell::Cell::new(Some(running));
    let told = bench.jobs.decide_again(&job.job.id, |record| {
        let record = overtaken.take().unwrap_or(record);
        bench.jobs.report_on(record, &failed)
    });
    let told = told.unwrap();
    assert_eq!((told.job.state, told.ended), (JobState::Cancelled, false));
    assert_eq!(told.job.error, None);
}

#[test]
fn a_backup_of_a_running_system_ends_when_its_program_is_silent_and_no_other_job_does() {
    let bench = Bench::new();
    let minutes = |count: u64| count * 60;
    let (job, started) = bench.taken(JobKind::Capture {
        unlock: Vec::new(),
        restore_point: restore_point(),
        point_kind: Default::default(),
        image: None,
        native: true,
    });
    let silent = |now| bench.jobs.end_silent(now).unwrap();
    assert_eq!(silent(started + minutes(5)), []);
    // An upload and a report are heard; here they come from a time long after.
    bench.jobs.running(&job.job.id, "capture").unwrap();
    let much_later = started + minutes(600);
    bench
        .jobs
        .lock_heard()
        .insert(job.job.id.clone(), much_later);
    assert_eq!(silent(much_later + minutes(5)), []);
    // A clock that was set back.
    assert_eq!(silent(started), []);
    let ended = silent(much_later + minutes(7)).pop().unwrap();
    assert_eq!(
        (&ended.job.id, ended.state),
        (&job.job.id, JobState::Failed)
    );
    assert_eq!(ended.error_code.as_deref(), Some("interrupted"));
    let reason = ended.error.unwrap();
    assert!(reason.contains("not heard of for 7 minutes"), "{reason}");
    assert_eq!(silent(much_later + minutes(99)), []);
    // One in the recovery environment is given its job again instead.
    let (_, started) = bench.taken(JobKind::Capture {
        unlock: Vec::new(),
        restore_point: restore_point(),
        point_kind: Default::default(),
        image: None,
        native: false,
    });
    assert_eq!(silent(started + minutes(600)), []);
    assert!(bench.jobs.unfinished("m").unwrap().is_some());
}

#[test]
fn silence_before_the_server_was_there_does_not_count() {
    let mut bench = Bench::new();
    let (_, started) = bench.taken(JobKind::Capture {
        unlock: Vec::new(),
        restore_point: restore_point(),
        point_kind: Default::default(),
        image: None,
        native: true,
    });
    bench.jobs.began = started + 3600;
    assert_eq!(bench.jobs.end_silent(started + 3700).unwrap(), []);
    assert_eq!(bench.jobs.end_silent(started + 3950).unwrap().len(), 1);
}
