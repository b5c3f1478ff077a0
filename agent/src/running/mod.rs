//! What the running system does with its disks: what is mounted from them, what holds them.
//!
//! Invariant: reads only. A file system that is mounted for writing changes while it is read, so its
//! bytes are never captured from the device itself: from a snapshot ([`snapshot`]), or not at all. What
//! the kernel does not show here it shows when the disk is opened exclusively.

use std::fs;
use std::path::Path;

pub(crate) mod snapshot;

/// One use of a disk or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    /// Kernel name of the disk or partition.
    pub(crate) device: String,
    /// What for.
    pub(crate) how: How,
}

/// What a device is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    /// A file system is mounted from it.
    Mounted {
        /// Where.
        at: String,
        /// Which.
        file_system: String,
    },
    /// The kernel swaps to it.
    Swap,
    /// A device made by software is on it: LVM, encryption, an array.
    Held {
        /// Its name, `vg-root` or `md0`.
        by: String,
    },
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let device = &self.device;
        match &self.how {
            How::Mounted { at, file_system } => {
                write!(f, "{device} ({file_system}) is mounted at {at}")
            }
            How::Swap => write!(f, "{device} is swap"),
            How::Held { by } => write!(f, "{by} is on {device}"),
        }
    }
}

/// Everything that uses the disk with this kernel name.
pub(crate) fn uses(sysfs: &Path, procfs: &Path, disk: &str) -> Vec<Use> {
    let mounts = fs::read_to_string(procfs.join("self/mountinfo")).unwrap_or_default();
    let swaps = fs::read_to_string(procfs.join("swaps")).unwrap_or_default();
    let mut found = Vec::new();
    for (name, path) in parts(sysfs, disk) {
        let number = super::hardware::attribute(&path.join("dev"));
        let node = format!("/dev/{name}");
        let is_it = |number_here: &str, source: &str| {
            number.as_deref() == Some(number_here) || source == node
        };
        for mount in mounts.lines().filter_map(Mount::parse) {
            if is_it(mount.number, &unescaped(mount.source)) {
                let how = How::Mounted {
                    at: unescaped(mount.at),
                    file_system: mount.file_system.to_owned(),
                };
                let device = name.clone();
                found.push(Use { device, how });
            }
        }
        let swap = |line: &str| line.split_ascii_whitespace().next() == Some(&node);
        if swaps.lines().any(swap) {
            let device = name.clone();
            let how = How::Swap;
            found.push(Use { device, how });
        }
        for holder in entries(&path.join("holders")) {
            let named = sysfs.join("block").join(&holder).join("dm/name");
            let by = super::hardware::attribute(&named).unwrap_or(holder);
            let device = name.clone();
            let how = How::Held { by };
            found.push(Use { device, how });
        }
    }
    found
}

/// Why a disk in use is not captured, and what to do.
pub(crate) fn refusal(disk: &str, uses: &[Use]) -> String {
    let uses: Vec<_> = uses.iter().map(Use::to_string).collect();
    let what = if uses.is_empty() {
        "something has it open".to_owned()
    } else {
        uses.join(", ")
    };
    format!(
        "{disk} is in use: {what}; what changes while it is read would be a broken backup, and no \
         snapshot can be made of it. Unmount it, or back up a logical volume of LVM by its own name \
         (--disk /dev/GROUP/VOLUME), or capture the whole machine from the recovery environment"
    )
}

/// The disk and its partitions, with their place in sysfs.
fn parts(sysfs: &Path, disk: &str) -> Vec<(String, std::path::PathBuf)> {
    let root = sysfs.join("block").join(disk);
    let partitions = entries(&root)
        .into_iter()
        .filter(|entry| root.join(entry).join("partition").is_file())
        .map(|entry| (entry.clone(), root.join(entry)));
    let mut all: Vec<_> = partitions.collect();
    all.insert(0, (disk.to_owned(), root.clone()));
    all
}

fn entries(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = all
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// A line of `mountinfo` (proc_pid_mountinfo(5)).
struct Mount<'a> {
    number: &'a str,
    at: &'a str,
    file_system: &'a str,
    source: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (number, _root, at) = (mount.next()?, mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        Some(Self {
            number,
            at,
            file_system: system.next()?,
            source: system.next()?,
        })
    }
}

/// Octal escapes of spaces and the like, as `\040`.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 4);
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn every_use_of_a_disk_and_its_partitions_is_found() {
        let root = machine(&[
            ("sys/block/sda/dev", "8:0\n"),
            ("sys/block/sda/sda1/partition", "1\n"),
            ("sys/block/sda/sda1/dev", "8:1\n"),
            ("sys/block/sda/sda2/partition", "2\n"),
            ("sys/block/sda/sda2/dev", "8:2\n"),
            ("sys/block/sda/sda2/holders/dm-0/x", ""),
            ("sys/block/sda/sda3/partition", "3\n"),
            ("sys/block/sda/sda3/dev", "8:3\n"),
            ("sys/block/sda/sda4/partition", "4\n"),
            ("sys/block/sda/queue/x", ""),
            ("sys/block/dm-0/dm/name", "vg-root\n"),
            ("sys/block/sdb/dev", "8:16\n"),
            (
                "proc/swaps",
                "Filename Type Size\n/dev/sda3 partition 1 0 -2\n",
            ),
            (
                "proc/self/mountinfo",
                "29 1 254:0 / / rw - ext4 /dev/mapper/vg-root rw\n\
                 30 29 8:1 / /boot\\040efi rw,relatime shared:1 - vfat /dev/sda1 rw\n\
                 31 29 0:44 /sub /data rw - btrfs /dev/sda4 rw,subvolid=5\n",
            ),
        ]);
        let (sysfs, procfs) = (root.path().join("sys"), root.path().join("proc"));
        let said: Vec<_> = uses(&sysfs, &procfs, "sda")
            .iter()
            .map(Use::to_string)
            .collect();
        assert_eq!(
            said,
            [
                "sda1 (vfat) is mounted at /boot efi",
                "vg-root is on sda2",
                "sda3 is swap",
                "sda4 (btrfs) is mounted at /data",
            ]
        );
        assert_eq!(uses(&sysfs, &procfs, "sdb"), []);
        let refusal = refusal("sda", &uses(&sysfs, &procfs, "sda"));
        assert!(refusal.contains("sda3 is swap") && refusal.contains("--disk /dev/GROUP/VOLUME"));
    }
}
