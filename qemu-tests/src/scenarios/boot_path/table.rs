//! The table of boot paths.

use super::{Addresses, BootPath, End, Image, MachineFirmware, play};
use crate::lab::firmware::{NetworkBoot, UefiBuild};
use crate::scenarios::Scenario;

use Addresses::{Dnsmasq, DnsmasqNamingUs, Ours};

const BIOS: MachineFirmware = MachineFirmware::Bios;
const UEFI: MachineFirmware = MachineFirmware::Uefi(UefiBuild::Plain, NetworkBoot::Pxe);
const SECURE: MachineFirmware = MachineFirmware::Uefi(UefiBuild::SecureBoot, NetworkBoot::Pxe);
const HTTP: MachineFirmware = MachineFirmware::Uefi(UefiBuild::Plain, NetworkBoot::Http);
const OWN_KEY: MachineFirmware = MachineFirmware::Uefi(UefiBuild::OwnKey, NetworkBoot::Http);
const ARM64: MachineFirmware = MachineFirmware::Uefi(UefiBuild::Arm64, NetworkBoot::Pxe);

/// What all paths have that say nothing else.
const USUAL: BootPath = BootPath {
    name: "",
    about: "",
    long: true,
    firmware: BIOS,
    addresses: Ours,
    keys: &[],
    image: Image::Unsigned,
    refusals: 0,
    asks_for: &[],
    recorded: &["beacon"],
    end: End::Beacon,
};

/// QEMU's ROM is an iPXE that fetches over HTTP; most cards' ROMs are not. So they are told apart by order.
const PLAIN_ROM: &[(&str, &str)] = &[("bios_loader", "\"undionly\"")];

const SHIM_AND_GRUB: &[&str] = &["shimx64.efi", "grubx64.efi", "vmlinuz", "initramfs"];

