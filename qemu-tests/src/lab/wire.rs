//! The thread behind a link: one poll loop over guest sockets, loopback sockets and timers.
//!
//! A single thread keeps the order of frames and makes seeded faults repeatable. Invariant: nothing here
//! blocks but the poll; a guest that does not read loses frames and stops nobody else. What frames mean is
//! not known here: `switch`, `gateway`, `udp_flows`, `dhcp_relay` and `fault` decide.

use mio::event::Event;
use mio::net::{UdpSocket, UnixListener};
use mio::{Events, Interest, Poll, Token};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use super::dhcp_relay::{self, Delivery};
use super::fault::{Faults, Lane};
use super::gateway::Gateway;
use super::guest_port::GuestPort;
use super::link::{Direction, LinkConfig, PortCounters};
use super::packet::{self, Content, Datagram};
use super::pcap::PcapWriter;
use super::switch::{Mac, PortId, Route, Switch};
use super::udp_flows::UdpFlows;

/// Token of the waker with which the handle announces commands.
pub(crate) const WAKE: Token = Token(0);
const RELAY: Token = Token(1);
const FIRST_DYNAMIC_TOKEN: usize = 2;
/// The gateway's place on the switch; guests follow.
const GATEWAY_PORT: PortId = PortId(0);
/// Locally administered, and unlike QEMU's 52:54:00 for guests.
const GATEWAY_MAC: Mac = [0x02, 0x77, 0, 0, 0, 0x01];
const BROADCAST_MAC: Mac = [0xff; 6];
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Kept of a long frame: the headers and the beginning of an HTTP request or answer.
const SNAPLEN: usize = 256;
/// Rounds of carrying before commands are looked at again.
const ROUNDS: usize = 64;
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// An order from the link's handle.
pub(crate) enum Command {
    AddPort {
        id: PortId,
        listener: UnixListener,
    },
    SetFaults {
        port: PortId,
        direction: Direction,
        faults: Faults,
    },
    Counters {
        port: PortId,
        answer: mpsc::Sender<PortCounters>,
    },
    Stop,
}

/// A port of the switch with its two lanes.
struct Lanes {
    from: Lane,
    to: Lane,
}

impl Lanes {
    fn new(seed: u64, port: PortId) -> Self {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(port.0 as u64 * 2);
        Self {
            from: Lane::new(seed),
            to: Lane::new(seed + 1),
        }
    }
}

/// Everything on one link.
pub(crate) struct Wire {
    config: LinkConfig,
    poll: Poll,
    commands: mpsc::Receiver<Command>,
    switch: Switch,
    lanes: Vec<Lanes>,
    guests: Vec<GuestPort>,
    owners: HashMap<Token, usize>,
    gateway: Gateway,
    flows: UdpFlows,
    relay: UdpSocket,
    pcap: Option<PcapWriter<BufWriter<File>>>,
    next_token: usize,
}

impl Wire {
    /// Opens the link's own sockets and its capture.
    pub(crate) fn new(
        config: LinkConfig,
        poll: Poll,
        commands: mpsc::Receiver<Command>,
    ) -> io::Result<Self> {
        let mut relay = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        poll.registry()
            .register(&mut relay, RELAY, Interest::READABLE)?;
        let pcap = match &config.pcap {
            Some(path) => Some(PcapWriter::new(
                BufWriter::new(File::create(path)?),
                SNAPLEN,
            )?),
            None => None,
        };
        let gateway = Gateway::new(
            GATEWAY_MAC,
            config.gateway,
            config.prefix,
            config.ports.clone(),
        );
        Ok(Self {
            poll,
            commands,
            switch: Switch::default(),
            lanes: vec![Lanes::new(config.seed, GATEWAY_PORT)],
            guests: Vec::new(),
            owners: HashMap::new(),
            gateway,
            flows: UdpFlows::default(),
            relay,
            pcap,
            next_token: FIRST_DYNAMIC_TOKEN,
            config,
        })
    }

