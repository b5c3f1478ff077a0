//! NTFS volumes for the tests: made by mkntfs and filled through ntfs-3g, which share no code with this crate.

#![allow(
    dead_code,
    reason = "each test binary compiles this module and uses a part of it"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::images::{self, noise, run};

pub(crate) const PACKAGE: &str = "ntfs-3g";
pub(crate) const MIB: u64 = 1 << 20;

/// Whether volumes can be mounted here; prints why not.
pub(crate) fn can_mount() -> bool {
    let root = run("coreutils", "id", &["-u"]).trim() == "0";
    let fuse = Path::new("/dev/fuse").exists();
    if !root || !fuse {
        println!(
            "skipped: mounting with ntfs-3g needs root (is root: {root}) and /dev/fuse ({fuse})"
        );
    }
    root && fuse
}

/// An empty volume.
pub(crate) fn format(image: &Path, size: u64, options: &[&str]) {
    let _ = fs::remove_file(image);
    images::blank(image, size);
    let mut arguments = vec!["-F", "-q", "-L", "Länge"];
    arguments.extend_from_slice(options);
    arguments.push(image.to_str().unwrap());
    run(PACKAGE, "mkntfs", &arguments);
}

/// A mounted volume; unmounted and written out when it is dropped.
pub(crate) struct Mount {
    place: PathBuf,
    server: Child,
}

