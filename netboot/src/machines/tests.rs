use backup::hardware::{FirmwareKind, MachineIdentity};

use super::*;

fn beacon(mac: &str, boot_id: &str) -> Beacon {
    Beacon {
        agent_version: "0.1.0".into(),
        boot_id: boot_id.into(),
        pairing_code: "123456".into(),
        since_link_ms: Some(900),
        boot_mac: Some(mac.into()),
        state: AgentState::Waiting,
        error: None,
        inventory: Inventory {
            identity: MachineIdentity {
                macs: vec![mac.into()],
                ..MachineIdentity::default()
            },
            firmware: FirmwareKind::Uefi,
            architecture: "x86_64".into(),
            disks: Vec::new(),
            nics: Vec::new(),
            memory: 1 << 30,
            without_driver: Vec::new(),
        },
    }
}

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn machines(&self) -> Machines {
        let path = self.directory.path().join("state.sqlite");
        Machines::load(Arc::new(Database::open(&path).unwrap())).unwrap()
    }
}

fn state_of(machines: &Machines, id: &str) -> Option<AgentState> {
    let list = machines.list();
    list.iter().find(|view| view.id == id).unwrap().state
}

#[test]
fn a_machine_keeps_its_id_and_its_host_name_over_a_server_restart() {
    let bench = Bench::new();
    let machines = bench.machines();
    let first = machines.beacon(&beacon("02:00:00:00:00:01", "a")).unwrap();
    machines.set_host_name(&first.id, "office-pc").unwrap();
    let machines = bench.machines();
    let again = machines.beacon(&beacon("02:00:00:00:00:01", "b")).unwrap();
    assert_eq!(
        (again.id.as_str(), again.name.as_str()),
        (first.id.as_str(), "office-pc")
    );
    assert!(again.new_boot);
    let third = machines.beacon(&beacon("02:00:00:00:00:01", "b")).unwrap();
    assert!(!third.new_boot);
}

#[test]
fn an_ambiguous_name_lists_the_candidates_and_an_exact_one_beats_a_prefix() {
    let bench = Bench::new();
    let machines = bench.machines();
    let one = machines.beacon(&beacon("02:00:00:00:00:01", "a")).unwrap();
    let two = machines.beacon(&beacon("02:00:00:00:00:02", "b")).unwrap();
    for id in [&one.id, &two.id] {
        machines.set_host_name(id, "twin").unwrap();
    }
    let refusal = machines.resolve("TWIN").unwrap_err();
    let NameError::Ambiguous { candidates, .. } = &refusal else {
        panic!("{refusal}");
    };
    assert!(candidates.len() == 2 && candidates.iter().any(|text| text.contains(&one.id)));
    assert_eq!(machines.resolve("02-00-00-00-00-02").unwrap().id, two.id);
    assert_eq!(machines.resolve(&one.id[..13]).unwrap().id, one.id);
    machines.set_host_name(&two.id, &one.id[..13]).unwrap();
    assert_eq!(machines.resolve(&one.id[..13]).unwrap().id, two.id);
    assert!(machines.resolve("02").is_err());
}

#[test]
fn a_machine_that_left_is_shown_as_not_there() {
    let bench = Bench::new();
    let machines = bench.machines();
    let id = machines
        .beacon(&beacon("02:00:00:00:00:01", "a"))
        .unwrap()
        .id;
    assert_eq!(state_of(&machines, &id), Some(AgentState::Waiting));
    machines.leaves(&id);
    assert_eq!(state_of(&machines, &id), None);
    machines.beacon(&beacon("02:00:00:00:00:01", "b")).unwrap();
    assert_eq!(state_of(&machines, &id), Some(AgentState::Waiting));
}

#[test]
fn a_machine_is_found_by_card_at_boot() {
    let bench = Bench::new();
    let machines = bench.machines();
    let id = machines
        .beacon(&beacon("02:00:00:00:00:01", "a"))
        .unwrap()
        .id;
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]);
    assert_eq!(machines.at_boot(mac, None), Some(id));
    assert_eq!(
        machines.at_boot(MacAddress::new([2, 0, 0, 0, 0, 2]), None),
        None
    );
}

#[test]
fn a_full_list_forgets_the_oldest_machine_without_job_or_restore_point() {
    let bench = Bench::new();
    let mut machines = bench.machines();
    machines.limit = 4;
    let number = |n: u8| beacon(&format!("02:00:00:00:00:0{n}"), "a");
    let ids: Vec<String> = (1..=4)
        .map(|n| machines.beacon(&number(n)).unwrap().id)
        .collect();
    for (at, id) in (1..).zip(&ids) {
        machines
            .known
            .write()
            .unwrap()
            .get_mut(id)
            .unwrap()
            .last_beacon = at;
    }
    let job = "INSERT INTO job (id, machine, kind, afterwards, state, summary, stored_bytes,
        created_at) VALUES ('j', ?1, '', '', 'failed', '[]', 0, 0)";
    machines
        .database
        .with(|connection| connection.execute(job, [&ids[0]]))
        .unwrap();
    let backed_up = HashSet::from([ids[1].clone()]);
    let refused = machines.beacon(&number(5));
    assert!(matches!(refused, Err(MachineError::TooMany)), "{refused:?}");
    assert!(machines.forget_oldest(&backed_up).unwrap());
    machines.beacon(&number(5)).unwrap();
    drop(machines);
    let machines = bench.machines();
    let left: HashSet<String> = machines.list().into_iter().map(|view| view.id).collect();
    assert_eq!(left.len(), 4);
    assert!(!left.contains(&ids[2]), "{left:?}");
    let all = ids.iter().cloned().chain(left.iter().cloned()).collect();
    assert!(!machines.forget_oldest(&all).unwrap());
}
