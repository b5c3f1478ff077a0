//! What a relay agent adds: option 82 and its sub-options (RFC 3046).

use std::net::Ipv4Addr;

use super::{Message, SERVER_PORT, code};

/// Relay agent information. The raw bytes are echoed to the relay unchanged (RFC 3046 §2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayInformation {
    /// Sub-option 5: the subnet to take an address from (RFC 3527).
    pub link_selection: Option<Ipv4Addr>,
    /// Sub-option 11: the server identifier that the client shall see (RFC 5107).
    pub server_id_override: Option<Ipv4Addr>,
    /// Sub-option 19 was there: answers go to the port the relay sent from (RFC 8357).
    pub source_port: bool,
}

impl RelayInformation {
    /// Reads option 82 of a message. Malformed sub-options are skipped; what was read stays.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let mut information = Self::default();
        let mut rest = message
            .options
            .get(code::RELAY_INFORMATION)
            .unwrap_or_default();
        while let [sub_option, length, body @ ..] = rest {
            let Some((value, next)) = body.split_at_checked(usize::from(*length)) else {
                break;
            };
            match (sub_option, <[u8; 4]>::try_from(value)) {
                (5, Ok(address)) => information.link_selection = Some(address.into()),
                (11, Ok(address)) => information.server_id_override = Some(address.into()),
                (19, _) => information.source_port = true,
                _ => {}
            }
            rest = next;
        }
        information
    }

    /// The port on the relay where the answer goes, given the port the request came from.
    #[must_use]
    pub fn reply_port(&self, source_port: u16) -> u16 {
        if self.source_port {
            source_port
        } else {
            SERVER_PORT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::{MessageType, Options};
    use proptest::prelude::{any, prop, proptest};

    fn message_with(option_82: &[u8]) -> Message {
        let mut bytes = vec![0; 236];
        bytes.extend([0x63, 0x82, 0x53, 0x63, 255]);
        let mut message = Message::parse(&bytes)
            .expect("an empty message")
            .reply(MessageType::Offer);
        message.options = Options::new();
        message.options.set(code::RELAY_INFORMATION, option_82);
        message
    }

    #[test]
    fn link_selection_and_source_port_are_read_among_others() {
        let information = RelayInformation::of(&message_with(&[
            1, 3, b'e', b't', b'h', 5, 4, 10, 77, 0, 0, 19, 0, 11, 4, 10, 77, 0, 1,
        ]));
        assert_eq!(
            information.link_selection,
            Some(Ipv4Addr::new(10, 77, 0, 0))
        );
        assert_eq!(
            information.server_id_override,
            Some(Ipv4Addr::new(10, 77, 0, 1))
        );
        assert_eq!(information.reply_port(4067), 4067);
    }

    #[test]
    fn without_the_source_port_sub_option_answers_go_to_port_67() {
        assert_eq!(
            RelayInformation::of(&message_with(&[1, 1, 7])).reply_port(4067),
            67
        );
    }

    proptest! {
        #[test]
        fn no_sub_options_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = RelayInformation::of(&message_with(&bytes));
        }
    }
}
