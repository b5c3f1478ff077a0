//! The initramfs as the kernel takes it: one compressed cpio archive after the other.
//!
//! The kernel unpacks a sequence of archives, each compressed by itself, one over the other
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`). Each part is one: its share of the
//! size is known exactly, parts are compressed side by side, and a part that did not change since the
//! last build comes from the cache, so that a new agent costs a second and not a dozen.
//!
//! Invariants: each part is compressed by one thread with fixed settings, so the same tree gives the same
//! bytes on every machine; what comes from the cache was decompressed and compared with the part.
//!
//! The window is 8 MiB, the size that every decoder of the format must support (RFC 8878, section
//! 3.1.1.1.2), and no more, so that a small machine does not need memory for a larger one.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;

use crate::cpio::{self, CpioError};
use crate::tree::Tree;

/// zstd's level: the slowest that needs no larger window.
const LEVEL: i32 = 19;

/// Logarithm of the window's size in bytes: 8 MiB.
const WINDOW_LOG: u32 = 23;

/// Why a part could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The part has no cpio form.
    #[error("the part {part} of the initramfs cannot be written")]
    Cpio {
        /// The part's name.
        part: &'static str,
        /// Why.
        source: CpioError,
    },
    /// The compressor failed.
    #[error("the part {part} of the initramfs cannot be compressed")]
    Compress {
        /// The part's name.
        part: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The cache could not be written.
    #[error("{path}: cannot write into the cache")]
    Cache {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A compressing thread ended early, which is an error in this program.
    #[error(
        "the part {part} of the initramfs was lost; this is an error in initramfs, please report it"
    )]
    Lost {
        /// The part's name.
        part: &'static str,
    },
}

/// A part of the initramfs, compressed.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its name in tables and manifest.
    pub(crate) name: &'static str,
    /// How many regular files it has.
    pub(crate) files: usize,
    /// Bytes in these files.
    pub(crate) unpacked: u64,
    /// The compressed archive.
    pub(crate) data: Vec<u8>,
}

/// Compresses each tree, all at once; the parts are in the order of `trees`.
///
/// # Errors
/// [`ArchiveError`].
pub(crate) fn compress(
    trees: &[(&'static str, Tree)],
    cache: &Path,
) -> Result<Vec<Part>, ArchiveError> {
    thread::scope(|scope| {
        let running: Vec<_> = trees
            .iter()
            .map(|(name, tree)| (*name, scope.spawn(|| part(name, tree, cache))))
            .collect();
        running
            .into_iter()
            .map(|(name, thread)| {
                thread
                    .join()
                    .map_err(|_| ArchiveError::Lost { part: name })?
            })
            .collect()
    })
}

fn part(name: &'static str, tree: &Tree, cache: &Path) -> Result<Part, ArchiveError> {
    let archive = cpio::write(tree).map_err(|source| ArchiveError::Cpio { part: name, source })?;
    Ok(Part {
        name,
        files: tree.file_count(),
        unpacked: tree.file_bytes(),
        data: cached(name, &archive, &cache.join("parts"))?,
    })
}

/// The compressed form of `archive`, from the cache when it is there and right.
fn cached(part: &'static str, archive: &[u8], cache: &Path) -> Result<Vec<u8>, ArchiveError> {
    let cache_error = |source| ArchiveError::Cache {
        path: cache.to_owned(),
        source,
    };
    // Another version of the compressor may give other bytes, so it is part of the name.
    let kept = cache.join(format!(
        "{}-zstd{}-{LEVEL}-{WINDOW_LOG}.zst",
        blake3::hash(archive).to_hex(),
        zstd::zstd_safe::version_number(),
    ));
    if let Ok(stored) = fs::read(&kept)
        && zstd::decode_all(stored.as_slice()).is_ok_and(|plain| plain == archive)
    {
        return Ok(stored);
    }
    let data = encode(archive).map_err(|source| ArchiveError::Compress { part, source })?;
    fs::create_dir_all(cache).map_err(cache_error)?;
    let mut file = tempfile::NamedTempFile::new_in(cache).map_err(cache_error)?;
    file.write_all(&data).map_err(cache_error)?;
    file.persist(&kept)
        .map_err(|error| cache_error(error.error))?;
    Ok(data)
}

fn encode(archive: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.long_distance_matching(false)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(archive.len() as u64))?;
    encoder.write_all(archive)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::{read, system_list};

    fn trees() -> Vec<(&'static str, Tree)> {
        let mut first = Tree::default();
        first.file("init", 0o755, vec![7; 100_000]);
        let mut second = Tree::default();
        second.file(
            "usr/lib/x",
            0o644,
            (0..50_000u32).map(|n| ((n * n) >> 7) as u8).collect(),
        );
        vec![("first", first), ("second", second)]
    }

    #[test]
    fn the_parts_are_the_same_bytes_with_and_without_a_cache() {
        let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let build = |cache: &tempfile::TempDir| -> Vec<Vec<u8>> {
            let parts = compress(&trees(), cache.path()).unwrap();
            parts.into_iter().map(|part| part.data).collect()
        };
        let fresh = build(&caches[0]);
        assert_eq!(build(&caches[0]), fresh);
        assert_eq!(build(&caches[1]), fresh);
    }

    #[test]
    fn a_damaged_cache_is_not_believed() {
        let cache = tempfile::tempdir().unwrap();
        let fresh = compress(&trees(), cache.path()).unwrap();
        for entry in fs::read_dir(cache.path().join("parts")).unwrap() {
            let path = entry.unwrap().path();
            fs::write(&path, zstd::encode_all(&b"other"[..], 1).unwrap()).unwrap();
        }
        let again = compress(&trees(), cache.path()).unwrap();
        for (fresh, again) in fresh.iter().zip(&again) {
            assert_eq!(fresh.data, again.data);
        }
    }

    #[test]
    fn each_part_is_an_archive_that_the_systems_cpio_lists() {
        let cache = tempfile::tempdir().unwrap();
        let trees = trees();
        let parts = compress(&trees, cache.path()).unwrap();
        for (part, (_, tree)) in parts.iter().zip(&trees) {
            let archive = zstd::decode_all(part.data.as_slice()).unwrap();
            assert_eq!(&read(&archive), tree);
            let expected: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
            assert_eq!(system_list(&archive), expected);
        }
    }

    #[test]
    fn the_window_is_one_that_every_decoder_takes() {
        let archive: Vec<u8> = (0..12_000_000u32).map(|n| (n >> 6) as u8).collect();
        let data = encode(&archive).unwrap();
        // RFC 8878 section 3.1.1.1: descriptor, then the window descriptor unless "single segment".
        assert_eq!(data[4] & 0x20, 0);
        let exponent = u32::from(data[5] >> 3);
        assert_eq!(1u64 << (10 + exponent), 8 << 20);
    }
}
