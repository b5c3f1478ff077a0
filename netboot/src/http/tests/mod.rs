//! Both APIs over real sockets, with an agent and an operator that are made up.

mod factory;
mod fake_agent;
mod keys;

use backup::Digest;
use backup::chunk::RecordHeader;
use backup::hardware::{Disk, Nic};
use backup::manifest::RestorePointId;
use backup::plan::Choices;
use protocol::api::{self, Action, MachineView, RestorePointView};
use protocol::beacon::{AgentState, BeaconReply};
use protocol::job::{JobKind, JobReport, JobState};
use protocol::progress::{Progress, Stage};

use self::fake_agent::{Capture, Server, beacon, begin_capture, capture, mac};
use crate::boot_policy::{MachineDirectory, MachineState};
use crate::control_client::ClientError;
use crate::store::record::record_of;

fn start() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    (directory, server)
}

fn restore_of(id: &str) -> Action {
    Action::Restore {
        restore_point: id.to_owned(),
        choices: Choices::default(),
    }
}

fn failed(reason: &str) -> JobReport {
    JobReport::Failed {
        reason: reason.into(),
        code: "internal".into(),
    }
}

fn chunks(seed: u8) -> Vec<Vec<u8>> {
    (0..20u8)
        .map(|n| vec![seed ^ n; 4096 * (1 + usize::from(n))])
        .collect()
}

#[test]
fn what_was_captured_is_fetched_in_the_order_asked_for() {
    let (_directory, server) = start();
    let id = capture(&server, 1, chunks(0x40));
    let points: Vec<RestorePointView> = server.operator.get(api::RESTORE_POINTS).unwrap();
    assert_eq!((points.len(), &points[0].id), (1, &id));
    assert_eq!(points[0].machine_name, "host-1");
    assert_eq!(points[0].system.as_deref(), Some("Debian GNU/Linux 12"));
    assert!(points[0].stored_bytes > 0 && points[0].status == "successful");

    server.beacon(&beacon(2, "bare", AgentState::Waiting));
    let job = server.order(&mac(2), restore_of(id.as_str())).unwrap();
    assert_eq!(job.state, JobState::Waiting);
    let got = server
        .beacon(&beacon(2, "bare", AgentState::Waiting))
        .job
        .unwrap();
    assert_eq!(
        (got.id.as_str(), got.kind.restore_point()),
        (job.id.as_str(), &id)
    );

    let manifest = server.take("GET", &api::restore_point_manifest(&id), b"");
    let manifest = backup::manifest::Manifest::from_json(&manifest).unwrap();
    let content = &manifest.disks[0].regions[0].content;
    let list = server.take("GET", &api::restore_point_list(&id, &content.digest), b"");
    assert_eq!(Digest::of(&list), content.digest);
    let mut wanted = chunks(0x40);
    wanted.reverse();
    wanted.push(wanted[3].clone());
    let digests: Vec<u8> = wanted
        .iter()
        .flat_map(|plain| *Digest::of(plain).as_bytes())
        .collect();
    let mut answer = server.take("POST", api::FETCH_CHUNKS, &digests);
    for plain in &wanted {
        let header = RecordHeader::decode(answer.first_chunk().unwrap()).unwrap();
        assert_eq!(header.digest, Digest::of(plain));
        let end = RecordHeader::LEN + header.stored_len as usize;
        let frame = &answer[RecordHeader::LEN..end];
        assert_eq!(
            &zstd::bulk::decompress(frame, header.plain_len as usize).unwrap(),
            plain
        );
        answer.drain(..end);
    }
    assert!(answer.is_empty());
}

