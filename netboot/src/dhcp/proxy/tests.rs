//! What captured and crafted clients are answered, and what nobody is.

use super::*;
use crate::dhcp::boot_table::{BootRequest, FirstFile};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use protocol::dhcp::{MessageType, Options, SERVER_PORT};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const MAC: MacAddress = MacAddress::new([0x52, 0x54, 0, 0, 0, 9]);

/// A boot folder for x86.
struct Loaders;

impl FirstFiles for Loaders {
    fn first_file(&self, request: &BootRequest) -> Result<FirstFile, NoFirstFile> {
        assert_eq!(request.role, Role::Proxy);
        if request.client.ipxe.is_some() {
            return Ok(FirstFile::Script);
        }
        match request.client.architectures[0].0 {
            0 => Ok(FirstFile::Tftp("undionly.kpxe".to_owned())),
            7 | 9 => Ok(FirstFile::Tftp("snponly.efi".to_owned())),
            16 => Ok(FirstFile::Http("netboot-x64.efi".to_owned())),
            _ => Err(NoFirstFile::UnknownArchitecture {
                architectures: request.client.architectures.clone(),
            }),
        }
    }
}

struct Nothing;

impl Fetches for Nothing {
    fn fetched_within(&self, _: MacAddress, _: Duration) -> bool {
        false
    }
}

struct Everything;

impl Fetches for Everything {
    fn fetched_within(&self, _: MacAddress, _: Duration) -> bool {
        true
    }
}

fn proxy(otherwise: WayChoice) -> Proxy {
    let own = |text: &str| text.parse().expect("an address");
    Proxy::new(ProxySettings {
        addresses: vec![own("192.0.2.2/24"), own("10.9.0.2/16")],
        http_port: 8080,
        ways: WayPolicy {
            rules: Vec::new(),
            otherwise,
        },
    })
}

fn handle(proxy: &mut Proxy, bytes: &[u8], door: Door, source: SocketAddrV4) -> ProxyReaction {
    let asked = Asked {
        files: &Loaders,
        fetches: &Nothing,
    };
    proxy.handle(bytes, Duration::ZERO, door, source, &asked)
}

fn nobody() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT)
}

fn on_67(proxy: &mut Proxy, message: &Message) -> ProxyReaction {
    handle(proxy, &message.emit(), Door::Servers, nobody())
}

fn answer(reaction: &ProxyReaction) -> Message {
    let reply = reaction.reply.as_ref().expect("a reply");
    Message::parse(&reply.bytes).expect("a message")
}

fn message(kind: MessageType, options: &[(u8, &[u8])]) -> Message {
    let mut hardware_address = [0; 16];
    hardware_address[..6].copy_from_slice(&MAC.bytes());
    let mut all = Options::new();
    all.set(code::MESSAGE_TYPE, [kind.to_byte()]);
    for (code, value) in options {
        all.set(*code, *value);
    }
    Message {
        op: BOOTREQUEST,
        hardware_type: 1,
        hardware_length: 6,
        hops: 0,
        transaction: 7,
        seconds: 0,
        broadcast: false,
        client_address: Ipv4Addr::UNSPECIFIED,
        your_address: Ipv4Addr::UNSPECIFIED,
        server_address: Ipv4Addr::UNSPECIFIED,
        relay_address: Ipv4Addr::UNSPECIFIED,
        hardware_address,
        file: Vec::new(),
        options: all,
    }
}

