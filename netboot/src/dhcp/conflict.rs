//! Which addresses were asked about on the link, and when: the conflict check that delays nobody.
//!
//! Nobody waits for an answer. The addresses that come next are asked about ahead of time, and the one
//! that is offered at once with its offer, while the client thinks; an answer takes the address out of
//! use, and the request for it is refused (RFC 2131 §3.1 step 1 says "SHOULD check", not when).
//!
//! Invariant: bounded memory and a bounded rate of questions, whatever the clients do.
//!
//! Not here: what an answer means (`server`), frames and sockets.

use std::{
    collections::{HashSet, VecDeque},
    net::Ipv4Addr,
};

use super::lease::UnixSeconds;

/// How long a silence means that nobody has the address.
const FRESH_SECONDS: u32 = 60;
/// Questions in that time; a flood of clients is offered addresses unasked beyond it.
const QUESTIONS: usize = 1024;

/// The questions of the last minute.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Oldest first.
    order: VecDeque<(UnixSeconds, Ipv4Addr)>,
    addresses: HashSet<Ipv4Addr>,
}

impl Asked {
    /// Whether to ask now; if so, it is noted.
    pub(super) fn ask(&mut self, address: Ipv4Addr, now: UnixSeconds) -> bool {
        self.forget_old(now);
        if self.order.len() >= QUESTIONS || !self.addresses.insert(address) {
            return false;
        }
        self.order.push_back((now, address));
        true
    }

    /// Whether an answer about this address was waited for.
    pub(super) fn expects(&mut self, address: Ipv4Addr, now: UnixSeconds) -> bool {
        self.forget_old(now);
        self.addresses.contains(&address)
    }

    fn forget_old(&mut self, now: UnixSeconds) {
        while let Some((at, address)) = self.order.front().copied()
            && at.after(FRESH_SECONDS) <= now
        {
            self.order.pop_front();
            self.addresses.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_about_once_a_minute_and_a_flood_is_cut() {
        let mut asked = Asked::default();
        let address = |number: u32| Ipv4Addr::from(0x0a4d_0000 + number);
        assert!(asked.ask(address(1), UnixSeconds(100)));
        assert!(!asked.ask(address(1), UnixSeconds(159)));
        assert!(asked.expects(address(1), UnixSeconds(159)));
        assert!(!asked.expects(address(1), UnixSeconds(160)));
        let taken = (0..5000).filter(|&number| asked.ask(address(number), UnixSeconds(200)));
        assert_eq!(taken.count(), QUESTIONS);
    }
}
