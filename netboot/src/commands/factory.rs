//! `factory` and `reset`: images to reset machines to.

use std::path::Path;

use backup::manifest::{ImageLabel, RestorePointKind};
use backup::units::HumanBytes;
use protocol::api::{self, Action, FactoryRequest, JobRequest, RestorePointView};

use super::factory_options::{CreateArgs, FactoryCommand, ResetArgs};
use super::options::ListArgs;
use super::table::{Table, clean, local_time};
use super::upkeep::ask_or_do;
use super::{CommandError, keys, print, print_json, start};
use crate::control_client::ControlClient;
use crate::factory::{called, create_from};

pub(super) fn run(
    client: &ControlClient,
    data_directory: &Path,
    command: &FactoryCommand,
) -> Result<(), CommandError> {
    match command {
        FactoryCommand::Create(args) => create(client, data_directory, args),
        FactoryCommand::List(args) => list(client, args),
    }
}

fn create(
    client: &ControlClient,
    data_directory: &Path,
    args: &CreateArgs,
) -> Result<(), CommandError> {
    let image = ImageLabel {
        name: args.name.clone(),
        description: args.description.clone(),
    };
    if let Some(machine) = &args.machine {
        let request = JobRequest {
            machine: machine.clone(),
            action: Action::Capture {
                point_kind: RestorePointKind::Factory,
                image: Some(image).filter(|image| *image != ImageLabel::default()),
                unlock: keys::read(&args.keys.unlock)?,
            },
            afterwards: args.job.then.into(),
        };
        return start::begin(client, &request, &args.job);
    }
    let request = FactoryRequest {
        from: args.from.clone().unwrap_or_default(),
        image,
    };
    let view: RestorePointView = ask_or_do(
        data_directory,
        |client| client.post(api::FACTORY_IMAGES, &request),
        |recovery| create_from(recovery, &request),
    )?;
    if args.job.json {
        return print_json(&view);
    }
    print(&format!(
        "Factory image {} is made from restore point {}: {} of data, nothing new in the store.\n\
         `netboot reset MACHINE --image {}` resets a machine to it.\n",
        called(&view),
        clean(&request.from),
        HumanBytes(view.data_bytes),
        view.image_name()
            .map_or(view.id.as_str(), |name| name.as_str()),
    ))
}

fn list(client: &ControlClient, args: &ListArgs) -> Result<(), CommandError> {
    let mut images: Vec<RestorePointView> = client.get(api::RESTORE_POINTS)?;
    images.retain(RestorePointView::is_factory);
    if args.json {
        return print_json(&images);
    }
    if images.is_empty() {
        return print(
            "There is no factory image yet. Make one with `netboot factory create MACHINE`.\n",
        );
    }
    print(&table(&images))
}

fn table(images: &[RestorePointView]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "ID",
        "MADE ON",
        "CAPTURED",
        "SYSTEM",
        "DATA",
        "STATUS",
        "DESCRIPTION",
    ]);
    for view in images {
        let described = view
            .image
            .as_ref()
            .and_then(|image| image.description.clone());
        table.row(vec![
            view.image_name()
                .map_or_else(|| "-".to_owned(), ToString::to_string),
            view.id.to_string(),
            view.machine_name.clone(),
            local_time(view.captured_at),
            view.system.clone().unwrap_or_else(|| "-".to_owned()),
            HumanBytes(view.data_bytes).to_string(),
            view.status.clone(),
            described.unwrap_or_default(),
        ]);
    }
    let mut text = table.to_string();
    for view in images {
        for warning in &view.warnings {
            text.push_str(&format!("{}: {}\n", called(view), clean(warning)));
        }
    }
    text
}

pub(super) fn reset(client: &ControlClient, args: &ResetArgs) -> Result<(), CommandError> {
    let request = JobRequest {
        machine: args.machine.clone(),
        action: Action::Reset {
            image: args.image.clone(),
            choices: args.choices.choices(),
        },
        afterwards: args.job.then.into(),
    };
    start::begin(client, &request, &args.job)
}
