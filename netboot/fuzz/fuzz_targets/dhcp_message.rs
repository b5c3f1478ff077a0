//! Any bytes are read without a panic; what was read is written and read back alike; where
//! `dhcproto` reads the same bytes too, both agree.

#![no_main]

use std::collections::BTreeMap;

use dhcproto::{Decodable, Decoder, v4};
use libfuzzer_sys::fuzz_target;
use protocol::dhcp::{BootClient, Message, MessageType, RelayInformation, client_uuid, code};

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::parse(bytes) else {
        return;
    };
    let sum: usize = message.options.iter().map(|(_, value)| value.len()).sum();
    assert!(sum <= bytes.len(), "more in the options than in the packet");
    let _ = (
        BootClient::of(&message),
        RelayInformation::of(&message),
        client_uuid(&message),
        message.options.text(code::VENDOR_CLASS),
    );
    let written = message.emit();
    assert!(written.len() >= 300);
    let again = Message::parse(&written).expect("what was written is read");
    let options = |message: &Message| -> BTreeMap<u8, Vec<u8>> {
        let all = message.options.iter();
        all.map(|(code, value)| (code, value.to_vec())).collect()
    };
    // An overload mark makes the file's name an area of options, and the reader looks into it.
    if message.options.get(code::OVERLOAD).is_none() {
        assert_eq!(options(&again), options(&message));
        let cut = message.file.len().min(127);
        assert_eq!(again.file, message.file[..cut]);
    }
    assert_eq!(again.transaction, message.transaction);
    assert_eq!(again.mac(), message.mac());
    let reply = message.reply(MessageType::Nak).emit();
    let reply = Message::parse(&reply).expect("a reply is read");
    assert_eq!(reply.message_type(), Some(MessageType::Nak));
    agrees_with_dhcproto(&message, bytes);
});

/// The options that both are asked for.
const COMPARED: [u8; 4] = [
    code::REQUESTED_ADDRESS,
    code::LEASE_TIME,
    code::MESSAGE_TYPE,
    code::SERVER_ID,
];

/// The message with only some of its options: `dhcproto` 0.15 panics at others, such as a client
/// network interface (94) that has not 3 bytes.
fn with_options(bytes: &[u8], wanted: &[u8]) -> Vec<u8> {
    let (header, mut rest) = bytes.split_at(240);
    let mut kept = header.to_vec();
    loop {
        rest = match rest {
            [code::PAD, rest @ ..] => rest,
            [code::END, ..] | [] | [_] => break,
            [code, len, body @ ..] => {
                let Some((value, next)) = body.split_at_checked(usize::from(*len)) else {
                    break;
                };
                if wanted.contains(code) {
                    kept.extend([*code, *len]);
                    kept.extend(value);
                }
                next
            }
        };
    }
    kept.push(code::END);
    kept
}

fn agrees_with_dhcproto(ours: &Message, bytes: &[u8]) {
    let bytes = with_options(bytes, &COMPARED);
    let Ok(theirs) = v4::Message::decode(&mut Decoder::new(&bytes)) else {
        return;
    };
    assert_eq!(theirs.xid(), ours.transaction);
    assert_eq!(theirs.ciaddr(), ours.client_address);
    assert_eq!(theirs.yiaddr(), ours.your_address);
    assert_eq!(theirs.siaddr(), ours.server_address);
    assert_eq!(theirs.giaddr(), ours.relay_address);
    assert_eq!(theirs.flags().broadcast(), ours.broadcast);
    assert_eq!(theirs.secs(), ours.seconds);
    // It looks for options in neither `file` nor `sname`, and joins no parts.
    if ours.options.get(code::OVERLOAD).is_some() {
        return;
    }
    let options = theirs.opts();
    if let (Some(theirs), Some(ours)) = (options.msg_type(), ours.message_type()) {
        assert_eq!(u8::from(theirs), ours.to_byte());
    }
    use v4::{DhcpOption, OptionCode};
    for (theirs, number) in [
        (OptionCode::RequestedIpAddress, code::REQUESTED_ADDRESS),
        (OptionCode::ServerIdentifier, code::SERVER_ID),
    ] {
        if let Some(DhcpOption::RequestedIpAddress(theirs) | DhcpOption::ServerIdentifier(theirs)) =
            options.get(theirs)
            && let Some(ours) = ours.options.address(number)
        {
            assert_eq!(*theirs, ours, "option {number}");
        }
    }
    if let Some(DhcpOption::AddressLeaseTime(theirs)) = options.get(OptionCode::AddressLeaseTime)
        && let Some(ours) = ours.options.u32(code::LEASE_TIME)
    {
        assert_eq!(*theirs, ours, "lease time");
    }
}
