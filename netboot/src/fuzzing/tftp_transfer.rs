//! A transfer through any sequence of packets, losses and times.
//!
//! The client here is honest and counts what it gets in order; a fuzzer's packets come between.
//! What must hold: DATA lies within the window after the last acknowledged block and carries the
//! right part of the file under the right number; between two steps forward only a bounded number
//! of packets is sent; a silent client ends the transfer; what an undisturbed client acknowledged
//! to the end is the whole file.

use std::time::{Duration, Instant};

use protocol::tftp::{ErrorCode, Packet, Request};

use super::Choices;
use crate::tftp::transfer::{Limits, Outcome, Outgoing, Transfer};

/// How often the same window may be sent: eight tries, each once more for a repeated ACK.
const MOST_ROUNDS: u64 = 16;
/// How often a transfer that nobody acknowledged says anything (its first packet).
const MOST_OPENINGS: u64 = 4;

/// Plays bytes against a transfer.
///
/// # Panics
/// When an invariant is broken.
pub fn tftp_transfer(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let limits = Limits {
        block_size: choices.of([512, 1428, 1468, 65464]),
        window: choices.of([1, 4, 16, 64]),
    };
    let len = u64::from(choices.word()) * choices.of([0, 1, 1, 8, 512]) + u64::from(choices.byte());
    let texts: Vec<_> = (0..choices.byte() % 5)
        .map(|_| option(&mut choices))
        .collect();
    let request = Request {
        name: b"undionly.kpxe",
        mode: b"octet",
        options: texts
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect(),
    };
    let mut play = Play::new(&request, len, limits);
    play.drain();
    while !choices.is_empty() && play.transfer.outcome().is_none() {
        match choices.byte() % 8 {
            0 => play.now += Duration::from_millis(u64::from(choices.word())),
            1 => play.now = play.transfer.deadline(),
            2 | 3 => play.answer(),
            4 => play.received.clear(),
            5 => play.repeat(),
            6 => {
                let delta = choices.byte();
                play.disturb(&acknowledge(
                    play.in_order.wrapping_add(u64::from(delta)) as u16
                ));
            }
            _ => {
                let len = usize::from(choices.byte() % 64);
                let packet = choices.take(len).to_vec();
                play.disturb(&packet);
            }
        }
        play.drain();
    }
    play.end();
}

fn option(choices: &mut Choices<'_>) -> (&'static str, String) {
    let name = choices.of([
        "blksize",
        "BLKSIZE",
        "windowsize",
        "WindowSize",
        "tsize",
        "timeout",
        "rollover",
        "",
    ]);
    let value = match choices.byte() % 4 {
        0 => choices
            .of([
                "0",
                "8",
                "512",
                "1024",
                "1468",
                "65464",
                "65535",
                "4294967296",
            ])
            .to_owned(),
        1 => choices.byte().to_string(),
        2 => choices.word().to_string(),
        _ => String::from_utf8_lossy(choices.take(3)).into_owned(),
    };
    (name, value.replace('\0', ""))
}

fn acknowledge(block: u16) -> Vec<u8> {
    Packet::Acknowledge { block }.emit()
}

struct Play {
    transfer: Transfer,
    now: Instant,
    len: u64,
    block_size: u64,
    window: u64,
    /// Whether the options are agreed, or there were none.
    opened: bool,
    /// Blocks that are on their way to the client, by absolute number.
    received: Vec<u64>,
    /// Blocks that the honest client has in order.
    in_order: u64,
    /// Packets sent since `progress`.
    sent: u64,
    progress: u64,
    disturbed: bool,
    oack_on_its_way: bool,
}

