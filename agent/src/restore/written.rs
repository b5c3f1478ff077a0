//! What was written already: a chunk that occurs again comes from the disk, not over the line once more.
//!
//! Memory: at most [`MOST`] places of 24 bytes and their keys; the oldest goes first. Invariant: a place is a guess. What
//! is read there is compared with the digest, and a disk that cannot be read only makes the chunk be fetched.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup::Digest;
use backup::chunk::Content;

use super::batch::Loaded;
use super::compare::touches;
use super::write::Target;

/// The most places that are remembered.
const MOST: usize = 1 << 17;

#[derive(Debug, Default)]
struct Places {
    /// Disk and offset by the first bytes of the digest.
    of: HashMap<u64, (usize, u64)>,
    order: VecDeque<u64>,
}

/// Where chunks were written.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<Places>);

fn key(digest: &Digest) -> u64 {
    let first = digest.as_bytes().first_chunk();
    first.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Written {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces of a batch are on the disk, but for those that are held back.
    pub(super) fn add(&self, loaded: &Loaded, targets: &[Target]) {
        let mut places = self.lock();
        for piece in &loaded.batch.pieces {
            let Content::Data(digest) = piece.content else {
                continue;
            };
            let is_held = |target: &Target| touches(piece.range, &target.last);
            if targets.get(piece.disk).is_none_or(is_held) {
                continue;
            }
            let key = key(&digest);
            if places.of.contains_key(&key) {
                continue;
            }
            places.of.insert(key, (piece.disk, piece.range.start()));
            places.order.push_back(key);
            if places.order.len() > MOST
                && let Some(oldest) = places.order.pop_front()
            {
                places.of.remove(&oldest);
            }
        }
    }

    /// Fills those pieces of a batch that are missing and were written somewhere.
    pub(super) fn fill(&self, loaded: &mut Loaded, targets: &[Target]) {
        let found: Vec<_> = {
            let places = self.lock();
            let pieces = loaded.batch.pieces.iter().zip(&loaded.missing).enumerate();
            let missing = pieces.filter_map(|(number, (piece, missing))| match piece.content {
                Content::Data(digest) if *missing => Some((number, digest)),
                _ => None,
            });
            missing
                .filter_map(|(number, digest)| {
                    let place = places.of.get(&key(&digest))?;
                    Some((number, digest, *place))
                })
                .collect()
        };
        for (number, digest, (disk, offset)) in found {
            let Some(target) = targets.get(disk) else {
                continue;
            };
            let bytes = loaded.bytes_mut(number);
            let is_read = target.device.read_at(offset, bytes).is_ok();
            loaded.filled[number] = is_read && Digest::of(bytes) == digest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use backup::ByteRange;
    use backup::plan::Choices;

    use super::*;
    use crate::capture::capture;
    use crate::device::{Access, AlignedBuffer, BlockDevice, Device};
    use crate::job::fake::{Bench, ImageMachine, disk, point};
    use crate::restore::batch::BUFFER;
    use crate::restore::pipeline::WINDOW;
    use crate::restore::restore;
    use crate::restore::tests::noise;
    use crate::restore::work::{BATCH_BYTES, Batch, Piece};

    #[test]
    fn what_comes_twice_crosses_the_line_once() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let twice = noise(1, 4 << 20);
        // As much between them as may be on its way at a time.
        let between = noise(2, (WINDOW as u64 + 4) as usize * BATCH_BYTES as usize);
        let image = [twice.as_slice(), &between, &twice].concat();
        fs::write(folder.path().join("source"), &image).unwrap();
        let len = image.len() as u64;
        let mut bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", len)]);
        capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();

        let target = File::create(folder.path().join("target")).unwrap();
        target.set_len(len).unwrap();
        bench.inventory.disks = vec![disk("target", len)];
        let engine = bench.engine();
        restore(&engine, &point("rp-1"), &Choices::default()).unwrap();
        assert!(fs::read(folder.path().join("target")).unwrap() == image);
        let crossed = engine.tracker.network_bytes();
        assert!(crossed < len - (2 << 20), "{crossed} of {len}");
    }

    #[test]
    fn only_bytes_with_the_digest_are_taken_and_none_that_are_held_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let chunks = [noise(1, 4096), noise(2, 4096), noise(3, 4096)];
        fs::write(&path, [chunks.concat(), vec![0; 4096]].concat()).unwrap();
        let device = Device::open(&path, Access::Write).unwrap();
        device.write_at(4096, &[0; 512]).unwrap();
        let held = ByteRange::between(8192, 12288);
        let targets = [Target {
            device: Box::new(device),
            last: vec![held],
            first: None,
            marker: None,
            volumes: Vec::new(),
        }];
        let loaded = || {
            let pieces = chunks.iter().enumerate().map(|(number, chunk)| Piece {
                disk: 0,
                range: ByteRange::between(number as u64 * 4096, (number as u64 + 1) * 4096),
                content: Content::Data(Digest::of(chunk)),
            });
            let batch = Batch {
                number: 0,
                pieces: pieces.collect(),
            };
            Loaded::new(batch, AlignedBuffer::new(BUFFER))
        };
        let written = Written::default();
        let mut again = loaded();
        written.fill(&mut again, &targets);
        assert_eq!(again.filled, [false; 3]);
        written.add(&loaded(), &targets);
        written.fill(&mut again, &targets);
        assert_eq!(again.filled, [true, false, false]);
        assert_eq!(again.bytes(0), chunks[0]);
    }
}
