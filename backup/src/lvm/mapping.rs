//! Where the bytes of a logical volume lie on the disks, and the volume that they make.
//!
//! Invariant: a [`Mapping`] covers its volume without a gap; each of its segments has at least one area,
//! all of them equally long, a whole number of stripes.

use serde::{Deserialize, Serialize};

use crate::ByteRange;
use crate::filesystem::{ReadAt, ReadError};

/// A contiguous part of a disk that belongs to a logical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// The disk's number in the manifest.
    pub disk: u32,
    /// Where it is on that disk.
    pub range: ByteRange,
}

/// A contiguous part of a logical volume: stripes that go round over its areas. With one area, it
/// lies there as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Bytes on one area before the next one follows.
    pub stripe: u64,
    /// Its areas, all of the same length, in order.
    pub areas: Vec<Area>,
}

impl Segment {
    /// Its length in bytes; none when it breaks the invariant.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        let len = self.areas.first()?.range.len();
        let sound = len > 0
            && self.stripe > 0
            && len.is_multiple_of(self.stripe)
            && self.areas.iter().all(|area| area.range.len() == len);
        len.checked_mul(self.areas.len() as u64).filter(|_| sound)
    }
}

/// Segments that are no volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("segment {segment} of the logical volume is not possible")]
pub struct MappingError {
    /// Its number from 0.
    pub segment: usize,
}

/// A piece of a logical volume that lies in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which bytes of the volume.
    pub volume: ByteRange,
    /// The segment's number.
    pub segment: usize,
    /// The area's number in its segment.
    pub area: usize,
    /// How many bytes of the area are before it.
    pub offset: u64,
}

/// The segments of a logical volume, checked. By default a volume without bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mapping {
    segments: Vec<Segment>,
    /// Where each segment begins in the volume, and the volume's size.
    starts: Vec<u64>,
}

impl Mapping {
    /// Checks the segments of a volume.
    ///
    /// # Errors
    /// [`MappingError`] for the first that breaks the invariant.
    pub fn new(segments: Vec<Segment>) -> Result<Self, MappingError> {
        let mut starts = Vec::with_capacity(segments.len() + 1);
        let mut at = 0u64;
        for (number, segment) in segments.iter().enumerate() {
            starts.push(at);
            at = segment
                .size()
                .and_then(|size| at.checked_add(size))
                .ok_or(MappingError { segment: number })?;
        }
        starts.push(at);
        Ok(Self { segments, starts })
    }

    /// The segments.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The volume's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The places of a range of the volume, in order; what is past its end is left out.
    pub fn places(&self, range: ByteRange) -> impl Iterator<Item = Place> + '_ {
        let end = range.end().min(self.size());
        let mut at = range.start();
        let mut number = self.starts.partition_point(|start| *start <= at);
        number = number.saturating_sub(1);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let segment = self.segments.get(number)?;
            let (start, segment_end) = (self.starts[number], self.starts[number + 1]);
            let inside = at - start;
            let count = segment.areas.len() as u64;
            let (stripe, in_stripe) = (inside / segment.stripe, inside % segment.stripe);
            // A single area is one long stripe, whatever the length of its stripes.
            let (area, offset, step) = if count == 1 {
                (0, inside, segment_end - at)
            } else {
                (
                    stripe % count,
                    stripe / count * segment.stripe + in_stripe,
                    segment.stripe - in_stripe,
                )
            };
            let to = (at + step).min(end);
            let place = Place {
                volume: ByteRange::between(at, to),
                segment: number,
                area: area as usize,
                offset,
            };
            at = to;
            if at == segment_end {
                number += 1;
            }
            Some(place)
        })
    }

    /// Where a place is on its disk.
    #[must_use]
    pub fn on_disk(&self, place: &Place) -> Option<Area> {
        let area = self.segments.get(place.segment)?.areas.get(place.area)?;
        let start = area.range.start().checked_add(place.offset)?;
        let range = ByteRange::new(start, place.volume.len()).ok()?;
        area.range.contains(range).then_some(Area {
            disk: area.disk,
            range,
        })
    }

    /// Cuts ranges where the volume goes on elsewhere, so that each lies in one place.
    #[must_use]
    pub fn cut(&self, ranges: &[ByteRange]) -> Vec<ByteRange> {
        ranges
            .iter()
            .flat_map(|range| self.places(*range).map(|place| place.volume))
            .collect()
    }
}

