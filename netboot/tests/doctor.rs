//! `netboot doctor` as a process, beside a running server and without one.

#[expect(dead_code, reason = "each test file uses a part of it")]
mod server;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use server::{Folders, NETBOOT, Server};

/// Exit code and findings; the network is not asked.
fn doctor(config: &Path) -> (Option<i32>, Vec<Value>) {
    let mut command = Command::new(NETBOOT);
    command.args(["doctor", "--json", "--no-search", "--config"]);
    let output = command.arg(config).output().expect("netboot runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings").clone();
    (output.status.code(), findings)
}

fn found<'a>(findings: &'a [Value], code: &str, words: &str) -> &'a Value {
    let fits = |finding: &&Value| {
        finding["code"] == code
            && finding["what"]
                .as_str()
                .is_some_and(|what| what.contains(words))
    };
    let all = || format!("{code}, {words}: {findings:#?}");
    findings
        .iter()
        .find(fits)
        .unwrap_or_else(|| panic!("{}", all()))
}

#[test]
fn a_running_server_tells_the_doctor_what_it_is() {
    let folders = Folders::new();
    let config = folders.write_config([0, 0, 0], "");
    let _server = Server::start(&config);
    let (_, findings) = doctor(&config);
    let own = found(&findings, "server", "netboot ");
    assert_eq!(own["level"], "ok");
    let what = own["what"].as_str().expect("a sentence");
    assert!(what.contains("127.0.0.1 as server"), "{what}");
}

#[test]
fn what_is_missing_or_broken_has_a_fix_and_an_exit_code() {
    let folders = Folders::new();
    fs::write(folders.boot().join("vmlinuz"), "<html>not found</html>").expect("a file");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = taken.local_addr().expect("an address").port();
    let config = folders.write_config([0, port, 0], "");
    let (code, findings) = doctor(&config);
    assert_eq!(code, Some(1));
    let own = format!("(process {})", std::process::id());
    for (code, words) in [
        ("boot-file-damaged", "vmlinuz"),
        ("boot-files", "initramfs is not in"),
        ("port", &own),
    ] {
        let finding = found(&findings, code, words);
        assert_eq!(finding["level"], "problem");
        assert!(finding["fix"].is_string(), "{finding}");
    }
}

#[test]
fn a_configuration_that_is_wrong_does_not_stop_the_rest() {
    let folders = Folders::new();
    let config = folders.write_config([0, 0, 0], "nonsense = 1\n");
    let (code, findings) = doctor(&config);
    assert_eq!(code, Some(1));
    assert_eq!(
        found(&findings, "configuration", "nonsense")["level"],
        "problem"
    );
    found(&findings, "clock", "");
}
