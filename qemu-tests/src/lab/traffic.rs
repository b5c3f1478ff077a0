//! What a machine's cable carried: bytes of each protocol, and what the machine asked for when.
//!
//! Pure: frames and their times in, numbers out. An independent account of a boot beside the server's own
//! time line. Invariant: memory grows with requests, not with bytes. Not here: who was right.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::dhcp_sighting::dhcp_in_frame;

const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// DHCP, PXE's boot server, TFTP and HTTP (IANA's port numbers).
const DHCP_PORTS: [u16; 3] = [67, 68, 4011];
const TFTP_PORT: u16 = 69;
const HTTP_PORT: u16 = 80;
/// A read request (RFC 1350 §5).
const TFTP_READ: [u8; 2] = [0, 1];
/// Requests kept; a machine that asks for more than this is broken.
const MOST_REQUESTS: usize = 4096;
/// Characters kept of what was asked for.
const LONGEST_NAME: usize = 160;
/// How the Ethernet addresses of the lab's machines begin: QEMU's own range.
const MACHINES: [u8; 3] = [0x52, 0x54, 0];

/// What is told apart on a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// DHCP and PXE.
    Dhcp,
    /// TFTP.
    Tftp,
    /// HTTP.
    Http,
    /// Everything else: ARP, IPv6, the agent's other ports.
    Other,
}

/// Something that a machine asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// When.
    pub(crate) at: SystemTime,
    /// By which protocol: DHCP, TFTP or HTTP.
    pub(crate) protocol: Protocol,
    /// A DHCP message type with the vendor class, a file name, or a method and a path.
    pub(crate) what: String,
}

/// Everything that was counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    /// Bytes of DHCP frames.
    pub(crate) dhcp: u64,
    /// Bytes of TFTP frames, acknowledgements included.
    pub(crate) tftp: u64,
    /// Bytes of HTTP frames.
    pub(crate) http: u64,
    /// Bytes of all other frames.
    pub(crate) other: u64,
    /// What was asked for, in order.
    pub(crate) requests: Vec<Request>,
    /// When an operating system first asked for an address: DHCP without the class of boot firmware.
    pub(crate) system_at: Option<SystemTime>,
    /// The last frame of a file before that.
    pub(crate) files_done_at: Option<SystemTime>,
    /// Clients' ends of TFTP transfers.
    tftp_ends: HashSet<(Ipv4Addr, u16)>,
}

impl Traffic {
    /// Counts a frame.
    pub(crate) fn count(&mut self, at: SystemTime, frame: &[u8]) {
        let protocol = match Segment::of(frame) {
            None => Protocol::Other,
            Some(segment) => {
                let protocol = self.protocol(&segment);
                let what = match protocol {
                    Protocol::Dhcp => self.dhcp_request(at, frame),
                    _ => segment.request(protocol),
                };
                if let Some(what) = what
                    && self.requests.len() < MOST_REQUESTS
                {
                    self.requests.push(Request { at, protocol, what });
                }
                protocol
            }
        };
        if matches!(protocol, Protocol::Tftp | Protocol::Http) && self.system_at.is_none() {
            self.files_done_at = Some(at);
        }
        let counter = match protocol {
            Protocol::Dhcp => &mut self.dhcp,
            Protocol::Tftp => &mut self.tftp,
            Protocol::Http => &mut self.http,
            Protocol::Other => &mut self.other,
        };
        *counter += frame.len() as u64;
    }

    /// The time of the first request whose words contain these.
    pub(crate) fn first(&self, words: &str) -> Option<SystemTime> {
        let found = self.requests.iter().find(|one| one.what.contains(words));
        found.map(|one| one.at)
    }

    fn dhcp_request(&mut self, at: SystemTime, frame: &[u8]) -> Option<String> {
        let message = dhcp_in_frame(frame).filter(|message| !message.is_reply)?;
        // The server's own search for other DHCP servers reaches every cable.
        if !message.client.starts_with(&MACHINES) {
            return None;
        }
        let firmware = ["PXEClient", "HTTPClient"];
        let class = &message.vendor_class;
        if !firmware.iter().any(|prefix| class.starts_with(prefix)) {
            self.system_at.get_or_insert(at);
        }
        Some(format!("{} {class}", message.kind_name()))
    }

    fn protocol(&mut self, segment: &Segment<'_>) -> Protocol {
        let ports = [segment.from.1, segment.to.1];
        if segment.is_tcp {
            return if ports.contains(&HTTP_PORT) {
                Protocol::Http
            } else {
                Protocol::Other
            };
        }
        if segment.to.1 == TFTP_PORT {
            // The answer comes from another port (RFC 1350 §4); the client's stays.
            self.tftp_ends.insert(segment.from);
            return Protocol::Tftp;
        }
        if self.tftp_ends.contains(&segment.from) || self.tftp_ends.contains(&segment.to) {
            Protocol::Tftp
        } else if ports.iter().any(|port| DHCP_PORTS.contains(port)) {
            Protocol::Dhcp
        } else {
            Protocol::Other
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            dhcp,
            tftp,
            http,
            other,
            ..
        } = self;
        write!(
            f,
            "DHCP {dhcp} bytes, TFTP {tftp}, HTTP {http}, other {other}"
        )
    }
}