/// A logical volume as a volume to read, over several disks.
#[derive(Clone, Copy)]
pub struct MappedVolume<'a> {
    mapping: &'a Mapping,
    disks: &'a [&'a dyn ReadAt],
}

impl<'a> MappedVolume<'a> {
    /// The volume of `mapping`, whose areas are on `disks` by their numbers.
    #[must_use]
    pub const fn new(mapping: &'a Mapping, disks: &'a [&'a dyn ReadAt]) -> Self {
        Self { mapping, disks }
    }
}

impl ReadAt for MappedVolume<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let refuse = |reason: &str| ReadError {
            offset,
            len,
            reason: reason.to_owned(),
        };
        let range = ByteRange::new(offset, len)
            .ok()
            .filter(|range| range.end() <= self.mapping.size())
            .ok_or_else(|| refuse("past the end of the logical volume"))?;
        for place in self.mapping.places(range) {
            let area = self.mapping.on_disk(&place);
            let (area, disk) = area
                .and_then(|area| Some((area, self.disks.get(area.disk as usize)?)))
                .ok_or_else(|| refuse("a disk of the logical volume is missing"))?;
            let from = (place.volume.start() - offset) as usize;
            let part = &mut buffer[from..from + place.volume.len() as usize];
            disk.read_at(area.range.start(), part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    struct Memory(Vec<u8>);

    impl ReadAt for Memory {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            let from = offset as usize;
            buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
            Ok(())
        }
    }

    /// Segments whose areas lie one behind the other on three disks.
    fn segments() -> impl Strategy<Value = Vec<Segment>> {
        prop::collection::vec((1u64..5, 1u64..5, 1usize..4), 1..6).prop_map(|shapes| {
            let mut free = [0u64; 3];
            let place = |(stripe, stripes, count): (u64, u64, usize)| {
                let len = stripe * stripes;
                let areas = (0..count).map(|number| {
                    let start = free[number];
                    free[number] += len + 1;
                    Area {
                        disk: number as u32,
                        range: ByteRange::between(start, start + len),
                    }
                });
                Segment {
                    stripe,
                    areas: areas.collect(),
                }
            };
            shapes.into_iter().map(place).collect()
        })
    }

    proptest! {
        #[test]
        fn reading_agrees_with_a_byte_by_byte_oracle(
            segments in segments(), start in 0u64..60, len in 0u64..60,
        ) {
            let disks: Vec<_> = (0..3u8)
                .map(|disk| Memory((0..200u8).map(|byte| byte.wrapping_mul(3) ^ (disk << 6)).collect()))
                .collect();
            let mut whole = Vec::new();
            for segment in &segments {
                let areas: Vec<_> = segment
                    .areas
                    .iter()
                    .map(|area| {
                        let from = area.range.start() as usize;
                        &disks[area.disk as usize].0[from..from + area.range.len() as usize]
                    })
                    .collect();
                let rows = areas[0].len() / segment.stripe as usize;
                for row in 0..rows {
                    for area in &areas {
                        let from = row * segment.stripe as usize;
                        whole.extend_from_slice(&area[from..from + segment.stripe as usize]);
                    }
                }
            }
            let mapping = Mapping::new(segments).unwrap();
            prop_assert_eq!(mapping.size(), whole.len() as u64);
            let readers: Vec<&dyn ReadAt> = disks.iter().map(|disk| disk as &dyn ReadAt).collect();
            let volume = MappedVolume::new(&mapping, &readers);
            let mut buffer = vec![0; len as usize];
            match whole.get(start as usize..(start + len) as usize) {
                Some(expected) => {
                    volume.read_at(start, &mut buffer).unwrap();
                    prop_assert_eq!(&buffer[..], expected);
                }
                None => prop_assert!(volume.read_at(start, &mut buffer).is_err()),
            }
        }
    }

    #[test]
    fn impossible_segments_are_refused() {
        let area = |len| Area {
            disk: 0,
            range: ByteRange::between(0, len),
        };
        for (stripe, areas) in [
            (4, Vec::new()),
            (0, vec![area(8)]),
            (3, vec![area(8)]),
            (4, vec![area(8), area(12)]),
            (1, vec![area(0)]),
        ] {
            assert!(Mapping::new(vec![Segment { stripe, areas }]).is_err());
        }
    }
}
