//! The master file table: a record for each file, itself a file.
//!
//! Invariant: the first record is where the boot sector says, and describes a table that begins with it.

use super::boot::Geometry;
use super::file::listed;
use super::record::{Attribute, Body, DATA, Record, fix_up};
use super::stream::Stream;
use super::{Fault, MFT};
use crate::filesystem::ReadAt;

pub(super) const MAGIC: [u8; 4] = *b"FILE";

/// The table.
#[derive(Debug, Clone)]
pub(super) struct Mft {
    pub(super) geometry: Geometry,
    stream: Stream,
}

impl Mft {
    /// Finds all parts of the table.
    pub(super) fn open(volume: &dyn ReadAt, geometry: Geometry) -> Result<Self, Fault> {
        let mut bytes = vec![0; geometry.record];
        volume.read_at(geometry.mft * geometry.cluster, &mut bytes)?;
        fix_up(&mut bytes, MAGIC, format_args!("MFT record 0"))?;
        let record = Record::new(MFT, &bytes);
        let first = part(record, 0)?;
        if !record.in_use() || record.base().is_some() {
            return Err(Fault::damaged("MFT record 0 is not in use"));
        }
        let mut mft = Self {
            geometry,
            stream: Stream::begin(&first, &geometry)?,
        };
        if mft.stream.runs().first().and_then(|run| run.start) != Some(geometry.mft) {
            return Err(Fault::damaged(
                "the MFT does not begin where the boot sector says",
            ));
        }
        let mut later = listed(volume, &geometry, record)?.unwrap_or_default();
        later.retain(|entry| entry.kind == DATA && !entry.named && entry.first > 0);
        // The record that has a part lies in a part before it.
        later.sort_unstable_by_key(|entry| entry.first);
        for entry in later {
            let bytes = mft.extension(volume, entry.record.number(), MFT)?;
            let attribute = part(Record::new(entry.record.number(), &bytes), entry.first)?;
            if let Body::Clusters(mapping) = &attribute.body {
                mft.stream.append(mapping, &geometry)?;
            }
        }
        mft.stream = mft.stream.complete(&geometry)?;
        // With each cluster once, it is not larger than the volume.
        if !mft.stream.is_plain() {
            return Err(Fault::damaged("the MFT has holes or is compressed"));
        }
        Ok(mft)
    }

    /// How many records were ever written.
    pub(super) const fn records(&self) -> u64 {
        self.stream.initialized / self.geometry.record as u64
    }

    /// Reads records as they are kept, from record `first` on.
    pub(super) fn raw(
        &self,
        volume: &dyn ReadAt,
        first: u64,
        buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let offset = first.saturating_mul(self.geometry.record as u64);
        let len = self.stream.read(volume, &self.geometry, offset, buffer)?;
        if len < buffer.len() {
            return Err(Fault::Damaged(format!(
                "MFT record {first} is behind the end of the MFT"
            )));
        }
        Ok(())
    }

    /// A record after its update sequence was undone.
    pub(super) fn record(&self, volume: &dyn ReadAt, number: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; self.geometry.record];
        self.raw(volume, number, &mut bytes)?;
        fix_up(&mut bytes, MAGIC, format_args!("MFT record {number}"))?;
        Ok(bytes)
    }

    /// A record that must extend the record `base`.
    pub(super) fn extension(
        &self,
        volume: &dyn ReadAt,
        number: u64,
        base: u64,
    ) -> Result<Vec<u8>, Fault> {
        let bytes = self.record(volume, number)?;
        let record = Record::new(number, &bytes);
        if record.in_use() && record.base().is_some_and(|found| found.number() == base) {
            return Ok(bytes);
        }
        Err(Fault::Damaged(format!(
            "MFT record {number} does not extend record {base}, whose list names it"
        )))
    }
}

/// The part of a record's unnamed data that begins with cluster `first`.
fn part(record: Record<'_>, first: u64) -> Result<Attribute<'_>, Fault> {
    for attribute in record.attributes() {
        let attribute = attribute?;
        if attribute.is(DATA, "")
            && matches!(&attribute.body, Body::Clusters(mapping) if mapping.first == first)
        {
            return Ok(attribute);
        }
    }
    Err(Fault::Damaged(format!(
        "the MFT lacks its part from cluster {first} on"
    )))
}
