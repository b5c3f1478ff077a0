//! Asks everybody on the wire which server is ours, when the kernel command line does not say: the unified
//! kernel image is the same for every machine and every network.
//!
//! One broadcast DHCPINFORM (RFC 2131 §4.4.3) of class [`AGENT_CLASS`] that asks for option
//! [`code::NETBOOT_SERVER`]; `netboot`, as DHCP server or as proxy, answers with its URL.
//!
//! Invariant: no socket, no clock; the first usable answer counts, and nothing changes it. What is *not*
//! here: the address it is asked from ([`super::dhcp_client`]), looking for servers by mDNS (later).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use protocol::dhcp::{AGENT_CLASS, BOOTREPLY, MacAddress, Message, MessageType, Options, code};

use super::random::Random;

/// The first wait for an answer; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Questions that are asked in quick succession; after the last one's wait, 32 s in all, a person is told.
const QUICK_TRIES: u32 = 6;
/// Between questions after that: the server may be starting still, after the same power cut.
const SLOW_WAIT: Duration = Duration::from_secs(60);
/// Different servers that are named at most.
const MAX_NAMED: usize = 8;

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A server's URL, and who said it. The first of a search is the one to use.
    Server {
        /// `http://ADDRESS:PORT`.
        url: String,
        /// The DHCP server or proxy that answered.
        by: Option<Ipv4Addr>,
    },
    /// Somebody answered with something that is no server's URL.
    Unusable {
        /// What was there.
        text: String,
        /// The DHCP server or proxy that answered.
        by: Option<Ipv4Addr>,
    },
    /// Nobody answered for a while; it goes on asking, slowly.
    Nobody,
}

/// The search on one port, from one address.
#[derive(Debug)]
pub(crate) struct Discovery {
    mac: MacAddress,
    address: Ipv4Addr,
    transaction: u32,
    random: Random,
    began: Duration,
    due: Duration,
    tries: u32,
    /// Texts of answers so far, usable or not; the first usable one ended the asking.
    heard: Vec<String>,
    found: bool,
}

impl Discovery {
    /// A search that asks first at `now`.
    pub(crate) fn new(mac: MacAddress, address: Ipv4Addr, seed: u64, now: Duration) -> Self {
        let mut random = Random::new(seed);
        Self {
            mac,
            address,
            transaction: random.transaction(),
            random,
            began: now,
            due: now,
            tries: 0,
            heard: Vec::new(),
            found: false,
        }
    }

    /// When [`Discovery::poll`] has something to do.
    pub(crate) fn deadline(&self) -> Duration {
        if self.found { Duration::MAX } else { self.due }
    }

    /// Does what is due at `now`: a message to send to everybody, and what to tell a person.
    pub(crate) fn poll(&mut self, now: Duration) -> (Option<Vec<u8>>, Option<Finding>) {
        if now < self.deadline() {
            return (None, None);
        }
        let finding = (self.tries == QUICK_TRIES).then_some(Finding::Nobody);
        let wait = if self.tries < QUICK_TRIES {
            FIRST_WAIT.saturating_mul(1 << self.tries)
        } else {
            SLOW_WAIT
        };
        self.tries = self.tries.saturating_add(1);
        self.due = now + self.random.jittered(wait);
        (Some(self.question(now).emit()), finding)
    }

    /// Takes a datagram that came to port 68.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Option<Finding> {
        let message = Message::parse(bytes).ok()?;
        let ours = message.op == BOOTREPLY
            && message.transaction == self.transaction
            && message.mac() == Some(self.mac)
            && message.message_type() == Some(MessageType::Ack)
            && self.tries > 0;
        if !ours {
            return None;
        }
        // A DHCP server that knows nothing of us acknowledges too, without the option.
        let text = message.options.text(code::NETBOOT_SERVER)?;
        if self.heard.len() >= MAX_NAMED || self.heard.contains(&text) {
            return None;
        }
        self.heard.push(text.clone());
        let by = message.options.address(code::SERVER_ID);
        Some(match server_url(&text) {
            Some(url) => {
                self.found = true;
                Finding::Server { url, by }
            }
            None => Finding::Unusable { text, by },
        })
    }

    fn question(&self, now: Duration) -> Message {
        let mut options = Options::new();
        options.set(code::MESSAGE_TYPE, [MessageType::Inform.to_byte()]);
        options.set(code::VENDOR_CLASS, AGENT_CLASS);
        options.set(code::PARAMETER_LIST, [code::NETBOOT_SERVER]);
        // A whole Ethernet frame's worth (RFC 2132 §9.10).
        options.set(code::MAX_SIZE, 1472u16.to_be_bytes());
        let seconds = now.saturating_sub(self.began).as_secs();
        Message {
            seconds: u16::try_from(seconds).unwrap_or(u16::MAX),
            client_address: self.address,
            ..Message::of_client(self.mac, self.transaction, options)
        }
    }
}

