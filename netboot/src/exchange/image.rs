//! Disk images as sources: which format a file is of, and its disk for reading at any place.
//!
//! Invariant: the format is decided here, by signatures and once, and only the formats that are named here are
//! opened; an image that needs another file than itself (a backing file, a parent) is refused, because such a
//! name, which came with the image, could make any file of this computer part of a restore point.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use backup::SectorSize;
use backup::filesystem::{ReadAt, ReadError};
use clap::ValueEnum;
use serde::Serialize;

use super::ExchangeError;
use super::qemu::{self, QemuNbd};

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ImageFormat {
    /// The bytes of the disk, one after another
    Raw,
    /// QEMU and KVM, Proxmox
    Qcow2,
    /// Virtual PC, Azure, older Hyper-V; fixed or dynamic
    Vhd,
    /// Hyper-V
    Vhdx,
    /// VMware
    Vmdk,
}

impl ImageFormat {
    /// Its name.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Vmdk => "VMDK",
        }
    }

    /// QEMU's name for it.
    const fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }
}

/// What a file begins and ends with: raw when no other format is recognised.
///
/// Signatures: QEMU `docs/interop/qcow2.rst`; Microsoft's VHD specification, "Hard Disk Footer Format";
/// \[MS-VHDX\] 2.2.1; VMware's Virtual Disk Format 5.0, "Hosted Sparse Extent" and "The Descriptor File".
fn recognise(first: &[u8], last: &[u8]) -> Result<ImageFormat, String> {
    let refused = [
        (&b"COWD"[..], "a VMware ESX sparse (COWD) image"),
        (b"OVMF", "firmware"),
        (b"\x1f\x8b", "gzip-compressed"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
        (b"\xfd7zXZ\0", "xz-compressed"),
        (b"PK\x03\x04", "a zip archive"),
        (b"VMA\0", "a Proxmox backup (VMA)"),
        (b"<<< Oracle VM VirtualBox", "a VirtualBox (VDI) image"),
        (b"<<< Sun ", "a VirtualBox (VDI) image"),
    ];
    for (sign, what) in refused {
        if first.starts_with(sign) {
            return Err(format!(
                "it is {what}, which is not read here. Convert or unpack it to raw, qcow2, VHD, VHDX or VMDK first; if it is a raw disk after all, say --format raw"
            ));
        }
    }
    if first.starts_with(b"QFI\xfb") {
        return match first.get(4..8) {
            Some([0, 0, 0, 2 | 3]) => Ok(ImageFormat::Qcow2),
            _ => Err(
                "it is a qcow image of another version than 2 and 3; convert it with `qemu-img convert -O qcow2`"
                    .to_owned(),
            ),
        };
    }
    if first.starts_with(b"vhdxfile") {
        return Ok(ImageFormat::Vhdx);
    }
    if first.starts_with(b"KDMV") || first.starts_with(b"# Disk DescriptorFile") {
        return Ok(ImageFormat::Vmdk);
    }
    if first.starts_with(b"conectix") || last.starts_with(b"conectix") {
        return Ok(ImageFormat::Vhd);
    }
    Ok(ImageFormat::Raw)
}

/// What tells whether a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }
}

/// A disk image, open for reading.
pub(crate) struct Image {
    /// The file, without links.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) format: ImageFormat,
    /// The size of the disk in bytes.
    pub(crate) size: u64,
    /// Whether the format was neither said nor recognised: raw is what is left then.
    pub(crate) assumed: bool,
    /// The disk.
    pub(crate) reader: Arc<dyn ReadAt + Send + Sync>,
    file: File,
    stamp: Stamp,
    /// Serves the disk, if it is not raw.
    _server: Mutex<Option<QemuNbd>>,
}

