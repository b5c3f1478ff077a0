//! Records protected by an update sequence, and the attributes of MFT records.
//!
//! Invariant: an [`Attribute`] is given out only after every length in it was checked to lie within the
//! record; sectors torn apart by a failed write are found by the update sequence.

use std::fmt::Arguments;

use super::Fault;
use crate::little_endian::{le16, le32, le64};

/// The last two bytes of each part of this size are replaced by the update sequence number.
const STRIDE: usize = 512;

/// What ends the attributes of a record.
const END: u32 = 0xffff_ffff;

/// Attribute types.
pub(super) const STANDARD_INFORMATION: u32 = 0x10;
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
pub(super) const INDEX_BITMAP: u32 = 0xb0;
pub(super) const REPARSE_POINT: u32 = 0xc0;

/// Checks a record's magic number and update sequence, and puts the replaced bytes back.
pub(super) fn fix_up(bytes: &mut [u8], magic: [u8; 4], what: Arguments<'_>) -> Result<(), Fault> {
    let damaged = |reason: &str| Err(Fault::Damaged(format!("{what} {reason}")));
    if bytes.len() < STRIDE || bytes[..4] != magic {
        return damaged("has no signature");
    }
    let (at, count) = (usize::from(le16(bytes, 4)), usize::from(le16(bytes, 6)));
    // The number itself, then one pair of bytes for each part.
    if count != bytes.len() / STRIDE + 1 || at % 2 != 0 || at < 8 || at + count * 2 > STRIDE - 2 {
        return damaged("has an update sequence that does not fit");
    }
    let number = [bytes[at], bytes[at + 1]];
    for part in 1..count {
        let end = part * STRIDE;
        if bytes[end - 2..end] != number {
            return damaged("is torn: its update sequence does not match");
        }
        bytes.copy_within(at + part * 2..at + part * 2 + 2, end - 2);
    }
    Ok(())
}

/// Number and sequence of an MFT record, as references keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reference(pub(super) u64);

impl Reference {
    pub(super) const fn number(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }

    /// 0 matches every sequence.
    pub(super) const fn sequence(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// An MFT record whose update sequence was undone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    bytes: &'a [u8],
    number: u64,
}

impl<'a> Record<'a> {
    /// `bytes` is a whole record after [`fix_up`].
    pub(super) const fn new(number: u64, bytes: &'a [u8]) -> Self {
        Self { bytes, number }
    }

    pub(super) fn in_use(&self) -> bool {
        le16(self.bytes, 22) & 1 != 0
    }

    pub(super) fn is_directory(&self) -> bool {
        le16(self.bytes, 22) & 2 != 0
    }

    pub(super) fn sequence(&self) -> u16 {
        le16(self.bytes, 16)
    }

    /// The record that this one extends, if any.
    pub(super) fn base(&self) -> Option<Reference> {
        let reference = Reference(le64(self.bytes, 32));
        (reference.0 != 0).then_some(reference)
    }

    /// The bytes in use without the update sequence: the same in a record and its mirror.
    pub(super) fn content(&self) -> Option<(&'a [u8], &'a [u8])> {
        let end = le32(self.bytes, 24) as usize;
        let sequence_end = usize::from(le16(self.bytes, 4)) + usize::from(le16(self.bytes, 6)) * 2;
        let head = self.bytes.get(8..usize::from(le16(self.bytes, 4)))?;
        Some((head, self.bytes.get(sequence_end..end)?))
    }

    pub(super) fn attributes(&self) -> Attributes<'a> {
        let used = le32(self.bytes, 24) as usize;
        let start = usize::from(le16(self.bytes, 20));
        Attributes {
            rest: self.bytes.get(start..used).filter(|_| start >= 40),
            number: self.number,
        }
    }
}

/// The attributes of a record in order; ends after the first fault.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    rest: Option<&'a [u8]>,
    number: u64,
}

impl<'a> Attributes<'a> {
    fn step(&mut self) -> Option<Option<Attribute<'a>>> {
        let rest = self.rest?;
        if rest.len() < 4 {
            return None;
        }
        if le32(rest, 0) == END {
            return Some(None);
        }
        let len = (rest.len() >= 24).then(|| le32(rest, 4) as usize)?;
        if len < 24 || len % 8 != 0 {
            return None;
        }
        let attribute = Attribute::parse(rest.get(..len)?)?;
        self.rest = rest.get(len..);
        Some(Some(attribute))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        // An end was given out already.
        if self.number == u64::MAX {
            return None;
        }
        match self.step() {
            Some(Some(attribute)) => Some(Ok(attribute)),
            Some(None) => {
                self.number = u64::MAX;
                None
            }
            None => {
                let number = std::mem::replace(&mut self.number, u64::MAX);
                Some(Err(Fault::Damaged(format!(
                    "the attributes of MFT record {number} do not fit in it"
                ))))
            }
        }
    }
}

/// An attribute, or one part of it when it is spread over several records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    pub(super) kind: u32,
    /// UTF-16LE.
    pub(super) name: &'a [u8],
    pub(super) flags: u16,
    pub(super) body: Body<'a>,
}

/// Where an attribute's value is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    /// In the record.
    Resident(&'a [u8]),
    /// In clusters.
    Clusters(Mapping<'a>),
}

/// The mapping of a part of an attribute to clusters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapping<'a> {
    /// The cluster of the value that this part begins with.
    pub(super) first: u64,
    /// The one after its last.
    pub(super) end: u64,
    /// Clusters that are compressed together, as a power of two; 0 for one.
    pub(super) unit: u8,
    /// Bytes of the value; counts in the part with `first` 0 only.
    pub(super) size: u64,
    /// Bytes that were ever written; the others are zeros. Counts as `size` does.
    pub(super) initialized: u64,
    /// The encoded runs.
    pub(super) pairs: &'a [u8],
}

impl<'a> Attribute<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let name_at = usize::from(le16(bytes, 10));
        let name_len = usize::from(bytes[9]) * 2;
        let name = match name_len {
            0 => &[][..],
            len => bytes.get(name_at..name_at + len)?,
        };
        let body = match bytes[8] {
            0 => {
                let (len, at) = (le32(bytes, 16) as usize, usize::from(le16(bytes, 20)));
                Body::Resident(bytes.get(at..at.checked_add(len)?)?)
            }
            1 if bytes.len() >= 64 => {
                let at = usize::from(le16(bytes, 32));
                Body::Clusters(Mapping {
                    first: le64(bytes, 16),
                    // The last cluster is -1 in an empty attribute.
                    end: le64(bytes, 24).wrapping_add(1),
                    unit: bytes[34],
                    size: le64(bytes, 48),
                    initialized: le64(bytes, 56),
                    pairs: bytes.get(at..).filter(|_| at >= 64)?,
                })
            }
            _ => return None,
        };
        Some(Self {
            kind: le32(bytes, 0),
            name,
            flags: le16(bytes, 12),
            body,
        })
    }

    /// Whether this is (a part of) the attribute of a type and an ASCII name.
    pub(super) fn is(&self, kind: u32, name: &str) -> bool {
        self.kind == kind
            && self.name.len() == name.len() * 2
            && self
                .name
                .chunks_exact(2)
                .zip(name.bytes())
                .all(|(unit, byte)| unit == [byte, 0])
    }
}
