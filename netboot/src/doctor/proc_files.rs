//! What files of `/proc` and `/sys` say, as text.
//!
//! Pure: text in, values out.

use std::path::{Path, PathBuf};

/// The kind of file system that a path is on, by `/proc/self/mounts` (fstab(5)): the mount with the
/// longest fitting point, the last one where several have it.
pub(super) fn filesystem_of(mounts: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(_), Some(point), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // Spaces in names are written \040.
        let point = PathBuf::from(point.replace("\\040", " "));
        let length = point.as_os_str().len();
        if path.starts_with(&point) && best.is_none_or(|(longest, _)| length >= longest) {
            best = Some((length, kind));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "overlay / overlay rw 0 0\n/dev/sdb1 /srv ext4 rw 0 0\n\
                      tmpfs /srv/my\\040data tmpfs rw 0 0\n";
        let kind = |path: &str| filesystem_of(mounts, Path::new(path));
        assert_eq!(kind("/srv/netboot").as_deref(), Some("ext4"));
        assert_eq!(kind("/srv/my data/x").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/srvx").as_deref(), Some("overlay"));
    }
}
