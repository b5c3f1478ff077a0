//! The DHCP server as a state machine: a message, the time and where it came from go in; messages,
//! their destinations, leases to keep and notes for the flight recorder come out (RFC 2131 §4.3).
//!
//! Invariants: no socket, clock or disk here; nothing a client sends makes it panic; a client that
//! did not ask for a boot file is told of none; one message in gives at most one message out.
//!
//! Not here: sockets (`crate::sockets`), the order "save, then send" (`crate::serve`), proxyDHCP.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
};

use ipnet::Ipv4Net;
use protocol::dhcp::{
    BOOTREQUEST, BootClient, BootProtocol, CLIENT_PORT, MacAddress, Message, MessageType,
    RelayInformation, client_uuid, code, vendor_class_prefix,
};

use super::{
    boot_table::{FirstFile, first_file},
    lease::{Lease, LeaseState, LeaseTable, UnixSeconds},
};
use crate::boot_policy::{Platform, script_url};

/// How long an offer is held. OVMF takes 4 s to answer one; a lost answer is repeated after 4 to
/// 16 s (RFC 2131 §4.1).
const OFFER_SECONDS: u32 = 30;
/// How long a declined address is given to nobody.
const QUARANTINE_SECONDS: u32 = 3600;
/// More relays than RFC 1542 §4.1.1 allows on one way are a loop.
const MAX_HOPS: u8 = 16;

/// A subnet that addresses are given in.
#[derive(Debug, Clone)]
pub(crate) struct Subnet {
    /// Its addresses.
    pub(crate) network: Ipv4Net,
    /// Ranges to give from.
    pub(crate) pool: Vec<RangeInclusive<u32>>,
    /// Our address as its machines see it.
    pub(crate) server: Ipv4Addr,
    /// Its way out.
    pub(crate) router: Option<Ipv4Addr>,
    /// Its name servers.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// Port of our HTTP server as its machines see it.
    pub(crate) http_port: u16,
}

/// What the server goes by.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The subnets; they do not overlap.
    pub(crate) subnets: Vec<Subnet>,
    /// Addresses kept for machines.
    pub(crate) reservations: HashMap<MacAddress, Vec<Ipv4Addr>>,
    /// How long a lease lasts.
    pub(crate) lease_seconds: u32,
}

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// An address of the interface it came in on: the subnet of clients without a relay.
    pub(crate) interface: Ipv4Addr,
    /// Who sent it.
    pub(crate) source: SocketAddrV4,
}

/// Where a message goes (RFC 2131 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To all on the link.
    Broadcast,
    /// To the relay that passed the request on.
    Relay(SocketAddrV4),
    /// To a client that has its address already.
    UnicastAddress(SocketAddrV4),
    /// To a client that does not answer ARP yet.
    UnicastHardware {
        /// Its card.
        mac: MacAddress,
        /// The address it is given.
        ip: Ipv4Addr,
    },
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Where to.
    pub(crate) destination: Destination,
    /// Our address that it comes from, as the client sees it.
    pub(crate) from: Ipv4Addr,
    /// The card of a client that is an iPXE: it waits for an IPv6 router until one speaks up.
    pub(crate) ipxe: Option<MacAddress>,
}

/// What a message led to. The leases are to be saved before the reply is sent.
#[derive(Debug, Default)]
pub(crate) struct Reaction {
    /// At most one message.
    pub(crate) reply: Option<Reply>,
    /// Leases to save.
    pub(crate) changed: Vec<Lease>,
    /// For the flight recorder, in order.
    pub(crate) notes: Vec<Note>,
}

/// Something about a machine that a person wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// The machine's card.
    pub(crate) mac: MacAddress,
    /// The address it was granted, if this is about that.
    pub(crate) granted: Option<Ipv4Addr>,
    /// True when the machine cannot go on.
    pub(crate) trouble: bool,
    /// A sentence.
    pub(crate) text: String,
}

/// The server.
#[derive(Debug)]
pub(crate) struct DhcpServer {
    settings: Settings,
    leases: LeaseTable,
}

