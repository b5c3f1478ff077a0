//! C1: NTFS by used clusters. Volumes are made by mkntfs, filled and aged through ntfs-3g, and judged by
//! ntfsfix, ntfsresize (which compares the bitmap with all MFT records) and ntfs-3g.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;
mod ntfs_volumes;

use std::fs;
use std::path::Path;

use backup::ByteRange;
use backup::filesystem::{Doubt, survey_volume};
use backup::manifest::FileSystemKind;
use images::{Image, Memory, assert_in_order_inside, copy_in_garbage, noise, run};
use ntfs_volumes::{
    MIB, Mount, PACKAGE, attribute_at, can_mount, fill, first_run, format, mapped, record_at,
    restart_page, seen, write_record,
};
use proptest::prelude::{any, prop_assert, proptest};

/// Attribute types.
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;

fn survives(size: u64, options: &[&str]) {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
    format(&image, size, options);
    let mount = Mount::new(&image, &folder.path().join("mount"), "rw");
    fill(mount.path());
    drop(mount);

    let survey = survey_volume(&Image::open(&image), size);
    let volume = survey.volume.unwrap();
    assert_eq!(volume.file_system, FileSystemKind::Ntfs);
    assert_eq!(volume.label.as_deref(), Some("Länge"));
    let used = survey.used.unwrap();
    assert_in_order_inside(&used, size);
    assert_eq!(
        clusters_in(&used, &volume),
        used_clusters(&image, &volume),
        "{options:?}"
    );
    assert!(used.iter().map(|range| range.len()).sum::<u64>() < size * 9 / 10);

    copy_in_garbage(&image, &copy, size, &used);
    let path = copy.to_str().unwrap();
    run(PACKAGE, "ntfsfix", &["-n", path]);
    run(
        PACKAGE,
        "ntfsresize",
        &["--info", "--force", "--no-action", path],
    );
    let before = Mount::new(&image, &folder.path().join("before"), "ro");
    let after = Mount::new(&copy, &folder.path().join("after"), "ro");
    let (before, after) = (seen(before.path()), seen(after.path()));
    assert!(before.len() > 500);
    // Not by assert_eq!, which would print megabytes.
    assert!(before == after, "{options:?}: files differ");
}

/// Whole clusters in used ranges.
fn clusters_in(used: &[ByteRange], volume: &backup::manifest::Volume) -> u64 {
    let block = u64::from(volume.block_size);
    let end = volume.size / block * block;
    let bytes: u64 = used
        .iter()
        .map(|range| range.end().min(end).saturating_sub(range.start()))
        .sum();
    bytes / block
}

/// By ntfscluster's count of free clusters.
fn used_clusters(image: &Path, volume: &backup::manifest::Volume) -> u64 {
    let text = run(
        PACKAGE,
        "ntfscluster",
        &["--info", "--quiet", image.to_str().unwrap()],
    );
    let line = text
        .lines()
        .find(|line| line.starts_with("clusters of free space"));
    let free: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    volume.size / u64::from(volume.block_size) - free
}

#[test]
fn clusters_of_512_bytes_come_back() {
    survives(24 * MIB, &["-c", "512"]);
}

#[test]
fn clusters_of_4096_bytes_come_back() {
    survives(24 * MIB + 3 * 512, &["-c", "4096"]);
}

#[test]
fn clusters_of_65536_bytes_come_back() {
    survives(80 * MIB, &["-c", "65536"]);
}

#[test]
fn sectors_of_4096_bytes_come_back() {
    survives(24 * MIB, &["-s", "4096"]);
}

/// A small volume with a few files, clean.
fn small() -> Vec<u8> {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 6 * MIB, &["-c", "4096"]);
    let mount = Mount::new(&image, &folder.path().join("mount"), "rw");
    for number in 0..30 {
        let name = format!("a file with a longer name {number}");
        fs::write(
            mount.path().join(name),
            noise(number, 3000 * number as usize),
        )
        .unwrap();
    }
    drop(mount);
    fs::read(&image).unwrap()
}

