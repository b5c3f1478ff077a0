//! DHCP clients that are not ours on a network of the kernel, and a machine that has an address of the pool.
//!
//! dhclient, dhcpcd and udhcpc, each in a namespace of its own on one bridge. A packet capture judges what
//! they say in their logs. Not here: udhcpc's own renewals (`real_network`).

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::Skipped;
use super::real_network::skip_when_unavailable;
use super::stage::Stage;
use crate::lab::bridge_capture::BridgeCapture;
use crate::lab::deadline::Deadline;
use crate::lab::dhcp_sighting::{self, DhcpSighting};
use crate::lab::foreign_client::ForeignClient;
use crate::lab::namespace::{BRIDGE_ADDRESS, Bridge, CLIENT_INTERFACE, Namespace};
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;

const DISCOVER: u8 = 1;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const RELEASE: u8 = 7;
/// The shortest lease of the configuration: clients renew it after half of it.
const LEASE_SECONDS: u32 = 60;

/// What dhclient tells its script (dhclient-script(8)).
const DHCLIENT_SCRIPT: &str = r#"#!/bin/sh
case "$reason" in
BOUND|RENEW|REBIND|REBOOT) ip addr replace "$new_ip_address/24" dev "$interface" ;;
RELEASE|EXPIRE|FAIL) ip addr flush dev "$interface" ;;
esac
"#;
/// dhcpcd keeps its leases and sockets in folders of the system: it gets others in their place.
const DHCPCD_SCRIPT: &str = r#"
mount --bind "$1" /var/lib && mount -t tmpfs none /run && shift && exec dhcpcd "$@"
"#;

/// Plays it.
pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    for program in ["dhclient", "dhcpcd", "busybox"] {
        ensure_installed(program)?;
    }
    let mut bridge = Bridge::up().map_err(skip_when_unavailable)?;
    let mut capture = BridgeCapture::start(&bridge, &stage.logs().join("bridge.pcap"))?;
    let holder = namespace_on(&mut bridge)?;
    let has = |address: Ipv4Addr| {
        let address = format!("{address}/24");
        holder.ip(&["addr", "add", &address, "dev", CLIENT_INTERFACE])
    };
    has(pool(0))?;

    let program = stage.program("netboot")?;
    let data_dir = stage.disks().join("server");
    let boot_files = stage.disks().join("boot");
    fs::create_dir_all(&boot_files)?;
    let config = ServerConfig::on_bridge(
        &program,
        &data_dir,
        &boot_files,
        stage.logs(),
        bridge.place(),
    );
    let server = Server::start(config.with_lease_seconds(LEASE_SECONDS))?;
    let noticed = format!("{} of the pool is in use by the card", pool(0));
    server.wait_for_log(&noticed, Deadline::seconds(20))?;
    stage.say("the server noticed that another machine has the pool's first address");

    // The server has asked about this one and heard nobody, so it offers it; the client asks again.
    has(pool(1))?;
    let declining = namespace_on(&mut bridge)?;
    let mut udhcpc = start_udhcpc(stage, &declining)?;
    udhcpc.wait_for(
        &format!("lease of {} obtained", pool(2)),
        Deadline::seconds(40),
    )?;
    stage.say("udhcpc declined an address that another machine has, and got the next");

    let (first, second) = (namespace_on(&mut bridge)?, namespace_on(&mut bridge)?);
    let mut dhclient = Dhclient::prepare(stage, &first)?;
    let mut one = dhclient.start("first")?;
    let mut two = start_dhcpcd(stage, &second, "first")?;
    let bound = format!("bound to {}", pool(3));
    one.wait_for("bound to", Deadline::seconds(40))?;
    two.wait_for("leased", Deadline::seconds(40))?;
    has_address(&first, "dhclient")?;
    has_address(&second, "dhcpcd")?;
    ensure!(
        one.said().contains(&bound),
        "dhclient was not {bound}: {}",
        one.said()
    );
    one.wait_for("bound to", Deadline::seconds(60))?;
    two.wait_for("acknowledged", Deadline::seconds(60))?;
    stage.say("dhclient and dhcpcd got addresses and renewed them in time");

    drop(one);
    two.end_by(Signal::SIGTERM, Deadline::seconds(20))?;
    let mut one = dhclient.start("again")?;
    let mut two = start_dhcpcd(stage, &second, "again")?;
    one.wait_for("bound to", Deadline::seconds(40))?;
    two.wait_for("leased", Deadline::seconds(40))?;
    for client in [&one, &two] {
        let said = client.said();
        ensure!(
            !said.contains("DISCOVER"),
            "the remembered lease was not taken: {said}"
        );
    }
    stage.say("both started again and had their remembered addresses confirmed");
    dhclient.release()?;
    two.end_by(Signal::SIGALRM, Deadline::seconds(20))?;
    drop((one, udhcpc, server));
    judge(stage, &capture.finish())
}