#[test]
fn a_plan_says_what_a_restore_would_do_and_starts_nothing() {
    let (_directory, server) = start();
    let id = capture(&server, 1, chunks(7));
    let mut bare = beacon(2, "bare", AgentState::Waiting);
    bare.inventory.disks = vec![Disk {
        name: "vda".into(),
        model: None,
        serial: Some("S1".into()),
        wwn: None,
        size: 1 << 30,
        logical_sector: backup::SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    }];
    server.beacon(&bare);
    let ask = |choices: Choices| {
        let request = api::PlanRequest {
            machine: mac(2),
            restore_point: id.to_string(),
            choices,
        };
        server.operator.post::<api::PlanView>(api::PLANS, &request)
    };
    let jobs = || server.operator.get::<Vec<api::JobView>>(api::JOBS).unwrap();
    let before = jobs().len();
    let view = ask(Choices::default()).unwrap();
    let plan = view.plan.unwrap();
    assert_eq!(plan.disks[0].target.name, "vda");
    assert!(
        view.refusals.is_empty() && view.picture.contains("vda"),
        "{}",
        view.picture
    );
    let elsewhere = Choices {
        disks: vec![backup::plan::DiskChoice {
            source: 0,
            target: "sdz".into(),
        }],
        ..Choices::default()
    };
    let refused = ask(elsewhere).unwrap();
    assert_eq!(
        refused.refusals[0].code,
        backup::plan::ReasonCode::DiskNotFound
    );
    assert!(refused.plan.is_none() && refused.picture.is_empty());
    assert_eq!(jobs().len(), before);
    let nobody = api::PlanRequest {
        machine: "nobody".into(),
        restore_point: id.to_string(),
        choices: Choices::default(),
    };
    assert!(
        server
            .operator
            .post::<api::PlanView>(api::PLANS, &nobody)
            .is_err()
    );
}

#[test]
fn nothing_is_visible_before_the_manifest_and_everything_after() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let id = job.kind.restore_point().clone();
    let capture = Capture::of(&id, "host", chunks(1));
    let visible = || {
        !server
            .operator
            .get::<Vec<RestorePointView>>(api::RESTORE_POINTS)
            .unwrap()
            .is_empty()
    };
    capture.send_chunks(&server, &job.id);
    assert!(!visible());
    capture.send_list(&server, &job.id);
    assert!(!visible());
    capture.publish(&server, &job.id);
    assert!(visible());
    // The answer was lost; the agent asks again.
    capture.publish(&server, &job.id);
    let mut other = capture.manifest.clone();
    other.captured_at += 1;
    let body = serde_json::to_vec(&other).unwrap();
    let refusal = server.refused("POST", &api::publish(&job.id), &body);
    assert_eq!(refusal, (409, "conflict".into()));
}

#[test]
fn uploads_that_are_not_sound_are_refused_and_leave_nothing() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1).id;
    let path = api::upload_chunks(&job);
    let good = record_of(b"good");
    let mut wrong_digest = good.clone();
    wrong_digest[0] ^= 1;
    let mut too_long = good.clone();
    too_long[32..36].copy_from_slice(&(backup::chunk::MAX_CHUNK_LEN + 1).to_le_bytes());
    let mut other_length = good.clone();
    other_length[32] += 1;
    let cut_short = good[..good.len() - 1].to_vec();
    for bad in [wrong_digest, too_long, other_length, cut_short, vec![0; 39]] {
        let upload = [record_of(b"before"), bad].concat();
        assert_eq!(
            server.refused("POST", &path, &upload),
            (422, "damaged-chunk".into())
        );
    }
    assert_eq!(server.recovery.store.chunks.size(), (0, 0));
    let oversize = vec![0; api::MAX_UPLOAD + 1];
    assert_eq!(server.refused("POST", &path, &oversize).0, 413);
    let digests = vec![0; (api::MAX_DIGESTS + 1) * Digest::LEN];
    assert_eq!(
        server
            .refused("POST", &api::missing_chunks(&job), &digests)
            .0,
        413
    );
    assert_eq!(
        server
            .refused("POST", &api::missing_chunks(&job), &[0; 33])
            .0,
        400
    );
    assert_eq!(server.take("POST", &path, b""), b"");
}

#[test]
fn a_capture_that_lacks_something_is_not_published_until_it_is_there() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let capture = Capture::of(job.kind.restore_point(), "host", chunks(2));
    let publish = api::publish(&job.id);
    let manifest = capture.manifest_json();
    assert_eq!(
        server.refused("POST", &publish, &manifest),
        (422, "bad-request".into())
    );
    capture.send_list(&server, &job.id);
    assert_eq!(
        server.refused("POST", &publish, &manifest),
        (409, "missing-chunk".into())
    );
    capture.send_chunks(&server, &job.id);

    let mut other_id = capture.manifest.clone();
    other_id.id = "another".to_owned().try_into().unwrap();
    let mut other_count = capture.manifest.clone();
    other_count.disks[0].regions[0].content.data_bytes -= 1;
    let mut other_region = capture.manifest.clone();
    let disk = &mut other_region.disks[0];
    disk.regions[0].range = backup::ByteRange::new(0, disk.size - 512).unwrap();
    let content = &mut disk.regions[0].content;
    content.data_bytes -= 512;
    for bad in [&other_id, &other_count, &other_region] {
        let body = serde_json::to_vec(bad).unwrap();
        assert_eq!(
            server.refused("POST", &publish, &body),
            (422, "bad-request".into())
        );
    }
    assert_eq!(server.refused("POST", &publish, b"{}").0, 422);
    capture.publish(&server, &job.id);
}

