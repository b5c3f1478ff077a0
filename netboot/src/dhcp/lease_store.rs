//! Leases on disk, in the state database.
//!
//! Invariant: [`LeaseStore::save`] returns only when the leases survive a power cut; the server
//! sends an acknowledgement only after that. Many leases go in one transaction, so that the cost
//! of the disk is shared by all machines that are switched on together.
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
    #[error("the lease table of the state database cannot be used")]
    Database(#[from] rusqlite::Error),
}

/// The table `lease` of the state database.
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
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS lease (
                 address TEXT PRIMARY KEY,
                 mac TEXT NOT NULL,
                 state TEXT NOT NULL,
                 until INTEGER NOT NULL -- seconds since 1970-01-01 UTC
             ) STRICT",
        )?;
        Ok(Self { connection })
    }
}

impl LeaseStore for SqliteLeases {
    fn load(&mut self) -> Result<Vec<Lease>, LeaseStoreError> {
        let mut query = self
            .connection
            .prepare("SELECT address, mac, state, until FROM lease ORDER BY until")?;
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
                log::warn!(
                    "lease of {address} for {mac} in the state database is unreadable; left out"
                );
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

    fn save(&mut self, leases: &[Lease]) -> Result<(), LeaseStoreError> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO lease (address, mac, state, until) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for lease in leases {
                insert.execute(params![
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
        let path = folder.path().join("state.sqlite");
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
}
