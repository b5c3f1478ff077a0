//! Whether a volume was left as it should be: its flags, its log, the mirror of the MFT, and no Windows
//! that sleeps on it.
//!
//! Invariant: passes only what is known to be sound; what cannot be told cheaply and surely is a fault.

use super::file::File;
use super::mft::{MAGIC, Mft};
use super::record::{DATA, Record, Reference, VOLUME_INFORMATION, VOLUME_NAME, fix_up};
use super::stream::Stream;
use super::{Fault, LOG_FILE, MFT, MFT_MIRROR, ROOT, VOLUME, index, names};
use crate::filesystem::ReadAt;
use crate::little_endian::{le16, le32, le64};

/// Flags of a volume that say nothing of its clusters: mounted by NT 4 (0x8), USN journal to be deleted
/// (0x10), object ids to be repaired (0x20), no short names (0x80), no transactions (0x400), no scrubbing
/// (0x800), no corruption log (0x1000), no heat gathering (0x2000). The others ask for chkdsk, a new log or a
/// new version.
const HARMLESS: u16 = 0x3cb8;

const DIRTY: u16 = 1;

/// The records that the mirror has.
const MIRRORED: u64 = 4;

/// The largest page of the log.
const MAX_PAGE: u64 = 64 << 10;

pub(super) fn check(volume: &dyn ReadAt, mft: &Mft) -> Result<(), Fault> {
    flags(volume, mft)?;
    mirror(volume, mft)?;
    log_file(volume, mft)?;
    hibernation(volume, mft)
}

fn flags(volume: &dyn ReadAt, mft: &Mft) -> Result<(), Fault> {
    let file = File::load(volume, mft, Reference(VOLUME))?;
    let information = file
        .resident(VOLUME_INFORMATION)?
        .filter(|information| information.len() >= 12)
        .ok_or_else(|| Fault::damaged("$Volume has no version and flags"))?;
    let (major, minor, flags) = (information[8], information[9], le16(information, 10));
    if !matches!((major, minor), (1, 2) | (3, 0 | 1)) {
        return Err(Fault::Damaged(format!(
            "NTFS version {major}.{minor} is not known"
        )));
    }
    if flags & DIRTY != 0 {
        return Err(Fault::damaged("the NTFS volume is marked dirty"));
    }
    if flags & !HARMLESS != 0 {
        return Err(Fault::Damaged(format!(
            "the NTFS volume has flags {:#06x} set, which ask for a repair or are not known",
            flags & !HARMLESS
        )));
    }
    Ok(())
}

/// The first records and their mirror are written together.
fn mirror(volume: &dyn ReadAt, mft: &Mft) -> Result<(), Fault> {
    let geometry = &mft.geometry;
    let mut bytes = vec![0; geometry.record];
    for number in 0..MIRRORED {
        let offset = geometry.mirror * geometry.cluster + number * geometry.record as u64;
        volume.read_at(offset, &mut bytes)?;
        fix_up(
            &mut bytes,
            MAGIC,
            format_args!("record {number} of the MFT mirror"),
        )?;
        let original = mft.record(volume, number)?;
        let content = Record::new(number, &original).content();
        if content.is_none() || content != Record::new(number, &bytes).content() {
            return Err(Fault::Damaged(format!(
                "MFT record {number} differs from its mirror"
            )));
        }
    }
    let start = |number| -> Result<_, Fault> {
        let stream = File::load(volume, mft, Reference(number))?.stream(DATA, "", geometry)?;
        Ok(stream.and_then(|stream| stream.runs().first().and_then(|run| run.start)))
    };
    match (start(MFT)?, start(MFT_MIRROR)?) {
        (Some(table), Some(mirror)) if table == geometry.mft && mirror == geometry.mirror => Ok(()),
        _ => Err(Fault::damaged(
            "the MFT mirror is not where the boot sector says",
        )),
    }
}

/// What a page of the log that says where to restart tells.
struct Restart {
    /// How new it is.
    number: u64,
    clean: bool,
}

