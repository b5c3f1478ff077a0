//! `timeline`: what machines did while they booted, as tables, bars and pictures.

mod svg;

use std::path::Path;

use backup::units::HumanBytes;
use protocol::api;

use super::lists::escaped;
use super::options::TimelineArgs;
use super::table::{Table, ago, clean, local_time};
use super::{CommandError, print, print_json};
use crate::control_client::ControlClient;
use crate::flight_recorder::{BootView, Diagnosis, EventView, MachineTimeline, Part, Seen};
use crate::state::now;

/// Columns of a bar.
const BAR: u64 = 44;

pub(super) fn run(client: &ControlClient, args: &TimelineArgs) -> Result<(), CommandError> {
    match &args.machine {
        Some(machine) => one(client, machine, args),
        None => all(client, args),
    }
}

/// Every machine that was seen.
fn all(client: &ControlClient, args: &TimelineArgs) -> Result<(), CommandError> {
    let seen: Seen = client.get(api::TIMELINES)?;
    if args.json {
        return print_json(&seen);
    }
    let mut text = String::new();
    if seen.machines.is_empty() {
        text.push_str("No machine has asked this server for a boot file yet.\n");
    } else {
        let mut table = Table::new(&[
            "MACHINE",
            "NAME",
            "LAST SEEN",
            "BOOTS",
            "STAGE",
            "DIAGNOSIS",
        ]);
        let now = now();
        for machine in &seen.machines {
            let diagnosis = machine.diagnosis.as_ref();
            table.row(vec![
                machine.mac.to_string(),
                machine.name.clone(),
                ago(machine.last_at / 1000, now),
                machine.boots.to_string(),
                machine.last_stage.name().to_owned(),
                diagnosis.map_or_else(
                    || "-".to_owned(),
                    |found| format!("{}: {}", found.code, found.sentence),
                ),
            ]);
        }
        text.push_str(&table.to_string());
    }
    if seen.others > 0 {
        text.push_str(&format!(
            "Besides, DHCP answered {} times to systems that asked for no boot file.\n",
            seen.others
        ));
    }
    print(&text)
}

/// One machine's boots.
fn one(client: &ControlClient, machine: &str, args: &TimelineArgs) -> Result<(), CommandError> {
    let found: MachineTimeline = client.get(&api::timeline(&escaped(machine)))?;
    let boots = &found.timeline.boots;
    let older = boots.len().saturating_sub(args.boots);
    let shown: Vec<&BootView> = boots.iter().skip(older).collect();
    if let Some(file) = &args.svg {
        write_picture(file, &svg::draw(&found.name, &shown))?;
    }
    if args.json {
        return print_json(&found);
    }
    if boots.is_empty() {
        return print(
            "Nothing was recorded of this machine's boots. `netboot timeline` lists every machine that asked.\n",
        );
    }
    let mut text = String::new();
    if older > 0 {
        text.push_str(&format!(
            "{older} older boots are not shown (--boots {} shows all).\n\n",
            boots.len()
        ));
    }
    let told: Vec<_> = shown.iter().map(|boot| boot_text(boot)).collect();
    text.push_str(&told.join("\n"));
    if !found.timeline.refused_loaders.is_empty() {
        text.push_str(&format!(
            "\nIts firmware did not start: {}.\n",
            clean(&found.timeline.refused_loaders.join(", "))
        ));
    }
    let last = shown.last().and_then(|boot| boot.diagnosis.as_ref());
    if let Some(diagnosis) = &found.timeline.diagnosis
        && last != Some(diagnosis)
    {
        text.push('\n');
        text.push_str(&diagnosis_text(diagnosis));
    }
    print(&text)
}

fn write_picture(file: &Path, picture: &str) -> Result<(), CommandError> {
    std::fs::write(file, picture).map_err(|source| CommandError::Picture {
        path: file.to_owned(),
        source,
    })
}

