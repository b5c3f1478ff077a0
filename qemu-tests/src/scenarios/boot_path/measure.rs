//! Boot paths to be measured: with the server under test, and with dnsmasq alone in its place.

use anyhow::{Context, ensure};
use std::time::{Duration, SystemTime};

use super::world::{Wire, World, machine};
use super::{BootPath, Stages};
use crate::lab::deadline::Deadline;
use crate::lab::dnsmasq::BootAdvice;
use crate::lab::traffic::Traffic;
use crate::scenarios::stage::Stage;

/// From power-on until an agent asks for an address, under emulation.
const AGENT_SECONDS: u64 = 300;
const TICK: Duration = Duration::from_millis(100);

/// One boot.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// Its parts.
    pub(crate) stages: Stages,
    /// What went over the cable.
    pub(crate) traffic: Traffic,
}

impl Measured {
    fn of(powered_at: SystemTime, traffic: Traffic) -> anyhow::Result<Self> {
        Ok(Self {
            stages: Stages::of(powered_at, &traffic)?,
            traffic,
        })
    }
}

/// A boot to the beacon.
pub(crate) fn with_our_server(stage: &Stage<'_>, path: &BootPath) -> anyhow::Result<Measured> {
    let world = World::open(stage, path)?;
    let powered_at = SystemTime::now();
    let mut guest = world.switch_on()?;
    let waited = world.site.wait_for_beacon(&world.machine, &mut guest);
    waited.with_context(|| world.what_was_asked())?;
    guest.cut_power();
    Measured::of(powered_at, world.traffic())
}

/// The same machine with dnsmasq as DHCP and TFTP server, until its agent asks for an address: without
/// our server it can do no more.
pub(crate) fn dnsmasq_alone(
    stage: &Stage<'_>,
    path: &BootPath,
    advice: &BootAdvice,
) -> anyhow::Result<Measured> {
    let machine = machine(stage, path)?;
    let wire = Wire::lay(stage, Some(advice))?;
    let powered_at = SystemTime::now();
    let mut guest = wire.switch_on(stage, &machine)?;
    let deadline = Deadline::seconds(AGENT_SECONDS);
    while wire.traffic().system_at.is_none() {
        guest.check_for_panic()?;
        ensure!(guest.is_on(), "the machine went off by itself");
        ensure!(
            deadline.remaining().is_some(),
            "no agent asked dnsmasq for an address within {deadline}; the machine asked for {}",
            super::summary(&wire.traffic())
        );
        std::thread::sleep(TICK);
    }
    guest.cut_power();
    Measured::of(powered_at, wire.traffic())
}
