//! The rows, fast ones first.

use super::{End, Row, Size, play};
use crate::lab::firmware::FirmwareKind::{Bios, Uefi};
use crate::lab::guest::DiskBus::{Ahci, Nvme, Virtio};
use crate::lab::source_machine::RootKind::{Btrfs, Ext4, Lvm, Xfs};
use crate::scenarios::Scenario;

const ROWS: [Row; 10] = [
    Row {
        name: "restore-matrix-xfs-uefi-smaller",
        about: "an XFS root to a smaller disk: refused, XFS cannot be made smaller",
        root: Xfs,
        firmware: Uefi,
        size: Size::Smaller,
        from: Virtio,
        to: Virtio,
        large_sectors: false,
        end: End::Refused("cannot-shrink", "XFS cannot be made smaller"),
    },
    Row {
        name: "restore-matrix-xfs-uefi-larger",
        about: "an XFS root from virtio to a larger disk on AHCI grows, and starts by UEFI",
        root: Xfs,
        firmware: Uefi,
        size: Size::Larger,
        from: Virtio,
        to: Ahci,
        large_sectors: false,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-btrfs-uefi-larger",
        about: "a Btrfs root from virtio to a larger NVMe disk with sectors of 4096 bytes grows, and starts by UEFI",
        root: Btrfs,
        firmware: Uefi,
        size: Size::Larger,
        from: Virtio,
        to: Nvme,
        large_sectors: true,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-btrfs-bios-smaller",
        about: "a Btrfs root from virtio to a smaller disk on AHCI is made smaller, and starts by BIOS",
        root: Btrfs,
        firmware: Bios,
        size: Size::Smaller,
        from: Virtio,
        to: Ahci,
        large_sectors: false,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-lvm-bios-smaller",
        about: "a root on LVM to a smaller disk: refused, LVM is not made smaller",
        root: Lvm,
        firmware: Bios,
        size: Size::Smaller,
        from: Virtio,
        to: Virtio,
        large_sectors: false,
        end: End::Refused("cannot-shrink", "LVM is not made smaller"),
    },
    Row {
        name: "restore-matrix-lvm-bios-larger",
        about: "a root on LVM from virtio to a larger NVMe disk keeps its size, and starts by BIOS",
        root: Lvm,
        firmware: Bios,
        size: Size::Larger,
        from: Virtio,
        to: Nvme,
        large_sectors: false,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-lvm-uefi-equal",
        about: "a root on LVM from AHCI to an equal NVMe disk starts by UEFI",
        root: Lvm,
        firmware: Uefi,
        size: Size::Equal,
        from: Ahci,
        to: Nvme,
        large_sectors: false,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-xfs-bios-equal",
        about: "an XFS root from AHCI to an equal NVMe disk starts by BIOS",
        root: Xfs,
        firmware: Bios,
        size: Size::Equal,
        from: Ahci,
        to: Nvme,
        large_sectors: false,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-btrfs-uefi-equal",
        about: "a Btrfs root from virtio to an equal disk on AHCI starts by UEFI",
        root: Btrfs,
        firmware: Uefi,
        size: Size::Equal,
        from: Virtio,
        to: Ahci,
        large_sectors: false,
        end: End::Login,
    },
    Row {
        name: "restore-matrix-ext4-bios-equal",
        about: "an ext4 root from virtio to an equal NVMe disk starts by BIOS",
        root: Ext4,
        firmware: Bios,
        size: Size::Equal,
        from: Virtio,
        to: Nvme,
        large_sectors: false,
        end: End::Login,
    },
];

/// A scenario for each row.
pub(in crate::scenarios) const SCENARIOS: [Scenario; ROWS.len()] = {
    const NONE: Scenario = Scenario {
        name: "",
        about: "",
        long: true,
        play,
    };
    let mut scenarios = [NONE; ROWS.len()];
    let mut index = 0;
    while index < ROWS.len() {
        scenarios[index].name = ROWS[index].name;
        scenarios[index].about = ROWS[index].about;
        index += 1;
    }
    scenarios
};

/// The row of a scenario.
pub(super) fn find(name: &str) -> Option<&'static Row> {
    const TABLE: &[Row] = &ROWS;
    TABLE.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::firmware::FirmwareKind;
    use crate::lab::guest::DiskBus;
    use crate::lab::source_machine::RootKind;

    type Facts = (RootKind, FirmwareKind, Size, DiskBus, DiskBus, bool, bool);

    /// What other stories play: `restore-bios`, `restore-uefi`, `restore-smaller`, `restore-large-sectors`.
    const ELSEWHERE: [Facts; 4] = [
        (Ext4, Bios, Size::Larger, Virtio, Virtio, false, true),
        (Ext4, Uefi, Size::Larger, Virtio, Virtio, false, true),
        (Ext4, Uefi, Size::Smaller, Virtio, Virtio, false, true),
        (Ext4, Uefi, Size::Larger, Virtio, Virtio, true, true),
    ];

    fn played() -> Vec<Facts> {
        let facts = |row: &Row| {
            let starts = row.end == End::Login;
            (
                row.root,
                row.firmware,
                row.size,
                row.from,
                row.to,
                row.large_sectors,
                starts,
            )
        };
        ROWS.iter().map(facts).chain(ELSEWHERE).collect()
    }

    #[test]
    fn every_root_starts_by_both_firmwares_and_meets_every_size() {
        let played = played();
        for root in [Ext4, Xfs, Btrfs, Lvm] {
            for firmware in [Bios, Uefi] {
                let mut rows = played.iter();
                assert!(
                    rows.any(|row| (row.0, row.1, row.6) == (root, firmware, true)),
                    "{root} by {firmware}"
                );
            }
            for size in [Size::Equal, Size::Larger, Size::Smaller] {
                let mut rows = played.iter();
                assert!(
                    rows.any(|row| (row.0, row.2) == (root, size)),
                    "{root} {size:?}"
                );
            }
        }
    }

    #[test]
    fn disks_change_their_bus_and_their_sectors() {
        let played = played();
        for change in [(Virtio, Ahci), (Ahci, Nvme), (Virtio, Nvme)] {
            let mut rows = played.iter();
            assert!(rows.any(|row| (row.3, row.4) == change), "{change:?}");
        }
        assert!(
            played.iter().any(|row| (row.1, row.5) == (Uefi, true))
                && played.iter().all(|row| !row.5 || row.1 == Uefi)
        );
    }

    #[test]
    fn a_name_says_root_firmware_and_size() {
        for row in &ROWS {
            let size = format!("{:?}", row.size).to_lowercase();
            let name = format!("restore-matrix-{}-{}-{size}", row.root, row.firmware);
            assert_eq!(row.name, name);
        }
    }
}
