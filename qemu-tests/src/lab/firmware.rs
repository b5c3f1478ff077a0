//! The firmware of virtual machines: SeaBIOS and OVMF, and where the host keeps them.
//!
//! A UEFI machine has its own copy of the variable store, because boot entries made in it are part of what
//! is tested. Secure Boot is not set up here.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// The kind of firmware a machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum FirmwareKind {
    /// SeaBIOS, with the iPXE in the network card's ROM.
    Bios,
    /// OVMF, with its own PXE driver.
    Uefi,
}

impl std::fmt::Display for FirmwareKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        })
    }
}

/// Firmware of one machine.
#[derive(Debug, Clone)]
pub(crate) enum Firmware {
    /// SeaBIOS keeps nothing.
    Bios,
    /// OVMF with this machine's variable store.
    Uefi {
        /// The machine's own copy.
        variables: PathBuf,
    },
}

/// OVMF could not be used.
#[derive(Debug, Error)]
pub(crate) enum FirmwareError {
    /// Not installed.
    #[error(
        "no UEFI firmware for virtual machines: none of {looked_at:?} exists; install the package ovmf"
    )]
    Missing {
        /// Paths that were tried.
        looked_at: Vec<PathBuf>,
    },
    /// The variable store could not be copied.
    #[error("cannot copy the UEFI variable store {from} to {to}")]
    Copy {
        /// Empty store.
        from: PathBuf,
        /// The machine's store.
        to: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Code and empty variable store of the same OVMF build: distributions differ in where they put them.
const OVMF: [(&str, &str); 3] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
];

fn ovmf() -> Result<(&'static Path, &'static Path), FirmwareError> {
    OVMF.iter()
        .map(|&(code, variables)| (Path::new(code), Path::new(variables)))
        .find(|(code, variables)| code.is_file() && variables.is_file())
        .ok_or_else(|| FirmwareError::Missing {
            looked_at: OVMF.map(|(code, _)| code.into()).to_vec(),
        })
}

impl Firmware {
    /// Firmware as it comes from the factory; a variable store is made in `directory`.
    pub(crate) fn fresh(kind: FirmwareKind, directory: &Path) -> Result<Self, FirmwareError> {
        match kind {
            FirmwareKind::Bios => Ok(Self::Bios),
            FirmwareKind::Uefi => Self::with_variables(ovmf()?.1, directory),
        }
    }

    /// UEFI firmware with a copy of a variable store that is kept elsewhere.
    pub(crate) fn with_variables(store: &Path, directory: &Path) -> Result<Self, FirmwareError> {
        let variables = directory.join("uefi-variables.fd");
        std::fs::copy(store, &variables).map_err(|source| FirmwareError::Copy {
            from: store.to_owned(),
            to: variables.clone(),
            source,
        })?;
        Ok(Self::Uefi { variables })
    }

    /// QEMU's arguments for this firmware, machine type included.
    pub(crate) fn arguments(&self) -> Result<Vec<String>, FirmwareError> {
        match self {
            // graphics=off puts SeaBIOS and iPXE on the serial port.
            Self::Bios => Ok(["-machine", "pc,graphics=off"].map(str::to_owned).to_vec()),
            Self::Uefi { variables } => {
                let (code, _) = ovmf()?;
                Ok(vec![
                    "-machine".to_owned(),
                    "q35".to_owned(),
                    "-drive".to_owned(),
                    format!(
                        "if=pflash,format=raw,unit=0,readonly=on,file={}",
                        code.display()
                    ),
                    "-drive".to_owned(),
                    format!("if=pflash,format=raw,unit=1,file={}", variables.display()),
                    // PXE over IPv6 would only be waited for: the link is IPv4.
                    "-fw_cfg".to_owned(),
                    "name=opt/org.tianocore/IPv6PXESupport,string=no".to_owned(),
                ])
            }
        }
    }
}
