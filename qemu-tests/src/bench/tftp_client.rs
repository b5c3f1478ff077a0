//! A TFTP client with windows (RFC 1350, 2347, 2348, 7440) that is the same for every server.
//!
//! Invariant: what arrives is compared byte for byte with what should; a fetch that differs is no figure.
//! Not here: clients that nobody here wrote; the interoperability tests have those.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use protocol::tftp::{DATA_HEADER, DEFAULT_BLOCK_SIZE, Packet, Request};
use thiserror::Error;

/// A silence after which the last ACK is sent again.
const SILENCE: Duration = Duration::from_secs(1);
/// Silences until the server is given up.
const TRIES: u32 = 5;
/// Room for the largest window of the bench, so that no client's buffer overflows. Its own figures (64
/// blocks of 64 KiB) with what the kernel counts on top.
const RECEIVE_BUFFER: usize = 16 << 20;

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetch<'a> {
    /// Where.
    pub(crate) server: SocketAddr,
    /// The file.
    pub(crate) name: &'a str,
    /// Bytes of a block to ask for.
    pub(crate) block_size: u16,
    /// Blocks of a window to ask for.
    pub(crate) window: u16,
}

/// What a server agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Bytes of a block.
    pub(crate) block_size: u16,
    /// Blocks of a window.
    pub(crate) window: u16,
    /// How often the server was silent or blocks were missing.
    pub(crate) losses: u32,
}

/// A fetch that failed.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    /// The socket.
    #[error("the client's socket failed")]
    Socket(#[from] io::Error),
    /// The server said no.
    #[error("the server refused {name}: {message}")]
    Refused {
        /// The file.
        name: String,
        /// Its words.
        message: String,
    },
    /// The server said nothing.
    #[error("the server fell silent after {bytes} bytes of {name}")]
    Silent {
        /// The file.
        name: String,
        /// What had come.
        bytes: usize,
    },
    /// Other bytes than there should be.
    #[error("block {block} of {name} is not what the file has")]
    Differs {
        /// The file.
        name: String,
        /// Which block, counted without wrap.
        block: usize,
    },
    /// An option's answer that was not asked for or is no number.
    #[error("the server's answer to the options is wrong")]
    Options,
}

/// Fetches a file whose content is known.
pub(crate) fn fetch(ask: &Fetch<'_>, content: &[u8]) -> Result<Agreed, FetchError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // Beyond the system's limit with the right to; without, as much as it lets us.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(io::Error::from)?;
    }
    socket.set_read_timeout(Some(SILENCE))?;
    let (block_size, window) = (ask.block_size.to_string(), ask.window.to_string());
    let mut options: Vec<(&[u8], &[u8])> = vec![(b"blksize", block_size.as_bytes())];
    if ask.window > 1 {
        options.push((b"windowsize", window.as_bytes()));
    }
    let request = Packet::Read(Request {
        name: ask.name.as_bytes(),
        mode: b"octet",
        options,
    });
    let request = request.emit();
    socket.send_to(&request, ask.server)?;
    let mut buffer = vec![0; usize::from(u16::MAX) + DATA_HEADER];
    let silent = |bytes| FetchError::Silent {
        name: ask.name.to_owned(),
        bytes,
    };
    let mut tries = 0;
    let (mut len, server) = loop {
        match socket.recv_from(&mut buffer) {
            Ok(first) => break first,
            Err(error) if is_timeout(&error) && tries < TRIES => {
                tries += 1;
                socket.send_to(&request, ask.server)?;
            }
            Err(error) if is_timeout(&error) => return Err(silent(0)),
            Err(error) => return Err(error.into()),
        }
    };
    socket.connect(server)?;
    let mut receiver = Receiver {
        socket: &socket,
        ask,
        content,
        agreed: Agreed {
            block_size: DEFAULT_BLOCK_SIZE,
            window: 1,
            losses: tries,
        },
        blocks: 0,
        since: 0,
        told_of_gap: false,
    };
    loop {
        if receiver.take(&buffer[..len])? {
            return Ok(receiver.agreed);
        }
        len = loop {
            match socket.recv(&mut buffer) {
                Ok(len) => break len,
                Err(error) if is_timeout(&error) && tries < TRIES => {
                    tries += 1;
                    receiver.agreed.losses += 1;
                    receiver.acknowledge()?;
                }
                Err(error) if is_timeout(&error) => return Err(silent(receiver.bytes())),
                Err(error) => return Err(error.into()),
            }
        };
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

struct Receiver<'a> {
    socket: &'a UdpSocket,
    ask: &'a Fetch<'a>,
    content: &'a [u8],
    agreed: Agreed,
    /// Blocks that are here.
    blocks: usize,
    /// Blocks since the last ACK.
    since: u16,
    /// A gap is told once (RFC 7440 §4), until the blocks go on.
    told_of_gap: bool,
}

impl Receiver<'_> {
    /// Takes a packet. True at the end of the file.
    fn take(&mut self, packet: &[u8]) -> Result<bool, FetchError> {
        match Packet::parse(packet) {
            Ok(Packet::Data { block, payload }) => self.data(block, payload),
            Ok(Packet::OptionAcknowledge { options }) => {
                for (name, value) in options {
                    let value = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    let value = value.ok_or(FetchError::Options)?;
                    if name.eq_ignore_ascii_case(b"blksize") {
                        self.agreed.block_size = value;
                    } else if name.eq_ignore_ascii_case(b"windowsize") {
                        self.agreed.window = value;
                    } else {
                        return Err(FetchError::Options);
                    }
                }
                self.acknowledge()?;
                Ok(false)
            }
            Ok(Packet::Error { message, .. }) => Err(FetchError::Refused {
                name: self.ask.name.to_owned(),
                message: String::from_utf8_lossy(message).into_owned(),
            }),
            _ => Ok(false),
        }
    }

    fn data(&mut self, block: u16, payload: &[u8]) -> Result<bool, FetchError> {
        if usize::from(block) != (self.blocks + 1) % 65536 {
            if !self.told_of_gap {
                self.told_of_gap = true;
                self.agreed.losses += 1;
                self.acknowledge()?;
            }
            return Ok(false);
        }
        self.told_of_gap = false;
        let start = self.bytes();
        if self.content.get(start..start + payload.len()) != Some(payload) {
            return Err(FetchError::Differs {
                name: self.ask.name.to_owned(),
                block: self.blocks + 1,
            });
        }
        self.blocks += 1;
        self.since += 1;
        let last = payload.len() < usize::from(self.agreed.block_size);
        if last || self.since >= self.agreed.window {
            self.acknowledge()?;
        }
        if last && start + payload.len() != self.content.len() {
            return Err(FetchError::Silent {
                name: self.ask.name.to_owned(),
                bytes: start + payload.len(),
            });
        }
        Ok(last)
    }

    fn bytes(&self) -> usize {
        self.blocks * usize::from(self.agreed.block_size)
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.since = 0;
        let block = (self.blocks % 65536) as u16;
        self.socket
            .send(&Packet::Acknowledge { block }.emit())
            .map(drop)
    }
}
