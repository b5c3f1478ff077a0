//! What makes a copy of an image a machine of its own: its ids, and what refers to them.
//!
//! Invariant: a reference is only ever replaced by one of the same length, so that a file can be changed where
//! it lies; an id that has no safe way to be changed stays, with the reason. What is *not* here: random
//! numbers, mounts and files (`agent`), the ids of partition tables (`gpt`, `mbr`).

use serde::{Deserialize, Serialize};

pub mod core_image;
pub mod fstab;
pub mod hosts;
mod references;
pub mod volume;

pub use references::References;

/// Whose identity a restored machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// That of the machine that was captured.
    #[default]
    Kept,
    /// One of its own: new ids of disk, partitions and file systems, machine id, SSH host keys and name.
    New,
}

/// What a machine may be called: labels of letters, digits and hyphens with dots between them (RFC 1123 §2.1),
/// at most 64 characters (`HOST_NAME_MAX`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// A text that is no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no host name (expected letters, digits and hyphens, with dots between the parts, at most {MAX} characters)"
)]
pub struct HostNameError {
    /// The text, shortened.
    pub found: String,
}

/// The most characters of a host name.
const MAX: usize = 64;

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    fn try_from(text: String) -> Result<Self, HostNameError> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= MAX && text.split('.').all(is_label) {
            Ok(Self(text))
        } else {
            Err(HostNameError {
                found: text.chars().take(80).collect(),
            })
        }
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl HostName {
    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first label.
    #[must_use]
    pub fn short(&self) -> &str {
        short(&self.0)
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first label of a name.
fn short(name: &str) -> &str {
    name.split_once('.').map_or(name, |(short, _)| short)
}

/// The name of a copy for which nobody gave one: that of the image with the end of the machine's Ethernet
/// address (`52:54:00:ab:cd:ef`), which no other machine in the network has.
#[must_use]
pub fn name_by_address(image: &str, address: &str) -> Option<HostName> {
    let digits: String = address
        .chars()
        .filter(char::is_ascii_hexdigit)
        .map(|digit| digit.to_ascii_lowercase())
        .collect();
    let end = digits.get(digits.len().checked_sub(6)?..)?;
    let stem: String = short(image).chars().take(MAX - 1 - end.len() - 1).collect();
    HostName::try_from(format!("{}-{end}", stem.trim_end_matches('-'))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<HostName, HostNameError> {
        HostName::try_from(text.to_owned())
    }

    #[test]
    fn host_names_are_those_of_rfc_1123() {
        for good in ["a", "lab-7", "7", "pc.example.org", &"a".repeat(63)] {
            assert_eq!(name(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        let much = format!("{}.b", "a".repeat(63));
        for bad in [
            "", "-a", "a-", "a..b", ".a", "a b", "a_b", "ä", "a/../b", &long, &much,
        ] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(name("pc.example.org").unwrap().short(), "pc");
    }

    #[test]
    fn a_machine_without_a_name_is_called_by_its_address() {
        let made = |image: &str| name_by_address(image, "52:54:00:AB:cd:ef");
        assert_eq!(
            made("golden.example.org").unwrap().as_str(),
            "golden-abcdef"
        );
        assert_eq!(made(&"a".repeat(63)).unwrap().as_str().len(), 63);
        assert_eq!(name_by_address("golden", "52:54"), None);
        assert_eq!(made("über"), None);
    }
}
