//! The directory with the finished sets of boot files, one set for each processor.
//!
//! Invariant: the directory holds a whole set or what it held before, also after a crash: the set is
//! written beside it, flushed, and swapped in by one rename. Sets for other processors stay. Nothing that
//! this program did not write is ever removed.

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

/// Names that belong to this program, as paths in the directory.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Of the set to be written.
    pub(crate) replaced: Vec<String>,
    /// Of other sets, which stay.
    pub(crate) kept: Vec<String>,
}

/// Whether [`replace`] may put a set with the files `names` at `output`.
///
/// # Errors
/// [`OutputError::NotADirectory`], [`OutputError::Foreign`], or that it cannot be listed.
pub(crate) fn check(output: &Path, names: &Names) -> Result<(), OutputError> {
    let mut foreign: Vec<String> = list(output)?
        .into_iter()
        .filter(|name| !names.replaced.contains(name) && !names.kept.contains(name))
        .collect();
    foreign.sort();
    if foreign.is_empty() {
        return Ok(());
    }
    Err(OutputError::Foreign {
        path: output.to_owned(),
        foreign: foreign.join(", "),
    })
}

/// Files in `output` and one directory deeper; what is deeper still, or empty, by its directory's name.
fn list(output: &Path) -> Result<Vec<String>, OutputError> {
    let mut found = Vec::new();
    for (name, is_directory) in entries(output)? {
        let inner = if is_directory {
            entries(&output.join(&name))?
        } else {
            Vec::new()
        };
        if inner.is_empty() {
            found.push(name);
        } else {
            found.extend(inner.into_iter().map(|(file, _)| format!("{name}/{file}")));
        }
    }
    Ok(found)
}

/// Names in `directory` and whether each is a directory; none when it does not exist.
fn entries(directory: &Path) -> Result<Vec<(String, bool)>, OutputError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(OutputError::NotADirectory {
                path: directory.to_owned(),
            });
        }
        Err(error) => return Err(failed("list the directory", directory)(error)),
    };
    entries
        .map(|entry| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, entry.file_type()?.is_dir()))
        })
        .collect::<io::Result<_>>()
        .map_err(failed("list the directory", directory))
}

/// Puts `files` (name, content) at `output` in the place of what is there; what `kept` names stays.
///
/// # Errors
/// [`OutputError`]; what was there before is unchanged then.
pub(crate) fn replace(
    output: &Path,
    files: &[(&str, &[u8])],
    kept: &[String],
) -> Result<(), OutputError> {
    let names = Names {
        replaced: files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        kept: kept.to_owned(),
    };
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
    for name in list(output)?.iter().filter(|name| kept.contains(name)) {
        keep(&output.join(name), &staging.path().join(name))
            .map_err(failed("keep the file", &output.join(name)))?;
    }
    for (name, content) in files {
        let path = staging.path().join(name);
        let write = || -> io::Result<()> {
            make_parent(&path)?;
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

/// Puts one file at `path` in the place of what is there, whole or not at all.
///
/// # Errors
/// [`OutputError::Io`].
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), OutputError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".boot-file-")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(parent)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(parent)?.sync_all()
    };
    write().map_err(failed("write", path))
}

/// The same file under a second name, or a copy where the file system has no links.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    make_parent(to)?;
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to)?;
        File::open(to)?.sync_all()?;
    }
    Ok(())
}

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    }
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

    fn names_of(directory: &Path) -> Vec<String> {
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
        replace(&output, &[("a", b"1"), ("b", b"1")], &[]).unwrap();
        replace(&output, &[("a", b"2"), ("b", b"2")], &[]).unwrap();
        assert_eq!(fs::read(output.join("a")).unwrap(), b"2");
        assert_eq!(names_of(&output), ["a", "b"]);
        assert_eq!(names_of(output.parent().unwrap()), ["boot"]);
    }

    #[test]
    fn sets_for_other_processors_stay() {
        let parent = tempfile::tempdir().unwrap();
        let output = parent.path().join("boot");
        let names = ["arm64/vmlinuz", "shimaa64.efi", "arm64/gone"].map(str::to_owned);
        replace(
            &output,
            &[("arm64/vmlinuz", b"1"), ("shimaa64.efi", b"1")],
            &[],
        )
        .unwrap();
        replace(&output, &[("vmlinuz", b"2")], &names).unwrap();
        assert_eq!(fs::read(output.join("arm64/vmlinuz")).unwrap(), b"1");
        assert_eq!(names_of(&output), ["arm64", "shimaa64.efi", "vmlinuz"]);
        // And the other way round.
        let kept = ["vmlinuz".to_owned()];
        replace(
            &output,
            &[("arm64/vmlinuz", b"3"), ("shimaa64.efi", b"3")],
            &kept,
        )
        .unwrap();
        assert_eq!(fs::read(output.join("arm64/vmlinuz")).unwrap(), b"3");
        assert_eq!(fs::read(output.join("vmlinuz")).unwrap(), b"2");
        let error = replace(&output, &[("a", b"1")], &kept)
            .unwrap_err()
            .to_string();
        assert!(error.contains("arm64/vmlinuz, shimaa64.efi"), "{error}");
    }

    #[test]
    fn one_file_is_replaced_and_leaves_nothing_beside_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("image");
        replace_file(&path, b"1").unwrap();
        replace_file(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(names_of(parent.path()), ["image"]);
        assert!(replace_file(&path.join("x"), b"3").is_err());
    }

    #[test]
    fn a_link_to_the_directory_stays_a_link() {
        let parent = tempfile::tempdir().unwrap();
        let (output, link) = (parent.path().join("real"), parent.path().join("link"));
        replace(&output, &[("a", b"1")], &[]).unwrap();
        symlink("real", &link).unwrap();
        replace(&link, &[("a", b"2")], &[]).unwrap();
        assert_eq!(fs::read(output.join("a")).unwrap(), b"2");
        assert!(link.is_symlink());
        assert_eq!(names_of(parent.path()), ["link", "real"]);
    }

    #[test]
    fn a_directory_with_other_files_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("thesis.tex"), b"x").unwrap();
        let error = replace(parent.path(), &[("a", b"1")], &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("thesis.tex"), "{error}");
        assert_eq!(names_of(parent.path()), ["thesis.tex"]);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let output = parent.path().join("boot");
        fs::write(&output, b"x").unwrap();
        let error = replace(&output, &[("a", b"1")], &[]).unwrap_err();
        assert!(matches!(error, OutputError::NotADirectory { .. }));
    }
}
