use std::path::Path;

use protocol::dhcp::{ArchitectureCode, BootClient, BootProtocol, IpxeFeatures};
use protocol::tftp::Packet;

use super::*;
use crate::boot_policy::{MachineState, UnknownMachines};
use crate::dhcp::boot_table::{BiosLoader, LoaderChoice, Role};

/// One machine in one state; what it was told.
struct OneMachine {
    state: MachineState,
    told: Mutex<Vec<BootDecision>>,
}

impl MachineDirectory for OneMachine {
    fn at_boot(&self, _: MacAddress, _: Option<Uuid>) -> AtBoot {
        AtBoot {
            state: self.state,
            next: None,
        }
    }

    fn told(&self, _: MacAddress, _: Option<Uuid>, decision: BootDecision) {
        self.told.lock().unwrap().push(decision);
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    machine: Arc<OneMachine>,
    desk: BootDesk,
}

const FILES: [&str; 8] = [
    "vmlinuz",
    "initramfs",
    "undionly.kpxe",
    "shimx64.efi",
    "grubx64.efi",
    "snponly.efi",
    "netboot-x64.efi",
    "grub/x86_64-efi/fs.lst",
];

fn fixture(state: MachineState, loaders: LoaderChoice) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    for name in FILES {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    let machine = Arc::new(OneMachine {
        state,
        told: Mutex::default(),
    });
    let catalogue = BootCatalogue::read(folder.path(), Path::new("/nonexistent")).unwrap();
    let desk = BootDesk {
        catalogue: Arc::new(catalogue),
        directory: Arc::clone(&machine) as _,
        recorder: Arc::new(FlightRecorder::in_memory()),
        policy: BootPolicy {
            unknown: UnknownMachines::Recovery,
            menu_seconds: 30,
            loaders,
        },
        http_port: 8080,
        chainloaded: Chainloaded::default(),
    };
    Fixture {
        folder,
        machine,
        desk,
    }
}

fn mac() -> MacAddress {
    MacAddress::new([0x52, 0x54, 0, 0, 0, 3])
}

impl Fixture {
    fn get(&self, name: &str) -> Result<String, NotSent> {
        let content = self.desk.open(&tftp_name::parse(name))?;
        let (len, mut scratch) = (usize::try_from(content.len()).unwrap(), Vec::new());
        let bytes = content.part(0, len, &mut scratch).unwrap();
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn first(&self, architecture: u16, ipxe: bool) -> FirstFile {
        let client = BootClient {
            protocol: BootProtocol::Pxe,
            architectures: vec![ArchitectureCode(architecture)],
            ipxe: ipxe.then(IpxeFeatures::default),
        };
        let request = BootRequest {
            client,
            mac: mac(),
            uuid: None,
            role: Role::Server,
        };
        self.desk.first_file(&request).unwrap()
    }
}

#[test]
fn a_secure_boot_chain_finds_every_file_it_asks_for() {
    let fixture = fixture(MachineState::HasWork, LoaderChoice::default());
    let FirstFile::Tftp(first) = fixture.first(7, false) else {
        panic!("a loader by TFTP");
    };
    assert_eq!(first, "for/52-54-00-00-00-03/shimx64.efi");
    assert_eq!(fixture.get(&first).unwrap(), "shimx64.efi");
    // shim looks beside itself; these three it does without.
    for name in [
        "revocations_sku.efi",
        "revocations_sbat.efi",
        "shim_certificate_0.efi",
    ] {
        let name = first.replace("shimx64.efi", name);
        assert!(
            matches!(fixture.get(&name), Err(NotSent::NotHere)),
            "{name}"
        );
    }
    let grub = first.replace("shimx64.efi", "grubx64.efi");
    assert_eq!(fixture.get(&grub).unwrap(), "grubx64.efi");
    let generic = fixture.get("/grub/grub.cfg").unwrap();
    assert!(generic.contains("configfile /grub/for/$net_default_mac/grub.cfg"));
    assert_eq!(*fixture.machine.told.lock().unwrap(), []);
    let own = fixture.get("/grub/for/52:54:00:00:00:03/grub.cfg").unwrap();
    assert!(own.contains("netboot.mac=52:54:00:00:00:03"));
    assert_eq!(
        *fixture.machine.told.lock().unwrap(),
        [BootDecision::Recovery]
    );
    for name in ["vmlinuz", "initramfs"] {
        let path = format!("/for/52-54-00-00-00-03/{name}");
        assert_eq!(fixture.get(&path).unwrap(), name);
    }
}

#[test]
fn a_machine_without_work_gets_no_loader_and_is_told_why() {
    let fixture = fixture(MachineState::Idle, LoaderChoice::default());
    let FirstFile::Tftp(first) = fixture.first(7, false) else {
        panic!("a loader by TFTP");
    };
    assert!(matches!(fixture.get(&first), Err(NotSent::LocalDisk)));
    assert_eq!(
        *fixture.machine.told.lock().unwrap(),
        [BootDecision::LocalDisk]
    );
    let timeline = fixture.desk.recorder.timeline(&[mac()]);
    let fact = &timeline.boots[0].events[0].fact;
    let (over, boots) = (Over::Tftp, Decided::LocalDisk);
    assert_eq!(*fact, Fact::Told { over, boots });
    // A BIOS is helped to its disk by its loader.
    let name = "for/52-54-00-00-00-03/undionly.kpxe";
    assert_eq!(fixture.get(name).unwrap(), "undionly.kpxe");
    // Names without a machine are nobody's.
    assert_eq!(fixture.get("shimx64.efi").unwrap(), "shimx64.efi");
}

#[test]
fn an_operators_own_grub_configuration_is_sent_as_it_is() {
    let fixture = fixture(MachineState::HasWork, LoaderChoice::default());
    let path = fixture.folder.path().join("grub/grub.cfg");
    std::fs::write(path, "their own").unwrap();
    let again = BootCatalogue::read(fixture.folder.path(), Path::new("/nonexistent")).unwrap();
    let desk = BootDesk {
        catalogue: Arc::new(again),
        ..fixture.desk
    };
    let fixture = Fixture { desk, ..fixture };
    assert_eq!(fixture.get("/grub/grub.cfg").unwrap(), "their own");
}

#[test]
fn a_roms_ipxe_is_replaced_and_the_one_that_was_sent_goes_on() {
    let choice = LoaderChoice {
        bios: BiosLoader::Undionly,
        ..LoaderChoice::default()
    };
    let fixture = fixture(MachineState::HasWork, choice);
    let FirstFile::Tftp(first) = fixture.first(0, true) else {
        panic!("a loader by TFTP");
    };
    assert_eq!(first, "for/52-54-00-00-00-03/undionly.kpxe");
    fixture.desk.fetched(mac(), "undionly.kpxe");
    // DISCOVER and REQUEST.
    for _ in 0..2 {
        assert_eq!(fixture.first(0, true), FirstFile::Script);
    }
    fixture.desk.chainloaded.went_on(mac());
    assert_eq!(fixture.first(0, true), FirstFile::Tftp(first));
}

#[test]
fn what_was_sent_long_ago_is_forgotten() {
    let chainloaded = Chainloaded::default();
    let start = Instant::now();
    chainloaded.insert(mac(), start);
    assert!(chainloaded.contains(mac(), start + CHAINLOADED - Duration::from_secs(1)));
    assert!(!chainloaded.contains(mac(), start + CHAINLOADED));
}

/// The names of all TFTP read requests of a capture: Ethernet, IPv4 without options.
fn names_asked_for(pcap: &[u8]) -> Vec<String> {
    let mut rest = &pcap[24..];
    let mut names = Vec::new();
    while let [_, _, _, _, _, _, _, _, a, b, c, d, _, _, _, _, frames @ ..] = rest {
        let (frame, next) = frames.split_at(u32::from_le_bytes([*a, *b, *c, *d]) as usize);
        rest = next;
        if frame.len() > 44 && frame[23] == 17 && frame[36..38] == [0, 69] {
            let Ok(Packet::Read(request)) = Packet::parse(&frame[42..]) else {
                panic!("a read request");
            };
            names.push(String::from_utf8(request.name.to_vec()).unwrap());
        }
    }
    names
}

#[test]
fn every_request_of_a_captured_secure_boot_is_answered_as_it_should_be() {
    let fixture = fixture(MachineState::HasWork, LoaderChoice::default());
    let capture = include_bytes!("../../tests/fixtures/uefi-secure-boot-shim-grub.pcap");
    let names = names_asked_for(capture);
    assert_eq!(names.len(), 13);
    for name in names {
        let answer = fixture.get(&name);
        match name.as_str() {
            "shimx64.efi" | "grubx64.efi" | "/grub/x86_64-efi/fs.lst" => {
                assert_eq!(answer.unwrap(), name.trim_start_matches('/'));
            }
            "/grub/grub.cfg" => assert!(answer.unwrap().contains("configfile")),
            // shim's and GRUB's own look-ups, and the capture's own names for kernel and file system.
            _ => assert!(matches!(answer, Err(NotSent::NotHere)), "{name}"),
        }
    }
}
