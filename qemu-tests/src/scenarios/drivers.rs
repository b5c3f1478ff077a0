//! Hardware of several makes: the environment finds the drivers for it.

use anyhow::ensure;
use std::time::Duration;

use super::machine::Machine;
use super::site::Site;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::{DiskBus, DiskDevice};

const DISK_BYTES: u64 = 64 << 20;

pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let mut machine = Machine::bare(stage, FirmwareKind::Uefi)?;
    machine.network_model = "e1000e";
    for (bus, serial) in [(DiskBus::Nvme, "ON-NVME"), (DiskBus::Ahci, "ON-AHCI")] {
        let image = stage.disks().join(format!("{serial}.raw"));
        disk::create_empty(&image, DISK_BYTES)?;
        machine.more_disks.push(DiskDevice {
            image,
            bus,
            serial: serial.to_owned(),
            large_sectors: false,
        });
    }
    let mut guest = machine.switch_on(stage, Some(&port), "boot")?;
    site.wait_for_beacon(&machine, &mut guest)?;
    // Disks may come up later than the network; a later beacon has them.
    let wanted = ["BARE-DISK", "ON-NVME", "ON-AHCI"];
    let deadline = Deadline::seconds(60);
    let view = loop {
        let view = site.wait_for_beacon(&machine, &mut guest)?;
        let serials: Vec<&str> = view
            .inventory
            .disks
            .iter()
            .filter_map(|disk| disk.serial.as_deref())
            .collect();
        if wanted.iter().all(|serial| serials.contains(serial)) {
            break view;
        }
        ensure!(
            deadline.remaining().is_some(),
            "of the disks {wanted:?} the beacon names {serials:?} only"
        );
        std::thread::sleep(Duration::from_millis(500));
    };
    stage.say("the beacon names every disk");
    let missing = &view.inventory.without_driver;
    ensure!(missing.is_empty(), "devices without a driver: {missing:?}");
    Ok(())
}
