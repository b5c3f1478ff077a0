//! What the facts mean.
//!
//! Pure: facts in, findings out.

use backup::units::HumanBytes;
use protocol::dhcp::{ArchitectureCode, BootProtocol};

use super::{
    Finding,
    facts::{BootFolder, Clock, DataDir, Facts, Holder, Link, Port, Server},
};
use crate::{
    boot_policy::{INITRAMFS, KERNEL},
    config::DhcpMode,
    dhcp::boot_table::{self, Firmware, LoaderKind, Role, Rung, UefiLoader},
};

/// A first backup of one small machine needs more than this.
const LITTLE_SPACE: u64 = 20 << 30;
/// State and leases can no longer be written soon.
const NO_SPACE: u64 = 1 << 30;
/// Hardware clocks are kept in local time by some, and drift.
const CLOCKS_APART: u64 = 26 * 3600;
const DAY: u64 = 86_400;
/// TFTP's, UDP's and IP's headers.
const HEADERS: u32 = 4 + 8 + 20;

/// Every file that a server may have use for.
pub(super) fn file_names() -> Vec<&'static str> {
    let rungs = boot_table::firmwares().into_iter().flat_map(rungs_of);
    let files =
        rungs.flat_map(|rung| std::iter::once(rung.loader).chain(rung.needs.iter().copied()));
    let mut names: Vec<_> = files.chain([KERNEL, INITRAMFS]).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The loaders of a kind of firmware in the order of the ladder.
fn rungs_of(Firmware(architectures, protocol): Firmware) -> Vec<&'static Rung> {
    let first = architectures.first().copied();
    first.map_or_else(Vec::new, |architecture| {
        boot_table::ladder(architecture, protocol, Role::Server, UefiLoader::Auto)
    })
}

/// Judges everything, in the order of a boot.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(error) = &facts.config_error {
        let fix = "Correct it; `netboot serve --check` reads it again.";
        findings.push(Finding::problem("configuration", error.clone(), fix));
    }
    findings.push(server(&facts.server));
    let running = matches!(facts.server, Server::Running { .. });
    findings.extend(facts.ports.iter().map(|needed| port(needed, running)));
    for link in &facts.interfaces {
        findings.extend(interface(link, facts.tftp_block_size));
        findings.extend(others(link, facts));
    }
    if facts.interfaces.is_empty() {
        findings.push(Finding::problem(
            "interface",
            "there is no Ethernet interface that is up and has an IPv4 address",
            "Connect one, or name it with --interface.",
        ));
    }
    findings.extend(firewall(facts));
    findings.extend(boot_folder(&facts.boot));
    findings.extend(data_dir(&facts.data_dir, running));
    findings.extend(clock(facts.clock, facts.boot.program_made));
    findings
}

