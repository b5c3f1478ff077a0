//! A machine made of smoltcp alone, on a port of the link: what the self test of the link is done with.
//!
//! It sends numbers it can compute again and checks what comes back byte by byte. Not a guest: it runs in
//! this process and takes a millisecond where a guest takes a minute.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Address};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use thiserror::Error;

use super::deadline::Deadline;
use super::frame_queue::FrameQueue;
use super::framing::{self, Decoder, FramingError};
use super::link::Port;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];
const ADDRESS: Ipv4Address = Ipv4Address::new(10, 77, 0, 50);
const BUFFER: usize = 512 << 10;
const TICK: Duration = Duration::from_millis(1);
/// Datagrams that are on their way at once.
const IN_FLIGHT: usize = 32;
/// A datagram that is not back by then makes room for the next.
const LOST_AFTER: Duration = Duration::from_millis(20);

/// The link did not carry what it should.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// The port's socket failed.
    #[error("the port's socket failed")]
    Io(#[from] io::Error),
    /// The stream of frames is damaged.
    #[error("the port's stream of frames is damaged")]
    Framing(#[from] FramingError),
    /// smoltcp refused something.
    #[error("cannot {what}: {why}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// smoltcp's words.
        why: String,
    },
    /// It takes too long.
    #[error("{what}: not within {allowed}, at {at} of {of} bytes")]
    TooSlow {
        /// What was being done.
        what: &'static str,
        /// The deadline.
        allowed: String,
        /// Bytes done.
        at: usize,
        /// Bytes in all.
        of: usize,
    },
    /// A byte came back wrong.
    #[error("byte {offset} of the echo is {found:#04x}, {expected:#04x} was sent")]
    WrongByte {
        /// Offset in the stream.
        offset: usize,
        /// What was sent.
        expected: u8,
        /// What came back.
        found: u8,
    },
    /// The connection ended early.
    #[error("the connection ended after {at} of {of} bytes")]
    EndedEarly {
        /// Bytes that came back.
        at: usize,
        /// Bytes that were sent.
        of: usize,
    },
}

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Established.
    Accepted,
    /// Answered by a reset.
    Reset,
}

/// The byte at an offset of the test stream: repeats after a prime, so that a shift shows.
fn pattern(offset: usize) -> u8 {
    (((offset % 65521) * 31) >> 3) as u8
}

/// A client on a port of a link.
pub(crate) struct TestClient {
    stream: UnixStream,
    decoder: Decoder,
    output: Vec<u8>,
    frames: FrameQueue,
    interface: Interface,
    sockets: SocketSet<'static>,
    epoch: Instant,
    next_port: u16,
}

