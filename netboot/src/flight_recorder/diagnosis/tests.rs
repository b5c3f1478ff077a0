use std::net::Ipv4Addr;

use super::*;
use crate::flight_recorder::Stage;

const LATER: u64 = 10 * 60_000;

fn firmware() -> Asker {
    Asker::Firmware {
        architectures: vec![7],
        http: false,
    }
}

fn ipxe() -> Asker {
    Asker::Ipxe {
        architectures: vec![7],
    }
}

fn address() -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 9)
}

fn offered(by: Asker, file: &str) -> Fact {
    Fact::Offered {
        by,
        address: address(),
        file: Some(file.to_owned()).filter(|file| !file.is_empty()),
    }
}

fn granted(by: Asker, file: &str) -> Fact {
    Fact::Granted {
        by,
        address: address(),
        file: Some(file.to_owned()).filter(|file| !file.is_empty()),
    }
}

fn leased(file: &str) -> Vec<Fact> {
    vec![offered(firmware(), file), granted(firmware(), file)]
}

fn fetched(over: Over, file: &str) -> Fact {
    Fact::Fetched {
        over,
        file: file.to_owned(),
        bytes: 1_000,
        milliseconds: 10,
        part_of: None,
    }
}

fn stopped(over: Over, bytes: u64, why: Stopped) -> Fact {
    Fact::FetchStopped {
        over,
        file: "initramfs".into(),
        bytes,
        of: 9_000,
        milliseconds: 10,
        why,
    }
}

fn not_here(file: &str) -> Fact {
    Fact::NotHere {
        over: Over::Tftp,
        file: file.into(),
    }
}

fn told(boots: Decided) -> Fact {
    Fact::Told {
        over: Over::Http,
        boots,
    }
}

fn events(facts: Vec<Fact>) -> Vec<Event> {
    (0..)
        .zip(facts)
        .map(|(second, fact)| Event {
            at: second * 1000,
            fact,
        })
        .collect()
}

/// The diagnosis's code once all is quiet; empty when there is none.
fn code_of(facts: Vec<Fact>) -> String {
    let found = diagnose(&events(facts), false, LATER);
    found.map_or_else(String::new, |diagnosis| diagnosis.code)
}

fn with(mut facts: Vec<Fact>, more: impl IntoIterator<Item = Fact>) -> Vec<Fact> {
    facts.extend(more);
    facts
}

/// Every code with a boot that leads to it.
fn cases() -> Vec<(&'static str, Vec<Fact>)> {
    use Over::{Http, Tftp};
    let script = "http://10.0.0.1/boot/ipxe?mac=x";
    vec![
        (
            "architecture-not-served",
            vec![
                offered(firmware(), ""),
                Fact::ArchitectureNotServed {
                    architectures: vec![6],
                },
            ],
        ),
        (
            "loader-missing",
            vec![
                offered(firmware(), ""),
                Fact::LoaderMissing {
                    architecture: 7,
                    file: "shimx64.efi".into(),
                },
            ],
        ),
        (
            "pool-exhausted",
            vec![Fact::PoolExhausted {
                network: "10.0.0.0/24".into(),
            }],
        ),
        ("no-subnet", vec![Fact::NoSubnet { link: address() }]),
        (
            "address-conflict",
            with(
                leased("snponly.efi"),
                [Fact::Declined { address: address() }],
            ),
        ),
        (
            "beacon-refused",
            with(
                leased("snponly.efi"),
                [Fact::BeaconRefused {
                    reason: "too many machines".into(),
                }],
            ),
        ),
        (
            "job-failed",
            vec![Fact::JobEnded {
                job_kind: "restore".into(),
                restore_point: "1".into(),
                job: "2".into(),
                error: Some("the disk is gone".into()),
            }],
        ),
        (
            "tftp-no-acknowledgement",
            with(
                leased("snponly.efi"),
                [stopped(Tftp, 0, Stopped::Silent { block_size: None })],
            ),
        ),
        (
            "tftp-stalled",
            with(
                leased("snponly.efi"),
                [stopped(
                    Tftp,
                    4_404,
                    Stopped::Silent {
                        block_size: Some(1468),
                    },
                )],
            ),
        ),
        (
            "fetch-refused-by-machine",
            with(
                leased("snponly.efi"),
                [stopped(
                    Tftp,
                    512,
                    Stopped::ByClient {
                        code: 3,
                        message: "disk full".into(),
                    },
                )],
            ),
        ),
        (
            "http-broken-off",
            with(
                leased(script),
                [told(Decided::Recovery), stopped(Http, 10, Stopped::Dropped)],
            ),
        ),
        (
            "server-could-not-read",
            with(
                leased("snponly.efi"),
                [stopped(
                    Tftp,
                    0,
                    Stopped::ByServer {
                        reason: "input/output error".into(),
                    },
                )],
            ),
        ),
        (
            "noted",
            vec![Fact::Remark {
                stage: Stage::Tftp,
                trouble: true,
                text: "TFTP: fell silent".into(),
            }],
        ),
        (
            "agent-silent",
            with(
                leased(script),
                [
                    told(Decided::Recovery),
                    fetched(Http, "vmlinuz"),
                    fetched(Http, "initramfs"),
                ],
            ),
        ),
        (
            "file-missing",
            with(
                leased("shimx64.efi"),
                [
                    fetched(Tftp, "shimx64.efi"),
                    not_here("revocations_sku.efi"),
                    not_here("grubx64.efi"),
                ],
            ),
        ),
        (
            "kernel-not-fetched",
            with(leased(script), [told(Decided::Recovery)]),
        ),
        (
            "grub-without-configuration",
            with(
                leased("shimx64.efi"),
                [
                    fetched(Tftp, "shimx64.efi"),
                    fetched(Tftp, "grubx64.efi"),
                    not_here("/grub/x86_64-efi/command.lst"),
                ],
            ),
        ),
        (
            "http-unreachable",
            with(
                leased("snponly.efi"),
                [
                    fetched(Tftp, "snponly.efi"),
                    offered(ipxe(), script),
                    granted(ipxe(), script),
                ],
            ),
        ),
        (
            "shim-without-grub",
            with(
                leased("shimx64.efi"),
                [
                    fetched(Tftp, "shimx64.efi"),
                    not_here("revocations_sbat.efi"),
                ],
            ),
        ),
        (
            "shim-refused",
            with(leased("shimx64.efi"), [fetched(Tftp, "shimx64.efi")]),
        ),
        (
            "loader-refused",
            with(leased("snponly.efi"), [fetched(Tftp, "snponly.efi")]),
        ),
        (
            "loader-silent",
            with(leased("undionly.kpxe"), [fetched(Tftp, "undionly.kpxe")]),
        ),
        (
            "size-asked-only",
            with(
                leased("ipxe.efi"),
                [Fact::Probed {
                    file: "ipxe.efi".into(),
                    bytes: 1_000_000,
                }],
            ),
        ),
        (
            "other-server",
            vec![
                offered(firmware(), "snponly.efi"),
                Fact::OtherServerTaken { server: address() },
            ],
        ),
        (
            "proxy-not-asked",
            vec![Fact::ProxyOffered {
                by: firmware(),
                file: None,
            }],
        ),
        (
            "proxy-offer-unused",
            vec![Fact::ProxyOffered {
                by: firmware(),
                file: Some("snponly.efi".into()),
            }],
        ),
        ("nothing-fetched", leased("snponly.efi")),
        ("offer-not-taken", vec![offered(firmware(), "snponly.efi")]),
        ("no-boot-file", leased("")),
    ]
}

