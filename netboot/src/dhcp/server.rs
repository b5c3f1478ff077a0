//! The DHCP server as a state machine: a message, the time and where it came from go in; messages,
//! their destinations, leases to keep and notes for the flight recorder come out (RFC 2131 §4.3).
//!
//! Invariants: no socket, clock or disk here; nothing a client sends makes it panic; a client that
//! did not ask for a boot file is told of none; one message in gives at most one message out.
//!
//! Not here: sockets (`crate::sockets`), the order "save, then send" (`crate::serve`), proxyDHCP.

use std::{collections::HashSet, net::Ipv4Addr, ops::RangeInclusive};

use ipnet::Ipv4Net;
use protocol::dhcp::{
    AGENT_CLASS, BOOTREQUEST, BootClient, MacAddress, Message, MessageType, RelayInformation, code,
};

use super::{
    boot_answer::{Source, add_boot_file},
    boot_table::{FirstFiles, Role},
    conflict::Asked,
    exchange::{Arrival, Exchange, Note, Reaction},
    lease::{Lease, LeaseState, LeaseTable, UnixSeconds},
    reservations::{Reservation, Reservations},
};
use crate::flight_recorder::{Asker, Fact};

/// How long an offer is held. OVMF takes 4 s to answer one; a lost answer is repeated after 4 to
/// 16 s (RFC 2131 §4.1).
const OFFER_SECONDS: u32 = 30;
/// How long a declined address is given to nobody.
const QUARANTINE_SECONDS: u32 = 3600;
/// Addresses of a subnet that are asked about before anybody comes: a rack switched on together. What
/// is offered beyond them is asked about with its offer.
const RESERVE: usize = 32;
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
    pub(crate) reservations: Vec<Reservation>,
    /// How long a lease lasts.
    pub(crate) lease_seconds: u32,
}

/// The server.
#[derive(Debug)]
pub(crate) struct DhcpServer {
    settings: Settings,
    reservations: Reservations,
    leases: LeaseTable,
    asked: Asked,
}

impl DhcpServer {
    /// A server with the leases of an earlier run. Those outside every subnet are forgotten.
    pub(crate) fn new(settings: Settings, mut saved: Vec<Lease>) -> Self {
        // The last one of a client in a subnet is the one it keeps: what it holds, not what it left.
        saved.sort_by_key(|lease| (lease.state == LeaseState::Bound, lease.until));
        let mut reservations = Reservations::new(settings.reservations.clone());
        let mut set_aside: HashSet<Ipv4Addr> = reservations.addresses().collect();
        for subnet in &settings.subnets {
            set_aside.insert(subnet.server);
            set_aside.extend(subnet.router);
            set_aside.extend([subnet.network.network(), subnet.network.broadcast()]);
        }
        let pools = settings.subnets.iter().map(|subnet| subnet.pool.clone());
        let mut leases = LeaseTable::new(pools, set_aside);
        for lease in saved {
            if let Some(subnet) = subnet_of(&settings.subnets, lease.address) {
                if lease.state == LeaseState::Bound {
                    reservations.granted(lease.mac, lease.address);
                }
                leases.restore(subnet, lease);
            }
        }
        Self {
            settings,
            reservations,
            leases,
            asked: Asked::default(),
        }
    }

    /// Addresses to ask about on a link with these networks, ahead of the clients that will be offered
    /// them.
    pub(crate) fn ask_ahead(&mut self, link: &[Ipv4Net], now: UnixSeconds) -> Vec<Ipv4Addr> {
        let mut questions = Vec::new();
        for (index, subnet) in self.settings.subnets.iter().enumerate() {
            if link.iter().any(|own| own.contains(&subnet.network)) {
                questions.extend(self.leases.upcoming(index, RESERVE, now));
            }
        }
        questions.retain(|address| self.asked.ask(*address, now));
        questions
    }

