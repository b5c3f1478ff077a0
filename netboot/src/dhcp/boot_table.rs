//! Which firmware gets which first file: one table, and the question that is asked of it.
//!
//! Not here: the addresses and leases (`server`), what the iPXE script says (`boot_policy`).

use protocol::dhcp::{ArchitectureCode, BootClient, BootProtocol, MacAddress};

use ArchitectureCode as Arch;
use BootProtocol::{Http, Pxe};

use crate::flight_recorder::Fact;

/// Architecture of the client (option 93), how it fetches, and what it is given. The names are
/// files of the boot folder; Debian's package `ipxe` has those of x86.
const LOADERS: &[(ArchitectureCode, BootProtocol, &str)] = &[
    (Arch::BIOS, Pxe, "undionly.kpxe"),
    (Arch::EFI_X64, Pxe, "snponly.efi"),
    (Arch::EFI_X64_ALTERNATE, Pxe, "snponly.efi"),
    (Arch::EFI_X64_HTTP, Http, "ipxe.efi"),
    (Arch::EFI_ARM64, Pxe, "snponly-arm64.efi"),
    (Arch::EFI_ARM64_HTTP, Http, "ipxe-arm64.efi"),
];

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

/// The names of all loaders in the table.
pub(crate) fn loader_names() -> impl Iterator<Item = &'static str> {
    LOADERS.iter().map(|(_, _, file)| *file)
}

/// Chooses the first file for a client; `exists` says which files the boot folder has.
///
/// An iPXE goes to its script unless it said that it has no HTTP (a ROM built small): that one
/// gets the loader of its architecture, which has.
pub(crate) fn first_file(
    client: &BootClient,
    exists: impl Fn(&str) -> bool,
) -> Result<FirstFile, NoFirstFile> {
    if client
        .ipxe
        .is_some_and(|features| features.http || !features.announced)
    {
        return Ok(FirstFile::Script);
    }
    let mut missing = None;
    for architecture in &client.architectures {
        let line = LOADERS
            .iter()
            .find(|(arch, protocol, _)| arch == architecture && *protocol == client.protocol);
        match line {
            Some((_, _, file)) if !exists(file) => {
                missing.get_or_insert(NoFirstFile::MissingFile {
                    architecture: *architecture,
                    file,
                });
            }
            Some((_, Pxe, file)) => return Ok(FirstFile::Tftp((*file).to_owned())),
            Some((_, Http, file)) => return Ok(FirstFile::Http((*file).to_owned())),
            None => {}
        }
    }
    Err(missing.unwrap_or_else(|| NoFirstFile::UnknownArchitecture {
        architectures: client.architectures.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::dhcp::IpxeFeatures;

    fn client(protocol: BootProtocol, architectures: &[u16]) -> BootClient {
        BootClient {
            protocol,
            architectures: architectures
                .iter()
                .map(|number| ArchitectureCode(*number))
                .collect(),
            ipxe: None,
        }
    }

    #[test]
    fn every_architecture_gets_its_loader() {
        for (protocol, number, expected) in [
            (Pxe, 0, FirstFile::Tftp("undionly.kpxe".to_owned())),
            (Pxe, 7, FirstFile::Tftp("snponly.efi".to_owned())),
            (Pxe, 9, FirstFile::Tftp("snponly.efi".to_owned())),
            (Http, 16, FirstFile::Http("ipxe.efi".to_owned())),
        ] {
            assert_eq!(
                first_file(&client(protocol, &[number]), |_| true),
                Ok(expected)
            );
        }
    }

    #[test]
    fn the_first_listed_architecture_with_a_file_wins() {
        let both = client(Pxe, &[6, 7, 0]);
        assert_eq!(
            first_file(&both, |_| true),
            Ok(FirstFile::Tftp("snponly.efi".to_owned()))
        );
        let only_bios = |name: &str| name == "undionly.kpxe";
        assert_eq!(
            first_file(&both, only_bios),
            Ok(FirstFile::Tftp("undionly.kpxe".to_owned()))
        );
    }

    #[test]
    fn no_line_and_no_file_are_told_apart_in_words() {
        let unknown = first_file(&client(Pxe, &[6]), |_| true).expect_err("no line");
        assert_eq!(
            Fact::from(unknown).to_string(),
            "DHCP: the firmware asked for architecture 6 (UEFI IA32) and nothing here serves that"
        );
        let missing = first_file(&client(Pxe, &[11]), |_| false).expect_err("no file");
        assert!(
            Fact::from(missing)
                .to_string()
                .contains("snponly-arm64.efi is not in the boot folder")
        );
    }

    #[test]
    fn ipxe_goes_to_its_script_unless_it_has_no_http() {
        let mut ipxe = client(Pxe, &[0]);
        ipxe.ipxe = Some(IpxeFeatures::default());
        assert_eq!(first_file(&ipxe, |_| true), Ok(FirstFile::Script));
        ipxe.ipxe = Some(IpxeFeatures {
            announced: true,
            ..IpxeFeatures::default()
        });
        assert_eq!(
            first_file(&ipxe, |_| true),
            Ok(FirstFile::Tftp("undionly.kpxe".to_owned()))
        );
    }
}
