//! GRUB's second stage for BIOS machines: is the id of a file system built into it?
//!
//! Its boot sector names the sector where the image begins; the first sector of that names the rest. What
//! follows is a small decompressor and one LZMA stream with the kernel, its modules and, when GRUB was
//! installed to another disk than its files, `search.fs_uuid` with the id of their file system. Such an image
//! cannot be changed without being made anew, so that the id has to stay.
//!
//! Sources: grub-core/boot/i386/pc/{boot.S,diskboot.S,startup_raw.S}, include/grub/i386/pc/boot.h. Invariant:
//! an image that is not understood is said to be so, never taken for one without an id.

use std::io::Read;

use crate::SectorSize;
use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le16, le32, le64};

/// Where the boot sector has the first sector of the image (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`).
const KERNEL_SECTOR: usize = 0x5c;
/// The list of the other sectors goes down from here (`GRUB_BOOT_MACHINE_LIST_SIZE` is 12).
const LIST: usize = 512 - 12;
/// The largest image that is read, in bytes; real ones have some 30 KiB.
const MAX_IMAGE: u64 = 4 << 20;
/// The largest plain image; real ones have some 70 KiB.
const MAX_PLAIN: u32 = 16 << 20;
/// Where the decompressor keeps the two lengths.
const COMPRESSED_LEN: usize = 0x08;
const PLAIN_LEN: usize = 0x0c;
/// The stream begins within the first bytes of the image.
const SEARCHED: usize = 0x4000;
/// The decoder's memory of what was before.
const DICTIONARY: u32 = 1 << 16;

/// What a disk has of GRUB for BIOS machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoreImage {
    /// Its boot sector is not GRUB's.
    None,
    /// The image, decompressed.
    Plain(Vec<u8>),
    /// There is one, and it cannot be read.
    Unknown(&'static str),
}

/// Looks for the image that the boot code in `first_sector` starts.
///
/// # Errors
/// [`ReadError`] when the disk cannot be read.
pub fn read(
    first_sector: &[u8],
    disk: &dyn ReadAt,
    size: u64,
    sector: SectorSize,
) -> Result<CoreImage, ReadError> {
    let is_grub = first_sector.len() >= 512
        && first_sector[..440].windows(5).any(|word| word == b"GRUB ")
        && first_sector[..440].windows(5).any(|word| word == b"Geom\0");
    if !is_grub {
        return Ok(CoreImage::None);
    }
    // BIOS counts in sectors of 512 bytes; on others no such GRUB starts.
    if sector != SectorSize::S512 {
        return Ok(CoreImage::Unknown("the disk has no sectors of 512 bytes"));
    }
    let fits = |start: u64, sectors: u64| {
        start
            .checked_add(sectors)
            .and_then(|end| end.checked_mul(512))
            .is_some_and(|end| end <= size)
    };
    let start = le64(first_sector, KERNEL_SECTOR);
    if start == 0 || !fits(start, 1) {
        return Ok(CoreImage::Unknown("its place is not on the disk"));
    }
    let mut first = [0; 512];
    disk.read_at(start * 512, &mut first)?;
    let mut image = Vec::new();
    let mut at = LIST;
    loop {
        let (start, sectors) = (le64(&first, at), u64::from(le16(&first, at + 8)));
        if sectors == 0 {
            break;
        }
        if !fits(start, sectors) || image.len() as u64 + sectors * 512 > MAX_IMAGE {
            return Ok(CoreImage::Unknown("the list of its sectors is damaged"));
        }
        let from = image.len();
        image.resize(from + sectors as usize * 512, 0);
        disk.read_at(start * 512, &mut image[from..])?;
        match at.checked_sub(12) {
            Some(next) if next > 256 => at = next,
            _ => return Ok(CoreImage::Unknown("the list of its sectors is damaged")),
        }
    }
    Ok(decompress(&image).map_or(
        CoreImage::Unknown("it is compressed in an unknown way"),
        CoreImage::Plain,
    ))
}

/// The plain image. Where the stream begins is said nowhere: it is where one of the right length is.
fn decompress(image: &[u8]) -> Option<Vec<u8>> {
    if image.len() < 512 {
        return None;
    }
    let compressed = le32(image, COMPRESSED_LEN) as usize;
    let plain = le32(image, PLAIN_LEN);
    if plain == 0 || plain > MAX_PLAIN || compressed < 16 || compressed > image.len() {
        return None;
    }
    let last = SEARCHED.min(image.len() - compressed);
    (0x20..=last)
        // The first byte of a stream is always 0.
        .filter(|start| image[*start] == 0)
        .find_map(|start| stream(&image[start..start + compressed], plain))
}

fn stream(compressed: &[u8], plain: u32) -> Option<Vec<u8>> {
    let mut reader =
        lzma_rust2::LzmaReader::new(compressed, u64::from(plain), 3, 0, 2, DICTIONARY, None)
            .ok()?;
    let mut out = Vec::new();
    let limit = u64::from(plain) + 1;
    (&mut reader).take(limit).read_to_end(&mut out).ok()?;
    // Of bytes that are no stream something comes out as well, but hardly this.
    let is_grub = |word: &[u8]| out.windows(word.len()).any(|found| found == word);
    (out.len() as u64 == u64::from(plain) && is_grub(b"normal") && is_grub(b"prefix"))
        .then_some(out)
}
