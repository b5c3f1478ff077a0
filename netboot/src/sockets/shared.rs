//! DHCP sockets that share: they hear UDP packets as frames, whoever has the port, so that the proxy works
//! beside a DHCP server on the same machine and a search needs no port at all.
//!
//! Invariant: nothing is taken away from another program: no port is bound that belongs to a DHCP
//! server or client.
//!
//! Not here: what is said on them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv};
use protocol::dhcp::{CLIENT_PORT, MacAddress, SERVER_PORT};
use smol::Async;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{DhcpSocket, FrameSocket, Interface, OpenError, not_allowed, system, udp};
use crate::{
    dhcp::{
        exchange::{Destination, Reply},
        proxy::BOOT_SERVER_PORT,
    },
    frames,
    port_owner::{Transport, port_owner},
};

/// Where every card listens.
const ALL_CARDS: MacAddress = MacAddress::new([0xff; 6]);

/// One door of the proxy on one link.
pub(crate) struct ProxySocket {
    ear: Ear,
    name: String,
}

enum Ear {
    /// The servers' port, overheard.
    Shared(SharedPort),
    /// A port of our own.
    Own(DhcpSocket),
}

struct SharedPort {
    heard: PacketListener,
    frames: FrameSocket,
    packets: PacketSender,
}

impl ProxySocket {
    /// The DHCP servers' port on an interface. A port other than theirs, or an interface without
    /// Ethernet, is bound as usual.
    pub(crate) fn servers_port(interface: &Interface, port: u16) -> Result<Self, OpenError> {
        let name = interface.name.clone();
        let frames = FrameSocket::open(interface)?;
        let ear = match frames.filter(|_| interface.is_ethernet()) {
            Some(frames) => Ear::Shared(SharedPort {
                heard: PacketListener::open(frames.link, port, Frames::Incoming)?,
                packets: PacketSender::open(interface)?,
                frames,
            }),
            None => Ear::Own(DhcpSocket::on_interface(interface, port)?),
        };
        Ok(Self { ear, name })
    }

    /// The boot servers' port on an interface.
    pub(crate) fn boot_servers_port(interface: &Interface) -> Result<Self, OpenError> {
        let socket = DhcpSocket::on_interface(interface, BOOT_SERVER_PORT)?;
        Ok(Self {
            ear: Ear::Own(socket),
            name: interface.name.clone(),
        })
    }

    /// On one address, the lab's way: everything goes back to where it came from or to a relay.
    pub(crate) fn on_address(address: Ipv4Addr, port: u16) -> Result<Self, OpenError> {
        Ok(Self {
            ear: Ear::Own(DhcpSocket::on_address(address, port)?),
            name: address.to_string(),
        })
    }

    /// What people call its link.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The port it hears.
    pub(crate) fn port(&self) -> u16 {
        match &self.ear {
            Ear::Shared(shared) => shared.heard.port,
            Ear::Own(socket) => socket.port(),
        }
    }

    /// Waits for a message; `None` when what came was none.
    pub(crate) async fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
    ) -> io::Result<Option<(SocketAddrV4, &'a [u8])>> {
        match &self.ear {
            Ear::Shared(shared) => shared.heard.receive(buffer).await,
            Ear::Own(socket) => {
                let (len, source) = socket.receive(buffer).await?;
                let SocketAddr::V4(source) = source else {
                    return Ok(None);
                };
                Ok(Some((source, &buffer[..len])))
            }
        }
    }

    /// Sends a reply to a request that came from `source`.
    pub(crate) async fn send(&self, reply: &Reply, source: SocketAddrV4) -> io::Result<()> {
        let shared = match &self.ear {
            Ear::Own(socket) => return socket.send(reply, source).await,
            Ear::Shared(shared) => shared,
        };
        let from = SocketAddrV4::new(reply.from, shared.heard.port);
        let to_frame = |mac, ip| {
            let to = SocketAddrV4::new(ip, CLIENT_PORT);
            let own = shared.frames.mac;
            let frame = frames::udp_frame(own, mac, from, to, &reply.bytes);
            shared.frames.send(&frame)
        };
        match reply.destination {
            Destination::Broadcast => to_frame(ALL_CARDS, Ipv4Addr::BROADCAST),
            Destination::UnicastHardware { mac, ip } => to_frame(mac, ip),
            Destination::Relay(to) | Destination::UnicastAddress(to) => {
                shared.packets.send(from, to, &reply.bytes)
            }
        }
    }

    /// Tells one machine on the link that there is no IPv6 router, which ends iPXE's wait for one.
    pub(crate) fn end_router_wait(&self, client: MacAddress) -> io::Result<()> {
        match &self.ear {
            Ear::Own(socket) => socket.end_router_wait(client),
            Ear::Shared(SharedPort { frames, .. }) => {
                frames.send(&frames::router_advertisement(frames.mac, client))
            }
        }
    }
}

