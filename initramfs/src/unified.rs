//! The unified kernel image: kernel, initramfs and command line as one EFI program, which one signature
//! covers whole.
//!
//! Source: systemd-stub(7) and the UAPI group's "Unified Kernel Image" page: the stub reads its sections
//! `.osrel`, `.uname`, `.cmdline`, `.initrd` and `.linux`. With Secure Boot on it takes no other command
//! line than the one in the image.
//!
//! Invariant: the same kernel, initramfs, stub and command line give the same bytes.
//!
//! Not here: how sections are added ([`crate::pe`]), signatures ([`crate::signing`]).

use std::fs;
use std::io;
use std::path::PathBuf;

use object::pe::{IMAGE_FILE_MACHINE_AMD64, IMAGE_FILE_MACHINE_ARM64};

use crate::architecture::Architecture;
use crate::packages::{PackageError, PackageId, Packages};
use crate::pe::{self, PeError, Section};
use crate::rooted;

/// The longest command line, in bytes: `COMMAND_LINE_SIZE` of x86-64 and Arm, with its NUL
/// (arch/*/include/*/asm/setup.h).
const LONGEST_COMMAND_LINE: usize = 2047;

/// Why there is no unified kernel image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnifiedError {
    /// The stub's package could not be had.
    #[error(
        "the package {package} with the EFI stub is not to be had; --stub takes it from a file"
    )]
    Package {
        /// The package.
        package: &'static str,
        /// Why.
        source: PackageError,
    },
    /// The package does not have the stub.
    #[error("the package {package} {version} has no /{path}; --stub takes the stub from a file")]
    NotInPackage {
        /// The package.
        package: &'static str,
        /// Its version.
        version: String,
        /// Where the stub was expected.
        path: String,
    },
    /// A file could not be read.
    #[error("{path}: cannot read the {what}")]
    Read {
        /// What was read.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stub cannot be extended.
    #[error(
        "{stub} cannot hold kernel and initramfs (expected systemd's EFI stub for {}, such as \
         linuxx64.efi.stub)", .architecture.name()
    )]
    Stub {
        /// The stub's file or package.
        stub: String,
        /// The processor.
        architecture: Architecture,
        /// Why.
        source: PeError,
    },
    /// The command line is not one.
    #[error(
        "the kernel command line {what}; expected printable text of at most {LONGEST_COMMAND_LINE} bytes"
    )]
    CommandLine {
        /// What is wrong with it.
        what: String,
    },
}

/// The EFI stub.
#[derive(Debug)]
pub(crate) struct Stub {
    /// The program.
    pub(crate) program: Vec<u8>,
    /// Its package; nothing when it was given as a file.
    pub(crate) package: Option<PackageId>,
    /// The file or package, for people.
    pub(crate) origin: String,
}

/// The stub from `file`, or from the distribution's package.
///
/// # Errors
/// [`UnifiedError::Package`], [`UnifiedError::NotInPackage`], [`UnifiedError::Read`].
pub(crate) fn stub(
    file: Option<&PathBuf>,
    packages: &mut Packages,
    architecture: Architecture,
) -> Result<Stub, UnifiedError> {
    let read = |path: PathBuf| {
        fs::read(&path).map_err(|source| UnifiedError::Read {
            what: "EFI stub",
            path,
            source,
        })
    };
    if let Some(path) = file {
        return Ok(Stub {
            program: read(path.clone())?,
            package: None,
            origin: path.display().to_string(),
        });
    }
    let wanted = architecture.stub();
    let package = packages
        .take(wanted.package)
        .map_err(|source| UnifiedError::Package {
            package: wanted.package,
            source,
        })?;
    let path = wanted
        .paths
        .iter()
        .find_map(|path| rooted::find(&package.root, path))
        .ok_or_else(|| UnifiedError::NotInPackage {
            package: wanted.package,
            version: package.id.version.clone(),
            path: wanted.paths.join(", /"),
        })?;
    Ok(Stub {
        program: read(path)?,
        origin: format!("the stub of {} {}", package.id.name, package.id.version),
        package: Some(package.id),
    })
}

