//! Files of the distribution's packages, unpacked into a cache and never installed.
//!
//! A package comes from the distribution's archive through `apt-get download`, which needs no root, or
//! from a directory of `.deb` files. Invariants: a package from the archive has the digest that the
//! signed package lists give it, in the cache too (apt itself compares only the size of a file that is
//! there already); an unpacked tree appears in the cache whole or not at all, because it is renamed
//! there when it is complete.
//!
//! Packages for another processor than this system's come from package lists of their own in the cache,
//! fetched once a day from the places that this system's apt knows; the system's apt is not changed.
//!
//! Not here: version constraints. The newest version that apt would install is taken, and of
//! alternatives the first.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256, Sha512};

use crate::apt_lists;
use crate::architecture::Architecture;
use crate::command::{self, CommandError};
use crate::digest::hex;

/// Why a package's files are not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    /// apt's lists do not have it.
    #[error(
        "apt knows no package {names}. If this system's package lists were never fetched, run \
         `sudo apt-get update`. Without apt or without a network, give --packages-dir a directory \
         with the .deb files"
    )]
    UnknownToApt {
        /// The packages that were asked for.
        names: String,
    },
    /// The given directory does not have it.
    #[error(
        "{directory}: no file {name}_*.deb. Fetch it with `apt-get download {name}` on a system of the \
         same distribution and put it there"
    )]
    NotInDirectory {
        /// The package.
        name: String,
        /// The directory.
        directory: PathBuf,
    },
    /// The given directory has more than one version of it.
    #[error("{directory}: several versions of {name}: {files}. Leave one of them there")]
    Ambiguous {
        /// The package.
        name: String,
        /// The directory.
        directory: PathBuf,
        /// The files that match.
        files: String,
    },
    /// apt's answer is not in the known form.
    #[error("apt-get told no address and digest for the package {name}; it said: {said}")]
    Unexpected {
        /// The package.
        name: String,
        /// What apt wrote.
        said: String,
    },
    /// The fetched file is not the one that the package lists speak of.
    #[error(
        "{file}: {expected} was expected from the package lists, found {found}. Run the build again"
    )]
    Digest {
        /// The package file.
        file: PathBuf,
        /// The expected digest, with its kind.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// apt knows the package and did not get it.
    #[error(
        "apt could not fetch {file}. Check the network; when the server says 404, the package lists are \
         older than it: run `sudo apt-get update`"
    )]
    Fetch {
        /// The package file.
        file: String,
        /// What apt-get said.
        source: CommandError,
    },
    /// The package lists for another processor are not to be had.
    #[error(
        "the package lists for {} cannot be fetched from the places in /etc/apt. On Ubuntu, where they \
         are on another server, give --packages-dir a directory with the .deb files",
        .architecture.name()
    )]
    ForeignLists {
        /// The processor.
        architecture: Architecture,
        /// What apt-get said.
        source: CommandError,
    },
    /// apt-get or dpkg-deb failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cache or the directory could not be read or written.
    #[error("{path}: cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A package and its version, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct PackageId {
    /// The package's name.
    pub(crate) name: String,
    /// Its version, with epoch and revision.
    pub(crate) version: String,
}

/// An unpacked package.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    /// Which one.
    pub(crate) id: PackageId,
    /// The tree with its files.
    pub(crate) root: PathBuf,
    /// Names of the packages that it depends on; of alternatives the first.
    pub(crate) depends: Vec<String>,
}

/// Where packages come from.
#[derive(Debug)]
enum Origin {
    Apt {
        architecture: Architecture,
        /// Options of `apt-get`; nothing until it was found out which.
        options: Option<Vec<OsString>>,
    },
    Directory {
        architecture: Architecture,
        path: PathBuf,
    },
}

/// Takes packages from their origin, each at most once.
#[derive(Debug)]
pub(crate) struct Packages {
    origin: Origin,
    cache: PathBuf,
    taken: BTreeMap<String, Package>,
    progress: fn(&str),
}

pub(crate) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> PackageError {
    let path = path.to_owned();
    move |source| PackageError::Io {
        action,
        path,
        source,
    }
}

