//! Network interfaces: up, address, routes; sockets bound to one interface.
//!
//! By the ioctls of netdevice(7) and `SIOCADDRT` of rtnetlink's predecessor: a handful of calls, no
//! message format. One IPv4 address an interface is all that is needed here.

#![allow(unsafe_code, reason = "the interface ioctls have no safe form")]

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::{BindToDevice, Broadcast, ReuseAddr, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// An IPv4 route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// Where it leads: one host, or everywhere when `None`.
    pub(crate) host: Option<Ipv4Addr>,
    /// The router, `None` when the destination is on the link.
    pub(crate) router: Option<Ipv4Addr>,
    /// Smaller is preferred.
    pub(crate) metric: i16,
}

/// `struct rtentry` (include/uapi/linux/route.h).
#[repr(C)]
struct RouteEntry {
    pad1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: *mut libc::c_void,
    metric: libc::c_short,
    device: *const libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    initial_rtt: libc::c_ushort,
}

fn control_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        flags,
        None,
    )?)
}

fn request_for(interface: &str) -> io::Result<libc::ifreq> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_addr: socket_address(Ipv4Addr::UNSPECIFIED),
        },
    };
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("\"{interface}\" is no interface name"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        // Signed on x86-64, unsigned on Arm.
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// `struct sockaddr_in` in the shape of `struct sockaddr` (ip(7)): port in the first two bytes, then
/// the address, in network order.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

fn interface_ioctl(code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = control_socket()?;
    let request: *mut libc::ifreq = request;
    // SAFETY: `code` is one of the SIOC[GS]IF* below, which read and write one `struct ifreq` through
    // the pointer (netdevice(7)).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Switches the interface on.
///
/// # Errors
/// What the system said.
pub(crate) fn set_up(interface: &str) -> io::Result<()> {
    let mut request = request_for(interface)?;
    interface_ioctl(libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    interface_ioctl(libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
}

/// Gives the interface its address; the kernel adds the route to the subnet. 0.0.0.0 takes the address
/// and all routes through it away.
///
/// # Errors
/// What the system said.
pub(crate) fn set_address(interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let mut request = request_for(interface)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    interface_ioctl(libc::SIOCSIFADDR as libc::Ioctl, &mut request)?;
    if address.is_unspecified() {
        return Ok(());
    }
    let mut request = request_for(interface)?;
    request.ifr_ifru.ifru_addr = socket_address(mask);
    interface_ioctl(libc::SIOCSIFNETMASK as libc::Ioctl, &mut request)
}

/// Adds a route through the interface. One that is there already is success.
///
/// # Errors
/// What the system said.
pub(crate) fn add_route(interface: &str, route: Route) -> io::Result<()> {
    let name = request_for(interface)?.ifr_name;
    let mut flags = libc::RTF_UP;
    if route.router.is_some() {
        flags |= libc::RTF_GATEWAY;
    }
    if route.host.is_some() {
        flags |= libc::RTF_HOST;
    }
    let mask = match route.host {
        Some(_) => Ipv4Addr::BROADCAST,
        None => Ipv4Addr::UNSPECIFIED,
    };
    let entry = RouteEntry {
        pad1: 0,
        destination: socket_address(route.host.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        gateway: socket_address(route.router.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        mask: socket_address(mask),
        flags: flags as libc::c_ushort,
        pad2: 0,
        pad3: 0,
        pad4: std::ptr::null_mut(),
        // net/ipv4/fib_frontend.c, rtentry_to_fib_config: the metric is one more than the wanted one.
        metric: route.metric.saturating_add(1),
        device: name.as_ptr(),
        mtu: 0,
        window: 0,
        initial_rtt: 0,
    };
    let socket = control_socket()?;
    let code = libc::SIOCADDRT as libc::Ioctl;
    // SAFETY: SIOCADDRT reads one `struct rtentry` through the pointer, and the name that
    // `device` points to, which lives to the end of this function.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, &raw const entry) };
    match result {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        },
    }
}

/// A UDP socket on `port` that sends and hears on this interface only, broadcasts included, also
/// while the interface has no address.
///
/// # Errors
/// What the system said.
pub(crate) fn udp_on(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&fd, BindToDevice, &OsString::from(interface))?;
    setsockopt(&fd, Broadcast, &true)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    Ok(UdpSocket::from(fd))
}

/// Connects to `to` through this interface.
///
/// # Errors
/// What the system said; `EINPROGRESS` or `ETIMEDOUT` when nobody answered within `patience`.
pub(crate) fn connect_through(
    interface: &str,
    to: SocketAddrV4,
    patience: Duration,
) -> io::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&fd, BindToDevice, &OsString::from(interface))?;
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(1);
    // socket(7): connect(2) gives up after the send timeout.
    let timeout = TimeVal::new(seconds, patience.subsec_micros().into());
    setsockopt(&fd, SendTimeout, &timeout)?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(fd))
}
