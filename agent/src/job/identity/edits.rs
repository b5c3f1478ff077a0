//! What is changed in the files of a restored Linux system.
//!
//! Invariant: a file that is not there is not made, but for what is said of it; every change goes through
//! [`Root`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use backup::identity::{HostName, References, hosts};
use uuid::Uuid;

use super::mounted::Mounted;
use super::rooted::Root;
use super::start_image::resume_archive;
use super::systems::{self, System};
use super::volumes::{Id, Volume};
use super::{at, fault, host_keys};
use crate::job::error::Fault;

/// Files in which ids of disks and volumes stand.
const REFERRING: [&str; 18] = [
    "etc/fstab",
    "etc/crypttab",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "etc/dracut.conf",
    "etc/lilo.conf",
    "boot/grub/grub.cfg",
    "boot/grub/custom.cfg",
    "boot/grub/menu.lst",
    "boot/grub/grubenv",
    "boot/grub/i386-pc/load.cfg",
    "boot/grub/x86_64-efi/load.cfg",
    "boot/grub2/grub.cfg",
    "boot/grub2/custom.cfg",
    "boot/grub2/grubenv",
    "boot/extlinux/extlinux.conf",
    "boot/syslinux/syslinux.cfg",
    "boot/cmdline.txt",
];
/// Folders with such files, and how these end.
const REFERRING_FOLDERS: [(&str, &str); 11] = [
    ("etc/default/grub.d", ".cfg"),
    ("etc/grub.d", ""),
    ("etc/cmdline.d", ".conf"),
    ("etc/kernel/cmdline.d", ".conf"),
    ("etc/initramfs-tools/conf.d", ""),
    ("etc/dracut.conf.d", ".conf"),
    ("etc/systemd/system", ".mount"),
    ("etc/systemd/system", ".swap"),
    ("etc/systemd/system", ".automount"),
    ("boot/loader/entries", ".conf"),
    ("efi/loader/entries", ".conf"),
];
/// Files that stand for the machine, and that systems make again by themselves.
const REMOVED: [(&str, &str); 8] = [
    ("var/lib/systemd", "random-seed"),
    ("var/lib/systemd", "credential.secret"),
    ("var/lib/urandom", "random-seed"),
    ("var/lib", "random-seed"),
    ("var/lib/NetworkManager", "secret_key"),
    ("var/lib/dhcpcd", "duid"),
    ("var/lib/dhcpcd", "secret"),
    ("etc", "dhcpcd.duid"),
];
/// Folders with leases, which have the client ids of DHCP in them, and how these end.
const LEASES: [(&str, &str); 5] = [
    ("var/lib/dhcp", ".leases"),
    ("var/lib/dhclient", ".leases"),
    ("var/lib/dhclient", ".lease"),
    ("var/lib/dhcpcd", ".lease"),
    ("var/lib/NetworkManager", ".lease"),
];

/// Volumes that are mounted as they are needed.
pub(in crate::job) struct Mounts<'a> {
    volumes: &'a [Volume],
    /// The node or file of each disk.
    backing: &'a [PathBuf],
    mounted: BTreeMap<usize, Mounted>,
}

impl<'a> Mounts<'a> {
    pub(in crate::job) const fn new(volumes: &'a [Volume], backing: &'a [PathBuf]) -> Self {
        Self {
            volumes,
            backing,
            mounted: BTreeMap::new(),
        }
    }

    /// The volume's top folder; `None` for one whose files are not changed by mounting it.
    fn root(&mut self, index: usize) -> Result<Option<&Root>, Fault> {
        let volume = &self.volumes[index];
        if !volume.is_linux() {
            return Ok(None);
        }
        if !self.mounted.contains_key(&index) {
            let mounted = Mounted::new(&self.backing[volume.disk], volume)?;
            self.mounted.insert(index, mounted);
        }
        Ok(self.mounted.get(&index).map(|mounted| &mounted.root))
    }

