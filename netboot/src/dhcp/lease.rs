//! Which client has which address: pools, offers, leases, quarantine.
//!
//! Invariants: an address belongs to at most one client; a client has at most one address in a
//! subnet; an address that is reserved is given to nobody else. Every operation is a look-up in an
//! index, never a walk over the leases: finding a free address is one step along addresses never
//! given yet or, after those, the one whose lease ended first.
//!
//! A client is its Ethernet address. RFC 2131 §4.2 prefers the client identifier, but the programs
//! of one boot (ROM, loader, kernel) send different ones or none, and a machine that changes its
//! address at each stage drains the pool and cannot be followed.
//!
//! Not here: messages (`server`), the disk (`lease_store`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
    ops::RangeInclusive,
};

use protocol::dhcp::MacAddress;

/// Seconds since 1970-01-01 UTC. Leases outlive the process, so they are counted in wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct UnixSeconds(pub(crate) u64);

impl UnixSeconds {
    /// The moment `seconds` later.
    pub(crate) fn after(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(u64::from(seconds)))
    }
}

/// How far an address is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// Held for a client that has not taken it yet.
    Offered,
    /// Granted.
    Bound,
    /// Given back; the client gets it again when it is still free.
    Released,
    /// A client found it in use by something else: nobody gets it until then.
    Declined,
}

/// An address and its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The address.
    pub(crate) address: Ipv4Addr,
    /// The client.
    pub(crate) mac: MacAddress,
    /// How far it is given.
    pub(crate) state: LeaseState,
    /// When that ends.
    pub(crate) until: UnixSeconds,
}

/// Addresses of one subnet that may be given to anyone.
#[derive(Debug)]
struct Pool {
    /// Ranges never given yet, the next one last.
    unused: Vec<RangeInclusive<u32>>,
    /// Addresses given once and left for another by their client.
    left: BTreeSet<Ipv4Addr>,
    ranges: Vec<RangeInclusive<u32>>,
    /// Addresses of this pool that have a lease, by its end.
    by_end: BTreeSet<(UnixSeconds, Ipv4Addr)>,
}

impl Pool {
    fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges
            .iter()
            .any(|range| range.contains(&u32::from(address)))
    }

    fn next_unused(&mut self) -> Option<Ipv4Addr> {
        if let Some(address) = self.left.pop_first() {
            return Some(address);
        }
        loop {
            let range = self.unused.last_mut()?;
            if let Some(number) = range.next() {
                return Some(number.into());
            }
            self.unused.pop();
        }
    }
}

/// All leases of all subnets. Subnets are numbered as in the configuration.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    pools: Vec<Pool>,
    /// Given to nobody from a pool: reservations, the server, the router.
    set_aside: HashSet<Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, (usize, Lease)>,
    by_client: HashMap<(usize, MacAddress), Ipv4Addr>,
}

impl LeaseTable {
    /// An empty table with a pool for each subnet.
    pub(crate) fn new(
        pools: impl IntoIterator<Item = Vec<RangeInclusive<u32>>>,
        set_aside: HashSet<Ipv4Addr>,
    ) -> Self {
        let pools = pools
            .into_iter()
            .map(|ranges| Pool {
                unused: ranges.iter().rev().cloned().collect(),
                ranges,
                left: BTreeSet::new(),
                by_end: BTreeSet::new(),
            })
            .collect();
        Self {
            pools,
            set_aside,
            by_address: BTreeMap::new(),
            by_client: HashMap::new(),
        }
    }

    /// Puts a lease back that an earlier run of the server granted.
    pub(crate) fn restore(&mut self, subnet: usize, lease: Lease) {
        if subnet < self.pools.len() {
            self.put(subnet, lease);
        }
    }

    /// The client's lease in the subnet, ended or not. A declined address is nobody's.
    pub(crate) fn of_client(&self, subnet: usize, mac: MacAddress) -> Option<&Lease> {
        let address = self.by_client.get(&(subnet, mac))?;
        self.by_address.get(address).map(|(_, lease)| lease)
    }