impl Image {
    /// Opens an image; `format` overrides what its signature says, and `sector` is what the size of its disk
    /// must be a multiple of.
    ///
    /// # Errors
    /// [`ExchangeError`] for what is no image that can be imported.
    pub(crate) fn open(
        path: &Path,
        format: Option<ImageFormat>,
        sector: SectorSize,
    ) -> Result<Self, ExchangeError> {
        let cannot = |source| ExchangeError::Source {
            path: path.to_owned(),
            source,
        };
        let path = std::fs::canonicalize(path).map_err(cannot)?;
        let kind = std::fs::metadata(&path).map_err(cannot)?.file_type();
        if kind.is_dir() {
            let reason = "it is a folder; name the disk image itself. Parts of an export are put together first, as their README.txt says";
            return Err(ExchangeError::image(&path, reason));
        }
        if kind.is_block_device() {
            let reason = "it is a disk and no image; `agent backup --disk` backs it up and knows whether it is in use";
            return Err(ExchangeError::image(&path, reason));
        }
        if !kind.is_file() {
            return Err(ExchangeError::image(&path, "it is no ordinary file"));
        }
        let file = File::open(&path).map_err(cannot)?;
        let stamp = Stamp::of(&file).map_err(cannot)?;
        if stamp.len == 0 {
            return Err(ExchangeError::image(&path, "it is empty: 0 bytes"));
        }
        let (first, last) = ends(&file, stamp.len).map_err(cannot)?;
        let found = match format {
            Some(format) => format,
            None => {
                recognise(&first, &last).map_err(|reason| ExchangeError::image(&path, reason))?
            }
        };
        if found == ImageFormat::Raw {
            refuse_in_use(&file, &path)?;
        }
        let (reader, size, server): (Arc<dyn ReadAt + Send + Sync>, _, _) = match found {
            ImageFormat::Raw => {
                let file = file.try_clone().map_err(cannot)?;
                let size = stamp.len;
                (Arc::new(RawFile { file, size }), size, None)
            }
            format => {
                let info = qemu::info(format.driver(), &path)?;
                check(&path, format, &info)?;
                qemu::check(format.driver(), &path)?;
                let mut server = QemuNbd::start(format.driver(), &path, true)?;
                let client = server.connect()?;
                let size = client.size();
                if size != info.virtual_size {
                    return Err(ExchangeError::image(
                        &path,
                        format!(
                            "its disk has {size} bytes, before it had {}; something writes to it",
                            info.virtual_size
                        ),
                    ));
                }
                (Arc::new(client), size, Some(server))
            }
        };
        let image = Self {
            path,
            format: found,
            assumed: format.is_none() && found == ImageFormat::Raw,
            size,
            reader,
            file,
            stamp,
            _server: Mutex::new(server),
        };
        image.check_size(sector)?;
        Ok(image)
    }

    fn check_size(&self, sector: SectorSize) -> Result<(), ExchangeError> {
        let over = self.size % sector.bytes();
        if self.size > 0 && over == 0 {
            return Ok(());
        }
        let reason = if self.size == 0 {
            "its disk has 0 bytes".to_owned()
        } else {
            format!(
                "its disk has {} bytes, which is no whole number of sectors of {} bytes ({over} are over): the file is cut short or no disk image{}",
                self.size,
                sector.bytes(),
                if sector == SectorSize::S4096 && self.size.is_multiple_of(512) {
                    "; or its sectors have 512 bytes, then leave out --sector 4096"
                } else {
                    ""
                }
            )
        };
        Err(ExchangeError::image(&self.path, reason))
    }

    /// Whether the file is as it was when it was opened.
    ///
    /// # Errors
    /// [`ExchangeError::Image`] when something wrote to it.
    pub(crate) fn check_unchanged(&self) -> Result<(), ExchangeError> {
        let now = Stamp::of(&self.file).map_err(|source| ExchangeError::Source {
            path: self.path.clone(),
            source,
        })?;
        if now == self.stamp {
            return Ok(());
        }
        Err(ExchangeError::image(
            &self.path,
            "it was written to while it was read, so what was read may be of no one moment. Stop what writes to it and import it again",
        ))
    }
}

/// The first and the last 512 bytes, as far as they are there.
fn ends(file: &File, len: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let some = usize::try_from(len.min(512)).unwrap_or(512);
    let (mut first, mut last) = (vec![0; some], vec![0; some]);
    file.read_exact_at(&mut first, 0)?;
    file.read_exact_at(&mut last, len - some as u64)?;
    Ok((first, last))
}

/// Refuses what QEMU has open for writing: it locks byte 101 of such a file (`block/file-posix.c`,
/// `RAW_LOCK_PERM_BASE` + the bit of `BLK_PERM_WRITE`).
fn refuse_in_use(file: &File, path: &Path) -> Result<(), ExchangeError> {
    let mut lock = libc_lock(101, 1);
    if nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && i32::from(lock.l_type) != nix::libc::F_UNLCK
    {
        let reason = "a virtual machine has it open for writing; stop it first";
        return Err(ExchangeError::image(path, reason));
    }
    Ok(())
}

