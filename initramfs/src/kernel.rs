//! The kernel image and where its modules are.
//!
//! Invariant: image and modules are of one version; the version is read out of the image itself, for
//! x86-64 at the place that its boot protocol gives it (`Documentation/x86/boot.rst`: "HdrS" at 0x202, the
//! pointer `kernel_version` at 0x20E, counted from 0x200). The image is passed on as it is, so that the
//! distribution's signature stays valid.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::architecture::Architecture;
use crate::packages::{PackageError, PackageId, Packages};

/// Why there is no usable kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// A file could not be read.
    #[error("{path}: cannot read the kernel")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{path}: not a Linux kernel for {} (expected {}). Give --kernel a file such as \
         /boot/vmlinuz-VERSION",
        .architecture.name(), image_format(*.architecture)
    )]
    NotAKernel {
        /// The wanted processor.
        architecture: Architecture,
        /// Which.
        path: PathBuf,
    },
    /// The modules are another kernel's.
    #[error(
        "{modules}: these are modules of kernel {found}, expected {expected} as in {kernel}. Give \
         --modules the directory lib/modules/{expected}"
    )]
    OtherModules {
        /// The modules directory.
        modules: PathBuf,
        /// The last part of its path.
        found: String,
        /// The kernel image.
        kernel: PathBuf,
        /// The version in the image.
        expected: String,
    },
    /// The packages have no image, or no modules.
    #[error("the packages {packages} hold no {what}; give --kernel and --modules instead")]
    NotInPackages {
        /// The packages that were looked through.
        packages: String,
        /// What was looked for.
        what: String,
    },
    /// The packages could not be had.
    #[error(
        "the distribution's kernel is not to be had; --kernel and --modules take any other one"
    )]
    Packages(#[from] PackageError),
}

/// A kernel and its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its version, as `uname -r` says it.
    pub(crate) version: String,
    /// The image.
    pub(crate) image: Vec<u8>,
    /// Directories `lib/modules/VERSION`.
    pub(crate) modules: Vec<PathBuf>,
    /// Which package the image is from; nothing when it was given as a file.
    pub(crate) package: Option<PackageId>,
}

impl Kernel {
    /// A kernel from two paths.
    ///
    /// # Errors
    /// [`KernelError`] when the image is no kernel or the directory's name is another version.
    pub(crate) fn from_files(
        architecture: Architecture,
        image: &Path,
        modules: &Path,
    ) -> Result<Self, KernelError> {
        let (version, image_data) = read_image(architecture, image)?;
        let found = modules
            .canonicalize()
            .map_err(|source| KernelError::Read {
                path: modules.to_owned(),
                source,
            })?
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if found != version {
            return Err(KernelError::OtherModules {
                modules: modules.to_owned(),
                found,
                kernel: image.to_owned(),
                expected: version,
            });
        }
        Ok(Self {
            version,
            image: image_data,
            modules: vec![modules.to_owned()],
            package: None,
        })
    }

    /// The distribution's current full kernel, signed as it is.
    ///
    /// # Errors
    /// [`KernelError::Packages`] and [`KernelError::NotInPackages`].
    pub(crate) fn from_packages(
        architecture: Architecture,
        packages: &mut Packages,
    ) -> Result<Self, KernelError> {
        // The meta package names the image; Ubuntu's image names the modules.
        let follow = |name: &str| {
            (name.starts_with("linux-image-") || name.starts_with("linux-modules-"))
                && name.contains(|letter: char| letter.is_ascii_digit())
        };
        let [debian, ubuntu] = architecture.kernel_packages();
        let taken = match packages.take_with_dependencies(debian, follow) {
            Err(
                first @ (PackageError::UnknownToApt { .. } | PackageError::NotInDirectory { .. }),
            ) => {
                // Of two failures the one about Debian's name is told: it says the same to do.
                packages
                    .take_with_dependencies(ubuntu, follow)
                    .map_err(|_| first)?
            }
            other => other?,
        };
        let missing = |what: &str| KernelError::NotInPackages {
            packages: taken
                .iter()
                .map(|package| package.id.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            what: what.to_owned(),
        };
        let (package, image) = taken
            .iter()
            .find_map(|package| Some((package, image_in(&package.root.join("boot"))?)))
            .ok_or_else(|| missing("boot/vmlinuz-VERSION"))?;
        let (version, data) = read_image(architecture, &image)?;
        let modules: Vec<PathBuf> = taken
            .iter()
            .flat_map(|package| {
                ["lib/modules", "usr/lib/modules"]
                    .map(|base| package.root.join(base).join(&version))
            })
            .filter(|directory| directory.is_dir())
            .collect();
        if modules.is_empty() {
            return Err(missing(&format!("lib/modules/{version}")));
        }
        Ok(Self {
            version,
            image: data,
            modules,
            package: Some(package.id.clone()),
        })
    }
}

fn image_in(boot: &Path) -> Option<PathBuf> {
    let mut images: Vec<PathBuf> = fs::read_dir(boot)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .collect();
    images.sort();
    images.into_iter().next()
}

/// The image in `path` and its version.
///
/// # Errors
/// [`KernelError::Read`] and [`KernelError::NotAKernel`].
pub(crate) fn read_image(
    architecture: Architecture,
    path: &Path,
) -> Result<(String, Vec<u8>), KernelError> {
    let data = fs::read(path).map_err(|source| KernelError::Read {
        path: path.to_owned(),
        source,
    })?;
    match version(architecture, &data) {
        Some(version) => Ok((version, data)),
        None => Err(KernelError::NotAKernel {
            architecture,
            path: path.to_owned(),
        }),
    }
}

/// What the image of a kernel looks like, for people.
fn image_format(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X64 => "a bzImage with \"HdrS\" at offset 0x202",
        Architecture::Arm64 => "an Image, not compressed, with \"ARM\\x64\" at offset 0x38",
    }
}

