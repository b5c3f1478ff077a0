//! The TFTP server's tasks: one takes requests, one drives each transfer on a socket of its own.
//!
//! Invariants: a bounded number of transfers; a transfer listens to the address and port that
//! asked for it only (its TID, RFC 1350 §4).
//!
//! Not here: the protocol's rules (`transfer`), which files there are (`boot_catalogue`).

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_channel::{Receiver, Sender};
use protocol::{
    dhcp::MacAddress,
    tftp::{ErrorCode, Packet, ParseError, Request, data_header},
};
use smol::{Async, Timer};

use super::transfer::{Limits, Outcome, Outgoing, Transfer};
use crate::{
    boot_catalogue::BootCatalogue,
    flight_recorder::{Fact, FlightRecorder, Over, Stopped, printable},
    sockets,
};

/// Transfers at once; a client beyond that is not answered and asks again.
const MAX_TRANSFERS: usize = 4096;
/// Of those, for one address: one machine with many ports cannot take all. It is no smaller because
/// many machines may come from the address of one router.
const MAX_TRANSFERS_OF_ONE: usize = MAX_TRANSFERS / 4;
/// Longest packet a client sends: requests are below 512 bytes (RFC 2347), ACKs have 4.
const MAX_PACKET: usize = 2048;
/// Characters of a file's name that go to logs and time lines.
const MAX_NAME: usize = 100;

/// What all transfers share.
pub(crate) struct TftpServer {
    catalogue: Arc<BootCatalogue>,
    recorder: Arc<FlightRecorder>,
    limits: Limits,
    /// Who is being served: a client that repeats its request is served once.
    clients: Mutex<HashMap<SocketAddr, Active>>,
}

/// A transfer that runs. Dropping it ends the transfer.
struct Active {
    request: Vec<u8>,
    /// The client has taken something: the same request again is a new start.
    underway: Arc<AtomicBool>,
    _alive: Sender<()>,
}

impl TftpServer {
    /// A server of the files of a catalogue.
    pub(crate) fn new(
        catalogue: Arc<BootCatalogue>,
        recorder: Arc<FlightRecorder>,
        limits: Limits,
    ) -> Self {
        Self {
            catalogue,
            recorder,
            limits,
            clients: Mutex::default(),
        }
    }

