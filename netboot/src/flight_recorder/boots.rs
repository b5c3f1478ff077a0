//! Events told apart by boot, and a boot's parts with their times, bytes and rates.
//!
//! Pure functions over events.
//!
//! Not here: why a boot stopped (`diagnosis`), how it is shown (`commands`).

use protocol::dhcp::MacAddress;
use serde::{Deserialize, Serialize};

use super::{Asker, Event, Fact, Stage, diagnosis::Diagnosis};

/// After so long a silence whoever asks for a boot file has been switched on again: firmware repeats
/// an unanswered DISCOVER after 4, 8, 16 and 32 s (PXE specification 2.1, §2.2.6).
const NEW_BOOT_AFTER_MS: u64 = 90_000;

/// What is known of one machine's boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timeline {
    /// Oldest first.
    pub(crate) boots: Vec<BootView>,
    /// Loaders that the firmware fetched whole and did not start.
    pub(crate) refused_loaders: Vec<String>,
    /// Where it stopped and why, if it did.
    pub(crate) diagnosis: Option<Diagnosis>,
}

/// The same with the machine's names, as operators get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineTimeline {
    /// Its id; empty for one that never reached the agent.
    pub(crate) machine: String,
    /// What it is called: its card's address when nothing else is known.
    pub(crate) name: String,
    /// Its boots.
    #[serde(flatten)]
    pub(crate) timeline: Timeline,
}

/// Every machine that asked for a boot file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The last one first.
    pub(crate) machines: Vec<SeenMachine>,
    /// DHCP answers since the start to systems that asked for no boot file.
    pub(crate) others: u64,
}

/// What is known of one machine, in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenMachine {
    /// Its card.
    pub(crate) mac: MacAddress,
    /// What it is called; empty for one that never reached the agent.
    pub(crate) name: String,
    /// How many boots are known.
    pub(crate) boots: usize,
    /// When it was heard of last, in milliseconds since 1970-01-01 UTC.
    pub(crate) last_at: u64,
    /// How far that was.
    pub(crate) last_stage: Stage,
    /// The same as a sentence.
    pub(crate) last: String,
    /// Where it stopped and why, if it did.
    pub(crate) diagnosis: Option<Diagnosis>,
}

/// One boot as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootView {
    /// The card it booted from.
    pub(crate) mac: MacAddress,
    /// When the firmware spoke first, in milliseconds since 1970-01-01 UTC.
    pub(crate) began: u64,
    /// Its parts in order, to the first beacon.
    pub(crate) stages: Vec<StageView>,
    /// All that happened.
    pub(crate) events: Vec<EventView>,
    /// Where it stopped and why, if it did.
    pub(crate) diagnosis: Option<Diagnosis>,
}

/// The parts of a boot, in the order in which they come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// An address and a file name.
    Dhcp,
    /// Files by TFTP.
    Tftp,
    /// Scripts and files by HTTP.
    Http,
    /// A program that was fetched starts: nothing is heard of it.
    Loader,
    /// The kernel and its initial file system start: nothing is heard of them.
    Kernel,
    /// The agent has its address and says so.
    Beacon,
}

impl Part {
    /// Its word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Loader => "loader",
            Self::Kernel => "kernel",
            Self::Beacon => "beacon",
        }
    }
}

/// One part of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StageView {
    /// Which.
    pub(crate) stage: Part,
    /// Milliseconds since the boot began.
    pub(crate) from_ms: u64,
    /// The same; the next one begins here.
    pub(crate) to_ms: u64,
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Bytes a second while bytes moved, when it took long enough to tell.
    pub(crate) bytes_per_second: Option<u64>,
}

/// One event as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventView {
    /// When it ended, in milliseconds since 1970-01-01 UTC.
    pub(crate) at: u64,
    /// Milliseconds since the boot began.
    pub(crate) since_ms: u64,
    /// How long it took, in milliseconds.
    pub(crate) took_ms: u64,
    /// Which part.
    pub(crate) stage: Stage,
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Bytes a second, when it took long enough to tell.
    pub(crate) bytes_per_second: Option<u64>,
    /// True when the machine cannot go on from here, or not well.
    pub(crate) trouble: bool,
    /// A sentence.
    pub(crate) text: String,
    /// The same for programs.
    pub(crate) fact: Fact,
}

/// One boot: its events, never none, oldest first.
pub(super) type Boot<'a> = &'a [Event];

