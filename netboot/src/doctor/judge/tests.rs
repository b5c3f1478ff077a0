use std::net::Ipv4Addr;

use super::*;
use crate::{
    dhcp::other_servers::OtherServer,
    doctor::{Level, facts::BootFile},
    port_owner::Transport,
    serve::watch::LinkView,
};

const NOW: u64 = 1_800_000_000;

fn file(name: &'static str, signed: Option<bool>) -> BootFile {
    BootFile {
        name,
        damage: None,
        signed,
        made: Some(NOW - 100),
    }
}

/// A server in order that does not run yet.
fn healthy() -> Facts {
    Facts {
        config_error: None,
        server: Server::NotRunning,
        ports: vec![Port {
            service: "DHCP",
            transport: Transport::Udp,
            number: 67,
            holder: None,
        }],
        interfaces: vec![Link {
            name: "eth0".into(),
            present: true,
            up: true,
            carrier: Some(true),
            addresses: vec![Ipv4Addr::new(10, 0, 0, 1)],
            mtu: Some(1500),
            others: Some(Ok(Vec::new())),
            ..Link::default()
        }],
        mode: DhcpMode::Auto,
        tftp_block_size: 1468,
        data_dir: DataDir {
            path: "/srv/netboot".into(),
            present: true,
            not_writable: None,
            free: Some(1 << 40),
            filesystem: Some("ext4".into()),
        },
        boot: BootFolder {
            path: "/srv/netboot/boot".into(),
            unreadable: None,
            unlike_manifest: Vec::new(),
            files: vec![
                file("vmlinuz", None),
                file("initramfs", None),
                file("undionly.kpxe", None),
                file("shimx64.efi", Some(true)),
                file("grubx64.efi", Some(true)),
                file("netboot-x64.efi", Some(false)),
            ],
            program_made: Some(NOW - 200),
        },
        clock: Clock {
            now: NOW,
            hardware: Some(NOW - 3),
        },
        firewall: Some(Vec::new()),
    }
}

fn other(offered: bool, boot_file: Option<&str>) -> OtherServer {
    OtherServer {
        server: Ipv4Addr::new(10, 0, 0, 254),
        offered: offered.then_some(Ipv4Addr::new(10, 0, 0, 99)),
        boot_file: boot_file.map(str::to_owned),
    }
}

/// Level and code of what is not as it should be, after something was changed.
fn complaints(change: impl FnOnce(&mut Facts)) -> Vec<(Level, &'static str)> {
    let mut facts = healthy();
    change(&mut facts);
    judge(&facts)
        .into_iter()
        .filter(|found| found.level != Level::Ok)
        .map(|found| {
            assert!(
                found.fix.is_some_and(|fix| !fix.is_empty()),
                "{}",
                found.what
            );
            (found.level, found.code)
        })
        .collect()
}

fn problem(code: &'static str) -> Vec<(Level, &'static str)> {
    vec![(Level::Problem, code)]
}

fn warning(code: &'static str) -> Vec<(Level, &'static str)> {
    vec![(Level::Warning, code)]
}

#[test]
fn nothing_is_said_against_a_server_in_order() {
    assert_eq!(complaints(|_| {}), []);
}

#[test]
fn a_taken_port_is_a_problem_unless_it_is_the_servers_own() {
    let held = |holder| complaints(move |facts| facts.ports[0].holder = Some(holder));
    assert_eq!(
        held(Holder::Other("dnsmasq (process 8)".into())),
        problem("port")
    );
    assert_eq!(held(Holder::Unknown), problem("port"));
    assert_eq!(held(Holder::Ours), []);
}

fn running(role: &str, version: &str) -> Server {
    Server::Running {
        version: version.into(),
        uptime: 100,
        process: 7,
        links: vec![LinkView {
            link: "eth0 (10.0.0.1)".into(),
            role: role.into(),
            reason: String::new(),
            other_servers: Vec::new(),
            warning: None,
            looked_at: None,
        }],
    }
}

#[test]
fn a_running_server_of_another_version_or_without_its_port_is_said() {
    let version = env!("CARGO_PKG_VERSION");
    let run = |version: &str, holder| {
        let server = running("server", version);
        complaints(move |facts| {
            facts.server = server;
            facts.ports[0].holder = holder;
        })
    };
    assert_eq!(run(version, Some(Holder::Ours)), []);
    assert_eq!(run("0.0.1", Some(Holder::Ours)), warning("server"));
    assert_eq!(run(version, None), warning("port"));
}

#[test]
fn an_interface_that_machines_cannot_boot_over_is_a_problem() {
    type Change = fn(&mut Link);
    let cases: [Change; 4] = [
        |link| link.present = false,
        |link| link.up = false,
        |link| link.addresses.clear(),
        |link| link.wireless = true,
    ];
    for change in cases {
        let found = complaints(|facts| {
            facts.interfaces[0].others = None;
            change(&mut facts.interfaces[0]);
        });
        assert_eq!(found, problem("interface"));
    }
    assert_eq!(
        complaints(|facts| facts.interfaces[0].carrier = Some(false)),
        warning("interface")
    );
    assert_eq!(
        complaints(|facts| facts.interfaces.clear()),
        problem("interface")
    );
}

#[test]
fn an_mtu_unlike_the_machines_is_a_warning() {
    let mtu = |mtu| complaints(move |facts| facts.interfaces[0].mtu = Some(mtu));
    assert_eq!(mtu(9000), warning("mtu"));
    assert_eq!(mtu(1400), warning("mtu"));
    assert_eq!(mtu(1500), []);
}

