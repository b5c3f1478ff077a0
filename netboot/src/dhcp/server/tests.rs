//! Exchanges as clients and relays have them, in order and out of it.

use std::{collections::HashMap, net::SocketAddrV4};

use super::*;
use crate::dhcp::{
    boot_table::{self, BootRequest, FirstFile, NoFirstFile},
    exchange::Destination,
    lease_store::{LeaseStore, SqliteLeases},
    reservations::Who,
};
use proptest::prelude::{any, prop, prop_assert, proptest};
use protocol::dhcp::{CLIENT_PORT, Options, SERVER_PORT};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const UUID: [u8; 16] = [4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16];
const START: UnixSeconds = UnixSeconds(1_800_000_000);

fn client(number: u8) -> MacAddress {
    MacAddress::new([0x52, 0x54, 0, 0, 0, number])
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn subnet(third: u8, first: u8, last: u8) -> Subnet {
    let at = |last| Ipv4Addr::new(10, 77, third, last);
    Subnet {
        network: Ipv4Net::new(at(0), 24).expect("a network"),
        pool: vec![u32::from(at(first))..=u32::from(at(last))],
        server: at(1),
        router: Some(at(1)),
        dns: vec![at(2), at(3)],
        http_port: 8080,
    }
}

fn settings(first: u8, last: u8) -> Settings {
    Settings {
        subnets: vec![subnet(0, first, last), subnet(9, 50, 60)],
        reservations: vec![kept(Who::Mac(client(7)), 7)],
        lease_seconds: 3600,
    }
}

fn kept(who: Who, last: u8) -> Reservation {
    Reservation {
        who,
        address: address(last),
        name: Some(format!("desk-{last}")),
    }
}

fn server(first: u8, last: u8) -> DhcpServer {
    DhcpServer::new(settings(first, last), Vec::new())
}

fn direct() -> Arrival {
    Arrival {
        interface: SERVER,
        source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT),
    }
}

fn request(mac: MacAddress, kind: MessageType) -> Message {
    let mut hardware_address = [0; 16];
    hardware_address[..6].copy_from_slice(&mac.bytes());
    let mut options = Options::new();
    options.set(code::MESSAGE_TYPE, [kind.to_byte()]);
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
        options,
    }
}

/// A boot folder with every loader.
struct Everything;

impl FirstFiles for Everything {
    fn first_file(&self, request: &BootRequest) -> Result<FirstFile, NoFirstFile> {
        let known = boot_table::Circumstances {
            choice: boot_table::LoaderChoice::default(),
            exists: &|_| true,
            refused: &[],
            chainloaded: false,
        };
        boot_table::first_file(&request.client, request.role, &known)
    }
}

fn selecting(mac: MacAddress, wanted: Ipv4Addr) -> Message {
    let mut message = request(mac, MessageType::Request);
    message
        .options
        .set(code::SERVER_ID, SERVER.octets())
        .set(code::REQUESTED_ADDRESS, wanted.octets());
    message
}

fn react(server: &mut DhcpServer, message: &Message, now: UnixSeconds) -> Reaction {
    server.handle(&message.emit(), now, direct(), &Everything)
}

fn answer(reaction: &Reaction) -> Message {
    let reply = reaction.reply.as_ref().expect("a reply");
    Message::parse(&reply.bytes).expect("a message")
}

/// The four-way exchange; the granted address.
fn bind(server: &mut DhcpServer, mac: MacAddress, now: UnixSeconds) -> Ipv4Addr {
    let offer = answer(&react(server, &request(mac, MessageType::Discover), now));
    assert_eq!(offer.message_type(), Some(MessageType::Offer));
    let ack = answer(&react(server, &selecting(mac, offer.your_address), now));
    assert_eq!(ack.message_type(), Some(MessageType::Ack));
    assert_eq!(ack.your_address, offer.your_address);
    ack.your_address
}