fn server(server: &Server) -> Finding {
    match server {
        Server::Running {
            version,
            uptime,
            process,
            links,
        } => {
            let roles: Vec<_> = links
                .iter()
                .map(|link| format!("{} as {}", link.link, link.role))
                .collect();
            let what = format!(
                "netboot {version} (process {process}) serves since {}: {}",
                ago(*uptime),
                roles.join(", ")
            );
            if version == env!("CARGO_PKG_VERSION") {
                Finding::ok("server", what)
            } else {
                Finding::warning(
                    "server",
                    format!("{what}; this program is {}", env!("CARGO_PKG_VERSION")),
                    "Restart the server: systemctl restart netboot",
                )
            }
        }
        Server::NotRunning => Finding::ok("server", "no netboot serves from this data directory"),
        Server::Unknown(why) => Finding::warning(
            "server",
            format!("the server on this data directory cannot be asked: {why}"),
            "Run this as the user that runs the server, or as root.",
        ),
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn port(port: &Port, running: bool) -> Finding {
    let name = format!(
        "{} port {} ({})",
        port.transport.name(),
        port.number,
        port.service
    );
    let proxy = if port.service == "DHCP" {
        ", or let netboot work beside it: --mode proxy"
    } else {
        ""
    };
    match &port.holder {
        None if running => Finding::warning(
            "port",
            format!("{name}: the server does not listen there"),
            "It may be configured otherwise: run doctor with the server's --config.",
        ),
        None => Finding::ok("port", format!("{name} is free")),
        Some(Holder::Ours) => Finding::ok("port", format!("{name} is the server's")),
        Some(Holder::Other(who)) => Finding::problem(
            "port",
            format!("{name} is taken by {who}"),
            format!("Stop it (systemctl stop …, or kill){proxy}."),
        ),
        Some(Holder::Unknown) => Finding::problem(
            "port",
            format!("{name} is taken by another user's process"),
            "Run doctor as root to see whose; stop that one.",
        ),
    }
}

fn interface(link: &Link, block_size: u16) -> Vec<Finding> {
    let name = &link.name;
    let problem = |what: &str, fix: String| {
        vec![Finding::problem("interface", format!("{name} {what}"), fix)]
    };
    if !link.present {
        let fix = "`ip link` lists the interfaces; correct the name.".to_owned();
        return problem("does not exist", fix);
    }
    if link.wireless {
        let fix = "Machines boot over cable: name a wired interface.".to_owned();
        return problem("is wireless, over which no firmware boots", fix);
    }
    if !link.up {
        return problem("is switched off", format!("ip link set {name} up"));
    }
    if link.addresses.is_empty() {
        let fix = format!("ip address add 192.168.77.1/24 dev {name} (an address of your own)");
        return problem("has no IPv4 address", fix);
    }
    let mut findings = Vec::new();
    if link.carrier == Some(false) {
        findings.push(Finding::warning(
            "interface",
            format!("{name} has no cable, or nothing at its other end"),
            "Connect it.",
        ));
    }
    match link.mtu {
        Some(mtu) if mtu > 1500 => findings.push(Finding::warning(
            "mtu",
            format!("{name} has MTU {mtu}; firmware takes packets up to 1500"),
            format!("ip link set {name} mtu 1500, unless every switch and machine has more"),
        )),
        Some(mtu) if mtu < u32::from(block_size) + HEADERS => findings.push(Finding::warning(
            "mtu",
            format!("{name} has MTU {mtu}, TFTP blocks of {block_size} bytes do not fit into it"),
            format!(
                "Set `[tftp] block_size = {}` in the configuration.",
                mtu.saturating_sub(HEADERS).max(512)
            ),
        )),
        _ => {}
    }
    if findings.is_empty() {
        let addresses: Vec<_> = link.addresses.iter().map(ToString::to_string).collect();
        let vlan = if link.vlan { ", a VLAN" } else { "" };
        findings.push(Finding::ok(
            "interface",
            format!("{name} is up with {}{vlan}", addresses.join(", ")),
        ));
    }
    findings
}

/// Other servers on the wire, and what that means for the mode.
fn others(link: &Link, facts: &Facts) -> Vec<Finding> {
    let name = &link.name;
    let found = match &link.others {
        None => return Vec::new(),
        Some(Err(why)) => {
            return vec![Finding::warning(
                "other-servers",
                format!("other DHCP servers on {name} cannot be looked for: {why}"),
                "Run doctor as root.",
            )];
        }
        Some(Ok(found)) => found,
    };
    let role = match &facts.server {
        Server::Running { links, .. } => {
            let own = links
                .iter()
                .find(|view| view.link.starts_with(name.as_str()));
            own.map(|view| view.role.clone())
        }
        _ => None,
    };
    let role = role.unwrap_or_else(|| match facts.mode {
        DhcpMode::Server => "server".to_owned(),
        DhcpMode::Proxy => "proxy".to_owned(),
        DhcpMode::Auto => "auto".to_owned(),
        DhcpMode::Off => "off".to_owned(),
    });
    let gives = found.iter().any(|other| other.gives_addresses());
    let listed: Vec<_> = found.iter().map(ToString::to_string).collect();
    let listed = listed.join("; ");
    let mut findings = Vec::new();
    findings.push(match (role.as_str(), gives) {
        ("server", true) => Finding::problem(
            "other-servers",
            format!("{name}: netboot gives addresses, and so does another: {listed}"),
            "Switch one of the two off, or use --mode proxy (`[dhcp] mode = \"proxy\"`).",
        ),
        ("proxy", false) => Finding::problem(
            "other-servers",
            format!("{name}: netboot is a proxy, and no DHCP server answers: machines get no address"),
            "Start the DHCP server, or use --mode server with a --pool.",
        ),
        ("auto", true) => Finding::ok(
            "other-servers",
            format!("{name}: {listed}; netboot will be a proxy beside it"),
        ),
        ("auto", false) => Finding::ok(
            "other-servers",
            format!("{name}: no other DHCP server; netboot will give the addresses (--pool or [[subnet]])"),
        ),
        (_, true) => Finding::ok("other-servers", format!("{name}: {listed}")),
        (_, false) => Finding::ok("other-servers", format!("{name}: no other DHCP server")),
    });
    let rival = found.iter().find(|other| other.boot_file.is_some());
    if let Some(rival) = rival
        && role != "off"
    {
        findings.push(Finding::warning(
            "other-boot-file",
            format!("{name}: machines may boot from another one: {rival}"),
            "Take options 66 and 67 (next-server, filename) out of that server, or set its \
             next-server to this one.",
        ));
    }
    findings
}

fn firewall(facts: &Facts) -> Vec<Finding> {
    let Some(dropped) = &facts.firewall else {
        return vec![Finding::ok(
            "firewall",
            "no firewall rules of this host can be read (no nft or iptables, or no rights)",
        )];
    };
    if dropped.is_empty() {
        let what = "this host's firewall lets machines' requests in";
        return vec![Finding::ok("firewall", what)];
    }
    let each = dropped.iter().map(|(transport, port, rule)| {
        Finding::problem(
            "firewall",
            format!(
                "this host's firewall drops {} port {port}: {rule}",
                transport.name()
            ),
            format!(
                "nft insert rule inet filter input {} dport {port} accept (or the same in your \
                 firewall's configuration)",
                transport.word()
            ),
        )
    });
    each.collect()
}

fn boot_folder(boot: &BootFolder) -> Vec<Finding> {
    let path = boot.path.display();
    if let Some(why) = &boot.unreadable {
        return vec![Finding::problem(
            "boot-files",
            format!("the boot folder {path} cannot be read: {why}"),
            "Make the boot files (`scripts/build`, or install the package), or name their folder \
             with --boot-files.",
        )];
    }
    let mut findings = Vec::new();
    for file in &boot.files {
        if let Some(damage) = &file.damage {
            findings.push(Finding::problem(
                "boot-file-damaged",
                format!("{}: {damage}", file.name),
                "Copy it again from where it comes from.",
            ));
        }
    }
    for (name, why) in &boot.unlike_manifest {
        let what = format!("{name} is not as manifest.json of {path} lists it: {why}");
        let fix = "Make the boot files again, or copy them whole: some are of another release, or \
                   damaged.";
        findings.push(
            if name.ends_with("vmlinuz") || name.ends_with("initramfs") {
                Finding::problem("boot-file-differs", what, fix)
            } else {
                Finding::warning(
                    "boot-file-differs",
                    what,
                    "Fine when it is a loader of your own.",
                )
            },
        );
    }
    for needed in [KERNEL, INITRAMFS] {
        if boot.find(needed).is_none() {
            findings.push(Finding::problem(
                "boot-files",
                format!("{needed} is not in {path}: no x86-64 machine can start the environment"),
                "Make the boot files: `scripts/build`, or install the package.",
            ));
        }
    }
    for firmware in boot_table::firmwares() {
        findings.push(boot.serves(firmware));
        if firmware.0.contains(&ArchitectureCode::EFI_X64) {
            findings.push(boot.serves_secure_boot(firmware));
        }
    }
    let oldest = boot.find(INITRAMFS).and_then(|file| file.made);
    if let (Some(files), Some(program)) = (oldest, boot.program_made)
        && files + DAY < program
    {
        findings.push(Finding::warning(
            "boot-files-old",
            "the boot files are older than this program: their agent may be of another release",
            "Make them again: `scripts/build`, or install the package of the same release.",
        ));
    }
    findings
}

impl BootFolder {
    fn find(&self, name: &str) -> Option<&super::facts::BootFile> {
        self.files.iter().find(|file| file.name == name)
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some_and(|file| file.damage.is_none())
    }

    /// A line of the table "firmware × is it served".
    fn serves(&self, firmware: Firmware) -> Finding {
        let rungs = rungs_of(firmware);
        let (code, by) = (firmware.0.first(), transport_name(firmware));
        let name = code.map_or_else(String::new, |code| format!("{}{by}", code.name()));
        let exists = |file: &str| self.has(file);
        if let Some(rung) = boot_table::choose(&rungs, &exists, &[]) {
            let files: Vec<_> = std::iter::once(rung.loader)
                .chain(rung.needs.iter().copied())
                .collect();
            return Finding::ok(
                "firmware",
                format!("{name}: served with {}", files.join(", ")),
            );
        }
        // Few networks have such machines.
        let arm = [
            ArchitectureCode::EFI_ARM64,
            ArchitectureCode::EFI_ARM64_HTTP,
        ];
        if code.is_some_and(|code| arm.contains(code)) {
            let what = format!("{name}: not served, its boot files are not here");
            return Finding::ok("firmware", what);
        }
        let wanted = rungs
            .first()
            .map_or_else(Vec::new, |rung| rung.missing(&exists).collect::<Vec<_>>());
        Finding::warning(
            "firmware",
            format!("{name}: not served, {} not here", wanted.join(", ")),
            format!("Put it into the boot folder: {}", origin(&wanted)),
        )
    }

    /// The same for machines whose firmware starts signed programs only.
    fn serves_secure_boot(&self, firmware: Firmware) -> Finding {
        let by = transport_name(firmware);
        let signed = |name: &str| {
            let file = self.find(name);
            file.is_some_and(|file| file.damage.is_none() && file.signed != Some(false))
        };
        let kinds = [LoaderKind::Shim, LoaderKind::Unified];
        let rungs: Vec<_> = rungs_of(firmware)
            .into_iter()
            .filter(|rung| kinds.contains(&rung.kind))
            .collect();
        match boot_table::choose(&rungs, &signed, &[]) {
            Some(rung) => Finding::ok(
                "secure-boot",
                format!(
                    "UEFI x86-64 with Secure Boot on{by}: served with {}",
                    rung.loader
                ),
            ),
            None => Finding::warning(
                "secure-boot",
                format!(
                    "UEFI x86-64 with Secure Boot on{by}: not served, no signed loader is here"
                ),
                format!(
                    "Put shimx64.efi and grubx64.efi into the boot folder: {}",
                    origin(&["shim"])
                ),
            ),
        }
    }
}

/// HTTP Boot has it in its name.
fn transport_name(Firmware(architectures, protocol): Firmware) -> &'static str {
    match protocol {
        BootProtocol::Pxe if architectures.contains(&ArchitectureCode::BIOS) => "",
        BootProtocol::Pxe => " by PXE",
        BootProtocol::Http => "",
    }
}

/// Where loaders come from.
fn origin(set: &[&str]) -> &'static str {
    match set.first() {
        Some(name) if name.starts_with("shim") || name.starts_with("grub") => {
            "apt install shim-signed grub-efi-amd64-signed; `initramfs build` takes them from there"
        }
        Some(name) if name.starts_with("netboot-") => "`initramfs build` makes it",
        _ => "apt install ipxe; its files are found in /usr/lib/ipxe",
    }
}

