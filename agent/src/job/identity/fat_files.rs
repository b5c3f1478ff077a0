//! References in files on FAT: GRUB's and other loaders' configurations, and loaders with one built in.
//!
//! A reference keeps its length, so that a file is changed where it lies: no mount, no driver, no allocation.
//! Invariant: a signed program is never changed; what it refers to keeps its id.

use std::ops::ControlFlow;

use backup::ByteRange;
use backup::filesystem::tree::{FileTree, NodeId, NodeKind, TreeError};
use backup::identity::References;

use super::volumes::Volume;
use crate::job::error::Fault;

/// Folders within folders that are looked into.
const MAX_DEPTH: usize = 8;
/// Names that are looked at.
const MAX_NAMES: usize = 20_000;
/// The largest file that is read, in bytes; a unified kernel image can have its initramfs in it.
const MAX_FILE: u64 = 256 << 20;
/// What files with references are called.
const CONFIGURATIONS: [&str; 3] = [".cfg", ".conf", ".txt"];

/// A file that can have references in it.
pub(super) struct FatFile {
    /// Its path, without a leading `/`.
    pub(super) path: String,
    /// Its content.
    pub(super) bytes: Vec<u8>,
    places: Vec<ByteRange>,
}

/// Gives every file of a FAT volume that can have references in it to `visit`, one at a time.
///
/// # Errors
/// A volume that cannot be read, and what `visit` returns.
pub(super) fn visit(
    volume: &Volume,
    mut visit: impl FnMut(FatFile) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let tree = volume.tree()?;
    let unreadable = |error: TreeError| volume.unreadable(&error);
    let mut folders = vec![(tree.root(), String::new(), 0)];
    let mut names = 0;
    while let Some((folder, path, depth)) = folders.pop() {
        for (name, node) in entries(tree.as_ref(), folder, &mut names).map_err(unreadable)? {
            let path = format!("{path}{name}");
            let known = tree.node(node).map_err(unreadable)?;
            if known.kind == NodeKind::Directory {
                if depth < MAX_DEPTH {
                    folders.push((node, format!("{path}/"), depth + 1));
                }
                continue;
            }
            let lower = path.to_lowercase();
            let is_named = is_program(&lower)
                || is_random_seed(&lower)
                || CONFIGURATIONS.iter().any(|end| lower.ends_with(end));
            if !is_named || known.size == 0 || known.size > MAX_FILE {
                continue;
            }
            let places = tree.places(node).map_err(unreadable)?.unwrap_or_default();
            let mut bytes = vec![0; known.size as usize];
            let len = tree.read(node, 0, &mut bytes).map_err(unreadable)?;
            bytes.truncate(len);
            visit(FatFile {
                path,
                bytes,
                places,
            })?;
        }
    }
    Ok(())
}

fn entries(
    tree: &dyn FileTree,
    folder: NodeId,
    names: &mut usize,
) -> Result<Vec<(String, NodeId)>, TreeError> {
    let mut found = Vec::new();
    let mut flow = ControlFlow::Continue(());
    tree.entries(folder, &mut |entry| {
        *names += 1;
        if *names > MAX_NAMES {
            flow = ControlFlow::Break(());
        } else if let Ok(name) = String::from_utf8(entry.name) {
            found.push((name, entry.node));
        }
        Ok(())
    })?;
    match flow {
        ControlFlow::Continue(()) => Ok(found),
        // Some file could be missed.
        ControlFlow::Break(()) => Err(TreeError::Unsupported(format!(
            "a FAT volume with more than {MAX_NAMES} names"
        ))),
    }
}

fn is_program(lower: &str) -> bool {
    lower.ends_with(".efi")
}

/// systemd-boot's seed for the system that it starts.
fn is_random_seed(lower: &str) -> bool {
    lower == "loader/random-seed"
}

impl FatFile {
    /// Whether it is systemd-boot's seed.
    pub(super) fn is_random_seed(&self) -> bool {
        is_random_seed(&self.path.to_lowercase())
    }

    /// Whether it is a program with a signature, which a change would break.
    pub(super) fn is_signed(&self) -> bool {
        is_program(&self.path.to_lowercase()) && has_certificates(&self.bytes).unwrap_or(true)
    }

    /// Replaces the references in it; returns how many there were.
    pub(super) fn rewrite(&mut self, references: &References) -> usize {
        references.rewrite(&mut self.bytes)
    }

    /// Writes the content, which has the length that it had, where it lies.
    pub(super) fn write(&self, volume: &Volume) -> Result<(), Fault> {
        let mut at = 0;
        for place in &self.places {
            let end = (at + place.len() as usize).min(self.bytes.len());
            volume.write(place.start(), &self.bytes[at..end])?;
            at = end;
        }
        if at == self.bytes.len() {
            return Ok(());
        }
        Err(Fault::Internal(format!(
            "{} in {}: {at} of {} bytes have a place",
            self.path,
            volume.place,
            self.bytes.len()
        )))
    }
}

/// Whether a PE program has a table of certificates (Microsoft's PE format, "Optional Header Data
/// Directories"); `None` when it is no such program.
fn has_certificates(program: &[u8]) -> Option<bool> {
    let u16_at = |at: usize| {
        Some(u16::from_le_bytes(
            program.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let u32_at = |at: usize| {
        Some(u32::from_le_bytes(
            program.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    if !program.starts_with(b"MZ") {
        return None;
    }
    let header = usize::try_from(u32_at(0x3c)?).ok()?;
    if program.get(header..header.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let optional = header + 24;
    let directories = match u16_at(optional)? {
        0x10b => optional + 96,
        0x20b => optional + 112,
        _ => return None,
    };
    // Entry 4; the number of entries is the word before them.
    if u32_at(directories - 4)? <= 4 {
        return Some(false);
    }
    Some(u32_at(directories + 4 * 8 + 4)? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(certificates: u32) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
        let directories = 0x98 + 112;
        bytes[directories - 4] = 16;
        bytes[directories + 36..directories + 40].copy_from_slice(&certificates.to_le_bytes());
        bytes
    }

    #[test]
    fn a_signature_is_seen_and_what_is_no_program_counts_as_signed() {
        let file = |bytes: Vec<u8>| FatFile {
            path: "EFI/x/A.EFI".to_owned(),
            bytes,
            places: Vec::new(),
        };
        assert!(file(program(1480)).is_signed());
        assert!(!file(program(0)).is_signed());
        assert!(file(vec![0; 40]).is_signed());
        assert!(file(program(0)[..0x99].to_vec()).is_signed());
    }
}
