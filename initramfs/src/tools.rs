//! The real file system tools of the recovery environment, with the libraries they need.
//!
//! The reference tools are taken from the distribution's packages rather than rebuilt, so the libraries
//! are found the way the dynamic loader would: by the `NEEDED` entries of each ELF file, and theirs.
//! Invariant: every tool in the tree can be started, because its loader and all libraries are there.
//!
//! Not here: `RPATH`, `dlopen` and locales, which none of these tools needs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::architecture::Architecture;
use crate::elf::{self, ElfError};
use crate::packages::{Package, PackageError, PackageId, Packages};
use crate::rooted;
use crate::tree::Tree;

/// Package and program: what captures and restores run.
///
/// `resize2fs` grows the last file system of a restored disk, `e2fsck` must run before it, `tune2fs` and
/// `dumpe2fs` tell and change a file system's identity; `ntfsresize` resizes an NTFS.
pub(crate) const TOOLS: &[(&str, &str)] = &[
    ("e2fsprogs", "e2fsck"),
    ("e2fsprogs", "resize2fs"),
    ("e2fsprogs", "tune2fs"),
    ("e2fsprogs", "dumpe2fs"),
    ("ntfs-3g", "ntfsresize"),
];

/// What only some jobs need: not in the image, but in a file beside it that the agent fetches for them.
///
/// `xfs_growfs` and `btrfs` resize a mounted XFS and Btrfs. `cryptsetup` opens an encrypted volume whose key was
/// given with a capture. `ssh-keygen` makes the host keys of a copy. `grub-mkimage` makes the second stage of a GRUB
/// that starts by BIOS.
pub(crate) const AT_NEED: &[(&str, &str)] = &[
    ("xfsprogs", "xfs_growfs"),
    ("xfsprogs", "xfs_db"),
    ("btrfs-progs", "btrfs"),
    ("cryptsetup-bin", "cryptsetup"),
    ("openssh-client", "ssh-keygen"),
    ("grub-common", "grub-mkimage"),
];

/// The one user of the environment: `ssh-keygen` ends when it has no name for who runs it.
const PASSWD: &[u8] = b"root:x:0:0:root:/:/bin/false\n";

/// Where Debian's dynamic loader looks when it has no cache file, for the library `name`.
fn library_places(architecture: Architecture, name: &str) -> [String; 4] {
    let home = architecture.library_directory();
    [
        format!("{home}/{name}"),
        format!("usr/lib64/{name}"),
        format!("usr/lib/{name}"),
        format!("{home}/e2fsprogs/{name}"),
    ]
}

/// Why a tool cannot be put into the image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// Its package could not be had.
    #[error("the package {package} with the file system tools is not to be had")]
    Package {
        /// The package.
        package: &'static str,
        /// Why.
        source: PackageError,
    },
    /// The package does not have the program.
    #[error("the package {package} {version} has no program {program} in /usr/sbin or /usr/bin")]
    NoProgram {
        /// The program.
        program: String,
        /// The package.
        package: String,
        /// Its version.
        version: String,
    },
    /// The package does not have a file.
    #[error("the package {package} {version} has no {path}")]
    NoFile {
        /// The file.
        path: String,
        /// The package.
        package: String,
        /// Its version.
        version: String,
    },
    /// A library is in none of the packages.
    #[error(
        "the library {library}, which {wanted_by} needs, is in none of the packages {searched}. A \
         package that it depends on is not named lib*: add it in tools.rs"
    )]
    NoLibrary {
        /// The library's file name, or the loader's path.
        library: String,
        /// The file that names it.
        wanted_by: String,
        /// The packages looked through, with versions.
        searched: String,
    },
    /// A file could not be read.
    #[error("{path}: cannot read")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no program or library for this machine type.
    #[error("{path}: not a usable program or library")]
    Elf {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
}

/// A file that was put into the image.
#[derive(Debug, Clone)]
pub(crate) struct ToolFile {
    /// Its path in the image, with the leading `/`.
    pub(crate) path: String,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// The package it is from.
    pub(crate) package: PackageId,
}

