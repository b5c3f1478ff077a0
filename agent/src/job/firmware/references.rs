//! Ids of partitions that change with their table: `PARTUUID=` of a PC partition table is its signature and the
//! partition's number, of a GPT a GUID.
//!
//! Invariant: only whole words are replaced.

/// Old and new ids, in small letters.
#[derive(Debug, Default)]
pub(super) struct PartitionIds(Vec<(String, String)>);

impl PartitionIds {
    /// The id of partition `number` of a table with this signature becomes `new`.
    pub(super) fn add(&mut self, signature: u32, number: u32, new: &str) {
        // As the kernel writes it (block/partitions/msdos.c).
        self.0
            .push((format!("{signature:08x}-{number:02x}"), new.to_owned()));
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text with them replaced; `None` when it has none of them.
    pub(super) fn rewritten(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(text.len());
        let (mut at, mut found) = (0, false);
        while at < text.len() {
            let begins = at == 0 || !is_of_word(text[at - 1]);
            let here = self.0.iter().find(|(old, _)| {
                let end = at + old.len();
                begins
                    && text
                        .get(at..end)
                        .is_some_and(|word| word.eq_ignore_ascii_case(old.as_bytes()))
                    && text.get(end).is_none_or(|next| !is_of_word(*next))
            });
            match here {
                Some((old, new)) => {
                    out.extend_from_slice(new.as_bytes());
                    at += old.len();
                    found = true;
                }
                None => {
                    out.push(text[at]);
                    at += 1;
                }
            }
        }
        found.then_some(out)
    }
}

const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_become_guids() {
        let guid = "6c61622d-0000-4000-8000-00000000000a";
        let mut ids = PartitionIds::default();
        assert!(ids.is_empty());
        ids.add(0x0ab0_e5f0, 1, guid);
        ids.add(0x0ab0_e5f0, 0x11, "other");
        let of = |text: &str| {
            let out = ids.rewritten(text.as_bytes());
            out.map(|out| String::from_utf8(out).unwrap())
        };
        let fstab = "PARTUUID=0ab0e5f0-01 / ext4\n/dev/disk/by-partuuid/0AB0E5F0-11 none swap";
        let expected = format!("PARTUUID={guid} / ext4\n/dev/disk/by-partuuid/other none swap");
        assert_eq!(of(fstab).unwrap(), expected);
        assert_eq!(of("0ab0e5f0-01").unwrap(), guid);
        for text in [
            "",
            "0ab0e5f0-02",
            "10ab0e5f0-01",
            "0ab0e5f0-011",
            "x-0ab0e5f0-01",
            "0ab0e5f0-01-1",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
