//! Encrypted volumes: what they are encrypted with, for people.
//!
//! Sources: cryptsetup's "LUKS1 On-Disk Format Specification", §2, and "LUKS2 On-Disk Format
//! Specification", §2 and §3. Invariant: this only names; whatever it finds, a volume that is not opened is
//! kept as it is, every byte of it. What is *not* here: opening a volume, which is the agent's.

use crate::ByteRange;
use crate::filesystem::detect::text;
use crate::filesystem::{ReadAt, ReadError};
use crate::manifest::FileSystemKind;

/// The most bytes of a LUKS2 header's JSON that are read; cryptsetup makes 12 KiB.
const MAX_JSON: usize = 64 << 10;
/// How much is saved of a place where a header can be, in bytes.
const HEADER_PLACE: u64 = 4096;
/// Where that JSON begins: behind the binary header.
const JSON: u64 = 4096;

/// Why an encrypted volume is saved whole.
///
/// # Errors
/// [`ReadError`] when the volume's header cannot be read.
pub(super) fn reason(
    volume: &dyn ReadAt,
    size: u64,
    kind: FileSystemKind,
) -> Result<String, ReadError> {
    Ok(format!(
        "encrypted: {}; kept as it is",
        name(volume, size, kind)?
    ))
}

/// What an encrypted volume is encrypted with, for people: `LUKS2, aes-xts-plain64`.
///
/// # Errors
/// [`ReadError`] when the volume's header cannot be read.
pub fn name(volume: &dyn ReadAt, size: u64, kind: FileSystemKind) -> Result<String, ReadError> {
    match kind {
        FileSystemKind::Luks => luks(volume, size),
        other => Ok(other.to_string()),
    }
}

/// Adds to the used ranges of an opened volume of `size` bytes the places where its encryption had
/// headers: the volume begins at the same place when it is restored plain, and over the encrypted one a
/// header that stays would make it taken for encrypted. The second LUKS2 header is at one of eight places.
#[must_use]
pub fn with_header_places(used: &[ByteRange], size: u64) -> Vec<ByteRange> {
    let places = std::iter::once(0).chain((14..=22).map(|shift| 1u64 << shift));
    let places = places.filter_map(|at| {
        let place = ByteRange::between(at.min(size), (at + HEADER_PLACE).min(size));
        (!place.is_empty()).then_some(place)
    });
    let mut all: Vec<ByteRange> = used.iter().copied().chain(places).collect();
    all.sort_unstable();
    let mut joined: Vec<ByteRange> = Vec::with_capacity(all.len());
    for range in all {
        match joined.last_mut() {
            Some(last) if range.start() <= last.end() => {
                *last = ByteRange::between(last.start(), last.end().max(range.end()));
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Version and, when it says so, cipher.
fn luks(volume: &dyn ReadAt, size: u64) -> Result<String, ReadError> {
    let mut head = [0; 512];
    if size < head.len() as u64 {
        return Ok("LUKS".to_owned());
    }
    volume.read_at(0, &mut head)?;
    let version = u16::from_be_bytes([head[6], head[7]]);
    let cipher = match version {
        1 => text(&head[8..40])
            .zip(text(&head[40..72]))
            .map(|(name, mode)| format!("{name}-{mode}")),
        2 => luks2_cipher(volume, size, &head)?,
        _ => None,
    };
    let printable = cipher
        .filter(|cipher| cipher.len() <= 64 && cipher.bytes().all(|byte| byte.is_ascii_graphic()));
    Ok(match printable {
        Some(cipher) => format!("LUKS{version}, {cipher}"),
        None => format!("LUKS{version}"),
    })
}

fn luks2_cipher(
    volume: &dyn ReadAt,
    size: u64,
    head: &[u8; 512],
) -> Result<Option<String>, ReadError> {
    let mut header_size = [0; 8];
    header_size.copy_from_slice(&head[8..16]);
    let end = u64::from_be_bytes(header_size).min(size);
    let len = end.saturating_sub(JSON).min(MAX_JSON as u64) as usize;
    let mut json = vec![0; len];
    volume.read_at(JSON, &mut json)?;
    let used = json.iter().position(|byte| *byte == 0).unwrap_or(len);
    let Ok(header) = serde_json::from_slice::<serde_json::Value>(&json[..used]) else {
        return Ok(None);
    };
    let segments = header.get("segments").and_then(|all| all.as_object());
    let cipher = segments
        .into_iter()
        .flat_map(serde_json::Map::values)
        .find_map(|segment| segment.get("encryption")?.as_str());
    Ok(cipher.map(str::to_owned))
}
