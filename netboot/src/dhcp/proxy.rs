//! proxyDHCP as a state machine: the boot file for machines whose addresses another server gives
//! (PXE specification 2.1 §2.2, ports 67 and 4011).
//!
//! Invariants: no address is ever given, offered or refused (`yiaddr` is always 0.0.0.0, there is no NAK); a
//! client that did not ask for a boot file, by option 60 *and* 93, gets no answer; one message in gives at
//! most one message out; a machine for which there is no file gets none, so that another boot server may
//! serve it. No socket or clock here.
//!
//! Not here: which file (`boot_table`), which way a firmware is told it (`way`), sockets
//! (`crate::sockets`), addresses (`server`).

mod way;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use ipnet::Ipv4Net;
use protocol::dhcp::{
    AGENT_CLASS, BOOTREQUEST, BootClient, BootProtocol, CLIENT_PORT, MacAddress, Message,
    MessageType, RelayInformation, code, vendor_class_prefix,
};

pub(crate) use way::{Way, WayChoice, WayPolicy, WayRule};

use super::{
    boot_answer::{Source, add_boot_file},
    boot_table::{FirstFiles, NoFirstFile, Role},
    exchange::{Destination, Note, Reply},
};
use crate::flight_recorder::{Asker, Fact};

/// UDP port on which boot servers are asked (PXE 2.1 §2.2.2).
pub(crate) const BOOT_SERVER_PORT: u16 = 4011;
/// More relays than RFC 1542 §4.1.1 allows on one way are a loop.
const MAX_HOPS: u8 = 16;
/// Option 43: sub-option 6, discovery control, bit 3 = "take the file named here and ask nobody"
/// (PXE 2.1 §2.2.3, table 2-1), then End.
const TAKE_IT_FROM_HERE: [u8; 4] = [6, 1, 8, 255];
/// Sub-option of option 43: the boot item asked for, its type and layer.
const BOOT_ITEM: u8 = 71;

/// Where a message came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// The DHCP servers' port, 67.
    Servers,
    /// The boot servers' port, 4011.
    BootServers,
}

/// What the proxy goes by, on one link.
#[derive(Debug, Clone)]
pub(crate) struct ProxySettings {
    /// Our addresses on the link; at least one.
    pub(crate) addresses: Vec<Ipv4Net>,
    /// Port of our HTTP server as machines see it.
    pub(crate) http_port: u16,
    /// Which firmware is told which way.
    pub(crate) ways: WayPolicy,
}

/// Who knows what machines fetched.
pub(crate) trait Fetches {
    /// Whether the machine fetched anything within the time given, back from now.
    fn fetched_within(&self, mac: MacAddress, back: Duration) -> bool;
}

/// What the proxy asks others.
pub(crate) struct Asked<'a> {
    /// What machines boot first.
    pub(crate) files: &'a dyn FirstFiles,
    /// What they fetched.
    pub(crate) fetches: &'a dyn Fetches,
}

/// What a message led to.
#[derive(Debug, Default)]
pub(crate) struct ProxyReaction {
    /// At most one message.
    pub(crate) reply: Option<Reply>,
    /// An iPXE on the link, to be told that there is no IPv6 router.
    pub(crate) ipxe: Option<MacAddress>,
    /// The machine has, or is about to get, this address from the other server.
    pub(crate) takes: Option<(MacAddress, Ipv4Addr)>,
    /// For the flight recorder, in order.
    pub(crate) notes: Vec<Note>,
}

/// A request with what is derived from it.
struct Query<'a> {
    request: &'a Message,
    mac: MacAddress,
    source: SocketAddrV4,
    address: Ipv4Addr,
}

impl Query<'_> {
    fn note(&self, reaction: &mut ProxyReaction, fact: Fact) {
        reaction.notes.push(Note {
            mac: self.mac,
            boots: boot_client(self.request).is_some(),
            fact,
        });
    }
}

/// The proxy of one link.
#[derive(Debug)]
pub(crate) struct Proxy {
    settings: ProxySettings,
    learnt: way::Learnt,
}

