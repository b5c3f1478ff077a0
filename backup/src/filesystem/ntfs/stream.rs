//! The value of an attribute, in its record or in clusters.
//!
//! Invariant: runs follow each other without a gap and together have no more clusters than the volume; a
//! read gives zeros for holes and for what was never written, and never goes past the runs.

use super::Fault;
use super::boot::Geometry;
use super::record::{Attribute, Body, Mapping};
use super::runs::{self, Run};
use crate::filesystem::ReadAt;

/// Flags of an attribute: compressed (by a method), encrypted.
pub(super) const COMPRESSION: u16 = 0x00ff;
pub(super) const ENCRYPTED: u16 = 0x4000;
pub(super) const SPARSE: u16 = 0x8000;

/// The most runs that are kept of one value: 64 MiB of memory.
const MAX_RUNS: usize = 1 << 21;

/// A value.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) flags: u16,
    /// Bytes.
    pub(super) size: u64,
    /// Bytes that were ever written.
    pub(super) initialized: u64,
    /// Clusters that are compressed together, as a power of two.
    pub(super) unit: u8,
    content: Content,
    /// Clusters that are not holes.
    allocated: u64,
}

#[derive(Debug, Clone)]
enum Content {
    Resident(Vec<u8>),
    Clusters(Vec<Run>),
}

impl Stream {
    /// A value from its first part.
    pub(super) fn begin(attribute: &Attribute<'_>, geometry: &Geometry) -> Result<Self, Fault> {
        let mut stream = Self {
            flags: attribute.flags,
            size: 0,
            initialized: 0,
            unit: 0,
            content: Content::Clusters(Vec::new()),
            allocated: 0,
        };
        match &attribute.body {
            Body::Resident(value) => {
                stream.size = value.len() as u64;
                stream.initialized = stream.size;
                stream.content = Content::Resident(value.to_vec());
            }
            Body::Clusters(mapping) => {
                stream.size = mapping.size;
                stream.initialized = mapping.initialized.min(mapping.size);
                stream.unit = mapping.unit;
                stream.append(mapping, geometry)?;
            }
        }
        Ok(stream)
    }

    /// Adds the part that follows.
    pub(super) fn append(
        &mut self,
        mapping: &Mapping<'_>,
        geometry: &Geometry,
    ) -> Result<(), Fault> {
        let end = self.end();
        let Content::Clusters(list) = &mut self.content else {
            return Err(Fault::damaged(
                "a value is both in its record and in clusters",
            ));
        };
        if mapping.first != end {
            return Err(Fault::Damaged(format!(
                "the part from cluster {} on follows one that ends at cluster {end}",
                mapping.first
            )));
        }
        let allocated = &mut self.allocated;
        runs::each(mapping, geometry.clusters, |run| {
            if run.start.is_some() {
                *allocated += run.len;
            }
            if *allocated > geometry.clusters || list.len() >= MAX_RUNS {
                return Err(Fault::Damaged(format!(
                    "a value has {} runs with {allocated} clusters, the volume {}",
                    list.len(),
                    geometry.clusters
                )));
            }
            list.push(run);
            Ok(())
        })
    }

    /// Checks, after the last part, that the parts hold the whole value.
    pub(super) fn complete(self, geometry: &Geometry) -> Result<Self, Fault> {
        let room = match self.content {
            Content::Resident(_) => self.size,
            Content::Clusters(_) => self.end().saturating_mul(geometry.cluster),
        };
        if self.size > room {
            return Err(Fault::Damaged(format!(
                "a value of {} bytes has room for {room}",
                self.size
            )));
        }
        Ok(self)
    }

    /// The cluster after the last one.
    fn end(&self) -> u64 {
        self.runs().last().map_or(0, Run::end)
    }

    /// The runs of a value in clusters, in order.
    pub(super) fn runs(&self) -> &[Run] {
        match &self.content {
            Content::Resident(_) => &[],
            Content::Clusters(runs) => runs,
        }
    }

    pub(super) const fn is_resident(&self) -> bool {
        matches!(self.content, Content::Resident(_))
    }

    /// Whether it has no hole, and is neither compressed nor encrypted: what metadata has to be.
    pub(super) fn is_plain(&self) -> bool {
        self.flags & (COMPRESSION | ENCRYPTED) == 0
            && self.runs().iter().all(|run| run.start.is_some())
    }

    /// Fills `buffer` with the value's bytes as they are kept, from `offset` on; fewer only at its end.
    pub(super) fn read(
        &self,
        volume: &dyn ReadAt,
        geometry: &Geometry,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Fault> {
        let left = self.size.saturating_sub(offset);
        let len = left.min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..len];
        let written = self.initialized.saturating_sub(offset).min(len as u64) as usize;
        let (buffer, zeros) = buffer.split_at_mut(written);
        zeros.fill(0);
        match &self.content {
            Content::Resident(value) => {
                // The size is its length.
                let start = offset.min(value.len() as u64) as usize;
                buffer.copy_from_slice(&value[start..start + written]);
            }
            Content::Clusters(_) => self.read_clusters(volume, geometry, offset, buffer)?,
        }
        Ok(len)
    }

    /// Fills `buffer` from the clusters, whatever the size of the value is.
    pub(super) fn read_clusters(
        &self,
        volume: &dyn ReadAt,
        geometry: &Geometry,
        offset: u64,
        mut buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let cluster = geometry.cluster;
        let runs = self.runs();
        let mut next = runs.partition_point(|run| run.end() <= offset / cluster);
        let mut at = offset;
        while !buffer.is_empty() {
            let run = runs.get(next).ok_or_else(|| {
                Fault::Damaged(format!("byte {at} of a value is behind its data runs"))
            })?;
            let inside = at - run.at * cluster;
            let len = (run.len * cluster - inside).min(buffer.len() as u64) as usize;
            let (now, rest) = std::mem::take(&mut buffer).split_at_mut(len);
            match run.start {
                Some(start) => volume.read_at(start * cluster + inside, now)?,
                None => now.fill(0),
            }
            buffer = rest;
            at += len as u64;
            next += 1;
        }
        Ok(())
    }

    /// The whole value, when it is no longer than `max` bytes.
    pub(super) fn read_all(
        &self,
        volume: &dyn ReadAt,
        geometry: &Geometry,
        max: u64,
    ) -> Result<Vec<u8>, Fault> {
        if self.size > max {
            return Err(Fault::Damaged(format!(
                "a value has {} bytes where {max} are the most",
                self.size
            )));
        }
        let mut bytes = vec![0; self.size as usize];
        self.read(volume, geometry, 0, &mut bytes)?;
        Ok(bytes)
    }
}