/// What goes into an image.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// The kernel.
    pub(crate) kernel: &'a [u8],
    /// Its version, as `uname -r` says it.
    pub(crate) version: &'a str,
    /// The initramfs.
    pub(crate) initramfs: &'a [u8],
    /// The kernel command line.
    pub(crate) command_line: &'a str,
}

/// The image, not signed.
///
/// # Errors
/// [`UnifiedError::Stub`] and [`UnifiedError::CommandLine`].
pub(crate) fn image(
    stub: &Stub,
    architecture: Architecture,
    contents: &Contents<'_>,
) -> Result<Vec<u8>, UnifiedError> {
    check_command_line(contents.command_line)?;
    // os-release(5): what a boot menu would show.
    let release = concat!(
        "ID=netboot\nNAME=netboot\nPRETTY_NAME=\"netboot recovery environment ",
        env!("CARGO_PKG_VERSION"),
        "\"\nVERSION_ID=",
        env!("CARGO_PKG_VERSION"),
        "\n"
    );
    let section = |name, data| Section { name, data };
    let sections = [
        section(".osrel", release.as_bytes()),
        section(".uname", contents.version.as_bytes()),
        section(".cmdline", contents.command_line.as_bytes()),
        section(".initrd", contents.initramfs),
        // Last, because a kernel may want more memory than its file has (systemd's ukify does so too).
        section(".linux", contents.kernel),
    ];
    let machine = match architecture {
        Architecture::X64 => IMAGE_FILE_MACHINE_AMD64,
        Architecture::Arm64 => IMAGE_FILE_MACHINE_ARM64,
    };
    pe::add_sections(&stub.program, machine, &sections).map_err(|source| UnifiedError::Stub {
        stub: stub.origin.clone(),
        architecture,
        source,
    })
}

/// Whether a kernel takes `line`.
///
/// # Errors
/// [`UnifiedError::CommandLine`].
fn check_command_line(line: &str) -> Result<(), UnifiedError> {
    let what = if line.len() > LONGEST_COMMAND_LINE {
        format!("has {} bytes", line.len())
    } else if let Some(bad) = line.chars().find(|letter| !matches!(letter, ' '..='~')) {
        format!("has the character {bad:?}")
    } else {
        return Ok(());
    };
    Err(UnifiedError::CommandLine { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pe::tests::fake_program;

    fn fake_stub() -> Stub {
        Stub {
            program: fake_program(),
            package: None,
            origin: "stub".to_owned(),
        }
    }

    fn contents<'a>(kernel: &'a [u8], initramfs: &'a [u8], command_line: &'a str) -> Contents<'a> {
        Contents {
            kernel,
            version: "6.1.0-56-amd64",
            initramfs,
            command_line,
        }
    }

    #[test]
    fn everything_is_read_back_out_of_the_image() {
        let (kernel, initramfs) = (vec![1; 5000], vec![2; 70_001]);
        let wanted = contents(&kernel, &initramfs, "console=ttyS0");
        let made = image(&fake_stub(), Architecture::X64, &wanted).unwrap();
        let read = |name| pe::section(&made, name).unwrap().unwrap();
        assert_eq!(read(".linux"), kernel);
        assert_eq!(read(".initrd"), initramfs);
        assert_eq!(read(".cmdline"), b"console=ttyS0");
        assert_eq!(read(".uname"), b"6.1.0-56-amd64");
        assert!(read(".osrel").starts_with(b"ID=netboot\n"));
        assert_eq!(
            image(&fake_stub(), Architecture::X64, &wanted).unwrap(),
            made
        );
    }

    #[test]
    fn a_command_line_that_a_kernel_would_cut_or_misread_is_refused() {
        let long = "x".repeat(LONGEST_COMMAND_LINE + 1);
        for line in [long.as_str(), "quiet\nx", "größe"] {
            let error = image(&fake_stub(), Architecture::X64, &contents(b"", b"", line));
            assert!(
                matches!(error, Err(UnifiedError::CommandLine { .. })),
                "{line}"
            );
        }
    }

    #[test]
    fn a_stub_for_another_processor_is_named() {
        let error = image(&fake_stub(), Architecture::Arm64, &contents(b"", b"", ""));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("stub for 64-bit Arm"), "{text}");
    }
}
