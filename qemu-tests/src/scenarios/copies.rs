//! Copies of one image (R10): machines that are reset to it share no id, and each of them starts.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::compare;
use super::machine::{Machine, log_in_and_shut_down_as, wait_for_login_as};
use super::restore;
use super::site::Site;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::firmware::FirmwareKind;
use crate::lab::tool;
use crate::lab::tree;

/// Index of the EFI system partition and of the root in the source's table.
const ESP: usize = 1;
const ROOT: usize = 2;
/// Files that tell machines apart.
const TELLING: [&str; 4] = [
    "/etc/machine-id",
    "/etc/ssh/ssh_host_rsa_key.pub",
    "/etc/ssh/ssh_host_ecdsa_key.pub",
    "/etc/ssh/ssh_host_ed25519_key.pub",
];

/// One copy for each firmware.
pub(super) fn two(stage: &Stage<'_>) -> anyhow::Result<()> {
    play(stage, 1)
}

/// Five copies for each firmware.
pub(super) fn ten(stage: &Stage<'_>) -> anyhow::Result<()> {
    play(stage, 5)
}

fn play(stage: &Stage<'_>, of_each: u8) -> anyhow::Result<()> {
    // What was seen, and on which machine.
    let mut seen = BTreeMap::new();
    for kind in [FirmwareKind::Bios, FirmwareKind::Uefi] {
        let backup = restore::backup(stage, kind)?;
        // The images of both firmwares are of one machine: they may share ids, and copies may not.
        for (what, id) in ids(&backup.source_disk)? {
            seen.insert(id, format!("the image, as {what}"));
        }
        let mut site = Site::open_with_data(stage, &backup.data_dir)?;
        let image = format!("golden-{kind}");
        let image = image.to_lowercase();
        site.server.create_image(&backup.restore_point, &image)?;
        for number in 1..=of_each {
            let machine = Machine::copy(stage, kind, number)?;
            make_copy(&mut site, machine, &image, &mut seen)?;
        }
        site.server.stop()?;
        drop(site);
        std::fs::remove_dir_all(stage.disks().join("server"))?;
    }
    stage.milestone("no two of them share an id");
    Ok(())
}

/// Resets a bare machine to the image, starts it, and compares what it is with all before it.
fn make_copy(
    site: &mut Site<'_>,
    mut machine: Machine,
    image: &str,
    seen: &mut BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let stage = site.stage;
    let name = machine.name.clone();
    let port = site.add_port()?;
    stage.say(&format!("{name} boots from the network to be reset"));
    let mut guest = machine.switch_on(stage, Some(&port), "reset")?;
    site.wait_for_beacon(&machine, &mut guest)?;
    let job = site.server.reset(&machine.mac(), image, &name)?;
    site.wait_for_success(&job.id, &mut guest)?;
    guest.wait_until_off(Deadline::seconds(60))?;
    stage.milestone(&format!("{name} is reset"));
    compare::check_file_systems(&machine.disk)?;
    for (what, id) in ids(&machine.disk)? {
        let before = seen.insert(id.clone(), format!("{name}, as {what}"));
        if let Some(before) = before {
            anyhow::bail!("{name} has {what} {id}, which is of {before}");
        }
    }
    // As in the story of a restore: OVMF would try the network for minutes first.
    machine.network_first = false;
    let mut guest = machine.switch_on(stage, None, "started")?;
    wait_for_login_as(stage, &mut guest, &name)?;
    stage.milestone(&format!("{name} reached its login prompt"));
    log_in_and_shut_down_as(guest, &name)?;
    // It kept what it was given, and made nothing that the image had.
    compare::check_file_systems(&machine.disk)?;
    let known = format!("{name}, as ");
    for (what, id) in ids(&machine.disk)? {
        let owner = seen.get(&id);
        ensure!(
            owner.is_some_and(|owner| owner.starts_with(&known)),
            "{name} has another {what} after its start: {id}"
        );
    }
    std::fs::remove_file(&machine.disk)?;
    Ok(())
}

/// What tells a disk and its system from others, with what it is called.
fn ids(image: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let table = disk::table(image)?;
    let mut ids = vec![("disk GUID".to_owned(), table.id.clone())];
    for (index, partition) in table.partitions.iter().enumerate() {
        let uuid = partition.uuid.clone().context("a partition without GUID")?;
        ids.push((format!("GUID of partition {}", index + 1), uuid));
    }
    for (what, index) in [("id of the ESP", ESP), ("id of the root", ROOT)] {
        let offset = compare::offset_of(&table, index)?;
        let said = tool::run(
            Command::new("blkid")
                .args(["--probe", "--output", "value", "--match-tag", "UUID"])
                .args(["--offset", &offset.to_string()])
                .arg(image),
        )?;
        ids.push((what.to_owned(), said.trim().to_owned()));
    }
    let root = compare::offset_of(&table, ROOT)?;
    for path in TELLING {
        let text = tree::read_ext4(image, root, path)?;
        let text = String::from_utf8(text).with_context(|| format!("{path} is no text"))?;
        // Of a key its middle; the rest is its kind and a comment.
        let word = text.split_whitespace().max_by_key(|word| word.len());
        ids.push((path.to_owned(), word.context("an empty file")?.to_owned()));
    }
    Ok(ids)
}
