//! The DHCP server through any sequence of messages, times and restarts.
//!
//! A handful of clients, two small subnets with pools, reservations and a relay, so that addresses
//! are short. What must hold: at most one reply, well formed, to the client that asked; an address
//! is granted to no client while another one's lease runs, and only from the pool or the client's
//! own reservation; the lease of an acknowledgement is among those to be saved; a client that asked
//! for no boot file is told of none.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
};

use protocol::dhcp::{
    BOOTREPLY, BOOTREQUEST, BootClient, MacAddress, Message, MessageType, Options, code,
};

use super::Choices;
use crate::dhcp::{
    boot_table::{BootRequest, FirstFile, FirstFiles, NoFirstFile},
    exchange::{Arrival, Destination, Reaction},
    lease::{Lease, LeaseState, UnixSeconds},
    reservations::{Reservation, Who},
    server::{DhcpServer, Settings, Subnet},
};

const CLIENTS: u8 = 7;
const LEASE_SECONDS: u32 = 600;
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 78, 0, 1)];
const POOL: std::ops::RangeInclusive<u8> = 2..=5;
/// Reserved in both subnets for the client of this number.
const RESERVED: u8 = 9;
const RESERVED_FOR: u8 = 1;
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 14);

struct OneFile;

impl FirstFiles for OneFile {
    fn first_file(&self, _: &BootRequest) -> Result<FirstFile, NoFirstFile> {
        Ok(FirstFile::Tftp("undionly.kpxe".to_owned()))
    }
}

/// Plays bytes against a server.
///
/// # Panics
/// When an invariant is broken.
pub fn dhcp_server(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mut play = Play::new();
    while !choices.is_empty() {
        match choices.byte() % 8 {
            0 => play.now += u64::from(choices.byte()) * u64::from(choices.byte()),
            // The clock was set back, and the server started again with what was saved.
            1 => {
                play.now = play.now.saturating_sub(u64::from(choices.word()));
                play.server = DhcpServer::new(settings(), play.saved.values().cloned().collect());
            }
            2 => {
                let len = usize::from(choices.word() % 700);
                let bytes = choices.take(len).to_vec();
                play.send(&bytes, choices.of([Ipv4Addr::UNSPECIFIED, RELAY]));
            }
            _ => {
                let (message, source) = play.message(&mut choices);
                play.send(&message, source);
            }
        }
    }
}

fn settings() -> Settings {
    let subnet = |server: Ipv4Addr| {
        let [a, b, c, _] = server.octets();
        let at = |last| u32::from(Ipv4Addr::new(a, b, c, last));
        Subnet {
            network: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), 28),
            pool: vec![at(*POOL.start())..=at(*POOL.end())],
            server,
            router: Some(Ipv4Addr::new(a, b, c, 3)),
            dns: vec![server],
            http_port: 8080,
        }
    };
    let reserved = SERVERS.map(|server| {
        let [a, b, c, _] = server.octets();
        Ipv4Addr::new(a, b, c, RESERVED)
    });
    Settings {
        subnets: SERVERS.map(subnet).to_vec(),
        reservations: reserved
            .map(|address| Reservation {
                who: Who::Mac(mac(RESERVED_FOR)),
                address,
                name: None,
            })
            .to_vec(),
        lease_seconds: LEASE_SECONDS,
    }
}

fn mac(number: u8) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 0, number])
}

struct Play {
    server: DhcpServer,
    now: u64,
    /// What the disk has, as `LeaseStore::save` keeps it.
    saved: BTreeMap<Ipv4Addr, Lease>,
    /// Who was granted what, and until when.
    granted: BTreeMap<Ipv4Addr, (MacAddress, u64)>,
    /// The last reply of each client.
    last: HashMap<MacAddress, Message>,
}

impl Play {
    fn new() -> Self {
        Self {
            server: DhcpServer::new(settings(), Vec::new()),
            now: 1_800_000_000,
            saved: BTreeMap::new(),
            granted: BTreeMap::new(),
            last: HashMap::new(),
        }
    }