/// Sends UDP packets from a port that another program may have, by way of the kernel's routes and ARP.
struct PacketSender {
    socket: Socket,
}

impl PacketSender {
    fn open(interface: &Interface) -> Result<Self, OpenError> {
        let open = || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
            // It would get a copy of every UDP packet of this machine.
            socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
            socket.set_header_included_v4(true)?;
            socket.set_nonblocking(true)?;
            socket.bind_device(Some(interface.name.as_bytes()))?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error: io::Error| not_allowed(error, "a raw socket", "CAP_NET_RAW"))?;
        Ok(Self { socket })
    }

    fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let packet = frames::udp_packet(from, to, payload);
        self.socket
            .send_to(&packet, &SocketAddr::V4(to).into())
            .map(drop)
    }
}

/// Sockets that ask for DHCP servers on a link and hear every answer, also one to a card that is not
/// there: whole frames, so no port has to be free.
pub(crate) struct DhcpProbe {
    heard: PacketListener,
    frames: FrameSocket,
    /// Reaches a DHCP server on this machine, which our frames do not pass by. It is there only if
    /// some program that is not netboot has the servers' port.
    local: Option<UdpSocket>,
    netboot_serves: bool,
}

impl DhcpProbe {
    /// `None` for interfaces without Ethernet addresses.
    pub(crate) fn open(interface: &Interface) -> Result<Option<Self>, OpenError> {
        let frames = FrameSocket::open(interface)?;
        let Some(frames) = frames.filter(|_| interface.is_ethernet()) else {
            return Ok(None);
        };
        let owner = port_owner(Transport::Udp, SERVER_PORT);
        let netboot_serves = owner
            .as_ref()
            .is_some_and(|owner| owner.starts_with("netboot "));
        let local = if owner.is_none() || netboot_serves {
            None
        } else {
            let socket = udp()?;
            socket
                .set_broadcast(true)
                .and_then(|()| socket.bind_device(Some(interface.name.as_bytes())))
                .map_err(|error| system("a UDP socket", error))?;
            Some(UdpSocket::from(socket))
        };
        Ok(Some(Self {
            heard: PacketListener::open(frames.link, CLIENT_PORT, Frames::All)?,
            frames,
            local,
            netboot_serves,
        }))
    }

    /// Whether the DHCP server of this machine is netboot: its answers are no other server's.
    pub(crate) fn netboot_serves(&self) -> bool {
        self.netboot_serves
    }

    /// Our card.
    pub(crate) fn mac(&self) -> MacAddress {
        self.frames.mac
    }

    /// Broadcasts a message to servers. A lost one is like one lost on the wire.
    pub(crate) fn send(&self, message: &[u8]) {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        let frame = frames::udp_frame(self.frames.mac, ALL_CARDS, from, to, message);
        if let Err(error) = self.frames.send(&frame) {
            log::debug!("a DHCP question cannot be sent: {error}");
        }
        if let Some(local) = &self.local
            && let Err(error) = local.send_to(message, to)
        {
            log::debug!("a DHCP question to this machine cannot be sent: {error}");
        }
    }

