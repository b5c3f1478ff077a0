//! Addresses kept for machines, known by card, by the firmware's UUID or by client identifier.
//!
//! Invariant: one address, one reservation. A look-up is by index, never a walk.
//!
//! The UUID comes from firmware only, a client identifier often from one system only. So the card that
//! was granted such an address is remembered with it: the other programs of that machine get it, too.
//!
//! Not here: whether the address is free (`lease`).

use std::{collections::HashMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use protocol::dhcp::{MacAddress, Message, client_uuid, code};

/// By what a machine is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Its card.
    Mac(MacAddress),
    /// Option 97, in RFC 9562 byte order.
    Uuid([u8; 16]),
    /// Option 61, type byte included.
    ClientId(Vec<u8>),
}

/// An address kept for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// Which machine.
    pub(crate) who: Who,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// The host name it is told (option 12).
    pub(crate) name: Option<String>,
}

/// All reservations.
#[derive(Debug)]
pub(super) struct Reservations {
    all: Vec<Reservation>,
    by_who: HashMap<Who, Vec<usize>>,
    by_address: HashMap<Ipv4Addr, usize>,
    /// The card that holds a reservation of a machine not known by its card.
    holders: HashMap<usize, MacAddress>,
}

impl Reservations {
    /// An index of them.
    pub(super) fn new(all: Vec<Reservation>) -> Self {
        let mut by_who: HashMap<Who, Vec<usize>> = HashMap::new();
        let mut by_address = HashMap::new();
        for (index, reservation) in all.iter().enumerate() {
            by_who
                .entry(reservation.who.clone())
                .or_default()
                .push(index);
            by_address.insert(reservation.address, index);
        }
        Self {
            all,
            by_who,
            by_address,
            holders: HashMap::new(),
        }
    }

    /// Every reserved address.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.all.iter().map(|reservation| reservation.address)
    }

    /// What is kept for the client in this network: by its card, else by what it says it is, else by what
    /// it said it was when it was granted the address.
    pub(super) fn of(
        &self,
        request: &Message,
        mac: MacAddress,
        network: Ipv4Net,
        held: Option<Ipv4Addr>,
    ) -> Option<&Reservation> {
        let said = [
            Some(Who::Mac(mac)),
            client_uuid(request).map(Who::Uuid),
            request
                .options
                .get(code::CLIENT_ID)
                .map(|id| Who::ClientId(id.to_vec())),
        ];
        let remembered = held
            .and_then(|address| self.by_address.get(&address))
            .filter(|index| self.holders.get(index) == Some(&mac));
        said.into_iter()
            .flatten()
            .filter_map(|who| self.by_who.get(&who))
            .flatten()
            .chain(remembered)
            .map(|&index| &self.all[index])
            .find(|reservation| network.contains(&reservation.address))
    }

    /// Remembers who was granted an address.
    pub(super) fn granted(&mut self, mac: MacAddress, address: Ipv4Addr) {
        if let Some(&index) = self.by_address.get(&address)
            && !matches!(self.all[index].who, Who::Mac(_))
        {
            self.holders.insert(index, mac);
        }
    }
}
