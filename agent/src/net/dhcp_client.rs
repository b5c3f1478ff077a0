//! The DHCP client as a state machine (RFC 2131 §4.4): bytes and `now` in, bytes and the next deadline
//! out.
//!
//! Invariant: no socket, no clock; a message that is not ours, or makes no sense, changes nothing.
//! What is *not* here: the interface ([`super::ports`]), the check for an address conflict (ARP probe
//! and DECLINE), RELEASE (a machine that restarts asks for the same address again).

use std::net::Ipv4Addr;
use std::time::Duration;

use protocol::dhcp::{BOOTREPLY, MacAddress, Message, MessageType, Options, code};

use super::random::Random;

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Our address.
    pub(crate) address: Ipv4Addr,
    /// The subnet's mask.
    pub(crate) mask: Ipv4Addr,
    /// The default router.
    pub(crate) router: Option<Ipv4Addr>,
    /// Name servers.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// The DHCP server.
    pub(crate) server: Ipv4Addr,
    /// How long it is ours; `None` for ever.
    pub(crate) lifetime: Option<Duration>,
    renew_after: Duration,
    rebind_after: Duration,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// 255.255.255.255.
    Broadcast,
    /// The server that gave the lease.
    Server(Ipv4Addr),
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transmit {
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// To whom.
    pub(crate) to: Destination,
}

/// Something that the interface's owner has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Use this address.
    Granted(Lease),
    /// The lease was extended; the address stays.
    Extended,
    /// Stop using the address.
    Lost(&'static str),
}

#[derive(Debug)]
enum State {
    Selecting,
    Requesting {
        offer: Box<Message>,
        server: Ipv4Addr,
    },
    Bound {
        lease: Lease,
        since: Duration,
    },
}

/// The client of one interface. Times are of any monotonic clock.
#[derive(Debug)]
pub(crate) struct Client {
    mac: MacAddress,
    state: State,
    transaction: u32,
    began: Duration,
    tries: u32,
    due: Duration,
    random: Random,
}

/// The first wait for an answer; it doubles. RFC 2131 §4.1 proposes 4 s for a shared 10 Mbit/s wire; here
/// a lost frame would cost a person those 4 s, and the first frame after link is often lost.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// How often an offer is asked for before others are looked for.
const REQUESTS: u32 = 4;
/// Between two renewals at least (RFC 2131 §4.4.5).
const RENEWAL_WAIT: Duration = Duration::from_secs(60);
/// The wait after a refusal, so that a server that refuses what it offers is not flooded.
const REFUSAL_WAIT: Duration = Duration::from_secs(2);
/// Lease time of a server that does not say one.
const SILENT_LEASE: u32 = 3600;
/// The shortest lease that is believed.
const SHORTEST_LEASE: u32 = 10;

impl Client {
    /// A client that sends its first message at `now`. `seed` makes transactions of different
    /// machines, and boots, differ.
    pub(crate) fn new(mac: MacAddress, seed: u64, now: Duration) -> Self {
        let mut client = Self {
            mac,
            state: State::Selecting,
            transaction: 0,
            began: now,
            tries: 0,
            due: now,
            random: Random::new(seed),
        };
        client.begin(now, Duration::ZERO);
        client
    }

    /// When [`Client::poll`] has something to do.
    pub(crate) fn deadline(&self) -> Duration {
        self.due
    }

    /// The lease, while there is one.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// Does what is due at `now`.
    pub(crate) fn poll(&mut self, now: Duration) -> (Option<Transmit>, Option<Change>) {
        if now < self.due {
            return (None, None);
        }
        let (transmit, change) = match &self.state {
            State::Selecting => (Some(self.discover(now)), None),
            State::Requesting { .. } if self.tries >= REQUESTS => {
                self.begin(now, Duration::ZERO);
                (Some(self.discover(now)), None)
            }
            State::Requesting { offer, server } => {
                let mut message = self.message(MessageType::Request, now);
                let (server, address) = (server.octets(), offer.your_address.octets());
                message.options.set(code::SERVER_ID, server);
                message.options.set(code::REQUESTED_ADDRESS, address);
                (Some(broadcast(&message)), None)
            }
            State::Bound { lease, since } => {
                let age = now.saturating_sub(*since);
                if lease.lifetime.is_some_and(|lifetime| age >= lifetime) {
                    self.begin(now, Duration::ZERO);
                    let lost = Change::Lost("its lease ran out and was not renewed");
                    return (None, Some(lost));
                }
                return (Some(self.extend(now)), None);
            }
        };
        let wait = FIRST_WAIT
            .saturating_mul(1 << self.tries.min(8))
            .min(LONGEST_WAIT);
        self.tries += 1;
        self.due = now + self.random.jittered(wait);
        (transmit, change)
    }