    /// Waits for a message to clients; `None` when a frame was none.
    pub(crate) async fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
    ) -> io::Result<Option<(SocketAddrV4, &'a [u8])>> {
        self.heard.receive(buffer).await
    }
}

/// A socket that hears the UDP packets to one port on one link, whoever has the port and whomever they
/// are for. It takes nothing away from anybody.
struct PacketListener {
    socket: Async<Socket>,
    port: u16,
}

/// A socket that hears the ARP packets that come in on one link.
pub(super) struct ArpListener(Async<Socket>);

impl ArpListener {
    pub(super) fn open(link: LinkAddr) -> Result<Self, OpenError> {
        // ETH_P_ARP of linux/if_ether.h; with a protocol, what this machine sends is not heard (packet(7)).
        let protocol = Protocol::from(i32::from(0x0806_u16.to_be()));
        let open = || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            bind(socket.as_raw_fd(), &link)?;
            Async::new(socket)
        };
        open()
            .map(Self)
            .map_err(|error: io::Error| not_allowed(error, "a packet socket", "CAP_NET_RAW"))
    }

    /// Waits for a packet; `None` when nobody said in it to have an address.
    pub(super) async fn hear_holder(&self) -> io::Result<Option<(Ipv4Addr, MacAddress)>> {
        // An ARP packet of Ethernet and IPv4 is 42 bytes with its frame; padding may follow.
        let mut buffer = [0; 128];
        let len = self
            .0
            .read_with(|socket| Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?))
            .await?;
        Ok(frames::address_holder(&buffer[..len]))
    }
}

/// Whose frames a [`PacketListener`] hears (packet(7), linux/if_ether.h).
#[derive(Debug, Clone, Copy)]
enum Frames {
    /// Those that come in: `ETH_P_IP`.
    Incoming = 0x0800,
    /// Also those that this machine sends: `ETH_P_ALL`. What a program here broadcasts is shown to packet
    /// sockets on its way out only.
    All = 0x0003,
}

impl PacketListener {
    fn open(link: LinkAddr, port: u16, frames: Frames) -> Result<Self, OpenError> {
        let protocol = Protocol::from(i32::from((frames as u16).to_be()));
        let open = || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            socket.attach_filter(&udp_port_filter(port))?;
            bind(socket.as_raw_fd(), &link)?;
            Async::new(socket)
        };
        let socket = open()
            .map_err(|error: io::Error| not_allowed(error, "a packet socket", "CAP_NET_RAW"))?;
        Ok(Self { socket, port })
    }

    /// Waits for a packet; `None` when the frame was not what the filter should let through.
    async fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
    ) -> io::Result<Option<(SocketAddrV4, &'a [u8])>> {
        let len = self
            .socket
            .read_with(|socket| Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?))
            .await?;
        Ok(frames::udp_payload(&buffer[..len])
            .filter(|(_, to, _)| to.port() == self.port)
            .map(|(from, _, payload)| (from, payload)))
    }
}

/// The kernel's filter (bpf(4)) for unfragmented UDP in IPv4 in Ethernet to a port: without it every
/// packet of a restore would wake us up.
fn udp_port_filter(port: u16) -> [SockFilter; 11] {
    let step = SockFilter::new;
    [
        step(0x28, 0, 0, 12),              // load half word: the frame's type
        step(0x15, 0, 7, 0x0800),          // IPv4, or to the end
        step(0x30, 0, 0, 23),              // load byte: the protocol
        step(0x15, 0, 5, 17),              // UDP, or to the end
        step(0x28, 0, 0, 20),              // load half word: flags and fragment offset
        step(0x45, 3, 0, 0x1fff),          // a later fragment: to the end
        step(0xb1, 0, 0, 14),              // index = length of the IP header
        step(0x48, 0, 0, 16),              // load half word behind it: the addressee's port
        step(0x15, 1, 0, u32::from(port)), // ours: over the end
        step(0x06, 0, 0, 0),               // the end: drop
        step(0x06, 0, 0, 0x4_0000),        // take it whole
    ]
}
