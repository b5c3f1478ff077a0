//! The table of FAT and exFAT that links clusters into chains.
//!
//! Invariant: no number of the table is believed. A link to a cluster that is not there, is free or
//! bad, and a chain that never ends, are a [`Doubt`]. Memory is one window of the table.

use std::cell::RefCell;

use super::{Doubt, ReadAt};
use crate::little_endian::{le16, le32};

/// The table is read in windows of this size. A FAT12 is shorter, so that no window cuts an entry.
const WINDOW: u64 = 64 << 10;

/// How the entries of a table are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Fat12,
    Fat16,
    Fat32,
    Exfat,
}

impl Width {
    const fn bits(self) -> u64 {
        match self {
            Self::Fat12 => 12,
            Self::Fat16 => 16,
            Self::Fat32 | Self::Exfat => 32,
        }
    }

    /// The lowest value that ends a chain.
    const fn end(self) -> u32 {
        match self {
            Self::Fat12 => 0xff8,
            Self::Fat16 => 0xfff8,
            Self::Fat32 => 0x0fff_fff8,
            Self::Exfat => 0xffff_fff8,
        }
    }
}

/// A table of links between clusters, which count from 2.
pub(super) struct Links {
    /// Where the table begins on the volume.
    start: u64,
    width: Width,
    /// How many clusters there are.
    clusters: u64,
    /// A piece of the table and the byte of the table with which it begins.
    window: RefCell<(u64, Vec<u8>)>,
}

impl Links {
    pub(super) const fn new(start: u64, width: Width, clusters: u64) -> Self {
        Self {
            start,
            width,
            clusters,
            window: RefCell::new((0, Vec::new())),
        }
    }

    /// Whether there is a cluster with this number.
    pub(super) fn exists(&self, cluster: u32) -> bool {
        (2..self.clusters + 2).contains(&u64::from(cluster))
    }

    /// The cluster that follows another one; `None` at the end of the chain.
    pub(super) fn after(&self, volume: &dyn ReadAt, cluster: u32) -> Result<Option<u32>, Doubt> {
        if !self.exists(cluster) {
            return Err(doubt(format!(
                "a chain leads to cluster {cluster} of {}",
                self.clusters
            )));
        }
        let value = self.value(volume, cluster)?;
        if value >= self.width.end() {
            return Ok(None);
        }
        if self.exists(value) {
            return Ok(Some(value));
        }
        Err(doubt(match value {
            0 => format!("cluster {cluster} of a chain is free"),
            _ => format!("cluster {cluster} of a chain is followed by {value:#x}"),
        }))
    }

    /// How many clusters a chain has.
    pub(super) fn count(&self, volume: &dyn ReadAt, first: u32) -> Result<u64, Doubt> {
        let mut count = 1;
        let mut cluster = first;
        while let Some(next) = self.after(volume, cluster)? {
            cluster = next;
            count += 1;
            if count > self.clusters {
                return Err(doubt(format!("the chain of cluster {first} is a loop")));
            }
        }
        Ok(count)
    }

    fn value(&self, volume: &dyn ReadAt, cluster: u32) -> Result<u32, Doubt> {
        let bits = self.width.bits();
        let at = u64::from(cluster) * bits / 8;
        let mut window = self.window.borrow_mut();
        let from = at - at % WINDOW;
        if window.1.is_empty() || window.0 != from {
            // Up to the last cluster's entry.
            let len = ((self.clusters + 2) * bits).div_ceil(8) - from;
            let mut bytes = vec![0; len.min(WINDOW) as usize];
            volume.read_at(self.start + from, &mut bytes)?;
            *window = (from, bytes);
        }
        let (bytes, at) = (&window.1, (at - from) as usize);
        Ok(match self.width {
            // Two entries in three bytes.
            Width::Fat12 if cluster.is_multiple_of(2) => u32::from(le16(bytes, at)) & 0xfff,
            Width::Fat12 => u32::from(le16(bytes, at)) >> 4,
            Width::Fat16 => u32::from(le16(bytes, at)),
            // The high four bits are reserved.
            Width::Fat32 => le32(bytes, at) & 0x0fff_ffff,
            Width::Exfat => le32(bytes, at),
        })
    }
}

/// Which clusters were met on the way through all folders, and which of them twice.
///
/// Invariant: a cluster is met once before it is crossed, so whoever stops at crossed clusters does
/// no more work than there are clusters.
pub(super) struct Met {
    met: Vec<u8>,
    crossed: Vec<u8>,
}

impl Met {
    /// For a number of clusters that was checked against the volume.
    pub(super) fn new(clusters: u64) -> Self {
        let bytes = clusters.div_ceil(8) as usize;
        Self {
            met: vec![0; bytes],
            crossed: vec![0; bytes],
        }
    }

    /// Meets a cluster that is there. Returns whether it was not met before.
    pub(super) fn meet(&mut self, cluster: u32) -> bool {
        let (byte, mask) = bit(cluster);
        let known = self.met[byte] & mask != 0;
        if known {
            self.crossed[byte] |= mask;
        }
        self.met[byte] |= mask;
        !known
    }

    /// Whether a cluster that is there was met twice: in two chains or in a loop.
    pub(super) fn is_crossed(&self, cluster: u32) -> bool {
        let (byte, mask) = bit(cluster);
        self.crossed[byte] & mask != 0
    }
}

/// The byte and the bit of a cluster in a bitmap.
pub(super) const fn bit(cluster: u32) -> (usize, u8) {
    let index = cluster as usize - 2;
    (index / 8, 1 << (index % 8))
}

fn doubt(reason: String) -> Doubt {
    Doubt::Untrusted(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::ReadError;

    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            let at = offset as usize;
            buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn chains_of_every_width_are_followed_to_their_end() {
        // 2 → 3 → 5, 4 is free, 6 → 6.
        let fat12 = vec![0xf8, 0xff, 0xff, 3, 0x50, 0, 0, 0xf0, 0xff, 6, 0, 0];
        let fat16 = [0xfff8u16, 0xffff, 3, 5, 0, 0xffff, 6].map(u16::to_le_bytes);
        let fat32 = [
            0x0fff_fff8u32,
            0x0fff_ffff,
            0xf000_0003,
            5,
            0,
            0x0fff_ffff,
            6,
        ];
        let exfat = [0xffff_fff8u32, 0xffff_ffff, 3, 5, 0, 0xffff_ffff, 6];
        for (width, bytes) in [
            (Width::Fat12, fat12),
            (Width::Fat16, fat16.concat()),
            (Width::Fat32, fat32.map(u32::to_le_bytes).concat()),
            (Width::Exfat, exfat.map(u32::to_le_bytes).concat()),
        ] {
            let links = Links::new(0, width, 5);
            let volume = Bytes(bytes);
            assert_eq!(links.after(&volume, 2), Ok(Some(3)), "{width:?}");
            assert_eq!(links.after(&volume, 5), Ok(None), "{width:?}");
            assert_eq!(links.count(&volume, 2), Ok(3), "{width:?}");
            for (cluster, reason) in [(4, "free"), (6, "loop"), (1, "leads to"), (7, "leads to")] {
                let error = links.count(&volume, cluster).unwrap_err().to_string();
                assert!(error.contains(reason), "{width:?} {cluster} {error}");
            }
        }
    }
}
