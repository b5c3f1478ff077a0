//! Keys of encrypted volumes, on their way from an operator to the machine that opens the volume.
//!
//! Invariant: a key shows in no `Debug` output, and is part of no type that is kept: a [`crate::job::Job`]
//! says only which volumes need one. What is *not* here: opening a volume, which is the agent's, and
//! reading a key's file.

use std::fmt;

use backup::manifest::Blob;
use serde::{Deserialize, Serialize};

/// The longest key in bytes; what people type is shorter, and key files are rarely more than 4096.
pub const MAX_KEY: usize = 8192;
/// The most keys of one job.
pub const MAX_KEYS: usize = 16;
/// The most characters of a disk's name.
const MAX_NAME: usize = 1024;

/// What is wrong with an operator's words for a volume and its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnlockError {
    /// They name no volume and key.
    #[error(
        "`{found}` names no volume and key (expected DISK:PARTITION=FILE, for example sda:2=key.txt)"
    )]
    Words {
        /// The words before the key's file, which may be told.
        found: String,
    },
    /// An empty key.
    #[error("the key for {place} is empty")]
    Empty {
        /// The volume.
        place: VolumePlace,
    },
    /// More bytes than a key has.
    #[error("the key for {place} has {len} bytes (expected at most {MAX_KEY})")]
    Long {
        /// The volume.
        place: VolumePlace,
        /// Its length in bytes.
        len: usize,
    },
    /// Two keys for one volume.
    #[error("there are two keys for {place}")]
    Twice {
        /// The volume.
        place: VolumePlace,
    },
    /// More keys than a job has.
    #[error("there are {count} keys (expected at most {MAX_KEYS})")]
    Many {
        /// How many.
        count: usize,
    },
}

/// Where an encrypted volume lies in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumePlace {
    /// Kernel name, serial number or WWN of the disk.
    pub disk: String,
    /// The partition's number; none for a disk that is one volume.
    pub partition: Option<u32>,
}

impl fmt::Display for VolumePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It comes from the network, too.
        let disk: String = self.disk.chars().filter(|one| !one.is_control()).collect();
        match self.partition {
            Some(number) => write!(f, "partition {number} of {disk}"),
            None => write!(f, "disk {disk}"),
        }
    }
}

impl VolumePlace {
    /// Reads `DISK:PARTITION=FILE` or `DISK=FILE`; returns the place and the name of the key's file.
    ///
    /// # Errors
    /// [`UnlockError::Words`].
    pub fn parse(words: &str) -> Result<(Self, &str), UnlockError> {
        let (place, file) = words.split_once('=').unwrap_or((words, ""));
        let wrong = || UnlockError::Words {
            found: place.chars().take(80).collect(),
        };
        // A disk's name may have colons itself.
        let (disk, partition) = match place.rsplit_once(':') {
            Some((disk, number)) => match number.parse() {
                Ok(0) => return Err(wrong()),
                Ok(number) => (disk, Some(number)),
                Err(_) => (place, None),
            },
            None => (place, None),
        };
        if disk.is_empty() || disk.len() > MAX_NAME || file.is_empty() {
            return Err(wrong());
        }
        let disk = disk.to_owned();
        Ok((Self { disk, partition }, file))
    }
}

/// The bytes of a key: a pass phrase, a key file's content, a recovery password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Blob);

