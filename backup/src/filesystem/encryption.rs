//! Encrypted volumes: what they are encrypted with, for people.
//!
//! Sources: cryptsetup's "LUKS1 On-Disk Format Specification", §2, and "LUKS2 On-Disk Format
//! Specification", §2 and §3. Invariant: this only names; whatever it finds, the volume is kept as it is,
//! every byte of it.

use crate::filesystem::detect::text;
use crate::filesystem::{ReadAt, ReadError};
use crate::manifest::FileSystemKind;

/// The most bytes of a LUKS2 header's JSON that are read; cryptsetup makes 12 KiB.
const MAX_JSON: usize = 64 << 10;
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
    let name = match kind {
        FileSystemKind::Luks => luks(volume, size)?,
        other => other.to_string(),
    };
    Ok(format!("encrypted: {name}; kept as it is"))
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
