//! The files of one part of the initramfs, as a value.
//!
//! Invariant: paths are relative, without `.` or `..`, and every path's parent directories are in the
//! tree, so whatever is written in the tree's order can be created in that order. The order is that of
//! the paths' bytes, which is what makes an archive of the tree reproducible.
//!
//! Not here: the archive format ([`crate::cpio`]) and what belongs into the initramfs.

use std::collections::BTreeMap;

/// What a path holds. Owner and group are root and times are fixed, so neither is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory with its permission bits.
    Directory {
        /// Permission bits, such as `0o755`.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits, such as `0o644`.
        mode: u32,
        /// The content.
        data: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as written into the link.
        target: String,
    },
    /// A character device node.
    CharDevice {
        /// Permission bits, such as `0o600`.
        mode: u32,
        /// Device number, major part.
        major: u32,
        /// Device number, minor part.
        minor: u32,
    },
}

/// Paths and what they hold, in the order in which they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Puts `node` at `path`, with the parent directories that are not there yet (mode 755).
    ///
    /// A leading `/` is dropped. What was at `path` before is replaced.
    pub(crate) fn insert(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        debug_assert!(
            path.split('/')
                .all(|part| !part.is_empty() && part != "." && part != ".."),
            "{path:?} is not a plain path"
        );
        for (end, _) in path.match_indices('/') {
            self.0
                .entry(path[..end].to_owned())
                .or_insert(Node::Directory { mode: 0o755 });
        }
        self.0.insert(path.to_owned(), node);
    }

    /// [`Tree::insert`] of a regular file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        self.insert(path, Node::File { mode, data });
    }

    /// [`Tree::insert`] of a directory.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, Node::Directory { mode });
    }

    /// [`Tree::insert`] of a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(
            path,
            Node::Symlink {
                target: target.to_owned(),
            },
        );
    }

    /// The tree without what `other` has at the same paths; directories stay.
    pub(crate) fn without(self, other: &Self) -> Self {
        let stays = |(path, node): &(String, Node)| {
            matches!(node, Node::Directory { .. }) || !other.0.contains_key(path)
        };
        Self(self.0.into_iter().filter(stays).collect())
    }

    /// The tree with what `other` has at other paths.
    pub(crate) fn with(mut self, other: Self) -> Self {
        for (path, node) in other.0 {
            self.0.entry(path).or_insert(node);
        }
        self
    }

    /// Every path and its node, parents before children.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// How many regular files there are.
    pub(crate) fn file_count(&self) -> usize {
        self.0
            .values()
            .filter(|node| matches!(node, Node::File { .. }))
            .count()
    }

    /// Bytes in all regular files together.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.0
            .values()
            .map(|node| match node {
                Node::File { data, .. } => data.len() as u64,
                _ => 0,
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children_and_are_made_once() {
        let mut tree = Tree::default();
        tree.file("/usr/lib/b", 0o644, vec![1]);
        tree.file("usr/lib/a", 0o644, vec![2, 3]);
        tree.directory("usr-local", 0o700);
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            ["usr", "usr-local", "usr/lib", "usr/lib/a", "usr/lib/b"]
        );
        assert_eq!((tree.file_count(), tree.file_bytes()), (2, 3));
    }
}
