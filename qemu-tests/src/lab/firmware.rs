//! The firmware of virtual machines: SeaBIOS, OVMF and AAVMF, and where the host keeps them.
//!
//! A UEFI machine has its own copy of the variable store, because boot entries made in it are part of what
//! is tested, and because the keys of Secure Boot are in it. Not here: who signs what with which key.

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

/// A build of UEFI firmware together with what its variable store knows at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UefiBuild {
    /// x86-64 without Secure Boot.
    Plain,
    /// x86-64, Secure Boot on, with Microsoft's keys: what a machine from the shop has.
    SecureBoot,
    /// x86-64, Secure Boot on, with nobody's key but Debian's snake oil, whose private half is public: a
    /// machine whose operator has put in keys of their own.
    OwnKey,
    /// 64-bit Arm without Secure Boot.
    Arm64,
}

/// What UEFI firmware tries first over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum NetworkBoot {
    /// PXE over IPv4.
    #[default]
    Pxe,
    /// HTTP Boot over IPv4; PXE is switched off, it would be tried before for a minute.
    Http,
}

/// A processor's architecture, as far as an emulator is chosen by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// x86-64.
    X86,
    /// 64-bit Arm.
    Arm64,
}

/// UEFI firmware of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Uefi {
    build: UefiBuild,
    /// The code in flash memory, read only.
    code: PathBuf,
    /// The machine's own copy.
    variables: PathBuf,
    network: NetworkBoot,
}

/// Firmware of one machine.
#[derive(Debug, Clone)]
pub(crate) enum Firmware {
    /// SeaBIOS keeps nothing.
    Bios,
    /// UEFI with this machine's variable store.
    Uefi(Uefi),
}

/// UEFI firmware could not be used.
#[derive(Debug, Error)]
pub(crate) enum FirmwareError {
    /// Not installed.
    #[error(
        "this UEFI firmware for virtual machines is missing: none of {looked_at:?} exists; \
         install the package {package}"
    )]
    Missing {
        /// Paths that were tried.
        looked_at: Vec<PathBuf>,
        /// Debian's package with it.
        package: &'static str,
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

/// Code and fresh variable store of one build. Distributions differ in where they put them, and only
/// Debian's have the snake oil key.
impl UefiBuild {
    fn places(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain => &[
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
            ],
            Self::SecureBoot => &[(
                "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
            )],
            Self::OwnKey => &[(
                "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
            )],
            Self::Arm64 => &[(
                "/usr/share/AAVMF/AAVMF_CODE.fd",
                "/usr/share/AAVMF/AAVMF_VARS.fd",
            )],
        }
    }

    fn find(self) -> Result<(&'static Path, &'static Path), FirmwareError> {
        let places = self.places();
        places
            .iter()
            .map(|&(code, variables)| (Path::new(code), Path::new(variables)))
            .find(|(code, variables)| code.is_file() && variables.is_file())
            .ok_or_else(|| FirmwareError::Missing {
                looked_at: places.iter().map(|(code, _)| code.into()).collect(),
                package: match self {
                    Self::Plain | Self::SecureBoot | Self::OwnKey => "ovmf",
                    Self::Arm64 => "qemu-efi-aarch64",
                },
            })
    }
}

impl Firmware {
    /// Firmware as it comes from the factory; a variable store is made in `directory`.
    pub(crate) fn fresh(kind: FirmwareKind, directory: &Path) -> Result<Self, FirmwareError> {
        match kind {
            FirmwareKind::Bios => Ok(Self::Bios),
            FirmwareKind::Uefi => Self::uefi(UefiBuild::Plain, NetworkBoot::Pxe, directory),
        }
    }

    /// UEFI firmware of any build, as it comes from the factory; its variable store is made in `directory`.
    pub(crate) fn uefi(
        build: UefiBuild,
        network: NetworkBoot,
        directory: &Path,
    ) -> Result<Self, FirmwareError> {
        let (code, store) = build.find()?;
        Ok(Self::Uefi(Uefi {
            build,
            code: code.to_owned(),
            variables: own_variables(store, directory)?,
            network,
        }))
    }