#[test]
fn a_four_way_exchange_grants_and_saves_the_offered_address() {
    let mut server = server(100, 200);
    let discover = react(
        &mut server,
        &request(client(1), MessageType::Discover),
        START,
    );
    assert!(discover.changed.is_empty(), "an offer is not saved");
    let offer = answer(&discover);
    assert_eq!(offer.options.address(code::SERVER_ID), Some(SERVER));
    assert_eq!(
        offer.options.address(code::SUBNET_MASK),
        Some(Ipv4Addr::new(255, 255, 255, 0))
    );
    assert_eq!(offer.options.address(code::ROUTER), Some(SERVER));
    assert_eq!(
        offer.options.get(code::DNS),
        Some(&[10, 77, 0, 2, 10, 77, 0, 3][..])
    );
    assert_eq!(offer.options.u32(code::LEASE_TIME), Some(3600));
    let granted = react(
        &mut server,
        &selecting(client(1), offer.your_address),
        START,
    );
    assert_eq!(answer(&granted).message_type(), Some(MessageType::Ack));
    assert_eq!(granted.changed[0].until, START.after(3600));
    assert_eq!(
        granted.reply.expect("a reply").destination,
        Destination::UnicastHardware {
            mac: client(1),
            ip: offer.your_address
        }
    );
}

#[test]
fn the_broadcast_flag_is_honoured() {
    let mut server = server(100, 200);
    let mut discover = request(client(1), MessageType::Discover);
    discover.broadcast = true;
    let reaction = react(&mut server, &discover, START);
    assert_eq!(
        reaction.reply.expect("a reply").destination,
        Destination::Broadcast
    );
}

#[test]
fn a_renewal_is_extended_and_answered_at_the_clients_address() {
    let mut server = server(100, 200);
    let has = bind(&mut server, client(1), START);
    let mut renewal = request(client(1), MessageType::Request);
    renewal.client_address = has;
    let arrival = Arrival {
        interface: SERVER,
        source: SocketAddrV4::new(has, 68),
    };
    let later = START.after(1800);
    let reaction = server.handle(&renewal.emit(), later, arrival, &Everything);
    assert_eq!(answer(&reaction).message_type(), Some(MessageType::Ack));
    assert_eq!(reaction.changed[0].until, later.after(3600));
    assert_eq!(
        reaction.reply.expect("a reply").destination,
        Destination::UnicastAddress(SocketAddrV4::new(has, 68))
    );
}

#[test]
fn a_renewal_that_the_server_forgot_is_granted_when_the_address_is_free() {
    let mut server = server(100, 200);
    let mut renewal = request(client(1), MessageType::Request);
    renewal.client_address = address(150);
    let reaction = react(&mut server, &renewal, START);
    assert_eq!(answer(&reaction).your_address, address(150));
}

#[test]
fn a_client_back_with_its_old_address_is_confirmed() {
    let mut server = server(100, 200);
    let has = bind(&mut server, client(1), START);
    let mut reboot = request(client(1), MessageType::Request);
    reboot.options.set(code::REQUESTED_ADDRESS, has.octets());
    let reaction = react(&mut server, &reboot, START.after(9999));
    assert_eq!(answer(&reaction).message_type(), Some(MessageType::Ack));
}

/// Found by the fuzz target `dhcp_server`: both addresses were saved as the client's, and which one a
/// server that started again took for its own depended on their ends.
#[test]
fn a_client_that_moved_keeps_its_last_address_over_a_restart() {
    let mut server = server(100, 101);
    let old = bind(&mut server, client(1), START);
    let new = address(if old == address(100) { 101 } else { 100 });
    // The clock was set back meanwhile: the new lease ends before the old one.
    let earlier = UnixSeconds(START.0 - 1000);
    let mut reboot = request(client(1), MessageType::Request);
    reboot.options.set(code::REQUESTED_ADDRESS, new.octets());
    let moved = react(&mut server, &reboot, earlier);
    assert_eq!(answer(&moved).your_address, new);
    let left: Vec<_> = moved.changed.iter().map(|lease| lease.state).collect();
    assert_eq!(left, [LeaseState::Released, LeaseState::Bound]);
    let mut server = DhcpServer::new(settings(100, 101), moved.changed);
    assert_eq!(bind(&mut server, client(2), earlier), old);
    assert_eq!(bind(&mut server, client(1), earlier), new);
}

#[test]
fn a_client_nobody_knows_is_left_to_other_servers() {
    let mut server = server(100, 200);
    let mut reboot = request(client(1), MessageType::Request);
    reboot
        .options
        .set(code::REQUESTED_ADDRESS, address(150).octets());
    assert_eq!(react(&mut server, &reboot, START).reply, None);
}

