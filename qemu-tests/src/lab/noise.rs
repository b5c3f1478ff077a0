//! Random frames at a server: what real firmware sent, with bytes changed, cut off, repeated and out of
//! order, and plain rubbish.
//!
//! A namespace of its own is plugged into the bridge. UDP comes as whole frames through a packet socket,
//! with right checksums, so that the server and not the kernel has to read them; HTTP comes over
//! connections, since without one the kernel drops it. Everything follows from a seed.
//!
//! Invariant: no frame pretends to be a machine of the lab (their cards begin otherwise), so that the
//! server has no right to treat those worse.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use protocol::dhcp::{CLIENT_PORT, SERVER_PORT};
use std::os::fd::AsRawFd;

use super::namespace::{
    BRIDGE_ADDRESS, BRIDGE_MAC, Bridge, CLIENT_INTERFACE, Namespace, NamespaceError,
};
use super::packet::{Content, classify, udp_frame};

/// Boots that were recorded from real firmware.
const RECORDINGS: [&[u8]; 4] = [
    include_bytes!("../../../netboot/tests/fixtures/bios-undionly-chain.pcap"),
    include_bytes!("../../../netboot/tests/fixtures/uefi-ovmf-snponly.pcap"),
    include_bytes!("../../../netboot/tests/fixtures/proxy-v2-ovmf.pcap"),
    include_bytes!("../../../netboot/tests/fixtures/uefi-http-boot-ipxe.pcap"),
];
const REQUEST: &str = "GET /boot/vmlinuz?mac=52:54:00:12:34:56 HTTP/1.1\r\nHost: 10.78.0.1\r\n\
                       Range: bytes=0-99\r\nConnection: keep-alive\r\n\r\n";
/// Its own address, for HTTP.
const OWN_ADDRESS: &str = "10.78.0.250/24";
/// Frames at a time, and the pause after them.
const BURST: u32 = 16;
const PAUSE: Duration = Duration::from_millis(8);
/// HTTP connections that are left open.
const LEFT_OPEN: usize = 24;
const TFTP_PORT: u16 = 69;
const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// The noise. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Noise {
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    _namespace: Namespace,
}

