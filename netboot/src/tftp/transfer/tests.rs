//! Transfers against clients and networks that lose, repeat, reorder and fall silent.

use super::*;
use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

const LIMITS: Limits = Limits {
    block_size: 1468,
    window: 64,
};

fn transfer(options: &[(&str, &str)], len: u64, now: Instant) -> Transfer {
    let options = options
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let request = Request {
        name: b"file",
        mode: b"octet",
        options,
    };
    Transfer::new(&request, len, LIMITS, now)
}

fn acknowledge(block: u16) -> Vec<u8> {
    Packet::Acknowledge { block }.emit()
}

fn drain(transfer: &mut Transfer, now: Instant) -> Vec<Outgoing> {
    std::iter::from_fn(|| transfer.poll(now)).collect()
}

fn blocks(sent: &[Outgoing]) -> Vec<u16> {
    sent.iter()
        .filter_map(|one| match one {
            Outgoing::Data { block, .. } => Some(*block),
            Outgoing::Packet(_) => None,
        })
        .collect()
}

fn option_acknowledge(transfer: &mut Transfer, now: Instant) -> Vec<u8> {
    match transfer.poll(now) {
        Some(Outgoing::Packet(bytes)) => bytes,
        other => panic!("expected an OACK, got {other:?}"),
    }
}

#[test]
fn only_what_was_asked_is_agreed_in_the_clients_spelling() {
    let now = Instant::now();
    let asked = [
        ("BlkSize", "9000"),
        ("tsize", "0"),
        ("windowsize", "200"),
        ("multicast", ""),
    ];
    let mut transfer = transfer(&asked, 5000, now);
    assert_eq!(
        option_acknowledge(&mut transfer, now),
        b"\0\x06BlkSize\x001468\0tsize\x005000\0windowsize\x0064\0"
    );
}

#[test]
fn values_outside_their_rfcs_are_not_agreed() {
    let now = Instant::now();
    let asked = [
        ("blksize", "7"),
        ("timeout", "0"),
        ("windowsize", "0"),
        ("tsize", "x"),
    ];
    let mut transfer = transfer(&asked, 10, now);
    assert_eq!(
        drain(&mut transfer, now),
        [Outgoing::Data {
            block: 1,
            offset: 0,
            len: 10
        }]
    );
}

#[test]
fn a_file_that_fills_its_last_block_ends_with_an_empty_one() {
    let now = Instant::now();
    let mut transfer = transfer(&[], 1024, now);
    assert_eq!(blocks(&drain(&mut transfer, now)), [1]);
    transfer.receive(&acknowledge(1), now);
    transfer.poll(now);
    transfer.receive(&acknowledge(2), now);
    assert_eq!(
        drain(&mut transfer, now),
        [Outgoing::Data {
            block: 3,
            offset: 1024,
            len: 0
        }]
    );
    transfer.receive(&acknowledge(3), now);
    assert_eq!(transfer.outcome(), Some(&Outcome::Complete));
    assert_eq!(transfer.bytes_acknowledged(), 1024);
}

#[test]
fn an_empty_file_is_one_empty_block() {
    let now = Instant::now();
    let mut transfer = transfer(&[], 0, now);
    assert_eq!(
        drain(&mut transfer, now),
        [Outgoing::Data {
            block: 1,
            offset: 0,
            len: 0
        }]
    );
    transfer.receive(&acknowledge(1), now);
    assert_eq!(transfer.outcome(), Some(&Outcome::Complete));
}

#[test]
fn repeated_acks_do_not_repeat_data() {
    let now = Instant::now();
    let mut transfer = transfer(&[], 5000, now);
    drain(&mut transfer, now);
    transfer.receive(&acknowledge(1), now);
    assert_eq!(blocks(&drain(&mut transfer, now)), [2]);
    for _ in 0..3 {
        transfer.receive(&acknowledge(1), now);
        transfer.receive(&acknowledge(0), now);
        assert_eq!(drain(&mut transfer, now), []);
    }
}

#[test]
fn an_ack_within_the_window_moves_it_there() {
    let now = Instant::now();
    let mut transfer = transfer(&[("windowsize", "4")], 512 * 20, now);
    option_acknowledge(&mut transfer, now);
    transfer.receive(&acknowledge(0), now);
    assert_eq!(blocks(&drain(&mut transfer, now)), [1, 2, 3, 4]);
    transfer.receive(&acknowledge(2), now);
    assert_eq!(blocks(&drain(&mut transfer, now)), [3, 4, 5, 6]);
}

