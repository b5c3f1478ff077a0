//! F1: the files of NTFS volumes, compared with what ntfs-3g shows of them.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;
mod ntfs_volumes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use backup::filesystem::tree::{self, FileTree, NodeId, NodeKind, TreeError};
use backup::filesystem::{ReadAt, ReadError};
use images::{Image, Memory, noise, run};
use ntfs_volumes::{
    MIB, Mount, Seen, attribute_at, can_mount, fill, format, record_at, seen, set_attribute,
};
use proptest::prelude::{any, proptest};

const DATA: u32 = 0x80;

/// Bytes in memory that a tree can keep.
struct Owned(Vec<u8>);

impl ReadAt for Owned {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        Memory(&self.0).read_at(offset, buffer)
    }
}

fn open(image: &Path) -> Box<dyn FileTree> {
    let size = fs::metadata(image).unwrap().len();
    tree::open(Arc::new(Image::open(image)), size).unwrap()
}

/// A file's content in reads of odd lengths.
fn content(tree: &dyn FileTree, id: NodeId) -> Result<Vec<u8>, TreeError> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 70_001];
    loop {
        let len = tree.read(id, content.len() as u64, &mut buffer)?;
        if len == 0 {
            return Ok(content);
        }
        content.extend_from_slice(&buffer[..len]);
    }
}

fn names(tree: &dyn FileTree, id: NodeId) -> Result<Vec<(Vec<u8>, NodeId)>, TreeError> {
    let mut names = Vec::new();
    tree.entries(id, &mut |entry| {
        names.push((entry.name, entry.node));
        Ok(())
    })?;
    Ok(names)
}

/// Everything in a tree by its path.
fn read_all(tree: &dyn FileTree) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut folders = vec![(Vec::new(), tree.root())];
    while let Some((folder, id)) = folders.pop() {
        for (name, id) in names(tree, id).unwrap() {
            let mut path: Vec<u8> = folder.clone();
            path.extend(if folder.is_empty() { &b""[..] } else { b"/" });
            path.extend(name);
            let node = tree.node(id).unwrap();
            assert_eq!(node.sealed, None);
            let what = match node.kind {
                NodeKind::Directory => {
                    folders.push((path.clone(), id));
                    Seen::Folder
                }
                NodeKind::SymbolicLink => Seen::Link(tree.link_target(id).unwrap()),
                NodeKind::File => {
                    let content = content(tree, id).unwrap();
                    assert_eq!(content.len() as u64, node.size);
                    let modified = node.modified.unwrap();
                    Seen::File {
                        content,
                        modified: (modified.seconds, i64::from(modified.nanoseconds)),
                        links: u64::from(node.links),
                    }
                }
                other => panic!("{other:?}"),
            };
            assert!(all.insert(path, what).is_none());
        }
    }
    all
}

fn shows_the_same(size: u64, options: &[&str]) {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let (image, place) = (folder.path().join("image"), folder.path().join("mount"));
    format(&image, size, options);
    let mount = Mount::new(&image, &place, "rw");
    fill(mount.path());
    drop(mount);
    let mount = Mount::new(&image, &place, "ro");
    let expected = seen(mount.path());
    let text = fs::metadata(place.join("compressed/text")).unwrap();
    let compresses = !matches!(options, ["-c", "65536"]);
    assert_eq!(
        text.blocks() * 512 < text.len() / 2,
        compresses,
        "{options:?}"
    );
    drop(mount);
    let found = read_all(open(&image).as_ref());
    let paths = |all: &BTreeMap<Vec<u8>, Seen>| -> Vec<String> {
        all.keys()
            .map(|path| String::from_utf8(path.clone()).unwrap())
            .collect()
    };
    assert_eq!(paths(&found), paths(&expected));
    for (path, what) in &found {
        // Not by assert_eq!, which would print megabytes.
        assert!(
            *what == expected[path],
            "{options:?}: {}",
            String::from_utf8_lossy(path)
        );
    }
}

#[test]
fn small_clusters_and_compressed_files_are_read_as_ntfs_3g_reads_them() {
    shows_the_same(24 * MIB, &["-c", "512"]);
    shows_the_same(24 * MIB, &["-c", "4096"]);
}

#[test]
fn large_clusters_and_sectors_are_read_as_ntfs_3g_reads_them() {
    shows_the_same(80 * MIB, &["-c", "65536"]);
    shows_the_same(24 * MIB, &["-s", "4096"]);
}