    /// Works on a file or folder of a system: with the top of the volume that it is in, and its path there.
    /// `None` when that volume is not one to be mounted.
    pub(in crate::job) fn with<T>(
        &mut self,
        system: &System,
        path: &str,
        work: impl FnOnce(&Root, &str) -> std::io::Result<T>,
    ) -> Result<Option<T>, Fault> {
        let (index, inner) = system.locate(path);
        let place = self.volumes[index].place.clone();
        let top = system.top;
        let Some(root) = self.root(index)? else {
            return Ok(None);
        };
        let (root, inner) = if index == system.volume && !top.is_empty() {
            // Links of a system begin at its own top, not at that of the volume.
            let own = root.below(top).map_err(fault(at(top, &place)))?;
            let inner = inner.strip_prefix(top).unwrap_or(&inner);
            (own, inner.trim_start_matches('/').to_owned())
        } else {
            let own = root.below("").map_err(fault(at("", &place)))?;
            (own, inner)
        };
        work(&root, &inner)
            .map(Some)
            .map_err(fault(at(path, &place)))
    }

    /// The files of a system in which ids of disks and volumes can stand, whether they are there or not.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub(in crate::job) fn referring(&mut self, system: &System) -> Result<Vec<String>, Fault> {
        let mut files: Vec<String> = REFERRING.iter().map(ToString::to_string).collect();
        for (folder, end) in REFERRING_FOLDERS {
            let names = self.with(system, folder, |root, path| root.names(path))?;
            let names = names.unwrap_or_default().into_iter();
            files.extend(
                names
                    .filter(|name| name.ends_with(end))
                    .map(|name| format!("{folder}/{name}")),
            );
        }
        Ok(files)
    }

    /// Unmounts all of them.
    pub(in crate::job) fn close(self) -> Result<(), Fault> {
        for (index, mounted) in self.mounted {
            let place = &self.volumes[index].place;
            mounted
                .close()
                .map_err(fault(format!("{place}: writing everything out")))?;
        }
        Ok(())
    }
}

/// What a system gets.
pub(super) struct Wanted<'a> {
    pub(super) references: &'a References,
    pub(super) machine_id: Option<Uuid>,
    pub(super) host_name: Option<&'a HostName>,
    /// What the system starts from, with the new id of the swap that it resumes from.
    pub(super) resumes: Vec<(&'a str, Id)>,
}

/// Changes the files of a system. Returns sentences for people.
///
/// # Errors
/// A file that cannot be read or changed.
pub(super) fn edit(
    mounts: &mut Mounts<'_>,
    system: &System,
    wanted: &Wanted<'_>,
) -> Result<Vec<String>, Fault> {
    let mut edit = Edit {
        mounts,
        system,
        changed: Vec::new(),
    };
    let place = edit.mounts.volumes[system.volume].place.clone();
    let mut sentences = Vec::new();
    edit.references(wanted.references)?;
    if !edit.changed.is_empty() {
        let files = edit.changed.join(", ");
        sentences.push(format!(
            "Changed what refers to the ids, in {place}: {files}."
        ));
    }
    for (path, swap) in &wanted.resumes {
        edit.with(path, |root, path| {
            let len = root.len(path)?;
            root.append(path, &resume_archive(len, &swap.to_string()))
        })?;
        sentences.push(format!("Told /{path} in {place} of the swap's new id."));
    }
    if let Some(new) = wanted.machine_id {
        edit.machine_id(new)?;
        sentences.push(format!(
            "Gave the system in {place} the machine id {}.",
            new.simple()
        ));
    }
    if let Some(new) = wanted.host_name {
        sentences.extend(edit.host_name(new)?);
    }
    let called = wanted.host_name.map_or("localhost", HostName::as_str);
    let kinds = edit.with("etc", |root, top| {
        let root = root.below(top.strip_suffix("etc").unwrap_or(top))?;
        Ok(host_keys::replace(&root, called, &place))
    })?;
    let kinds = kinds.transpose()?.unwrap_or_default();
    if !kinds.is_empty() {
        let kinds = kinds.join(", ");
        sentences.push(format!(
            "Made new SSH host keys of the system in {place}: {kinds}."
        ));
    }
    edit.remove_what_stands_for_the_machine()?;
    Ok(sentences)
}

