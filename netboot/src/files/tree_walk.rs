//! Everything in and below a folder of a tree, without recursion: depth and names come from a disk.

use std::collections::HashSet;

use backup::filesystem::tree::{Entry, FileTree, Node, NodeId, NodeKind, TreeError};

use super::FilesError;
use super::name::{is_plain, join};

/// Folders within each other; what is deeper is reported and left out.
const MAX_DEPTH: usize = 1024;
/// The most names of one folder that are looked at.
const MAX_NAMES: usize = 1 << 24;

/// What a walk comes to.
pub(crate) enum Step<'a> {
    /// A file or folder; a folder's content follows if the answer is `true`.
    Node {
        /// Its path from where the walk began.
        path: &'a [u8],
        /// Which it is.
        id: NodeId,
        /// What it is.
        node: &'a Node,
    },
    /// A folder's content is over.
    Left {
        /// Its path.
        path: &'a [u8],
        /// What it is.
        node: &'a Node,
    },
    /// Something that cannot be shown.
    Problem {
        /// Its path.
        path: &'a [u8],
        /// What is wrong with it.
        reason: String,
    },
}

struct Open {
    path: Vec<u8>,
    node: Node,
    /// In reverse order.
    rest: Vec<Entry>,
}

type Visit<'a> = &'a mut dyn FnMut(Step<'_>) -> Result<bool, FilesError>;

/// Goes through `start`, called `name`, and all below it in the order of names. The answer of `visit` says
/// whether a folder's content is wanted; its error ends the walk.
///
/// # Errors
/// What `visit` returned.
pub(crate) fn walk(
    tree: &dyn FileTree,
    start: NodeId,
    name: &[u8],
    visit: Visit<'_>,
) -> Result<(), FilesError> {
    // A folder that is named twice would make an endless or exponential walk.
    let mut seen = HashSet::new();
    let mut open: Vec<Open> = Vec::new();
    enter(tree, start, name.to_vec(), &mut open, &mut seen, visit)?;
    while let Some(last) = open.last_mut() {
        let Some(entry) = last.rest.pop() else {
            visit(Step::Left {
                path: &last.path,
                node: &last.node,
            })?;
            open.pop();
            continue;
        };
        let path = join(&last.path, &entry.name);
        if is_plain(&entry.name) {
            enter(tree, entry.node, path, &mut open, &mut seen, visit)?;
        } else {
            let reason = "the name is none that a file can have; left out".to_owned();
            visit(Step::Problem {
                path: &path,
                reason,
            })?;
        }
    }
    Ok(())
}

fn enter(
    tree: &dyn FileTree,
    id: NodeId,
    path: Vec<u8>,
    open: &mut Vec<Open>,
    seen: &mut HashSet<NodeId>,
    visit: Visit<'_>,
) -> Result<(), FilesError> {
    let problem = |visit: Visit<'_>, reason: String| {
        let path = &path;
        visit(Step::Problem { path, reason }).map(drop)
    };
    let node = match tree.node(id) {
        Ok(node) => node,
        Err(error) => return problem(visit, error.to_string()),
    };
    if node.kind == NodeKind::Directory {
        if !seen.insert(id) {
            return problem(visit, "the folder is named twice; left out".to_owned());
        }
        if open.len() >= MAX_DEPTH {
            return problem(
                visit,
                format!("more than {MAX_DEPTH} folders deep; left out"),
            );
        }
    }
    let wanted = visit(Step::Node {
        path: &path,
        id,
        node: &node,
    })?;
    if node.kind != NodeKind::Directory || !wanted {
        return Ok(());
    }
    let mut rest = Vec::new();
    let read = tree.entries(id, &mut |entry| {
        if rest.len() >= MAX_NAMES {
            return Err(TreeError::Unsupported(format!(
                "a folder of more than {MAX_NAMES} names"
            )));
        }
        rest.push(entry);
        Ok(())
    });
    if let Err(error) = read {
        // What was found of it before the damage is shown.
        problem(visit, error.to_string())?;
    }
    rest.sort_unstable_by(|a, b| b.name.cmp(&a.name));
    open.push(Open { path, node, rest });
    Ok(())
}