#[test]
fn a_chunk_in_the_place_of_a_longer_one_is_refused() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let short = vec![7; 512];
    let mut capture = Capture::of(job.kind.restore_point(), "host", vec![vec![1; 1024]]);
    let place = backup::chunk::Chunk {
        range: backup::ByteRange::new(0, 1024).unwrap(),
        content: backup::chunk::Content::Data(Digest::of(&short)),
    };
    capture.list = backup::chunk::ChunkList::new(vec![place], 1024).unwrap();
    capture.manifest.disks[0].regions[0].content.digest = Digest::of(&capture.list.encode());
    server.take("POST", &api::upload_chunks(&job.id), &record_of(&short));
    capture.send_list(&server, &job.id);
    let refusal = server.refused("POST", &api::publish(&job.id), &capture.manifest_json());
    assert_eq!(refusal, (422, "bad-request".into()));
}

#[test]
fn a_list_comes_in_parts_that_may_be_repeated_but_not_skipped() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let path = api::list_part(&job.id, "0-7");
    let put = |offset: usize, bytes: &[u8]| {
        server
            .send("PUT", &format!("{path}?offset={offset}"), bytes)
            .0
    };
    let finish = |length: u64, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        let body = serde_json::to_vec(&api::FinishList { length, digest }).unwrap();
        server.send("POST", &path, &body).0
    };
    assert_eq!(finish(3, b"abc"), 400);
    assert_eq!(put(1, b"b"), 409);
    assert_eq!(put(0, b"abc"), 204);
    assert_eq!(put(3, b"def"), 204);
    // The answer was lost; then the same with half of the part taken.
    assert_eq!((put(3, b"def"), put(4, b"efgh")), (204, 204));
    assert_eq!((put(9, b"x"), put(4, b"EFGH")), (409, 409));
    assert_eq!((finish(7, b"abcdefgh"), finish(8, b"other")), (400, 400));
    assert_eq!((finish(8, b"abcdefgh"), finish(8, b"abcdefgh")), (204, 204));
    // One that is begun anew forgets what was sent.
    assert_eq!((put(0, b"a long one"), put(0, b"x")), (204, 204));
    assert_eq!(finish(1, b"x"), 204);
    let refusal = server.refused("PUT", &format!("{path}?offset=5"), b"y");
    assert_eq!(refusal, (409, "conflict".into()));
    let far = format!("{path}?offset={}", u64::MAX);
    assert_eq!(server.refused("PUT", &far, b"y").0, 400);
    assert_eq!(server.refused("PUT", &path, b"no offset").0, 400);
    let long = vec![0; api::MAX_UPLOAD + 1];
    assert_eq!(
        server.refused("PUT", &format!("{path}?offset=0"), &long).0,
        413
    );
}

#[test]
fn a_path_that_names_no_list_or_restore_point_is_refused() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    for name in ["..%2f..%2fx", "0", "00-1", "a-b"] {
        let path = format!("/api/v1/jobs/{}/chunk-lists/{name}?offset=0", job.id);
        assert_eq!(server.refused("PUT", &path, b"b").0, 400);
    }
    assert_eq!(
        server
            .refused("GET", "/api/v1/restore-points/..%2f/manifest", b"")
            .0,
        400
    );
    assert_eq!(
        server
            .refused("GET", "/api/v1/restore-points/%ff/manifest", b"")
            .0,
        400
    );
    assert_eq!(
        server.refused("GET", "/api/v1/nothing", b""),
        (404, "not-found".into())
    );
    assert_eq!(server.refused("GET", api::BEACON, b"").0, 405);
    assert_eq!(server.refused("POST", api::BEACON, b"{").0, 400);
}