#[test]
fn another_dhcp_server_is_a_problem_beside_a_server_and_wanted_beside_a_proxy() {
    let with = |mode, found: Vec<OtherServer>| {
        complaints(move |facts| {
            facts.mode = mode;
            facts.interfaces[0].others = Some(Ok(found));
        })
    };
    let dhcp = || vec![other(true, None)];
    assert_eq!(with(DhcpMode::Server, dhcp()), problem("other-servers"));
    assert_eq!(with(DhcpMode::Proxy, dhcp()), []);
    assert_eq!(with(DhcpMode::Auto, dhcp()), []);
    assert_eq!(with(DhcpMode::Proxy, Vec::new()), problem("other-servers"));
    assert_eq!(with(DhcpMode::Server, Vec::new()), []);
    let rival = vec![other(true, Some("pxelinux.0"))];
    assert_eq!(with(DhcpMode::Proxy, rival), warning("other-boot-file"));
    let without_rights = complaints(|facts| {
        facts.interfaces[0].others = Some(Err("operation not permitted".into()));
    });
    assert_eq!(without_rights, warning("other-servers"));
}

#[test]
fn the_running_servers_role_counts_not_the_configurations() {
    let found = complaints(|facts| {
        facts.server = running("server", env!("CARGO_PKG_VERSION"));
        facts.ports.clear();
        facts.interfaces[0].others = Some(Ok(vec![other(true, None)]));
    });
    assert_eq!(found, problem("other-servers"));
}

#[test]
fn a_dropping_firewall_is_a_problem_and_an_unreadable_one_is_not() {
    let dropped = (Transport::Udp, 69, "udp dport 69 drop".to_owned());
    assert_eq!(
        complaints(|facts| facts.firewall = Some(vec![dropped])),
        problem("firewall")
    );
    assert_eq!(complaints(|facts| facts.firewall = None), []);
}

fn without(name: &'static str) -> Vec<(Level, &'static str)> {
    complaints(move |facts| facts.boot.files.retain(|file| file.name != name))
}

#[test]
fn missing_boot_files_are_said_by_what_they_are_for() {
    assert_eq!(without("vmlinuz"), problem("boot-files"));
    assert_eq!(without("undionly.kpxe"), warning("firmware"));
    // Secure Boot alone: the unified image serves the rest, but nobody signed it.
    assert_eq!(without("grubx64.efi"), warning("secure-boot"));
    assert_eq!(without("netboot-x64.efi"), warning("firmware"));
    let unreadable = complaints(|facts| facts.boot.unreadable = Some("not found".into()));
    assert_eq!(unreadable, problem("boot-files"));
}

#[test]
fn a_damaged_loader_is_a_problem_and_serves_nobody() {
    let found = complaints(|facts| {
        let shim = facts
            .boot
            .files
            .iter_mut()
            .find(|file| file.name == "shimx64.efi");
        shim.expect("shim").damage = Some("it is empty".into());
    });
    assert_eq!(
        found,
        [
            (Level::Problem, "boot-file-damaged"),
            (Level::Warning, "secure-boot")
        ]
    );
}

#[test]
fn an_unsigned_shim_does_not_serve_secure_boot() {
    let found = complaints(|facts| {
        let shim = facts
            .boot
            .files
            .iter_mut()
            .find(|file| file.name == "shimx64.efi");
        shim.expect("shim").signed = Some(false);
    });
    assert_eq!(found, warning("secure-boot"));
}

#[test]
fn boot_files_of_before_the_program_are_a_warning() {
    let found = complaints(|facts| {
        for file in &mut facts.boot.files {
            file.made = Some(NOW - 30 * DAY);
        }
    });
    assert_eq!(found, warning("boot-files-old"));
}

#[test]
fn a_data_directory_that_cannot_be_used_is_a_problem() {
    assert_eq!(
        complaints(|facts| facts.data_dir.present = false),
        problem("data-directory")
    );
    assert_eq!(
        complaints(|facts| facts.data_dir.not_writable = Some("read only".into())),
        problem("data-directory")
    );
    let free = |free| complaints(move |facts| facts.data_dir.free = Some(free));
    assert_eq!(free(100 << 20), problem("space"));
    assert_eq!(free(5 << 30), warning("space"));
    let kind = |kind: &str| {
        let kind = Some(kind.to_owned());
        complaints(move |facts| facts.data_dir.filesystem = kind)
    };
    assert_eq!(kind("vfat"), problem("filesystem"));
    assert_eq!(kind("nfs4"), warning("filesystem"));
    assert_eq!(kind("tmpfs"), warning("filesystem"));
    assert_eq!(kind("xfs"), []);
}

#[test]
fn a_clock_before_the_program_was_made_is_wrong() {
    assert_eq!(
        complaints(|facts| facts.clock.now = 86_400),
        problem("clock")
    );
    assert_eq!(
        complaints(|facts| facts.clock.hardware = Some(NOW - 3 * DAY)),
        warning("clock")
    );
}

#[test]
fn a_wrong_configuration_is_said_first() {
    let mut facts = healthy();
    facts.config_error = Some("netboot.toml: line 3".into());
    assert_eq!(judge(&facts)[0].code, "configuration");
    assert_eq!(judge(&facts)[0].level, Level::Problem);
}

#[test]
fn a_kernel_unlike_the_manifest_is_a_problem_and_a_loader_of_ones_own_a_warning() {
    let unlike = |name: &str| {
        let entry = (name.to_owned(), "its content differs".to_owned());
        complaints(|facts| facts.boot.unlike_manifest.push(entry))
    };
    assert_eq!(unlike("initramfs"), problem("boot-file-differs"));
    assert_eq!(unlike("grubx64.efi"), warning("boot-file-differs"));
}
