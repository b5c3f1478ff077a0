//! The TFTP server's tasks: one takes requests, one drives each transfer on a socket of its own.
//!
//! Invariants: a bounded number of transfers; a transfer listens to the address and port that
//! asked for it only (its TID, RFC 1350 §4).
//!
//! Not here: the protocol's rules (`transfer`), which files there are (`boot_catalogue`).

use std::{
    collections::HashSet,
    fs::File,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use protocol::{
    dhcp::MacAddress,
    tftp::{ErrorCode, Packet, ParseError, Request, data_header},
};
use smol::{Async, Timer};

use super::transfer::{Limits, Outcome, Outgoing, Transfer};
use crate::{
    boot_catalogue::BootCatalogue,
    flight_recorder::{FlightRecorder, Stage},
    sockets,
};

/// Transfers at once; a client beyond that is not answered and asks again.
const MAX_TRANSFERS: usize = 4096;
/// Longest packet a client sends: requests are below 512 bytes (RFC 2347), ACKs have 4.
const MAX_PACKET: usize = 2048;

/// What all transfers share.
pub(crate) struct TftpServer {
    catalogue: Arc<BootCatalogue>,
    recorder: Arc<FlightRecorder>,
    limits: Limits,
    /// Who is being served: a client that repeats its request is served once.
    clients: Mutex<HashSet<SocketAddr>>,
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
                    if let Err(refusal) = self.start(&request, client, local, &executor) {
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

    fn start(
        self: &Arc<Self>,
        request: &Request<'_>,
        client: SocketAddr,
        local: IpAddr,
        executor: &smol::Executor<'static>,
    ) -> Result<(), Refusal> {
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
            self.note(
                machine,
                false,
                format!("TFTP: asked for {}, which is not here", printable(&name)),
            );
            return Err(Refusal(ErrorCode::FileNotFound, "no such boot file".into()));
        };
        let problem = |error: io::Error| Refusal(ErrorCode::Other, error.to_string());
        let content = file.open().map_err(problem)?;
        // The content may be newer than the table: what is sent has the length that is open.
        let len = content.metadata().map_err(problem)?.len();
        let transfer = Transfer::new(request, len, self.limits, Instant::now());
        {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            if clients.len() >= MAX_TRANSFERS {
                log::warn!("TFTP: {MAX_TRANSFERS} transfers run; {client} has to ask again");
                return Ok(());
            }
            if !clients.insert(client) {
                return Ok(());
            }
        }
        let server = Arc::clone(self);
        let job = Job {
            transfer,
            content,
            client,
            local,
        };
        let task = async move {
            let started = Instant::now();
            let result = job.drive().await;
            server
                .clients
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&client);
            server.report(machine, &printable(&name), len, started, result);
        };
        executor.spawn(task).detach();
        Ok(())
    }

    fn report(
        &self,
        machine: Option<MacAddress>,
        name: &str,
        len: u64,
        started: Instant,
        result: io::Result<(Outcome, u64)>,
    ) {
        let seconds = started.elapsed().as_secs_f64();
        let (trouble, text) = match result {
            Ok((Outcome::Complete | Outcome::CompleteUnconfirmed, _)) => (
                false,
                format!("TFTP: fetched {name}, {len} bytes in {seconds:.1} s"),
            ),
            Ok((Outcome::Probe, _)) => (false, format!("TFTP: asked for the size of {name}")),
            Ok((Outcome::ClientError { code, message }, bytes)) => (
                true,
                format!(
                    "TFTP: ended {name} after {bytes} of {len} bytes with error {}: {}",
                    code.to_u16(),
                    printable(&message)
                ),
            ),
            Ok((Outcome::GaveUp, bytes)) => (
                true,
                format!("TFTP: fell silent after {bytes} of {len} bytes of {name}"),
            ),
            Err(error) => (true, format!("TFTP: {name} could not be sent: {error}")),
        };
        self.note(machine, trouble, text);
    }

    fn note(&self, machine: Option<MacAddress>, trouble: bool, text: String) {
        match machine {
            Some(mac) => self.recorder.record(mac, Stage::Tftp, trouble, text),
            None => log::info!("{text}"),
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
}

impl Job {
    async fn drive(mut self) -> io::Result<(Outcome, u64)> {
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

/// A client's text, cut and freed of control characters: it goes to terminals.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(100)
        .collect()
}