#[test]
fn the_first_block_of_a_window_lost_is_sent_again_once_for_many_acks() {
    let now = Instant::now();
    let mut transfer = transfer(&[("windowsize", "3")], 512 * 20, now);
    option_acknowledge(&mut transfer, now);
    transfer.receive(&acknowledge(0), now);
    drain(&mut transfer, now);
    transfer.receive(&acknowledge(0), now);
    transfer.receive(&acknowledge(0), now);
    assert_eq!(blocks(&drain(&mut transfer, now)), [1, 2, 3]);
    transfer.receive(&acknowledge(0), now);
    assert_eq!(drain(&mut transfer, now), []);
}

#[test]
fn an_ack_of_what_was_never_sent_is_ignored() {
    let now = Instant::now();
    let mut transfer = transfer(&[], 5000, now);
    drain(&mut transfer, now);
    transfer.receive(&acknowledge(2), now);
    transfer.receive(&acknowledge(65535), now);
    assert_eq!(transfer.outcome(), None);
    assert_eq!(transfer.bytes_acknowledged(), 0);
}

#[test]
fn block_numbers_wrap_to_zero() {
    let now = Instant::now();
    let len = 8 * 140_000 + 3;
    let mut transfer = transfer(&[("blksize", "8"), ("windowsize", "64")], len, now);
    option_acknowledge(&mut transfer, now);
    transfer.receive(&acknowledge(0), now);
    let mut expected = 0_u64;
    while transfer.outcome().is_none() {
        let sent = drain(&mut transfer, now);
        for one in &sent {
            let Outgoing::Data { block, offset, .. } = one else {
                panic!("only data is left to send");
            };
            expected += 1;
            assert_eq!(*offset, (expected - 1) * 8);
            assert_eq!(u64::from(*block), expected % 65536);
        }
        let last = *blocks(&sent).last().expect("a window is never empty");
        transfer.receive(&acknowledge(last), now);
    }
    assert_eq!(expected, 140_001);
    assert_eq!(transfer.bytes_acknowledged(), len);
}

#[test]
fn a_size_probe_is_no_failure() {
    let now = Instant::now();
    let mut transfer = transfer(&[("tsize", "0")], 5000, now);
    option_acknowledge(&mut transfer, now);
    let error = Packet::Error {
        code: ErrorCode::OptionRefused,
        message: b"probe",
    }
    .emit();
    transfer.receive(&error, now);
    assert_eq!(transfer.outcome(), Some(&Outcome::Probe));
}

/// Everything sent to a client that never answers, and how it ends.
fn silence(mut transfer: Transfer, mut now: Instant) -> (usize, Option<Outcome>) {
    let mut sent = 0;
    while transfer.outcome().is_none() {
        sent += drain(&mut transfer, now).len();
        assert!(
            transfer.outcome().is_some() || transfer.deadline() > now,
            "time goes on"
        );
        now = transfer.deadline();
    }
    (sent, transfer.outcome().cloned())
}

#[test]
fn a_forged_request_causes_a_few_packets_and_no_more() {
    let now = Instant::now();
    let asked = [("windowsize", "64"), ("blksize", "1468")];
    assert_eq!(
        silence(transfer(&asked, 1 << 20, now), now),
        (4, Some(Outcome::GaveUp))
    );
    assert_eq!(
        silence(transfer(&[], 1 << 20, now), now),
        (4, Some(Outcome::GaveUp))
    );
}

#[test]
fn a_lost_last_ack_ends_the_transfer_as_complete() {
    let now = Instant::now();
    let mut transfer = transfer(&[], 600, now);
    drain(&mut transfer, now);
    transfer.receive(&acknowledge(1), now);
    assert_eq!(
        silence(transfer, now),
        (3, Some(Outcome::CompleteUnconfirmed))
    );
}

#[test]
fn a_client_that_falls_silent_is_given_up() {
    let now = Instant::now();
    let mut transfer = transfer(&[], 6000, now);
    drain(&mut transfer, now);
    transfer.receive(&acknowledge(1), now);
    assert_eq!(silence(transfer, now), (8, Some(Outcome::GaveUp)));
}

