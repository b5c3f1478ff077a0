//! DHCP as it was seen on the wire: who said what, and to which hardware address a frame went.
//!
//! The judge of what the server sends, so it does not use the server's own parser. Pure. UDP checksums are
//! not looked at: a frame that this computer sends is seen before its network card fills them in.

use std::fmt;
use std::net::Ipv4Addr;

use super::switch::Mac;

const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const PROTOCOL_UDP: u8 = 17;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const BOOT_REPLY: u8 = 2;
const BROADCAST_BIT: u8 = 0x80;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const BROADCAST_MAC: Mac = [0xff; 6];

const PAD: u8 = 0;
const END: u8 = 255;
const MESSAGE_TYPE: u8 = 53;
const VENDOR_CLASS: u8 = 60;
const USER_CLASS: u8 = 77;
/// Message type of a refusal (RFC 2132 §9.6).
const NAK: u8 = 6;

/// How a frame with a DHCP message was addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addressing {
    /// Ethernet destination.
    pub(crate) mac: Mac,
    /// IP destination.
    pub(crate) ip: Ipv4Addr,
}

impl Addressing {
    /// Whether everybody on the link gets it, by both addresses.
    pub(crate) fn is_broadcast(&self) -> bool {
        self.mac == BROADCAST_MAC && self.ip == Ipv4Addr::BROADCAST
    }
}

/// One DHCP message (RFC 2131 §2) and how it travelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DhcpSighting {
    /// IP source.
    pub(crate) from: Ipv4Addr,
    /// How it was addressed.
    pub(crate) to: Addressing,
    /// From the server rather than to it.
    pub(crate) is_reply: bool,
    /// Ties a reply to its request.
    pub(crate) transaction: [u8; 4],
    /// The client's request for replies by broadcast.
    pub(crate) broadcast_flag: bool,
    /// The address that the client has (ciaddr).
    pub(crate) client_address: Ipv4Addr,
    /// The address that the client gets (yiaddr).
    pub(crate) your_address: Ipv4Addr,
    /// The client's Ethernet address (chaddr).
    pub(crate) client: Mac,
    /// DHCP message type, option 53.
    pub(crate) kind: Option<u8>,
    /// Option 60.
    pub(crate) vendor_class: String,
    /// Option 77.
    pub(crate) user_class: String,
}

impl DhcpSighting {
    /// The message type's name (RFC 2132 §9.6).
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            Some(1) => "DISCOVER",
            Some(2) => "OFFER",
            Some(3) => "REQUEST",
            Some(4) => "DECLINE",
            Some(5) => "ACK",
            Some(6) => "NAK",
            Some(7) => "RELEASE",
            Some(8) => "INFORM",
            _ => "message",
        }
    }
}

impl fmt::Display for DhcpSighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind_name();
        let mac = self.to.mac.map(|octet| format!("{octet:02x}")).join(":");
        write!(f, "{kind} to {mac} {}", self.to.ip)?;
        if self.broadcast_flag {
            f.write_str(", broadcast flag")?;
        }
        Ok(())
    }
}

/// The DHCP message in a frame between a client's and a server's port.
pub(crate) fn dhcp_in_frame(frame: &[u8]) -> Option<DhcpSighting> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    if ethernet[12..14] != ETHERTYPE_IPV4 {
        return None;
    }
    let header_length = usize::from(*packet.first()? & 0x0f) * 4;
    let (header, udp) = packet.split_at_checked(header_length.max(20))?;
    if header[9] != PROTOCOL_UDP {
        return None;
    }
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    let (source, destination) = (port(0)?, port(2)?);
    if destination != SERVER_PORT && (source, destination) != (SERVER_PORT, CLIENT_PORT) {
        return None;
    }
    let to = Addressing {
        mac: array(ethernet, 0)?,
        ip: Ipv4Addr::from(array::<4>(header, 16)?),
    };
    let from = Ipv4Addr::from(array::<4>(header, 12)?);
    message(udp.get(8..)?, from, to)
}

fn message(bytes: &[u8], from: Ipv4Addr, to: Addressing) -> Option<DhcpSighting> {
    if array(bytes, 236)? != MAGIC_COOKIE {
        return None;
    }
    let mut sighting = DhcpSighting {
        from,
        to,
        is_reply: bytes[0] == BOOT_REPLY,
        transaction: array(bytes, 4)?,
        broadcast_flag: bytes[10] & BROADCAST_BIT != 0,
        client_address: Ipv4Addr::from(array::<4>(bytes, 12)?),
        your_address: Ipv4Addr::from(array::<4>(bytes, 16)?),
        client: array(bytes, 28)?,
        kind: None,
        vendor_class: String::new(),
        user_class: String::new(),
    };
    let mut rest = &bytes[240..];
    while let Some((&code, after)) = rest.split_first() {
        if code == END {
            break;
        }
        if code == PAD {
            rest = after;
            continue;
        }
        let Some((value, next)) = after
            .split_first()
            .and_then(|(&length, after)| after.split_at_checked(usize::from(length)))
        else {
            break;
        };
        match code {
            MESSAGE_TYPE => sighting.kind = value.first().copied(),
            VENDOR_CLASS => sighting.vendor_class = String::from_utf8_lossy(value).into_owned(),
            USER_CLASS => sighting.user_class = String::from_utf8_lossy(value).into_owned(),
            _ => {}
        }
        rest = next;
    }
    Some(sighting)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A reply together with the request that it answers.
pub(crate) type Answer<'a> = (&'a DhcpSighting, &'a DhcpSighting);

/// Every reply to `client` with its request: the latest one before it in the same transaction.
pub(crate) fn answers(seen: &[DhcpSighting], client: Mac) -> Vec<Answer<'_>> {
    let of_client = |sighting: &&DhcpSighting| sighting.client == client;
    let mut answers = Vec::new();
    for (index, reply) in seen.iter().enumerate() {
        if !reply.is_reply || !of_client(&reply) {
            continue;
        }
        let earlier = seen[..index].iter().rev().filter(of_client);
        let mut requests = earlier.filter(|sighting| !sighting.is_reply);
        if let Some(request) = requests.find(|request| request.transaction == reply.transaction) {
            answers.push((request, reply));
        }
    }
    answers
}

