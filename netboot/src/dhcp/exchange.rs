//! What goes into and comes out of the DHCP server, and the way a reply takes.
//!
//! Not here: what a reply says (`server`, `boot_answer`).

use std::net::{Ipv4Addr, SocketAddrV4};

use protocol::dhcp::{
    BootClient, CLIENT_PORT, MacAddress, Message, MessageType, RelayInformation, code,
};

use super::lease::{Lease, UnixSeconds};

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
    /// The loader it was told to fetch by TFTP, if this is about that.
    pub(crate) told: Option<String>,
    /// True when the machine cannot go on.
    pub(crate) trouble: bool,
    /// A sentence.
    pub(crate) text: String,
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
    pub(super) fn note(&self, reaction: &mut Reaction, trouble: bool, text: String) {
        reaction.notes.push(Note {
            mac: self.mac,
            granted: None,
            told: None,
            trouble,
            text,
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
            bytes: reply.emit(),
            destination,
            from: self.server_id,
            ipxe: BootClient::of(request)
                .and_then(|client| client.ipxe)
                .map(|_| self.mac),
        });
    }
}

/// Who asks, for the flight recorder.
pub(super) fn asker(request: &Message) -> String {
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
            format!("{program} of architecture {architecture}")
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
