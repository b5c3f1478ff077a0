//! The agent's DHCP client against any server: it never takes an address that no host can have,
//! never asks for more than its own, and always has a next step in the future.
//!
//! ```text
//! events: 0 seconds:u8 | 1 kind:u8 address:u8 len:u8 options | 2 len:u8 bytes | 3 (to the deadline)
//! ```

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use protocol::dhcp::{BOOTREPLY, MacAddress, Message, MessageType, code};

// The agent is a program: its parsers come in as source.
#[path = "../../../agent/src/net/dhcp_client.rs"]
#[allow(dead_code, reason = "a target uses a part of it")]
mod dhcp_client;
#[path = "../../../agent/src/net/random.rs"]
#[allow(dead_code, reason = "a target uses a part of it")]
mod random;

use dhcp_client::{Change, Client};

const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut now = Duration::ZERO;
    let mut client = Client::new(MAC, 7, now);
    let mut asked: Option<Message> = None;
    while let Some((event, after)) = rest.split_first() {
        rest = after;
        let change = match (event % 4, rest) {
            (0, [seconds, after @ ..]) => {
                now += Duration::from_secs(u64::from(*seconds) * u64::from(*seconds));
                rest = after;
                None
            }
            (1, [kind, address, len, after @ ..]) => {
                let (options, after) = after.split_at(usize::from(*len).min(after.len()));
                rest = after;
                asked.as_ref().and_then(|asked| {
                    let kind = MessageType::from_byte(kind % 9)?;
                    let mut reply = asked.reply(kind);
                    reply.your_address = [10, 77, 0, *address].into();
                    reply.options.set(code::SERVER_ID, [10, 77, 0, 1]);
                    let mut bytes = reply.emit();
                    let end = bytes.iter().rposition(|byte| *byte == code::END)?;
                    bytes.truncate(end);
                    bytes.extend(options);
                    client.receive(&bytes, now)
                })
            }
            (2, [len, after @ ..]) => {
                let (packet, after) = after.split_at(usize::from(*len).min(after.len()));
                rest = after;
                client.receive(packet, now)
            }
            _ => {
                now = now.max(client.deadline().min(now + Duration::from_secs(1 << 20)));
                None
            }
        };
        check(&client, change.as_ref());
        for step in 0.. {
            let (transmit, change) = client.poll(now);
            check(&client, change.as_ref());
            if let Some(transmit) = &transmit {
                let message = Message::parse(&transmit.bytes).expect("a message");
                assert_ne!(message.op, BOOTREPLY);
                assert_eq!(message.mac(), Some(MAC));
                asked = Some(message);
            }
            if transmit.is_none() && change.is_none() {
                break;
            }
            assert!(step < 4, "it talks without end");
        }
        assert!(client.deadline() > now, "its next step is in the past");
    }
});

fn check(client: &Client, change: Option<&Change>) {
    if let Some(Change::Granted(lease)) = change {
        assert!(!lease.address.is_unspecified() && !lease.address.is_multicast());
        assert_eq!(client.lease(), Some(lease));
    }
}
