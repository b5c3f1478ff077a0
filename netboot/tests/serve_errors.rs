//! A server that cannot start says so in one sentence, with a documented exit code.

#[expect(dead_code, reason = "each test file uses a part of it")]
mod server;

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use server::{Folders, NETBOOT, Server};

/// Exit code and message of a command that must not serve.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().expect("netboot runs");
    let said = String::from_utf8(output.stderr).expect("text");
    let sentences: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("netboot: "))
        .collect();
    assert_eq!(sentences.len(), 1, "one sentence, not:\n{said}");
    (output.status.code(), sentences[0].to_owned())
}

fn serve(config: &std::path::Path) -> Command {
    let mut command = Command::new(NETBOOT);
    command
        .env("RUST_LOG", "error")
        .args(["serve", "--config"])
        .arg(config);
    command
}

#[test]
fn a_wrong_configuration_is_78_and_names_the_line() {
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "[boot]\nunknown_machine = \"recovery\"\n");
    let (code, said) = refused(serve(&config));
    assert_eq!(code, Some(78));
    assert!(
        said.contains("netboot.toml line 16: unknown field `unknown_machine`"),
        "{said}"
    );
}

#[test]
fn a_configuration_that_is_not_there_is_78() {
    let (code, said) = refused(serve(std::path::Path::new("/nonexistent/netboot.toml")));
    assert_eq!(code, Some(78));
    assert_eq!(
        said,
        "netboot: the configuration /nonexistent/netboot.toml cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn no_network_at_all_is_78_and_says_what_to_write() {
    let folders = Folders::new();
    let mut command = Command::new(NETBOOT);
    command.arg("serve").arg("--data-dir").arg(folders.data());
    let (code, said) = refused(command);
    assert_eq!(code, Some(78));
    assert!(said.contains("--interface eth0"), "{said}");
}

#[test]
fn an_interface_without_a_pool_is_78_and_proposes_one() {
    let folders = Folders::new();
    let mut command = Command::new(NETBOOT);
    command
        .args(["serve", "--interface", "lo", "--data-dir"])
        .arg(folders.data());
    let (code, said) = refused(command);
    assert_eq!(code, Some(78));
    assert!(said.contains("such as --pool 127."), "{said}");
}

#[test]
fn an_interface_that_is_not_there_is_78_and_names_those_that_are() {
    let folders = Folders::new();
    let mut command = Command::new(NETBOOT);
    command
        .args(["serve", "--interface", "eth99", "--data-dir"])
        .arg(folders.data());
    let (code, said) = refused(command);
    assert_eq!(code, Some(78));
    assert!(
        said.contains("no network interface eth99; this machine has") && said.contains("lo"),
        "{said}"
    );
}

#[test]
fn a_missing_data_directory_is_66_unless_it_may_be_made() {
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "");
    fs::remove_dir(folders.data()).expect("removed");
    let (code, said) = refused(serve(&config));
    assert_eq!(code, Some(66));
    assert!(
        said.contains(&format!(
            "the data directory {} does not exist",
            folders.data().display()
        )),
        "{said}"
    );
    let mut command = serve(&config);
    command.arg("--create");
    assert_eq!(Server::start_command(command).stop(), Some(0));
    assert!(folders.data().is_dir());
}

#[test]
fn a_missing_boot_folder_is_66() {
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "");
    fs::remove_dir(folders.boot()).expect("removed");
    let (code, said) = refused(serve(&config));
    assert_eq!(code, Some(66));
    assert!(said.contains("the folder of boot files"), "{said}");
}

#[test]
fn a_taken_port_is_69_and_names_port_protocol_and_process() {
    let folders = Folders::new();
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let tcp_port = tcp.local_addr().expect("an address").port();
    let udp_port = udp.local_addr().expect("an address").port();
    for (ports, transport, port) in [
        ([0, 0, tcp_port], "TCP", tcp_port),
        ([0, udp_port, 0], "UDP", udp_port),
        ([udp_port, 0, 0], "UDP", udp_port),
    ] {
        let (code, said) = refused(serve(&folders.write_config(ports, "")));
        assert_eq!(code, Some(69));
        let expected = format!("{transport} port {port} on 127.0.0.1 is taken by ");
        assert!(said.contains(&expected), "{said}");
        assert!(
            said.contains(&format!("(process {})", std::process::id())),
            "{said}"
        );
    }
}

#[test]
fn a_second_server_on_the_data_directory_is_69() {
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "");
    let _first = Server::start(&config);
    let (code, said) = refused(serve(&config));
    assert_eq!(code, Some(69), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_77() {
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "");
    fs::set_permissions(folders.data(), fs::Permissions::from_mode(0o500)).expect("read only");
    let Some(command) = without_rights(serve(&config), &folders) else {
        return;
    };
    let (code, said) = refused(command);
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("cannot be written"), "{said}");
}

#[test]
fn a_port_that_needs_root_is_77() {
    let first =
        fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim() != "1024" {
        eprintln!(
            "skipped: this system lets anyone open ports from {}",
            first.trim()
        );
        return;
    }
    let folders = Folders::new();
    let config = folders.write_config([0, 0, 81], "");
    fs::set_permissions(folders.data(), fs::Permissions::from_mode(0o777)).expect("anyone may");
    let Some(command) = without_rights(serve(&config), &folders) else {
        return;
    };
    let (code, said) = refused(command);
    assert_eq!(code, Some(77), "{said}");
    assert!(
        said.contains("TCP port 81 on 127.0.0.1") && said.contains("CAP_NET_BIND_SERVICE"),
        "{said}"
    );
}

/// The command as a user who is not root. `None`, and says so, when that user cannot run it.
fn without_rights(mut command: Command, folders: &Folders) -> Option<Command> {
    const NOBODY: u32 = 65534;
    fs::set_permissions(folders.path(""), fs::Permissions::from_mode(0o755)).expect("open to all");
    let as_root =
        fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if as_root {
        command.uid(NOBODY).gid(NOBODY);
        let runs = Command::new(NETBOOT)
            .arg("--version")
            .uid(NOBODY)
            .gid(NOBODY)
            .output();
        if !runs.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: the user nobody cannot run {NETBOOT}");
            return None;
        }
    }
    Some(command)
}

#[test]
fn a_check_opens_nothing_and_ends_well() {
    let folders = Folders::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let mut command = serve(&folders.write_config([0, 0, port], ""));
    command.arg("--check");
    assert_eq!(
        refused(command),
        (Some(0), "netboot: the configuration is right".into())
    );
}