/// A request with all that is derived from it.
struct Exchange<'a> {
    request: &'a Message,
    mac: MacAddress,
    relay: RelayInformation,
    subnet: usize,
    server_id: Ipv4Addr,
    arrival: Arrival,
    now: UnixSeconds,
}

impl DhcpServer {
    /// A server with the leases of an earlier run. Those outside every subnet are forgotten.
    pub(crate) fn new(settings: Settings, saved: Vec<Lease>) -> Self {
        let mut set_aside: std::collections::HashSet<Ipv4Addr> =
            settings.reservations.values().flatten().copied().collect();
        for subnet in &settings.subnets {
            set_aside.insert(subnet.server);
            set_aside.extend(subnet.router);
            set_aside.extend([subnet.network.network(), subnet.network.broadcast()]);
        }
        let pools = settings.subnets.iter().map(|subnet| subnet.pool.clone());
        let mut leases = LeaseTable::new(pools, set_aside);
        for lease in saved {
            if let Some(subnet) = subnet_of(&settings.subnets, lease.address) {
                leases.restore(subnet, lease);
            }
        }
        Self { settings, leases }
    }

    /// Answers a message. `file_exists` says which loaders the boot folder has.
    pub(crate) fn handle(
        &mut self,
        bytes: &[u8],
        now: UnixSeconds,
        arrival: Arrival,
        file_exists: impl Fn(&str) -> bool,
    ) -> Reaction {
        let mut reaction = Reaction::default();
        let Ok(request) = Message::parse(bytes) else {
            return reaction;
        };
        let (Some(kind), Some(mac)) = (request.message_type(), request.mac()) else {
            return reaction;
        };
        if request.op != BOOTREQUEST || request.hops > MAX_HOPS || !mac.is_unicast() {
            return reaction;
        }
        let relay = RelayInformation::of(&request);
        let link = relay
            .link_selection
            .or_else(|| request.options.address(code::SUBNET_SELECTION))
            .or((!request.relay_address.is_unspecified()).then_some(request.relay_address))
            .unwrap_or(arrival.interface);
        let Some(subnet) = subnet_of(&self.settings.subnets, link) else {
            reaction.notes.push(Note {
                mac,
                granted: None,
                trouble: true,
                text: format!(
                    "asked for an address on the link of {link}, for which there is no [[subnet]]"
                ),
            });
            return reaction;
        };
        let server_id = relay
            .server_id_override
            .unwrap_or(self.settings.subnets[subnet].server);
        let exchange = Exchange {
            request: &request,
            mac,
            relay,
            subnet,
            server_id,
            arrival,
            now,
        };
        match kind {
            MessageType::Discover => self.discover(&exchange, &mut reaction, file_exists),
            MessageType::Request => self.request(&exchange, &mut reaction, file_exists),
            MessageType::Inform => {
                let mut reply = self.begin(&exchange, MessageType::Ack);
                self.add_parameters(&exchange, &mut reply);
                self.add_boot_file(&exchange, &mut reply, &mut reaction, file_exists);
                exchange.send(reply, &mut reaction);
            }
            MessageType::Decline => self.decline(&exchange, &mut reaction),
            MessageType::Release => self.release(&exchange, &mut reaction),
            MessageType::Offer | MessageType::Ack | MessageType::Nak => {}
        }
        reaction
    }

    fn discover(
        &mut self,
        exchange: &Exchange<'_>,
        reaction: &mut Reaction,
        file_exists: impl Fn(&str) -> bool,
    ) {
        let Some(address) = self.choose(exchange) else {
            let network = self.settings.subnets[exchange.subnet].network;
            exchange.note(
                reaction,
                true,
                format!("got no address: the pool of {network} is exhausted"),
            );
            return;
        };
        let granted = self
            .leases
            .of_client(exchange.subnet, exchange.mac)
            .is_some_and(|lease| lease.state == LeaseState::Bound && lease.until > exchange.now);
        // A client that starts again keeps its lease until it takes the offer.
        if !granted {
            self.leases.put(
                exchange.subnet,
                Lease {
                    address,
                    mac: exchange.mac,
                    state: LeaseState::Offered,
                    until: exchange.now.after(OFFER_SECONDS),
                },
            );
        }
        exchange.note(
            reaction,
            false,
            format!("DHCP: offered {address} ({})", asker(exchange.request)),
        );
        self.grant(exchange, MessageType::Offer, address, reaction, file_exists);
    }

