//! What the person at the machine sees: a header that stays, log lines below it.
//!
//! Invariant: [`View`] and [`Drawing`] are values without I/O. What is *not* here: consoles and their
//! threads ([`crate::log`]), the wizard (later).

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use protocol::progress::Progress;

/// What there is to say at the top of the screen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    /// What the server calls the machine.
    pub(crate) machine: Option<String>,
    /// Network port and address.
    pub(crate) address: Option<String>,
    /// The server's base URL.
    pub(crate) server: Option<String>,
    /// The pairing code.
    pub(crate) pairing_code: String,
    /// What the machine does now, in words.
    pub(crate) state: String,
    /// How far it is.
    pub(crate) progress: Option<Progress>,
    /// What keeps it from going on, while something does.
    pub(crate) trouble: Option<String>,
}

impl View {
    /// The lines of the header, at most `HEADER_ROWS`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let code = &self.pairing_code;
        let (first, last) = code.split_at_checked(3).unwrap_or((code, ""));
        let mut lines = vec![
            concat!(" netboot recovery environment ", env!("CARGO_PKG_VERSION")).to_owned(),
            format!(" Machine       {}", or_dash(&self.machine)),
            format!(" Address       {}", or_dash(&self.address)),
            format!(" Server        {}", or_dash(&self.server)),
            format!(" Pairing code  {first} {last}"),
            String::new(),
        ];
        let state = wrapped(&printable(&format!(" {}", self.state)), STATE_WIDTH);
        lines.extend(state.into_iter().take(STATE_ROWS));
        match (&self.trouble, &self.progress) {
            (Some(trouble), _) => lines.push(format!(" {trouble}")),
            (None, Some(progress)) => lines.push(format!(" {progress}")),
            (None, None) => {}
        }
        lines
    }
}

/// Columns of the state; no screen has fewer than 80.
const STATE_WIDTH: usize = 79;
/// Lines of the state, which can be the reason of a failure.
const STATE_ROWS: usize = 3;

static VIEW: Mutex<Option<View>> = Mutex::new(None);

/// Changes what is shown, and shows it on every screen.
pub(crate) fn update(change: impl FnOnce(&mut View)) {
    let mut view = VIEW.lock().unwrap_or_else(PoisonError::into_inner);
    let before = view.clone();
    let now = view.get_or_insert_default();
    change(now);
    if before.as_ref() != Some(now) {
        crate::log::header(&now.lines());
    }
}

/// Rows of the header, the rule below it included.
const HEADER_ROWS: u16 = 11;

/// The bytes that draw on a terminal that knows the control sequences of console_codes(4).
#[derive(Debug)]
pub(crate) struct Drawing {
    rows: u16,
    columns: u16,
}

impl Drawing {
    /// For a screen of this size.
    pub(crate) fn new(rows: u16, columns: u16) -> Self {
        Self { rows, columns }
    }

    /// Clears the screen, keeps it from going dark, and makes everything below the header scroll.
    pub(crate) fn begin(&self) -> String {
        let mut out = String::from("\x1bc\x1b[9;0]\x1b[14;0]\x1b[?25l\x1b[2J");
        if self.has_header() {
            let (top, bottom) = (HEADER_ROWS + 1, self.rows);
            let _ = write!(out, "\x1b[{top};{bottom}r\x1b[{top};1H");
        }
        out
    }

    /// A log line at the bottom.
    pub(crate) fn line(&self, text: &str) -> String {
        wrapped(&printable(text), usize::from(self.columns))
            .into_iter()
            .fold(String::new(), |out, line| out + &line + "\r\n")
    }

    /// The header, drawn in place.
    pub(crate) fn header(&self, lines: &[String]) -> String {
        if !self.has_header() {
            return String::new();
        }
        let width = usize::from(self.columns);
        let mut out = String::from("\x1b7");
        for row in 1..HEADER_ROWS {
            let text = lines.get(usize::from(row) - 1).map_or("", String::as_str);
            let text: String = printable(text).chars().take(width).collect();
            // The name of the product in reverse over the whole width.
            if row == 1 {
                let _ = write!(out, "\x1b[{row};1H\x1b[7m{text:<width$}\x1b[0m");
            } else {
                let _ = write!(out, "\x1b[{row};1H{text}\x1b[K");
            }
        }
        let _ = write!(out, "\x1b[{HEADER_ROWS};1H{}\x1b8", "-".repeat(width));
        out
    }