#[test]
fn only_the_running_job_of_the_right_kind_opens_a_path() {
    let (_directory, server) = start();
    let id = capture(&server, 1, chunks(3));
    let digest = *Digest::of(&chunks(3)[0]).as_bytes();
    // No restore runs.
    assert_eq!(server.refused("POST", api::FETCH_CHUNKS, &digest).0, 409);
    assert_eq!(
        server
            .refused("GET", &api::restore_point_manifest(&id), b"")
            .0,
        409
    );
    let ended = &server.operator.get::<Vec<api::JobView>>(api::JOBS).unwrap()[0].id;
    assert_eq!(
        server.refused("POST", &api::upload_chunks(ended), b"").0,
        409
    );
    assert_eq!(
        server
            .refused("POST", &api::upload_chunks("nobody's"), b"")
            .0,
        404
    );
    let restore = server.order(&mac(1), restore_of("latest")).unwrap();
    // It waits.
    assert_eq!(
        server
            .refused("GET", &api::restore_point_manifest(&id), b"")
            .0,
        409
    );
    server.beacon(&beacon(1, "boot", AgentState::Waiting));
    server.take("GET", &api::restore_point_manifest(&id), b"");
    server.take("POST", api::FETCH_CHUNKS, &digest);
    for path in [
        api::upload_chunks(&restore.id),
        api::missing_chunks(&restore.id),
        api::publish(&restore.id),
        api::list_part(&restore.id, "0-0") + "?offset=0",
    ] {
        let method = if path.contains("chunk-lists") {
            "PUT"
        } else {
            "POST"
        };
        assert_eq!(server.refused(method, &path, b"").0, 409, "{path}");
    }
    let unknown = Digest::of(b"never stored");
    let refusal = server.refused("POST", api::FETCH_CHUNKS, unknown.as_bytes());
    assert_eq!(refusal, (409, "missing-chunk".into()));
}

#[test]
fn two_captures_at_once_store_what_they_share_once() {
    let (_directory, server) = start();
    let (one, two) = (begin_capture(&server, 1), begin_capture(&server, 2));
    let shared = chunks(4);
    let captures = [
        Capture::of(one.kind.restore_point(), "one", shared.clone()),
        Capture::of(
            two.kind.restore_point(),
            "two",
            [shared.clone(), chunks(0xf0)].concat(),
        ),
    ];
    std::thread::scope(|scope| {
        for (job, capture) in [&one, &two].into_iter().zip(&captures) {
            let server = &server;
            scope.spawn(move || {
                capture.send_chunks(server, &job.id);
                capture.send_list(server, &job.id);
                capture.publish(server, &job.id);
            });
        }
    });
    let distinct: std::collections::HashSet<_> = captures
        .iter()
        .flat_map(|capture| &capture.chunks)
        .collect();
    assert_eq!(server.recovery.store.chunks.size().0, distinct.len() as u64);
    let report = server.recovery.store.verify(100, &mut |_| {}).unwrap();
    assert!(
        report.is_sound() && report.restore_points == 2,
        "{report:?}"
    );
}

#[test]
fn a_second_capture_of_the_same_disk_sends_nothing() {
    let (_directory, server) = start();
    capture(&server, 1, chunks(5));
    let job = begin_capture(&server, 1);
    let again = Capture::of(job.kind.restore_point(), "host", chunks(5));
    assert_eq!(again.send_chunks(&server, &job.id), 0);
}

#[test]
fn an_ambiguous_or_unknown_name_is_refused_with_the_candidates() {
    let (_directory, server) = start();
    for machine in [1, 2] {
        server.beacon(&beacon(machine, "boot", AgentState::Waiting));
    }
    let machines: Vec<MachineView> = server.operator.get(api::MACHINES).unwrap();
    for machine in &machines {
        server
            .recovery
            .machines
            .set_host_name(&machine.id, "twin")
            .unwrap();
    }
    let refusal = server
        .order(
            "twin",
            Action::Capture {
                point_kind: Default::default(),
                image: None,
                unlock: Vec::new(),
            },
        )
        .unwrap_err();
    assert_eq!(refusal.code, "ambiguous");
    for machine in &machines {
        assert!(refusal.message.contains(&machine.id), "{refusal}");
    }
    assert_eq!(
        server
            .order(
                "nobody",
                Action::Capture {
                    point_kind: Default::default(),
                    image: None,
                    unlock: Vec::new(),
                }
            )
            .unwrap_err()
            .code,
        "not-found"
    );
    assert_eq!(
        server
            .order(
                "02",
                Action::Capture {
                    point_kind: Default::default(),
                    image: None,
                    unlock: Vec::new(),
                }
            )
            .unwrap_err()
            .code,
        "not-found"
    );
    let unknown = server.order(&mac(1), restore_of("2026")).unwrap_err();
    assert_eq!(unknown.code, "not-found");
    assert!(server.order(&mac(1), restore_of("latest")).is_err());
    server
        .order(
            &machines[0].id[..13],
            Action::Capture {
                point_kind: Default::default(),
                image: None,
                unlock: Vec::new(),
            },
        )
        .unwrap();
}

