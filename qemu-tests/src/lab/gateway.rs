//! The far end of a virtual link: the host that guests see as "the server".
//!
//! ARP, ICMP and TCP are smoltcp's. For each SYN to a mapped port a listening socket is made, and the
//! bytes of the connection are carried to the server's loopback port: half-close, reset and
//! back-pressure go both ways, because a client's behaviour on them is under test. UDP is in `udp_flows`.
//! Invariant: a connection is accepted only after the server accepted it, so a guest sees a stopped
//! server as what it is: a reset.

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::frame_queue::FrameQueue;
use super::packet::Segment;
use super::port_map::PortMap;
use super::switch::Mac;

/// Window of each direction of a connection, bytes: enough to keep a guest busy for some milliseconds.
const BUFFER: usize = 512 << 10;
/// Connections at once, so that a guest cannot eat the host's memory.
const MOST_CONNECTIONS: usize = 256;
/// A loopback connection is made or refused at once; only a full backlog waits.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// How much faster smoltcp's clock runs here. Its shortest retransmission time is the 1 s of RFC 6298 §2.4,
/// which under packet loss makes minutes of seconds; that of Linux, whose part the gateway plays, is 200 ms.
const CLOCK_RATE: u32 = 5;
/// A guest that acknowledges nothing for so long has lost its power: two minutes on smoltcp's clock.
const SILENT_GUEST: smoltcp::time::Duration =
    smoltcp::time::Duration::from_secs(120 * CLOCK_RATE as u64);

/// Both ends of a guest's connection, as the guest names them.
type Ends = (SocketAddrV4, SocketAddrV4);

/// One TCP connection, carried between a smoltcp socket and a loopback socket.
#[derive(Debug)]
struct Connection {
    ends: Ends,
    first_sequence: i32,
    handle: SocketHandle,
    server: TcpStream,
    server_readable: bool,
    server_writable: bool,
    server_finished: bool,
    guest_finished: bool,
    closing: bool,
}

/// What became of a connection after a round of carrying.
enum Fate {
    Lives,
    /// Both sides closed in order.
    Over,
    /// One side broke off: the other is to see that too.
    Broken,
}

/// TCP, ARP and ICMP of the gateway.
pub(crate) struct Gateway {
    interface: Interface,
    sockets: SocketSet<'static>,
    frames: FrameQueue,
    connections: HashMap<Token, Connection>,
    tokens: HashMap<Ends, Token>,
    ports: PortMap,
    epoch: Instant,
}

