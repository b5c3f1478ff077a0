//! Configurations as people write them, right and wrong.

use super::*;
use crate::boot_policy::UnknownMachines;
use crate::dhcp::boot_table::{BiosLoader, LoaderChoice, UefiLoader};
use crate::dhcp::proxy::{Way, WayChoice, WayRule};
use crate::dhcp::reservations::Who;
use protocol::dhcp::MacAddress;

const WHOLE: &str = r#"
data_dir = "/var/lib/netboot"
boot_files = "/srv/boot"
[network]
interface = "eth0"
[dhcp]
mode = "server"
port = 67
lease_seconds = 7200
[tftp]
port = 69
[http]
port = 8080
advertised_port = 80
[[subnet]]
network = "10.77.0.0/24"
pool = "10.77.0.100-10.77.0.200"
server = "10.77.0.1"
router = "10.77.0.1"
dns = ["10.77.0.1"]
[[reservation]]
mac = "52:54:00:00:00:01"
address = "10.77.0.7"
name = "reception"
[boot]
unknown_machines = "local-disk"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("netboot.toml"), Overrides::default())
}

fn complaint(text: &str) -> String {
    parse(text).expect_err("a wrong configuration").to_string()
}

#[test]
fn a_whole_configuration_is_read() {
    let config = parse(WHOLE).expect("a right configuration");
    assert_eq!(config.listen, Listen::Interfaces(vec!["eth0".into()]));
    assert_eq!(
        config.dhcp,
        Some(Dhcp {
            mode: DhcpMode::Server,
            ways: WayPolicy::default(),
            port: 67,
            lease_seconds: 7200
        })
    );
    assert_eq!(config.advertised_port, Some(80));
    assert_eq!(config.boot.unknown, UnknownMachines::LocalDisk);
    assert_eq!(config.subnets[0].pool.clone().count(), 101);
    let mac = MacAddress::new([0x52, 0x54, 0, 0, 0, 1]);
    assert_eq!(config.reservations[0].who, Who::Mac(mac));
    assert_eq!(config.reservations[0].address, Ipv4Addr::new(10, 77, 0, 7));
}