/// Tells a machine's boots apart.
pub(super) fn boots(events: &[Event]) -> Vec<Boot<'_>> {
    let mut boots = Vec::new();
    let mut start = 0;
    for (index, event) in events.iter().enumerate() {
        if index > start && begins(&events[start..index], event) {
            boots.push(&events[start..index]);
            start = index;
        }
    }
    if start < events.len() {
        boots.push(&events[start..]);
    }
    boots
}

/// Whether an event is the first of a new boot. Firmware repeats an unanswered DISCOVER with the
/// same words, so only one after something else begins a boot. An iPXE may be the firmware (in the
/// card's ROM) or what the firmware fetched: it begins one only when an iPXE had its turn.
fn begins(boot: Boot<'_>, event: &Event) -> bool {
    let silent = boot
        .last()
        .is_some_and(|last| event.at.saturating_sub(last.at) > NEW_BOOT_AFTER_MS);
    match &event.fact {
        Fact::Beacon { .. } => boot
            .iter()
            .any(|earlier| matches!(earlier.fact, Fact::Beacon { .. })),
        // The firmware's kind is in the note that goes with these.
        Fact::PoolExhausted { .. } | Fact::NoSubnet { .. } => {
            silent || !boot.iter().all(|earlier| is_first_step(&earlier.fact))
        }
        fact if !is_discover(fact) => false,
        fact => match fact.asker() {
            Some(Asker::Firmware { .. }) => {
                silent || !boot.iter().all(|earlier| is_first_step(&earlier.fact))
            }
            Some(Asker::Ipxe { .. }) => {
                let had_its_turn = |earlier: &Event| match &earlier.fact {
                    Fact::Granted { by, .. } | Fact::ProxyTold { by, .. } => {
                        matches!(by, Asker::Ipxe { .. })
                    }
                    Fact::Told { .. } | Fact::Beacon { .. } => true,
                    _ => false,
                };
                silent || boot.iter().any(had_its_turn)
            }
            _ => false,
        },
    }
}

/// The answer to a DISCOVER.
fn is_discover(fact: &Fact) -> bool {
    matches!(fact, Fact::Offered { .. } | Fact::ProxyOffered { .. })
}

/// What happens while firmware repeats its DISCOVER and gets no further.
fn is_first_step(fact: &Fact) -> bool {
    match fact {
        Fact::Offered { by, .. } | Fact::ProxyOffered { by, .. } => {
            matches!(by, Asker::Firmware { .. })
        }
        Fact::ArchitectureNotServed { .. }
        | Fact::LoaderMissing { .. }
        | Fact::PoolExhausted { .. }
        | Fact::NoSubnet { .. } => true,
        _ => false,
    }
}

/// When a boot began.
fn began(boot: Boot<'_>) -> u64 {
    boot.first()
        .map_or(0, |event| event.at.saturating_sub(event.fact.took()))
}

/// A boot as it is shown.
pub(super) fn view(mac: MacAddress, boot: Boot<'_>, diagnosis: Option<Diagnosis>) -> BootView {
    let began = began(boot);
    let events = boot.iter().map(|event| EventView {
        at: event.at,
        since_ms: event.at.saturating_sub(began),
        took_ms: event.fact.took(),
        stage: event.fact.stage(),
        bytes: event.fact.bytes(),
        bytes_per_second: rate(event.fact.bytes(), event.fact.took()),
        trouble: event.fact.trouble(),
        text: event.fact.to_string(),
        fact: event.fact.clone(),
    });
    BootView {
        mac,
        began,
        stages: stages(boot),
        events: events.collect(),
        diagnosis,
    }
}

/// Bytes a second; nothing is said of what took no measurable time.
fn rate(bytes: u64, milliseconds: u64) -> Option<u64> {
    (bytes > 0 && milliseconds > 0).then(|| bytes.saturating_mul(1000) / milliseconds)
}

/// The parts of a boot from the first word of the firmware to the first beacon: what is done in a
/// row is one part, and silence after a file is that file starting.
fn stages(boot: Boot<'_>) -> Vec<StageView> {
    let began = began(boot);
    let mut stages: Vec<StageView> = Vec::new();
    let mut moving = 0;
    let mut here = 0;
    for event in boot {
        let to = event.at.saturating_sub(began).max(here);
        let from = to.saturating_sub(event.fact.took()).max(here);
        let part = part_of(&event.fact);
        let waited = stages.last().map(|last| last.stage);
        if let Some(silent) = waited.and_then(|last| silence(boot, last, event)) {
            extend(&mut stages, silent, (here, from), 0);
            here = from;
            moving = 0;
        }
        let same = stages.last().is_some_and(|last| last.stage == part);
        moving = if same { moving } else { 0 } + event.fact.took();
        extend(&mut stages, part, (here, to), event.fact.bytes());
        if let Some(last) = stages.last_mut() {
            last.bytes_per_second = rate(last.bytes, moving);
        }
        here = to;
        if matches!(event.fact, Fact::Beacon { .. }) {
            break;
        }
    }
    stages
}

