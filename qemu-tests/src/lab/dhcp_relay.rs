//! A standards DHCP relay agent's work on the packet: what is added on the way to the server and
//! taken off on the way back.
//!
//! Pure: packets in, packets out. The server of the lab listens on a loopback port, so the relay names an
//! address where *it* is reached (giaddr), the guest's subnet (option 82 link selection, RFC 3527) and
//! asks for the answer at the port it sent from (relay source port, RFC 8357). Options of the guest are
//! passed on untouched and in their order, because a server's behaviour on odd packets is under test.

use std::net::Ipv4Addr;
use thiserror::Error;

/// Offsets in a BOOTP message (RFC 2131 §2).
mod field {
    use std::ops::Range;
    pub(super) const OP: usize = 0;
    pub(super) const HARDWARE_LENGTH: usize = 2;
    pub(super) const HOPS: usize = 3;
    pub(super) const FLAGS: usize = 10;
    pub(super) const CLIENT_ADDRESS: Range<usize> = 12..16;
    pub(super) const YOUR_ADDRESS: Range<usize> = 16..20;
    pub(super) const RELAY_ADDRESS: Range<usize> = 24..28;
    pub(super) const CLIENT_HARDWARE: Range<usize> = 28..34;
    pub(super) const COOKIE: Range<usize> = 236..240;
    pub(super) const OPTIONS: usize = 240;
}

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const BROADCAST_BIT: u8 = 0x80;
/// RFC 1542 §4.1.1: requests with a larger hop count are discarded.
const MOST_HOPS: u8 = 16;
/// BOOTP's smallest message (RFC 1542 §2.1), bytes.
const SHORTEST_MESSAGE: usize = 300;

const PAD: u8 = 0;
const END: u8 = 255;
const RELAY_AGENT_INFORMATION: u8 = 82;
const LINK_SELECTION: u8 = 5;
const RELAY_SOURCE_PORT: u8 = 19;

/// Why a packet was not relayed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum RelayError {
    /// Not a BOOTP message with options.
    #[error("{length} bytes are not a DHCP message")]
    NotDhcp {
        /// Length of the datagram, bytes.
        length: usize,
    },
    /// A reply where a request was expected, or the other way round.
    #[error("operation {found} where {expected} was expected")]
    WrongOperation {
        /// Operation that this direction carries.
        expected: u8,
        /// Operation in the packet.
        found: u8,
    },
    /// The packet went round too often.
    #[error("hop count {hops} is over the limit")]
    TooManyHops {
        /// Hop count in the packet.
        hops: u8,
    },
    /// An option runs over the end of the packet.
    #[error("option {code} at offset {offset} runs over the end of the packet")]
    OptionOverrun {
        /// Option code.
        code: u8,
        /// Where the option begins, bytes from the beginning of the message.
        offset: usize,
    },
}

/// Where a reply goes on the guests' wire (RFC 2131 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// To everybody: the guest asked for it, or has no address yet.
    Broadcast,
    /// To the guest's hardware address, at the address that it has or is being given.
    Unicast {
        /// Ethernet address of the guest.
        mac: [u8; 6],
        /// IPv4 address of the guest.
        address: Ipv4Addr,
    },
}

/// Prepares a guest's request for the server.
///
/// `relay` is where the server reaches this relay, `link` any address of the guests' subnet.
pub(crate) fn to_server(
    packet: &[u8],
    relay: Ipv4Addr,
    link: Ipv4Addr,
) -> Result<Vec<u8>, RelayError> {
    check(packet, BOOT_REQUEST)?;
    let hops = packet[field::HOPS];
    if hops >= MOST_HOPS {
        return Err(RelayError::TooManyHops { hops });
    }
    let options_end = split_options(packet)?.end;
    let mut relayed = packet[..options_end].to_vec();
    relayed[field::HOPS] = hops + 1;
    if relayed[field::RELAY_ADDRESS] == [0; 4] {
        relayed[field::RELAY_ADDRESS].copy_from_slice(&relay.octets());
    }
    let mut sub_options = vec![LINK_SELECTION, 4];
    sub_options.extend_from_slice(&link.octets());
    // RFC 8357 §5.2: the sub-option is a mark without a value.
    sub_options.extend_from_slice(&[RELAY_SOURCE_PORT, 0]);
    relayed.push(RELAY_AGENT_INFORMATION);
    relayed.push(sub_options.len() as u8);
    relayed.extend_from_slice(&sub_options);
    relayed.push(END);
    relayed.resize(relayed.len().max(SHORTEST_MESSAGE), PAD);
    Ok(relayed)
}

