//! Ids as they are written in text files, each with the one that takes its place.
//!
//! Invariant: a text keeps its length, and only whole words are replaced: the same letters within a longer id
//! stay. The forms are those of `blkid` and udev: UUIDs, `XXXX-XXXX` of FAT and exFAT, `xxxxxxxx-nn` for a
//! partition of a PC partition table.

use uuid::Uuid;

/// One id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reference {
    /// What is looked for, in lower case.
    old: Vec<u8>,
    /// What takes its place, as `blkid` writes it.
    new: Vec<u8>,
    /// Whether it stays where it is a part of a path.
    not_in_paths: bool,
}

/// Ids and their successors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References(Vec<Reference>);

impl References {
    /// Nothing to replace yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A file system, a swap or a partition of a GPT.
    pub fn uuid(&mut self, old: Uuid, new: Uuid) {
        self.add(&old.to_string(), new.to_string(), false);
    }

    /// A FAT or exFAT volume.
    pub fn short(&mut self, old: u32, new: u32) {
        self.add(&short_id(old), short_id(new), false);
    }

    /// The partitions 1 to 255 of a disk with a PC partition table.
    pub fn signature(&mut self, old: u32, new: u32) {
        for partition in 1..=255 {
            self.add(
                &format!("{old:08x}-{partition:02x}"),
                format!("{new:08x}-{partition:02x}"),
                false,
            );
        }
    }

    /// A machine id, which also names folders that keep their names.
    pub fn machine_id(&mut self, old: Uuid, new: Uuid) {
        self.add(&old.simple().to_string(), new.simple().to_string(), true);
    }

    fn add(&mut self, old: &str, new: String, not_in_paths: bool) {
        self.0.push(Reference {
            old: old.to_ascii_lowercase().into_bytes(),
            new: new.into_bytes(),
            not_in_paths,
        });
    }

    /// Whether there is nothing to replace.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces every reference in a text, in place; returns how many there were.
    pub fn rewrite(&self, text: &mut [u8]) -> usize {
        let mut count = 0;
        let mut at = 0;
        while at < text.len() {
            let Some(found) = self.at(text, at) else {
                at += 1;
                continue;
            };
            let place = &mut text[at..at + found.new.len()];
            let upper = place.iter().any(u8::is_ascii_uppercase);
            let lower = place.iter().any(u8::is_ascii_lowercase);
            place.copy_from_slice(&found.new);
            // As it was written; an id of digits only says nothing of that.
            if lower && !upper {
                place.make_ascii_lowercase();
            } else if upper {
                place.make_ascii_uppercase();
            }
            at += found.new.len();
            count += 1;
        }
        count
    }

    /// The reference that is a word of the text at this place.
    fn at(&self, text: &[u8], at: usize) -> Option<&Reference> {
        if !text[at].is_ascii_hexdigit() {
            return None;
        }
        let before = at.checked_sub(1).map(|before| text[before]);
        if before.is_some_and(is_of_word) {
            return None;
        }
        self.0.iter().find(|reference| {
            let end = at + reference.old.len();
            text.get(at..end)
                .is_some_and(|word| word.eq_ignore_ascii_case(&reference.old))
                && !text.get(end).copied().is_some_and(is_of_word)
                && !(reference.not_in_paths
                    && (before == Some(b'/') || text.get(end) == Some(&b'/')))
        })
    }
}

/// Whether a byte beside an id makes it a part of something longer.
const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// A volume serial number as `blkid` shows it.
pub(super) fn short_id(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const OLD: Uuid = Uuid::from_u128(0x6c61_622d_726f_4f74_8000_0000_0000_0001);
    const NEW: Uuid = Uuid::from_u128(0x1122_3344_5566_4788_99aa_bbcc_ddee_ff00);

    fn rewritten(references: &References, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        references.rewrite(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_form_of_a_reference_is_replaced() {
        let mut references = References::new();
        references.uuid(OLD, NEW);
        references.short(0x1ab0_e5f0, 0xdead_beef);
        references.signature(0x0011_aabb, 0xcafe_f00d);
        let text = "UUID=6c61622d-726f-4f74-8000-000000000001 / ext4\n\
            /dev/disk/by-uuid/6C61622D-726F-4F74-8000-000000000001 /x\n\
            UUID=\"1AB0-E5F0\" /boot/efi\nsearch --fs-uuid 1ab0-e5f0\n\
            root=PARTUUID=0011aabb-02 /dev/disk/by-partuuid/0011aabb-0a\n";
        let expected = "UUID=11223344-5566-4788-99aa-bbccddeeff00 / ext4\n\
            /dev/disk/by-uuid/11223344-5566-4788-99AA-BBCCDDEEFF00 /x\n\
            UUID=\"DEAD-BEEF\" /boot/efi\nsearch --fs-uuid dead-beef\n\
            root=PARTUUID=cafef00d-02 /dev/disk/by-partuuid/cafef00d-0a\n";
        assert_eq!(rewritten(&references, text), expected);
    }

    #[test]
    fn what_is_part_of_something_longer_stays() {
        let mut references = References::new();
        // The middle of the UUID below.
        references.short(0x726f_4f74, 1);
        references.uuid(OLD, NEW);
        references.signature(0x6c61_622d, 1);
        for text in [
            "aa6c61622d-726f-4f74-8000-000000000001",
            "6c61622d-726f-4f74-8000-0000000000012",
            "6c61622d-726f",
            "x726F-4F74",
        ] {
            assert_eq!(rewritten(&references, text), text);
        }
    }

    #[test]
    fn a_machine_id_stays_where_it_names_a_folder() {
        let mut references = References::new();
        references.machine_id(OLD, NEW);
        let text = "machine-id 6c61622d726f4f748000000000000001\n\
            options systemd.machine_id=6c61622d726f4f748000000000000001 quiet\n\
            linux /6c61622d726f4f748000000000000001/6.1/linux\n";
        let expected = "machine-id 112233445566478899aabbccddeeff00\n\
            options systemd.machine_id=112233445566478899aabbccddeeff00 quiet\n\
            linux /6c61622d726f4f748000000000000001/6.1/linux\n";
        assert_eq!(rewritten(&references, text), expected);
    }

    proptest! {
        /// Whatever is around them, references that stand alone are replaced, nothing else changes, and the
        /// way back gives the first text again.
        #[test]
        fn rewriting_touches_references_only_and_can_be_undone(
            old in any::<u128>(),
            new in any::<u128>(),
            short in any::<(u32, u32)>(),
            parts in proptest::collection::vec("[ -~\n]{0,30}", 1..8),
        ) {
            let (old, new) = (Uuid::from_u128(old), Uuid::from_u128(new));
            let (mut there, mut back) = (References::new(), References::new());
            there.uuid(old, new);
            back.uuid(new, old);
            there.short(short.0, short.1);
            back.short(short.1, short.0);
            let build = |uuid: Uuid, short: u32| {
                parts.iter().map(|part| format!("{part} UUID={uuid} ({}) ", short_id(short))).collect::<String>()
            };
            let text = build(old, short.0);
            let mut bytes = text.clone().into_bytes();
            let count = there.rewrite(&mut bytes);
            prop_assert!(count >= 2 * parts.len());
            prop_assert_eq!(String::from_utf8(bytes.clone()).unwrap(), build(new, short.1));
            back.rewrite(&mut bytes);
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), text);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut references = References::new();
            references.uuid(OLD, NEW);
            references.signature(1, 2);
            let before = bytes.clone();
            let count = references.rewrite(&mut bytes);
            prop_assert_eq!(bytes.len(), before.len());
            prop_assert!(count > 0 || bytes == before);
        }
    }
}
