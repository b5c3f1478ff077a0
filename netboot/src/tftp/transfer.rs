//! One read transfer as a state machine: packets and the time go in, what to send and when to wake
//! come out (RFC 1350, 2347, 2348, 2349, 7440).
//!
//! Invariants: no socket, clock or file here; a transfer ends, whatever the client does or leaves
//! undone; before the client has shown that it receives what we send, a request causes at most
//! [`HANDSHAKE_TRIES`] packets of one block, so that a forged sender gains nothing.
//!
//! Not here: reading the file (`server`: the machine names the range to send).

use std::time::{Duration, Instant};

use protocol::tftp::{DEFAULT_BLOCK_SIZE, ErrorCode, Packet, Request};

/// How often the first packet is sent.
const HANDSHAKE_TRIES: u32 = 4;
/// How often a window is sent before the client is given up.
const DATA_TRIES: u32 = 8;
/// How often the last window is sent: its ACK may never come, the client has what it wanted.
const LAST_TRIES: u32 = 3;
const FIRST_TIMEOUT: Duration = Duration::from_millis(500);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(4);
/// RFC 2348: the smallest and the largest block.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 8..=65464;

/// What a server agrees to at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Largest block in bytes: what fits the path MTU.
    pub(crate) block_size: u16,
    /// Largest window in blocks.
    pub(crate) window: u16,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// These bytes.
    Packet(Vec<u8>),
    /// A DATA packet: header with this number, then `len` bytes of the file from `offset`.
    Data {
        /// Block number on the wire.
        block: u16,
        /// First byte.
        offset: u64,
        /// How many; less than the block size at the end of the file.
        len: u16,
    },
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The client has the whole file.
    Complete,
    /// Everything was sent, the last ACK never came.
    CompleteUnconfirmed,
    /// The client only wanted to know the size, and said ERROR 8.
    Probe,
    /// The client ended it.
    ClientError {
        /// Why.
        code: ErrorCode,
        /// Its words.
        message: String,
    },
    /// The client is silent.
    GaveUp,
}

/// A transfer.
#[derive(Debug)]
pub(crate) struct Transfer {
    len: u64,
    block_size: u16,
    window: u16,
    /// Our answer to the options, until it is acknowledged.
    option_acknowledge: Option<Vec<u8>>,
    /// Blocks the client has: an absolute count, so that the number on the wire may wrap.
    acknowledged: u64,
    /// Last block sent.
    sent: u64,
    /// Next block to send.
    next: u64,
    /// The window was sent again because of a repeated ACK, which may happen once for each.
    rewound: bool,
    tries: u32,
    fixed_timeout: Option<Duration>,
    deadline: Instant,
    opening_due: bool,
    outcome: Option<Outcome>,
}

impl Transfer {
    /// A transfer of a file of `len` bytes as the request asks for it.
    pub(crate) fn new(request: &Request<'_>, len: u64, limits: Limits, now: Instant) -> Self {
        let mut answer: Vec<(&[u8], Vec<u8>)> = Vec::new();
        let (mut block_size, mut window) = (DEFAULT_BLOCK_SIZE, 1);
        let mut fixed_timeout = None;
        // Only what was asked, each once, under the name as it was asked, values ours.
        for (name, _) in &request.options {
            let lower = name.to_ascii_lowercase();
            if answer
                .iter()
                .any(|(known, _)| known.eq_ignore_ascii_case(name))
            {
                continue;
            }
            let text = std::str::from_utf8(&lower).unwrap_or_default();
            let Some(value) = request.number(text) else {
                continue;
            };
            let agreed = match text {
                "blksize" if BLOCK_SIZES.contains(&value) => {
                    block_size = clamp(value, limits.block_size);
                    u64::from(block_size)
                }
                "windowsize" if (1..=65535).contains(&value) => {
                    window = clamp(value, limits.window);
                    u64::from(window)
                }
                "timeout" if (1..=255).contains(&value) => {
                    fixed_timeout = Some(Duration::from_secs(value));
                    value
                }
                "tsize" => len,
                _ => continue,
            };
            answer.push((name, agreed.to_string().into_bytes()));
        }
        let options: Vec<_> = answer
            .iter()
            .map(|(name, value)| (*name, value.as_slice()))
            .collect();
        let option_acknowledge =
            (!options.is_empty()).then(|| Packet::OptionAcknowledge { options }.emit());
        Self {
            len,
            block_size,
            window,
            option_acknowledge,
            acknowledged: 0,
            sent: 0,
            next: 1,
            rewound: false,
            tries: 1,
            fixed_timeout,
            deadline: now + fixed_timeout.unwrap_or(FIRST_TIMEOUT),
            opening_due: true,
            outcome: None,
        }
    }

