//! UDP between guests and the server's loopback ports, one socket for each guest port.
//!
//! The server answers a TFTP request from a new port of its own (RFC 1350 §4). The guest sees that port
//! on the gateway's address, and from then on may send to it: a guest never reaches a loopback port that
//! is neither mapped nor has spoken to it first. DHCP goes through `dhcp_relay` with one socket for all.

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::packet::Datagram;
use super::port_map::PortMap;
use super::switch::Mac;

/// A flow without a datagram for so long is forgotten; TFTP gives up sooner.
const IDLE: Duration = Duration::from_secs(60);
/// Flows at once, so that a guest cannot use up the host's sockets.
const MOST_FLOWS: usize = 512;

/// A datagram of the server for a guest.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) mac: Mac,
    pub(crate) guest: SocketAddrV4,
    /// Port of the gateway that it comes from.
    pub(crate) gateway_port: u16,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
struct Flow {
    socket: UdpSocket,
    mac: Mac,
    guest: SocketAddrV4,
    /// Loopback ports that have sent to this flow.
    opened_by_server: HashSet<u16>,
    last_used: Instant,
}

/// Every UDP flow of a link.
#[derive(Debug, Default)]
pub(crate) struct UdpFlows {
    flows: HashMap<Token, Flow>,
    tokens: HashMap<SocketAddrV4, Token>,
}

impl UdpFlows {
    /// Carries a guest's datagram; false when nothing is behind its port. `token` is used for a new flow.
    pub(crate) fn carry(
        &mut self,
        datagram: &Datagram<'_>,
        ports: &PortMap,
        token: Token,
        registry: &Registry,
    ) -> io::Result<bool> {
        let wanted = datagram.destination.port();
        let known = self
            .tokens
            .get(&datagram.source)
            .and_then(|token| self.flows.get_mut(token));
        let opened = known
            .as_ref()
            .is_some_and(|flow| flow.opened_by_server.contains(&wanted));
        let Some(port) = ports.udp(wanted).or(opened.then_some(wanted)) else {
            return Ok(false);
        };
        let flow = match known {
            Some(flow) => flow,
            None => self.open(datagram, token, registry)?,
        };
        flow.mac = datagram.source_mac;
        flow.last_used = Instant::now();
        match flow.socket.send_to(
            datagram.payload,
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        ) {
            // A datagram may be lost: a full queue, or the answer to an earlier one was "nobody there".
            Ok(_) => Ok(true),
            Err(error) if is_loss(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn open(
        &mut self,
        datagram: &Datagram<'_>,
        token: Token,
        registry: &Registry,
    ) -> io::Result<&mut Flow> {
        self.forget_idle(registry);
        if self.flows.len() >= MOST_FLOWS {
            return Err(io::Error::other(format!("{MOST_FLOWS} UDP flows at once")));
        }
        let mut socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        registry.register(&mut socket, token, Interest::READABLE)?;
        self.tokens.insert(datagram.source, token);
        Ok(self
            .flows
            .entry(token)
            .insert_entry(Flow {
                socket,
                mac: datagram.source_mac,
                guest: datagram.source,
                opened_by_server: HashSet::new(),
                last_used: Instant::now(),
            })
            .into_mut())
    }

    /// Everything the server has sent to a flow.
    pub(crate) fn replies(&mut self, token: Token, ports: &PortMap) -> Vec<Reply> {
        let Some(flow) = self.flows.get_mut(&token) else {
            return Vec::new();
        };
        let mut replies = Vec::new();
        let mut buffer = [0; 65536];
        loop {
            let (length, from) = match flow.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if is_refused(&error) => continue,
                Err(_) => return replies,
            };
            if !from.ip().is_loopback() {
                continue;
            }
            flow.opened_by_server.insert(from.port());
            flow.last_used = Instant::now();
            replies.push(Reply {
                mac: flow.mac,
                guest: flow.guest,
                gateway_port: ports.udp_as_seen_by_guests(from.port()),
                payload: buffer[..length].to_vec(),
            });
        }
    }

    fn forget_idle(&mut self, registry: &Registry) {
        let now = Instant::now();
        self.flows.retain(|_, flow| {
            let keep = now.duration_since(flow.last_used) < IDLE;
            if !keep {
                // A socket that is gone from the poll set needs no report.
                let _ = registry.deregister(&mut flow.socket);
            }
            keep
        });
        self.tokens
            .retain(|_, token| self.flows.contains_key(token));
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn is_loss(error: &io::Error) -> bool {
    is_refused(error) || error.kind() == io::ErrorKind::WouldBlock
}
