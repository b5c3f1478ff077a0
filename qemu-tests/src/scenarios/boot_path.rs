//! Every way from power-on to the agent's beacon: firmware × who gives the addresses.
//!
//! One table, one story. The network is the kernel's and the server has its real ports; beside a proxy
//! stands dnsmasq. What the firmware makes impossible is played once, too: then the machine must not
//! beacon, and the flight recorder has to say why. Not here: what a machine does after its beacon.

mod measure;
mod stages;
mod table;
mod world;

pub(crate) use measure::{Measured, dnsmasq_alone, with_our_server};
use stages::Stages;
pub(crate) use table::PATHS;
pub(super) use table::SCENARIOS;

use anyhow::{Context, bail, ensure};
use std::time::{Duration, SystemTime};

use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::firmware::{NetworkBoot, UefiBuild};
use crate::lab::guest::Guest;
use crate::lab::traffic::Traffic;
use protocol::api;
use world::World;

/// From power-on until a machine that cannot boot has been diagnosed, under emulation.
const DIAGNOSIS_SECONDS: u64 = 300;
/// What OVMF says on the console about a loader with no signature that it trusts (`EFI_ACCESS_DENIED`, or
/// `EFI_SECURITY_VIOLATION` in the UEFI specification's "LoadImage").
const REFUSAL: &str = "Access Denied";
/// How often the server is asked for a diagnosis.
const TICK: Duration = Duration::from_millis(500);

/// Who gives the machine its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    /// The server under test.
    Ours,
    /// dnsmasq, which knows nothing of booting; the server under test is a proxy.
    Dnsmasq,
    /// dnsmasq, told to name the server under test as the next server.
    DnsmasqNamingUs,
}

/// What the machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MachineFirmware {
    /// SeaBIOS with the iPXE of QEMU's network card.
    Bios,
    /// UEFI of this build.
    Uefi(UefiBuild, NetworkBoot),
}

/// How the unified kernel image is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Image {
    /// As the boot files have it: by nobody.
    Unsigned,
    /// With the key that the firmware trusts.
    Signed,
}

/// How the story ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// With a beacon.
    Beacon,
    /// Without; the diagnosis has this code (`docs/diagnoses.md`).
    Diagnosis(&'static str),
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootPath {
    /// Name of the scenario.
    pub(crate) name: &'static str,
    /// What it proves, in one line.
    about: &'static str,
    /// Whether it is played only when it is named or all are asked for.
    long: bool,
    firmware: MachineFirmware,
    addresses: Addresses,
    /// Keys of the server's `[boot]` beside the usual ones.
    keys: &'static [(&'static str, &'static str)],
    image: Image,
    /// How many loaders the firmware refuses before the last power-on. It does not try again by itself, so
    /// somebody switches the machine off and on each time.
    refusals: usize,
    /// What the machine has to ask for on the wire, in this order.
    asks_for: &'static [&'static str],
    /// What the server's time line has to say, in this order.
    recorded: &'static [&'static str],
    end: End,
}

impl BootPath {
    /// Whether the machine comes as far as its agent.
    pub(crate) fn ends_with_beacon(&self) -> bool {
        matches!(self.end, End::Beacon)
    }
}

fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let path = table::find(stage.name()).context("this scenario is not in the table")?;
    let world = World::open(stage, path)?;
    for _ in 0..path.refusals {
        let mut guest = world.switch_on()?;
        wait_for_refusal(&mut guest)?;
        stage.say("the firmware refused what it was given; the machine is switched off and on");
        guest.cut_power();
    }
    stage.say("the machine is switched on");
    let powered_at = SystemTime::now();
    let mut guest = world.switch_on()?;
    match path.end {
        End::Beacon => {
            world
                .site
                .wait_for_beacon(&world.machine, &mut guest)
                .with_context(|| world.what_was_asked())?;
        }
        End::Diagnosis(code) => wait_for_diagnosis(&world, &mut guest, code)?,
    }
    guest.cut_power();

    let traffic = world.traffic();
    stage.say(&format!("on the wire: {traffic}"));
    check_requests(&traffic, path.asks_for)?;
    check_time_line(&world, path.recorded)?;
    if let End::Beacon = path.end {
        let stages = Stages::of(powered_at, &traffic)?;
        stage.milestone(&format!("beacon {stages}"));
    }
    Ok(())
}

/// Waits until the firmware itself says that it does not start what it has fetched.
fn wait_for_refusal(guest: &mut Guest) -> anyhow::Result<()> {
    guest.wait_for(REFUSAL, Deadline::seconds(DIAGNOSIS_SECONDS))?;
    Ok(())
}

/// Waits until the server says why the machine does not come; meanwhile it must not come.
fn wait_for_diagnosis(world: &World<'_>, guest: &mut Guest, code: &str) -> anyhow::Result<()> {
    let deadline = Deadline::seconds(DIAGNOSIS_SECONDS);
    let mut diagnosis = serde_json::Value::Null;
    while diagnosis["code"] != code {
        ensure!(
            deadline.remaining().is_some(),
            "within {deadline} the diagnosis was not {code:?} but {diagnosis}; {}",
            world.what_was_asked()
        );
        ensure!(guest.is_on(), "the machine went off by itself");
        std::thread::sleep(TICK);
        if world.traffic().first(api::BEACON).is_some() {
            bail!("the machine beaconed, which its firmware makes impossible; has it learned?");
        }
        // Before its first packet the server does not know the machine.
        let timeline = world.site.server.timeline(&world.machine.mac());
        diagnosis = timeline.unwrap_or_default()["diagnosis"].take();
    }
    let word = |field| diagnosis[field].as_str().unwrap_or_default();
    world.stage.say(&format!(
        "diagnosis: {}. {}",
        word("sentence"),
        word("advice")
    ));
    Ok(())
}

fn check_requests(traffic: &Traffic, expected: &[&str]) -> anyhow::Result<()> {
    let mut asked = traffic.requests.iter().map(|request| &request.what);
    for words in expected {
        ensure!(
            asked.any(|what| what.contains(words)),
            "the machine did not ask for {words:?} at its place; it asked for {}",
            summary(traffic)
        );
    }
    Ok(())
}

fn check_time_line(world: &World<'_>, expected: &[&str]) -> anyhow::Result<()> {
    let timeline = world.site.server.timeline(&world.machine.mac())?;
    let boots = timeline["boots"].as_array();
    let texts: Vec<&str> = boots
        .context("the server has no time line of the machine")?
        .iter()
        .filter_map(|boot| boot["events"].as_array())
        .flatten()
        .filter_map(|event| event["text"].as_str())
        .collect();
    let mut rest = texts.iter();
    for words in expected {
        ensure!(
            rest.any(|text| text.contains(words)),
            "the time line does not say {words:?} at its place; it says:\n    {}",
            texts.join("\n    ")
        );
    }
    Ok(())
}

/// What was asked for, repeats left out.
fn summary(traffic: &Traffic) -> String {
    let mut asked: Vec<&str> = traffic.requests.iter().map(|one| &*one.what).collect();
    asked.dedup();
    asked.join(", ")
}
