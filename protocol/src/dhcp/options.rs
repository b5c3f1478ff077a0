//! The option area: a tolerant walk over what clients send, and emission in an order of our own.

/// Option codes used by this product (IANA "BOOTP Vendor Extensions and DHCP Options").
pub mod code {
    /// Subnet mask, RFC 2132 §3.3.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers, RFC 2132 §3.5.
    pub const ROUTER: u8 = 3;
    /// Domain name servers, RFC 2132 §3.8.
    pub const DNS: u8 = 6;
    /// Host name, RFC 2132 §3.14.
    pub const HOST_NAME: u8 = 12;
    /// Broadcast address, RFC 2132 §5.3.
    pub const BROADCAST: u8 = 28;
    /// Vendor-specific information; PXE puts its sub-options here, RFC 2132 §8.4.
    pub const VENDOR_SPECIFIC: u8 = 43;
    /// Requested address, RFC 2132 §9.1.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time in seconds, RFC 2132 §9.2.
    pub const LEASE_TIME: u8 = 51;
    /// Option overload, RFC 2132 §9.3.
    pub const OVERLOAD: u8 = 52;
    /// Message type, RFC 2132 §9.6.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Server identifier, RFC 2132 §9.7.
    pub const SERVER_ID: u8 = 54;
    /// Parameter request list, RFC 2132 §9.8.
    pub const PARAMETER_LIST: u8 = 55;
    /// A sentence for a person, RFC 2132 §9.9.
    pub const MESSAGE: u8 = 56;
    /// Largest message the client takes, RFC 2132 §9.10.
    pub const MAX_SIZE: u8 = 57;
    /// Renewal time T1 in seconds, RFC 2132 §9.11.
    pub const RENEWAL_TIME: u8 = 58;
    /// Rebinding time T2 in seconds, RFC 2132 §9.12.
    pub const REBINDING_TIME: u8 = 59;
    /// Vendor class, `PXEClient:…` or `HTTPClient:…`, RFC 2132 §9.13.
    pub const VENDOR_CLASS: u8 = 60;
    /// Client identifier, RFC 2132 §9.14.
    pub const CLIENT_ID: u8 = 61;
    /// TFTP server name, RFC 2132 §9.4.
    pub const TFTP_SERVER: u8 = 66;
    /// Boot file name, RFC 2132 §9.5.
    pub const BOOT_FILE: u8 = 67;
    /// User class, RFC 3004; iPXE sends it raw.
    pub const USER_CLASS: u8 = 77;
    /// Relay agent information, RFC 3046.
    pub const RELAY_INFORMATION: u8 = 82;
    /// Client system architectures, RFC 4578 §2.1.
    pub const CLIENT_ARCHITECTURE: u8 = 93;
    /// Client machine identifier, RFC 4578 §2.3.
    pub const CLIENT_MACHINE: u8 = 97;
    /// Subnet selection, RFC 3011.
    pub const SUBNET_SELECTION: u8 = 118;
    /// iPXE encapsulated options (ipxe.org/howto/dhcpd).
    pub const IPXE: u8 = 175;
    /// This product's server, as a URL (`http://10.0.0.1:8080`) without a NUL; asked for by class
    /// [`AGENT_CLASS`](super::super::AGENT_CLASS). Site-specific, RFC 3942 §2.
    pub const NETBOOT_SERVER: u8 = 224;
    /// Padding, RFC 2132 §3.1.
    pub const PAD: u8 = 0;
    /// End of the area, RFC 2132 §3.2.
    pub const END: u8 = 255;
}

/// Options in the order first seen, parts of one option joined (RFC 3396 §7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    entries: Vec<(u8, Vec<u8>)>,
    truncated: bool,
}

impl Options {
    /// No options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Walks one area (the options field, `file` or `sname`) and joins what it finds to what is
    /// here already. An option that claims more bytes than the area has ends the walk; everything
    /// before it is kept, and [`Options::is_truncated`] tells.
    pub(super) fn walk(&mut self, area: &[u8]) {
        let mut rest = area;
        while let Some((&code, after)) = rest.split_first() {
            match code {
                code::PAD => rest = after,
                code::END => return,
                _ => {
                    let Some((&length, body)) = after.split_first() else {
                        self.truncated = true;
                        return;
                    };
                    let Some((value, next)) = body.split_at_checked(usize::from(length)) else {
                        self.truncated = true;
                        return;
                    };
                    self.append(code, value);
                    rest = next;
                }
            }
        }
    }

    fn append(&mut self, code: u8, value: &[u8]) {
        match self.entries.iter_mut().find(|(known, _)| *known == code) {
            Some((_, whole)) => whole.extend_from_slice(value),
            None => self.entries.push((code, value.to_vec())),
        }
    }

