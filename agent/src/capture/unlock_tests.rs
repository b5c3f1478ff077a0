//! C8: encrypted volumes captured with their key. The headers are real ones; the content is not encrypted but
//! inverted, which needs no device-mapper.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use backup::manifest::{Coverage, FileSystemKind, Manifest};
use backup::plan::Choices;
use protocol::unlock::Secret;

use super::*;
use crate::capture::capture;
use crate::job::fake::{Bench, HEADER, ImageMachine, OPENS, disk, point, run};
use crate::restore::restore;

const MIB: u64 = 1 << 20;
const DISK: u64 = 48 * MIB;
const PART: u64 = 8 * MIB;
const PART_LEN: u64 = 32 * MIB;

/// A disk with a LUKS partition, in which there is an ext4; returns the ext4.
fn make_disk(folder: &Path) -> Vec<u8> {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/os-release"), "NAME=Inner\n").unwrap();
    for number in 0..30u32 {
        let text = format!("file {number} ").repeat(number as usize * 900);
        fs::write(tree.join(number.to_string()), text).unwrap();
    }
    let (plain, header, image) = ("plain", "header", "source");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let size = format!("{}K", (PART_LEN - HEADER) / 1024);
    let from = path("tree");
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", &from, &path(plain), &size],
    );
    let file = File::create(folder.join(header)).unwrap();
    file.set_len(PART_LEN).unwrap();
    fs::write(folder.join("key"), OPENS).unwrap();
    run(
        "cryptsetup",
        &[
            "luksFormat",
            "-q",
            "--type",
            "luks1",
            "--key-size",
            "256",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            &path("key"),
            &path(header),
        ],
    );
    let file = File::create(folder.join(image)).unwrap();
    file.set_len(DISK).unwrap();
    let table = "label: gpt\nstart=2048, size=2048\nstart=16384, size=65536\n";
    fs::write(folder.join("table"), table).unwrap();
    let script = format!("sfdisk -q {} <{}", path(image), path("table"));
    run("sh", &["-c", &script]);
    let header = fs::read(folder.join(header)).unwrap();
    file.write_all_at(&header[..HEADER as usize], PART).unwrap();
    let plain = fs::read(folder.join(plain)).unwrap();
    let inverted: Vec<u8> = plain.iter().map(|byte| !byte).collect();
    file.write_all_at(&inverted, PART + HEADER).unwrap();
    plain
}

fn key(disk: &str, partition: Option<u32>, key: &[u8]) -> VolumeKey {
    VolumeKey {
        place: VolumePlace {
            disk: disk.to_owned(),
            partition,
        },
        key: Secret::new(key.to_vec()),
    }
}

fn bench(folder: &Path, keys: Vec<VolumeKey>) -> Bench<ImageMachine> {
    let mut bench = Bench::new(ImageMachine::new(folder), vec![disk("source", DISK)]);
    bench.keys = keys;
    bench
}