impl Proxy {
    /// A proxy that has learnt nothing yet.
    pub(crate) fn new(settings: ProxySettings) -> Self {
        Self {
            settings,
            learnt: way::Learnt::default(),
        }
    }

    /// Answers a message that `source` sent. `now` counts from any fixed moment.
    pub(crate) fn handle(
        &mut self,
        bytes: &[u8],
        now: Duration,
        door: Door,
        source: SocketAddrV4,
        asked: &Asked<'_>,
    ) -> ProxyReaction {
        let mut reaction = ProxyReaction::default();
        let Ok(request) = Message::parse(bytes) else {
            return reaction;
        };
        let (Some(kind), Some(mac)) = (request.message_type(), request.mac()) else {
            return reaction;
        };
        // Our own search for other servers goes out here, too, where it asks this machine's.
        let from_us = |own: &Ipv4Net| own.addr() == *source.ip();
        if request.op != BOOTREQUEST
            || request.hops > MAX_HOPS
            || !mac.is_unicast()
            || self.settings.addresses.iter().any(from_us)
        {
            return reaction;
        }
        let query = Query {
            request: &request,
            mac,
            source,
            address: self.address_for(&request),
        };
        match (door, kind) {
            (Door::Servers, MessageType::Discover) => {
                self.discover(&query, now, &mut reaction, asked);
            }
            (Door::Servers, MessageType::Request) => self.overhear(&query, &mut reaction),
            (Door::Servers, MessageType::Inform) => self.tell_agent(&query, &mut reaction),
            (Door::BootServers, MessageType::Request | MessageType::Inform) => {
                self.tell_file(&query, &mut reaction, asked.files);
            }
            _ => {}
        }
        reaction
    }

    /// Our address in the network of the client: where it is, or its relay, or the first.
    fn address_for(&self, request: &Message) -> Ipv4Addr {
        let hints = [
            Some(request.client_address),
            Some(request.relay_address),
            request.options.address(code::REQUESTED_ADDRESS),
        ];
        let addresses = &self.settings.addresses;
        let near = hints
            .into_iter()
            .flatten()
            .find_map(|hint| addresses.iter().find(|own| own.contains(&hint)));
        near.or(addresses.first())
            .map_or(Ipv4Addr::UNSPECIFIED, Ipv4Net::addr)
    }

    /// A machine looks for servers.
    fn discover(
        &mut self,
        query: &Query<'_>,
        now: Duration,
        reaction: &mut ProxyReaction,
        asked: &Asked<'_>,
    ) {
        let Some(client) = boot_client(query.request) else {
            return;
        };
        let mut reply = self.begin(query, MessageType::Offer, client.protocol);
        // A bare offer promises a file: without one, silence leaves the machine to others.
        let mut with_file = reply.clone();
        let told = match self.add_file(query, &mut with_file, asked.files) {
            Ok(told) => told,
            Err(reason) => {
                query.note(reaction, reason.into());
                return;
            }
        };
        let way = self.way(query, &client, now, reaction, asked.fetches);
        let file = match way {
            Way::Direct => {
                if client.protocol == BootProtocol::Pxe {
                    with_file
                        .options
                        .set(code::VENDOR_SPECIFIC, TAKE_IT_FROM_HERE);
                }
                reply = with_file;
                Some(told)
            }
            Way::Port4011 => {
                reply.server_address = query.address;
                None
            }
        };
        let by = Asker::of(query.request);
        query.note(reaction, Fact::ProxyOffered { by, file });
        let destination = match relay_of(query) {
            Some(relay) => Destination::Relay(relay),
            // It has no address, and we give none that a frame to it alone could carry.
            None => Destination::Broadcast,
        };
        if client.ipxe.is_some() && destination == Destination::Broadcast {
            reaction.ipxe = Some(query.mac);
        }
        reaction.reply = Some(sent(query, &reply, destination));
    }

