//! What makes a restored disk start by the other type of firmware: GRUB's parts for BIOS, and the signed loaders for
//! UEFI. They lie where their packages have them, so that the agent finds them on a running system in the same places.
//!
//! Invariant: GRUB's parts are of the package whose version is that of `grub-mkimage` in the same image; the loaders
//! are as the distribution signed them.
//!
//! Not here: `grub-mkimage` itself ([`crate::tools`]), and which of them is used when (the agent).

use std::fs;
use std::path::{Path, PathBuf};

use crate::architecture::Architecture;
use crate::packages::Packages;
use crate::rooted;
use crate::tools::{ToolError, ToolFile};
use crate::tree::Tree;

/// A package and the files that are taken from it: of each the first that it has.
pub(crate) const LOADERS: &[(&str, &[&str])] = &[
    (
        "shim-signed",
        &[
            "usr/lib/shim/shimx64.efi.signed",
            "usr/lib/shim/shimx64.efi.signed.latest",
        ],
    ),
    (
        "grub-efi-amd64-signed",
        &["usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"],
    ),
];

/// The package with GRUB's parts for BIOS, and their folder.
pub(crate) const BIOS: (&str, &str) = ("grub-pc-bin", "usr/lib/grub/i386-pc");

/// Files of that folder which no image is made of.
fn is_part(name: &str) -> bool {
    let images = [
        "boot.img",
        "diskboot.img",
        "kernel.img",
        "lzma_decompress.img",
        "moddep.lst",
    ];
    let is_test = name.contains("test");
    images.contains(&name) || name.ends_with(".mod") && !is_test || name == "test.mod"
}

/// The files; none for a processor whose machines all start by one type of firmware. Where loaders are `given`, their
/// packages may not be to be had: then a disk is not converted to UEFI, which `progress` is told.
///
/// # Errors
/// [`ToolError`].
pub(crate) fn from_packages(
    packages: &mut Packages,
    architecture: Architecture,
    given: bool,
    progress: fn(&str),
) -> Result<(Tree, Vec<ToolFile>), ToolError> {
    let (mut tree, mut files) = (Tree::default(), Vec::new());
    if architecture != Architecture::X64 {
        return Ok((tree, files));
    }
    let mut add = |package: &crate::packages::Package, path: &str, from: &Path| {
        let data = fs::read(from).map_err(|source| ToolError::Read {
            path: from.to_owned(),
            source,
        })?;
        files.push(ToolFile {
            path: format!("/{path}"),
            bytes: data.len() as u64,
            package: package.id.clone(),
        });
        tree.file(path, 0o644, data);
        Ok(())
    };
    for (name, paths) in LOADERS {
        let package = match take(packages, name) {
            Err(error) if given => {
                progress(&format!("no disk can be converted to UEFI: {error}"));
                continue;
            }
            other => other?,
        };
        let mut found = paths
            .iter()
            .filter_map(|path| rooted::find(&package.root, path));
        let from = found.next().ok_or_else(|| missing(&package, paths[0]))?;
        // Under the first name, whatever its package calls it.
        add(&package, paths[0], &from)?;
    }
    let (name, folder) = BIOS;
    let package = take(packages, name)?;
    let names = names(&package.root.join(folder))?;
    for part in names.iter().filter(|name| is_part(name)) {
        let path = format!("{folder}/{part}");
        let from = rooted::find(&package.root, &path).ok_or_else(|| missing(&package, &path))?;
        add(&package, &path, &from)?;
    }
    if !names.iter().any(|name| name == "kernel.img") {
        return Err(missing(&package, &format!("{folder}/kernel.img")));
    }
    Ok((tree, files))
}

fn take(
    packages: &mut Packages,
    name: &'static str,
) -> Result<crate::packages::Package, ToolError> {
    packages.take(name).map_err(|source| ToolError::Package {
        package: name,
        source,
    })
}

fn missing(package: &crate::packages::Package, path: &str) -> ToolError {
    ToolError::NoFile {
        path: format!("/{path}"),
        package: package.id.name.clone(),
        version: package.id.version.clone(),
    }
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, ToolError> {
    let read = |path: PathBuf| move |source| ToolError::Read { path, source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(read(folder.to_owned()))? {
        let entry = entry.map_err(read(folder.to_owned()))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_need_is_left_out() {
        for name in ["boot.img", "normal.mod", "test.mod", "moddep.lst"] {
            assert!(is_part(name), "{name}");
        }
        for name in [
            "cmp_test.mod",
            "testload.mod",
            "fdboot.img",
            "normal.module",
            "modinfo.sh",
        ] {
            assert!(!is_part(name), "{name}");
        }
    }
}
