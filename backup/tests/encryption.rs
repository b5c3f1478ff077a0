//! C8: encrypted volumes are named with version and cipher, and kept as they are.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use backup::ByteRange;
use backup::chunk::Cutting;
use backup::filesystem::{Doubt, encryption, survey_volume};
use backup::layout::LayoutRegion;
use backup::manifest::{Coverage, FileSystemKind, RegionKind};
use backup::plan::capture::plan_region;
use images::{Image, Memory, run};
use proptest::prelude::{any, prop, prop_assert, proptest};

const SIZE: u64 = 20 << 20;

#[test]
fn what_cryptsetup_formats_is_named_with_version_and_cipher() {
    let folder = images::folder();
    let key = folder.path().join("key");
    std::fs::write(&key, "a key for a test").unwrap();
    for (version, cipher) in [
        ("luks1", "aes-xts-plain64"),
        ("luks2", "aes-xts-plain64"),
        ("luks2", "aes-cbc-essiv:sha256"),
    ] {
        let image = folder.path().join("image");
        images::blank(&image, SIZE);
        let path = image.to_str().unwrap();
        run(
            "cryptsetup-bin",
            "cryptsetup",
            &[
                "luksFormat",
                "-q",
                "--type",
                version,
                "--cipher",
                cipher,
                "--key-size",
                "256",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
                "--key-file",
                key.to_str().unwrap(),
                path,
            ],
        );
        let survey = survey_volume(&Image::open(&image), SIZE);
        let volume = survey.volume.clone().unwrap();
        assert_eq!(volume.file_system, FileSystemKind::Luks);
        let uuid = run("cryptsetup-bin", "cryptsetup", &["luksUUID", path]);
        assert_eq!(volume.uuid.as_deref(), Some(uuid.trim()));
        let expected = format!(
            "encrypted: {}, {cipher}; kept as it is",
            version.to_uppercase()
        );
        assert_eq!(survey.used, Err(Doubt::Untrusted(expected.clone())));

        let region = LayoutRegion {
            kind: RegionKind::WholeDisk,
            range: backup::ByteRange::between(0, SIZE),
            left_out: None,
        };
        let plan = plan_region(region, Some(survey), 512);
        assert_eq!(plan.coverage, Coverage::Whole { reason: expected });
        assert_eq!(plan.cutting, Cutting::Grid);
        assert_eq!(plan.read_bytes(), SIZE);
    }
}

#[test]
fn the_places_of_old_headers_are_saved_once_and_within_the_volume() {
    let range = ByteRange::between;
    let used = [
        range(4096, 20_000),
        range(0x8000, 0x9000),
        range(5 << 20, 6 << 20),
    ];
    let all = encryption::with_header_places(&used, 8 << 20);
    assert_eq!(all[0], range(0, 20_480), "joined with what is used");
    for at in [
        0, 0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
    ] {
        let place = range(at, at + 4096);
        assert!(all.iter().any(|one| one.contains(place)), "{at:#x}");
    }
    assert!(all.iter().any(|one| one.contains(used[2])));
    assert!(all.windows(2).all(|pair| pair[0].end() < pair[1].start()));
    let small = encryption::with_header_places(&[], 0x4000 + 512);
    assert_eq!(small, [range(0, 4096), range(0x4000, 0x4200)]);
}

proptest! {
    #[test]
    fn whatever_follows_the_magic_it_is_a_doubt(
        version in 0u8..4,
        noise in prop::collection::vec(any::<u8>(), 0..4096),
        len in 4096usize..20_000,
        json in "\\PC{0,200}",
    ) {
        let mut bytes = vec![0; len];
        bytes[..noise.len()].copy_from_slice(&noise);
        let end = (4096 + json.len()).min(len);
        bytes[4096..end].copy_from_slice(&json.as_bytes()[..end - 4096]);
        bytes[..6].copy_from_slice(b"LUKS\xba\xbe");
        bytes[6..8].copy_from_slice(&[0, version]);
        prop_assert!(survey_volume(&Memory(&bytes), len as u64).used.is_err());
    }
}