    /// The states of RFC 2131 §4.3.2, told apart as its table 4 does.
    fn request(
        &mut self,
        exchange: &Exchange<'_>,
        reaction: &mut Reaction,
        file_exists: impl Fn(&str) -> bool,
    ) {
        let request = exchange.request;
        let wish = request.options.address(code::REQUESTED_ADDRESS);
        let chosen_server = request.options.address(code::SERVER_ID);
        if chosen_server.is_some_and(|server| !self.is_ours(server, exchange)) {
            return self.drop_offer(exchange);
        }
        let has = (!request.client_address.is_unspecified()).then_some(request.client_address);
        let Some(address) = wish.or(has) else {
            return;
        };
        let network = self.settings.subnets[exchange.subnet].network;
        if !network.contains(&address) {
            return self.refuse(
                exchange,
                reaction,
                address,
                format!("it is not in {network}"),
            );
        }
        // INIT-REBOOT of a client that we have never seen: another server may know it.
        let reboots = chosen_server.is_none() && has.is_none();
        let known = self
            .leases
            .of_client(exchange.subnet, exchange.mac)
            .is_some()
            || self.reserved(exchange).is_some();
        if reboots && !known {
            return;
        }
        if !self.may_have(exchange, address) {
            let reason = "it is not this machine's, or is taken".to_owned();
            return self.refuse(exchange, reaction, address, reason);
        }
        let lease = Lease {
            address,
            mac: exchange.mac,
            state: LeaseState::Bound,
            until: exchange.now.after(self.settings.lease_seconds),
        };
        self.leases.put(exchange.subnet, lease.clone());
        reaction.changed.push(lease);
        reaction.notes.push(Note {
            mac: exchange.mac,
            granted: Some(address),
            trouble: false,
            text: format!("DHCP: granted {address} ({})", asker(request)),
        });
        self.grant(exchange, MessageType::Ack, address, reaction, file_exists);
    }

    fn decline(&mut self, exchange: &Exchange<'_>, reaction: &mut Reaction) {
        let wish = exchange.request.options.address(code::REQUESTED_ADDRESS);
        let Some(lease) = self
            .leases
            .of_client(exchange.subnet, exchange.mac)
            .cloned()
        else {
            return;
        };
        // Only the holder can take an address out of use: anyone else would empty the pool.
        if Some(lease.address) != wish {
            return;
        }
        let address = lease.address;
        exchange.note(
            reaction,
            true,
            format!("found {address} in use by another machine; it is given to nobody for an hour"),
        );
        let until = exchange.now.after(QUARANTINE_SECONDS);
        self.keep(
            exchange,
            Lease {
                state: LeaseState::Declined,
                until,
                ..lease
            },
            reaction,
        );
    }

    fn release(&mut self, exchange: &Exchange<'_>, reaction: &mut Reaction) {
        let Some(lease) = self
            .leases
            .of_client(exchange.subnet, exchange.mac)
            .cloned()
        else {
            return;
        };
        if lease.address != exchange.request.client_address || lease.state != LeaseState::Bound {
            return;
        }
        exchange.note(
            reaction,
            false,
            format!("DHCP: gave {} back", lease.address),
        );
        let until = exchange.now;
        self.keep(
            exchange,
            Lease {
                state: LeaseState::Released,
                until,
                ..lease
            },
            reaction,
        );
    }

    fn keep(&mut self, exchange: &Exchange<'_>, lease: Lease, reaction: &mut Reaction) {
        self.leases.put(exchange.subnet, lease.clone());
        reaction.changed.push(lease);
    }

    /// The client took another server's offer: ours is free again at once.
    fn drop_offer(&mut self, exchange: &Exchange<'_>) {
        if let Some(lease) = self
            .leases
            .of_client(exchange.subnet, exchange.mac)
            .cloned()
            && lease.state == LeaseState::Offered
        {
            self.leases.put(
                exchange.subnet,
                Lease {
                    until: exchange.now,
                    ..lease
                },
            );
        }
    }

