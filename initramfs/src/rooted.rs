//! Unpacked packages looked at as one root file system, without being root and without installing.
//!
//! Invariant: a path is always looked up inside the unpacked trees; a symbolic link that is absolute
//! means the tree's root, never the running system's.
//!
//! `/bin`, `/sbin`, `/lib` and `/lib64` are the same as their namesakes under `/usr` in every supported
//! distribution, while packages still ship files under either name, so both names are tried.

use std::fs;
use std::path::{Path, PathBuf};

/// How many symbolic links one look-up follows; the kernel's own limit is 40.
const MAX_LINKS: usize = 40;

/// The path's one true name on a system with merged `/usr`, without the leading `/`.
pub(crate) fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if ["bin", "sbin", "lib", "lib32", "lib64", "libx32"].contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// The regular file that `path` names in the tree at `root`, or nothing.
pub(crate) fn find(root: &Path, path: &str) -> Option<PathBuf> {
    let mut wanted = merged(path);
    for _ in 0..MAX_LINKS {
        let split = wanted.strip_prefix("usr/").unwrap_or(&wanted).to_owned();
        let (here, meta) = [wanted.as_str(), split.as_str()].iter().find_map(|name| {
            let here = root.join(name);
            let meta = fs::symlink_metadata(&here).ok()?;
            Some((here, meta))
        })?;
        if meta.is_file() {
            return Some(here);
        }
        if !meta.is_symlink() {
            return None;
        }
        let target = fs::read_link(&here).ok()?;
        wanted = merged(&joined(&wanted, target.to_str()?)?);
    }
    None
}

/// What `target`, written in a link at `link`, means; nothing when it climbs above the root.
fn joined(link: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        let mut parts: Vec<&str> = link.split('/').collect();
        parts.pop();
        parts
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_found_under_both_names_of_a_merged_directory() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sbin")).unwrap();
        fs::write(root.path().join("sbin/e2fsck"), b"x").unwrap();
        let expected = Some(root.path().join("sbin/e2fsck"));
        assert_eq!(find(root.path(), "usr/sbin/e2fsck"), expected);
        assert_eq!(find(root.path(), "/sbin/e2fsck"), expected);
        assert_eq!(find(root.path(), "sbin"), None);
    }

    #[test]
    fn links_stay_inside_the_tree() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib/ipxe")).unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        fs::write(root.path().join("boot/ipxe.efi"), b"x").unwrap();
        symlink("/boot/ipxe.efi", root.path().join("usr/lib/ipxe/ipxe.efi")).unwrap();
        symlink(
            "../../../../etc/passwd",
            root.path().join("usr/lib/ipxe/out"),
        )
        .unwrap();
        symlink("loop", root.path().join("usr/lib/ipxe/loop")).unwrap();
        assert_eq!(
            find(root.path(), "usr/lib/ipxe/ipxe.efi"),
            Some(root.path().join("boot/ipxe.efi"))
        );
        assert_eq!(find(root.path(), "usr/lib/ipxe/out"), None);
        assert_eq!(find(root.path(), "usr/lib/ipxe/loop"), None);
    }
}