/// The version in a kernel image.
fn version(architecture: Architecture, image: &[u8]) -> Option<String> {
    let version = match architecture {
        Architecture::X64 => x64_version(image)?,
        Architecture::Arm64 => arm64_version(image)?,
    };
    // The version becomes a directory's name.
    let plain = !version.is_empty() && version != ".." && !version.contains('/');
    plain.then(|| version.to_owned())
}

/// The first word of the string that the header points to.
fn x64_version(image: &[u8]) -> Option<&str> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let pointer = u16::from_le_bytes(image.get(0x20E..0x210)?.try_into().ok()?);
    let text = image.get(0x200 + usize::from(pointer)..)?;
    first_word(text).filter(|_| pointer != 0)
}

/// The header (`Documentation/arm64/booting.rst`) does not tell it; the banner in the image's data does
/// (`linux_banner`, init/version.c).
fn arm64_version(image: &[u8]) -> Option<&str> {
    const BANNER: &[u8] = b"Linux version ";
    if image.get(0x38..0x3c)? != b"ARM\x64" {
        return None;
    }
    let mut rest = image;
    loop {
        let at = rest.iter().position(|byte| *byte == BANNER[0])?;
        rest = &rest[at..];
        if let Some(version) = rest.strip_prefix(BANNER).and_then(first_word)
            && version.starts_with(|letter: char| letter.is_ascii_digit())
        {
            return Some(version);
        }
        rest = &rest[1..];
    }
}

/// `text` up to its first space or NUL.
fn first_word(text: &[u8]) -> Option<&str> {
    let end = text
        .iter()
        .take(256)
        .position(|byte| *byte == b' ' || *byte == 0)?;
    str::from_utf8(&text[..end]).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest file that passes for a kernel image.
    pub(crate) fn fake_image(version: &str) -> Vec<u8> {
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20E..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image.extend_from_slice(format!("{version} (builder) #1 SMP\0").as_bytes());
        image
    }

    fn x64(image: &[u8]) -> Option<String> {
        version(Architecture::X64, image)
    }

    #[test]
    fn the_version_of_an_arm_kernel_is_in_its_banner() {
        let mut image = vec![0; 0x100];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        image.extend_from_slice(b"LLinux version %s\0Linux version 6.1.0-56-arm64 (builder)\0");
        let found = version(Architecture::Arm64, &image);
        assert_eq!(found.as_deref(), Some("6.1.0-56-arm64"));
        assert_eq!(x64(&image), None);
        assert_eq!(version(Architecture::Arm64, &image[..0x110]), None);
    }

    #[test]
    fn the_version_is_read_out_of_the_image() {
        let image = fake_image("6.1.0-56-amd64");
        assert_eq!(x64(&image).as_deref(), Some("6.1.0-56-amd64"));
        for cut in 0..image.len() - 1 {
            let _ = x64(&image[..cut]);
        }
        assert_eq!(x64(&fake_image("a/../b")), None);
    }

    #[test]
    fn modules_of_another_kernel_are_refused_with_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("vmlinuz");
        fs::write(&image, fake_image("6.1.0-2")).unwrap();
        let modules = directory.path().join("lib/modules/6.1.0-1");
        fs::create_dir_all(&modules).unwrap();
        let error = Kernel::from_files(Architecture::X64, &image, &modules)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("kernel 6.1.0-1, expected 6.1.0-2"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("vmlinuz");
        fs::write(&image, vec![0; 4096]).unwrap();
        let error = Kernel::from_files(Architecture::X64, &image, directory.path()).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel { .. }));
    }
}