    /// Sets an option. The codes 0 and 255 are marks, not options, and are ignored.
    pub fn set(&mut self, code: u8, value: impl Into<Vec<u8>>) -> &mut Self {
        if code != code::PAD && code != code::END {
            self.entries.retain(|(known, _)| *known != code);
            self.entries.push((code, value.into()));
        }
        self
    }

    /// Sets a text option with a NUL after it: PXE firmware reads 66 and 67 as C strings.
    pub fn set_c_string(&mut self, code: u8, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.set(code, value)
    }

    /// The option's bytes, all its parts joined.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, value)| value.as_slice())
    }

    /// A four-byte option as an IPv4 address.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<std::net::Ipv4Addr> {
        let bytes: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(bytes.into())
    }

    /// A four-byte option as a number.
    #[must_use]
    pub fn u32(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// A two-byte option as a number.
    #[must_use]
    pub fn u16(&self, code: u8) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// A text option up to its first NUL, with anything that is not UTF-8 replaced.
    #[must_use]
    pub fn text(&self, code: u8) -> Option<String> {
        let value = self.get(code)?;
        let end = value
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(value.len());
        Some(String::from_utf8_lossy(&value[..end]).into_owned())
    }

    /// All options, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.entries
            .iter()
            .map(|(code, value)| (*code, value.as_slice()))
    }

    /// True when the walk met an option that was longer than the packet.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The options in the order they are sent: message type and server identifier first, because some
    /// firmware looks no further, then the lease time; what the client asked for, in its order (RFC 2132
    /// §9.8); the others; relay information last, as RFC 3046 §2.2 asks.
    fn ordered<'a>(&'a self, asked: &[u8]) -> Vec<(u8, &'a [u8])> {
        let rank = |code: u8| {
            let place = FIRST.iter().chain(asked).position(|&other| other == code);
            match place {
                _ if code == code::RELAY_INFORMATION => (2, 0),
                Some(place) => (0, place),
                None => (1, 0),
            }
        };
        let mut entries: Vec<_> = self.iter().collect();
        // Stable: the others stay in the order they were set in.
        entries.sort_by_key(|(code, _)| rank(*code));
        entries
    }

    /// The contents of the areas of `layout`, End included. `None` when the options need more room.
    pub(super) fn place(&self, asked: &[u8], layout: Layout) -> Option<Areas> {
        let (areas, left_out) = self.place_some(asked, layout);
        (left_out == 0).then_some(areas)
    }

    /// The same; what has no room is left out, from the end of the order, and counted.
    pub(super) fn place_some(&self, asked: &[u8], layout: Layout) -> (Areas, usize) {
        let mut entries = self.ordered(asked);
        // Its place is the end of the options field, whatever comes before.
        let relay = entries.pop_if(|(code, _)| *code == code::RELAY_INFORMATION);
        let mut end = Vec::new();
        if let Some((code, value)) = relay {
            emit_option(&mut end, code, value);
        }
        end.push(code::END);
        let overload = layout.overload();
        let mut areas = [
            Area::new(layout.options.saturating_sub(end.len())),
            Area::new(layout.file.saturating_sub(1)),
            Area::new(layout.server_name.saturating_sub(1)),
        ];
        let mut left_out = 0;
        for (index, (code, value)) in entries.into_iter().enumerate() {
            if index == 1 && overload != 0 {
                // Early: a reader has to know before it ends.
                areas[0].bytes.extend([code::OVERLOAD, 1, overload]);
            }
            left_out += usize::from(!put(&mut areas, code, value));
        }
        let [mut options, mut file, mut server_name] = areas.map(|area| area.bytes);
        options.extend(end);
        for field in [&mut file, &mut server_name] {
            if !field.is_empty() {
                field.push(code::END);
            }
        }
        let areas = Areas {
            options,
            file,
            server_name,
        };
        (areas, left_out)
    }
}

/// Sent before everything else.
const FIRST: [u8; 3] = [code::MESSAGE_TYPE, code::SERVER_ID, code::LEASE_TIME];

/// How much room options have, in bytes, in each area of a message; 0 in a header field that keeps its
/// own meaning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// The options field.
    pub(super) options: usize,
    /// `file`.
    pub(super) file: usize,
    /// `sname`.
    pub(super) server_name: usize,
}

impl Layout {
    /// The value of option 52 (RFC 2132 §9.3), 0 when it is not sent.
    fn overload(self) -> u8 {
        u8::from(self.file > 0) | u8::from(self.server_name > 0) << 1
    }
}

/// What is in each area of a message.
pub(super) struct Areas {
    /// The options field.
    pub(super) options: Vec<u8>,
    /// `file`; empty when there are no options in it.
    pub(super) file: Vec<u8>,
    /// `sname`; empty when there are no options in it.
    pub(super) server_name: Vec<u8>,
}

struct Area {
    bytes: Vec<u8>,
    room: usize,
}

impl Area {
    fn new(room: usize) -> Self {
        let bytes = Vec::with_capacity(room.min(576));
        Self { bytes, room }
    }

