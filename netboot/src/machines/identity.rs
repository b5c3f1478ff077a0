//! Which known machine a beacon is from.
//!
//! A pure function. Mistaking one machine for another could overwrite the wrong disk, taking a
//! known machine for a new one costs a line in a list: in doubt it is a new one, and the doubt is
//! said.

use backup::hardware::MachineIdentity;

/// UUIDs that boards of many makers carry instead of one of their own.
const PLACEHOLDER_UUIDS: &[&str] = &[
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
    "01234567-8910-1112-1314-151617181920",
    "fefefefe-fefe-fefe-fefe-fefefefefefe",
];

/// Serial numbers that nobody filled in.
const PLACEHOLDER_SERIALS: &[&str] = &[
    "to be filled by o.e.m.",
    "default string",
    "system serial number",
    "not specified",
    "not available",
    "not applicable",
    "none",
    "n/a",
    "o.e.m.",
    "oem",
    "unknown",
    "invalid",
    "123456789",
    "0123456789",
];

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match<'a> {
    /// It is this one.
    Known(&'a str),
    /// It is none of them.
    New {
        /// Why that is not certain.
        doubt: Option<String>,
    },
}

/// Whether a UUID tells machines apart.
pub(super) fn is_sane_uuid(uuid: &str) -> bool {
    let mut digits = uuid.bytes().filter(|byte| *byte != b'-');
    let first = digits.next();
    let uniform = digits.all(|digit| Some(digit) == first);
    uuid::Uuid::parse_str(uuid).is_ok()
        && !uniform
        && !PLACEHOLDER_UUIDS.contains(&uuid.to_ascii_lowercase().as_str())
}

/// Whether a serial number tells machines of one product apart.
pub(super) fn is_sane_serial(serial: &str) -> bool {
    let plain = serial.trim().to_ascii_lowercase();
    let first = plain.bytes().next();
    !plain.bytes().all(|byte| Some(byte) == first) && !PLACEHOLDER_SERIALS.contains(&plain.as_str())
}

fn uuid(identity: &MachineIdentity) -> Option<&str> {
    identity.uuid.as_deref().filter(|uuid| is_sane_uuid(uuid))
}

fn serial(identity: &MachineIdentity) -> Option<&str> {
    let serial = identity.serial.as_deref().map(str::trim);
    serial.filter(|serial| is_sane_serial(serial))
}

fn share_mac(a: &MachineIdentity, b: &MachineIdentity) -> bool {
    a.macs.iter().any(|mac| b.macs.contains(mac))
}

fn differ<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}