fn extend(stages: &mut Vec<StageView>, stage: Part, (from_ms, to_ms): (u64, u64), bytes: u64) {
    match stages.last_mut() {
        Some(last) if last.stage == stage => {
            last.to_ms = to_ms;
            last.bytes += bytes;
        }
        _ => stages.push(StageView {
            stage,
            from_ms,
            to_ms,
            bytes,
            bytes_per_second: None,
        }),
    }
}

fn part_of(fact: &Fact) -> Part {
    match fact.stage() {
        Stage::Tftp => Part::Tftp,
        Stage::Http => Part::Http,
        Stage::Beacon => Part::Beacon,
        // The address of the system that was started: the agent's way to its beacon.
        Stage::Dhcp if fact.asker().is_some_and(|asker| !asker.boots()) => Part::Beacon,
        Stage::Dhcp => Part::Dhcp,
    }
}

/// What goes on unheard between a file and what comes after it.
fn silence(boot: Boot<'_>, last: Part, event: &Event) -> Option<Part> {
    match (last, part_of(&event.fact)) {
        (Part::Tftp | Part::Http, _) => {}
        // Beside a proxy another server gives the address meanwhile.
        (Part::Dhcp, Part::Tftp | Part::Http) => return Some(Part::Dhcp),
        _ => return None,
    }
    match part_of(&event.fact) {
        Part::Beacon => Some(Part::Kernel),
        Part::Dhcp => Some(Part::Loader),
        // A loader by TFTP that goes on by HTTP without an address of its own.
        Part::Http if last == Part::Tftp => {
            let first = boot.first()?;
            (event.at > first.at).then_some(Part::Loader)
        }
        _ => None,
    }
}

/// The loaders of this machine that were fetched whole and started nothing, though the firmware
/// came back: it refuses them. The one abandoned last comes last; a loader that went on in a later
/// boot is not among them. The last boot counts as over: who asks has seen the firmware come back.
pub(super) fn abandoned_loaders(events: &[Event]) -> Vec<String> {
    let mut abandoned: Vec<String> = Vec::new();
    for boot in boots(events) {
        let told = boot.iter().rev().find_map(|event| {
            let by_firmware = matches!(event.fact.asker(), Some(Asker::Firmware { .. }));
            event.fact.told_file().filter(|_| by_firmware)
        });
        let Some(loader) = told.map(file_name) else {
            continue;
        };
        match after_loader(boot, loader) {
            AfterLoader::NotFetched => {}
            AfterLoader::Nothing => {
                abandoned.retain(|earlier| earlier != loader);
                abandoned.push(loader.to_owned());
            }
            AfterLoader::Something => abandoned.retain(|earlier| earlier != loader),
        }
    }
    abandoned
}

/// What came after a loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterLoader {
    /// It was not fetched to its end.
    NotFetched,
    /// Nothing was heard of it.
    Nothing,
    /// It ran.
    Something,
}

/// What came after the last whole fetch of a loader.
pub(super) fn after_loader(boot: Boot<'_>, loader: &str) -> AfterLoader {
    let of_loader = |event: &Event| match &event.fact {
        Fact::Fetched {
            file,
            part_of: None,
            ..
        } => file_name(file) == loader,
        _ => false,
    };
    let Some(index) = boot.iter().rposition(of_loader) else {
        return AfterLoader::NotFetched;
    };
    let again = |event: &Event| match &event.fact {
        Fact::Probed { file, .. }
        | Fact::FetchBegun { file, .. }
        | Fact::FetchStopped { file, .. } => file_name(file) == loader,
        // It gives its address back before it goes on to the next boot entry.
        Fact::Released { .. } => true,
        fact => matches!(fact.asker(), Some(Asker::Firmware { .. })),
    };
    if boot[index + 1..].iter().all(again) {
        AfterLoader::Nothing
    } else {
        AfterLoader::Something
    }
}

/// The last part of a name or URL.
pub(super) fn file_name(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
