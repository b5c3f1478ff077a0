//! What a system starts from: its initramfs, in which ids of volumes can be.
//!
//! An initramfs is made by the system's own programs and is not made anew here. It is read, as the kernel
//! does (Documentation/driver-api/early-userspace/buffer-format.rst): archives one after the other, packed or
//! not. What it names keeps its id, with one exception: initramfs-tools keep the swap to resume from in a
//! file of variables, and an archive that is added at the end puts another such file beside it.
//!
//! Invariant: an initramfs that cannot be read is [`Named::Unknown`], never one that names nothing.

use std::io::{self, Read};

/// The largest initramfs that is read, in bytes.
pub(super) const MAX_IMAGE: u64 = 256 << 20;
/// The most bytes that are unpacked.
const MAX_PLAIN: u64 = 2 << 30;
/// Bytes that are unpacked at a time.
const STEP: usize = 256 << 10;
/// The header of an archive's entry: a magic number and 13 numbers of 8 digits (cpio(5), "New ASCII Format").
const HEADER: usize = 110;
const LAST_ENTRY: &[u8] = b"TRAILER!!!\0";
/// Read after all others by the scripts of initramfs-tools (`conf/conf.d/*` in `init`).
const RESUME_FILE: &str = "conf/conf.d/zzz-netboot-resume";

/// What an initramfs says of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// It names these, by their index.
    These(Vec<usize>),
    /// It cannot be read.
    Unknown(String),
}

/// Looks for ids, in the form of `blkid`, in an initramfs.
pub(super) fn named(image: &[u8], ids: &[String]) -> Named {
    let mut search = Search::new(ids);
    match walk(image, &mut search) {
        Ok(()) => Named::These(search.found()),
        Err(reason) => Named::Unknown(reason.to_string()),
    }
}

fn walk(image: &[u8], search: &mut Search) -> io::Result<()> {
    let mut rest = image;
    loop {
        let zeros = rest.iter().position(|byte| *byte != 0);
        let Some(start) = zeros else {
            return Ok(());
        };
        rest = &rest[start..];
        rest = match rest {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => plain(rest, search)?,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(rest)?.single_frame();
                unpack(&mut decoder, search)?;
                decoder.finish()
            }
            [0x1f, 0x8b, ..] => {
                let mut decoder = flate2::bufread::GzDecoder::new(rest);
                unpack(&mut decoder, search)?;
                decoder.into_inner()
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                let mut decoder = lzma_rust2::XzReader::new(rest, false);
                unpack(&mut decoder, search)?;
                decoder.into_inner()
            }
            _ => {
                let sign: Vec<_> = rest
                    .iter()
                    .take(4)
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                return Err(invalid(&format!(
                    "packed in an unknown way ({})",
                    sign.concat()
                )));
            }
        };
        search.border();
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// An archive that is not packed; returns what follows it.
fn plain<'a>(archive: &'a [u8], search: &mut Search) -> io::Result<&'a [u8]> {
    let mut at = 0;
    loop {
        let entry = archive.get(at..).unwrap_or_default();
        let header = entry
            .get(..HEADER)
            .filter(|header| header.starts_with(b"0707"))
            .ok_or_else(|| invalid("an archive ends within"))?;
        let number = |field: usize| {
            let digits = header.get(6 + 8 * field..14 + 8 * field)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let damaged = || invalid("an archive is damaged");
        let (len, name_len) = (number(6), number(11));
        let (len, name_len) = (len.ok_or_else(damaged)?, name_len.ok_or_else(damaged)?);
        let name = entry.get(HEADER..HEADER + name_len).ok_or_else(damaged)?;
        let content = (HEADER + name_len).next_multiple_of(4);
        let end = content + len.next_multiple_of(4);
        if name == LAST_ENTRY {
            return Ok(archive.get(at + content..).unwrap_or_default());
        }
        search.add(name);
        search.border();
        let bytes = entry.get(content..content + len).ok_or_else(damaged)?;
        // What is packed within an archive is not looked into: firmware and modules.
        search.add(bytes);
        search.border();
        at += end;
    }
}

fn unpack(from: &mut dyn Read, search: &mut Search) -> io::Result<()> {
    let mut buffer = vec![0; STEP];
    let mut total = 0;
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        total += len as u64;
        if total > MAX_PLAIN {
            return Err(invalid("more than 2 GiB when unpacked"));
        }
        search.add(&buffer[..len]);
    }
}

/// A search for ids in a stream. Each has a `-`, which few bytes are.
struct Search {
    /// An id, where in it the first `-` or `\` is, and which id it is.
    wanted: Vec<(Vec<u8>, usize, usize)>,
    found: Vec<bool>,
    /// The end of what was seen, in which an id can begin.
    before: Vec<u8>,
    longest: usize,
}

