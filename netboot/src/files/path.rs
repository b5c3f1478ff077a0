//! `RESTORE-POINT:VOLUME/PATH`. Where a logical volume is meant by group and name, `volume` is the group and the
//! name is the first part of the path until the manifest is known (`volumes::place`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use backup::filesystem::tree::{FileTree, NodeId, TreeError};
use backup::filesystem::tree_path::{self, AtEnd};

use super::name::shown;

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

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let volume = self.volume.as_deref().unwrap_or_default();
        let (volume, path) = (shown(volume), shown(&self.path));
        write!(f, "{}:{volume}/{path}", self.restore_point)
    }
}

/// Where a path leads. Links on the way are followed, within the volume; a link at its end is not.
///
/// # Errors
/// [`TreeError`].
pub(crate) fn find(tree: &dyn FileTree, path: &[u8]) -> Result<NodeId, TreeError> {
    tree_path::find(tree, tree.root(), path, AtEnd::Stay)
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
