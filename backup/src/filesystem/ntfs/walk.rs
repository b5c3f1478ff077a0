//! All MFT records in order: where files lie, and whether all that they have is saved.
//!
//! Invariant: returns only when every data run of every record in use lies within the used ranges.

use super::mft::{MAGIC, Mft};
use super::record::{Attribute, Body, DATA, Mapping, Record, fix_up};
use super::{BAD_CLUSTERS, FIRST_USER_RECORD, Fault, runs};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::filesystem::extents::{FileExtent, FileExtents};

/// The MFT is read in pieces of about this size.
const PIECE: usize = 1 << 20;

/// Where the files lie, after all runs were found in `used`.
pub(super) fn extents(
    volume: &dyn ReadAt,
    mft: &Mft,
    used: &[ByteRange],
) -> Result<Vec<FileExtent>, Fault> {
    let size = mft.geometry.record;
    let records = mft.records();
    let mut walk = Walk {
        mft,
        used,
        extents: FileExtents::new(),
    };
    let mut piece = vec![0; PIECE / size * size];
    let mut first = 0;
    while first < records {
        let count = (records - first).min((piece.len() / size) as u64);
        let piece = &mut piece[..count as usize * size];
        mft.raw(volume, first, piece)?;
        for (number, record) in (first..).zip(piece.chunks_exact_mut(size)) {
            walk.record(number, record)?;
        }
        first += count;
    }
    Ok(walk.extents.finish())
}

struct Walk<'a> {
    mft: &'a Mft,
    used: &'a [ByteRange],
    extents: FileExtents,
}

impl Walk<'_> {
    fn record(&mut self, number: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        // Room that was never a record.
        if bytes[..4] == [0; 4] && number >= FIRST_USER_RECORD {
            return Ok(());
        }
        fix_up(bytes, MAGIC, format_args!("MFT record {number}"))?;
        let record = Record::new(number, bytes);
        if !record.in_use() {
            return Ok(());
        }
        for attribute in record.attributes() {
            let attribute = attribute?;
            let Body::Clusters(mapping) = &attribute.body else {
                continue;
            };
            // The bad clusters are nobody's.
            if number == BAD_CLUSTERS && attribute.is(DATA, "$Bad") {
                continue;
            }
            self.runs(number, &attribute, mapping)?;
        }
        Ok(())
    }

    fn runs(
        &mut self,
        number: u64,
        attribute: &Attribute<'_>,
        mapping: &Mapping<'_>,
    ) -> Result<(), Fault> {
        let cluster = self.mft.geometry.cluster;
        let is_file = attribute.kind == DATA && number >= FIRST_USER_RECORD;
        runs::each(mapping, self.mft.geometry.clusters, |run| {
            let Some(start) = run.start else {
                return Ok(());
            };
            let range = ByteRange::between(start * cluster, (start + run.len) * cluster);
            if !contained(self.used, range) {
                return Err(Fault::Damaged(format!(
                    "clusters {start}..{} are in use but not marked so in $Bitmap",
                    start + run.len
                )));
            }
            if is_file {
                self.extents.add(range, run.at * cluster);
            }
            Ok(())
        })
        .map_err(|fault| match fault {
            Fault::Damaged(reason) => Fault::Damaged(format!("MFT record {number}: {reason}")),
            fault => fault,
        })
    }
}

/// Whether one of the ranges, which are in order, has all of `range`.
fn contained(ranges: &[ByteRange], range: ByteRange) -> bool {
    let next = ranges.partition_point(|used| used.start() <= range.start());
    next.checked_sub(1)
        .is_some_and(|last| ranges[last].contains(range))
}
