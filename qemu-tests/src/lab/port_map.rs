//! Which loopback port of this computer stands behind a port of the gateway.
//!
//! Invariant: a guest reaches mapped ports only, and of UDP besides them the ports that the server itself
//! opened towards that guest (TFTP transfers); see `udp_flows`.

use std::collections::BTreeMap;

/// Ports of the gateway and the loopback ports behind them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PortMap {
    tcp: BTreeMap<u16, u16>,
    udp: BTreeMap<u16, u16>,
}

impl PortMap {
    /// Adds a TCP port.
    pub(crate) fn with_tcp(mut self, gateway: u16, loopback: u16) -> Self {
        self.tcp.insert(gateway, loopback);
        self
    }

    /// Adds a UDP port.
    pub(crate) fn with_udp(mut self, gateway: u16, loopback: u16) -> Self {
        self.udp.insert(gateway, loopback);
        self
    }

    /// The loopback port behind a TCP port of the gateway.
    pub(crate) fn tcp(&self, gateway: u16) -> Option<u16> {
        self.tcp.get(&gateway).copied()
    }

    /// The loopback port behind a UDP port of the gateway.
    pub(crate) fn udp(&self, gateway: u16) -> Option<u16> {
        self.udp.get(&gateway).copied()
    }

    /// The port by which guests know a loopback UDP port; ports that are not in the map keep their number.
    pub(crate) fn udp_as_seen_by_guests(&self, loopback: u16) -> u16 {
        self.udp
            .iter()
            .find(|&(_, &behind)| behind == loopback)
            .map_or(loopback, |(&gateway, _)| gateway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_ports_are_found_both_ways_and_others_are_not() {
        let map = PortMap::default().with_udp(69, 6969).with_tcp(80, 8080);
        assert_eq!(map.udp(69), Some(6969));
        assert_eq!(map.udp(80), None);
        assert_eq!(map.tcp(80), Some(8080));
        assert_eq!(map.tcp(69), None);
        assert_eq!(map.udp_as_seen_by_guests(6969), 69);
        assert_eq!(map.udp_as_seen_by_guests(40000), 40000);
    }
}
