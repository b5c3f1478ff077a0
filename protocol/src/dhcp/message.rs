//! The message: a fixed header of 236 bytes, the magic cookie, options (RFC 2131 §2).
//!
//! ```text
//!   0 op(1) htype(1) hlen(1) hops(1)
//!   4 xid(4)
//!   8 secs(2) flags(2)          flags: bit 15 = broadcast
//!  12 ciaddr(4) 16 yiaddr(4) 20 siaddr(4) 24 giaddr(4)
//!  28 chaddr(16)
//!  44 sname(64)
//! 108 file(128)
//! 236 cookie(4) = 63 82 53 63
//! 240 options…
//! ```

use std::net::Ipv4Addr;

use super::{
    MacAddress, Options, code,
    options::{Areas, Layout},
};

/// `op` of what clients send.
pub const BOOTREQUEST: u8 = 1;
/// `op` of what servers send.
pub const BOOTREPLY: u8 = 2;
/// UDP port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

const HEADER: usize = 236;
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
const BROADCAST_FLAG: u16 = 0x8000;
/// Bytes of the headers of IPv4 without options and of UDP.
const IP_AND_UDP: usize = 28;

/// The smallest message sent. BOOTP relays and old firmware drop shorter ones (RFC 1542 §2.1).
const MINIMUM_LENGTH: usize = 300;

/// What the message is for (option 53, RFC 2132 §9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// A client looks for servers.
    Discover,
    /// A server offers an address.
    Offer,
    /// A client takes an offer, or renews.
    Request,
    /// A client found the address in use.
    Decline,
    /// A server grants.
    Ack,
    /// A server refuses.
    Nak,
    /// A client gives its address back.
    Release,
    /// A client with an address asks for the other parameters.
    Inform,
}

impl MessageType {
    /// The number on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }

    /// The type of a number on the wire, `None` for types that this product does not speak.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}

/// Why bytes are not a DHCP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than header and cookie.
    #[error("{found} bytes are too few for a DHCP message: at least {} are needed", HEADER + COOKIE.len())]
    TooShort {
        /// How many bytes there were.
        found: usize,
    },
    /// The magic cookie is missing: plain BOOTP or something else.
    #[error("no DHCP magic cookie at byte {HEADER}")]
    NoCookie,
}

/// A DHCP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// [`BOOTREQUEST`] or [`BOOTREPLY`].
    pub op: u8,
    /// Hardware type, 1 for Ethernet.
    pub hardware_type: u8,
    /// Length of the address in `hardware_address`.
    pub hardware_length: u8,
    /// Relays passed.
    pub hops: u8,
    /// Transaction id chosen by the client.
    pub transaction: u32,
    /// Seconds since the client began.
    pub seconds: u16,
    /// True when the client cannot take a unicast before it has its address.
    pub broadcast: bool,
    /// The address that the client has and answers ARP for.
    pub client_address: Ipv4Addr,
    /// The address given by the server.
    pub your_address: Ipv4Addr,
    /// The next server: where the boot file is.
    pub server_address: Ipv4Addr,
    /// The relay that passed this on, or 0.0.0.0.
    pub relay_address: Ipv4Addr,
    /// `chaddr`, padded with zeros.
    pub hardware_address: [u8; 16],
    /// `file`, up to the first NUL. At most 127 bytes are sent.
    pub file: Vec<u8>,
    /// Options of all areas.
    pub options: Options,
}

