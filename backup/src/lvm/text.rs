//! LVM's text format: sections in braces, `name = value`, lists, comments.
//!
//! Invariant: depth and number of values are limited; a name that comes twice in a section is refused,
//! because it is not said which of them counts.

use std::collections::BTreeMap;

/// Sections or lists within each other.
const MAX_DEPTH: u32 = 16;
/// Values in a text.
const MAX_VALUES: u32 = 1 << 20;

/// Something with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A section.
    Section(Section),
    /// A number.
    Number(i64),
    /// Text in quotes, or a bare word.
    Text(String),
    /// Values in brackets.
    List(Vec<Entry>),
}

/// The entries of a section by their names.
pub(super) type Section = BTreeMap<String, Entry>;

/// Reads a text.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn parse(text: &[u8]) -> Result<Section, String> {
    let mut parser = Parser {
        text,
        at: 0,
        values: 0,
    };
    let section = parser.section(0)?;
    match parser.peek() {
        None => Ok(section),
        Some(_) => Err(parser.wrong("a brace without its beginning")),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    values: u32,
}

impl Parser<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("{what} at byte {}", self.at)
    }

    /// The next byte that is neither space nor part of a comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.get(self.at)? {
                byte if byte.is_ascii_whitespace() => self.at += 1,
                b'#' => {
                    let rest = &self.text[self.at..];
                    let line = rest.iter().position(|byte| *byte == b'\n');
                    self.at += line.unwrap_or(rest.len());
                }
                byte => return Some(byte),
            }
        }
    }

    fn take(&mut self, wanted: u8) -> Result<(), String> {
        if self.peek() != Some(wanted) {
            return Err(self.wrong(&format!("no `{}`", char::from(wanted))));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self) -> Result<String, String> {
        let start = self.at;
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b"={}[],#\"".contains(byte);
        let rest = self.text.get(start..).unwrap_or_default();
        self.at += rest.iter().position(ends).unwrap_or(rest.len());
        match std::str::from_utf8(&self.text[start..self.at]) {
            Ok(word) if !word.is_empty() => Ok(word.to_owned()),
            _ => Err(self.wrong("no name")),
        }
    }

    /// Entries up to a closing brace, which is left, or the end.
    fn section(&mut self, depth: u32) -> Result<Section, String> {
        let mut section = Section::new();
        while let Some(byte) = self.peek()
            && byte != b'}'
        {
            let name = if byte == b'"' {
                self.quoted()?
            } else {
                self.word()?
            };
            let entry = match self.peek() {
                Some(b'{') if depth < MAX_DEPTH => {
                    self.count()?;
                    self.at += 1;
                    let inner = self.section(depth + 1)?;
                    self.take(b'}')?;
                    Entry::Section(inner)
                }
                Some(b'{') => return Err(self.wrong("too many sections within each other")),
                _ => {
                    self.take(b'=')?;
                    self.value(depth)?
                }
            };
            if section.insert(name, entry).is_some() {
                return Err(self.wrong("a name that comes twice"));
            }
        }
        Ok(section)
    }

    fn count(&mut self) -> Result<(), String> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.wrong("too many values"));
        }
        Ok(())
    }

    fn value(&mut self, depth: u32) -> Result<Entry, String> {
        self.count()?;
        match self.peek() {
            Some(b'"') => Ok(Entry::Text(self.quoted()?)),
            Some(b'[') if depth < MAX_DEPTH => {
                self.at += 1;
                let mut list = Vec::new();
                while self.peek() != Some(b']') {
                    list.push(self.value(depth + 1)?);
                    match self.peek() {
                        Some(b',') => self.at += 1,
                        Some(b']') => {}
                        _ => return Err(self.wrong("a list without its end")),
                    }
                }
                self.at += 1;
                Ok(Entry::List(list))
            }
            Some(b'[') => Err(self.wrong("too many lists within each other")),
            _ => {
                let word = self.word()?;
                Ok(word.parse().map_or(Entry::Text(word), Entry::Number))
            }
        }
    }

    /// Text in quotes, in which a backslash stands before a quote or another one.
    fn quoted(&mut self) -> Result<String, String> {
        self.take(b'"')?;
        let mut bytes = Vec::new();
        loop {
            let byte = self.text.get(self.at).copied();
            self.at += 1;
            match byte {
                Some(b'"') => break,
                Some(b'\\') => {
                    bytes.extend(self.text.get(self.at));
                    self.at += 1;
                }
                Some(byte) => bytes.push(byte),
                None => return Err(self.wrong("text without its closing quote")),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("text that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn sections_values_lists_and_comments_are_read() {
        let text = br#"# generated
            vg0 { # a group
                id = "a\"b\\c" n = -3
                list = ["x", 1, []]
                inner { }
            }"#;
        let Some(Entry::Section(group)) = parse(text).unwrap().remove("vg0") else {
            panic!("no section");
        };
        assert_eq!(group["id"], Entry::Text("a\"b\\c".to_owned()));
        assert_eq!(group["n"], Entry::Number(-3));
        let list = [
            Entry::Text("x".to_owned()),
            Entry::Number(1),
            Entry::List(Vec::new()),
        ];
        assert_eq!(group["list"], Entry::List(list.to_vec()));
        assert_eq!(group["inner"], Entry::Section(Section::new()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let deep = "a{".repeat(100);
        let lists = format!("a={}", "[".repeat(100));
        for (text, expected) in [
            ("a = 1 a = 2", "twice"),
            ("a = \"x", "closing quote"),
            ("a = [1", "without its end"),
            ("a { b = 1", "no `}`"),
            ("a = 1 }", "without its beginning"),
            ("= 1", "no name"),
            (&deep, "too many sections"),
            (&lists, "too many lists"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    &b"a"[..], b" ", b"{", b"}", b"[", b"]", b"=", b"\"", b"\\", b",", b"#", b"\n", b"7",
                    b"\xff",
                ]),
                0..60,
            ),
            noise in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut text = parts.concat();
            let _ = parse(&text);
            text.extend(noise);
            let _ = parse(&text);
        }
    }
}
