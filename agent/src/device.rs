//! Disks as the engine uses them: one type of access for block devices and image files.
//!
//! Invariant: bytes go past the page cache (`O_DIRECT`) wherever the kernel allows it, so that a
//! flush covers what was written and a read shows what the disk holds. Callers may use any offset
//! and length: what is not on sector boundaries is read, patched and written in whole sectors.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup::filesystem::{ReadAt, ReadError};
use backup::{ByteRange, SectorSize};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::sys;

/// Alignment of memory for direct access; enough for every sector size.
const MEMORY_ALIGN: usize = 4096;
/// How much is zeroed by writing at a time.
const ZERO_STEP: u64 = 1 << 20;

/// A disk that could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// It cannot be opened.
    #[error("{device} cannot be opened")]
    Open {
        /// Which one.
        device: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something else has it open.
    #[error("{device} is in use by something else (mounted, or part of an array)")]
    Busy {
        /// Which one.
        device: String,
    },
    /// The running system uses it, and no snapshot can be made.
    #[error("{reason}")]
    InUse {
        /// What uses it, and what to do.
        reason: String,
    },
    /// Another disk has its name now.
    #[error("{device} is another disk now: {found} (expected {expected})")]
    Other {
        /// The name.
        device: String,
        /// What is there.
        found: String,
        /// What was there when the plan was made.
        expected: String,
    },
    /// An access failed.
    #[error("{action} {device} failed at LBA {lba} (sectors of {sector} bytes, {len} bytes asked)")]
    Io {
        /// `reading`, `writing`, `zeroing`, `flushing`.
        action: &'static str,
        /// Which one.
        device: String,
        /// The first sector of the access, or the failing one where it is known.
        lba: u64,
        /// Logical sector size in bytes.
        sector: u64,
        /// Length of the access in bytes.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Access to the bytes of one disk.
pub(crate) trait BlockDevice: Send + Sync {
    /// What people call it, for example `/dev/vda`.
    fn name(&self) -> &str;
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Logical sector size.
    fn sector(&self) -> SectorSize;
    /// Fills `buffer` from byte `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at byte `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the range read as zeros.
    fn zero(&self, range: ByteRange) -> io::Result<()>;
    /// Says that the range holds nothing: what is read there afterwards is anything. Both ends must be on sectors.
    /// `Unsupported` where there is no such command.
    fn discard(&self, _range: ByteRange) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
    /// Returns when everything written is on the medium.
    fn flush(&self) -> io::Result<()>;
}

/// Puts place and disk to an error of an access.
pub(crate) fn io_error(
    action: &'static str,
    device: &dyn BlockDevice,
    range: ByteRange,
) -> impl FnOnce(io::Error) -> DeviceError {
    let (name, sector) = (device.name().to_owned(), device.sector().bytes());
    move |source| DeviceError::Io {
        action,
        device: name,
        lba: range.start() / sector,
        sector,
        len: range.len(),
        source,
    }
}

/// What a disk is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading only: the source of a capture.
    Read,
    /// Reading and writing: the target of a restore.
    Write,
}

/// A block device or an image file.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    name: String,
    size: u64,
    sector: SectorSize,
    /// Boundaries that accesses must keep: the sector size for a block device.
    align: u64,
    is_block: bool,
    /// Held while bytes are patched that share a page or sector with others: two threads may write what is next
    /// to each other.
    patching: Mutex<()>,
}

