//! Which devices there are: `/sys/bus/*/devices/*`.
//!
//! Invariant: reads only; takes the root of sysfs as an argument, so that a test can give it another.

use std::fs;
use std::path::Path;

/// A device that names what could drive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// The kernel's name for the driver it needs.
    pub(crate) modalias: String,
    /// Whether a driver has it already.
    pub(crate) bound: bool,
}

/// What a device is for, as far as its modalias tells. The order is the order of loading: the
/// sooner the network is up, the sooner the server knows the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Network cards, and the transports below them.
    Network,
    /// Disks and their controllers.
    Storage,
    /// USB controllers, behind which both can be.
    Usb,
    /// Everything else.
    Other,
}

/// All devices with a modalias, network first.
pub(crate) fn devices(sysfs: &Path) -> Vec<Device> {
    let mut found = Vec::new();
    let Ok(buses) = fs::read_dir(sysfs.join("bus")) else {
        return found;
    };
    for bus in buses.flatten() {
        let Ok(entries) = fs::read_dir(bus.path().join("devices")) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if let Ok(text) = fs::read_to_string(path.join("modalias")) {
                let modalias = text.trim().to_owned();
                if !modalias.is_empty() {
                    let bound = path.join("driver").exists();
                    found.push(Device { modalias, bound });
                }
            }
        }
    }
    found.sort_by(|a, b| {
        (purpose(&a.modalias), &a.modalias).cmp(&(purpose(&b.modalias), &b.modalias))
    });
    found
}

/// What the device with this modalias is for.
pub(crate) fn purpose(modalias: &str) -> Purpose {
    let (bus, rest) = modalias.split_once(':').unwrap_or((modalias, ""));
    match bus {
        "pci" => match field(rest, "bc") {
            Some("02") => Purpose::Network,
            Some("01") => Purpose::Storage,
            Some("0C") if field(rest, "sc") == Some("03") => Purpose::Usb,
            _ => Purpose::Other,
        },
        // Virtio 1.2 §5: device type 1 is a network card, 2 a block device, 8 a SCSI host.
        "virtio" => match rest.get(..9) {
            Some("d00000001") => Purpose::Network,
            Some("d00000002" | "d00000008") => Purpose::Storage,
            _ => Purpose::Other,
        },
        // Hyper-V and Xen buses: their few devices are mostly these two.
        "vmbus" | "xen" | "xen-backend" | "mdio" => Purpose::Network,
        "scsi" | "nvme" | "mmc" => Purpose::Storage,
        "usb" => match field(rest, "ic") {
            Some("02" | "FF") => Purpose::Network,
            Some("08") => Purpose::Storage,
            _ => Purpose::Usb,
        },
        _ => Purpose::Other,
    }
}

/// The two digits after the lower-case `key` in a modalias such as `v00008086d0000100Ebc02sc00`.
fn field<'a>(modalias: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = modalias;
    while let Some(at) = rest.find(key) {
        // `sc` is also the end of `dsc` and `isc`.
        let before = rest[..at].bytes().last();
        let after = rest.get(at + key.len()..)?;
        if !before.is_some_and(|byte| byte.is_ascii_lowercase()) {
            return after.get(..2);
        }
        rest = after;
    }
    None
}

/// A line for people about a device without a driver, if it is one that a restore could need.
pub(crate) fn describe(modalias: &str) -> Option<String> {
    let word = match purpose(modalias) {
        Purpose::Network => "network card",
        Purpose::Storage => "storage controller",
        Purpose::Usb => "USB device",
        Purpose::Other => return None,
    };
    let (bus, rest) = modalias.split_once(':')?;
    let id = |from: usize, to: usize| rest.get(from..to).map(str::to_ascii_lowercase);
    match bus {
        // v0000VVVVd0000DDDD…
        "pci" => Some(format!("PCI {}:{} ({word})", id(5, 9)?, id(14, 18)?)),
        // vVVVVpPPPP…; hubs, keyboards and the like do not matter here, and a class of the vendor's own
        // (FF) may be anything.
        "usb" if word != "USB device" && field(rest, "ic") != Some("FF") => {
            Some(format!("USB {}:{} ({word})", id(1, 5)?, id(6, 10)?))
        }
        "virtio" => Some(format!(
            "virtio {} ({word})",
            id(1, 9)?.trim_start_matches('0')
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E1000: &str = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00";
    const AHCI: &str = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01";
    const XHCI: &str = "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30";
    const STICK: &str = "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00";

    #[test]
    fn the_network_comes_before_storage_and_the_rest() {
        let found = tempfile::tempdir().unwrap();
        for (bus, name, alias) in [
            ("pci", "0000:00:01.0", AHCI),
            ("pci", "0000:00:02.0", E1000),
            ("acpi", "PNP0103:00", "acpi:PNP0103:"),
            ("virtio", "virtio0", "virtio:d00000001v00001AF4"),
        ] {
            let device = found
                .path()
                .join("bus")
                .join(bus)
                .join("devices")
                .join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("modalias"), format!("{alias}\n")).unwrap();
            if bus == "virtio" {
                fs::create_dir(device.join("driver")).unwrap();
            }
        }
        let devices = devices(found.path());
        let order: Vec<_> = devices
            .iter()
            .map(|device| purpose(&device.modalias))
            .collect();
        assert_eq!(
            order,
            [
                Purpose::Network,
                Purpose::Network,
                Purpose::Storage,
                Purpose::Other
            ]
        );
        assert_eq!(devices.iter().filter(|device| device.bound).count(), 1);
    }

    #[test]
    fn purposes_come_from_class_codes() {
        for (modalias, expected) in [
            (E1000, Purpose::Network),
            (AHCI, Purpose::Storage),
            (XHCI, Purpose::Usb),
            (STICK, Purpose::Storage),
            ("virtio:d00000002v00001AF4", Purpose::Storage),
            ("pci:", Purpose::Other),
            ("", Purpose::Other),
        ] {
            assert_eq!(purpose(modalias), expected, "{modalias}");
        }
    }

    #[test]
    fn devices_are_described_by_vendor_product_and_class() {
        assert_eq!(
            describe(E1000).as_deref(),
            Some("PCI 8086:100e (network card)")
        );
        assert_eq!(
            describe(STICK).as_deref(),
            Some("USB 46f4:0001 (storage controller)")
        );
        assert_eq!(describe("acpi:PNP0103:"), None);
        assert_eq!(describe("pci:v0"), None);
    }
}
