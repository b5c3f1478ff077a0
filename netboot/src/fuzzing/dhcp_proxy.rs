//! The proxy, and the search for other servers, through any sequence of messages and times.
//!
//! What must hold: no address is given or refused; only who asked for a boot file by options 60 *and*
//! 93, or is our agent, gets an answer, and that one well formed to where it can be heard; a search ends
//! and stays small whatever it hears.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use protocol::dhcp::{
    AGENT_CLASS, BOOTREPLY, BOOTREQUEST, MacAddress, Message, MessageType, Options, code,
};

use super::Choices;
use crate::dhcp::{
    boot_table::{BootRequest, FirstFile, FirstFiles, NoFirstFile},
    exchange::Destination,
    other_servers::{Patience, Search},
    proxy::{
        Asked, Door, Fetches, Proxy, ProxyReaction, ProxySettings, Way, WayChoice, WayPolicy,
        WayRule,
    },
};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

struct SomeFiles;

impl FirstFiles for SomeFiles {
    fn first_file(&self, request: &BootRequest) -> Result<FirstFile, NoFirstFile> {
        match request.client.architectures[0].0 % 4 {
            0 => Ok(FirstFile::Tftp("undionly.kpxe".to_owned())),
            1 => Ok(FirstFile::Http("netboot-x64.efi".to_owned())),
            2 => Ok(FirstFile::Script),
            _ => Err(NoFirstFile::UnknownArchitecture {
                architectures: request.client.architectures.clone(),
            }),
        }
    }
}

struct Fetched(bool);

impl Fetches for Fetched {
    fn fetched_within(&self, _: MacAddress, _: Duration) -> bool {
        self.0
    }
}

/// Plays bytes against a proxy and a search.
///
/// # Panics
/// When an invariant is broken.
pub fn dhcp_proxy(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let choice = choices.of([
        WayChoice::Auto,
        WayChoice::Always(Way::Direct),
        WayChoice::Always(Way::Port4011),
    ]);
    let mut proxy = Proxy::new(ProxySettings {
        addresses: vec![ipnet::Ipv4Net::new_assert(OWN, 24)],
        http_port: 8080,
        ways: WayPolicy {
            rules: vec![WayRule {
                mac: Some(vec![2, 1]),
                vendor_class: None,
                architecture: Some(7),
                choice: WayChoice::Always(Way::Port4011),
            }],
            otherwise: choice,
        },
    });
    let patience = choices.of([Patience::FirstAnswer, Patience::Everybody]);
    let mut search = Search::new(mac(0), 7, vec![OWN], patience);
    let mut now = Duration::ZERO;
    while !choices.is_empty() {
        now += Duration::from_millis(u64::from(choices.byte()) * 100);
        let door = choices.of([Door::Servers, Door::BootServers]);
        let source = choices.of([Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 77, 0, 9), OWN]);
        let source = SocketAddrV4::new(source, choices.of([68, 4011, 67]));
        let bytes = if choices.byte() % 8 == 0 {
            let len = usize::from(choices.word() % 700);
            choices.take(len).to_vec()
        } else {
            message(&mut choices)
        };
        let asked = Asked {
            files: &SomeFiles,
            fetches: &Fetched(choices.byte() & 1 != 0),
        };
        let reaction = proxy.handle(&bytes, now, door, source, &asked);
        check(&bytes, door, source, &reaction);
        search.hear(*source.ip(), &bytes, now);
    }
    assert!(
        search
            .next_wake()
            .is_some_and(|wake| wake <= Duration::from_secs(4))
    );
    search.questions(Duration::from_secs(4));
    assert!(search.next_wake().is_none());
    assert!(search.into_found().len() <= 16);
}

fn mac(number: u8) -> MacAddress {
    MacAddress::new([2, number % 2, 0, 0, 0, number])
}

