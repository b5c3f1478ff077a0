//! What a boot path plays in: bridge, servers, boot files, and the machine.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Addresses, BootPath, Image, MachineFirmware, summary};
use crate::lab::bridge_capture::BridgeCapture;
use crate::lab::dnsmasq::{BootAdvice, Dnsmasq, DnsmasqError};
use crate::lab::firmware::{Firmware, FirmwareError, NetworkBoot, UefiBuild};
use crate::lab::guest::{Attachment, Guest};
use crate::lab::namespace::{BRIDGE_ADDRESS, Bridge, NamespaceError, Tap};
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;
use crate::lab::traffic::Traffic;
use crate::scenarios::Skipped;
use crate::scenarios::machine::Machine;
use crate::scenarios::site::{Site, copy_folder};
use crate::scenarios::stage::Stage;

/// The unified kernel image for x86-64.
const UNIFIED_IMAGE: &str = "netboot-x64.efi";
/// The kernel for 64-bit Arm.
const ARM64_KERNEL: &str = "arm64/vmlinuz";
/// Debian's public private key and its certificate, which the variable store of [`UefiBuild::OwnKey`]
/// trusts, and the key's passphrase.
const KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
const PASSPHRASE: &str = "pass:snakeoil";

/// The network: what is dropped first stands first.
pub(super) struct Wire {
    capture: BridgeCapture,
    tap: Tap,
    dnsmasq: Option<Dnsmasq>,
    bridge: Bridge,
}

impl Wire {
    /// A bridge with a cable for one machine, and dnsmasq if it has something to say.
    pub(super) fn lay(stage: &Stage<'_>, advice: Option<&BootAdvice>) -> anyhow::Result<Self> {
        let mut bridge = Bridge::up().map_err(skip_without_namespaces)?;
        let tap = bridge.add_tap()?;
        let capture = BridgeCapture::start_on_tap(&tap, &stage.logs().join("machine.pcap"))?;
        let dnsmasq = advice
            .map(|advice| Dnsmasq::start(&mut bridge, stage.logs(), advice))
            .transpose()
            .map_err(skip_without_dnsmasq)?;
        Ok(Self {
            capture,
            tap,
            dnsmasq,
            bridge,
        })
    }

    /// Switches a machine on at its end of the cable.
    pub(super) fn switch_on(&self, stage: &Stage<'_>, machine: &Machine) -> anyhow::Result<Guest> {
        machine.switch_on_with(stage, Some(Attachment::Tap(self.tap.clone())), "boot")
    }

    /// What the cable carried so far.
    pub(super) fn traffic(&self) -> Traffic {
        self.capture.traffic()
    }
}

/// The machine of a path, off.
pub(super) fn machine(stage: &Stage<'_>, path: &BootPath) -> anyhow::Result<Machine> {
    Machine::bare_with(stage, |folder| firmware(path.firmware, folder))
}

/// Everything in its place, the machine off.
pub(super) struct World<'a> {
    pub(super) stage: &'a Stage<'a>,
    pub(super) site: Site<'a, Wire>,
    pub(super) machine: Machine,
}

impl<'a> World<'a> {
    pub(super) fn open(stage: &'a Stage<'a>, path: &BootPath) -> anyhow::Result<Self> {
        let program = stage.program("netboot")?;
        let machine = machine(stage, path)?;
        let boot_files = boot_files(stage, path)?;
        let advice = match path.addresses {
            Addresses::Ours => None,
            Addresses::Dnsmasq => Some(BootAdvice::default()),
            Addresses::DnsmasqNamingUs => Some(BootAdvice {
                next_server: Some(BRIDGE_ADDRESS),
                ..BootAdvice::default()
            }),
        };
        let wire = Wire::lay(stage, advice.as_ref())?;

        let data_dir = stage.disks().join("server");
        let place = wire.bridge.place();
        let mut config =
            ServerConfig::on_bridge(&program, &data_dir, &boot_files, stage.logs(), place);
        config.beside_another = wire.dnsmasq.is_some();
        config.boot_keys = path.keys.to_vec();
        let server = Server::start(config)?;
        Ok(Self {
            stage,
            site: Site::on(stage, server, wire),
            machine,
        })
    }

    pub(super) fn switch_on(&self) -> anyhow::Result<Guest> {
        self.site.link.switch_on(self.stage, &self.machine)
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.site.link.traffic()
    }

    pub(super) fn what_was_asked(&self) -> String {
        format!("the machine asked for {}", summary(&self.traffic()))
    }
}

fn skip_without_namespaces(error: NamespaceError) -> anyhow::Error {
    match error {
        NamespaceError::Unavailable { .. } => skipped(error.to_string()),
        other => other.into(),
    }
}

fn skip_without_dnsmasq(error: DnsmasqError) -> anyhow::Error {
    match error {
        DnsmasqError::NotInstalled => skipped(error.to_string()),
        other => other.into(),
    }
}

fn skipped(reason: String) -> anyhow::Error {
    Skipped { reason }.into()
}

fn firmware(kind: MachineFirmware, folder: &Path) -> anyhow::Result<Firmware> {
    let MachineFirmware::Uefi(build, network) = kind else {
        return Ok(Firmware::Bios);
    };
    if build == UefiBuild::Arm64
        && tool::run(Command::new("qemu-system-aarch64").arg("--version")).is_err()
    {
        return Err(skipped(
            "there is no qemu-system-aarch64; scripts/setup --arm64 installs it".to_owned(),
        ));
    }
    Firmware::uefi(build, network, folder).map_err(|error| match error {
        FirmwareError::Missing { .. } => skipped(error.to_string()),
        other => other.into(),
    })
}

/// The boot files under test, with a signed image where the path needs one.
fn boot_files(stage: &Stage<'_>, path: &BootPath) -> anyhow::Result<PathBuf> {
    let folder = stage.boot_files()?;
    if path.firmware == MachineFirmware::Uefi(UefiBuild::Arm64, NetworkBoot::Pxe)
        && !folder.join(ARM64_KERNEL).is_file()
    {
        return Err(skipped(format!(
            "{} has no {ARM64_KERNEL}; scripts/build --arch arm64 makes it",
            folder.display()
        )));
    }
    if path.image == Image::Unsigned {
        return Ok(folder);
    }
    let copy = stage.disks().join("boot");
    copy_folder(&folder, &copy)?;
    sign(&copy.join(UNIFIED_IMAGE), stage.disks())?;
    Ok(copy)
}

/// Signs an image in its place with the key that the machine trusts.
fn sign(image: &Path, folder: &Path) -> anyhow::Result<()> {
    let key = folder.join("snakeoil.key");
    let mut decrypt = Command::new("openssl");
    decrypt.args(["rsa", "-in", KEY, "-passin", PASSPHRASE, "-out"]);
    tool::run(decrypt.arg(&key)).context("cannot decrypt the lab's signing key")?;
    let mut sbsign = Command::new("sbsign");
    sbsign.arg("--key").arg(&key).args(["--cert", CERTIFICATE]);
    sbsign.arg("--output").arg(image).arg(image);
    tool::run(&mut sbsign).context("cannot sign the unified kernel image")?;
    Ok(())
}