/// Prepares a server's reply for the guest, and says where it goes.
///
/// `relay_on_link` replaces giaddr: the relay's address on the guests' own wire, because the loopback
/// address that the server knows means nothing there.
pub(crate) fn to_guest(
    packet: &[u8],
    relay_on_link: Ipv4Addr,
) -> Result<(Vec<u8>, Delivery), RelayError> {
    check(packet, BOOT_REPLY)?;
    let options = split_options(packet)?;
    let mut reply = packet[..field::OPTIONS].to_vec();
    for option in &options.spans {
        if option.code != RELAY_AGENT_INFORMATION {
            reply.extend_from_slice(&packet[option.start..option.end]);
        }
    }
    reply.push(END);
    reply.resize(reply.len().max(SHORTEST_MESSAGE), PAD);
    reply[field::RELAY_ADDRESS].copy_from_slice(&relay_on_link.octets());

    let address = first_address(packet, [field::CLIENT_ADDRESS, field::YOUR_ADDRESS]);
    let delivery = match address {
        Some(address) if packet[field::FLAGS] & BROADCAST_BIT == 0 => {
            let mut mac = [0; 6];
            mac.copy_from_slice(&packet[field::CLIENT_HARDWARE]);
            Delivery::Unicast { mac, address }
        }
        _ => Delivery::Broadcast,
    };
    Ok((reply, delivery))
}

fn first_address(packet: &[u8], fields: [std::ops::Range<usize>; 2]) -> Option<Ipv4Addr> {
    fields
        .into_iter()
        .filter_map(|field| <[u8; 4]>::try_from(&packet[field]).ok())
        .map(Ipv4Addr::from)
        .find(|address| !address.is_unspecified())
}

fn check(packet: &[u8], expected: u8) -> Result<(), RelayError> {
    if packet.len() < field::OPTIONS
        || packet[field::COOKIE] != MAGIC_COOKIE
        || packet[field::HARDWARE_LENGTH] != 6
    {
        return Err(RelayError::NotDhcp {
            length: packet.len(),
        });
    }
    let found = packet[field::OP];
    if found != expected {
        return Err(RelayError::WrongOperation { expected, found });
    }
    Ok(())
}

/// One option's place in the packet, with its code and length octets.
struct OptionSpan {
    code: u8,
    start: usize,
    end: usize,
}

/// Every option of a packet and where the last one ends (End and padding excluded).
struct Options {
    spans: Vec<OptionSpan>,
    end: usize,
}