    fn way(
        &mut self,
        query: &Query<'_>,
        client: &BootClient,
        now: Duration,
        reaction: &mut ProxyReaction,
        fetches: &dyn Fetches,
    ) -> Way {
        let class = query.request.options.get(code::VENDOR_CLASS);
        let ways = &self.settings.ways;
        let choice = ways.choice(query.mac, class.unwrap_or_default(), &client.architectures);
        if client.ipxe.is_some() {
            self.learnt.went_on(query.mac);
        }
        match choice {
            // HTTP Boot knows no port 4011 (UEFI 2.10 §24.7); iPXE takes both, and direct is faster.
            _ if client.protocol == BootProtocol::Http => Way::Direct,
            WayChoice::Always(way) => way,
            WayChoice::Auto if client.ipxe.is_some() => Way::Direct,
            WayChoice::Auto => {
                let transaction = query.request.transaction;
                let chosen = self.learnt.way(query.mac, transaction, now, |back| {
                    fetches.fetched_within(query.mac, back)
                });
                if let Some(boots) = chosen.changed_after {
                    let port_4011 = chosen.way == Way::Port4011;
                    query.note(reaction, Fact::ProxyWay { port_4011, boots });
                }
                chosen.way
            }
        }
    }

    /// A machine takes another server's address, loud enough for all: now we know who it will be when it
    /// fetches, and an iPXE that waits for a router did not hear us before.
    fn overhear(&self, query: &Query<'_>, reaction: &mut ProxyReaction) {
        let options = &query.request.options;
        let server = options.address(code::SERVER_ID);
        let ours = |server| {
            self.settings
                .addresses
                .iter()
                .any(|own| own.addr() == server)
        };
        let Some(client) = boot_client(query.request) else {
            return;
        };
        if server.is_some_and(ours) {
            return;
        }
        if let Some(address) = options.address(code::REQUESTED_ADDRESS) {
            reaction.takes = Some((query.mac, address));
        }
        if client.ipxe.is_some() && query.request.relay_address.is_unspecified() {
            reaction.ipxe = Some(query.mac);
        }
    }

    /// A machine with an address asks us for its file.
    fn tell_file(
        &mut self,
        query: &Query<'_>,
        reaction: &mut ProxyReaction,
        files: &dyn FirstFiles,
    ) {
        let Some(client) = boot_client(query.request) else {
            return;
        };
        let Some(destination) = answer_to(query) else {
            return;
        };
        let item = boot_item(query.request);
        // Type 0 is the bootstrap; we never list others (PXE 2.1 §2.2.3, PXE_BOOT_ITEM).
        if item.is_some_and(|item| item[..2] != [0, 0]) {
            return;
        }
        let mut reply = self.begin(query, MessageType::Ack, client.protocol);
        reply.client_address = query.request.client_address;
        if let Some([a, b, c, d]) = item {
            reply
                .options
                .set(code::VENDOR_SPECIFIC, [BOOT_ITEM, 4, a, b, c, d, 255]);
        }
        match self.add_file(query, &mut reply, files) {
            Ok(file) => {
                let has = [query.request.client_address, *query.source.ip()];
                let address = has.into_iter().find(|address| !address.is_unspecified());
                let by = Asker::of(query.request);
                query.note(reaction, Fact::ProxyTold { by, address, file });
                reaction.reply = Some(sent(query, &reply, destination));
            }
            Err(reason) => query.note(reaction, reason.into()),
        }
    }

    /// Our agent, started without a command line of its own, asks where its server is.
    fn tell_agent(&self, query: &Query<'_>, reaction: &mut ProxyReaction) {
        let class = query.request.options.get(code::VENDOR_CLASS);
        if class != Some(AGENT_CLASS.as_bytes()) {
            return;
        }
        let destination = match relay_of(query) {
            Some(relay) => Destination::Relay(relay),
            None => match answer_to(query) {
                Some(destination) => destination,
                None => return,
            },
        };
        let mut reply = query.request.reply(MessageType::Ack);
        reply.client_address = query.request.client_address;
        let url = format!("http://{}:{}", query.address, self.settings.http_port);
        reply
            .options
            .set(code::SERVER_ID, query.address.octets())
            .set(code::NETBOOT_SERVER, url);
        echo(query.request, &mut reply);
        let by = Asker::of(query.request);
        query.note(reaction, Fact::ToldParameters { by, file: None });
        reaction.reply = Some(sent(query, &reply, destination));
    }

