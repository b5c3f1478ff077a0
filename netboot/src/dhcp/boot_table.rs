//! Which firmware gets which first file: one table, the ladder, and the question that is asked of it.
//!
//! Invariant: pure. What is in the boot folder and what a machine did before come in as arguments.
//!
//! Not here: the addresses and leases (`server`), what the iPXE script says (`boot_policy`), what is
//! known of a machine (`boot_desk`).

use protocol::dhcp::{ArchitectureCode, BootClient, BootProtocol, MacAddress};

use ArchitectureCode as Arch;
use BootProtocol::{Http, Pxe};
use LoaderKind::{Ipxe, Shim, Unified};

use crate::flight_recorder::Fact;

/// What kind of program a loader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LoaderKind {
    /// iPXE: asks for an address again, then for its script by HTTP. Signed by nobody.
    Ipxe,
    /// shim and the GRUB behind it, signed by the distribution: starts with Secure Boot on and off.
    /// GRUB asks the DHCP server's `siaddr` for its configuration, whoever that is.
    Shim,
    /// Kernel, initial file system and command line in one image, signed by the operator or by
    /// nobody.
    Unified,
}

impl LoaderKind {
    /// One word for lists.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ipxe => "ipxe",
            Self::Shim => "shim",
            Self::Unified => "unified",
        }
    }
}

/// A kind of firmware: what it says it is (option 93), and how it fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Firmware(
    pub(crate) &'static [ArchitectureCode],
    pub(crate) BootProtocol,
);

/// A line of the ladder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rung {
    /// Whom it is for.
    pub(crate) firmware: Firmware,
    /// What it is given.
    pub(crate) kind: LoaderKind,
    /// Its name in the boot folder.
    pub(crate) loader: &'static str,
    /// What the loader fetches of the boot folder by itself, and is worth nothing without.
    pub(crate) needs: &'static [&'static str],
}

const fn rung(
    firmware: Firmware,
    kind: LoaderKind,
    loader: &'static str,
    needs: &'static [&'static str],
) -> Rung {
    Rung {
        firmware,
        kind,
        loader,
        needs,
    }
}

/// For each kind of firmware the loaders to try, the first one first. Names are files of the boot
/// folder; Debian's packages `ipxe`, `shim-signed` and `grub-efi-*-signed` have those that are signed
/// by others. Beside another DHCP server iPXE comes first ([`Role::Proxy`]).
const LADDER: &[Rung] = &[
    rung(BIOS, Ipxe, "undionly.kpxe", &[]),
    rung(X64, Shim, "shimx64.efi", GRUB_X64),
    rung(X64, Ipxe, "snponly.efi", &[]),
    rung(X64, Unified, "netboot-x64.efi", &[]),
    rung(X64_HTTP, Unified, "netboot-x64.efi", &[]),
    rung(X64_HTTP, Ipxe, "ipxe.efi", &[]),
    rung(ARM64, Shim, "shimaa64.efi", GRUB_ARM64),
    rung(ARM64, Shim, "grubaa64.efi", KERNEL_ARM64),
    rung(ARM64, Ipxe, "snponly-arm64.efi", KERNEL_ARM64),
    rung(ARM64, Unified, "netboot-arm64.efi", &[]),
    rung(ARM64_HTTP, Unified, "netboot-arm64.efi", &[]),
    rung(ARM64_HTTP, Ipxe, "ipxe-arm64.efi", KERNEL_ARM64),
];
const BIOS: Firmware = Firmware(&[Arch::BIOS], Pxe);
const X64: Firmware = Firmware(&[Arch::EFI_X64, Arch::EFI_X64_ALTERNATE], Pxe);
const X64_HTTP: Firmware = Firmware(&[Arch::EFI_X64_HTTP], Http);
const ARM64: Firmware = Firmware(&[Arch::EFI_ARM64], Pxe);
const ARM64_HTTP: Firmware = Firmware(&[Arch::EFI_ARM64_HTTP], Http);
const GRUB_X64: &[&str] = &["grubx64.efi"];
const GRUB_ARM64: &[&str] = &["grubaa64.efi", "arm64/vmlinuz", "arm64/initramfs"];
const KERNEL_ARM64: &[&str] = &["arm64/vmlinuz", "arm64/initramfs"];