    /// Takes a datagram that came to port 68 at `now`.
    pub(crate) fn receive(&mut self, bytes: &[u8], now: Duration) -> Option<Change> {
        let message = Message::parse(bytes).ok()?;
        let ours = message.op == BOOTREPLY
            && message.transaction == self.transaction
            && message.mac() == Some(self.mac);
        if !ours {
            return None;
        }
        let server = message.options.address(code::SERVER_ID);
        match (&self.state, message.message_type()?) {
            (State::Selecting, MessageType::Offer) => {
                let server = server?;
                if !usable(message.your_address) || self.tries == 0 {
                    return None;
                }
                let offer = Box::new(message);
                self.state = State::Requesting { offer, server };
                self.tries = 0;
                self.due = now;
                None
            }
            (State::Requesting { server: asked, .. }, MessageType::Ack) => {
                let asked = *asked;
                let lease = lease_of(&message, server.unwrap_or(asked))?;
                self.bind(lease.clone(), now);
                Some(Change::Granted(lease))
            }
            (State::Requesting { .. }, MessageType::Nak) => {
                self.begin(now, REFUSAL_WAIT);
                None
            }
            (State::Bound { lease, .. }, MessageType::Ack) => {
                let before = lease.address;
                let fresh = lease_of(&message, server.unwrap_or(lease.server))?;
                let same = fresh.address == before;
                self.bind(fresh.clone(), now);
                Some(if same {
                    Change::Extended
                } else {
                    Change::Granted(fresh)
                })
            }
            (State::Bound { .. }, MessageType::Nak) => {
                self.begin(now, Duration::ZERO);
                Some(Change::Lost("the DHCP server took the address back"))
            }
            _ => None,
        }
    }

    fn begin(&mut self, now: Duration, wait: Duration) {
        self.state = State::Selecting;
        self.transaction = self.random.transaction();
        self.began = now;
        self.tries = 0;
        self.due = now + wait;
    }

    fn bind(&mut self, lease: Lease, now: Duration) {
        self.due = match lease.lifetime {
            Some(_) => now + lease.renew_after,
            None => Duration::MAX,
        };
        self.state = State::Bound { lease, since: now };
        self.began = now;
        self.tries = 0;
    }

    fn discover(&mut self, now: Duration) -> Transmit {
        broadcast(&self.message(MessageType::Discover, now))
    }

    /// Asks for more time: its own server first, then any (RFC 2131 §4.4.5).
    fn extend(&mut self, now: Duration) -> Transmit {
        let State::Bound { lease, since } = &self.state else {
            return self.discover(now);
        };
        let (address, server) = (lease.address, lease.server);
        let age = now.saturating_sub(*since);
        let rebinding = age >= lease.rebind_after;
        let end = lease.lifetime.unwrap_or(Duration::MAX);
        let next = if rebinding { end } else { lease.rebind_after };
        // Half of what is left until the next step, but not more often than once a minute, and
        // never past that step.
        let left = next.saturating_sub(age);
        let wait = (left / 2).max(RENEWAL_WAIT).min(left);
        self.due = now + wait;
        if self.tries == 0 {
            self.transaction = self.random.transaction();
        }
        self.tries += 1;
        let mut message = self.message(MessageType::Request, now);
        message.client_address = address;
        message.broadcast = false;
        Transmit {
            bytes: message.emit(),
            to: if rebinding {
                Destination::Broadcast
            } else {
                Destination::Server(server)
            },
        }
    }

