//! Looks for DHCP and boot servers on a link that are not ours, by asking as a machine would.
//!
//! Invariants: it only ever sends DHCPDISCOVER, never a request, so nobody's address is taken and an offer
//! lapses by itself; [`Search`] has no socket and no clock; whatever is heard, at most [`MAX_FOUND`]
//! servers are remembered.
//!
//! A server in `auto` mode, its watch while it runs, and `netboot doctor` all ask here.
//!
//! Not here: what is concluded (`serve::roles`), how frames are sent (`crate::sockets`).

use std::{
    fmt,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use futures_lite::FutureExt;
use protocol::dhcp::{BOOTREPLY, MacAddress, Message, MessageType, Options, vendor_class_prefix};
use protocol::dhcp::{BootProtocol, code};

use crate::sockets::{DhcpProbe, Interface, OpenError};

/// Servers remembered of one search.
const MAX_FOUND: usize = 16;
/// When to ask, in milliseconds, and as whom.
const TRIES: [(u64, Asker); 3] = [(0, StandIn), (1000, StandIn), (2500, Card)];
/// When the last answer must be there. A server that pings an address before it offers it (dnsmasq)
/// answers after 3 s.
const END: Duration = Duration::from_millis(4000);
/// How long to go on after the first answer: the others answer at about the same time.
const OTHERS_TOO: Duration = Duration::from_millis(300);

/// As whom to ask. The stand-in does not disturb a lease of our own card; a network that lets in only
/// known cards, or only frames whose sender and client are the same, answers the card alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// A locally administered address made of our card's: always the same, so that servers set one
    /// address aside, not one a search.
    StandIn,
    /// Our own card.
    Card,
}

use Asker::{Card, StandIn};

/// How long a search goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until shortly after the first server that gives addresses; 4 s when there is none.
    FirstAnswer,
    /// 4 s, to hear everybody.
    Everybody,
}

/// A server that answered and is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherServer {
    /// What it calls itself (option 54), or who sent the answer.
    pub(crate) server: Ipv4Addr,
    /// An address that it offered; `None` for a server that only tells boot files.
    pub(crate) offered: Option<Ipv4Addr>,
    /// The boot file that it offered to an x86-64 UEFI machine.
    pub(crate) boot_file: Option<String>,
}

impl OtherServer {
    /// Whether it is a DHCP server, not only a proxy.
    pub(crate) fn gives_addresses(&self) -> bool {
        self.offered.is_some()
    }
}

impl fmt::Display for OtherServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.gives_addresses() {
            "the DHCP server"
        } else {
            "the boot server"
        };
        write!(f, "{kind} {}", self.server)?;
        match &self.boot_file {
            Some(file) => write!(f, ", which offers the boot file \"{file}\""),
            None => Ok(()),
        }
    }
}

/// Looks for other servers on an interface. Nothing of ours has to be running, and anything may.
///
/// An interface without Ethernet (loopback, a tunnel) has none.
///
/// # Errors
/// When no packet socket can be had; mostly for lack of rights.
pub(crate) async fn look_for_servers(
    interface: &Interface,
    patience: Patience,
) -> Result<Vec<OtherServer>, OpenError> {
    let Some(probe) = DhcpProbe::open(interface)? else {
        return Ok(Vec::new());
    };
    // A DHCP server of this machine that is not netboot has our address, too.
    let ours = probe.netboot_serves().then_some(&interface.addresses);
    let own = ours.into_iter().flatten().map(ipnet::Ipv4Net::addr);
    // Any number will do that two searches do not share by chance.
    let transaction = uuid::Uuid::new_v4().as_fields().0;
    let mut search = Search::new(probe.mac(), transaction, own.collect(), patience);
    let started = Instant::now();
    let mut buffer = [0; 2048];
    while let Some(wake) = search.next_wake() {
        let wait = wake.saturating_sub(started.elapsed());
        let timer = async {
            smol::Timer::after(wait).await;
            Ok(None)
        };
        match probe.receive(&mut buffer).or(timer).await {
            Ok(Some((source, message))) => search.hear(*source.ip(), message, started.elapsed()),
            Ok(None) => {
                for question in search.questions(started.elapsed()) {
                    probe.send(&question);
                }
            }
            Err(error) => {
                log::debug!(
                    "looking for other DHCP servers on {}: {error}",
                    interface.name
                );
                smol::Timer::after(Duration::from_millis(100)).await;
            }
        }
    }
    Ok(search.into_found())
}

/// A search as a state machine: times are counted from its beginning.
#[derive(Debug)]
pub(crate) struct Search {
    card: MacAddress,
    transaction: u32,
    own: Vec<Ipv4Addr>,
    patience: Patience,
    tries: usize,
    end: Duration,
    over: bool,
    found: Vec<OtherServer>,
}

