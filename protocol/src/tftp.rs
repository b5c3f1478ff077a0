//! TFTP packets: RFC 1350, options of RFC 2347, 2348, 2349 and 7440.
//!
//! ```text
//! RRQ   00 01  name 00 mode 00 (option 00 value 00)*
//! DATA  00 03  block(2) payload
//! ACK   00 04  block(2)
//! ERROR 00 05  code(2) message 00
//! OACK  00 06  (option 00 value 00)*
//! ```
//!
//! Invariant: no bytes make the parser panic, and parsing borrows: it allocates only the list of
//! options. Not here: transfers and their clock (`netboot::tftp`).

/// UDP port of the server.
pub const PORT: u16 = 69;
/// Payload size when no `blksize` was agreed (RFC 1350 §2).
pub const DEFAULT_BLOCK_SIZE: u16 = 512;
/// Bytes before the payload of a DATA packet.
pub const DATA_HEADER: usize = 4;

/// A client may ask for at most this many options; more is no boot loader.
const MAX_OPTIONS: usize = 16;

/// Error codes of RFC 1350 §5 and RFC 2347.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// See the message.
    Other,
    /// No such file.
    FileNotFound,
    /// Not allowed.
    AccessViolation,
    /// Not understood.
    IllegalOperation,
    /// The packet is of no transfer of this address and port.
    UnknownTransfer,
    /// The options are not accepted. Firmware that only wanted `tsize` ends so.
    OptionRefused,
    /// Any other number.
    Unlisted(u16),
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn to_u16(self) -> u16 {
        match self {
            Self::Other => 0,
            Self::FileNotFound => 1,
            Self::AccessViolation => 2,
            Self::IllegalOperation => 4,
            Self::UnknownTransfer => 5,
            Self::OptionRefused => 8,
            Self::Unlisted(number) => number,
        }
    }

    const fn from_u16(number: u16) -> Self {
        match number {
            0 => Self::Other,
            1 => Self::FileNotFound,
            2 => Self::AccessViolation,
            4 => Self::IllegalOperation,
            5 => Self::UnknownTransfer,
            8 => Self::OptionRefused,
            number => Self::Unlisted(number),
        }
    }
}

/// Option names and values as they stand in a packet.
pub type RawOptions<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A request to read or write, names and values as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file's name: bytes, because firmware promises no encoding.
    pub name: &'a [u8],
    /// `octet`, `netascii`, in any letter case.
    pub mode: &'a [u8],
    /// Option names and values in the client's order.
    pub options: RawOptions<'a>,
}

impl Request<'_> {
    /// The value of an option as a number; names compare without letter case (RFC 2347). `None`
    /// when missing or not a decimal number that fits.
    #[must_use]
    pub fn number(&self, option: &str) -> Option<u64> {
        let (_, value) = self
            .options
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(option.as_bytes()))?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }

    /// True for binary transfers.
    #[must_use]
    pub fn is_octet(&self) -> bool {
        self.mode.eq_ignore_ascii_case(b"octet")
    }
}

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ.
    Read(Request<'a>),
    /// WRQ.
    Write(Request<'a>),
    /// DATA.
    Data {
        /// Block number, modulo 65536.
        block: u16,
        /// The bytes.
        payload: &'a [u8],
    },
    /// ACK.
    Acknowledge {
        /// Block number, modulo 65536.
        block: u16,
    },
    /// ERROR: the end of the transfer.
    Error {
        /// Why.
        code: ErrorCode,
        /// A sentence, up to its NUL.
        message: &'a [u8],
    },
    /// OACK.
    OptionAcknowledge {
        /// Names and values.
        options: RawOptions<'a>,
    },
}

/// Why bytes are not a TFTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No room for opcode and number.
    #[error("the packet ends too early")]
    TooShort,
    /// An opcode that TFTP does not have.
    #[error("opcode {0} is not one of TFTP")]
    UnknownOpcode(u16),
    /// A text without its NUL, or an option without a value.
    #[error("a text in the packet does not end")]
    UnendedText,
    /// More options than any client needs.
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
}

impl<'a> Packet<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// When it is not TFTP; the caller answers with [`ErrorCode::IllegalOperation`] or not at all.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (opcode, body) = take_u16(bytes)?;
        match opcode {
            1 => Ok(Self::Read(parse_request(body)?)),
            2 => Ok(Self::Write(parse_request(body)?)),
            3 => take_u16(body).map(|(block, payload)| Self::Data { block, payload }),
            4 => take_u16(body).map(|(block, _)| Self::Acknowledge { block }),
            5 => {
                let (code, text) = take_u16(body)?;
                // Some clients leave the NUL out of an ERROR; the code is what matters.
                let message = take_text(text).map_or(text, |(message, _)| message);
                Ok(Self::Error {
                    code: ErrorCode::from_u16(code),
                    message,
                })
            }
            6 => Ok(Self::OptionAcknowledge {
                options: parse_options(body)?,
            }),
            other => Err(ParseError::UnknownOpcode(other)),
        }
    }

    /// The packet's bytes. Texts must not contain NUL.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Read(request) => emit_request(&mut out, 1, request),
            Self::Write(request) => emit_request(&mut out, 2, request),
            Self::Data { block, payload } => {
                out.extend(data_header(*block));
                out.extend_from_slice(payload);
            }
            Self::Acknowledge { block } => {
                out.extend(4_u16.to_be_bytes());
                out.extend(block.to_be_bytes());
            }
            Self::Error { code, message } => {
                out.extend(5_u16.to_be_bytes());
                out.extend(code.to_u16().to_be_bytes());
                out.extend_from_slice(message);
                out.push(0);
            }
            Self::OptionAcknowledge { options } => {
                out.extend(6_u16.to_be_bytes());
                emit_options(&mut out, options);
            }
        }
        out
    }
}

