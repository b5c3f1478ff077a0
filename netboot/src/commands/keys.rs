//! Keys of encrypted volumes, from files, standard input or whoever sits at the terminal.
//!
//! Invariant: a key is in no argument, no message and no log; it is not shown while it is typed.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use protocol::unlock::{self, MAX_KEY, Secret, UnlockError, VolumeKey, VolumePlace};

use super::options::Unlock;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// Its file cannot be read.
    #[error("the key for {place} cannot be read from {}", file.display())]
    Read {
        /// The volume.
        place: VolumePlace,
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Two keys are to come from standard input.
    #[error("standard input can give one key only; name files for the others")]
    OneInput,
    /// They cannot be those of a job.
    #[error(transparent)]
    Wrong(#[from] UnlockError),
}

/// Reads the key of each volume.
///
/// # Errors
/// [`KeyError`].
pub(super) fn read(wanted: &[Unlock]) -> Result<Vec<VolumeKey>, KeyError> {
    let is_input = |one: &&Unlock| one.file == Path::new("-");
    let terminal = io::stdin().is_terminal();
    if !terminal && wanted.iter().filter(is_input).count() > 1 {
        return Err(KeyError::OneInput);
    }
    let mut keys = Vec::with_capacity(wanted.len());
    for one in wanted {
        let bytes = match (is_input(&one), terminal) {
            (true, true) => ask(&one.place),
            (true, false) => bounded(io::stdin().lock()),
            (false, _) => File::open(&one.file).and_then(bounded),
        };
        let bytes = bytes.map_err(|source| KeyError::Read {
            place: one.place.clone(),
            file: one.file.clone(),
            source,
        })?;
        keys.push(VolumeKey {
            place: one.place.clone(),
            key: Secret::new(bytes),
        });
    }
    unlock::check(&keys)?;
    Ok(keys)
}

/// Everything there is, and one byte more than a key may have, which is then refused.
fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_KEY as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A line that is typed without being shown.
fn ask(place: &VolumePlace) -> io::Result<Vec<u8>> {
    let input = io::stdin();
    let shown = tcgetattr(input.as_fd())?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    hidden.local_flags.insert(LocalFlags::ECHONL);
    io::stderr().write_all(format!("Key for {place}: ").as_bytes())?;
    io::stderr().flush()?;
    tcsetattr(input.as_fd(), SetArg::TCSAFLUSH, &hidden)?;
    let mut line = String::new();
    let read = input.read_line(&mut line);
    tcsetattr(input.as_fd(), SetArg::TCSAFLUSH, &shown)?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_its_file_has_and_too_much_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let wanted = |words: &str| {
            let (place, file) = VolumePlace::parse(words).unwrap();
            let file = PathBuf::from(file);
            Unlock { place, file }
        };
        let words = format!("sda:2={}", file.display());
        let missing = read(&[wanted(&words)]).unwrap_err();
        assert!(matches!(missing, KeyError::Read { .. }), "{missing}");
        std::fs::write(&file, b"word\n").unwrap();
        let keys = read(&[wanted(&words)]).unwrap();
        assert_eq!(keys[0].key.bytes(), b"word\n");
        std::fs::write(&file, vec![1; MAX_KEY + 1]).unwrap();
        let long = read(&[wanted(&words)]).unwrap_err();
        assert!(
            matches!(long, KeyError::Wrong(UnlockError::Long { .. })),
            "{long}"
        );
    }
}