#[test]
fn an_address_of_another_network_is_refused_on_the_whole_link() {
    let mut server = server(100, 200);
    let mut reboot = request(client(1), MessageType::Request);
    reboot
        .options
        .set(code::REQUESTED_ADDRESS, [192, 168, 1, 5]);
    let reaction = react(&mut server, &reboot, START);
    assert_eq!(answer(&reaction).message_type(), Some(MessageType::Nak));
    assert_eq!(
        reaction.reply.expect("a reply").destination,
        Destination::Broadcast
    );
}

#[test]
fn an_address_of_another_client_is_refused() {
    let mut server = server(100, 200);
    let taken = bind(&mut server, client(1), START);
    let reaction = react(&mut server, &selecting(client(2), taken), START);
    assert_eq!(answer(&reaction).message_type(), Some(MessageType::Nak));
    assert!(reaction.changed.is_empty());
}

#[test]
fn another_servers_offer_taken_frees_ours() {
    let mut server = server(100, 100);
    react(
        &mut server,
        &request(client(1), MessageType::Discover),
        START,
    );
    let mut elsewhere = selecting(client(1), address(50));
    elsewhere.options.set(code::SERVER_ID, [10, 77, 0, 99]);
    assert_eq!(react(&mut server, &elsewhere, START).reply, None);
    assert_eq!(bind(&mut server, client(2), START), address(100));
}

#[test]
fn a_declined_address_is_given_to_nobody_for_an_hour() {
    let mut server = server(100, 101);
    let bad = bind(&mut server, client(1), START);
    let mut decline = request(client(1), MessageType::Decline);
    decline.options.set(code::REQUESTED_ADDRESS, bad.octets());
    let reaction = react(&mut server, &decline, START);
    assert_eq!(reaction.reply, None);
    assert_eq!(reaction.changed[0].state, LeaseState::Declined);
    assert_eq!(reaction.notes[0].fact, Fact::Declined { address: bad });
    let next = bind(&mut server, client(1), START);
    assert_ne!(next, bad);
    let other = request(client(2), MessageType::Discover);
    assert_eq!(react(&mut server, &other, START.after(3599)).reply, None);
    assert_eq!(
        answer(&react(&mut server, &other, START.after(3600))).your_address,
        bad
    );
}

#[test]
fn a_stranger_cannot_decline_an_address() {
    let mut server = server(100, 200);
    let has = bind(&mut server, client(1), START);
    let mut decline = request(client(2), MessageType::Decline);
    decline.options.set(code::REQUESTED_ADDRESS, has.octets());
    assert!(react(&mut server, &decline, START).changed.is_empty());
}

#[test]
fn a_released_address_is_free_at_once_and_its_clients_own_later() {
    let mut server = server(100, 100);
    let has = bind(&mut server, client(1), START);
    let mut release = request(client(1), MessageType::Release);
    release.client_address = has;
    let reaction = react(&mut server, &release, START);
    assert_eq!(reaction.reply, None);
    assert_eq!(reaction.changed[0].state, LeaseState::Released);
    assert_eq!(bind(&mut server, client(2), START), has);
}

#[test]
fn inform_is_answered_without_an_address_or_a_lease() {
    let mut server = server(100, 200);
    let mut inform = request(client(1), MessageType::Inform);
    inform.client_address = address(20);
    let reaction = react(&mut server, &inform, START);
    let ack = answer(&reaction);
    assert_eq!(ack.message_type(), Some(MessageType::Ack));
    assert!(ack.your_address.is_unspecified());
    assert_eq!(ack.options.get(code::LEASE_TIME), None);
    assert!(ack.options.get(code::DNS).is_some());
    assert!(reaction.changed.is_empty());
}

#[test]
fn the_agent_that_asks_by_inform_is_told_the_servers_url() {
    let mut server = server(100, 200);
    let mut inform = request(client(1), MessageType::Inform);
    inform.client_address = address(20);
    let reaction = react(&mut server, &inform, START);
    assert_eq!(answer(&reaction).options.get(code::NETBOOT_SERVER), None);
    inform
        .options
        .set(code::VENDOR_CLASS, protocol::dhcp::AGENT_CLASS);
    let reaction = react(&mut server, &inform, START);
    let ack = answer(&reaction);
    let url = ack
        .options
        .get(code::NETBOOT_SERVER)
        .map(String::from_utf8_lossy);
    assert!(
        url.as_ref().is_some_and(|url| url.starts_with("http://")),
        "{url:?}"
    );
}

