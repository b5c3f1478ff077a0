//! C1, C2: file systems known by name. Real ones where Debian's essential tools make them (ext and FAT
//! have tests of their own), else the fields that the specifications give, as `blkid` reads them.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use backup::ByteRange;
use backup::filesystem::{ReadAt, ReadError, heads, survey_volume};
use backup::manifest::{FileSystemKind, Volume};
use images::{Image, Memory, assert_in_order_inside, run};
use proptest::prelude::{any, prop, proptest};

const SIZE: usize = 1 << 20;

fn found(bytes: &[u8]) -> Volume {
    survey_volume(&Memory(bytes), bytes.len() as u64)
        .volume
        .unwrap()
}

fn volume(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (at, part) in parts {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    bytes
}

#[test]
fn swap_is_kept_as_its_header() {
    let folder = images::folder();
    let image = folder.path().join("image");
    images::blank(&image, SIZE as u64);
    let (path, uuid) = (
        image.to_str().unwrap(),
        "01234567-89ab-cdef-0123-456789abcdef",
    );
    run("util-linux", "mkswap", &["-L", "paging", "-U", uuid, path]);
    let survey = survey_volume(&Image::open(&image), SIZE as u64);
    assert_eq!(survey.used.unwrap(), [ByteRange::between(0, 4096)]);
    let volume = survey.volume.unwrap();
    assert_eq!(volume.file_system, FileSystemKind::Swap);
    assert_eq!(volume.label.as_deref(), Some("paging"));
    assert_eq!(volume.uuid.as_deref(), Some(uuid));
    assert_eq!(volume.size, SIZE as u64);
}

#[test]
fn what_is_not_understood_is_named_and_saved_whole() {
    let uuid: Vec<u8> = (1..=16).collect();
    let text = "01020304-0506-0708-090a-0b0c0d0e0f10";
    let xfs = volume(&[
        (0, b"XFSB\0\0\x10\0\0\0\0\0\0\0\0\x80"),
        (32, &uuid),
        (108, b"data"),
    ]);
    let btrfs = volume(&[
        (65536 + 32, &uuid),
        (65536 + 64, b"_BHRfS_M"),
        (65536 + 112, &[0, 0, 8]),
        (65536 + 120, &[0, 0, 1]),
        (65536 + 144, &[0, 16]),
        (65536 + 299, b"pool"),
    ]);
    let luks = volume(&[
        (0, b"LUKS\xba\xbe\0\x02"),
        (24, b"vault"),
        (168, text.as_bytes()),
    ]);
    let lvm = volume(&[
        (512, b"LABELONE"),
        (512 + 20, &[32]),
        (512 + 24, b"LVM2 001"),
        (512 + 32, b"abcdefGHIJklmnOPQRstuvWXYZ012345"),
    ]);
    let ntfs = volume(&[
        (3, b"NTFS    \0\x02\x08"),
        (40, &[0, 4]),
        (72, &[8, 7, 6, 5, 4, 3, 2, 1]),
        (510, b"\x55\xaa"),
    ]);
    let bitlocker = volume(&[(0, b"\xeb\x58\x90-FVE-FS-\0\x02\x08"), (510, b"\x55\xaa")]);
    let exfat = volume(&[
        (3, b"EXFAT   "),
        (72, &[0, 4]),
        (100, &[4, 3, 2, 1]),
        (108, &[9, 3]),
        (510, b"\x55\xaa"),
    ]);
    for (bytes, kind, label, id, block, size) in [
        (
            xfs,
            FileSystemKind::Xfs,
            Some("data"),
            Some(text),
            4096,
            128 * 4096,
        ),
        (
            btrfs,
            FileSystemKind::Btrfs,
            Some("pool"),
            Some(text),
            4096,
            512 << 10,
        ),
        (
            luks,
            FileSystemKind::Luks,
            Some("vault"),
            Some(text),
            512,
            SIZE,
        ),
        (
            lvm,
            FileSystemKind::Lvm,
            None,
            Some("abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345"),
            512,
            SIZE,
        ),
        (
            ntfs,
            FileSystemKind::Ntfs,
            None,
            Some("0102030405060708"),
            4096,
            512 << 10,
        ),
        (bitlocker, FileSystemKind::Bitlocker, None, None, 512, SIZE),
        (
            exfat,
            FileSystemKind::Exfat,
            None,
            Some("0102-0304"),
            4096,
            512 << 10,
        ),
    ] {
        let volume = found(&bytes);
        assert_eq!(volume.file_system, kind);
        assert_eq!(volume.label.as_deref(), label, "{kind}");
        assert_eq!(volume.uuid.as_deref(), id, "{kind}");
        assert_eq!(volume.block_size, block, "{kind}");
        assert_eq!(volume.size, size as u64, "{kind}");
        let survey = survey_volume(&Memory(&bytes), SIZE as u64);
        let doubt = survey.used.unwrap_err().to_string();
        let expected = match kind {
            FileSystemKind::Luks => Some("encrypted: LUKS2; kept as it is"),
            FileSystemKind::Bitlocker => Some("encrypted: BitLocker; kept as it is"),
            FileSystemKind::Lvm => Some("LVM is saved whole"),
            // Their own modules say what is wrong with a signature alone.
            _ => None,
        };
        if let Some(expected) = expected {
            assert_eq!(doubt, expected);
        }
        assert!(!survey.heads.is_empty());
    }
}

#[test]
fn zeros_and_noise_have_no_file_system() {
    for bytes in [
        vec![0; SIZE],
        images::noise(11, SIZE),
        vec![0; 512],
        Vec::new(),
    ] {
        let survey = survey_volume(&Memory(&bytes), bytes.len() as u64);
        assert_eq!(survey.volume, None);
        assert!(survey.used.is_err());
        assert_in_order_inside(&survey.heads, bytes.len() as u64);
    }
}

#[test]
fn a_volume_that_cannot_be_read_is_in_doubt_with_the_place() {
    struct Failing;
    impl ReadAt for Failing {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            Err(ReadError {
                offset,
                len: buffer.len() as u64,
                reason: "medium error".to_owned(),
            })
        }
    }
    let survey = survey_volume(&Failing, SIZE as u64);
    assert!(
        survey
            .used
            .unwrap_err()
            .to_string()
            .contains("at byte 0: medium error")
    );
}

