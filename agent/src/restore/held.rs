//! What is held back until the rest is flushed: superblocks, boot sectors, the first MiB.
//!
//! Pure: no I/O. What lies where the marker is comes last of all, see [`super::commit`].

use backup::ByteRange;

use super::write::Target;
use super::{marker, work};

/// Bytes that are written after the rest is flushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// Index of the disk in the plan.
    pub(crate) disk: usize,
    /// Byte offset on the disk.
    pub(crate) offset: u64,
    /// What belongs there.
    pub(crate) bytes: Vec<u8>,
}

impl Held {
    /// Where it belongs.
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::between(self.offset, self.offset + self.bytes.len() as u64)
    }

    /// The bytes of a part of its range.
    pub(super) fn bytes_of(&self, part: ByteRange) -> &[u8] {
        let from = (part.start() - self.offset) as usize;
        &self.bytes[from..from + part.len() as usize]
    }
}

/// The held parts with their ranges, without the marker's sector.
pub(super) fn outside_marker<'h>(
    targets: &[Target],
    held: &'h [Held],
) -> impl Iterator<Item = (&'h Held, ByteRange)> {
    let places: Vec<_> = targets
        .iter()
        .map(|target| marker::place(target.device.size()))
        .collect();
    held.iter().flat_map(move |part| {
        let place = places.get(part.disk).copied().flatten();
        work::without(part.range(), place)
            .into_iter()
            .map(move |range| (part, range))
    })
}

/// What belongs where the marker is, for each disk; zeros where the backup has nothing.
pub(super) fn marker_contents(targets: &[Target], held: &[Held]) -> Vec<Option<(u64, Vec<u8>)>> {
    let content = |(disk, target): (usize, &Target)| {
        let place = marker::place(target.device.size())?;
        let mut bytes = vec![0; place.len() as usize];
        for part in held.iter().filter(|part| part.disk == disk) {
            let range = part.range();
            let both = ByteRange::between(
                range.start().max(place.start()),
                range.end().min(place.end()),
            );
            if !both.is_empty() {
                let at = (both.start() - place.start()) as usize;
                bytes[at..at + both.len() as usize].copy_from_slice(part.bytes_of(both));
            }
        }
        Some((place.start(), bytes))
    };
    targets.iter().enumerate().map(content).collect()
}