    /// The lease of an address, ended or not.
    pub(crate) fn at(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.by_address.get(&address).map(|(_, lease)| lease)
    }

    /// Some of the addresses that clients never seen will be given next, without taking them.
    pub(crate) fn upcoming(&self, subnet: usize, count: usize, now: UnixSeconds) -> Vec<Ipv4Addr> {
        let Some(pool) = self.pools.get(subnet) else {
            return Vec::new();
        };
        let unused = pool.unused.iter().rev().cloned().flatten();
        let ended = pool.by_end.iter().take_while(|(end, _)| *end <= now);
        let fresh = |address: &Ipv4Addr| {
            !self.set_aside.contains(address) && !self.by_address.contains_key(address)
        };
        let never = pool
            .left
            .iter()
            .copied()
            .chain(unused.map(Ipv4Addr::from))
            .filter(fresh);
        never
            .chain(ended.map(|(_, address)| *address))
            .take(count)
            .collect()
    }

    /// Whether the client may have exactly this address now.
    pub(crate) fn may_have(
        &self,
        subnet: usize,
        mac: MacAddress,
        address: Ipv4Addr,
        now: UnixSeconds,
    ) -> bool {
        let in_pool = self
            .pools
            .get(subnet)
            .is_some_and(|pool| pool.contains(address));
        in_pool && !self.set_aside.contains(&address) && self.is_free_for(mac, address, now)
    }

    /// Whether no other client holds the address and it is not in quarantine.
    pub(crate) fn is_free_for(&self, mac: MacAddress, address: Ipv4Addr, now: UnixSeconds) -> bool {
        match self.by_address.get(&address) {
            None => true,
            Some((_, lease)) if lease.until <= now => true,
            Some((_, lease)) => lease.mac == mac && lease.state != LeaseState::Declined,
        }
    }

    /// An address of the pool for the client: the one it had, the one it wishes for, one never
    /// given, or the one free for longest. `None` when the pool is exhausted.
    pub(crate) fn choose(
        &mut self,
        subnet: usize,
        mac: MacAddress,
        wish: Option<Ipv4Addr>,
        now: UnixSeconds,
    ) -> Option<Ipv4Addr> {
        let had = self.of_client(subnet, mac).map(|lease| lease.address);
        for address in [had, wish].into_iter().flatten() {
            if self.may_have(subnet, mac, address, now) {
                return Some(address);
            }
        }
        let pool = self.pools.get_mut(subnet)?;
        while let Some(address) = pool.next_unused() {
            if !self.set_aside.contains(&address) && !self.by_address.contains_key(&address) {
                return Some(address);
            }
        }
        match pool.by_end.first() {
            Some(&(end, address)) if end <= now => Some(address),
            _ => None,
        }
    }

    /// Sets a lease; the client's other address in the subnet and the address's other client are
    /// forgotten.
    pub(crate) fn put(&mut self, subnet: usize, lease: Lease) {
        if let Some(old) = self.by_client.get(&(subnet, lease.mac)).copied()
            && old != lease.address
            && lease.state != LeaseState::Declined
        {
            self.forget(old);
            if self.pools[subnet].contains(old) {
                self.pools[subnet].left.insert(old);
            }
        }
        self.forget(lease.address);
        let pool = &mut self.pools[subnet];
        pool.left.remove(&lease.address);
        if pool.contains(lease.address) && !self.set_aside.contains(&lease.address) {
            pool.by_end.insert((lease.until, lease.address));
        }
        // Else the client's next address would end the quarantine of this one.
        if lease.state != LeaseState::Declined {
            self.by_client.insert((subnet, lease.mac), lease.address);
        }
        self.by_address.insert(lease.address, (subnet, lease));
    }

    fn forget(&mut self, address: Ipv4Addr) {
        if let Some((subnet, lease)) = self.by_address.remove(&address) {
            self.pools[subnet].by_end.remove(&(lease.until, address));
            if self.by_client.get(&(subnet, lease.mac)) == Some(&address) {
                self.by_client.remove(&(subnet, lease.mac));
            }
        }
    }

