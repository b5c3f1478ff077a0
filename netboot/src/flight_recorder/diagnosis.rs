//! Where a boot stopped, why, and what to do.
//!
//! Pure functions over events and the time. Codes are stable: `docs/diagnoses.md` lists them, and a
//! test holds the two together.
//!
//! Not here: what happened (`fact`), which events are one boot (`boots`), the checks of the server's
//! surroundings (`doctor`).

use serde::{Deserialize, Serialize};

use super::{
    Asker, Decided, Event, Fact, Over, Stopped,
    boots::{AfterLoader, Boot, after_loader, file_name},
    fact::names,
};

/// A boot that is quiet for so long has stopped.
const QUIET_MS: u64 = 60_000;
/// So many boots within so long are a loop.
const LOOP_BOOTS: usize = 4;
const LOOP_MS: u64 = 15 * 60_000;

/// Where a boot stopped and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diagnosis {
    /// A word for programs; `docs/diagnoses.md` lists them.
    pub(crate) code: String,
    /// What is the matter, without a full stop.
    pub(crate) sentence: String,
    /// What to do, in whole sentences.
    pub(crate) advice: String,
}

impl Diagnosis {
    fn new(code: &str, sentence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            sentence: sentence.into(),
            advice: advice.into(),
        }
    }
}

/// Where a boot stopped; `None` while it goes on or when it arrived: at the agent, or at its own
/// disk as it was told. `over`: a later boot has begun.
pub(super) fn diagnose(boot: Boot<'_>, over: bool, now: u64) -> Option<Diagnosis> {
    let last = boot.last()?;
    if let Some(arrived) = arrival(boot) {
        return arrived;
    }
    if let Some(trouble) = no_answer(boot).or_else(|| broken_off(&last.fact)) {
        return Some(trouble);
    }
    if !over && now.saturating_sub(last.at) < QUIET_MS {
        return None;
    }
    Some(silence(boot))
}

/// The diagnosis of a machine whose boots follow one another, from theirs, oldest first: when each
/// began and what it came to.
pub(super) fn diagnose_machine(boots: &[(u64, Option<Diagnosis>)]) -> Option<Diagnosis> {
    let (last_began, last) = boots.last()?;
    let since = last_began.saturating_sub(LOOP_MS);
    let row = boots.iter().rev().take_while(|(began, _)| *began >= since);
    let (count, first) = row.fold((0, *last_began), |(count, _), (began, _)| {
        (count + 1, *began)
    });
    let own_reason = last
        .as_ref()
        .is_some_and(|diagnosis| diagnosis.code != "agent-silent");
    if count < LOOP_BOOTS || own_reason {
        return last.clone();
    }
    let minutes = last_began.saturating_sub(first).div_ceil(60_000);
    let reason = boots
        .iter()
        .rev()
        .find_map(|(_, diagnosis)| diagnosis.as_ref());
    let reason = match reason {
        Some(diagnosis) => format!("The last that stopped: {}.", diagnosis.sentence),
        None => {
            "Each went as far as it was told to: look at what starts then. A machine sent to its \
                 local disk that comes back has no system there that starts."
                .to_owned()
        }
    };
    Some(Diagnosis::new(
        "boot-loop",
        format!("the machine started {count} times in {minutes} minutes"),
        format!(
            "{reason} Look at the machine's screen, or take the network out of its boot order."
        ),
    ))
}

/// Inner `None`: it is where it should be.
#[expect(
    clippy::option_option,
    reason = "the outer option says whether it arrived, the inner what is wrong there"
)]
fn arrival(boot: Boot<'_>) -> Option<Option<Diagnosis>> {
    let spoke = |event: &Event| {
        matches!(
            event.fact,
            Fact::Beacon { .. } | Fact::BeaconRefused { .. } | Fact::JobEnded { .. }
        )
    };
    if let Some(event) = boot.iter().rfind(|event| spoke(event)) {
        return Some(match &event.fact {
            Fact::BeaconRefused { reason } => Some(Diagnosis::new(
                "beacon-refused",
                format!("the agent runs and its beacon was refused: {reason}"),
                "Agent and server have to be of one release: update the boot files with \
                 `scripts/build` or the package, then start the machine again.",
            )),
            Fact::JobEnded {
                error: Some(error), ..
            } => Some(Diagnosis::new(
                "job-failed",
                format!(
                    "the machine booted and its job failed: {}",
                    error.trim_end_matches('.')
                ),
                "The job's line in `netboot jobs` has the details.",
            )),
            _ => None,
        });
    }
    let local = |event: &Event| {
        matches!(
            event.fact,
            Fact::Told {
                boots: Decided::LocalDisk,
                ..
            }
        )
    };
    boot.iter().any(local).then_some(None)
}