#[test]
fn a_reservation_is_for_a_card_a_uuid_or_a_client_identifier() {
    let with = |keys: &str| {
        format!("{WHOLE}\n[[reservation]]\naddress = \"10.77.0.8\"\nname = \"desk-8\"\n{keys}")
    };
    let who = |keys: &str| {
        let config = parse(&with(keys)).expect("right");
        let last = config.reservations.last().expect("one more").clone();
        assert_eq!(last.name.as_deref(), Some("desk-8"));
        last.who
    };
    assert_eq!(
        who("uuid = \"01020304-0506-0708-090a-0b0c0d0e0f10\""),
        Who::Uuid([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    );
    assert_eq!(who("client_id = \"01:ff\""), Who::ClientId(vec![1, 0xff]));
    for keys in [
        "client_id = \"1ff\"",
        "uuid = \"12\"",
        "",
        "mac = \"52:54:00:00:00:09\"\nuuid = \"12\"",
    ] {
        assert!(complaint(&with(keys)).contains("reservation."), "{keys}");
    }
}

#[test]
fn the_defaults_need_an_interface_only() {
    let config = parse("[network]\ninterface = [\"eth0\", \"eth1\"]").expect("right");
    assert_eq!(config.data_dir, Path::new("/var/lib/netboot"));
    assert_eq!(config.boot_files, Path::new("/var/lib/netboot/boot"));
    assert_eq!((config.tftp_port, config.http_port), (69, 8080));
    assert_eq!(config.tftp_block_size, 1468);
    assert!(matches!(parse(""), Err(ConfigError::NoNetwork)));
}

#[test]
fn the_command_line_wins() {
    let overrides = Overrides {
        interfaces: vec!["eth9".into()],
        data_dir: Some("/data".into()),
        ..Overrides::default()
    };
    let config = Config::parse("data_dir = \"/other\"", Path::new("f"), overrides).expect("right");
    assert_eq!(config.listen, Listen::Interfaces(vec!["eth9".into()]));
    assert_eq!(config.boot_files, Path::new("/data/boot"));
}

#[test]
fn every_complaint_names_file_line_key_and_what_belongs_there() {
    let replaced = |from: &str, to: &str| complaint(&WHOLE.replace(from, to));
    for (from, to, expected) in [
        (
            "lease_seconds = 7200",
            "lease_seconds = 5",
            "netboot.toml line 9: dhcp.lease_seconds is \"5\", expected a number from 60 to 31536000",
        ),
        (
            "10.77.0.100-10.77.0.200",
            "10.77.0.100-10.77.1.200",
            "netboot.toml line 17: subnet.pool is \"10.77.0.100-10.77.1.200\", expected addresses of 10.77.0.0/24",
        ),
        (
            "\"10.77.0.0/24\"",
            "\"10.77.0.5/24\"",
            "netboot.toml line 16: subnet.network is \"10.77.0.5/24\", expected 10.77.0.0/24, without bits after the prefix",
        ),
        (
            "52:54:00:00:00:01",
            "52:54:00",
            "netboot.toml line 22: reservation.mac is \"52:54:00\", expected six hexadecimal pairs such as 52:54:00:12:34:56",
        ),
        (
            "mode = \"server\"",
            "mode = \"proxies\"",
            "netboot.toml line 7: dhcp.mode is \"proxies\", expected \"auto\", \"server\", \"proxy\" or \"off\"",
        ),
        (
            "address = \"10.77.0.7\"",
            "address = \"10.78.0.7\"",
            "netboot.toml line 23: reservation.address is \"10.78.0.7\", expected an address of one of the [[subnet]]s",
        ),
    ] {
        assert_eq!(replaced(from, to), expected);
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_named_with_their_line() {
    let unknown = complaint(&WHOLE.replace("lease_seconds", "lease_second"));
    assert!(
        unknown.starts_with("netboot.toml line 9: unknown field `lease_second`, expected"),
        "{unknown}"
    );
    let wrong = complaint("[tftp]\nport = \"69\"");
    assert!(
        wrong.starts_with("netboot.toml line 2: invalid type: string"),
        "{wrong}"
    );
    let word = complaint("[boot]\nunknown_machines = \"nothing\"");
    assert!(
        word.contains(
            "line 2: unknown variant `nothing`, expected one of `recovery`, `local-disk`"
        ),
        "{word}"
    );
    let menu = complaint("[network]\nlisten = \"127.0.0.1\"\n[boot]\nmenu_seconds = 4000");
    assert!(
        menu.contains("boot.menu_seconds") && menu.contains("0 to 3600"),
        "{menu}"
    );
    let syntax = complaint("[tftp\nport = 69");
    assert!(syntax.starts_with("netboot.toml line 1: "), "{syntax}");
}

#[test]
fn overlapping_subnets_and_double_reservations_are_refused() {
    let twice = format!(
        "{WHOLE}\n[[subnet]]\nnetwork = \"10.77.0.128/25\"\npool = \"10.77.0.130-10.77.0.140\""
    );
    assert!(complaint(&twice).contains("expected a network that does not overlap 10.77.0.0/24"));
    let twice =
        format!("{WHOLE}\n[[reservation]]\nmac = \"52:54:00:00:00:02\"\naddress = \"10.77.0.7\"");
    assert!(complaint(&twice).contains("expected an address that is reserved once only"));
}

#[test]
fn a_pool_option_is_for_starts_without_subnets() {
    let pool = |text: &str, file: &str| {
        let overrides = Overrides {
            pool: Some(text.into()),
            ..Overrides::default()
        };
        Config::parse(file, Path::new("f"), overrides)
    };
    let interface = "[network]\ninterface = \"eth0\"";
    let config = pool("10.1.0.5-10.1.0.9", interface).expect("right");
    assert_eq!(config.pool.map(Iterator::count), Some(5));
    assert!(pool("10.1.0.9-10.1.0.5", interface).is_err());
    assert!(pool("10.1.0.5-10.1.0.9", WHOLE).is_err());
}

#[test]
fn the_example_is_right_and_says_the_defaults() {
    let example = parse(include_str!("../../netboot.example.toml")).expect("right");
    let bare = parse("[network]\ninterface = \"eth0\"").expect("right");
    let stripped = Config {
        advertised_port: None,
        subnets: Vec::new(),
        reservations: Vec::new(),
        ..example
    };
    assert_eq!(stripped, bare);
}

#[test]
fn the_mode_is_auto_unless_the_file_or_before_it_the_command_line_says_otherwise() {
    let mode = |text: &str, option: Option<DhcpMode>| {
        let overrides = Overrides {
            mode: option,
            ..Overrides::default()
        };
        let text = format!("[network]\ninterface = \"eth0\"\n[dhcp]\n{text}");
        let config = Config::parse(&text, Path::new("netboot.toml"), overrides);
        config.expect("right").dhcp.map(|dhcp| dhcp.mode)
    };
    assert_eq!(mode("", None), Some(DhcpMode::Auto));
    assert_eq!(mode("mode = \"proxy\"", None), Some(DhcpMode::Proxy));
    assert_eq!(
        mode("mode = \"proxy\"", Some(DhcpMode::Server)),
        Some(DhcpMode::Server)
    );
    assert_eq!(mode("mode = \"server\"", Some(DhcpMode::Off)), None);
}

#[test]
fn firmware_can_be_told_its_file_in_the_way_it_wants() {
    let text = r#"
[network]
interface = "eth0"
[dhcp]
mode = "proxy"
proxy_offer = "direct"
[[proxy_client]]
mac = "52:54:00"
architecture = 7
proxy_offer = "port-4011"
"#;
    let ways = parse(text).expect("right").dhcp.expect("DHCP").ways;
    assert_eq!(ways.otherwise, WayChoice::Always(Way::Direct));
    assert_eq!(
        ways.rules,
        [WayRule {
            mac: Some(vec![0x52, 0x54, 0]),
            vendor_class: None,
            architecture: Some(7),
            choice: WayChoice::Always(Way::Port4011),
        }]
    );
    for (from, to, expected) in [
        (
            "\"direct\"",
            "\"4011\"",
            "line 6: dhcp.proxy_offer is \"4011\", expected \"auto\", \"direct\" or \"port-4011\"",
        ),
        (
            "52:54:00",
            "52:5",
            "line 8: proxy_client.mac is \"52:5\", expected the beginning of a MAC address such as 52:54:00, or a whole one",
        ),
        (
            "mac = \"52:54:00\"\narchitecture = 7\n",
            "",
            "line 8: proxy_client.proxy_offer is \"port-4011\", expected beside mac, vendor_class or architecture; for all machines it is dhcp.proxy_offer",
        ),
    ] {
        assert_eq!(
            complaint(&text.replace(from, to)),
            format!("netboot.toml {expected}")
        );
    }
}

#[test]
fn what_machines_boot_is_chosen_by_words() {
    let text = "[network]\nlisten = \"127.0.0.1\"\n[boot]\nunknown_machines = \"menu\"\n\
                menu_seconds = 0\nuefi_loader = \"unified\"\nbios_loader = \"undionly\"\n";
    let config = Config::parse(text, Path::new("netboot.toml"), Overrides::default()).unwrap();
    let loaders = LoaderChoice {
        uefi: UefiLoader::Unified,
        bios: BiosLoader::Undionly,
    };
    let boot = BootPolicy {
        unknown: UnknownMachines::Menu,
        menu_seconds: 0,
        loaders,
    };
    assert_eq!(config.boot, boot);
}
