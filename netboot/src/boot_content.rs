//! Contents of boot files in memory, shared by all transfers of all protocols.
//!
//! Invariants: the memory is bounded, whatever is asked for and however long transfers last: what a
//! transfer still uses counts; what is here has the digest that it is kept under. A file that does
//! not fit is read from the disk by each transfer.
//!
//! Not here: which files there are (`boot_catalogue`).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use axum::body::Bytes;

/// Bytes held at most: kernel, initial file system and loaders of some architectures.
const MOST: u64 = 128 << 20;
/// Bytes of a file that is held at all.
const MOST_OF_ONE: u64 = 64 << 20;

/// What a file has in it.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Here.
    Memory(Bytes),
    /// On the disk.
    Disk {
        /// The open file.
        file: Arc<File>,
        /// Its length in bytes when it was opened.
        len: u64,
    },
}

impl Content {
    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Disk { len, .. } => *len,
        }
    }

    /// The bytes from `offset`, from memory as they are or read into `scratch`.
    ///
    /// # Errors
    /// When the file cannot be read or has become shorter.
    pub(crate) fn part<'a>(
        &'a self,
        offset: u64,
        len: usize,
        scratch: &'a mut Vec<u8>,
    ) -> io::Result<&'a [u8]> {
        match self {
            Self::Memory(bytes) => usize::try_from(offset)
                .ok()
                .and_then(|start| bytes.get(start..start.checked_add(len)?))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            Self::Disk { file, .. } => {
                scratch.resize(len, 0);
                file.read_exact_at(scratch, offset)?;
                Ok(scratch)
            }
        }
    }
}

/// The contents held, the one used last at the end.
#[derive(Debug)]
pub(crate) struct ContentCache {
    most: u64,
    held: Mutex<Vec<Held>>,
}

#[derive(Debug)]
struct Held {
    digest: String,
    bytes: Bytes,
}

impl Default for ContentCache {
    fn default() -> Self {
        Self {
            most: MOST,
            held: Mutex::default(),
        }
    }
}

impl ContentCache {
    /// The content of an open file that had this BLAKE3 digest when it was last looked at.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn content(&self, file: File, digest: &str) -> io::Result<Content> {
        // Held while the file is read: a room of machines asks for the same file in one second.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|one| one.digest == digest) {
            let found = held.remove(at);
            let bytes = found.bytes.clone();
            held.push(found);
            return Ok(Content::Memory(bytes));
        }
        let len = file.metadata()?.len();
        if len <= MOST_OF_ONE && make_room(&mut held, self.most, len) {
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            // One byte more shows that it has grown; then it is another file than the digest's.
            (&file).take(len + 1).read_to_end(&mut bytes)?;
            if blake3::hash(&bytes).to_hex().as_str() == digest {
                let bytes = Bytes::from(bytes);
                held.push(Held {
                    digest: digest.to_owned(),
                    bytes: bytes.clone(),
                });
                return Ok(Content::Memory(bytes));
            }
        }
        Ok(Content::Disk {
            file: Arc::new(file),
            len,
        })
    }
}

/// Lets go of what no transfer uses, the longest unused first, until there is room for `len` bytes.
fn make_room(held: &mut Vec<Held>, most: u64, len: u64) -> bool {
    let total = |held: &[Held]| held.iter().map(|one| one.bytes.len() as u64).sum::<u64>();
    while total(held) + len > most {
        let Some(unused) = held.iter().position(|one| one.bytes.is_unique()) else {
            return false;
        };
        held.remove(unused);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (File, String) {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file.rewind().expect("rewound");
        (file, blake3::hash(bytes).to_hex().to_string())
    }

    fn is_memory(content: &Content) -> bool {
        matches!(content, Content::Memory(_))
    }

    #[test]
    fn what_is_used_is_kept_and_never_more_than_fits() {
        let cache = ContentCache {
            most: 25,
            held: Mutex::default(),
        };
        let take = |bytes: &[u8]| {
            let (file, digest) = file(bytes);
            cache.content(file, &digest).expect("read")
        };
        let (first, second) = (take(b"aaaaaaaaaa"), take(b"bbbbbbbbbb"));
        assert!(is_memory(&first) && is_memory(&second));
        // Both are in use, so the third one is not held.
        assert!(!is_memory(&take(b"cccccccccc")));
        drop(first);
        assert!(is_memory(&take(b"cccccccccc")));
        assert!(!is_memory(&take(&[7; 26])));
    }

    #[test]
    fn a_file_that_is_no_longer_what_its_digest_says_is_read_from_the_disk() {
        let cache = ContentCache::default();
        let (_, digest) = file(b"old");
        let (newer, _) = file(b"newer");
        let content = cache.content(newer, &digest).expect("read");
        assert!(!is_memory(&content));
        let mut scratch = Vec::new();
        assert_eq!(content.part(1, 4, &mut scratch).expect("read"), b"ewer");
        assert!(content.part(1, 5, &mut scratch).is_err());
    }

    #[test]
    fn parts_of_memory_are_checked() {
        let content = Content::Memory(Bytes::from_static(b"0123"));
        let mut scratch = Vec::new();
        assert_eq!(content.part(1, 3, &mut scratch).expect("there"), b"123");
        for (offset, len) in [(2, 3), (u64::MAX, 1), (5, 0)] {
            assert!(content.part(offset, len, &mut scratch).is_err());
        }
    }
}