impl TestClient {
    /// Plugs the client into a port.
    pub(crate) fn plug_in(port: &Port) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(&port.socket)?;
        stream.set_nonblocking(true)?;
        let mut frames = FrameQueue::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut frames, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list has room for at least one address.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 24));
        });
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            output: Vec::new(),
            frames,
            interface,
            sockets: SocketSet::new(Vec::new()),
            epoch: Instant::now(),
            next_port: 40000,
        })
    }

    /// Connects to a TCP port and says how that ended.
    pub(crate) fn connect(
        &mut self,
        to: IpEndpoint,
    ) -> Result<(SocketHandle, Attempt), ClientError> {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; BUFFER]),
            tcp::SocketBuffer::new(vec![0; BUFFER]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        self.next_port += 1;
        let port = self.next_port;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let connected = socket.connect(self.interface.context(), to, port);
        connected.map_err(|error| ClientError::Refused {
            what: "connect",
            why: error.to_string(),
        })?;
        let deadline = Deadline::seconds(20);
        loop {
            self.turn()?;
            match self.sockets.get_mut::<tcp::Socket>(handle).state() {
                tcp::State::Established => return Ok((handle, Attempt::Accepted)),
                tcp::State::Closed => return Ok((handle, Attempt::Reset)),
                _ if deadline.remaining().is_none() => {
                    let allowed = deadline.to_string();
                    return Err(ClientError::TooSlow {
                        what: "connecting",
                        allowed,
                        at: 0,
                        of: 0,
                    });
                }
                _ => {}
            }
        }
    }

    /// Sends `length` bytes, closes its side, and checks that the same bytes and the end come back.
    pub(crate) fn echo(
        &mut self,
        to: IpEndpoint,
        length: usize,
        deadline: Deadline,
    ) -> Result<Duration, ClientError> {
        let (handle, attempt) = self.connect(to)?;
        if attempt == Attempt::Reset {
            return Err(ClientError::EndedEarly { at: 0, of: length });
        }
        let started = Instant::now();
        let (mut sent, mut back, mut closing) = (0, 0, false);
        loop {
            self.turn()?;
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            while sent < length && socket.can_send() {
                let refused = |error: tcp::SendError| ClientError::Refused {
                    what: "send",
                    why: error.to_string(),
                };
                sent += socket
                    .send(|room| fill(room, sent, length))
                    .map_err(refused)?;
            }
            // Not earlier: see the gateway on FINs that share a segment with data.
            if sent == length && !closing && socket.send_queue() == 0 {
                closing = true;
                socket.close();
            }
            while socket.can_recv() {
                let mut wrong = None;
                let check = |bytes: &mut [u8]| {
                    let found = bytes
                        .iter()
                        .enumerate()
                        .find(|&(i, &byte)| byte != pattern(back + i));
                    wrong = found.map(|(i, &byte)| (back + i, byte));
                    (bytes.len(), bytes.len())
                };
                let refused = |error: tcp::RecvError| ClientError::Refused {
                    what: "receive",
                    why: error.to_string(),
                };
                let received = socket.recv(check).map_err(refused)?;
                if let Some((offset, found)) = wrong {
                    return Err(ClientError::WrongByte {
                        offset,
                        expected: pattern(offset),
                        found,
                    });
                }
                back += received;
            }
            if !socket.may_recv() {
                self.sockets.remove(handle);
                let ended = ClientError::EndedEarly {
                    at: back,
                    of: length,
                };
                return if back == length {
                    Ok(started.elapsed())
                } else {
                    Err(ended)
                };
            }
            if deadline.remaining().is_none() {
                let allowed = deadline.to_string();
                return Err(ClientError::TooSlow {
                    what: "echo over TCP",
                    allowed,
                    at: back,
                    of: length,
                });
            }
        }
    }

    /// Sends `count` numbered datagrams and returns the numbers that came back within a second of the last.
    pub(crate) fn echo_datagrams(
        &mut self,
        to: IpEndpoint,
        count: u32,
    ) -> Result<Vec<u32>, ClientError> {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 64 << 10]);
        let handle = self.sockets.add(udp::Socket::new(buffer(), buffer()));
        self.next_port += 1;
        let refused = |what: &'static str| move |why: String| ClientError::Refused { what, why };
        let socket = self.sockets.get_mut::<udp::Socket>(handle);
        socket
            .bind(self.next_port)
            .map_err(|error| refused("bind")(error.to_string()))?;
        let mut back = Vec::new();
        let mut sent = 0;
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < Duration::from_secs(1) {
            self.turn()?;
            let socket = self.sockets.get_mut::<udp::Socket>(handle);
            // A socket of the operating system takes some hundred kilobytes at once; more would be lost there.
            let room =
                (sent as usize) < back.len() + IN_FLIGHT || quiet_since.elapsed() > LOST_AFTER;
            if sent < count && room && socket.can_send() {
                let mut payload = [0; 1400];
                payload[..4].copy_from_slice(&sent.to_be_bytes());
                socket
                    .send_slice(&payload, to)
                    .map_err(|error| refused("send")(error.to_string()))?;
                sent += 1;
                quiet_since = Instant::now();
            }
            while let Ok((payload, _)) = socket.recv() {
                let number = payload
                    .first_chunk()
                    .map(|bytes| u32::from_be_bytes(*bytes));
                back.extend(number);
                quiet_since = Instant::now();
            }
        }
        self.sockets.remove(handle);
        Ok(back)
    }

    /// One turn of the IP stack and the port; sleeps a millisecond when nothing moves.
    fn turn(&mut self) -> Result<(), ClientError> {
        let mut moved = self.read()?;
        let now = smoltcp::time::Instant::from_micros(self.epoch.elapsed().as_micros() as i64);
        self.interface
            .poll(now, &mut self.frames, &mut self.sockets);
        while let Some(frame) = self.frames.sent.pop_front() {
            framing::encode(&frame, &mut self.output);
        }
        moved |= self.write()?;
        if !moved {
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<bool, ClientError> {
        let mut buffer = [0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(length) => self.decoder.feed(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        while let Some(frame) = self.decoder.next_frame()? {
            self.frames.received.push_back(frame);
        }
        Ok(true)
    }

    fn write(&mut self) -> Result<bool, ClientError> {
        if self.output.is_empty() {
            return Ok(false);
        }
        match self.stream.write(&self.output) {
            Ok(length) => {
                self.output.drain(..length);
                Ok(length > 0)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn fill(room: &mut [u8], from: usize, length: usize) -> (usize, usize) {
    let count = room.len().min(length - from);
    for (i, byte) in room[..count].iter_mut().enumerate() {
        *byte = pattern(from + i);
    }
    (count, count)
}
