//! Discarding: when its data is written, a disk is told which of its sectors hold nothing, so that a solid state disk has
//! them free for what is written next, and old data does not stay on it.
//!
//! Invariant: nothing is discarded that this restore writes, makes zero or holds back, and nothing outside of the
//! partitions of a disk whose table stays. What a disk answers for a discarded sector is anything (ACS-3, 7.5.3.3:
//! even what was there before), so nothing relies on it. Only spans of at least [`LEAST`] bytes are told.

use backup::ByteRange;
use backup::plan::DiskPlan;
use backup::units::HumanBytes;

use super::sources::Pieces;
use super::work::{merged, split};
use super::write::Target;
use crate::job::Engine;
use crate::job::error::Fault;

/// Shorter spans are not worth a command.
const LEAST: u64 = 1 << 20;
/// Both ends lie on multiples of it: sectors and pages are no larger.
const ALIGN: u64 = 4096;
/// The most bytes of a command, so that a job that is taken back ends soon.
const STEP: u64 = 1 << 30;

/// Discards what holds nothing, on disks that can.
///
/// # Errors
/// A list that has to be fetched again and cannot be, and a job that was taken back. A disk that does not do it is no
/// error.
pub(super) fn discard(
    engine: &Engine<'_>,
    targets: &[Target],
    plans: &[DiskPlan],
    mut pieces: Pieces<'_>,
) -> Result<(), Fault> {
    let mut disks: Vec<_> = targets
        .iter()
        .zip(plans)
        .map(|(target, plan)| Emptying::new(target, plan))
        .collect();
    while let Some(piece) = pieces.next()? {
        if let Some(disk) = disks.get_mut(piece.disk) {
            disk.is_used(engine, piece.range)?;
        }
    }
    for mut disk in disks {
        let end = disk.target.device.size();
        disk.is_used(engine, ByteRange::between(end, end))?;
        if disk.bytes > 0 {
            let bytes = HumanBytes(disk.bytes);
            log::info!("{}: {bytes} discarded", disk.target.device.name());
        }
    }
    Ok(())
}

/// A disk on the way through its pieces.
struct Emptying<'a> {
    target: &'a Target,
    /// What is the restore's to discard, in order.
    own: Vec<ByteRange>,
    /// What has to stay, in order and merged.
    kept: Vec<ByteRange>,
    /// Where the last piece ended.
    at: u64,
    bytes: u64,
    can: bool,
}

impl<'a> Emptying<'a> {
    fn new(target: &'a Target, plan: &DiskPlan) -> Self {
        let own = if plan.keeps_table {
            own_places(plan)
        } else {
            vec![ByteRange::between(0, target.device.size())]
        };
        let tables = plan.commit.iter().map(|table| {
            let end = table.offset + table.bytes.0.len() as u64;
            ByteRange::between(table.offset, end)
        });
        let kept = target.last.iter().chain(&plan.invalidate).copied();
        Self {
            target,
            own,
            kept: merged(kept.chain(tables).chain(target.markers())),
            at: 0,
            bytes: 0,
            can: true,
        }
    }

    /// Discards what lies between the piece before and this one.
    fn is_used(&mut self, engine: &Engine<'_>, range: ByteRange) -> Result<(), Fault> {
        let free = ByteRange::between(self.at, range.start().max(self.at));
        self.at = self.at.max(range.end());
        if free.len() < LEAST {
            return Ok(());
        }
        for (part, is_own) in split(free, &self.own) {
            for (part, is_kept) in split(part, &self.kept) {
                if is_own && !is_kept {
                    self.discard(engine, part)?;
                }
            }
        }
        Ok(())
    }

    fn discard(&mut self, engine: &Engine<'_>, free: ByteRange) -> Result<(), Fault> {
        let start = free.start().next_multiple_of(ALIGN);
        let end = free.end() - free.end() % ALIGN;
        if !self.can || end.saturating_sub(start) < LEAST {
            return Ok(());
        }
        let device = self.target.device.as_ref();
        let mut at = start;
        while at < end {
            engine.check_cancelled()?;
            let step = ByteRange::between(at, (at + STEP).min(end));
            if let Err(error) = device.discard(step) {
                if error.kind() != std::io::ErrorKind::Unsupported {
                    log::warn!("{}: discarding {step} failed: {error}", device.name());
                }
                self.can = false;
                return Ok(());
            }
            self.bytes += step.len();
            at = step.end();
        }
        Ok(())
    }
}

