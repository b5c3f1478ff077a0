//! A way between a TFTP client and a server on which every datagram takes some time.
//!
//! `tc netem` is not on every computer; this is a process-wide stand-in for one transfer at a time. The
//! client asks the way's own port; a request starts anew, from a port of its own to the server.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;

/// How often the thread looks whether it shall end.
const IDLE: Duration = Duration::from_millis(50);
const BUFFER: usize = 16 << 20;
/// Opcode of a read request (RFC 1350 §5).
const READ_REQUEST: [u8; 2] = [0, 1];

/// The way. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct DelayedWay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DelayedWay {
    /// A way to a server, with so much delay in each direction. It is in the caller's network namespace.
    pub(crate) fn open(server: SocketAddr, delay: Duration) -> io::Result<Self> {
        let front = socket()?;
        let address = front.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut way = Way {
            front,
            back: socket()?,
            server,
            server_port: server,
            client: None,
            delay,
            under_way: VecDeque::new(),
            buffer: vec![0; 65536],
        };
        let told = Arc::clone(&stop);
        let run = move || {
            while !told.load(Ordering::Relaxed) {
                if let Err(error) = way.turn() {
                    log::warn!("the delayed way is closed: {error}");
                    return;
                }
            }
            if let Err(error) = way.collect() {
                log::debug!("the delayed way's last packets: {error}");
            }
            way.end_transfer();
        };
        let thread = thread::Builder::new().name("delay".into()).spawn(run)?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where the client asks.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DelayedWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, the fetch has failed already.
            let _ = thread.join();
        }
    }
}

struct Way {
    /// The client's side.
    front: UdpSocket,
    /// The server's side.
    back: UdpSocket,
    server: SocketAddr,
    /// The port that the server answered from.
    server_port: SocketAddr,
    client: Option<SocketAddr>,
    delay: Duration,
    /// In the order of their arrival, so in the order in which they are due.
    under_way: VecDeque<(Instant, Direction, Vec<u8>)>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}

impl Way {
    fn turn(&mut self) -> io::Result<()> {
        let wait = match self.under_way.front() {
            Some((due, ..)) => due.saturating_duration_since(Instant::now()),
            None => IDLE,
        };
        let mut sides =
            [&self.front, &self.back].map(|side| PollFd::new(side.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut sides, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.collect()?;
        let now = Instant::now();
        while self.under_way.front().is_some_and(|(due, ..)| *due <= now) {
            if let Some((_, direction, bytes)) = self.under_way.pop_front() {
                self.forward(direction, &bytes);
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> io::Result<()> {
        while let Some((len, from)) = receive(&self.front, &mut self.buffer)? {
            if self.buffer.starts_with(&READ_REQUEST) {
                self.end_transfer();
                self.client = Some(from);
                self.back = socket()?;
                self.server_port = self.server;
            }
            self.put_under_way(Direction::ToServer, len);
        }
        while let Some((len, from)) = receive(&self.back, &mut self.buffer)? {
            self.server_port = from;
            self.put_under_way(Direction::ToClient, len);
        }
        Ok(())
    }

    /// What the client said last is delivered at once: the server must learn that it has everything.
    fn end_transfer(&mut self) {
        for (_, direction, bytes) in std::mem::take(&mut self.under_way) {
            if matches!(direction, Direction::ToServer) {
                self.forward(direction, &bytes);
            }
        }
    }

    fn put_under_way(&mut self, direction: Direction, len: usize) {
        let due = Instant::now() + self.delay;
        self.under_way
            .push_back((due, direction, self.buffer[..len].to_vec()));
    }

    fn forward(&self, direction: Direction, bytes: &[u8]) {
        let sent = match (direction, self.client) {
            (Direction::ToServer, _) => self.back.send_to(bytes, self.server_port),
            (Direction::ToClient, Some(client)) => self.front.send_to(bytes, client),
            (Direction::ToClient, None) => return,
        };
        // What cannot be delivered is lost, as on any way.
        if let Err(error) = sent {
            log::debug!("a datagram was lost on the delayed way: {error}");
        }
    }
}

fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    Ok(socket)
}

/// A datagram, if one is there. An earlier one that nobody took (ICMP) is no reason to end.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        Ok(received) => Ok(Some(received)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_takes_the_time_there_and_back() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let delay = Duration::from_millis(5);
        let way = DelayedWay::open(server.local_addr().unwrap(), delay).unwrap();
        for socket in [&server, &client] {
            socket
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
        }
        let began = Instant::now();
        client.send_to(&READ_REQUEST, way.address()).unwrap();
        let mut buffer = [0; 8];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], READ_REQUEST);
        server.send_to(b"answer", from).unwrap();
        let (len, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"answer");
        assert!(began.elapsed() >= 2 * delay);
    }
}