/// What DHCP could not give it.
fn no_answer(boot: Boot<'_>) -> Option<Diagnosis> {
    let moved = |event: &Event| event.fact.bytes() > 0;
    if boot.iter().any(moved) {
        return None;
    }
    let told = boot.iter().any(|event| event.fact.told_file().is_some());
    let last = boot.iter().rfind(|event| event.fact.trouble())?;
    match &last.fact {
        Fact::ArchitectureNotServed { architectures } if !told => Some(Diagnosis::new(
            "architecture-not-served",
            format!(
                "the firmware asked for architecture {} and nothing here serves that",
                names(architectures)
            ),
            "Set the firmware to a mode that is served (UEFI x86-64, 64-bit Arm, or BIOS), or start \
             the machine from recovery media.",
        )),
        Fact::LoaderMissing { architecture, file } if !told => Some(Diagnosis::new(
            "loader-missing",
            format!(
                "the firmware asked for architecture {}, and its loader {file} is not in the boot \
                 folder",
                names(&[*architecture])
            ),
            format!(
                "Put {file} into the boot folder; `netboot doctor` lists what is missing and where \
                 it comes from."
            ),
        )),
        Fact::PoolExhausted { network } if !has_address(boot) => Some(Diagnosis::new(
            "pool-exhausted",
            format!("the machine got no address: the pool of {network} is exhausted"),
            "Make `pool` of that [[subnet]] larger or `lease_seconds` shorter, then restart the \
             server.",
        )),
        Fact::NoSubnet { link } => Some(Diagnosis::new(
            "no-subnet",
            format!("the machine asks on the link of {link}, for which there is no [[subnet]]"),
            "Add a [[subnet]] for that link to the configuration; for machines behind a relay it is \
             the relay's network.",
        )),
        Fact::Declined { address } => Some(Diagnosis::new(
            "address-conflict",
            format!("the machine found its address {address} in use by another one"),
            "A machine with a fixed address inside the pool, or a second DHCP server that gives the \
             same addresses: find it (`ip neigh`, `netboot doctor`), or take the address out of the \
             pool.",
        )),
        _ => None,
    }
}

fn has_address(boot: Boot<'_>) -> bool {
    boot.iter()
        .any(|event| matches!(event.fact, Fact::Granted { .. } | Fact::Offered { .. }))
}

/// A fetch that ended before its end, or trouble of another version's words.
fn broken_off(fact: &Fact) -> Option<Diagnosis> {
    match fact {
        Fact::FetchStopped {
            over,
            file,
            bytes,
            of,
            why,
            ..
        } => Some(stopped_fetch(*over, file, (*bytes, *of), why)),
        Fact::Remark {
            trouble: true,
            text,
            ..
        } => Some(Diagnosis::new(
            "noted",
            text.clone(),
            "An earlier version of the server recorded this; start the machine again for more.",
        )),
        _ => None,
    }
}

fn stopped_fetch(over: Over, file: &str, (bytes, of): (u64, u64), why: &Stopped) -> Diagnosis {
    match why {
        Stopped::Silent { .. } if bytes == 0 => Diagnosis::new(
            "tftp-no-acknowledgement",
            format!("TFTP: the machine asked for {file} and acknowledged nothing that was sent"),
            "TFTP answers come from a port of their own: a firewall between machine and server must \
             let UDP from the server's high ports through, or know TFTP (`nf_conntrack_tftp`).",
        ),
        Stopped::Silent { block_size } => {
            let size = block_size.filter(|size| *size > 0);
            let block = size.map_or_else(String::new, |size| {
                format!(" (block {} of {size} bytes)", bytes / u64::from(size) + 1)
            });
            let large = size.is_some_and(|size| size > 1468);
            let mtu = if large {
                "The blocks are larger than an Ethernet frame: set `[tftp] block_size = 1468` or \
                 smaller. "
            } else {
                "A tunnel or VLAN with a smaller MTU loses large blocks: set `[tftp] block_size = 512` \
                 to try. "
            };
            Diagnosis::new(
                "tftp-stalled",
                format!("TFTP: {file} stalled after {bytes} of {of} bytes{block}"),
                format!(
                    "{mtu}Else packets are lost on the way: look at cable, switch port (spanning \
                     tree's port fast, speed and duplex), and the firewall."
                ),
            )
        }
        Stopped::ByClient { code, message } => Diagnosis::new(
            "fetch-refused-by-machine",
            format!(
                "{over}: the machine ended {file} after {bytes} of {of} bytes with error {code}: \
                 {message}"
            ),
            "Error 3 or words about space or memory: the file is too large for this firmware; use a \
             smaller loader. Error 8: it dislikes an option; a firmware update may help.",
        ),
        Stopped::Dropped => Diagnosis::new(
            "http-broken-off",
            format!("{over}: the connection ended after {bytes} of {of} bytes of {file}"),
            "Packets are lost, a proxy or firewall ends long connections, or the machine was \
             switched off or has too little memory (2 GB are needed).",
        ),
        Stopped::ByServer { reason } => Diagnosis::new(
            "server-could-not-read",
            format!("{over}: {file} could not be sent: {reason}"),
            "Look at the boot folder: `netboot doctor` checks its files.",
        ),
    }
}