    /// A message of a client, with what it knows from the last reply to it or with anything.
    fn message(&self, choices: &mut Choices<'_>) -> (Vec<u8>, Ipv4Addr) {
        let client = mac(choices.byte() % CLIENTS);
        let kind = choices.byte() % 9;
        let form = choices.byte();
        let relayed = form & 1 != 0;
        let mut hardware_address = [0; 16];
        hardware_address[..6].copy_from_slice(&client.bytes());
        let mut options = Options::new();
        options.set(code::MESSAGE_TYPE, [kind]);
        let last = self.last.get(&client);
        let address = if form & 2 == 0 {
            last.map_or(Ipv4Addr::UNSPECIFIED, |last| last.your_address)
        } else {
            Ipv4Addr::new(10, choices.of([77, 78, 79]), 0, choices.byte() % 18)
        };
        let renews = form & 4 != 0;
        if !renews && kind != 7 {
            options.set(code::REQUESTED_ADDRESS, address.octets());
        }
        if form & 8 != 0 {
            let server = last.and_then(|last| last.options.address(code::SERVER_ID));
            options.set(code::SERVER_ID, server.unwrap_or(SERVERS[0]).octets());
        }
        if form & 16 != 0 {
            options.set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001");
            options.set(code::CLIENT_ARCHITECTURE, [0, 0]);
        }
        if form & 32 != 0 {
            let (number, len) = (choices.byte(), usize::from(choices.byte()));
            options.set(number, choices.take(len));
        }
        if form & 64 != 0 {
            let len = usize::from(choices.byte() % 32);
            options.set(code::RELAY_INFORMATION, choices.take(len));
        }
        let message = Message {
            op: BOOTREQUEST,
            hardware_type: 1,
            hardware_length: 6,
            hops: u8::from(relayed),
            transaction: u32::from(form) << 8 | u32::from(kind),
            seconds: 0,
            broadcast: form & 128 != 0,
            client_address: if renews || kind == 7 {
                address
            } else {
                Ipv4Addr::UNSPECIFIED
            },
            your_address: Ipv4Addr::UNSPECIFIED,
            server_address: Ipv4Addr::UNSPECIFIED,
            relay_address: if relayed {
                RELAY
            } else {
                Ipv4Addr::UNSPECIFIED
            },
            hardware_address,
            file: Vec::new(),
            options,
        };
        let source = if relayed {
            RELAY
        } else {
            message.client_address
        };
        (message.emit(), source)
    }

    fn send(&mut self, bytes: &[u8], source: Ipv4Addr) {
        let arrival = Arrival {
            interface: SERVERS[0],
            source: SocketAddrV4::new(source, 68),
        };
        let now = UnixSeconds(self.now);
        let reaction = self.server.handle(bytes, now, arrival, &OneFile);
        let Ok(request) = Message::parse(bytes) else {
            assert!(reaction.reply.is_none() && reaction.changed.is_empty());
            return;
        };
        for lease in &reaction.changed {
            self.saved.insert(lease.address, lease.clone());
            if lease.state != LeaseState::Bound {
                self.granted.remove(&lease.address);
            }
        }
        self.check_reply(&request, &reaction);
    }

    fn check_reply(&mut self, request: &Message, reaction: &Reaction) {
        let Some(reply) = &reaction.reply else {
            return;
        };
        let client = request.mac().expect("only Ethernet is answered");
        assert_eq!(request.op, BOOTREQUEST, "an answer is answered");
        let message = Message::parse(&reply.bytes).expect("a reply is a message");
        assert!(!message.options.is_truncated());
        assert_eq!(message.op, BOOTREPLY);
        assert_eq!(message.transaction, request.transaction);
        assert_eq!(message.mac(), Some(client));
        assert_eq!(message.relay_address, request.relay_address);
        match reply.destination {
            Destination::Relay(relay) => assert_eq!(*relay.ip(), request.relay_address),
            _ => assert!(request.relay_address.is_unspecified()),
        }
        let boots = BootClient::of(request).is_some();
        let told = !message.file.is_empty() || message.options.get(code::BOOT_FILE).is_some();
        assert!(
            boots || !told,
            "a boot file for a client that asked for none"
        );
        let kind = message.message_type().expect("a reply has a type");
        let address = message.your_address;
        match kind {
            MessageType::Nak => assert!(address.is_unspecified()),
            MessageType::Ack if request.message_type() == Some(MessageType::Inform) => {
                assert!(address.is_unspecified());
                assert!(reaction.changed.is_empty());
            }
            MessageType::Offer | MessageType::Ack => {
                self.check_address(client, address, kind, reaction);
                self.last.insert(client, message);
            }
            other => panic!("a server does not send {other:?}"),
        }
    }

    fn check_address(
        &mut self,
        client: MacAddress,
        address: Ipv4Addr,
        kind: MessageType,
        reaction: &Reaction,
    ) {
        let [.., last] = address.octets();
        let home = SERVERS
            .iter()
            .any(|server| server.octets()[..3] == address.octets()[..3]);
        let reserved = last == RESERVED && client == mac(RESERVED_FOR);
        // 3 is the router's.
        let pooled = POOL.contains(&last) && last != 3;
        assert!(
            home && (reserved || pooled),
            "{address} is not to be given to {client}"
        );
        if let Some((holder, until)) = self.granted.get(&address) {
            assert!(
                *holder == client || *until <= self.now,
                "{address} is {holder}'s until {until}, and goes to {client} at {}",
                self.now
            );
        }
        if kind == MessageType::Ack {
            let until = self.now + u64::from(LEASE_SECONDS);
            let saved = reaction.changed.iter().any(|lease| {
                lease.address == address
                    && lease.mac == client
                    && lease.state == LeaseState::Bound
                    && lease.until == UnixSeconds(until)
            });
            assert!(saved, "granted and not saved");
            // A client has one address in a subnet: the new one ends its lease of the old one.
            self.granted.retain(|other, (holder, _)| {
                *holder != client || other.octets()[..3] != address.octets()[..3]
            });
            self.granted.insert(address, (client, until));
        }
    }
}
