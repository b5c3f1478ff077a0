//! Factory images (C5): made by a capture or from a restore point, named, and reset to.

use backup::hardware::Disk;
use backup::identity::{HostName, Identity};
use backup::manifest::{ImageLabel, ImageName, Manifest, RestorePointId, RestorePointKind};
use backup::plan::Choices;
use protocol::api::{self, Action, ApiError, FactoryRequest, JobView, RestorePointView};
use protocol::beacon::AgentState;
use protocol::job::{Job, JobKind, JobReport};
use protocol::upkeep::{GcRequest, PruneRequest, PruneView, RetentionRules};

use super::fake_agent::{Capture, Server, beacon, begin_capture, capture, mac};
use super::{chunks, restore_of, start};
use crate::control_client::ClientError;

fn label(name: &str) -> ImageLabel {
    ImageLabel {
        name: Some(ImageName::try_from(name.to_owned()).unwrap()),
        description: Some("as it left the office".into()),
    }
}

fn image_of(name: &str) -> Action {
    Action::Capture {
        unlock: Vec::new(),
        point_kind: RestorePointKind::Factory,
        image: Some(label(name)),
    }
}

fn reset_to(image: Option<&str>) -> Action {
    Action::Reset {
        image: image.map(str::to_owned),
        choices: Choices::default(),
    }
}

/// The machine takes the job that was ordered for it.
fn taken(server: &Server, machine: u8, action: Action) -> Job {
    server.beacon(&beacon(machine, "boot", AgentState::Working));
    server.order(&mac(machine), action).unwrap();
    let reply = server.beacon(&beacon(machine, "boot", AgentState::Waiting));
    reply.job.unwrap()
}

/// Sends everything but the manifest, which is of the kind and name that are given.
fn sent(server: &Server, job: &Job, kind: RestorePointKind, image: Option<ImageLabel>) -> Vec<u8> {
    let mut capture = Capture::of(job.kind.restore_point(), "host", chunks(3));
    capture.send_chunks(server, &job.id);
    capture.send_list(server, &job.id);
    (capture.manifest.kind, capture.manifest.image) = (kind, image);
    capture.manifest_json()
}

fn succeeded(server: &Server, job: &Job) {
    let summary = vec!["done".to_owned()];
    server.report(&job.id, &JobReport::Succeeded { summary });
}

fn points(server: &Server) -> Vec<RestorePointView> {
    server.operator.get(api::RESTORE_POINTS).unwrap()
}

