//! What the file trees of FAT and exFAT have in common: nodes that are numbered by the byte of their
//! entry, files that are chains of clusters, and neither owners nor links.
//!
//! What is *not* here: what an entry says, and whether a chain is whole (`fat::tree`, `exfat::tree`).

use std::cell::RefCell;

use super::Doubt;
use super::tree::{Node, NodeId, NodeKind, Timestamp, TreeError};

/// The number of the root directory, which has no entry: nothing but the boot sector lies at byte 0.
pub(super) const ROOT: u64 = 0;

/// The root directory.
pub(super) const fn root() -> NodeId {
    NodeId {
        tree: 0,
        number: ROOT,
    }
}

/// A file whose chain was found to be whole, and the place in it that was read last.
#[derive(Clone)]
pub(super) struct Open<File> {
    /// The number of its node.
    pub(super) number: u64,
    /// What its entry says.
    pub(super) file: File,
    /// Counts the clusters of its chain.
    pub(super) index: u64,
    /// The cluster at that place of the chain.
    pub(super) cluster: u32,
}

/// The file that was read last: reads come in order, and its chain need not be followed anew.
pub(super) struct Last<File>(RefCell<Option<Open<File>>>);

impl<File: Clone> Last<File> {
    pub(super) const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// It, if it is this one.
    pub(super) fn get(&self, id: NodeId) -> Option<Open<File>> {
        let last = self.0.borrow();
        last.as_ref()
            .filter(|open| open.number == id.number)
            .cloned()
    }

    pub(super) fn set(&self, open: Open<File>) {
        *self.0.borrow_mut() = Some(open);
    }
}

/// What is known of a file or folder; `len` is that of a file.
pub(super) const fn node(is_directory: bool, len: u64, modified: Option<Timestamp>) -> Node {
    let (kind, size) = if is_directory {
        (NodeKind::Directory, 0)
    } else {
        (NodeKind::File, len)
    };
    Node {
        kind,
        size,
        mode: None,
        uid: None,
        gid: None,
        modified,
        links: 1,
        sealed: None,
    }
}

/// A name that is one part of a path.
pub(super) fn name(text: String) -> Result<Vec<u8>, TreeError> {
    if text.contains(['/', '\0']) || matches!(text.as_str(), "" | "." | "..") {
        return Err(TreeError::Damaged(format!("a file is named {text:?}")));
    }
    Ok(text.into_bytes())
}

/// A doubt, where files are read.
pub(super) fn damaged(doubt: Doubt) -> TreeError {
    match doubt {
        Doubt::Read(error) => TreeError::Read(error),
        Doubt::Untrusted(reason) => TreeError::Damaged(reason),
    }
}