    /// How many addresses have a lease, ended ones included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    fn mac(number: u8) -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, number])
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, last)
    }

    fn table(first: u8, last: u8, set_aside: &[u8]) -> LeaseTable {
        let range = u32::from(address(first))..=u32::from(address(last));
        LeaseTable::new(
            [vec![range]],
            set_aside.iter().copied().map(address).collect(),
        )
    }

    fn bound(last: u8, client: u8, until: u64) -> Lease {
        Lease {
            address: address(last),
            mac: mac(client),
            state: LeaseState::Bound,
            until: UnixSeconds(until),
        }
    }

    #[test]
    fn reserved_addresses_are_left_out() {
        let mut table = table(1, 3, &[1, 2]);
        assert_eq!(
            table.choose(0, mac(1), None, UnixSeconds(0)),
            Some(address(3))
        );
        assert_eq!(
            table.choose(0, mac(2), Some(address(1)), UnixSeconds(0)),
            None
        );
    }

    #[test]
    fn a_full_pool_gives_the_address_that_ended_first() {
        let mut table = table(1, 2, &[]);
        table.put(0, bound(1, 1, 50));
        table.put(0, bound(2, 2, 40));
        assert_eq!(table.choose(0, mac(3), None, UnixSeconds(39)), None);
        assert_eq!(
            table.choose(0, mac(3), None, UnixSeconds(60)),
            Some(address(2))
        );
    }

    #[test]
    fn a_client_gets_its_ended_lease_again() {
        let mut table = table(1, 9, &[]);
        table.put(0, bound(5, 1, 10));
        assert_eq!(
            table.choose(0, mac(1), None, UnixSeconds(99)),
            Some(address(5))
        );
    }

    #[test]
    fn an_address_left_for_another_is_given_again() {
        let mut table = table(1, 2, &[]);
        table.put(0, bound(1, 1, 50));
        table.put(0, bound(2, 1, 50));
        assert_eq!(
            table.choose(0, mac(2), None, UnixSeconds(0)),
            Some(address(1))
        );
    }

    #[test]
    fn a_declined_address_is_nobodys_until_its_quarantine_ends() {
        let mut table = table(1, 1, &[]);
        table.put(
            0,
            Lease {
                state: LeaseState::Declined,
                ..bound(1, 1, 50)
            },
        );
        assert_eq!(
            table.choose(0, mac(1), Some(address(1)), UnixSeconds(49)),
            None
        );
        assert_eq!(
            table.choose(0, mac(2), None, UnixSeconds(50)),
            Some(address(1))
        );
    }

    proptest! {
        #[test]
        fn no_address_has_two_clients_and_no_client_two_addresses(
            steps in prop::collection::vec((0_u8..12, 0_u8..4, 0_u64..30, 0_u8..10), 0..120)
        ) {
            let mut table = table(1, 8, &[3]);
            let mut now = UnixSeconds(0);
            for (client, kind, wait, wish) in steps {
                now = UnixSeconds(now.0 + wait);
                let free = (1..=8).filter(|last| *last != 3).any(|last| table.is_free_for(mac(client), address(last), now));
                let chosen = table.choose(0, mac(client), Some(address(wish)), now);
                // A free address is always found, and what is found is free.
                prop_assert_eq!(chosen.is_some(), free);
                if let Some(address) = chosen {
                    prop_assert!(table.may_have(0, mac(client), address, now));
                    let state = [LeaseState::Offered, LeaseState::Bound, LeaseState::Released, LeaseState::Declined][usize::from(kind)];
                    table.put(0, Lease { address, mac: mac(client), state, until: now.after(20) });
                }
                prop_assert!(table.by_client.len() <= table.by_address.len());
                for (key, address) in &table.by_client {
                    prop_assert_eq!(table.by_address[address].1.mac, key.1);
                }
                let ends: usize = table.pools.iter().map(|pool| pool.by_end.len()).sum();
                prop_assert_eq!(ends, table.len());
            }
        }
    }
}
