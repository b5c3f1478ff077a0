//! Who is being served: a bounded number of places, each for one address and port of a client.
//!
//! Invariant: neither all clients nor one address take more than their number.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

/// Transfers at once; a client beyond that is not answered and asks again.
pub(super) const MAX_TRANSFERS: usize = 4096;
/// Of those, for one address: one machine with many ports cannot take all. It is no smaller because
/// many machines may come from the address of one router.
const MAX_TRANSFERS_OF_ONE: usize = MAX_TRANSFERS / 4;

/// The places.
#[derive(Debug, Default)]
pub(super) struct Places {
    clients: HashMap<SocketAddr, Place>,
    /// How many places each address has.
    of_address: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Place {
    transfer: u64,
    request: Vec<u8>,
    /// The client has taken something: the same request again is a new start.
    underway: bool,
}

/// A place that was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// The client's transfer before, which it has given up by asking anew.
    pub(super) replaces: Option<u64>,
}

impl Places {
    /// A place for the transfer of this number. `None` when its request is a repeated one, or when
    /// all places are taken. A client that asks for something else from the same port, or again for
    /// what it had begun to take, has given the old transfer up: some ROMs do so without a word.
    pub(super) fn take(
        &mut self,
        client: SocketAddr,
        request: &[u8],
        transfer: u64,
    ) -> Option<Given> {
        if let Some(place) = self.clients.get_mut(&client) {
            if place.request == request && !place.underway {
                return None;
            }
            let replaces = Some(place.transfer);
            *place = Place {
                transfer,
                request: request.to_vec(),
                underway: false,
            };
            return Some(Given { replaces });
        }
        if self.clients.len() >= MAX_TRANSFERS {
            log::warn!("TFTP: {MAX_TRANSFERS} transfers run; {client} has to ask again");
            return None;
        }
        let count = self.of_address.entry(client.ip()).or_default();
        if *count >= MAX_TRANSFERS_OF_ONE {
            log::warn!(
                "TFTP: {MAX_TRANSFERS_OF_ONE} transfers to {} run; port {} has to ask again",
                client.ip(),
                client.port()
            );
            return None;
        }
        *count += 1;
        let place = Place {
            transfer,
            request: request.to_vec(),
            underway: false,
        };
        self.clients.insert(client, place);
        Some(Given { replaces: None })
    }

    /// Whether the client's place is still that transfer's.
    pub(super) fn has(&self, client: SocketAddr, transfer: u64) -> bool {
        self.clients
            .get(&client)
            .is_some_and(|place| place.transfer == transfer)
    }

    /// The client has taken something.
    pub(super) fn is_underway(&mut self, client: SocketAddr) {
        if let Some(place) = self.clients.get_mut(&client) {
            place.underway = true;
        }
    }

    /// Gives a place back, unless a later transfer of the client has it.
    pub(super) fn free(&mut self, client: SocketAddr, transfer: u64) {
        if !self.has(client, transfer) {
            return;
        }
        self.clients.remove(&client);
        if let Some(count) = self.of_address.get_mut(&client.ip()) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&client.ip());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, last], port))
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let mut places = Places::default();
        let ports: Vec<u16> = (1..)
            .take_while(|port| {
                places
                    .take(client(9, *port), b"request", u64::from(*port))
                    .is_some()
            })
            .collect();
        assert_eq!(ports.len(), MAX_TRANSFERS_OF_ONE);
        assert!(places.take(client(10, 1), b"request", 9000).is_some());
        // One that ended makes room.
        places.free(client(9, 7), 7);
        assert!(places.take(client(9, 5000), b"request", 9001).is_some());
        assert!(places.take(client(9, 5001), b"request", 9002).is_none());
    }

    #[test]
    fn all_addresses_together_are_bounded() {
        let mut places = Places::default();
        let taken = (0..=u16::MAX)
            .filter(|number| {
                let [high, low] = number.to_be_bytes();
                places
                    .take(
                        SocketAddr::from(([10, 77, high, low], 1)),
                        b"request",
                        u64::from(*number),
                    )
                    .is_some()
            })
            .count();
        assert_eq!(taken, MAX_TRANSFERS);
    }

    #[test]
    fn a_repeated_request_is_served_once_until_something_was_taken() {
        let mut places = Places::default();
        let one = client(9, 1);
        let given = |replaces| Some(Given { replaces });
        assert_eq!(places.take(one, b"a", 1), given(None));
        assert_eq!(places.take(one, b"a", 2), None);
        assert_eq!(places.take(one, b"b", 3), given(Some(1)));
        places.is_underway(one);
        assert_eq!(places.take(one, b"b", 4), given(Some(3)));
        // The end of a transfer that was given up frees nothing.
        places.free(one, 3);
        assert!(places.has(one, 4));
        places.free(one, 4);
        assert!(!places.has(one, 4) && places.of_address.is_empty());
    }
}