    /// Plain UEFI firmware with a copy of a variable store that is kept elsewhere.
    pub(crate) fn with_variables(store: &Path, directory: &Path) -> Result<Self, FirmwareError> {
        let (code, _) = UefiBuild::Plain.find()?;
        Ok(Self::Uefi(Uefi {
            build: UefiBuild::Plain,
            code: code.to_owned(),
            variables: own_variables(store, directory)?,
            network: NetworkBoot::Pxe,
        }))
    }

    /// What the machine is to be emulated as.
    pub(crate) fn architecture(&self) -> Architecture {
        match self {
            Self::Uefi(Uefi {
                build: UefiBuild::Arm64,
                ..
            }) => Architecture::Arm64,
            Self::Bios | Self::Uefi(_) => Architecture::X86,
        }
    }

    /// QEMU's arguments for this firmware, machine type and processor included.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let (machine, flash) = match self {
            // graphics=off puts SeaBIOS and iPXE on the serial port.
            Self::Bios => ("pc,graphics=off", None),
            Self::Uefi(uefi) => match uefi.build {
                UefiBuild::Plain => ("q35", Some(uefi)),
                // The variables may be written in system management mode only.
                UefiBuild::SecureBoot | UefiBuild::OwnKey => ("q35,smm=on", Some(uefi)),
                UefiBuild::Arm64 => ("virt", Some(uefi)),
            },
        };
        let processor = match self.architecture() {
            Architecture::X86 => "max",
            // Pointer authentication as the architecture has it costs half the emulator's speed.
            Architecture::Arm64 => "max,pauth-impdef=on",
        };
        let words = ["-machine", machine, "-cpu", processor];
        let mut arguments = words.map(str::to_owned).to_vec();
        arguments.extend(flash.map(Uefi::arguments).unwrap_or_default());
        arguments
    }
}

impl Uefi {
    fn arguments(&self) -> Vec<String> {
        let (code, variables) = (self.code.display(), self.variables.display());
        let mut arguments = vec![
            "-drive".to_owned(),
            format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"),
            "-drive".to_owned(),
            format!("if=pflash,format=raw,unit=1,file={variables}"),
        ];
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        if matches!(self.build, UefiBuild::SecureBoot | UefiBuild::OwnKey) {
            add(&[
                "-global",
                "driver=cfi.pflash01,property=secure,value=on",
                "-global",
                "ICH9-LPC.disable_s3=1",
            ]);
        }
        // IPv6 would only be waited for: the link is IPv4.
        add(&["-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no"]);
        if self.network == NetworkBoot::Http {
            add(&["-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no"]);
        }
        arguments
    }
}

fn own_variables(store: &Path, directory: &Path) -> Result<PathBuf, FirmwareError> {
    let variables = directory.join("uefi-variables.fd");
    std::fs::copy(store, &variables).map_err(|source| FirmwareError::Copy {
        from: store.to_owned(),
        to: variables.clone(),
        source,
    })?;
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uefi(build: UefiBuild, network: NetworkBoot) -> String {
        let firmware = Firmware::Uefi(Uefi {
            build,
            code: "code".into(),
            variables: "variables".into(),
            network,
        });
        firmware.arguments().join(" ")
    }

    #[test]
    fn secure_boot_guards_its_variables() {
        let secure = uefi(UefiBuild::OwnKey, NetworkBoot::Pxe);
        assert!(
            secure.contains("q35,smm=on") && secure.contains("property=secure,value=on"),
            "{secure}"
        );
        let plain = uefi(UefiBuild::Plain, NetworkBoot::Pxe);
        assert!(
            !plain.contains("smm") && !plain.contains("secure"),
            "{plain}"
        );
    }

    #[test]
    fn http_boot_comes_first_when_pxe_is_off() {
        let off = "IPv4PXESupport,string=no";
        assert!(uefi(UefiBuild::Plain, NetworkBoot::Http).contains(off));
        assert!(!uefi(UefiBuild::Plain, NetworkBoot::Pxe).contains(off));
    }
}
