//! The server on a network of the kernel: its real ports, its raw frames, and clients that are not ours.
//!
//! The other scenarios put the lab's relay between machines and server. Here nothing is in between, so how
//! DHCP replies are addressed is the server's own doing, and a packet capture judges it.

use anyhow::{Context, bail, ensure};
use std::path::Path;

use super::Skipped;
use super::compare;
use super::machine::{Machine, wait_for_login};
use super::restore::backup;
use super::site::{Site, copy_folder};
use super::stage::Stage;
use crate::lab::bridge_capture::BridgeCapture;
use crate::lab::deadline::Deadline;
use crate::lab::dhcp_sighting::{self, Answer, DhcpSighting};
use crate::lab::firmware::FirmwareKind;
use crate::lab::guest::Attachment;
use crate::lab::namespace::{BRIDGE_ADDRESS, Bridge, Namespace, NamespaceError};
use crate::lab::server::{Server, ServerConfig};
use crate::lab::udhcpc::{Event, Udhcpc};

/// DHCP message types (RFC 2132 §9.6).
const OFFER: u8 = 2;
const ACK: u8 = 5;
const RELEASE: u8 = 7;
/// From iPXE's lease to its first HTTP request at most, milliseconds: some tens when it heard that there is
/// no IPv6 router, 16 s when it did not. In between, so that a slow computer makes no difference.
const SCRIPT_LIMIT: u64 = 8000;

/// A bridge and the capture of it. The capture ends first.
struct RealLink {
    capture: BridgeCapture,
    bridge: Bridge,
}

type RealSite<'a> = Site<'a, RealLink>;

/// A server that gives UEFI firmware iPXE, too: what iPXE waits for is looked at here, the ways by shim
/// are told in `boot_path`.
fn open<'a>(stage: &'a Stage<'a>) -> anyhow::Result<RealSite<'a>> {
    let program = stage.program("netboot")?;
    let boot_files = stage.boot_files()?;
    let bridge = Bridge::up().map_err(skip_when_unavailable)?;
    let capture = BridgeCapture::start(&bridge, &stage.logs().join("bridge.pcap"))?;
    let data_dir = stage.disks().join("server");
    let place = bridge.place();
    let mut config = ServerConfig::on_bridge(&program, &data_dir, &boot_files, stage.logs(), place);
    config.boot_keys = vec![("uefi_loader", "\"ipxe\"")];
    let server = Server::start(config)?;
    Ok(Site::on(stage, server, RealLink { capture, bridge }))
}

pub(super) fn skip_when_unavailable(error: NamespaceError) -> anyhow::Error {
    match error {
        NamespaceError::Unavailable { .. } => Skipped {
            reason: error.to_string(),
        }
        .into(),
        other => other.into(),
    }
}

pub(super) fn bios(stage: &Stage<'_>) -> anyhow::Result<()> {
    let firmware = boot(stage, FirmwareKind::Bios)?;
    let unicast = firmware.iter().filter(|reply| !reply.to.is_broadcast());
    ensure!(
        unicast.count() > 0,
        "no DHCP reply to the BIOS went to its hardware address alone"
    );
    Ok(())
}

pub(super) fn uefi(stage: &Stage<'_>) -> anyhow::Result<()> {
    let firmware = boot(stage, FirmwareKind::Uefi)?;
    let broadcast = firmware.iter().filter(|reply| reply.to.is_broadcast());
    ensure!(
        broadcast.count() > 0,
        "no DHCP reply to the UEFI firmware was broadcast, as it asks for"
    );
    Ok(())
}

/// Boots a bare machine up to its beacon and returns the DHCP replies to its firmware.
fn boot(stage: &Stage<'_>, kind: FirmwareKind) -> anyhow::Result<Vec<DhcpSighting>> {
    let mut site = open(stage)?;
    let tap = site.link.bridge.add_tap()?;
    let bare = Machine::bare(stage, kind)?;
    stage.say("a bare machine boots from the server's own ports");
    let mut guest = bare.switch_on_with(stage, Some(Attachment::Tap(tap)), "boot")?;
    let view = site.wait_for_beacon(&bare, &mut guest)?;
    stage.say(&match view.since_link_ms {
        Some(after) => format!("its beacon came {after} ms after link"),
        None => "its beacon is there".to_owned(),
    });
    guest.cut_power();
    let asked_after = script_after_lease(&site.server.timeline(&bare.mac())?)?;
    stage.say(&format!(
        "iPXE asked what to boot {asked_after} ms after its lease"
    ));
    ensure!(
        asked_after <= SCRIPT_LIMIT,
        "iPXE waited {asked_after} ms after its lease, {SCRIPT_LIMIT} are allowed: \
         did it hear the server's router advertisement?"
    );

    let seen = site.link.capture.finish();
    let answers = dhcp_sighting::answers(&seen, bare.mac);
    check_addressing(stage, &answers)?;
    let of_firmware = |(request, reply): Answer<'_>| {
        let firmware = request.vendor_class.starts_with("PXEClient");
        firmware.then(|| reply.clone())
    };
    Ok(answers.into_iter().filter_map(of_firmware).collect())
}

/// Milliseconds from the last lease to the first HTTP request in a machine's time line.
fn script_after_lease(timeline: &serde_json::Value) -> anyhow::Result<u64> {
    let boots = timeline["boots"].as_array();
    let events = boots
        .and_then(|boots| boots.last()?.get("events"))
        .and_then(|events| events.as_array())
        .context("the server's time line has no events")?;
    let at = |event: &serde_json::Value| event["at"].as_u64().context("an event without a time");
    let script = events
        .iter()
        .position(|event| event["stage"] == "http")
        .context("the time line has no HTTP request")?;
    let lease = events[..script]
        .iter()
        .rfind(|event| event["stage"] == "dhcp")
        .context("the time line has no DHCP before HTTP")?;
    Ok(at(&events[script])?.saturating_sub(at(lease)?))
}

