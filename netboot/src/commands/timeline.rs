//! `timeline`: what machines did while they booted.

use protocol::api;

use super::lists::escaped;
use super::options::ListArgs;
use super::table::{clean, local_time};
use super::{CommandError, print, print_json};
use crate::control_client::ControlClient;
use crate::flight_recorder::{BootView, EventView, MachineTimeline};

pub(super) fn one(
    client: &ControlClient,
    machine: &str,
    args: &ListArgs,
) -> Result<(), CommandError> {
    let timeline: MachineTimeline = client.get(&api::timeline(&escaped(machine)))?;
    if args.json {
        return print_json(&timeline);
    }
    if timeline.timeline.boots.is_empty() {
        return print("Nothing was recorded of this machine's boots.\n");
    }
    let boots: Vec<_> = timeline.timeline.boots.iter().map(boot).collect();
    print(&boots.join("\n"))
}

fn boot(boot: &BootView) -> String {
    let mut text = format!(
        "Boot of {} at {}\n",
        boot.mac,
        local_time(boot.began / 1000)
    );
    for stage in &boot.stages {
        let milliseconds = stage.to_ms.saturating_sub(stage.from_ms);
        text.push_str(&format!("  {:6}  {milliseconds} ms\n", stage.stage.name()));
    }
    for event in &boot.events {
        text.push_str(&line(event));
    }
    if let Some(diagnosis) = &boot.diagnosis {
        text.push_str(&format!("Diagnosis: {}.\n", clean(&diagnosis.sentence)));
    }
    text
}

fn line(event: &EventView) -> String {
    let (seconds, rest) = (event.since_ms / 1000, event.since_ms % 1000);
    format!(
        "{seconds:6}.{rest:03} s  {:6}  {}{}\n",
        event.stage.name(),
        if event.trouble { "! " } else { "" },
        clean(&event.text)
    )
}
