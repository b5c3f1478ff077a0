//! `next-boot` and `loaders`.

use protocol::api::{
    self, LoaderState, LoaderView, MachineNextBoot, NextBootRequest, NextBootView,
};

use super::lists::escaped;
use super::options::{ListArgs, NextBootArgs};
use super::table::{Table, clean};
use super::{CommandError, print, print_json};
use crate::control_client::ControlClient;

pub(super) fn next_boot(client: &ControlClient, args: &NextBootArgs) -> Result<(), CommandError> {
    let path = api::next_boot(&escaped(&args.machine));
    let view: MachineNextBoot = match args.what {
        None => client.get(&path)?,
        Some(what) => {
            let next_boot = what.next_boot().map(|boots| NextBootView {
                boots,
                always: args.always,
            });
            client.post(&path, &NextBootRequest { next_boot })?
        }
    };
    if args.list.json {
        return print_json(&view);
    }
    print(&sentences(&view))
}

fn sentences(view: &MachineNextBoot) -> String {
    let name = clean(&view.name);
    let mut text = match view.next_boot {
        None => format!("{name} boots as the server decides.\n"),
        Some(next) => format!("{name} boots {}.\n", next.words()),
    };
    if view.has_job {
        let job = match &view.job {
            Some(word) => format!("a {} to do", clean(word)),
            None => "a job".to_owned(),
        };
        text.push_str(&format!(
            "It has {job}: until that is over it boots the recovery environment.\n"
        ));
    }
    text
}

pub(super) fn loaders(client: &ControlClient, args: &ListArgs) -> Result<(), CommandError> {
    let loaders: Vec<LoaderView> = client.get(api::LOADERS)?;
    if args.json {
        return print_json(&loaders);
    }
    let mut table = Table::new(&["FIRMWARE", "ARCH", "BY", "LOADER", "KIND", "STATE"]);
    for loader in &loaders {
        let architectures: Vec<_> = loader.architectures.iter().map(u16::to_string).collect();
        table.row(vec![
            loader.firmware.clone(),
            architectures.join(", "),
            loader.protocol.clone(),
            loader.loader.clone(),
            loader.kind.clone(),
            state(loader),
        ]);
    }
    let mut text = table.to_string();
    text.push_str(
        "The first one of a firmware that is there is served; a machine whose firmware refused it gets \
         the next one.\n",
    );
    print(&text)
}

fn state(loader: &LoaderView) -> String {
    let missing = loader.missing.join(", ");
    match (&loader.server, &loader.proxy) {
        (LoaderState::Missing, _) => format!("missing: {missing}"),
        (LoaderState::Served, LoaderState::Served) => "served".to_owned(),
        (LoaderState::Served, _) => "served; not beside another DHCP server".to_owned(),
        (_, LoaderState::Served) => "served beside another DHCP server".to_owned(),
        (_, _) => "there".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::api::NextBoot;

    #[test]
    fn what_comes_next_is_said_with_what_stands_before_it() {
        let mut view = MachineNextBoot {
            machine: "id".to_owned(),
            name: "reception".to_owned(),
            next_boot: None,
            has_job: false,
            job: None,
        };
        assert_eq!(sentences(&view), "reception boots as the server decides.\n");
        view.next_boot = Some(NextBootView {
            boots: NextBoot::LocalDisk,
            always: false,
        });
        (view.has_job, view.job) = (true, Some("reset".to_owned()));
        assert_eq!(
            sentences(&view),
            "reception boots its local disk, once.\n\
             It has a reset to do: until that is over it boots the recovery environment.\n"
        );
    }
}
