//! One thread for each wired port: switches it on, waits for link, keeps its lease, and asks for the server
//! when nothing else says which it is.
//!
//! Invariant: a port never waits for another one. What is *not* here: which port is used to reach the
//! server ([`super::way`]).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use protocol::dhcp::{CLIENT_PORT, SERVER_PORT};

use super::dhcp_client::{Change, Client, Destination, Lease};
use super::discovery::{Discovery, Finding};
use super::link::{self, Card};
use crate::sys::link::{Route, add_route, set_address, set_up, udp_on};

/// The largest datagram that is read: more than an Ethernet frame carries.
const DATAGRAM: usize = 2048;
/// How often link is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The longest wait in `recv`, so that a pulled cable is noticed.
const LISTEN: Duration = Duration::from_millis(200);
/// When, and how often, silence of DHCP servers is spoken of.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What happens on a port.
#[derive(Debug)]
pub(crate) enum PortEvent {
    /// A port has link.
    Link,
    /// It has an address, and routes.
    Ready {
        /// Which port.
        name: String,
        /// What it got.
        lease: Lease,
        /// When it got link.
        link_at: Instant,
    },
    /// Something came of asking for the server.
    Asked {
        /// Which port.
        name: String,
        /// What.
        finding: Finding,
    },
    /// It has no address any more.
    Gone {
        /// Which port.
        name: String,
    },
}

/// How a port is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// What makes this boot's transactions differ from others'.
    pub(crate) seed: u64,
    /// Whether the server must be asked for.
    pub(crate) discover: bool,
}

/// Runs a port until its card is gone from the machine.
pub(crate) fn run(card: &Card, how: Use, sysfs: &Path, events: &SyncSender<PortEvent>) {
    let name = card.name.as_str();
    let tell = |event| {
        // The receiver lives as long as the process.
        let _ = events.send(event);
    };
    while link::exists(sysfs, name) {
        if let Err(error) = set_up(name) {
            log::warn!("{name} cannot be switched on: {error}; trying again");
            std::thread::sleep(Duration::from_secs(2));
            continue;
        }
        let Some(link_at) = wait_for_link(sysfs, name) else {
            break;
        };
        log::info!("{name} has link ({})", card.mac);
        tell(PortEvent::Link);
        if let Err(error) = keep_lease(card, how, sysfs, link_at, &tell) {
            log::warn!("DHCP on {name}: {error}; trying again");
            std::thread::sleep(Duration::from_secs(1));
        }
        tell(PortEvent::Gone { name: name.into() });
        // Its address would lead packets into a dead cable.
        let _ = set_address(name, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
    }
    log::warn!("{name} was taken out of the machine");
}

fn wait_for_link(sysfs: &Path, name: &str) -> Option<Instant> {
    let began = Instant::now();
    let mut said = false;
    loop {
        if link::has_link(sysfs, name) {
            return Some(Instant::now());
        }
        if !link::exists(sysfs, name) {
            return None;
        }
        if !said && began.elapsed() >= COMPLAIN_EVERY {
            said = true;
            log::info!("{name} has no link: no cable, or nothing at its other end");
        }
        std::thread::sleep(if said { LISTEN } else { LOOK_EVERY });
    }
}

/// Gets and keeps an address while there is link.
fn keep_lease(
    card: &Card,
    how: Use,
    sysfs: &Path,
    link_at: Instant,
    tell: &impl Fn(PortEvent),
) -> io::Result<()> {
    let name = card.name.as_str();
    let socket = udp_on(name, CLIENT_PORT)?;
    let now = || link_at.elapsed();
    let mut client = Client::new(card.mac, how.seed, now());
    let mut discovery: Option<Discovery> = None;
    let mut complained = link_at;
    let mut buffer = [0; DATAGRAM];
    while link::has_link(sysfs, name) {
        let (transmit, mut change) = client.poll(now());
        if let Some(transmit) = transmit {
            send(&socket, name, &transmit.bytes, transmit.to);
        }
        if change.is_none() {
            let mut finding = None;
            if let Some(discovery) = &mut discovery {
                let (question, nobody) = discovery.poll(now());
                if let Some(question) = question {
                    send(&socket, name, &question, Destination::Broadcast);
                }
                finding = nobody;
            }
            let due = discovery
                .as_ref()
                .map_or(Duration::MAX, Discovery::deadline);
            let wait = client.deadline().min(due).saturating_sub(now());
            if let Some(datagram) = listen(&socket, wait, &mut buffer)? {
                change = client.receive(datagram, now());
                if let Some(discovery) = &mut discovery {
                    finding = discovery.receive(datagram).or(finding);
                }
            }
            if let Some(finding) = finding {
                let name = name.into();
                tell(PortEvent::Asked { name, finding });
            }
        }
        match change {
            Some(Change::Granted(lease)) => {
                configure(name, &lease)?;
                discovery = how
                    .discover
                    .then(|| Discovery::new(card.mac, lease.address, !how.seed, now()));
                tell(PortEvent::Ready {
                    name: name.into(),
                    lease,
                    link_at,
                });
            }
            Some(Change::Lost(reason)) => {
                log::warn!("{name} lost its address: {reason}");
                discovery = None;
                tell(PortEvent::Gone { name: name.into() });
                set_address(name, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED)?;
                complained = Instant::now();
            }
            Some(Change::Extended) | None => {}
        }
        if client.lease().is_none() && complained.elapsed() >= COMPLAIN_EVERY {
            complained = Instant::now();
            let seconds = now().as_secs();
            log::warn!(
                "{name} has link, but no DHCP server gave it an address for {seconds} s; still asking"
            );
        }
    }
    log::warn!("{name} lost its link");
    Ok(())
}

fn listen<'a>(
    socket: &UdpSocket,
    wait: Duration,
    buffer: &'a mut [u8],
) -> io::Result<Option<&'a [u8]>> {
    // Zero would mean for ever.
    let wait = wait.clamp(Duration::from_millis(1), LISTEN);
    socket.set_read_timeout(Some(wait))?;
    match socket.recv(buffer) {
        Ok(length) => Ok(buffer.get(..length)),
        Err(error) if is_quiet(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_quiet(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, NetworkDown, TimedOut, WouldBlock};
    // Refused: the ICMP answer to a renewal while the DHCP server restarts.
    matches!(
        error.kind(),
        ConnectionRefused | Interrupted | NetworkDown | TimedOut | WouldBlock
    )
}

fn send(socket: &UdpSocket, name: &str, bytes: &[u8], to: Destination) {
    let address = match to {
        Destination::Broadcast => Ipv4Addr::BROADCAST,
        Destination::Server(server) => server,
    };
    // A message that could not be sent is as good as lost, and lost ones are sent again.
    if let Err(error) = socket.send_to(bytes, SocketAddrV4::new(address, SERVER_PORT)) {
        log::debug!("DHCP on {name}: {error}");
    }
}

fn configure(name: &str, lease: &Lease) -> io::Result<()> {
    set_address(name, lease.address, lease.mask)?;
    if let Some(router) = lease.router {
        // A metric of its own for each port, so that all can have their default route.
        let index = nix::net::if_::if_nametoindex(name).unwrap_or(0);
        let route = Route {
            host: None,
            router: Some(router),
            metric: i16::try_from(100 + index).unwrap_or(i16::MAX - 1),
        };
        if let Err(error) = add_route(name, route) {
            log::warn!("{name}: no route through {router}: {error}");
        }
    }
    let bits = lease.mask.to_bits().count_ones();
    log::info!(
        "{name} has address {}/{bits} from the DHCP server {}",
        lease.address,
        lease.server
    );
    Ok(())
}