/// Every boot path.
pub(crate) const PATHS: [BootPath; 17] = [
    BootPath {
        name: "boot-bios-server",
        about: "BIOS, iPXE in ROM, our addresses, to the beacon",
        asks_for: &["/boot/ipxe?", "vmlinuz", "initramfs"],
        ..USUAL
    },
    BootPath {
        name: "boot-bios-proxy",
        about: "BIOS, iPXE in ROM, dnsmasq's addresses, to the beacon",
        long: false,
        addresses: Dnsmasq,
        asks_for: &["/boot/ipxe?", "vmlinuz", "initramfs"],
        ..USUAL
    },
    BootPath {
        name: "boot-undionly-server",
        about: "BIOS, plain PXE ROM, our addresses, to the beacon",
        keys: PLAIN_ROM,
        asks_for: &["undionly.kpxe", "/boot/ipxe?", "vmlinuz", "initramfs"],
        ..USUAL
    },
    BootPath {
        name: "boot-undionly-proxy",
        about: "BIOS, plain PXE ROM, dnsmasq's addresses, to the beacon",
        addresses: Dnsmasq,
        keys: PLAIN_ROM,
        asks_for: &["undionly.kpxe", "/boot/ipxe?", "vmlinuz", "initramfs"],
        ..USUAL
    },
    BootPath {
        name: "boot-uefi-server",
        about: "UEFI PXE, our addresses, by shim and GRUB to the beacon",
        firmware: UEFI,
        asks_for: SHIM_AND_GRUB,
        ..USUAL
    },
    BootPath {
        name: "boot-uefi-proxy",
        about: "UEFI PXE, dnsmasq's addresses, by iPXE to the beacon",
        long: false,
        firmware: UEFI,
        addresses: Dnsmasq,
        asks_for: &["snponly.efi", "/boot/ipxe?", "vmlinuz", "initramfs"],
        ..USUAL
    },
    BootPath {
        name: "boot-secure-server",
        about: "Secure Boot, our addresses, by shim and GRUB to the beacon",
        long: false,
        firmware: SECURE,
        asks_for: SHIM_AND_GRUB,
        ..USUAL
    },
    BootPath {
        name: "boot-secure-proxy",
        about: "Secure Boot, dnsmasq's addresses: impossible, and diagnosed",
        firmware: SECURE,
        addresses: Dnsmasq,
        refusals: 1,
        asks_for: &["snponly.efi", "shimx64.efi", "grubx64.efi"],
        recorded: &["snponly.efi", "shimx64.efi", "grubx64.efi"],
        end: End::Diagnosis("grub-without-configuration"),
        ..USUAL
    },
    BootPath {
        name: "boot-secure-proxy-next-server",
        about: "Secure Boot, dnsmasq names us as next server, to the beacon",
        firmware: SECURE,
        addresses: DnsmasqNamingUs,
        keys: &[("uefi_loader", "\"shim\"")],
        asks_for: SHIM_AND_GRUB,
        ..USUAL
    },
    BootPath {
        name: "boot-unified-server",
        about: "UEFI PXE, our addresses, unified image by TFTP to the beacon",
        firmware: UEFI,
        keys: &[("uefi_loader", "\"unified\"")],
        asks_for: &["netboot-x64.efi"],
        ..USUAL
    },
    BootPath {
        name: "boot-http-server",
        about: "UEFI HTTP Boot, our addresses, unified image to the beacon",
        long: false,
        firmware: HTTP,
        asks_for: &["netboot-x64.efi"],
        ..USUAL
    },
    BootPath {
        name: "boot-http-proxy",
        about: "UEFI HTTP Boot, dnsmasq's addresses, unified image to the beacon",
        firmware: HTTP,
        addresses: Dnsmasq,
        asks_for: &["netboot-x64.efi"],
        ..USUAL
    },
    BootPath {
        name: "boot-own-key-server",
        about: "Secure Boot, own key, our addresses, signed image to the beacon",
        firmware: OWN_KEY,
        image: Image::Signed,
        asks_for: &["netboot-x64.efi"],
        ..USUAL
    },
    BootPath {
        name: "boot-own-key-unsigned",
        about: "Secure Boot, own key, unsigned image: refused, and diagnosed",
        firmware: OWN_KEY,
        asks_for: &["netboot-x64.efi"],
        recorded: &["netboot-x64.efi"],
        end: End::Diagnosis("loader-refused"),
        ..USUAL
    },
    BootPath {
        name: "boot-own-key-proxy",
        about: "Secure Boot, own key, dnsmasq's addresses, signed image to the beacon",
        firmware: OWN_KEY,
        addresses: Dnsmasq,
        image: Image::Signed,
        asks_for: &["netboot-x64.efi"],
        ..USUAL
    },
    BootPath {
        name: "boot-arm-server",
        about: "64-bit Arm UEFI PXE, our addresses, to the beacon",
        firmware: ARM64,
        asks_for: &["vmlinuz", "initramfs"],
        ..USUAL
    },
    BootPath {
        name: "boot-arm-proxy",
        about: "64-bit Arm UEFI PXE, dnsmasq names us as next server, to the beacon",
        firmware: ARM64,
        addresses: DnsmasqNamingUs,
        asks_for: &["vmlinuz", "initramfs"],
        ..USUAL
    },
];

/// A scenario for each path.
pub(in crate::scenarios) const SCENARIOS: [Scenario; PATHS.len()] = {
    const NONE: Scenario = Scenario {
        name: "",
        about: "",
        long: true,
        play,
    };
    let mut scenarios = [NONE; PATHS.len()];
    let mut index = 0;
    while index < PATHS.len() {
        scenarios[index].name = PATHS[index].name;
        scenarios[index].about = PATHS[index].about;
        scenarios[index].long = PATHS[index].long;
        index += 1;
    }
    scenarios
};

/// The path of a scenario.
pub(super) fn find(name: &str) -> Option<&'static BootPath> {
    const TABLE: &[BootPath] = &PATHS;
    TABLE.iter().find(|path| path.name == name)
}
