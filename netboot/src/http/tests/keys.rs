//! Keys of encrypted volumes: in memory only, and for the machine of the job.

use std::path::Path;

use protocol::api::{self, Action, JobView};
use protocol::beacon::AgentState;
use protocol::job::{Job, JobKind};
use protocol::unlock::{Secret, VolumeKey, VolumePlace};

use super::fake_agent::{Server, beacon, mac};
use super::{failed, start};

const PASS: &[u8] = b"correct horse battery staple";

fn key(bytes: &[u8]) -> VolumeKey {
    VolumeKey {
        place: VolumePlace {
            disk: "sda".to_owned(),
            partition: Some(2),
        },
        key: Secret::new(bytes.to_vec()),
    }
}

fn capture_with(keys: Vec<VolumeKey>) -> Action {
    Action::Capture {
        image: None,
        point_kind: Default::default(),
        unlock: keys,
    }
}

/// The machine has taken a capture with a key.
fn taken(server: &Server) -> Job {
    server.beacon(&beacon(1, "boot", AgentState::Working));
    server
        .order(&mac(1), capture_with(vec![key(PASS)]))
        .unwrap();
    let reply = server.beacon(&beacon(1, "boot", AgentState::Waiting));
    reply.job.unwrap()
}

/// Whether any file under a folder has the key, as it is or in hexadecimal digits.
fn is_in_a_file(folder: &Path) -> bool {
    let hex: String = PASS.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_in_a_file(&path);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        [PASS, hex.as_bytes()]
            .iter()
            .any(|key| bytes.windows(key.len()).any(|part| part == *key))
    })
}

#[test]
fn the_machine_of_a_running_capture_gets_its_keys_and_nothing_keeps_them() {
    let (directory, server) = start();
    let job = taken(&server);
    let JobKind::Capture { unlock, .. } = &job.kind else {
        panic!("{job:?}");
    };
    assert_eq!(unlock, &[key(PASS).place]);
    let path = api::job_keys(&job.id);
    let answer = server.take("GET", &path, b"");
    let keys: Vec<VolumeKey> = serde_json::from_slice(&answer).unwrap();
    assert_eq!(keys, [key(PASS)]);
    // A machine that starts again in the middle asks again.
    server.take("GET", &path, b"");

    let jobs: Vec<JobView> = server.operator.get(api::JOBS).unwrap();
    let hex = "636f7272656374";
    assert!(!serde_json::to_string(&jobs).unwrap().contains(hex));
    assert!(!is_in_a_file(directory.path()));

    server.report(&job.id, &failed("enough"));
    assert_eq!(
        server.refused("GET", &path, b""),
        (409, "conflict".to_owned())
    );
    assert!(!is_in_a_file(directory.path()));
}

#[test]
fn a_server_that_was_started_again_says_that_the_key_is_needed_again() {
    let (directory, server) = start();
    let job = taken(&server);
    drop(server);
    let server = Server::start(directory.path());
    let path = api::job_keys(&job.id);
    assert_eq!(
        server.refused("GET", &path, b""),
        (409, "key-needed".to_owned())
    );
}

#[test]
fn keys_that_are_none_are_refused_and_another_machine_s_card_gets_none() {
    let (_directory, server) = start();
    server.beacon(&beacon(1, "boot", AgentState::Working));
    for keys in [
        vec![key(b"")],
        vec![key(&[1; 9000])],
        vec![key(PASS), key(PASS)],
    ] {
        let refusal = server.order(&mac(1), capture_with(keys)).unwrap_err();
        assert_eq!(refusal.code, "bad-request");
        assert!(!refusal.message.contains("636f7272656374"), "{refusal}");
    }
    let job = taken(&server);
    let path = api::job_keys(&job.id);
    // The server knows whose address the request comes from.
    let granted = |machine: u8| {
        let card = mac(machine).parse().unwrap();
        let recorder = &server.recovery.recorder;
        recorder.granted(card, std::net::Ipv4Addr::LOCALHOST);
    };
    granted(2);
    assert_eq!(
        server.refused("GET", &path, b""),
        (409, "conflict".to_owned())
    );
    granted(1);
    server.take("GET", &path, b"");
}
