//! What a restore point says of a disk, read from the store's files by the library, not by the programs under test.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use backup::chunk::{Chunk, ChunkList, Content, list_len};
use backup::manifest::Manifest;
use backup::{ByteRange, Digest};

/// The chunks of a disk, at their places on it, in order.
#[derive(Debug)]
pub(super) struct Extents {
    chunks: Vec<Chunk>,
    /// Bytes of the encoded lists.
    pub(super) list_bytes: u64,
}

impl Extents {
    /// Those of the only disk of a restore point in a server's data directory.
    pub(super) fn of(data: &Path, restore_point: &str) -> anyhow::Result<Self> {
        let home = data.join("store/restore-points").join(restore_point);
        let json = fs::read(home.join("manifest.json"))
            .with_context(|| format!("restore point {restore_point} has no manifest"))?;
        let manifest = Manifest::from_json(&json)?;
        ensure!(manifest.disks.len() == 1, "more than one disk");
        let (mut chunks, mut list_bytes) = (Vec::new(), 0);
        for region in &manifest.disks[0].regions {
            let file = home.join(format!("{}.chunks", region.content.digest));
            let list = ChunkList::decode(&fs::read(file)?, region.range.len())?;
            list_bytes += list_len(region.content.chunks);
            chunks.extend(list.chunks().iter().map(|chunk| Chunk {
                range: ByteRange::between(
                    region.range.start() + chunk.range.start(),
                    region.range.start() + chunk.range.end(),
                ),
                content: chunk.content,
            }));
        }
        chunks.sort_unstable_by_key(|chunk| chunk.range.start());
        Ok(Self { chunks, list_bytes })
    }

    /// Where data lies.
    pub(super) fn data(&self) -> Vec<ByteRange> {
        let data = self
            .chunks
            .iter()
            .filter(|chunk| chunk.content != Content::Zero);
        data.map(|chunk| chunk.range).collect()
    }

    /// Everything that was saved, runs of zeros too.
    pub(super) fn all(&self) -> Vec<ByteRange> {
        self.chunks.iter().map(|chunk| chunk.range).collect()
    }

    /// The plain bytes of the different chunks that a disk does not hold at their places.
    pub(super) fn differing(&self, disk: &Path) -> anyhow::Result<u64> {
        let file = File::open(disk)?;
        let (mut seen, mut bytes, mut differing) = (HashSet::new(), Vec::new(), 0);
        for chunk in &self.chunks {
            let Content::Data(digest) = chunk.content else {
                continue;
            };
            bytes.resize(chunk.range.len() as usize, 0);
            file.read_exact_at(&mut bytes, chunk.range.start())?;
            if Digest::of(&bytes) != digest && seen.insert(digest) {
                differing += chunk.range.len();
            }
        }
        Ok(differing)
    }
}
