//! Turns what a machine writes to its serial port into lines of plain text.
//!
//! Firmware, iPXE and GRUB draw screens with escape sequences (ECMA-48). A scenario waits for words, so
//! sequences are taken out, and a jump of the cursor counts as the end of a line. Invariant: only
//! printable characters and line feeds come out.

/// Where the reader is in an escape sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC [, until a final byte.
    Control,
    /// After ESC ( and the like: one byte follows.
    OneMore,
}

const ESCAPE: u8 = 0x1b;

/// A filter for a stream of terminal bytes.
#[derive(Debug, Default)]
pub(crate) struct TerminalText {
    state: State,
    bytes: Vec<u8>,
}

impl TerminalText {
    /// The plain text in the next bytes; a character cut in two comes with the second half.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        for &byte in bytes {
            self.step(byte);
        }
        let complete = match std::str::from_utf8(&self.bytes) {
            Ok(_) => self.bytes.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.bytes.len(),
        };
        let text = String::from_utf8_lossy(&self.bytes[..complete]).into_owned();
        self.bytes.drain(..complete);
        text
    }

    fn step(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (_, ESCAPE) => State::Escape,
            (State::Text, b'\n' | b'\t') => self.keep(byte),
            (State::Text, 0x00..0x20 | 0x7f) => State::Text,
            (State::Text, _) => self.keep(byte),
            (State::Escape, b'[') => State::Control,
            (State::Escape, b'(' | b')' | b'#') => State::OneMore,
            (State::Escape | State::OneMore, _) => State::Text,
            (State::Control, 0x40..=0x7e) => {
                if matches!(byte, b'H' | b'f' | b'J')
                    && self.bytes.last().is_some_and(|&last| last != b'\n')
                {
                    self.bytes.push(b'\n');
                }
                State::Text
            }
            (State::Control, _) => State::Control,
        };
    }

    fn keep(&mut self, byte: u8) -> State {
        self.bytes.push(byte);
        State::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_carriage_returns_are_taken_out() {
        let mut text = TerminalText::default();
        assert_eq!(text.push(b"\x1b[0;32mok\x1b[0m\r\nlogin: "), "ok\nlogin: ");
    }

    #[test]
    fn a_cursor_jump_ends_the_line() {
        let mut text = TerminalText::default();
        assert_eq!(text.push(b"one\x1b[3;1Htwo\x1b)0"), "one\ntwo");
    }

    #[test]
    fn a_sequence_or_character_cut_in_two_is_put_together() {
        let mut text = TerminalText::default();
        assert_eq!(text.push(b"a\x1b["), "a");
        assert_eq!(text.push(b"1mb\xc3"), "b");
        assert_eq!(text.push(b"\xa9\xff!"), "\u{e9}\u{fffd}!");
    }
}
