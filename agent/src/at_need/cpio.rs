//! Unpacking a cpio archive of the form that the kernel takes ("newc"): directories and regular files.
//!
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Invariant: nothing is written
//! outside of the root, and no more than the limit.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path};

const HEADER: usize = 6 + 13 * 8;
const TRAILER: &str = "TRAILER!!!";
/// A longer name is no path.
const LONGEST_NAME: u64 = 4096;

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// Writes the archive's files below `root`; returns how many.
///
/// # Errors
/// What cannot be read or written; an archive that is none, is longer than `limit`, or has something else in it.
pub(super) fn unpack(archive: impl Read, limit: u64, root: &Path) -> io::Result<usize> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut archive = archive.take(limit);
    let mut files = 0;
    loop {
        let mut header = [0; HEADER];
        archive.read_exact(&mut header)?;
        if &header[..6] != b"070701" {
            return Err(wrong("no header where one should be".to_owned()));
        }
        let field = |number: usize| -> io::Result<u32> {
            let digits = &header[6 + 8 * number..14 + 8 * number];
            let digits = str::from_utf8(digits).map_err(|error| wrong(error.to_string()))?;
            u32::from_str_radix(digits, 16).map_err(|error| wrong(error.to_string()))
        };
        let (mode, len, name_len) = (field(1)?, u64::from(field(6)?), u64::from(field(11)?));
        if !(2..=LONGEST_NAME).contains(&name_len) {
            return Err(wrong(format!("a name of {name_len} bytes")));
        }
        let mut name = vec![0; name_len as usize];
        archive.read_exact(&mut name)?;
        name.pop();
        skip_padding(&mut archive, HEADER as u64 + name_len)?;
        let name = String::from_utf8(name).map_err(|error| wrong(error.to_string()))?;
        if name == TRAILER {
            return Ok(files);
        }
        let relative = Path::new(&name);
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !relative.components().all(is_plain) {
            return Err(wrong(format!("`{name}` is not a path below the root")));
        }
        let path = root.join(relative);
        match mode & TYPE {
            DIRECTORY if path.is_dir() => {}
            DIRECTORY => DirBuilder::new().mode(mode & 0o777).create(&path)?,
            REGULAR => {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(mode & 0o777)
                    .open(&path)?;
                let written = io::copy(&mut archive.by_ref().take(len), &mut file)?;
                if written != len {
                    return Err(wrong(format!(
                        "`{name}` ends after {written} of {len} bytes"
                    )));
                }
                files += 1;
            }
            other => return Err(wrong(format!("`{name}` is of type {other:o}"))),
        }
        let rest = if mode & TYPE == REGULAR { 0 } else { len };
        io::copy(&mut archive.by_ref().take(rest), &mut io::sink())?;
        skip_padding(&mut archive, len)?;
    }
}

/// Name and content are each filled up to four bytes.
fn skip_padding(archive: &mut impl Read, len: u64) -> io::Result<()> {
    let padding = len.next_multiple_of(4) - len;
    archive.read_exact(&mut [0; 3][..padding as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mode: u32, name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = format!(
            "070701{:08X}{mode:08X}{:024X}{:08X}{:08X}{:032X}{:08X}{:08X}",
            1,
            0,
            0,
            content.len(),
            0,
            name.len() + 1,
            0
        )
        .into_bytes();
        // ino mode uid gid nlink mtime filesize 4 devices namesize check
        assert_eq!(bytes.len(), HEADER);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn nothing_leaves_the_root_and_every_cut_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let whole = [
            entry(DIRECTORY | 0o755, "a", b""),
            entry(REGULAR | 0o644, "a/b", b"content"),
            entry(0, TRAILER, b""),
        ]
        .concat();
        assert_eq!(unpack(whole.as_slice(), 1 << 20, folder.path()).unwrap(), 1);
        assert_eq!(
            std::fs::read(folder.path().join("a/b")).unwrap(),
            b"content"
        );
        for end in 0..whole.len() - 1 {
            assert!(
                unpack(&whole[..end], 1 << 20, folder.path()).is_err(),
                "{end}"
            );
        }
        assert!(unpack(whole.as_slice(), 200, folder.path()).is_err());
        for name in ["../x", "/x", "a/../../x", "a/./b/.."] {
            let archive = [entry(REGULAR | 0o644, name, b"x"), entry(0, TRAILER, b"")].concat();
            assert!(
                unpack(archive.as_slice(), 1 << 20, folder.path()).is_err(),
                "{name}"
            );
        }
        let device = [entry(0o020_600, "null", b""), entry(0, TRAILER, b"")].concat();
        assert!(unpack(device.as_slice(), 1 << 20, folder.path()).is_err());
    }
}