#[test]
fn an_exhausted_pool_is_silent_and_says_so_to_the_recorder() {
    let mut server = server(100, 101);
    bind(&mut server, client(1), START);
    bind(&mut server, client(2), START);
    let reaction = react(
        &mut server,
        &request(client(3), MessageType::Discover),
        START,
    );
    assert_eq!(reaction.reply, None);
    let network = "10.77.0.0/24".to_owned();
    assert_eq!(reaction.notes[0].fact, Fact::PoolExhausted { network });
    assert_eq!(
        bind(&mut server, client(3), START.after(3600)),
        address(100)
    );
}

#[test]
fn offers_not_taken_are_free_after_half_a_minute() {
    let mut server = server(100, 100);
    react(
        &mut server,
        &request(client(1), MessageType::Discover),
        START,
    );
    let other = request(client(2), MessageType::Discover);
    assert_eq!(react(&mut server, &other, START.after(29)).reply, None);
    assert!(react(&mut server, &other, START.after(30)).reply.is_some());
}

#[test]
fn a_reserved_address_is_its_machines_only() {
    let mut server = server(7, 8);
    assert_eq!(bind(&mut server, client(1), START), address(8));
    assert_eq!(bind(&mut server, client(7), START), address(7));
    assert_eq!(
        react(
            &mut server,
            &request(client(2), MessageType::Discover),
            START
        )
        .reply,
        None
    );
}

#[test]
fn an_offer_beside_a_lease_on_another_address_takes_one_address_however_often_it_is_asked_for() {
    // The pool was changed while client 1 had an address of the old one.
    let old = Lease {
        address: address(50),
        mac: client(1),
        state: LeaseState::Bound,
        until: START.after(3600),
    };
    let mut server = DhcpServer::new(settings(100, 101), vec![old]);
    for _ in 0..5 {
        let discover = request(client(1), MessageType::Discover);
        let offer = answer(&react(&mut server, &discover, START));
        assert_eq!(offer.your_address, address(100));
    }
    assert_eq!(bind(&mut server, client(2), START), address(101));
}

#[test]
fn leases_survive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.sqlite");
    let mut store = SqliteLeases::open(&path).expect("a database");
    let mut before = server(100, 200);
    bind(&mut before, client(1), START);
    let offer = answer(&react(
        &mut before,
        &request(client(2), MessageType::Discover),
        START,
    ));
    let granted = react(
        &mut before,
        &selecting(client(2), offer.your_address),
        START,
    );
    store.save(&granted.changed).expect("saved");
    drop((before, store));

    let mut store = SqliteLeases::open(&path).expect("a database");
    let mut after = DhcpServer::new(settings(100, 200), store.load().expect("read"));
    assert_eq!(bind(&mut after, client(2), START), offer.your_address);
    let taken = react(&mut after, &selecting(client(3), offer.your_address), START);
    assert_eq!(answer(&taken).message_type(), Some(MessageType::Nak));
}

fn relayed(mut message: Message, option_82: &[u8]) -> Message {
    message.relay_address = Ipv4Addr::LOCALHOST;
    message.hops = 1;
    message.options.set(code::RELAY_INFORMATION, option_82);
    message
}

#[test]
fn the_relays_link_and_port_are_used_and_its_option_echoed() {
    let mut server = server(100, 200);
    let option = [1, 2, b'p', b'1', 5, 4, 10, 77, 9, 0, 19, 0];
    let message = relayed(request(client(1), MessageType::Discover), &option);
    let source = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 40_067);
    let arrival = Arrival {
        interface: Ipv4Addr::LOCALHOST,
        source,
    };
    let reaction = server.handle(&message.emit(), START, arrival, &Everything);
    let offer = answer(&reaction);
    assert_eq!(offer.your_address, Ipv4Addr::new(10, 77, 9, 50));
    assert_eq!(offer.relay_address, Ipv4Addr::LOCALHOST);
    assert_eq!(
        offer.options.get(code::RELAY_INFORMATION),
        Some(&option[..])
    );
    assert_eq!(
        reaction.reply.expect("a reply").destination,
        Destination::Relay(source)
    );
}

