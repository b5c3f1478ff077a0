//! Which of the two ways a machine is told its boot file by a proxy.
//!
//! UEFI firmware comes in two schools: some take the file from the offer when option 43 says so, some only
//! from a second answer on port 4011. Nothing in a DISCOVER tells which (tianocore/edk2#8149, #6944), so
//! what is not configured is tried: a machine that asked [`FRUITLESS`] times and fetched nothing gets the
//! other way; the way by which a machine fetched something once stays.
//!
//! Not here: what an offer says (`super`).

use std::{collections::HashMap, time::Duration};

use protocol::dhcp::{ArchitectureCode, MacAddress};

/// Boots without a fetch before the other way is tried.
const FRUITLESS: u32 = 2;
/// Machines remembered; past it the one silent for longest is forgotten.
const MACHINES: usize = 4096;
/// A machine repeats a DISCOVER for about a minute (RFC 2131 §4.1); the same number later is a new boot.
const SAME_BOOT: Duration = Duration::from_secs(60);

/// How a machine is told its boot file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// In the offer, with option 43 = "take it from here" (PXE 2.1 §2.2.3, discovery control bit 3).
    Direct,
    /// By a bare offer and an answer on port 4011.
    Port4011,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Direct => Self::Port4011,
            Self::Port4011 => Self::Direct,
        }
    }
}

/// Which way is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum WayChoice {
    /// Learnt machine by machine.
    #[default]
    Auto,
    /// Always this one.
    Always(Way),
}

/// A rule for some machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WayRule {
    /// Beginning of their cards' addresses.
    pub(crate) mac: Option<Vec<u8>>,
    /// Beginning of their vendor class (option 60).
    pub(crate) vendor_class: Option<String>,
    /// An architecture that they list.
    pub(crate) architecture: Option<u16>,
    /// What they get.
    pub(crate) choice: WayChoice,
}

/// The rules, and what holds when none fits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct WayPolicy {
    /// The first that fits counts.
    pub(crate) rules: Vec<WayRule>,
    /// For all others.
    pub(crate) otherwise: WayChoice,
}

impl WayPolicy {
    /// What is wanted for a machine.
    pub(super) fn choice(
        &self,
        mac: MacAddress,
        vendor_class: &[u8],
        architectures: &[ArchitectureCode],
    ) -> WayChoice {
        let fits = |rule: &&WayRule| {
            let card = rule.mac.as_ref();
            card.is_none_or(|start| mac.bytes().starts_with(start))
                && rule
                    .vendor_class
                    .as_ref()
                    .is_none_or(|start| vendor_class.starts_with(start.as_bytes()))
                && rule
                    .architecture
                    .is_none_or(|wanted| architectures.iter().any(|listed| listed.0 == wanted))
        };
        let rule = self.rules.iter().find(fits);
        rule.map_or(self.otherwise, |rule| rule.choice)
    }
}

/// What was learnt of machines.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    machines: HashMap<MacAddress, Machine>,
}

#[derive(Debug)]
struct Machine {
    way: Way,
    proven: bool,
    fruitless: u32,
    transaction: u32,
    began: Duration,
    last: Duration,
}

/// The way for a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) way: Way,
    /// After so many fruitless boots it is another way than last time.
    pub(super) changed_after: Option<u32>,
}

impl Learnt {
    /// The way for a machine whose firmware sent a DISCOVER. `fetched` tells whether it fetched anything
    /// within the time given, back from now.
    pub(super) fn way(
        &mut self,
        mac: MacAddress,
        transaction: u32,
        now: Duration,
        fetched: impl Fn(Duration) -> bool,
    ) -> Chosen {
        let unchanged = |way| Chosen {
            way,
            changed_after: None,
        };
        let Some(machine) = self.machines.get_mut(&mac) else {
            self.make_room();
            let machine = Machine {
                way: Way::Direct,
                proven: false,
                fruitless: 0,
                transaction,
                began: now,
                last: now,
            };
            self.machines.insert(mac, machine);
            return unchanged(Way::Direct);
        };
        if machine.transaction == transaction && now.saturating_sub(machine.last) < SAME_BOOT {
            machine.last = now;
            return unchanged(machine.way);
        }
        machine.proven |= fetched(now.saturating_sub(machine.began));
        (machine.transaction, machine.began, machine.last) = (transaction, now, now);
        if machine.proven {
            return unchanged(machine.way);
        }
        machine.fruitless += 1;
        if machine.fruitless < FRUITLESS {
            return unchanged(machine.way);
        }
        machine.fruitless = 0;
        machine.way = machine.way.other();
        Chosen {
            way: machine.way,
            changed_after: Some(FRUITLESS),
        }
    }