impl Message {
    /// Reads a message. Options are taken from the options field, then, when overloaded
    /// (RFC 2132 §9.3), from `file` and `sname`, in the order of RFC 3396 §5.
    ///
    /// # Errors
    /// Only when header or cookie are missing: malformed options are survived.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let too_short = ParseError::TooShort { found: bytes.len() };
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or(too_short)?;
        let (cookie, area) = rest.split_at_checked(COOKIE.len()).ok_or(too_short)?;
        if cookie != COOKIE {
            return Err(ParseError::NoCookie);
        }
        let mut options = Options::new();
        options.walk(area);
        let overload = match options.get(code::OVERLOAD) {
            Some([bits, ..]) => *bits,
            _ => 0,
        };
        let mut file = until_nul(&header[FILE]).to_vec();
        if overload & 1 != 0 {
            file.clear();
            options.walk(&header[FILE]);
        }
        if overload & 2 != 0 {
            options.walk(&header[SNAME]);
        }
        let mut hardware_address = [0; 16];
        hardware_address.copy_from_slice(&header[28..44]);
        Ok(Self {
            op: header[0],
            hardware_type: header[1],
            hardware_length: header[2],
            hops: header[3],
            transaction: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            seconds: u16::from_be_bytes([header[8], header[9]]),
            broadcast: u16::from_be_bytes([header[10], header[11]]) & BROADCAST_FLAG != 0,
            client_address: address_at(header, 12),
            your_address: address_at(header, 16),
            server_address: address_at(header, 20),
            relay_address: address_at(header, 24),
            hardware_address,
            file,
            options,
        })
    }

    /// The bytes to send, padded to 300 after End.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let ample = Layout {
            options: usize::MAX,
            file: 0,
            server_name: 0,
        };
        let (areas, _) = self.options.place_some(&[], ample);
        self.write(areas)
    }

    /// The bytes of an answer to `request`: options in the order the client asked for them (option 55)
    /// and no longer than what it takes (option 57). When the options field is too small for that, they
    /// go on in `sname` and then in `file`, whose name the option 67 has as well (overload, RFC 2131
    /// §4.1); what has no room even there is left out.
    #[must_use]
    pub fn emit_for(&self, request: &Self) -> Vec<u8> {
        let asked = request.options.get(code::PARAMETER_LIST).unwrap_or(&[]);
        let room = request.largest_reply() - HEADER - COOKIE.len();
        let layout = |file, server_name| Layout {
            options: room,
            file,
            server_name,
        };
        // Firmware reads the file's name in the header: that field is the last to be given up.
        let spare_file = if self.file.is_empty() || self.options.get(code::BOOT_FILE).is_some() {
            FILE.len()
        } else {
            0
        };
        let smaller = [layout(0, 0), layout(0, SNAME.len())];
        let fitting = smaller
            .into_iter()
            .find_map(|layout| self.options.place(asked, layout));
        let areas = fitting.unwrap_or_else(|| {
            let layout = layout(spare_file, SNAME.len());
            self.options.place_some(asked, layout).0
        });
        self.write(areas)
    }

    /// The longest message, in bytes of UDP payload, that this client takes: its option 57, at least the
    /// 576 bytes that every client has to (RFC 2131 §2), at most what Ethernet carries. Some count the
    /// headers of IP and UDP in it and some do not, so they are taken off.
    #[must_use]
    pub fn largest_reply(&self) -> usize {
        let said = self.options.u16(code::MAX_SIZE).unwrap_or(0);
        usize::from(said.clamp(576, 1500)) - IP_AND_UDP
    }

    fn write(&self, areas: Areas) -> Vec<u8> {
        let mut out = Vec::with_capacity(576);
        out.extend([self.op, self.hardware_type, self.hardware_length, self.hops]);
        out.extend(self.transaction.to_be_bytes());
        out.extend(self.seconds.to_be_bytes());
        out.extend(if self.broadcast { BROADCAST_FLAG } else { 0 }.to_be_bytes());
        for address in [
            self.client_address,
            self.your_address,
            self.server_address,
            self.relay_address,
        ] {
            out.extend(address.octets());
        }
        out.extend(self.hardware_address);
        out.extend(areas.server_name);
        out.resize(FILE.start, 0);
        if areas.file.is_empty() {
            out.extend(self.file.iter().take(FILE.len() - 1));
        } else {
            out.extend(areas.file);
        }
        out.resize(HEADER, 0);
        out.extend(COOKIE);
        out.extend(areas.options);
        if out.len() < MINIMUM_LENGTH {
            out.resize(MINIMUM_LENGTH, 0);
        }
        out
    }

    /// A client's message with these options: no address, no relay, not asking for a broadcast, first
    /// second (RFC 2131 §4.4.1, table 5).
    #[must_use]
    pub fn of_client(mac: MacAddress, transaction: u32, options: Options) -> Self {
        let mut hardware_address = [0; 16];
        hardware_address[..6].copy_from_slice(&mac.bytes());
        Self {
            op: BOOTREQUEST,
            hardware_type: 1,
            hardware_length: 6,
            hops: 0,
            transaction,
            seconds: 0,
            broadcast: false,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            server_address: Ipv4Addr::UNSPECIFIED,
            relay_address: Ipv4Addr::UNSPECIFIED,
            hardware_address,
            file: Vec::new(),
            options,
        }
    }

    /// The empty reply to this request: same transaction, client, relay and broadcast flag
    /// (RFC 2131 §4.3.1, table 3).
    #[must_use]
    pub fn reply(&self, kind: MessageType) -> Self {
        let mut options = Options::new();
        options.set(code::MESSAGE_TYPE, [kind.to_byte()]);
        Self {
            op: BOOTREPLY,
            hardware_type: self.hardware_type,
            hardware_length: self.hardware_length,
            hops: 0,
            transaction: self.transaction,
            seconds: 0,
            broadcast: self.broadcast,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            server_address: Ipv4Addr::UNSPECIFIED,
            relay_address: self.relay_address,
            hardware_address: self.hardware_address,
            file: Vec::new(),
            options,
        }
    }

    /// The message type, if there is one that we know.
    #[must_use]
    pub fn message_type(&self) -> Option<MessageType> {
        match self.options.get(code::MESSAGE_TYPE)? {
            [byte] => MessageType::from_byte(*byte),
            _ => None,
        }
    }

    /// The client's Ethernet address; `None` for other hardware.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        if self.hardware_type != 1 || self.hardware_length != 6 {
            return None;
        }
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&self.hardware_address[..6]);
        Some(MacAddress::new(bytes))
    }
}