impl Mount {
    pub(crate) fn new(image: &Path, place: &Path, options: &str) -> Self {
        fs::create_dir_all(place).unwrap();
        let outside = fs::metadata(place).unwrap().dev();
        let options = format!("no_detach,compression,{options}");
        let mut server = Command::new("ntfs-3g")
            .args(["-o", &options])
            .args([image, place])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ntfs-3g (package ntfs-3g)");
        let deadline = Instant::now() + Duration::from_secs(30);
        while fs::metadata(place).unwrap().dev() == outside {
            assert_eq!(server.try_wait().unwrap(), None, "ntfs-3g ended");
            assert!(Instant::now() < deadline, "ntfs-3g did not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            place: place.to_owned(),
            server,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Busy for a moment when a file was only just closed.
        for _ in 0..100 {
            let done = Command::new("umount").arg(&self.place).status();
            if done.is_ok_and(|status| status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.server.wait();
    }
}

pub(crate) fn set_attribute(path: &Path, name: &str, value: &str) {
    let path = path.to_str().unwrap();
    run("attr", "setfattr", &["-h", "-n", name, "-v", value, path]);
}

/// Text that can be compressed.
fn text(lines: usize) -> Vec<u8> {
    (0..lines)
        .flat_map(|line| format!("line {} of a text that repeats\r\n", line % 97).into_bytes())
        .collect()
}

/// Files of all kinds, some in many pieces because little was free when they were written.
pub(crate) fn fill(top: &Path) {
    let many = top.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..240_usize {
        let bytes = noise(number as u64, number * number % 9001);
        fs::write(many.join(format!("file number {number}.bin")), bytes).unwrap();
    }
    compressed(&top.join("compressed"));
    let deep = top.join("deep/er/and/deeper");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("é".repeat(250)), "long").unwrap();
    fs::write(deep.join("emoji 😀 €"), noise(7, 70_000)).unwrap();
    fs::write(top.join("empty"), "").unwrap();
    fs::write(top.join("cluster"), noise(8, 4096)).unwrap();
    fs::hard_link(top.join("cluster"), deep.join("other name")).unwrap();
    std::os::unix::fs::symlink("deep/er", top.join("link")).unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.write_all_at(b"first", 0).unwrap();
    sparse.write_all_at(&noise(9, 5000), MIB).unwrap();
    sparse.set_len(3 * MIB + 7).unwrap();
    let streams = top.join("streams");
    fs::write(&streams, "main").unwrap();
    set_attribute(&streams, "user.small", "beside");
    set_attribute(&streams, "user.large", &"large ".repeat(2000));
    in_pieces(top);
    for number in (0..240).step_by(3) {
        fs::remove_file(many.join(format!("file number {number}.bin"))).unwrap();
    }
}

fn compressed(folder: &Path) {
    fs::create_dir(folder).unwrap();
    // FILE_ATTRIBUTE_COMPRESSED, which new files take over; refused where clusters are too large.
    let _ = images::output(
        "attr",
        "setfattr",
        &[
            "-n",
            "system.ntfs_attrib_be",
            "-v",
            "0x00000800",
            folder.to_str().unwrap(),
        ],
    );
    fs::write(folder.join("text"), text(9000)).unwrap();
    fs::write(folder.join("small"), text(3)).unwrap();
    let mut mixed = noise(10, 100_000);
    mixed.extend(text(3000));
    mixed.extend(noise(11, 70_001));
    mixed.extend(vec![0; 200_000]);
    mixed.extend(b"end");
    fs::write(folder.join("mixed"), mixed).unwrap();
    let sparse = File::create(folder.join("sparse")).unwrap();
    sparse.write_all_at(&text(500), 300_000).unwrap();
    sparse.set_len(700_000).unwrap();
}

/// A file whose runs do not fit in its record: written when only the places of small files are free.
fn in_pieces(top: &Path) {
    let crowd = top.join("crowd");
    fs::create_dir(&crowd).unwrap();
    let bytes = noise(12, 4096);
    for number in 0..700 {
        fs::write(crowd.join(format!("{number}")), &bytes).unwrap();
    }
    let mut filler = File::create(top.join("filler")).unwrap();
    let block = vec![0x11; 64 << 10];
    while filler.write_all(&block).is_ok() {}
    drop(filler);
    for number in (0..700).step_by(2) {
        fs::remove_file(crowd.join(format!("{number}"))).unwrap();
    }
    let mut file = File::create(top.join("in pieces")).unwrap();
    for piece in noise(13, 1_200_000).chunks(30_000) {
        // A volume of large clusters is full before.
        if file.write_all(piece).is_err() {
            break;
        }
    }
    drop(file);
    fs::remove_file(top.join("filler")).unwrap();
}

/// What a path is, as a mounted volume shows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Folder,
    Link(Vec<u8>),
    File {
        content: Vec<u8>,
        modified: (i64, i64),
        links: u64,
    },
}

/// Everything below a folder by its path.
pub(crate) fn seen(top: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let what = if metadata.is_dir() {
                folders.push(path.clone());
                Seen::Folder
            } else if metadata.is_symlink() {
                Seen::Link(
                    fs::read_link(&path)
                        .unwrap()
                        .into_os_string()
                        .into_encoded_bytes(),
                )
            } else {
                Seen::File {
                    content: fs::read(&path).unwrap(),
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                    links: metadata.nlink(),
                }
            };
            let path = path
                .strip_prefix(top)
                .unwrap()
                .as_os_str()
                .as_encoded_bytes();
            all.insert(path.to_vec(), what);
        }
    }
    all
}

/// Where record `number` lies in an image whose MFT begins with one run that holds it.
pub(crate) fn record_at(image: &[u8], number: usize) -> usize {
    let size = match image[64] {
        count @ 0xe0.. => 1 << (256 - u32::from(count)),
        count => usize::from(count) * cluster_size(image),
    };
    let mft = u64::from_le_bytes(image[48..56].try_into().unwrap()) as usize;
    mft * cluster_size(image) + number * size
}

pub(crate) fn cluster_size(image: &[u8]) -> usize {
    let sector = usize::from(u16::from_le_bytes([image[11], image[12]]));
    let count = image[13];
    sector
        * if count > 128 {
            1 << (256 - u32::from(count))
        } else {
            usize::from(count)
        }
}

/// Where the first attribute of a type begins in a record.
pub(crate) fn attribute_at(image: &[u8], number: usize, kind: u32) -> usize {
    let record = record_at(image, number);
    let mut at = record + usize::from(u16::from_le_bytes([image[record + 20], image[record + 21]]));
    while image[at..at + 4] != kind.to_le_bytes() {
        assert_ne!(
            image[at..at + 4],
            [0xff; 4],
            "record {number} has no attribute {kind:#x}"
        );
        at += u32::from_le_bytes(image[at + 4..at + 8].try_into().unwrap()) as usize;
    }
    at
}

