use protocol::dhcp::IpxeFeatures;

use super::*;

fn client(protocol: BootProtocol, architectures: &[u16]) -> BootClient {
    BootClient {
        protocol,
        architectures: architectures
            .iter()
            .map(|number| ArchitectureCode(*number))
            .collect(),
        ipxe: None,
    }
}

fn ipxe(architecture: u16) -> BootClient {
    let mut client = client(Pxe, &[architecture]);
    client.ipxe = Some(IpxeFeatures::default());
    client
}

/// Asks the ladder with everything in the boot folder but `lacking`.
fn ask(
    client: &BootClient,
    role: Role,
    choice: LoaderChoice,
    lacking: &[&str],
    refused: &[&str],
) -> Result<FirstFile, NoFirstFile> {
    let refused: Vec<String> = refused.iter().map(|name| (*name).to_owned()).collect();
    let known = Circumstances {
        choice,
        exists: &|name| !lacking.contains(&name),
        refused: &refused,
        chainloaded: false,
    };
    first_file(client, role, &known)
}

fn tftp(name: &str) -> Result<FirstFile, NoFirstFile> {
    Ok(FirstFile::Tftp(name.to_owned()))
}

fn http(name: &str) -> Result<FirstFile, NoFirstFile> {
    Ok(FirstFile::Http(name.to_owned()))
}

fn uefi(uefi: UefiLoader) -> LoaderChoice {
    LoaderChoice {
        uefi,
        ..LoaderChoice::default()
    }
}

const AUTO: LoaderChoice = LoaderChoice {
    uefi: UefiLoader::Auto,
    bios: BiosLoader::Auto,
};

#[test]
fn every_firmware_gets_its_first_rung() {
    for (protocol, number, server, proxy) in [
        (Pxe, 0, tftp("undionly.kpxe"), tftp("undionly.kpxe")),
        (Pxe, 7, tftp("shimx64.efi"), tftp("snponly.efi")),
        (Pxe, 9, tftp("shimx64.efi"), tftp("snponly.efi")),
        (Pxe, 11, tftp("shimaa64.efi"), tftp("snponly-arm64.efi")),
        (Http, 16, http("netboot-x64.efi"), http("netboot-x64.efi")),
        (
            Http,
            19,
            http("netboot-arm64.efi"),
            http("netboot-arm64.efi"),
        ),
    ] {
        let client = client(protocol, &[number]);
        assert_eq!(ask(&client, Role::Server, AUTO, &[], &[]), server);
        assert_eq!(ask(&client, Role::Proxy, AUTO, &[], &[]), proxy);
    }
}

#[test]
fn a_loader_without_what_it_needs_is_passed_over() {
    let x64 = client(Pxe, &[7]);
    let lacking = |names: &[&str]| ask(&x64, Role::Server, AUTO, names, &[]);
    assert_eq!(lacking(&["grubx64.efi"]), tftp("snponly.efi"));
    assert_eq!(lacking(&["shimx64.efi"]), tftp("snponly.efi"));
    assert_eq!(
        lacking(&["shimx64.efi", "snponly.efi"]),
        tftp("netboot-x64.efi")
    );
    let arm = client(Pxe, &[11]);
    assert_eq!(
        ask(&arm, Role::Server, AUTO, &["shimaa64.efi"], &[]),
        tftp("grubaa64.efi")
    );
    assert_eq!(
        ask(&arm, Role::Server, AUTO, &["arm64/vmlinuz"], &[]),
        tftp("netboot-arm64.efi")
    );
}

#[test]
fn a_refused_loader_makes_way_for_the_next_and_all_refused_for_the_oldest() {
    let x64 = client(Pxe, &[7]);
    let refused = |role, names: &[&str]| ask(&x64, role, AUTO, &[], names);
    assert_eq!(refused(Role::Server, &["shimx64.efi"]), tftp("snponly.efi"));
    assert_eq!(refused(Role::Proxy, &["snponly.efi"]), tftp("shimx64.efi"));
    let all = ["snponly.efi", "shimx64.efi", "netboot-x64.efi"];
    assert_eq!(refused(Role::Server, &all), tftp("snponly.efi"));
    assert_eq!(refused(Role::Server, &all[..2]), tftp("netboot-x64.efi"));
    assert_eq!(refused(Role::Server, &["other.efi"]), tftp("shimx64.efi"));
}

