//! The operators' commands as processes, on a server that is one, with a machine that is made up.

#[expect(dead_code, reason = "each test file uses a part of it")]
mod server;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};

use backup::hardware::{Disk, FirmwareKind, Inventory, MachineIdentity};
use protocol::api::{self, JobView, MachineView};
use protocol::beacon::{AgentState, Beacon, BeaconReply};
use protocol::job::{JobReport, JobState};
use server::{Folders, NETBOOT, Server};

struct Bench {
    folders: Folders,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        let folders = Folders::new();
        let server = Server::start(&folders.write_config([0, 0, 0], ""));
        Self { folders, server }
    }

    fn netboot(&self, words: &[&str]) -> Output {
        let mut command = Command::new(NETBOOT);
        command.arg("--data-dir").arg(self.folders.data());
        command.args(words).output().expect("netboot runs")
    }

    /// What a command printed that must go well.
    fn says(&self, words: &[&str]) -> String {
        let output = self.netboot(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Exit code and sentence of a command that must not.
    fn refuses(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = self.netboot(words);
        let said = String::from_utf8(output.stderr).expect("text");
        (output.status.code(), said)
    }

    /// POSTs as a machine does.
    fn post(&self, path: &str, body: &[u8]) -> Vec<u8> {
        self.ask("POST", path, body)
    }

    /// GETs as a machine does.
    fn get(&self, path: &str) -> Vec<u8> {
        self.ask("GET", path, &[])
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.server.http)).expect("the server");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        answer.split_off(end.expect("an HTTP answer") + 4)
    }

    fn beacon(&self, machine: u8, state: AgentState) -> BeaconReply {
        let body = serde_json::to_vec(&beacon(machine, state)).expect("JSON");
        serde_json::from_slice(&self.post(api::BEACON, &body)).expect("a reply")
    }
}

fn beacon(machine: u8, state: AgentState) -> Beacon {
    let mac = format!("02:00:00:00:00:{machine:02x}");
    Beacon {
        agent_version: "0.1.0".into(),
        boot_id: "boot".into(),
        pairing_code: "123456".into(),
        since_link_ms: Some(700),
        boot_mac: Some(mac.clone()),
        state,
        error: None,
        inventory: Inventory {
            identity: MachineIdentity {
                serial: Some(format!("SERIAL-{machine}")),
                product: Some("Model".into()),
                macs: vec![mac],
                ..MachineIdentity::default()
            },
            firmware: FirmwareKind::Uefi,
            architecture: "x86_64".into(),
            disks: vec![Disk {
                name: "sda".into(),
                model: Some("QEMU HARDDISK".into()),
                serial: Some("TARGET01".into()),
                wwn: None,
                size: 8 << 30,
                logical_sector: backup::SectorSize::S512,
                physical_sector: 512,
                removable: false,
                read_only: false,
                partitions: Vec::new(),
            }],
            nics: Vec::new(),
            memory: 1 << 30,
            without_driver: Vec::new(),
        },
    }
}

#[test]
fn lists_are_tables_for_people_and_json_for_programs() {
    let bench = Bench::new();
    assert!(
        bench
            .says(&["machines"])
            .contains("No machine has reported yet")
    );
    bench.beacon(1, AgentState::Working);
    let table = bench.says(&["machines"]);
    assert!(table.starts_with("NAME "), "{table}");
    assert!(table.contains("Model SERIAL-1  working"), "{table}");
    let machines: Vec<MachineView> =
        serde_json::from_str(&bench.says(&["machines", "--json"])).expect("JSON");
    assert_eq!(machines[0].since_link_ms, Some(700));
    assert_eq!(bench.says(&["restore-points", "--json"]), "[]\n");
    assert_eq!(bench.says(&["jobs", "--json"]), "[]\n");
    let timeline = bench.says(&["timeline", "SERIAL-1"]);
    assert!(timeline.contains("700 ms after link"), "{timeline}");
    let picture = bench.folders.data().join("boot.svg");
    let path = picture.to_str().expect("a path");
    bench.says(&["timeline", "SERIAL-1", "--svg", path]);
    let drawn = fs::read_to_string(&picture).expect("a picture");
    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
    let all = bench.says(&["timeline"]);
    assert!(all.contains("02:00:00:00:00:01  Model SERIAL-1"), "{all}");
    let seen: serde_json::Value =
        serde_json::from_str(&bench.says(&["timeline", "--json"])).expect("JSON");
    assert_eq!(seen["machines"][0]["last_stage"], "beacon");
}

