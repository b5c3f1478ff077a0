//! What running captures rely on: every chunk that one of them was told is stored, or that it sent.
//!
//! A bit for each position of the index and running capture. Claims are in memory: a capture that was
//! running when the server started relies on chunks that nobody remembers, so it claims all that
//! were there.
//!
//! Invariant: between the answer "stored" and the end of the capture, or its restore point, no moment
//! is without a claim. While a collection runs, claims that end are kept to its end: it may have read
//! the restore points before that capture's was there.

use std::collections::{HashMap, HashSet};

use backup::manifest::RestorePointId;

use super::bits::Bits;

/// The claims of all running captures.
#[derive(Default)]
pub(super) struct Claims {
    captures: HashMap<RestorePointId, Bits>,
    /// Captures that are over: a request of theirs that comes late claims nothing.
    ended: HashSet<RestorePointId>,
    /// While a collection runs: the claims that ended meanwhile.
    collection: Option<Bits>,
}

impl Claims {
    /// The capture relies on the chunk at this position.
    pub(super) fn claim(&mut self, capture: &RestorePointId, position: u32) {
        if let Some(claimed) = self.captures.get_mut(capture) {
            claimed.set(position);
        } else if !self.ended.contains(capture) {
            let mut claimed = Bits::default();
            claimed.set(position);
            self.captures.insert(capture.clone(), claimed);
        } else if let Some(kept) = &mut self.collection {
            kept.set(position);
        }
    }

    /// The capture relies on all that is there.
    pub(super) fn claim_all(&mut self, capture: &RestorePointId, end: u32) {
        self.captures.insert(capture.clone(), Bits::first(end));
    }

    /// The capture is over.
    pub(super) fn end(&mut self, capture: &RestorePointId) {
        let claimed = self.captures.remove(capture);
        if let (Some(claimed), Some(kept)) = (claimed, &mut self.collection) {
            kept.merge(&claimed);
        }
        self.ended.insert(capture.clone());
    }

    /// A collection begins or ends.
    pub(super) fn collect(&mut self, runs: bool) {
        self.collection = runs.then(Bits::default);
    }

    /// Whether a capture relies on the chunk at this position.
    pub(super) fn hold(&self, position: u32) -> bool {
        self.captures
            .values()
            .chain(&self.collection)
            .any(|claimed| claimed.has(position))
    }
}