fn made_from(server: &Server, from: &str, name: &str) -> Result<RestorePointView, ApiError> {
    let request = FactoryRequest {
        from: from.to_owned(),
        image: label(name),
    };
    match server.operator.post(api::FACTORY_IMAGES, &request) {
        Ok(view) => Ok(view),
        Err(ClientError::Refused(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

fn image(server: &Server, name: &str) -> RestorePointId {
    let from = capture(server, 9, chunks(0x20));
    made_from(server, from.as_str(), name).unwrap().id
}

#[test]
fn a_capture_makes_an_image_that_any_machine_is_reset_to_by_its_name() {
    let (_directory, server) = start();
    let job = taken(&server, 1, image_of("Lab"));
    let JobKind::Capture { image, .. } = &job.kind else {
        panic!("{job:?}");
    };
    let manifest = sent(&server, &job, RestorePointKind::Factory, image.clone());
    server.take("POST", &api::publish(&job.id), &manifest);
    succeeded(&server, &job);
    let view = points(&server).pop().unwrap();
    assert!(view.is_factory() && view.image == Some(label("Lab")));

    let job = taken(&server, 2, reset_to(Some("lab")));
    assert_eq!(job.kind.word(), "reset");
    assert_eq!(job.kind.restore_point(), &view.id);
    // It is read as a restore reads, and holds the image as a restore does.
    server.take("GET", &api::restore_point_manifest(&view.id), b"");
    assert!(server.recovery.jobs.restore_of(&view.id).unwrap().is_some());
    succeeded(&server, &job);
    let jobs: Vec<JobView> = server.operator.get(api::JOBS).unwrap();
    let words: Vec<_> = jobs.iter().map(|job| job.kind.word()).collect();
    assert_eq!(words, ["capture", "reset"]);
}

#[test]
fn a_capture_that_sends_another_kind_or_name_than_was_ordered_is_not_published() {
    let (_directory, server) = start();
    let job = taken(&server, 1, image_of("lab"));
    for (kind, image) in [
        (RestorePointKind::Backup, None),
        (RestorePointKind::Factory, Some(label("other"))),
        (RestorePointKind::Factory, None),
    ] {
        let manifest = sent(&server, &job, kind, image);
        let refusal = server.refused("POST", &api::publish(&job.id), &manifest);
        assert_eq!(refusal, (422, "bad-request".into()));
    }
    let job = begin_capture(&server, 2);
    let manifest = sent(&server, &job, RestorePointKind::Factory, None);
    assert_eq!(
        server.refused("POST", &api::publish(&job.id), &manifest).0,
        422
    );
    assert!(points(&server).is_empty());
}

#[test]
fn an_image_made_from_a_restore_point_is_the_same_data_and_outlives_it() {
    let (_directory, server) = start();
    let from = capture(&server, 1, chunks(0x40));
    let before = server.recovery.store.chunks.size();
    let view = made_from(&server, &from.as_str()[..12], "Lab").unwrap();
    assert_ne!(view.id, from);
    assert_eq!(server.recovery.store.chunks.size(), before);
    let points = &server.recovery.store.restore_points;
    let read = |id| Manifest::from_json(&points.manifest(id).unwrap()).unwrap();
    let (old, new) = (read(&from), read(&view.id));
    assert_eq!((old.kind, old.image), (RestorePointKind::Backup, None));
    assert_eq!(new.kind, RestorePointKind::Factory);
    assert_eq!(new.disks, old.disks);

    server.recovery.store.restore_points.forget(&from).unwrap();
    let everything = GcRequest {
        dry_run: false,
        rewrite_below: 100,
    };
    let report = server.recovery.store.collect(&everything, &mut |_| {});
    assert_eq!(report.unwrap().dead_chunks, 0);
    let report = server.recovery.store.verify(100, &mut |_| {}).unwrap();
    assert!(
        report.is_sound() && report.restore_points == 1,
        "{report:?}"
    );
    assert_eq!(points.resolve("LAB", ("", "")).unwrap(), view.id);

    // Nothing but the image held them.
    server
        .recovery
        .store
        .restore_points
        .forget(&view.id)
        .unwrap();
    let report = server.recovery.store.collect(&everything, &mut |_| {});
    assert!(report.unwrap().dead_chunks > 0);
}

#[test]
fn an_image_is_there_again_after_a_start() {
    let (directory, server) = start();
    let id = image(&server, "lab");
    drop(server);
    let server = Server::start(directory.path());
    let found = points(&server)
        .into_iter()
        .find(RestorePointView::is_factory);
    let found = found.unwrap();
    assert_eq!((&found.id, found.image), (&id, Some(label("lab"))));
    let staging = directory.path().join("store/staging");
    assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0);
}

#[test]
fn a_name_is_given_once_to_images_and_to_captures_that_are_to_be_some() {
    let (_directory, server) = start();
    let from = capture(&server, 9, chunks(0x20));
    made_from(&server, from.as_str(), "lab").unwrap();
    let refused = made_from(&server, from.as_str(), "LAB").unwrap_err();
    assert_eq!(refused.code, "conflict");
    assert!(refused.message.contains("`LAB` is taken"), "{refused}");
    server.beacon(&beacon(1, "boot", AgentState::Working));
    let refused = server.order(&mac(1), image_of("lab")).unwrap_err();
    assert_eq!(refused.code, "conflict");
    // A capture that waits has its name already; one that is taken back gives it back.
    let job = server.order(&mac(1), image_of("office")).unwrap();
    let refused = made_from(&server, from.as_str(), "Office").unwrap_err();
    assert!(refused.message.contains(&job.id), "{refused}");
    let cancel = api::cancel_job(&job.id);
    let _: JobView = server.operator.post(&cancel, &()).unwrap();
    made_from(&server, from.as_str(), "office").unwrap();
}

#[test]
fn what_no_image_can_have_is_refused() {
    let (_directory, server) = start();
    let from = capture(&server, 9, chunks(0x20));
    let order = |label: serde_json::Value| {
        let request = serde_json::json!({ "from": from.as_str(), "image": label });
        let answer = server
            .operator
            .post::<RestorePointView>(api::FACTORY_IMAGES, &request);
        match answer {
            Err(ClientError::Refused(error)) => error.code,
            other => panic!("{other:?}"),
        }
    };
    for name in ["", "latest", "2026", "a/b", "a:b"] {
        assert_eq!(order(serde_json::json!({ "name": name })), "bad-request");
    }
    for text in ["", "two\nlines", &"x".repeat(501)] {
        let label = serde_json::json!({ "description": text });
        assert_eq!(order(label), "bad-request");
    }
    let named_backup = Action::Capture {
        unlock: Vec::new(),
        point_kind: RestorePointKind::Backup,
        image: Some(label("lab")),
    };
    let refused = server.order(&mac(9), named_backup).unwrap_err();
    assert_eq!(refused.code, "bad-request");
    assert_eq!(
        made_from(&server, "2030", "lab").unwrap_err().code,
        "not-found"
    );
    assert_eq!(points(&server).len(), 1);
}

#[test]
fn reset_and_restore_refuse_each_others_restore_points() {
    let (_directory, server) = start();
    let backup = capture(&server, 1, chunks(1));
    let no_image = server.order(&mac(1), reset_to(None)).unwrap_err();
    assert_eq!(no_image.code, "not-found");
    let refused = server.order(&mac(1), reset_to(Some(backup.as_str())));
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, "wrong-kind");
    assert!(refused.message.contains("netboot restore"), "{refused}");

    let lab = made_from(&server, backup.as_str(), "lab").unwrap();
    for name in [lab.id.as_str(), "lab"] {
        let refused = server.order(&mac(1), restore_of(name)).unwrap_err();
        assert_eq!(refused.code, "wrong-kind");
        assert!(refused.message.contains("netboot reset"), "{refused}");
    }
    // The image is younger in the list, but it is no backup of this machine.
    let job = server.order(&mac(1), restore_of("latest")).unwrap();
    assert_eq!(job.kind.restore_point(), &backup);
    let busy = server.order(&mac(1), reset_to(None)).unwrap_err();
    assert_eq!(busy.code, "conflict");
    let unknown = server.order("nobody", reset_to(None)).unwrap_err();
    assert_eq!(unknown.code, "not-found");
    let _: JobView = server
        .operator
        .post(&api::cancel_job(&job.id), &())
        .unwrap();

    // The only one needs no name, one of two does.
    let unknown = server.order(&mac(1), reset_to(Some("office"))).unwrap_err();
    assert_eq!(unknown.code, "not-found");
    made_from(&server, backup.as_str(), "office").unwrap();
    let which = server.order(&mac(1), reset_to(None)).unwrap_err();
    assert_eq!(which.code, "ambiguous");
    assert!(
        which.message.contains("lab") && which.message.contains("office"),
        "{which}"
    );
}

#[test]
fn rules_leave_images_alone_until_they_are_told_otherwise() {
    let (_directory, server) = start();
    let old = image(&server, "old");
    let new = made_from(&server, old.as_str(), "new").unwrap().id;
    capture(&server, 9, chunks(0x21));
    let prune = |factory| -> PruneView {
        let request = PruneRequest {
            machine: None,
            rules: Some(RetentionRules {
                keep_last: 1,
                ..RetentionRules::default()
            }),
            factory,
            dry_run: false,
        };
        server
            .operator
            .post(protocol::upkeep::PRUNE, &request)
            .unwrap()
    };
    prune(false);
    let left: Vec<_> = points(&server).into_iter().map(|view| view.id).collect();
    // One of the two backups is gone.
    assert_eq!(left.len(), 3);
    assert!(left.contains(&old) && left.contains(&new));
    prune(true);
    let left = points(&server);
    assert_eq!(left.len(), 2);
    assert!(left.iter().any(|view| view.is_factory()));
    assert!(left.iter().any(|view| !view.is_factory()));
}

#[test]
fn a_reset_makes_a_machine_of_its_own_and_a_restore_does_not() {
    let (_directory, server) = start();
    let image = image(&server, "lab");
    let backup = capture(&server, 9, chunks(0x21));
    let copy_of = |job: &Job| match &job.kind {
        JobKind::Restore { choices, .. } => choices
            .is_copy()
            .then(|| choices.host_name.clone().map(String::from)),
        JobKind::Capture { .. } => panic!("{job:?}"),
    };
    // Nobody has named this one: the image's name and the end of its address.
    let job = taken(&server, 3, reset_to(None));
    let end = mac(3).replace(':', "")[6..].to_owned();
    let name = format!("host-9-{end}");
    assert_eq!(copy_of(&job), Some(Some(name.clone())));
    succeeded(&server, &job);
    // From now on that is what the machine is called, here too.
    let machines: Vec<api::MachineView> = server.operator.get(api::MACHINES).unwrap();
    assert!(machines.iter().any(|machine| machine.name == name));

    // A machine that was captured keeps its own name.
    let job = taken(&server, 9, reset_to(None));
    assert_eq!(copy_of(&job), Some(Some("host-9".to_owned())));
    succeeded(&server, &job);

    let job = taken(&server, 4, restore_of(backup.as_str()));
    assert_eq!(copy_of(&job), None);
    // As it was before there was a choice: older agents take it.
    assert!(!serde_json::to_string(&job).unwrap().contains("identity"));
    succeeded(&server, &job);

    let named = |identity| Choices {
        identity,
        host_name: Some(HostName::try_from("pc-7".to_owned()).unwrap()),
        ..Choices::default()
    };
    let restore = |identity| Action::Restore {
        restore_point: backup.to_string(),
        choices: named(identity),
    };
    let job = taken(&server, 4, restore(Some(Identity::New)));
    assert_eq!(copy_of(&job), Some(Some("pc-7".to_owned())));
    succeeded(&server, &job);
    let refused = server.order(&mac(4), restore(None)).unwrap_err();
    assert!(refused.to_string().contains("pc-7"), "{refused}");

    let mut machine = beacon(4, "boot", AgentState::Working);
    machine.inventory.disks = vec![Disk {
        partitions: Vec::new(),
        name: "vda".into(),
        model: None,
        serial: Some("S1".into()),
        wwn: None,
        size: 1 << 30,
        logical_sector: backup::SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
    }];
    server.beacon(&machine);
    let notes = |point: &RestorePointId| {
        let request = api::PlanRequest {
            machine: mac(4),
            restore_point: point.to_string(),
            choices: Choices::default(),
        };
        let view: api::PlanView = server.operator.post(api::PLANS, &request).unwrap();
        view.plan.unwrap().notes.join(" ")
    };
    assert!(notes(&image).contains("the name pc-7"), "{}", notes(&image));
    assert!(!notes(&backup).contains("identity"));
}