    /// Whether there is room for lines below it.
    fn has_header(&self) -> bool {
        self.rows >= HEADER_ROWS + 5
    }
}

/// Cut between words into lines of at most `width` columns; all but the first are indented.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "    ";
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let mut word = word;
        loop {
            let Some(line) = lines.last_mut() else {
                return lines;
            };
            let left = width.saturating_sub(line.chars().count());
            // The last column stays free: a console wraps by itself when it is written to.
            let length = word.trim_end().chars().count();
            let is_bare = line.is_empty() || line == INDENT;
            if length == 0 {
                if left > 1 && line != INDENT {
                    line.push(' ');
                }
                break;
            }
            if length < left {
                line.push_str(word);
                break;
            }
            if is_bare {
                // A word longer than a line is cut.
                let at = word.char_indices().nth(left.saturating_sub(1).max(1));
                let (head, tail) = word.split_at(at.map_or(word.len(), |(at, _)| at));
                line.push_str(head);
                word = tail;
            }
            line.truncate(line.trim_end().len());
            lines.push(INDENT.to_owned());
        }
    }
    lines
}

/// Without control characters, which could come from a device's or a server's text.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use protocol::progress::Stage;

    use super::*;

    fn view() -> View {
        View {
            machine: Some("QEMU Standard PC".to_owned()),
            pairing_code: "042917".to_owned(),
            state: "Working".to_owned(),
            ..View::default()
        }
    }

    #[test]
    fn the_header_says_who_where_and_what() {
        let mut view = view();
        view.progress = Some(Progress {
            done: 512 << 20,
            total: 1 << 30,
            rate: 100 << 20,
            seconds_left: Some(65),
            ..Progress::of(Stage::Writing)
        });
        let lines = view.lines();
        assert!(lines.len() < usize::from(HEADER_ROWS));
        let all = lines.join("\n");
        for part in [
            "042 917",
            "QEMU Standard PC",
            "Working",
            "50 %",
            "1:05 left",
        ] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }

    #[test]
    fn long_texts_are_cut_and_control_characters_do_nothing() {
        let drawing = Drawing::new(25, 80);
        let mut view = view();
        view.machine = Some("x\x1b[2J".repeat(50));
        let drawn = drawing.header(&view.lines());
        assert!(!drawn.contains("\x1b[2J"));
        assert!(!drawing.line("a\x1b[2J\nb").contains("\x1b"));
        let longest = drawn.split("\x1b[").map(str::len).max();
        assert!(longest < Some(100), "{longest:?}");
    }

    #[test]
    fn long_lines_are_cut_between_words() {
        assert_eq!(wrapped("ab cd ef", 80), ["ab cd ef"]);
        assert_eq!(
            wrapped("one two three four", 12),
            ["one two", "    three", "    four"]
        );
        assert_eq!(
            wrapped("aaaaaaaaaaaaaaa", 10),
            ["aaaaaaaaa", "    aaaaa", "    a"]
        );
        assert_eq!(wrapped("", 80), [""]);
        assert_eq!(wrapped("  whole disk", 80), ["  whole disk"]);
    }

    proptest! {
        #[test]
        fn no_line_is_too_long_and_no_word_is_lost(text in "[a-z ]{0,200}", width in 8usize..100) {
            let lines = wrapped(&text, width);
            prop_assert!(lines.iter().all(|line| line.trim_end().chars().count() < width));
            let letters = |text: &str| text.replace(' ', "");
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }

    #[test]
    fn a_tiny_screen_has_lines_only() {
        let drawing = Drawing::new(10, 40);
        assert_eq!(drawing.header(&view().lines()), "");
        assert!(!drawing.begin().contains('r'));
    }
}