fn data_dir(dir: &DataDir, running: bool) -> Vec<Finding> {
    let path = dir.path.display();
    if !dir.present {
        return vec![Finding::problem(
            "data-directory",
            format!("the data directory {path} does not exist"),
            "If it is on a disk of its own, mount that; else `netboot serve --create` makes it.",
        )];
    }
    if let Some(why) = &dir.not_writable {
        return vec![Finding::problem(
            "data-directory",
            format!("the data directory {path} cannot be written: {why}"),
            format!("Run the server as its owner, or: chown -R netboot {path}"),
        )];
    }
    let mut findings = Vec::new();
    match dir.free {
        Some(free) if free < NO_SPACE => findings.push(Finding::problem(
            "space",
            format!(
                "{path} has {} free: captures and leases will fail",
                HumanBytes(free)
            ),
            "Make room, or move the data directory to a larger disk.",
        )),
        Some(free) if free < LITTLE_SPACE => findings.push(Finding::warning(
            "space",
            format!(
                "{path} has {} free: too little for most captures",
                HumanBytes(free)
            ),
            "Make room, or move the data directory to a larger disk.",
        )),
        _ => {}
    }
    findings.extend(dir.filesystem.as_deref().and_then(filesystem));
    if findings.is_empty() {
        let free = dir
            .free
            .map_or_else(String::new, |free| format!(", {} free", HumanBytes(free)));
        let kind = dir
            .filesystem
            .as_deref()
            .unwrap_or("an unknown file system");
        let used = if running { "in use and " } else { "" };
        findings.push(Finding::ok(
            "data-directory",
            format!("the data directory {path} is {used}writable, on {kind}{free}"),
        ));
    }
    findings
}

