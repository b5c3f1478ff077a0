//! What the machine is made of: identity, firmware, disks, network cards, memory.
//!
//! Invariant: reads only, and survives whatever firmware and devices say; the roots of sysfs and procfs
//! are arguments, so that a test can give it others. What is *not* here: opening disks.

pub(crate) mod disks;
pub(crate) mod firmware;
pub(crate) mod named;
pub(crate) mod nics;

use std::fs;
use std::path::{Path, PathBuf};

use backup::hardware::{Disk, Inventory};
use named::NamedDisk;

/// Where the kernel shows the machine.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// `/sys`.
    pub(crate) sysfs: PathBuf,
    /// `/proc`.
    pub(crate) procfs: PathBuf,
    /// The disks that a person named, in place of all that the machine has.
    pub(crate) named: Option<Vec<NamedDisk>>,
}

impl Roots {
    /// Those of this machine.
    pub(crate) fn real() -> Self {
        Self {
            sysfs: PathBuf::from("/sys"),
            procfs: PathBuf::from("/proc"),
            named: None,
        }
    }

    /// The disks that are there now.
    pub(crate) fn disks(&self) -> Vec<Disk> {
        match &self.named {
            Some(named) => named
                .iter()
                .filter_map(|named| named.disk(&self.sysfs))
                .collect(),
            None => disks::disks(&self.sysfs),
        }
    }

    /// Everything that is found now. Disks and cards whose drivers are still being loaded are missing.
    pub(crate) fn inventory(&self) -> Inventory {
        let nics = nics::nics(&self.sysfs);
        let mut identity = firmware::identity(&self.sysfs);
        identity.macs = nics.iter().map(|nic| nic.mac.clone()).collect();
        identity.macs.sort();
        Inventory {
            identity,
            firmware: firmware::kind(&self.sysfs),
            architecture: architecture(),
            disks: self.disks(),
            nics,
            memory: memory(&self.procfs),
            without_driver: crate::drivers::without_driver(&self.sysfs),
        }
    }
}

fn architecture() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.machine().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn memory(procfs: &Path) -> u64 {
    let text = fs::read_to_string(procfs.join("meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|rest| rest.split_ascii_whitespace().next());
    let kilobytes: u64 = kilobytes.and_then(|word| word.parse().ok()).unwrap_or(0);
    kilobytes.saturating_mul(1024)
}

/// The text of an attribute file, cleaned: no control characters, no spaces around; `None` when it
/// says nothing.
pub(crate) fn attribute(path: &Path) -> Option<String> {
    clean(&String::from_utf8_lossy(&fs::read(path).ok()?))
}

fn clean(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}

/// A number in an attribute file.
fn number(path: &Path) -> Option<u64> {
    attribute(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let root = tempfile::tempdir().unwrap();
        fs::write(
            root.path().join("meminfo"),
            "MemTotal:         482936 kB\nMemFree: 1 kB\n",
        )
        .unwrap();
        assert_eq!(memory(root.path()), 482_936 * 1024);
        assert_eq!(memory(Path::new("/nowhere")), 0);
    }

    #[test]
    fn attributes_are_cleaned() {
        assert_eq!(
            clean(" QEMU  HARDDISK \0\n").as_deref(),
            Some("QEMU HARDDISK")
        );
        assert_eq!(clean(" \n\0"), None);
    }
}
