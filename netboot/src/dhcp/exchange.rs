//! What goes into and comes out of the DHCP server, and the way a reply takes.
//!
//! Not here: what a reply says (`server`, `boot_answer`).

use std::net::{Ipv4Addr, SocketAddrV4};

use protocol::dhcp::{BootClient, CLIENT_PORT, MacAddress, Message, MessageType, RelayInformation};

use super::lease::{Lease, UnixSeconds};
use crate::flight_recorder::Fact;

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
    /// An address to ask about on the link at once: does anybody have it?
    pub(crate) ask: Option<Ipv4Addr>,
}

/// Something about a machine that a person wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// The machine's card.
    pub(crate) mac: MacAddress,
    /// It asked for a boot file.
    pub(crate) boots: bool,
    /// What happened.
    pub(crate) fact: Fact,
}

/// A request with all that is derived from it.
pub(super) struct Exchange<'a> {
    pub(super) request: &'a Message,
    pub(super) mac: MacAddress,
    pub(super) relay: RelayInformation,
    pub(super) subnet: usize,
    pub(super) server_id: Ipv4Addr,
    pub(super) arrival: Arrival,
    pub(super) now: UnixSeconds,
}

impl Exchange<'_> {
    /// Adds a note about the client.
    pub(super) fn note(&self, reaction: &mut Reaction, fact: Fact) {
        reaction.notes.push(Note {
            mac: self.mac,
            boots: BootClient::of(self.request).is_some(),
            fact,
        });
    }

    /// Makes a message the reply, with its destination (RFC 2131 §4.1).
    pub(super) fn send(&self, reply: Message, reaction: &mut Reaction) {
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
            bytes: reply.emit_for(request),
            destination,
            from: self.server_id,
            ipxe: BootClient::of(request)
                .and_then(|client| client.ipxe)
                .map(|_| self.mac),
        });
    }
}