#[test]
fn a_relay_without_sub_options_is_answered_on_port_67_by_its_own_subnet() {
    let mut server = server(100, 200);
    let mut message = request(client(1), MessageType::Discover);
    message.relay_address = Ipv4Addr::new(10, 77, 9, 2);
    let source = SocketAddrV4::new(message.relay_address, 40_067);
    let arrival = Arrival {
        interface: SERVER,
        source,
    };
    let reaction = server.handle(&message.emit(), START, arrival, &Everything);
    assert_eq!(answer(&reaction).your_address, Ipv4Addr::new(10, 77, 9, 50));
    assert_eq!(
        reaction.reply.expect("a reply").destination,
        Destination::Relay(SocketAddrV4::new(message.relay_address, SERVER_PORT))
    );
}

#[test]
fn a_link_without_a_subnet_is_told_to_the_recorder() {
    let mut server = server(100, 200);
    let message = relayed(
        request(client(1), MessageType::Discover),
        &[5, 4, 192, 168, 5, 0],
    );
    let reaction = react(&mut server, &message, START);
    assert_eq!(reaction.reply, None);
    let link = Ipv4Addr::new(192, 168, 5, 0);
    assert_eq!(reaction.notes[0].fact, Fact::NoSubnet { link });
}

#[test]
fn a_client_that_did_not_ask_is_told_of_no_boot_file() {
    let mut server = server(100, 200);
    let offer = answer(&react(
        &mut server,
        &request(client(1), MessageType::Discover),
        START,
    ));
    assert!(offer.file.is_empty() && offer.server_address.is_unspecified());
    for code in [
        code::BOOT_FILE,
        code::TFTP_SERVER,
        code::VENDOR_CLASS,
        code::IPXE,
    ] {
        assert_eq!(offer.options.get(code), None, "option {code}");
    }
}

#[test]
fn an_architecture_that_nothing_serves_gets_an_address_and_a_sentence() {
    let mut server = server(100, 200);
    let mut discover = request(client(1), MessageType::Discover);
    discover
        .options
        .set(code::VENDOR_CLASS, *b"PXEClient:Arch:00006:UNDI:003000");
    discover.options.set(code::CLIENT_ARCHITECTURE, [0, 6]);
    let reaction = react(&mut server, &discover, START);
    assert!(answer(&reaction).options.get(code::BOOT_FILE).is_none());
    let trouble = reaction.notes.iter().find(|note| note.fact.trouble());
    assert_eq!(
        trouble.map(|note| note.fact.to_string()).as_deref(),
        Some(
            "DHCP: the firmware asked for architecture 6 (UEFI IA32) and nothing here serves that"
        )
    );
}

#[test]
fn replies_and_group_addresses_are_ignored() {
    let mut server = server(100, 200);
    let mut reply = request(client(1), MessageType::Discover);
    reply.op = protocol::dhcp::BOOTREPLY;
    let group = request(MacAddress::new([0xff; 6]), MessageType::Discover);
    let mut looped = request(client(1), MessageType::Discover);
    looped.hops = 17;
    for message in [reply, group, looped] {
        assert_eq!(react(&mut server, &message, START).reply, None);
    }
}

/// UDP payloads to port 67 of a capture: classic pcap, Ethernet, IPv4 without options.
fn requests_in(pcap: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &pcap[24..];
    let mut found = Vec::new();
    while let [_, _, _, _, _, _, _, _, a, b, c, d, _, _, _, _, frames @ ..] = rest {
        let (frame, next) = frames.split_at(u32::from_le_bytes([*a, *b, *c, *d]) as usize);
        if frame.len() > 42
            && frame[12..14] == [8, 0]
            && frame[23] == 17
            && frame[36..38] == [0, 67]
        {
            found.push(frame[42..].to_vec());
        }
        rest = next;
    }
    found
}