    fn refuse(
        &self,
        exchange: &Exchange<'_>,
        reaction: &mut Reaction,
        address: Ipv4Addr,
        reason: String,
    ) {
        exchange.note(
            reaction,
            false,
            format!("DHCP: refused {address}: {reason}"),
        );
        let mut reply = self.begin(exchange, MessageType::Nak);
        reply.options.set(code::MESSAGE, reason.into_bytes());
        // A relay cannot reach a client by an address that it must not use (RFC 2131 §4.3.2).
        reply.broadcast |= !exchange.request.relay_address.is_unspecified();
        exchange.send(reply, reaction);
    }

    fn grant(
        &self,
        exchange: &Exchange<'_>,
        kind: MessageType,
        address: Ipv4Addr,
        reaction: &mut Reaction,
        file_exists: impl Fn(&str) -> bool,
    ) {
        let lease = self.settings.lease_seconds;
        let mut reply = self.begin(exchange, kind);
        reply.your_address = address;
        if kind == MessageType::Ack {
            reply.client_address = exchange.request.client_address;
        }
        reply
            .options
            .set(code::LEASE_TIME, lease.to_be_bytes())
            // The defaults of RFC 2131 §4.4.5: a half and seven eighths.
            .set(code::RENEWAL_TIME, (lease / 2).to_be_bytes())
            .set(code::REBINDING_TIME, (lease - lease / 8).to_be_bytes());
        self.add_parameters(exchange, &mut reply);
        self.add_boot_file(exchange, &mut reply, reaction, file_exists);
        exchange.send(reply, reaction);
    }

    fn begin(&self, exchange: &Exchange<'_>, kind: MessageType) -> Message {
        let mut reply = exchange.request.reply(kind);
        reply
            .options
            .set(code::SERVER_ID, exchange.server_id.octets());
        for echoed in [code::CLIENT_ID, code::RELAY_INFORMATION] {
            // RFC 6842 §3 and RFC 3046 §2.2.
            if let Some(value) = exchange.request.options.get(echoed) {
                reply.options.set(echoed, value);
            }
        }
        reply
    }

    fn add_parameters(&self, exchange: &Exchange<'_>, reply: &mut Message) {
        let subnet = &self.settings.subnets[exchange.subnet];
        reply
            .options
            .set(code::SUBNET_MASK, subnet.network.netmask().octets())
            .set(code::BROADCAST, subnet.network.broadcast().octets());
        if let Some(router) = subnet.router {
            reply.options.set(code::ROUTER, router.octets());
        }
        if !subnet.dns.is_empty() {
            let servers: Vec<u8> = subnet.dns.iter().flat_map(Ipv4Addr::octets).collect();
            reply.options.set(code::DNS, servers);
        }
    }

    fn add_boot_file(
        &self,
        exchange: &Exchange<'_>,
        reply: &mut Message,
        reaction: &mut Reaction,
        file_exists: impl Fn(&str) -> bool,
    ) {
        let Some(client) = BootClient::of(exchange.request) else {
            return;
        };
        let subnet = &self.settings.subnets[exchange.subnet];
        let base = format!("http://{}:{}", subnet.server, subnet.http_port);
        let name = match first_file(&client, file_exists) {
            Ok(FirstFile::Tftp(file)) => {
                reply
                    .options
                    .set_c_string(code::TFTP_SERVER, &subnet.server.to_string());
                file.to_owned()
            }
            Ok(FirstFile::Http(file)) => format!("{base}/boot/{file}"),
            Ok(FirstFile::Script) => script_url(
                &base,
                exchange.mac,
                client_uuid(exchange.request),
                Platform::of(client.architectures[0]),
            ),
            Err(reason) => return exchange.note(reaction, true, reason.to_string()),
        };
        if client.protocol == BootProtocol::Http {
            let prefix = vendor_class_prefix(BootProtocol::Http);
            reply.options.set(code::VENDOR_CLASS, prefix);
        }
        if client.ipxe.is_some() {
            // no-pxedhcp (176): do not wait three seconds for a proxyDHCP offer.
            reply.options.set(code::IPXE, [176, 1, 1]);
        }
        exchange.note(reaction, false, format!("told to fetch {name}"));
        reply.server_address = subnet.server;
        reply.options.set_c_string(code::BOOT_FILE, &name);
        // Some firmware reads only the field, others only the option.
        if name.len() < 128 {
            reply.file = name.into_bytes();
        }
    }