/// Every reply has to go where RFC 2131 §4.1 says.
fn check_addressing(stage: &Stage<'_>, answers: &[Answer<'_>]) -> anyhow::Result<()> {
    let wrong: Vec<String> = answers
        .iter()
        .filter_map(|&answer| dhcp_sighting::wrong_addressing(answer))
        .collect();
    if !wrong.is_empty() {
        bail!(
            "DHCP replies went to the wrong address: {}",
            wrong.join("; ")
        );
    }
    let broadcast = answers.iter().filter(|(_, reply)| reply.to.is_broadcast());
    let broadcast = broadcast.count();
    stage.say(&format!(
        "{} DHCP replies, {broadcast} of them broadcast, each as its request asked",
        answers.len()
    ));
    ensure!(!answers.is_empty(), "the capture has no DHCP reply");
    Ok(())
}

/// A whole restore with nothing of the lab between machine and server.
pub(super) fn restore(stage: &Stage<'_>) -> anyhow::Result<()> {
    let kind = FirmwareKind::Bios;
    // Told before the long way to a backup.
    drop(Bridge::up().map_err(skip_when_unavailable)?);
    let backup = backup(stage, kind)?;
    copy_folder(&backup.data_dir, &stage.disks().join("server"))?;
    let mut site = open(stage)?;
    let cable = Attachment::Tap(site.link.bridge.add_tap()?);
    let bare = Machine::bare(stage, kind)?;
    let mut guest = bare.switch_on_with(stage, Some(cable.clone()), "restore")?;
    let job = site.order_restore(&bare, &mut guest, &backup.restore_point)?;
    site.wait_for_success(&job.id, &mut guest)?;
    guest.wait_until_off(Deadline::seconds(60))?;
    compare::check_restored(&backup.source_disk, &bare.disk)?;
    stage.say("every file is there with the same content, owner, mode and times");
    let mut guest = bare.switch_on_with(stage, Some(cable), "restored")?;
    wait_for_login(stage, &mut guest)?;
    stage.say("the restored machine reached its login prompt");
    Ok(())
}

/// A DHCP client that is not ours gets, renews, gives back and gets again an address.
pub(super) fn udhcpc(stage: &Stage<'_>) -> anyhow::Result<()> {
    if !Udhcpc::is_installed() {
        let reason = "busybox has no udhcpc here; install busybox-static or udhcpc".to_owned();
        return Err(Skipped { reason }.into());
    }
    let mut site = open(stage)?;
    let client = Namespace::create()?;
    site.link.bridge.connect(&client)?;
    let log = stage.logs().join("udhcpc");
    let bound = lease_once(stage, &client, &log.join("unicast"), false)?;
    let again = lease_once(stage, &client, &log.join("broadcast"), true)?;
    ensure!(
        bound.address == again.address,
        "the client had {}, and {} after it came back",
        bound.address,
        again.address
    );
    stage.say("it came back, asked for broadcasts, and got the same address");

    let seen = site.link.capture.finish();
    let client = seen.first().context("the capture has no DHCP")?.client;
    let answers = dhcp_sighting::answers(&seen, client);
    check_addressing(stage, &answers)?;
    let count = |kind| {
        seen.iter()
            .filter(|sighting| sighting.kind == Some(kind))
            .count()
    };
    ensure!(
        count(OFFER) >= 2 && count(ACK) >= 4 && count(RELEASE) == 2,
        "two rounds of lease, renewal and release are not all in the capture"
    );
    let broadcast = answers.iter().filter(|(_, reply)| reply.to.is_broadcast());
    ensure!(
        broadcast.count() > 0,
        "no reply to the second client was broadcast, as it asks for"
    );
    Ok(())
}

/// One visit: an address, its renewal, and its release.
fn lease_once(
    stage: &Stage<'_>,
    place: &Namespace,
    logs: &Path,
    asks_for_broadcast: bool,
) -> anyhow::Result<Event> {
    let mut client = Udhcpc::start(place.place(), logs, asks_for_broadcast)?;
    let bound = client.wait_for("bound", Deadline::seconds(30))?;
    ensure!(
        bound.server == BRIDGE_ADDRESS,
        "the lease is from {}, not from {BRIDGE_ADDRESS}",
        bound.server
    );
    let pool = 100..=200;
    let [a, b, c, host] = bound.address.octets();
    ensure!(
        [a, b, c] == BRIDGE_ADDRESS.octets()[..3] && pool.contains(&host),
        "{} is not of the pool",
        bound.address
    );
    let address = place.ip(&["-br", "addr"])?;
    ensure!(address.contains(&bound.address.to_string()), "{address}");
    stage.say(&format!(
        "udhcpc got {} for {} s",
        bound.address, bound.lease_seconds
    ));
    client.ask_to_renew()?;
    let renewed = client.wait_for("renew", Deadline::seconds(60))?;
    ensure!(
        renewed.address == bound.address,
        "{} became {} in a renewal",
        bound.address,
        renewed.address
    );
    stage.say("it renewed its lease");
    client.release(Deadline::seconds(20))?;
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_wait_for_the_script_counts_from_the_last_lease_before_it() {
        let timeline = json!({ "boots": [{ "events": [
            { "at": 1000, "stage": "dhcp" },
            { "at": 4000, "stage": "dhcp" },
            { "at": 4060, "stage": "http" },
            { "at": 9000, "stage": "dhcp" },
            { "at": 9900, "stage": "http" },
        ] }] });
        assert_eq!(script_after_lease(&timeline).unwrap(), 60);
        assert!(script_after_lease(&json!({ "boots": [] })).is_err());
    }
}
