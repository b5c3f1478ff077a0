//! What the lab proves: each scenario is a story told in steps.
//!
//! A scenario is a function of a [`Stage`]. It ends well, fails with the reason, or is skipped with a
//! reason ([`Skipped`]). Scenarios use the product only as people and machines do: boot, commands, disks.
//! They are the edge of the program, hence `anyhow`.

mod beacon_time;
pub(crate) mod boot_path;
mod compare;
mod converted;
mod copies;
mod dhcp_clients;
mod drivers;
mod encrypted;
mod failing_disk;
mod file_systems;
mod flipped_bit;
mod interrupted;
mod killed_agent;
mod link_selftest;
mod local_disk;
mod machine;
mod matrix;
mod ntfs_sizes;
mod proxy;
mod random_frames;
mod real_network;
mod relay;
mod restore;
mod room_of_machines;
mod running_host;
mod site;
mod source_boots;
mod stage;

pub(crate) use restore::demonstrate;
pub(crate) use site::copy_folder;
pub(crate) use stage::{Settings, Stage};

use thiserror::Error;

/// A scenario that could not be played, and why.
#[derive(Debug, Error)]
#[error("{reason}")]
pub(crate) struct Skipped {
    /// What is missing.
    pub(crate) reason: String,
}

/// One story.
pub(crate) struct Scenario {
    /// Name on the command line.
    pub(crate) name: &'static str,
    /// What it proves, in one line.
    pub(crate) about: &'static str,
    /// Whether it is played only when it is named or all are asked for: what it proves is proven by
    /// another story too, in less time.
    pub(crate) long: bool,
    /// The story.
    pub(crate) play: fn(&Stage) -> anyhow::Result<()>,
}

/// Every scenario, in the order in which they are played.
pub(crate) fn all() -> impl Iterator<Item = &'static Scenario> {
    STORIES
        .iter()
        .chain(&matrix::SCENARIOS)
        .chain(&boot_path::SCENARIOS)
}

