//! The files that the crate reads are those that the kernel reads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use backup::filesystem::tree::{self, FileTree, NodeId, NodeKind, TreeError};

use crate::images::{self, Image};
use crate::made::{MIB, Mount, make, no_mounts};

/// What a tree is compared with.
pub(crate) enum Place<'a> {
    /// The image itself, mounted for it.
    Image,
    /// A folder where it is mounted.
    Mounted(&'a Path),
    /// A folder of the same files with other owners, modes, times and links.
    Files(&'a Path),
}

pub(crate) fn open(image: &Path) -> Box<dyn FileTree> {
    let size = fs::metadata(image).unwrap().len();
    tree::open(Arc::new(Image::open(image)), size).unwrap()
}

pub(crate) fn names(tree: &dyn FileTree, folder: NodeId) -> BTreeMap<Vec<u8>, NodeId> {
    let mut names = BTreeMap::new();
    tree.entries(folder, &mut |entry| {
        let before = names.insert(entry.name.clone(), entry.node);
        assert!(before.is_none(), "{:?} twice", entry.name);
        Ok(())
    })
    .unwrap();
    names
}

/// Asserts that the files of an image are those of a place.
pub(crate) fn assert_tree_is(image: &Path, place: Place<'_>) {
    let tree = open(image);
    let tree = tree.as_ref();
    match place {
        Place::Image => {
            let folder = images::folder();
            let mount = Mount::new(image, folder.path().join("seen"), "ro");
            assert_same(tree, tree.root(), &mount.path, true);
            mount.unmount();
        }
        Place::Mounted(path) => assert_same(tree, tree.root(), path, true),
        Place::Files(path) => assert_same(tree, tree.root(), path, false),
    }
}

fn assert_same(tree: &dyn FileTree, id: NodeId, path: &Path, all: bool) {
    let node = tree.node(id).unwrap();
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    // glibc's gnu_dev_major and gnu_dev_minor for numbers of 32 bits.
    let (major, minor) = (
        (meta.rdev() >> 8 & 0xfff) as u32,
        (meta.rdev() & 0xff | meta.rdev() >> 12 & 0xf_ff00) as u32,
    );
    let expected = if kind.is_dir() {
        NodeKind::Directory
    } else if kind.is_symlink() {
        NodeKind::SymbolicLink
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else if kind.is_socket() {
        NodeKind::Socket
    } else if kind.is_block_device() {
        NodeKind::BlockDevice { major, minor }
    } else if kind.is_char_device() {
        NodeKind::CharacterDevice { major, minor }
    } else {
        NodeKind::File
    };
    assert_eq!(node.kind, expected, "{path:?}");
    if all {
        let time = node.modified.unwrap();
        assert_eq!(
            (time.seconds, i64::from(time.nanoseconds)),
            (meta.mtime(), meta.mtime_nsec()),
            "{path:?}"
        );
        assert_eq!(
            (node.mode, node.uid, node.gid),
            (
                Some(meta.mode() & 0o7777),
                Some(meta.uid()),
                Some(meta.gid())
            ),
            "{path:?}"
        );
        assert_eq!(u64::from(node.links), meta.nlink(), "{path:?}");
    }
    match node.kind {
        NodeKind::Directory => {
            let names = names(tree, id);
            let seen = fs::read_dir(path).unwrap().count();
            let extra = if all { 0 } else { names.len() - seen };
            assert_eq!(names.len(), seen + extra, "{path:?}");
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name();
                let node = names.get(name.as_bytes());
                let node = node.unwrap_or_else(|| panic!("{:?} is missing", entry.path()));
                assert_same(tree, *node, &entry.path(), all);
            }
        }
        NodeKind::SymbolicLink => {
            let target = fs::read_link(path).unwrap();
            assert_eq!(tree.link_target(id).unwrap(), target.as_os_str().as_bytes());
            assert_eq!(node.size, meta.len());
        }
        NodeKind::File => {
            assert_eq!(node.size, meta.len(), "{path:?}");
            assert_content(tree, id, path);
        }
        _ => assert_eq!(node.size, 0),
    }
}

/// Read from the start in pieces of an odd length, as far as the end.
fn assert_content(tree: &dyn FileTree, id: NodeId, path: &Path) {
    let expected = fs::read(path).unwrap();
    let mut buffer = vec![0xee; 300_007];
    let mut at = 0;
    loop {
        let count = tree.read(id, at as u64, &mut buffer).unwrap();
        assert!(
            buffer[..count] == expected[at..][..count],
            "{path:?} differs from byte {at}"
        );
        at += count;
        if count < buffer.len() {
            break;
        }
    }
    assert_eq!(at, expected.len(), "{path:?}");
    assert_eq!(tree.read(id, u64::MAX - 5, &mut buffer), Ok(0));
}

#[test]
fn inode_numbers_of_more_than_32_bits_are_followed() {
    if let Some(reason) = no_mounts() {
        eprintln!("skipped: {reason}");
        return;
    }
    // Four groups of nearly 1 TiB, of which nearly nothing is ever written.
    let folder = images::folder();
    let options = ["-d", "agcount=4", "-l", "size=64m", "-K"];
    let image = make(folder.path(), (4 << 40) - (1 << 30), &options);
    let mount = Mount::new(&image, folder.path().join("mount"), "rw");
    for number in 0..8 {
        let sub = mount.path.join(format!("folder{number}"));
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("file"), format!("{number}")).unwrap();
    }
    mount.unmount();
    let tree = open(&image);
    let wide = |id: &NodeId| id.number > u64::from(u32::MAX);
    assert!(names(tree.as_ref(), tree.root()).values().any(wide));
    assert_tree_is(&image, Place::Image);
    let used = crate::made::survey(&image).0.used.unwrap();
    let bytes: u64 = used.iter().map(|range| range.len()).sum();
    assert!(bytes < 80 * MIB, "{bytes} bytes in use");
}

#[test]
fn what_is_no_folder_file_or_link_is_refused() {
    let folder = images::folder();
    let (_, image) = crate::made::prototype(folder.path(), 64 * MIB, &[]);
    let tree = open(&image);
    let names = names(tree.as_ref(), tree.root());
    let (root, file, link) = (tree.root(), names[&b"large"[..]], names[&b"link"[..]]);
    let mut buffer = [0; 10];
    assert!(tree.read(root, 0, &mut buffer).is_err());
    assert!(tree.read(link, 0, &mut buffer).is_err());
    assert!(tree.link_target(file).is_err());
    assert!(tree.entries(file, &mut |_| Ok(())).is_err());
    assert_eq!(tree.link_target(link).unwrap(), b"sub/many");
    for number in [0, 1, root.number + 60, u64::MAX, 1 << 55] {
        assert!(tree.node(NodeId { tree: 0, number }).is_err(), "{number}");
    }
    assert!(tree.node(NodeId { tree: 1, ..root }).is_err());
    let end = tree.entries(root, &mut |_| Err(TreeError::NotFound("enough".to_owned())));
    assert_eq!(end, Err(TreeError::NotFound("enough".to_owned())));
}
