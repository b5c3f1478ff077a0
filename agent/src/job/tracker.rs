//! How far a job is: counts from many threads, turned into one progress value.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use protocol::progress::{Meter, Progress, Stage};

use crate::job::ProgressSlot;

/// Counts what a job has done.
#[derive(Debug)]
pub(crate) struct Tracker<'a> {
    slot: &'a ProgressSlot,
    began: Instant,
    network: AtomicU64,
    meter: Mutex<Meter>,
}

impl<'a> Tracker<'a> {
    /// A tracker that says so in `slot`, planning.
    pub(crate) fn new(slot: &'a ProgressSlot) -> Self {
        let began = Instant::now();
        let meter = Mutex::new(Meter::new(Stage::Planning, 0, began.elapsed()));
        slot.set(Progress::of(Stage::Planning));
        Self {
            slot,
            began,
            network: AtomicU64::new(0),
            meter,
        }
    }

    /// A new stage of `total` bytes begins; 0 when it has no measure.
    pub(crate) fn stage(&self, stage: Stage, total: u64) {
        self.update(|meter, now| {
            *meter = Meter::new(stage, total, now);
            meter.network(self.network.load(Ordering::Relaxed));
        });
        log::info!("{}", stage.text());
    }

    /// `bytes` more of the stage are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.update(|meter, now| meter.advance(bytes, now));
    }

    /// `bytes` more have crossed the network.
    pub(crate) fn network(&self, bytes: u64) {
        self.network.fetch_add(bytes, Ordering::Relaxed);
        self.update(|meter, _| meter.network(bytes));
    }

    /// Bytes that crossed the network so far.
    pub(crate) fn network_bytes(&self) -> u64 {
        self.network.load(Ordering::Relaxed)
    }

    /// Seconds since the job began.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn update(&self, change: impl FnOnce(&mut Meter, std::time::Duration)) {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.began.elapsed();
        change(&mut meter, now);
        self.slot.set(meter.progress(now));
    }
}