impl Search {
    /// A search from a card; answers of `own` addresses do not count.
    pub(crate) fn new(
        card: MacAddress,
        transaction: u32,
        own: Vec<Ipv4Addr>,
        patience: Patience,
    ) -> Self {
        Self {
            card,
            transaction,
            own,
            patience,
            tries: 0,
            end: END,
            over: false,
            found: Vec::new(),
        }
    }

    /// When [`Search::questions`] wants to be called; `None` when the search is over.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let next = TRIES
            .get(self.tries)
            .map(|(at, _)| Duration::from_millis(*at));
        (!self.over).then(|| next.map_or(self.end, |next| next.min(self.end)))
    }

    /// The messages to broadcast now: one for an address, one for a boot file.
    pub(crate) fn questions(&mut self, now: Duration) -> Vec<Vec<u8>> {
        if now >= self.end {
            self.over = true;
        }
        let asker = match TRIES.get(self.tries) {
            Some((at, asker)) if now >= Duration::from_millis(*at) && !self.over => *asker,
            _ => return Vec::new(),
        };
        self.tries += 1;
        let mac = match asker {
            StandIn => stand_in(self.card),
            Card => self.card,
        };
        [Wish::Address, Wish::BootFile]
            .map(|wish| discover(mac, self.transaction.wrapping_add(wish as u32), wish).emit())
            .to_vec()
    }

    /// Takes a message that came to the clients' port.
    pub(crate) fn hear(&mut self, source: Ipv4Addr, bytes: &[u8], now: Duration) {
        let Ok(message) = Message::parse(bytes) else {
            return;
        };
        let ours = [Wish::Address, Wish::BootFile]
            .map(|wish| self.transaction.wrapping_add(wish as u32))
            .contains(&message.transaction)
            && message
                .mac()
                .is_some_and(|mac| mac == self.card || mac == stand_in(self.card));
        if message.op != BOOTREPLY || message.message_type() != Some(MessageType::Offer) || !ours {
            return;
        }
        let server = message.options.address(code::SERVER_ID).unwrap_or(source);
        if self.own.contains(&server) || self.own.contains(&source) {
            return;
        }
        let at = self.found.iter().position(|known| known.server == server);
        let at = match at {
            Some(at) => at,
            None if self.found.len() == MAX_FOUND => return,
            None => {
                self.found.push(OtherServer {
                    server,
                    offered: None,
                    boot_file: None,
                });
                self.found.len() - 1
            }
        };
        let known = &mut self.found[at];
        if !message.your_address.is_unspecified() {
            known.offered = Some(message.your_address);
        }
        let option = message.options.text(code::BOOT_FILE);
        let field = || String::from_utf8_lossy(&message.file).into_owned();
        let file = option.unwrap_or_else(field);
        let file: String = file.chars().filter(|letter| !letter.is_control()).collect();
        if !file.is_empty() {
            known.boot_file = Some(file);
        }
        if self.patience == Patience::FirstAnswer && known.gives_addresses() {
            self.end = self.end.min(now + OTHERS_TOO);
        }
    }

    /// Who answered.
    pub(crate) fn into_found(self) -> Vec<OtherServer> {
        self.found
    }
}

/// What a question is for. Servers answer some clients only if they ask for a boot file, and others
/// only if they do not.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Address = 0,
    BootFile = 1,
}

fn discover(mac: MacAddress, transaction: u32, wish: Wish) -> Message {
    let mut options = Options::new();
    options
        .set(code::MESSAGE_TYPE, [MessageType::Discover.to_byte()])
        .set(code::MAX_SIZE, 1472_u16.to_be_bytes())
        .set(
            code::PARAMETER_LIST,
            [
                code::SUBNET_MASK,
                code::ROUTER,
                code::VENDOR_CLASS,
                code::TFTP_SERVER,
                code::BOOT_FILE,
            ],
        );
    if let Wish::BootFile = wish {
        let class = format!(
            "{}:Arch:00007:UNDI:003000",
            vendor_class_prefix(BootProtocol::Pxe)
        );
        options
            .set(code::VENDOR_CLASS, class)
            .set(code::CLIENT_ARCHITECTURE, [0, 7])
            // Client network interface, RFC 4578 §2.2: UNDI 3.0.
            .set(94, [1, 3, 0]);
    }
    Message {
        // Some servers and relays leave a client's first seconds to others.
        seconds: 10,
        // The stand-in's address is on no card: a reply to it alone would be heard by nobody.
        broadcast: true,
        ..Message::of_client(mac, transaction, options)
    }
}

/// The address of a card that does not exist: locally administered (IEEE 802 U/L bit), told from the
/// real one also where that has the bit set already.
fn stand_in(card: MacAddress) -> MacAddress {
    let [a, b, c, d, e, f] = card.bytes();
    MacAddress::new([a | 2, b ^ 0x4e, c ^ 0x42, d, e, f])
}

#[cfg(test)]
mod tests;
