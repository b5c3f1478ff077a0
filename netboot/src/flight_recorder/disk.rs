//! The events on disk: a table of the state database, written by a thread of its own.
//!
//! Invariants: bounded; nobody waits for it; rows of every earlier version stay readable. A row has
//! its sentence beside its fact, so that an operator with `sqlite3` and an earlier program can
//! read it.
//!
//! Not here: what the events mean.

use std::{
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use protocol::dhcp::MacAddress;
use rusqlite::{Connection, Row, params};

use super::{Event, Fact, RecorderError, Stage, now_ms};

/// Events that may wait for the disk; more are kept in memory only.
const WAITING: usize = 4_096;
/// Events kept on disk; the oldest go first.
const ON_DISK: i64 = 200_000;
/// Events read back at start.
const READ_BACK: i64 = 100_000;
/// Events older than this are deleted at start.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The way to the disk: dropping the sender ends the thread once everything is written.
pub(super) struct Disk {
    sender: Option<SyncSender<(MacAddress, Event)>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// Opens the table, hands every event of it to `each`, oldest first, and starts the writer.
    pub(super) fn open(
        path: &Path,
        each: impl FnMut(MacAddress, Event),
    ) -> Result<Self, RecorderError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A power cut may cost the last events, which nobody was told of.
        connection.pragma_update(None, "synchronous", "normal")?;
        prepare_table(&connection)?;
        let oldest = now_ms().saturating_sub(u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX));
        connection.execute("DELETE FROM flight_event WHERE at < ?1", [signed(oldest)])?;
        load(&connection, each)?;
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("flight-recorder".into())
            .spawn(move || write_events(connection, &receiver))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Sends an event on its way. When the disk is slower than the machines it is kept in memory
    /// only.
    pub(super) fn send(&self, mac: MacAddress, event: Event) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send((mac, event));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has said so; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

fn prepare_table(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS flight_event (
             mac TEXT NOT NULL,
             at INTEGER NOT NULL, -- milliseconds since 1970-01-01 UTC
             stage TEXT NOT NULL,
             trouble INTEGER NOT NULL,
             text TEXT NOT NULL,
             fact TEXT            -- JSON: flight_recorder::Fact; none in rows of version 0.1
         ) STRICT;
         CREATE INDEX IF NOT EXISTS flight_event_at ON flight_event (at);",
    )?;
    let has_facts: bool = connection.query_row(
        "SELECT count(*) > 0 FROM pragma_table_info('flight_event') WHERE name = 'fact'",
        [],
        |row| row.get(0),
    )?;
    if !has_facts {
        connection.execute_batch("ALTER TABLE flight_event ADD COLUMN fact TEXT")?;
    }
    Ok(())
}

fn load(
    connection: &Connection,
    mut each: impl FnMut(MacAddress, Event),
) -> Result<(), rusqlite::Error> {
    let mut query = connection.prepare(
        "SELECT mac, at, stage, trouble, text, fact FROM
           (SELECT rowid AS number, * FROM flight_event ORDER BY rowid DESC LIMIT ?1)
         ORDER BY number",
    )?;
    let mut rows = query.query([READ_BACK])?;
    while let Some(row) = rows.next()? {
        if let Some((mac, event)) = event_of(row)? {
            each(mac, event);
        }
    }
    Ok(())
}

/// `None` for a row that no version wrote.
fn event_of(row: &Row<'_>) -> Result<Option<(MacAddress, Event)>, rusqlite::Error> {
    let (mac, stage): (String, String) = (row.get(0)?, row.get(2)?);
    let (Ok(mac), Some(stage)) = (mac.parse(), Stage::of(&stage)) else {
        return Ok(None);
    };
    let at = u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default();
    let fact: Option<String> = row.get(5)?;
    let known = fact.and_then(|fact| serde_json::from_str(&fact).ok());
    let fact = match known {
        Some(fact) => fact,
        None => Fact::Remark {
            stage,
            trouble: row.get(3)?,
            text: row.get(4)?,
        },
    };
    Ok(Some((mac, Event { at, fact })))
}

fn write_events(mut connection: Connection, receiver: &Receiver<(MacAddress, Event)>) {
    let mut since_trimmed = 0;
    while let Ok(first) = receiver.recv() {
        let batch: Vec<_> = std::iter::once(first)
            .chain(receiver.try_iter().take(500))
            .collect();
        since_trimmed += batch.len();
        let trim = since_trimmed >= 1000;
        if trim {
            since_trimmed = 0;
        }
        if let Err(error) = write_batch(&mut connection, &batch, trim) {
            log::warn!(
                "{} flight recorder events are in memory only: {error}",
                batch.len()
            );
        }
    }
}

fn write_batch(
    connection: &mut Connection,
    batch: &[(MacAddress, Event)],
    trim: bool,
) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    for (mac, event) in batch {
        // A fact is strings and numbers: it always becomes JSON. Its sentence is there in any case.
        let fact = serde_json::to_string(&event.fact).ok();
        transaction
            .prepare_cached(
                "INSERT INTO flight_event (mac, at, stage, trouble, text, fact)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                mac.to_string(),
                signed(event.at),
                event.fact.stage().name(),
                event.fact.trouble(),
                event.fact.to_string(),
                fact
            ])?;
    }
    if trim {
        // Row numbers only grow, because the newest row is never deleted.
        transaction.execute(
            "DELETE FROM flight_event
             WHERE rowid <= (SELECT max(rowid) FROM flight_event) - ?1",
            [ON_DISK],
        )?;
    }
    transaction.commit()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<Event> {
        let mut events = Vec::new();
        let disk = Disk::open(path, |_, event| events.push(event)).expect("a table");
        drop(disk);
        events
    }

    #[test]
    fn rows_of_the_first_version_and_facts_of_a_later_one_are_read_as_their_sentences() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.sqlite");
        let now = now_ms();
        let connection = Connection::open(&path).expect("a database");
        connection
            .execute_batch(&format!(
                "CREATE TABLE flight_event (mac TEXT NOT NULL, at INTEGER NOT NULL,
                     stage TEXT NOT NULL, trouble INTEGER NOT NULL, text TEXT NOT NULL) STRICT;
                 CREATE INDEX flight_event_at ON flight_event (at);
                 INSERT INTO flight_event VALUES
                     ('02:00:00:00:00:01', {now}, 'tftp', 1, 'TFTP: fell silent');"
            ))
            .expect("a table of the first version");
        let old = Fact::Remark {
            stage: Stage::Tftp,
            trouble: true,
            text: "TFTP: fell silent".into(),
        };
        assert_eq!(read(&path)[0].fact, old);
        drop(connection);
        let connection = Connection::open(&path).expect("a database");
        connection
            .execute_batch(&format!(
                "INSERT INTO flight_event VALUES ('02:00:00:00:00:01', {now}, 'http', 0,
                     'teleported', '{{\"kind\":\"teleported\"}}');"
            ))
            .expect("a row of a later version");
        assert_eq!(read(&path)[1].fact.to_string(), "teleported");
    }

    #[test]
    fn a_fact_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.sqlite");
        let disk = Disk::open(&path, |_, _| {}).expect("a table");
        let event = Event {
            at: now_ms(),
            fact: Fact::PoolExhausted {
                network: "10.0.0.0/24".into(),
            },
        };
        disk.send(MacAddress::new([2, 0, 0, 0, 0, 1]), event.clone());
        drop(disk);
        assert_eq!(read(&path), [event]);
    }
}
