//! Which firmware variables have to change so that a restored system is started.
//!
//! Pure: no I/O. Invariant: entries of other systems keep their numbers, bytes and order; an entry
//! that is there already is kept; applied twice, the second time changes nothing.

use std::collections::BTreeMap;

use super::load_option::{ACTIVE, LoadOption};

/// The firmware's boot entries as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Current {
    /// `Boot####` by number.
    pub(crate) entries: BTreeMap<u16, Vec<u8>>,
    /// `BootOrder`.
    pub(crate) order: Vec<u16>,
    /// `BootCurrent`: what started this environment.
    pub(crate) boot_current: Option<u16>,
}

/// An entry that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The number that it had in the backup; taken when it is free.
    pub(crate) number: u16,
    /// What it says, for the restored disk.
    pub(crate) option: LoadOption,
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Changes {
    /// `Boot####` variables to write.
    pub(crate) entries: Vec<(u16, Vec<u8>)>,
    /// `BootOrder`, when it changes.
    pub(crate) order: Option<Vec<u16>>,
    /// The numbers of the wanted entries, in their order.
    pub(crate) numbers: Vec<u16>,
}

/// Works out the changes. `wanted` is in the order in which the entries are to be tried.
///
/// Restored entries come first in the boot order, or right behind the first entry when that is the
/// network entry by which the environment was started: a machine that starts from the network first
/// goes on doing so, and the server sends it to its disk.
pub(crate) fn reconcile(current: &Current, wanted: &[Wanted]) -> Changes {
    let mut entries = current.entries.clone();
    let mut changes = Changes::default();
    for want in wanted {
        let bytes = want.option.encode();
        let number = match find(&entries, &want.option) {
            Some(number) => number,
            None => match free_number(&entries, want.number) {
                Some(number) => number,
                // All 65,536 numbers are taken: nothing sensible is left to do.
                None => continue,
            },
        };
        let is_kept = entries
            .get(&number)
            .is_some_and(|there| starts_the_same(there, &want.option));
        if !is_kept {
            entries.insert(number, bytes.clone());
            changes.entries.push((number, bytes));
        }
        if !changes.numbers.contains(&number) {
            changes.numbers.push(number);
        }
    }
    let mut order: Vec<u16> = current
        .order
        .iter()
        .copied()
        .filter(|number| !changes.numbers.contains(number))
        .collect();
    let network_first =
        current.boot_current.is_some() && order.first().copied() == current.boot_current;
    let at = usize::from(network_first);
    order.splice(at..at, changes.numbers.iter().copied());
    changes.order = (order != current.order).then_some(order);
    changes
}

/// The entry that starts the same file of the same partition.
fn find(entries: &BTreeMap<u16, Vec<u8>>, option: &LoadOption) -> Option<u16> {
    let (drive, path) = option.target()?;
    entries.iter().find_map(|(number, bytes)| {
        let (other, other_path) = LoadOption::parse(bytes).ok()?.target()?;
        (other.guid == drive.guid && other_path.eq_ignore_ascii_case(&path)).then_some(*number)
    })
}

/// Whether the entry names the partition where it is now and is active if that is wanted; then its
/// other bytes are the firmware's.
fn starts_the_same(there: &[u8], option: &LoadOption) -> bool {
    let Ok(there) = LoadOption::parse(there) else {
        return false;
    };
    let drive = |option: &LoadOption| option.target().map(|(drive, _)| drive);
    let is_inactive = there.attributes & ACTIVE < option.attributes & ACTIVE;
    drive(&there) == drive(option) && !is_inactive
}