fn used_of(bytes: &[u8]) -> Result<Vec<ByteRange>, Doubt> {
    survey_volume(&Memory(bytes), bytes.len() as u64).used
}

fn doubt_of(bytes: &[u8]) -> String {
    match used_of(bytes) {
        Err(Doubt::Untrusted(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn covers(used: &[ByteRange], range: ByteRange) -> bool {
    used.iter().any(|used| used.contains(range))
}

#[test]
fn file_extents_are_where_ntfs_3g_wrote_the_files() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 24 * MIB, &["-c", "4096"]);
    let mount = Mount::new(&image, &folder.path().join("mount"), "rw");
    fill(mount.path());
    let content = fs::read(mount.path().join("in pieces")).unwrap();
    drop(mount);
    let survey = survey_volume(&Image::open(&image), 24 * MIB);
    let used = survey.used.unwrap();
    let bytes = fs::read(&image).unwrap();
    let mut found = vec![false; content.len() / 4096];
    for extent in &survey.extents {
        assert!(covers(&used, extent.range));
        for page in 0..extent.range.len() / 4096 {
            let place = (extent.range.start() + page * 4096) as usize;
            let from = (extent.file_offset + page * 4096) as usize;
            if content.get(from..from + 4096) == Some(&bytes[place..place + 4096]) {
                found[from / 4096] = true;
            }
        }
    }
    assert!(found.iter().all(|found| *found));
    // In many pieces: its runs are in several records.
    assert!(survey.extents.len() > 300, "{}", survey.extents.len());
}

#[test]
fn a_dirty_volume_is_in_doubt_until_it_is_clean() {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 6 * MIB, &[]);
    let path = image.to_str().unwrap();
    assert!(used_of(&fs::read(&image).unwrap()).is_ok());
    run(PACKAGE, "ntfsfix", &[path]);
    let reason = doubt_of(&fs::read(&image).unwrap());
    assert!(reason.contains("dirty"), "{reason}");
    run(PACKAGE, "ntfsfix", &["-d", path]);
    assert!(used_of(&fs::read(&image).unwrap()).is_ok());
}

#[test]
fn versions_and_flags_that_are_not_known_to_be_sound_are_in_doubt() {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 6 * MIB, &[]);
    let good = fs::read(&image).unwrap();
    let information = attribute_at(&good, 3, VOLUME_INFORMATION) + 24;
    let mirror = u64::from_le_bytes(good[56..64].try_into().unwrap()) as usize * 4096;
    let copy = mirror + information - record_at(&good, 0);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[information + at..][..value.len()].copy_from_slice(value);
        bytes[copy + at..][..value.len()].copy_from_slice(value);
        bytes
    };
    for flags in 0..16 {
        let flag = 1_u16 << flags;
        let sound = [0x8, 0x10, 0x20, 0x80, 0x400, 0x800, 0x1000, 0x2000].contains(&flag);
        assert_eq!(
            used_of(&with(10, &flag.to_le_bytes())).is_ok(),
            sound,
            "{flag:#x}"
        );
    }
    for (version, sound) in [
        ([1, 2], true),
        ([3, 0], true),
        ([3, 2], false),
        ([2, 0], false),
    ] {
        assert_eq!(used_of(&with(8, &version)).is_ok(), sound, "{version:?}");
    }
    // In the MFT, not in its mirror.
    let mut bytes = good.clone();
    bytes[information + 8..information + 10].copy_from_slice(&[3, 0]);
    assert!(doubt_of(&bytes).contains("differs from its mirror"));
    // A torn record.
    let mut bytes = good.clone();
    bytes[record_at(&good, 6) + 511] ^= 1;
    assert!(doubt_of(&bytes).contains("MFT record 6 is torn"));
    // A bitmap of 64 clusters.
    let mut bytes = good.clone();
    let bitmap = attribute_at(&good, 6, DATA);
    for size in [48, 56] {
        bytes[bitmap + size..bitmap + size + 8].copy_from_slice(&8_u64.to_le_bytes());
    }
    assert!(doubt_of(&bytes).contains("$Bitmap has 8 bytes"));
    // Too short a place.
    assert!(doubt_of(&good[..good.len() - 4096]).contains("its place has"));
    // The copy of the boot sector, which is the last one also of a larger partition.
    let used = used_of(&good).unwrap();
    assert!(covers(
        &used,
        ByteRange::between(good.len() as u64 - 512, good.len() as u64)
    ));
    let mut bytes = good.clone();
    bytes.resize(good.len() + 512 * 100, 0);
    let larger = used_of(&bytes).unwrap();
    let (end, last) = (bytes.len() as u64, larger.last().unwrap());
    assert_eq!(*last, ByteRange::between(end - 512, end));
    assert_eq!(larger[..larger.len() - 1], used);
}