/// The first run of an attribute in clusters, in bytes: where it begins, and its length.
pub(crate) fn first_run(image: &[u8], number: usize, kind: u32) -> (usize, usize) {
    let attribute = attribute_at(image, number, kind);
    assert_eq!(image[attribute + 8], 1, "resident");
    let pairs = attribute
        + usize::from(u16::from_le_bytes([
            image[attribute + 32],
            image[attribute + 33],
        ]));
    let (count, distance) = (
        usize::from(image[pairs] & 0xf),
        usize::from(image[pairs] >> 4),
    );
    let number = |at: usize, len: usize| {
        (0..len)
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(image[at + byte]))
    };
    let cluster = cluster_size(image);
    (
        number(pairs + 1 + count, distance) * cluster,
        number(pairs + 1, count) * cluster,
    )
}

/// A restart page as Windows writes it: its number, whether a client is in use, and flags.
pub(crate) fn restart_page(number: u64, client: u16, flags: u16) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..4].copy_from_slice(b"RSTR");
    page[4..8].copy_from_slice(&[30, 0, 9, 0]);
    page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
    page[20..24].copy_from_slice(&4096_u32.to_le_bytes());
    page[24..26].copy_from_slice(&48_u16.to_le_bytes());
    page[26..30].copy_from_slice(&[1, 0, 1, 0]);
    page[48..56].copy_from_slice(&number.to_le_bytes());
    page[56..64].copy_from_slice(&[1, 0, 0xff, 0xff, 0, 0, 0, 0]);
    page[60..62].copy_from_slice(&client.to_le_bytes());
    page[62..64].copy_from_slice(&flags.to_le_bytes());
    page[30..32].copy_from_slice(&[7, 7]);
    for part in 1..=8 {
        page[part * 512 - 2..part * 512].copy_from_slice(&[7, 7]);
    }
    page
}

/// An attribute in clusters, without a name: its first cluster, its allocated, whole and written bytes, and
/// one run.
pub(crate) fn mapped(
    kind: u32,
    first: u64,
    sizes: &[u8],
    (start, len): (u64, u64),
    instance: u8,
) -> Vec<u8> {
    let mut attribute = vec![0; 80];
    attribute[..4].copy_from_slice(&kind.to_le_bytes());
    attribute[4] = 80;
    attribute[8] = 1;
    attribute[14] = instance;
    attribute[16..24].copy_from_slice(&first.to_le_bytes());
    attribute[24..32].copy_from_slice(&(first + len - 1).to_le_bytes());
    attribute[32] = 64;
    attribute[40..40 + sizes.len()].copy_from_slice(sizes);
    attribute[64] = 0x44;
    attribute[65..69].copy_from_slice(&(len as u32).to_le_bytes());
    attribute[69..73].copy_from_slice(&(start as u32).to_le_bytes());
    attribute
}

/// Puts attributes into a record, and the update sequence back.
pub(crate) fn write_record(image: &mut [u8], number: usize, base: u64, attributes: &[u8]) {
    let record = record_at(image, number);
    let record = &mut image[record..record + 1024];
    let start = usize::from(record[20]);
    record[22] = 1;
    record[24..28].copy_from_slice(&((start + attributes.len() + 8) as u32).to_le_bytes());
    record[32..40].copy_from_slice(&base.to_le_bytes());
    record[start..].fill(0);
    record[start..start + attributes.len()].copy_from_slice(attributes);
    record[start + attributes.len()..][..4].fill(0xff);
    let sequence = usize::from(record[4]);
    for part in 1..=2 {
        let (end, kept) = (part * 512 - 2, sequence + part * 2);
        let (number, bytes) = (
            [record[sequence], record[sequence + 1]],
            [record[end], record[end + 1]],
        );
        record[end..end + 2].copy_from_slice(&number);
        record[kept..kept + 2].copy_from_slice(&bytes);
    }
}