#[test]
fn the_operators_choice_comes_first_where_it_is_there() {
    let (x64, boot) = (client(Pxe, &[7]), client(Http, &[16]));
    let first = |client, choice| ask(client, Role::Server, uefi(choice), &[], &[]);
    assert_eq!(first(&x64, UefiLoader::Ipxe), tftp("snponly.efi"));
    assert_eq!(first(&x64, UefiLoader::Unified), tftp("netboot-x64.efi"));
    assert_eq!(first(&boot, UefiLoader::Ipxe), http("ipxe.efi"));
    // shim by HTTP Boot finds no configuration: it is not on that ladder.
    assert_eq!(first(&boot, UefiLoader::Shim), http("netboot-x64.efi"));
    assert_eq!(
        ask(&x64, Role::Proxy, uefi(UefiLoader::Shim), &[], &[]),
        tftp("shimx64.efi")
    );
    assert_eq!(
        ask(
            &x64,
            Role::Server,
            uefi(UefiLoader::Unified),
            &["netboot-x64.efi"],
            &[]
        ),
        tftp("shimx64.efi")
    );
    assert_eq!(
        ask(
            &x64,
            Role::Server,
            uefi(UefiLoader::Ipxe),
            &[],
            &["snponly.efi"]
        ),
        tftp("shimx64.efi")
    );
    // A BIOS has no choice.
    let bios = client(Pxe, &[0]);
    assert_eq!(first(&bios, UefiLoader::Unified), tftp("undionly.kpxe"));
}

#[test]
fn the_first_listed_architecture_with_a_file_wins() {
    let both = client(Pxe, &[6, 7, 0]);
    assert_eq!(
        ask(&both, Role::Server, AUTO, &[], &[]),
        tftp("shimx64.efi")
    );
    let no_x64 = ["shimx64.efi", "snponly.efi", "netboot-x64.efi"];
    assert_eq!(
        ask(&both, Role::Server, AUTO, &no_x64, &[]),
        tftp("undionly.kpxe")
    );
}

#[test]
fn no_line_and_no_file_are_told_apart_in_words() {
    let unknown = ask(&client(Pxe, &[6]), Role::Server, AUTO, &[], &[]).expect_err("no line");
    assert_eq!(
        Fact::from(unknown).to_string(),
        "DHCP: the firmware asked for architecture 6 (UEFI IA32) and nothing here serves that"
    );
    let bios = client(Pxe, &[0]);
    let missing = ask(&bios, Role::Server, AUTO, &["undionly.kpxe"], &[]).expect_err("no file");
    assert!(
        Fact::from(missing)
            .to_string()
            .contains("undionly.kpxe is not in the boot folder")
    );
}

#[test]
fn ipxe_goes_to_its_script_unless_it_has_no_http() {
    let mut asks = ipxe(0);
    assert_eq!(
        ask(&asks, Role::Server, AUTO, &[], &[]),
        Ok(FirstFile::Script)
    );
    asks.ipxe = Some(IpxeFeatures {
        announced: true,
        ..IpxeFeatures::default()
    });
    assert_eq!(
        ask(&asks, Role::Server, AUTO, &[], &[]),
        tftp("undionly.kpxe")
    );
}

#[test]
fn a_roms_ipxe_is_replaced_once_when_the_operator_wants_that() {
    let choice = LoaderChoice {
        bios: BiosLoader::Undionly,
        ..LoaderChoice::default()
    };
    let rom = ipxe(0);
    assert_eq!(
        ask(&rom, Role::Server, choice, &[], &[]),
        tftp("undionly.kpxe")
    );
    let without = ask(&rom, Role::Server, choice, &["undionly.kpxe"], &[]);
    assert_eq!(without, Ok(FirstFile::Script));
    assert_eq!(
        ask(&ipxe(7), Role::Server, choice, &[], &[]),
        Ok(FirstFile::Script)
    );
    let known = Circumstances {
        choice,
        exists: &|_| true,
        refused: &[],
        chainloaded: true,
    };
    assert_eq!(
        first_file(&rom, Role::Server, &known),
        Ok(FirstFile::Script)
    );
}

#[test]
fn what_comes_from_packages_is_named_without_folders() {
    let names: Vec<_> = loader_names().collect();
    for name in ["undionly.kpxe", "shimx64.efi", "grubx64.efi", "snponly.efi"] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(names.iter().all(|name| !name.contains('/')));
}