#[test]
fn the_latest_of_a_machine_without_restore_points_is_refused_in_words() {
    let bench = Bench::new();
    bench.beacon(1, AgentState::Working);
    let (code, said) = bench.refuses(&["restore", "SERIAL-1", "latest"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("the machine Model SERIAL-1 has no restore point yet"),
        "{said}"
    );
}

#[test]
fn a_job_for_a_machine_that_is_off_waits_and_can_be_taken_back() {
    let bench = Bench::new();
    bench.beacon(1, AgentState::Working);
    let said = bench.says(&["capture", "serial-1"]);
    assert!(
        said.contains("capture of Model SERIAL-1 as restore point 2"),
        "{said}"
    );
    let (code, refusal) = bench.refuses(&["capture", "SERIAL-1"]);
    assert_eq!(code, Some(1));
    assert!(
        refusal.contains("has a capture job that is waiting already"),
        "{refusal}"
    );
    let jobs: Vec<JobView> = serde_json::from_str(&bench.says(&["jobs", "--json"])).expect("JSON");
    let said = bench.says(&["cancel", &jobs[0].id[..8]]);
    assert!(said.contains("nothing was changed"), "{said}");
    assert!(bench.says(&["jobs"]).contains("cancelled"));
}

#[test]
fn a_name_that_is_none_or_several_is_refused() {
    let bench = Bench::new();
    let (code, refusal) = bench.refuses(&["capture", "nobody"]);
    assert!(
        code == Some(1) && refusal.contains("no machine is called `nobody`"),
        "{refusal}"
    );
    bench.beacon(1, AgentState::Working);
    let (code, refusal) = bench.refuses(&["restore", "SERIAL-1", "20260101"]);
    assert!(
        code == Some(1) && refusal.contains("no restore point `20260101`"),
        "{refusal}"
    );
    let (code, _) = bench.refuses(&["restore", "SERIAL-1", "latest", "--disk", "sda"]);
    assert_eq!(code, Some(2));
}

#[test]
fn watching_ends_with_the_jobs_own_end() {
    let bench = Bench::new();
    bench.beacon(1, AgentState::Working);
    let watched = std::thread::scope(|scope| {
        let watch = scope.spawn(|| bench.netboot(&["capture", "SERIAL-1", "--watch", "--json"]));
        // Held until the job is there.
        let job = bench.beacon(1, AgentState::Waiting).job.expect("a job");
        let report = JobReport::Failed {
            reason: "the disk is gone; it was only read".into(),
            code: "disk-error".into(),
        };
        let body = serde_json::to_vec(&report).expect("JSON");
        bench.post(&api::job_report(&job.id), &body);
        watch.join().expect("it ends")
    });
    assert_eq!(watched.status.code(), Some(1));
    let lines = String::from_utf8(watched.stdout).expect("text");
    let last: JobView = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last.state, JobState::Failed);
    assert_eq!(last.error_code.as_deref(), Some("disk-error"));
    let said = String::from_utf8(watched.stderr).expect("text");
    assert!(said.contains("the disk is gone"), "{said}");
}