fn split_options(packet: &[u8]) -> Result<Options, RelayError> {
    let mut spans = Vec::new();
    let mut end = field::OPTIONS;
    let mut offset = field::OPTIONS;
    while let Some(&code) = packet.get(offset) {
        match code {
            PAD => offset += 1,
            END => break,
            _ => {
                let length = packet.get(offset + 1).map(|&length| usize::from(length));
                let after = length
                    .map(|length| offset + 2 + length)
                    .filter(|&after| after <= packet.len());
                let Some(after) = after else {
                    return Err(RelayError::OptionOverrun { code, offset });
                };
                spans.push(OptionSpan {
                    code,
                    start: offset,
                    end: after,
                });
                end = after;
                offset = after;
            }
        }
    }
    Ok(Options { spans, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: Ipv4Addr = Ipv4Addr::LOCALHOST;
    const LINK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn message(op: u8, options: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; field::OPTIONS];
        packet[field::OP] = op;
        packet[1] = 1;
        packet[field::HARDWARE_LENGTH] = 6;
        packet[field::CLIENT_HARDWARE].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        packet[field::COOKIE].copy_from_slice(&MAGIC_COOKIE);
        packet.extend_from_slice(options);
        packet
    }

    #[test]
    fn a_request_carries_giaddr_hops_and_option_82_before_end() {
        let packet = message(BOOT_REQUEST, &[53, 1, 1, 93, 2, 0, 7, END, 0, 0]);
        let relayed = to_server(&packet, RELAY, LINK).unwrap();
        assert_eq!(relayed[field::HOPS], 1);
        assert_eq!(relayed[field::RELAY_ADDRESS], [127, 0, 0, 1]);
        assert_eq!(
            relayed[field::OPTIONS..field::OPTIONS + 18],
            [53, 1, 1, 93, 2, 0, 7, 82, 8, 5, 4, 10, 77, 0, 0, 19, 0, END]
        );
        assert_eq!(relayed.len(), SHORTEST_MESSAGE);
    }

    #[test]
    fn a_reply_loses_option_82_only() {
        let packet = message(
            BOOT_REPLY,
            &[53, 1, 2, 82, 2, 19, 0, 54, 4, 10, 77, 0, 1, END],
        );
        let (reply, _) = to_guest(&packet, GATEWAY).unwrap();
        assert_eq!(
            reply[field::OPTIONS..field::OPTIONS + 10],
            [53, 1, 2, 54, 4, 10, 77, 0, 1, END]
        );
        assert_eq!(reply[field::RELAY_ADDRESS], [10, 77, 0, 1]);
    }

    #[test]
    fn a_reply_goes_where_the_guest_can_hear_it() {
        let mut packet = message(BOOT_REPLY, &[END]);
        assert_eq!(to_guest(&packet, GATEWAY).unwrap().1, Delivery::Broadcast);
        packet[field::YOUR_ADDRESS].copy_from_slice(&[10, 77, 0, 100]);
        let unicast = Delivery::Unicast {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(10, 77, 0, 100),
        };
        assert_eq!(to_guest(&packet, GATEWAY).unwrap().1, unicast);
        packet[field::FLAGS] = BROADCAST_BIT;
        assert_eq!(to_guest(&packet, GATEWAY).unwrap().1, Delivery::Broadcast);
    }

    #[test]
    fn packets_that_are_not_for_this_direction_are_refused() {
        let reply = message(BOOT_REPLY, &[END]);
        let wrong = RelayError::WrongOperation {
            expected: BOOT_REQUEST,
            found: BOOT_REPLY,
        };
        assert_eq!(to_server(&reply, RELAY, LINK), Err(wrong));
        assert_eq!(
            to_server(&[0; 20], RELAY, LINK),
            Err(RelayError::NotDhcp { length: 20 })
        );
        let overrun = message(BOOT_REQUEST, &[53, 9, 1]);
        assert_eq!(
            to_server(&overrun, RELAY, LINK),
            Err(RelayError::OptionOverrun {
                code: 53,
                offset: field::OPTIONS
            })
        );
        let mut tired = message(BOOT_REQUEST, &[END]);
        tired[field::HOPS] = MOST_HOPS;
        assert_eq!(
            to_server(&tired, RELAY, LINK),
            Err(RelayError::TooManyHops { hops: MOST_HOPS })
        );
    }

    #[test]
    fn a_request_without_end_still_gets_the_relay_option() {
        let relayed = to_server(&message(BOOT_REQUEST, &[53, 1, 1]), RELAY, LINK).unwrap();
        assert_eq!(
            relayed[field::OPTIONS..field::OPTIONS + 5],
            [53, 1, 1, 82, 8]
        );
    }
}