    /// A card answered for an address. If that was asked, nobody else is given it for an hour.
    pub(crate) fn in_use(
        &mut self,
        address: Ipv4Addr,
        by: MacAddress,
        now: UnixSeconds,
    ) -> Reaction {
        let mut reaction = Reaction::default();
        let Some(subnet) = subnet_of(&self.settings.subnets, address) else {
            return reaction;
        };
        if !self.asked.expects(address, now) {
            return reaction;
        }
        let known = self.leases.at(address).cloned();
        let held = known.as_ref().filter(|lease| lease.until > now);
        // Its own, or known already. An address that was granted meanwhile stays so: the client asks the
        // link itself before it uses it, and declines (RFC 2131 §4.4.1).
        if held.is_some_and(|lease| lease.mac == by || lease.state != LeaseState::Offered) {
            return reaction;
        }
        let goes_on = known.as_ref().is_some_and(|lease| lease.mac == by);
        let lease = Lease {
            address,
            mac: by,
            // A machine that goes on using what it had may have it again.
            state: if goes_on {
                LeaseState::Offered
            } else {
                LeaseState::Declined
            },
            until: now.after(QUARANTINE_SECONDS),
        };
        if !goes_on {
            reaction.notes.push(Note {
                mac: held.map_or(by, |lease| lease.mac),
                boots: held.is_some(),
                fact: Fact::AddressInUse { address, by },
            });
            reaction.changed.push(lease.clone());
        }
        self.leases.put(subnet, lease);
        reaction
    }

