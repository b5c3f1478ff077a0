//! What operators want single machines to boot next, without touching them.
//!
//! Invariant: what is in memory is in the database too. A wish for one boot is forgotten once the
//! machine took it: the recovery environment when it reports from there, anything else some time
//! after it was told, because firmware asks again for each of its boot entries and must hear the same.
//!
//! Not here: what a wish means beside a job (`boot_policy`), who may have one (`http::boot_api`).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use protocol::api::{NextBoot, NextBootView};
use rusqlite::params;

use crate::boot_policy::BootDecision;
use crate::state::{Database, StateError, from_json, integer, to_json, unsigned};

/// How long a machine that was told what to boot hears the same, in seconds: OVMF takes 64 s from
/// the first of its network boot entries to the last.
const HOLDS: u64 = 120;
/// More wishes than this are refused.
const MAX_WISHES: usize = 20_000;

/// A wish that is not taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NextBootError {
    /// There are too many already.
    #[error("{MAX_WISHES} machines have a next boot set; set some of them back to `default` first")]
    TooMany,
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    view: NextBootView,
    /// Seconds since 1970-01-01 UTC when the machine was first told so.
    told_at: Option<u64>,
}

impl Wish {
    fn is_over(&self, now: u64) -> bool {
        let held = self
            .told_at
            .is_some_and(|told| now.saturating_sub(told) > HOLDS);
        !self.view.always && held
    }
}

/// All wishes. A machine goes by its id, one that nobody knows by its card's address.
pub(crate) struct NextBoots {
    database: Arc<Database>,
    wishes: RwLock<HashMap<String, Wish>>,
}

impl NextBoots {
    /// Reads what earlier runs wrote.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be read.
    pub(crate) fn load(database: Arc<Database>) -> Result<Self, StateError> {
        let wishes = database.with(|connection| {
            let mut query =
                connection.prepare("SELECT machine, boots, always, told_at FROM next_boot")?;
            let rows = query.query_map([], |row| {
                let view = NextBootView {
                    boots: from_json(row, 1)?,
                    always: row.get(2)?,
                };
                let told_at = row.get::<_, Option<i64>>(3)?.map(unsigned);
                Ok((row.get(0)?, Wish { view, told_at }))
            })?;
            rows.collect()
        })?;
        Ok(Self {
            database,
            wishes: RwLock::new(wishes),
        })
    }

    /// Sets what a machine boots next, or with `None` takes that back.
    ///
    /// # Errors
    /// [`NextBootError`] when there are too many or the database cannot be written.
    pub(crate) fn set(
        &self,
        machine: &str,
        view: Option<NextBootView>,
    ) -> Result<(), NextBootError> {
        let mut wishes = self.write();
        match view {
            None => self.remove(&mut wishes, machine)?,
            Some(_) if wishes.len() >= MAX_WISHES && !wishes.contains_key(machine) => {
                return Err(NextBootError::TooMany);
            }
            Some(view) => {
                let told_at = None;
                self.put(&mut wishes, machine, Wish { view, told_at })?;
            }
        }
        Ok(())
    }

    /// The wish for the first of these names that has one.
    pub(crate) fn of(&self, names: &[&str], now: u64) -> Option<NextBootView> {
        let wishes = self.wishes.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = names.iter().filter_map(|name| wishes.get(*name));
        found.find(|wish| !wish.is_over(now)).map(|wish| wish.view)
    }

    /// A machine with these names was told what to boot.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be written.
    pub(crate) fn told(
        &self,
        names: &[&str],
        decision: BootDecision,
        now: u64,
    ) -> Result<(), StateError> {
        let fits = |boots| match boots {
            // Taken when the machine reports from there, however often it was told before.
            NextBoot::Recovery => false,
            NextBoot::LocalDisk => decision == BootDecision::LocalDisk,
            NextBoot::Menu => matches!(decision, BootDecision::Menu(_)),
        };
        let mut wishes = self.write();
        for name in names {
            let Some(wish) = wishes.get(*name).copied() else {
                continue;
            };
            if wish.is_over(now) {
                self.remove(&mut wishes, name)?;
            } else if !wish.view.always && wish.told_at.is_none() && fits(wish.view.boots) {
                let told_at = Some(now);
                self.put(&mut wishes, name, Wish { told_at, ..wish })?;
            }
        }
        Ok(())
    }

    /// A machine with these names reports from the recovery environment for the first time since
    /// it was started.
    ///
    /// # Errors
    /// [`StateError`] when the database cannot be written.
    pub(crate) fn came_up(&self, names: &[&str]) -> Result<(), StateError> {
        let mut wishes = self.write();
        for name in names {
            let taken = wishes.get(*name).is_some_and(|wish| {
                let recovery = wish.view.boots == NextBoot::Recovery;
                !wish.view.always && (recovery || wish.told_at.is_some())
            });
            if taken {
                self.remove(&mut wishes, name)?;
            }
        }
        Ok(())
    }