impl Secret {
    /// Keeps a key.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(Blob(bytes))
    }

    /// Its bytes, for whoever opens the volume.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0.0
    }

    /// What to try in turn as the pass phrase or key of a LUKS volume: the bytes as they are, and
    /// without the end of a line, which editors put at the end of a pass phrase's file.
    #[must_use]
    pub fn candidates(&self) -> Vec<&[u8]> {
        let bytes = self.bytes();
        let line = without_line_end(bytes);
        if line.len() == bytes.len() || line.is_empty() {
            vec![bytes]
        } else {
            vec![bytes, line]
        }
    }

    /// The key of a BitLocker volume as it is to be given: a recovery password in its groups of six
    /// digits whatever was between them, or a password.
    ///
    /// # Errors
    /// What is wrong with a recovery password, without its digits.
    pub fn bitlocker(&self) -> Result<Vec<u8>, RecoveryPasswordError> {
        let line = without_line_end(self.bytes());
        let digits: Vec<u8> = line.iter().copied().filter(u8::is_ascii_digit).collect();
        let others = line
            .iter()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b' ' | b'\t'));
        if !others || digits.len() < 42 {
            return Ok(line.to_vec());
        }
        if digits.len() != 48 {
            return Err(RecoveryPasswordError::Digits {
                found: digits.len(),
            });
        }
        for (group, digits) in (1..).zip(digits.chunks_exact(6)) {
            let value = digits
                .iter()
                .fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
            // Each group is 11 times a number of 16 bits.
            if !value.is_multiple_of(11) || value / 11 > u32::from(u16::MAX) {
                return Err(RecoveryPasswordError::Group { group });
            }
        }
        let groups: Vec<&[u8]> = digits.chunks_exact(6).collect();
        Ok(groups.join(&b'-'))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What is wrong with a BitLocker recovery password; its digits are not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryPasswordError {
    /// It has too few or too many digits.
    #[error("a BitLocker recovery password has 48 digits, this one {found}")]
    Digits {
        /// How many it has.
        found: usize,
    },
    /// A group of six digits that no recovery password has.
    #[error("group {group} of the recovery password was mistyped: its six digits cannot be right")]
    Group {
        /// Which, from 1.
        group: usize,
    },
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A volume and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeKey {
    /// The volume.
    pub place: VolumePlace,
    /// Its key.
    pub key: Secret,
}

/// Checks the keys of one job.
///
/// # Errors
/// [`UnlockError`] for the first that is wrong.
pub fn check(keys: &[VolumeKey]) -> Result<(), UnlockError> {
    if keys.len() > MAX_KEYS {
        return Err(UnlockError::Many { count: keys.len() });
    }
    for (index, key) in keys.iter().enumerate() {
        let place = key.place.clone();
        let len = key.key.bytes().len();
        if place.disk.is_empty() || place.disk.len() > MAX_NAME {
            let found = place.disk.chars().take(80).collect();
            return Err(UnlockError::Words { found });
        }
        if len == 0 {
            return Err(UnlockError::Empty { place });
        }
        if len > MAX_KEY {
            return Err(UnlockError::Long { place, len });
        }
        if keys[..index].iter().any(|other| other.place == place) {
            return Err(UnlockError::Twice { place });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(disk: &str, partition: Option<u32>) -> VolumePlace {
        let disk = disk.to_owned();
        VolumePlace { disk, partition }
    }

    #[test]
    fn a_place_is_a_disk_and_perhaps_a_partition() {
        for (words, disk, partition, file) in [
            ("sda:2=key", "sda", Some(2), "key"),
            ("nvme0n1=a=b", "nvme0n1", None, "a=b"),
            ("/dev/sda:12=-", "/dev/sda", Some(12), "-"),
            ("eui.00:aa=/k", "eui.00:aa", None, "/k"),
            ("a:b:3=k", "a:b", Some(3), "k"),
        ] {
            let expected = (place(disk, partition), file);
            assert_eq!(VolumePlace::parse(words), Ok(expected), "{words}");
        }
        for words in ["", "sda:2", "=k", ":2=k", "sda:2=", "sda:0=k"] {
            assert!(VolumePlace::parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn a_key_is_in_no_debug_output_and_comes_back_from_json() {
        let key = VolumeKey {
            place: place("sda", Some(2)),
            key: Secret::new(b"open sesame\xff".to_vec()),
        };
        let shown = format!("{key:?}");
        assert!(
            !shown.contains("sesame") && !shown.contains("111"),
            "{shown}"
        );
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<VolumeKey>(&json).unwrap(), key);
    }

    #[test]
    fn a_line_end_is_tried_with_and_without() {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        assert_eq!(secret("word").candidates(), [b"word"]);
        let (with, without) = (&b"word\r\n"[..], &b"word"[..]);
        assert_eq!(secret("word\r\n").candidates(), [with, without]);
        assert_eq!(secret("\n").candidates(), [b"\n"]);
    }

    #[test]
    fn a_recovery_password_is_checked_group_by_group() {
        let given = |text: &str| Secret::new(text.as_bytes().to_vec()).bitlocker();
        // 11 times 1 to 8, and the largest.
        let groups = "000011-000022-000033-000044-000055-000066-000077-720885";
        assert_eq!(given(groups).unwrap(), groups.as_bytes());
        let loose = groups.replace('-', "") + "\r\n";
        assert_eq!(given(&loose).unwrap(), groups.as_bytes());
        let mistyped = groups.replace("000033", "000034");
        let error = given(&mistyped).unwrap_err();
        assert_eq!(error, RecoveryPasswordError::Group { group: 3 });
        assert!(!error.to_string().contains("000034"));
        let large = groups.replace("720885", "720896");
        assert_eq!(
            given(&large),
            Err(RecoveryPasswordError::Group { group: 8 })
        );
        assert_eq!(
            given(&groups[..54]),
            Err(RecoveryPasswordError::Digits { found: 47 })
        );
        assert_eq!(given("a password\n").unwrap(), b"a password");
        assert_eq!(given("12345678").unwrap(), b"12345678");
    }

    #[test]
    fn keys_of_a_job_are_few_short_and_for_different_volumes() {
        let key = |partition, len| VolumeKey {
            place: place("sda", Some(partition)),
            key: Secret::new(vec![7; len]),
        };
        assert_eq!(check(&[key(1, 1), key(2, MAX_KEY)]), Ok(()));
        for keys in [
            vec![key(1, 0)],
            vec![key(1, MAX_KEY + 1)],
            vec![key(1, 1), key(1, 2)],
            (1..=17).map(|number| key(number, 1)).collect(),
        ] {
            assert!(check(&keys).is_err());
        }
    }
}
