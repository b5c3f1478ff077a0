//! The one file that opens the server's sockets.
//!
//! Invariants: every socket of the server is made here and in `shared`; a DHCP socket hears one interface only; a
//! client without an address is reached by a frame of ours, never by an ARP entry.
//!
//! Not here: what is said on them.

mod shared;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, getsockopt, sendto, setsockopt, socket,
    sockopt,
};
use protocol::dhcp::{CLIENT_PORT, MacAddress, SERVER_PORT};
use smol::Async;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    dhcp::{
        exchange::{Destination, Reply},
        proxy::BOOT_SERVER_PORT,
    },
    frames,
    port_owner::{Transport, port_owner},
};

pub(crate) use shared::{DhcpProbe, ProxySocket};

/// Connections that may wait to be accepted: a room of machines at once.
const BACKLOG: i32 = 1024;
/// Bytes of requests that may wait. The kernel counts a message's book-keeping, too, some 1.3 KB for one
/// of DHCP: this is a second and a half of 5,000 exchanges a second.
const DHCP_RECEIVE_BUFFER: usize = 16 << 20;

/// Why a socket cannot be opened. Nothing is served then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Another program has the port.
    #[error(
        "{} port {port} on {address} is taken{}: stop it, {}",
        .transport.name(),
        .owner.as_ref().map_or(" by another program".to_owned(), |owner| format!(" by {owner}")),
        instead_of_stopping(*.transport, *.port)
    )]
    PortTaken {
        /// UDP or TCP.
        transport: Transport,
        /// The address.
        address: Ipv4Addr,
        /// The port.
        port: u16,
        /// The program, if it could be seen.
        owner: Option<String>,
    },
    /// We may not.
    #[error("no right to open {what}: start netboot as root, or give it {capability}")]
    NoRights {
        /// The port or interface.
        what: String,
        /// What Linux asks for.
        capability: &'static str,
    },
    /// The address is on no interface.
    #[error(
        "the address {address} is on no interface of this machine: choose one that is, or set it up first"
    )]
    NoSuchAddress {
        /// The address.
        address: Ipv4Addr,
    },
    /// No interface of that name.
    #[error("there is no network interface {name}; this machine has {known}")]
    NoSuchInterface {
        /// The name asked for.
        name: String,
        /// Those that are there.
        known: String,
    },
    /// The interface has no address.
    #[error("the network interface {name} has no IPv4 address: give it one first")]
    NoAddress {
        /// The interface.
        name: String,
    },
    /// A second server on the same data directory.
    #[error("another netboot serves from this data directory: it answers on {}", .0.display())]
    AlreadyServing(PathBuf),
    /// Anything else.
    #[error("{what} cannot be opened")]
    System {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// What to do about a taken port, beside stopping its owner.
fn instead_of_stopping(transport: Transport, port: u16) -> &'static str {
    match (transport, port) {
        (Transport::Udp, SERVER_PORT) => {
            "or let netboot work beside that DHCP server with --mode proxy"
        }
        (Transport::Udp, BOOT_SERVER_PORT) => {
            "it is another boot server, or let netboot leave DHCP to it with --mode off"
        }
        _ => "or choose another port in the configuration",
    }
}

/// A network interface.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its IPv4 addresses with their networks.
    pub(crate) addresses: Vec<Ipv4Net>,
    link: Option<LinkAddr>,
}

impl Interface {
    /// Whether it has a card's address, so that frames can be sent and other machines be on it.
    pub(crate) fn is_ethernet(&self) -> bool {
        let mac = self.link.as_ref().and_then(LinkAddr::addr);
        mac.is_some_and(|mac| MacAddress::new(mac).is_unicast())
    }
}

/// The interfaces of this machine.
pub(crate) fn interfaces() -> Result<Vec<Interface>, OpenError> {
    let list = nix::ifaddrs::getifaddrs()
        .map_err(|error| system("the list of network interfaces", error.into()))?;
    let mut interfaces: Vec<Interface> = Vec::new();
    for entry in list {
        let at = interfaces
            .iter()
            .position(|known| known.name == entry.interface_name);
        let at = at.unwrap_or_else(|| {
            let name = entry.interface_name.clone();
            interfaces.push(Interface {
                name,
                addresses: Vec::new(),
                link: None,
            });
            interfaces.len() - 1
        });
        let interface = &mut interfaces[at];
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            interface.link = Some(*link);
        }
        let mask = entry
            .netmask
            .and_then(|mask| mask.as_sockaddr_in().map(|mask| mask.ip()));
        if let (Some(address), Some(mask)) = (address.as_sockaddr_in(), mask)
            && let Ok(network) = Ipv4Net::with_netmask(address.ip(), mask)
        {
            interface.addresses.push(network);
        }
    }
    Ok(interfaces)
}

