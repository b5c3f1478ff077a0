//! Damage: never a panic or an endless loop; a doubt, or all blocks that were used before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use backup::ByteRange;
use backup::filesystem::tree::{self, NodeId, NodeKind};
use backup::filesystem::{ReadAt, ReadError, survey_volume};

use crate::images::{self, Memory, noise};
use crate::made::{MIB, Mount, age, fill, make, no_mounts, prototype, reflink, survey};

/// Bytes in memory, of which some are others.
struct Patched {
    bytes: Arc<Vec<u8>>,
    at: u64,
    patch: Vec<u8>,
}

impl ReadAt for Patched {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        Memory(&self.bytes).read_at(offset, buffer)?;
        for (at, byte) in (self.at..).zip(&self.patch) {
            if let Some(place) = at.checked_sub(offset)
                && let Some(place) = buffer.get_mut(place as usize)
            {
                *place = *byte;
            }
        }
        Ok(())
    }
}

/// Walks all folders and reads some of all files and links, whatever is wrong with them.
fn read_all(volume: Arc<dyn ReadAt + Send + Sync>, size: u64) {
    let Ok(tree) = tree::open(volume, size) else {
        return;
    };
    let (mut known, mut open) = (BTreeSet::new(), vec![tree.root()]);
    let mut buffer = vec![0; 20_000];
    while let Some(id) = open.pop() {
        let mut found: Vec<NodeId> = Vec::new();
        match tree.node(id).map(|node| (node.kind, node.size)) {
            Ok((NodeKind::Directory, _)) => {
                let _ = tree.entries(id, &mut |entry| {
                    found.push(entry.node);
                    Ok(())
                });
            }
            Ok((NodeKind::File, size)) => {
                for at in [0, size / 2, size.saturating_sub(9)] {
                    let _ = tree.read(id, at, &mut buffer);
                }
            }
            Ok((NodeKind::SymbolicLink, _)) => {
                let _ = tree.link_target(id);
            }
            _ => {}
        }
        open.extend(found.into_iter().filter(|id| known.insert(*id)));
    }
}

fn covers(used: &[ByteRange], before: &[ByteRange]) -> bool {
    before.iter().all(|range| {
        let after = used.partition_point(|used| used.start() <= range.start());
        after > 0 && used[after - 1].contains(*range)
    })
}

/// Damages metadata in `rounds` ways, and looks at all files after every `reading`th. At least `seen` of
/// them must make a doubt: version 4 has no checksums, and much of what it keeps says nothing of used blocks.
fn assert_withstands(image: &Path, rounds: u64, reading: u64, seen: u64) {
    let (before, size) = survey(image);
    let used = before.used.unwrap();
    let bytes = Arc::new(fs::read(image).unwrap());
    // Where metadata lie: all that is used but for content and the log's old records.
    let places: Vec<u64> = used
        .iter()
        .flat_map(|range| (range.start()..range.end()).step_by(512))
        .filter(|at| {
            let after = before
                .extents
                .partition_point(|extent| extent.range.start() <= *at);
            let is_content = after > 0 && before.extents[after - 1].range.end() > *at;
            let sector = &bytes[*at as usize..][..512];
            !is_content && sector.iter().any(|byte| *byte != 0)
        })
        .collect();
    // Sizes of a block and of a group.
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let group = u64::from(number(4)) * u64::from(number(84));
    let headers: Vec<u64> = (places.iter().copied())
        .filter(|at| {
            let magic = &bytes[*at as usize..][..3];
            at % group < 2048 || [&b"ABT"[..], b"AB3", b"IAB"].contains(&magic)
        })
        .collect();
    let random = noise(rounds, 16 * rounds as usize);
    let (mut doubts, mut lost) = (0, Vec::new());
    for (round, random) in (0..rounds).zip(random.chunks_exact(16)) {
        let number = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().unwrap());
        // Every second time in the headers and trees of a group, which are few, where their fields are.
        let (places, len) = [(&places, 512), (&headers, 128)][round as usize % 2];
        let place = places[number(0) as usize % places.len()];
        let at = place + number(8) % len;
        let patch = match round % 5 {
            4 => noise(round, 64),
            _ => vec![bytes[at as usize] ^ 1 << (random[9] & 7)],
        };
        let volume = Arc::new(Patched {
            bytes: Arc::clone(&bytes),
            at,
            patch,
        });
        match survey_volume(volume.as_ref(), size).used {
            Ok(now) if covers(&now, &used) => {}
            Ok(_) => lost.push(at),
            Err(_) => doubts += 1,
        }
        if round % reading == 0 {
            read_all(volume, size);
        }
    }
    assert!(
        lost.is_empty(),
        "used blocks are missing after damage at {lost:?}"
    );
    assert!(doubts >= seen, "only {doubts} of {rounds} were seen");
}

#[test]
fn version_5_withstands_damage() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = make(folder.path(), 64 * MIB, &["-m", "reflink=1,rmapbt=1"]);
    let mount = Mount::new(&image, folder.path().join("mount"), "rw");
    fill(&mount.path);
    age(&mount.path);
    reflink(&mount.path);
    mount.unmount();
    assert_withstands(&image, 150, 10, 50);
}

#[test]
fn version_4_withstands_damage() {
    let folder = images::folder();
    let (_, image) = prototype(folder.path(), 32 * MIB, &["-m", "crc=0", "-d", "agcount=2"]);
    assert_withstands(&image, 200, 4, 10);
}

#[test]
fn a_volume_cut_short_is_a_doubt() {
    let folder = images::folder();
    let (_, image) = prototype(folder.path(), 32 * MIB, &["-d", "agcount=2"]);
    let bytes = fs::read(&image).unwrap();
    for len in [0, 511, 512, 4096, 70_000, 1 << 20] {
        let cut = &bytes[..len];
        assert!(survey_volume(&Memory(cut), len as u64).used.is_err());
        // Shorter than its caller believes.
        assert!(
            survey_volume(&Memory(cut), bytes.len() as u64)
                .used
                .is_err()
        );
    }
}