    fn takes(&self, length: usize) -> bool {
        self.bytes.len() + length <= self.room
    }
}

/// Writes an option, in parts of at most 255 bytes, into the areas in the order in which they are read:
/// no part goes before an earlier one. All of it or nothing.
fn put(areas: &mut [Area; 3], code: u8, value: &[u8]) -> bool {
    let before = areas.each_ref().map(|area| area.bytes.len());
    let mut at = 0;
    let parts: Vec<&[u8]> = if value.is_empty() {
        vec![&[]]
    } else {
        // Smaller ones fit header fields too, but readers that join parts (RFC 3396) are few: only what
        // has to be split is.
        value.chunks(255).collect()
    };
    for part in parts {
        while at < areas.len() && !areas[at].takes(2 + part.len()) {
            at += 1;
        }
        let Some(area) = areas.get_mut(at) else {
            for (area, length) in areas.iter_mut().zip(before) {
                area.bytes.truncate(length);
            }
            return false;
        };
        // chunks(255) never yields more than 255 bytes.
        let length = u8::try_from(part.len()).unwrap_or(u8::MAX);
        area.bytes.extend([code, length]);
        area.bytes.extend_from_slice(part);
    }
    true
}

fn emit_option(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    if value.is_empty() {
        out.extend([code, 0]);
    }
    for part in value.chunks(255) {
        // chunks(255) never yields more than 255 bytes.
        out.extend([code, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(area: &[u8]) -> Options {
        let mut options = Options::new();
        options.walk(area);
        options
    }

    const AMPLE: Layout = Layout {
        options: usize::MAX,
        file: 0,
        server_name: 0,
    };

    fn emitted(options: &Options, asked: &[u8]) -> Vec<u8> {
        options.place(asked, AMPLE).expect("room").options
    }

    #[test]
    fn what_the_client_asked_for_comes_in_its_order() {
        let mut options = Options::new();
        options
            .set(1, [])
            .set(3, [])
            .set(6, [])
            .set(51, [])
            .set(54, [])
            .set(53, [2]);
        let codes = |asked: &[u8]| {
            let mut rest = &emitted(&options, asked)[..];
            let mut codes = Vec::new();
            while let [code, length, after @ ..] = rest {
                codes.push(*code);
                rest = &after[usize::from(*length)..];
            }
            codes
        };
        assert_eq!(codes(&[6, 1, 53]), [53, 54, 51, 6, 1, 3]);
        assert_eq!(codes(&[]), [53, 54, 51, 1, 3, 6]);
    }

    #[test]
    fn what_has_no_room_is_left_out_from_the_end_and_relay_information_never() {
        let mut options = Options::new();
        options
            .set(82, [1, 1, 7])
            .set(53, [2])
            .set(54, [10, 0, 0, 1])
            .set(60, [0; 40])
            .set(1, [255, 0, 0, 0]);
        let layout = Layout {
            options: 30,
            ..AMPLE
        };
        assert!(options.place(&[], layout).is_none());
        let (areas, left_out) = options.place_some(&[], layout);
        assert_eq!(left_out, 1);
        assert_eq!(
            areas.options,
            [
                53, 1, 2, 54, 4, 10, 0, 0, 1, 1, 4, 255, 0, 0, 0, 82, 3, 1, 1, 7, 255
            ]
        );
    }

    #[test]
    fn parts_of_one_option_are_joined() {
        let options = walked(&[67, 2, b'a', b'b', 0, 12, 1, b'h', 67, 1, b'c', 255, 9, 9]);
        assert_eq!(options.get(67), Some(&b"abc"[..]));
        assert_eq!(options.get(12), Some(&b"h"[..]));
        assert_eq!(options.get(9), None);
    }

    #[test]
    fn an_option_longer_than_the_packet_keeps_what_came_before() {
        let options = walked(&[53, 1, 1, 60, 200, b'P']);
        assert_eq!(options.get(53), Some(&[1][..]));
        assert_eq!(options.get(60), None);
        assert!(options.is_truncated());
    }

    #[test]
    fn message_type_and_server_go_first_and_relay_information_last() {
        let mut options = Options::new();
        options
            .set(82, [1, 1, 7])
            .set(51, [0, 0, 0, 9])
            .set(54, [10, 0, 0, 1])
            .set(53, [2]);
        let out = emitted(&options, &[]);
        assert_eq!(
            out,
            [
                53, 1, 2, 54, 4, 10, 0, 0, 1, 51, 4, 0, 0, 0, 9, 82, 3, 1, 1, 7, 255
            ]
        );
    }

    #[test]
    fn a_long_value_is_split_and_joined_again() {
        let value: Vec<u8> = (0..=255).cycle().take(600).collect();
        let mut options = Options::new();
        options.set(43, value.clone());
        let out = emitted(&options, &[]);
        assert_eq!(walked(&out).get(43), Some(&value[..]));
    }
}
