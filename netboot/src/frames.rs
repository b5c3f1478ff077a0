//! Whole Ethernet frames, built with smoltcp's wire types: for clients that have no address yet,
//! and for iPXE, which waits for an IPv6 router.
//!
//! Not here: sending them (`sockets`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use protocol::dhcp::MacAddress;
use smoltcp::{
    phy::ChecksumCapabilities,
    time::Duration,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
        EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet,
        Ipv6Repr, NdiscRepr, NdiscRouterFlags, UdpPacket, UdpRepr,
    },
};

/// A UDP packet in an IPv4 packet in a frame to one card.
pub(crate) fn udp_frame(
    from_mac: MacAddress,
    to_mac: MacAddress,
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let packet = udp_packet(from, to, payload);
    let len = packet.len();
    frame(from_mac, to_mac, EthernetProtocol::Ipv4, len, |bytes| {
        bytes.copy_from_slice(&packet);
    })
}

/// A UDP packet in an IPv4 packet.
pub(crate) fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: from.port(),
        dst_port: to.port(),
    };
    let ip = Ipv4Repr {
        src_addr: *from.ip(),
        dst_addr: *to.ip(),
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; ip.buffer_len() + ip.payload_len];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.emit(&mut packet, &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(packet.payload_mut()),
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

/// Sender, addressee and payload of a UDP packet in a frame; `None` for anything else. Checksums are
/// not looked at: a packet of this machine has none yet when a packet socket sees it.
pub(crate) fn udp_payload(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let header = frame.len() - ethernet.payload().len();
    let ip = Ipv4Packet::new_checked(frame.get(header..)?).ok()?;
    if ip.next_header() != IpProtocol::Udp || ip.more_frags() || ip.frag_offset() != 0 {
        return None;
    }
    let start = header + usize::from(ip.header_len());
    let end = header + usize::from(ip.total_len());
    let udp = UdpPacket::new_checked(frame.get(start..end)?).ok()?;
    let from = SocketAddrV4::new(ip.src_addr(), udp.src_port());
    let to = SocketAddrV4::new(ip.dst_addr(), udp.dst_port());
    // The UDP header is eight bytes (RFC 768).
    let payload = frame.get(start + 8..start + usize::from(udp.len()))?;
    Some((from, to, payload))
}

/// The question who has an address, as one asks who does not have it either: from address 0.0.0.0, so
/// that nobody's table is changed (RFC 5227 §2.1.1).
pub(crate) fn address_probe(from_mac: MacAddress, address: Ipv4Addr) -> Vec<u8> {
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(from_mac.bytes()),
        source_protocol_addr: Ipv4Addr::UNSPECIFIED,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    let to = MacAddress::new([0xff; 6]);
    let len = question.buffer_len();
    frame(from_mac, to, EthernetProtocol::Arp, len, |bytes| {
        question.emit(&mut ArpPacket::new_unchecked(bytes));
    })
}

/// Who says in this frame that it has which address: the sender of any ARP packet does. `None` for a
/// probe, and for anything that is no ARP.
pub(crate) fn address_holder(frame: &[u8]) -> Option<(Ipv4Addr, MacAddress)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    let arp = ArpPacket::new_checked(ethernet.payload()).ok()?;
    let Ok(ArpRepr::EthernetIpv4 {
        source_hardware_addr,
        source_protocol_addr,
        ..
    }) = ArpRepr::parse(&arp)
    else {
        return None;
    };
    let holder = MacAddress::new(source_hardware_addr.0);
    (!source_protocol_addr.is_unspecified() && holder.is_unicast())
        .then_some((source_protocol_addr, holder))
}

/// The smallest router advertisement (RFC 4861 §4.2): lifetime 0, "I am no default router", and
/// no options. It goes to one card only, so no other machine on the link hears it, and to the
/// address that iPXE makes of its card: one for all nodes in a frame for one is dropped by iPXE.
pub(crate) fn router_advertisement(from_mac: MacAddress, to_mac: MacAddress) -> Vec<u8> {
    let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        hop_limit: 0,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: Duration::ZERO,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: None,
        mtu: None,
        prefix_info: None,
    });
    let ip = Ipv6Repr {
        src_addr: link_local(from_mac),
        dst_addr: link_local(to_mac),
        next_header: IpProtocol::Icmpv6,
        payload_len: advertisement.buffer_len(),
        // RFC 4861 §6.1.2: anything less was forwarded and is ignored.
        hop_limit: 255,
    };
    let len = ip.buffer_len() + ip.payload_len;
    frame(from_mac, to_mac, EthernetProtocol::Ipv6, len, |bytes| {
        let mut packet = Ipv6Packet::new_unchecked(bytes);
        ip.emit(&mut packet);
        advertisement.emit(
            &ip.src_addr,
            &ip.dst_addr,
            &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
            &ChecksumCapabilities::default(),
        );
    })
}