    /// Answers a message. `files` knows what a machine boots first.
    pub(crate) fn handle(
        &mut self,
        bytes: &[u8],
        now: UnixSeconds,
        arrival: Arrival,
        files: &dyn FirstFiles,
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
                boots: BootClient::of(&request).is_some(),
                fact: Fact::NoSubnet { link },
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
            MessageType::Discover => self.discover(&exchange, &mut reaction, files),
            MessageType::Request => self.request(&exchange, &mut reaction, files),
            MessageType::Inform => {
                self.answer(&exchange, MessageType::Ack, None, &mut reaction, files);
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
        files: &dyn FirstFiles,
    ) {
        let Some(address) = self.choose(exchange) else {
            let network = self.settings.subnets[exchange.subnet].network;
            let network = network.to_string();
            exchange.note(reaction, Fact::PoolExhausted { network });
            return;
        };
        let granted = self
            .leases
            .of_client(exchange.subnet, exchange.mac)
            .is_some_and(|lease| {
                lease.address == address
                    && lease.state == LeaseState::Bound
                    && lease.until > exchange.now
            });
        // A client that starts again keeps its lease until it takes the offer. One that is offered
        // another address (its reservation is new) holds that one instead: an address that was
        // taken from the pool and held for nobody would never come back to it.
        if !granted {
            let direct = exchange.request.relay_address.is_unspecified();
            if direct && self.asked.ask(address, exchange.now) {
                reaction.ask = Some(address);
            }
            self.leave(exchange, address, reaction);
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
        self.answer(exchange, MessageType::Offer, Some(address), reaction, files);
    }

    /// The states of RFC 2131 §4.3.2, told apart as its table 4 does.
    fn request(
        &mut self,
        exchange: &Exchange<'_>,
        reaction: &mut Reaction,
        files: &dyn FirstFiles,
    ) {
        let request = exchange.request;
        let wish = request.options.address(code::REQUESTED_ADDRESS);
        let chosen_server = request.options.address(code::SERVER_ID);
        if let Some(server) = chosen_server
            && !self.is_ours(server, exchange)
        {
            exchange.note(reaction, Fact::OtherServerTaken { server });
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
        self.leave(exchange, address, reaction);
        self.keep(exchange, lease, reaction);
        self.reservations.granted(exchange.mac, address);
        self.answer(exchange, MessageType::Ack, Some(address), reaction, files);
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
        exchange.note(reaction, Fact::Declined { address });
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
        let address = lease.address;
        exchange.note(reaction, Fact::Released { address });
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

    /// A client that goes to another address of its subnet leaves the one it had, on disk too: a
    /// server that starts again would not know which of the two is its.
    fn leave(&self, exchange: &Exchange<'_>, address: Ipv4Addr, reaction: &mut Reaction) {
        if let Some(old) = self.leases.of_client(exchange.subnet, exchange.mac)
            && old.address != address
            && old.state == LeaseState::Bound
        {
            reaction.changed.push(Lease {
                state: LeaseState::Released,
                until: exchange.now,
                ..old.clone()
            });
        }
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
        let mut reply = self.begin(exchange, MessageType::Nak);
        reply.options.set(code::MESSAGE, reason.as_bytes());
        exchange.note(reaction, Fact::Refused { address, reason });
        // A relay cannot reach a client by an address that it must not use (RFC 2131 §4.3.2).
        reply.broadcast |= !exchange.request.relay_address.is_unspecified();
        exchange.send(reply, reaction);
    }

    /// An offer or an acknowledgement; without an address, the answer to an INFORM.
    fn answer(
        &self,
        exchange: &Exchange<'_>,
        kind: MessageType,
        address: Option<Ipv4Addr>,
        reaction: &mut Reaction,
        files: &dyn FirstFiles,
    ) {
        let mut reply = self.begin(exchange, kind);
        let granted = address.filter(|_| kind == MessageType::Ack);
        if let Some(address) = address {
            let lease = self.settings.lease_seconds;
            reply.your_address = address;
            reply
                .options
                .set(code::LEASE_TIME, lease.to_be_bytes())
                // The defaults of RFC 2131 §4.4.5: a half and seven eighths.
                .set(code::RENEWAL_TIME, (lease / 2).to_be_bytes())
                .set(code::REBINDING_TIME, (lease - lease / 8).to_be_bytes());
        }
        if kind == MessageType::Ack {
            reply.client_address = exchange.request.client_address;
        }
        self.add_parameters(exchange, &mut reply);
        let subnet = &self.settings.subnets[exchange.subnet];
        let source = Source {
            role: Role::Server,
            address: subnet.server,
            http_port: subnet.http_port,
        };
        // Our agent, started without a command line of its own, asks where its server is.
        let class = exchange.request.options.get(code::VENDOR_CLASS);
        if class == Some(AGENT_CLASS.as_bytes()) {
            let url = format!("http://{}:{}", source.address, source.http_port);
            reply.options.set(code::NETBOOT_SERVER, url);
        }
        let told = add_boot_file(exchange.request, exchange.mac, source, &mut reply, files);
        let (file, refusal) = match told {
            Ok(told) => (told, None),
            Err(reason) => (None, Some(Fact::from(reason))),
        };
        let by = Asker::of(exchange.request);
        let fact = match (address, granted) {
            (_, Some(address)) => Fact::Granted { by, address, file },
            (Some(address), None) => Fact::Offered { by, address, file },
            (None, None) => Fact::ToldParameters { by, file },
        };
        exchange.note(reaction, fact);
        if let Some(refusal) = refusal {
            exchange.note(reaction, refusal);
        }
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
        let kept = self.reservation(exchange);
        if let Some(name) = kept.and_then(|kept| kept.name.as_ref()) {
            reply.options.set(code::HOST_NAME, name.as_bytes());
        }
        if let Some(router) = subnet.router {
            reply.options.set(code::ROUTER, router.octets());
        }
        if !subnet.dns.is_empty() {
            let servers: Vec<u8> = subnet.dns.iter().flat_map(Ipv4Addr::octets).collect();
            reply.options.set(code::DNS, servers);
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
        self.reservation(exchange).map(|kept| kept.address)
    }

    fn reservation(&self, exchange: &Exchange<'_>) -> Option<&Reservation> {
        let network = self.settings.subnets[exchange.subnet].network;
        let held = self.leases.of_client(exchange.subnet, exchange.mac);
        let held = held.map(|lease| lease.address);
        self.reservations
            .of(exchange.request, exchange.mac, network, held)
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

/// Subnets are few (one for each link); a walk over them is a handful of comparisons.
fn subnet_of(subnets: &[Subnet], address: Ipv4Addr) -> Option<usize> {
    subnets
        .iter()
        .position(|subnet| subnet.network.contains(&address))
}

#[cfg(test)]
mod tests;