/// Which kind of loader UEFI firmware is given first (`boot.uefi_loader`). The others follow where
/// that one is missing or was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UefiLoader {
    /// As the ladder says.
    #[default]
    Auto,
    /// shim and GRUB.
    Shim,
    /// iPXE.
    Ipxe,
    /// The unified kernel image.
    Unified,
}

/// What a BIOS card's own iPXE is given first (`boot.bios_loader`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BiosLoader {
    /// Its script.
    #[default]
    Auto,
    /// `undionly.kpxe`, an iPXE that is known to work, and that one its script.
    Undionly,
}

/// What the operator wants of the ladder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LoaderChoice {
    /// For UEFI.
    pub(crate) uefi: UefiLoader,
    /// For BIOS.
    pub(crate) bios: BiosLoader,
}

/// What we are to the machine that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its DHCP server: address and boot file come from us.
    Server,
    /// A proxy: another server gives the address.
    Proxy,
}

/// A machine's question for its first file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootRequest {
    /// What it says it is.
    pub(crate) client: BootClient,
    /// Its card.
    pub(crate) mac: MacAddress,
    /// Its SMBIOS UUID (option 97), if it tells.
    pub(crate) uuid: Option<[u8; 16]>,
    /// What we are to it.
    pub(crate) role: Role,
}

/// Who knows the first files. The DHCP server and the proxy ask nothing else about booting.
pub(crate) trait FirstFiles: Send + Sync {
    /// The first file for a machine.
    ///
    /// # Errors
    /// When there is none; the reason is told to people.
    fn first_file(&self, request: &BootRequest) -> Result<FirstFile, NoFirstFile>;
}

/// The first file of a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FirstFile {
    /// A loader by TFTP.
    Tftp(String),
    /// A loader by UEFI HTTP Boot.
    Http(String),
    /// An iPXE that speaks HTTP: straight to its script.
    Script,
}

/// Why a machine gets no first file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoFirstFile {
    /// The table has no line for it.
    UnknownArchitecture {
        /// As the client listed them.
        architectures: Vec<ArchitectureCode>,
    },
    /// The table has a line, the boot folder lacks the file.
    MissingFile {
        /// The client's.
        architecture: ArchitectureCode,
        /// The file it would get.
        file: &'static str,
    },
}

impl From<NoFirstFile> for Fact {
    fn from(reason: NoFirstFile) -> Self {
        match reason {
            NoFirstFile::UnknownArchitecture { architectures } => Self::ArchitectureNotServed {
                architectures: architectures.iter().map(|code| code.0).collect(),
            },
            NoFirstFile::MissingFile { architecture, file } => Self::LoaderMissing {
                architecture: architecture.0,
                file: file.to_owned(),
            },
        }
    }
}

/// The names of all loaders of the ladder and of what they fetch by themselves at the top of the boot
/// folder: what is taken from the distribution's packages when the boot folder lacks it.
pub(crate) fn loader_names() -> impl Iterator<Item = &'static str> {
    let rungs = LADDER.iter();
    rungs
        .flat_map(|rung| std::iter::once(rung.loader).chain(rung.needs.iter().copied()))
        .filter(|name| !name.contains('/'))
}

/// The kind of a loader, if it is one.
pub(crate) fn kind_of(loader: &str) -> Option<LoaderKind> {
    LADDER
        .iter()
        .find(|rung| rung.loader == loader)
        .map(|rung| rung.kind)
}

/// What is known when a machine asks.
pub(crate) struct Circumstances<'a> {
    /// What the operator wants.
    pub(crate) choice: LoaderChoice,
    /// Which files the boot folder has.
    pub(crate) exists: &'a dyn Fn(&str) -> bool,
    /// Loaders that this machine's firmware refused, the one refused last comes last.
    pub(crate) refused: &'a [String],
    /// The iPXE that asks was sent by us a moment ago.
    pub(crate) chainloaded: bool,
}