    fn choose(&mut self, exchange: &Exchange<'_>) -> Option<Ipv4Addr> {
        if let Some(address) = self.reserved(exchange)
            && self.leases.is_free_for(exchange.mac, address, exchange.now)
        {
            return Some(address);
        }
        let wish = exchange.request.options.address(code::REQUESTED_ADDRESS);
        self.leases
            .choose(exchange.subnet, exchange.mac, wish, exchange.now)
    }

    fn may_have(&self, exchange: &Exchange<'_>, address: Ipv4Addr) -> bool {
        match self.reserved(exchange) {
            Some(reserved) if reserved == address => {
                self.leases.is_free_for(exchange.mac, address, exchange.now)
            }
            // The reservation is new, or its address is in quarantine.
            Some(reserved)
                if self
                    .leases
                    .is_free_for(exchange.mac, reserved, exchange.now) =>
            {
                false
            }
            _ => self
                .leases
                .may_have(exchange.subnet, exchange.mac, address, exchange.now),
        }
    }

    fn reserved(&self, exchange: &Exchange<'_>) -> Option<Ipv4Addr> {
        let network = self.settings.subnets[exchange.subnet].network;
        let addresses = self.settings.reservations.get(&exchange.mac)?;
        addresses
            .iter()
            .copied()
            .find(|address| network.contains(address))
    }

    fn is_ours(&self, server: Ipv4Addr, exchange: &Exchange<'_>) -> bool {
        server == exchange.server_id
            || self
                .settings
                .subnets
                .iter()
                .any(|subnet| subnet.server == server)
    }
}

impl Exchange<'_> {
    fn note(&self, reaction: &mut Reaction, trouble: bool, text: String) {
        reaction.notes.push(Note {
            mac: self.mac,
            granted: None,
            trouble,
            text,
        });
    }

    fn send(&self, reply: Message, reaction: &mut Reaction) {
        let request = self.request;
        let kind = reply.message_type();
        let destination = if !request.relay_address.is_unspecified() {
            let port = self.relay.reply_port(self.arrival.source.port());
            Destination::Relay(SocketAddrV4::new(request.relay_address, port))
        } else if kind == Some(MessageType::Nak) {
            Destination::Broadcast
        } else if !request.client_address.is_unspecified() {
            // A client whose address we believe gets its answer at the port it asked from.
            let port = if request.client_address == *self.arrival.source.ip() {
                self.arrival.source.port()
            } else {
                CLIENT_PORT
            };
            Destination::UnicastAddress(SocketAddrV4::new(request.client_address, port))
        } else if request.broadcast || reply.your_address.is_unspecified() {
            Destination::Broadcast
        } else {
            Destination::UnicastHardware {
                mac: self.mac,
                ip: reply.your_address,
            }
        };
        reaction.reply = Some(Reply {
            bytes: reply.emit(),
            destination,
            from: self.server_id,
            ipxe: BootClient::of(request)
                .and_then(|client| client.ipxe)
                .map(|_| self.mac),
        });
    }
}

/// Subnets are few (one for each link); a walk over them is a handful of comparisons.
fn subnet_of(subnets: &[Subnet], address: Ipv4Addr) -> Option<usize> {
    subnets
        .iter()
        .position(|subnet| subnet.network.contains(&address))
}

/// Who asks, for the flight recorder.
fn asker(request: &Message) -> String {
    match BootClient::of(request) {
        None => match request.options.text(code::VENDOR_CLASS) {
            Some(class) if !class.is_empty() => format!("a system, {}", printable(&class)),
            _ => "a system".to_owned(),
        },
        Some(client) => {
            let architecture = client.architectures[0];
            let program = if client.ipxe.is_some() {
                "iPXE"
            } else {
                "firmware"
            };
            format!("{program}, architecture {architecture}")
        }
    }
}

/// A client's text, cut and freed of control characters: it goes to terminals.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(40)
        .collect()
}

#[cfg(test)]
mod tests;
