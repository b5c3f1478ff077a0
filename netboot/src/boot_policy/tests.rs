use super::*;

const POLICY: BootPolicy = BootPolicy {
    unknown: UnknownMachines::Recovery,
    menu_seconds: 30,
    loaders: LoaderChoice {
        uefi: crate::dhcp::boot_table::UefiLoader::Auto,
        bios: crate::dhcp::boot_table::BiosLoader::Auto,
    },
};

fn mac() -> MacAddress {
    MacAddress::new([0x52, 0x54, 0, 0, 0, 1])
}

fn decided(state: MachineState, next: Option<NextBoot>, unknown: UnknownMachines) -> BootDecision {
    let policy = BootPolicy { unknown, ..POLICY };
    decide(AtBoot { state, next }, &policy)
}

#[test]
fn work_comes_before_everything() {
    for unknown in [
        UnknownMachines::Recovery,
        UnknownMachines::LocalDisk,
        UnknownMachines::Menu,
    ] {
        for next in [None, Some(NextBoot::LocalDisk), Some(NextBoot::Menu)] {
            assert_eq!(
                decided(MachineState::HasWork, next, unknown),
                BootDecision::Recovery
            );
        }
    }
}

#[test]
fn a_known_machine_without_work_goes_to_its_disk_at_once() {
    for unknown in [UnknownMachines::Recovery, UnknownMachines::Menu] {
        assert_eq!(
            decided(MachineState::Idle, None, unknown),
            BootDecision::LocalDisk
        );
    }
}

#[test]
fn unknown_machines_follow_the_policy() {
    for (policy, decision) in [
        (UnknownMachines::Recovery, BootDecision::Recovery),
        (UnknownMachines::LocalDisk, BootDecision::LocalDisk),
        (UnknownMachines::Menu, BootDecision::Menu(Entry::Recovery)),
    ] {
        assert_eq!(decided(MachineState::Unknown, None, policy), decision);
    }
}

#[test]
fn the_operators_wish_for_the_next_boot_is_followed() {
    for (state, marked) in [
        (MachineState::Idle, Entry::LocalDisk),
        (MachineState::Unknown, Entry::Recovery),
    ] {
        for (next, decision) in [
            (NextBoot::Recovery, BootDecision::Recovery),
            (NextBoot::LocalDisk, BootDecision::LocalDisk),
            (NextBoot::Menu, BootDecision::Menu(marked)),
        ] {
            let unknown = UnknownMachines::Recovery;
            assert_eq!(decided(state, Some(next), unknown), decision);
        }
    }
}

#[test]
fn a_menu_of_no_seconds_is_what_it_marks() {
    let policy = BootPolicy {
        unknown: UnknownMachines::Menu,
        menu_seconds: 0,
        ..POLICY
    };
    let (state, next) = (MachineState::Unknown, None);
    assert_eq!(
        decide(AtBoot { state, next }, &policy),
        BootDecision::Recovery
    );
    let (state, next) = (MachineState::Idle, Some(NextBoot::Menu));
    assert_eq!(
        decide(AtBoot { state, next }, &policy),
        BootDecision::LocalDisk
    );
}

#[test]
fn only_firmware_that_goes_on_by_itself_is_sent_no_loader() {
    let (disk, menu) = (
        BootDecision::LocalDisk,
        BootDecision::Menu(Entry::LocalDisk),
    );
    assert!(!is_sent(disk, "shimx64.efi", LoaderKind::Shim));
    assert!(!is_sent(disk, "snponly.efi", LoaderKind::Ipxe));
    assert!(is_sent(disk, "undionly.kpxe", LoaderKind::Ipxe));
    assert!(is_sent(menu, "shimx64.efi", LoaderKind::Shim));
    // It shows no menu.
    assert!(!is_sent(menu, "netboot-x64.efi", LoaderKind::Unified));
    let menu = BootDecision::Menu(Entry::Recovery);
    assert!(is_sent(menu, "netboot-x64.efi", LoaderKind::Unified));
}

#[test]
fn the_longest_names_fit_the_file_field() {
    let base = "http://255.255.255.255:65535";
    let url = script_url(base, mac(), Some([7; 16]), Platform::PcBios);
    assert!(url.len() < 128, "{} bytes", url.len());
    for loader in crate::dhcp::boot_table::loader_names() {
        let url = loader_url(base, mac(), loader);
        assert!(url.len() < 128, "{url}");
        let name = tftp_name::of_loader(mac(), loader);
        assert!(name.len() < 64, "{name}");
    }
}