/// The entry of a name in a folder.
fn find(tree: &dyn FileTree, folder: NodeId, name: &str) -> NodeId {
    let names = names(tree, folder).unwrap();
    let entry = names
        .into_iter()
        .find(|(found, _)| found == name.as_bytes());
    entry.unwrap_or_else(|| panic!("no {name}")).1
}

/// Reparse data in hexadecimal: tag, length, data.
fn reparse(tag: u32, data: &[u8]) -> String {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((data.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend_from_slice(data);
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// The data of a symbolic link or junction, without the name for the system's own use.
fn link(flags: &[u8], target: &str) -> Vec<u8> {
    let name: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = (name.len() as u16).to_le_bytes();
    let mut data = [&[0, 0], &len[..], &len[..], &len[..]].concat();
    data.extend_from_slice(flags);
    [&data[..], &name, &name].concat()
}

#[test]
fn reparse_points_are_links_or_say_why_they_are_sealed() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 8 * MIB, &[]);
    let mount = Mount::new(&image, &folder.path().join("mount"), "rw,special_files=wsl");
    let top = mount.path();
    let point = |name: &str, tag: u32, data: &[u8]| {
        set_attribute(
            &top.join(name),
            "system.ntfs_reparse_data",
            &reparse(tag, data),
        );
    };
    for name in ["link", "wof", "dedup", "cloud", "strange"] {
        fs::write(top.join(name), noise(1, 3000)).unwrap();
    }
    // As the Windows Subsystem for Linux makes them.
    drop(std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap());
    run("coreutils", "mkfifo", &[top.join("fifo").to_str().unwrap()]);
    std::os::unix::fs::symlink("/etc/passwd", top.join("wsl")).unwrap();
    for name in ["junction", "cloud folder"] {
        fs::create_dir(top.join(name)).unwrap();
    }
    fs::write(top.join("cloud folder/inside"), "inside").unwrap();
    let away = fs::File::create(top.join("away")).unwrap();
    away.set_len(1 << 20).unwrap();
    drop(away);
    point("link", 0xa000_000c, &link(&[1, 0, 0, 0], r"..\näher"));
    point("junction", 0xa000_0003, &link(&[], r"C:\Users"));
    point("wof", 0x8000_0017, &[1; 16]);
    point("dedup", 0x8000_0013, &[1; 16]);
    point("cloud", 0x9000_101a, &[1; 16]);
    point("away", 0x9000_101a, &[1; 16]);
    point("cloud folder", 0x9000_101a, &[1; 16]);
    point("strange", 0x8000_0042, &[1; 32]);
    drop(mount);

    let tree = open(&image);
    let tree = tree.as_ref();
    let at = |name: &str| find(tree, tree.root(), name);
    for (name, target) in [
        ("link", r"..\näher"),
        ("junction", r"C:\Users"),
        ("wsl", "/etc/passwd"),
    ] {
        assert_eq!(
            tree.node(at(name)).unwrap().kind,
            NodeKind::SymbolicLink,
            "{name}"
        );
        assert_eq!(tree.link_target(at(name)).unwrap(), target.as_bytes());
    }
    for (name, why) in [
        ("wof", "compressed by Windows"),
        ("dedup", "deduplicated"),
        ("away", "cloud"),
        ("strange", "unknown kind"),
    ] {
        let node = tree.node(at(name)).unwrap();
        assert_eq!(node.kind, NodeKind::File);
        assert!(node.sealed.unwrap().contains(why), "{node:?}");
        let error = tree.read(at(name), 0, &mut [0; 9]).unwrap_err();
        assert!(
            matches!(&error, TreeError::Unsupported(text) if text.contains(why)),
            "{error}"
        );
    }
    // One that is wholly here.
    assert_eq!(content(tree, at("cloud")).unwrap(), noise(1, 3000));
    let inside = find(tree, at("cloud folder"), "inside");
    assert_eq!(content(tree, inside).unwrap(), b"inside");
    assert_eq!(tree.node(at("socket")).unwrap().kind, NodeKind::Socket);
    assert_eq!(tree.node(at("fifo")).unwrap().kind, NodeKind::Fifo);
    assert!(tree.read(at("fifo"), 0, &mut [0; 9]).is_err());
    assert!(names(tree, at("junction")).is_err());
    assert!(tree.link_target(at("cloud")).is_err());
    assert!(tree.ignores_case());
}

/// A small volume with a folder in blocks, a compressed and a large file; and the record of `large`.
fn small() -> (Vec<u8>, usize) {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 8 * MIB, &["-c", "4096"]);
    let mount = Mount::new(&image, &folder.path().join("mount"), "rw");
    let top = mount.path();
    fs::write(top.join("large"), noise(3, 200_000)).unwrap();
    let compressed = top.join("compressed");
    fs::create_dir(&compressed).unwrap();
    set_attribute(&compressed, "system.ntfs_attrib_be", "0x00000800");
    fs::write(compressed.join("file"), "word ".repeat(50_000)).unwrap();
    for number in 0..40 {
        fs::write(top.join(format!("a name of some length {number}")), "small").unwrap();
    }
    drop(mount);
    let tree = open(&image);
    let large = find(tree.as_ref(), tree.root(), "large").number & 0xffff_ffff;
    (fs::read(&image).unwrap(), large as usize)
}

