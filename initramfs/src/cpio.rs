//! The cpio archive format that the kernel unpacks as its first root file system ("newc").
//!
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` and
//! `init/initramfs.c`. Each entry is a header of ASCII hexadecimal fields, the name with its NUL, and
//! the content; name and content are each padded with zeros to four bytes:
//!
//! ```text
//! "070701" ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
//!  6       8   8    8   8   8     8     8        8        8        8         8         8        8
//! ```
//!
//! Invariant: the same tree gives the same bytes, whoever writes it: owner and group are 0, the time is
//! fixed, inode numbers count from 1 in the tree's order, and there are no hard links.
//!
//! Not here: compression, and reading archives (only the tests read them back).

use crate::tree::{Node, Tree};

/// Size of a header: the magic and thirteen fields of eight digits.
const HEADER_BYTES: usize = 6 + 13 * 8;

/// Modification time of every entry, in seconds since 1970: none.
const MTIME: u32 = 0;

/// An archive is filled up with zeros to a multiple of this, as GNU cpio does. The kernel skips them; they
/// let `cpio` list several archives in one stream, run once for each.
const BLOCK_BYTES: usize = 512;

/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// File type bits of `mode` (`inode(7)`).
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Why a tree has no cpio form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CpioError {
    /// A file is larger than the format's 32-bit size field.
    #[error("{path}: {bytes} bytes do not fit into a cpio entry, which holds at most 4294967295")]
    TooLarge {
        /// The file's path in the archive.
        path: String,
        /// Its size.
        bytes: usize,
    },
}

/// The archive of `tree`, ended by the trailer entry.
///
/// # Errors
/// [`CpioError::TooLarge`] for a file of 4 GiB or more.
pub(crate) fn write(tree: &Tree) -> Result<Vec<u8>, CpioError> {
    let mut out = Vec::new();
    for (index, (path, node)) in tree.iter().enumerate() {
        let (mode, data, device): (u32, &[u8], (u32, u32)) = match node {
            Node::Directory { mode } => (S_IFDIR | mode, &[], (0, 0)),
            Node::File { mode, data } => (S_IFREG | mode, data, (0, 0)),
            Node::Symlink { target } => (S_IFLNK | 0o777, target.as_bytes(), (0, 0)),
            Node::CharDevice { mode, major, minor } => (S_IFCHR | mode, &[], (*major, *minor)),
        };
        let bytes = u32::try_from(data.len()).map_err(|_| CpioError::TooLarge {
            path: path.to_owned(),
            bytes: data.len(),
        })?;
        // Two for a directory, as every file system says; the kernel looks only for more than one
        // on regular files.
        let links = if matches!(node, Node::Directory { .. }) {
            2
        } else {
            1
        };
        // An inode number past 32 bits would need more entries than fit into memory.
        let inode = index as u32 + 1;
        entry(&mut out, path, [inode, mode, links, bytes], device);
        out.extend_from_slice(data);
        pad(&mut out);
    }
    entry(&mut out, TRAILER, [0, 0, 1, 0], (0, 0));
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(out)
}