fn filesystem(kind: &str) -> Option<Finding> {
    let what = |reason: &str| format!("the data directory is on {kind}: {reason}");
    let fix = "Move the data directory to ext4, XFS or Btrfs on a local disk.";
    match kind {
        "tmpfs" | "ramfs" => Some(Finding::warning(
            "filesystem",
            what("restore points are lost when this machine restarts"),
            fix,
        )),
        "vfat" | "msdos" | "exfat" => Some(Finding::problem(
            "filesystem",
            what("it neither keeps what was synced nor takes large packs"),
            fix,
        )),
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") => Some(Finding::warning(
            "filesystem",
            what("SQLite's locks and syncs are not to be trusted there"),
            fix,
        )),
        "cifs" | "smb3" | "9p" => Some(Finding::warning(
            "filesystem",
            what("SQLite's locks and syncs are not to be trusted there"),
            fix,
        )),
        _ => None,
    }
}

fn clock(clock: Clock, program_made: Option<u64>) -> Vec<Finding> {
    let fix = "timedatectl set-ntp true, or `date -s`; then `hwclock --systohc`";
    if let Some(made) = program_made
        && clock.now + DAY < made
    {
        return vec![Finding::problem(
            "clock",
            "this machine's clock is before the day this program was made: certificates, leases and \
             restore points get wrong dates",
            fix,
        )];
    }
    match clock.hardware {
        Some(hardware) if hardware.abs_diff(clock.now) > CLOCKS_APART => vec![Finding::warning(
            "clock",
            format!(
                "the hardware clock is {} hours from the system's: after a restart the time is wrong",
                hardware.abs_diff(clock.now) / 3600
            ),
            "hwclock --systohc",
        )],
        _ => vec![Finding::ok("clock", "the clock is plausible")],
    }
}

#[cfg(test)]
mod tests;