fn address_at(header: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::{Decodable, Decoder, v4};
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    fn discover() -> Message {
        let mut options = Options::new();
        options.set(code::MESSAGE_TYPE, [1]);
        Message {
            op: BOOTREQUEST,
            hardware_type: 1,
            hardware_length: 6,
            hops: 0,
            transaction: 0x1234_5678,
            seconds: 4,
            broadcast: true,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            server_address: Ipv4Addr::UNSPECIFIED,
            relay_address: Ipv4Addr::UNSPECIFIED,
            hardware_address: [0x52, 0x54, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            file: Vec::new(),
            options,
        }
    }

    #[test]
    fn a_reply_is_padded_to_300_bytes_after_end() {
        let bytes = discover().reply(MessageType::Offer).emit();
        assert_eq!(bytes.len(), 300);
        assert_eq!(&bytes[240..244], [53, 1, 2, 255]);
        assert!(bytes[244..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn overloaded_fields_are_joined_in_order() {
        let mut bytes = discover().emit();
        bytes.truncate(240);
        bytes.extend([53, 1, 1, 52, 1, 3, 60, 3, b'P', b'X', b'E', 255]);
        bytes[108..114].copy_from_slice(&[60, 3, b'C', b'l', b'i', 255]);
        bytes[44..50].copy_from_slice(&[60, 3, b'e', b'n', b't', 255]);
        let message = Message::parse(&bytes).expect("a message");
        assert_eq!(message.options.get(60), Some(&b"PXEClient"[..]));
        assert!(message.file.is_empty());
    }

    #[test]
    fn short_and_cookieless_packets_are_told_apart() {
        let bytes = discover().emit();
        assert_eq!(
            Message::parse(&bytes[..239]),
            Err(ParseError::TooShort { found: 239 })
        );
        let mut plain = bytes;
        plain[236] = 0;
        assert_eq!(Message::parse(&plain), Err(ParseError::NoCookie));
    }

    #[test]
    fn an_independent_reader_understands_what_is_emitted() {
        let mut reply = discover().reply(MessageType::Ack);
        reply.your_address = Ipv4Addr::new(10, 77, 0, 100);
        reply.file = b"undionly.kpxe".to_vec();
        reply
            .options
            .set(code::SERVER_ID, [10, 77, 0, 1])
            .set(code::LEASE_TIME, [0, 0, 14, 16]);
        let bytes = reply.emit();
        let read = v4::Message::decode(&mut Decoder::new(&bytes)).expect("dhcproto reads it");
        assert_eq!(read.yiaddr(), reply.your_address);
        assert_eq!(read.opts().msg_type(), Some(v4::MessageType::Ack));
        assert_eq!(
            read.opts().get(v4::OptionCode::AddressLeaseTime),
            Some(&v4::DhcpOption::AddressLeaseTime(3600))
        );
    }

    /// An answer with a boot file and more options than 576 bytes hold, and the request it is for.
    fn long_answer(padding: usize) -> (Message, Message) {
        let request = discover();
        let mut reply = request.reply(MessageType::Offer);
        reply.file = b"boot/for/me".to_vec();
        reply
            .options
            .set(code::SERVER_ID, [10, 77, 0, 1])
            .set(code::LEASE_TIME, [0, 0, 14, 16])
            .set_c_string(code::BOOT_FILE, "boot/for/me")
            .set(code::CLIENT_ID, vec![7; padding])
            .set(code::DNS, [10, 77, 0, 2])
            .set(code::ROUTER, [10, 77, 0, 1])
            .set(code::RELAY_INFORMATION, vec![1; 40]);
        (request, reply)
    }

    #[test]
    fn options_go_on_in_the_name_fields_when_the_client_takes_no_more() {
        for (padding, overload, keeps_file) in [
            (200, None, true),
            (223, Some(2), true),
            (230, Some(2), true),
        ] {
            let (request, reply) = long_answer(padding);
            let bytes = reply.emit_for(&request);
            assert!(bytes.len() <= 548, "{padding}: {}", bytes.len());
            let read = Message::parse(&bytes).expect("our own bytes");
            assert_eq!(
                read.options.get(code::OVERLOAD).map(|value| value[0]),
                overload
            );
            assert_eq!(!read.file.is_empty(), keeps_file);
            for (code, value) in reply.options.iter() {
                assert_eq!(
                    read.options.get(code),
                    Some(value),
                    "{padding}: option {code}"
                );
            }
            let end = bytes.len() - 1;
            assert_eq!(bytes[end], code::END);
            assert_eq!(bytes[end - 42..end - 40], [code::RELAY_INFORMATION, 40]);
        }
    }

    #[test]
    fn the_file_field_is_given_up_last_and_its_name_is_in_the_option() {
        let (request, mut reply) = long_answer(255);
        reply.options.set(code::VENDOR_SPECIFIC, vec![9; 100]);
        let bytes = reply.emit_for(&request);
        let read = Message::parse(&bytes).expect("our own bytes");
        assert_eq!(read.options.get(code::OVERLOAD), Some(&[3][..]));
        assert_eq!(
            read.options.text(code::BOOT_FILE).as_deref(),
            Some("boot/for/me")
        );
        assert_eq!(read.options.get(code::VENDOR_SPECIFIC), Some(&[9; 100][..]));
        let independent = v4::Message::decode(&mut Decoder::new(&bytes));
        assert!(independent.is_ok(), "{independent:?}");
    }

    #[test]
    fn a_client_that_takes_long_messages_gets_one() {
        let (mut request, reply) = long_answer(255);
        request.options.set(code::MAX_SIZE, 1472_u16.to_be_bytes());
        let read = Message::parse(&reply.emit_for(&request)).expect("our own bytes");
        assert_eq!(read.options.get(code::OVERLOAD), None);
        // Nonsense is no smaller than what every client takes.
        request.options.set(code::MAX_SIZE, [0, 1]);
        assert_eq!(request.largest_reply(), 548);
    }

    proptest! {
        #[test]
        fn no_answer_is_longer_than_its_client_takes(
            said in any::<u16>(),
            asked in prop::collection::vec(any::<u8>(), 0..12),
            options in prop::collection::vec((1_u8..255, prop::collection::vec(any::<u8>(), 0..300)), 0..12),
        ) {
            let mut request = discover();
            request.options.set(code::MAX_SIZE, said.to_be_bytes()).set(code::PARAMETER_LIST, asked);
            let mut reply = request.reply(MessageType::Ack);
            for (code, value) in options {
                // Relay information is always echoed whole, however long.
                if ![code::OVERLOAD, code::RELAY_INFORMATION, code::MESSAGE_TYPE].contains(&code) {
                    reply.options.set(code, value);
                }
            }
            let bytes = reply.emit_for(&request);
            prop_assert!(bytes.len() <= request.largest_reply());
            let read = Message::parse(&bytes).expect("our own bytes");
            prop_assert_eq!(read.message_type(), Some(MessageType::Ack));
            for (code, value) in read.options.iter().filter(|(code, _)| *code != code::OVERLOAD) {
                prop_assert_eq!(reply.options.get(code), Some(value));
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..800)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn no_options_make_the_parser_panic(area in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut bytes = discover().emit();
            bytes.truncate(240);
            bytes.extend(area);
            let message = Message::parse(&bytes).expect("header and cookie are whole");
            prop_assert!(message.options.iter().map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
        }

        #[test]
        fn what_is_emitted_is_read_back(
            transaction: u32,
            broadcast: bool,
            address: [u8; 4],
            file in "[a-z/.]{0,127}",
            options in prop::collection::vec((1_u8..255, prop::collection::vec(any::<u8>(), 0..300)), 0..8),
        ) {
            let mut message = discover();
            message.transaction = transaction;
            message.broadcast = broadcast;
            message.your_address = address.into();
            message.file = file.into_bytes();
            for (code, value) in options {
                // Overload would make the parser look for options in `file`.
                if code != code::OVERLOAD {
                    message.options.set(code, value);
                }
            }
            let read = Message::parse(&message.emit()).expect("our own bytes");
            prop_assert_eq!(read.file, message.file);
            prop_assert_eq!(read.transaction, transaction);
            prop_assert_eq!(read.broadcast, broadcast);
            for (code, value) in message.options.iter() {
                prop_assert_eq!(read.options.get(code), Some(value));
            }
            prop_assert_eq!(read.options.iter().count(), message.options.iter().count());
        }
    }
}