impl Noise {
    /// Begins to send at the server of the bridge.
    pub(crate) fn start(bridge: &mut Bridge, seed: u64) -> Result<Self, NamespaceError> {
        let namespace = Namespace::create()?;
        bridge.connect(&namespace)?;
        namespace.ip(&[
            "addr",
            "add",
            OWN_ADDRESS,
            "brd",
            "+",
            "dev",
            CLIENT_INTERFACE,
        ])?;
        let stop = Arc::new(AtomicBool::new(false));
        let (frames, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let threads = namespace.place().inside(|| {
            let mut sender = Sender {
                socket: open()?,
                random: Random(seed),
                templates: templates(),
                held: Vec::new(),
            };
            // Threads are of the namespace of the thread that starts them.
            let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
                std::thread::Builder::new()
                    .name(name.to_owned())
                    .spawn(work)
            };
            let (ended, count) = (Arc::clone(&stop), Arc::clone(&frames));
            let frames = start(
                "frames",
                Box::new(move || {
                    while !ended.load(Ordering::Relaxed) {
                        count.fetch_add(u64::from(sender.burst()), Ordering::Relaxed);
                        std::thread::sleep(PAUSE);
                    }
                }),
            )?;
            let (ended, count) = (Arc::clone(&stop), Arc::clone(&requests));
            let mut random = Random(seed ^ 1);
            let requests = start(
                "requests",
                Box::new(move || {
                    let mut open = Vec::new();
                    while !ended.load(Ordering::Relaxed) {
                        // A server that refuses a connection is judged by the control client.
                        if request(&mut random, &mut open).is_ok() {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        std::thread::sleep(PAUSE);
                    }
                }),
            )?;
            Ok(vec![frames, requests])
        })?;
        Ok(Self {
            stop,
            frames,
            requests,
            threads,
            _namespace: namespace,
        })
    }

    /// Frames and HTTP connections so far.
    pub(crate) fn sent(&self) -> (u64, u64) {
        (
            self.frames.load(Ordering::Relaxed),
            self.requests.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// Numbers that look random and follow from a seed (xorshift64*, Vigna 2016).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Zero would stay zero.
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below a limit, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Changes some bytes, cuts or lengthens.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(8) {
            if !bytes.is_empty() {
                let at = self.below(bytes.len());
                bytes[at] = self.next() as u8;
            }
        }
        if self.one_in(4) {
            bytes.truncate(self.below(bytes.len() + 1));
        }
        if self.one_in(8) {
            let more = self.below(200);
            bytes.extend((0..more).map(|_| self.next() as u8));
        }
    }
}

struct Sender {
    socket: socket2::Socket,
    random: Random,
    /// Ports and payloads of recorded datagrams to a server.
    templates: Vec<(u16, Vec<u8>)>,
    /// Frames that come later than they should.
    held: Vec<Vec<u8>>,
}

impl Sender {
    fn burst(&mut self) -> u32 {
        for _ in 0..BURST {
            let frame = self.frame();
            match self.random.below(8) {
                0 => self.held.push(frame),
                1 => {
                    self.send(&frame);
                    self.send(&frame);
                }
                _ => self.send(&frame),
            }
            if self.held.len() > 32 {
                let late = self.random.below(self.held.len());
                let frame = self.held.swap_remove(late);
                self.send(&frame);
            }
        }
        BURST
    }

    fn send(&self, frame: &[u8]) {
        // A full queue or a frame that the card refuses is lost, as on any link.
        let _ = self.socket.send(frame);
    }

    fn frame(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        if random.one_in(10) {
            // Rubbish, now and then with an Ethernet header that leads to the server.
            let len = 14 + random.below(1400);
            let mut frame: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            frame[..6].copy_from_slice(&BROADCAST_MAC);
            frame[6..12].copy_from_slice(&card(random));
            return frame;
        }
        let which = random.below(self.templates.len());
        let (mut port, mut payload) = self.templates[which].clone();
        let card = card(random);
        if port == SERVER_PORT && payload.len() > 34 {
            payload[28..34].copy_from_slice(&card);
            // Message types that the recordings lack: DECLINE, RELEASE, INFORM.
            if random.one_in(3)
                && let Some(kind) = payload.get_mut(242)
            {
                *kind = 1 + random.below(9) as u8;
            }
        }
        if !random.one_in(6) {
            random.spoil(&mut payload);
        }
        // A packet of a transfer goes to the transfer's port, which nobody here knows.
        if port != SERVER_PORT && payload.get(1).is_some_and(|opcode| *opcode > 2) {
            port = 32768 + random.below(28232) as u16;
        }
        let source = match random.below(3) {
            0 if port == SERVER_PORT => Ipv4Addr::UNSPECIFIED,
            1 => Ipv4Addr::from(random.next() as u32),
            _ => Ipv4Addr::new(10, 78, 0, 240 + random.below(15) as u8),
        };
        let from = if port == SERVER_PORT {
            CLIENT_PORT
        } else {
            1024 + random.below(60000) as u16
        };
        let (mac, to) = if port == SERVER_PORT && random.one_in(2) {
            (BROADCAST_MAC, Ipv4Addr::BROADCAST)
        } else {
            (server_mac(), BRIDGE_ADDRESS)
        };
        let ends = (SocketAddrV4::new(source, from), SocketAddrV4::new(to, port));
        let mut frame = udp_frame((card, mac), ends, &payload);
        // Some are broken below UDP, too.
        if random.one_in(16) {
            random.spoil(&mut frame);
        }
        frame
    }
}

/// One of 24 cards that no machine of the lab has.
fn card(random: &mut Random) -> [u8; 6] {
    [0x02, 0x99, 0, 0, 0, random.below(24) as u8]
}

fn server_mac() -> [u8; 6] {
    BRIDGE_MAC
        .parse()
        .map_or(BROADCAST_MAC, protocol::dhcp::MacAddress::bytes)
}

/// Opens a packet socket that sends on the namespace's interface (packet(7)).
fn open() -> io::Result<socket2::Socket> {
    let of_interface = |address: nix::ifaddrs::InterfaceAddress| -> Option<LinkAddr> {
        (address.interface_name == CLIENT_INTERFACE).then_some(())?;
        address.address?.as_link_addr().copied()
    };
    let interface = nix::ifaddrs::getifaddrs()?.find_map(of_interface);
    let interface = interface.ok_or(io::ErrorKind::NotFound)?;
    let family = AddressFamily::Packet;
    let socket = socket(
        family,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    bind(socket.as_raw_fd(), &interface)?;
    Ok(socket2::Socket::from(socket))
}

/// The datagrams of all recordings that went to a server, and its answers, which nobody should send it.
fn templates() -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    for recording in RECORDINGS {
        let mut rest = recording.get(24..).unwrap_or_default();
        while let Some((head, after)) = rest.split_at_checked(16) {
            let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
            let Some((frame, next)) = after.split_at_checked(len) else {
                break;
            };
            if let Content::Udp(datagram) = classify(frame) {
                let dhcp = [datagram.source.port(), datagram.destination.port()]
                    .iter()
                    .any(|port| (SERVER_PORT..=CLIENT_PORT).contains(port));
                let port = if dhcp { SERVER_PORT } else { TFTP_PORT };
                found.push((port, datagram.payload.to_vec()));
            }
            rest = next;
        }
    }
    found
}

/// One HTTP connection that goes wrong in one of many ways.
fn request(random: &mut Random, open: &mut Vec<TcpStream>) -> io::Result<()> {
    let server = SocketAddr::from((BRIDGE_ADDRESS, 80));
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    stream.set_write_timeout(Some(Duration::from_millis(50)))?;
    let mut text = REQUEST.as_bytes().to_vec();
    if !random.one_in(6) {
        random.spoil(&mut text);
    }
    stream.write_all(&text)?;
    match random.below(4) {
        0 => stream.shutdown(Shutdown::Write)?,
        1 => {
            open.push(stream);
            if open.len() > LEFT_OPEN {
                open.swap_remove(random.below(open.len()));
            }
            return Ok(());
        }
        // The connection is reset: data was not read.
        2 => return Ok(()),
        _ => {}
    }
    let mut answer = [0; 4096];
    let _ = stream.read(&mut answer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recordings_have_both_protocols() {
        let templates = templates();
        for port in [SERVER_PORT, TFTP_PORT] {
            let count = templates.iter().filter(|(of, _)| *of == port).count();
            assert!(count > 4, "{count} datagrams to port {port}");
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_noise() {
        let numbers = |seed| {
            let mut random = Random(seed);
            let mut bytes = b"0123456789".repeat(9);
            random.spoil(&mut bytes);
            (random.next(), bytes)
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
