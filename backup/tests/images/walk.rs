//! All files of a volume, read through the crate's file trees.

#![allow(
    dead_code,
    reason = "each test binary compiles this module and uses a part of it"
)]

use std::collections::BTreeMap;
use std::path::Path;

use backup::filesystem::tree::{FileTree, NodeId, NodeKind, Timestamp};
use backup::filesystem::{ReadAt, ReadError};

use crate::images::Memory;

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) node: NodeId,
    /// Of a file; a folder has none.
    pub(crate) content: Option<Vec<u8>>,
    pub(crate) modified: Option<Timestamp>,
}

/// Every path of a tree, without a slash in front.
pub(crate) fn all(tree: &dyn FileTree) -> BTreeMap<String, Found> {
    let mut found = BTreeMap::new();
    under(tree, tree.root(), "", &mut found);
    found
}

fn under(tree: &dyn FileTree, folder: NodeId, path: &str, found: &mut BTreeMap<String, Found>) {
    let mut entries = Vec::new();
    tree.entries(folder, &mut |entry| {
        entries.push(entry);
        Ok(())
    })
    .unwrap();
    for entry in entries {
        let name = String::from_utf8(entry.name).unwrap();
        let path = format!("{path}{name}");
        let node = tree.node(entry.node).unwrap();
        let content = match node.kind {
            NodeKind::Directory => {
                under(tree, entry.node, &format!("{path}/"), found);
                None
            }
            NodeKind::File => Some(content(tree, entry.node, node.size)),
            kind => panic!("{path}: {kind:?}"),
        };
        let (node, modified) = (entry.node, node.modified);
        let before = found.insert(
            path.clone(),
            Found {
                node,
                content,
                modified,
            },
        );
        assert!(before.is_none(), "{path} twice");
    }
}

/// A file's content in pieces that fit no cluster.
pub(crate) fn content(tree: &dyn FileTree, file: NodeId, size: u64) -> Vec<u8> {
    let mut content = Vec::new();
    let mut piece = vec![0; 70_001];
    loop {
        let len = tree.read(file, content.len() as u64, &mut piece).unwrap();
        content.extend_from_slice(&piece[..len]);
        if len < piece.len() {
            break;
        }
    }
    assert_eq!(content.len() as u64, size);
    // And a place in the middle, after the end was read.
    let mut few = [0; 100];
    let at = content.len() / 2;
    let len = tree.read(file, at as u64, &mut few).unwrap();
    assert_eq!(few[..len], content[at..content.len().min(at + 100)]);
    content
}

/// The same of a folder of this machine.
pub(crate) fn of_folder(folder: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    of_folder_under(folder, "", &mut found);
    found
}

fn of_folder_under(folder: &Path, path: &str, found: &mut BTreeMap<String, Option<Vec<u8>>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{path}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            of_folder_under(&entry.path(), &format!("{path}/"), found);
            found.insert(path, None);
        } else {
            found.insert(path, Some(std::fs::read(entry.path()).unwrap()));
        }
    }
}

/// Asserts that extents lead to the content of `files`, whole and nothing twice; for contents that
/// are all different.
pub(crate) fn assert_extents_are_files(
    image: &[u8],
    extents: &[backup::filesystem::FileExtent],
    files: &BTreeMap<String, Option<Vec<u8>>>,
) {
    let mut left: BTreeMap<&String, usize> = files
        .iter()
        .filter_map(|(name, content)| Some((name, content.as_ref()?.len())))
        .collect();
    for extent in extents {
        let bytes = &image[extent.range.start() as usize..extent.range.end() as usize];
        let at = extent.file_offset as usize;
        let owner = files.iter().find_map(|(name, content)| {
            let rest = content
                .as_ref()?
                .get(at..)
                .filter(|rest| !rest.is_empty())?;
            let len = rest.len().min(bytes.len());
            (rest[..len] == bytes[..len]).then_some((name, len))
        });
        let (name, len) = owner.unwrap_or_else(|| panic!("{extent:?} is of no file"));
        let left = left.get_mut(name).unwrap();
        *left = left.checked_sub(len).unwrap();
    }
    left.retain(|_, left| *left > 0);
    assert!(left.is_empty(), "without extents: {left:?}");
}

/// Memory that a tree can keep.
pub(crate) struct Owned(pub(crate) Vec<u8>);

impl ReadAt for Owned {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        Memory(&self.0).read_at(offset, buffer)
    }
}

/// Reads what can be read of a damaged tree.
pub(crate) fn visit(tree: &dyn FileTree, folder: NodeId, depth: u32) {
    let mut entries = Vec::new();
    let _ = tree.entries(folder, &mut |entry| {
        entries.push(entry);
        Ok(())
    });
    let mut buffer = vec![0; 4096];
    for entry in entries {
        match tree.node(entry.node).map(|node| node.kind) {
            Ok(NodeKind::Directory) if depth < 8 => visit(tree, entry.node, depth + 1),
            Ok(NodeKind::Directory) | Err(_) => {}
            Ok(_) => {
                let _ = tree.read(entry.node, 1000, &mut buffer);
            }
        }
    }
}
