//! The operating system on a captured disk: its name, version and host name.
//!
//! Nothing is mounted: the files are read through the file system's own structures, from the device
//! that is open read only. Invariant: this only adds a name to a restore point; whatever cannot be
//! read is left out, and no link leads outside the file system.

use std::sync::Arc;

use backup::ByteRange;
use backup::filesystem::tree::{self, FileTree, NodeId, TreeError};
use backup::filesystem::tree_path::{self, AtEnd};
use backup::filesystem::{ReadAt, ReadError};
use backup::manifest::{OperatingSystem, Region};

use crate::device::BlockDevice;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 64 << 10;
/// Where a system begins: the top of the volume, or the subvolume of Btrfs that distributions put it in.
const PLACES: [&str; 3] = ["", "@", "root"];

/// Looks for a system in the regions that hold a file system.
pub(crate) fn find(device: &Arc<dyn BlockDevice>, regions: &[Region]) -> Option<OperatingSystem> {
    regions
        .iter()
        .filter(|region| region.volume.is_some())
        .find_map(|region| read_system(device, region.range))
}

fn read_system(device: &Arc<dyn BlockDevice>, range: ByteRange) -> Option<OperatingSystem> {
    let volume = Arc::new(Volume {
        device: Arc::clone(device),
        range,
    });
    let tree = tree::open(volume, range.len())
        .map_err(|error| log::debug!("{range}: {error}"))
        .ok()?;
    system_in(tree.as_ref())
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
    match tree_path::find(tree, top, path.as_bytes(), AtEnd::Follow) {
        Ok(found) => Some(found),
        Err(TreeError::NotFound(_)) => None,
        Err(error) => {
            log::debug!("{path}: {error}");
            None
        }
    }
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

struct Volume {
    device: Arc<dyn BlockDevice>,
    range: ByteRange,
}

impl ReadAt for Volume {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let failed = |reason| ReadError {
            offset,
            len,
            reason,
        };
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.range.len());
        if !inside {
            return Err(failed("past the end of the volume".to_owned()));
        }
        self.device
            .read_at(self.range.start() + offset, buffer)
            .map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use backup::filesystem::tree::{Entry, Node, NodeKind};

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
    fn a_file_without_a_name_is_no_system_and_control_characters_are_dropped() {
        assert_eq!(from_release("VERSION_ID=1\n", None), None);
        let found = from_release("NAME=a\u{1b}[31mb\n", Some("")).unwrap();
        assert_eq!((found.name.as_str(), found.host_name), ("a[31mb", None));
    }
}
