//! Which module serves a device: `modules.alias` against the device's modalias.
//!
//! Invariant: matching is total and bounded; a pattern that makes no sense matches nothing. What is
//! *not* here: the order of loading ([`super::dependencies`]), the file system.

use std::collections::HashMap;

/// Whether `text` fits `pattern`, with the wildcards of fnmatch(3) that `modules.alias` uses: `*`, `?`
/// and sets such as `[0-9A-F]`, `[!x]`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut read) = (0, 0);
    // Where the last `*` was, and how much text it has taken: only the last one can need more.
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => set_matches(&pattern[at..], text[read]),
            Some(byte) => (*byte == text[read]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(width), _) => {
                at += width;
                read += 1;
            }
            (None, Some((star_at, taken))) => {
                at = star_at + 1;
                read = taken + 1;
                star = Some((star_at, taken + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// The width of the set that `pattern` begins with, when `byte` is in it.
fn set_matches(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = 2 + pattern.get(2..)?.iter().position(|byte| *byte == b']')?;
    let inside = &pattern[1..end];
    let (inverted, inside) = match inside {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, inside),
    };
    let mut found = false;
    let mut at = 0;
    while at < inside.len() {
        match inside[at..] {
            [from, b'-', to, ..] => {
                found |= (from..=to).contains(&byte);
                at += 3;
            }
            _ => {
                found |= inside[at] == byte;
                at += 1;
            }
        }
    }
    (found != inverted).then_some(end + 1)
}

/// The patterns of `modules.alias`, by bus.
#[derive(Debug, Default)]
pub(crate) struct Aliases {
    /// Key: the text before the first `:`, `*` or `[`; it cuts the search by far.
    by_bus: HashMap<String, Vec<(String, String)>>,
}

impl Aliases {
    /// Reads `modules.alias`: lines `alias PATTERN MODULE`; others are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut aliases = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("alias"), Some(pattern), Some(module), None) =
                (words.next(), words.next(), words.next(), words.next())
            {
                let entry = (pattern.to_owned(), module.to_owned());
                let list = aliases.by_bus.entry(bus(pattern).to_owned());
                list.or_default().push(entry);
            }
        }
        aliases
    }

    /// The modules that serve `modalias`, in the order of the file, each once.
    pub(crate) fn modules(&self, modalias: &str) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for (pattern, module) in self.by_bus.get(bus(modalias)).into_iter().flatten() {
            if !found.contains(&module.as_str()) && matches(pattern, modalias) {
                found.push(module);
            }
        }
        found
    }
}

fn bus(text: &str) -> &str {
    let end = text.find([':', '*', '[', '?']).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    const ALIASES: &str = "# Aliases extracted from modules themselves.\n\
        alias pci:v00008086d00001533sv*sd*bc*sc*i* igb\n\
        alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n\
        alias pci:v*d*sv*sd*bc01sc06i01* ahci\n\
        alias pci:v*d*sv*sd*bc01sc08i02* nvme\n\
        alias virtio:d00000001v* virtio_net\n\
        alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage\n\
        alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* uas\n\
        alias cpu:type:x86,ven*fam*mod*:feature:*0094* crc32c_intel\n\
        alias fs-ext4 ext4\n\
        broken line\n";

    #[test]
    fn a_device_gets_the_module_of_its_modalias() {
        let aliases = Aliases::parse(ALIASES);
        for (modalias, modules) in [
            (
                "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00",
                &["virtio_pci"][..],
            ),
            (
                "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01",
                &["ahci"],
            ),
            (
                "pci:v00008086d00001533sv00008086sd00000001bc02sc00i00",
                &["igb"],
            ),
            ("virtio:d00000001v00001AF4", &["virtio_net"]),
            ("virtio:d00000002v00001AF4", &[]),
            (
                "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00",
                &["usb_storage", "uas"],
            ),
            (
                "cpu:type:x86,ven0000fam0006mod003C:feature:,0000,0094,00E0",
                &["crc32c_intel"],
            ),
            ("fs-ext4", &["ext4"]),
            ("", &[]),
        ] {
            assert_eq!(aliases.modules(modalias), modules, "{modalias}");
        }
    }

    #[test]
    fn wildcards_mean_what_they_mean_in_fnmatch() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("x[0-9A-C]y", "xBy", true),
            ("x[0-9A-C]y", "xDy", false),
            ("x[!0-9]y", "xay", true),
            ("x[!0-9]y", "x1y", false),
            ("x[]]y", "x]y", true),
            ("x[9", "x9", false),
            ("*[", "a[", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} against {text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_matches_itself_and_star(text in "[a-z0-9:,]{0,40}") {
            prop_assert!(matches(&text, &text));
            prop_assert!(matches("*", &text));
        }

        #[test]
        fn agrees_with_a_recursive_oracle(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(
                matches(&pattern, &text),
                oracle(pattern.as_bytes(), text.as_bytes())
            );
        }

        #[test]
        fn any_bytes_are_survived(pattern in ".{0,30}", text in ".{0,30}") {
            let _ = matches(&pattern, &text);
        }
    }

    fn oracle(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                oracle(rest, text) || (!text.is_empty() && oracle(pattern, &text[1..]))
            }
            ([b'?', rest @ ..], [_, more @ ..]) => oracle(rest, more),
            ([p, rest @ ..], [t, more @ ..]) => p == t && oracle(rest, more),
            _ => false,
        }
    }
}
