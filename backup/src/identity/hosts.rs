//! A machine's name in `/etc/hostname` and `/etc/hosts` (hosts(5)).
//!
//! Invariant: only the machine's own old name is replaced, in the columns of names; comments, addresses and
//! other names stay.

use super::{HostName, short};

/// The name in `/etc/hostname` (hostname(5)): the first line that is no comment.
#[must_use]
pub fn name_in(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
}

/// `/etc/hosts` with the machine's old name replaced by its new one.
#[must_use]
pub fn renamed(text: &str, old: &str, new: &HostName) -> String {
    // A machine that has no name of its own shares this one with the loopback.
    if short(old).eq_ignore_ascii_case("localhost") {
        return text.to_owned();
    }
    text.split_inclusive('\n')
        .map(|line| {
            let (names, comment) = line
                .find('#')
                .map_or((line, ""), |comment| line.split_at(comment));
            renamed_line(names, old, new) + comment
        })
        .collect()
}

fn renamed_line(line: &str, old: &str, new: &HostName) -> String {
    let mut out = String::with_capacity(line.len());
    let mut words = 0;
    for piece in line.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end_matches(char::is_whitespace);
        let space = &piece[word.len()..];
        words += usize::from(!word.is_empty());
        // The first word is the address.
        if words > 1 && !word.is_empty() {
            out.push_str(&renamed_word(word, old, new));
        } else {
            out.push_str(word);
        }
        out.push_str(space);
    }
    out
}

fn renamed_word(word: &str, old: &str, new: &HostName) -> String {
    if word.eq_ignore_ascii_case(short(old)) {
        return new.short().to_owned();
    }
    match word.split_once('.') {
        Some((first, domain)) if first.eq_ignore_ascii_case(short(old)) => {
            if new.as_str().contains('.') {
                new.as_str().to_owned()
            } else {
                format!("{new}.{domain}")
            }
        }
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    fn host(text: &str) -> HostName {
        HostName::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn the_own_name_is_replaced_and_others_stay() {
        let text = "127.0.0.1 localhost\n127.0.1.1\tgolden.example.org golden # golden\n\
            10.0.0.9 golden2 notgolden printer\n::1 ip6-localhost\n";
        let expected = "127.0.0.1 localhost\n127.0.1.1\tlab-7.example.org lab-7 # golden\n\
            10.0.0.9 golden2 notgolden printer\n::1 ip6-localhost\n";
        assert_eq!(renamed(text, "golden", &host("lab-7")), expected);
        assert_eq!(
            renamed(
                "127.0.1.1 golden.old.org golden\n",
                "golden.old.org",
                &host("lab-7.new.org")
            ),
            "127.0.1.1 lab-7.new.org lab-7\n"
        );
    }

    #[test]
    fn the_loopback_keeps_its_name() {
        let text = "127.0.0.1 localhost localhost.localdomain\n";
        assert_eq!(renamed(text, "localhost", &host("lab-7")), text);
    }

    #[test]
    fn the_name_is_the_first_line_that_is_no_comment() {
        assert_eq!(
            name_in(b"# made by hand\n\n golden \n").as_deref(),
            Some("golden")
        );
        assert_eq!(name_in(b"\n"), None);
        assert_eq!(name_in(&[0xff, 0xfe]), None);
    }

    proptest! {
        #[test]
        fn a_text_without_the_name_stays(text in "[b-z0-9 \t\n#.:]{0,200}") {
            prop_assert_eq!(renamed(&text, "golden", &host("lab-7")), text);
        }
    }
}