fn libc_lock(start: i64, len: i64) -> nix::libc::flock {
    nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Refuses what cannot be read whole and by itself.
fn check(path: &Path, format: ImageFormat, info: &qemu::Info) -> Result<(), ExchangeError> {
    let data = &info.format_specific.data;
    let refuse = |reason: String| Err(ExchangeError::image(path, reason));
    if info.encrypted || data.encrypt.is_some() {
        return refuse(format!(
            "the {} image is encrypted. Decrypt it first, for example with `qemu-img convert` and its key",
            format.word()
        ));
    }
    if let Some(backing) = &info.backing_filename {
        return refuse(format!(
            "it holds only what differs from another file (`{}`), which is not followed: the name came with the image. If you trust it, make one whole image first: `qemu-img convert -O qcow2 IMAGE WHOLE`",
            printable(backing)
        ));
    }
    if let Some(other) = &data.data_file {
        return refuse(format!(
            "its bytes are in another file (`{}`), which is not followed: the name came with the image. If you trust it, make one whole image first: `qemu-img convert -O qcow2 IMAGE WHOLE`",
            printable(other)
        ));
    }
    if data.corrupt {
        return refuse(
            "it is marked as damaged; `qemu-img check -r all` may repair a copy of it".to_owned(),
        );
    }
    for extent in &data.extents {
        let found = std::fs::canonicalize(&extent.filename).ok();
        let beside = found
            .as_deref()
            .is_some_and(|found| found.parent() == path.parent());
        if !beside {
            return refuse(format!(
                "a part of it is not in its own folder (`{}`), and is not followed: the name came with the image",
                printable(&extent.filename)
            ));
        }
        let len = std::fs::metadata(&extent.filename).map_or(0, |found| found.len());
        if extent.format == "FLAT" && len < extent.size {
            return refuse(format!(
                "its part `{}` has {len} bytes (expected {}): it is cut short",
                printable(&extent.filename),
                extent.size
            ));
        }
    }
    Ok(())
}

fn printable(text: &str) -> String {
    let letters = text.chars().filter(|letter| !letter.is_control());
    letters.take(200).collect()
}

struct RawFile {
    file: File,
    size: u64,
}

impl ReadAt for RawFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let failed = |reason: String| ReadError {
            offset,
            len,
            reason,
        };
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            let reason = format!("past the end of the disk of {} bytes", self.size);
            return Err(failed(reason));
        }
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_signatures_and_all_else_is_raw() {
        let none = [0; 512];
        let known = |first: &[u8], last: &[u8]| recognise(first, last).unwrap();
        assert_eq!(known(b"QFI\xfb\0\0\0\x03", &none), ImageFormat::Qcow2);
        assert_eq!(known(b"vhdxfile", &none), ImageFormat::Vhdx);
        assert_eq!(known(b"KDMV\x01", &none), ImageFormat::Vmdk);
        assert_eq!(known(b"# Disk DescriptorFile\n", &none), ImageFormat::Vmdk);
        assert_eq!(known(b"conectix", &none), ImageFormat::Vhd);
        assert_eq!(known(&none, b"conectix"), ImageFormat::Vhd);
        assert_eq!(known(&none, &none), ImageFormat::Raw);
        assert_eq!(known(b"Q", b"Q"), ImageFormat::Raw);
    }

    #[test]
    fn what_is_no_disk_image_is_named() {
        for (first, said) in [
            (&b"QFI\xfb\0\0\0\x01"[..], "another version"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"<<< Oracle VM VirtualBox Disk Image >>>", "VDI"),
        ] {
            assert!(recognise(first, &[]).unwrap_err().contains(said));
        }
    }

    fn raw(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, vec![1; 4096]).unwrap();
        path
    }

    #[test]
    fn an_image_that_is_written_to_while_it_is_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = raw(&folder);
        let image = Image::open(&path, None, SectorSize::S512).unwrap();
        assert!(image.assumed && image.size == 4096);
        image.check_unchanged().unwrap();
        // Longer than the file system's clock stands still.
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(&path, vec![2; 4096]).unwrap();
        let error = image.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("written to while it was read"), "{error}");
    }

    #[test]
    fn an_image_that_qemu_writes_to_is_refused() {
        use nix::fcntl::{FcntlArg, fcntl};
        let folder = tempfile::tempdir().unwrap();
        let path = raw(&folder);
        // As QEMU does: a shared lock on the byte of what it may do, by its open file.
        let qemu = File::open(&path).unwrap();
        let mut lock = libc_lock(101, 1);
        lock.l_type = nix::libc::F_RDLCK as nix::libc::c_short;
        fcntl(&qemu, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        let error = Image::open(&path, None, SectorSize::S512).err().unwrap();
        assert!(error.to_string().contains("open for writing"), "{error}");
        drop(qemu);
        assert!(Image::open(&path, None, SectorSize::S512).is_ok());
    }
}