    /// Runs until the handle says stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self.sleep_time();
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    log::error!("link: poll: {error}");
                    return;
                }
                _ => {}
            }
            let dynamic: Vec<(Token, bool, bool)> = events.iter().map(readiness).collect();
            for (token, readable, writable) in dynamic {
                self.note(token, readable, writable);
            }
            while let Ok(command) = self.commands.try_recv() {
                if self.obey(command).is_none() {
                    return;
                }
            }
            for _ in 0..ROUNDS {
                if !self.round() {
                    break;
                }
            }
            if timeout == LONGEST_SLEEP {
                self.flush_capture();
            }
        }
    }

    fn sleep_time(&mut self) -> Duration {
        let now = Instant::now();
        if self.guests.iter().any(GuestPort::has_work) {
            return Duration::ZERO;
        }
        let lanes = self
            .lanes
            .iter()
            .flat_map(|lanes| [lanes.from.next_due(), lanes.to.next_due()]);
        let next_frame = lanes
            .flatten()
            .min()
            .map(|due| due.saturating_duration_since(now));
        let gateway = self.gateway.idle_for();
        [next_frame, gateway, Some(LONGEST_SLEEP)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(LONGEST_SLEEP)
    }

    fn note(&mut self, token: Token, readable: bool, writable: bool) {
        if token == WAKE {
            return;
        }
        if token == RELAY {
            self.carry_dhcp_replies();
            return;
        }
        if let Some(&index) = self.owners.get(&token) {
            let fresh = Token(self.next_token);
            let registry = self.poll.registry();
            match self.guests[index].note(token, (readable, writable), fresh, registry) {
                Ok(true) => {
                    self.owners.insert(fresh, index);
                    self.next_token += 1;
                }
                Ok(false) => {}
                Err(error) => log::warn!("link: port {}: {error}", index + 1),
            }
            return;
        }
        self.gateway.server_ready(token, readable, writable);
        if readable {
            for reply in self.flows.replies(token, &self.config.ports) {
                let from = SocketAddrV4::new(self.config.gateway, reply.gateway_port);
                let frame = packet::udp_frame(
                    (GATEWAY_MAC, reply.mac),
                    (from, reply.guest),
                    &reply.payload,
                );
                self.send_from_gateway(frame);
            }
        }
    }

    /// `None` when the link is to go down.
    fn obey(&mut self, command: Command) -> Option<()> {
        match command {
            Command::Stop => {
                self.flush_capture();
                return None;
            }
            Command::AddPort { id, listener } => {
                let token = Token(self.next_token);
                self.next_token += 1;
                match GuestPort::new(listener, token, self.poll.registry()) {
                    Ok(port) => {
                        self.owners.insert(token, self.guests.len());
                        self.guests.push(port);
                        self.lanes.push(Lanes::new(self.config.seed, id));
                    }
                    Err(error) => log::error!("link: port {}: {error}", id.0),
                }
            }
            Command::SetFaults {
                port,
                direction,
                faults,
            } => {
                if let Some(lanes) = self.lanes.get_mut(port.0) {
                    match direction {
                        Direction::FromGuest => lanes.from.set_faults(faults),
                        Direction::ToGuest => lanes.to.set_faults(faults),
                    }
                }
            }
            Command::Counters { port, answer } => {
                if let (Some(lanes), Some(guest)) =
                    (self.lanes.get(port.0), self.guests.get(port.0 - 1))
                {
                    let mut counters = guest.counters();
                    counters.dropped += lanes.from.dropped() + lanes.to.dropped();
                    // Who asked may have gone away.
                    let _ = answer.send(counters);
                }
            }
        }
        Some(())
    }

    /// One turn of everything; true when there may be more to do at once.
    fn round(&mut self) -> bool {
        let mut moved = false;
        for index in 0..self.guests.len() {
            let now = Instant::now();
            let frames = self.guests[index].read(self.poll.registry());
            moved |= !frames.is_empty();
            for frame in frames {
                self.lanes[index + 1].from.push(now, frame);
            }
        }
        moved |= self.gateway.run(self.poll.registry());
        while let Some(frame) = self.gateway.next_sent() {
            self.send_from_gateway(frame);
        }
        self.deliver_due();
        for guest in &mut self.guests {
            moved |= guest.write(self.poll.registry());
        }
        moved
    }

    fn send_from_gateway(&mut self, frame: Vec<u8>) {
        self.lanes[GATEWAY_PORT.0].from.push(Instant::now(), frame);
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        for index in 0..self.lanes.len() {
            while let Some(frame) = self.lanes[index].from.pop_due(now) {
                self.switch_frame(PortId(index), frame, now);
            }
        }
        for index in 0..self.lanes.len() {
            while let Some(frame) = self.lanes[index].to.pop_due(now) {
                match index.checked_sub(1) {
                    Some(guest) => self.guests[guest].queue(&frame),
                    None => self.receive_at_gateway(frame),
                }
            }
        }
    }

    fn switch_frame(&mut self, from: PortId, frame: Vec<u8>, now: Instant) {
        if let Some(pcap) = &mut self.pcap
            && let Err(error) = pcap.record(SystemTime::now(), &frame)
        {
            log::warn!("link: the capture ends here: {error}");
            self.pcap = None;
        }
        match self.switch.route(from, &frame) {
            Route::Drop => {}
            Route::Port(port) => self.lanes[port.0].to.push(now, frame),
            Route::Flood => {
                for index in (0..self.lanes.len()).filter(|&index| index != from.0) {
                    self.lanes[index].to.push(now, frame.clone());
                }
            }
        }
    }

    fn receive_at_gateway(&mut self, frame: Vec<u8>) {
        match packet::classify(&frame) {
            Content::Arp => self.gateway.receive(frame),
            Content::Tcp(segment) => {
                if segment.destination.ip() != &self.config.gateway {
                    return;
                }
                if segment.opens {
                    let token = Token(self.next_token);
                    self.next_token += 1;
                    self.gateway.prepare(&segment, token, self.poll.registry());
                }
                self.gateway.receive(frame);
            }
            Content::Udp(datagram) if datagram.destination.port() == DHCP_SERVER => {
                let request = datagram.payload.to_vec();
                self.relay_to_server(&request);
            }
            Content::Udp(datagram) if datagram.destination.ip() == &self.config.gateway => {
                if !self.carry_datagram(&datagram) {
                    // smoltcp answers "port unreachable".
                    self.gateway.receive(frame);
                }
            }
            Content::OtherIpv4(destination) if destination == self.config.gateway => {
                self.gateway.receive(frame)
            }
            Content::RouterSolicitation if self.config.answers_router_solicitations => {
                self.send_from_gateway(packet::no_router_advertisement(GATEWAY_MAC));
            }
            Content::Udp(_)
            | Content::OtherIpv4(_)
            | Content::RouterSolicitation
            | Content::Noise => {}
        }
    }

    fn carry_datagram(&mut self, datagram: &Datagram<'_>) -> bool {
        let token = Token(self.next_token);
        self.next_token += 1;
        match self
            .flows
            .carry(datagram, &self.config.ports, token, self.poll.registry())
        {
            Ok(carried) => carried,
            Err(error) => {
                log::warn!("link: UDP from {}: {error}", datagram.source);
                true
            }
        }
    }

    fn relay_to_server(&mut self, request: &[u8]) {
        let Some(port) = self.config.dhcp else {
            return;
        };
        match dhcp_relay::to_server(request, Ipv4Addr::LOCALHOST, self.config.network) {
            Ok(relayed) => {
                let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                if let Err(error) = self.relay.send_to(&relayed, server) {
                    log::debug!("link: DHCP request to loopback port {port}: {error}");
                }
            }
            Err(error) => log::warn!("link: DHCP request not relayed: {error}"),
        }
    }

    fn carry_dhcp_replies(&mut self) {
        let mut buffer = [0; 2048];
        loop {
            let length = match self.relay.recv_from(&mut buffer) {
                Ok((length, _)) => length,
                // The answer to an earlier request: nobody listens there now.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return,
            };
            match dhcp_relay::to_guest(&buffer[..length], self.config.gateway) {
                Ok((reply, delivery)) => {
                    let (mac, address) = match delivery {
                        Delivery::Broadcast => (BROADCAST_MAC, Ipv4Addr::BROADCAST),
                        Delivery::Unicast { mac, address } => (mac, address),
                    };
                    let from = SocketAddrV4::new(self.config.gateway, DHCP_SERVER);
                    let to = SocketAddrV4::new(address, DHCP_CLIENT);
                    self.send_from_gateway(packet::udp_frame(
                        (GATEWAY_MAC, mac),
                        (from, to),
                        &reply,
                    ));
                }
                Err(error) => log::warn!("link: DHCP reply not relayed: {error}"),
            }
        }
    }

    fn flush_capture(&mut self) {
        if let Some(pcap) = &mut self.pcap
            && let Err(error) = pcap.flush()
        {
            log::warn!("link: the capture ends here: {error}");
            self.pcap = None;
        }
    }
}

fn readiness(event: &Event) -> (Token, bool, bool) {
    let closed = event.is_read_closed() || event.is_error();
    (
        event.token(),
        event.is_readable() || closed,
        event.is_writable() || event.is_error(),
    )
}
