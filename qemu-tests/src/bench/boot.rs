//! Power-on to the agent's beacon for each firmware, in parts, with the bytes on its cable.
//!
//! The peer is dnsmasq alone, which has no HTTP: the same machine gets the same kernel and initial file
//! system from it, all by TFTP. Without our server the agent cannot beacon, so both are compared up to
//! where the agent asks for an address. Each figure is that of the fastest of [`ROUNDS`] boots: what else
//! the computer does only ever makes a boot slower.

use anyhow::Context;
use std::fs;
use std::path::Path;

use super::{Report, Row};
use crate::lab::dnsmasq::BootAdvice;
use crate::scenarios::boot_path::{BootPath, Measured, PATHS, dnsmasq_alone, with_our_server};
use crate::scenarios::copy_folder;
use crate::scenarios::{Settings, Skipped, Stage};

const BENCH: &str = "boot";
/// Boots of each kind.
const ROUNDS: usize = 2;
/// The same kernel's command line as our server gives, but for the server, in iPXE's words.
const IPXE_SCRIPT: &str = "#!ipxe
kernel tftp://${next-server}/vmlinuz initrd=initramfs netboot.server=http://10.78.0.2 console=tty0 console=ttyS0,115200
initrd tftp://${next-server}/initramfs
boot
";
/// The same in GRUB's.
const GRUB_CONFIGURATION: &str =
    "linux /vmlinuz netboot.server=http://10.78.0.2 console=tty0 console=ttyS0,115200
initrd /initramfs
boot
";

/// A boot that dnsmasq can do alone.
struct Peer {
    /// The path that it is compared with.
    path: &'static str,
    /// The first file.
    file: &'static str,
    /// A file to be written beside the boot files, and its text.
    written: Option<(&'static str, &'static str)>,
}

const PEERS: [Peer; 3] = [
    Peer {
        path: "boot-bios-server",
        file: "boot.ipxe",
        written: Some(("boot.ipxe", IPXE_SCRIPT)),
    },
    Peer {
        path: "boot-secure-server",
        file: "shimx64.efi",
        written: Some(("grub/grub.cfg", GRUB_CONFIGURATION)),
    },
    Peer {
        path: "boot-unified-server",
        file: "netboot-x64.efi",
        written: None,
    },
];

pub(super) fn run(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    for path in PATHS.iter().filter(|path| path.ends_with_beacon()) {
        let peer = PEERS.iter().find(|peer| peer.path == path.name);
        match measure(settings, path, peer) {
            Ok((ours, theirs)) => tell(report, path.name, &ours, theirs.as_ref())?,
            Err(error) if error.is::<Skipped>() => eprintln!("bench: {}: {error}", path.name),
            Err(error) => return Err(error.context(path.name)),
        }
    }
    Ok(())
}

fn measure(
    settings: &Settings,
    path: &BootPath,
    peer: Option<&Peer>,
) -> anyhow::Result<(Measured, Option<Measured>)> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..ROUNDS {
        let stage = Stage::set_up(settings, "bench-boot")?;
        stage.say(path.name);
        ours.push(with_our_server(&stage, path)?);
        stage.clear_up();
        if let Some(peer) = peer {
            let stage = Stage::set_up(settings, "bench-boot")?;
            stage.say(&format!("{}: dnsmasq alone", path.name));
            let advice = prepare(&stage, peer)?;
            theirs.push(dnsmasq_alone(&stage, path, &advice)?);
            stage.clear_up();
        }
    }
    let ours = fastest(ours).context("no boot was measured")?;
    Ok((ours, fastest(theirs)))
}

fn fastest(boots: Vec<Measured>) -> Option<Measured> {
    let seconds = |boot: &Measured| boot.stages.until_agent();
    boots
        .into_iter()
        .min_by(|one, other| seconds(one).total_cmp(&seconds(other)))
}

/// Lays out what dnsmasq serves.
fn prepare(stage: &Stage<'_>, peer: &Peer) -> anyhow::Result<BootAdvice> {
    let root = stage.disks().join("tftp");
    copy_folder(&stage.boot_files()?, &root)?;
    if let Some((name, text)) = peer.written {
        let file = root.join(name);
        let folder = file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, text))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(BootAdvice {
        file: peer.file.to_owned(),
        next_server: None,
        tftp_root: Some(root),
    })
}

fn tell(
    report: &mut Report,
    name: &str,
    ours: &Measured,
    theirs: Option<&Measured>,
) -> anyhow::Result<()> {
    let mut row = |case: &str, value: f64, unit, peer: Option<f64>| {
        let row = Row::new(BENCH, format!("{name}: {case}"), value, unit);
        report.row(match peer {
            Some(peer) => row.beside("dnsmasq", peer),
            None => row,
        })
    };
    let (stages, peer) = (&ours.stages, theirs.map(|boot| &boot.stages));
    row("power-on to beacon", stages.total(), "s", None)?;
    row(
        "power-on to agent",
        stages.until_agent(),
        "s",
        peer.map(|peer| peer.until_agent()),
    )?;
    let parts = [
        ("firmware", stages.firmware, peer.map(|peer| peer.firmware)),
        ("DHCP", stages.dhcp, peer.map(|peer| peer.dhcp)),
        ("loader", stages.loader, peer.map(|peer| peer.loader)),
        ("files", stages.files, peer.map(|peer| peer.files)),
        ("kernel", stages.kernel, peer.map(|peer| peer.kernel)),
        ("agent", stages.agent.unwrap_or(0.0), None),
    ];
    for (part, ours, theirs) in parts {
        row(part, ours, "s", theirs)?;
    }
    let (traffic, peer) = (&ours.traffic, theirs.map(|boot| &boot.traffic));
    let bytes = [
        ("bytes of DHCP", traffic.dhcp, peer.map(|peer| peer.dhcp)),
        ("bytes of TFTP", traffic.tftp, peer.map(|peer| peer.tftp)),
        ("bytes of HTTP", traffic.http, peer.map(|peer| peer.http)),
        (
            "bytes of others",
            traffic.other,
            peer.map(|peer| peer.other),
        ),
    ];
    for (protocol, ours, theirs) in bytes {
        let theirs = theirs.map(|bytes| bytes as f64 / 1000.0);
        row(protocol, ours as f64 / 1000.0, "kB", theirs)?;
    }
    Ok(())
}
