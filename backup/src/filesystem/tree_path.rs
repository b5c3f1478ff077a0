//! The way of a path through a tree of files.
//!
//! Invariant: no path and no link leads above the folder that was begun with, and the walk ends.

use super::tree::{FileTree, NodeId, NodeKind, TreeError};

/// Symbolic links that are followed in one path, as the kernel does.
const MAX_LINKS: u32 = 40;

/// What happens to a symbolic link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// The link itself is meant.
    Stay,
    /// What it points to is meant.
    Follow,
}

/// Where a path leads, counted from the folder `from`, which is also where absolute links begin.
///
/// # Errors
/// [`TreeError::NotFound`] with the part that is not there, and what the tree says.
pub fn find(
    tree: &dyn FileTree,
    from: NodeId,
    path: &[u8],
    at_end: AtEnd,
) -> Result<NodeId, TreeError> {
    // Names yet to go, the next one last.
    let mut ahead: Vec<Vec<u8>> = reversed(path);
    let mut here = from;
    // The folders above.
    let mut above = Vec::new();
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        match &name[..] {
            b"." => continue,
            b".." => {
                here = above.pop().unwrap_or(from);
                continue;
            }
            _ => {}
        }
        if tree.node(here)?.kind != NodeKind::Directory {
            return Err(TreeError::NotFound(format!(
                "what is before `{}` is no folder",
                shown(&name)
            )));
        }
        let next = child(tree, here, &name)?
            .ok_or_else(|| TreeError::NotFound(format!("there is no `{}`", shown(&name))))?;
        let follows = !ahead.is_empty() || at_end == AtEnd::Follow;
        if follows && tree.node(next)?.kind == NodeKind::SymbolicLink {
            links += 1;
            if links > MAX_LINKS {
                return Err(TreeError::NotFound(format!(
                    "more than {MAX_LINKS} symbolic links on the way"
                )));
            }
            let target = tree.link_target(next)?;
            if target.starts_with(b"/") {
                here = from;
                above.clear();
            }
            ahead.extend(reversed(&target));
            continue;
        }
        above.push(here);
        here = next;
    }
    Ok(here)
}

fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/');
    let mut names: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.reverse();
    names
}

/// The node of a name in a folder: the very name, or else one that the file system takes for the same.
fn child(tree: &dyn FileTree, folder: NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
    let (mut exact, mut similar) = (None, None);
    let ignores_case = tree.ignores_case();
    let lower = String::from_utf8_lossy(name).to_lowercase();
    tree.entries(folder, &mut |entry| {
        if entry.name == name {
            exact = Some(entry.node);
        } else if ignores_case && String::from_utf8_lossy(&entry.name).to_lowercase() == lower {
            similar = Some(entry.node);
        }
        Ok(())
    })?;
    Ok(exact.or(similar))
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}