#[test]
fn the_timeout_that_was_asked_for_is_kept() {
    let now = Instant::now();
    let mut transfer = transfer(&[("timeout", "7")], 6000, now);
    option_acknowledge(&mut transfer, now);
    transfer.receive(&acknowledge(0), now);
    assert_eq!(transfer.deadline(), now + Duration::from_secs(7));
}

/// A client by the book (RFC 7440 §4): it takes blocks in order and acknowledges the last one of
/// each window, or the last in order when something is missing.
struct Client {
    block_size: usize,
    window: u64,
    received: Vec<u8>,
    /// Blocks in order so far, and how many since the last ACK.
    have: u64,
    since: u64,
    ended: bool,
}

impl Client {
    fn take(&mut self, block: u16, payload: &[u8]) -> Option<u16> {
        let next = ((self.have + 1) % 65536) as u16;
        if self.ended || block != next {
            self.since = 0;
            return Some((self.have % 65536) as u16);
        }
        self.received.extend_from_slice(payload);
        self.have += 1;
        self.since += 1;
        self.ended = payload.len() < self.block_size;
        if self.since == self.window || self.ended {
            self.since = 0;
            return Some((self.have % 65536) as u16);
        }
        None
    }
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    Late,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![8 => Just(Fate::Arrives), 1 => Just(Fate::Lost), 1 => Just(Fate::Twice), 1 => Just(Fate::Late)]
}

/// What a network makes of packets.
fn pass<T: Clone>(packets: Vec<T>, fates: &mut impl Iterator<Item = Fate>) -> Vec<T> {
    let (mut out, mut late) = (Vec::new(), Vec::new());
    for packet in packets {
        match fates.next().unwrap_or(Fate::Arrives) {
            Fate::Arrives => out.push(packet),
            Fate::Lost => {}
            Fate::Twice => out.extend([packet.clone(), packet]),
            Fate::Late => late.push(packet),
        }
    }
    out.extend(late);
    out
}

#[test]
fn the_block_size_is_known_once_blocks_are_sent() {
    let now = Instant::now();
    let mut transfer = transfer(&[("blksize", "1428")], 5000, now);
    option_acknowledge(&mut transfer, now);
    assert_eq!(transfer.block_size(), None);
    transfer.receive(&acknowledge(0), now);
    drain(&mut transfer, now);
    assert_eq!(transfer.block_size(), Some(1428));
}

proptest! {
    #[test]
    fn a_file_arrives_whole_over_any_network_that_lets_enough_through(
        len in 0_usize..4000,
        block_size in 8_usize..200,
        window in 1_u16..9,
        fates in prop::collection::vec(fate(), 0..80),
    ) {
        let mut now = Instant::now();
        let file: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let (size, window_text) = (block_size.to_string(), window.to_string());
        let mut transfer =
            transfer(&[("blksize", &size), ("windowsize", &window_text)], len as u64, now);
        let mut client = Client {
            block_size,
            window: u64::from(window),
            received: Vec::new(),
            have: 0,
            since: 0,
            ended: false,
        };
        let mut fates = fates.into_iter();
        // The handshake is not at stake here.
        option_acknowledge(&mut transfer, now);
        transfer.receive(&acknowledge(0), now);
        while transfer.outcome().is_none() {
            let sent = drain(&mut transfer, now);
            let mut acks = Vec::new();
            for one in pass(sent, &mut fates) {
                if let Outgoing::Data { block, offset, len } = one {
                    let payload = &file[offset as usize..offset as usize + usize::from(len)];
                    acks.extend(client.take(block, payload));
                }
            }
            let arrived = pass(acks, &mut fates);
            if arrived.is_empty() {
                now = transfer.deadline();
            }
            for block in arrived {
                transfer.receive(&acknowledge(block), now);
            }
        }
        if transfer.outcome() != Some(&Outcome::GaveUp) {
            prop_assert_eq!(&client.received, &file);
        }
        prop_assert_eq!(file.get(..client.received.len()), Some(&client.received[..]));
    }

    #[test]
    fn no_packets_make_a_transfer_panic_or_run_ahead(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..50),
        acks in prop::collection::vec(any::<u16>(), 0..50),
    ) {
        let now = Instant::now();
        let mut transfer = transfer(&[("windowsize", "5")], 100_000, now);
        for packet in packets.into_iter().chain(acks.into_iter().map(acknowledge)) {
            transfer.receive(&packet, now);
            proptest::prop_assert!(drain(&mut transfer, now).len() <= 5);
        }
    }
}
