//! Which kernel modules go into the base image, and why: the one place to change the set.
//!
//! The set covers what a machine needs to reach the server, its disks and its keyboard before any
//! driver can come from elsewhere. What they depend on is added by [`crate::modules`]; hardware that is
//! rarer, or whose driver is larger than a tenth of the image, is left out on purpose (function E1: such
//! drivers come from the server when the hardware asks for them).

/// What it means when a kernel does not have a module, neither as a file nor built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The build fails: without it a usual machine could not be recovered.
    Required,
    /// The build says so and goes on.
    WhenThere,
}

use Need::{Required, WhenThere};

use crate::architecture::Architecture;

/// Modules that serve one purpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// Why they are in the image, to be read after the module's name.
    pub(crate) why: &'static str,
    /// What it means when one is not in the kernel.
    pub(crate) need: Need,
    /// Module names, as in `lsmod` but for `-` and `_`, which mean the same.
    pub(crate) modules: &'static [&'static str],
}

const fn group(why: &'static str, need: Need, modules: &'static [&'static str]) -> Group {
    Group { why, need, modules }
}

/// The base set for a processor.
pub(crate) fn groups(architecture: Architecture) -> Vec<Group> {
    let own = match architecture {
        Architecture::X64 => X64_GROUPS,
        Architecture::Arm64 => ARM64_GROUPS,
    };
    GROUPS.iter().chain(own).copied().collect()
}

/// What only PCs have.
#[rustfmt::skip]
const X64_GROUPS: &[Group] = &[
    group("Hyper-V generation 1 boots only from this emulated DEC 21140", WhenThere, &["tulip"]),
    group("Ethernet of older PCs", WhenThere, &["forcedeth"]),
    group("NVMe and SATA disks behind Intel's Volume Management Device", WhenThere, &["vmd"]),
    group("VMware disks", WhenThere, &["vmw_pvscsi"]),
    group("USB 1 host controllers of Intel and VIA", Required, &["uhci_hcd"]),
    group("the checksum of ext4 on processors that have an instruction for it", WhenThere,
        &["crc32c_intel"]),
    // Found by the processor, like a device, so it has to be here from the beginning.
    group("AES of encrypted volumes on processors that have instructions for it", WhenThere,
        &["aesni_intel"]),
];

/// What only machines with an Arm processor have: servers, and small computers that start by UEFI.
#[rustfmt::skip]
const ARM64_GROUPS: &[Group] = &[
    group("KVM/QEMU devices that are not on a PCI bus", WhenThere, &["virtio_mmio"]),
    group("Ethernet of Amazon's and Google's machines", WhenThere, &["ena", "gve"]),
    group("Ethernet of Ampere, Cavium, HiSilicon and AMD servers", WhenThere,
        &["xgene-enet", "nicvf", "nicpf", "thunder_bgx", "hns_enet_drv", "hns3", "hclge", "amd-xgbe"]),
    group("Ethernet of servers with Broadcom cards", WhenThere, &["bnxt_en"]),
    group("Ethernet of small computers", WhenThere,
        &["genet", "bcm_phy_lib", "mvneta", "mvpp2", "macb", "fec", "dwmac-generic", "netsec", "fsl-dpaa2-eth"]),
    group("disks of HiSilicon servers", WhenThere, &["hisi_sas_v2_hw", "hisi_sas_v3_hw"]),
    group("SATA controllers that are not on a PCI bus", WhenThere,
        &["ahci_platform", "ahci_xgene", "ahci_seattle"]),
    group("memory cards of small computers", WhenThere, &["sdhci-iproc", "dw_mmc-pltfm"]),
    group("USB host controllers that are not on a PCI bus", WhenThere,
        &["xhci-plat-hcd", "ehci-platform", "dwc3"]),
];

/// The base set of every processor.
#[rustfmt::skip]
const GROUPS: &[Group] = &[
    // Virtual machines.
    group("KVM/QEMU network, disks and entropy", Required,
        &["virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_rng"]),
    group("Hyper-V bus, disks, network and keyboard", WhenThere,
        &["hv_vmbus", "hv_storvsc", "hv_netvsc", "hyperv_keyboard", "hid_hyperv"]),
    group("VMware network and disks", WhenThere, &["vmxnet3", "mptspi", "mptsas"]),
    group("Xen network and disks", WhenThere, &["xen_netfront", "xen_blkfront"]),

    // Wired network of real machines.
    group("Intel gigabit Ethernet", Required, &["e1000", "e1000e", "igb"]),
    group("Intel 2.5 gigabit Ethernet", WhenThere, &["igc"]),
    group("Realtek Ethernet and its PHY", Required, &["r8169", "realtek"]),
    group("Broadcom gigabit Ethernet of Dell and HP machines", WhenThere, &["tg3", "broadcom"]),
    group("Intel 10 gigabit Ethernet of servers", WhenThere, &["ixgbe"]),
    group("Qualcomm Atheros Ethernet of PCs", WhenThere, &["alx", "atl1c"]),
    group("Ethernet of older PCs", WhenThere, &["8139cp", "8139too", "e100", "sky2"]),
    group("USB Ethernet adapters and docks", WhenThere,
        &["r8152", "ax88179_178a", "cdc_ether", "cdc_ncm"]),

    // Disks.
    group("SATA disks", Required, &["ahci", "ata_piix"]),
    group("SATA and IDE controllers without a driver of their own", WhenThere, &["ata_generic"]),
    group("NVMe disks", Required, &["nvme"]),
    group("disks that speak SCSI, SATA and USB among them", Required, &["sd_mod"]),
    group("SAS and RAID controllers of servers (LSI, Broadcom, HPE, Microchip)", WhenThere,
        &["mpt3sas", "megaraid_sas", "hpsa", "smartpqi", "aacraid"]),
    group("eMMC disks of small PCs", WhenThere, &["mmc_block", "sdhci_pci", "sdhci_acpi"]),

    // USB.
    group("USB host controllers", Required, &["xhci_pci", "ehci_pci", "ohci_pci"]),
    group("USB disks", Required, &["usb_storage", "uas"]),
    group("USB keyboard", Required, &["usbhid", "hid_generic"]),

    // File systems.
    group("ext2, ext3 and ext4", Required, &["ext4"]),
    // Kernels from 6.14 on call it as a function, and have no such module.
    group("the checksum that ext4 asks for when it is mounted", WhenThere, &["crc32c_generic"]),
    group("FAT, as on every EFI system partition", Required, &["vfat"]),
    group("character sets that FAT asks for when it is mounted", Required,
        &["nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"]),
    group("UEFI boot entries", Required, &["efivarfs"]),
    group("files as disks", Required, &["loop"]),
];

/// What only some jobs need: not in the image, but in a file beside it that the agent fetches for them.
///
/// No module that the kernel names for a device or a processor may be here: those are loaded before any job.
#[rustfmt::skip]
pub(crate) const AT_NEED: &[Group] = &[
    group("XFS and Btrfs, which are only resized while they are mounted", Required, &["xfs", "btrfs"]),
    group("volumes that are made smaller: their tail is served to the tool", Required, &["fuse"]),
    group("encrypted volumes that are opened with their key", Required, &["dm_crypt"]),
    // LUKS is `xts(aes)` today and was `cbc(aes)` with `essiv`; BitLocker has all three, `ecb` for its older ones.
    group("ciphers of encrypted volumes, which dm_crypt asks for by name", WhenThere,
        &["xts", "cbc", "ecb", "essiv", "aes_generic", "sha256_generic", "algif_skcipher"]),
];

/// A module that asks the kernel for another one while it runs, which a `depends=` does not say.
///
/// The kernel would run `modprobe`, which the recovery environment does not have, so these are made
/// ordinary dependencies in `modules.dep`. Only modules that load on every machine may be named as the
/// second: a dependency that fails would take the first with it.
pub(crate) const RUNTIME_NEEDS: &[(&str, &str)] = &[
    // crypto_alloc_shash("crc32c") at mount, fatal when it is not there.
    ("ext4", "crc32c_generic"),
    ("jbd2", "crc32c_generic"),
    ("libcrc32c", "crc32c_generic"),
    // r8169 refuses a PHY that only the generic driver serves.
    ("r8169", "realtek"),
    // Some tg3 chips have a PHY that only this one drives.
    ("tg3", "broadcom"),
    // load_nls() at mount: code page 437 always, the others by the usual `iocharset`.
    ("vfat", "nls_cp437"),
    ("vfat", "nls_ascii"),
    ("vfat", "nls_utf8"),
    // A keyboard or disk must not first come up on the slow companion controller.
    ("ohci_pci", "ehci_pci"),
    ("uhci_hcd", "ehci_pci"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_module_is_listed_twice() {
        for architecture in Architecture::ALL {
            let mut seen = BTreeSet::new();
            let all = [groups(architecture), AT_NEED.to_vec()].concat();
            for name in all.iter().flat_map(|group| group.modules) {
                assert!(
                    seen.insert(name.replace('-', "_")),
                    "{name} is listed twice"
                );
            }
        }
    }
}