    fn put(&self, wishes: &mut Wishes<'_>, name: &str, wish: Wish) -> Result<(), StateError> {
        self.database.with(|connection| {
            connection.execute(
                "INSERT INTO next_boot (machine, boots, always, told_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (machine) DO UPDATE SET boots = ?2, always = ?3, told_at = ?4",
                params![
                    name,
                    to_json(&wish.view.boots)?,
                    wish.view.always,
                    wish.told_at.map(integer)
                ],
            )
        })?;
        wishes.insert(name.to_owned(), wish);
        Ok(())
    }

    fn remove(&self, wishes: &mut Wishes<'_>, name: &str) -> Result<(), StateError> {
        let sql = "DELETE FROM next_boot WHERE machine = ?1";
        self.database
            .with(|connection| connection.execute(sql, [name]))?;
        wishes.remove(name);
        Ok(())
    }

    fn write(&self) -> Wishes<'_> {
        self.wishes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

type Wishes<'a> = RwLockWriteGuard<'a, HashMap<String, Wish>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_policy::Entry;

    const START: u64 = 1_000_000;

    fn wish(boots: NextBoot, always: bool) -> Option<NextBootView> {
        Some(NextBootView { boots, always })
    }

    struct Fixture {
        folder: tempfile::TempDir,
        boots: NextBoots,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let boots = load(&folder);
        Fixture { folder, boots }
    }

    fn load(folder: &tempfile::TempDir) -> NextBoots {
        let database = Database::open(&folder.path().join("state.sqlite")).unwrap();
        NextBoots::load(Arc::new(database)).unwrap()
    }

    #[test]
    fn the_recovery_environment_is_taken_when_the_machine_reports_from_it() {
        let Fixture { boots, .. } = fixture();
        boots.set("a", wish(NextBoot::Recovery, false)).unwrap();
        // However often the firmware asks, and however long the machine hangs in between.
        for now in [START, START + 1, START + 10_000] {
            boots.told(&["a"], BootDecision::Recovery, now).unwrap();
            assert_eq!(boots.of(&["a"], now), wish(NextBoot::Recovery, false));
        }
        boots.came_up(&["a"]).unwrap();
        assert_eq!(boots.of(&["a"], START), None);
    }

    #[test]
    fn the_local_disk_is_heard_by_every_boot_entry_and_then_forgotten() {
        let Fixture { boots, folder } = fixture();
        boots.set("a", wish(NextBoot::LocalDisk, false)).unwrap();
        // Something else was told in between: not this.
        boots.told(&["a"], BootDecision::Recovery, START).unwrap();
        boots
            .told(&["a"], BootDecision::LocalDisk, START + 500)
            .unwrap();
        boots
            .told(&["a"], BootDecision::LocalDisk, START + 564)
            .unwrap();
        assert!(boots.of(&["a"], START + 500 + HOLDS).is_some());
        assert_eq!(boots.of(&["a"], START + 501 + HOLDS), None);
        // Of the database, too, at the next occasion.
        boots
            .told(&["a"], BootDecision::Recovery, START + 501 + HOLDS)
            .unwrap();
        assert_eq!(load(&folder).of(&["a"], START), None);
    }

    #[test]
    fn what_is_wanted_always_stays() {
        let Fixture { boots, folder } = fixture();
        boots.set("a", wish(NextBoot::Menu, true)).unwrap();
        let menu = BootDecision::Menu(Entry::Recovery);
        boots.told(&["a"], menu, START).unwrap();
        boots.came_up(&["a"]).unwrap();
        assert_eq!(
            boots.of(&["a"], START + 10 * HOLDS),
            wish(NextBoot::Menu, true)
        );
        assert_eq!(load(&folder).of(&["a"], START), wish(NextBoot::Menu, true));
        boots.set("a", None).unwrap();
        assert_eq!(boots.of(&["a"], START), None);
        assert_eq!(load(&folder).of(&["a"], START), None);
    }

    #[test]
    fn a_new_wish_counts_from_anew_and_survives_a_restart() {
        let Fixture { boots, folder } = fixture();
        boots.set("a", wish(NextBoot::LocalDisk, false)).unwrap();
        boots.told(&["a"], BootDecision::LocalDisk, START).unwrap();
        boots.set("a", wish(NextBoot::LocalDisk, false)).unwrap();
        let later = START + 10 * HOLDS;
        assert!(boots.of(&["a"], later).is_some());
        assert!(load(&folder).of(&["a"], later).is_some());
    }

    #[test]
    fn the_machines_id_comes_before_its_card() {
        let Fixture { boots, .. } = fixture();
        boots
            .set("52:54:00:00:00:01", wish(NextBoot::Menu, false))
            .unwrap();
        let names = ["id", "52:54:00:00:00:01"];
        assert_eq!(boots.of(&names, START), wish(NextBoot::Menu, false));
        boots.set("id", wish(NextBoot::Recovery, false)).unwrap();
        assert_eq!(boots.of(&names, START), wish(NextBoot::Recovery, false));
    }
}
