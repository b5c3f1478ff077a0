//! Disk images for the tests: made, filled and checked by the reference tools.

#![allow(
    dead_code,
    reason = "each test binary compiles this module and uses a part of it"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use backup::ByteRange;
use backup::filesystem::{ReadAt, ReadError};

/// A folder for images: in memory where that is, because the tools flush a lot.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// An image file as a volume.
pub(crate) struct Image(File);

impl Image {
    pub(crate) fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }
}

impl ReadAt for Image {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.0
            .read_exact_at(buffer, offset)
            .map_err(|error| ReadError {
                offset,
                len: buffer.len() as u64,
                reason: error.to_string(),
            })
    }
}

/// Bytes in memory as a volume.
pub(crate) struct Memory<'a>(pub(crate) &'a [u8]);

impl ReadAt for Memory<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let refuse = || ReadError {
            offset,
            len: buffer.len() as u64,
            reason: "past the end".to_owned(),
        };
        let start = usize::try_from(offset).map_err(|_| refuse())?;
        let end = start.checked_add(buffer.len()).ok_or_else(refuse)?;
        let bytes = self.0.get(start..end).ok_or_else(refuse)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// Runs a reference tool; a missing one fails the test with the package to install.
pub(crate) fn output(package: &str, program: &str, arguments: &[&str]) -> Output {
    // Debian keeps these tools out of an ordinary user's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C.UTF-8")
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| {
            panic!("`{program}` cannot be run ({error}): install the package `{package}`")
        })
}

/// Runs a reference tool that must succeed, and gives its standard output.
pub(crate) fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = output(package, program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Unmounts. For a moment a mount is busy without anybody's doing: a child that another test starts has all
/// our open files until it becomes its program.
pub(crate) fn unmount(place: &Path) -> bool {
    (0..500).any(|_| {
        let gone = output("mount", "umount", &[place.to_str().unwrap()]);
        if !gone.status.success() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        gone.status.success()
    })
}

/// An empty image of `size` bytes.
pub(crate) fn blank(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

/// A copy of an image in which every byte outside `ranges` is 0xa5.
pub(crate) fn copy_in_garbage(source: &Path, target: &Path, size: u64, ranges: &[ByteRange]) {
    let (from, to) = (File::open(source).unwrap(), File::create(target).unwrap());
    let garbage = vec![0xa5; 1 << 20];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(garbage.len() as u64);
        to.write_all_at(&garbage[..len as usize], at).unwrap();
        at += len;
    }
    for range in ranges {
        let mut bytes = vec![0; range.len() as usize];
        from.read_exact_at(&mut bytes, range.start()).unwrap();
        to.write_all_at(&bytes, range.start()).unwrap();
    }
}

/// Asserts that ranges are in order, apart, not empty and inside a volume.
pub(crate) fn assert_in_order_inside(ranges: &[ByteRange], size: u64) {
    for pair in ranges.windows(2) {
        assert!(pair[0].end() < pair[1].start(), "{} {}", pair[0], pair[1]);
    }
    for range in ranges {
        assert!(!range.is_empty() && range.end() <= size, "{range}");
    }
}

/// Bytes that look random and are the same in every run.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
