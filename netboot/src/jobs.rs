//! Jobs: what operators want of machines, and how it goes.
//!
//! Invariant: a machine has at most one unfinished job (the database enforces it), and a job that
//! was created is handed out until it is over: a machine that restarts in the middle, or that never
//! got the answer, gets the same job again, but for a restore of a machine that was not heard of for
//! a day, and a capture that a running system made of itself. A failed job stays failed; only a person starts another. What is *not* here: who may ask (`http`), what a job does to a machine (the agent).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use event_listener::{Event, EventListener};
use protocol::beacon::AgentState;
use protocol::job::{Afterwards, Job, JobKind, JobReport, JobState};
use protocol::progress::Progress;
use protocol::unlock::{VolumeKey, VolumePlace};
use rusqlite::params;
use uuid::Uuid;

use crate::state::{Database, StateError, integer, now, to_json};

/// What cannot be done with a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// There is none of this id.
    #[error("there is no job `{id}`")]
    Unknown {
        /// What was asked for.
        id: String,
    },
    /// The beginning of several ids.
    #[error("`{id}` is the beginning of {} jobs: {}", candidates.len(), candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        id: String,
        /// Their ids.
        candidates: Vec<String>,
    },
    /// The machine has something to do already.
    #[error(
        "the machine has a {kind} job that is {} already (job {job}); wait for it or cancel it first",
        state.word()
    )]
    Busy {
        /// The unfinished job.
        job: String,
        /// What it does.
        kind: &'static str,
        /// Where it stands.
        state: JobState,
    },
    /// It is not at the point where that is possible.
    #[error("job {job} is {}", state.word())]
    NotRunning {
        /// The job.
        job: String,
        /// Where it stands.
        state: JobState,
    },
    /// It does something else.
    #[error("job {job} is a {found} (expected a {expected})")]
    OtherKind {
        /// The job.
        job: String,
        /// What it should do.
        expected: &'static str,
        /// What it does.
        found: &'static str,
    },
    /// Its keys are gone: they are kept in memory only.
    #[error(
        "the server has the key of the encrypted volume no more: it was started again since the capture was \
         ordered, and keeps keys in memory only; order the capture again with its key"
    )]
    KeyNeeded,
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// After this many bytes of uploads their sum is written: each write waits for the disk.
const STORED_WRITTEN_EVERY: u64 = 256 * 1024 * 1024;

/// After this many seconds of silence a restore is not gone on with: it may have been done but for
/// its last report, and what is on the disks has been worked with since.
const RESTORE_GOES_STALE: u64 = 24 * 60 * 60;

/// After this many seconds of silence a capture is ended that a running system makes of itself: its
/// progress is reported each second, so that the program that made it is gone.
const NATIVE_GOES_SILENT: u64 = 5 * 60;

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobRecord {
    /// What the agent gets.
    pub(crate) job: Job,
    /// The machine's id.
    pub(crate) machine: String,
    /// Where it stands.
    pub(crate) state: JobState,
    /// How far it is, or was at its end.
    pub(crate) progress: Option<Progress>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// The word that goes with it.
    pub(crate) error_code: Option<String>,
    /// What it did.
    pub(crate) summary: Vec<String>,
    /// Bytes that its uploads added to the store.
    pub(crate) stored_bytes: u64,
    /// Seconds since 1970-01-01 UTC; so are the next two.
    pub(crate) created_at: u64,
    /// When it was first handed out.
    pub(crate) started_at: Option<u64>,
    /// When it ended.
    pub(crate) ended_at: Option<u64>,
}

/// What a report brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reported {
    /// The job as it is now.
    pub(crate) job: JobRecord,
    /// Whether this report ended it.
    pub(crate) ended: bool,
}

/// All jobs.
pub(crate) struct Jobs {
    database: Arc<Database>,
    /// How far running jobs are: too often to be written each time.
    progress: Mutex<HashMap<String, Progress>>,
    /// What uploads stored and is not written yet, for the same reason.
    stored: Mutex<HashMap<String, u64>>,
    /// Keys of encrypted volumes that unfinished captures open: never written anywhere.
    keys: Mutex<HashMap<String, Vec<VolumeKey>>>,
    /// When the agent was last heard of that does this job: seconds since 1970-01-01 UTC.
    heard: Mutex<HashMap<String, u64>>,
    /// When this server began to listen; before that nobody was heard.
    began: u64,
    changed: Event,
}

