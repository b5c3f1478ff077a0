//! `plan`: what a restore would do.

use backup::plan::{DiskPlan, RestorePlan};
use backup::units::HumanBytes;
use protocol::api::{self, PlanRequest, PlanView};

use super::options::PlanArgs;
use super::table::{Table, ago, clean};
use super::{CommandError, print, print_json};
use crate::control_client::ControlClient;
use crate::state::now;

pub(super) fn run(client: &ControlClient, args: &PlanArgs) -> Result<(), CommandError> {
    let request = PlanRequest {
        machine: args.machine.clone(),
        restore_point: args.restore_point.clone(),
        choices: args.choices.choices(),
    };
    let view: PlanView = client.post(api::PLANS, &request)?;
    if args.json {
        print_json(&view)?;
    } else {
        print(&describe(&view, now()))?;
    }
    if view.plan.is_some() {
        Ok(())
    } else {
        Err(CommandError::NoPlan)
    }
}

fn describe(view: &PlanView, now: u64) -> String {
    let mut text = format!(
        "Restore of {} from {}, planned for the disks that it had {}. Nothing was started.\n\n",
        clean(&view.machine_name),
        view.restore_point,
        ago(view.last_beacon, now)
    );
    for refusal in &view.refusals {
        let code = serde_json::to_value(refusal.code).unwrap_or_default();
        let code = code.as_str().unwrap_or_default().to_owned();
        text.push_str(&format!(
            "Not possible ({code}): {}\n",
            clean(&refusal.text)
        ));
    }
    if let Some(plan) = &view.plan {
        // Line by line: names of disks come from machines.
        for line in view.picture.lines() {
            text.push_str(&clean(line));
            text.push('\n');
        }
        text.push_str(&format!("\n{}", table(plan)));
    }
    text
}

fn table(plan: &RestorePlan) -> String {
    let mut table = Table::new(&["DISK", "PARTITION", "CONTENT", "BEGINS", "SIZE", "BECOMES"]);
    for disk in &plan.disks {
        for partition in &disk.partitions {
            table.row(vec![
                disk.target.name.clone(),
                partition.number.to_string(),
                partition
                    .file_system
                    .map_or_else(|| "data".to_owned(), |kind| kind.to_string()),
                HumanBytes(partition.range.start()).to_string(),
                HumanBytes(partition.range.len()).to_string(),
                becomes(disk, partition.number),
            ]);
        }
    }
    table.to_string()
}

/// What happens to a file system besides being restored.
fn becomes(disk: &DiskPlan, number: u32) -> String {
    let sizes = |word: &str, from: u64, to: u64| {
        format!("{word} from {} to {}", HumanBytes(from), HumanBytes(to))
    };
    if let Some(grow) = disk.grow.iter().find(|grow| grow.partition == number) {
        return sizes("grown", grow.from, grow.to);
    }
    let shrink = disk.shrink.iter().find(|shrink| shrink.partition == number);
    shrink.map_or_else(
        || "as it was".to_owned(),
        |shrink| sizes("made smaller", shrink.from, shrink.to),
    )
}

#[cfg(test)]
mod tests {
    use backup::plan::{ReasonCode, Refusal};

    use super::*;

    #[test]
    fn a_refused_plan_names_code_and_reason() {
        let view = PlanView {
            machine: "m".to_owned(),
            machine_name: "lab\u{1b}[31m".to_owned(),
            last_beacon: 100,
            restore_point: "20261125-101010-abcd".to_owned().try_into().unwrap(),
            plan: None,
            refusals: vec![Refusal {
                code: ReasonCode::TooSmall,
                text: "sda is too small".to_owned(),
            }],
            picture: String::new(),
        };
        let text = describe(&view, 160);
        assert!(
            text.contains("Not possible (too-small): sda is too small"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