#[test]
fn a_machine_with_an_unfinished_job_gets_no_second_one() {
    let (_directory, server) = start();
    begin_capture(&server, 1);
    let refusal = server
        .order(
            &mac(1),
            Action::Capture {
                point_kind: Default::default(),
                image: None,
                unlock: Vec::new(),
            },
        )
        .unwrap_err();
    assert_eq!(refusal.code, "conflict");
    assert!(refusal.message.contains("running"), "{refusal}");
}

#[test]
fn a_machine_that_restarts_in_the_middle_gets_the_same_job_again() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let still = server.beacon(&beacon(1, "boot", AgentState::Working));
    assert_eq!(still.job, None);
    let again = server.beacon(&beacon(1, "another boot", AgentState::Waiting));
    assert_eq!(again.job, Some(job.clone()));
    assert_eq!(server.job(&job.id).state, JobState::Running);
    assert!(!server.report(&job.id, &failed("the disk is gone")));
    let after = server.beacon(&beacon(1, "third boot", AgentState::Waiting));
    assert_eq!(after.job, None);
    let job = server.job(&job.id);
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.error.as_deref(), Some("the disk is gone"));
}

#[test]
fn a_machine_that_restarts_after_its_commit_has_succeeded() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let capture = Capture::of(job.kind.restore_point(), "host", chunks(6));
    capture.send_chunks(&server, &job.id);
    capture.send_list(&server, &job.id);
    capture.publish(&server, &job.id);
    let again = server.beacon(&beacon(1, "another boot", AgentState::Waiting));
    assert_eq!(again.job, None);
    assert_eq!(server.job(&job.id).state, JobState::Succeeded);
}

#[test]
fn jobs_uploads_and_restore_points_survive_a_server_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let first = capture(&server, 1, chunks(7));
    let job = begin_capture(&server, 2);
    let going_on = Capture::of(job.kind.restore_point(), "second", chunks(8));
    going_on.send_chunks(&server, &job.id);
    going_on.send_list(&server, &job.id);
    drop(server);

    let server = Server::start(directory.path());
    assert_eq!(server.job(&job.id).state, JobState::Running);
    assert_eq!(going_on.send_chunks(&server, &job.id), 0);
    going_on.publish(&server, &job.id);
    let points: Vec<RestorePointView> = server.operator.get(api::RESTORE_POINTS).unwrap();
    assert!(points.len() == 2 && points.iter().any(|point| point.id == first));
    let again = server
        .order("host-1", restore_of(&first.as_str()[..9]))
        .unwrap_err();
    // Both ids begin with the day; the beginning is ambiguous.
    assert_eq!(again.code, "ambiguous");
    server.order("host-1", restore_of(first.as_str())).unwrap();
}