fn boot_text(boot: &BootView) -> String {
    let mut text = format!("{}\n\n", heading(boot));
    let lines = part_lines(boot);
    let end = lines.iter().map(|line| line.to_ms).max().unwrap_or(0);
    for line in &lines {
        text.push_str(&format!(
            "  {:6}  {}  {}\n",
            line.part.name(),
            bar(line, end),
            line.words().join("  ")
        ));
    }
    text.push('\n');
    for event in &boot.events {
        text.push_str(&event_line(event));
    }
    if let Some(diagnosis) = &boot.diagnosis {
        text.push_str(&diagnosis_text(diagnosis));
    }
    text
}

/// Which boot, and how long it took as far as it came.
fn heading(boot: &BootView) -> String {
    let (mac, when) = (boot.mac, local_time(boot.began / 1000));
    let beacon = boot.stages.last().filter(|last| last.stage == Part::Beacon);
    match beacon {
        Some(beacon) => format!(
            "Boot of {mac} at {when}: {} from its first DHCP request to the agent",
            seconds(beacon.to_ms)
        ),
        None => format!("Boot of {mac} at {when}"),
    }
}

fn diagnosis_text(diagnosis: &Diagnosis) -> String {
    format!(
        "Diagnosis ({}): {}.\n  {}\n",
        clean(&diagnosis.code),
        clean(&diagnosis.sentence),
        clean(&diagnosis.advice)
    )
}

/// A part of a boot as a line of a picture.
struct PartLine {
    part: Part,
    from_ms: u64,
    to_ms: u64,
    bytes: u64,
    bytes_per_second: Option<u64>,
}

impl PartLine {
    /// How long, how much, how fast.
    fn words(&self) -> Vec<String> {
        let mut words = vec![format!("{:>9}", seconds(self.to_ms - self.from_ms))];
        if self.bytes > 0 {
            words.push(format!("{:>8}", HumanBytes(self.bytes).to_string()));
        }
        if let Some(rate) = self.bytes_per_second {
            words.push(format!("{:>8}/s", HumanBytes(rate).to_string()));
        }
        words
    }
}

fn part_lines(boot: &BootView) -> Vec<PartLine> {
    let lines = boot.stages.iter().map(|stage| PartLine {
        part: stage.stage,
        from_ms: stage.from_ms,
        to_ms: stage.to_ms.max(stage.from_ms),
        bytes: stage.bytes,
        bytes_per_second: stage.bytes_per_second,
    });
    lines.collect()
}

/// A bar in its place: spaces, blocks, spaces. What took no time is a thin line.
fn bar(line: &PartLine, end: u64) -> String {
    let place = |ms: u64| ms.saturating_mul(BAR) / end.max(1);
    let (from, to) = (place(line.from_ms).min(BAR - 1), place(line.to_ms));
    let blocks = to.saturating_sub(from);
    let count = |columns: u64| usize::try_from(columns).unwrap_or(0);
    let drawn = if blocks == 0 {
        "▏".to_owned()
    } else {
        "█".repeat(count(blocks))
    };
    let rest = BAR.saturating_sub(from + blocks.max(1));
    format!(
        "{}{drawn}{}",
        " ".repeat(count(from)),
        " ".repeat(count(rest))
    )
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

fn event_line(event: &EventView) -> String {
    let rate = event
        .bytes_per_second
        .map_or_else(String::new, |rate| format!(" ({}/s)", HumanBytes(rate)));
    format!(
        "  {:>10}  {:6}  {}{}{rate}\n",
        seconds(event.since_ms),
        event.stage.name(),
        if event.trouble { "! " } else { "" },
        clean(&event.text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from_ms: u64, to_ms: u64) -> PartLine {
        PartLine {
            part: Part::Dhcp,
            from_ms,
            to_ms,
            bytes: 0,
            bytes_per_second: None,
        }
    }

    #[test]
    fn bars_have_their_place_and_all_one_width() {
        assert_eq!(
            bar(&line(0, 500), 1000),
            format!("{}{}", "█".repeat(22), " ".repeat(22))
        );
        assert_eq!(
            bar(&line(500, 1000), 1000),
            format!("{}{}", " ".repeat(22), "█".repeat(22))
        );
        for (from, to, end) in [(0, 0, 0), (1000, 1000, 1000), (3, 4, 1000), (0, 1, 1)] {
            assert_eq!(bar(&line(from, to), end).chars().count(), 44);
        }
    }
}
