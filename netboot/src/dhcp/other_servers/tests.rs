//! What a search asks, hears and takes for granted.

use super::*;
use proptest::prelude::{any, prop, prop_assert, proptest};

const CARD: MacAddress = MacAddress::new([0x00, 0x16, 0x3e, 1, 2, 3]);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn search(patience: Patience) -> Search {
    Search::new(CARD, 7000, vec![OWN], patience)
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn offer(question: &[u8], server: Ipv4Addr, address: [u8; 4]) -> Message {
    let question = Message::parse(question).expect("our question");
    let mut reply = question.reply(MessageType::Offer);
    reply.your_address = address.into();
    reply.options.set(code::SERVER_ID, server.octets());
    reply
}

#[test]
fn three_rounds_are_asked_and_only_discovers() {
    let mut search = search(Patience::Everybody);
    let mut asked = Vec::new();
    let mut last = Duration::ZERO;
    while let Some(wake) = search.next_wake() {
        last = wake;
        asked.extend(search.questions(wake));
    }
    assert_eq!(last, END);
    assert_eq!(asked.len(), 6);
    let macs: Vec<_> = asked
        .iter()
        .map(|bytes| {
            let message = Message::parse(bytes).expect("a message");
            assert_eq!(message.message_type(), Some(MessageType::Discover));
            assert!(message.broadcast && message.op == protocol::dhcp::BOOTREQUEST);
            message.mac().expect("a card")
        })
        .collect();
    assert!(macs[0].is_unicast() && macs[0].bytes()[0] & 2 == 2 && macs[0] != CARD);
    assert_eq!(macs[3], macs[0]);
    assert_eq!(macs[4], CARD);
}

#[test]
fn the_first_server_that_gives_addresses_ends_an_impatient_search() {
    let mut search = search(Patience::FirstAnswer);
    let asked = search.questions(Duration::ZERO);
    search.hear(
        OTHER,
        &offer(&asked[0], OTHER, [10, 0, 0, 77]).emit(),
        millis(20),
    );
    assert_eq!(search.next_wake(), Some(millis(320)));
    assert!(search.questions(millis(320)).is_empty());
    assert_eq!(search.next_wake(), None);
    let found = search.into_found();
    assert_eq!(found.len(), 1);
    assert!(found[0].gives_addresses());
    assert_eq!(found[0].to_string(), "the DHCP server 10.0.0.1");
}

#[test]
fn a_boot_server_is_told_from_a_dhcp_server_and_does_not_end_the_search() {
    let mut search = search(Patience::FirstAnswer);
    let asked = search.questions(Duration::ZERO);
    let mut reply = offer(&asked[1], OTHER, [0; 4]);
    reply.options.set_c_string(code::BOOT_FILE, "pxelinux.0");
    search.hear(OTHER, &reply.emit(), millis(20));
    assert_eq!(search.next_wake(), Some(millis(1000)));
    let found = search.into_found();
    assert_eq!(
        found[0].to_string(),
        "the boot server 10.0.0.1, which offers the boot file \"pxelinux.0\""
    );
}

#[test]
fn our_own_answers_and_those_to_others_do_not_count() {
    let mut search = search(Patience::Everybody);
    let asked = search.questions(Duration::ZERO);
    let right = offer(&asked[0], OTHER, [10, 0, 0, 77]);
    let ours = offer(&asked[0], OWN, [10, 0, 0, 77]);
    let mut another_transaction = right.clone();
    another_transaction.transaction = 1;
    let mut another_card = right.clone();
    another_card.hardware_address[5] ^= 1;
    let mut refusal = right.clone();
    refusal
        .options
        .set(code::MESSAGE_TYPE, [MessageType::Nak.to_byte()]);
    let mut question = right.clone();
    question.op = protocol::dhcp::BOOTREQUEST;
    for wrong in [ours, another_transaction, another_card, refusal, question] {
        search.hear(OTHER, &wrong.emit(), millis(1));
    }
    assert_eq!(search.into_found(), []);
}

#[test]
fn the_answers_of_one_server_are_one_finding() {
    let mut search = search(Patience::Everybody);
    let asked = search.questions(Duration::ZERO);
    let mut second = offer(&asked[1], OTHER, [10, 0, 0, 77]);
    second.file = b"boot\x1b[2J.efi".to_vec();
    search.hear(
        OTHER,
        &offer(&asked[0], OTHER, [10, 0, 0, 76]).emit(),
        millis(1),
    );
    search.hear(OTHER, &second.emit(), millis(2));
    assert_eq!(
        search.into_found(),
        [OtherServer {
            server: OTHER,
            offered: Some(Ipv4Addr::new(10, 0, 0, 77)),
            boot_file: Some("boot[2J.efi".to_owned()),
        }]
    );
}

proptest! {
    #[test]
    fn whatever_is_heard_the_search_ends_and_stays_small(
        heard in prop::collection::vec((any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..60)), 0..60),
    ) {
        let mut search = search(Patience::FirstAnswer);
        let asked = search.questions(Duration::ZERO);
        for (server, noise) in heard {
            let mut reply = offer(&asked[0], server.into(), server);
            reply.file = noise.clone();
            search.hear(OTHER, &reply.emit(), millis(5));
            search.hear(OTHER, &noise, millis(5));
        }
        prop_assert!(search.next_wake().is_some_and(|wake| wake <= END));
        prop_assert!(search.questions(END).is_empty());
        prop_assert!(search.next_wake().is_none());
        prop_assert!(search.into_found().len() <= MAX_FOUND);
    }
}
