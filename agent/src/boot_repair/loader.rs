//! The fallback loader: the file that firmware starts from a disk it has no entry for.
//!
//! UEFI 2.10 §3.5.1.1 names it by architecture. On a machine that was restored to new hardware the
//! firmware has no entry of its own yet, so the file must be there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Files that a shim looks for beside itself.
const BESIDE_SHIM: [&str; 4] = ["grubx64.efi", "mmx64.efi", "grubaa64.efi", "mmaa64.efi"];

/// The name of the fallback loader for an architecture as `uname -m` says it.
pub(crate) fn fallback_name(architecture: &str) -> Option<&'static str> {
    match architecture {
        "x86_64" => Some("BOOTX64.EFI"),
        "aarch64" => Some("BOOTAA64.EFI"),
        "i386" | "i686" => Some("BOOTIA32.EFI"),
        _ => None,
    }
}

/// Whether the EFI system partition mounted at `root` has the fallback loader.
///
/// # Errors
/// What the system says of reading it.
pub(crate) fn has_fallback(root: &Path, name: &str) -> io::Result<bool> {
    Ok(find(root, &["EFI", "BOOT", name])?.is_some())
}

/// Puts a fallback loader on the EFI system partition mounted at `root`, when it has none, from the
/// first of `loaders` (paths with backslashes) that is there. Says what was copied.
///
/// # Errors
/// What the system says of the copy.
pub(crate) fn ensure_fallback(
    root: &Path,
    name: &str,
    loaders: &[String],
) -> io::Result<Option<String>> {
    if has_fallback(root, name)? {
        return Ok(None);
    }
    for loader in loaders {
        let parts: Vec<_> = loader.split('\\').filter(|part| !part.is_empty()).collect();
        let Some(source) = find(root, &parts)? else {
            continue;
        };
        let folder = make_folder(root, &["EFI", "BOOT"])?;
        let is_shim = parts
            .last()
            .is_some_and(|file| file.to_ascii_lowercase().starts_with("shim"));
        let beside = if is_shim { &BESIDE_SHIM[..] } else { &[] };
        for file in beside {
            if let Some(parent) = source.parent()
                && let Some(neighbour) = find(parent, &[file])?
                && find(&folder, &[file])?.is_none()
            {
                copy(&neighbour, &folder.join(file))?;
            }
        }
        // Last, so that a power cut leaves no loader without its neighbours.
        copy(&source, &folder.join(name))?;
        return Ok(Some(format!("Copied {loader} to \\EFI\\BOOT\\{name}.")));
    }
    Ok(None)
}

/// A file below `root`, without regard to case, as FAT has it.
fn find(root: &Path, parts: &[&str]) -> io::Result<Option<PathBuf>> {
    let mut path = root.to_owned();
    for part in parts {
        let mut found = None;
        if !path.is_dir() {
            return Ok(None);
        }
        for entry in fs::read_dir(&path)? {
            let name = entry?.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.eq_ignore_ascii_case(part))
            {
                found = Some(name);
                break;
            }
        }
        match found {
            Some(name) => path.push(name),
            None => return Ok(None),
        }
    }
    Ok(Some(path))
}

fn make_folder(root: &Path, parts: &[&str]) -> io::Result<PathBuf> {
    let mut path = root.to_owned();
    for part in parts {
        path = match find(&path, &[part])? {
            Some(found) => found,
            None => {
                let made = path.join(part);
                fs::create_dir(&made)?;
                made
            }
        };
    }
    Ok(path)
}

/// Copies by a temporary file, so that a power cut leaves no half loader under its name.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let temporary = to.with_extension("tmp");
    fs::copy(from, &temporary)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, to)?;
    if let Some(folder) = to.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        root
    }

    fn text(root: &tempfile::TempDir, file: &str) -> String {
        fs::read_to_string(root.path().join(file)).unwrap()
    }

    #[test]
    fn a_shim_is_copied_with_what_it_starts_and_twice_changes_nothing() {
        let root = tree(&[
            "EFI/debian/shimx64.efi",
            "EFI/debian/grubx64.efi",
            "EFI/debian/fbx64.efi",
        ]);
        let loaders = [
            "\\EFI\\gone\\x.efi".to_owned(),
            "\\efi\\Debian\\shimx64.efi".to_owned(),
        ];
        let said = ensure_fallback(root.path(), "BOOTX64.EFI", &loaders).unwrap();
        assert!(said.unwrap().contains("shimx64.efi"));
        assert_eq!(
            text(&root, "EFI/BOOT/BOOTX64.EFI"),
            "EFI/debian/shimx64.efi"
        );
        assert_eq!(
            text(&root, "EFI/BOOT/grubx64.efi"),
            "EFI/debian/grubx64.efi"
        );
        assert!(!root.path().join("EFI/BOOT/fbx64.efi").exists());
        assert_eq!(
            ensure_fallback(root.path(), "BOOTX64.EFI", &loaders).unwrap(),
            None
        );
    }

    #[test]
    fn a_fallback_that_is_there_is_left_alone_whatever_its_case() {
        let root = tree(&["efi/boot/bootx64.efi", "efi/debian/grubx64.efi"]);
        let loaders = ["\\EFI\\debian\\grubx64.efi".to_owned()];
        assert_eq!(
            ensure_fallback(root.path(), "BOOTX64.EFI", &loaders).unwrap(),
            None
        );
        assert_eq!(text(&root, "efi/boot/bootx64.efi"), "efi/boot/bootx64.efi");
    }

    #[test]
    fn a_path_cannot_leave_the_partition() {
        let root = tree(&["esp/EFI/x", "outside.efi"]);
        let loaders = ["\\..\\outside.efi".to_owned()];
        let esp = root.path().join("esp");
        assert_eq!(
            ensure_fallback(&esp, "BOOTX64.EFI", &loaders).unwrap(),
            None
        );
    }
}
