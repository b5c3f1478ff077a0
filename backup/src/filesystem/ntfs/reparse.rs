//! Reparse points: files that stand for something else, by a tag (MS-FSCC, §2.1.2).
//!
//! Invariant: of a tag that is not known here the content counts as not readable, never as the file's own.

use super::Fault;
use super::names::utf8;
use crate::little_endian::{le16, le32};

/// The longest reparse data of Windows.
pub(super) const MAX_LEN: u64 = 16 << 10;

/// What a reparse point makes of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reparse {
    /// A symbolic link or junction, with its target.
    Link(Vec<u8>),
    /// A named pipe or a socket of the Windows Subsystem for Linux.
    Fifo,
    Socket,
    /// A file whose content another service keeps when it is not here.
    Cloud,
    /// A file whose content is elsewhere.
    Sealed(&'static str),
}

impl Reparse {
    /// Tag, length of the data, data.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let cut = || Fault::damaged("a reparse point is cut off");
        if bytes.len() < 8 {
            return Err(cut());
        }
        let data = bytes
            .get(8..8 + usize::from(le16(bytes, 4)))
            .ok_or_else(cut)?;
        Ok(match le32(bytes, 0) {
            0xa000_0003 => Self::Link(target(data, 8).ok_or_else(cut)?),
            0xa000_000c => Self::Link(target(data, 12).ok_or_else(cut)?),
            // Version 2, UTF-8.
            0xa000_001d => match data {
                [2, 0, 0, 0, target @ ..] => Self::Link(target.to_vec()),
                _ => Self::Sealed("a link of an unknown kind"),
            },
            0x8000_0023 => Self::Socket,
            0x8000_0024 => Self::Fifo,
            0x8000_0025 | 0x8000_0026 => Self::Sealed("a Linux device"),
            0x8000_0013 => Self::Sealed("deduplicated"),
            0x8000_0017 => Self::Sealed("compressed by Windows as a system file"),
            0x8000_001b => Self::Sealed("an alias of a Windows app"),
            // The cloud tags have a number of their provider in four bits.
            tag if tag & 0xffff_0fff == 0x9000_001a => Self::Cloud,
            0x8000_0021 => Self::Cloud,
            _ => Self::Sealed("a reparse point of an unknown kind"),
        })
    }
}

/// The name for people, or else the one for the system, of a link whose names begin at `names`.
fn target(data: &[u8], names: usize) -> Option<Vec<u8>> {
    let name = |at: usize| {
        let field = data.get(at..at + 4)?;
        let start = names + usize::from(le16(field, 0));
        data.get(start..start + usize::from(le16(field, 2)))
    };
    let (system, people) = (name(0)?, name(4)?);
    if !people.is_empty() {
        return Some(utf8(people));
    }
    let system = utf8(system);
    // The prefix of the kernel's own names.
    Some(
        system
            .strip_prefix(br"\??\")
            .map(<[u8]>::to_vec)
            .unwrap_or(system),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    fn link(tag: u32, flags: &[u8], system: &str, people: &str) -> Vec<u8> {
        let utf16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let (system, people) = (utf16(system), utf16(people));
        let mut data = Vec::new();
        for number in [0, system.len(), system.len(), people.len()] {
            data.extend((number as u16).to_le_bytes());
        }
        data.extend_from_slice(flags);
        data.extend(system);
        data.extend(people);
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend((data.len() as u16).to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(data);
        bytes
    }

    #[test]
    fn links_give_the_name_for_people_or_the_systems_without_its_prefix() {
        for (bytes, target) in [
            (
                link(0xa000_0003, &[], r"\??\C:\Users", r"C:\Users"),
                r"C:\Users",
            ),
            (link(0xa000_0003, &[], r"\??\Volume{1}\", ""), r"Volume{1}\"),
            (link(0xa000_000c, &[1, 0, 0, 0], r"..\a", r"..\ä"), r"..\ä"),
        ] {
            let expected = Reparse::Link(target.as_bytes().to_vec());
            assert_eq!(Reparse::parse(&bytes), Ok(expected));
            assert!(Reparse::parse(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn other_tags_say_why_the_content_is_not_here() {
        for (tag, expected) in [
            (0x8000_0013_u32, Reparse::Sealed("deduplicated")),
            (0x9000_301a, Reparse::Cloud),
            (
                0x1234_5678,
                Reparse::Sealed("a reparse point of an unknown kind"),
            ),
        ] {
            let mut bytes = tag.to_le_bytes().to_vec();
            bytes.extend([0; 4]);
            assert_eq!(Reparse::parse(&bytes), Ok(expected));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            tag in proptest::sample::select(vec![0xa000_0003_u32, 0xa000_000c, 0xa000_001d]),
            rest in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = tag.to_le_bytes().to_vec();
            bytes.extend(rest);
            let _ = Reparse::parse(&bytes);
        }
    }
}