#[test]
fn a_log_is_clean_when_the_newer_restart_page_says_so() {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 6 * MIB, &[]);
    let good = fs::read(&image).unwrap();
    let (log, _) = first_run(&good, 2, DATA);
    let with = |first: &[u8], second: &[u8]| {
        let mut bytes = good.clone();
        bytes[log..log + 4096].copy_from_slice(first);
        bytes[log + 4096..log + 8192].copy_from_slice(second);
        bytes
    };
    let (clean, closed) = (restart_page(5, 0, 2), restart_page(5, 0xffff, 0));
    let (open, newer) = (restart_page(5, 0, 0), restart_page(6, 0, 0));
    for (first, second) in [(&clean, &clean), (&closed, &closed), (&clean, &closed)] {
        assert!(used_of(&with(first, second)).is_ok());
    }
    let newest = restart_page(7, 0, 2);
    assert!(used_of(&with(&newer, &newest)).is_ok());
    for (first, second) in [
        (&open, &open),
        (&clean, &open),
        (&clean, &newer),
        (&newer, &clean),
    ] {
        assert!(doubt_of(&with(first, second)).contains("log is in use"));
    }
    let blank = vec![0xff; 4096];
    let mut torn = clean.clone();
    torn[1023] = 0;
    for (first, second) in [
        (&clean, &torn),
        (&torn, &clean),
        (&clean, &blank),
        (&blank, &clean),
    ] {
        assert!(doubt_of(&with(first, second)).contains("$LogFile"));
    }
}

#[test]
fn a_hibernated_windows_is_in_doubt() {
    if !can_mount() {
        return;
    }
    let folder = images::folder();
    let image = folder.path().join("image");
    for (content, sound) in [
        (&b"hibr"[..], false),
        (b"HIBR", false),
        (b"\0\0\0\0", true),
        (b"wake", true),
        (b"what", false),
    ] {
        format(&image, 6 * MIB, &[]);
        let mount = Mount::new(&image, &folder.path().join("mount"), "rw");
        let mut bytes = vec![0; 8192];
        bytes[..4].copy_from_slice(content);
        fs::write(mount.path().join("HiberFil.sys"), bytes).unwrap();
        drop(mount);
        let bytes = fs::read(&image).unwrap();
        if sound {
            assert!(used_of(&bytes).is_ok());
        } else {
            assert!(doubt_of(&bytes).contains("hibernated"));
        }
    }
}

#[test]
fn a_bitmap_that_lacks_a_cluster_in_use_is_in_doubt() {
    if !can_mount() {
        return;
    }
    let good = small();
    assert!(used_of(&good).is_ok());
    let (bitmap, _) = first_run(&good, 6, DATA);
    let clusters = good.len() / 4096 - 1;
    let mut lacking = 0;
    let mut bytes = good.clone();
    // The boot code's clusters are saved whatever the bitmap says.
    for cluster in 2..clusters {
        if bytes[bitmap + cluster / 8] >> (cluster % 8) & 1 == 0 {
            continue;
        }
        bytes[bitmap + cluster / 8] &= !(1 << (cluster % 8));
        assert!(
            doubt_of(&bytes).contains("not marked so"),
            "cluster {cluster}"
        );
        bytes[bitmap + cluster / 8] |= 1 << (cluster % 8);
        lacking += 1;
    }
    assert!(lacking > 500);
    // A volume with more clusters than its boot sector says.
    let mut bytes = good.clone();
    bytes[40..48].copy_from_slice(&(good.len() as u64 / 512 / 2).to_le_bytes());
    assert!(used_of(&bytes).is_err());
}