/// Finds the machine with `identity` among those known: by exactly the same identity, else by
/// UUID, else by Ethernet address, else by maker, product and serial number.
pub(super) fn find<'a>(
    identity: &MachineIdentity,
    known: impl Iterator<Item = (&'a str, &'a MachineIdentity)>,
) -> Match<'a> {
    let known: Vec<_> = known.collect();
    let only = |matching: &dyn Fn(&MachineIdentity) -> bool| -> Result<Option<&'a str>, usize> {
        let mut found = known.iter().filter(|(_, other)| matching(other));
        match (found.next(), found.count()) {
            (None, _) => Ok(None),
            (Some((id, _)), 0) => Ok(Some(id)),
            (Some(_), more) => Err(more + 1),
        }
    };
    let names_itself = uuid(identity).is_some() || !identity.macs.is_empty();
    if names_itself && let Some((id, _)) = known.iter().find(|(_, other)| *other == identity) {
        return Match::Known(id);
    }
    let mut doubt = None;
    if uuid(identity).is_some() {
        let same_uuid = |other: &MachineIdentity| uuid(other) == uuid(identity);
        // New network cards are believed when the serial number is the same.
        let credible = |other: &MachineIdentity| {
            same_uuid(other)
                && (share_mac(other, identity)
                    || other.macs.is_empty()
                    || identity.macs.is_empty()
                    || (serial(other).is_some() && serial(other) == serial(identity)))
        };
        match only(&credible) {
            Ok(Some(id)) => return Match::Known(id),
            Err(count) => {
                doubt = Some(format!("{count} machines have its UUID and fit otherwise"));
            }
            Ok(None) if known.iter().any(|(_, other)| same_uuid(other)) => {
                doubt = Some(
                    "another machine has the same UUID, and other Ethernet addresses and serial \
                     number"
                        .to_owned(),
                );
            }
            Ok(None) => {}
        }
    }
    let by_mac = |other: &MachineIdentity| {
        share_mac(other, identity)
            && !differ(uuid(other), uuid(identity))
            && !differ(serial(other), serial(identity))
    };
    match only(&by_mac) {
        Ok(Some(id)) => return Match::Known(id),
        Err(count) => {
            doubt = Some(format!(
                "{count} machines share an Ethernet address with it"
            ))
        }
        Ok(None) if known.iter().any(|(_, other)| share_mac(other, identity)) => {
            doubt = Some(
                "another machine had one of its Ethernet addresses (a network card that moved?)"
                    .to_owned(),
            );
        }
        Ok(None) => {}
    }
    let by_serial = |other: &MachineIdentity| {
        serial(identity).is_some()
            && serial(other) == serial(identity)
            && other.manufacturer == identity.manufacturer
            && other.product == identity.product
            && !differ(uuid(other), uuid(identity))
    };
    match only(&by_serial) {
        Ok(Some(id)) => Match::Known(id),
        Err(count) => Match::New {
            doubt: Some(format!(
                "{count} machines have its product and serial number"
            )),
        },
        Ok(None) => Match::New { doubt },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "4c4c4544-0042-3510-8052-b4c04f4a3732";
    const OTHER_UUID: &str = "4c4c4544-0042-3510-8052-b4c04f4a3733";

    fn identity(uuid: Option<&str>, macs: &[&str], serial: Option<&str>) -> MachineIdentity {
        MachineIdentity {
            uuid: uuid.map(str::to_owned),
            serial: serial.map(str::to_owned),
            manufacturer: Some("Maker".into()),
            product: Some("Product".into()),
            macs: macs.iter().map(|mac| (*mac).to_owned()).collect(),
        }
    }

    fn found<'a>(wanted: &MachineIdentity, known: &'a [MachineIdentity]) -> Match<'a> {
        const IDS: [&str; 3] = ["first", "second", "third"];
        find(wanted, IDS.into_iter().zip(known))
    }

    fn is_new(result: &Match<'_>, doubtful: bool) -> bool {
        matches!(result, Match::New { doubt } if doubt.is_some() == doubtful)
    }

    #[test]
    fn a_machine_with_a_new_network_card_is_known_by_uuid_and_serial() {
        let known = [identity(Some(UUID), &["02:00:00:00:00:01"], Some("ABC1"))];
        let now = identity(Some(UUID), &["02:00:00:00:00:02"], Some("ABC1"));
        assert_eq!(found(&now, &known), Match::Known("first"));
    }

    #[test]
    fn a_duplicated_uuid_on_another_machine_is_a_new_machine_with_a_doubt() {
        let known = [identity(Some(UUID), &["02:00:00:00:00:01"], None)];
        let now = identity(Some(UUID), &["02:00:00:00:00:02"], None);
        assert!(is_new(&found(&now, &known), true));
    }

    #[test]
    fn placeholder_uuids_and_serials_tell_nothing() {
        for uuid in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "03000200-0400-0500-0006-000700080009",
            "no uuid",
        ] {
            assert!(!is_sane_uuid(uuid), "{uuid}");
        }
        for serial in [
            "",
            "0",
            "00000000",
            "To Be Filled By O.E.M.",
            " Default string ",
        ] {
            assert!(!is_sane_serial(serial), "{serial}");
        }
        let uuid = Some("03000200-0400-0500-0006-000700080009");
        let known = [identity(
            uuid,
            &["02:00:00:00:00:01"],
            Some("Default string"),
        )];
        let now = identity(uuid, &["02:00:00:00:00:02"], Some("Default string"));
        assert!(is_new(&found(&now, &known), false));
    }

    #[test]
    fn a_network_card_that_moved_does_not_carry_the_name_along() {
        let known = [identity(Some(UUID), &["02:00:00:00:00:01"], None)];
        let now = identity(Some(OTHER_UUID), &["02:00:00:00:00:01"], None);
        assert!(is_new(&found(&now, &known), true));
    }

    #[test]
    fn a_machine_without_uuid_is_known_by_its_card() {
        let known = [
            identity(None, &["02:00:00:00:00:01"], None),
            identity(None, &["02:00:00:00:00:02"], None),
        ];
        let now = identity(None, &["02:00:00:00:00:02", "02:00:00:00:00:03"], None);
        assert_eq!(found(&now, &known), Match::Known("second"));
    }

    #[test]
    fn a_card_shared_by_two_machines_decides_nothing_but_the_same_identity_does() {
        let known = [
            identity(None, &["02:00:00:00:00:01", "02:00:00:00:00:09"], None),
            identity(None, &["02:00:00:00:00:02", "02:00:00:00:00:09"], None),
        ];
        let stranger = identity(None, &["02:00:00:00:00:09"], None);
        assert!(is_new(&found(&stranger, &known), true));
        assert_eq!(found(&known[1], &known), Match::Known("second"));
    }

    #[test]
    fn two_machines_that_say_nothing_of_themselves_are_two() {
        let silent = identity(None, &[], None);
        assert!(is_new(
            &found(&silent, std::slice::from_ref(&silent)),
            false
        ));
    }
}
