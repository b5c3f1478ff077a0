//! The thread that moves the bytes of all transfers, and the one that opens files for it.
//!
//! Invariants: the first thread waits for the network only, never for the disk unless a file is too
//! large for memory; each transfer has a socket of its own, connected to the address and port that
//! asked (its TID, RFC 1350 §4): the kernel answers strangers with "port unreachable". A wait wakes
//! for a packet, for room to send, for a file that is open, or for the next deadline.
//!
//! Not here: the protocol's rules (`transfer`), what a request gets (`server`).

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use protocol::tftp::{ErrorCode, Packet, ParseError};

use super::{
    places::{MAX_TRANSFERS, Places},
    sending::{self, Block, MAX_SEGMENTS},
    server::{Ended, Fetch, Refusal, TftpServer},
    transfer::{Limits, Outcome, Outgoing, Transfer},
};
use crate::sockets;

/// Longest packet a client sends: requests are below 512 bytes (RFC 2347), ACKs have 4.
const MAX_PACKET: usize = 2048;
/// Requests taken from one socket before the others have their turn.
const REQUESTS_A_TURN: usize = 32;
/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Without a transfer nothing has to be done at any time.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Bytes of IPv4, UDP and DATA header before a block.
const HEADERS: u16 = 20 + 8 + 4;
/// RFC 2348's smallest block.
const SMALLEST_BLOCK: u16 = 8;

/// Events are told apart by number: this one, then the doors, then the transfers.
const WAKE: u64 = 0;
const FIRST_DOOR: u64 = 1;
const FIRST_TRANSFER: u64 = 1 << 32;

/// A request on its way to the thread that opens files.
struct Asked {
    transfer: u64,
    client: SocketAddr,
    door: usize,
    request: Vec<u8>,
}

/// The same on its way back.
struct Opened {
    asked: Asked,
    fetch: Result<Fetch, Refusal>,
}

/// A socket that requests come to.
struct Door {
    socket: UdpSocket,
    address: IpAddr,
}

/// A transfer on its socket.
struct Running {
    socket: UdpSocket,
    client: SocketAddr,
    transfer: Transfer,
    fetch: Fetch,
    started: Instant,
    /// Of its alarms the one that counts.
    alarm: Instant,
    /// What the socket had no room for yet.
    unsent: Vec<Block>,
    segmentation: bool,
    waits_for_room: bool,
    /// Whether the kernel was asked to tell of room.
    told_to_wait: bool,
}

/// Serves the requests of these sockets for ever, on the calling thread and one more.
///
/// # Errors
/// What the operating system refuses, and the other thread's end.
pub(super) fn run(server: Arc<TftpServer>, sockets: Vec<UdpSocket>) -> io::Result<()> {
    let wake = Arc::new(EventFd::from_flags(
        EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
    )?);
    // More requests than places need not wait: their clients ask again.
    let (ask, asked) = sync_channel(MAX_TRANSFERS);
    let (open, opened) = channel();
    let (clerk, bell) = (Arc::clone(&server), Arc::clone(&wake));
    thread::Builder::new()
        .name("tftp-files".into())
        .spawn(move || open_files(&clerk, &asked, &open, &bell))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
    let mut doors = Vec::new();
    for (number, socket) in (FIRST_DOOR..FIRST_TRANSFER).zip(sockets) {
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        let address = socket.local_addr()?.ip();
        doors.push(Door { socket, address });
    }
    let driver = Driver {
        server,
        epoll,
        wake,
        doors,
        ask,
        opened,
        places: Places::default(),
        running: HashMap::new(),
        alarms: BinaryHeap::new(),
        next: FIRST_TRANSFER,
        scratch: Vec::new(),
    };
    driver.run()
}

/// The other thread: what may wait for the disk.
fn open_files(
    server: &TftpServer,
    asked: &Receiver<Asked>,
    opened: &Sender<Opened>,
    wake: &EventFd,
) {
    for asked in asked {
        let fetch = server.open(&asked.request, asked.client);
        if opened.send(Opened { asked, fetch }).is_err() {
            return;
        }
        // It fails only when it is set already.
        let _ = wake.write(1);
    }
}