#[test]
fn an_mft_that_is_described_by_several_records_is_read_to_its_end() {
    if !can_mount() {
        return;
    }
    let mut bytes = small();
    let before = used_of(&bytes).unwrap();
    let (start, len) = first_run(&bytes, 0, DATA);
    let (start, clusters) = (start as u64 / 4096, len as u64 / 4096);
    let data = attribute_at(&bytes, 0, DATA);
    let sizes = bytes[data + 40..data + 64].to_vec();
    let mut attributes = Vec::new();
    let mut list = Vec::new();
    let part = 10;
    let record = 22_u64 | 22 << 48;
    let mut entry = |kind: u32, first: u64, record: u64, instance: u8| {
        let mut entry = vec![0; 32];
        entry[..4].copy_from_slice(&kind.to_le_bytes());
        entry[4] = 32;
        entry[7] = 26;
        entry[8..16].copy_from_slice(&first.to_le_bytes());
        entry[16..24].copy_from_slice(&record.to_le_bytes());
        entry[24] = instance;
        list.extend(entry);
    };
    let kept = [0x10, 0x30, 0xb0].map(|kind| {
        let at = attribute_at(&bytes, 0, kind);
        bytes[at..at + usize::from(bytes[at + 4])].to_vec()
    });
    for (kind, attribute) in [(0x10, &kept[0]), (0x30, &kept[1])] {
        entry(kind, 0, 1 << 48, attribute[14]);
    }
    entry(DATA, 0, 1 << 48, 30);
    entry(DATA, part, record, 0);
    entry(0xb0, 0, 1 << 48, kept[2][14]);
    let mut head = vec![0; 24];
    head[0] = 0x20;
    head[4] = 24 + list.len() as u8;
    head[14] = 31;
    head[16] = list.len() as u8;
    head[20] = 24;
    for piece in [
        &kept[0],
        &head,
        &list,
        &kept[1],
        &mapped(DATA, 0, &sizes, (start, part), 30),
        &kept[2],
    ] {
        attributes.extend_from_slice(piece);
    }
    write_record(&mut bytes, 0, 0, &attributes);
    let later = mapped(DATA, part, &[], (start + part, clusters - part), 0);
    write_record(&mut bytes, 22, 1 << 48, &later);
    let at = record_at(&bytes, 22) + 16;
    bytes[at..at + 2].copy_from_slice(&22_u16.to_le_bytes());
    // The record is taken in the table's own bitmap.
    let (taken, _) = first_run(&bytes, 0, 0xb0);
    bytes[taken + 22 / 8] |= 1 << (22 % 8);
    let mirror = u64::from_le_bytes(bytes[56..64].try_into().unwrap()) as usize * 4096;
    let table = record_at(&bytes, 0);
    bytes.copy_within(table..table + 1024, mirror);
    // That this is a sound volume is for others to say.
    let folder = images::folder();
    let image = folder.path().join("image");
    fs::write(&image, &bytes).unwrap();
    let path = image.to_str().unwrap();
    run(PACKAGE, "ntfsfix", &["-n", path]);
    run(
        PACKAGE,
        "ntfsresize",
        &["--info", "--force", "--no-action", path],
    );

    let survey = survey_volume(&Memory(&bytes), bytes.len() as u64);
    assert_eq!(survey.used.unwrap(), before);
    assert!(survey.extents.len() > 20);
    // The first part alone does not hold the table.
    let at = record_at(&bytes, 22) + 22;
    bytes[at] = 0;
    assert!(doubt_of(&bytes).contains("record 22 does not extend record 0"));
}

