//! What is held back until the rest is flushed: superblocks, boot sectors, the first MiB.
//!
//! Pure: no I/O. What lies where the marker is and what makes a disk start comes last of all, see
//! [`super::commit`].

use backup::ByteRange;

use super::commit::Write;
use super::work;
use super::write::Target;

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

/// The held parts with their ranges, without what comes after them: the marker's sector, the first sector of a
/// disk without a table, and what chosen volumes are recognised by.
pub(super) fn before_commit<'h>(
    targets: &[Target],
    held: &'h [Held],
) -> impl Iterator<Item = (&'h Held, ByteRange)> {
    let places: Vec<_> = targets.iter().map(later).collect();
    held.iter().flat_map(move |part| {
        let places = places.get(part.disk).map_or(&[][..], Vec::as_slice);
        let parts = work::split(part.range(), places).into_iter();
        let now = parts.filter(|(_, is_later)| !is_later);
        now.map(move |(range, _)| (part, range)).collect::<Vec<_>>()
    })
}

/// The places of a disk that are written after its held parts, in order; they do not overlap.
fn later(target: &Target) -> Vec<ByteRange> {
    let mut places: Vec<_> = target.markers().chain(target.first).collect();
    places.sort_unstable();
    places
}

/// What belongs in a place of a disk; zeros where the backup has nothing.
pub(super) fn contents(held: &[Held], disk: usize, place: ByteRange, what: &str) -> Write {
    let mut bytes = vec![0; place.len() as usize];
    for part in held.iter().filter(|part| part.disk == disk) {
        let range = part.range();
        let start = range.start().max(place.start());
        let end = range.end().min(place.end());
        if start < end {
            let at = (start - place.start()) as usize;
            let both = ByteRange::between(start, end);
            bytes[at..at + both.len() as usize].copy_from_slice(part.bytes_of(both));
        }
    }
    Write {
        what: what.to_owned(),
        offset: place.start(),
        bytes,
    }
}
