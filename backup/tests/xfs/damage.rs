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
        let end = offset + buffer.len() as u64;
        let patch_end = self.at + self.patch.len() as u64;
        let (from, to) = (offset.max(self.at), end.min(patch_end));
        if from < to {
            let patch = &self.patch[(from - self.at) as usize..(to - self.at) as usize];
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(patch);
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

/// Writes the checksums of a block of 4096 bytes anew, as someone would who means to mislead.
fn heal(block: &mut [u8]) {
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let heal = |bytes: &mut [u8], at: usize| {
        bytes[at..at + 4].fill(0);
        let checksum = CRC.checksum(bytes);
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    };
    match &block[..4] {
        b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC" => heal(block, 52),
        b"BMA3" => heal(block, 64),
        b"XDB3" | b"XDD3" => heal(block, 4),
        b"XSLM" => heal(block, 12),
        _ => {
            for sector in block.chunks_exact_mut(512) {
                match &sector[..4] {
                    b"XFSB" => heal(sector, 224),
                    b"XAGF" => heal(sector, 216),
                    b"XAGI" => heal(sector, 312),
                    b"XAFL" => heal(sector, 32),
                    // Inodes of 512 bytes.
                    [b'I', b'N', ..] => heal(sector, 100),
                    _ => {}
                }
            }
        }
    }
}

/// How damage is done.
struct Way {
    rounds: u64,
    /// All files are looked at after so many rounds.
    reading: u64,
    /// In so many rounds at least it must make a doubt: version 4 has no checksums, and much of what it
    /// keeps says nothing of used blocks.
    seen: u64,
    /// Checksums are made to fit again.
    healed: bool,
}

/// Damages an image's metadata again and again.
fn assert_withstands(image: &Path, way: &Way) {
    let rounds = way.rounds;
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
        let start = at - at % 4096;
        let mut patch = bytes[start as usize..][..4096].to_vec();
        let within = (at - start) as usize;
        if round % 5 == 4 {
            let len = 64.min(4096 - within);
            patch[within..within + len].copy_from_slice(&noise(round, len));
        } else {
            patch[within] ^= 1 << (random[9] & 7);
        }
        if way.healed {
            heal(&mut patch);
        }
        let volume = Arc::new(Patched {
            bytes: Arc::clone(&bytes),
            at: start,
            patch,
        });
        match survey_volume(volume.as_ref(), size).used {
            Ok(now) if covers(&now, &used) => {}
            Ok(_) => lost.push(at),
            Err(_) => doubts += 1,
        }
        if round % way.reading == 0 {
            read_all(volume, size);
        }
    }
    assert!(
        lost.is_empty(),
        "used blocks are missing after damage at {lost:?}"
    );
    assert!(doubts >= way.seen, "only {doubts} of {rounds} were seen");
}

#[test]
fn version_5_withstands_damage() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = images::folder();
    let image = make(folder.path(), 88 * MIB, &["-m", "reflink=1,rmapbt=1"]);
    let mount = Mount::new(&image, folder.path().join("mount"), "rw");
    fill(&mount.path);
    age(&mount.path);
    reflink(&mount.path);
    mount.unmount();
    for (healed, seen) in [(false, 12), (true, 3)] {
        assert_withstands(
            &image,
            &Way {
                rounds: 60,
                reading: 5,
                seen,
                healed,
            },
        );
    }
}

#[test]
fn version_4_withstands_damage() {
    let folder = images::folder();
    let (_, image) = prototype(folder.path(), 32 * MIB, &["-m", "crc=0", "-d", "agcount=2"]);
    assert_withstands(
        &image,
        &Way {
            rounds: 100,
            reading: 4,
            seen: 3,
            healed: false,
        },
    );
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