struct Edit<'e, 'm> {
    mounts: &'e mut Mounts<'m>,
    system: &'e System,
    /// Files in which references were replaced.
    changed: Vec<String>,
}

impl Edit<'_, '_> {
    fn with<T>(
        &mut self,
        path: &str,
        work: impl FnOnce(&Root, &str) -> std::io::Result<T>,
    ) -> Result<Option<T>, Fault> {
        self.mounts.with(self.system, path, work)
    }

    fn references(&mut self, references: &References) -> Result<(), Fault> {
        let files = self.mounts.referring(self.system)?;
        for file in files {
            let changed = self.with(&file, |root, path| {
                let Some(mut bytes) = root.read(path)? else {
                    return Ok(false);
                };
                let found = references.rewrite(&mut bytes) > 0;
                if found {
                    root.replace(path, &bytes)?;
                }
                Ok(found)
            })?;
            if changed == Some(true) {
                self.changed.push(format!("/{file}"));
            }
        }
        Ok(())
    }

    fn machine_id(&mut self, new: Uuid) -> Result<(), Fault> {
        let text = format!("{}\n", new.simple());
        self.with("etc/machine-id", |root, path| {
            root.replace(path, text.as_bytes())
        })?;
        self.with("var/lib/dbus", |root, folder| {
            // On most systems it is a link to the other one.
            let path = format!("{folder}/machine-id");
            let own = root.read(&path)?.as_deref().and_then(systems::machine_id);
            if own.is_some() && !root.is_link(folder, "machine-id")? {
                root.replace(&path, text.as_bytes())?;
            }
            Ok(())
        })?;
        let Some(old) = self.system.machine_id else {
            return Ok(());
        };
        self.keep_entry_folder(old)
    }

    /// Boot entries lie in a folder that is called by the machine id (kernel-install(8)). It keeps its name,
    /// so that later kernels find it, and that has to be said.
    fn keep_entry_folder(&mut self, old: Uuid) -> Result<(), Fault> {
        let old = old.simple().to_string();
        let mut entries = Vec::new();
        for folder in ["boot/loader/entries", "efi/loader/entries"] {
            let names = self.with(folder, |root, path| root.names(path))?;
            entries.extend(names.unwrap_or_default());
        }
        if !entries.iter().any(|name| name.starts_with(&old)) {
            return Ok(());
        }
        self.with("etc/kernel", |root, folder| {
            let is_there = root.names(folder)?.iter().any(|name| name == "entry-token");
            if is_there || root.names("etc")?.iter().all(|name| name != "kernel") {
                return Ok(());
            }
            root.create(folder, "entry-token", format!("{old}\n").as_bytes())
        })?;
        Ok(())
    }

    fn host_name(&mut self, new: &HostName) -> Result<Option<String>, Fault> {
        let Some(old) = self.system.host_name.clone() else {
            return Ok(None);
        };
        self.with("etc/hostname", |root, path| {
            root.replace(path, format!("{new}\n").as_bytes())
        })?;
        self.with("etc/hosts", |root, path| {
            let Some(bytes) = root.read(path)? else {
                return Ok(());
            };
            // What is no text is not changed by guess.
            let Ok(text) = std::str::from_utf8(&bytes) else {
                return Ok(());
            };
            let renamed = hosts::renamed(text, &old, new);
            if renamed == text {
                return Ok(());
            }
            root.replace(path, renamed.as_bytes())
        })?;
        Ok(Some(format!(
            "Named the system {new} (the image is {old})."
        )))
    }

    fn remove_what_stands_for_the_machine(&mut self) -> Result<(), Fault> {
        for (folder, name) in REMOVED {
            self.with(folder, |root, folder| root.remove(folder, name))?;
        }
        for (folder, end) in LEASES {
            self.with(folder, |root, folder| {
                for name in root.names(folder)? {
                    if name.ends_with(end) {
                        root.remove(folder, &name)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
