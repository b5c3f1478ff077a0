//! The operating system in a volume: its name, version and host name.
//!
//! Invariant: this only adds a name to a restore point; whatever cannot be read is left out, and no link
//! leads outside the file system.

use std::sync::Arc;

use crate::ByteRange;
use crate::filesystem::tree::{self, FileTree, NodeId};
use crate::filesystem::tree_path::{self, AtEnd};
use crate::filesystem::{ReadAt, ReadError, Section};
use crate::manifest::{OperatingSystem, Region};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 64 << 10;
/// Where a system begins: the top of the volume, or the subvolume of Btrfs that distributions put it in.
const PLACES: [&str; 3] = ["", "@", "root"];

/// Looks for a system in the regions of a disk that hold a file system.
#[must_use]
pub fn find(disk: &Arc<dyn ReadAt + Send + Sync>, regions: &[Region]) -> Option<OperatingSystem> {
    let mut trees = trees(disk, regions);
    trees.find_map(|tree| system_in(tree.as_ref()))
}

/// The architecture of the programs in the regions of a disk, as `uname -m` says it: the first that is found
/// of a program that every system has.
#[must_use]
pub fn architecture(
    disk: &Arc<dyn ReadAt + Send + Sync>,
    regions: &[Region],
) -> Option<&'static str> {
    let mut trees = trees(disk, regions);
    trees.find_map(|tree| architecture_in(tree.as_ref()))
}

fn architecture_in(tree: &dyn FileTree) -> Option<&'static str> {
    let tops: Vec<_> = PLACES
        .iter()
        .filter_map(|place| node(tree, tree.root(), place))
        .collect();
    let programs = [
        "usr/bin/env",
        "bin/sh",
        "bin/busybox",
        "Windows/System32/ntoskrnl.exe",
    ];
    let mut places = tops
        .iter()
        .flat_map(|top| programs.iter().map(move |program| (*top, *program)));
    places.find_map(|(top, program)| {
        let file = node(tree, top, program)?;
        let mut head = [0; 1024];
        let len = tree.read(file, 0, &mut head).ok()?;
        machine_of(head.get(..len)?)
    })
}

/// The machine in the header of an ELF file (`e_machine`, elf(5)) or a PE file (`Machine`, Microsoft's PE
/// format, "COFF File Header").
fn machine_of(program: &[u8]) -> Option<&'static str> {
    let word = |at: usize| {
        Some(u16::from_le_bytes([
            *program.get(at)?,
            *program.get(at + 1)?,
        ]))
    };
    // Byte 5: the bytes of numbers in little-endian order.
    if program.starts_with(b"\x7fELF") && program.get(5) == Some(&1) {
        return match word(18)? {
            62 => Some("x86_64"),
            3 => Some("i686"),
            183 => Some("aarch64"),
            40 => Some("armv7l"),
            243 => Some("riscv64"),
            21 => Some("ppc64le"),
            _ => None,
        };
    }
    if program.starts_with(b"MZ") {
        let header = usize::from(word(0x3c)?);
        let sign = program.get(header..header + 4)?;
        return match (sign, word(header + 4)?) {
            (b"PE\0\0", 0x8664) => Some("x86_64"),
            (b"PE\0\0", 0x014c) => Some("i686"),
            (b"PE\0\0", 0xaa64) => Some("aarch64"),
            _ => None,
        };
    }
    None
}

fn trees<'a>(
    disk: &'a Arc<dyn ReadAt + Send + Sync>,
    regions: &'a [Region],
) -> impl Iterator<Item = Box<dyn FileTree>> + 'a {
    let volumes = regions.iter().filter(|region| region.volume.is_some());
    volumes.filter_map(|region| {
        let volume = Arc::new(Volume {
            disk: Arc::clone(disk),
            range: region.range,
        });
        tree::open(volume, region.range.len()).ok()
    })
}

/// A region as a volume that owns its disk.
struct Volume {
    disk: Arc<dyn ReadAt + Send + Sync>,
    range: ByteRange,
}

impl ReadAt for Volume {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        Section::new(self.disk.as_ref(), self.range).read_at(offset, buffer)
    }
}

fn system_in(tree: &dyn FileTree) -> Option<OperatingSystem> {
    let tops = PLACES
        .iter()
        .filter_map(|place| node(tree, tree.root(), place));
    for top in tops {
        let release = ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|path| read_text(tree, top, path));
        if let Some(release) = release {
            let host = read_text(tree, top, "etc/hostname");
            return from_release(&release, host.as_deref());
        }
    }
    // The registry of every Windows since NT has this file.
    let windows = node(tree, tree.root(), "Windows/System32/config/SOFTWARE");
    windows
        .filter(|_| tree.ignores_case())
        .map(|_| OperatingSystem {
            name: "Windows".to_owned(),
            version: None,
            host_name: None,
        })
}

fn node(tree: &dyn FileTree, top: NodeId, path: &str) -> Option<NodeId> {
    tree_path::find(tree, top, path.as_bytes(), AtEnd::Follow).ok()
}