impl Device {
    /// Opens a block device or an image file. A block device is opened exclusively (`O_EXCL`), so
    /// that nothing mounted or otherwise held can be read half-changed or overwritten.
    ///
    /// # Errors
    /// [`DeviceError::Busy`] when something holds it, [`DeviceError::Open`] otherwise.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, DeviceError> {
        let name = path.display().to_string();
        let refuse = |source: io::Error| {
            if source.raw_os_error() == Some(libc::EBUSY) {
                let device = path.display().to_string();
                DeviceError::Busy { device }
            } else {
                let device = path.display().to_string();
                DeviceError::Open { device, source }
            }
        };
        let is_block = std::fs::metadata(path)
            .map_err(refuse)?
            .file_type()
            .is_block_device();
        let exclusive = if is_block { libc::O_EXCL } else { 0 };
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(access == Access::Write)
                .custom_flags(flags | libc::O_CLOEXEC)
                .open(path)
        };
        let (file, direct) = match open(exclusive | libc::O_DIRECT) {
            Ok(file) => (file, true),
            // The file system has no direct access.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (open(exclusive).map_err(refuse)?, false)
            }
            Err(error) => return Err(refuse(error)),
        };
        if is_block {
            let size = sys::block::size(file.as_fd()).map_err(refuse)?;
            let sector = sys::block::logical_sector(file.as_fd()).map_err(refuse)?;
            let sector = SectorSize::try_from(sector)
                .map_err(|error| refuse(io::Error::new(io::ErrorKind::Unsupported, error)))?;
            let align = if direct { sector.bytes() } else { 1 };
            return Ok(Self {
                file,
                name,
                size,
                sector,
                align,
                is_block,
                patching: Mutex::default(),
            });
        }
        let size = file.metadata().map_err(refuse)?.len();
        let whole_pages = size.is_multiple_of(MEMORY_ALIGN as u64);
        let (file, align) = match (direct, whole_pages) {
            (true, true) => (file, MEMORY_ALIGN as u64),
            (true, false) => (open(0).map_err(refuse)?, 1),
            (false, _) => (file, 1),
        };
        Ok(Self {
            file,
            name,
            size,
            sector: SectorSize::S512,
            align,
            is_block,
            patching: Mutex::default(),
        })
    }

    /// The same device with another logical sector size; for image files, which have none.
    #[cfg(test)]
    pub(crate) fn with_sector(mut self, sector: SectorSize) -> Self {
        if !self.is_block {
            self.sector = sector;
        }
        self
    }

    /// Opens an image file as a disk with sectors of this size; what follows its last whole sector is
    /// no part of it.
    ///
    /// # Errors
    /// [`DeviceError::Open`].
    pub(crate) fn open_image(
        path: &Path,
        access: Access,
        sector: SectorSize,
    ) -> Result<Self, DeviceError> {
        let mut image = Self::open(path, access)?;
        if !image.is_block {
            image.sector = sector;
            image.size -= image.size % sector.bytes();
        }
        Ok(image)
    }

    /// Makes the kernel read the partition table again; nothing to do for an image file.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn reread_table(&self) -> io::Result<()> {
        if self.is_block {
            sys::block::reread_table(self.file.as_fd())?;
        }
        Ok(())
    }

    /// The descriptor, for requests about partitions.
    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn patching(&self) -> MutexGuard<'_, ()> {
        self.patching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole sectors around a range, cut at the end of the disk.
    fn around(&self, offset: u64, len: u64) -> io::Result<ByteRange> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.size)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "past the end of the disk")
            })?;
        let start = offset - offset % self.align;
        Ok(ByteRange::between(
            start,
            end.next_multiple_of(self.align).min(self.size),
        ))
    }

    fn is_aligned(&self, range: ByteRange, memory: *const u8) -> bool {
        range.start().is_multiple_of(self.align)
            && range.len().is_multiple_of(self.align)
            && (self.align == 1 || memory.align_offset(MEMORY_ALIGN) == 0)
    }

    /// What the kernel does not say of a disk that was pulled out: writes to it find "no space left".
    fn explained(&self, error: io::Error) -> io::Error {
        let is_there = || sys::block::size(self.file.as_fd()).is_ok_and(|size| size >= self.size);
        if !self.is_block || is_there() {
            return error;
        }
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "the disk is gone: it was unplugged, or its controller lost it ({error}); look at its cable and power"
            ),
        )
    }

    fn read_sectors(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let around = self.around(offset, buffer.len() as u64)?;
        if around.len() == buffer.len() as u64 && self.is_aligned(around, buffer.as_ptr()) {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut bounce = AlignedBuffer::new(around.len() as usize);
        self.file
            .read_exact_at(bounce.bytes_mut(), around.start())?;
        let skip = (offset - around.start()) as usize;
        buffer.copy_from_slice(&bounce.bytes()[skip..skip + buffer.len()]);
        Ok(())
    }

    fn write_sectors(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let around = self.around(offset, bytes.len() as u64)?;
        let whole = around.len() == bytes.len() as u64;
        if whole && self.is_aligned(around, bytes.as_ptr()) {
            return self.file.write_all_at(bytes, offset);
        }
        let _patching = (!whole).then(|| self.patching());
        let mut bounce = AlignedBuffer::new(around.len() as usize);
        if !whole {
            self.file
                .read_exact_at(bounce.bytes_mut(), around.start())?;
        }
        let skip = (offset - around.start()) as usize;
        bounce.bytes_mut()[skip..skip + bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(bounce.bytes(), around.start())
    }

    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        let zeros = AlignedBuffer::new(ZERO_STEP.min(range.len()) as usize);
        let mut at = range.start();
        while at < range.end() {
            let step = ZERO_STEP.min(range.end() - at) as usize;
            self.write_at(at, &zeros.bytes()[..step])?;
            at += step as u64;
        }
        Ok(())
    }
}

impl BlockDevice for Device {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> SectorSize {
        self.sector
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.read_sectors(offset, buffer);
        read.map_err(|error| self.explained(error))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.write_sectors(offset, bytes);
        written.map_err(|error| self.explained(error))
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.around(range.start(), range.len())?;
        let sector = self.sector.bytes();
        let on_sectors = range.start().is_multiple_of(sector) && range.len().is_multiple_of(sector);
        let by_kernel = if self.is_block && on_sectors {
            sys::block::zero_out(self.file.as_fd(), range)
        } else if self.is_block {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        } else {
            let on_pages =
                range.start().is_multiple_of(self.align) && range.len().is_multiple_of(self.align);
            let _patching = (!on_pages).then(|| self.patching());
            punch(&self.file, range)
        };
        match by_kernel {
            Err(error)
                if error.kind() == io::ErrorKind::Unsupported
                    || error.raw_os_error() == Some(libc::EINVAL) =>
            {
                self.write_zeros(range)
            }
            other => other.map_err(|error| self.explained(error)),
        }
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.around(range.start(), range.len())?;
        if self.is_block {
            sys::block::discard(self.file.as_fd(), range)
        } else {
            punch(&self.file, range)
        }
    }

    fn flush(&self) -> io::Result<()> {
        let flushed = self.file.sync_data();
        flushed.map_err(|error| self.explained(error))
    }
}

fn punch(file: &File, range: ByteRange) -> io::Result<()> {
    let wide =
        |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, wide(range.start())?, wide(range.len())?).map_err(io::Error::from)
}

/// Memory that direct access accepts.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    pub(crate) fn new(len: usize) -> Self {
        let storage = vec![0; len + MEMORY_ALIGN];
        // For bytes the offset is always found and less than the alignment.
        let start = storage
            .as_ptr()
            .align_offset(MEMORY_ALIGN)
            .min(MEMORY_ALIGN);
        Self {
            storage,
            start,
            len,
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    /// Its bytes, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// A disk as the pure crate reads it.
pub(crate) struct DiskReader<'a>(pub(crate) &'a dyn BlockDevice);

impl ReadAt for DiskReader<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        self.0.read_at(offset, buffer).map_err(|error| ReadError {
            offset,
            len,
            reason: format!("{}: {error}", self.0.name()),
        })
    }
}