/// What silence means, by how far the boot came.
fn silence(boot: Boot<'_>) -> Diagnosis {
    let fetched = |wanted: &dyn Fn(&str) -> bool| {
        boot.iter().any(|event| match &event.fact {
            Fact::Fetched {
                file,
                part_of: None,
                ..
            } => wanted(file_name(file)),
            _ => false,
        })
    };
    let unified = |name: &str| name.starts_with("netboot-") && name.ends_with(".efi");
    let kernel = fetched(&|name| name == "vmlinuz") && fetched(&|name| name == "initramfs");
    if kernel {
        return agent_silent("kernel and initramfs");
    }
    // A unified image is loader and system in one: its own DHCP says that it started.
    if fetched(&unified) && boot.iter().any(|event| system_asked(&event.fact)) {
        return agent_silent("the unified image");
    }
    if let Some(diagnosis) = missing_file(boot) {
        return diagnosis;
    }
    let decided = |event: &Event| match &event.fact {
        Fact::Told { .. } => true,
        Fact::Fetched { file, .. } => file_name(file).ends_with(".cfg"),
        _ => false,
    };
    if boot.iter().any(decided) {
        return Diagnosis::new(
            "kernel-not-fetched",
            "the machine was told what to boot and did not fetch it whole",
            "The loader could not reach the files, or a person left its menu: look at the machine's \
             screen. The URL that it was told must be reachable from it (`[http] advertised_port`, \
             firewall).",
        );
    }
    after_files(boot)
}

fn agent_silent(what: &str) -> Diagnosis {
    Diagnosis::new(
        "agent-silent",
        format!("{what} were fetched and the agent never spoke"),
        "Look at the machine's screen: the kernel did not start, it has too little memory (2 GB are \
         needed), no driver for its network card (the screen names it), or DHCP did not answer the \
         recovery environment.",
    )
}

fn system_asked(fact: &Fact) -> bool {
    fact.asker().is_some_and(|asker| !asker.boots())
}

/// The boot's last word is a file that it did not find and cannot do without.
fn missing_file(boot: Boot<'_>) -> Option<Diagnosis> {
    const NEEDED: [&str; 4] = ["vmlinuz", "initramfs", "grubx64.efi", "grubaa64.efi"];
    let last = boot
        .iter()
        .rfind(|event| event.fact.stage() != super::Stage::Dhcp)?;
    let Fact::NotHere { over, file } = &last.fact else {
        return None;
    };
    let needed = NEEDED.contains(&file_name(file))
        || boot.iter().any(|event| {
            event
                .fact
                .told_file()
                .is_some_and(|told| file_name(told) == file_name(file))
        });
    needed.then(|| {
        Diagnosis::new(
            "file-missing",
            format!("the machine asked by {over} for {file}, which is not in the boot folder"),
            "Put it there; `netboot doctor` lists what is missing and where it comes from.",
        )
    })
}

/// No script was asked for: it stopped at a loader or before it.
fn after_files(boot: Boot<'_>) -> Diagnosis {
    let fetched: Vec<&str> = boot
        .iter()
        .filter_map(|event| match &event.fact {
            Fact::Fetched { file, .. } => Some(file_name(file)),
            _ => None,
        })
        .collect();
    let Some(last) = fetched.last() else {
        return before_files(boot);
    };
    if last.starts_with("grub") && last.ends_with(".efi") {
        return Diagnosis::new(
            "grub-without-configuration",
            format!("GRUB ({last}) was fetched and did not ask this server for its configuration"),
            "Debian's GRUB asks the main DHCP server's next-server. Beside another DHCP server: set \
             its next-server (option 66, siaddr) to this server's address, or set \
             `[boot] uefi_loader` to \"ipxe\" (Secure Boot off) or \"unified\" (own key).",
        );
    }
    let ipxe_asked = boot.iter().rposition(|event| {
        matches!(event.fact.asker(), Some(Asker::Ipxe { .. }))
            && event
                .fact
                .told_file()
                .is_some_and(|file| file.contains("://"))
    });
    if ipxe_asked.is_some() {
        return http_unreachable();
    }
    match (is_shim(last), after_loader(boot, last)) {
        (true, AfterLoader::Something) => Diagnosis::new(
            "shim-without-grub",
            format!("{last} was fetched and started, and its GRUB was not fetched"),
            "Beside another DHCP server shim may ask that one for GRUB: set its next-server to this \
             server's address. Else look whether grubx64.efi (grubaa64.efi) is in the boot folder.",
        ),
        (true, _) => Diagnosis::new(
            "shim-refused",
            format!("{last} was fetched whole and nothing after it: the firmware did not start it"),
            "Secure Boot is on and does not trust it: enable \"Microsoft 3rd party UEFI CA\" in the \
             firmware's Secure Boot settings, or check that the file is the signed one of the \
             package shim-signed.",
        ),
        (false, _) if last.ends_with(".efi") => Diagnosis::new(
            "loader-refused",
            format!(
                "{last} was fetched whole and nothing after it: the firmware did not start it, most \
                 likely because of Secure Boot"
            ),
            "It is not signed by anyone whom the firmware trusts: provide shimx64.efi and \
             grubx64.efi (packages shim-signed, grub-efi-amd64-signed) in the boot folder, sign your \
             own, or switch Secure Boot off. The next boot is offered the next loader there is.",
        ),
        (false, _) => Diagnosis::new(
            "loader-silent",
            format!(
                "{last} was fetched whole and nothing after it: it did not start, or sees no network"
            ),
            "Look at the machine's screen; a firmware update of the network card, or another loader \
             ([boot] in the configuration), may help.",
        ),
    }
}