/// The four bytes before a DATA packet's payload, for senders that read the file right behind them.
#[must_use]
pub fn data_header(block: u16) -> [u8; DATA_HEADER] {
    let [high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

fn take_u16(bytes: &[u8]) -> Result<(u16, &[u8]), ParseError> {
    match bytes {
        [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(ParseError::TooShort),
    }
}

fn take_text(bytes: &[u8]) -> Result<(&[u8], &[u8]), ParseError> {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(ParseError::UnendedText)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

fn parse_request(body: &[u8]) -> Result<Request<'_>, ParseError> {
    let (name, rest) = take_text(body)?;
    let (mode, rest) = take_text(rest)?;
    Ok(Request {
        name,
        mode,
        options: parse_options(rest)?,
    })
}

fn parse_options(mut rest: &[u8]) -> Result<RawOptions<'_>, ParseError> {
    let mut options = Vec::new();
    // Some ROMs pad requests with zeros: an empty name ends the list.
    while rest.first().is_some_and(|&byte| byte != 0) {
        if options.len() == MAX_OPTIONS {
            return Err(ParseError::TooManyOptions);
        }
        let (name, after) = take_text(rest)?;
        let (value, after) = take_text(after)?;
        options.push((name, value));
        rest = after;
    }
    Ok(options)
}

fn emit_request(out: &mut Vec<u8>, opcode: u16, request: &Request<'_>) {
    out.extend(opcode.to_be_bytes());
    for text in [request.name, request.mode] {
        out.extend_from_slice(text);
        out.push(0);
    }
    emit_options(out, &request.options);
}

fn emit_options(out: &mut Vec<u8>, options: &[(&[u8], &[u8])]) {
    for (name, value) in options {
        for text in [name, value] {
            out.extend_from_slice(text);
            out.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    #[test]
    fn a_request_of_ovmf_is_read() {
        let packet = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0WindowSize\x004\0";
        let Ok(Packet::Read(request)) = Packet::parse(packet) else {
            panic!("a read request");
        };
        assert_eq!(request.name, b"snponly.efi");
        assert!(request.is_octet());
        assert_eq!(request.number("tsize"), Some(0));
        assert_eq!(request.number("blksize"), Some(1468));
        assert_eq!(request.number("windowsize"), Some(4));
        assert_eq!(request.number("timeout"), None);
    }

    #[test]
    fn zeros_after_a_request_are_padding() {
        let Ok(Packet::Read(request)) = Packet::parse(b"\0\x01f\0OCTET\0\0\0\0\0") else {
            panic!("a read request");
        };
        assert!(request.options.is_empty());
    }

    #[test]
    fn unended_texts_are_refused() {
        assert_eq!(Packet::parse(b"\0\x01name"), Err(ParseError::UnendedText));
        assert_eq!(
            Packet::parse(b"\0\x01f\0octet\0tsize\0"),
            Err(ParseError::UnendedText)
        );
        assert_eq!(Packet::parse(b"\0"), Err(ParseError::TooShort));
        assert_eq!(Packet::parse(b"\0\x09"), Err(ParseError::UnknownOpcode(9)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn no_request_makes_the_parser_panic(body in prop::collection::vec(0_u8..4, 0..60)) {
            let mut bytes = vec![0, 1];
            bytes.extend(body);
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn requests_are_read_back(
            name in "[a-zA-Z/.]{1,40}",
            options in prop::collection::vec(("[a-z]{1,9}", "[0-9]{0,9}"), 0..10),
        ) {
            let options = options.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            let packet = Packet::Read(Request { name: name.as_bytes(), mode: b"octet", options });
            let bytes = packet.emit();
            prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
        }

        #[test]
        fn data_and_errors_are_read_back(block: u16, payload in prop::collection::vec(any::<u8>(), 0..99)) {
            for packet in [
                Packet::Data { block, payload: &payload },
                Packet::Error { code: ErrorCode::from_u16(block), message: b"no" },
                Packet::Acknowledge { block },
            ] {
                let bytes = packet.emit();
                prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
            }
        }
    }
}