#[test]
fn signs_of_two_file_systems_are_a_doubt() {
    let folder = images::folder();
    let image = folder.path().join("image");
    images::blank(&image, 8 << 20);
    let path = image.to_str().unwrap();
    run("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", path]);
    let mut bytes = std::fs::read(&image).unwrap();
    assert!(survey_volume(&Memory(&bytes), 8 << 20).used.is_ok());
    run("dosfstools", "mkfs.fat", &[path]);
    bytes[..512].copy_from_slice(&std::fs::read(&image).unwrap()[..512]);
    let doubt = survey_volume(&Memory(&bytes), 8 << 20).used.unwrap_err();
    assert!(doubt.to_string().contains("both ext4 and FAT"), "{doubt}");
}

#[test]
fn a_member_of_a_raid_with_its_superblock_at_the_end_is_a_doubt() {
    let folder = images::folder();
    let image = folder.path().join("image");
    images::blank(&image, 8 << 20);
    run(
        "e2fsprogs",
        "mke2fs",
        &["-q", "-F", image.to_str().unwrap(), "7M"],
    );
    let good = std::fs::read(&image).unwrap();
    // Metadata 1.0, and 0.90 from a machine of each byte order.
    for (place, magic) in [
        ((8 << 20) - 8192, [0xfc, 0x4e, 0x2b, 0xa9]),
        ((8 << 20) - 65536, [0xfc, 0x4e, 0x2b, 0xa9]),
        ((8 << 20) - 65536, [0xa9, 0x2b, 0x4e, 0xfc]),
    ] {
        let mut bytes = good.clone();
        bytes[place..place + 4].copy_from_slice(&magic);
        let doubt = survey_volume(&Memory(&bytes), 8 << 20).used.unwrap_err();
        assert!(doubt.to_string().contains("RAID"), "{doubt}");
    }
}

#[test]
fn heads_stay_inside_a_small_volume() {
    assert_eq!(heads(None, 512), [ByteRange::between(0, 512)]);
    assert_eq!(heads(Some(FileSystemKind::Btrfs), 4096), []);
}

proptest! {
    #[test]
    fn no_bytes_make_detection_panic(
        signature in prop::sample::select(vec![
            (0, &b"XFSB"[..]), (0, b"LUKS\xba\xbe\0\x01"), (512, b"LABELONE"), (3, b"NTFS    "),
            (3, b"EXFAT   "), (1080, b"\x53\xef"), (4086, b"SWAPSPACE2"), (65600, b"_BHRfS_M"),
            (510, b"\x55\xaa"),
        ]),
        head in prop::collection::vec(any::<u8>(), 512),
        places in prop::collection::vec((0usize..70_000, any::<u8>()), 0..40),
    ) {
        let mut bytes = vec![0; SIZE];
        bytes[..512].copy_from_slice(&head);
        bytes[1024..1536].copy_from_slice(&head);
        for (place, value) in places {
            bytes[place] = value;
        }
        let (at, text) = signature;
        bytes[at..at + text.len()].copy_from_slice(text);
        let survey = survey_volume(&Memory(&bytes), SIZE as u64);
        if let Ok(used) = &survey.used {
            assert_in_order_inside(used, SIZE as u64);
        }
        if let Some(volume) = &survey.volume {
            assert!(volume.size <= SIZE as u64);
        }
    }
}
