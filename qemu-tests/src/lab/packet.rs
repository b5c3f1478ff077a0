//! Frames that the gateway reads or writes by itself: UDP datagrams and one router advertisement.
//!
//! Pure. smoltcp's wire types do the work; TCP, ARP and ICMP are left to its interface. IP fragments are
//! not put together: boot firmware keeps its datagrams within the MTU.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, UdpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::switch::Mac;

const ETHERNET_HEADER: usize = 14;
const HOP_LIMIT: u8 = 64;

/// A UDP datagram with everything that is needed to answer it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    pub(crate) source_mac: Mac,
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) payload: &'a [u8],
}

/// The two ends of a TCP segment, and whether it opens a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    /// SYN without ACK.
    pub(crate) opens: bool,
    /// Sequence number: tells a repeated SYN from a new connection with old ports.
    pub(crate) sequence: i32,
}

/// What the gateway distinguishes in a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    Arp,
    Tcp(Segment),
    Udp(Datagram<'a>),
    /// Any other IPv4 packet, by destination.
    OtherIpv4(Ipv4Addr),
    /// Somebody asks for IPv6 routers (RFC 4861 §4.1).
    RouterSolicitation,
    /// Not for the gateway, or malformed.
    Noise,
}

/// Looks at a frame as far as the gateway needs.
pub(crate) fn classify(frame: &[u8]) -> Content<'_> {
    dissect(frame).unwrap_or(Content::Noise)
}

fn dissect(bytes: &[u8]) -> smoltcp::wire::Result<Content<'_>> {
    let frame = EthernetFrame::new_checked(bytes)?;
    match frame.ethertype() {
        EthernetProtocol::Arp => Ok(Content::Arp),
        EthernetProtocol::Ipv4 => dissect_ipv4(frame.src_addr(), &bytes[ETHERNET_HEADER..]),
        EthernetProtocol::Ipv6 if is_router_solicitation(&bytes[ETHERNET_HEADER..]) => {
            Ok(Content::RouterSolicitation)
        }
        _ => Ok(Content::Noise),
    }
}

fn dissect_ipv4(source_mac: EthernetAddress, bytes: &[u8]) -> smoltcp::wire::Result<Content<'_>> {
    let packet = Ipv4Packet::new_checked(bytes)?;
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Ok(Content::Noise);
    }
    let payload = &bytes[usize::from(packet.header_len())..usize::from(packet.total_len())];
    match packet.next_header() {
        IpProtocol::Tcp => {
            let segment = TcpPacket::new_checked(payload)?;
            Ok(Content::Tcp(Segment {
                source: SocketAddrV4::new(from, segment.src_port()),
                destination: SocketAddrV4::new(to, segment.dst_port()),
                opens: segment.syn() && !segment.ack(),
                sequence: segment.seq_number().0,
            }))
        }
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(payload)?;
            if !datagram.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to)) {
                return Ok(Content::Noise);
            }
            let length = usize::from(datagram.len());
            Ok(Content::Udp(Datagram {
                source_mac: source_mac.0,
                source: SocketAddrV4::new(from, datagram.src_port()),
                destination: SocketAddrV4::new(to, datagram.dst_port()),
                payload: &payload[smoltcp::wire::UDP_HEADER_LEN..length],
            }))
        }
        _ => Ok(Content::OtherIpv4(to)),
    }
}

/// Builds the frame that carries a datagram.
pub(crate) fn udp_frame(
    macs: (Mac, Mac),
    ends: (SocketAddrV4, SocketAddrV4),
    payload: &[u8],
) -> Vec<u8> {
    let (source, destination) = ends;
    let udp = UdpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
    };
    let ipv4 = Ipv4Repr {
        src_addr: *source.ip(),
        dst_addr: *destination.ip(),
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: HOP_LIMIT,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(macs.0),
        dst_addr: EthernetAddress(macs.1),
        ethertype: EthernetProtocol::Ipv4,
    };
    let ip_end = ETHERNET_HEADER + ipv4.buffer_len();
    let mut frame = vec![0; ip_end + ipv4.payload_len];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    let checksums = ChecksumCapabilities::default();
    ipv4.emit(
        &mut Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER..]),
        &checksums,
    );
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut frame[ip_end..]),
        &IpAddress::Ipv4(*source.ip()),
        &IpAddress::Ipv4(*destination.ip()),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &checksums,
    );
    frame
}

const IPV6_HEADER: usize = 40;
const NEXT_HEADER_ICMPV6: u8 = 58;
const ICMPV6_ROUTER_SOLICITATION: u8 = 133;
const ICMPV6_ROUTER_ADVERTISEMENT: u8 = 134;
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

fn is_router_solicitation(ipv6: &[u8]) -> bool {
    ipv6.get(6) == Some(&NEXT_HEADER_ICMPV6)
        && ipv6.get(IPV6_HEADER) == Some(&ICMPV6_ROUTER_SOLICITATION)
}

/// A router advertisement with lifetime 0 and no options (RFC 4861 §4.2): "there is no IPv6 router here".
/// It ends the 16 s that iPXE otherwise waits for one after DHCP.
pub(crate) fn no_router_advertisement(mac: Mac) -> Vec<u8> {
    // Modified EUI-64 link-local address (RFC 4291, appendix A).
    let link_local = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        mac[0] ^ 2,
        mac[1],
        mac[2],
        0xff,
        0xfe,
        mac[3],
        mac[4],
        mac[5],
    ];
    let mut advertisement = [0u8; 16];
    advertisement[0] = ICMPV6_ROUTER_ADVERTISEMENT;
    advertisement[4] = HOP_LIMIT;
    let length = advertisement.len() as u8;
    // Pseudo-header (RFC 8200 §8.1): source, destination, upper-layer length, next header.
    let words = [
        &link_local[..],
        &ALL_NODES,
        &[0, length, 0, NEXT_HEADER_ICMPV6],
        &advertisement,
    ]
    .concat();
    let sum: u32 = words
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    advertisement[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = [&ALL_NODES_MAC[..], &mac, &[0x86, 0xdd]].concat();
    // Version 6; hop limit 255 is required of neighbour discovery (RFC 4861 §6.1.2).
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, length, NEXT_HEADER_ICMPV6, 255]);
    frame.extend_from_slice(&link_local);
    frame.extend_from_slice(&ALL_NODES);
    frame.extend_from_slice(&advertisement);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Mac = [0x52, 0x54, 0, 0, 0, 1];
    const GATEWAY: Mac = [0x52, 0x54, 0, 0, 0, 0xfe];

    #[test]
    fn a_built_datagram_is_read_back() {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 69);
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 2070);
        let frame = udp_frame((GATEWAY, GUEST), (from, to), b"block");
        let expected = Datagram {
            source_mac: GATEWAY,
            source: from,
            destination: to,
            payload: b"block",
        };
        assert_eq!(classify(&frame), Content::Udp(expected));
        let mut damaged = frame;
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(classify(&damaged), Content::Noise);
    }

    #[test]
    fn the_advertisement_checks_out_and_names_no_router() {
        let frame = no_router_advertisement(GATEWAY);
        assert_eq!(frame.len(), 14 + 40 + 16);
        // Checksum over pseudo-header and message comes out as all ones.
        let words = [&frame[22..54], &[0, 16, 0, 58], &frame[54..]].concat();
        let mut sum: u32 = words
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(frame[60..62], [0, 0], "router lifetime");
    }

    #[test]
    fn damaged_frames_are_noise() {
        for length in 0..60 {
            assert_eq!(classify(&vec![0; length]), Content::Noise);
        }
    }
}
