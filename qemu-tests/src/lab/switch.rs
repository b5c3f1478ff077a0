//! A learning Ethernet switch: which ports a frame leaves by.
//!
//! Pure: ports are numbers, frames are looked at but never kept. Invariant: a frame never leaves by
//! the port it came in on. No spanning tree, no ageing: a lab link has no loops, and a station that
//! moves is learned again with its first frame.

use std::collections::HashMap;

/// Number of a port of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PortId(pub(crate) usize);

/// An Ethernet station address.
pub(crate) type Mac = [u8; 6];

/// Destination (6), source (6) and type (2): shorter frames are noise.
const ETHERNET_HEADER: usize = 14;
/// The group bit of the first octet (IEEE 802.3 §3.2.3): multicast and broadcast.
const GROUP_BIT: u8 = 1;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To one port.
    Port(PortId),
    /// To every port but the one it came from.
    Flood,
    /// Nowhere: too short, or its station is on the port it came from.
    Drop,
}

/// Remembers behind which port each station was last seen.
#[derive(Debug, Default)]
pub(crate) struct Switch {
    stations: HashMap<Mac, PortId>,
}

impl Switch {
    /// Learns the sender of a frame and says where the frame goes.
    pub(crate) fn route(&mut self, from: PortId, frame: &[u8]) -> Route {
        if frame.len() < ETHERNET_HEADER {
            return Route::Drop;
        }
        let mut destination: Mac = [0; 6];
        let mut source: Mac = [0; 6];
        destination.copy_from_slice(&frame[..6]);
        source.copy_from_slice(&frame[6..12]);
        if source[0] & GROUP_BIT == 0 {
            self.stations.insert(source, from);
        }
        if destination[0] & GROUP_BIT != 0 {
            return Route::Flood;
        }
        match self.stations.get(&destination) {
            Some(&port) if port == from => Route::Drop,
            Some(&port) => Route::Port(port),
            None => Route::Flood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];
    const BROADCAST: Mac = [0xff; 6];

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        let mut frame = [to, from].concat();
        frame.extend_from_slice(&[0x08, 0x00, 1, 2, 3]);
        frame
    }

    #[test]
    fn a_known_station_gets_its_frames_alone() {
        let mut switch = Switch::default();
        switch.route(PortId(2), &frame(BROADCAST, B));
        assert_eq!(
            switch.route(PortId(1), &frame(B, A)),
            Route::Port(PortId(2))
        );
    }

    #[test]
    fn an_unknown_station_and_broadcast_are_flooded() {
        let mut switch = Switch::default();
        assert_eq!(switch.route(PortId(1), &frame(B, A)), Route::Flood);
        assert_eq!(switch.route(PortId(1), &frame(BROADCAST, A)), Route::Flood);
    }

    #[test]
    fn a_frame_never_goes_back_where_it_came_from() {
        let mut switch = Switch::default();
        switch.route(PortId(1), &frame(BROADCAST, B));
        assert_eq!(switch.route(PortId(1), &frame(B, A)), Route::Drop);
    }

    #[test]
    fn a_station_that_moves_is_found_again() {
        let mut switch = Switch::default();
        switch.route(PortId(1), &frame(BROADCAST, B));
        switch.route(PortId(3), &frame(BROADCAST, B));
        assert_eq!(
            switch.route(PortId(2), &frame(B, A)),
            Route::Port(PortId(3))
        );
    }

    #[test]
    fn a_runt_frame_is_dropped_and_teaches_nothing() {
        let mut switch = Switch::default();
        assert_eq!(switch.route(PortId(1), &[0xff; 13]), Route::Drop);
    }
}
