//! How soon a machine reports, and how much it fetches for that.

use anyhow::{Context, ensure};

use super::machine::Machine;
use super::site::Site;
use super::stage::Stage;
use crate::lab::firmware::FirmwareKind;

/// From link to the first beacon at most, milliseconds.
const BEACON_LIMIT: u64 = 3000;
/// Kernel and initramfs of a virtio machine at most, bytes.
const BOOT_FILES_LIMIT: u64 = 25_000_000;

pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let bare = Machine::bare(stage, FirmwareKind::Bios)?;
    let mut guest = bare.switch_on(stage, Some(&port), "boot")?;
    let view = site.wait_for_beacon(&bare, &mut guest)?;
    let after = view
        .since_link_ms
        .context("the beacon does not say how long after link it came")?;

    let folder = stage.boot_files()?;
    let mut bytes = 0;
    for file in ["vmlinuz", "initramfs"] {
        bytes += std::fs::metadata(folder.join(file))?.len();
    }
    stage.say(&format!(
        "beacon {after} ms after link; boot files {:.1} MB",
        bytes as f64 / 1e6
    ));
    ensure!(
        after <= BEACON_LIMIT,
        "the beacon came {after} ms after link, {BEACON_LIMIT} are allowed"
    );
    ensure!(
        bytes <= BOOT_FILES_LIMIT,
        "the boot files have {bytes} bytes, {BOOT_FILES_LIMIT} are allowed"
    );
    Ok(())
}