/// What RFC 2131 §4.1 says about the addressing of this reply to this request, if it was not followed.
pub(crate) fn wrong_addressing((request, reply): Answer<'_>) -> Option<String> {
    let unicast = |ip| Addressing {
        mac: request.client,
        ip,
    };
    let (right, rule) = if reply.kind == Some(NAK) {
        (reply.to.is_broadcast(), "refusals go to everybody")
    } else if request.client_address != Ipv4Addr::UNSPECIFIED {
        let to = unicast(request.client_address);
        (reply.to == to, "the client has an address: unicast to it")
    } else if request.broadcast_flag {
        let right = reply.to.is_broadcast();
        (right, "the broadcast flag was set: to everybody")
    } else {
        let to = unicast(reply.your_address);
        (
            reply.to == to,
            "the broadcast flag was clear: unicast to the client's hardware address",
        )
    };
    (!right).then(|| format!("{reply}, but {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::packet;
    use std::net::SocketAddrV4;

    const CLIENT: Mac = [0x52, 0x54, 0, 0, 0, 7];
    const SERVER: Mac = [2, 0x78, 0, 0, 0, 1];
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
    const GIVEN: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 100);

    fn bootp(operation: u8, kind: u8, broadcast: bool) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[0] = operation;
        bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
        bytes[10] = u8::from(broadcast) << 7;
        if operation == BOOT_REPLY {
            bytes[16..20].copy_from_slice(&GIVEN.octets());
        }
        bytes[28..34].copy_from_slice(&CLIENT);
        bytes[236..].copy_from_slice(&MAGIC_COOKIE);
        bytes.extend_from_slice(&[PAD, MESSAGE_TYPE, 1, kind, USER_CLASS, 4]);
        bytes.extend_from_slice(b"iPXE");
        bytes.push(END);
        bytes
    }

    fn request(broadcast: bool) -> DhcpSighting {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        let message = bootp(1, 1, broadcast);
        let frame = packet::udp_frame((CLIENT, BROADCAST_MAC), (from, to), &message);
        dhcp_in_frame(&frame).unwrap()
    }

    fn reply(mac: Mac, ip: Ipv4Addr) -> DhcpSighting {
        let from = SocketAddrV4::new(OWN, SERVER_PORT);
        let to = SocketAddrV4::new(ip, CLIENT_PORT);
        let message = bootp(BOOT_REPLY, 2, false);
        dhcp_in_frame(&packet::udp_frame((SERVER, mac), (from, to), &message)).unwrap()
    }

    #[test]
    fn a_request_is_read_with_its_options_and_flag() {
        let seen = request(true);
        assert!(!seen.is_reply && seen.broadcast_flag && seen.to.is_broadcast());
        assert_eq!((seen.kind, seen.user_class.as_str()), (Some(1), "iPXE"));
        assert_eq!(seen.client, CLIENT);
        assert_eq!(seen.from, Ipv4Addr::UNSPECIFIED);
        assert_eq!(reply(CLIENT, GIVEN).from, OWN);
    }

    #[test]
    fn a_reply_belongs_to_the_latest_request_of_its_transaction() {
        let seen = [request(true), request(false), reply(CLIENT, GIVEN)];
        let answers = answers(&seen, CLIENT);
        assert_eq!(answers, [(&seen[1], &seen[2])]);
        assert_eq!(super::answers(&seen, SERVER), []);
    }

    #[test]
    fn the_broadcast_flag_decides_how_a_reply_is_addressed() {
        let (unicast, broadcast) = (
            reply(CLIENT, GIVEN),
            reply(BROADCAST_MAC, Ipv4Addr::BROADCAST),
        );
        assert_eq!(wrong_addressing((&request(false), &unicast)), None);
        assert_eq!(wrong_addressing((&request(true), &broadcast)), None);
        assert!(wrong_addressing((&request(false), &broadcast)).is_some());
        assert!(wrong_addressing((&request(true), &unicast)).is_some());
        let mut renewal = request(true);
        renewal.client_address = GIVEN;
        assert_eq!(wrong_addressing((&renewal, &unicast)), None);
    }

    #[test]
    fn damaged_frames_are_not_dhcp() {
        let from = SocketAddrV4::new(OWN, SERVER_PORT);
        let to = SocketAddrV4::new(GIVEN, CLIENT_PORT);
        let message = bootp(BOOT_REPLY, 2, false);
        let frame = packet::udp_frame((SERVER, CLIENT), (from, to), &message);
        for length in 0..frame.len() {
            let cut = dhcp_in_frame(&frame[..length]);
            assert!(cut.is_none() || length > 14 + 20 + 8 + 239, "{length}");
        }
    }
}
