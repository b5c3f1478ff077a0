//! Whether a finished plan keeps what plans promise: nothing lies over anything else, nothing leaves the target.
//!
//! What is *not* here: how a plan comes to be; this is written apart from it on purpose.

use crate::ByteRange;
use crate::plan::{DiskPlan, TableWrite};

/// Where a part of a table is written.
pub(super) fn place(write: &TableWrite) -> ByteRange {
    ByteRange::between(
        write.offset,
        write.offset.saturating_add(write.bytes.0.len() as u64),
    )
}

/// Checks the invariants of a plan on a target of `size` bytes: the last line before a disk is written.
pub(super) fn check(plan: &DiskPlan, size: u64) -> Result<(), String> {
    let mut taken: Vec<(ByteRange, String)> = plan
        .copies
        .iter()
        .map(|copy| (copy.destination, format!("region {}", copy.region)))
        .chain(
            plan.commit
                .iter()
                .map(|write| (place(write), write.what.clone())),
        )
        .collect();
    taken.sort();
    for (range, what) in &taken {
        if range.end() > size {
            return Err(format!("{what} at {range} leaves the disk of {size} bytes"));
        }
    }
    for pair in taken.windows(2) {
        let ((one, one_name), (other, other_name)) = (&pair[0], &pair[1]);
        if one.overlaps(*other) {
            return Err(format!(
                "{one_name} at {one} overlaps {other_name} at {other}"
            ));
        }
    }
    let mut areas: Vec<ByteRange> = plan.areas.iter().map(|area| area.destination).collect();
    areas.sort_unstable();
    if let Some(pair) = areas.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
        return Err(format!("areas of logical volumes at {} overlap", pair[1]));
    }
    let mut places: Vec<_> = plan.partitions.iter().map(|one| one.range).collect();
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
        return Err(format!("partitions at {} and {} overlap", pair[0], pair[1]));
    }
    for partition in &plan.partitions {
        if partition.range.end() > size {
            return Err(format!(
                "partition {} at {} leaves the disk of {size} bytes",
                partition.number, partition.range
            ));
        }
    }
    Ok(())
}