#[test]
fn with_its_key_a_volume_is_captured_plain_and_the_restore_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let plain = make_disk(folder.path());
    let mut bench = bench(folder.path(), vec![key("SERIAL-source", Some(2), OPENS)]);
    let said = capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    let sentence = "partition 2 of disk 0 of source is encrypted (LUKS1, aes-xts-plain64)";
    assert!(said.iter().any(|one| one.contains(sentence)), "{said:?}");
    assert!(
        said.iter().any(|one| one.starts_with("Found Inner")),
        "{said:?}"
    );

    let json = bench.server.manifests.lock().unwrap()[&point("rp-1")].clone();
    let manifest = Manifest::from_json(&json).unwrap();
    assert!(manifest.warnings.is_empty(), "{:?}", manifest.warnings);
    let region = manifest
        .regions()
        .find(|region| region.range.start() == PART)
        .unwrap();
    let with = region.was_encrypted.as_deref();
    assert_eq!(with, Some("LUKS1, aes-xts-plain64"));
    assert_eq!(region.coverage, Coverage::UsedBlocks);
    let volume = region.volume.as_ref().unwrap();
    assert_eq!(volume.file_system, FileSystemKind::Ext4);
    assert_eq!(volume.size, PART_LEN - HEADER);

    // Over a disk on which everything was something else, the old header among it.
    let target = folder.path().join("target");
    let file = File::create(&target).unwrap();
    let mut old = vec![0xa5; DISK as usize];
    for at in [0, 0x4000, 0x8000, 0x40_0000] {
        old[(PART + at) as usize..][..6].copy_from_slice(b"SKUL\xba\xbe");
    }
    file.write_all_at(&old, 0).unwrap();
    bench.inventory.disks = vec![disk("target", DISK)];
    let said = restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
    let again = "Encryption must be switched on again: partition 2 of disk 0 was encrypted";
    assert!(said.iter().any(|one| one.contains(again)), "{said:?}");

    let restored = fs::read(&target).unwrap();
    let restored = &restored[PART as usize..(PART + PART_LEN - HEADER) as usize];
    fs::write(folder.path().join("restored"), restored).unwrap();
    let path = folder.path().join("restored");
    run("e2fsck", &["-f", "-n", path.to_str().unwrap()]);
    for place in [0, 0x4000, 0x8000, 0x40_0000] {
        assert_eq!(restored[place..place + 4096], plain[place..place + 4096]);
    }
    let content = |image: &str| run("debugfs", &["-R", "cat /29", image]);
    let source = folder.path().join("plain");
    assert!(content(path.to_str().unwrap()) == content(source.to_str().unwrap()));
}

#[test]
fn a_wrong_key_and_a_key_for_nothing_end_the_capture_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    make_disk(folder.path());
    for (keys, code, says) in [
        (
            key("source", Some(2), b"wrong"),
            "wrong-key",
            "partition 2 of source",
        ),
        (key("source", Some(1), OPENS), "refused", "not encrypted"),
        (key("source", Some(3), OPENS), "refused", "does not have"),
        (key("source", None, OPENS), "refused", "does not have"),
        (key("sdb", Some(2), OPENS), "refused", "0 disks"),
    ] {
        let bench = bench(folder.path(), vec![keys]);
        let error = capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.reason.contains(says), "{error}");
        let sent = bench
            .server
            .uploaded
            .load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(sent, 0, "{error}");
        assert!(bench.server.manifests.lock().unwrap().is_empty());
    }
}

#[test]
fn without_a_key_the_volume_is_kept_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    make_disk(folder.path());
    let bench = bench(folder.path(), Vec::new());
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    let json = bench.server.manifests.lock().unwrap()[&point("rp-1")].clone();
    let manifest = Manifest::from_json(&json).unwrap();
    let mut regions = manifest.regions();
    let region = regions.find(|region| region.range.start() == PART).unwrap();
    assert_eq!(region.was_encrypted, None);
    assert!(matches!(region.coverage, Coverage::Whole { .. }));
    assert!(manifest.encrypt_again().is_empty());
}

#[test]
fn what_is_read_across_borders_is_each_volume_in_its_place() {
    struct Filled(u8, u64);
    impl BlockDevice for Filled {
        fn name(&self) -> &str {
            "filled"
        }
        fn size(&self) -> u64 {
            self.1
        }
        fn sector(&self) -> SectorSize {
            SectorSize::S512
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            assert!(offset + buffer.len() as u64 <= self.1);
            buffer.fill(self.0);
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }
        fn zero(&self, _: ByteRange) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let opened = |range: ByteRange, fill, len| Opened {
        range,
        plain: Box::new(Filled(fill, len)),
        with: String::new(),
    };
    let disk = PlainDisk {
        disk: Box::new(Filled(9, 100)),
        opened: vec![
            opened(ByteRange::between(10, 30), 1, 15),
            opened(ByteRange::between(30, 40), 2, 10),
        ],
    };
    let expected: Vec<u8> = [(9, 10), (1, 15), (0, 5), (2, 10), (9, 60)]
        .iter()
        .flat_map(|(fill, len)| vec![*fill; *len])
        .collect();
    for from in 0..100 {
        for to in from..=100 {
            let mut found = vec![7; to - from];
            disk.read_at(from as u64, &mut found).unwrap();
            assert_eq!(found, expected[from..to], "{from} to {to}");
        }
    }
}
