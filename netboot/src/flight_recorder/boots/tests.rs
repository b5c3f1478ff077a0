use std::net::Ipv4Addr;

use super::*;
use crate::flight_recorder::{Decided, Over};

fn offered(by: Asker, file: &str) -> Fact {
    Fact::Offered {
        by,
        address: Ipv4Addr::new(10, 0, 0, 9),
        file: Some(file.to_owned()),
    }
}

fn granted(by: Asker, file: &str) -> Fact {
    Fact::Granted {
        by,
        address: Ipv4Addr::new(10, 0, 0, 9),
        file: Some(file.to_owned()),
    }
}

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

fn fetched(over: Over, file: &str, bytes: u64, milliseconds: u64) -> Fact {
    Fact::Fetched {
        over,
        file: file.to_owned(),
        bytes,
        milliseconds,
        part_of: None,
    }
}

fn at(seconds: u64, fact: Fact) -> Event {
    Event {
        at: 1_000_000 + seconds * 1000,
        fact,
    }
}

fn beacon() -> Fact {
    Fact::Beacon {
        name: "pc".into(),
        since_link_ms: None,
    }
}

/// UEFI PXE with iPXE, from the firmware's first word to the beacon.
fn whole_boot(start: u64) -> Vec<Event> {
    let script = "http://10.0.0.1/boot/ipxe";
    let told = Fact::Told {
        over: Over::Http,
        boots: Decided::Recovery,
    };
    let asked_again = granted(Asker::System { class: None }, "");
    vec![
        at(start, offered(firmware(), "snponly.efi")),
        at(start + 4, granted(firmware(), "snponly.efi")),
        at(start + 6, fetched(Over::Tftp, "snponly.efi", 200_000, 1000)),
        at(start + 9, offered(ipxe(), script)),
        at(start + 10, granted(ipxe(), script)),
        at(start + 10, told),
        at(start + 12, fetched(Over::Http, "vmlinuz", 8_000_000, 1000)),
        at(
            start + 14,
            fetched(Over::Http, "initramfs", 24_000_000, 1000),
        ),
        at(start + 20, asked_again),
        at(start + 21, beacon()),
    ]
}

#[test]
fn a_boot_reaches_from_the_firmwares_first_word_to_its_next() {
    let first = whole_boot(0);
    let second = whole_boot(90);
    let events: Vec<_> = first.iter().chain(&second).cloned().collect();
    assert_eq!(boots(&events), [first.as_slice(), second.as_slice()]);
}

#[test]
fn a_repeated_discover_begins_no_boot() {
    let events: Vec<_> = [0, 4, 12]
        .map(|seconds| at(seconds, offered(firmware(), "snponly.efi")))
        .into();
    assert_eq!(boots(&events).len(), 1);
    // After minutes of silence it is not a repetition.
    let later = at(1000, offered(firmware(), "snponly.efi"));
    let events: Vec<_> = events.into_iter().chain([later]).collect();
    assert_eq!(boots(&events).len(), 2);
}

#[test]
fn an_ipxe_in_the_rom_begins_boots_of_its_own() {
    let boot = |start| {
        [
            at(start, offered(ipxe(), "http://x")),
            at(start + 1, granted(ipxe(), "http://x")),
        ]
    };
    let events: Vec<_> = boot(0).into_iter().chain(boot(30)).collect();
    assert_eq!(boots(&events).len(), 2);
}

#[test]
fn recovery_media_boot_without_the_firmwares_network() {
    let events = [at(0, beacon()), at(300, beacon())];
    assert_eq!(boots(&events).len(), 2);
}

#[test]
fn the_parts_follow_one_another_without_a_gap_and_name_what_is_silent() {
    let view = view(MacAddress::new([2, 0, 0, 0, 0, 1]), &whole_boot(0), None);
    let parts: Vec<_> = view
        .stages
        .iter()
        .map(|stage| (stage.stage, stage.from_ms, stage.to_ms))
        .collect();
    assert_eq!(
        parts,
        [
            (Part::Dhcp, 0, 5_000),
            (Part::Tftp, 5_000, 6_000),
            (Part::Loader, 6_000, 9_000),
            (Part::Dhcp, 9_000, 10_000),
            (Part::Http, 10_000, 14_000),
            (Part::Kernel, 14_000, 20_000),
            (Part::Beacon, 20_000, 21_000),
        ]
    );
    let http = &view.stages[4];
    assert_eq!(http.bytes, 32_000_000);
    assert_eq!(http.bytes_per_second, Some(16_000_000));
    assert_eq!(view.events[6].since_ms, 12_000);
    assert_eq!(view.events[6].bytes_per_second, Some(8_000_000));
}

#[test]
fn a_loader_followed_by_nothing_is_abandoned_until_it_works_once() {
    let refused = |start| {
        [
            at(start, offered(firmware(), "shimx64.efi")),
            at(start + 1, granted(firmware(), "shimx64.efi")),
            at(start + 2, fetched(Over::Tftp, "shimx64.efi", 900_000, 500)),
        ]
    };
    let mut events: Vec<_> = refused(0).into();
    assert_eq!(abandoned_loaders(&events), ["shimx64.efi"]);
    // The answer to the DISCOVER that came back is recorded meanwhile.
    events.push(at(60, offered(firmware(), "snponly.efi")));
    assert_eq!(abandoned_loaders(&events), ["shimx64.efi"]);
    events.extend(refused(300));
    let grub = fetched(Over::Tftp, "grubx64.efi", 1_000_000, 500);
    events.push(at(304, grub));
    assert!(abandoned_loaders(&events).is_empty());
}

#[test]
fn a_loader_that_was_not_fetched_whole_is_not_abandoned() {
    let events = [
        at(0, offered(firmware(), "shimx64.efi")),
        at(
            2,
            Fact::Probed {
                file: "shimx64.efi".into(),
                bytes: 900_000,
            },
        ),
    ];
    assert!(abandoned_loaders(&events).is_empty());
}

#[test]
fn names_and_urls_end_in_a_file() {
    assert_eq!(file_name("http://h/boot/for/a/x.efi?mac=1"), "x.efi");
    assert_eq!(file_name("arm64\\vmlinuz"), "vmlinuz");
    assert_eq!(file_name("//grubx64.efi"), "grubx64.efi");
}
