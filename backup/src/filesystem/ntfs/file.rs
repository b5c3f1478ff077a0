//! The MFT records of one file: its base record and those that extend it.
//!
//! Invariant: every record that the attribute list names says itself that it extends the base record.

use super::Fault;
use super::boot::Geometry;
use super::mft::Mft;
use super::record::{ATTRIBUTE_LIST, Attribute, Body, FILE_NAME, Mapping, Record, Reference};
use super::stream::Stream;
use crate::filesystem::ReadAt;
use crate::little_endian::{le16, le32, le64};

/// The longest attribute list that Windows makes.
const MAX_LIST: u64 = 256 << 10;

/// An entry of an attribute list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) kind: u32,
    pub(super) named: bool,
    /// First cluster of the part.
    pub(super) first: u64,
    /// The record that has it.
    pub(super) record: Reference,
}

/// The attribute list of a base record, if it has one.
pub(super) fn listed(
    volume: &dyn ReadAt,
    geometry: &Geometry,
    base: Record<'_>,
) -> Result<Option<Vec<Listed>>, Fault> {
    let mut list = None;
    for attribute in base.attributes() {
        let attribute = attribute?;
        if attribute.kind == ATTRIBUTE_LIST {
            list = Some(Stream::begin(&attribute, geometry)?.complete(geometry)?);
        }
    }
    let Some(list) = list else {
        return Ok(None);
    };
    let bytes = list.read_all(volume, geometry, MAX_LIST)?;
    let mut entries = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let cut = || Fault::damaged("an attribute list is cut off");
        let len = (rest.len() >= 26).then(|| usize::from(le16(rest, 4)));
        let len = len.filter(|len| *len >= 26).ok_or_else(cut)?;
        entries.push(Listed {
            kind: le32(rest, 0),
            named: rest[6] != 0,
            first: le64(rest, 8),
            record: Reference(le64(rest, 16)),
        });
        rest = rest.get(len..).ok_or_else(cut)?;
    }
    Ok(Some(entries))
}

/// A file's records after their update sequences were undone.
#[derive(Debug)]
pub(super) struct File {
    number: u64,
    /// The base record first.
    records: Vec<Vec<u8>>,
}

impl File {
    /// Reads all records of a file.
    pub(super) fn load(
        volume: &dyn ReadAt,
        mft: &Mft,
        reference: Reference,
    ) -> Result<Self, Fault> {
        let number = reference.number();
        let base = mft.record(volume, number)?;
        let record = Record::new(number, &base);
        let same = reference.sequence() == 0 || reference.sequence() == record.sequence();
        if !record.in_use() || record.base().is_some() || !same {
            return Err(Fault::Damaged(format!(
                "MFT record {number} is not the file that refers to it"
            )));
        }
        let mut extensions: Vec<u64> = Vec::new();
        for entry in listed(volume, &mft.geometry, record)?.unwrap_or_default() {
            extensions.push(entry.record.number());
        }
        extensions.sort_unstable();
        extensions.dedup();
        let mut records = vec![base];
        for extension in extensions.into_iter().filter(|other| *other != number) {
            records.push(mft.extension(volume, extension, number)?);
        }
        Ok(Self { number, records })
    }

    pub(super) fn base(&self) -> Record<'_> {
        Record::new(self.number, &self.records[0])
    }

    /// The attributes of all records.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Result<Attribute<'_>, Fault>> {
        let records = self.records.iter();
        records.flat_map(|bytes| Record::new(self.number, bytes).attributes())
    }

    /// The value of an unnamed attribute that is always in the record.
    pub(super) fn resident(&self, kind: u32) -> Result<Option<&[u8]>, Fault> {
        for attribute in self.attributes() {
            let attribute = attribute?;
            if attribute.is(kind, "") {
                return match attribute.body {
                    Body::Resident(value) => Ok(Some(value)),
                    Body::Clusters(_) => Err(Fault::Damaged(format!(
                        "attribute {kind:#x} of MFT record {} is not in it",
                        self.number
                    ))),
                };
            }
        }
        Ok(None)
    }

    /// The value of an attribute, put together from its parts.
    pub(super) fn stream(
        &self,
        kind: u32,
        name: &str,
        geometry: &Geometry,
    ) -> Result<Option<Stream>, Fault> {
        let mut first = None;
        let mut later: Vec<Mapping<'_>> = Vec::new();
        for attribute in self.attributes() {
            let attribute = attribute?;
            if !attribute.is(kind, name) {
                continue;
            }
            match attribute.body {
                Body::Clusters(mapping) if mapping.first > 0 => later.push(mapping),
                _ if first.is_none() => first = Some(attribute),
                _ => return Err(self.fault("has an attribute twice")),
            }
        }
        let Some(first) = first else {
            return match later.is_empty() {
                true => Ok(None),
                false => Err(self.fault("lacks the first part of an attribute")),
            };
        };
        later.sort_unstable_by_key(|mapping| mapping.first);
        let name_place = |fault| match fault {
            Fault::Damaged(reason) => self.fault(&format!("has attribute {kind:#x}: {reason}")),
            fault => fault,
        };
        let mut stream = Stream::begin(&first, geometry).map_err(name_place)?;
        for mapping in later {
            stream.append(&mapping, geometry).map_err(name_place)?;
        }
        stream.complete(geometry).map_err(name_place).map(Some)
    }

    /// How many names it has, without the short ones that DOS programs see.
    pub(super) fn links(&self) -> Result<u32, Fault> {
        let mut links = 0;
        for attribute in self.attributes() {
            if let Attribute {
                kind: FILE_NAME,
                body: Body::Resident(value),
                ..
            } = attribute?
                && value.get(65) != Some(&super::index::DOS_NAME)
            {
                links += 1;
            }
        }
        Ok(links)
    }

    fn fault(&self, what: &str) -> Fault {
        Fault::Damaged(format!("MFT record {} {what}", self.number))
    }
}