const STORIES: &[Scenario] = &[
    Scenario {
        name: "link-selftest",
        about: "the virtual link carries TCP and UDP right, under loss, reordering and duplication too",
        long: false,
        play: link_selftest::play,
    },
    Scenario {
        name: "source-boots-bios",
        about: "the source machine reaches its login prompt under BIOS",
        long: true,
        play: source_boots::bios,
    },
    Scenario {
        name: "source-boots-uefi",
        about: "the source machine reaches its login prompt under UEFI",
        long: true,
        play: source_boots::uefi,
    },
    Scenario {
        name: "beacon-time",
        about: "a machine beacons within 3 s of link, from boot files of at most 25 MB",
        long: false,
        play: beacon_time::play,
    },
    Scenario {
        name: "drivers",
        about: "disks on virtio, NVMe and AHCI behind an Intel network card are all in the beacon",
        long: false,
        play: drivers::play,
    },
    Scenario {
        name: "local-disk",
        about: "a machine without a job goes on to its local disk",
        long: false,
        play: local_disk::play,
    },
    Scenario {
        name: "restore-bios",
        about: "a bare BIOS machine comes back from the network, every file right, and starts",
        long: false,
        play: restore::bios,
    },
    Scenario {
        name: "restore-uefi",
        about: "a bare UEFI machine comes back from the network, every file right, and starts",
        long: false,
        play: restore::uefi,
    },
    Scenario {
        name: "restore-smaller",
        about: "a machine comes back on a disk that is too small for its partitions, and starts",
        long: true,
        play: restore::smaller,
    },
    Scenario {
        name: "restore-large-sectors",
        about: "a UEFI machine comes back on a disk with sectors of 4096 bytes, and starts",
        long: true,
        play: restore::large_sectors,
    },
    Scenario {
        name: "converted-to-uefi",
        about: "a machine that only knew BIOS, with a PC partition table, comes back on one with UEFI, and starts",
        long: true,
        play: converted::to_uefi,
    },
    Scenario {
        name: "converted-to-bios",
        about: "a machine that only knew UEFI comes back on one with BIOS, and starts",
        long: true,
        play: converted::to_bios,
    },
    Scenario {
        name: "converted-with-esp",
        about: "a BIOS machine that has an EFI system partition comes back on one with UEFI, and starts by it",
        long: true,
        play: converted::with_esp,
    },
    Scenario {
        name: "power-cut",
        about: "after a power cut the disk does not boot, and a new network boot finishes the restore",
        long: false,
        play: interrupted::power_cut,
    },
    Scenario {
        name: "server-restart",
        about: "the server is killed and started again in the middle, and the restore goes on",
        long: false,
        play: interrupted::server_restart,
    },
    Scenario {
        name: "killed-agent",
        about: "agent, server and link fail at random moments of a restore; the disk is whole in the end, or does not start",
        long: true,
        play: killed_agent::play,
    },
    Scenario {
        name: "killed-agent-long",
        about: "the same at 200 moments",
        long: true,
        play: killed_agent::play_long,
    },
    Scenario {
        name: "failing-disk",
        about: "a sector that is not written, a disk that is pulled: said by name, and the machine is restored again",
        long: false,
        play: failing_disk::play,
    },
    Scenario {
        name: "packet-loss",
        about: "2 % of all packets are lost, and the restore ends right",
        long: false,
        play: interrupted::packet_loss,
    },
    Scenario {
        name: "flipped-bit",
        about: "a chunk with one flipped bit is refused by name, and the disk stays unbootable",
        long: false,
        play: flipped_bit::play,
    },
    Scenario {
        name: "real-network-bios",
        about: "the server's real ports boot a BIOS machine; replies to it are unicast frames",
        long: false,
        play: real_network::bios,
    },
    Scenario {
        name: "real-network-uefi",
        about: "the server's real ports boot a UEFI machine; replies to it are broadcast",
        long: false,
        play: real_network::uefi,
    },
    Scenario {
        name: "real-network-restore",
        about: "a bare machine comes back over a network of the kernel",
        long: true,
        play: real_network::restore,
    },
    Scenario {
        name: "file-systems",
        about: "ext2, ext4, XFS, Btrfs, NTFS, exFAT, FAT32: used, captured, restored over old data, checked",
        long: false,
        play: file_systems::play,
    },
    Scenario {
        name: "ntfs-sizes",
        about: "an NTFS data disk comes back on larger and smaller disks and partitions, every file right",
        long: false,
        play: ntfs_sizes::play,
    },
    Scenario {
        name: "encrypted",
        about: "LUKS1 and LUKS2 captured plain with their keys, a wrong one refused, restored over themselves",
        long: false,
        play: encrypted::play,
    },
    Scenario {
        name: "running-host",
        about: "a Debian with LVM backs up its mounted volume by snapshot; it comes back clean",
        long: true,
        play: running_host::play,
    },
    Scenario {
        name: "copies",
        about: "one machine of each firmware, reset to an image: each starts, and they share no id with it",
        long: true,
        play: copies::two,
    },
    Scenario {
        name: "ten-copies",
        about: "five machines of each firmware, reset to an image: each starts, no two share an id",
        long: true,
        play: copies::ten,
    },
    Scenario {
        name: "real-network-udhcpc",
        about: "a DHCP client that is not ours gets, renews and returns an address",
        long: false,
        play: real_network::udhcpc,
    },
    Scenario {
        name: "real-network-dhcp-clients",
        about: "dhclient, dhcpcd and udhcpc lease, renew, remember, return; addresses in use are noticed",
        long: true,
        play: dhcp_clients::play,
    },
    Scenario {
        name: "proxy-office",
        about: "beside dnsmasq and without configuration, machines that boot get a file and others no answer",
        long: false,
        play: proxy::office,
    },
    Scenario {
        name: "proxy-same-host",
        about: "the proxy works beside dnsmasq on the same machine, which keeps port 67",
        long: false,
        play: proxy::same_host,
    },
    Scenario {
        name: "room-of-machines",
        about: "200 machines switched on together boot over 1 Gbit/s, the slowest within 3 times the first",
        long: false,
        play: room_of_machines::play,
    },
    Scenario {
        name: "random-frames",
        about: "20 s of random frames: the server keeps serving, memory and files bounded",
        long: false,
        play: random_frames::short,
    },
    Scenario {
        name: "random-frames-long",
        about: "10 minutes of random frames: the server keeps serving, memory and files bounded",
        long: true,
        play: random_frames::whole,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_that_fits_a_folder() {
        let names: Vec<_> = all().map(|scenario| scenario.name).collect();
        for (index, name) in names.iter().enumerate() {
            let plain = name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
            assert!(plain, "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
    }
}