/// What real firmware sent, and the file each of its requests is told in turn.
#[test]
fn captured_firmware_is_told_the_right_file() {
    let script = "http://10.77.0.1:8080/boot/ipxe?mac=";
    let cases: [(&str, &[u8], &[&str]); 6] = [
        (
            "bios-ipxe-rom-http",
            include_bytes!("../../../tests/fixtures/bios-ipxe-rom-http.pcap"),
            &[script],
        ),
        (
            "bios-undionly-chain",
            include_bytes!("../../../tests/fixtures/bios-undionly-chain.pcap"),
            &[script],
        ),
        (
            "uefi-ovmf-snponly",
            include_bytes!("../../../tests/fixtures/uefi-ovmf-snponly.pcap"),
            &["shimx64.efi", script],
        ),
        (
            "proxy-v2-ovmf",
            include_bytes!("../../../tests/fixtures/proxy-v2-ovmf.pcap"),
            &["shimx64.efi"],
        ),
        (
            "uefi-http-boot-ipxe",
            include_bytes!("../../../tests/fixtures/uefi-http-boot-ipxe.pcap"),
            &["http://10.77.0.1:8080/boot/for/", script],
        ),
        (
            "arm64-aavmf-grub",
            include_bytes!("../../../tests/fixtures/arm64-aavmf-grub.pcap"),
            &["shimaa64.efi"],
        ),
    ];
    for (name, pcap, expected) in cases {
        let mut server = server(100, 200);
        let mut told: Vec<String> = Vec::new();
        for bytes in requests_in(pcap) {
            let reaction = react_raw(&mut server, &bytes);
            let Some(reply) = reaction.reply else {
                continue;
            };
            let message = Message::parse(&reply.bytes).expect("a message");
            assert!(reply.bytes.len() >= 300);
            let Some(file) = message.options.text(code::BOOT_FILE) else {
                continue;
            };
            assert_eq!(message.server_address, SERVER, "{name}");
            assert_eq!(message.file, file.as_bytes(), "{name}");
            let http_client = Message::parse(&bytes)
                .ok()
                .and_then(|request| request.options.text(code::VENDOR_CLASS))
                .is_some_and(|class| class.starts_with("HTTPClient"));
            let class = message.options.text(code::VENDOR_CLASS);
            assert_eq!(
                class.as_deref(),
                http_client.then_some("HTTPClient"),
                "{name}"
            );
            if told.last() != Some(&file) {
                told.push(file);
            }
        }
        assert_eq!(told.len(), expected.len(), "{name}: {told:?}");
        for (file, expected) in told.iter().zip(expected) {
            assert!(file.starts_with(expected), "{name}: {file}");
        }
    }
}

fn react_raw(server: &mut DhcpServer, bytes: &[u8]) -> Reaction {
    server.handle(bytes, START, direct(), &Everything)
}

proptest! {
    #[test]
    fn no_bytes_make_the_server_panic(
        kind in 0_u8..10,
        area in prop::collection::vec(any::<u8>(), 0..400),
        header in prop::collection::vec(any::<u8>(), 28),
    ) {
        let mut server = server(100, 110);
        let mut bytes = request(client(1), MessageType::Discover).emit();
        bytes.truncate(240);
        // Everything but op and the card may be anything.
        bytes[3..28].copy_from_slice(&header[3..]);
        bytes.extend([53, 1, kind]);
        bytes.extend(area);
        let reaction = react_raw(&mut server, &bytes);
        prop_assert!(reaction.changed.len() <= 1);
    }

    #[test]
    fn no_address_is_ever_granted_twice(
        steps in prop::collection::vec((0_u8..6, 0_u8..5, 0_u32..2000, 98_u8..105), 1..80)
    ) {
        let mut server = server(100, 103);
        let mut now = START;
        let mut held: HashMap<Ipv4Addr, (MacAddress, UnixSeconds)> = HashMap::new();
        for (who, what, wait, last) in steps {
            now = now.after(wait);
            let mac = client(who);
            let message = match what {
                0 | 1 => request(mac, MessageType::Discover),
                2 => selecting(mac, address(last)),
                3 => {
                    let mut renewal = request(mac, MessageType::Request);
                    renewal.client_address = address(last);
                    renewal
                }
                _ => {
                    let mut release = request(mac, MessageType::Release);
                    release.client_address = address(last);
                    release
                }
            };
            let reaction = react(&mut server, &message, now);
            for lease in &reaction.changed {
                if lease.state == LeaseState::Bound {
                    if let Some((other, until)) = held.get(&lease.address) {
                        prop_assert!(*other == mac || *until <= now);
                    }
                    held.retain(|_, (holder, _)| *holder != mac);
                    held.insert(lease.address, (mac, lease.until));
                } else {
                    held.remove(&lease.address);
                }
            }
        }
    }
}