#[test]
fn a_held_beacon_is_answered_as_soon_as_there_is_a_job() {
    let (_directory, server) = start();
    server.beacon(&beacon(1, "boot", AgentState::Waiting));
    let begin = std::time::Instant::now();
    let job = std::thread::scope(|scope| {
        let held = scope.spawn(|| server.beacon(&beacon(1, "boot", AgentState::Waiting)).job);
        server
            .order(
                &mac(1),
                Action::Capture {
                    point_kind: Default::default(),
                    image: None,
                    unlock: Vec::new(),
                },
            )
            .unwrap();
        held.join().unwrap()
    });
    assert!(matches!(job.unwrap().kind, JobKind::Capture { .. }));
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn a_cancelled_job_is_told_at_the_next_report_and_its_uploads_are_refused() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let progress = Progress::of(Stage::Reading);
    assert!(!server.report(&job.id, &JobReport::Progress { progress }));
    assert_eq!(server.job(&job.id).progress, Some(progress));
    let cancel = api::cancel_job(&job.id[..8]);
    let view: api::JobView = server.operator.post(&cancel, &()).unwrap();
    assert_eq!(view.state, JobState::Cancelled);
    assert!(server.report(&job.id, &JobReport::Progress { progress }));
    assert!(server.report(&job.id, &failed("cancelled")));
    assert_eq!(
        server.refused("POST", &api::upload_chunks(&job.id), b"").0,
        409
    );
    assert!(server.operator.post::<api::JobView>(&cancel, &()).is_err());
    assert_eq!(server.job(&job.id).state, JobState::Cancelled);
    server
        .order(
            &mac(1),
            Action::Capture {
                point_kind: Default::default(),
                image: None,
                unlock: Vec::new(),
            },
        )
        .unwrap();
}

#[test]
fn the_boot_policy_sees_jobs() {
    let (_directory, server) = start();
    let mac_address = |machine: u8| mac(machine).parse().unwrap();
    let state = |machine| server.recovery.at_boot(mac_address(machine), None).state;
    assert_eq!(state(1), MachineState::Unknown);
    server.beacon(&beacon(1, "boot", AgentState::Waiting));
    assert_eq!(state(1), MachineState::Idle);
    let job = begin_capture(&server, 1);
    assert_eq!(state(1), MachineState::HasWork);
    server.report(&job.id, &failed("no"));
    assert_eq!(state(1), MachineState::Idle);
}

#[test]
fn the_time_line_shows_the_beacon_and_what_became_of_the_job() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    server.report(&job.id, &failed("the disk is gone."));
    let path = api::timeline("02%3A00%3A00%3A00%3A00%3A01");
    let timeline: serde_json::Value = server.operator.get(&path).unwrap();
    let events = timeline["boots"][0]["events"].as_array().unwrap();
    let kinds: Vec<_> = events.iter().map(|event| &event["fact"]["kind"]).collect();
    assert_eq!(kinds, ["beacon", "job-begins", "job-ended"], "{timeline}");
    let end = format!("failed (job {}): the disk is gone", job.id);
    let text = events[2]["text"].as_str().unwrap();
    assert!(text.ends_with(&end), "{text}");
    assert!(
        server
            .operator
            .get::<serde_json::Value>(&api::timeline("x"))
            .is_err()
    );
}

#[test]
fn names_from_a_machine_cannot_drive_a_terminal() {
    let (_directory, server) = start();
    let mut wild = beacon(1, "boot", AgentState::Failed);
    wild.error = Some("\x1b[2Jgone".into());
    wild.inventory.identity.serial = Some("S\x07123".into());
    server.beacon(&wild);
    let machines: Vec<MachineView> = server.operator.get(api::MACHINES).unwrap();
    assert_eq!(machines[0].error.as_deref(), Some(" [2Jgone"));
    assert_eq!(machines[0].name, "S 123");
}

#[test]
fn an_inventory_is_bounded_in_every_text_and_every_list() {
    let (_directory, server) = start();
    let mut huge = beacon(1, "boot", AgentState::Waiting);
    let long = || "\x1bx".repeat(300);
    huge.inventory.architecture = long();
    huge.inventory.identity.product = Some(long());
    huge.boot_mac = Some(long());
    huge.inventory.nics = vec![Nic {
        name: long(),
        mac: long(),
        driver: Some(long()),
        link: true,
        address: None,
    }];
    huge.inventory.disks = vec![Disk {
        name: long(),
        model: Some(long()),
        serial: Some(long()),
        wwn: Some(long()),
        size: 1,
        logical_sector: backup::SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    }];
    huge.inventory.without_driver = vec![String::new(); 300];
    huge.inventory.without_driver[0] = long();
    server.beacon(&huge);
    let machines: Vec<MachineView> = server.operator.get(api::MACHINES).unwrap();
    let inventory = &machines[0].inventory;
    let (disk, nic) = (&inventory.disks[0], &inventory.nics[0]);
    let short = " x".repeat(128);
    for text in [
        Some(&inventory.architecture),
        inventory.identity.product.as_ref(),
        Some(&disk.name),
        disk.model.as_ref(),
        disk.serial.as_ref(),
        disk.wwn.as_ref(),
        Some(&nic.name),
        Some(&nic.mac),
        nic.driver.as_ref(),
        inventory.without_driver.first(),
    ] {
        assert_eq!(text, Some(&short));
    }
    assert_eq!(inventory.without_driver.len(), 256);
    let small = Disk {
        model: None,
        wwn: None,
        ..disk.clone()
    };
    huge.inventory.disks = vec![small; 257];
    let body = serde_json::to_vec(&huge).unwrap();
    assert_eq!(server.refused("POST", api::BEACON, &body).0, 400);
    let body = vec![b' '; 256 * 1024 + 1];
    assert_eq!(server.refused("POST", api::BEACON, &body).0, 413);
}

