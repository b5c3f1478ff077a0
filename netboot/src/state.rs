//! The state database: machines and jobs, in `DATA_DIR/state.sqlite`.
//!
//! Invariant: a change that was reported as made survives a power cut (WAL, `synchronous = FULL`).
//! The version of the schema is SQLite's `user_version`; every earlier version is brought up to
//! date at start, a later one is refused. Leases and the flight recorder keep their own tables in
//! the same file (`dhcp::lease_store`, `flight_recorder`). What is *not* here: what the rows mean
//! (`machines`, `jobs`).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

/// What the state database could not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It cannot be opened.
    #[error("cannot open the state database {}", path.display())]
    Open {
        /// Its file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// It was written by a later program.
    #[error(
        "the state database {} is of version {found} (this program knows up to {known}); it was not changed. Use the later program again",
        path.display()
    )]
    Later {
        /// Its file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The last one known.
        known: usize,
    },
    /// A read or a write failed.
    #[error("the state database could not be read or written")]
    Use(#[from] rusqlite::Error),
}

/// Each brings the schema from the version that is its index to the next one. Released ones are
/// never changed.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE machine (
        id TEXT PRIMARY KEY,
        host_name TEXT,
        inventory TEXT NOT NULL,      -- JSON: backup::hardware::Inventory
        agent_state TEXT NOT NULL,    -- JSON: protocol::beacon::AgentState
        error TEXT,
        pairing_code TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        since_link_ms INTEGER,
        last_beacon INTEGER NOT NULL  -- seconds since 1970-01-01 UTC
    ) STRICT;
    CREATE TABLE job (
        id TEXT PRIMARY KEY,
        machine TEXT NOT NULL REFERENCES machine (id),
        kind TEXT NOT NULL,           -- JSON: protocol::job::JobKind
        afterwards TEXT NOT NULL,     -- JSON: protocol::job::Afterwards
        state TEXT NOT NULL,          -- protocol::job::JobState::word
        progress TEXT,                -- JSON: protocol::progress::Progress, as it was at the end
        error TEXT,
        error_code TEXT,
        summary TEXT NOT NULL,        -- JSON: list of sentences
        stored_bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL,  -- these three: seconds since 1970-01-01 UTC
        started_at INTEGER,
        ended_at INTEGER
    ) STRICT;
    CREATE INDEX job_machine ON job (machine, state);
    -- However two requests meet: one unfinished job for each machine.
    CREATE UNIQUE INDEX job_unfinished ON job (machine) WHERE state IN ('waiting', 'running');
",
    "
    CREATE TABLE next_boot (
        machine TEXT PRIMARY KEY,     -- id of a machine, or Ethernet address of an unknown one
        boots TEXT NOT NULL,          -- JSON: protocol::api::NextBoot
        always INTEGER NOT NULL,
        told_at INTEGER               -- seconds since 1970-01-01 UTC
    ) STRICT;
",
];

/// The open database.
pub(crate) struct Database {
    connection: Mutex<Connection>,
}

impl Database {
    /// Opens the database and brings its schema up to date.
    ///
    /// # Errors
    /// [`StateError::Open`] and [`StateError::Later`].
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let open = |source| StateError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Connection::open(path).map_err(open)?;
        prepare(&connection).map_err(open)?;
        let found = version(&connection).map_err(open)?;
        if found > MIGRATIONS.len() {
            return Err(StateError::Later {
                path: path.to_owned(),
                found,
                known: MIGRATIONS.len(),
            });
        }
        migrate(&mut connection, found).map_err(open)?;
        Ok(Self {
            connection: Mutex::new(connection),
        })
    }

    /// Does one thing with the database; blocks while another thread does.
    ///
    /// # Errors
    /// [`StateError::Use`] with what SQLite said.
    pub(crate) fn with<T>(
        &self,
        action: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        // A transaction that a panic left open was rolled back when it was dropped.
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(action(&mut connection)?)
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)
}

fn version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(version as usize)
}

fn migrate(connection: &mut Connection, from: usize) -> rusqlite::Result<()> {
    for (migration, next) in MIGRATIONS.iter().zip(1u32..).skip(from) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", next)?;
        transaction.commit()?;
    }
    Ok(())
}

/// A value for an integer column; those hold times and sizes far below its limit.
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Back from an integer column.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A value for a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Back from the JSON column with this number.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

/// Seconds since 1970-01-01 UTC.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_a_later_version_is_refused_and_not_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sqlite");
        let database = Database::open(&path).unwrap();
        database
            .with(|connection| connection.pragma_update(None, "user_version", 99))
            .unwrap();
        drop(database);
        let refusal = Database::open(&path).err().unwrap();
        assert!(
            matches!(refusal, StateError::Later { found: 99, .. }),
            "{refusal}"
        );
    }

    #[test]
    fn opening_again_keeps_the_tables() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sqlite");
        for _ in 0..2 {
            let database = Database::open(&path).unwrap();
            let count: i64 = database
                .with(|connection| {
                    connection.query_row("SELECT count(*) FROM job", [], |row| row.get(0))
                })
                .unwrap();
            assert_eq!(count, 0);
        }
    }
}
