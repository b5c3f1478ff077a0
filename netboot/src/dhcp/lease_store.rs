//! Leases on disk, in a database of their own.
//!
//! Invariant: [`LeaseStore::save`] returns only when the leases survive a power cut; the server
//! sends an acknowledgement only after that. Many leases go in one transaction, so that the cost
//! of the disk is shared by all machines that are switched on together. The file is their own
//! because SQLite has one writer at a time: a beacon's or an event's transaction elsewhere must
//! not hold up an address.
//!
//! Not here: when a lease is granted (`server`), offers (they are not kept: a client whose offer
//! is forgotten asks again).

use std::path::Path;

use rusqlite::{Connection, params};

use super::lease::{Lease, LeaseState, UnixSeconds};

/// Where leases are kept.
pub(crate) trait LeaseStore: Send {
    /// All leases saved, in any order.
    fn load(&mut self) -> Result<Vec<Lease>, LeaseStoreError>;

    /// Saves leases, each in place of what was known of its address, and of its client's other
    /// addresses nothing: a client may have one in each subnet.
    fn save(&mut self, leases: &[Lease]) -> Result<(), LeaseStoreError>;
}

/// Leases cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseStoreError {
    /// The database refused.
    #[error("the database of leases, {FILE}, cannot be used")]
    Database(#[from] rusqlite::Error),
}

/// The database's name in the data directory.
pub(crate) const FILE: &str = "leases.sqlite";

/// The table `lease`.
pub(crate) struct SqliteLeases {
    connection: Connection,
}

impl SqliteLeases {
    /// Opens the database, and makes the table when it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, LeaseStoreError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        // By number, not by text: the leases of one pool lie on neighbouring pages, so that a
        // transaction of many touches few.
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS lease (
                 number INTEGER PRIMARY KEY, -- the address, most significant byte first
                 address TEXT NOT NULL,
                 mac TEXT NOT NULL,
                 state TEXT NOT NULL,
                 until INTEGER NOT NULL -- seconds since 1970-01-01 UTC
             ) STRICT",
        )?;
        Ok(Self { connection })
    }

    /// Takes over the leases of a version that kept them in the state database, once.
    ///
    /// # Errors
    /// When either database refuses; then nothing is taken over.
    pub(crate) fn take_over(&mut self, state: &Path) -> Result<(), LeaseStoreError> {
        if !state.exists() {
            return Ok(());
        }
        let earlier = Connection::open(state)?;
        earlier.busy_timeout(std::time::Duration::from_secs(10))?;
        if !earlier.table_exists(None, "lease")? {
            return Ok(());
        }
        let leases = read_all(&earlier)?;
        self.save(&leases)?;
        // Only now: what is cut short here is done again at the next start.
        earlier.execute_batch("DROP TABLE lease")?;
        log::info!("{} leases moved to {FILE}", leases.len());
        Ok(())
    }
}

fn read_all(connection: &Connection) -> Result<Vec<Lease>, LeaseStoreError> {
    let mut query =
        connection.prepare("SELECT address, mac, state, until FROM lease ORDER BY until")?;
    let mut rows = query.query([])?;
    let mut leases = Vec::new();
    while let Some(row) = rows.next()? {
        let (address, mac): (String, String) = (row.get(0)?, row.get(1)?);
        let (state, until): (String, i64) = (row.get(2)?, row.get(3)?);
        let (Ok(address), Ok(mac), Some(state), Ok(until)) = (
            address.parse(),
            mac.parse(),
            state_of(&state),
            u64::try_from(until),
        ) else {
            log::warn!("the saved lease of {address} for {mac} is unreadable; left out");
            continue;
        };
        leases.push(Lease {
            address,
            mac,
            state,
            until: UnixSeconds(until),
        });
    }
    Ok(leases)
}

impl LeaseStore for SqliteLeases {
    fn load(&mut self) -> Result<Vec<Lease>, LeaseStoreError> {
        read_all(&self.connection)
    }

    fn save(&mut self, leases: &[Lease]) -> Result<(), LeaseStoreError> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO lease (number, address, mac, state, until)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for lease in leases {
                insert.execute(params![
                    u32::from(lease.address),
                    lease.address.to_string(),
                    lease.mac.to_string(),
                    state_name(lease.state),
                    i64::try_from(lease.until.0).unwrap_or(i64::MAX),
                ])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

const STATES: [(LeaseState, &str); 4] = [
    (LeaseState::Offered, "offered"),
    (LeaseState::Bound, "bound"),
    (LeaseState::Released, "released"),
    (LeaseState::Declined, "declined"),
];

fn state_name(state: LeaseState) -> &'static str {
    STATES
        .iter()
        .find(|(known, _)| *known == state)
        .map_or("offered", |(_, name)| name)
}

fn state_of(name: &str) -> Option<LeaseState> {
    STATES
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(state, _)| *state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::dhcp::MacAddress;

    fn lease(last: u8, state: LeaseState) -> Lease {
        Lease {
            address: [10, 77, 0, last].into(),
            mac: MacAddress::new([2, 0, 0, 0, 0, last]),
            state,
            until: UnixSeconds(1_800_000_000),
        }
    }

    #[test]
    fn leases_are_read_back_by_a_later_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("leases.sqlite");
        let mut leases: Vec<_> = STATES
            .iter()
            .zip(1..)
            .map(|((state, _), last)| lease(last, *state))
            .collect();
        SqliteLeases::open(&path)
            .and_then(|mut store| store.save(&leases))
            .expect("saved");
        leases[0].state = LeaseState::Bound;
        SqliteLeases::open(&path)
            .and_then(|mut store| store.save(&leases[..1]))
            .expect("saved");
        let mut read = SqliteLeases::open(&path)
            .and_then(|mut store| store.load())
            .expect("read");
        read.sort_by_key(|lease| lease.address);
        assert_eq!(read, leases);
    }

    #[test]
    fn leases_of_an_earlier_version_are_taken_over_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state.sqlite");
        let earlier = Connection::open(&state).expect("a database");
        earlier
            .execute_batch(
                "CREATE TABLE lease (address TEXT PRIMARY KEY, mac TEXT NOT NULL,
                     state TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
                 INSERT INTO lease VALUES ('10.77.0.9', '02:00:00:00:00:09', 'bound', 1800000000);",
            )
            .expect("an earlier table");
        let path = folder.path().join(FILE);
        let mut store = SqliteLeases::open(&path).expect("opened");
        for _ in 0..2 {
            store.take_over(&state).expect("taken over");
            assert_eq!(store.load().expect("read"), [lease(9, LeaseState::Bound)]);
        }
        let later = Connection::open(&state).expect("a database");
        assert!(!later.table_exists(None, "lease").expect("asked"));
    }
}
