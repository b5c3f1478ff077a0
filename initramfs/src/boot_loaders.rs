//! The loaders that firmware fetches first, copied as the distribution built and signed them.
//!
//! Not here: which there are ([`Architecture::loaders`]), and which firmware gets which (the server).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::architecture::{Architecture, Loader};
use crate::packages::{PackageError, PackageId, Packages};
use crate::rooted;

/// Why a loader is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    /// The package could not be had.
    #[error(
        "the package {package} with the boot loader {name} is not to be had; --loaders takes loaders \
         from a directory"
    )]
    Package {
        /// The loader.
        name: &'static str,
        /// Its package.
        package: &'static str,
        /// Why.
        source: PackageError,
    },
    /// A loader is not in the package.
    #[error(
        "the package {package} {version} has no boot loader {name} (expected at /{path}); give --loaders a \
         directory with it"
    )]
    NotInPackage {
        /// The loader.
        name: &'static str,
        /// Its package.
        package: &'static str,
        /// The package's version.
        version: String,
        /// Where it was expected.
        path: String,
    },
    /// The directory is none.
    #[error(
        "{path}: not a directory; --loaders names a directory with boot loaders such as {example}"
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
        /// A loader's name.
        example: &'static str,
    },
    /// A loader could not be read.
    #[error("{path}: cannot read the boot loader")]
    Read {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A loader's content and where it came from.
#[derive(Debug)]
pub(crate) struct LoaderFile {
    /// Its name in the boot folder.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) data: Vec<u8>,
    /// Its package; nothing when it was given as a file.
    pub(crate) package: Option<PackageId>,
}

/// Makes sure that `directory` is one, before the long work.
///
/// # Errors
/// [`LoaderError::NotADirectory`].
pub(crate) fn check(directory: &Path, architecture: Architecture) -> Result<(), LoaderError> {
    if directory.is_dir() {
        return Ok(());
    }
    Err(LoaderError::NotADirectory {
        path: directory.to_owned(),
        example: architecture
            .loaders()
            .first()
            .map_or("", |loader| loader.name),
    })
}

/// The loaders: those in `directory` from there, the others from the distribution's packages.
///
/// # Errors
/// [`LoaderError`].
pub(crate) fn gather(
    directory: Option<&Path>,
    packages: &mut Packages,
    architecture: Architecture,
) -> Result<Vec<LoaderFile>, LoaderError> {
    let mut files = Vec::new();
    for loader in architecture.loaders() {
        let given = directory.map(|directory| directory.join(loader.name));
        files.push(match given.filter(|path| path.exists()) {
            Some(path) => LoaderFile {
                name: loader.name,
                data: read(path)?,
                package: None,
            },
            None => from_package(packages, loader)?,
        });
    }
    Ok(files)
}

fn from_package(packages: &mut Packages, loader: &Loader) -> Result<LoaderFile, LoaderError> {
    let package = packages
        .take(loader.package)
        .map_err(|source| LoaderError::Package {
            name: loader.name,
            package: loader.package,
            source,
        })?;
    let path = loader
        .paths
        .iter()
        .find_map(|path| rooted::find(&package.root, path))
        .ok_or_else(|| LoaderError::NotInPackage {
            name: loader.name,
            package: loader.package,
            version: package.id.version.clone(),
            path: loader.paths.join(" or /"),
        })?;
    Ok(LoaderFile {
        name: loader.name,
        data: read(path)?,
        package: Some(package.id),
    })
}

fn read(path: PathBuf) -> Result<Vec<u8>, LoaderError> {
    fs::read(&path).map_err(|source| LoaderError::Read { path, source })
}
