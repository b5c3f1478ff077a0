//! F1: the files of ext2, ext3 and ext4, against the folder that mke2fs made the image from, and against
//! debugfs.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

use backup::filesystem::tree::{self, FileTree, NodeId, NodeKind, TreeError};
use images::{Image, blank, folder, noise, run};

const MIB: u64 = 1 << 20;

fn source(folder: &Path) {
    fs::create_dir_all(folder.join("many")).unwrap();
    for number in 0..1500 {
        let name = format!("many/a-name-of-some-length-{number:05}");
        fs::write(folder.join(name), number.to_string()).unwrap();
    }
    fs::write(folder.join("small"), b"tiny").unwrap();
    fs::write(folder.join("medium"), noise(1, 130)).unwrap();
    fs::write(folder.join("large"), noise(2, 5 << 20)).unwrap();
    let holes = fs::File::create(folder.join("holes")).unwrap();
    for at in [70_000, 400_000, 9_000_000] {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"data", at).unwrap();
    }
    symlink("small", folder.join("short-link")).unwrap();
    symlink("x".repeat(300), folder.join("long-link")).unwrap();
    fs::hard_link(folder.join("small"), folder.join("second-name")).unwrap();
    let late = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5_000_000_000);
    fs::File::open(folder.join("small"))
        .unwrap()
        .set_modified(late)
        .unwrap();
}

/// All files of a tree by their paths, with what they are.
fn listing(tree: &dyn FileTree) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut ahead: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), tree.root())];
    while let Some((path, id)) = ahead.pop() {
        tree.entries(id, &mut |entry| {
            let path = [&path[..], b"/", &entry.name].concat();
            if path == b"/lost+found" {
                return Ok(());
            }
            let node = tree.node(entry.node)?;
            let content = match node.kind {
                NodeKind::File => {
                    let mut bytes = vec![0; node.size as usize + 10];
                    let len = tree.read(entry.node, 0, &mut bytes)?;
                    backup::Digest::of(&bytes[..len]).to_string()
                }
                NodeKind::SymbolicLink => {
                    String::from_utf8_lossy(&tree.link_target(entry.node)?).into_owned()
                }
                _ => String::new(),
            };
            let text = format!(
                "{:?} {} {:o} {:?}:{:?} {content}",
                node.kind,
                node.size,
                node.mode.unwrap(),
                node.uid,
                node.gid
            );
            if node.kind == NodeKind::Directory {
                ahead.push((path.clone(), entry.node));
            }
            found.insert(path, text);
            Ok(())
        })
        .unwrap();
    }
    found
}

fn expected(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let (kind, size, content) = if meta.is_dir() {
                ahead.push(path.clone());
                (NodeKind::Directory, 0, String::new())
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                (
                    NodeKind::SymbolicLink,
                    meta.len(),
                    target.display().to_string(),
                )
            } else {
                let digest = backup::Digest::of(&fs::read(&path).unwrap());
                (NodeKind::File, meta.len(), digest.to_string())
            };
            let text = format!(
                "{kind:?} {size} {:o} {:?}:{:?} {content}",
                meta.mode() & 0o7777,
                Some(meta.uid()),
                Some(meta.gid())
            );
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
            found.insert([b"/", name].concat(), text);
        }
    }
    found
}

fn open(image: &Path) -> Result<Box<dyn FileTree>, TreeError> {
    let size = fs::metadata(image).unwrap().len();
    tree::open(Arc::new(Image::open(image)), size)
}