fn is_shim(name: &str) -> bool {
    name.starts_with("shim") && name.ends_with(".efi")
}

fn http_unreachable() -> Diagnosis {
    Diagnosis::new(
        "http-unreachable",
        "iPXE was told its script's address and never asked for it",
        "HTTP to this server is blocked, or the address is wrong from there: check the firewall for \
         the HTTP port and `[http] advertised_port`.",
    )
}

/// Nothing was fetched.
fn before_files(boot: Boot<'_>) -> Diagnosis {
    let find = |wanted: fn(&Fact) -> bool| boot.iter().rfind(|event| wanted(&event.fact));
    if let Some(probe) = find(|fact| matches!(fact, Fact::Probed { .. }))
        && let Fact::Probed { file, bytes } = &probe.fact
    {
        return Diagnosis::new(
            "size-asked-only",
            format!(
                "the firmware asked for the size of {file} ({bytes} bytes) and did not fetch it"
            ),
            "It is too large for this firmware, which wants it in low memory: use a smaller loader \
             (undionly.kpxe, snponly.efi), or update the firmware.",
        );
    }
    let granted = find(|fact| matches!(fact, Fact::Granted { .. }));
    if let Some(other) = find(|fact| matches!(fact, Fact::OtherServerTaken { .. }))
        && granted.is_none()
        && let Fact::OtherServerTaken { server } = &other.fact
    {
        return Diagnosis::new(
            "other-server",
            format!("the machine took the offer of another DHCP server, {server}"),
            "Two DHCP servers answer on this link: let this one be a proxy (`[dhcp] mode = \
             \"proxy\"` or \"auto\"), or switch the other one off.",
        );
    }
    let told = boot.iter().rev().find_map(|event| event.fact.told_file());
    let proxy_told = find(|fact| matches!(fact, Fact::ProxyTold { .. }));
    let proxy_offer = find(|fact| matches!(fact, Fact::ProxyOffered { .. }));
    match (told, granted.or(proxy_told), proxy_offer) {
        (None, None, Some(_)) => Diagnosis::new(
            "proxy-not-asked",
            "the machine was told to ask on port 4011 for its boot file and never did",
            "A firewall blocks UDP 4011 to this server, or the firmware cannot do that: set \
             `[dhcp] proxy_offer = \"direct\"`, or set next-server and filename \
             in the main DHCP server.",
        ),
        (Some(_), None, Some(_)) => Diagnosis::new(
            "proxy-offer-unused",
            "the machine was offered a boot file beside another DHCP server and fetched nothing",
            "It got no address from the main DHCP server, took another proxy's or that server's own \
             boot file, or a firewall blocks TFTP (UDP 69 and high ports): look at the main DHCP \
             server's log and options 66 and 67.",
        ),
        (Some(file), Some(_), _) if file.contains("://") => http_unreachable(),
        (Some(file), Some(_), _) => Diagnosis::new(
            "nothing-fetched",
            format!("the machine was told to fetch {file} and never asked for it"),
            "TFTP to this server is blocked (UDP 69), or another server's answer with another file \
             came first: `netboot doctor` looks for both.",
        ),
        (_, None, None) => Diagnosis::new(
            "offer-not-taken",
            "the machine was offered an address and never asked for it",
            "It did not hear the offer (switch port not forwarding yet: port fast; a relay or \
             firewall that drops DHCP replies), or took another server's.",
        ),
        (None, Some(_), _) => Diagnosis::new(
            "no-boot-file",
            "the machine was given an address and no boot file",
            "Nothing here serves its firmware: `netboot doctor` shows the table of loaders.",
        ),
    }
}

#[cfg(test)]
mod tests;