/// `text` as a server's base URL: `http://`, an IPv4 address of a machine, a port.
fn server_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://")?;
    let place: SocketAddrV4 = rest.strip_suffix('/').unwrap_or(rest).parse().ok()?;
    let address = place.ip();
    let nobody = address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback();
    (!nobody && place.port() != 0).then(|| format!("http://{place}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    const MAC: MacAddress = MacAddress::new([0x52, 0x54, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
    const URL: &str = "http://10.77.0.1:8080";

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn asked() -> (Discovery, Message) {
        let mut discovery = Discovery::new(MAC, ADDRESS, 7, s(3));
        let (question, _) = discovery.poll(s(3));
        let question = Message::parse(&question.expect("a question is due at once")).unwrap();
        (discovery, question)
    }

    fn answer(question: &Message, server: u8, text: &str) -> Message {
        let mut reply = question.reply(MessageType::Ack);
        reply.options.set(code::SERVER_ID, [10, 77, 0, server]);
        reply.options.set(code::NETBOOT_SERVER, text);
        reply
    }

    fn server(url: &str, by: u8) -> Option<Finding> {
        Some(Finding::Server {
            url: url.to_owned(),
            by: Some(Ipv4Addr::new(10, 77, 0, by)),
        })
    }

    #[test]
    fn the_question_says_who_asks_and_for_what() {
        let (_, question) = asked();
        assert_eq!(question.message_type(), Some(MessageType::Inform));
        assert_eq!(
            question.options.get(code::VENDOR_CLASS),
            Some(&b"netboot-agent"[..])
        );
        assert_eq!(question.options.get(code::PARAMETER_LIST), Some(&[224][..]));
        assert_eq!(question.client_address, ADDRESS);
        assert_eq!(question.mac(), Some(MAC));
        assert!(!question.broadcast);
    }

    #[test]
    fn the_first_answer_counts_and_another_server_is_named_once() {
        let (mut discovery, question) = asked();
        let first = answer(&question, 1, URL).emit();
        assert_eq!(discovery.receive(&first), server(URL, 1));
        assert_eq!(discovery.receive(&first), None, "a duplicate says nothing");
        let other = answer(&question, 2, "http://10.77.0.2:80/").emit();
        assert_eq!(discovery.receive(&other), server("http://10.77.0.2:80", 2));
        assert_eq!(discovery.receive(&other), None);
        assert_eq!(discovery.poll(s(1000)), (None, None), "it asks no more");
    }

    #[test]
    fn silence_is_asked_into_with_growing_waits_and_then_spoken_of_once() {
        let mut discovery = Discovery::new(MAC, ADDRESS, 7, s(0));
        let mut waits = Vec::new();
        let mut findings = Vec::new();
        let mut now = s(0);
        for _ in 0..9 {
            let (question, finding) = discovery.poll(now);
            assert!(question.is_some());
            findings.push(finding);
            waits.push(discovery.deadline() - now);
            now = discovery.deadline();
        }
        let least = [500, 1000, 2000, 4000, 8000, 16000, 60000, 60000, 60000];
        for (wait, least) in waits.iter().zip(least) {
            let least = Duration::from_millis(least);
            assert!((least..=least * 5 / 4).contains(wait), "{wait:?}");
        }
        let spoken: Vec<usize> = (0..9).filter(|at| findings[*at].is_some()).collect();
        assert_eq!(spoken, [6]);
        assert_eq!(findings[6], Some(Finding::Nobody));
    }

    #[test]
    fn answers_that_name_no_server_do_not_end_the_search() {
        let (mut discovery, question) = asked();
        let plain = question.reply(MessageType::Ack);
        assert_eq!(discovery.receive(&plain.emit()), None);
        let bad = answer(&question, 3, "https://10.77.0.3:1");
        assert!(matches!(
            discovery.receive(&bad.emit()),
            Some(Finding::Unusable { .. })
        ));
        assert!(discovery.deadline() < Duration::MAX, "it goes on asking");
        let good = answer(&question, 1, URL);
        assert_eq!(discovery.receive(&good.emit()), server(URL, 1));
    }

    #[test]
    fn answers_to_others_are_ignored() {
        let (mut discovery, question) = asked();
        let mut other_transaction = answer(&question, 1, URL);
        other_transaction.transaction ^= 1;
        let mut other_machine = answer(&question, 1, URL);
        other_machine.hardware_address[5] = 9;
        let mut offer = answer(&question, 1, URL);
        offer
            .options
            .set(code::MESSAGE_TYPE, [MessageType::Offer.to_byte()]);
        let mut request = answer(&question, 1, URL);
        request.op = protocol::dhcp::BOOTREQUEST;
        for message in [other_transaction, other_machine, offer, request] {
            assert_eq!(discovery.receive(&message.emit()), None);
        }
    }

    #[test]
    fn only_an_address_and_a_port_are_a_server() {
        assert_eq!(
            server_url("http://10.0.0.1:80").as_deref(),
            Some("http://10.0.0.1:80")
        );
        for text in [
            "",
            "10.0.0.1:80",
            "http://10.0.0.1",
            "http://10.0.0.1:0",
            "http://10.0.0.1:80/path",
            "http://10.0.0.1:80//",
            "http://0.0.0.0:80",
            "http://127.0.0.1:80",
            "http://255.255.255.255:80",
            "http://224.0.0.1:80",
            "http://server:80",
            "http://10.0.0.1:80\n",
            "ftp://10.0.0.1:80",
        ] {
            assert_eq!(server_url(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (mut discovery, _) = asked();
            discovery.receive(&bytes);
        }
    }
}