impl Search {
    fn new(ids: &[String]) -> Self {
        let mut wanted = Vec::new();
        for (index, id) in ids.iter().enumerate() {
            // As it is, and as systemd writes it in the name of a unit (systemd-escape(1)).
            for form in [id.to_lowercase(), id.to_lowercase().replace('-', "\\x2d")] {
                let first = form.find(['-', '\\']).unwrap_or(0);
                wanted.push((form.into_bytes(), first, index));
            }
        }
        let longest = wanted.iter().map(|(id, ..)| id.len()).max().unwrap_or(0);
        Self {
            wanted,
            found: vec![false; ids.len()],
            before: Vec::new(),
            longest,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let keep = self.longest.saturating_sub(1);
        // Over the border: the end of what was before and as much of this.
        let mut border = std::mem::take(&mut self.before);
        border.extend_from_slice(&bytes[..bytes.len().min(keep)]);
        self.look(&border);
        self.look(bytes);
        self.before = if bytes.len() >= keep {
            bytes[bytes.len() - keep..].to_vec()
        } else {
            border[border.len().saturating_sub(keep)..].to_vec()
        };
    }

    /// What comes next does not continue what was.
    fn border(&mut self) {
        self.before.clear();
    }

    fn look(&mut self, bytes: &[u8]) {
        let mut from = 0;
        while let Some(step) = bytes[from..]
            .iter()
            .position(|byte| matches!(byte, b'-' | b'\\'))
        {
            let at = from + step;
            from = at + 1;
            for (id, first, index) in &self.wanted {
                let begin = at.checked_sub(*first);
                let word = begin.and_then(|begin| bytes.get(begin..begin + id.len()));
                if word.is_some_and(|word| word.eq_ignore_ascii_case(id)) {
                    self.found[*index] = true;
                }
            }
        }
    }

    fn found(&self) -> Vec<usize> {
        let all = self.found.iter().enumerate();
        all.filter(|(_, found)| **found)
            .map(|(index, _)| index)
            .collect()
    }
}

/// An archive to be added to an initramfs of initramfs-tools that is `len` bytes long, with which it resumes
/// from the swap with this id.
pub(super) fn resume_archive(len: u64, swap: &str) -> Vec<u8> {
    // Archives begin on a border of four bytes.
    let mut archive = vec![0; (len.next_multiple_of(4) - len) as usize];
    let content = format!("RESUME=UUID={swap}\n");
    entry(&mut archive, RESUME_FILE, 0o100_644, content.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, b"");
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let numbers = [
        // No inode: nothing else in this archive is the same file.
        0,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    let begin = archive.len();
    archive.extend_from_slice(b"070701");
    for number in numbers {
        archive.extend_from_slice(format!("{number:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    let pad = |archive: &mut Vec<u8>| {
        let len = (archive.len() - begin).next_multiple_of(4);
        archive.resize(begin + len, 0);
    };
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::{any, proptest};

    use super::*;

    const SWAP: &str = "6c61622d-7377-4170-8000-000000000002";
    const OTHER: &str = "6c61622d-726f-4f74-8000-000000000001";

    fn ids() -> Vec<String> {
        vec![SWAP.to_owned(), OTHER.to_owned(), "1AB0-E5F0".to_owned()]
    }

    /// An archive made by cpio, with a file of this content.
    fn archive(content: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("conf/conf.d")).unwrap();
        let file = "conf/conf.d/zz-resume-auto";
        std::fs::write(folder.path().join(file), content).unwrap();
        let shell = "find . | cpio --quiet -o -H newc";
        let output = Command::new("sh")
            .args(["-c", shell])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn packed(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut input = child.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    }

    #[test]
    fn an_id_is_seen_in_every_packing_and_behind_microcode() {
        let content = format!("RESUME=UUID={SWAP}\n");
        let plain = archive(&content);
        let early = archive("microcode");
        let all = [
            plain.clone(),
            zstd::encode_all(&plain[..], 1).unwrap(),
            packed("gzip", &["-c"], &plain),
            packed("xz", &["-c", "--check=crc32"], &plain),
        ];
        for image in all {
            let image = [&early[..], &image[..], &[0; 7]].concat();
            assert_eq!(named(&image, &ids()), Named::These(vec![0]));
        }
        let none = zstd::encode_all(&archive("RESUME=none")[..], 1).unwrap();
        assert_eq!(named(&none, &ids()), Named::These(Vec::new()));
    }

    #[test]
    fn units_and_borders_hide_no_id() {
        let unit = format!(
            "dev-disk-by\\x2duuid-{}.device",
            OTHER.replace('-', "\\x2d")
        );
        assert_eq!(named(&archive(&unit), &ids()), Named::These(vec![1]));
        let text = format!("{}{OTHER}{}", "x".repeat(50), "y".repeat(50));
        for cut in 1..text.len() {
            let mut search = Search::new(&ids());
            let (one, two) = text.as_bytes().split_at(cut);
            search.add(one);
            for byte in two.chunks(3) {
                search.add(byte);
            }
            assert_eq!(search.found(), [1], "{cut}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let lz4 = [0x02, 0x21, 0x4c, 0x18, 1, 2, 3];
        let mut cut = zstd::encode_all(&archive("x").repeat(9)[..], 1).unwrap();
        cut.truncate(cut.len() / 2);
        for image in [&lz4[..], &cut, &archive("x")[..200], b"#!/bin/sh"] {
            assert!(matches!(named(image, &ids()), Named::Unknown(_)));
        }
    }

    #[test]
    fn the_added_archive_is_one_that_cpio_and_we_can_read() {
        let first = zstd::encode_all(&archive("RESUME=UUID=old\n")[..], 1).unwrap();
        let added = resume_archive(first.len() as u64, SWAP);
        let image = [&first[..], &added].concat();
        assert_eq!(named(&image, &ids()), Named::These(vec![0]));
        let archive = &added[added.iter().position(|byte| *byte != 0).unwrap()..];
        let listed = packed("cpio", &["--quiet", "-t"], archive);
        assert_eq!(
            String::from_utf8(listed).unwrap(),
            format!("{RESUME_FILE}\n")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), sign in 0usize..5) {
            let signs: [&[u8]; 5] = [b"070701", &[0x28, 0xb5, 0x2f, 0xfd], &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0], b""];
            named(&[signs[sign], &bytes].concat(), &ids());
        }
    }
}
