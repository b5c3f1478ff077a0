//! Who the machine is, and what started it: SMBIOS as the kernel shows it in `/sys/class/dmi/id`.

use std::path::Path;

use backup::hardware::{FirmwareKind, MachineIdentity};

use super::attribute;

/// What manufacturers leave in fields that they forgot to fill, in lower case.
const NOTHING: [&str; 14] = [
    "to be filled by o.e.m.",
    "to be filled by oem",
    "default string",
    "system serial number",
    "system product name",
    "system manufacturer",
    "not specified",
    "not applicable",
    "not available",
    "none",
    "n/a",
    "unknown",
    "o.e.m.",
    "invalid",
];

/// Identity from SMBIOS; the Ethernet addresses are the caller's to add.
pub(crate) fn identity(sysfs: &Path) -> MachineIdentity {
    let read = |name: &str| meaningful(&attribute(&sysfs.join("class/dmi/id").join(name))?);
    MachineIdentity {
        uuid: read("product_uuid").and_then(|text| uuid(&text)),
        serial: read("product_serial")
            .or_else(|| read("board_serial"))
            .or_else(|| read("chassis_serial")),
        manufacturer: read("sys_vendor").or_else(|| read("board_vendor")),
        product: read("product_name").or_else(|| read("board_name")),
        macs: Vec::new(),
    }
}

/// UEFI shows its tables; everything else is BIOS.
pub(crate) fn kind(sysfs: &Path) -> FirmwareKind {
    if sysfs.join("firmware/efi").is_dir() {
        FirmwareKind::Uefi
    } else {
        FirmwareKind::Bios
    }
}

/// The text, unless it only fills the field.
fn meaningful(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let same = |filler: char| lower.chars().all(|c| c == filler || c == '-' || c == ' ');
    let empty = NOTHING.contains(&lower.as_str())
        || same('0')
        || same('f')
        || same('.')
        || same('x')
        || lower == "0123456789"
        || lower == "123456789";
    (!empty).then(|| text.to_owned())
}

/// Canonical lower-case text, `None` when it is no UUID.
fn uuid(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let groups: Vec<&str> = lower.split('-').collect();
    let fits = groups.len() == 5
        && groups.iter().zip([8, 4, 4, 4, 12]).all(|(group, len)| {
            group.len() == len && group.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
    fits.then_some(lower)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(fields: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("class/dmi/id");
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in fields {
            fs::write(folder.join(name), format!("{text}\n")).unwrap();
        }
        root
    }

    #[test]
    fn a_machine_that_is_filled_in_is_known() {
        let root = machine(&[
            ("product_uuid", "4C4C4544-0042-3510-8052-B4C04F4E3332"),
            ("product_serial", "B5RN32"),
            ("sys_vendor", "Dell Inc."),
            ("product_name", "OptiPlex 7050"),
        ]);
        let identity = identity(root.path());
        assert_eq!(
            identity.uuid.as_deref(),
            Some("4c4c4544-0042-3510-8052-b4c04f4e3332")
        );
        assert_eq!(identity.serial.as_deref(), Some("B5RN32"));
        assert_eq!(identity.manufacturer.as_deref(), Some("Dell Inc."));
        assert_eq!(identity.product.as_deref(), Some("OptiPlex 7050"));
        assert_eq!(kind(root.path()), FirmwareKind::Bios);
        fs::create_dir_all(root.path().join("firmware/efi")).unwrap();
        assert_eq!(kind(root.path()), FirmwareKind::Uefi);
    }

    #[test]
    fn fields_that_nobody_filled_in_say_nothing() {
        for uuid in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "Not Specified",
            "1234",
        ] {
            let root = machine(&[
                ("product_uuid", uuid),
                ("product_serial", "To be filled by O.E.M."),
                ("board_serial", "BOARD7"),
                ("sys_vendor", "Default string"),
            ]);
            let identity = identity(root.path());
            assert_eq!((identity.uuid, identity.manufacturer), (None, None));
            assert_eq!(
                identity.serial.as_deref(),
                Some("BOARD7"),
                "the next best is used"
            );
        }
        assert_eq!(identity(Path::new("/nowhere")), MachineIdentity::default());
    }
}
