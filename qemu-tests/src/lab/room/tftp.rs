//! TFTP as OVMF speaks it: ask for the size, abort, fetch with windows.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use protocol::tftp::{ErrorCode, Packet, Request};

use super::BootError;

const BLOCK_SIZE: &str = "1468";
const WINDOW: &str = "4";
/// EDK2 asks again after 4 s, at most so often.
const SILENCE: Duration = Duration::from_secs(4);
const TRIES: u32 = 6;
const LARGEST_PACKET: usize = 2048;

/// Fetches a file whose content is known.
pub(super) fn fetch(
    from: Ipv4Addr,
    server: SocketAddrV4,
    name: &str,
    content: &[u8],
) -> Result<(), BootError> {
    let size = probe(from, server, name)?;
    if size != content.len() as u64 {
        let said = format!("tsize {size}, the file has {} bytes", content.len());
        return Err(BootError::answer(name, said));
    }
    Fetch::start(from, server, name)?.to_end(content)
}

fn request(name: &str, windows: bool) -> Vec<u8> {
    let mut options: Vec<(&[u8], &[u8])> =
        vec![(b"tsize", b"0"), (b"blksize", BLOCK_SIZE.as_bytes())];
    if windows {
        options.push((b"windowsize", WINDOW.as_bytes()));
    }
    let name = name.as_bytes();
    let mode = b"octet".as_slice();
    Packet::Read(Request {
        name,
        mode,
        options,
    })
    .emit()
}

/// The size that the server tells; the transfer is ended by ERROR 8, as OVMF ends it.
fn probe(from: Ipv4Addr, server: SocketAddrV4, name: &str) -> Result<u64, BootError> {
    let fetch = Fetch::open(from, server, name, request(name, false))?;
    let size = match Packet::parse(&fetch.first) {
        Ok(Packet::OptionAcknowledge { options }) => options
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(b"tsize"))
            .and_then(|(_, size)| std::str::from_utf8(size).ok()?.parse().ok()),
        _ => None,
    };
    let abort = Packet::Error {
        code: ErrorCode::OptionRefused,
        message: b"User aborted the transfer",
    };
    fetch.send(&abort)?;
    size.ok_or_else(|| BootError::answer(name, fetch.describe_first()))
}

struct Fetch<'a> {
    socket: UdpSocket,
    name: &'a str,
    /// The first packet of the server.
    first: Vec<u8>,
}

impl<'a> Fetch<'a> {
    fn start(from: Ipv4Addr, server: SocketAddrV4, name: &'a str) -> Result<Self, BootError> {
        Self::open(from, server, name, request(name, true))
    }

    fn open(
        from: Ipv4Addr,
        server: SocketAddrV4,
        name: &'a str,
        request: Vec<u8>,
    ) -> Result<Self, BootError> {
        let ask = || {
            let socket = UdpSocket::bind((from, 0))?;
            socket.set_read_timeout(Some(SILENCE))?;
            let mut buffer = [0; LARGEST_PACKET];
            for _ in 0..TRIES {
                socket.send_to(&request, server)?;
                if let Ok((len, SocketAddr::V4(sender))) = socket.recv_from(&mut buffer)
                    && sender.ip() == server.ip()
                {
                    socket.connect(sender)?;
                    return Ok(Some((socket, buffer[..len].to_vec())));
                }
            }
            Ok(None)
        };
        match ask().map_err(BootError::socket(name))? {
            Some((socket, first)) => Ok(Self {
                socket,
                name,
                first,
            }),
            None => Err(BootError::Silent {
                step: format!("TFTP of {name}"),
            }),
        }
    }

    fn to_end(&self, content: &[u8]) -> Result<(), BootError> {
        let Ok(Packet::OptionAcknowledge { options }) = Packet::parse(&self.first) else {
            return Err(BootError::answer(self.name, self.describe_first()));
        };
        let agreed = |wanted: &[u8], default| {
            let option = options
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            option
                .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse::<usize>().ok())
                .unwrap_or(default)
        };
        let (block_size, window) = (agreed(b"blksize", 512), agreed(b"windowsize", 1));
        let blocks = content.len() / block_size + 1;
        let (mut have, mut since, mut tries) = (0_usize, 0, 0);
        self.send(&Packet::Acknowledge { block: 0 })?;
        let mut buffer = [0; LARGEST_PACKET];
        while have < blocks {
            let Ok(len) = self.socket.recv(&mut buffer) else {
                tries += 1;
                if tries == TRIES {
                    return Err(BootError::Silent {
                        step: format!("block {have} of {}", self.name),
                    });
                }
                self.acknowledge(have)?;
                continue;
            };
            match Packet::parse(&buffer[..len]) {
                Ok(Packet::Data { block, payload }) if usize::from(block) == (have + 1) % 65536 => {
                    let start = have * block_size;
                    let end = content.len().min(start + block_size);
                    if payload != &content[start..end] {
                        let said = format!("block {} is not what the file has", have + 1);
                        return Err(BootError::answer(self.name, said));
                    }
                    have += 1;
                    since += 1;
                    tries = 0;
                    if since == window || have == blocks {
                        since = 0;
                        self.acknowledge(have)?;
                    }
                }
                Ok(Packet::Error { message, .. }) => {
                    let said = String::from_utf8_lossy(message).into_owned();
                    return Err(BootError::answer(self.name, said));
                }
                // A gap or an old block: what is here is told once the window is over.
                Ok(Packet::Data { .. }) if since > 0 => {
                    since = 0;
                    self.acknowledge(have)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn acknowledge(&self, have: usize) -> Result<(), BootError> {
        let block = (have % 65536) as u16;
        self.send(&Packet::Acknowledge { block })
    }

    fn send(&self, packet: &Packet<'_>) -> Result<(), BootError> {
        let sent = self.socket.send(&packet.emit());
        sent.map(drop).map_err(BootError::socket(self.name))
    }

    fn describe_first(&self) -> String {
        match Packet::parse(&self.first) {
            Ok(Packet::Error { code, message }) => {
                format!(
                    "error {}: {}",
                    code.to_u16(),
                    String::from_utf8_lossy(message)
                )
            }
            other => format!("{other:?}").chars().take(80).collect(),
        }
    }
}
