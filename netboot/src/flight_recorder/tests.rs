use super::*;

fn mac(number: u8) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 0, number])
}

fn remark(number: usize) -> Fact {
    Fact::Remark {
        stage: Stage::Http,
        trouble: false,
        text: number.to_string(),
    }
}

fn offered(file: &str) -> Fact {
    Fact::Offered {
        by: Asker::Firmware {
            architectures: vec![7],
            http: false,
        },
        address: Ipv4Addr::new(10, 0, 0, 9),
        file: Some(file.to_owned()),
    }
}

fn granted_to_system(last: u8) -> Fact {
    Fact::Granted {
        by: Asker::System { class: None },
        address: Ipv4Addr::new(10, 0, 0, last),
        file: None,
    }
}

#[test]
fn a_loader_asked_for_from_nowhere_is_the_machines_that_was_told_if_it_is_one() {
    let recorder = FlightRecorder::in_memory();
    recorder.record(mac(1), offered("snponly.efi"));
    recorder.record(mac(1), offered("snponly.efi"));
    recorder.record(mac(2), offered("undionly.kpxe"));
    assert_eq!(recorder.machine_told("snponly.efi"), Some(mac(1)));
    recorder.record(mac(3), offered("snponly.efi"));
    assert_eq!(recorder.machine_told("snponly.efi"), None);
}

#[test]
fn a_later_run_knows_the_events_of_an_earlier_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.sqlite");
    let recorder = FlightRecorder::open(&path).expect("a database");
    for number in 0..1500 {
        recorder.record(mac(1), remark(number));
    }
    let before = recorder.events(mac(1));
    drop(recorder);
    let after = FlightRecorder::open(&path).expect("a database");
    assert_eq!(after.events(mac(1)), before);
    assert_eq!(before.last().map(|event| &event.fact), Some(&remark(1499)));
}

#[test]
fn a_machine_keeps_its_latest_events_only() {
    let recorder = FlightRecorder::in_memory();
    for number in 0..EVENTS_OF_A_MACHINE + 5 {
        recorder.record(mac(1), remark(number));
    }
    let events = recorder.events(mac(1));
    assert_eq!(events.len(), EVENTS_OF_A_MACHINE);
    assert_eq!(events[0].fact, remark(5));
}

#[test]
fn clients_that_boot_nothing_are_counted_and_not_recorded() {
    let recorder = FlightRecorder::in_memory();
    for _ in 0..3 {
        recorder.record_dhcp(mac(1), false, granted_to_system(5));
    }
    assert!(recorder.events(mac(1)).is_empty());
    assert_eq!(recorder.counted.load(Ordering::Relaxed), 3);
}

#[test]
fn a_system_is_recorded_after_a_boot_but_not_for_ever() {
    let recorder = FlightRecorder::in_memory();
    recorder.record_dhcp(mac(1), true, offered("snponly.efi"));
    for _ in 0..SYSTEM_EVENTS + 5 {
        recorder.record_dhcp(mac(1), false, granted_to_system(5));
    }
    assert_eq!(recorder.events(mac(1)).len(), 1 + SYSTEM_EVENTS);
}

#[test]
fn an_address_is_the_machines_that_has_it_now_and_the_oldest_go_first() {
    let recorder = FlightRecorder::in_memory();
    let address = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
    recorder.granted(mac(1), address(0));
    recorder.record_dhcp(
        mac(2),
        false,
        Fact::Granted {
            by: Asker::System { class: None },
            address: address(0),
            file: None,
        },
    );
    assert_eq!(recorder.machine_at(address(0)), Some(mac(2)));
    for number in 1..=u32::try_from(ADDRESSES).expect("a small number") {
        recorder.granted(mac(3), address(number));
    }
    assert_eq!(recorder.machine_at(address(0)), None);
    assert_eq!(recorder.machine_at(address(1)), Some(mac(3)));
}

#[test]
fn a_fetch_that_goes_on_is_shown_until_it_ends() {
    let recorder = FlightRecorder::in_memory();
    let (over, file) = (Over::Http, "initramfs".to_owned());
    recorder.record(
        mac(1),
        Fact::FetchBegun {
            over,
            file: file.clone(),
            bytes: 10,
        },
    );
    assert_eq!(recorder.events(mac(1)).len(), 1);
    let fetched = Fact::Fetched {
        over,
        file,
        bytes: 10,
        milliseconds: 5,
        part_of: None,
    };
    recorder.record(mac(1), fetched.clone());
    let events = recorder.events(mac(1));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].fact, fetched);
}

#[test]
fn a_job_begins_once_in_a_boot_and_again_in_the_next() {
    let recorder = FlightRecorder::in_memory();
    let beacon = Fact::Beacon {
        name: "pc".into(),
        since_link_ms: None,
    };
    let begins = Fact::JobBegins {
        job_kind: "capture".into(),
        restore_point: "1".into(),
        job: "2".into(),
    };
    for fact in [&beacon, &begins, &begins, &beacon, &begins] {
        recorder.record(mac(1), fact.clone());
    }
    let begun: Vec<_> = recorder
        .events(mac(1))
        .into_iter()
        .map(|event| event.fact)
        .collect();
    assert_eq!(begun, [beacon.clone(), begins.clone(), beacon, begins]);
}

#[test]
fn a_beacon_refused_again_and_again_is_one_event() {
    let recorder = FlightRecorder::in_memory();
    for reason in ["too many", "too many", "no boot_id"] {
        let reason = reason.to_owned();
        recorder.record(mac(1), Fact::BeaconRefused { reason });
    }
    assert_eq!(recorder.events(mac(1)).len(), 2);
}
