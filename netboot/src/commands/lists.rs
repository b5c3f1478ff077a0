//! `machines`, `restore-points`, `jobs`.

use backup::units::HumanBytes;
use protocol::api::{self, JobView, MachineView, RestorePointView};
use protocol::beacon::AgentState;
use protocol::job::{JobKind, JobState};

use super::options::ListArgs;
use super::table::{Table, ago, clean, local_time, short};
use super::{CommandError, print, print_json};
use crate::control_client::ControlClient;
use crate::state::now;

pub(super) fn machines(client: &ControlClient, args: &ListArgs) -> Result<(), CommandError> {
    let machines: Vec<MachineView> = client.get(api::MACHINES)?;
    if args.json {
        return print_json(&machines);
    }
    if machines.is_empty() {
        return print(
            "No machine has reported yet. Start one from the network; it appears here within seconds.\n",
        );
    }
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "FIRMWARE",
        "DISKS",
        "ETHERNET",
        "CODE",
        "LAST SEEN",
        "ID",
    ]);
    let now = now();
    for machine in &machines {
        let disks = &machine.inventory.disks;
        let bytes = disks
            .iter()
            .map(|disk| disk.size)
            .fold(0, u64::saturating_add);
        let macs = &machine.inventory.identity.macs;
        table.row(vec![
            machine.name.clone(),
            state_word(machine.state).to_owned(),
            machine.inventory.firmware.to_string(),
            format!("{}, {}", disks.len(), HumanBytes(bytes)),
            macs.first().cloned().unwrap_or_default(),
            machine.pairing_code.clone().unwrap_or_default(),
            ago(machine.last_beacon, now),
            short(&machine.id),
        ]);
    }
    let mut text = table.to_string();
    for machine in &machines {
        if let Some(next) = machine.next_boot {
            let name = clean(&machine.name);
            text.push_str(&format!("{name}: next boot: {}\n", next.words()));
        }
        if let Some(error) = &machine.error {
            text.push_str(&format!("{}: {}\n", clean(&machine.name), clean(error)));
        }
    }
    print(&text)
}

fn state_word(state: Option<AgentState>) -> &'static str {
    match state {
        None => "away",
        Some(AgentState::Waiting) => "waiting",
        Some(AgentState::Working) => "working",
        Some(AgentState::Failed) => "failed",
    }
}

pub(super) fn restore_points(client: &ControlClient, args: &ListArgs) -> Result<(), CommandError> {
    let points: Vec<RestorePointView> = client.get(api::RESTORE_POINTS)?;
    if args.json {
        return print_json(&points);
    }
    if points.is_empty() {
        return print("There is no restore point yet. Make one with `netboot capture MACHINE`.\n");
    }
    let mut table = Table::new(&[
        "ID",
        "MACHINE",
        "KIND",
        "CAPTURED",
        "SYSTEM",
        "DISKS",
        "DATA",
        "NEW IN STORE",
        "STATUS",
    ]);
    for point in &points {
        table.row(vec![
            point.id.to_string(),
            point.machine_name.clone(),
            kind(point),
            local_time(point.captured_at),
            point.system.clone().unwrap_or_else(|| "-".to_owned()),
            HumanBytes(point.disk_bytes).to_string(),
            HumanBytes(point.data_bytes).to_string(),
            HumanBytes(point.stored_bytes).to_string(),
            point.status.clone(),
        ]);
    }
    let mut text = table.to_string();
    for point in &points {
        for warning in &point.warnings {
            text.push_str(&format!("{}: {}\n", point.id, clean(warning)));
        }
    }
    print(&text)
}

/// Its kind, and what an image is called.
pub(super) fn kind(point: &RestorePointView) -> String {
    match point.image_name() {
        Some(name) => format!("{} {name}", point.kind),
        None => point.kind.clone(),
    }
}

pub(super) fn jobs(client: &ControlClient, args: &ListArgs) -> Result<(), CommandError> {
    let jobs: Vec<JobView> = client.get(api::JOBS)?;
    if args.json {
        return print_json(&jobs);
    }
    if jobs.is_empty() {
        return print("There is no job yet.\n");
    }
    let mut table = Table::new(&[
        "ID",
        "MACHINE",
        "JOB",
        "RESTORE POINT",
        "STATE",
        "CREATED",
        "TOOK",
        "DETAILS",
    ]);
    let now = now();
    for job in &jobs {
        let took = job.started_at.map(|start| {
            let seconds = job.ended_at.unwrap_or(now).saturating_sub(start);
            format!("{}:{:02}", seconds / 60, seconds % 60)
        });
        table.row(vec![
            short(&job.id),
            job.machine_name.clone(),
            kind_of(job),
            job.kind.restore_point().to_string(),
            job.state.word().to_owned(),
            local_time(job.created_at),
            took.unwrap_or_else(|| "-".to_owned()),
            details(job),
        ]);
    }
    print(&table.to_string())
}

/// What it does, in a word or two.
fn kind_of(job: &JobView) -> String {
    let word = job.kind.word();
    match &job.kind {
        JobKind::Restore { choices, .. } if choices.is_copy() => match &choices.host_name {
            Some(name) => format!("{word} as {name}"),
            None => format!("{word}, new identity"),
        },
        _ => word.to_owned(),
    }
}

fn details(job: &JobView) -> String {
    match job.state {
        JobState::Running => job.progress.map(|progress| progress.to_string()),
        JobState::Failed => job.error.clone(),
        JobState::Waiting => Some("starts when the machine boots from the network".to_owned()),
        JobState::Succeeded => job.summary.first().cloned(),
        JobState::Cancelled => None,
    }
    .unwrap_or_default()
}

/// A name as one part of a path (RFC 3986 §2.1).
pub(super) fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_a_path() {
        assert_eq!(escaped("52:54:00 a/b"), "52%3A54%3A00%20a%2Fb");
    }
}
