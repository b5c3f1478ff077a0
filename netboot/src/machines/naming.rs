//! What machines are called, and which one a person means.

use backup::hardware::MachineIdentity;
use protocol::api::MachineView;
use protocol::dhcp::MacAddress;

use super::identity::is_sane_serial;

/// The fewest characters of an id that are taken for its beginning.
const SHORTEST_PREFIX: usize = 4;

/// A name that does not name exactly one machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    /// Nobody answers to it.
    #[error("no machine is called `{name}` (by host name, Ethernet address, serial number or id)")]
    Unknown {
        /// The name, shortened.
        name: String,
    },
    /// Several answer to it.
    #[error(
        "`{name}` could be {} machines: {}. Name it by Ethernet address or id",
        candidates.len(),
        candidates.join("; ")
    )]
    Ambiguous {
        /// The name, shortened.
        name: String,
        /// Each machine's name, id and Ethernet addresses.
        candidates: Vec<String>,
    },
}

/// Host name, else product and serial number, else Ethernet address, else id.
pub(super) fn name_of(id: &str, host_name: Option<&str>, identity: &MachineIdentity) -> String {
    if let Some(host_name) = host_name {
        return host_name.to_owned();
    }
    let serial = identity.serial.as_deref().map(str::trim);
    if let Some(serial) = serial.filter(|serial| is_sane_serial(serial)) {
        return match &identity.product {
            Some(product) => format!("{} {serial}", product.trim()),
            None => serial.to_owned(),
        };
    }
    identity.macs.first().map_or(id, String::as_str).to_owned()
}

/// Finds the one machine; all exact answers are better than the beginning of an id.
pub(super) fn resolve(name: &str, machines: Vec<MachineView>) -> Result<MachineView, NameError> {
    let name = name.trim();
    let mac = mac_of(name);
    let exact = |machine: &MachineView| {
        let identity = &machine.inventory.identity;
        let serial = identity.serial.as_deref().map(str::trim);
        machine.name.eq_ignore_ascii_case(name)
            || machine.id == name
            || serial
                .is_some_and(|serial| is_sane_serial(serial) && serial.eq_ignore_ascii_case(name))
            || mac.as_ref().is_some_and(|mac| {
                identity
                    .macs
                    .iter()
                    .any(|own| own.eq_ignore_ascii_case(mac))
            })
    };
    let (exact, rest): (Vec<_>, Vec<_>) = machines.into_iter().partition(exact);
    let mut found = exact;
    if found.is_empty() && name.len() >= SHORTEST_PREFIX {
        let lower = name.to_ascii_lowercase();
        found = rest
            .into_iter()
            .filter(|machine| machine.id.starts_with(&lower))
            .collect();
    }
    let shown = || name.chars().take(80).collect();
    if found.len() > 1 {
        return Err(NameError::Ambiguous {
            name: shown(),
            candidates: found.iter().map(describe).collect(),
        });
    }
    found
        .pop()
        .ok_or_else(|| NameError::Unknown { name: shown() })
}

fn describe(machine: &MachineView) -> String {
    let macs = machine.inventory.identity.macs.join(", ");
    format!("{} (id {}, {macs})", machine.name, machine.id)
}

/// An Ethernet address by any separator, or by none, in the canonical spelling.
fn mac_of(name: &str) -> Option<String> {
    let digits: String = name
        .chars()
        .filter(|letter| !matches!(letter, ':' | '-' | '.' | ' '))
        .collect();
    if digits.len() != 12 {
        return None;
    }
    let mut bytes = [0; 6];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(MacAddress::new(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_are_read_in_every_usual_spelling() {
        for text in [
            "52:54:00:ab:cd:ef",
            "52-54-00-AB-CD-EF",
            "5254.00ab.cdef",
            "525400ABCDEF",
        ] {
            assert_eq!(mac_of(text).as_deref(), Some("52:54:00:ab:cd:ef"), "{text}");
        }
        for text in ["52:54:00:ab:cd", "zz5400abcdef", "é5400abcdef", ""] {
            assert_eq!(mac_of(text), None, "{text}");
        }
    }
}
