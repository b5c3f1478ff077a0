//! Where a restored system's GRUB has its configuration.
//!
//! Invariant: there is exactly one, and it is one that another GRUB can read; else the restore ends with the reason.
//! Nothing is written here.

use std::fmt;

use backup::filesystem::tree::{NodeKind, TreeError};

use crate::job::error::Fault;
use crate::job::identity::systems::{self, System};
use crate::job::identity::volumes::{Id, Volume};

/// Folders of GRUB, Debian's and Fedora's.
const FOLDERS: [&str; 2] = ["boot/grub", "boot/grub2"];
const CONFIGURATION: &str = "grub.cfg";
/// The largest configuration that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The command by which a configuration reads entries from files of their own; only Fedora's GRUB has it.
const ENTRIES_APART: &[u8] = b"blscfg";
/// The command by which an entry starts a Linux with either firmware: `linux16` is for BIOS only, `linuxefi` for UEFI.
const START: &[u8] = b"linux";

/// The configuration of a system's GRUB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grub {
    /// Index of the system.
    pub(super) system: usize,
    /// Its volume.
    id: Id,
    /// What that is called to people.
    place: String,
    /// GRUB's folder in the volume, without a leading `/`.
    folder: String,
}

impl Grub {
    /// What another GRUB does to go on with it (GRUB manual, "search", "configfile").
    pub(super) fn script(&self) -> String {
        let (id, folder) = (self.id, &self.folder);
        format!(
            "search.fs_uuid {id} root\nset prefix=($root)'/{folder}'\nconfigfile $prefix/{CONFIGURATION}\n"
        )
    }
}

impl fmt::Display for Grub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{CONFIGURATION} in {}", self.folder, self.place)
    }
}

/// Finds it.
///
/// # Errors
/// None, more than one, or one that another GRUB does not understand.
pub(super) fn find(volumes: &[Volume], systems: &[System]) -> Result<Grub, Fault> {
    let refuse = Fault::NotAsPlanned;
    let mut found = Vec::new();
    for (number, system) in systems.iter().enumerate() {
        for folder in FOLDERS {
            found.extend(configuration(volumes, system, number, folder)?);
        }
    }
    let (grub, text) = match &mut found[..] {
        [one] => one,
        [] => {
            return Err(refuse(
                "no system with a GRUB was found on the restored disks".to_owned(),
            ));
        }
        more => {
            let places: Vec<_> = more.iter().map(|(grub, _)| grub.to_string()).collect();
            return Err(refuse(format!(
                "there is more than one configuration of a GRUB ({}), and which one starts the machine is not known",
                places.join(", ")
            )));
        }
    };
    let has_entries_apart = text
        .windows(ENTRIES_APART.len())
        .any(|word| word == ENTRIES_APART);
    if has_entries_apart {
        return Err(refuse(format!(
            "{grub} reads its entries from files of their own (blscfg), which only its own distribution's GRUB does"
        )));
    }
    if !text.split(|byte| *byte == b'\n').any(starts_linux) {
        return Err(refuse(format!(
            "{grub} has no entry that starts a Linux with both types of firmware (`linux`; `linux16` and `linuxefi` \
             do with one only)"
        )));
    }
    let twins = volumes.iter().filter(|volume| volume.id == Some(grub.id));
    if twins.count() > 1 {
        return Err(refuse(format!(
            "two volumes have the id {} of the one with GRUB's configuration",
            grub.id
        )));
    }
    Ok(grub.clone())
}

/// Whether a line of a configuration starts a Linux, whatever the firmware is.
fn starts_linux(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace);
    words.find(|word| !word.is_empty()) == Some(START)
}

/// The configuration in a folder of a system, with its text.
fn configuration(
    volumes: &[Volume],
    system: &System,
    number: usize,
    folder: &str,
) -> Result<Option<(Grub, Vec<u8>)>, Fault> {
    let (index, inner) = system.locate(folder);
    let volume = &volumes[index];
    if !volume.is_linux() && !volume.is_fat() {
        return Ok(None);
    }
    let unreadable = |error: TreeError| volume.unreadable(&error);
    let tree = volume.tree()?;
    let path = format!("{inner}/{CONFIGURATION}");
    let Some(file) = systems::node(tree.as_ref(), tree.root(), &path).map_err(unreadable)? else {
        return Ok(None);
    };
    let node = tree.node(file).map_err(unreadable)?;
    if node.kind != NodeKind::File || node.size > MAX_FILE {
        return Ok(None);
    }
    let mut text = vec![0; node.size as usize];
    let len = tree.read(file, 0, &mut text).map_err(unreadable)?;
    text.truncate(len);
    let Some(id) = volume.id else {
        return Ok(None);
    };
    // A quote in it would end the text in the script; GRUB's folders have none.
    if inner.contains('\'') {
        return Ok(None);
    }
    let grub = Grub {
        system: number,
        id,
        place: volume.place.clone(),
        folder: inner,
    };
    Ok(Some((grub, text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entry_for_both_types_of_firmware_starts_a_linux() {
        for line in [&b"linux /vmlinuz"[..], b"\tlinux\t/vmlinuz ro", b"  linux"] {
            assert!(starts_linux(line), "{line:?}");
        }
        for line in [
            &b"\tlinux16 /boot/memtest86+.bin"[..],
            b"linuxefi /vmlinuz",
            b"# linux /vmlinuz",
            b"insmod linux",
            b"",
        ] {
            assert!(!starts_linux(line), "{line:?}");
        }
    }
}
