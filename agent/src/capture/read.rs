//! Reading: one planned read ([`backup::plan::reads`]) of a disk.
//!
//! A sector that cannot be read ends the capture with its number: a backup with a hole in it would be taken
//! for a good one.

use backup::ByteRange;

use crate::device::{AlignedBuffer, BlockDevice, DeviceError, io_error};

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

    use super::*;
    use backup::SectorSize;

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
}