    /// The machine runs a program that it must have fetched.
    pub(super) fn went_on(&mut self, mac: MacAddress) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.proven = true;
        }
    }

    fn make_room(&mut self) {
        if self.machines.len() < MACHINES {
            return;
        }
        let silent = self.machines.iter().min_by_key(|(_, machine)| machine.last);
        if let Some(mac) = silent.map(|(mac, _)| *mac) {
            self.machines.remove(&mac);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress::new([0x52, 0x54, 0, 0, 0, 2]);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn two_boots_without_a_fetch_lead_to_the_other_way_and_back() {
        let mut learnt = Learnt::default();
        let ways: Vec<_> = (0..5)
            .map(|boot| learnt.way(MAC, boot, seconds(100 * u64::from(boot)), |_| false))
            .map(|chosen| (chosen.way, chosen.changed_after))
            .collect();
        assert_eq!(
            ways,
            [
                (Way::Direct, None),
                (Way::Direct, None),
                (Way::Port4011, Some(2)),
                (Way::Port4011, None),
                (Way::Direct, Some(2)),
            ]
        );
    }

    #[test]
    fn a_repeated_discover_is_the_same_boot() {
        let mut learnt = Learnt::default();
        for second in [0, 4, 12, 28] {
            let chosen = learnt.way(MAC, 7, seconds(second), |_| false);
            assert_eq!((chosen.way, chosen.changed_after), (Way::Direct, None));
        }
        // Firmware that always uses the same number.
        learnt.way(MAC, 7, seconds(200), |_| false);
        assert_eq!(
            learnt.way(MAC, 7, seconds(400), |_| false).way,
            Way::Port4011
        );
    }

    #[test]
    fn a_way_that_worked_once_stays() {
        let mut learnt = Learnt::default();
        learnt.way(MAC, 1, seconds(0), |_| false);
        learnt.way(MAC, 2, seconds(100), |back| {
            assert_eq!(back, seconds(100));
            true
        });
        for boot in 3..9 {
            let chosen = learnt.way(MAC, boot, seconds(100 * u64::from(boot)), |_| false);
            assert_eq!(chosen.way, Way::Direct);
        }
    }

    #[test]
    fn an_ipxe_behind_the_firmware_proves_the_way() {
        let mut learnt = Learnt::default();
        learnt.way(MAC, 1, seconds(0), |_| false);
        learnt.went_on(MAC);
        for boot in 2..9 {
            let chosen = learnt.way(MAC, boot, seconds(100 * u64::from(boot)), |_| false);
            assert_eq!(chosen.way, Way::Direct);
        }
    }

    #[test]
    fn the_number_of_machines_is_bounded_and_the_silent_one_goes() {
        let mut learnt = Learnt::default();
        for number in 0..5000_u32 {
            let [_, a, b, c] = number.to_be_bytes();
            let mac = MacAddress::new([2, 0, 0, a, b, c]);
            learnt.way(mac, 1, seconds(u64::from(number)), |_| false);
        }
        assert_eq!(learnt.machines.len(), MACHINES);
        assert!(
            !learnt
                .machines
                .contains_key(&MacAddress::new([2, 0, 0, 0, 0, 0]))
        );
    }

    #[test]
    fn the_first_rule_that_fits_in_all_it_names_counts() {
        let always = |way| WayChoice::Always(way);
        let policy = WayPolicy {
            rules: vec![
                WayRule {
                    mac: Some(vec![0x52, 0x54]),
                    vendor_class: Some("PXEClient:Arch:00007".to_owned()),
                    architecture: None,
                    choice: always(Way::Port4011),
                },
                WayRule {
                    mac: None,
                    vendor_class: None,
                    architecture: Some(0),
                    choice: always(Way::Direct),
                },
            ],
            otherwise: WayChoice::Auto,
        };
        let class = b"PXEClient:Arch:00007:UNDI:003000";
        let (efi, bios) = ([ArchitectureCode::EFI_X64], [ArchitectureCode::BIOS]);
        let other = MacAddress::new([2, 0, 0, 0, 0, 1]);
        assert_eq!(policy.choice(MAC, class, &efi), always(Way::Port4011));
        assert_eq!(policy.choice(other, class, &efi), WayChoice::Auto);
        assert_eq!(policy.choice(other, class, &bios), always(Way::Direct));
    }
}