struct Driver {
    server: Arc<TftpServer>,
    epoll: Epoll,
    wake: Arc<EventFd>,
    doors: Vec<Door>,
    ask: SyncSender<Asked>,
    opened: Receiver<Opened>,
    places: Places,
    running: HashMap<u64, Running>,
    /// Deadlines, the next one on top. Those that no longer count are dropped when they come up.
    alarms: BinaryHeap<Reverse<(Instant, u64)>>,
    next: u64,
    scratch: Vec<u8>,
}

impl Driver {
    fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let ready = match self.epoll.wait(&mut events, self.longest_wait()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..ready] {
                match event.data() {
                    WAKE => self.begin_opened()?,
                    number if number < FIRST_TRANSFER => self.take_requests(number)?,
                    number => self.on_event(number, event.events()),
                }
            }
            self.ring_alarms();
        }
    }

    fn longest_wait(&self) -> EpollTimeout {
        let wait = self.alarms.peek().map_or(LONGEST_WAIT, |Reverse((at, _))| {
            // Rounded up: waking before the deadline would only mean waiting again.
            at.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        EpollTimeout::try_from(wait.min(LONGEST_WAIT)).unwrap_or(EpollTimeout::ZERO)
    }

    fn take_requests(&mut self, number: u64) -> io::Result<()> {
        let mut buffer = [0; MAX_PACKET];
        for _ in 0..REQUESTS_A_TURN {
            let at = usize::try_from(number - FIRST_DOOR).unwrap_or(usize::MAX);
            let Some(door) = self.doors.get(at) else {
                return Ok(());
            };
            match door.socket.recv_from(&mut buffer) {
                Ok((len, client)) => self.take_request(at, client, &buffer[..len])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // About one earlier answer (ICMP unreachable), not about the socket.
                Err(error) => log::debug!("TFTP: {error}"),
            }
        }
        Ok(())
    }

    fn take_request(&mut self, door: usize, client: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let refusal = match Packet::parse(bytes) {
            Ok(Packet::Read(_)) => return self.ask_for_file(door, client, bytes),
            Ok(Packet::Write(_)) => {
                Refusal::new(ErrorCode::AccessViolation, "this server is read only")
            }
            Err(error @ (ParseError::TooManyOptions | ParseError::UnendedText)) => {
                Refusal::new(ErrorCode::IllegalOperation, error.to_string())
            }
            // Answering an answer could make two servers talk for ever.
            Ok(_) | Err(_) => return Ok(()),
        };
        self.refuse(door, client, &refusal);
        Ok(())
    }

    fn ask_for_file(&mut self, door: usize, client: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let transfer = self.next;
        let Some(given) = self.places.take(client, bytes, transfer) else {
            return Ok(());
        };
        self.next += 1;
        if let Some(earlier) = given.replaces {
            self.running.remove(&earlier);
        }
        let asked = Asked {
            transfer,
            client,
            door,
            request: bytes.to_vec(),
        };
        match self.ask.try_send(asked) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                self.places.free(client, transfer);
                Ok(())
            }
            Err(TrySendError::Disconnected(_)) => {
                Err(io::Error::other("the thread that opens files has ended"))
            }
        }
    }

    fn refuse(&self, door: usize, client: SocketAddr, refusal: &Refusal) {
        log::info!("TFTP: {client}: {}", refusal.message);
        if let Some(door) = self.doors.get(door)
            && let Err(error) = door.socket.send_to(&refusal.packet(), client)
        {
            log::debug!("TFTP: {client}: {error}");
        }
    }

    fn begin_opened(&mut self) -> io::Result<()> {
        // It fails only when nothing was set.
        let _ = self.wake.read();
        while let Ok(Opened { asked, fetch }) = self.opened.try_recv() {
            if !self.places.has(asked.client, asked.transfer) {
                continue;
            }
            let begun = fetch.map(|fetch| self.begin(&asked, fetch));
            match begun {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    log::warn!("TFTP: {}: no socket for it: {error}", asked.client);
                    self.places.free(asked.client, asked.transfer);
                }
                Err(refusal) => {
                    self.refuse(asked.door, asked.client, &refusal);
                    self.places.free(asked.client, asked.transfer);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, asked: &Asked, fetch: Fetch) -> io::Result<()> {
        let address = self.doors.get(asked.door).map(|door| door.address);
        let address = address.ok_or(io::ErrorKind::NotFound)?;
        let (socket, mtu) = sockets::transfer_socket(address, asked.client)?;
        let Ok(Packet::Read(request)) = Packet::parse(&asked.request) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let limits = fitting(self.server.limits, mtu);
        let now = Instant::now();
        let transfer = Transfer::new(&request, fetch.content.len(), limits, now);
        self.epoll.add(
            &socket,
            EpollEvent::new(EpollFlags::EPOLLIN, asked.transfer),
        )?;
        let alarm = transfer.deadline();
        self.alarms.push(Reverse((alarm, asked.transfer)));
        let running = Running {
            socket,
            client: asked.client,
            transfer,
            fetch,
            started: now,
            alarm,
            unsent: Vec::new(),
            segmentation: true,
            waits_for_room: false,
            told_to_wait: false,
        };
        self.running.insert(asked.transfer, running);
        self.go_on(asked.transfer, now);
        Ok(())
    }

    fn on_event(&mut self, number: u64, flags: EpollFlags) {
        let Some(running) = self.running.get_mut(&number) else {
            return;
        };
        let now = Instant::now();
        if flags.contains(EpollFlags::EPOLLOUT) {
            running.waits_for_room = false;
        }
        if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            let mut packet = [0; MAX_PACKET];
            // The next packet, if there is one, is the next event.
            match running.socket.recv(&mut packet) {
                Ok(len) => {
                    let before = running.transfer.bytes_acknowledged();
                    running.transfer.receive(&packet[..len], now);
                    if before == 0 && running.transfer.bytes_acknowledged() > 0 {
                        self.places.is_underway(running.client);
                    }
                }
                // A client whose port is closed for now (ICMP) may open it again: silence decides.
                Err(error) => log::debug!("TFTP: {}: {error}", running.client),
            }
        }
        self.go_on(number, now);
    }

    /// Deadlines that have passed.
    fn ring_alarms(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, number))) = self.alarms.peek().copied() {
            if at > now {
                return;
            }
            self.alarms.pop();
            let Some(running) = self.running.get_mut(&number) else {
                continue;
            };
            if running.alarm != at {
                continue;
            }
            if running.transfer.deadline() <= now {
                running.give_up_unsent();
                self.go_on(number, now);
            }
            if let Some(running) = self.running.get_mut(&number) {
                running.alarm = running.transfer.deadline();
                self.alarms.push(Reverse((running.alarm, number)));
            }
        }
    }

    /// Sends what is to be sent; ends a transfer that has come to its end.
    fn go_on(&mut self, number: u64, now: Instant) {
        let Some(running) = self.running.get_mut(&number) else {
            return;
        };
        let failed = running.send(now, &mut self.scratch).err();
        if failed.is_some() || running.transfer.outcome().is_some() {
            self.end(number, failed);
            return;
        }
        if running.waits_for_room != running.told_to_wait {
            running.told_to_wait = running.waits_for_room;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, running.waits_for_room);
            let mut event = EpollEvent::new(flags, number);
            if let Err(error) = self.epoll.modify(&running.socket, &mut event) {
                // The timer sends again.
                log::debug!("TFTP: {}: {error}", running.client);
            }
        }
        // A wait that became shorter needs an alarm of its own; one that became longer is looked
        // at when the old one rings.
        let deadline = running.transfer.deadline();
        if deadline < running.alarm {
            running.alarm = deadline;
            self.alarms.push(Reverse((deadline, number)));
        }
    }

    fn end(&mut self, number: u64, failed: Option<io::Error>) {
        let Some(running) = self.running.remove(&number) else {
            return;
        };
        self.places.free(running.client, number);
        let result = match failed {
            Some(error) => {
                let text = "the file cannot be read";
                let packet = Refusal::new(ErrorCode::Other, text).packet();
                // The client learns it by its own timeout otherwise.
                let _ = running.socket.send(&packet);
                Err(error)
            }
            None => {
                let outcome = running.transfer.outcome().cloned();
                Ok(Ended {
                    outcome: outcome.unwrap_or(Outcome::GaveUp),
                    bytes: running.transfer.bytes_acknowledged(),
                    block_size: running.transfer.block_size(),
                })
            }
        };
        self.server
            .report(running.fetch, running.started.elapsed(), result);
    }
}