    fn message(&self, kind: MessageType, now: Duration) -> Message {
        let mut options = Options::new();
        options.set(code::MESSAGE_TYPE, [kind.to_byte()]);
        // A whole Ethernet frame's worth (RFC 2132 §9.10).
        options.set(code::MAX_SIZE, 1472u16.to_be_bytes());
        options.set(
            code::PARAMETER_LIST,
            [
                code::SUBNET_MASK,
                code::ROUTER,
                code::DNS,
                code::LEASE_TIME,
                code::RENEWAL_TIME,
                code::REBINDING_TIME,
            ],
        );
        let seconds = now.saturating_sub(self.began).as_secs();
        Message {
            seconds: u16::try_from(seconds).unwrap_or(u16::MAX),
            // Without an address, the kernel drops what is not broadcast (RFC 2131 §4.1).
            broadcast: true,
            ..Message::of_client(self.mac, self.transaction, options)
        }
    }
}

fn broadcast(message: &Message) -> Transmit {
    Transmit {
        bytes: message.emit(),
        to: Destination::Broadcast,
    }
}

fn usable(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback())
}

/// The lease in an ACK, `None` when it has no usable address.
fn lease_of(ack: &Message, server: Ipv4Addr) -> Option<Lease> {
    if !usable(ack.your_address) {
        return None;
    }
    let options = &ack.options;
    let seconds = options.u32(code::LEASE_TIME).unwrap_or(SILENT_LEASE);
    // RFC 2131 §3.3: all ones is for ever.
    let lifetime = (seconds != u32::MAX).then_some(seconds.max(SHORTEST_LEASE));
    let whole = Duration::from_secs(lifetime.unwrap_or(u32::MAX).into());
    let part = |number, default: Duration| {
        let said = options
            .u32(number)
            .map(|value| Duration::from_secs(value.into()));
        said.filter(|value| !value.is_zero() && *value < whole)
            .unwrap_or(default)
    };
    let rebind_after = part(code::REBINDING_TIME, whole * 7 / 8);
    let renew_after = part(code::RENEWAL_TIME, whole / 2).min(rebind_after);
    Some(Lease {
        address: ack.your_address,
        mask: options
            .address(code::SUBNET_MASK)
            .filter(|mask| is_mask(*mask))
            .unwrap_or_else(|| class_mask(ack.your_address)),
        router: options
            .get(code::ROUTER)
            .and_then(|value| addresses(value).into_iter().find(|router| usable(*router))),
        dns: options.get(code::DNS).map(addresses).unwrap_or_default(),
        server,
        lifetime: lifetime.map(|seconds| Duration::from_secs(seconds.into())),
        renew_after,
        rebind_after,
    })
}

fn addresses(value: &[u8]) -> Vec<Ipv4Addr> {
    let (quads, _) = value.as_chunks::<4>();
    quads.iter().map(|quad| Ipv4Addr::from(*quad)).collect()
}

/// Ones, then zeros.
fn is_mask(mask: Ipv4Addr) -> bool {
    let bits = mask.to_bits();
    bits != 0 && bits.leading_ones() + bits.trailing_zeros() == 32
}