/// The interface of a name, with at least one address.
pub(crate) fn interface(name: &str) -> Result<Interface, OpenError> {
    let all = interfaces()?;
    let found = all.iter().find(|interface| interface.name == name).cloned();
    let found = found.ok_or_else(|| OpenError::NoSuchInterface {
        name: name.to_owned(),
        known: all
            .iter()
            .map(|known| known.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    if found.addresses.is_empty() {
        return Err(OpenError::NoAddress { name: found.name });
    }
    Ok(found)
}

/// A socket that speaks DHCP with one link.
pub(crate) struct DhcpSocket {
    socket: Async<UdpSocket>,
    frames: Option<FrameSocket>,
    /// Hears who has which address.
    arp: Option<shared::ArpListener>,
    /// The networks of the link.
    pub(crate) networks: Vec<Ipv4Net>,
    /// Our address on the link.
    pub(crate) address: Ipv4Addr,
}

/// A socket that sends whole Ethernet frames and hears nothing.
struct FrameSocket {
    fd: OwnedFd,
    link: LinkAddr,
    mac: MacAddress,
}

impl DhcpSocket {
    /// On a real interface: hears broadcasts, reaches clients without an address.
    pub(crate) fn on_interface(interface: &Interface, port: u16) -> Result<Self, OpenError> {
        let address = interface.addresses.first().map(Ipv4Net::addr);
        let address = address.ok_or_else(|| OpenError::NoAddress {
            name: interface.name.clone(),
        })?;
        let socket = udp()?;
        socket
            .bind_device(Some(interface.name.as_bytes()))
            .map_err(|error| {
                not_allowed(
                    error,
                    &format!("the network interface {}", interface.name),
                    "CAP_NET_RAW",
                )
            })?;
        let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let frames = FrameSocket::open(interface)?;
        let arp = frames.as_ref().and_then(|frames| {
            let listener = shared::ArpListener::open(frames.link);
            let name = &interface.name;
            let say = |error: &OpenError| {
                log::warn!(
                    "addresses in use on {name} are not noticed before they are given: {error}"
                );
            };
            listener.inspect_err(say).ok()
        });
        Ok(Self {
            socket: bind_udp(socket, at)?,
            frames,
            arp,
            networks: interface.addresses.clone(),
            address,
        })
    }

    /// On one address, the lab's way: everything goes back to where it came from or to a relay.
    pub(crate) fn on_address(address: Ipv4Addr, port: u16) -> Result<Self, OpenError> {
        let socket = bind_udp(udp()?, SocketAddrV4::new(address, port))?;
        Ok(Self {
            socket,
            frames: None,
            arp: None,
            networks: Vec::new(),
            address,
        })
    }

    /// The port it hears.
    pub(crate) fn port(&self) -> u16 {
        self.socket
            .get_ref()
            .local_addr()
            .map_or(SERVER_PORT, |address| address.port())
    }

    /// Waits for a message.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.recv_from(buffer).await
    }

    /// Sends a reply to a request that came from `source`.
    pub(crate) async fn send(&self, reply: &Reply, source: SocketAddrV4) -> io::Result<()> {
        let to = match (reply.destination, &self.frames) {
            (Destination::Relay(to), _) => to,
            // Without an interface of its own there is no link to broadcast on.
            (_, None) => source,
            (Destination::UnicastAddress(to), Some(_)) => to,
            (Destination::Broadcast, Some(_)) => {
                SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
            }
            (Destination::UnicastHardware { mac, ip }, Some(frames)) => {
                let from = SocketAddrV4::new(reply.from, self.port());
                let to = SocketAddrV4::new(ip, CLIENT_PORT);
                return frames.send(&frames::udp_frame(frames.mac, mac, from, to, &reply.bytes));
            }
        };
        self.socket.send_to(&reply.bytes, to).await.map(drop)
    }

    /// Asks the link who has an address.
    pub(crate) fn ask_who_has(&self, address: Ipv4Addr) -> io::Result<()> {
        match (&self.frames, &self.arp) {
            (Some(frames), Some(_)) => frames.send(&frames::address_probe(frames.mac, address)),
            _ => Ok(()),
        }
    }

    /// Waits for a machine other than this one to say that it has an address; for ever where that cannot
    /// be heard. `None` when something else was said.
    pub(crate) async fn hear_holder(&self) -> io::Result<Option<(Ipv4Addr, MacAddress)>> {
        let (Some(arp), Some(frames)) = (&self.arp, &self.frames) else {
            return std::future::pending().await;
        };
        let holder = arp.hear_holder().await?;
        Ok(holder.filter(|(_, mac)| *mac != frames.mac))
    }

    /// Tells one machine on the link that there is no IPv6 router, which ends iPXE's wait for one.
    pub(crate) fn end_router_wait(&self, client: MacAddress) -> io::Result<()> {
        match &self.frames {
            Some(frames) => frames.send(&frames::router_advertisement(frames.mac, client)),
            None => Ok(()),
        }
    }
}

impl FrameSocket {
    /// `None` for interfaces without Ethernet addresses.
    fn open(interface: &Interface) -> Result<Option<Self>, OpenError> {
        let Some((link, mac)) = interface.link.and_then(|link| Some((link, link.addr()?))) else {
            return Ok(None);
        };
        // Protocol 0: the socket receives nothing (packet(7)), so nothing has to be read from it.
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(|error| not_allowed(error.into(), "a packet socket", "CAP_NET_RAW"))?;
        Ok(Some(Self {
            fd,
            link,
            mac: MacAddress::new(mac),
        }))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        sendto(self.fd.as_raw_fd(), frame, &self.link, MsgFlags::empty())?;
        Ok(())
    }
}

/// The socket that TFTP requests come to. It does not block.
pub(crate) fn tftp(address: Ipv4Addr, port: u16) -> Result<UdpSocket, OpenError> {
    let socket = bind_udp(udp()?, SocketAddrV4::new(address, port))?;
    // It is waited for by its own thread.
    socket
        .into_inner()
        .map_err(|error| system("the socket of TFTP", error))
}

/// The socket of one TFTP transfer, connected to its client, and the packet size of the way there as
/// far as the kernel knows it (ip(7), IP_MTU). Its port is the server's TID. It does not block.
pub(crate) fn transfer_socket(
    address: IpAddr,
    client: SocketAddr,
) -> io::Result<(UdpSocket, Option<u16>)> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.connect(client)?;
    socket.set_nonblocking(true)?;
    let mtu = getsockopt(&socket, sockopt::IpMtu).ok();
    // The loopback's 65536 is more than any packet has.
    let mtu = mtu.map(|bytes| u16::try_from(bytes).unwrap_or(u16::MAX));
    Ok((socket, mtu))
}

/// The socket that HTTP comes to.
pub(crate) fn http(address: Ipv4Addr, port: u16) -> Result<Async<TcpListener>, OpenError> {
    let at = SocketAddrV4::new(address, port);
    let what = || format!("TCP port {port} on {address}");
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // A server that is started again at once must not wait for old connections to time out.
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let socket: Socket = open().map_err(|error| port_error(error, Transport::Tcp, at))?;
    Async::new(TcpListener::from(socket)).map_err(|error| system(&what(), error))
}

/// The socket that operators' commands come to; only the owner of the data directory may.
pub(crate) fn control(path: &Path) -> Result<Async<UnixListener>, OpenError> {
    let what = || format!("the control socket {}", path.display());
    if UnixStream::connect(path).is_ok() {
        return Err(OpenError::AlreadyServing(path.to_owned()));
    }
    // What an earlier run left behind.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(system(&what(), error));
    }
    let listener = UnixListener::bind(path).map_err(|error| system(&what(), error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| system(&what(), error))?;
    Async::new(listener).map_err(|error| system(&what(), error))
}

fn udp() -> Result<Socket, OpenError> {
    Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
        .map_err(|error| system("a UDP socket", error))
}

fn bind_udp(socket: Socket, at: SocketAddrV4) -> Result<Async<UdpSocket>, OpenError> {
    let prepare = || {
        socket.set_broadcast(true)?;
        // As large as the system lets us: beyond its limit as root, else up to it. A smaller one
        // works, too.
        if setsockopt(&socket, sockopt::RcvBufForce, &DHCP_RECEIVE_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(DHCP_RECEIVE_BUFFER);
        }
        socket.bind(&at.into())
    };
    prepare().map_err(|error| port_error(error, Transport::Udp, at))?;
    Async::new(UdpSocket::from(socket)).map_err(|error| system("a UDP socket", error))
}

fn port_error(error: io::Error, transport: Transport, at: SocketAddrV4) -> OpenError {
    let (address, port) = (*at.ip(), at.port());
    match error.kind() {
        io::ErrorKind::AddrInUse => OpenError::PortTaken {
            transport,
            address,
            port,
            owner: port_owner(transport, port),
        },
        io::ErrorKind::AddrNotAvailable => OpenError::NoSuchAddress { address },
        _ => not_allowed(
            error,
            &format!("{} port {port} on {address}", transport.name()),
            "CAP_NET_BIND_SERVICE",
        ),
    }
}

fn not_allowed(error: io::Error, what: &str, capability: &'static str) -> OpenError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::NoRights {
            what: what.to_owned(),
            capability,
        },
        _ => system(what, error),
    }
}

fn system(what: &str, source: io::Error) -> OpenError {
    OpenError::System {
        what: what.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_owner_and_the_way_to_share() {
        let taken = |port| {
            let error = OpenError::PortTaken {
                transport: Transport::Udp,
                address: Ipv4Addr::UNSPECIFIED,
                port,
                owner: Some("dnsmasq (process 812)".to_owned()),
            };
            error.to_string()
        };
        assert_eq!(
            taken(67),
            "UDP port 67 on 0.0.0.0 is taken by dnsmasq (process 812): stop it, or let netboot work \
             beside that DHCP server with --mode proxy"
        );
        assert!(taken(4011).ends_with(
            "it is another boot server, or let netboot leave DHCP to it with --mode off"
        ));
        assert!(taken(69).ends_with("stop it, or choose another port in the configuration"));
    }
}
