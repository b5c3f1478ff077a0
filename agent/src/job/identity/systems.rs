//! The Linux systems on restored disks, read without mounting anything: where each begins, what it mounts
//! where, and what its start depends on.
//!
//! Invariant: a name in `/etc/fstab` stands for a volume only when it can be no other.

use backup::filesystem::tree::{FileTree, NodeId, NodeKind, TreeError};
use backup::filesystem::tree_path::{self, AtEnd};
use backup::identity::{fstab, hosts};
use backup::manifest::FileSystemKind as Kind;
use uuid::Uuid;

use super::start_image;
use super::volumes::{Id, Volume};
use crate::job::error::Fault;

/// Where a system begins: the top of its volume, or the subvolume of Btrfs that distributions put it in.
const TOPS: [&str; 4] = ["", "@", "@rootfs", "root"];
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A Linux system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::job) struct System {
    /// Index of its volume.
    pub(in crate::job) volume: usize,
    /// The folder of the volume that is its root; empty for its top.
    pub(in crate::job) top: &'static str,
    /// Other volumes, by the folder that each is mounted on, without the leading `/`.
    pub(in crate::job) mounts: Vec<(String, usize)>,
    /// Volumes that its start needs: root, `/usr`, swap.
    pub(in crate::job) needed: Vec<usize>,
    /// Its machine id, if it has one.
    pub(in crate::job) machine_id: Option<Uuid>,
    /// Its name.
    pub(in crate::job) host_name: Option<String>,
    /// Whether initramfs-tools make what it starts from.
    pub(in crate::job) has_initramfs_tools: bool,
}

impl System {
    /// The volume in which a file of the system lies, and its path there. The path is without a leading `/`.
    pub(in crate::job) fn locate(&self, path: &str) -> (usize, String) {
        let below = |on: &str| {
            let rest = path.strip_prefix(on)?;
            (rest.is_empty() || rest.starts_with('/'))
                .then(|| rest.trim_start_matches('/').to_owned())
        };
        let mut best = (0, self.volume, join(self.top, path));
        for (on, volume) in &self.mounts {
            if let Some(rest) = below(on)
                && on.len() > best.0
            {
                best = (on.len(), *volume, rest);
            }
        }
        (best.1, best.2)
    }
}

fn join(top: &str, path: &str) -> String {
    if top.is_empty() {
        path.to_owned()
    } else {
        format!("{top}/{path}")
    }
}

/// Every system on the volumes. `partition_ids` are the GUIDs of partitions, as `PARTUUID=` has them.
///
/// # Errors
/// A volume whose files cannot be read.
pub(in crate::job) fn find(
    volumes: &[Volume],
    partition_ids: &[(Uuid, usize)],
) -> Result<Vec<System>, Fault> {
    let mut systems = Vec::new();
    for (index, volume) in volumes.iter().enumerate() {
        if !volume.is_linux() {
            continue;
        }
        let tree = volume.tree()?;
        for top in TOPS {
            let unreadable = |error: TreeError| volume.unreadable(&error);
            let Some(folder) = node(tree.as_ref(), tree.root(), top).map_err(unreadable)? else {
                continue;
            };
            let system = System::read(tree.as_ref(), folder, index, top).map_err(unreadable)?;
            let Some((mut system, table)) = system else {
                continue;
            };
            if table.contains(&0) {
                return Err(volume.unreadable(&"its /etc/fstab is no text, it is damaged"));
            }
            for mount in fstab::parse(&table) {
                system.add_mount(&mount, volumes, partition_ids);
            }
            systems.push(system);
            if volume.kind != Kind::Btrfs {
                break;
            }
        }
    }
    Ok(systems)
}

