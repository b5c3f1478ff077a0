//! The pieces of logical volumes: which chunk goes to which disk.
//!
//! Pure: no I/O. Invariant: a chunk of data lies in one place, because it is compared and written as a
//! whole; a capture cuts it so. Runs of zeros are cut here.

use std::collections::HashMap;

use backup::chunk::{ChunkList, Content};
use backup::manifest::Manifest;
use backup::plan::RestorePlan;
use backup::{ByteRange, Digest};

use super::work::Piece;
use crate::job::error::Fault;

/// Adds the pieces of all logical volumes whose areas the plan has a place for.
///
/// # Errors
/// [`Fault::Internal`] when plan, manifest and lists do not fit together.
pub(super) fn add_pieces(
    pieces: &mut Vec<Piece>,
    plan: &RestorePlan,
    manifest: &Manifest,
    lists: &HashMap<Digest, ChunkList>,
) -> Result<(), Fault> {
    // Where each area of each volume goes.
    let mut places = HashMap::new();
    for (disk, disk_plan) in plan.disks.iter().enumerate() {
        for area in &disk_plan.areas {
            let key = (
                area.volume as usize,
                area.segment as usize,
                area.area as usize,
            );
            places.insert(key, (disk, area.destination));
        }
    }
    for (number, volume) in manifest.logical_volumes.iter().enumerate() {
        let misfit = |what: &str| {
            let name = volume.full_name();
            Fault::Internal(format!("plan and manifest do not fit: {name}: {what}"))
        };
        let mapping = volume
            .mapping()
            .map_err(|error| misfit(&error.to_string()))?;
        // Where only chosen volumes are restored, all of its areas are absent.
        let is_planned = places.keys().any(|(planned, ..)| *planned == number);
        if mapping.size() == 0 || !is_planned {
            continue;
        }
        let list = lists.get(&volume.content.digest);
        let list = list.ok_or_else(|| misfit("no chunk list"))?;
        for chunk in list.chunks() {
            for place in mapping.places(chunk.range) {
                if matches!(chunk.content, Content::Data(_)) && place.volume != chunk.range {
                    return Err(misfit("a chunk lies in two places"));
                }
                let (disk, destination) = places
                    .get(&(number, place.segment, place.area))
                    .copied()
                    .ok_or_else(|| misfit("an area without a place"))?;
                let range = destination
                    .start()
                    .checked_add(place.offset)
                    .and_then(|start| ByteRange::new(start, place.volume.len()).ok())
                    .filter(|range| destination.contains(*range))
                    .ok_or_else(|| misfit("a chunk leaves its destination"))?;
                pieces.push(Piece {
                    disk,
                    range,
                    content: chunk.content,
                });
            }
        }
    }
    Ok(())
}
