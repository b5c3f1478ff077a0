//! `capture`, `restore`, `cancel`, and how every job begins.

use backup::manifest::RestorePointKind;
use backup::plan::Choices;
use protocol::api::{self, Action, JobRequest, JobView, MachineView};
use protocol::beacon::AgentState;
use protocol::job::JobKind;

use protocol::unlock::VolumeKey;

use super::lists::escaped;
use super::options::{CaptureArgs, JobArgs, ListArgs, RestoreArgs};
use super::table::{ago, clean, short};
use super::{CommandError, keys, print, print_json, watch};
use crate::control_client::ControlClient;
use crate::state::now;

pub(super) fn capture(client: &ControlClient, args: &CaptureArgs) -> Result<(), CommandError> {
    let request = JobRequest {
        machine: args.machine.clone(),
        action: Action::Capture {
            point_kind: Default::default(),
            image: None,
            unlock: keys::read(&args.keys.unlock)?,
        },
        afterwards: args.job.then.into(),
    };
    begin(client, &request, &args.job)
}

pub(super) fn restore(client: &ControlClient, args: &RestoreArgs) -> Result<(), CommandError> {
    let request = JobRequest {
        machine: args.machine.clone(),
        action: Action::Restore {
            restore_point: args.restore_point.clone(),
            choices: args.choices.choices(),
        },
        afterwards: args.job.then.into(),
    };
    begin(client, &request, &args.job)
}

/// Orders a job, says what it will do, and watches it if that is wanted.
pub(super) fn begin(
    client: &ControlClient,
    request: &JobRequest,
    args: &JobArgs,
) -> Result<(), CommandError> {
    let job: JobView = client.post(api::JOBS, request)?;
    if !args.json {
        let machines: Vec<MachineView> = client.get(api::MACHINES)?;
        let machine = machines
            .into_iter()
            .find(|machine| machine.id == job.machine);
        print(&announcement(&job, machine.as_ref(), request))?;
    } else if !args.watch {
        return print_json(&job);
    }
    if args.watch {
        watch::until_over(client, job, args.json)
    } else {
        Ok(())
    }
}

/// What was started, what it overwrites, and when it begins.
fn announcement(job: &JobView, machine: Option<&MachineView>, request: &JobRequest) -> String {
    let name = clean(&job.machine_name);
    let (id, point) = (short(&job.id), job.kind.restore_point());
    let mut text = match &request.action {
        Action::Capture {
            point_kind,
            image,
            unlock,
        } => {
            let called = image.as_ref().and_then(|image| image.name.as_ref());
            let called = called.map_or(String::new(), |called| format!(" {called}"));
            let head = match point_kind {
                RestorePointKind::Factory => {
                    format!("capture of {name} as factory image{called}, restore point {point}")
                }
                RestorePointKind::Backup => format!("capture of {name} as restore point {point}"),
            };
            format!("Job {id}: {head}.\n{}", opened(unlock))
        }
        Action::Restore { choices, .. } => {
            let head = format!("Job {id}: restore of {name} from restore point {point}.\n");
            head + &overwritten(machine, choices)
        }
        Action::Reset { choices, .. } => {
            let head = format!("Job {id}: reset of {name} to factory image {point}.\n");
            head + &overwritten(machine, choices)
        }
    };
    text.push_str(&identity(&job.kind));
    text.push_str(match machine.and_then(|machine| machine.state) {
        Some(AgentState::Waiting | AgentState::Failed) => {
            "The machine waits in the recovery environment: the job starts at once.\n"
        }
        Some(AgentState::Working) => {
            "The machine is still at work on an earlier job: this one starts when it is done.\n"
        }
        None => {
            "The machine is not in the recovery environment: the job starts when the machine \
             boots from the network.\n"
        }
    });
    text
}

/// That the machine gets an identity of its own, and what it is called.
fn identity(kind: &JobKind) -> String {
    match kind {
        JobKind::Restore { choices, .. } if choices.is_copy() => match &choices.host_name {
            Some(name) => {
                format!("The machine gets an identity of its own and is called {name}.\n")
            }
            None => "The machine gets an identity of its own.\n".to_owned(),
        },
        _ => String::new(),
    }
}

/// What a capture opens with a key.
fn opened(unlock: &[VolumeKey]) -> String {
    let mut text = String::new();
    for key in unlock {
        text.push_str(&format!(
            "It opens {} with its key; that volume is stored plain.\n",
            key.place
        ));
    }
    if !unlock.is_empty() {
        text.push_str(
            "The key is kept in the server's memory until the job is over; if the server \
             is started again before, it is needed again.\n",
        );
    }
    text
}

fn overwritten(machine: Option<&MachineView>, choices: &Choices) -> String {
    let Some(machine) = machine else {
        return "The machine's disks are not known yet; those it has will be overwritten.\n"
            .to_owned();
    };
    let seen = ago(machine.last_beacon, now());
    let named = |disk: &&backup::hardware::Disk| {
        choices.disks.iter().any(|choice| {
            choice.target == disk.name
                || disk.serial.as_deref() == Some(choice.target.as_str())
                || disk.wwn.as_deref() == Some(choice.target.as_str())
        })
    };
    let disks = &machine.inventory.disks;
    let chosen: Vec<_> = disks.iter().filter(named).collect();
    let (heading, listed) = if chosen.is_empty() {
        let fixed = disks
            .iter()
            .filter(|disk| !disk.removable && !disk.read_only);
        (
            format!("All data on the disks it is placed on is lost. Disks of the machine, {seen}:"),
            fixed.collect(),
        )
    } else {
        (
            format!("All data on these disks, and on those chosen by the plan, is lost ({seen}):"),
            chosen,
        )
    };
    let mut text = format!("{heading}\n");
    for disk in &listed {
        text.push_str(&format!("  {}\n", clean(&disk.describe())));
    }
    if listed.is_empty() {
        text.push_str("  none was found\n");
    }
    text
}

pub(super) fn cancel(
    client: &ControlClient,
    job: &str,
    args: &ListArgs,
) -> Result<(), CommandError> {
    let before: Vec<JobView> = client.get(api::JOBS)?;
    let view: JobView = client.post(&api::cancel_job(&escaped(job)), &())?;
    if args.json {
        return print_json(&view);
    }
    let started = before
        .iter()
        .any(|other| other.id == view.id && other.started_at.is_some());
    let consequence = match (started, view.kind.word()) {
        (false, _) => "It had not started; nothing was changed.",
        (true, "restore" | "reset") => {
            "The machine stops at its next report. Its disk was being overwritten and does not \
             boot until a restore or a reset is finished."
        }
        (true, _) => "The machine stops at its next report. No restore point was made.",
    };
    print(&format!(
        "Job {} is cancelled. {consequence}\n",
        short(&view.id)
    ))
}