impl System {
    /// The system that begins in a folder, with its table of mounts.
    fn read(
        tree: &dyn FileTree,
        folder: NodeId,
        volume: usize,
        top: &'static str,
    ) -> Result<Option<(Self, Vec<u8>)>, TreeError> {
        let there = |path: &str| Ok::<_, TreeError>(node(tree, folder, path)?.is_some());
        let is_system = there("etc/fstab")? || there("etc/machine-id")? || there("etc/os-release")?;
        if !is_system {
            return Ok(None);
        }
        let read = |path: &str| read(tree, folder, path);
        let machine_id = read("etc/machine-id")?.as_deref().and_then(machine_id);
        let host_name = read("etc/hostname")?.as_deref().and_then(hosts::name_in);
        let system = Self {
            volume,
            top,
            mounts: Vec::new(),
            needed: vec![volume],
            machine_id,
            host_name,
            has_initramfs_tools: there("usr/share/initramfs-tools")?,
        };
        Ok(Some((system, read("etc/fstab")?.unwrap_or_default())))
    }

    fn add_mount(
        &mut self,
        mount: &fstab::Mount,
        volumes: &[Volume],
        partition_ids: &[(Uuid, usize)],
    ) {
        let Some(volume) = named(&mount.what, volumes, partition_ids) else {
            return;
        };
        let on = mount.on.trim_matches('/');
        if mount.kind == "swap" || on == "usr" {
            self.needed.push(volume);
        }
        let is_folder = mount.on.starts_with('/') && !on.is_empty() && !on.contains("..");
        // A subvolume of its own volume is mounted on its own folder as well; what is in it is found by
        // way of the top.
        if is_folder && volume != self.volume && volumes[volume].kind != Kind::Btrfs {
            self.mounts.push((on.to_owned(), volume));
        }
    }
}

/// The volume that a name in a table of mounts stands for.
fn named(what: &str, volumes: &[Volume], partition_ids: &[(Uuid, usize)]) -> Option<usize> {
    let value = |tag: &str, folder: &str| {
        let after = |text: &str| what.strip_prefix(text).map(str::to_owned);
        after(tag).or_else(|| after(folder))
    };
    let only = |matches: &dyn Fn(&Volume) -> bool| {
        let mut found = volumes
            .iter()
            .enumerate()
            .filter(|(_, volume)| matches(volume));
        let first = found.next()?;
        found.next().is_none().then_some(first.0)
    };
    if let Some(id) = value("UUID=", "/dev/disk/by-uuid/") {
        let same = |own: Id| own.to_string().eq_ignore_ascii_case(&id);
        return only(&|volume| volume.id.is_some_and(same));
    }
    if let Some(id) = value("PARTUUID=", "/dev/disk/by-partuuid/") {
        if let Ok(uuid) = id.parse::<Uuid>() {
            let own = partition_ids.iter().find(|(own, _)| *own == uuid)?;
            return Some(own.1);
        }
        // Of a PC partition table; with one disk its number is enough.
        let number = u32::from_str_radix(id.split_once('-')?.1, 16).ok()?;
        return only(&|volume| volume.partition == Some(number));
    }
    if let Some(label) = value("LABEL=", "/dev/disk/by-label/") {
        return only(&|volume| volume.label.as_deref() == Some(label.as_str()));
    }
    if let Some(found) = only(&|volume| volume.nodes.iter().any(|node| node == what)) {
        return Some(found);
    }
    // `/dev/sda2`, `/dev/nvme0n1p2`: with one disk, its second partition.
    let node = what.strip_prefix("/dev/")?;
    let digits = node.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    let is_plain = ["sd", "vd", "hd", "xvd"]
        .iter()
        .any(|kind| node.starts_with(kind));
    let number = if is_plain {
        digits
    } else {
        node.rsplit_once('p')?.1
    };
    let number: u32 = number.parse().ok()?;
    only(&|volume| volume.partition == Some(number))
}

/// What a system starts from.
pub(in crate::job) struct StartImage {
    /// Its path in the system, without the leading `/`.
    pub(in crate::job) path: String,
    /// Its content; `None` when it is too large.
    pub(in crate::job) bytes: Option<Vec<u8>>,
}