/// A TCP segment or UDP datagram over IPv4.
struct Segment<'a> {
    is_tcp: bool,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(14)?;
        if ethernet[12..14] != ETHERTYPE_IPV4 {
            return None;
        }
        let header = usize::from(*packet.first()? & 0x0f) * 4;
        let (header, transport) = packet.split_at_checked(header.max(20))?;
        let is_tcp = match header[9] {
            PROTOCOL_TCP => true,
            PROTOCOL_UDP => false,
            _ => return None,
        };
        let data_at = if is_tcp {
            usize::from(*transport.get(12)? >> 4) * 4
        } else {
            8
        };
        let port = |at: usize| {
            let bytes: [u8; 2] = transport.get(at..at + 2)?.try_into().ok()?;
            Some(u16::from_be_bytes(bytes))
        };
        let address = |at: usize| {
            let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        Some(Self {
            is_tcp,
            from: (address(12)?, port(0)?),
            to: (address(16)?, port(2)?),
            payload: transport.get(data_at..)?,
        })
    }

    fn request(&self, protocol: Protocol) -> Option<String> {
        let words = match protocol {
            Protocol::Tftp if self.to.1 == TFTP_PORT => {
                let name = self.payload.strip_prefix(&TFTP_READ)?;
                name.split(|&byte| byte == 0).next()?
            }
            Protocol::Http if self.to.1 == HTTP_PORT => {
                let methods: [&[u8]; 4] = [b"GET ", b"HEAD ", b"POST ", b"PUT "];
                methods.iter().find(|one| self.payload.starts_with(one))?;
                let line = self.payload.split(|&byte| byte == b'\r').next()?;
                line.strip_suffix(b" HTTP/1.1").unwrap_or(line)
            }
            _ => return None,
        };
        let words = &words[..words.len().min(LONGEST_NAME)];
        Some(String::from_utf8_lossy(words).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const MACHINE: [u8; 4] = [10, 0, 0, 100];
    const SERVER: [u8; 4] = [10, 0, 0, 1];

    fn frame(is_tcp: bool, from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV4);
        let mut header = [0; 20];
        header[0] = 0x45;
        header[9] = if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        header[12..16].copy_from_slice(&from.0);
        header[16..20].copy_from_slice(&to.0);
        frame.extend(header);
        let mut transport = vec![0; if is_tcp { 20 } else { 8 }];
        transport[0..2].copy_from_slice(&from.1.to_be_bytes());
        transport[2..4].copy_from_slice(&to.1.to_be_bytes());
        if is_tcp {
            transport[12] = 5 << 4;
        }
        frame.extend(transport);
        frame.extend(payload);
        frame
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_transfer_counts_as_tftp_from_whatever_port_its_data_comes() {
        let mut traffic = Traffic::default();
        let request = b"\0\x01shimx64.efi\0octet\0";
        traffic.count(at(1), &frame(false, (MACHINE, 2070), (SERVER, 69), request));
        traffic.count(
            at(2),
            &frame(false, (SERVER, 40000), (MACHINE, 2070), &[0; 512]),
        );
        traffic.count(
            at(3),
            &frame(false, (SERVER, 40000), (MACHINE, 2071), &[0; 7]),
        );
        assert_eq!(traffic.tftp, (42 + request.len() + 42 + 512) as u64);
        assert_eq!(traffic.other, 42 + 7);
        assert_eq!(traffic.first("shim"), Some(at(1)));
    }

    #[test]
    fn requests_are_named_and_answers_are_not() {
        let mut traffic = Traffic::default();
        let words = b"GET /boot/vmlinuz?mac=x HTTP/1.1\r\nHost: y\r\n\r\n";
        traffic.count(at(1), &frame(true, (MACHINE, 1025), (SERVER, 80), words));
        traffic.count(
            at(2),
            &frame(true, (SERVER, 80), (MACHINE, 1025), b"GET back"),
        );
        let asked: Vec<_> = traffic.requests.iter().map(|one| &one.what).collect();
        assert_eq!(asked, ["GET /boot/vmlinuz?mac=x"]);
        assert_eq!(traffic.dhcp + traffic.tftp + traffic.other, 0);
    }

    #[test]
    fn only_what_machines_ask_by_dhcp_is_a_request() {
        let mut bootp = vec![0; 240];
        bootp[0] = 1;
        bootp[236..].copy_from_slice(&[99, 130, 83, 99]);
        bootp.extend([53, 1, 1, 255]);
        let mut traffic = Traffic::default();
        let servers = [2, 0x36, 0x42, 0, 0, 1];
        for (second, card) in [(1, servers), (2, [0x52, 0x54, 0, 0x77, 2, 2])] {
            bootp[28..34].copy_from_slice(&card);
            let asked = frame(false, ([0; 4], 68), ([255; 4], 67), &bootp);
            traffic.count(at(second), &asked);
        }
        assert_eq!(traffic.system_at, Some(at(2)));
        assert_eq!(traffic.requests.len(), 1);
    }

    #[test]
    fn frames_that_are_cut_or_strange_are_counted_as_other() {
        let mut traffic = Traffic::default();
        let whole = frame(false, (MACHINE, 68), ([255; 4], 67), &[0; 300]);
        for length in 0..34 {
            traffic.count(at(1), &whole[..length]);
        }
        assert_eq!(traffic.other, (0..34).sum::<u64>());
        traffic.count(at(1), &whole);
        assert_eq!(traffic.dhcp, whole.len() as u64);
    }
}
