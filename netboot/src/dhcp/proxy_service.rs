//! Drives the proxy of one link: takes what has come in at a door, lets the proxy decide, sends.
//!
//! Not here: the answers (`proxy`), opening sockets (`crate::sockets`).

use std::{
    io,
    net::SocketAddrV4,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use protocol::dhcp::MacAddress;

use super::{
    boot_table::FirstFiles,
    proxy::{Asked, Door, Fetches, Proxy, ProxyReaction, ProxySettings},
};
use crate::{flight_recorder::FlightRecorder, sockets::ProxySocket};

/// Longest message taken; RFC 2131 clients send at most 576 bytes, relays add up to 255.
const MAX_MESSAGE: usize = 2048;

/// What both doors of a link share.
pub(crate) struct ProxyService {
    proxy: Mutex<Proxy>,
    files: Arc<dyn FirstFiles>,
    recorder: Arc<FlightRecorder>,
    started: Instant,
}

impl Fetches for FlightRecorder {
    fn fetched_within(&self, mac: MacAddress, back: Duration) -> bool {
        Self::fetched_within(self, mac, back)
    }
}

impl ProxyService {
    /// A service of one link.
    pub(crate) fn new(
        settings: ProxySettings,
        files: Arc<dyn FirstFiles>,
        recorder: Arc<FlightRecorder>,
    ) -> Self {
        Self {
            proxy: Mutex::new(Proxy::new(settings)),
            files,
            recorder,
            started: Instant::now(),
        }
    }

    /// Answers at one door for ever.
    pub(crate) async fn run(self: Arc<Self>, door: Door, socket: ProxySocket) -> io::Result<()> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            match socket.receive(&mut buffer).await {
                Ok(Some((source, bytes))) => {
                    let reaction = self.decide(door, source, bytes);
                    self.carry_out(&socket, source, reaction).await;
                }
                Ok(None) => {}
                // The interface is down, or an earlier reply came back; it may come up again.
                Err(error) => {
                    log::warn!("proxyDHCP on {}: {error}", socket.name());
                    smol::Timer::after(Duration::from_millis(500)).await;
                }
            }
        }
    }

    fn decide(&self, door: Door, source: SocketAddrV4, bytes: &[u8]) -> ProxyReaction {
        let asked = Asked {
            files: self.files.as_ref(),
            fetches: self.recorder.as_ref(),
        };
        // A panic within would be a bug; what was learnt is no worse for it.
        let mut proxy = self.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        proxy.handle(bytes, self.started.elapsed(), door, source, &asked)
    }

    async fn carry_out(&self, socket: &ProxySocket, source: SocketAddrV4, reaction: ProxyReaction) {
        if let Some(reply) = &reaction.reply
            && let Err(error) = socket.send(reply, source).await
        {
            log::warn!(
                "proxyDHCP: a reply to {:?} cannot be sent: {error}",
                reply.destination
            );
        }
        if let Some(mac) = reaction.ipxe
            && let Err(error) = socket.end_router_wait(mac)
        {
            log::debug!("proxyDHCP: no router advertisement to {mac}: {error}");
        }
        if let Some((mac, address)) = reaction.takes {
            self.recorder.granted(mac, address);
        }
        for note in reaction.notes {
            self.recorder.record_dhcp(note.mac, note.boots, note.fact);
        }
    }
}