impl Packages {
    /// Packages from apt, or from `directory` when there is one; `cache` is created when needed.
    pub(crate) fn new(
        architecture: Architecture,
        directory: Option<PathBuf>,
        cache: PathBuf,
        progress: fn(&str),
    ) -> Self {
        let apt = Origin::Apt {
            architecture,
            options: None,
        };
        Self {
            origin: directory.map_or(apt, |path| Origin::Directory { architecture, path }),
            cache,
            taken: BTreeMap::new(),
            progress,
        }
    }

    /// The package `name`, unpacked.
    ///
    /// # Errors
    /// [`PackageError`], each saying what to do.
    pub(crate) fn take(&mut self, name: &str) -> Result<Package, PackageError> {
        let mut packages = self.take_all(&[name.to_owned()])?;
        packages.pop().ok_or_else(|| PackageError::Unexpected {
            name: name.to_owned(),
            said: String::new(),
        })
    }

    /// The package `name` and those it depends on, directly or not, whose names `follow` accepts.
    ///
    /// The first is `name` itself; the others follow by distance, so that the order depends on the
    /// packages only.
    ///
    /// # Errors
    /// [`PackageError`], each saying what to do.
    pub(crate) fn take_with_dependencies(
        &mut self,
        name: &str,
        follow: impl Fn(&str) -> bool,
    ) -> Result<Vec<Package>, PackageError> {
        let mut seen = BTreeSet::from([name.to_owned()]);
        let mut wave = vec![name.to_owned()];
        let mut packages = Vec::new();
        while !wave.is_empty() {
            let taken = self.take_all(&wave)?;
            wave = taken
                .iter()
                .flat_map(|package| &package.depends)
                .filter(|name| follow(name) && seen.insert((*name).clone()))
                .cloned()
                .collect();
            packages.extend(taken);
        }
        Ok(packages)
    }

    fn take_all(&mut self, names: &[String]) -> Result<Vec<Package>, PackageError> {
        let missing: Vec<String> = names
            .iter()
            .filter(|name| !self.taken.contains_key(*name))
            .cloned()
            .collect();
        if !missing.is_empty() {
            let options = self.apt_options()?;
            let archives = match &self.origin {
                Origin::Apt { .. } => self.fetch_all(&missing, &options)?,
                Origin::Directory { architecture, path } => missing
                    .iter()
                    .map(|name| archive_in(path, name, *architecture))
                    .collect::<Result<_, _>>()?,
            };
            for (name, archive) in missing.iter().zip(archives) {
                let package = self.unpack(&archive)?;
                self.taken.insert(name.clone(), package);
            }
        }
        Ok(names
            .iter()
            .filter_map(|name| self.taken.get(name).cloned())
            .collect())
    }

    /// What `apt-get` must be told so that it speaks of packages for the wanted processor.
    fn apt_options(&mut self) -> Result<Vec<OsString>, PackageError> {
        let Origin::Apt {
            architecture,
            options: known,
        } = &mut self.origin
        else {
            return Ok(Vec::new());
        };
        if known.is_none() {
            *known = Some(apt_lists::options(
                *architecture,
                &self.cache,
                self.progress,
            )?);
        }
        Ok(known.clone().unwrap_or_default())
    }

    /// Package files of `names` in the cache, fetched when they are not there or not right.
    fn fetch_all(
        &self,
        names: &[String],
        options: &[OsString],
    ) -> Result<Vec<PathBuf>, PackageError> {
        let directory = self.cache.join("debs");
        fs::create_dir_all(&directory).map_err(io_error("create the cache", &directory))?;
        let empty = self.temporary(".asking-")?;
        let mut arguments = options.to_vec();
        arguments.extend(["download", "--print-uris"].map(OsString::from));
        arguments.extend(names.iter().map(OsString::from));
        // Asked in an empty directory: apt says nothing of a package whose file is there already.
        let said = match command::run("apt-get", &arguments, empty.path()) {
            Err(CommandError::Failed { message, .. }) if message.contains("Unable to locate") => {
                return Err(PackageError::UnknownToApt {
                    names: names.join(", "),
                });
            }
            other => other?,
        };
        names
            .iter()
            .map(|name| {
                let offer = Offer::find(&said, name).ok_or_else(|| PackageError::Unexpected {
                    name: name.clone(),
                    said: said.trim().to_owned(),
                })?;
                self.fetch(name, &offer, (&directory, options))
            })
            .collect()
    }

