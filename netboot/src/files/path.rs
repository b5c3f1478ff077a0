//! `RESTORE-POINT:VOLUME/PATH`, and the way of a path through a tree.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use backup::filesystem::tree::{FileTree, NodeId, NodeKind, TreeError};

use super::name::shown;

/// Symbolic links that are followed in one path, as the kernel does.
const MAX_LINKS: u32 = 40;

/// What an argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// The restore point.
    pub(crate) restore_point: String,
    /// The volume, when named.
    pub(crate) volume: Option<Vec<u8>>,
    /// The path from the volume's top, without `/` at its begin and end.
    pub(crate) path: Vec<u8>,
}

impl Spec {
    /// Reads an argument. Without `/` behind the volume, its top folder is meant; with `/` right behind
    /// the colon, or without a colon, no volume is named.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let (point, rest) = match bytes.iter().position(|byte| *byte == b':') {
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
            None => (bytes, &b""[..]),
        };
        let restore_point = String::from_utf8(point.to_vec())
            .ok()
            .filter(|point| !point.is_empty())
            .ok_or("expected RESTORE-POINT:VOLUME/PATH, for example 20260101:0-2/etc")?;
        let (volume, path) = match rest.iter().position(|byte| *byte == b'/') {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, &b""[..]),
        };
        let names: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .collect();
        Ok(Self {
            restore_point,
            volume: (!volume.is_empty()).then(|| volume.to_vec()),
            path: names.join(&b'/'),
        })
    }
}

/// Where a path leads. Links on the way are followed, within the volume; a link at its end is not.
///
/// # Errors
/// [`TreeError::NotFound`] with the part that is not there, and what the tree says.
pub(crate) fn find(tree: &dyn FileTree, path: &[u8]) -> Result<NodeId, TreeError> {
    // Names yet to go, the next one last.
    let mut ahead: Vec<Vec<u8>> = reversed(path);
    let mut way = vec![tree.root()];
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        let here = way.last().copied().unwrap_or_else(|| tree.root());
        match &name[..] {
            b"." => continue,
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
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
        if !ahead.is_empty() && tree.node(next)?.kind == NodeKind::SymbolicLink {
            links += 1;
            if links > MAX_LINKS {
                return Err(TreeError::NotFound(format!(
                    "more than {MAX_LINKS} symbolic links on the way"
                )));
            }
            let target = tree.link_target(next)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            ahead.extend(reversed(&target));
            continue;
        }
        way.push(next);
    }
    Ok(way.last().copied().unwrap_or_else(|| tree.root()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_names_restore_point_volume_and_path() {
        let spec = |text: &str| {
            let spec = Spec::parse(OsStr::new(text)).unwrap();
            let volume = spec.volume.map(|name| String::from_utf8(name).unwrap());
            (
                spec.restore_point,
                volume,
                String::from_utf8(spec.path).unwrap(),
            )
        };
        let expected = |volume: Option<&str>, path: &str| {
            ("p".to_owned(), volume.map(str::to_owned), path.to_owned())
        };
        assert_eq!(spec("p:0-2/etc/a:b"), expected(Some("0-2"), "etc/a:b"));
        assert_eq!(spec("p:/etc//x/"), expected(None, "etc/x"));
        assert_eq!(spec("p:0-2"), expected(Some("0-2"), ""));
        assert_eq!(spec("p"), expected(None, ""));
        assert!(Spec::parse(OsStr::new(":0-2/x")).is_err());
        assert!(Spec::parse(OsStr::new("")).is_err());
    }
}
