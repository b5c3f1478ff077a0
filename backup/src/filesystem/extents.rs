//! Where files lie in a volume: hints for where chunks begin.
//!
//! Coverage and boundaries are two things. The used ranges of a [`super::Survey`] decide what is saved;
//! extents only say where it is cut, so that the same file in another place, or on another machine,
//! gives the same chunks. A stale or wrong extent costs space, never data, so a module that collects
//! them may leave out whatever it does not understand.
//!
//! Invariant: a finished list is in order of the volume, its extents are not empty and do not overlap.

use serde::{Deserialize, Serialize};

use crate::ByteRange;

/// The most extents that are kept: 48 MiB of memory. Files past it are cut like metadata.
const MAX_EXTENTS: usize = 1 << 21;

/// A contiguous piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileExtent {
    /// Where it lies, in bytes from the start of the volume.
    pub range: ByteRange,
    /// Which byte of the file it begins with.
    pub file_offset: u64,
}

/// A growing list of extents with bounded memory.
#[derive(Debug, Default)]
pub(crate) struct FileExtents {
    extents: Vec<FileExtent>,
}

impl FileExtents {
    pub(crate) const fn new() -> Self {
        Self {
            extents: Vec::new(),
        }
    }

    /// Whether more would be left out, so that looking for them can end.
    pub(crate) fn is_full(&self) -> bool {
        self.extents.len() >= MAX_EXTENTS
    }

    /// Adds a piece of a file; in any order.
    pub(crate) fn add(&mut self, range: ByteRange, file_offset: u64) {
        if range.is_empty() || self.is_full() {
            return;
        }
        if let Some(last) = self.extents.last_mut()
            && last.range.end() == range.start()
            && last.file_offset.checked_add(last.range.len()) == Some(file_offset)
        {
            last.range = ByteRange::between(last.range.start(), range.end());
            return;
        }
        self.extents.push(FileExtent { range, file_offset });
    }

    /// In order; of those that overlap (shared between files, or wrong) the first one stays whole, and of the
    /// others what goes on behind it.
    pub(crate) fn finish(mut self) -> Vec<FileExtent> {
        self.extents.sort_unstable();
        let mut end = 0;
        self.extents.retain_mut(|extent| {
            let range = extent.range;
            if range.end() <= end {
                return false;
            }
            let shared = end.saturating_sub(range.start());
            extent.range = ByteRange::between(range.start() + shared, range.end());
            extent.file_offset = extent.file_offset.saturating_add(shared);
            end = range.end();
            true
        });
        self.extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_follow_each_other_are_one_and_overlapping_ones_begin_behind() {
        let mut extents = FileExtents::new();
        extents.add(ByteRange::between(100, 200), 0);
        extents.add(ByteRange::between(200, 300), 100);
        extents.add(ByteRange::between(10, 20), 0);
        extents.add(ByteRange::between(150, 400), 7);
        extents.add(ByteRange::between(500, 500), 0);
        let expected =
            [(10, 20, 0), (100, 300, 0), (300, 400, 157)].map(|(start, end, file_offset)| {
                FileExtent {
                    range: ByteRange::between(start, end),
                    file_offset,
                }
            });
        assert_eq!(extents.finish(), expected);
    }
}