/// What the wire says about it all.
fn judge(stage: &Stage<'_>, seen: &[DhcpSighting]) -> anyhow::Result<()> {
    let mut cards: Vec<_> = seen.iter().map(|sighting| sighting.client).collect();
    cards.sort_unstable();
    cards.dedup();
    for card in &cards {
        let answers = dhcp_sighting::answers(seen, *card);
        let wrong: Vec<_> = answers
            .iter()
            .filter_map(|&answer| dhcp_sighting::wrong_addressing(answer))
            .collect();
        if !wrong.is_empty() {
            bail!("replies went to the wrong address: {}", wrong.join("; "));
        }
    }
    let count = |kind| {
        seen.iter()
            .filter(|sighting| sighting.kind == Some(kind))
            .count()
    };
    ensure!(
        count(DECLINE) == 1,
        "{} messages decline an address, not one",
        count(DECLINE)
    );
    ensure!(
        count(RELEASE) == 2,
        "{} messages give an address back, not two",
        count(RELEASE)
    );
    ensure!(
        count(DISCOVER) >= 4,
        "{} messages look for a server",
        count(DISCOVER)
    );
    let held = [pool(0), pool(1)];
    let granted =
        |sighting: &&DhcpSighting| sighting.kind == Some(ACK) && sighting.your_address == held[0];
    ensure!(
        !seen.iter().any(|sighting| granted(&sighting)),
        "{} was granted",
        held[0]
    );
    stage.say(&format!(
        "{} DHCP messages of {} cards, each addressed as asked",
        seen.len(),
        cards.len()
    ));
    Ok(())
}

/// The pool of the lab's server begins here.
fn pool(index: u8) -> Ipv4Addr {
    let [a, b, c, _] = BRIDGE_ADDRESS.octets();
    Ipv4Addr::new(a, b, c, 100 + index)
}

fn namespace_on(bridge: &mut Bridge) -> anyhow::Result<Namespace> {
    let namespace = Namespace::create()?;
    bridge.connect(&namespace)?;
    Ok(namespace)
}

fn has_address(namespace: &Namespace, client: &str) -> anyhow::Result<()> {
    let said = namespace.ip(&["-br", "addr", "show", "dev", CLIENT_INTERFACE])?;
    let own = |index| said.contains(&format!("{}/24", pool(index)));
    ensure!((3..=4).any(own), "{client} did not set its address: {said}");
    Ok(())
}

fn ensure_installed(program: &str) -> anyhow::Result<()> {
    let found = tool::run(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]));
    if found.is_err() {
        let reason = format!("{program} is not installed here; run scripts/setup");
        return Err(Skipped { reason }.into());
    }
    Ok(())
}

fn start_udhcpc(stage: &Stage<'_>, place: &Namespace) -> anyhow::Result<ForeignClient> {
    let mut command = place.place().command("busybox");
    // -a: ask the link whether somebody has the address; -A: seconds to wait after a refusal.
    let words = [
        "udhcpc",
        "-f",
        "-a",
        "-A",
        "2",
        "-t",
        "5",
        "-T",
        "2",
        "-s",
        "/bin/true",
    ];
    command.args(words).args(["-i", CLIENT_INTERFACE]);
    Ok(ForeignClient::start(
        &command,
        &stage.logs().join("udhcpc.log"),
    )?)
}

fn start_dhcpcd(stage: &Stage<'_>, place: &Namespace, run: &str) -> anyhow::Result<ForeignClient> {
    let leases = stage.disks().join("dhcpcd");
    fs::create_dir_all(leases.join("dhcpcd"))?;
    let mut command = place.place().command("unshare");
    command
        .args(["--mount", "sh", "-c", DHCPCD_SCRIPT, "sh"])
        .arg(&leases);
    let words = [
        "-4",
        "-B",
        "-d",
        "-f",
        "/dev/null",
        "-c",
        "/bin/true",
        "--noipv4ll",
        CLIENT_INTERFACE,
    ];
    command.args(words);
    let log = stage.logs().join(format!("dhcpcd-{run}.log"));
    Ok(ForeignClient::start(&command, &log)?)
}

/// dhclient with its files in one folder.
struct Dhclient<'a> {
    stage: &'a Stage<'a>,
    place: &'a Namespace,
}

impl<'a> Dhclient<'a> {
    fn prepare(stage: &'a Stage<'a>, place: &'a Namespace) -> anyhow::Result<Self> {
        let script = stage.disks().join("dhclient-script");
        fs::write(&script, DHCLIENT_SCRIPT)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(Self { stage, place })
    }

    fn start(&mut self, run: &str) -> anyhow::Result<ForeignClient> {
        let log = self.stage.logs().join(format!("dhclient-{run}.log"));
        Ok(ForeignClient::start(
            &self.command(&["-d", "-1", "-v"]),
            &log,
        )?)
    }

    fn release(&self) -> anyhow::Result<()> {
        tool::run(&mut self.command(&["-r"])).context("dhclient does not give its address back")?;
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let file = |name: &str| self.stage.disks().join(name);
        let mut command = self.place.place().command("dhclient");
        let with = |command: &mut Command, option: &str, path: &Path| {
            command.arg(option).arg(path);
        };
        command.arg("-4").args(words);
        with(&mut command, "-cf", Path::new("/dev/null"));
        with(&mut command, "-sf", &file("dhclient-script"));
        with(&mut command, "-lf", &file("dhclient.leases"));
        with(&mut command, "-pf", &file("dhclient.pid"));
        command.arg(CLIENT_INTERFACE);
        command
    }
}