    /// Takes requests from a socket for ever.
    pub(crate) async fn run(
        self: Arc<Self>,
        socket: Async<UdpSocket>,
        executor: Arc<smol::Executor<'static>>,
    ) -> io::Result<()> {
        let local = socket.get_ref().local_addr()?.ip();
        let mut buffer = [0; MAX_PACKET];
        loop {
            // An error here is about one earlier answer (ICMP unreachable), not about the socket.
            let (len, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    log::debug!("TFTP: {error}");
                    continue;
                }
            };
            match Packet::parse(&buffer[..len]) {
                Ok(Packet::Read(request)) => {
                    let Some(place) = self.place(client, &buffer[..len]) else {
                        continue;
                    };
                    if let Err(refusal) = self.start(&request, place, local, &executor) {
                        log::info!("TFTP: {client}: {}", refusal.1);
                        let _ = socket.send_to(&refusal.packet(), client).await;
                    }
                }
                Ok(Packet::Write(_)) => {
                    let refusal = Refusal(
                        ErrorCode::AccessViolation,
                        "this server is read only".into(),
                    );
                    let _ = socket.send_to(&refusal.packet(), client).await;
                }
                Err(error @ (ParseError::TooManyOptions | ParseError::UnendedText)) => {
                    let refusal = Refusal(ErrorCode::IllegalOperation, error.to_string());
                    let _ = socket.send_to(&refusal.packet(), client).await;
                }
                // Answering an answer could make two servers talk for ever.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// A place for a client's transfer. `None` when its request is a repeated one, or when all
    /// places are taken. A client that asks for something else from the same port, or again for
    /// what it had begun to take, has given the old transfer up: some ROMs do so without a word.
    fn place(self: &Arc<Self>, client: SocketAddr, request: &[u8]) -> Option<Place> {
        let mut clients = self.lock();
        match clients.get(&client) {
            Some(active)
                if active.request == request && !active.underway.load(Ordering::Relaxed) =>
            {
                return None;
            }
            None if clients.len() >= MAX_TRANSFERS => {
                log::warn!("TFTP: {MAX_TRANSFERS} transfers run; {client} has to ask again");
                return None;
            }
            None if count_of(&clients, client.ip()) >= MAX_TRANSFERS_OF_ONE => {
                log::warn!(
                    "TFTP: {MAX_TRANSFERS_OF_ONE} transfers to {} run; port {} has to ask again",
                    client.ip(),
                    client.port()
                );
                return None;
            }
            _ => {}
        }
        let (keep, alive) = async_channel::bounded(1);
        let underway = Arc::new(AtomicBool::new(false));
        let active = Active {
            request: request.to_vec(),
            underway: Arc::clone(&underway),
            _alive: keep,
        };
        clients.insert(client, active);
        Some(Place {
            server: Arc::clone(self),
            client,
            underway,
            alive,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Active>> {
        // Each change is one insertion or removal: a panic elsewhere leaves nothing half done.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(
        self: &Arc<Self>,
        request: &Request<'_>,
        place: Place,
        local: IpAddr,
        executor: &smol::Executor<'static>,
    ) -> Result<(), Refusal> {
        let client = place.client;
        let name = String::from_utf8_lossy(request.name).into_owned();
        if !request.is_octet() {
            return Err(Refusal(
                ErrorCode::IllegalOperation,
                "boot files are binary: ask in octet mode".into(),
            ));
        }
        let machine = match client.ip() {
            IpAddr::V4(address) => self.recorder.machine_at(address),
            IpAddr::V6(_) => None,
        };
        let machine = machine.or_else(|| self.recorder.machine_told(&name));
        let Some(file) = self.catalogue.find(&name) else {
            let (over, file) = (Over::Tftp, printable(&name, MAX_NAME));
            self.note(machine, Fact::NotHere { over, file });
            return Err(Refusal(ErrorCode::FileNotFound, "no such boot file".into()));
        };
        let problem = |error: io::Error| Refusal(ErrorCode::Other, error.to_string());
        let content = file.open().map_err(problem)?;
        // The content may be newer than the table: what is sent has the length that is open.
        let len = content.metadata().map_err(problem)?.len();
        let transfer = Transfer::new(request, len, self.limits, Instant::now());
        let (over, file) = (Over::Tftp, printable(&name, MAX_NAME));
        let bytes = len;
        self.note(machine, Fact::FetchBegun { over, file, bytes });
        let server = Arc::clone(self);
        let job = Job {
            transfer,
            content,
            client,
            local,
            underway: Arc::clone(&place.underway),
            alive: place.alive.clone(),
        };
        let task = async move {
            let started = Instant::now();
            if let Some(result) = job.drive().await {
                server.report(machine, printable(&name, MAX_NAME), len, started, result);
            }
            drop(place);
        };
        executor.spawn(task).detach();
        Ok(())
    }

    fn report(
        &self,
        machine: Option<MacAddress>,
        file: String,
        len: u64,
        started: Instant,
        result: io::Result<(Outcome, u64)>,
    ) {
        let over = Over::Tftp;
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let stopped = |file, bytes, why| Fact::FetchStopped {
            over,
            file,
            bytes,
            of: len,
            milliseconds,
            why,
        };
        let fact = match result {
            Ok((Outcome::Complete | Outcome::CompleteUnconfirmed, _)) => Fact::Fetched {
                over,
                file,
                bytes: len,
                milliseconds,
                part_of: None,
            },
            Ok((Outcome::Probe, _)) => Fact::Probed { file, bytes: len },
            Ok((Outcome::ClientError { code, message }, bytes)) => {
                let (code, message) = (code.to_u16(), printable(&message, 100));
                stopped(file, bytes, Stopped::ByClient { code, message })
            }
            Ok((Outcome::GaveUp, bytes)) => {
                stopped(file, bytes, Stopped::Silent { block_size: None })
            }
            Err(error) => {
                let reason = error.to_string();
                stopped(file, 0, Stopped::ByServer { reason })
            }
        };
        self.note(machine, fact);
    }

    fn note(&self, machine: Option<MacAddress>, fact: Fact) {
        match machine {
            Some(mac) => self.recorder.record(mac, fact),
            None if matches!(fact, Fact::FetchBegun { .. }) => {}
            None => log::info!("{fact}"),
        }
    }
}

/// How many transfers go to an address; at most [`MAX_TRANSFERS`] comparisons.
fn count_of(clients: &HashMap<SocketAddr, Active>, address: IpAddr) -> usize {
    clients
        .keys()
        .filter(|client| client.ip() == address)
        .count()
}

/// A client's place among the transfers, given back when dropped unless a later one took it.
struct Place {
    server: Arc<TftpServer>,
    client: SocketAddr,
    underway: Arc<AtomicBool>,
    alive: Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.server.lock();
        let own = clients
            .get(&self.client)
            .is_some_and(|active| Arc::ptr_eq(&active.underway, &self.underway));
        if own {
            clients.remove(&self.client);
        }
    }
}

struct Refusal(ErrorCode, String);

impl Refusal {
    fn packet(&self) -> Vec<u8> {
        Packet::Error {
            code: self.0,
            message: self.1.as_bytes(),
        }
        .emit()
    }
}

struct Job {
    transfer: Transfer,
    content: File,
    client: SocketAddr,
    local: IpAddr,
    underway: Arc<AtomicBool>,
    alive: Receiver<()>,
}

impl Job {
    /// Runs the transfer to its end. `None` when the client gave it up for another one.
    async fn drive(self) -> Option<io::Result<(Outcome, u64)>> {
        let replaced = self.alive.clone();
        let run = async { Some(self.run().await) };
        let ended = async {
            // Nothing is ever sent: this returns when the other end is dropped.
            let _ = replaced.recv().await;
            None
        };
        smol::future::or(run, ended).await
    }

    async fn run(mut self) -> io::Result<(Outcome, u64)> {
        let socket = sockets::transfer_socket(self.local)?;
        let mut incoming = [0; MAX_PACKET];
        let mut outgoing = Vec::new();
        loop {
            while let Some(next) = self.transfer.poll(Instant::now()) {
                if let Err(error) = self.fill(next, &mut outgoing) {
                    let packet =
                        Refusal(ErrorCode::Other, "the file cannot be read".into()).packet();
                    let _ = socket.send_to(&packet, self.client).await;
                    return Err(error);
                }
                // A packet that cannot be sent is a packet lost: the timer repeats it.
                if let Err(error) = socket.send_to(&outgoing, self.client).await {
                    log::debug!("TFTP: {}: {error}", self.client);
                }
            }
            if let Some(outcome) = self.transfer.outcome() {
                return Ok((outcome.clone(), self.transfer.bytes_acknowledged()));
            }
            let received = async { Some(socket.recv_from(&mut incoming).await) };
            let expired = async {
                Timer::at(self.transfer.deadline()).await;
                None
            };
            match smol::future::or(received, expired).await {
                Some(Ok((len, sender))) if sender == self.client => {
                    self.transfer.receive(&incoming[..len], Instant::now());
                    if self.transfer.bytes_acknowledged() > 0 {
                        self.underway.store(true, Ordering::Relaxed);
                    }
                }
                Some(Ok((_, stranger))) => {
                    let packet =
                        Refusal(ErrorCode::UnknownTransfer, "not your transfer".into()).packet();
                    let _ = socket.send_to(&packet, stranger).await;
                }
                Some(Err(error)) => log::debug!("TFTP: {}: {error}", self.client),
                None => {}
            }
        }
    }

    fn fill(&self, next: Outgoing, packet: &mut Vec<u8>) -> io::Result<()> {
        packet.clear();
        match next {
            Outgoing::Packet(bytes) => packet.extend(bytes),
            Outgoing::Data { block, offset, len } => {
                let header = data_header(block);
                packet.extend(header);
                packet.resize(header.len() + usize::from(len), 0);
                self.content
                    .read_exact_at(&mut packet[header.len()..], offset)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = BootCatalogue::read(folder.path(), folder.path()).unwrap();
        let limits = Limits {
            block_size: 1468,
            window: 8,
        };
        let recorder = Arc::new(FlightRecorder::in_memory());
        let server = Arc::new(TftpServer::new(Arc::new(catalogue), recorder, limits));
        let client = |last: u8, port| SocketAddr::from(([10, 77, 0, last], port));
        let mut places: Vec<_> = (1..)
            .map_while(|port| server.place(client(9, port), b"request"))
            .collect();
        assert_eq!(places.len(), MAX_TRANSFERS_OF_ONE);
        assert!(server.place(client(10, 1), b"request").is_some());
        // One that ended makes room.
        places.pop();
        assert!(server.place(client(9, 5000), b"request").is_some());
    }
}
