//! Drives the DHCP server: takes what has come, lets the server decide, saves, then sends.
//!
//! Invariant: an acknowledgement leaves only after its lease is on disk. All messages that wait
//! together are saved in one transaction: the disk's delay is paid once for a room of machines.
//!
//! Not here: the answers (`server`), opening sockets (`crate::sockets`).

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    boot_table::FirstFiles,
    exchange::{Arrival, Reaction},
    lease::UnixSeconds,
    lease_store::LeaseStore,
    server::DhcpServer,
};
use crate::{flight_recorder::FlightRecorder, sockets::DhcpSocket};

/// Messages answered together.
const BATCH: usize = 64;
/// Longest message taken; RFC 2131 clients send at most 576 bytes, relays add up to 255.
const MAX_MESSAGE: usize = 2048;

/// What all DHCP sockets share.
pub(crate) struct DhcpService {
    decisions: Mutex<Decisions>,
    files: Arc<dyn FirstFiles>,
    recorder: Arc<FlightRecorder>,
    started: (SystemTime, Instant),
}

struct Decisions {
    server: DhcpServer,
    store: Box<dyn LeaseStore>,
}

impl DhcpService {
    /// A service on a server and the place of its leases.
    pub(crate) fn new(
        server: DhcpServer,
        store: Box<dyn LeaseStore>,
        files: Arc<dyn FirstFiles>,
        recorder: Arc<FlightRecorder>,
    ) -> Self {
        let started = (SystemTime::now(), Instant::now());
        Self {
            decisions: Mutex::new(Decisions { server, store }),
            files,
            recorder,
            started,
        }
    }

    /// Answers one link for ever. Waits for the disk, so it wants a thread of its own.
    pub(crate) async fn run(self: Arc<Self>, socket: DhcpSocket) -> io::Result<()> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let mut batch = Vec::new();
            let mut next = match socket.receive(&mut buffer).await {
                Ok(first) => Some(first),
                // The interface is down, or an earlier reply came back; it may come up again.
                Err(error) => {
                    log::warn!("DHCP on {}: {error}", socket.address);
                    smol::Timer::after(Duration::from_millis(500)).await;
                    continue;
                }
            };
            while let Some((len, source)) = next {
                if let SocketAddr::V4(source) = source {
                    batch.push((source, buffer[..len].to_vec()));
                }
                next = (batch.len() < BATCH)
                    .then(|| socket.receive_now(&mut buffer))
                    .flatten();
            }
            for (source, reaction) in self.decide(&socket, &batch) {
                self.send(&socket, source, reaction).await;
            }
        }
    }

    /// The reactions to a batch, their leases saved.
    fn decide(
        &self,
        socket: &DhcpSocket,
        batch: &[(SocketAddrV4, Vec<u8>)],
    ) -> Vec<(SocketAddrV4, Reaction)> {
        // A panic within would be a bug; going on with the leases as they are beats silence.
        let mut decisions = self
            .decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let mut reactions: Vec<_> = batch
            .iter()
            .map(|(source, bytes)| {
                let arrival = Arrival {
                    interface: socket.address,
                    source: *source,
                };
                let files = self.files.as_ref();
                (*source, decisions.server.handle(bytes, now, arrival, files))
            })
            .collect();
        let changed: Vec<_> = reactions
            .iter()
            .flat_map(|(_, reaction)| reaction.changed.clone())
            .collect();
        if !changed.is_empty()
            && let Err(error) = decisions.store.save(&changed)
        {
            log::error!(
                "{} leases cannot be saved, so the machines are not answered: {:#}",
                changed.len(),
                anyhow::Error::from(error)
            );
            reactions.retain(|(_, reaction)| reaction.changed.is_empty());
        }
        reactions
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
