//! FAT volumes carried over to sectors of another size, checked by `fsck.fat` and read by mtools.
#![allow(clippy::disallowed_methods, reason = "tests work on image files")]

mod images;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backup::SectorSize;
use backup::filesystem::fat_sectors::{SectorsError, front_for, front_len};
use images::{noise, run};
use proptest::prelude::{any, prop, prop_assert, proptest};

const MIB: u64 = 1 << 20;

fn make(image: &Path, size: u64, options: &[&str]) {
    images::blank(image, size);
    let path = image.to_str().unwrap();
    run(
        "dosfstools",
        "mkfs.fat",
        &[options, &["-n", "ESP", path]].concat(),
    );
    run("mtools", "mmd", &["-i", path, "::/EFI", "::/EFI/BOOT"]);
    let file = image.with_extension("file");
    for (name, bytes) in files() {
        fs::write(&file, bytes).unwrap();
        let to = format!("::/EFI/BOOT/{name}");
        run(
            "mtools",
            "mcopy",
            &["-i", path, file.to_str().unwrap(), &to],
        );
    }
}

fn files() -> Vec<(String, Vec<u8>)> {
    let file = |number: u64| {
        let len = number as usize * 70_001;
        (format!("loader-{number}.efi"), noise(number + 1, len))
    };
    (0..8).map(file).collect()
}

fn check(image: &Path) {
    let path = image.to_str().unwrap();
    run("dosfstools", "fsck.fat", &["-n", path]);
    let out = image.with_extension("out");
    for (name, bytes) in files() {
        let _ = fs::remove_file(&out);
        let from = format!("::/EFI/BOOT/{name}");
        run(
            "mtools",
            "mcopy",
            &["-n", "-i", path, &from, out.to_str().unwrap()],
        );
        assert!(fs::read(&out).unwrap() == bytes, "{name}");
    }
}

/// Writes the volume with other sectors into its file.
fn convert(image: &Path, to: SectorSize) -> Result<(), SectorsError> {
    let new = front_for(&front(image), to)?;
    let file = fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(&new, 0).unwrap();
    Ok(())
}

/// What is before the first cluster.
fn front(image: &Path) -> Vec<u8> {
    let file = fs::File::open(image).unwrap();
    let mut boot = vec![0; 512];
    file.read_exact_at(&mut boot, 0).unwrap();
    let mut bytes = vec![0; front_len(&boot).unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn fat16_and_fat32_go_to_sectors_of_4096_bytes_and_back() {
    let folder = images::folder();
    let image = folder.path().join("image");
    for (size, options) in [
        // FAT32 has at least 65,525 clusters, or mtools take it for FAT16.
        (300 * MIB, ["-F", "32", "-s", "8", "-S", "512"]),
        (600 * MIB, ["-F", "32", "-s", "16", "-S", "512"]),
        (64 * MIB, ["-F", "16", "-s", "8", "-S", "512"]),
        (12 * MIB, ["-F", "12", "-s", "8", "-S", "512"]),
        (300 * MIB, ["-F", "32", "-s", "1", "-S", "4096"]),
    ] {
        make(&image, size, &options);
        check(&image);
        let sector = |bytes: &[u8]| u16::from_le_bytes([bytes[11], bytes[12]]);
        for to in [SectorSize::S4096, SectorSize::S512, SectorSize::S4096] {
            convert(&image, to).unwrap();
            assert_eq!(u64::from(sector(&front(&image))), to.bytes());
            check(&image);
        }
    }
}

#[test]
fn clusters_smaller_than_a_sector_are_refused() {
    let folder = images::folder();
    let image = folder.path().join("image");
    make(&image, 40 * MIB, &["-F", "32", "-s", "1", "-S", "512"]);
    let before = fs::read(&image).unwrap();
    let error = convert(&image, SectorSize::S4096).unwrap_err();
    assert!(
        matches!(error, SectorsError::Clusters { cluster: 512, .. }),
        "{error}"
    );
    assert!(before == fs::read(&image).unwrap());
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(500))]

    #[test]
    fn a_damaged_boot_sector_never_panics(
        flips in prop::collection::vec((0usize..100, any::<u8>()), 1..6), large in any::<bool>(),
    ) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let good = GOOD.get_or_init(|| {
            let folder = images::folder();
            let image = folder.path().join("image");
            make(&image, 300 * MIB, &["-F", "32", "-s", "8", "-S", "512"]);
            front(&image)
        });
        let mut bytes = good.clone();
        for (at, value) in flips {
            bytes[at] ^= value;
        }
        let to = if large { SectorSize::S4096 } else { SectorSize::S512 };
        if let Some(len) = front_len(&bytes)
            && len <= 64 * MIB
        {
            bytes.resize(len as usize, 0);
            if let Ok(new) = front_for(&bytes, to) {
                prop_assert!(new.len() == bytes.len());
            }
        }
    }
}