    fn fetch(
        &self,
        name: &str,
        offer: &Offer,
        (directory, options): (&Path, &[OsString]),
    ) -> Result<PathBuf, PackageError> {
        let kept = directory.join(&offer.file);
        if kept.is_file() && offer.check(&kept).is_ok() {
            return Ok(kept);
        }
        (self.progress)(&format!("fetching {} ({} bytes)", offer.file, offer.bytes));
        let temporary = self.temporary(".fetching-")?;
        let mut arguments = options.to_vec();
        // apt fetches as the user _apt when root calls it, who cannot write into the cache; the digest
        // is checked either way.
        arguments.extend(["-o", "APT::Sandbox::User=root", "download", name].map(OsString::from));
        command::run("apt-get", &arguments, temporary.path()).map_err(|source| {
            PackageError::Fetch {
                file: offer.file.clone(),
                source,
            }
        })?;
        let fetched = temporary.path().join(&offer.file);
        offer.check(&fetched)?;
        fs::rename(&fetched, &kept).map_err(io_error("keep a package", &kept))?;
        Ok(kept)
    }

    /// A new directory in the cache, removed when the value goes away.
    fn temporary(&self, prefix: &str) -> Result<tempfile::TempDir, PackageError> {
        tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(&self.cache)
            .map_err(io_error("create a directory", &self.cache))
    }

    fn unpack(&self, archive: &Path) -> Result<Package, PackageError> {
        let here = Path::new(".");
        let archive_argument = archive.as_os_str();
        let control = command::run("dpkg-deb", &["--field".as_ref(), archive_argument], here)?;
        let id = PackageId {
            name: field(&control, "Package").unwrap_or_default().to_owned(),
            version: field(&control, "Version").unwrap_or_default().to_owned(),
        };
        let bytes = fs::read(archive).map_err(io_error("read the package", archive))?;
        let key = &blake3::hash(&bytes).to_hex()[..16];
        let trees = self.cache.join("unpacked");
        fs::create_dir_all(&trees).map_err(io_error("create the cache", &trees))?;
        let root = trees.join(format!("{}-{key}", id.name));
        if !root.is_dir() {
            (self.progress)(&format!("unpacking {} {}", id.name, id.version));
            let temporary = self.temporary(".unpacking-")?;
            command::run(
                "dpkg-deb",
                &[
                    "--extract".as_ref(),
                    archive_argument,
                    temporary.path().as_os_str(),
                ],
                here,
            )?;
            // Another build may have put the same tree there meanwhile; then that one is as good.
            if let Err(error) = fs::rename(temporary.path(), &root)
                && !root.is_dir()
            {
                return Err(io_error("keep the unpacked package", &root)(error));
            }
        }
        Ok(Package {
            depends: dependencies(&control),
            id,
            root,
        })
    }
}

/// What apt says of a package: `'URI' FILE SIZE KIND:DIGEST`.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    file: String,
    bytes: u64,
    digest: String,
}

impl Offer {
    fn find(said: &str, name: &str) -> Option<Self> {
        let prefix = format!("{name}_");
        said.lines().find_map(|line| {
            let mut words = line.split_whitespace().rev();
            let digest = words.next()?.to_owned();
            let bytes = words.next()?.parse().ok()?;
            let file = words.next()?;
            let plain = file.starts_with(&prefix) && !file.contains('/');
            plain.then(|| Self {
                file: file.to_owned(),
                bytes,
                digest,
            })
        })
    }

    fn check(&self, path: &Path) -> Result<(), PackageError> {
        let bytes = fs::read(path).map_err(io_error("read the package", path))?;
        let found = match self.digest.split_once(':') {
            Some(("SHA256", _)) => format!("SHA256:{}", hex(&Sha256::digest(&bytes))),
            Some(("SHA512", _)) => format!("SHA512:{}", hex(&Sha512::digest(&bytes))),
            // Older kinds prove nothing, so a file is never taken on their word.
            _ => "no digest of a kind that this program trusts (SHA256, SHA512)".to_owned(),
        };
        if found == self.digest {
            return Ok(());
        }
        Err(PackageError::Digest {
            file: path.to_owned(),
            expected: self.digest.clone(),
            found,
        })
    }
}