/// Gives every initramfs of a system to `visit`, one at a time.
///
/// # Errors
/// A volume that cannot be read, and what `visit` returns.
pub(in crate::job) fn start_images(
    system: &System,
    volumes: &[Volume],
    mut visit: impl FnMut(StartImage),
) -> Result<(), Fault> {
    let (index, folder) = system.locate("boot");
    let volume = &volumes[index];
    if !volume.is_linux() && !volume.is_fat() {
        return Ok(());
    }
    let tree = volume.tree()?;
    let unreadable = |error: TreeError| volume.unreadable(&error);
    let Some(folder) = node(tree.as_ref(), tree.root(), &folder).map_err(unreadable)? else {
        return Ok(());
    };
    let mut found = Vec::new();
    tree.entries(folder, &mut |entry| {
        if let Ok(name) = String::from_utf8(entry.name)
            && (name.starts_with("initrd") || name.starts_with("initramfs"))
        {
            found.push((name, entry.node));
        }
        Ok(())
    })
    .map_err(unreadable)?;
    for (name, file) in found {
        let known = tree.node(file).map_err(unreadable)?;
        if known.kind != NodeKind::File {
            continue;
        }
        let bytes = if known.size <= start_image::MAX_IMAGE {
            let mut bytes = vec![0; known.size as usize];
            let len = tree.read(file, 0, &mut bytes).map_err(unreadable)?;
            bytes.truncate(len);
            Some(bytes)
        } else {
            None
        };
        let path = format!("boot/{name}");
        visit(StartImage { path, bytes });
    }
    Ok(())
}

/// A machine id (machine-id(5)): 32 digits; neither `uninitialized` nor nothing.
pub(in crate::job) fn machine_id(text: &[u8]) -> Option<Uuid> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| Uuid::parse_str(text).ok()).flatten()
}

/// What a path leads to, if anything.
pub(in crate::job) fn node(
    tree: &dyn FileTree,
    from: NodeId,
    path: &str,
) -> Result<Option<NodeId>, TreeError> {
    match tree_path::find(tree, from, path.as_bytes(), AtEnd::Follow) {
        Ok(node) => Ok(Some(node)),
        Err(TreeError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(tree: &dyn FileTree, from: NodeId, path: &str) -> Result<Option<Vec<u8>>, TreeError> {
    let Some(file) = node(tree, from, path)? else {
        return Ok(None);
    };
    let node = tree.node(file)?;
    if node.kind != NodeKind::File {
        return Ok(None);
    }
    if node.size > MAX_FILE {
        return Err(TreeError::Damaged(format!(
            "/{path} has {} bytes",
            node.size
        )));
    }
    let mut bytes = vec![0; node.size as usize];
    let len = tree.read(file, 0, &mut bytes)?;
    bytes.truncate(len);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_in_the_volume_that_is_mounted_nearest() {
        let system = System {
            volume: 0,
            top: "@",
            mounts: vec![
                ("boot".to_owned(), 1),
                ("boot/efi".to_owned(), 2),
                ("var".to_owned(), 3),
            ],
            needed: Vec::new(),
            machine_id: None,
            host_name: None,
            has_initramfs_tools: false,
        };
        let located = |path: &str| system.locate(path);
        assert_eq!(located("etc/fstab"), (0, "@/etc/fstab".to_owned()));
        assert_eq!(
            located("boot/grub/grub.cfg"),
            (1, "grub/grub.cfg".to_owned())
        );
        assert_eq!(located("boot/efi/x"), (2, "x".to_owned()));
        assert_eq!(located("variable"), (0, "@/variable".to_owned()));
        assert_eq!(located("var"), (3, String::new()));
    }

    #[test]
    fn a_machine_id_has_32_digits() {
        let id = machine_id(b"6c61622d726f4f748000000000000001\n").unwrap();
        assert_eq!(id.simple().to_string(), "6c61622d726f4f748000000000000001");
        for text in [
            "",
            "uninitialized\n",
            "6c61622d-726f-4f74-8000-000000000001",
        ] {
            assert_eq!(machine_id(text.as_bytes()), None, "{text}");
        }
    }
}