#[test]
fn a_restore_point_that_is_pinned_or_being_restored_is_not_removed() {
    use protocol::upkeep::{self, GcRequest, GcView, PruneRequest, PruneView, RetentionRules};
    let (_directory, server) = start();
    // Made within one second, the greater id counts as the newer one.
    let mut made = [9, 40].map(|number| capture(&server, 1, chunks(number)));
    made.sort();
    let [old, new] = made;
    let operator = &server.operator;
    let forget =
        |id: &RestorePointId| operator.delete::<RestorePointView>(&upkeep::forget(id.as_str()));
    let code = |outcome| match outcome {
        Err(ClientError::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    };
    let pin = upkeep::pin(old.as_str());
    assert!(operator.post::<RestorePointView>(&pin, &()).unwrap().pinned);
    assert_eq!(code(forget(&old)), "conflict");
    assert!(!operator.delete::<RestorePointView>(&pin).unwrap().pinned);
    // A restore that waits for its machine needs it, too.
    let job = server.order(&mac(1), restore_of(old.as_str())).unwrap();
    assert_eq!(code(forget(&old)), "conflict");
    let prune = |rules: Option<RetentionRules>| {
        let request = PruneRequest {
            rules,
            ..PruneRequest::default()
        };
        operator.post::<PruneView>(upkeep::PRUNE, &request)
    };
    assert!(matches!(prune(None), Err(ClientError::Refused(_))));
    let last = RetentionRules {
        keep_last: 1,
        ..RetentionRules::default()
    };
    let view = prune(Some(last)).unwrap();
    assert!(
        view.restore_points.iter().all(|verdict| verdict.keep),
        "{view:?}"
    );
    let cancel = api::cancel_job(&job.id);
    operator.post::<api::JobView>(&cancel, &()).unwrap();
    let view = prune(Some(last)).unwrap();
    assert_eq!(
        view.restore_points.iter().filter(|one| one.keep).count(),
        1,
        "{view:?}"
    );
    let points: Vec<RestorePointView> = operator.get(api::RESTORE_POINTS).unwrap();
    assert!(points.len() == 1 && points[0].id == new);
    let request = GcRequest {
        dry_run: false,
        rewrite_below: 100,
    };
    let mut view: GcView = operator.post(upkeep::COLLECTION, &request).unwrap();
    while view.running {
        std::thread::sleep(std::time::Duration::from_millis(5));
        view = operator.get(upkeep::COLLECTION).unwrap();
    }
    assert!(view.report.unwrap().freed_bytes > 0);
    let sizes: upkeep::StoreView = operator.get(upkeep::STORE).unwrap();
    assert_eq!((sizes.restore_points.len(), sizes.dead_bytes), (1, 0));
}

#[test]
fn a_capture_that_failed_is_in_the_list_with_its_reason() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    server.report(&job.id, &failed("the disk is gone"));
    let points: Vec<RestorePointView> = server.operator.get(api::RESTORE_POINTS).unwrap();
    assert_eq!(points[0].status, "failed");
    assert_eq!(points[0].warnings, ["the disk is gone"]);
    assert_eq!(&points[0].id, job.kind.restore_point());
}