impl Running {
    /// What found no room until the deadline is lost: the transfer counts it as any other loss, so
    /// that its deadline moves and its patience ends.
    fn give_up_unsent(&mut self) {
        self.unsent.clear();
        self.waits_for_room = false;
    }

    /// Sends until the transfer wants nothing more or the socket has no room.
    ///
    /// # Errors
    /// When the file cannot be read. A packet that cannot be sent is a packet lost.
    fn send(&mut self, now: Instant, scratch: &mut Vec<u8>) -> io::Result<()> {
        while !self.waits_for_room {
            if self.unsent.is_empty() && !self.collect(now) {
                return Ok(());
            }
            let count = sending::blocks_of_a_call(&self.unsent, self.segmentation);
            let Some(blocks) = self.unsent.get(..count) else {
                return Ok(());
            };
            let len = blocks.iter().map(|block| usize::from(block.len)).sum();
            let offset = blocks.first().map_or(0, |block| block.offset);
            let payload = self.fetch.content.part(offset, len, scratch)?;
            match sending::send(&self.socket, blocks, payload) {
                Ok(()) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waits_for_room = true;
                }
                // This kernel or this link cannot do many at once.
                Err(error) if count > 1 => {
                    log::debug!("TFTP: {}: one by one: {error}", self.client);
                    self.segmentation = false;
                }
                Err(error) => {
                    log::debug!("TFTP: {}: {error}", self.client);
                    self.unsent.drain(..count);
                }
            }
        }
        Ok(())
    }

    /// Asks the transfer what it wants sent. False when it wants nothing.
    fn collect(&mut self, now: Instant) -> bool {
        while self.unsent.len() < MAX_SEGMENTS {
            match self.transfer.poll(now) {
                Some(Outgoing::Data { block, offset, len }) => self.unsent.push(Block {
                    number: block,
                    offset,
                    len,
                }),
                Some(Outgoing::Packet(bytes)) => {
                    if let Err(error) = self.socket.send(&bytes) {
                        log::debug!("TFTP: {}: {error}", self.client);
                    }
                }
                None => break,
            }
        }
        !self.unsent.is_empty()
    }
}

/// The limits on a way that carries packets of so many bytes: a block larger than that arrives in
/// fragments, which much firmware cannot put together.
fn fitting(limits: Limits, mtu: Option<u16>) -> Limits {
    let room = mtu.map_or(u16::MAX, |mtu| mtu.saturating_sub(HEADERS));
    Limits {
        block_size: limits.block_size.min(room).max(SMALLEST_BLOCK),
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fits_the_way() {
        let of = |block_size, mtu| {
            let limits = Limits {
                block_size,
                window: 64,
            };
            fitting(limits, mtu).block_size
        };
        assert_eq!(of(1468, Some(1500)), 1468);
        assert_eq!(of(65464, Some(1500)), 1468);
        assert_eq!(of(1468, Some(1400)), 1368);
        assert_eq!(of(65464, None), 65464);
        assert_eq!(of(1468, Some(20)), SMALLEST_BLOCK);
    }
}
