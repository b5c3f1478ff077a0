//! Which network cards there are, and whether they have link: `/sys/class/net`.
//!
//! Invariant: reads only; takes the root of sysfs as an argument, so that a test can give it another.

use std::fs;
use std::path::Path;

use protocol::dhcp::MacAddress;

/// A card in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    /// Kernel name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) mac: MacAddress,
    /// Whether it is Wi-Fi, which is never used: a restore needs a cable.
    pub(crate) wireless: bool,
    /// The module that drives it.
    pub(crate) driver: Option<String>,
}

/// The physical Ethernet and Wi-Fi cards, sorted by name.
pub(crate) fn cards(sysfs: &Path) -> Vec<Card> {
    let mut found: Vec<Card> = fs::read_dir(sysfs.join("class/net"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| card(&entry.path(), &entry.file_name().to_string_lossy()))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn card(path: &Path, name: &str) -> Option<Card> {
    // Loopback, bridges, tunnels and VLANs have no device below them.
    let physical = path.join("device").exists();
    // include/uapi/linux/if_arp.h: ARPHRD_ETHER.
    let ethernet = fs::read_to_string(path.join("type")).is_ok_and(|text| text.trim() == "1");
    if !physical || !ethernet {
        return None;
    }
    let mac = fs::read_to_string(path.join("address")).ok()?;
    let driver = fs::read_link(path.join("device/driver")).ok();
    Some(Card {
        name: name.to_owned(),
        mac: mac.trim().parse().ok()?,
        wireless: path.join("wireless").exists() || path.join("phy80211").exists(),
        driver: driver.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned())),
    })
}

/// Whether the card has link. False while it is switched off.
pub(crate) fn has_link(sysfs: &Path, name: &str) -> bool {
    let path = sysfs.join("class/net").join(name).join("carrier");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

/// Whether the card is still in the machine.
pub(crate) fn exists(sysfs: &Path, name: &str) -> bool {
    sysfs.join("class/net").join(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_physical_ethernet_cards_are_cards() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str, kind: &str, device: bool, wireless: bool| {
            let path = root.path().join("class/net").join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("type"), kind).unwrap();
            fs::write(path.join("address"), "52:54:00:AA:00:01\n").unwrap();
            if device {
                fs::create_dir(path.join("device")).unwrap();
            }
            if wireless {
                fs::create_dir(path.join("phy80211")).unwrap();
            }
        };
        make("lo", "772\n", false, false);
        make("eth1", "1\n", true, false);
        make("eth0", "1\n", true, false);
        make("wlan0", "1\n", true, true);
        make("br0", "1\n", false, false);
        make("ib0", "32\n", true, false);
        let cards = cards(root.path());
        let names: Vec<_> = cards.iter().map(|card| card.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1", "wlan0"]);
        assert!(cards[2].wireless && !cards[0].wireless);

        let carrier = root.path().join("class/net/eth0/carrier");
        assert!(!has_link(root.path(), "eth0"));
        fs::write(carrier, "1\n").unwrap();
        assert!(has_link(root.path(), "eth0"));
    }
}