fn find(tree: &dyn FileTree, name: &str) -> NodeId {
    let mut found = None;
    tree.entries(tree.root(), &mut |entry| {
        if entry.name == name.as_bytes() {
            found = Some(entry.node);
        }
        Ok(())
    })
    .unwrap();
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn content(tree: &dyn FileTree, name: &str) -> Vec<u8> {
    let id = find(tree, name);
    let mut bytes = vec![0; tree.node(id).unwrap().size as usize];
    assert_eq!(tree.read(id, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

#[test]
fn every_layout_gives_the_files_that_went_in() {
    let folder = folder();
    let tree_folder = folder.path().join("tree");
    source(&tree_folder);
    let wanted = expected(&tree_folder);
    let image = folder.path().join("image");
    for options in [
        &["-t", "ext2", "-b", "1024"][..],
        &["-t", "ext2", "-r", "0", "-b", "4096"],
        &["-t", "ext3", "-b", "2048"],
        &["-t", "ext4", "-b", "1024"],
        &[
            "-t",
            "ext4",
            "-b",
            "4096",
            "-I",
            "1024",
            "-O",
            "inline_data",
        ],
        &["-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"],
        &[
            "-t",
            "ext4",
            "-O",
            "meta_bg,^resize_inode,metadata_csum_seed",
        ],
        &["-t", "ext4", "-O", "bigalloc"],
    ] {
        blank(&image, 40 * MIB);
        let mut words = vec![
            "-q",
            "-F",
            "-N",
            "2048",
            "-d",
            tree_folder.to_str().unwrap(),
        ];
        words.extend_from_slice(options);
        words.push(image.to_str().unwrap());
        run("e2fsprogs", "mke2fs", &words);
        // Hashed folders, as the kernel makes them.
        run(
            "e2fsprogs",
            "tune2fs",
            &["-O", "dir_index", image.to_str().unwrap()],
        );
        images::output("e2fsprogs", "e2fsck", &["-fyD", image.to_str().unwrap()]);
        if options.contains(&"ext4") {
            // mke2fs keeps neither the bits of 2038 and later nor the nanoseconds.
            let request = "sif small mtime_extra 29";
            let words = ["-w", "-R", request, image.to_str().unwrap()];
            run("e2fsprogs", "debugfs", &words);
        }
        let tree = open(&image).unwrap();
        let found = listing(tree.as_ref());
        for (path, text) in &wanted {
            assert_eq!(
                found.get(path),
                Some(text),
                "{options:?} {}",
                String::from_utf8_lossy(path)
            );
        }
        assert_eq!(found.len(), wanted.len(), "{options:?}");
        let node = tree.node(find(tree.as_ref(), "second-name")).unwrap();
        assert_eq!(node.links, 2);
        if options.contains(&"ext4") {
            let time = node.modified.unwrap();
            assert_eq!((time.seconds, time.nanoseconds), (5_000_000_000, 7));
        }
    }
}

#[test]
fn devices_have_their_numbers() {
    let folder = folder();
    let image = folder.path().join("image");
    blank(&image, 8 * MIB);
    run(
        "e2fsprogs",
        "mke2fs",
        &["-q", "-F", image.to_str().unwrap()],
    );
    let script = folder.path().join("script");
    // debugfs makes no devices with large numbers: their word is the kernel's `new_encode_dev(300, 70000)`.
    let commands = "mknod old b 8 17\nmknod new c 1 1\nsif new block[0] 0\n\
                    sif new block[1] 286338160\nmknod pipe p\n";
    fs::write(&script, commands).unwrap();
    let words = [
        "-w",
        "-f",
        script.to_str().unwrap(),
        image.to_str().unwrap(),
    ];
    run("e2fsprogs", "debugfs", &words);
    let tree = open(&image).unwrap();
    let kind = |name: &str| tree.node(find(tree.as_ref(), name)).unwrap().kind;
    let (major, minor) = (8, 17);
    assert_eq!(kind("old"), NodeKind::BlockDevice { major, minor });
    let (major, minor) = (300, 70_000);
    assert_eq!(kind("new"), NodeKind::CharacterDevice { major, minor });
    assert_eq!(kind("pipe"), NodeKind::Fifo);
}

#[test]
fn what_is_only_in_the_journal_is_read_from_it() {
    for options in ["^metadata_csum,^64bit", "metadata_csum,64bit"] {
        let folder = folder();
        let tree_folder = folder.path().join("tree");
        fs::create_dir(&tree_folder).unwrap();
        fs::write(tree_folder.join("old"), noise(1, 4096)).unwrap();
        fs::write(tree_folder.join("revoked"), noise(2, 4096)).unwrap();
        let image = folder.path().join("image");
        blank(&image, 16 * MIB);
        let path = image.to_str().unwrap();
        let words = ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", options, "-d"];
        let words = [&words[..], &[tree_folder.to_str().unwrap(), path]].concat();
        run("e2fsprogs", "mke2fs", &words);
        let block = |name: &str| {
            let request = format!("blocks {name}");
            let said = run("e2fsprogs", "debugfs", &["-R", &request, path]);
            said.trim().to_owned()
        };
        // A block that begins with the journal's own magic number is kept there changed.
        let mut newer = noise(3, 4096);
        newer[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        fs::write(folder.path().join("newer"), &newer).unwrap();
        let place = folder.path().join("newer").display().to_string();
        let script = folder.path().join("script");
        let (old, revoked) = (block("old"), block("revoked"));
        let flag = if options.starts_with('^') {
            ""
        } else {
            " -c -v 3"
        };
        let commands = format!(
            "jo{flag}\njw -b {old} {place}\njw -b {revoked} {place}\njw -r {revoked}\njc\n"
        );
        fs::write(&script, commands).unwrap();
        let words = ["-w", "-f", script.to_str().unwrap(), path];
        run("e2fsprogs", "debugfs", &words);
        let before = fs::read(&image).unwrap();
        let tree = open(&image).unwrap();
        assert_eq!(content(tree.as_ref(), "old"), newer, "{options}");
        assert_eq!(content(tree.as_ref(), "revoked"), noise(2, 4096));
        // e2fsck replays the journal in its own way and comes to the same.
        images::output("e2fsprogs", "e2fsck", &["-fy", path]);
        assert!(fs::read(&image).unwrap() != before, "nothing was replayed");
        let tree = open(&image).unwrap();
        assert_eq!(content(tree.as_ref(), "old"), newer, "{options}");
    }
}

#[test]
fn damage_is_an_error_and_never_a_panic_or_an_endless_walk() {
    let folder = folder();
    let tree_folder = folder.path().join("tree");
    fs::create_dir_all(tree_folder.join("a/b")).unwrap();
    fs::write(tree_folder.join("a/file"), noise(1, 60_000)).unwrap();
    let image = folder.path().join("image");
    for kind in ["ext2", "ext4"] {
        blank(&image, 2 * MIB);
        let words = [
            "-q",
            "-F",
            "-t",
            kind,
            "-O",
            "^metadata_csum,^has_journal",
            "-d",
        ];
        let words = [
            &words[..],
            &[tree_folder.to_str().unwrap(), image.to_str().unwrap()],
        ]
        .concat();
        run("e2fsprogs", "mke2fs", &words);
        let whole = fs::read(&image).unwrap();
        let mut opened = 0;
        for round in 0..250 {
            let mut bytes = whole.clone();
            for spot in noise(round, 64).chunks_exact(4) {
                let at = u32::from_le_bytes([spot[0], spot[1], spot[2], 0]) as usize % (200 << 10);
                bytes[at] = spot[3];
            }
            let size = bytes.len() as u64;
            let volume = Arc::new(Owned(bytes));
            let Ok(tree) = tree::open(volume, size) else {
                continue;
            };
            opened += 1;
            let mut ahead = vec![tree.root()];
            let mut steps = 0;
            while let Some(id) = ahead.pop() {
                steps += 1;
                if steps > 2000 {
                    break;
                }
                let _ = tree.entries(id, &mut |entry| {
                    if steps < 1000 && ahead.len() < 1000 {
                        ahead.push(entry.node);
                    }
                    Ok(())
                });
                let _ = tree.read(id, 5, &mut [0; 70_000]);
                let _ = tree.link_target(id);
            }
        }
        assert!(opened > 60, "{kind}: {opened}");
    }
}

struct Owned(Vec<u8>);

impl backup::filesystem::ReadAt for Owned {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), backup::filesystem::ReadError> {
        images::Memory(&self.0).read_at(offset, buffer)
    }
}

/// Length and digest, for comparisons that people can read.
fn told(bytes: &[u8]) -> String {
    format!("{} bytes, {}", bytes.len(), backup::Digest::of(bytes))
}

/// An access list as programs give it to the kernel.
fn access_list() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, number) in [
        (0x01u16, 6u16, u32::MAX),
        (0x02, 4, 1000),
        (0x04, 4, u32::MAX),
        (0x08, 7, 50),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

#[test]
fn attributes_and_access_lists_are_what_debugfs_wrote_wherever_they_lie() {
    for (features, longest) in [("ea_inode,metadata_csum", 4000), ("^metadata_csum", 2000)] {
        let folder = folder();
        let tree_folder = folder.path().join("tree");
        fs::create_dir_all(tree_folder.join("sub")).unwrap();
        fs::write(tree_folder.join("file"), b"x").unwrap();
        fs::write(tree_folder.join("plain"), b"x").unwrap();
        let image = folder.path().join("image");
        blank(&image, 16 * MIB);
        let (from, to) = (tree_folder.to_str().unwrap(), image.to_str().unwrap());
        let make = [
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-O", features, "-d", from, to,
        ];
        run("e2fsprogs", "mke2fs", &make);
        // debugfs sets no more than a block. The first lies in the inode, the next in a block, the last, if it can, in an inode of its own.
        let wanted = [
            ("/file", "user.comment", b"in the inode".to_vec()),
            ("/file", "security.other", noise(1, 900)),
            ("/file", "user.long", noise(2, longest)),
            ("/file", "system.posix_acl_access", access_list()),
            ("/sub", "system.posix_acl_default", access_list()),
            ("/sub", "user.empty", Vec::new()),
        ];
        let value = folder.path().join("value");
        for (path, name, bytes) in &wanted {
            fs::write(&value, bytes).unwrap();
            let command = format!("ea_set -f {} {path} {name}", value.display());
            run("e2fsprogs", "debugfs", &["-w", "-R", &command, to]);
        }
        let volume = Arc::new(Image::open(&image));
        let tree = tree::open(volume, 16 * MIB).unwrap();
        for path in ["file", "sub", "plain"] {
            let id = backup::filesystem::tree_path::find(
                tree.as_ref(),
                tree.root(),
                path.as_bytes(),
                backup::filesystem::tree_path::AtEnd::Stay,
            )
            .unwrap();
            let mut found: Vec<_> = tree
                .attributes(id)
                .unwrap()
                .into_iter()
                .map(|one| (String::from_utf8(one.name).unwrap(), told(&one.value)))
                .collect();
            found.sort();
            let mut expected: Vec<_> = wanted
                .iter()
                .filter(|(of, ..)| &of[1..] == path)
                .map(|(_, name, bytes)| ((*name).to_owned(), told(bytes)))
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{features}: {path}");
        }
    }
}