/// The log is clean when it is blank, as chkdsk and ntfsfix leave it, or when the newer of its two restart
/// pages says so.
fn log_file(volume: &dyn ReadAt, mft: &Mft) -> Result<(), Fault> {
    let geometry = &mft.geometry;
    let log = File::load(volume, mft, Reference(LOG_FILE))?
        .stream(DATA, "", geometry)?
        .filter(Stream::is_plain)
        .ok_or_else(|| Fault::damaged("$LogFile has no data"))?;
    let page = |at: u64, size: u64| {
        let mut bytes = vec![0; size as usize];
        match log.read(volume, geometry, at, &mut bytes)? {
            len if len as u64 == size => Ok(bytes),
            _ => Err(Fault::damaged("$LogFile is too short")),
        }
    };
    let blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0xff);
    let first = page(0, 4096)?;
    if blank(&first) {
        return match blank(&page(4096, 4096)?) {
            true => Ok(()),
            false => Err(Fault::damaged("$LogFile is only partly blank")),
        };
    }
    let size = u64::from(le32(&first, 16));
    if first[..4] != *b"RSTR" || !size.is_power_of_two() || !(512..=MAX_PAGE).contains(&size) {
        return Err(Fault::damaged(
            "$LogFile does not begin with a restart page",
        ));
    }
    let (first, second) = (restart(page(0, size)?)?, restart(page(size, size)?)?);
    let clean = match first.number.cmp(&second.number) {
        std::cmp::Ordering::Less => second.clean,
        std::cmp::Ordering::Equal => first.clean && second.clean,
        std::cmp::Ordering::Greater => first.clean,
    };
    if clean {
        return Ok(());
    }
    Err(Fault::damaged(
        "the NTFS volume was not cleanly unmounted: its log is in use",
    ))
}

/// Reads a restart page: its version at 28, the place of its area at 24; in that its number at 0, the first
/// client in use at 12 (0xffff for none), and flags at 14, of which 2 says cleanly unmounted.
fn restart(mut page: Vec<u8>) -> Result<Restart, Fault> {
    fix_up(
        &mut page,
        *b"RSTR",
        format_args!("a restart page of $LogFile"),
    )?;
    let at = usize::from(le16(&page, 24));
    let area = page.get(at..at + 16).filter(|_| at >= 30 && at % 8 == 0);
    let (Some(area), 0..=2) = (area, le16(&page, 28)) else {
        return Err(Fault::damaged(
            "a restart page of $LogFile is not of a known kind",
        ));
    };
    Ok(Restart {
        number: le64(area, 0),
        clean: le16(area, 12) == 0xffff || le16(area, 14) & 2 != 0,
    })
}

/// A Windows that sleeps has more of the volume in its memory than is on the disk. It clears the first bytes
/// of `hiberfil.sys` when it wakes.
fn hibernation(volume: &dyn ReadAt, mft: &Mft) -> Result<(), Fault> {
    let mut found = None;
    index::names(volume, mft, ROOT, &mut |file, name| {
        if names::utf8(name).eq_ignore_ascii_case(b"hiberfil.sys") {
            found = Some(file);
        }
        Ok::<(), Fault>(())
    })?;
    let Some(file) = found else {
        return Ok(());
    };
    let Some(data) = File::load(volume, mft, file)?.stream(DATA, "", &mft.geometry)? else {
        return Ok(());
    };
    let mut head = vec![0; 4096];
    let len = data.read(volume, &mft.geometry, 0, &mut head)?;
    let head = &head[..len];
    if head.iter().all(|byte| *byte == 0) || head.starts_with(b"wake") || head.starts_with(b"WAKE")
    {
        return Ok(());
    }
    Err(Fault::damaged(
        "Windows is hibernated on it, or hiberfil.sys is not of a known kind",
    ))
}

pub(super) fn label(volume: &dyn ReadAt, mft: &Mft) -> Option<String> {
    let file = File::load(volume, mft, Reference(VOLUME)).ok()?;
    let name = names::utf8(file.resident(VOLUME_NAME).ok()??);
    let label = String::from_utf8_lossy(&name).trim_end().to_owned();
    (!label.is_empty()).then_some(label)
}