fn read_text(tree: &dyn FileTree, top: NodeId, path: &str) -> Option<String> {
    let file = node(tree, top, path)?;
    let size = tree.node(file).ok()?.size;
    if size > LIMIT {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    let len = tree.read(file, 0, &mut bytes).ok()?;
    bytes.truncate(len);
    String::from_utf8(bytes).ok()
}

/// What `os-release` (os-release(5)) and `hostname` say.
fn from_release(release: &str, host: Option<&str>) -> Option<OperatingSystem> {
    let value = |key: &str| {
        release.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            let value = value.trim().trim_matches(['"', '\'']);
            (name.trim() == key && !value.is_empty()).then(|| printable(value))
        })
    };
    let host_name = host
        .and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()))
        .map(printable);
    Some(OperatingSystem {
        name: value("NAME")?,
        version: value("VERSION_ID"),
        host_name,
    })
}

/// At most 255 characters, none of them a control character: this is shown on screens.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_control())
        .take(255)
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::filesystem::tree::{Entry, Node, NodeKind, TreeError};

    use super::*;

    #[test]
    fn names_come_from_os_release_and_hostname() {
        let release = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n";
        let found = from_release(release, Some("\nlab-17\n")).unwrap();
        assert_eq!(found.name, "Debian GNU/Linux");
        assert_eq!(found.version.as_deref(), Some("12"));
        assert_eq!(found.host_name.as_deref(), Some("lab-17"));
    }

    /// A tree of paths: `None` is a folder, a content that begins with `->` a link.
    struct Made {
        nodes: Vec<(&'static str, Option<&'static str>)>,
        ignores_case: bool,
    }

    impl FileTree for Made {
        fn root(&self) -> NodeId {
            NodeId { tree: 0, number: 0 }
        }

        fn node(&self, id: NodeId) -> Result<Node, TreeError> {
            let content = self.nodes[id.number as usize].1;
            Ok(Node {
                kind: match content {
                    None => NodeKind::Directory,
                    Some(text) if text.starts_with("->") => NodeKind::SymbolicLink,
                    Some(_) => NodeKind::File,
                },
                size: content.map_or(0, |text| text.len() as u64),
                mode: None,
                uid: None,
                gid: None,
                modified: None,
                links: 1,
                sealed: None,
            })
        }

        fn entries(
            &self,
            directory: NodeId,
            visit: &mut dyn FnMut(Entry) -> Result<(), TreeError>,
        ) -> Result<(), TreeError> {
            let above = self.nodes[directory.number as usize].0;
            for (number, (path, _)) in (0..).zip(&self.nodes) {
                let rest = path
                    .strip_prefix(above)
                    .and_then(|rest| rest.strip_prefix('/'));
                if let Some(name) = rest.filter(|name| !name.contains('/')) {
                    let node = NodeId { tree: 0, number };
                    let name = name.as_bytes().to_vec();
                    visit(Entry { name, node })?;
                }
            }
            Ok(())
        }

        fn read(&self, file: NodeId, _: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
            buffer.copy_from_slice(self.nodes[file.number as usize].1.unwrap().as_bytes());
            Ok(buffer.len())
        }

        fn link_target(&self, link: NodeId) -> Result<Vec<u8>, TreeError> {
            let text = self.nodes[link.number as usize].1.unwrap();
            Ok(text.as_bytes()[2..].to_vec())
        }

        fn ignores_case(&self) -> bool {
            self.ignores_case
        }
    }

    #[test]
    fn a_system_is_found_in_a_subvolume_and_its_links_stay_within_it() {
        let tree = Made {
            nodes: vec![
                ("", None),
                ("/@", None),
                ("/@/etc", None),
                ("/@/etc/os-release", Some("->/usr/lib/os-release")),
                ("/@/usr", None),
                ("/@/usr/lib", None),
                ("/@/usr/lib/os-release", Some("NAME=Inner\n")),
                ("/usr", None),
                ("/usr/lib", None),
                ("/usr/lib/other", Some("NAME=Outer\n")),
            ],
            ignores_case: false,
        };
        assert_eq!(system_in(&tree).unwrap().name, "Inner");
    }

    #[test]
    fn windows_is_known_by_its_registry_in_any_case() {
        let nodes = vec![
            ("", None),
            ("/WINDOWS", None),
            ("/WINDOWS/system32", None),
            ("/WINDOWS/system32/config", None),
            ("/WINDOWS/system32/config/SOFTWARE", Some("regf")),
        ];
        let mut tree = Made {
            nodes,
            ignores_case: true,
        };
        assert_eq!(system_in(&tree).unwrap().name, "Windows");
        tree.nodes.pop();
        assert_eq!(system_in(&tree), None);
    }

    #[test]
    fn programs_tell_their_machine() {
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 183;
        assert_eq!(machine_of(&elf), Some("aarch64"));
        elf[5] = 2;
        assert_eq!(machine_of(&elf), None, "another order of bytes");
        let mut pe = [0; 512];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x80;
        pe[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
        assert_eq!(machine_of(&pe), Some("x86_64"));
        pe[0x3d] = 0xff;
        assert_eq!(machine_of(&pe), None, "a header past the end");
        assert_eq!(machine_of(b"#!"), None);
    }

    #[test]
    fn a_file_without_a_name_is_no_system_and_control_characters_are_dropped() {
        assert_eq!(from_release("VERSION_ID=1\n", None), None);
        let found = from_release("NAME=a\u{1b}[31mb\n", Some("")).unwrap();
        assert_eq!((found.name.as_str(), found.host_name), ("a[31mb", None));
    }
}
