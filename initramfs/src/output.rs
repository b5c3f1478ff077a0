//! The directory with the finished set of boot files.
//!
//! Invariant: the directory holds a whole set or what it held before, also after a crash: the set is
//! written beside it, flushed, and swapped in by one rename. Nothing that this program did not write is
//! ever removed.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Why the set could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The path is not a directory.
    #[error("{path}: not a directory; --output names the directory for the boot files")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// There are other files, which replacing the directory would remove.
    #[error(
        "{path}: holds {foreign}, which initramfs did not write and would have to remove. Give --output \
         a directory of its own; nothing was changed"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The other files' names.
        foreign: String,
    },
    /// The system refused.
    #[error("{path}: cannot {action}; the boot files that were there before are unchanged")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.to_owned();
    move |source| OutputError::Io {
        action,
        path,
        source,
    }
}

/// Whether [`replace`] may put a set with the files `names` at `output`.
///
/// # Errors
/// [`OutputError::NotADirectory`], [`OutputError::Foreign`], or that it cannot be listed.
pub(crate) fn check(output: &Path, names: &[&str]) -> Result<(), OutputError> {
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(OutputError::NotADirectory {
                path: output.to_owned(),
            });
        }
        Err(error) => return Err(failed("list the directory", output)(error)),
    };
    let mut foreign = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list the directory", output))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !names.contains(&name.as_str()) {
            foreign.push(name);
        }
    }
    foreign.sort();
    if foreign.is_empty() {
        return Ok(());
    }
    Err(OutputError::Foreign {
        path: output.to_owned(),
        foreign: foreign.join(", "),
    })
}

/// Puts `files` (name, content) at `output` in the place of what is there.
///
/// # Errors
/// [`OutputError`]; what was there before is unchanged then.
pub(crate) fn replace(output: &Path, files: &[(&str, &[u8])]) -> Result<(), OutputError> {
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    check(output, &names)?;
    // A link to the directory stays, and `.` has a parent to work in.
    let resolved = output.canonicalize();
    let output = resolved.as_deref().unwrap_or(output);
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(failed("create the directory", parent))?;
    // Removed with what is in it when this function returns: after the swap, that is the old set.
    let staging = tempfile::Builder::new()
        .prefix(".boot-files-")
        .tempdir_in(parent)
        .map_err(failed("create a directory", parent))?;
    for (name, content) in files {
        let path = staging.path().join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(content)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.sync_all()
        };
        write().map_err(failed("write", &path))?;
    }
    fs::set_permissions(staging.path(), Permissions::from_mode(0o755))
        .and_then(|()| File::open(staging.path())?.sync_all())
        .map_err(failed("flush the directory", staging.path()))?;

    if output.is_dir() {
        exchange(staging.path(), output).map_err(failed("swap the new files in", output))?;
    } else {
        let kept = staging.keep();
        fs::rename(&kept, output).map_err(|error| {
            // Left behind otherwise; that this may fail too adds nothing to the report.
            let _ = fs::remove_dir_all(&kept);
            failed("put the new files in place", output)(error)
        })?;
    }
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("flush the directory", parent))
}

/// Swaps the directories `new` and `old`.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        // A file system without this operation, NFS among them: for an instant there is no set at all,
        // but never half of one.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let aside = new.with_extension("old");
            fs::rename(old, &aside)?;
            if let Err(error) = fs::rename(new, old) {
                fs::rename(&aside, old)?;
                return Err(error);
            }
            fs::rename(&aside, new)
        }
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_set_replaces_the_one_before_and_leaves_nothing_beside_it() {
        let parent = tempfile::tempdir().unwrap();
        let output = parent.path().join("deep/boot");
        replace(&output, &[("a", b"1"), ("b", b"1")]).unwrap();
        replace(&output, &[("a", b"2"), ("b", b"2")]).unwrap();
        assert_eq!(fs::read(output.join("a")).unwrap(), b"2");
        assert_eq!(names(&output), ["a", "b"]);
        assert_eq!(names(output.parent().unwrap()), ["boot"]);
    }

    #[test]
    fn a_link_to_the_directory_stays_a_link() {
        let parent = tempfile::tempdir().unwrap();
        let (output, link) = (parent.path().join("real"), parent.path().join("link"));
        replace(&output, &[("a", b"1")]).unwrap();
        symlink("real", &link).unwrap();
        replace(&link, &[("a", b"2")]).unwrap();
        assert_eq!(fs::read(output.join("a")).unwrap(), b"2");
        assert!(link.is_symlink());
        assert_eq!(names(parent.path()), ["link", "real"]);
    }

    #[test]
    fn a_directory_with_other_files_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("thesis.tex"), b"x").unwrap();
        let error = replace(parent.path(), &[("a", b"1")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("thesis.tex"), "{error}");
        assert_eq!(names(parent.path()), ["thesis.tex"]);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let output = parent.path().join("boot");
        fs::write(&output, b"x").unwrap();
        let error = replace(&output, &[("a", b"1")]).unwrap_err();
        assert!(matches!(error, OutputError::NotADirectory { .. }));
    }
}