const OVMF: &[(u8, &[u8])] = &[
    (code::VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003000"),
    (code::CLIENT_ARCHITECTURE, &[0, 7]),
];
const IPXE: &[(u8, &[u8])] = &[
    (code::VENDOR_CLASS, b"PXEClient:Arch:00000:UNDI:002001"),
    (code::CLIENT_ARCHITECTURE, &[0, 0]),
    (code::USER_CLASS, b"iPXE"),
    (code::IPXE, &[19, 1, 1]),
];

/// A captured UDP packet to or from a server's port.
struct Packet {
    source: SocketAddrV4,
    port: u16,
    payload: Vec<u8>,
}

/// The DHCP packets of a capture: classic pcap, Ethernet, IPv4 without options.
fn packets(pcap: &[u8]) -> Vec<Packet> {
    let mut rest = &pcap[24..];
    let mut found = Vec::new();
    while let [_, _, _, _, _, _, _, _, a, b, c, d, _, _, _, _, frames @ ..] = rest {
        let (frame, next) = frames.split_at(u32::from_le_bytes([*a, *b, *c, *d]) as usize);
        if let Some((source, to, payload)) = crate::frames::udp_payload(frame)
            && [67, 68, 4011].contains(&to.port())
        {
            let (port, payload) = (to.port(), payload.to_vec());
            found.push(Packet {
                source,
                port,
                payload,
            });
        }
        rest = next;
    }
    found
}

/// Our answers to the clients of a capture beside those that worked then, in turn.
fn replay(proxy: &mut Proxy, pcap: &[u8]) -> Vec<(Message, Message, Destination)> {
    let packets = packets(pcap);
    let mut worked = packets
        .iter()
        .filter(|packet| *packet.source.ip() == SERVER)
        .map(|packet| Message::parse(&packet.payload).expect("a message"));
    let mut answers = Vec::new();
    for packet in &packets {
        let door = match packet.port {
            67 => Door::Servers,
            4011 if *packet.source.ip() != SERVER => Door::BootServers,
            _ => continue,
        };
        let reaction = handle(proxy, &packet.payload, door, packet.source);
        if let Some(reply) = &reaction.reply {
            let ours = Message::parse(&reply.bytes).expect("a message");
            let worked = worked.next().expect("an answer that worked");
            answers.push((ours, worked, reply.destination));
        }
    }
    assert_eq!(worked.next(), None, "an answer is missing");
    answers
}

fn text(message: &Message, code: u8) -> Option<String> {
    message.options.text(code)
}

#[test]
fn captured_firmware_is_offered_what_booted_it() {
    let cases: [(&[u8], &str); 2] = [
        (
            include_bytes!("../../../tests/fixtures/proxy-v2-bios.pcap"),
            "http://192.0.2.2:8080/boot/ipxe?mac=52:54:00:00:00:01&platform=pcbios",
        ),
        (
            include_bytes!("../../../tests/fixtures/proxy-v2-ovmf.pcap"),
            "snponly.efi",
        ),
    ];
    for (pcap, file) in cases {
        let answers = replay(&mut proxy(WayChoice::Auto), pcap);
        assert_eq!(answers.len(), 1);
        let (ours, worked, destination) = &answers[0];
        assert_eq!(*destination, Destination::Broadcast);
        for code in [
            code::MESSAGE_TYPE,
            code::SERVER_ID,
            code::VENDOR_CLASS,
            code::VENDOR_SPECIFIC,
        ] {
            assert_eq!(ours.options.get(code), worked.options.get(code), "{code}");
        }
        assert_eq!(ours.server_address, worked.server_address);
        assert_eq!(ours.transaction, worked.transaction);
        assert_eq!(ours.your_address, Ipv4Addr::UNSPECIFIED);
        assert_eq!(text(ours, code::BOOT_FILE).as_deref(), Some(file));
        assert_eq!(ours.file, file.as_bytes());
        assert_eq!(
            ours.options.get(code::CLIENT_MACHINE).map(<[u8]>::len),
            Some(17)
        );
        assert!(ours.options.get(code::IPXE).is_none());
    }
}

#[test]
fn captured_firmware_that_comes_to_port_4011_is_told_there() {
    let cases: [(&[u8], u16); 2] = [
        (
            include_bytes!("../../../tests/fixtures/proxy-v3-bios.pcap"),
            68,
        ),
        (
            include_bytes!("../../../tests/fixtures/proxy-v3-ovmf.pcap"),
            4011,
        ),
    ];
    for (pcap, port) in cases {
        let answers = replay(&mut proxy(WayChoice::Always(Way::Port4011)), pcap);
        assert_eq!(answers.len(), 2);
        let (offer, ..) = &answers[0];
        assert_eq!(
            text(offer, code::VENDOR_CLASS).as_deref(),
            Some("PXEClient")
        );
        for code in [code::BOOT_FILE, code::VENDOR_SPECIFIC, code::TFTP_SERVER] {
            assert_eq!(offer.options.get(code), None);
        }
        assert!(offer.file.is_empty());
        let (ours, worked, destination) = &answers[1];
        let Destination::UnicastAddress(to) = destination else {
            panic!("not unicast: {destination:?}");
        };
        assert_eq!(to.port(), port);
        assert_eq!(*to.ip(), worked.client_address);
        for code in [code::MESSAGE_TYPE, code::SERVER_ID, code::VENDOR_CLASS] {
            assert_eq!(ours.options.get(code), worked.options.get(code), "{code}");
        }
        assert_eq!(ours.client_address, worked.client_address);
        assert_eq!(ours.server_address, worked.server_address);
        assert!(!ours.file.is_empty());
        assert_eq!(
            text(ours, code::BOOT_FILE),
            String::from_utf8(ours.file.clone()).ok()
        );
    }
}

#[test]
fn firmware_that_ignores_the_direct_offer_is_told_on_port_4011_all_the_same() {
    let pcap = include_bytes!("../../../tests/fixtures/proxy-v1-ovmf.pcap");
    let answers = replay(&mut proxy(WayChoice::Auto), pcap);
    let files: Vec<_> = answers
        .iter()
        .map(|(ours, ..)| text(ours, code::BOOT_FILE))
        .collect();
    let snponly = Some("snponly.efi".to_owned());
    assert_eq!(files, [snponly.clone(), snponly]);
}

#[test]
fn clients_that_did_not_ask_for_a_boot_file_get_no_answer() {
    let pxe: &[u8] = b"PXEClient:Arch:00007:UNDI:003000";
    let cases: [&[(u8, &[u8])]; 6] = [
        &[],
        &[(code::VENDOR_CLASS, b"MSFT 5.0")],
        &[(code::VENDOR_CLASS, pxe)],
        &[(code::CLIENT_ARCHITECTURE, &[0, 7])],
        &[
            (code::VENDOR_CLASS, b"d-i"),
            (code::CLIENT_ARCHITECTURE, &[0, 7]),
        ],
        &[(code::VENDOR_CLASS, pxe), (code::USER_CLASS, b"iPXE")],
    ];
    for options in cases {
        for kind in [
            MessageType::Discover,
            MessageType::Request,
            MessageType::Inform,
            MessageType::Decline,
            MessageType::Release,
        ] {
            for door in [Door::Servers, Door::BootServers] {
                let bytes = message(kind, options).emit();
                let source = SocketAddrV4::new([192, 0, 2, 85].into(), 68);
                let reaction = handle(&mut proxy(WayChoice::Auto), &bytes, door, source);
                assert_eq!(reaction.reply, None, "{kind:?} {options:?}");
                assert!(reaction.notes.is_empty() && reaction.ipxe.is_none());
            }
        }
    }
}

#[test]
fn a_request_to_the_other_server_gets_no_answer_and_tells_us_the_address() {
    let mut request = message(MessageType::Request, IPXE);
    request
        .options
        .set(code::SERVER_ID, OTHER.octets())
        .set(code::REQUESTED_ADDRESS, [192, 0, 2, 85]);
    let reaction = on_67(&mut proxy(WayChoice::Auto), &request);
    assert_eq!(reaction.reply, None);
    assert_eq!(reaction.takes, Some((MAC, [192, 0, 2, 85].into())));
    // It may have missed the advertisement that came with our offer.
    assert_eq!(reaction.ipxe, Some(MAC));
    request.options.set(code::SERVER_ID, SERVER.octets());
    let reaction = on_67(&mut proxy(WayChoice::Auto), &request);
    assert_eq!((reaction.reply, reaction.takes), (None, None));
}

#[test]
fn ipxe_is_not_told_to_ignore_proxies_and_hears_that_there_is_no_router() {
    let reaction = on_67(
        &mut proxy(WayChoice::Auto),
        &message(MessageType::Discover, IPXE),
    );
    let offer = answer(&reaction);
    assert_eq!(offer.options.get(code::IPXE), None);
    assert!(
        text(&offer, code::BOOT_FILE)
            .is_some_and(|url| url.starts_with("http://192.0.2.2:8080/boot/ipxe?"))
    );
    assert_eq!(reaction.ipxe, Some(MAC));
    let firmware = on_67(
        &mut proxy(WayChoice::Auto),
        &message(MessageType::Discover, OVMF),
    );
    assert_eq!(firmware.ipxe, None);
}

#[test]
fn http_boot_is_told_a_url_by_its_own_class_whatever_the_policy() {
    let discover = message(
        MessageType::Discover,
        &[
            (code::VENDOR_CLASS, b"HTTPClient:Arch:00016:UNDI:003001"),
            (code::CLIENT_ARCHITECTURE, &[0, 16]),
        ],
    );
    for choice in [WayChoice::Auto, WayChoice::Always(Way::Port4011)] {
        let offer = answer(&on_67(&mut proxy(choice), &discover));
        assert_eq!(
            text(&offer, code::VENDOR_CLASS).as_deref(),
            Some("HTTPClient")
        );
        let url = text(&offer, code::BOOT_FILE).expect("a URL");
        assert!(url.starts_with("http://192.0.2.2:8080/") && url.ends_with("/netboot-x64.efi"));
        assert_eq!(offer.file, url.as_bytes());
        assert_eq!(offer.options.get(code::VENDOR_SPECIFIC), None);
    }
}

#[test]
fn a_relayed_discover_is_answered_to_the_relay_with_its_information() {
    let mut discover = message(MessageType::Discover, IPXE);
    discover.relay_address = [10, 9, 7, 1].into();
    discover.hops = 1;
    discover
        .options
        .set(code::RELAY_INFORMATION, [1, 4, b'g', b'e', b'0', b'1']);
    let source = SocketAddrV4::new([10, 9, 7, 1].into(), 67);
    let reaction = handle(
        &mut proxy(WayChoice::Auto),
        &discover.emit(),
        Door::Servers,
        source,
    );
    let reply = reaction.reply.as_ref().expect("a reply");
    let relay = SocketAddrV4::new([10, 9, 7, 1].into(), SERVER_PORT);
    assert_eq!(reply.destination, Destination::Relay(relay));
    let offer = answer(&reaction);
    assert_eq!(
        offer.options.get(code::RELAY_INFORMATION),
        Some(&[1, 4, b'g', b'e', b'0', b'1'][..])
    );
    // Our address in the relay's network, not the first one.
    assert_eq!(offer.server_address, Ipv4Addr::new(10, 9, 0, 2));
    assert_eq!(reaction.ipxe, None, "it is not on this link");
}

#[test]
fn an_agent_without_a_command_line_is_told_where_its_server_is() {
    let mut inform = message(
        MessageType::Inform,
        &[(code::VENDOR_CLASS, AGENT_CLASS.as_bytes())],
    );
    inform.client_address = [192, 0, 2, 85].into();
    let source = SocketAddrV4::new([192, 0, 2, 85].into(), 68);
    let mut proxy = proxy(WayChoice::Auto);
    let reaction = handle(&mut proxy, &inform.emit(), Door::Servers, source);
    let reply = reaction.reply.as_ref().expect("a reply");
    assert_eq!(reply.destination, Destination::UnicastAddress(source));
    let ack = answer(&reaction);
    assert_eq!(ack.message_type(), Some(MessageType::Ack));
    assert_eq!(
        ack.options.get(code::NETBOOT_SERVER),
        Some(&b"http://192.0.2.2:8080"[..])
    );
    assert_eq!(ack.client_address, inform.client_address);
    // One that cannot be reached gets nothing.
    inform.client_address = Ipv4Addr::UNSPECIFIED;
    let reaction = handle(&mut proxy, &inform.emit(), Door::Servers, nobody());
    assert_eq!(reaction.reply, None);
}

#[test]
fn a_machine_that_nothing_here_boots_is_left_to_others_and_noted() {
    let discover = message(
        MessageType::Discover,
        &[
            (code::VENDOR_CLASS, b"PXEClient:Arch:00006"),
            (code::CLIENT_ARCHITECTURE, &[0, 6]),
        ],
    );
    for choice in [WayChoice::Auto, WayChoice::Always(Way::Port4011)] {
        let reaction = on_67(&mut proxy(choice), &discover);
        assert_eq!(reaction.reply, None);
        assert_eq!(reaction.notes.len(), 1);
        assert!(reaction.notes[0].boots && reaction.notes[0].fact.trouble());
    }
}

#[test]
fn our_own_search_for_other_servers_is_not_answered() {
    let bytes = message(MessageType::Discover, OVMF).emit();
    let ours = SocketAddrV4::new(SERVER, 40_000);
    let reaction = handle(&mut proxy(WayChoice::Auto), &bytes, Door::Servers, ours);
    assert!(reaction.reply.is_none() && reaction.notes.is_empty());
}

#[test]
fn a_boot_item_that_we_never_listed_is_not_ours_to_serve() {
    let source = SocketAddrV4::new([192, 0, 2, 85].into(), 68);
    let mut request = message(MessageType::Request, OVMF);
    request.client_address = *source.ip();
    request
        .options
        .set(code::VENDOR_SPECIFIC, [71, 4, 0, 0, 0, 0, 255]);
    let mut proxy = proxy(WayChoice::Auto);
    let reaction = handle(&mut proxy, &request.emit(), Door::BootServers, source);
    assert_eq!(
        answer(&reaction).options.get(code::VENDOR_SPECIFIC),
        Some(&[71, 4, 0, 0, 0, 0, 255][..])
    );
    request
        .options
        .set(code::VENDOR_SPECIFIC, [71, 4, 0x80, 0, 0, 0, 255]);
    let reaction = handle(&mut proxy, &request.emit(), Door::BootServers, source);
    assert_eq!(reaction.reply, None);
}

#[test]
fn firmware_that_fetched_nothing_twice_gets_the_other_offer_and_it_is_noted() {
    let boots = |fetches: &dyn Fetches| {
        let mut proxy = proxy(WayChoice::Auto);
        let mut seen = Vec::new();
        for boot in 0..3_u32 {
            let mut discover = message(MessageType::Discover, OVMF);
            discover.transaction = boot;
            let now = Duration::from_secs(90 * u64::from(boot));
            let asked = Asked {
                files: &Loaders,
                fetches,
            };
            let reaction = proxy.handle(&discover.emit(), now, Door::Servers, nobody(), &asked);
            let direct = answer(&reaction)
                .options
                .get(code::VENDOR_SPECIFIC)
                .is_some();
            let noted = reaction.notes.iter().any(|note| {
                matches!(
                    note.fact,
                    Fact::ProxyWay {
                        port_4011: true,
                        boots: 2
                    }
                )
            });
            seen.push((direct, noted));
        }
        seen
    };
    assert_eq!(
        boots(&Nothing),
        [(true, false), (true, false), (false, true)]
    );
    assert_eq!(boots(&Everything), [(true, false); 3]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_answer_or_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        boot_servers: bool,
    ) {
        let door = if boot_servers { Door::BootServers } else { Door::Servers };
        let reaction = handle(&mut proxy(WayChoice::Auto), &bytes, door, nobody());
        prop_assert!(reaction.reply.is_none());
    }

    #[test]
    fn whoever_asks_whatever_no_address_is_given_and_only_askers_are_answered(
        kind in 0_u8..12,
        class in prop::option::of(prop::sample::select(vec![
            "PXEClient:Arch:00007", "HTTPClient:Arch:00016", "PXEClientele", "netboot-agent", "MSFT 5.0", "",
        ])),
        architectures in prop::option::of(prop::collection::vec(any::<u8>(), 0..5)),
        others in prop::collection::vec((1_u8..255, prop::collection::vec(any::<u8>(), 0..20)), 0..6),
        addresses: [[u8; 4]; 2],
        source: [u8; 4],
        boot_servers: bool,
        four: bool,
    ) {
        let mut request = message(MessageType::Discover, &[]);
        for (code, value) in others {
            if ![code::OVERLOAD, code::VENDOR_CLASS, code::CLIENT_ARCHITECTURE].contains(&code) {
                request.options.set(code, value);
            }
        }
        request.options.set(code::MESSAGE_TYPE, [kind]);
        if let Some(class) = class {
            request.options.set(code::VENDOR_CLASS, class);
        }
        if let Some(architectures) = &architectures {
            request.options.set(code::CLIENT_ARCHITECTURE, architectures.clone());
        }
        [request.client_address, request.relay_address] = addresses.map(Ipv4Addr::from);
        let door = if boot_servers { Door::BootServers } else { Door::Servers };
        let way = if four { Way::Port4011 } else { Way::Direct };
        let source = SocketAddrV4::new(source.into(), 68);
        let reaction = handle(&mut proxy(WayChoice::Always(way)), &request.emit(), door, source);
        if let Some(reply) = reaction.reply {
            let reply = Message::parse(&reply.bytes).expect("a message");
            prop_assert_eq!(reply.your_address, Ipv4Addr::UNSPECIFIED);
            for of_servers in [code::LEASE_TIME, code::SUBNET_MASK, code::ROUTER, code::DNS] {
                // Option 82 aside, nothing of the client's comes back but what it expects.
                prop_assert!(reply.options.get(of_servers).is_none());
            }
            let class = class.unwrap_or_default();
            let boots = (class.starts_with("PXEClient") || class.starts_with("HTTPClient"))
                && architectures.is_some_and(|list| list.len() >= 2);
            prop_assert!(boots || class == AGENT_CLASS);
            let expected = match (door, kind) {
                (Door::Servers, 1) => MessageType::Offer,
                (Door::Servers, 8) | (Door::BootServers, 3 | 8) => MessageType::Ack,
                other => panic!("{other:?} was answered"),
            };
            prop_assert_eq!(reply.message_type(), Some(expected));
        }
    }
}