fn frame(
    from: MacAddress,
    to: MacAddress,
    ethertype: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::buffer_len(len)];
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes[..]);
    EthernetRepr {
        src_addr: EthernetAddress(from.bytes()),
        dst_addr: EthernetAddress(to.bytes()),
        ethertype,
    }
    .emit(&mut ethernet);
    fill(ethernet.payload_mut());
    bytes
}

/// The link-local address of a card (RFC 4291 appendix A).
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let octets: [u8; 16] = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    octets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: MacAddress = MacAddress::new([0x52, 0x54, 0, 0, 0, 1]);
    const CLIENT: MacAddress = MacAddress::new([0x52, 0x54, 0, 0, 0, 2]);

    #[test]
    fn a_udp_frame_is_whole_and_its_checksums_are_right() {
        let from = SocketAddrV4::new([10, 77, 0, 1].into(), 67);
        let to = SocketAddrV4::new([10, 77, 0, 100].into(), 68);
        let bytes = udp_frame(SERVER, CLIENT, from, to, b"hello");
        let ethernet = EthernetFrame::new_checked(&bytes[..]).expect("a frame");
        assert_eq!(ethernet.dst_addr(), EthernetAddress(CLIENT.bytes()));
        let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("an IPv4 packet");
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).expect("a UDP packet");
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_eq!(
            (udp.src_port(), udp.dst_port(), udp.payload()),
            (67, 68, &b"hello"[..])
        );
    }

    #[test]
    fn a_udp_frame_is_read_back_and_cut_ones_are_not() {
        let from = SocketAddrV4::new([10, 77, 0, 1].into(), 67);
        let to = SocketAddrV4::new([255; 4].into(), 68);
        let mut bytes = udp_frame(SERVER, CLIENT, from, to, b"hello");
        assert_eq!(udp_payload(&bytes), Some((from, to, &b"hello"[..])));
        for len in 0..bytes.len() {
            assert_eq!(udp_payload(&bytes[..len]), None);
        }
        // Ethernet pads short frames.
        bytes.extend([0; 20]);
        assert_eq!(udp_payload(&bytes), Some((from, to, &b"hello"[..])));
        bytes[12] = 0x86;
        assert_eq!(udp_payload(&bytes), None);
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_the_reader_panic(
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120),
            at in 0_usize..60,
        ) {
            let from = SocketAddrV4::new([10, 77, 0, 1].into(), 67);
            let mut bytes = udp_frame(SERVER, CLIENT, from, from, &[0; 40]);
            let end = bytes.len().min(at + noise.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            let _ = udp_payload(&bytes);
            let _ = udp_payload(&noise);
        }
    }

    #[test]
    fn a_probe_names_no_holder_and_its_answer_does() {
        let address = Ipv4Addr::new(10, 77, 0, 9);
        let probe = address_probe(SERVER, address);
        assert_eq!(probe.len(), 42);
        assert_eq!(probe[..6], [0xff; 6]);
        assert_eq!(address_holder(&probe), None);
        let mut answer = probe.clone();
        answer[21] = 2;
        answer[22..28].copy_from_slice(&CLIENT.bytes());
        answer[28..32].copy_from_slice(&address.octets());
        assert_eq!(address_holder(&answer), Some((address, CLIENT)));
        for len in 0..answer.len() {
            assert_eq!(address_holder(&answer[..len]), None);
        }
    }

    #[test]
    fn the_router_advertisement_is_sixteen_bare_bytes() {
        let bytes = router_advertisement(SERVER, CLIENT);
        let ethernet = EthernetFrame::new_checked(&bytes[..]).expect("a frame");
        let ip = Ipv6Packet::new_checked(ethernet.payload()).expect("an IPv6 packet");
        assert_eq!(ip.hop_limit(), 255);
        assert_eq!(ip.src_addr().to_string(), "fe80::5054:ff:fe00:1");
        assert_eq!(ip.dst_addr().to_string(), "fe80::5054:ff:fe00:2");
        assert_eq!(ip.payload().len(), 16);
        let icmp = Icmpv6Packet::new_checked(ip.payload()).expect("an ICMPv6 packet");
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
    }
}
