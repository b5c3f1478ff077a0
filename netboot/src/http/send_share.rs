//! How much of an answer may wait in the kernel, when many machines fetch at once.
//!
//! Left to itself, the kernel lets every connection have up to 4 MiB on their way (`tcp_wmem`). The
//! machines of a room that come first then fill the queue before the line, and those behind them get
//! next to nothing until they are through; and a thousand connections may take gigabytes. So all
//! connections share a bounded amount, anew each time their number doubles or halves.
//!
//! Not here: setting it (`server`), other bounds of a connection (`server`, `answer`).
//! Why these numbers: `docs/decisions/0010-fair-shares-of-the-line.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many connections are left to the kernel, which knows lines with long delays better.
const FEW: usize = 8;
/// What more of them share, in bytes.
const TOGETHER: usize = 2 << 20;
/// A share is at least this. The kernel doubles it: ten full packets, with which TCP begins (RFC 6928).
const LEAST: usize = 8 << 10;

/// Counts the connections of a listener.
#[derive(Debug, Default)]
pub(super) struct SendShares {
    open: AtomicUsize,
}

impl SendShares {
    /// One more connection.
    pub(super) fn join(self: &Arc<Self>) -> Member {
        self.open.fetch_add(1, Ordering::Relaxed);
        Member {
            shares: Arc::clone(self),
            applied: None,
        }
    }

    fn share(&self) -> Option<usize> {
        let open = self.open.load(Ordering::Relaxed);
        (open > FEW).then(|| (TOGETHER / open.next_power_of_two()).max(LEAST))
    }
}

/// A connection's share. Dropping it gives the share to the others.
#[derive(Debug)]
pub(super) struct Member {
    shares: Arc<SendShares>,
    /// A bound that was set cannot be taken away again, only changed.
    applied: Option<usize>,
}

impl Member {
    /// The share in bytes, if it is another one than before.
    pub(super) fn changed(&mut self) -> Option<usize> {
        let share = self.shares.share()?;
        (self.applied.replace(share) != Some(share)).then_some(share)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shares.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_are_left_to_the_kernel_and_many_share() {
        let shares = Arc::new(SendShares::default());
        let mut first = shares.join();
        assert_eq!(first.changed(), None);
        let mut others: Vec<_> = (0..199).map(|_| shares.join()).collect();
        assert_eq!(first.changed(), Some(8 << 10));
        assert_eq!(first.changed(), None, "it is told once");
        others.truncate(29); // and the first
        assert_eq!(first.changed(), Some(64 << 10));
        others.extend((0..4000).map(|_| shares.join()));
        assert_eq!(first.changed(), Some(LEAST));
        others.clear();
        assert_eq!(first.changed(), None);
    }
}