impl Jobs {
    /// The jobs of a database.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            progress: Mutex::default(),
            stored: Mutex::default(),
            keys: Mutex::default(),
            heard: Mutex::default(),
            began: now(),
            changed: Event::new(),
        }
    }

    /// Wakes when a job was created or changed its state. Listen first, then look.
    pub(crate) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    /// Creates a job for a machine that has none unfinished.
    ///
    /// # Errors
    /// [`JobError::Busy`] when it has one.
    pub(crate) fn create(
        &self,
        machine: &str,
        kind: JobKind,
        afterwards: Afterwards,
    ) -> Result<JobRecord, JobError> {
        self.create_with_keys(machine, kind, afterwards, Vec::new())
    }

    /// Creates a job that opens encrypted volumes with these keys.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn create_with_keys(
        &self,
        machine: &str,
        kind: JobKind,
        afterwards: Afterwards,
        keys: Vec<VolumeKey>,
    ) -> Result<JobRecord, JobError> {
        if let Some(other) = self.unfinished(machine)? {
            return Err(busy(other));
        }
        let id = Uuid::new_v4().to_string();
        // Before the job, which is handed out as soon as it is there.
        if !keys.is_empty() {
            self.lock_keys().insert(id.clone(), keys);
        }
        let inserted = self.database.with(|connection| {
            connection.execute(
                "INSERT INTO job (id, machine, kind, afterwards, state, summary, stored_bytes,
                     created_at) VALUES (?1, ?2, ?3, ?4, ?5, '[]', 0, ?6)",
                params![
                    id,
                    machine,
                    to_json(&kind)?,
                    to_json(&afterwards)?,
                    JobState::Waiting.word(),
                    integer(now()),
                ],
            )
        });
        if let Err(error) = inserted {
            self.lock_keys().remove(&id);
            // Another request came between: the unique index refused ours.
            return Err(match self.unfinished(machine)? {
                Some(other) => busy(other),
                None => error.into(),
            });
        }
        self.changed.notify(usize::MAX);
        self.get(&id)
    }

    /// Ends the running restore of a machine that was silent for longer than a day, in place of
    /// handing it out again. `heard_before` is when the machine was last heard of before it came
    /// back, `now` the present; both are seconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn end_stale_restore(
        &self,
        machine: &str,
        heard_before: Option<u64>,
        now: u64,
    ) -> Result<Option<JobRecord>, JobError> {
        let Some(record) = self.unfinished(machine)? else {
            return Ok(None);
        };
        let restore = matches!(record.job.kind, JobKind::Restore { .. });
        if !restore || record.state != JobState::Running {
            return Ok(None);
        }
        let heard = heard_before.max(record.started_at).unwrap_or(now);
        if now.saturating_sub(heard) <= RESTORE_GOES_STALE {
            return Ok(None);
        }
        let since = i64::try_from(heard)
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .map_or_else(|| heard.to_string(), |time| time.to_string());
        let failed = JobReport::Failed {
            reason: format!(
                "not heard of since {since}; nothing was done now; order the restore again if it is still wanted"
            ),
            code: "interrupted".to_owned(),
        };
        let reported = self.report(&record.job.id, &failed)?;
        Ok(reported.ended.then_some(reported.job))
    }

    /// Ends captures that running systems made of themselves, and whose agent was silent for longer than
    /// some minutes. `now` is the present, in seconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn end_silent(&self, now: u64) -> Result<Vec<JobRecord>, JobError> {
        let running = self.query("WHERE state = ?1", &JobState::Running.word())?;
        let mut ended = Vec::new();
        for record in running {
            if !matches!(record.job.kind, JobKind::Capture { native: true, .. }) {
                continue;
            }
            let heard = self.lock_heard().get(&record.job.id).copied();
            let heard = heard
                .max(record.started_at)
                .map_or(self.began, |heard| heard.max(self.began));
            if now.saturating_sub(heard) <= NATIVE_GOES_SILENT {
                continue;
            }
            let failed = JobReport::Failed {
                reason: format!(
                    "the backup program was not heard of for {} minutes: it was stopped, or the machine is off; the disks were only read; start it again",
                    now.saturating_sub(heard) / 60
                ),
                code: "interrupted".to_owned(),
            };
            let reported = self.report(&record.job.id, &failed)?;
            if reported.ended {
                ended.push(reported.job);
            }
        }
        Ok(ended)
    }

    /// The agent that does this job was heard of.
    fn hear(&self, id: &str) {
        self.lock_heard().insert(id.to_owned(), now());
    }

    /// The job for a machine that sent a beacon, which is then running. A machine that waits or
    /// that failed has no job at hand, whatever was handed out before: it was started again, or
    /// the answer was lost on the way.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn hand_out(
        &self,
        machine: &str,
        agent: AgentState,
    ) -> Result<Option<JobRecord>, JobError> {
        if agent == AgentState::Working {
            return Ok(None);
        }
        let Some(record) = self.unfinished(machine)? else {
            return Ok(None);
        };
        let taken = self.database.with(|connection| {
            connection.execute(
                "UPDATE job SET state = 'running', started_at = coalesce(started_at, ?2)
                 WHERE id = ?1 AND state IN ('waiting', 'running')",
                params![record.job.id, integer(now())],
            )
        })?;
        // Cancelled in between: there is nothing to do.
        if taken == 0 {
            return Ok(None);
        }
        self.changed.notify(usize::MAX);
        Ok(Some(self.get(&record.job.id)?))
    }

    /// The keys of a running capture.
    ///
    /// # Errors
    /// [`JobError::KeyNeeded`] when it needs some that are not there any more.
    pub(crate) fn keys(&self, id: &str) -> Result<Vec<VolumeKey>, JobError> {
        let record = self.running(id, "capture")?;
        let JobKind::Capture { unlock, .. } = record.job.kind else {
            return Ok(Vec::new());
        };
        let keys = self.lock_keys().get(id).cloned().unwrap_or_default();
        let has = |place: &VolumePlace| keys.iter().any(|key| key.place == *place);
        if unlock.iter().all(has) {
            Ok(keys)
        } else {
            Err(JobError::KeyNeeded)
        }
    }

    /// The job of an agent's request, if it is running and of this kind ([`JobKind::word`]).
    ///
    /// # Errors
    /// [`JobError`] when it is not.
    pub(crate) fn running(&self, id: &str, kind: &'static str) -> Result<JobRecord, JobError> {
        let record = self.get(id)?;
        let found = record.job.kind.word();
        if found != kind {
            return Err(JobError::OtherKind {
                job: record.job.id,
                expected: kind,
                found,
            });
        }
        if record.state != JobState::Running {
            return Err(JobError::NotRunning {
                job: record.job.id,
                state: record.state,
            });
        }
        self.hear(&record.job.id);
        Ok(record)
    }

    /// Adds up what uploads stored. A server that is killed may forget the last of it: the number
    /// is for people.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn add_stored(&self, id: &str, bytes: u64) -> Result<(), JobError> {
        let due = {
            let mut stored = self.lock_stored();
            let pending = stored.entry(id.to_owned()).or_default();
            *pending = pending.saturating_add(bytes);
            *pending >= STORED_WRITTEN_EVERY
        };
        if due {
            self.write_stored(id)?;
        }
        Ok(())
    }

    fn write_stored(&self, id: &str) -> Result<(), JobError> {
        let pending = self.lock_stored().remove(id).unwrap_or(0);
        if pending > 0 {
            let sql = "UPDATE job SET stored_bytes = stored_bytes + ?2 WHERE id = ?1";
            self.database
                .with(|connection| connection.execute(sql, params![id, integer(pending)]))?;
        }
        Ok(())
    }

    /// Takes note of a report. The end of a job may be reported again; a job that was cancelled
    /// and had succeeded all the same is shown as what it is.
    ///
    /// # Errors
    /// [`JobError::NotRunning`] for a report that does not fit where the job stands.
    pub(crate) fn report(&self, id: &str, report: &JobReport) -> Result<Reported, JobError> {
        self.decide_again(id, |record| self.report_on(record, report))
    }

    /// Does `action` with a job as it stands; once more if another request ended it in between.
    fn decide_again<T>(
        &self,
        id: &str,
        action: impl Fn(JobRecord) -> Result<Option<T>, JobError>,
    ) -> Result<T, JobError> {
        // States only go forward and few follow each other: the second time is the last one.
        for _ in 0..2 {
            if let Some(done) = action(self.get(id)?)? {
                return Ok(done);
            }
        }
        let record = self.get(id)?;
        Err(JobError::NotRunning {
            job: record.job.id,
            state: record.state,
        })
    }

    /// `None` when another request ended the job after `record` was read.
    fn report_on(
        &self,
        record: JobRecord,
        report: &JobReport,
    ) -> Result<Option<Reported>, JobError> {
        let (from, end): (&[JobState], _) = match report {
            JobReport::Progress { progress } => {
                return self.progress(record, *progress).map(Some);
            }
            JobReport::Succeeded { summary } => (
                &[JobState::Running, JobState::Cancelled],
                End {
                    state: JobState::Succeeded,
                    error: None,
                    summary: summary.clone(),
                },
            ),
            JobReport::Failed { reason, code } => (
                &[JobState::Running],
                End {
                    state: JobState::Failed,
                    error: Some((reason.clone(), code.clone())),
                    summary: Vec::new(),
                },
            ),
        };
        if from.contains(&record.state) {
            if !self.end(&record, &end)? {
                return Ok(None);
            }
            return Ok(Some(Reported {
                job: self.get(&record.job.id)?,
                ended: true,
            }));
        }
        // Repeated because the answer was lost, or a failure because of the cancellation.
        if record.state == end.state || record.state == JobState::Cancelled {
            return Ok(Some(Reported {
                job: record,
                ended: false,
            }));
        }
        Err(JobError::NotRunning {
            job: record.job.id,
            state: record.state,
        })
    }

    fn progress(&self, record: JobRecord, progress: Progress) -> Result<Reported, JobError> {
        match record.state {
            JobState::Running => {
                self.hear(&record.job.id);
                self.lock_progress().insert(record.job.id.clone(), progress);
            }
            JobState::Cancelled => {}
            state => {
                return Err(JobError::NotRunning {
                    job: record.job.id,
                    state,
                });
            }
        }
        Ok(Reported {
            job: record,
            ended: false,
        })
    }

    /// Takes back an unfinished job.
    ///
    /// # Errors
    /// [`JobError::NotRunning`] when it is over.
    pub(crate) fn cancel(&self, id: &str) -> Result<JobRecord, JobError> {
        let id = self.resolve(id)?.job.id;
        self.decide_again(&id, |record| {
            if record.state.is_over() {
                return Err(JobError::NotRunning {
                    job: record.job.id,
                    state: record.state,
                });
            }
            let end = End {
                state: JobState::Cancelled,
                error: None,
                summary: Vec::new(),
            };
            let ended = self.end(&record, &end)?;
            ended.then(|| self.get(&record.job.id)).transpose()
        })
    }

    /// Ends a job that still is as `record` says; false when it is not, and then nothing changed.
    fn end(&self, record: &JobRecord, end: &End) -> Result<bool, JobError> {
        self.write_stored(&record.job.id)?;
        let progress = self.lock_progress().get(&record.job.id).copied();
        let ended = self.database.with(|connection| {
            let progress = progress.as_ref().map(to_json).transpose()?;
            let (error, code) = end.error.as_ref().map_or((None, None), |(error, code)| {
                (Some(error.as_str()), Some(code.as_str()))
            });
            // The state is compared again: another request may have ended it meanwhile.
            connection.execute(
                "UPDATE job SET state = ?2, error = ?3, error_code = ?4, summary = ?5,
                     progress = coalesce(?6, progress), ended_at = ?7
                 WHERE id = ?1 AND state = ?8",
                params![
                    record.job.id,
                    end.state.word(),
                    error,
                    code,
                    to_json(&end.summary)?,
                    progress,
                    integer(now()),
                    record.state.word(),
                ],
            )
        })?;
        if ended == 0 {
            return Ok(false);
        }
        self.lock_progress().remove(&record.job.id);
        self.lock_keys().remove(&record.job.id);
        self.lock_heard().remove(&record.job.id);
        self.changed.notify(usize::MAX);
        Ok(true)
    }

    fn lock_keys(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<VolumeKey>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_stored(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_heard(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_progress(&self) -> std::sync::MutexGuard<'_, HashMap<String, Progress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a job ends.
struct End {
    state: JobState,
    /// Reason and word.
    error: Option<(String, String)>,
    summary: Vec<String>,
}

fn busy(other: JobRecord) -> JobError {
    JobError::Busy {
        kind: other.job.kind.word(),
        job: other.job.id,
        state: other.state,
    }
}

mod search;

#[cfg(test)]
mod tests;