    /// What all answers to boot clients carry. Anything more is not needed to boot and may be
    /// misunderstood: lease times and masks are the other server's.
    fn begin(&self, query: &Query<'_>, kind: MessageType, protocol: BootProtocol) -> Message {
        let mut reply = query.request.reply(kind);
        reply
            .options
            .set(code::SERVER_ID, query.address.octets())
            .set(code::VENDOR_CLASS, vendor_class_prefix(protocol));
        echo(query.request, &mut reply);
        reply
    }

    fn add_file(
        &self,
        query: &Query<'_>,
        reply: &mut Message,
        files: &dyn FirstFiles,
    ) -> Result<String, NoFirstFile> {
        let source = Source {
            role: Role::Proxy,
            address: query.address,
            http_port: self.settings.http_port,
        };
        let told = add_boot_file(query.request, query.mac, source, reply, files)?;
        // It is a boot client, or nobody would have come here.
        Ok(told.unwrap_or_default())
    }
}

/// The client of a message that asks for a boot file by both of its marks. An iPXE that says no
/// architecture is one for a DHCP server, not for a proxy.
fn boot_client(request: &Message) -> Option<BootClient> {
    request.options.get(code::CLIENT_ARCHITECTURE)?;
    let class = request.options.get(code::VENDOR_CLASS)?;
    [BootProtocol::Pxe, BootProtocol::Http]
        .iter()
        .any(|protocol| class.starts_with(vendor_class_prefix(*protocol).as_bytes()))
        .then(|| BootClient::of(request))?
}

/// The boot item that is asked for: type and layer, big endian.
fn boot_item(request: &Message) -> Option<[u8; 4]> {
    let mut rest = request.options.get(code::VENDOR_SPECIFIC)?;
    while let [sub_option, after @ ..] = rest {
        match *sub_option {
            code::PAD => rest = after,
            code::END => return None,
            _ => {
                let (length, body) = after.split_first()?;
                let (value, next) = body.split_at_checked(usize::from(*length))?;
                if *sub_option == BOOT_ITEM {
                    return value.try_into().ok();
                }
                rest = next;
            }
        }
    }
    None
}

/// Copies what a client and its relay want to see again (RFC 4578 §2.3, RFC 3046 §2.2).
fn echo(request: &Message, reply: &mut Message) {
    for echoed in [code::CLIENT_MACHINE, code::RELAY_INFORMATION] {
        if let Some(value) = request.options.get(echoed) {
            reply.options.set(echoed, value);
        }
    }
}

/// The relay that passed a request on.
fn relay_of(query: &Query<'_>) -> Option<SocketAddrV4> {
    let relay = query.request.relay_address;
    let port = || RelayInformation::of(query.request).reply_port(query.source.port());
    (!relay.is_unspecified()).then(|| SocketAddrV4::new(relay, port()))
}

/// Where a client with an address gets its answer: where it asked from, be it port 68 or 4011.
fn answer_to(query: &Query<'_>) -> Option<Destination> {
    let has = query.request.client_address;
    let to = if !query.source.ip().is_unspecified() {
        query.source
    } else if !has.is_unspecified() {
        SocketAddrV4::new(has, CLIENT_PORT)
    } else {
        return None;
    };
    Some(Destination::UnicastAddress(to))
}

fn sent(query: &Query<'_>, reply: &Message, destination: Destination) -> Reply {
    Reply {
        bytes: reply.emit(),
        destination,
        from: query.address,
        ipxe: None,
    }
}

#[cfg(test)]
mod tests;