/// The ladder of one kind of firmware in the order in which it is tried, whatever is missing.
pub(crate) fn ladder(
    architecture: ArchitectureCode,
    protocol: BootProtocol,
    role: Role,
    choice: UefiLoader,
) -> Vec<&'static Rung> {
    let preferred = match choice {
        UefiLoader::Auto => None,
        UefiLoader::Shim => Some(Shim),
        UefiLoader::Ipxe => Some(Ipxe),
        UefiLoader::Unified => Some(Unified),
    };
    let mut rungs: Vec<_> = LADDER
        .iter()
        .filter(|rung| rung.firmware.0.contains(&architecture) && rung.firmware.1 == protocol)
        .collect();
    // Stable: otherwise the order of the table.
    rungs.sort_by_key(|rung| {
        let last = role == Role::Proxy && protocol == Pxe && rung.kind != Ipxe;
        (Some(rung.kind) != preferred, last)
    });
    rungs
}

/// Every kind of firmware that the ladder knows.
pub(crate) fn firmwares() -> Vec<Firmware> {
    let mut all: Vec<_> = LADDER.iter().map(|rung| rung.firmware).collect();
    all.dedup();
    all
}

/// What a firmware fetches its first file by.
pub(crate) fn transport(protocol: BootProtocol) -> &'static str {
    match protocol {
        Pxe => "tftp",
        Http => "http",
    }
}

/// Of the rungs that are there, the first one that the firmware did not refuse; when it refused all,
/// the one refused longest ago: something may have changed.
pub(crate) fn choose<'a>(
    rungs: &[&'a Rung],
    exists: &dyn Fn(&str) -> bool,
    refused: &[String],
) -> Option<&'a Rung> {
    let there = rungs.iter().filter(|rung| rung.is_there(exists));
    there.copied().min_by_key(|rung| {
        let position = refused.iter().position(|name| name == rung.loader);
        position.map_or(0, |position| position + 1)
    })
}

impl Rung {
    /// Whether the boot folder has all of it.
    fn is_there(&self, exists: &dyn Fn(&str) -> bool) -> bool {
        self.missing(exists).next().is_none()
    }

    /// What the boot folder lacks of it.
    pub(crate) fn missing(
        &self,
        exists: &dyn Fn(&str) -> bool,
    ) -> impl Iterator<Item = &'static str> {
        let files = std::iter::once(self.loader).chain(self.needs.iter().copied());
        files.filter(move |name| !exists(name))
    }
}

/// Chooses the first file for a client.
///
/// An iPXE goes to its script unless it said that it has no HTTP (a ROM built small), or is a BIOS
/// ROM's own that the operator wants replaced: those get the loader of their architecture.
pub(crate) fn first_file(
    client: &BootClient,
    role: Role,
    known: &Circumstances<'_>,
) -> Result<FirstFile, NoFirstFile> {
    let bios = client.architectures.first() == Some(&Arch::BIOS);
    let replaced = known.choice.bios == BiosLoader::Undionly
        && bios
        && !known.chainloaded
        && (known.exists)("undionly.kpxe");
    let speaks_http = client
        .ipxe
        .is_some_and(|features| features.http || !features.announced);
    if speaks_http && !replaced {
        return Ok(FirstFile::Script);
    }
    let mut missing = None;
    for architecture in &client.architectures {
        let rungs = ladder(*architecture, client.protocol, role, known.choice.uefi);
        let chosen = choose(&rungs, known.exists, known.refused);
        match (chosen, client.protocol) {
            (Some(rung), Pxe) => return Ok(FirstFile::Tftp(rung.loader.to_owned())),
            (Some(rung), Http) => return Ok(FirstFile::Http(rung.loader.to_owned())),
            (None, _) => {
                let lacks = |rung: &&Rung| !(known.exists)(rung.loader);
                let first = rungs.iter().find(|rung| lacks(rung)).or(rungs.first());
                if let Some(rung) = first {
                    missing.get_or_insert(NoFirstFile::MissingFile {
                        architecture: *architecture,
                        file: rung.loader,
                    });
                }
            }
        }
    }
    Err(missing.unwrap_or_else(|| NoFirstFile::UnknownArchitecture {
        architectures: client.architectures.clone(),
    }))
}

#[cfg(test)]
mod tests;
