//! Network first in the boot order is safe: a machine that the server has no work for starts its disk.

use anyhow::ensure;

use super::machine::{Machine, wait_for_login};
use super::site::Site;
use super::stage::Stage;
use crate::lab::firmware::FirmwareKind;

pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    for kind in [FirmwareKind::Bios, FirmwareKind::Uefi] {
        let mut site = Site::open(stage)?;
        let port = site.add_port()?;
        let source = Machine::source(stage, kind)?;
        stage.say(&format!("an unknown {kind} machine boots from the network"));
        let mut guest = source.switch_on(stage, Some(&port), &format!("{kind}-unknown"))?;
        site.wait_for_beacon(&source, &mut guest)?;
        guest.cut_power();

        stage.say("the server knows it now and has no work for it");
        let mut guest = source.switch_on(stage, Some(&port), &format!("{kind}-known"))?;
        wait_for_login(stage, &mut guest)?;
        let counters = site.link.counters(port.id)?;
        ensure!(
            counters.frames_to_guest > 0,
            "the machine did not ask the network first"
        );
        stage.say("it went on to its local disk and reached its login prompt");
        drop(guest);
        drop(site);
        std::fs::remove_dir_all(stage.disks().join("server"))?;
    }
    Ok(())
}