fn tree_of(bytes: Vec<u8>) -> Result<Box<dyn FileTree>, TreeError> {
    let size = bytes.len() as u64;
    tree::open(Arc::new(Owned(bytes)), size)
}

#[test]
fn encrypted_files_are_listed_and_sealed() {
    if !can_mount() {
        return;
    }
    let (mut bytes, large) = small();
    let at = attribute_at(&bytes, large, DATA);
    bytes[at + 13] |= 0x40;
    let tree = tree_of(bytes).unwrap();
    let id = find(tree.as_ref(), tree.root(), "large");
    let node = tree.node(id).unwrap();
    assert_eq!((node.sealed, node.size), (Some("encrypted"), 200_000));
    let error = tree.read(id, 0, &mut [0; 9]).unwrap_err();
    assert!(error.to_string().contains("encrypted"), "{error}");
}

#[test]
fn what_was_never_written_of_a_file_is_zeros() {
    if !can_mount() {
        return;
    }
    let (mut bytes, large) = small();
    let at = attribute_at(&bytes, large, DATA) + 56;
    bytes[at..at + 8].copy_from_slice(&5001_u64.to_le_bytes());
    let tree = tree_of(bytes).unwrap();
    let found = content(tree.as_ref(), find(tree.as_ref(), tree.root(), "large")).unwrap();
    let mut expected = noise(3, 200_000);
    expected[5001..].fill(0);
    assert!(found == expected);
}

#[test]
fn a_record_that_was_given_to_another_file_is_not_read_as_the_old_one() {
    if !can_mount() {
        return;
    }
    let (mut bytes, large) = small();
    let record = record_at(&bytes, large);
    bytes[record + 16] ^= 2;
    let tree = tree_of(bytes).unwrap();
    let id = find(tree.as_ref(), tree.root(), "large");
    assert!(matches!(tree.node(id), Err(TreeError::Damaged(_))));
}

/// Reads as far as it goes.
fn explore(tree: &dyn FileTree, id: NodeId, depth: usize, left: &mut usize) {
    let Ok(node) = tree.node(id) else {
        return;
    };
    let _ = tree.link_target(id);
    let mut buffer = vec![0; 10_000];
    for offset in [0, 3, node.size.saturating_sub(5), u64::MAX - 3] {
        let _ = tree.read(id, offset, &mut buffer);
    }
    let mut below = Vec::new();
    let _ = tree.entries(id, &mut |entry| {
        assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0));
        below.push(entry.node);
        Ok(())
    });
    for id in below {
        if depth > 0 && *left > 0 {
            *left -= 1;
            explore(tree, id, depth - 1, left);
        }
    }
}

#[test]
fn random_damage_never_panics() {
    if !can_mount() {
        return;
    }
    let (good, _) = small();
    let table = record_at(&good, 0);
    let config = proptest::test_runner::Config::with_cases(250);
    proptest!(config, |(flips in proptest::collection::vec(
        (any::<u32>(), any::<u8>(), 0_u8..8), 1..16))| {
        let mut damaged = good.clone();
        for (place, value, area) in flips {
            let place = place as usize;
            let at = match area {
                0 => place % 512,
                1 => place % damaged.len(),
                // Where files are described, but for the ends of their sectors.
                _ => table + (5 + place % 110) * 1024 + (place >> 8) % 400,
            };
            damaged[at] ^= value;
        }
        if let Ok(tree) = tree_of(damaged) {
            explore(tree.as_ref(), tree.root(), 4, &mut 200);
        }
    });
}
