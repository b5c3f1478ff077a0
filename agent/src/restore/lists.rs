//! The chunk lists of a restore, fetched and checked before a disk is opened.

use std::collections::HashMap;

use backup::Digest;
use backup::chunk::{Chunk, ChunkList, list_len};
use backup::manifest::{ChunkListRef, Manifest, RestorePointId};
use backup::plan::{DiskPlan, RestorePlan};
use backup::units::HumanBytes;

use crate::job::Engine;
use crate::job::error::Fault;

/// Fetches the chunk lists that the plan needs, each checked against the manifest.
pub(super) fn fetch_lists(
    engine: &Engine<'_>,
    restore_point: &RestorePointId,
    manifest: &Manifest,
    plan: &RestorePlan,
) -> Result<HashMap<Digest, ChunkList>, Fault> {
    let mut lists = HashMap::new();
    for disk in &plan.disks {
        let regions = manifest
            .disks
            .get(disk.source as usize)
            .map_or(&[][..], |image| &image.regions);
        let copied = disk
            .copies
            .iter()
            .filter_map(|copy| regions.get(copy.region as usize))
            .map(|region| (&region.content, region.range.len()));
        for (content, size) in copied.chain(volumes(manifest, disk)?) {
            if lists.contains_key(&content.digest) {
                continue;
            }
            let limit = list_len(content.chunks);
            let bytes = engine
                .server
                .chunk_list(restore_point, &content.digest, limit)
                .map_err(Fault::server(format!(
                    "fetching chunk list {}",
                    content.digest
                )))?;
            engine.tracker.network(bytes.len() as u64);
            let found = Digest::of(&bytes);
            if found != content.digest {
                return Err(Fault::OtherAnswer {
                    found: format!("chunk list {found}"),
                    expected: content.digest.to_string(),
                });
            }
            let list = ChunkList::decode(&bytes, size).map_err(|source| Fault::ChunkList {
                digest: content.digest,
                source,
            })?;
            let lens = (list.data_bytes(), list.zero_bytes());
            if lens != (content.data_bytes, content.zero_bytes) {
                return Err(Fault::OtherAnswer {
                    found: format!("{} bytes of data and {} of zeros", lens.0, lens.1),
                    expected: format!(
                        "{} and {} in chunk list {}",
                        content.data_bytes, content.zero_bytes, content.digest
                    ),
                });
            }
            lists.insert(content.digest, list);
        }
    }
    let chunks: usize = lists
        .values()
        .map(|list: &ChunkList| list.chunks().len())
        .sum();
    log::info!(
        "{chunks} chunks in {} lists ({} of memory)",
        lists.len(),
        HumanBytes((chunks * size_of::<Chunk>()) as u64)
    );
    Ok(lists)
}

/// The content of the logical volumes that have areas on a disk, with their sizes.
fn volumes<'m>(
    manifest: &'m Manifest,
    disk: &DiskPlan,
) -> Result<Vec<(&'m ChunkListRef, u64)>, Fault> {
    let mut numbers: Vec<_> = disk.areas.iter().map(|area| area.volume).collect();
    numbers.dedup();
    numbers
        .into_iter()
        .filter_map(|number| manifest.logical_volumes.get(number as usize))
        .map(|volume| {
            let mapping = volume
                .mapping()
                .map_err(|error| Fault::Internal(error.to_string()))?;
            Ok((&volume.content, mapping.size()))
        })
        .collect()
}