/// The one `.deb` file of package `name` in `directory`; one for another processor does not count.
fn archive_in(
    directory: &Path,
    name: &str,
    architecture: Architecture,
) -> Result<PathBuf, PackageError> {
    let prefix = format!("{name}_");
    // NAME_VERSION_ARCHITECTURE.deb; a name that somebody gave otherwise counts too.
    let others = Architecture::ALL
        .into_iter()
        .filter(|other| *other != architecture)
        .map(|other| format!("_{}.deb", other.debian()))
        .collect::<Vec<_>>();
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).map_err(io_error("list the packages", directory))?;
    for entry in entries {
        let entry = entry.map_err(io_error("list the packages", directory))?;
        if let Ok(file) = entry.file_name().into_string()
            && file.starts_with(&prefix)
            && file.ends_with(".deb")
            && !others.iter().any(|other| file.ends_with(other))
        {
            found.push(file);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Err(PackageError::NotInDirectory {
            name: name.to_owned(),
            directory: directory.to_owned(),
        }),
        [one] => Ok(directory.join(one)),
        several => Err(PackageError::Ambiguous {
            name: name.to_owned(),
            directory: directory.to_owned(),
            files: several.join(", "),
        }),
    }
}

/// The value of a one-line field in a package's control file (`deb-control(5)`).
fn field<'a>(control: &'a str, name: &str) -> Option<&'a str> {
    control.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key == name).then_some(value.trim())
    })
}

/// Names in `Pre-Depends` and `Depends`, without versions and architectures, the first of alternatives.
fn dependencies(control: &str) -> Vec<String> {
    ["Pre-Depends", "Depends"]
        .iter()
        .filter_map(|name| field(control, name))
        .flat_map(|list| list.split(','))
        .filter_map(|clause| {
            let first = clause.split('|').next()?;
            let name = first.split(['(', '[', ':']).next()?.trim();
            (!name.is_empty()).then(|| name.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: &str = "Package: e2fsprogs\nVersion: 1.47.0-2+b2\n\
        Pre-Depends: libblkid1 (>= 2.36), libc6:any (>= 2.34)\n\
        Depends: logsave | other, linux-base\nDescription: x\n text: y\n";

    #[test]
    fn dependencies_are_plain_names() {
        assert_eq!(
            dependencies(CONTROL),
            ["libblkid1", "libc6", "logsave", "linux-base"]
        );
        assert_eq!(field(CONTROL, "Version"), Some("1.47.0-2+b2"));
    }

    #[test]
    fn an_offer_is_read_from_what_apt_prints() {
        let said = "'http://a/b_2_amd64.deb' b_2_amd64.deb 12 SHA256:00\n\
                    'http://a/bb_1%3a2_all.deb' bb_1%3a2_all.deb 7 SHA512:ff\n";
        let offer = Offer::find(said, "bb").unwrap();
        assert_eq!((offer.file.as_str(), offer.bytes), ("bb_1%3a2_all.deb", 7));
        assert_eq!(Offer::find(said, "c"), None);
    }

    #[test]
    fn a_changed_package_file_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a_1_all.deb");
        fs::write(&path, b"abc").unwrap();
        let mut offer = Offer {
            file: "a_1_all.deb".to_owned(),
            bytes: 3,
            // FIPS 180-4's own example.
            digest: "SHA256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
                .to_owned(),
        };
        offer.check(&path).unwrap();
        fs::write(&path, b"abd").unwrap();
        assert!(matches!(
            offer.check(&path),
            Err(PackageError::Digest { .. })
        ));
        offer.digest = "MD5Sum:4911e516e5aa21d327512e0c8b197616".to_owned();
        assert!(offer.check(&path).is_err());
    }

    #[test]
    fn a_package_that_the_directory_lacks_is_named_with_the_command_to_fetch_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("libc6-dev_1_amd64.deb"), b"").unwrap();
        let error = archive_in(directory.path(), "libc6", Architecture::X64).unwrap_err();
        assert!(error.to_string().contains("apt-get download libc6"));
        fs::write(directory.path().join("libc6_1_arm64.deb"), b"").unwrap();
        assert!(archive_in(directory.path(), "libc6", Architecture::X64).is_err());
        archive_in(directory.path(), "libc6", Architecture::Arm64).unwrap();
        for version in ["1", "2"] {
            fs::write(
                directory.path().join(format!("libc6_{version}_amd64.deb")),
                b"",
            )
            .unwrap();
        }
        let error = archive_in(directory.path(), "libc6", Architecture::X64).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("libc6_1_amd64.deb, libc6_2_amd64.deb")
        );
    }
}