impl Play {
    fn new(request: &Request<'_>, len: u64, limits: Limits) -> Self {
        let now = Instant::now();
        let mut transfer = Transfer::new(request, len, limits, now);
        let (mut block_size, mut window) = (512, 1);
        let mut opened = true;
        let mut received = Vec::new();
        // What was agreed is what the OACK says, no more than the limits and what was asked.
        match transfer.poll(now) {
            Some(Outgoing::Packet(oack)) => {
                opened = false;
                let Ok(Packet::OptionAcknowledge { options }) = Packet::parse(&oack) else {
                    panic!("the first packet is no OACK");
                };
                for (name, value) in options {
                    let value: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
                    match name.to_ascii_lowercase().as_slice() {
                        b"blksize" => block_size = value,
                        b"windowsize" => window = value,
                        b"tsize" => assert_eq!(value, len),
                        b"timeout" => assert!((1..=255).contains(&value)),
                        other => panic!("agreed to {other:?}"),
                    }
                }
                assert!((8..=u64::from(limits.block_size)).contains(&block_size));
                assert!((1..=u64::from(limits.window)).contains(&window));
            }
            Some(Outgoing::Data { block, offset, .. }) => {
                assert_eq!((block, offset), (1, 0));
                received.push(1);
            }
            None => panic!("nothing is sent first"),
        }
        Self {
            transfer,
            now,
            len,
            block_size,
            window,
            opened,
            received,
            in_order: 0,
            sent: 1,
            progress: 0,
            disturbed: false,
            oack_on_its_way: !opened,
        }
    }

    /// Takes all that the transfer sends now.
    fn drain(&mut self) {
        for count in 0.. {
            let Some(outgoing) = self.transfer.poll(self.now) else {
                break;
            };
            assert!(count < self.window, "more than a window in one go");
            let done = self.transfer.bytes_acknowledged();
            if done > self.progress {
                (self.progress, self.sent) = (done, 0);
            }
            self.sent += 1;
            match outgoing {
                Outgoing::Packet(_) => {
                    assert!(!self.opened, "an OACK after the first DATA");
                    assert!(self.sent <= MOST_OPENINGS, "the OACK {} times", self.sent);
                    self.oack_on_its_way = true;
                }
                Outgoing::Data { block, offset, len } => {
                    if self.window == 1 && done == 0 && self.opened && !self.oack_on_its_way {
                        assert!(self.sent <= MOST_OPENINGS, "DATA 1 {} times", self.sent);
                    }
                    assert!(
                        self.sent <= MOST_ROUNDS * self.window,
                        "it does not stop sending"
                    );
                    assert!(offset >= done, "what is acknowledged is sent again");
                    assert!(
                        offset < done + self.window * self.block_size,
                        "past the window"
                    );
                    assert_eq!(offset % self.block_size, 0);
                    let number = offset / self.block_size + 1;
                    assert_eq!(block, (number & 0xffff) as u16);
                    assert_eq!(u64::from(len), (self.len - offset).min(self.block_size));
                    self.received.push(number);
                }
            }
        }
    }

    /// The honest client takes what is on its way and acknowledges the last block in order
    /// (RFC 7440 §4).
    fn answer(&mut self) {
        if std::mem::take(&mut self.oack_on_its_way) && !self.opened {
            self.opened = true;
            self.sent = 0;
            self.transfer.receive(&acknowledge(0), self.now);
            return;
        }
        let before = self.in_order;
        let received = std::mem::take(&mut self.received);
        if received.is_empty() {
            return;
        }
        for number in received {
            if number == self.in_order + 1 {
                self.in_order = number;
            }
        }
        if self.in_order > before || self.window > 1 {
            self.transfer
                .receive(&acknowledge(self.in_order as u16), self.now);
        }
    }

    /// The client's last ACK once more.
    fn repeat(&mut self) {
        let number = self.in_order;
        if self.opened && number > 0 {
            self.transfer.receive(&acknowledge(number as u16), self.now);
        }
    }

    fn disturb(&mut self, packet: &[u8]) {
        self.disturbed = true;
        if packet == acknowledge(0) && !self.opened {
            self.opened = true;
            self.sent = 0;
        }
        self.transfer.receive(packet, self.now);
        // Trailing bytes after an ACK are read over.
        if let Ok(Packet::Acknowledge { block: 0 }) = Packet::parse(packet)
            && !self.opened
        {
            self.opened = true;
            self.sent = 0;
        }
    }

    /// The client falls silent: the transfer ends by itself.
    fn end(&mut self) {
        for _ in 0..2 * MOST_ROUNDS {
            self.now = self.now.max(self.transfer.deadline());
            self.drain();
        }
        let outcome = self.transfer.outcome().expect("a silent client ends it");
        if *outcome == Outcome::Complete && !self.disturbed {
            assert_eq!(self.in_order, self.len / self.block_size + 1);
        }
        if let Outcome::ClientError { code, .. } = outcome {
            assert!(self.disturbed, "{code:?}");
            let _: ErrorCode = *code;
        }
        assert!(self.transfer.bytes_acknowledged() <= self.len);
    }
}
