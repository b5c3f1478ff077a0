//! The iPXE loaders that firmware fetches first, copied as the distribution built them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::packages::{PackageError, PackageId, Packages};
use crate::rooted;

/// Debian's and Ubuntu's package with the loaders.
const PACKAGE: &str = "ipxe";

/// Where the package has them.
const DIRECTORY: &str = "usr/lib/ipxe";

/// The loaders: BIOS over the card's own driver, UEFI over the firmware's driver, UEFI with iPXE's own
/// drivers for firmware whose driver is broken.
pub(crate) const LOADERS: [&str; 3] = ["undionly.kpxe", "snponly.efi", "ipxe.efi"];

/// Why a loader is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    /// The package could not be had.
    #[error("the package {PACKAGE} is not to be had; --loaders takes the loaders from a directory")]
    Package(#[from] PackageError),
    /// A loader is not in the package.
    #[error(
        "the package {PACKAGE} {version} has no /{DIRECTORY}/{name}; give --loaders a directory with it"
    )]
    NotInPackage {
        /// The loader.
        name: &'static str,
        /// The package's version.
        version: String,
    },
    /// A loader could not be read.
    #[error("{path}: cannot read the boot loader; expected in that directory: {}", LOADERS.join(", "))]
    Read {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The loaders' names and contents, and which package they are from.
#[derive(Debug)]
pub(crate) struct Loaders {
    /// Name and content, in the order of [`LOADERS`].
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// The package; nothing when they were given as files.
    pub(crate) package: Option<PackageId>,
}

fn read(path: PathBuf) -> Result<Vec<u8>, LoaderError> {
    fs::read(&path).map_err(|source| LoaderError::Read { path, source })
}

/// The loaders from `directory`.
///
/// # Errors
/// [`LoaderError::Read`].
pub(crate) fn from_directory(directory: &Path) -> Result<Loaders, LoaderError> {
    let files = LOADERS
        .iter()
        .map(|name| Ok((*name, read(directory.join(name))?)))
        .collect::<Result<_, LoaderError>>()?;
    Ok(Loaders {
        files,
        package: None,
    })
}

/// The loaders from the distribution's package.
///
/// # Errors
/// [`LoaderError`].
pub(crate) fn from_packages(packages: &mut Packages) -> Result<Loaders, LoaderError> {
    let package = packages.take(PACKAGE)?;
    let files = LOADERS
        .iter()
        .map(|name| {
            let path = rooted::find(&package.root, &format!("{DIRECTORY}/{name}"));
            let path = path.ok_or_else(|| LoaderError::NotInPackage {
                name,
                version: package.id.version.clone(),
            })?;
            Ok((*name, read(path)?))
        })
        .collect::<Result<_, LoaderError>>()?;
    Ok(Loaders {
        files,
        package: Some(package.id),
    })
}