#[test]
fn every_code_comes_from_the_boot_that_it_is_about() {
    for (code, facts) in cases() {
        assert_eq!(code_of(facts), code);
    }
}

#[test]
fn the_documentation_has_every_code() {
    let page = include_str!("../../../../docs/diagnoses.md");
    for (code, _) in cases() {
        assert!(page.contains(&format!("\n## {code}\n")), "{code}");
    }
    assert!(page.contains("\n## boot-loop\n"));
}

#[test]
fn a_boot_that_arrives_is_no_trouble() {
    let to_agent = with(
        leased("snponly.efi"),
        [
            fetched(Over::Tftp, "snponly.efi"),
            Fact::Beacon {
                name: "pc".into(),
                since_link_ms: None,
            },
        ],
    );
    assert_eq!(code_of(to_agent), "");
    assert_eq!(
        code_of(with(leased("http://x"), [told(Decided::LocalDisk)])),
        ""
    );
}

#[test]
fn nothing_is_said_of_a_boot_that_goes_on() {
    let boot = events(with(
        leased("snponly.efi"),
        [fetched(Over::Tftp, "snponly.efi")],
    ));
    assert_eq!(diagnose(&boot, false, 2_000 + QUIET_MS - 1), None);
    assert!(diagnose(&boot, false, 2_000 + QUIET_MS).is_some());
    // The firmware came back: no need to wait.
    assert!(diagnose(&boot, true, 2_000).is_some());
}

#[test]
fn trouble_that_was_overcome_is_not_the_diagnosis() {
    let exhausted = Fact::PoolExhausted {
        network: "10.0.0.0/24".into(),
    };
    assert_eq!(
        code_of(with(vec![exhausted], leased("snponly.efi"))),
        "nothing-fetched"
    );
    let stopped = stopped(Over::Tftp, 512, Stopped::Silent { block_size: None });
    let again = with(
        leased("snponly.efi"),
        [stopped, fetched(Over::Tftp, "snponly.efi")],
    );
    assert_eq!(code_of(again), "loader-refused");
}

#[test]
fn a_stalled_transfer_names_the_block_that_went_unanswered() {
    let block_size = Some(1468);
    let boot = events(vec![stopped(
        Over::Tftp,
        2936,
        Stopped::Silent { block_size },
    )]);
    let sentence = diagnose(&boot, false, 0).expect("a diagnosis").sentence;
    assert!(sentence.contains("block 3 of 1468 bytes"), "{sentence}");
}

#[test]
fn a_unified_image_that_asked_for_an_address_has_started() {
    let booted = with(leased("x"), [fetched(Over::Http, "netboot-x64.efi")]);
    assert_eq!(code_of(booted.clone()), "loader-refused");
    let asked = granted(Asker::System { class: None }, "");
    assert_eq!(code_of(with(booted, [asked])), "agent-silent");
}

#[test]
fn four_boots_in_a_quarter_of_an_hour_are_a_loop_unless_there_is_a_better_reason() {
    let minutes = |minutes: u64| minutes * 60_000;
    let quiet: Vec<_> = [0, 3, 6, 9].map(|at| (minutes(at), None)).into();
    let found = diagnose_machine(&quiet).expect("a diagnosis");
    assert_eq!(found.code, "boot-loop");
    assert!(found.sentence.contains("4 times in 9 minutes"), "{found:?}");
    let slow: Vec<_> = [0, 20, 40, 60].map(|at| (minutes(at), None)).into();
    assert_eq!(diagnose_machine(&slow), None);
    let reason = Diagnosis::new("loader-refused", "", "");
    let refused: Vec<_> = [0, 3, 6, 9]
        .map(|at| (minutes(at), Some(reason.clone())))
        .into();
    assert_eq!(diagnose_machine(&refused), Some(reason));
}