#[test]
fn commands_without_a_server_say_so_and_verify_needs_none() {
    let bench = Bench::new();
    assert!(bench.says(&["verify"]).contains("All of it is sound."));
    let Bench { folders, server } = bench;
    assert_eq!(server.stop(), Some(0));
    let run = |words: &[&str]| {
        let mut command = Command::new(NETBOOT);
        command.arg("--data-dir").arg(folders.data());
        command.args(words).output().expect("netboot runs")
    };
    assert!(run(&["verify", "--json"]).status.success());
    assert_eq!(run(&["machines"]).status.code(), Some(69));
    let by_config = Command::new(NETBOOT)
        .args(["machines", "--config"])
        .arg(folders.path("netboot.toml"))
        .output();
    assert_eq!(by_config.expect("netboot runs").status.code(), Some(69));
    fs::remove_dir_all(folders.data()).expect("removed");
    assert_eq!(run(&["verify"]).status.code(), Some(66));
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let bench = Bench::new();
    let config = bench.folders.write_config([0, 0, 0], "");
    let output = Command::new(NETBOOT)
        .args(["serve", "--config"])
        .arg(config)
        .output()
        .expect("netboot runs");
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(said.contains("one server at a time"), "{said}");
}

#[test]
fn the_next_boot_is_set_shown_and_taken_back() {
    let bench = Bench::new();
    bench.beacon(1, AgentState::Waiting);
    let machine = "02:00:00:00:00:01";
    let script = |mac: &str| {
        let path = format!("/boot/ipxe?mac={mac}&platform=pcbios");
        String::from_utf8(bench.get(&path)).expect("text")
    };
    assert!(script(machine).contains("sanboot"));
    let said = bench.says(&["next-boot", "SERIAL-1", "recovery"]);
    assert_eq!(
        said,
        "Model SERIAL-1 boots the recovery environment, once.\n"
    );
    // However often it asks.
    for _ in 0..2 {
        assert!(script(machine).contains("netboot.mac=02:00:00:00:00:01"));
    }
    let table = bench.says(&["machines"]);
    assert!(
        table.contains("Model SERIAL-1: next boot: the recovery environment, once"),
        "{table}"
    );
    // The agent reports from there: it was taken.
    let mut again = beacon(1, AgentState::Waiting);
    again.boot_id = "another boot".into();
    bench.post(api::BEACON, &serde_json::to_vec(&again).expect("JSON"));
    assert_eq!(
        bench.says(&["next-boot", "SERIAL-1"]),
        "Model SERIAL-1 boots as the server decides.\n"
    );
    assert!(script(machine).contains("sanboot"));
    // A machine that nobody knows, by its card.
    let stranger = "02-00-00-00-00-09";
    let said = bench.says(&["next-boot", stranger, "menu", "--always", "--json"]);
    let view: api::MachineNextBoot = serde_json::from_str(&said).expect("JSON");
    assert_eq!(view.machine, "02:00:00:00:00:09");
    assert!(script(stranger).contains("choose --timeout 30000 --default recovery"));
    bench.says(&["next-boot", stranger, "default"]);
    assert!(!script(stranger).contains("choose"));
    let (code, said) = bench.refuses(&["next-boot", "nobody", "menu"]);
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn the_loaders_are_listed_with_what_is_missing() {
    let bench = Bench::new();
    let before = bench.says(&["loaders"]);
    assert!(
        before.contains("missing: shimx64.efi, grubx64.efi"),
        "{before}"
    );
    for name in ["shimx64.efi", "grubx64.efi", "snponly.efi"] {
        bench.folders.add_boot_file(name, 10);
    }
    // The folder is read again at most once a second: ask until it was.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let loaders = loop {
        let said = bench.says(&["loaders", "--json"]);
        let all: Vec<api::LoaderView> = serde_json::from_str(&said).expect("JSON");
        let pxe: Vec<_> = all
            .into_iter()
            .filter(|loader| loader.architectures == [7, 9])
            .collect();
        if pxe[0].missing.is_empty() || std::time::Instant::now() > deadline {
            break pxe;
        }
    };
    let states: Vec<_> = loaders
        .iter()
        .map(|loader| (loader.loader.as_str(), loader.server, loader.proxy))
        .collect();
    use api::LoaderState::{Missing, Served, There};
    assert_eq!(
        states,
        [
            ("shimx64.efi", Served, There),
            ("snponly.efi", There, Served),
            ("netboot-x64.efi", Missing, Missing),
        ]
    );
}