/// The mask that an address had before masks (RFC 950), for servers that say none.
fn class_mask(address: Ipv4Addr) -> Ipv4Addr {
    match address.octets()[0] {
        0..=127 => Ipv4Addr::new(255, 0, 0, 0),
        128..=191 => Ipv4Addr::new(255, 255, 0, 0),
        _ => Ipv4Addr::new(255, 255, 255, 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    const MAC: MacAddress = MacAddress::new([0x52, 0x54, 0, 0, 0, 1]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn parsed(transmit: Option<Transmit>) -> (Message, Destination) {
        let transmit = transmit.expect("a message was due");
        (Message::parse(&transmit.bytes).unwrap(), transmit.to)
    }

    fn answer(request: &Message, kind: MessageType) -> Message {
        let mut reply = request.reply(kind);
        reply.your_address = ADDRESS;
        reply.options.set(code::SERVER_ID, SERVER.octets());
        reply.options.set(code::SUBNET_MASK, [255, 255, 255, 0]);
        reply.options.set(code::ROUTER, SERVER.octets());
        reply.options.set(code::LEASE_TIME, 1000u32.to_be_bytes());
        reply
    }

    fn bound() -> Client {
        let mut client = Client::new(MAC, 7, s(0));
        let (discover, _) = parsed(client.poll(s(0)).0);
        client.receive(&answer(&discover, MessageType::Offer).emit(), s(0));
        let (request, _) = parsed(client.poll(s(0)).0);
        client.receive(&answer(&request, MessageType::Ack).emit(), s(0));
        assert!(client.lease().is_some());
        client
    }

    #[test]
    fn four_messages_give_a_lease() {
        let mut client = Client::new(MAC, 7, s(5));
        let (discover, to) = parsed(client.poll(s(5)).0);
        assert_eq!(to, Destination::Broadcast);
        assert_eq!(discover.message_type(), Some(MessageType::Discover));
        assert!(discover.broadcast && discover.mac() == Some(MAC));

        let offer = answer(&discover, MessageType::Offer);
        assert_eq!(client.receive(&offer.emit(), s(5)), None);
        assert_eq!(client.deadline(), s(5), "the request goes out at once");
        let (request, _) = parsed(client.poll(s(5)).0);
        assert_eq!(request.message_type(), Some(MessageType::Request));
        assert_eq!(request.transaction, discover.transaction);
        assert_eq!(request.options.address(code::SERVER_ID), Some(SERVER));
        assert_eq!(
            request.options.address(code::REQUESTED_ADDRESS),
            Some(ADDRESS)
        );

        let ack = answer(&request, MessageType::Ack);
        let Some(Change::Granted(lease)) = client.receive(&ack.emit(), s(5)) else {
            panic!("no lease");
        };
        assert_eq!((lease.address, lease.router), (ADDRESS, Some(SERVER)));
        assert_eq!(lease.mask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(client.deadline(), s(505), "T1 is half of the lease");
    }

    #[test]
    fn lost_messages_are_sent_again_with_growing_waits() {
        let mut client = Client::new(MAC, 7, s(0));
        let mut now = s(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(client.poll(now).0.is_some());
            assert_eq!(client.poll(now), (None, None), "not twice");
            waits.push(client.deadline() - now);
            now = client.deadline();
        }
        for (wait, least) in waits
            .iter()
            .zip([500, 1000, 2000, 4000, 8000, 16000, 16000, 16000])
        {
            let least = Duration::from_millis(least);
            assert!((least..=least * 5 / 4).contains(wait), "{wait:?}");
        }
    }

    #[test]
    fn a_request_without_answer_goes_back_to_looking_for_servers() {
        let mut client = Client::new(MAC, 7, s(0));
        let (discover, _) = parsed(client.poll(s(0)).0);
        client.receive(&answer(&discover, MessageType::Offer).emit(), s(0));
        for _ in 0..REQUESTS {
            let (message, _) = parsed(client.poll(client.deadline()).0);
            assert_eq!(message.message_type(), Some(MessageType::Request));
        }
        let (message, _) = parsed(client.poll(client.deadline()).0);
        assert_eq!(message.message_type(), Some(MessageType::Discover));
        assert_ne!(message.transaction, discover.transaction);
    }

    #[test]
    fn a_nak_starts_again_after_a_pause_and_a_late_ack_is_ignored() {
        let mut client = Client::new(MAC, 7, s(0));
        let (discover, _) = parsed(client.poll(s(0)).0);
        client.receive(&answer(&discover, MessageType::Offer).emit(), s(0));
        let (request, _) = parsed(client.poll(s(0)).0);
        client.receive(&answer(&request, MessageType::Nak).emit(), s(1));
        assert_eq!(client.deadline(), s(1) + REFUSAL_WAIT);
        let late = answer(&request, MessageType::Ack);
        assert_eq!(client.receive(&late.emit(), s(2)), None);
        assert_eq!(client.lease(), None);
    }

    #[test]
    fn a_late_ack_of_the_same_request_is_taken() {
        let mut client = Client::new(MAC, 7, s(0));
        let (discover, _) = parsed(client.poll(s(0)).0);
        client.receive(&answer(&discover, MessageType::Offer).emit(), s(0));
        let (request, _) = parsed(client.poll(s(0)).0);
        let again = client.deadline();
        client.poll(again);
        let ack = answer(&request, MessageType::Ack).emit();
        assert!(matches!(
            client.receive(&ack, again),
            Some(Change::Granted(_))
        ));
        assert_eq!(
            client.receive(&ack, again),
            Some(Change::Extended),
            "a duplicate is harmless"
        );
    }

    #[test]
    fn answers_to_others_are_ignored() {
        let mut client = Client::new(MAC, 7, s(0));
        let (discover, _) = parsed(client.poll(s(0)).0);
        let mut other_transaction = answer(&discover, MessageType::Offer);
        other_transaction.transaction ^= 1;
        let mut other_machine = answer(&discover, MessageType::Offer);
        other_machine.hardware_address[5] = 9;
        let mut no_server = answer(&discover, MessageType::Offer);
        no_server.options = Options::new();
        no_server.options.set(code::MESSAGE_TYPE, [2]);
        let mut no_address = answer(&discover, MessageType::Offer);
        no_address.your_address = Ipv4Addr::UNSPECIFIED;
        for message in [
            other_transaction,
            other_machine,
            no_server,
            no_address,
            discover,
        ] {
            client.receive(&message.emit(), s(0));
            assert!(client.deadline() > s(0), "still waits: {message:?}");
        }
    }

    #[test]
    fn renewal_asks_the_server_then_everybody_then_gives_up() {
        let mut client = bound();
        assert_eq!(client.poll(s(499)), (None, None));
        let (renewal, to) = parsed(client.poll(s(500)).0);
        assert_eq!(to, Destination::Server(SERVER));
        assert_eq!(renewal.client_address, ADDRESS);
        assert_eq!(renewal.options.get(code::SERVER_ID), None);

        let mut broadcasts = 0;
        let end = loop {
            let now = client.deadline();
            let (transmit, change) = client.poll(now);
            if let Some(change) = change {
                assert!(matches!(change, Change::Lost(_)));
                break now;
            }
            let to = transmit.map(|transmit| transmit.to);
            assert_eq!(to == Some(Destination::Broadcast), now >= s(875), "{now:?}");
            broadcasts += u32::from(to == Some(Destination::Broadcast));
        };
        assert!(broadcasts >= 1);
        assert_eq!(end, s(1000));
        assert_eq!(client.lease(), None);
    }

    #[test]
    fn a_renewed_lease_runs_from_its_renewal() {
        let mut client = bound();
        let (renewal, _) = parsed(client.poll(s(500)).0);
        let ack = answer(&renewal, MessageType::Ack);
        assert_eq!(client.receive(&ack.emit(), s(500)), Some(Change::Extended));
        assert_eq!(client.deadline(), s(1000));
        let (renewal, _) = parsed(client.poll(s(1000)).0);
        let nak = answer(&renewal, MessageType::Nak);
        assert!(matches!(
            client.receive(&nak.emit(), s(1000)),
            Some(Change::Lost(_))
        ));
        assert!(
            client.poll(s(1000)).0.is_some(),
            "it looks for a server at once"
        );
    }

    #[test]
    fn nonsense_in_an_ack_is_replaced_by_what_is_usual() {
        let client = Client::new(MAC, 7, s(0));
        let request = client.message(MessageType::Request, s(0));
        let mut ack = answer(&request, MessageType::Ack);
        ack.options.set(code::SUBNET_MASK, [255, 0, 255, 0]);
        ack.options.set(code::RENEWAL_TIME, 5000u32.to_be_bytes());
        ack.options.set(code::LEASE_TIME, 0u32.to_be_bytes());
        let lease = lease_of(&ack, SERVER).unwrap();
        assert_eq!(lease.mask, Ipv4Addr::new(255, 0, 0, 0));
        assert_eq!(lease.lifetime, Some(s(10)));
        assert_eq!(lease.renew_after, s(5));
        ack.options.set(code::LEASE_TIME, u32::MAX.to_be_bytes());
        assert_eq!(lease_of(&ack, SERVER).unwrap().lifetime, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..8),
        ) {
            let mut client = Client::new(MAC, 1, s(0));
            client.poll(s(0));
            for datagram in datagrams {
                client.receive(&datagram, s(0));
            }
        }
    }
}
