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
    firmware: BIOS,
    addresses: Ours,
    keys: &[],
    image: Image::Unsigned,
    asks_for: &[],
    recorded: &["beacon"],
    end: End::Beacon,
};

/// QEMU's ROM is an iPXE that fetches over HTTP; most cards' ROMs are not. So they are told apart by order.
const PLAIN_ROM: &[(&str, &str)] = &[("bios_loader", "\"undionly\"")];

const SHIM_AND_GRUB: &[&str] = &["shimx64.efi", "grubx64.efi", "vmlinuz", "initramfs"];

/// A scenario that plays one line.
macro_rules! scenario {
    ($name:literal, $length:ident, $about:literal, $path:expr) => {
        Scenario {
            name: $name,
            about: $about,
            long: length::$length,
            play: |stage| play(stage, &$path),
        }
    };
}

/// Whether a path is played every time, or when all are asked for.
mod length {
    pub(super) const ALWAYS: bool = false;
    pub(super) const FULL: bool = true;
}

pub(in crate::scenarios) const SCENARIOS: [Scenario; 15] = [
    scenario!(
        "boot-bios-server",
        ALWAYS,
        "BIOS, iPXE in ROM, our addresses, to the beacon",
        BootPath {
            asks_for: &["/boot/ipxe?", "vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-bios-proxy",
        FULL,
        "BIOS, iPXE in ROM, dnsmasq's addresses, to the beacon",
        BootPath {
            addresses: Dnsmasq,
            asks_for: &["/boot/ipxe?", "vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-undionly-server",
        FULL,
        "BIOS, plain PXE ROM, our addresses, to the beacon",
        BootPath {
            keys: PLAIN_ROM,
            asks_for: &["undionly.kpxe", "/boot/ipxe?", "vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-undionly-proxy",
        FULL,
        "BIOS, plain PXE ROM, dnsmasq's addresses, to the beacon",
        BootPath {
            addresses: Dnsmasq,
            keys: PLAIN_ROM,
            asks_for: &["undionly.kpxe", "/boot/ipxe?", "vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-uefi-server",
        FULL,
        "UEFI PXE, our addresses, by shim and GRUB to the beacon",
        BootPath {
            firmware: UEFI,
            asks_for: SHIM_AND_GRUB,
            ..USUAL
        }
    ),
    scenario!(
        "boot-uefi-proxy",
        FULL,
        "UEFI PXE, dnsmasq's addresses, by iPXE to the beacon",
        BootPath {
            firmware: UEFI,
            addresses: Dnsmasq,
            asks_for: &["snponly.efi", "/boot/ipxe?", "vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-secure-server",
        FULL,
        "Secure Boot, our addresses, by shim and GRUB to the beacon",
        BootPath {
            firmware: SECURE,
            asks_for: SHIM_AND_GRUB,
            ..USUAL
        }
    ),
    scenario!(
        "boot-secure-proxy",
        FULL,
        "Secure Boot, dnsmasq's addresses: impossible, and diagnosed",
        BootPath {
            firmware: SECURE,
            addresses: Dnsmasq,
            asks_for: &["snponly.efi", "shimx64.efi", "grubx64.efi"],
            recorded: &["snponly.efi", "shimx64.efi", "grubx64.efi"],
            end: End::Diagnosis(&["GRUB"]),
            ..USUAL
        }
    ),
    scenario!(
        "boot-secure-proxy-next-server",
        FULL,
        "Secure Boot, dnsmasq names us as next server, to the beacon",
        BootPath {
            firmware: SECURE,
            addresses: DnsmasqNamingUs,
            asks_for: SHIM_AND_GRUB,
            ..USUAL
        }
    ),
    scenario!(
        "boot-http-server",
        FULL,
        "UEFI HTTP Boot, our addresses, unified image to the beacon",
        BootPath {
            firmware: HTTP,
            asks_for: &["netboot-x64.efi"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-http-proxy",
        FULL,
        "UEFI HTTP Boot, dnsmasq's addresses, unified image to the beacon",
        BootPath {
            firmware: HTTP,
            addresses: Dnsmasq,
            asks_for: &["netboot-x64.efi"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-own-key-server",
        FULL,
        "Secure Boot, own key, our addresses, signed image to the beacon",
        BootPath {
            firmware: OWN_KEY,
            image: Image::Signed,
            asks_for: &["netboot-x64.efi"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-own-key-proxy",
        FULL,
        "Secure Boot, own key, dnsmasq's addresses, signed image to the beacon",
        BootPath {
            firmware: OWN_KEY,
            addresses: Dnsmasq,
            image: Image::Signed,
            asks_for: &["netboot-x64.efi"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-arm-server",
        FULL,
        "64-bit Arm UEFI PXE, our addresses, to the beacon",
        BootPath {
            firmware: ARM64,
            asks_for: &["vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
    scenario!(
        "boot-arm-proxy",
        FULL,
        "64-bit Arm UEFI PXE, dnsmasq's addresses, to the beacon",
        BootPath {
            firmware: ARM64,
            addresses: DnsmasqNamingUs,
            asks_for: &["vmlinuz", "initramfs"],
            ..USUAL
        }
    ),
];