fn free_number(entries: &BTreeMap<u16, Vec<u8>>, liked: u16) -> Option<u16> {
    std::iter::once(liked)
        .chain(0..=u16::MAX)
        .find(|number| !entries.contains_key(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use uuid::Uuid;

    use super::super::load_option::HardDrive;
    use super::*;

    fn option(guid: u128, start: u64, path: &str) -> LoadOption {
        let drive = HardDrive {
            number: 1,
            start,
            sectors: 100,
            guid: Uuid::from_u128(guid),
        };
        LoadOption::of_file("debian", &drive, path)
    }

    const SHIM: &str = "\\EFI\\debian\\shimx64.efi";

    fn network() -> Vec<u8> {
        vec![1, 0, 0, 0, 4, 0, b'N', 0, 0, 0, 0x7f, 0xff, 4, 0]
    }

    fn apply(current: &Current, changes: &Changes) -> Current {
        let mut after = current.clone();
        after.entries.extend(changes.entries.iter().cloned());
        if let Some(order) = &changes.order {
            after.order.clone_from(order);
        }
        after
    }

    #[test]
    fn a_new_entry_goes_behind_the_network_entry_that_started_us() {
        let current = Current {
            entries: BTreeMap::from([(3, network()), (7, b"other".to_vec())]),
            order: vec![3, 7],
            boot_current: Some(3),
        };
        let wanted = [Wanted {
            number: 3,
            option: option(1, 2048, SHIM),
        }];
        let changes = reconcile(&current, &wanted);
        assert_eq!(changes.numbers, [0], "3 is taken");
        assert_eq!(changes.order, Some(vec![3, 0, 7]));
    }

    #[test]
    fn a_new_entry_is_first_when_the_network_is_not() {
        let current = Current {
            entries: BTreeMap::from([(1, b"other".to_vec()), (3, network())]),
            order: vec![1, 3],
            boot_current: Some(3),
        };
        let wanted = [Wanted {
            number: 5,
            option: option(1, 2048, SHIM),
        }];
        assert_eq!(reconcile(&current, &wanted).order, Some(vec![5, 1, 3]));
    }

    #[test]
    fn the_same_file_of_the_same_partition_is_updated_and_never_doubled() {
        let old = option(1, 2048, "\\efi\\DEBIAN\\shimx64.efi");
        let current = Current {
            entries: BTreeMap::from([(9, old.encode())]),
            order: vec![9],
            boot_current: None,
        };
        let wanted = [Wanted {
            number: 0,
            option: option(1, 4096, SHIM),
        }];
        let changes = reconcile(&current, &wanted);
        assert_eq!(changes.entries, [(9, wanted[0].option.encode())]);
        assert_eq!(changes.order, None);
    }

    #[test]
    fn an_inactive_entry_is_set_active_under_its_number() {
        let mut inactive = option(1, 2048, SHIM);
        inactive.attributes &= !ACTIVE;
        let current = Current {
            entries: BTreeMap::from([(9, inactive.encode())]),
            order: vec![9],
            boot_current: None,
        };
        let wanted = [Wanted {
            number: 0,
            option: option(1, 2048, SHIM),
        }];
        let changes = reconcile(&current, &wanted);
        assert_eq!(changes.entries, [(9, wanted[0].option.encode())]);
        assert_eq!(changes.order, None);
        let again = reconcile(&apply(&current, &changes), &wanted);
        assert_eq!(again.entries, []);
        // The other way round the firmware's entry stays as it is.
        let wanted = [Wanted {
            number: 0,
            option: inactive,
        }];
        let kept = reconcile(&apply(&current, &changes), &wanted);
        assert_eq!(kept.entries, []);
    }

    proptest! {
        #[test]
        fn twice_is_once_and_others_keep_bytes_and_order(
            guids in proptest::collection::vec(0u128..4, 0..5),
            wanted in proptest::collection::vec((0u128..4, any::<u8>()), 0..4),
            order in proptest::collection::vec(0u16..8, 0..6),
            boot_current in proptest::option::of(0u16..8),
        ) {
            let entries = guids.iter().enumerate()
                .map(|(number, guid)| (number as u16, option(*guid, 1, SHIM).encode()))
                .collect();
            let mut order = order;
            let mut seen = Vec::new();
            order.retain(|number| !seen.contains(number) && { seen.push(*number); true });
            let current = Current { entries, order, boot_current };
            let wanted: Vec<_> = wanted.into_iter()
                .map(|(guid, number)| Wanted { number: u16::from(number), option: option(guid, 77, SHIM) })
                .collect();
            let changes = reconcile(&current, &wanted);
            let after = apply(&current, &changes);
            for number in &changes.numbers {
                prop_assert!(after.order.contains(number));
            }
            let others = |state: &Current| -> Vec<u16> {
                state.order.iter().copied().filter(|number| !changes.numbers.contains(number)).collect()
            };
            prop_assert_eq!(others(&current), others(&after));
            for (number, bytes) in &current.entries {
                if !changes.numbers.contains(number) {
                    prop_assert_eq!(after.entries.get(number), Some(bytes));
                }
            }
            let again = reconcile(&after, &wanted);
            prop_assert_eq!(again.entries, vec![]);
            prop_assert_eq!(again.order, None);
        }
    }
}
