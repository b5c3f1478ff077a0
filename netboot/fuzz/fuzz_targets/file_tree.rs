//! Any volume's files are listed and read without a panic or an endless loop; names are single parts of a
//! path, and no read gives more than there is.

#![no_main]

use std::collections::HashSet;
use std::sync::Arc;

use backup::filesystem::tree::{self, FileTree, NodeId, NodeKind};
use fuzz_support::SparseDisk;
use libfuzzer_sys::fuzz_target;

/// The most names that are looked at: a small volume can hold millions.
const MOST: usize = 300;

fuzz_target!(|bytes: &[u8]| {
    let disk = SparseDisk::from_bytes(bytes);
    let size = disk.size();
    let Ok(tree) = tree::open(Arc::new(disk), size) else {
        return;
    };
    let mut left = MOST;
    let mut seen = HashSet::new();
    let mut folders = vec![tree.root()];
    while let Some(folder) = folders.pop() {
        if left == 0 || !seen.insert(folder) {
            continue;
        }
        let mut found = Vec::new();
        let _ = tree.entries(folder, &mut |entry| {
            let one_part = !matches!(entry.name.as_slice(), b"" | b"." | b"..")
                && !entry.name.iter().any(|byte| matches!(byte, b'/' | 0));
            assert!(one_part, "a file is named {:?}", entry.name);
            left = left.saturating_sub(1);
            found.push(entry.node);
            if left == 0 {
                return Err(tree::TreeError::NotFound("enough".to_owned()));
            }
            Ok(())
        });
        for id in found {
            if look_at(tree.as_ref(), id) {
                folders.push(id);
            }
        }
    }
});

/// Whether it is a folder.
fn look_at(tree: &dyn FileTree, id: NodeId) -> bool {
    let Ok(node) = tree.node(id) else {
        return false;
    };
    if let Ok(attributes) = tree.attributes(id) {
        for attribute in attributes {
            assert!(!attribute.name.contains(&0), "{attribute:?}");
        }
    }
    match node.kind {
        NodeKind::Directory => return true,
        NodeKind::SymbolicLink => {
            let _ = tree.link_target(id);
        }
        NodeKind::File => {
            let mut buffer = [0; 5000];
            for offset in [0, node.size / 2, node.size.saturating_sub(100), u64::MAX] {
                if let Ok(read) = tree.read(id, offset, &mut buffer) {
                    let there = node.size.saturating_sub(offset).min(buffer.len() as u64);
                    assert!(read as u64 <= there, "{read} bytes of {there} were read");
                }
            }
        }
        _ => {}
    }
    false
}
