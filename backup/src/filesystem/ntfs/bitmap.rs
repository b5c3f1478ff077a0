//! The used ranges from `$Bitmap`: a bit for each cluster.
//!
//! Invariant: the boot sector, what follows the last whole cluster (with the copy of the boot sector) and
//! every cluster with a bit count as used; clusters that the volume lists as bad do not, as no file has them.

use super::boot::Geometry;
use super::file::File;
use super::mft::Mft;
use super::record::{DATA, Reference};
use super::runs::Run;
use super::{BAD_CLUSTERS, BITMAP, Fault};
use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::filesystem::used::UsedRanges;

/// The bitmap is read in pieces of this size.
const PIECE: usize = 256 << 10;

/// The boot code that Windows reads before it knows of clusters.
const BOOT_AREA: u64 = 8192;

/// The used ranges of a volume of `size` bytes, in order.
pub(super) fn used(volume: &dyn ReadAt, mft: &Mft, size: u64) -> Result<Vec<ByteRange>, Fault> {
    let geometry = &mft.geometry;
    let bitmap = File::load(volume, mft, Reference(BITMAP))?
        .stream(DATA, "", geometry)?
        .filter(|bitmap| bitmap.is_plain())
        .ok_or_else(|| Fault::damaged("$Bitmap has no data"))?;
    if bitmap.initialized < geometry.clusters.div_ceil(8) {
        return Err(Fault::Damaged(format!(
            "$Bitmap has {} bytes for {} clusters",
            bitmap.initialized, geometry.clusters
        )));
    }
    let bad = bad_clusters(volume, mft)?;
    let mut clusters = Clusters {
        geometry: *geometry,
        bad: &bad,
        used: UsedRanges::new(),
        from: None,
    };
    clusters
        .used
        .add(ByteRange::between(0, BOOT_AREA.min(size)));
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let len = bitmap.read(volume, geometry, at, &mut piece)?;
        if len == 0 {
            break;
        }
        for (byte, bits) in (at..).zip(&piece[..len]) {
            clusters.take(byte * 8, *bits)?;
        }
        at += len as u64;
    }
    clusters.end(geometry.clusters);
    let mut used = clusters.used;
    // The copy of the boot sector is behind the last sector, or the last one of a larger partition.
    let tail = (geometry.sectors * geometry.sector).saturating_add(geometry.sector);
    used.add(ByteRange::between(
        geometry.clusters * geometry.cluster,
        tail.min(size),
    ));
    used.add(ByteRange::between(
        size.saturating_sub(geometry.sector).max(tail),
        size,
    ));
    Ok(used.finish())
}

/// The clusters that the volume lists as bad, in order.
fn bad_clusters(volume: &dyn ReadAt, mft: &Mft) -> Result<Vec<Run>, Fault> {
    let stream = File::load(volume, mft, Reference(BAD_CLUSTERS))?
        .stream(DATA, "$Bad", &mft.geometry)?
        .ok_or_else(|| Fault::damaged("$BadClus has no list of bad clusters"))?;
    let bad: Vec<Run> = stream
        .runs()
        .iter()
        .copied()
        .filter(|run| run.start.is_some())
        .collect();
    match bad.iter().find(|run| run.start != Some(run.at)) {
        None => Ok(bad),
        Some(run) => Err(Fault::Damaged(format!(
            "$BadClus lists cluster {:?} in the place of cluster {}",
            run.start, run.at
        ))),
    }
}

/// What the bits say, taken in order.
struct Clusters<'a> {
    geometry: Geometry,
    /// Those still to come.
    bad: &'a [Run],
    used: UsedRanges,
    /// Where the used clusters that are being taken began.
    from: Option<u64>,
}

impl Clusters<'_> {
    /// Takes the bits of eight clusters.
    fn take(&mut self, first: u64, bits: u8) -> Result<(), Fault> {
        let clusters = self.geometry.clusters;
        if first + 8 > clusters {
            return self.take_last(first, bits);
        }
        match (bits, self.from) {
            (0xff, Some(_)) | (0, None) => {}
            _ => (0..8).for_each(|bit| self.bit(first + bit, bits >> bit & 1 != 0)),
        }
        Ok(())
    }

    /// The bits that fill up the last word are set; further ones would stand for clusters that the
    /// boot sector denies.
    fn take_last(&mut self, first: u64, bits: u8) -> Result<(), Fault> {
        let clusters = self.geometry.clusters;
        for bit in 0..8 {
            let set = bits >> bit & 1 != 0;
            if first + bit < clusters {
                self.bit(first + bit, set);
            } else if set && first + bit >= clusters.next_multiple_of(64) {
                return Err(Fault::Damaged(format!(
                    "$Bitmap marks cluster {} of a volume of {clusters}",
                    first + bit
                )));
            }
        }
        Ok(())
    }

    fn bit(&mut self, cluster: u64, set: bool) {
        match (set, self.from) {
            (true, None) => self.from = Some(cluster),
            (false, Some(_)) => self.end(cluster),
            _ => {}
        }
    }

    /// Ends the used clusters at `end`, and adds them without the bad ones.
    fn end(&mut self, end: u64) {
        let Some(mut from) = self.from.take() else {
            return;
        };
        while let Some((bad, rest)) = self.bad.split_first() {
            if bad.at >= end {
                break;
            }
            if bad.end() > from {
                self.add(from, bad.at);
                from = bad.end();
            }
            if bad.end() > end {
                break;
            }
            self.bad = rest;
        }
        self.add(from, end);
    }

    fn add(&mut self, from: u64, end: u64) {
        let cluster = self.geometry.cluster;
        self.used
            .add(ByteRange::between(from * cluster, end.max(from) * cluster));
    }
}
