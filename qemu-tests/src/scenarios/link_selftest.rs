//! The virtual link by itself: what goes in comes out, whatever happens on the way.

use anyhow::{Context, ensure};
use smoltcp::wire::{IpEndpoint, Ipv4Address};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, UdpSocket};
use std::time::Duration;

use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::fault::{Chance, Faults};
use crate::lab::link::{Direction, Link, LinkConfig};
use crate::lab::port_map::PortMap;
use crate::lab::test_client::{Attempt, TestClient};

const GATEWAY: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
const ECHO: u16 = 7;
const NOBODY_BEHIND: u16 = 8;
const NOT_MAPPED: u16 = 9;
const BULK: usize = 64 << 20;
const BULK_UNDER_FAULTS: usize = 2 << 20;
const DATAGRAMS: u32 = 500;

pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let (tcp, udp) = (start_tcp_echo()?, start_udp_echo()?);
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    let ports = PortMap::default()
        .with_tcp(ECHO, tcp)
        .with_udp(ECHO, udp)
        .with_tcp(NOBODY_BEHIND, nobody);
    let folder = tempfile::tempdir()?;
    let pcap = Some(stage.logs().join("link.pcap"));
    let mut link = Link::start(
        LinkConfig {
            ports,
            pcap,
            ..LinkConfig::default()
        },
        folder.path(),
    )?;
    let port = link.add_port()?;
    let mut client = TestClient::plug_in(&port)?;
    let at = |port| IpEndpoint::new(GATEWAY.into(), port);

    for closed in [NOBODY_BEHIND, NOT_MAPPED] {
        let (_, attempt) = client.connect(at(closed))?;
        ensure!(
            attempt == Attempt::Reset,
            "port {closed} has nobody behind it but accepts"
        );
    }
    stage.say("ports with nobody behind them refuse");

    let took = client.echo(at(ECHO), BULK, Deadline::seconds(120))?;
    let rate = BULK as f64 * 8.0 / took.as_secs_f64() / 1e6;
    stage.say(&format!(
        "{} MiB went there and back over TCP, {rate:.0} Mbit/s each way",
        BULK >> 20
    ));

    let back = client.echo_datagrams(at(ECHO), DATAGRAMS)?;
    let whole: Vec<u32> = (0..DATAGRAMS).collect();
    ensure!(
        back == whole,
        "{} of {DATAGRAMS} datagrams came back in order",
        back.len()
    );
    stage.say("every UDP datagram came back");

    let faults = Faults {
        loss: Chance::percent(1.0),
        duplication: Chance::percent(2.0),
        reordering: Chance::percent(2.0),
        reorder_by: Duration::from_millis(3),
        delay: Duration::from_millis(1),
        bandwidth: Some(200_000_000),
    };
    for direction in [Direction::FromGuest, Direction::ToGuest] {
        link.set_faults(port.id, direction, faults)?;
    }
    let took = client
        .echo(at(ECHO), BULK_UNDER_FAULTS, Deadline::seconds(180))
        .context("with loss, duplication and reordering")?;
    stage.say(&format!(
        "{} MiB came back right over a bad wire in {took:.1?}",
        BULK_UNDER_FAULTS >> 20
    ));
    let back = client.echo_datagrams(at(ECHO), DATAGRAMS)?;
    let distinct: HashSet<u32> = back.iter().copied().collect();
    ensure!(distinct.len() < DATAGRAMS as usize, "no datagram was lost");
    ensure!(back.len() > distinct.len(), "no datagram was duplicated");
    ensure!(
        back.windows(2).any(|pair| pair[0] > pair[1]),
        "no datagram was overtaken"
    );
    let counters = link.counters(port.id)?;
    stage.say(&format!("the wire dropped {} frames", counters.dropped));
    ensure!(counters.dropped > 0, "the wire dropped nothing");
    Ok(())
}

fn start_tcp_echo() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
                // The client has gone when this fails.
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    Ok(port)
}

fn start_udp_echo() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = socket.local_addr()?.port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // A client that has gone shows in what it did not get.
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(port)
}