/// Writes a header and name; `[inode, mode, links, size]` are the fields that vary.
fn entry(out: &mut Vec<u8>, name: &str, fields: [u32; 4], device: (u32, u32)) {
    let [inode, mode, links, size] = fields;
    let name_size = name.len() as u32 + 1;
    let header = [
        inode, mode, 0, 0, links, MTIME, size, 0, 0, device.0, device.1, name_size, 0,
    ];
    out.reserve(HEADER_BYTES + name.len() + size as usize + 8);
    out.extend_from_slice(b"070701");
    for field in header {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
}

/// Zeros up to the next multiple of four.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    /// Reads an archive back, checking what the writer promises.
    pub(crate) fn read(archive: &[u8]) -> Tree {
        let mut tree = Tree::default();
        let mut at = 0;
        for inode in 1.. {
            assert_eq!(&archive[at..at + 6], b"070701", "magic at {at}");
            let fields: Vec<u32> = archive[at + 6..at + HEADER_BYTES]
                .chunks(8)
                .map(|digits| u32::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap())
                .collect();
            let name_size = fields[11] as usize;
            let name_at = at + HEADER_BYTES;
            let name = str::from_utf8(&archive[name_at..name_at + name_size - 1]).unwrap();
            let data_at = (name_at + name_size).next_multiple_of(4);
            let data = &archive[data_at..data_at + fields[6] as usize];
            at = (data_at + data.len()).next_multiple_of(4);
            if name == TRAILER {
                break;
            }
            assert_eq!(fields[0], inode);
            assert_eq!((fields[2], fields[3], fields[5]), (0, 0, MTIME));
            let mode = fields[1] & 0o7777;
            let node = match fields[1] & 0o170_000 {
                S_IFDIR => Node::Directory { mode },
                S_IFREG => Node::File {
                    mode,
                    data: data.to_vec(),
                },
                S_IFLNK => Node::Symlink {
                    target: String::from_utf8(data.to_vec()).unwrap(),
                },
                S_IFCHR => Node::CharDevice {
                    mode,
                    major: fields[9],
                    minor: fields[10],
                },
                other => panic!("file type {other:o}"),
            };
            tree.insert(name, node);
        }
        assert!(
            archive[at..].iter().all(|byte| *byte == 0),
            "only zeros after the trailer"
        );
        assert!(archive.len() - at < BLOCK_BYTES && archive.len().is_multiple_of(BLOCK_BYTES));
        tree
    }

    /// What the system's `cpio` lists, one path a line.
    pub(crate) fn system_list(archive: &[u8]) -> Vec<String> {
        let mut child = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs the command cpio: install the package `cpio`");
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        assert_eq!(errors, "");
        let listing = String::from_utf8(output.stdout).unwrap();
        listing.lines().map(str::to_owned).collect()
    }

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.directory("proc", 0o555);
        tree.file("init", 0o755, b"hello".to_vec());
        tree.file("usr/lib/empty", 0o644, Vec::new());
        tree.symlink("lib", "usr/lib");
        tree.insert(
            "dev/console",
            Node::CharDevice {
                mode: 0o600,
                major: 5,
                minor: 1,
            },
        );
        tree
    }

    #[test]
    fn a_written_archive_reads_back_as_the_same_tree() {
        let tree = sample();
        assert_eq!(read(&write(&tree).unwrap()), tree);
    }

    #[test]
    fn the_systems_cpio_lists_every_path_in_order() {
        let tree = sample();
        let expected: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(system_list(&write(&tree).unwrap()), expected);
    }

    #[test]
    fn the_first_header_is_the_one_that_the_format_asks_for() {
        let mut tree = Tree::default();
        tree.file("a", 0o644, b"xyz".to_vec());
        let archive = write(&tree).unwrap();
        let header = "07070100000001000081a4000000000000000000000001000000000000000300000000\
                      000000000000000000000000000000020000000000000000";
        assert_eq!(&archive[..HEADER_BYTES], &header.as_bytes()[..HEADER_BYTES]);
        assert_eq!(&archive[HEADER_BYTES..HEADER_BYTES + 6], b"a\0xyz\0");
    }

    fn node() -> impl Strategy<Value = Node> {
        prop_oneof![
            (0u32..0o7777, prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(mode, data)| Node::File { mode, data }),
            (0u32..0o7777).prop_map(|mode| Node::Directory { mode }),
            "[a-z/.]{1,12}".prop_map(|target| Node::Symlink { target }),
            (0u32..0o777, any::<u32>(), any::<u32>())
                .prop_map(|(mode, major, minor)| { Node::CharDevice { mode, major, minor } }),
        ]
    }

    proptest! {
        #[test]
        fn any_tree_reads_back(entries in prop::collection::vec(("[a-d]{1,5}(/[a-d]{1,5}){0,3}", node()), 0..20)) {
            let mut tree = Tree::default();
            for (path, node) in entries {
                tree.insert(&path, node);
            }
            prop_assert_eq!(read(&write(&tree).unwrap()), tree);
        }
    }
}
