//! Drives the DHCP server: takes what has come, lets the server decide, saves, then sends.
//!
//! Invariant: an acknowledgement leaves only after its lease is on disk. Deciding and saving are two
//! threads: while one transaction is on its way to the disk, messages are taken, offers leave, and the
//! leases granted meanwhile gather for the next transaction. So a transaction holds what came during
//! the one before, one lease or thousands, and the disk's delay is paid once for a room of machines.
//!
//! Not here: the answers (`server`), opening sockets (`crate::sockets`).

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_channel::{Receiver, Sender};
use futures_lite::{FutureExt, StreamExt};

use super::{
    boot_table::FirstFiles,
    exchange::{Arrival, Reaction},
    lease::UnixSeconds,
    lease_store::LeaseStore,
    server::DhcpServer,
};
use crate::{flight_recorder::FlightRecorder, sockets::DhcpSocket};

/// Granted leases that may wait for the disk, some hundred bytes each. Past them messages wait in the
/// socket's buffer, and past that the kernel drops them: clients ask again.
const WAITING: usize = 16_384;
/// Leases saved together at most: what an SSD takes in some tens of milliseconds.
const TOGETHER: usize = 4_096;
/// How often the addresses that come next are looked after.
const ASK_AHEAD: Duration = Duration::from_secs(5);
/// Longest message taken; RFC 2131 clients send at most 576 bytes, relays add up to 255.
const MAX_MESSAGE: usize = 2048;

/// What all DHCP sockets share.
pub(crate) struct DhcpService {
    server: Mutex<DhcpServer>,
    to_save: Sender<Granted>,
    files: Arc<dyn FirstFiles>,
    recorder: Arc<FlightRecorder>,
    started: (SystemTime, Instant),
}

/// A reaction that changes leases, and the way its answer takes once they are saved.
pub(crate) struct Granted {
    reaction: Reaction,
    source: SocketAddrV4,
    socket: Arc<DhcpSocket>,
}

impl DhcpService {
    /// A service on a server, and what [`DhcpService::save_and_answer`] wants.
    pub(crate) fn new(
        server: DhcpServer,
        files: Arc<dyn FirstFiles>,
        recorder: Arc<FlightRecorder>,
    ) -> (Self, Receiver<Granted>) {
        let started = (SystemTime::now(), Instant::now());
        let (to_save, granted) = async_channel::bounded(WAITING);
        let service = Self {
            server: Mutex::new(server),
            to_save,
            files,
            recorder,
            started,
        };
        (service, granted)
    }

    /// Answers one link for ever.
    pub(crate) async fn run(self: Arc<Self>, socket: Arc<DhcpSocket>) -> io::Result<()> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let (len, source) = match socket.receive(&mut buffer).await {
                Ok((len, SocketAddr::V4(source))) => (len, source),
                Ok((_, SocketAddr::V6(_))) => continue,
                // The interface is down, or an earlier reply came back; it may come up again.
                Err(error) => {
                    log::warn!("DHCP on {}: {error}", socket.address);
                    smol::Timer::after(Duration::from_millis(500)).await;
                    continue;
                }
            };
            let arrival = Arrival {
                interface: socket.address,
                source,
            };
            let reaction =
                self.server()
                    .handle(&buffer[..len], self.now(), arrival, self.files.as_ref());
            if let Some(address) = reaction.ask {
                ask_who_has(&socket, address);
            }
            if reaction.changed.is_empty() {
                self.send(&socket, source, reaction).await;
            } else {
                let socket = Arc::clone(&socket);
                let granted = Granted {
                    reaction,
                    source,
                    socket,
                };
                // Closed: the saving thread died, and the server ends because of it.
                if self.to_save.send(granted).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// Saves leases and sends the answers that wait for that, for ever. Waits for the disk, so it wants
    /// a thread of its own.
    pub(crate) async fn save_and_answer(
        self: Arc<Self>,
        granted: Receiver<Granted>,
        mut store: Box<dyn LeaseStore>,
    ) -> io::Result<()> {
        while let Ok(first) = granted.recv().await {
            let mut batch = vec![first];
            while batch.len() < TOGETHER
                && let Ok(next) = granted.try_recv()
            {
                batch.push(next);
            }
            let leases: Vec<_> = batch
                .iter_mut()
                .flat_map(|granted| std::mem::take(&mut granted.reaction.changed))
                .collect();
            match store.save(&leases) {
                Ok(()) => {
                    for granted in batch {
                        self.send(&granted.socket, granted.source, granted.reaction)
                            .await;
                    }
                }
                Err(error) => log::error!(
                    "{} leases cannot be saved, so the machines are not answered: {:#}",
                    leases.len(),
                    anyhow::Error::from(error)
                ),
            }
        }
        Ok(())
    }

    /// Looks after the addresses of one link that are given next: is one of them in use? For ever.
    pub(crate) async fn watch_addresses(
        self: Arc<Self>,
        socket: Arc<DhcpSocket>,
    ) -> io::Result<()> {
        let mut ticks = smol::Timer::interval_at(Instant::now(), ASK_AHEAD);
        loop {
            let tick = async {
                ticks.next().await;
                Ok(None)
            };
            match socket.hear_holder().or(tick).await {
                Ok(Some((address, by))) => {
                    let reaction = self.server().in_use(address, by, self.now());
                    if reaction.changed.is_empty() {
                        continue;
                    }
                    let granted = Granted {
                        reaction,
                        source: SocketAddrV4::new(address, 0),
                        socket: Arc::clone(&socket),
                    };
                    if self.to_save.send(granted).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    let questions = self.server().ask_ahead(&socket.networks, self.now());
                    for address in questions {
                        ask_who_has(&socket, address);
                    }
                }
                // The interface is down; it may come up again.
                Err(error) => {
                    log::debug!("ARP on {}: {error}", socket.address);
                    smol::Timer::after(ASK_AHEAD).await;
                }
            }
        }
    }

    fn server(&self) -> MutexGuard<'_, DhcpServer> {
        // A panic within would be a bug; going on with the leases as they are beats silence.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, socket: &DhcpSocket, source: SocketAddrV4, reaction: Reaction) {
        if let Some(reply) = &reaction.reply {
            if let Err(error) = socket.send(reply, source).await {
                log::warn!(
                    "DHCP: a reply to {:?} cannot be sent: {error}",
                    reply.destination
                );
            }
            if let Some(mac) = reply.ipxe
                && let Err(error) = socket.end_router_wait(mac)
            {
                log::debug!("DHCP: no router advertisement to {mac}: {error}");
            }
        }
        for note in reaction.notes {
            self.recorder.record_dhcp(note.mac, note.boots, note.fact);
        }
    }

    /// Wall time that does not jump while the server runs: leases neither end early nor live on
    /// because somebody set the clock.
    fn now(&self) -> UnixSeconds {
        let (wall, steady) = self.started;
        let wall = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixSeconds((wall + steady.elapsed()).as_secs())
    }
}

/// A question that is lost is like one lost on the wire.
fn ask_who_has(socket: &DhcpSocket, address: Ipv4Addr) {
    if let Err(error) = socket.ask_who_has(address) {
        log::debug!("DHCP: nobody can be asked about {address}: {error}");
    }
}