/// The places of what is restored, in order and merged.
fn own_places(plan: &DiskPlan) -> Vec<ByteRange> {
    let copies = plan.copies.iter().map(|copy| copy.destination);
    let areas = plan.areas.iter().map(|area| area.destination);
    merged(copies.chain(areas))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use backup::SectorSize;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::device::BlockDevice;
    use crate::job::fake::{Bench, ImageMachine};

    const UNITS: usize = 96;
    /// Two of them are worth a command.
    const UNIT: u64 = LEAST / 2;

    /// A disk that notes what it is told.
    #[derive(Default)]
    struct Noting {
        told: Arc<Mutex<Vec<ByteRange>>>,
        refuses: Option<io::ErrorKind>,
    }

    impl BlockDevice for Noting {
        fn name(&self) -> &'static str {
            "noting"
        }

        fn size(&self) -> u64 {
            UNITS as u64 * UNIT
        }

        fn sector(&self) -> SectorSize {
            SectorSize::S512
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        fn zero(&self, _: ByteRange) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        fn discard(&self, range: ByteRange) -> io::Result<()> {
            self.told.lock().unwrap().push(range);
            self.refuses.map_or(Ok(()), |kind| Err(kind.into()))
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn runs_of(units: &[bool]) -> Vec<ByteRange> {
        let of_unit = |at: usize| ByteRange::between(at as u64 * UNIT, (at as u64 + 1) * UNIT);
        merged((0..units.len()).filter(|at| units[*at]).map(of_unit))
    }

    fn told_of(device: Noting, own: &[bool], kept: &[bool], used: &[bool]) -> Vec<ByteRange> {
        let told = Arc::clone(&device.told);
        let end = device.size();
        let target = Target {
            device: Box::new(device),
            last: Vec::new(),
            first: None,
            marker: None,
            volumes: Vec::new(),
        };
        let mut emptying = Emptying {
            target: &target,
            own: runs_of(own),
            kept: runs_of(kept),
            at: 0,
            bytes: 0,
            can: true,
        };
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::new(ImageMachine::new(folder.path()), Vec::new());
        let engine = bench.engine();
        for range in runs_of(used) {
            emptying.is_used(&engine, range).unwrap();
        }
        let end = ByteRange::between(end, end);
        emptying.is_used(&engine, end).unwrap();
        told.lock().unwrap().clone()
    }

    proptest! {
        #[test]
        fn what_holds_nothing_is_discarded_and_nothing_else(
            own in proptest::collection::vec(any::<bool>(), UNITS),
            kept in proptest::collection::vec(proptest::bool::weighted(0.1), UNITS),
            used in proptest::collection::vec(proptest::bool::weighted(0.3), UNITS),
        ) {
            let told = told_of(Noting::default(), &own, &kept, &used);
            let is_free = |at: usize| own[at] && !kept[at] && !used[at];
            for at in 0..UNITS {
                let middle = at as u64 * UNIT + UNIT / 2;
                let is_told = told.iter().any(|range| range.start() <= middle && middle < range.end());
                let has_free_neighbour = at > 0 && is_free(at - 1) || at + 1 < UNITS && is_free(at + 1);
                prop_assert_eq!(is_told, is_free(at) && has_free_neighbour, "unit {}", at);
            }
            prop_assert!(told.iter().all(|range| range.start() % ALIGN == 0 && range.len() % ALIGN == 0));
        }
    }

    #[test]
    fn a_disk_that_cannot_is_asked_once() {
        let free = [true; UNITS];
        let mut used = [false; UNITS];
        used[40] = true;
        for refuses in [io::ErrorKind::Unsupported, io::ErrorKind::Other] {
            let device = Noting {
                refuses: Some(refuses),
                ..Noting::default()
            };
            assert_eq!(told_of(device, &free, &[false; UNITS], &used).len(), 1);
        }
        let told = told_of(Noting::default(), &free, &[false; UNITS], &used);
        assert_eq!(told.len(), 2);
    }
}
