//! The way to the server: the first port from which it answers.
//!
//! Invariant: every wired port is tried, all at the same time; the one the machine booted from goes
//! first when it is ready. When the boot arguments name no server, the first one that is found on any port is
//! the server, and stays it. What is *not* here: DHCP ([`super::ports`]) and how servers are asked for
//! ([`super::discovery`]).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::dhcp_client::Lease;
use super::discovery::Finding;
use super::link;
use super::ports::{self, PortEvent, Use};
use crate::screen;
use crate::sys::link::{Route, add_route, connect_through};

/// How long a server may take to accept the first connection.
const PROBE: Duration = Duration::from_secs(2);
/// How long another port waits for the one that the machine booted from.
const COURTESY: Duration = Duration::from_millis(1500);
/// How often it is said that the server is not reachable.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// When, and how often, missing cards and links are spoken of.
const COMPLAIN_EVERY: Duration = Duration::from_secs(15);

/// A port from which the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// The server's base URL.
    pub(crate) server: String,
    /// The port.
    pub(crate) port: String,
    /// Our address on it.
    pub(crate) address: Ipv4Addr,
    /// When it got link.
    pub(crate) link_at: Instant,
}

struct Ready {
    name: String,
    lease: Lease,
    link_at: Instant,
    since: Instant,
}

/// What is looked for.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    /// The server's base URL, for example `http://10.77.0.1:8080`; nothing when it has to be found.
    pub(crate) server: Option<String>,
    /// The Ethernet address that the machine booted from.
    pub(crate) boot_mac: Option<String>,
    /// What makes this boot's transactions differ from others'.
    pub(crate) seed: u64,
}

/// Starts all ports, now and when new ones appear, and sends each new way to the server. Never
/// returns.
pub(crate) fn find(search: &Search, sysfs: &Path, ways: &SyncSender<Way>) -> ! {
    let (sender, events) = sync_channel(32);
    let mut known: Vec<String> = Vec::new();
    let mut state = Finder {
        server: search.server.clone(),
        ready: Vec::new(),
        preferred: None,
        current: None,
        complained: Instant::now(),
        said: None,
    };
    let began = Instant::now();
    let mut linked = false;
    loop {
        start_new(search, sysfs, &mut known, &mut state.preferred, &sender);
        let early = began.elapsed() < Duration::from_secs(20);
        let wait = Duration::from_millis(if early { 20 } else { 500 });
        linked |= state.take_events(&events, wait);
        if state.current.is_none()
            && let Some(way) = state.try_ready()
        {
            // The receiver lives as long as the process.
            let _ = ways.send(way);
        }
        if !linked && state.complained.elapsed() >= COMPLAIN_EVERY {
            state.complained = Instant::now();
            complain(sysfs, &known);
        }
    }
}

fn complain(sysfs: &Path, known: &[String]) {
    if known.is_empty() {
        let without = crate::drivers::without_driver(sysfs).join(", ");
        let devices = if without.is_empty() { "none" } else { &without };
        log::warn!("no wired network card found; devices without a driver: {devices}");
    } else {
        let names = known.join(", ");
        log::warn!("no link on {names}: plug in a network cable; still waiting");
    }
}

/// Starts a thread for each card that has none.
fn start_new(
    search: &Search,
    sysfs: &Path,
    known: &mut Vec<String>,
    preferred: &mut Option<String>,
    sender: &SyncSender<PortEvent>,
) {
    // A card that was taken out may come back: its thread has ended.
    known.retain(|name| link::exists(sysfs, name));
    for card in link::cards(sysfs) {
        if known.contains(&card.name) {
            continue;
        }
        known.push(card.name.clone());
        if card.wireless {
            log::info!(
                "{} is Wi-Fi and is not used: a restore needs a cable",
                card.name
            );
            continue;
        }
        if search.boot_mac.as_deref() == Some(&*card.mac.to_string()) {
            *preferred = Some(card.name.clone());
        }
        let how = Use {
            seed: search.seed ^ u64::from(card.mac.bytes()[5]) << 32 ^ known.len() as u64,
            discover: search.server.is_none(),
        };
        let (sysfs, sender) = (sysfs.to_owned(), sender.clone());
        let name = format!("port-{}", card.name);
        let started = std::thread::Builder::new()
            .name(name)
            .spawn(move || ports::run(&card, how, &sysfs, &sender));
        if let Err(error) = started {
            log::error!("a port cannot be used: {error}");
        }
    }
}

struct Finder {
    /// The server's base URL, once it is known.
    server: Option<String>,
    ready: Vec<Ready>,
    preferred: Option<String>,
    current: Option<String>,
    complained: Instant,
    /// When it was last said that the server is not reachable.
    said: Option<Instant>,
}