impl Gateway {
    /// A gateway with one address on the guests' network.
    pub(crate) fn new(mac: Mac, address: Ipv4Addr, prefix: u8, ports: PortMap) -> Self {
        let epoch = Instant::now();
        let mut frames = FrameQueue::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = u64::from(std::process::id());
        let mut interface = Interface::new(config, &mut frames, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list has room for at least one address.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, prefix)));
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            frames,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            ports,
            epoch,
        }
    }

    /// Hands a frame to the IP stack.
    pub(crate) fn receive(&mut self, frame: Vec<u8>) {
        self.frames.received.push_back(frame);
    }

    /// Prepares for a segment that opens a connection; `token` is used when it is a new one.
    /// Without a server behind the port nothing is prepared, and smoltcp answers with a reset.
    pub(crate) fn prepare(&mut self, segment: &Segment, token: Token, registry: &Registry) {
        let ends = (segment.source, segment.destination);
        if let Some(&old) = self.tokens.get(&ends) {
            if self
                .connections
                .get(&old)
                .is_some_and(|c| c.first_sequence == segment.sequence)
            {
                return;
            }
            // The same ports with another beginning: the guest was switched off and on again.
            self.remove(old, true, registry);
        }
        if self.connections.len() >= MOST_CONNECTIONS {
            log::warn!(
                "link: {MOST_CONNECTIONS} connections, {} is refused",
                segment.source
            );
            return;
        }
        let Some(port) = self.ports.tcp(segment.destination.port()) else {
            return;
        };
        match self.open(segment, port, token, registry) {
            Ok(connection) => {
                self.tokens.insert(ends, token);
                self.connections.insert(token, connection);
            }
            Err(error) => log::debug!("link: {} to loopback port {port}: {error}", segment.source),
        }
    }

    fn open(
        &mut self,
        segment: &Segment,
        port: u16,
        token: Token,
        registry: &Registry,
    ) -> std::io::Result<Connection> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = std::net::TcpStream::connect_timeout(&server, CONNECT_TIMEOUT)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;

        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; BUFFER]),
            tcp::SocketBuffer::new(vec![0; BUFFER]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(SILENT_GUEST));
        // Port 0 cannot be listened on; it is not in any port map.
        socket
            .listen(segment.destination.port())
            .map_err(|error| std::io::Error::new(ErrorKind::InvalidInput, error.to_string()))?;
        Ok(Connection {
            ends: (segment.source, segment.destination),
            first_sequence: segment.sequence,
            handle: self.sockets.add(socket),
            server: stream,
            server_readable: true,
            server_writable: true,
            server_finished: false,
            guest_finished: false,
            closing: false,
        })
    }

    /// Notes what the operating system said about a connection's loopback socket.
    pub(crate) fn server_ready(&mut self, token: Token, readable: bool, writable: bool) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.server_readable |= readable;
            connection.server_writable |= writable;
        }
    }

    /// Runs the IP stack and carries bytes; true when something moved.
    pub(crate) fn run(&mut self, registry: &Registry) -> bool {
        let mut moved = !self.frames.received.is_empty();
        let now = self.now();
        self.interface
            .poll(now, &mut self.frames, &mut self.sockets);
        let mut ended = Vec::new();
        for (&token, connection) in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket>(connection.handle);
            let (carried, fate) = connection.carry(socket);
            moved |= carried;
            match fate {
                Fate::Lives => {}
                Fate::Over => ended.push((token, false)),
                Fate::Broken => ended.push((token, true)),
            }
        }
        if moved || !ended.is_empty() {
            let now = self.now();
            self.interface
                .poll(now, &mut self.frames, &mut self.sockets);
        }
        for (token, broken) in ended {
            self.remove(token, broken, registry);
        }
        moved
    }

    /// The next frame for the guests' wire.
    pub(crate) fn next_sent(&mut self) -> Option<Vec<u8>> {
        self.frames.sent.pop_front()
    }

    /// How long the IP stack can wait before [`Gateway::run`] has to be called again.
    pub(crate) fn idle_for(&mut self) -> Option<Duration> {
        let now = self.now();
        self.interface
            .poll_delay(now, &self.sockets)
            .map(|delay| Duration::from(delay) / CLOCK_RATE)
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros((self.epoch.elapsed() * CLOCK_RATE).as_micros() as i64)
    }

    fn remove(&mut self, token: Token, broken: bool, registry: &Registry) {
        let Some(mut connection) = self.connections.remove(&token) else {
            return;
        };
        self.tokens.remove(&connection.ends);
        self.sockets.remove(connection.handle);
        // A socket that is gone from the poll set needs no report.
        let _ = registry.deregister(&mut connection.server);
        if broken {
            // Closing with a zero linger time sends a reset instead of an orderly end.
            let _ = socket2::SockRef::from(&connection.server).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Connection {
    fn carry(&mut self, socket: &mut tcp::Socket<'_>) -> (bool, Fate) {
        let mut moved = false;
        match socket.state() {
            // Before the SYN was processed, and after a reset of a half-open connection.
            tcp::State::Listen => return (false, Fate::Broken),
            tcp::State::Closed if self.server_finished && self.guest_finished => {
                return (false, Fate::Over);
            }
            tcp::State::Closed => return (false, Fate::Broken),
            _ => {}
        }
        match self
            .carry_to_server(socket)
            .and_then(|to| Ok(to | self.carry_to_guest(socket)?))
        {
            Ok(carried) => moved |= carried,
            Err(error) => {
                log::debug!("link: loopback side of {} broke: {error}", self.ends.0);
                socket.abort();
                // The reset leaves with the poll that follows; then the socket is gone.
                return (true, Fate::Broken);
            }
        }
        (moved, Fate::Lives)
    }

    fn carry_to_server(&mut self, socket: &mut tcp::Socket<'_>) -> std::io::Result<bool> {
        let mut moved = false;
        while self.server_writable && socket.can_recv() {
            let mut outcome = Ok(0);
            let received = socket.recv(|bytes| {
                outcome = self.server.write(bytes);
                let taken = *outcome.as_ref().unwrap_or(&0);
                (taken, taken)
            });
            match outcome {
                Ok(_) if received.is_ok() => moved = true,
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.server_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let synchronized = !matches!(
            socket.state(),
            tcp::State::SynReceived | tcp::State::SynSent
        );
        if synchronized && !self.guest_finished && !socket.may_recv() {
            self.guest_finished = true;
            self.server.shutdown(Shutdown::Write)?;
            moved = true;
        }
        Ok(moved)
    }

    fn carry_to_guest(&mut self, socket: &mut tcp::Socket<'_>) -> std::io::Result<bool> {
        let mut moved = false;
        while self.server_readable && !self.server_finished && socket.can_send() {
            let mut outcome = Ok(0);
            let sent = socket.send(|room| {
                outcome = self.server.read(room);
                let filled = *outcome.as_ref().unwrap_or(&0);
                (filled, filled)
            });
            match outcome {
                Ok(_) if sent.is_err() => break,
                Ok(0) => {
                    self.server_finished = true;
                    moved = true;
                }
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.server_readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A FIN that shares a segment with data can be forgotten by smoltcp when that segment comes out of
        // order and its data is acknowledged without it. So it waits until all data is acknowledged.
        if self.server_finished && !self.closing && socket.send_queue() == 0 {
            self.closing = true;
            socket.close();
            moved = true;
        }
        Ok(moved)
    }
}
