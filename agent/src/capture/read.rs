//! Reading: the saved ranges of a region in order, in few large reads.
//!
//! Where it is known before the bytes are, a region is cut into pieces ([`Cutting::pieces`]), and
//! neighbouring pieces are read together; else it is read in steps of [`SPAN`], and each step is cut by
//! what is in it. A sector that cannot be read ends the capture with its number: a backup with a hole in
//! it would be taken for a good one.

use backup::ByteRange;
use backup::chunk::Cutting;

use crate::device::{AlignedBuffer, BlockDevice, DeviceError, io_error};

/// The most bytes of one read.
pub(crate) const SPAN: u64 = 2 << 20;
/// Unused bytes up to this many are read along, which is faster than a second read.
const GAP: u64 = 128 << 10;
/// The most pieces of one read: one request asks which of them the server lacks.
pub(crate) const MAX_PIECES: usize = protocol::api::MAX_DIGESTS;

/// One read and the pieces in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// The bytes to read, counted from the region's start.
    pub(crate) span: ByteRange,
    /// The pieces in it, counted from the region's start; `None` when the bytes decide.
    pub(crate) pieces: Option<Vec<ByteRange>>,
}

/// The reads for the saved `ranges` of a region.
pub(crate) fn reads<'a>(
    ranges: &'a [ByteRange],
    cutting: &'a Cutting,
) -> Box<dyn Iterator<Item = Read> + 'a> {
    let Some(pieces) = cutting.pieces(ranges) else {
        return Box::new(steps(ranges));
    };
    let mut pieces = pieces.peekable();
    Box::new(std::iter::from_fn(move || {
        let first = pieces.next()?;
        let (mut span, mut together) = (first, vec![first]);
        while together.len() < MAX_PIECES
            && let Some(next) = pieces.next_if(|next| {
                next.start() - span.end() <= GAP && next.end() - span.start() <= SPAN
            })
        {
            span = ByteRange::between(span.start(), next.end());
            together.push(next);
        }
        Some(Read {
            span,
            pieces: Some(together),
        })
    }))
}

/// Reads up to multiples of [`SPAN`] from the region's start.
fn steps(ranges: &[ByteRange]) -> impl Iterator<Item = Read> + '_ {
    ranges.iter().flat_map(|range| {
        let mut at = range.start();
        std::iter::from_fn(move || {
            let end = (at - at % SPAN).saturating_add(SPAN).min(range.end());
            let span = ByteRange::between(at, end);
            at = end;
            (!span.is_empty()).then_some(Read { span, pieces: None })
        })
    })
}

/// Reads a range of a disk.
///
/// # Errors
/// [`DeviceError::Io`] with the first sector that cannot be read.
pub(crate) fn read(
    device: &dyn BlockDevice,
    range: ByteRange,
) -> Result<AlignedBuffer, DeviceError> {
    let mut buffer = AlignedBuffer::new(range.len() as usize);
    let Err(error) = device.read_at(range.start(), buffer.bytes_mut()) else {
        return Ok(buffer);
    };
    let sector = device.sector().bytes();
    let mut one = AlignedBuffer::new(sector as usize);
    let mut at = range.start() - range.start() % sector;
    while at + sector <= device.size() && at < range.end() {
        if let Err(error) = device.read_at(at, one.bytes_mut()) {
            let failing = ByteRange::between(at, at + sector);
            return Err(io_error("reading", device, failing)(error));
        }
        at += sector;
    }
    // Each sector alone could be read: say what is known.
    Err(io_error("reading", device, range)(error))
}

#[cfg(test)]
mod tests {
    use std::io;

    use backup::SectorSize;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// A disk with one sector that cannot be read.
    struct Failing(u64);

    impl BlockDevice for Failing {
        fn name(&self) -> &str {
            "/dev/sdx"
        }

        fn size(&self) -> u64 {
            1 << 20
        }

        fn sector(&self) -> SectorSize {
            SectorSize::S512
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let bad = self.0 * 512;
            if offset <= bad && bad < offset + buffer.len() as u64 {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            Ok(())
        }

        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        fn zero(&self, _: ByteRange) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sector_that_cannot_be_read_is_named() {
        let error = read(&Failing(77), ByteRange::between(0, 65536)).unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with("reading /dev/sdx failed at LBA 77 "),
            "{said}"
        );
        assert!(read(&Failing(128), ByteRange::between(0, 65536)).is_ok());
    }

    proptest! {
        #[test]
        fn every_saved_byte_is_in_exactly_one_piece_of_one_read(
            gaps in proptest::collection::vec((0u64..400_000, 1u64..3_000_000), 0..12),
        ) {
            let mut end = 0;
            let ranges: Vec<_> = gaps
                .into_iter()
                .map(|(gap, len)| {
                    let range = ByteRange::between(end + gap, end + gap + len);
                    end = range.end();
                    range
                })
                .collect();
            let total: u64 = ranges.iter().map(|range| range.len()).sum();
            for cutting in [Cutting::Grid, Cutting::ContentDefined] {
                let (mut at, mut sum) = (0, 0);
                for read in reads(&ranges, &cutting) {
                    prop_assert!(!read.span.is_empty());
                    prop_assert!(read.span.len() <= SPAN && read.span.start() >= at);
                    at = read.span.end();
                    let pieces = read.pieces.unwrap_or_else(|| vec![read.span]);
                    prop_assert!(pieces.len() <= MAX_PIECES);
                    for piece in pieces {
                        prop_assert!(read.span.contains(piece));
                        prop_assert!(ranges.iter().any(|range| range.contains(piece)));
                        sum += piece.len();
                    }
                }
                prop_assert_eq!(sum, total);
            }
        }
    }
}