#[test]
fn bad_clusters_are_not_read() {
    let folder = images::folder();
    let image = folder.path().join("image");
    format(&image, 6 * MIB, &["-c", "4096"]);
    let mut bytes = fs::read(&image).unwrap();
    let (bitmap, _) = first_run(&bytes, 6, DATA);
    let bad = bytes.len() / 4096 - 100;
    let whole = used_of(&bytes).unwrap();
    let range = ByteRange::between(bad as u64 * 4096, bad as u64 * 4096 + 4096);
    assert!(!covers(&whole, range), "cluster {bad} is in use");
    // The second data of record 8, `$Bad`, is one hole.
    let attribute = attribute_at(&bytes, 8, DATA);
    let attribute = attribute + usize::from(bytes[attribute + 4]);
    let (len, pairs) = (
        usize::from(bytes[attribute + 4]),
        usize::from(bytes[attribute + 32]),
    );
    let clusters = (bytes.len() / 512 - 1) / 8;
    let word = |number: usize| (number as u16).to_le_bytes();
    let mut list = vec![0x02];
    list.extend(word(bad));
    list.extend([0x21, 1]);
    list.extend(word(bad));
    list.push(0x02);
    list.extend(word(clusters - bad - 1));
    list.extend([0, 0, 0, 0, 0, 0]);
    assert!(pairs + list.len() <= len + 8);
    let end = attribute + len;
    bytes.copy_within(end..end + 8, end + 8);
    bytes[attribute + pairs..attribute + pairs + list.len()].copy_from_slice(&list);
    bytes[attribute + 4] += 8;
    bytes[record_at(&fs::read(&image).unwrap(), 8) + 24] += 8;
    bytes[bitmap + bad / 8] |= 1 << (bad % 8);
    // The bitmap's neighbours, to see that only the bad one is left out.
    for near in [bad - 1, bad + 1] {
        bytes[bitmap + near / 8] |= 1 << (near % 8);
    }
    let used = used_of(&bytes).unwrap();
    assert!(used.iter().all(|used| !used.overlaps(range)));
    for near in [range.start() - 4096, range.end()] {
        assert!(covers(&used, ByteRange::between(near, near + 4096)));
    }
}

#[test]
fn one_damaged_byte_is_found_or_does_not_matter() {
    if !can_mount() {
        return;
    }
    let good = small();
    let before = used_of(&good).unwrap();
    let size = good.len() as u64;
    // All clusters, without what lies behind them.
    let clusters = ByteRange::between(0, (size / 512 - 1) / 8 * 4096);
    let (bitmap, bitmap_len) = first_run(&good, 6, DATA);
    let (log, _) = first_run(&good, 2, DATA);
    let areas = [
        (0, 512),
        (record_at(&good, 0), 110 * 1024),
        (record_at(&good, 0), 9 * 1024),
        (bitmap, bitmap_len.min(200)),
        (log, 8192),
        (0, good.len()),
    ];
    let config = proptest::test_runner::Config::with_cases(3000);
    proptest!(config, |(area in 0..areas.len(), place in any::<u32>(), value in 1_u8..)| {
        let mut damaged = good.clone();
        let (start, len) = areas[area];
        let at = start + place as usize % len;
        damaged[at] ^= value;
        if let Ok(used) = used_of(&damaged) {
            assert_in_order_inside(&used, size);
            for range in &before {
                let end = range.end().min(clusters.end());
                let range = ByteRange::between(range.start(), end);
                prop_assert!(range.is_empty() || covers(&used, range), "byte {at}: {range} lost");
            }
        }
    });
}

#[test]
fn random_damage_never_panics_and_never_leaves_the_volume() {
    if !can_mount() {
        return;
    }
    let good = small();
    let table = record_at(&good, 0);
    let config = proptest::test_runner::Config::with_cases(1000);
    proptest!(config, |(flips in proptest::collection::vec(
        (any::<u32>(), any::<u8>(), 0_u8..4), 1..12))| {
        let mut damaged = good.clone();
        for (place, value, area) in flips {
            let place = place as usize;
            let at = match area {
                0 => place % 512,
                1 => place % damaged.len(),
                _ => table + place % (110 * 1024),
            };
            damaged[at] ^= value;
        }
        let size = damaged.len() as u64;
        let survey = survey_volume(&Memory(&damaged), size);
        if let Ok(used) = &survey.used {
            assert_in_order_inside(used, size);
        }
        for pair in survey.extents.windows(2) {
            assert!(pair[0].range.end() <= pair[1].range.start());
        }
    });
}