/// The tools from the distribution's packages.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Files of the image.
    pub(crate) base: Tree,
    /// What [`AT_NEED`] has besides.
    pub(crate) at_need: Tree,
    /// All of them.
    pub(crate) files: Vec<ToolFile>,
}

/// The tools from the distribution's packages.
///
/// # Errors
/// [`ToolError`].
pub(crate) fn from_packages(
    packages: &mut Packages,
    architecture: Architecture,
) -> Result<Tools, ToolError> {
    let mut closure = Closure::new(architecture);
    let mut add = |closure: &mut Closure, tools: &[(&'static str, &str)]| {
        tools.iter().try_for_each(|(package, program)| {
            let with_libraries = packages
                .take_with_dependencies(package, is_library)
                .map_err(|source| ToolError::Package { package, source })?;
            closure.add_program(program, &with_libraries)
        })
    };
    add(&mut closure, TOOLS)?;
    let (mut base, _) = closure.clone().finish();
    add(&mut closure, AT_NEED)?;
    let (all, files) = closure.finish();
    let at_need = all.without(&base);
    base.file("etc/passwd", 0o644, PASSWD.to_vec());
    Ok(Tools {
        at_need,
        base,
        files,
    })
}

/// Whether a package is one of libraries; Debian's zlib is the one that is not named like the others.
fn is_library(name: &str) -> bool {
    name.starts_with("lib") || name == "zlib1g"
}

/// Files gathered so far, by path in the image without the leading `/`.
#[derive(Debug, Clone)]
struct Closure {
    architecture: Architecture,
    files: BTreeMap<String, (Vec<u8>, u32, PackageId)>,
}

impl Closure {
    fn new(architecture: Architecture) -> Self {
        Self {
            architecture,
            files: BTreeMap::new(),
        }
    }

    /// Adds `program` of the first package, and what it needs of any of `packages`.
    fn add_program(&mut self, program: &str, packages: &[Package]) -> Result<(), ToolError> {
        let Some(first) = packages.first() else {
            return Ok(());
        };
        for directory in ["usr/sbin", "usr/bin"] {
            let path = format!("{directory}/{program}");
            if let Some(file) = rooted::find(&first.root, &path) {
                return self.add(&path, file, 0o755, &first.id, packages);
            }
        }
        Err(ToolError::NoProgram {
            program: program.to_owned(),
            package: first.id.name.clone(),
            version: first.id.version.clone(),
        })
    }

    /// Puts `file` at `path` and adds its loader and libraries, then theirs.
    fn add(
        &mut self,
        path: &str,
        file: PathBuf,
        mode: u32,
        package: &PackageId,
        packages: &[Package],
    ) -> Result<(), ToolError> {
        if self.files.contains_key(path) {
            return Ok(());
        }
        let data = fs::read(&file).map_err(|source| ToolError::Read {
            path: file.clone(),
            source,
        })?;
        let linkage = elf::linkage(&data, self.architecture).map_err(|source| ToolError::Elf {
            path: file.clone(),
            source,
        })?;
        self.files
            .insert(path.to_owned(), (data, mode, package.clone()));
        let missing = |library: &str| ToolError::NoLibrary {
            library: library.to_owned(),
            wanted_by: format!("/{path}"),
            searched: packages
                .iter()
                .map(|package| format!("{} {}", package.id.name, package.id.version))
                .collect::<Vec<_>>()
                .join(", "),
        };
        if let Some(loader) = &linkage.interpreter {
            let (owner, found) =
                find_in(packages, std::slice::from_ref(loader)).ok_or_else(|| missing(loader))?;
            self.add(&rooted::merged(loader), found, 0o755, &owner.id, packages)?;
        }
        for library in &linkage.needed {
            if self.has_loader(library) {
                continue;
            }
            let places = library_places(self.architecture, library);
            let (owner, found) = find_in(packages, &places).ok_or_else(|| missing(library))?;
            // The loader's first place.
            let home = format!("{}/{library}", self.architecture.library_directory());
            self.add(&home, found, 0o644, &owner.id, packages)?;
        }
        Ok(())
    }

    /// Whether `library` is the dynamic loader, which libc names and which is at its own path.
    fn has_loader(&self, library: &str) -> bool {
        library.starts_with("ld-linux")
            && self
                .files
                .keys()
                .any(|path| path.rsplit('/').next() == Some(library))
    }

    fn finish(self) -> (Tree, Vec<ToolFile>) {
        let mut tree = Tree::default();
        let mut list = Vec::new();
        for (path, (data, mode, package)) in self.files {
            list.push(ToolFile {
                path: format!("/{path}"),
                bytes: data.len() as u64,
                package,
            });
            tree.file(&path, mode, data);
        }
        (tree, list)
    }
}

/// The first of `paths` that one of `packages` has, tried path by path.
fn find_in<'a>(packages: &'a [Package], paths: &[String]) -> Option<(&'a Package, PathBuf)> {
    paths.iter().find_map(|path| {
        packages
            .iter()
            .find_map(|package| Some((package, rooted::find(&package.root, path)?)))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::elf::tests::fake_elf;

    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

    fn package(root: &Path, name: &str, files: &[(&str, Vec<u8>)]) -> Package {
        let root = root.join(name);
        for (path, data) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        }
        Package {
            id: PackageId {
                name: name.to_owned(),
                version: "1".to_owned(),
            },
            root,
            depends: Vec::new(),
        }
    }

    fn packages(root: &Path) -> Vec<Package> {
        let program = fake_elf(Some(LOADER), &["libe.so.2", "libc.so.6"], &[]);
        let e = fake_elf(None, &["libcom.so.2", "libc.so.6"], &[]);
        let com = fake_elf(None, &["libc.so.6"], &[]);
        let c = fake_elf(None, &["ld-linux-x86-64.so.2"], &[]);
        let loader = fake_elf(None, &[], &[]);
        vec![
            package(root, "tool", &[("sbin/tool", program)]),
            package(root, "libe", &[("lib/x86_64-linux-gnu/libe.so.2", e)]),
            package(
                root,
                "libcom",
                &[("usr/lib/x86_64-linux-gnu/libcom.so.2", com)],
            ),
            package(
                root,
                "libc6",
                &[
                    ("lib/x86_64-linux-gnu/libc.so.6", c),
                    ("lib64/ld-linux-x86-64.so.2", loader),
                ],
            ),
        ]
    }

    #[test]
    fn libraries_of_libraries_and_the_loader_come_along() {
        let root = tempfile::tempdir().unwrap();
        let mut closure = Closure::new(Architecture::X64);
        closure.add_program("tool", &packages(root.path())).unwrap();
        let paths: Vec<String> = closure
            .finish()
            .1
            .into_iter()
            .map(|file| file.path)
            .collect();
        assert_eq!(
            paths,
            [
                "/usr/lib/x86_64-linux-gnu/libc.so.6",
                "/usr/lib/x86_64-linux-gnu/libcom.so.2",
                "/usr/lib/x86_64-linux-gnu/libe.so.2",
                "/usr/lib64/ld-linux-x86-64.so.2",
                "/usr/sbin/tool",
            ]
        );
    }

    #[test]
    fn a_library_that_no_package_has_is_named_with_the_file_that_needs_it() {
        let root = tempfile::tempdir().unwrap();
        let mut packages = packages(root.path());
        packages.remove(2);
        let error = Closure::new(Architecture::X64)
            .add_program("tool", &packages)
            .unwrap_err();
        let ToolError::NoLibrary {
            library, wanted_by, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(library, "libcom.so.2");
        assert_eq!(wanted_by, "/usr/lib/x86_64-linux-gnu/libe.so.2");
    }

    #[test]
    fn a_missing_program_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = Closure::new(Architecture::X64)
            .add_program("other", &packages(root.path()))
            .unwrap_err();
        assert!(matches!(error, ToolError::NoProgram { .. }));
    }
}
