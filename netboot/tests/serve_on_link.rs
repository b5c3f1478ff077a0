//! The server's real sockets on a real link: two network namespaces and a veth pair between them.
//! Broadcasts come in on an interface, and clients without an address are reached by raw frames.

#[expect(dead_code, reason = "each test file uses a part of it")]
mod server;

use std::{fs, process::Command};

use server::{Folders, NETBOOT, Server, has_program};

/// Two namespaces joined by a cable; both go when this is dropped.
struct Link {
    server: String,
    client: String,
}

impl Link {
    /// `None`, and says why, where namespaces cannot be made.
    fn new() -> Option<Self> {
        if !has_program("ip") || !has_program("busybox") {
            return None;
        }
        let link = Self {
            server: format!("netboot-s{}", std::process::id()),
            client: format!("netboot-c{}", std::process::id()),
        };
        for name in [&link.server, &link.client] {
            let made = Command::new("ip")
                .args(["netns", "add", name])
                .output()
                .expect("ip runs");
            if !made.status.success() {
                let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
                eprintln!("skipped: network namespaces cannot be made here: {why}");
                return None;
            }
        }
        ip(&[
            "link",
            "add",
            "boot0",
            "netns",
            &link.server,
            "type",
            "veth",
            "peer",
            "name",
            "card0",
            "netns",
            &link.client,
        ]);
        ip(&[
            "-n",
            &link.server,
            "address",
            "add",
            "10.78.0.1/24",
            "dev",
            "boot0",
        ]);
        ip(&["-n", &link.server, "link", "set", "boot0", "up"]);
        ip(&["-n", &link.client, "link", "set", "card0", "up"]);
        Some(link)
    }

    fn on_server(&self, program: &str) -> Command {
        within(&self.server, program)
    }

    fn on_client(&self, program: &str) -> Command {
        within(&self.client, program)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            // One that was never made cannot be removed.
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().expect("ip runs");
    assert!(
        output.status.success(),
        "ip {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

#[test]
fn a_client_on_the_link_gets_an_address_with_and_without_broadcast() {
    let Some(link) = Link::new() else {
        return;
    };
    let folders = Folders::new();
    let bytes = folders.add_boot_file("vmlinuz", 100_000);
    let mut serve = link.on_server(NETBOOT);
    serve.args([
        "serve",
        "--interface",
        "boot0",
        "--pool",
        "10.78.0.100-10.78.0.110",
    ]);
    serve
        .arg("--data-dir")
        .arg(folders.data())
        .arg("--boot-files")
        .arg(folders.boot());
    let server = Server::start_command(serve);
    assert_eq!((server.dhcp, server.tftp, server.http), (67, 69, 8080));

    // Without -B the answers come to an address that the client does not have yet.
    for broadcast in [None, Some("-B")] {
        let mut client = link.on_client("busybox");
        client.args([
            "udhcpc",
            "-i",
            "card0",
            "-f",
            "-n",
            "-q",
            "-t",
            "5",
            "-T",
            "2",
            "-s",
            "/bin/true",
        ]);
        client.args(broadcast);
        let output = client.output().expect("udhcpc runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("lease of 10.78.0.100 obtained from 10.78.0.1"),
            "{said}"
        );
    }

    ip(&[
        "-n",
        &link.client,
        "address",
        "add",
        "10.78.0.100/24",
        "dev",
        "card0",
    ]);
    let target = folders.path("fetched");
    let mut tftp = link.on_client("busybox");
    tftp.args(["tftp", "-g", "-b", "1468", "-r", "vmlinuz", "-l"])
        .arg(&target)
        .arg("10.78.0.1");
    let output = tftp.output().expect("tftp runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(fs::read(&target).expect("fetched") == bytes);
    let mut wget = link.on_client("busybox");
    wget.args(["wget", "-q", "-O"])
        .arg(&target)
        .arg("http://10.78.0.1:8080/boot/vmlinuz");
    assert!(wget.status().expect("wget runs").success());
    assert!(fs::read(&target).expect("fetched") == bytes);
}