impl Finder {
    /// Takes what happened on the ports; true when one has link.
    fn take_events(&mut self, events: &Receiver<PortEvent>, wait: Duration) -> bool {
        let mut linked = false;
        let mut wait = wait;
        loop {
            match events.recv_timeout(wait) {
                Ok(PortEvent::Link) => linked = true,
                Ok(PortEvent::Ready {
                    name,
                    lease,
                    link_at,
                }) => {
                    self.ready.retain(|ready| ready.name != name);
                    if self.current.as_ref() == Some(&name) {
                        self.current = None;
                    }
                    self.ready.push(Ready {
                        name,
                        lease,
                        link_at,
                        since: Instant::now(),
                    });
                }
                Ok(PortEvent::Asked { name, finding }) => self.asked(&name, finding),
                Ok(PortEvent::Gone { name }) => {
                    self.ready.retain(|ready| ready.name != name);
                    if self.current.as_ref() == Some(&name) {
                        self.current = None;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return linked,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(wait);
                    return linked;
                }
            }
            wait = Duration::ZERO;
        }
    }

    /// Takes the first server that is found, and names others.
    fn asked(&mut self, port: &str, finding: Finding) {
        match (finding, &self.server) {
            (Finding::Server { url, by }, None) => {
                log::info!("server {url} found by DHCP on {port} (told by {})", who(by));
                screen::update(|view| {
                    view.server = Some(url.clone());
                    view.state = "Looking for the server".to_owned();
                });
                self.server = Some(url);
            }
            (Finding::Server { url, by }, Some(used)) if url != *used => log::warn!(
                "another server, {url}, answered on {port} (told by {}); {used} answered first and is used",
                who(by)
            ),
            (Finding::Unusable { text, by }, used) => log::warn!(
                "{} on {port} names \"{text}\" as server, which cannot be used (expected http://ADDRESS:PORT){}",
                who(by),
                if used.is_none() { "; still asking" } else { "" }
            ),
            (Finding::Nobody, None) => {
                let reason = format!(
                    "no netboot server answered on {port}, and the boot arguments name none: switch the server on, start this machine from it, or write netboot.server=http://ADDRESS:PORT into the boot arguments"
                );
                log::error!("{reason}; asking again each minute");
                screen::update(|view| view.state = format!("NO SERVER: {reason}"));
            }
            (Finding::Server { .. } | Finding::Nobody, Some(_)) => {}
        }
    }

    /// Tries to reach the server from each port that is ready, the preferred one first.
    fn try_ready(&mut self) -> Option<Way> {
        let server = self.server.clone()?;
        let preferred = self.preferred.clone();
        let is_preferred = |ready: &Ready| Some(&ready.name) == preferred.as_ref();
        self.ready.sort_by_key(|ready| !is_preferred(ready));
        let preferred_is_ready = self.ready.first().is_some_and(&is_preferred);
        let waits = preferred.is_some() && !preferred_is_ready;
        let mut failures = Vec::new();
        for ready in &self.ready {
            if waits && ready.since.elapsed() < COURTESY {
                continue;
            }
            match reach(&ready.name, &ready.lease, &host_and_port(&server)) {
                Ok(()) => {
                    self.current = Some(ready.name.clone());
                    return Some(Way {
                        server,
                        port: ready.name.clone(),
                        address: ready.lease.address,
                        link_at: ready.link_at,
                    });
                }
                Err(error) => failures.push((ready, error)),
            }
        }
        if failures.is_empty() {
            return None;
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            for (ready, error) in &failures {
                log::warn!(
                    "server {} not reachable from {} ({}) for {} s: {error}; trying again",
                    host_and_port(&server),
                    ready.name,
                    ready.lease.address,
                    ready.since.elapsed().as_secs()
                );
            }
        }
        // Refusals come back at once; the network is left alone for a moment.
        std::thread::sleep(Duration::from_millis(200));
        None
    }
}

/// The one who answered, for people.
fn who(by: Option<Ipv4Addr>) -> String {
    by.map_or_else(|| "somebody".to_owned(), |by| by.to_string())
}

/// `10.0.0.1:8080` of `http://10.0.0.1:8080`, with the port of plain HTTP when none is said.
fn host_and_port(url: &str) -> String {
    let host = url.strip_prefix("http://").unwrap_or(url);
    if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    }
}

/// Connects to the server through this port, then makes it the only way there.
fn reach(port: &str, lease: &Lease, server: &str) -> io::Result<()> {
    if !lease.dns.is_empty() {
        let lines: Vec<_> = lease
            .dns
            .iter()
            .map(|dns| format!("nameserver {dns}\n"))
            .collect();
        // Without it only names stop working, and the server's address is usually a number.
        let _ = std::fs::create_dir_all("/etc");
        if let Err(error) = std::fs::write("/etc/resolv.conf", lines.concat()) {
            log::debug!("/etc/resolv.conf: {error}");
        }
    }
    let to = resolve(server)?;
    drop(
        connect_through(port, to, PROBE).map_err(|error| match error.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EAGAIN) => io::Error::from(io::ErrorKind::TimedOut),
            _ => error,
        })?,
    );
    let mask = lease.mask.to_bits();
    let on_link = to.ip().to_bits() & mask == lease.address.to_bits() & mask;
    let route = Route {
        host: Some(*to.ip()),
        router: lease.router.filter(|_| !on_link),
        metric: 0,
    };
    add_route(port, route)
}

fn resolve(server: &str) -> io::Result<SocketAddrV4> {
    let found = server.to_socket_addrs()?.find_map(|address| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    });
    found.ok_or_else(|| io::Error::other(format!("{server} has no IPv4 address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_plain_http_is_80() {
        assert_eq!(host_and_port("http://10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(host_and_port("http://netboot.lab"), "netboot.lab:80");
    }

    #[test]
    fn the_first_server_found_stays_the_server() {
        let mut finder = Finder {
            server: None,
            ready: Vec::new(),
            preferred: None,
            current: None,
            complained: Instant::now(),
            said: None,
        };
        let server = |url: &str| Finding::Server {
            url: url.to_owned(),
            by: None,
        };
        finder.asked("eth0", Finding::Nobody);
        assert_eq!(finder.server, None);
        finder.asked("eth0", server("http://10.0.0.1:80"));
        finder.asked("eth1", server("http://10.0.0.2:80"));
        finder.asked("eth1", Finding::Nobody);
        assert_eq!(finder.server.as_deref(), Some("http://10.0.0.1:80"));
    }
}
