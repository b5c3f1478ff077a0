//! What differs between the processors that boot files are built for: the one place to look.
//!
//! Not here: kernel modules ([`crate::base_modules`]), which are named for all processors at once.

use object::elf::{EM_AARCH64, EM_X86_64, Machine};

/// A processor that boot files are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// x86-64, BIOS and UEFI.
    #[value(name = "x64", alias = "amd64", alias = "x86_64")]
    X64,
    /// 64-bit Arm, UEFI.
    #[value(name = "arm64", alias = "aarch64")]
    Arm64,
}

/// A boot loader that a package has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loader {
    /// Its name in the boot folder.
    pub(crate) name: &'static str,
    /// The package.
    pub(crate) package: &'static str,
    /// Where packages have it: Debian's place first, then Ubuntu's.
    pub(crate) paths: &'static [&'static str],
}

/// What the first program of a signed chain asks for, by the name that is compiled into it, beside
/// itself. The GRUB is the one made for the network: its configuration is `/grub/grub.cfg` on the server
/// that it came from.
const X64_LOADERS: &[Loader] = &[
    // BIOS over the card's own driver; UEFI over the firmware's driver; UEFI with iPXE's own drivers, for
    // firmware whose driver is broken.
    Loader {
        name: "undionly.kpxe",
        package: "ipxe",
        paths: &["usr/lib/ipxe/undionly.kpxe"],
    },
    Loader {
        name: "snponly.efi",
        package: "ipxe",
        paths: &["usr/lib/ipxe/snponly.efi"],
    },
    Loader {
        name: "ipxe.efi",
        package: "ipxe",
        paths: &["usr/lib/ipxe/ipxe.efi"],
    },
    Loader {
        name: "shimx64.efi",
        package: "shim-signed",
        paths: &[
            "usr/lib/shim/shimx64.efi.signed",
            "usr/lib/shim/shimx64.efi.signed.latest",
        ],
    },
    Loader {
        name: "grubx64.efi",
        package: "grub-efi-amd64-signed",
        paths: &["usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"],
    },
];

const ARM64_LOADERS: &[Loader] = &[
    Loader {
        name: "shimaa64.efi",
        package: "shim-signed",
        paths: &[
            "usr/lib/shim/shimaa64.efi.signed",
            "usr/lib/shim/shimaa64.efi.signed.latest",
        ],
    },
    Loader {
        name: "grubaa64.efi",
        package: "grub-efi-arm64-signed",
        paths: &["usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed"],
    },
];

impl Architecture {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::X64, Self::Arm64];

    /// The distribution's name for it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X64 => "x86-64",
            Self::Arm64 => "64-bit Arm",
        }
    }

    /// The Rust target of the agent.
    pub(crate) fn agent_target(self) -> &'static str {
        match self {
            Self::X64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// `e_machine` of its programs and kernel modules.
    pub(crate) fn elf_machine(self) -> Machine {
        match self {
            Self::X64 => EM_X86_64,
            Self::Arm64 => EM_AARCH64,
        }
    }

    /// Names of the distributions' package for "the current full kernel", Debian's first. Their cloud
    /// flavours have no SATA, USB or network card drivers.
    pub(crate) fn kernel_packages(self) -> [&'static str; 2] {
        match self {
            Self::X64 => ["linux-image-amd64", "linux-image-generic"],
            Self::Arm64 => ["linux-image-arm64", "linux-image-generic"],
        }
    }

    /// Directory of its shared libraries, where the dynamic loader looks first.
    pub(crate) fn library_directory(self) -> &'static str {
        match self {
            Self::X64 => "usr/lib/x86_64-linux-gnu",
            Self::Arm64 => "usr/lib/aarch64-linux-gnu",
        }
    }

    /// Boot loaders that go into the boot folder.
    pub(crate) fn loaders(self) -> &'static [Loader] {
        match self {
            Self::X64 => X64_LOADERS,
            Self::Arm64 => ARM64_LOADERS,
        }
    }

    /// The program that starts the kernel in a unified kernel image: systemd-stub(7).
    pub(crate) fn stub(self) -> Loader {
        let path: &[&str] = match self {
            Self::X64 => &["usr/lib/systemd/boot/efi/linuxx64.efi.stub"],
            Self::Arm64 => &["usr/lib/systemd/boot/efi/linuxaa64.efi.stub"],
        };
        Loader {
            name: "EFI stub",
            package: "systemd-boot-efi",
            paths: path,
        }
    }

    /// The unified kernel image's name in the boot folder.
    pub(crate) fn unified_image(self) -> &'static str {
        match self {
            Self::X64 => "netboot-x64.efi",
            Self::Arm64 => "netboot-arm64.efi",
        }
    }

    /// Directory of kernel, initramfs and manifest in the boot folder, with a slash; the loaders are at
    /// its top for every processor, because firmware and loaders ask there.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::X64 => "",
            Self::Arm64 => "arm64/",
        }
    }

    /// The kernel command line of a unified kernel image: every console that such machines have. One that
    /// is not there is ignored; the last one that is there is `/dev/console`.
    pub(crate) fn command_line(self) -> &'static str {
        match self {
            Self::X64 => "console=tty0 console=ttyS0,115200",
            Self::Arm64 => "console=tty0 console=ttyS0,115200 console=ttyAMA0,115200",
        }
    }

    /// What one machine may fetch in all before the agent runs, in bytes. The kernel of 64-bit Arm is not
    /// compressed (33 MB in Debian 12), and compressing it would take its signature away.
    pub(crate) fn budget(self) -> u64 {
        match self {
            Self::X64 => 25_000_000,
            Self::Arm64 => 60_000_000,
        }
    }

    /// Every file that a build for it writes into the boot folder.
    pub(crate) fn boot_files(self) -> Vec<String> {
        let mut names: Vec<String> = ["vmlinuz", "initramfs", AT_NEED, "manifest.json"]
            .iter()
            .map(|name| format!("{}{name}", self.directory()))
            .collect();
        names.extend(self.loaders().iter().map(|loader| loader.name.to_owned()));
        names.push(self.unified_image().to_owned());
        names
    }
}

/// The archive with what only some jobs need; its form is that of a part of the initramfs.
pub(crate) const AT_NEED: &str = "at-need";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_processors_write_the_same_file() {
        let mut names: Vec<String> = Architecture::ALL
            .into_iter()
            .flat_map(Architecture::boot_files)
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