fn message(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut hardware_address = [0; 16];
    hardware_address[..6].copy_from_slice(&mac(choices.byte() % 5).bytes());
    let mut options = Options::new();
    let form = choices.byte();
    if form & 1 != 0 {
        let (number, len) = (choices.byte(), usize::from(choices.byte()));
        options.set(number, choices.take(len));
    }
    if form & 2 != 0 {
        let len = usize::from(choices.byte() % 32);
        options.set(code::RELAY_INFORMATION, choices.take(len));
    }
    if form & 4 != 0 {
        options.set(code::CLIENT_ARCHITECTURE, [0, choices.byte() % 20]);
    }
    if form & 8 != 0 {
        let len = usize::from(choices.byte() % 16);
        options.set(code::VENDOR_SPECIFIC, choices.take(len));
    }
    let class = choices.of([
        "PXEClient:Arch:00007",
        "HTTPClient",
        AGENT_CLASS,
        "MSFT 5.0",
        "",
    ]);
    options.set(code::VENDOR_CLASS, class);
    options.set(code::MESSAGE_TYPE, [choices.byte() % 10]);
    let near = |bit: u8| {
        if form & bit == 0 {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::new(10, 77, 0, bit)
        }
    };
    Message {
        op: choices.of([BOOTREQUEST, BOOTREQUEST, BOOTREQUEST, BOOTREPLY]),
        hardware_type: 1,
        hardware_length: 6,
        hops: choices.byte() % 20,
        transaction: u32::from(choices.byte() % 10),
        seconds: 0,
        broadcast: form & 16 != 0,
        client_address: near(32),
        your_address: near(64),
        server_address: Ipv4Addr::UNSPECIFIED,
        relay_address: near(128),
        hardware_address,
        file: Vec::new(),
        options,
    }
    .emit()
}

fn check(bytes: &[u8], door: Door, source: SocketAddrV4, reaction: &ProxyReaction) {
    let Some(reply) = &reaction.reply else {
        return;
    };
    let request = Message::parse(bytes).expect("only a message is answered");
    assert_eq!(request.op, BOOTREQUEST, "an answer is answered");
    let class = request.options.get(code::VENDOR_CLASS).unwrap_or_default();
    let asks = class.starts_with(b"PXEClient") || class.starts_with(b"HTTPClient");
    let boots = asks && request.options.get(code::CLIENT_ARCHITECTURE).is_some();
    let agent = class == AGENT_CLASS.as_bytes();
    assert!(boots || agent, "an answer to somebody who did not ask");

    let message = Message::parse(&reply.bytes).expect("a reply is a message");
    assert!(!message.options.is_truncated());
    assert_eq!(message.op, BOOTREPLY);
    assert_eq!(message.transaction, request.transaction);
    assert_eq!(message.mac(), request.mac());
    assert!(
        message.your_address.is_unspecified(),
        "an address was given"
    );
    assert_eq!(message.options.address(code::SERVER_ID), Some(OWN));
    for of_servers in [
        code::LEASE_TIME,
        code::SUBNET_MASK,
        code::ROUTER,
        code::IPXE,
    ] {
        assert_eq!(message.options.get(of_servers), None);
    }
    assert_eq!(
        message.options.get(code::RELAY_INFORMATION),
        request.options.get(code::RELAY_INFORMATION)
    );
    match (door, message.message_type(), reply.destination) {
        (Door::Servers, Some(MessageType::Offer | MessageType::Ack), Destination::Relay(relay)) => {
            assert_eq!(*relay.ip(), request.relay_address);
        }
        (Door::Servers, Some(MessageType::Offer), Destination::Broadcast) => {
            assert!(request.relay_address.is_unspecified());
        }
        (_, Some(MessageType::Ack), Destination::UnicastAddress(to)) => {
            assert!(to == source || *to.ip() == request.client_address);
            assert!(!to.ip().is_unspecified());
        }
        other => panic!("{other:?} is no answer of a proxy"),
    }
}
