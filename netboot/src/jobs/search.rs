//! Looking jobs up in the database.

use std::collections::HashSet;

use backup::manifest::RestorePointId;
use protocol::job::{Job, JobKind, JobState};
use rusqlite::Row;
use rusqlite::types::Null;

use super::{JobError, JobRecord, Jobs};
use crate::state::{StateError, from_json, unsigned};

const COLUMNS: &str = "id, machine, kind, afterwards, state, progress, error, error_code, summary,
    stored_bytes, created_at, started_at, ended_at";

/// Jobs that are not over.
const UNFINISHED: &str = "WHERE ?1 IS NULL AND state IN ('waiting', 'running')";

impl Jobs {
    /// The job with this id.
    ///
    /// # Errors
    /// [`JobError::Unknown`] when there is none.
    pub(crate) fn get(&self, id: &str) -> Result<JobRecord, JobError> {
        let found = self.query("WHERE id = ?1", &id)?.pop();
        found.ok_or_else(|| JobError::Unknown {
            id: id.chars().take(80).collect(),
        })
    }

    /// The job with this id, or whose id begins so.
    ///
    /// # Errors
    /// [`JobError::Unknown`] and [`JobError::Ambiguous`].
    pub(crate) fn resolve(&self, id: &str) -> Result<JobRecord, JobError> {
        let mut found = self.query(
            "WHERE length(?1) > 0 AND substr(id, 1, length(?1)) = ?1",
            &id,
        )?;
        let shown = || id.chars().take(80).collect();
        if found.len() > 1 {
            return Err(JobError::Ambiguous {
                id: shown(),
                candidates: found.into_iter().map(|record| record.job.id).collect(),
            });
        }
        found.pop().ok_or_else(|| JobError::Unknown { id: shown() })
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn list(&self) -> Result<Vec<JobRecord>, JobError> {
        Ok(self.query("WHERE ?1 IS NULL", &Null)?)
    }

    /// The job that a machine has not ended.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn unfinished(&self, machine: &str) -> Result<Option<JobRecord>, JobError> {
        let which = "WHERE machine = ?1 AND state IN ('waiting', 'running')";
        Ok(self.query(which, &machine)?.pop())
    }

    /// The restore points that captures are to make.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be read.
    pub(crate) fn unfinished_captures(&self) -> Result<HashSet<RestorePointId>, StateError> {
        Ok(captures(self.query(UNFINISHED, &Null)?))
    }

    /// The restore points that captures are making: machines have taken these jobs.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be read.
    pub(crate) fn running_captures(&self) -> Result<HashSet<RestorePointId>, StateError> {
        Ok(captures(
            self.query("WHERE state = ?1", &JobState::Running.word())?,
        ))
    }

    /// The captures that are not over.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn all_unfinished_captures(&self) -> Result<Vec<JobRecord>, JobError> {
        let mut unfinished = self.query(UNFINISHED, &Null)?;
        unfinished.retain(|record| matches!(record.job.kind, JobKind::Capture { .. }));
        Ok(unfinished)
    }

    /// The captures that failed, oldest first.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn failed_captures(&self) -> Result<Vec<JobRecord>, JobError> {
        let mut failed = self.query("WHERE state = ?1", &JobState::Failed.word())?;
        failed.retain(|record| matches!(record.job.kind, JobKind::Capture { .. }));
        Ok(failed)
    }

    /// An unfinished restore of this restore point.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn restore_of(&self, id: &RestorePointId) -> Result<Option<JobRecord>, JobError> {
        let unfinished = self.query(UNFINISHED, &Null)?;
        Ok(unfinished.into_iter().find(|record| {
            matches!(&record.job.kind, JobKind::Restore { restore_point, .. } if restore_point == id)
        }))
    }

    /// Whether a restore runs: of this restore point, or of any.
    ///
    /// # Errors
    /// [`JobError::State`].
    pub(crate) fn restore_runs(&self, of: Option<&RestorePointId>) -> Result<bool, JobError> {
        let running = self.query("WHERE state = ?1", &JobState::Running.word())?;
        Ok(running.iter().any(|record| {
            let restore = matches!(record.job.kind, JobKind::Restore { .. });
            restore && of.is_none_or(|id| record.job.kind.restore_point() == id)
        }))
    }

    pub(super) fn query(
        &self,
        which: &str,
        argument: &dyn rusqlite::ToSql,
    ) -> Result<Vec<JobRecord>, StateError> {
        let sql = format!("SELECT {COLUMNS} FROM job {which} ORDER BY created_at, rowid");
        let mut records: Vec<JobRecord> = self.database.with(|connection| {
            connection
                .prepare_cached(&sql)?
                .query_map([argument], read_row)?
                .collect()
        })?;
        let progress = self.lock_progress();
        for record in &mut records {
            if let Some(progress) = progress.get(&record.job.id) {
                record.progress = Some(*progress);
            }
        }
        drop(progress);
        let stored = self.lock_stored();
        for record in &mut records {
            let pending = stored.get(&record.job.id).copied().unwrap_or(0);
            record.stored_bytes = record.stored_bytes.saturating_add(pending);
        }
        Ok(records)
    }
}

/// The restore points that the captures among these jobs make.
fn captures(records: Vec<JobRecord>) -> HashSet<RestorePointId> {
    let captures = records
        .into_iter()
        .filter_map(|record| match record.job.kind {
            JobKind::Capture { restore_point, .. } => Some(restore_point),
            JobKind::Restore { .. } => None,
        });
    captures.collect()
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    let progress: Option<String> = row.get(5)?;
    let word: String = row.get(4)?;
    let states = [
        JobState::Waiting,
        JobState::Running,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];
    let state = states
        .into_iter()
        .find(|state| state.word() == word)
        .ok_or_else(|| rusqlite::Error::InvalidColumnName(format!("job state `{word}`")))?;
    Ok(JobRecord {
        job: Job {
            id: row.get(0)?,
            kind: from_json(row, 2)?,
            afterwards: from_json(row, 3)?,
        },
        machine: row.get(1)?,
        state,
        progress: progress.and_then(|text| serde_json::from_str(&text).ok()),
        error: row.get(6)?,
        error_code: row.get(7)?,
        summary: from_json(row, 8)?,
        stored_bytes: unsigned(row.get(9)?),
        created_at: unsigned(row.get(10)?),
        started_at: row.get::<_, Option<i64>>(11)?.map(unsigned),
        ended_at: row.get::<_, Option<i64>>(12)?.map(unsigned),
    })
}