/// Rates of one connection, with debug code: `cargo test -p netboot measure -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn measure_upload_and_fetch() {
    let (_directory, server) = start();
    let job = begin_capture(&server, 1);
    let blocks: Vec<Vec<u8>> = (0..1024u32)
        .map(|n| {
            let seed = n.to_le_bytes();
            (0..128 * 1024 / 64)
                .flat_map(|at: u32| {
                    let digest = Digest::of(&[seed, at.to_le_bytes()].concat());
                    [*digest.as_bytes(), [0; 32]].concat()
                })
                .collect()
        })
        .collect();
    let uploads: Vec<Vec<u8>> = blocks
        .chunks(64)
        .map(|some| some.iter().flat_map(|plain| record_of(plain)).collect())
        .collect();
    let rate = |bytes: usize, begin: std::time::Instant| {
        format!(
            "{:.0} MB/s",
            bytes as f64 / 1e6 / begin.elapsed().as_secs_f64()
        )
    };
    let begin = std::time::Instant::now();
    for upload in &uploads {
        server.take("POST", &api::upload_chunks(&job.id), upload);
    }
    let stored: usize = uploads.iter().map(Vec::len).sum();
    println!("upload: {} of records", rate(stored, begin));
    let begin = std::time::Instant::now();
    server.recovery.store.chunks.seal().unwrap();
    println!("last seal: {:?}", begin.elapsed());
    server.report(&job.id, &failed("measured"));
    let id = capture(&server, 1, chunks(1));
    server.order(&mac(1), restore_of(id.as_str())).unwrap();
    server.beacon(&beacon(1, "boot", AgentState::Waiting));
    let begin = std::time::Instant::now();
    let mut got = 0;
    for some in blocks.chunks(256) {
        let digests: Vec<u8> = some
            .iter()
            .flat_map(|plain| *Digest::of(plain).as_bytes())
            .collect();
        got += server.take("POST", api::FETCH_CHUNKS, &digests).len();
    }
    println!("fetch: {} of records", rate(got, begin));
    let begin = std::time::Instant::now();
    let report = server.recovery.store.verify(100, &mut |_| {}).unwrap();
    println!(
        "verify: {} of records",
        rate(usize::try_from(report.bytes).unwrap(), begin)
    );
}

#[test]
fn a_machine_that_asks_for_its_capture_gets_one_job_and_no_second() {
    let (_directory, server) = start();
    let asks = serde_json::to_vec(&beacon(1, "boot", AgentState::Waiting)).unwrap();
    let reply = server.take("POST", api::CAPTURES, &asks);
    let reply: BeaconReply = serde_json::from_slice(&reply).unwrap();
    let job = reply.job.unwrap();
    assert!(matches!(job.kind, JobKind::Capture { .. }));
    // It runs: what it needs is taken at once.
    server.take("POST", &api::missing_chunks(&job.id), b"");
    assert_eq!(
        server.refused("POST", api::CAPTURES, &asks),
        (409, "conflict".into())
    );
}

#[test]
fn a_running_system_whose_backup_was_killed_is_free_again_after_some_minutes() {
    let (_directory, server) = start();
    let asks = || {
        let body = serde_json::to_vec(&beacon(1, "program", AgentState::Waiting)).unwrap();
        server.send("POST", api::CAPTURES, &body)
    };
    let (status, answer) = asks();
    assert_eq!(status, 200);
    let reply: BeaconReply = serde_json::from_slice(&answer).unwrap();
    let job = reply.job.unwrap();
    let capture = Capture::of(job.kind.restore_point(), "host", chunks(7));
    capture.send_chunks(&server, &job.id);
    capture.send_list(&server, &job.id);
    assert_eq!(asks().0, 409);
    let end = |seconds| {
        let now = crate::state::now() + seconds;
        crate::http::silent_jobs::end(&server.recovery, now).unwrap()
    };
    assert_eq!((end(60), end(301 + 60)), (0, 1));
    let ended = server.job(&job.id);
    assert_eq!(
        (ended.state, ended.error_code.as_deref()),
        (JobState::Failed, Some("interrupted"))
    );
    // What it held is given up, and a program that was only slow is told.
    let everything = protocol::upkeep::GcRequest {
        dry_run: false,
        rewrite_below: 100,
    };
    let report = server.recovery.store.collect(&everything, &mut |_| {});
    assert!(report.unwrap().dead_chunks > 0);
    let refusal = server.refused("POST", &api::upload_chunks(&job.id), b"");
    assert_eq!(refusal, (409, "conflict".into()));
    assert_eq!(asks().0, 200);
}