    /// Takes a packet of the client.
    pub(crate) fn receive(&mut self, bytes: &[u8], now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        match Packet::parse(bytes) {
            Ok(Packet::Acknowledge { block }) => self.acknowledge(block, now),
            Ok(Packet::Error { code, message }) => {
                let probing = self.option_acknowledge.is_some()
                    && matches!(code, ErrorCode::OptionRefused | ErrorCode::Other);
                self.outcome = Some(if probing {
                    Outcome::Probe
                } else {
                    let message = String::from_utf8_lossy(message).chars().take(80).collect();
                    Outcome::ClientError { code, message }
                });
            }
            // A repeated request is a client that missed our first packet; the timer repeats it.
            _ => {}
        }
    }

    fn acknowledge(&mut self, block: u16, now: Instant) {
        if self.option_acknowledge.is_some() {
            if block == 0 {
                self.option_acknowledge = None;
                self.begin_window(now);
            }
            return;
        }
        // The one count within the window, if any, that has this number on the wire.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the wire has the low 16 bits"
        )]
        let ahead = block.wrapping_sub(self.acknowledged as u16);
        let count = self.acknowledged + u64::from(ahead);
        if count > self.sent {
            return;
        }
        if ahead == 0 {
            // RFC 1350 as corrected by RFC 1123 §4.2.3.1: answering a repeated ACK with data
            // doubles every packet from there on. With a window it also means that the first
            // block of the window was lost (RFC 7440 §4), so it is answered once.
            if self.window > 1 && self.sent > self.acknowledged && !self.rewound {
                self.rewound = true;
                self.next = self.acknowledged + 1;
            }
            return;
        }
        self.acknowledged = count;
        if self.acknowledged == self.last_block() {
            self.outcome = Some(Outcome::Complete);
            return;
        }
        self.begin_window(now);
    }

    fn begin_window(&mut self, now: Instant) {
        self.next = self.acknowledged + 1;
        self.rewound = false;
        self.tries = 1;
        self.deadline = now + self.timeout();
    }

    /// The next thing to send, until `None`.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Outgoing> {
        if self.outcome.is_some() {
            return None;
        }
        if now >= self.deadline {
            self.expire(now);
            if self.outcome.is_some() {
                return None;
            }
        }
        if let Some(bytes) = &self.option_acknowledge {
            return std::mem::take(&mut self.opening_due).then(|| Outgoing::Packet(bytes.clone()));
        }
        let end = self
            .last_block()
            .min(self.acknowledged + u64::from(self.window));
        if self.next > end {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.sent = self.sent.max(number);
        let offset = (number - 1) * u64::from(self.block_size);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the wire has the low 16 bits"
        )]
        let block = number as u16;
        Some(Outgoing::Data {
            block,
            offset,
            len: clamp(self.len - offset, self.block_size),
        })
    }

    fn expire(&mut self, now: Instant) {
        let opening = self.option_acknowledge.is_some() || self.acknowledged == 0;
        let last = self.sent == self.last_block();
        let limit = if opening {
            HANDSHAKE_TRIES
        } else if last {
            LAST_TRIES
        } else {
            DATA_TRIES
        };
        if self.tries >= limit {
            let unconfirmed = last && self.option_acknowledge.is_none();
            self.outcome = Some(if unconfirmed {
                Outcome::CompleteUnconfirmed
            } else {
                Outcome::GaveUp
            });
            return;
        }
        self.tries += 1;
        self.opening_due = true;
        self.next = self.acknowledged + 1;
        self.rewound = false;
        self.deadline = now + self.timeout();
    }

    /// RFC 1123 §4.2.3.2 wants the waits to grow; a client that asked for a timeout gets that.
    fn timeout(&self) -> Duration {
        self.fixed_timeout.unwrap_or_else(|| {
            let doubled =
                FIRST_TIMEOUT * 2_u32.saturating_pow(self.tries.saturating_sub(1)).min(64);
            doubled.min(LONGEST_TIMEOUT)
        })
    }

    /// A file ends with a block shorter than the others, an empty one if need be.
    fn last_block(&self) -> u64 {
        self.len / u64::from(self.block_size) + 1
    }

    /// When [`Transfer::poll`] wants to be called even if nothing comes.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How it ended, once it has.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Bytes of the block that the client was sent last, once blocks are sent at all.
    pub(crate) fn block_size(&self) -> Option<u16> {
        (self.sent > 0).then_some(self.block_size)
    }

    /// Bytes that the client has.
    pub(crate) fn bytes_acknowledged(&self) -> u64 {
        self.len.min(self.acknowledged * u64::from(self.block_size))
    }
}

fn clamp(value: u64, most: u16) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX).min(most)
}

#[cfg(test)]
mod tests;