#[test]
fn a_reservation_by_uuid_or_client_identifier_is_the_machines_for_all_its_programs() {
    let settings = || Settings {
        reservations: vec![
            kept(Who::Uuid(UUID), 8),
            kept(Who::ClientId(b"\x00desk".to_vec()), 9),
        ],
        ..settings(100, 200)
    };
    let mut server = DhcpServer::new(settings(), Vec::new());
    let mut firmware = request(client(30), MessageType::Discover);
    let smbios: Vec<u8> = (0..=16).collect();
    firmware.options.set(code::CLIENT_MACHINE, smbios);
    let offer = answer(&react(&mut server, &firmware, START));
    assert_eq!(offer.your_address, address(8));
    assert_eq!(offer.options.get(code::HOST_NAME), Some(&b"desk-8"[..]));
    // Its system says no UUID, before and after a restart of the server.
    let mut take = selecting(client(30), address(8));
    let smbios: Vec<u8> = (0..=16).collect();
    take.options.set(code::CLIENT_MACHINE, smbios);
    let saved = react(&mut server, &take, START).changed;
    let plain = request(client(30), MessageType::Discover);
    let mut later = DhcpServer::new(settings(), saved);
    for server in [&mut server, &mut later] {
        let offer = answer(&react(server, &plain, START));
        assert_eq!(offer.your_address, address(8));
    }
    // Another machine gets it by neither way.
    let mut wish = request(client(31), MessageType::Discover);
    wish.options
        .set(code::REQUESTED_ADDRESS, address(8).octets());
    assert_ne!(
        answer(&react(&mut server, &wish, START)).your_address,
        address(8)
    );

    let mut known = request(client(32), MessageType::Discover);
    known.options.set(code::CLIENT_ID, *b"\x00desk");
    assert_eq!(
        answer(&react(&mut server, &known, START)).your_address,
        address(9)
    );
}

#[test]
fn an_address_in_use_is_refused_and_given_to_nobody_for_an_hour() {
    let mut server = server(100, 200);
    let discover = request(client(1), MessageType::Discover);
    let reaction = react(&mut server, &discover, START);
    let offered = answer(&reaction).your_address;
    assert_eq!(reaction.ask, Some(offered));
    let holder = client(99);
    let reaction = server.in_use(offered, holder, START);
    assert_eq!(reaction.changed[0].state, LeaseState::Declined);
    let note = &reaction.notes[0];
    let fact = Fact::AddressInUse {
        address: offered,
        by: holder,
    };
    assert_eq!((note.mac, &note.fact), (client(1), &fact));
    let refusal = answer(&react(&mut server, &selecting(client(1), offered), START));
    assert_eq!(refusal.message_type(), Some(MessageType::Nak));
    let next = bind(&mut server, client(1), START);
    assert_ne!(next, offered);
    let wish = |mac| {
        let mut message = request(mac, MessageType::Discover);
        message
            .options
            .set(code::REQUESTED_ADDRESS, offered.octets());
        message
    };
    assert_ne!(
        answer(&react(&mut server, &wish(client(2)), START)).your_address,
        offered
    );
    let later = START.after(QUARANTINE_SECONDS);
    assert_eq!(
        answer(&react(&mut server, &wish(client(3)), later)).your_address,
        offered
    );
}

#[test]
fn an_answer_of_the_client_itself_or_to_no_question_changes_nothing() {
    let mut server = server(100, 200);
    let offered = answer(&react(
        &mut server,
        &request(client(1), MessageType::Discover),
        START,
    ));
    let offered = offered.your_address;
    for (address, by) in [(offered, client(1)), (address(150), client(9))] {
        let reaction = server.in_use(address, by, START);
        assert!(reaction.changed.is_empty() && reaction.notes.is_empty());
    }
    assert_eq!(bind(&mut server, client(1), START), offered);
    // Granted: whoever speaks up now, the client has to decline it itself.
    assert!(server.in_use(offered, client(9), START).changed.is_empty());
}

#[test]
fn addresses_are_asked_about_ahead_of_clients_and_those_in_use_are_passed_over() {
    let mut server = server(100, 200);
    let link = [Ipv4Net::new(SERVER, 24).expect("a network")];
    let questions = server.ask_ahead(&link, START);
    assert_eq!(questions.len(), RESERVE);
    assert!(server.ask_ahead(&link, START).is_empty());
    let first = questions[0];
    server.in_use(first, client(99), START);
    let reaction = react(
        &mut server,
        &request(client(1), MessageType::Discover),
        START,
    );
    assert_eq!(answer(&reaction).your_address, questions[1]);
    // Asked about a moment ago, and nobody answered.
    assert_eq!(reaction.ask, None);
}
