//! C2, R1: partition tables to the letter, on disks of another size. Tables are made and judged by
//! sfdisk and sgdisk, and with sectors of 4096 bytes by the `gpt` crate.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use backup::gpt::{GptError, GptTable, read_gpt};
use backup::layout::{LayoutError, MAX_SAVED_GAP, survey_disk};
use backup::manifest::{PartitionTable, RegionKind};
use backup::mbr::{MbrError, read_mbr};
use backup::plan::TableWrite;
use backup::{ByteRange, SectorSize};
use images::{Image, Memory, run};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

const MIB: u64 = 1 << 20;
const S512: SectorSize = SectorSize::S512;

/// Makes a table on an image by a script for sfdisk.
fn sfdisk(image: &Path, size: u64, script: &str) {
    images::blank(image, size);
    // Boot code, which must survive.
    let file = fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(&images::noise(3, 440), 0).unwrap();
    let mut child = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"])
        .arg(image)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("`sfdisk` cannot be run ({error}): install the package `fdisk`")
        });
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}

/// `sfdisk --dump` without what depends on the image's name.
fn dump(image: &Path) -> Vec<String> {
    let name = image.to_str().unwrap();
    run("fdisk", "sfdisk", &["--dump", name])
        .replace(name, "disk")
        .lines()
        .filter(|line| !line.starts_with("device:"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn sgdisk_is_content(image: &Path) {
    let text = run("gdisk", "sgdisk", &["-v", image.to_str().unwrap()]);
    assert!(text.contains("No problems found"), "{text}");
    assert!(
        !text.contains("aution") && !text.contains("arning"),
        "{text}"
    );
}

/// A disk full of old data with the table's writes on it.
fn first_lba(table: &GptTable, number: u32) -> u64 {
    let partitions = table.partitions().unwrap();
    let partition = partitions.iter().find(|one| one.number == number);
    partition.unwrap().first_lba
}

fn write_table(image: &Path, size: u64, writes: &[TableWrite]) {
    let file = fs::File::create(image).unwrap();
    for at in (0..size).step_by(MIB as usize) {
        let len = (size - at).min(MIB);
        file.write_all_at(&vec![0xa5; len as usize], at).unwrap();
    }
    for write in writes {
        file.write_all_at(&write.bytes.0, write.offset).unwrap();
    }
}

const GPT_SCRIPT: &str = "label: gpt
first-lba: 34
table-length: 128
size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name=\"bios\"
size=16MiB, type=U, name=\"EFI system ✓\", attrs=\"RequiredPartition GUID:60\"
start=50000, size=5008, name=\"odd\"
start=30MiB, size=20MiB, type=L
";

#[test]
fn a_gpt_survives_on_equal_larger_and_smaller_disks() {
    let folder = images::folder();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    sfdisk(&source, 64 * MIB, GPT_SCRIPT);
    let read = read_gpt(&Image::open(&source), 64 * MIB, S512)
        .unwrap()
        .unwrap();
    assert_eq!(read.warnings, [""; 0]);
    assert_eq!(read.table.partitions().unwrap()[1].name, "EFI system ✓");
    let before = dump(&source);
    for (size, grown) in [
        (64 * MIB, None),
        (64 * MIB + 512, None),
        (51 * MIB, None),
        (200 * MIB, None),
        (200 * MIB, Some((4, 200 * 2048 - 2049))),
        (64 * MIB, Some((4, 64 * 2048 - 49))),
    ] {
        let placed: Vec<_> = grown
            .iter()
            .map(|(number, last)| (*number, first_lba(&read.table, *number), *last))
            .collect();
        let writes = read.table.resized_for(size, &placed).unwrap();
        write_table(&target, size, &writes);
        sgdisk_is_content(&target);
        let after = dump(&target);
        let expected: Vec<String> = before
            .iter()
            .map(|line| match grown {
                _ if line.starts_with("last-lba") => format!("last-lba: {}", size / 512 - 34),
                Some((4, last)) if line.starts_with("disk4") => {
                    let sectors = last - 30 * 2048 + 1;
                    line.replace("size= 40960", &format!("size= {sectors}"))
                }
                _ => line.clone(),
            })
            .collect();
        assert_eq!(after, expected, "{size} {grown:?}");
        let first = fs::read(&target).unwrap();
        assert_eq!(first[..440], images::noise(3, 440));
        assert_eq!(
            writes
                .iter()
                .map(|write| write.what.as_str())
                .collect::<Vec<_>>(),
            ["backup GPT", "primary GPT", "protective MBR"]
        );
    }
}

#[test]
fn a_gpt_on_a_disk_of_the_same_size_is_the_same_bytes() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(&source, 64 * MIB, GPT_SCRIPT);
    let bytes = fs::read(&source).unwrap();
    let table = read_gpt(&Memory(&bytes), 64 * MIB, S512)
        .unwrap()
        .unwrap()
        .table;
    for write in table.resized_for(64 * MIB, &[]).unwrap() {
        let at = write.offset as usize;
        assert_eq!(
            bytes[at..at + write.bytes.0.len()],
            write.bytes.0,
            "{}",
            write.what
        );
    }
}

#[test]
fn sgdisks_own_tables_survive_too() {
    let folder = images::folder();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    images::blank(&source, 64 * MIB);
    let path = source.to_str().unwrap();
    run(
        "gdisk",
        "sgdisk",
        &[
            "-S", "256", "-n", "7:0:+10M", "-n", "2:0:0", "-A", "2:set:2", path,
        ],
    );
    let read = read_gpt(&Image::open(&source), 64 * MIB, S512)
        .unwrap()
        .unwrap();
    let numbers: Vec<u32> = read
        .table
        .partitions()
        .unwrap()
        .iter()
        .map(|partition| partition.number)
        .collect();
    assert_eq!(numbers, [2, 7]);
    let writes = read
        .table
        .resized_for(100 * MIB, &[(2, first_lba(&read.table, 2), 99 * 2048 - 1)])
        .unwrap();
    write_table(&target, 100 * MIB, &writes);
    sgdisk_is_content(&target);
}

#[test]
fn a_target_that_the_partitions_do_not_fit_on_is_refused() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(&source, 64 * MIB, GPT_SCRIPT);
    let table = read_gpt(&Image::open(&source), 64 * MIB, S512)
        .unwrap()
        .unwrap()
        .table;
    assert_eq!(
        table.resized_for(50 * MIB, &[]),
        Err(GptError::TooSmall {
            needed: 50 * 2048 + 33,
            found: 50 * 2048
        })
    );
    assert!(table.resized_for(50 * MIB + 33 * 512, &[]).is_ok());
    assert_eq!(
        table.resized_for(64 * MIB, &[(9, 90_000, 100_000)]),
        Err(GptError::NoPartition { number: 9 })
    );
    for (first, last) in [(50_000, 49_999), (33, 50_100)] {
        assert!(matches!(
            table.resized_for(64 * MIB, &[(4, first, last)]),
            Err(GptError::Entry { number: 4, .. })
        ));
    }
}

#[test]
fn a_damaged_copy_of_a_gpt_is_told_and_the_other_one_used() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(&source, 64 * MIB, GPT_SCRIPT);
    let good = fs::read(&source).unwrap();
    let size = good.len() as u64;
    let whole = read_gpt(&Memory(&good), size, S512).unwrap().unwrap();
    // The header, and an entry.
    for at in [512 + 40, 1024 + 32] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let read = read_gpt(&Memory(&bytes), size, S512).unwrap().unwrap();
        assert_eq!(read.table, whole.table);
        assert_eq!(read.sectors, whole.sectors);
        assert!(read.warnings[0].contains("primary GPT is damaged"));
    }
    for at in [good.len() - 512 + 40, good.len() - 33 * 512 + 32] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let read = read_gpt(&Memory(&bytes), size, S512).unwrap().unwrap();
        assert_eq!(read.table, whole.table);
        assert!(read.warnings[0].contains("backup GPT is damaged"));
        // Its place is then a gap like any other.
        assert!(survey_disk(&Memory(&bytes), size, S512).is_ok());
        bytes[512 + 50] ^= 1;
        assert!(matches!(
            survey_disk(&Memory(&bytes), size, S512),
            Err(LayoutError::Gpt(GptError::Damaged { .. }))
        ));
    }
}

#[test]
fn the_regions_cover_a_gpt_disk_but_for_its_table() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(&source, 64 * MIB, GPT_SCRIPT);
    let layout = survey_disk(&Image::open(&source), 64 * MIB, S512).unwrap();
    let kinds: Vec<_> = layout
        .regions
        .iter()
        .map(|region| {
            (
                region.kind.clone(),
                region.range.start() / 512,
                region.range.end() / 512,
            )
        })
        .collect();
    let partition = |number| RegionKind::Partition { number };
    assert_eq!(
        kinds,
        [
            (RegionKind::Gap, 34, 2048),
            (partition(1), 2048, 4096),
            (partition(2), 4096, 36864),
            (RegionKind::Gap, 36864, 50000),
            (partition(3), 50000, 55008),
            (RegionKind::Gap, 55008, 61440),
            (partition(4), 61440, 102_400),
            (RegionKind::Gap, 102_400, 131_039),
        ]
    );
    assert!(
        layout
            .regions
            .iter()
            .all(|region| region.left_out.is_none())
    );
}

#[test]
fn large_gaps_are_left_out_but_not_where_boot_loaders_live() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(
        &source,
        160 * MIB,
        "label: dos\nstart=64MiB, size=8MiB\nstart=100MiB, size=8MiB\n",
    );
    let layout = survey_disk(&Image::open(&source), 160 * MIB, S512).unwrap();
    let left_out: Vec<_> = layout
        .regions
        .iter()
        .map(|region| (region.range.start(), region.left_out.is_some()))
        .collect();
    assert_eq!(
        left_out,
        [
            (512, false),
            (512 + MAX_SAVED_GAP, true),
            (64 * MIB, false),
            (72 * MIB, true),
            (100 * MIB, false),
            (108 * MIB, true)
        ]
    );
}

const MBR_SCRIPT: &str = "label: dos
label-id: 0x12345678
start=2048, size=20480, type=83, bootable
start=24576, size=70000, type=5
start=26624, size=10240, type=82
start=40960, size=20480, type=83
";

#[test]
fn a_pc_table_with_logical_partitions_survives_on_other_disks() {
    let folder = images::folder();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    sfdisk(&source, 64 * MIB, MBR_SCRIPT);
    let table = read_mbr(&Image::open(&source), 64 * MIB, S512).unwrap();
    let before = dump(&source);
    for (size, grown) in [
        (64 * MIB, None),
        (40 * MIB, None),
        (61_440 * 512, None),
        (64 * MIB, Some((6, 64 * 2048 - 1))),
        (300 * MIB, Some((6, 300 * 2048 - 1))),
        (20 << 30, Some((6, (20 << 21) - 1))),
    ] {
        let writes = table.resized_for(size, grown).unwrap();
        assert_eq!(writes.last().unwrap().offset, 0);
        images::blank(&target, size);
        let file = fs::OpenOptions::new().write(true).open(&target).unwrap();
        for write in &writes {
            file.write_all_at(&write.bytes.0, write.offset).unwrap();
        }
        let text = run("fdisk", "sfdisk", &["--verify", target.to_str().unwrap()]);
        assert!(text.contains("No errors detected"), "{size}: {text}");
        let logical_end = grown.map_or(61_440, |(_, last)| last + 1);
        let extended_end = logical_end.max(94_576).min(size / 512);
        let expected: Vec<String> = before
            .iter()
            .map(|line| {
                if line.starts_with("disk2") {
                    line.replace("size= 70000", &format!("size= {}", extended_end - 24_576))
                } else if line.starts_with("disk6") {
                    line.replace("size= 20480", &format!("size= {}", logical_end - 40_960))
                } else {
                    line.clone()
                }
            })
            .collect();
        assert_eq!(dump(&target), expected, "{size} {grown:?}");
        let read = read_mbr(&Image::open(&target), size, S512).unwrap();
        assert_eq!(read.first_sector.0[..440], images::noise(3, 440));
    }
    assert!(matches!(
        table.resized_for(61_439 * 512, None),
        Err(MbrError::TooSmall {
            needed: 61_440,
            found: 61_439
        })
    ));
    assert!(matches!(
        table.resized_for(64 * MIB, Some((1, 23_000))),
        Err(MbrError::Grow { .. })
    ));
}

#[test]
fn a_pc_table_moves_towards_the_front_as_sfdisk_reads_it() {
    let folder = images::folder();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    sfdisk(&source, 64 * MIB, MBR_SCRIPT);
    let table = read_mbr(&Image::open(&source), 64 * MIB, S512).unwrap();
    let before = dump(&source);
    // The first one 4 MiB smaller, the first logical one 1 MiB, the second one 2 MiB.
    let placed = [
        (1, 2048, 2048 + 12_288 - 1),
        (5, 18_432, 18_432 + 8192 - 1),
        (6, 30_720, 30_720 + 16_384 - 1),
    ];
    let size = 24 * MIB;
    images::blank(&target, size);
    let file = fs::OpenOptions::new().write(true).open(&target).unwrap();
    for write in &table.moved_for(size, &placed).unwrap() {
        file.write_all_at(&write.bytes.0, write.offset).unwrap();
    }
    let text = run("fdisk", "sfdisk", &["--verify", target.to_str().unwrap()]);
    assert!(text.contains("No errors detected"), "{text}");
    let expected: Vec<String> = before
        .iter()
        .map(|line| {
            line.replace(
                "size= 20480, type=83, bootable",
                "size= 12288, type=83, bootable",
            )
            .replace("start= 24576, size= 70000", "start= 16384, size= 32768")
            .replace("start= 26624, size= 10240", "start= 18432, size= 8192")
            .replace("start= 40960, size= 20480", "start= 30720, size= 16384")
        })
        .collect();
    let squeezed = |lines: Vec<String>| -> Vec<String> {
        let words = lines.iter().map(|line| line.split_whitespace());
        words
            .map(|words| words.collect::<Vec<_>>().join(" "))
            .collect()
    };
    assert_eq!(squeezed(dump(&target)), squeezed(expected));
    for (placed, size) in [
        // It would grow, move back, leave the disk.
        (vec![(1, 2048, 30_000)], 64 * MIB),
        (vec![(5, 26_626, 26_700)], 64 * MIB),
        (placed.to_vec(), 20 * MIB),
        (vec![(9, 1, 2)], 64 * MIB),
    ] {
        assert!(table.moved_for(size, &placed).is_err(), "{placed:?}");
    }
}

#[test]
fn a_pc_table_on_a_disk_of_the_same_size_is_the_same_bytes() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(&source, 64 * MIB, MBR_SCRIPT);
    let bytes = fs::read(&source).unwrap();
    let layout = survey_disk(&Memory(&bytes), 64 * MIB, S512).unwrap();
    let PartitionTable::Mbr(table) = &layout.table else {
        panic!("{:?}", layout.table);
    };
    for write in table.resized_for(64 * MIB, None).unwrap() {
        let at = write.offset as usize;
        assert_eq!(bytes[at..at + write.bytes.0.len()], write.bytes.0);
    }
    // Regions and the table's sectors cover the disk exactly once.
    let mut all: Vec<ByteRange> = layout.regions.iter().map(|region| region.range).collect();
    all.extend(table.sectors().unwrap());
    all.sort();
    assert_eq!(all[0].start(), 0);
    assert!(all.windows(2).all(|pair| pair[0].end() == pair[1].start()));
    assert_eq!(all.last().unwrap().end(), 64 * MIB);
}

#[test]
fn chains_that_lie_are_refused() {
    let folder = images::folder();
    let source = folder.path().join("source");
    sfdisk(&source, 64 * MIB, MBR_SCRIPT);
    let good = fs::read(&source).unwrap();
    let table = read_mbr(&Memory(&good), 64 * MIB, S512).unwrap();
    let first = table.extended[0].0 as usize * 512;
    let patch = |at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        survey_disk(&Memory(&bytes), 64 * MIB, S512)
    };
    // The second record links back to the first; a link outside; a logical partition outside.
    let second = table.extended[1].0 as usize * 512;
    let mut bytes = good.clone();
    bytes[second + 462 + 4] = 5;
    bytes[second + 462 + 12] = 1;
    assert!(matches!(
        survey_disk(&Memory(&bytes), 64 * MIB, S512),
        Err(LayoutError::Mbr(MbrError::Record { .. }))
    ));
    for result in [
        patch(first + 462 + 8, 80_000),
        patch(first + 446 + 12, 80_000),
        patch(first + 446 + 8, 0),
        patch(446 + 16 + 8, 200_000),
        // A primary partition that leaves the disk, and one over another.
        patch(446 + 12, 1 << 30),
        patch(446 + 12, 25_000),
    ] {
        assert!(result.is_err(), "{result:?}");
    }
}

/// A disk cloned onto a smaller one, on whose unused space an old swap signature is left.
#[test]
fn a_table_that_leaves_the_disk_is_refused_whatever_an_old_signature_says() {
    const SIZE: usize = 4 << 20;
    let mut disk = vec![0; SIZE];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let entry = &mut disk[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..16].copy_from_slice(&0x10_0000u32.to_le_bytes());
    disk[4086..4096].copy_from_slice(b"SWAPSPACE2");
    disk[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    disk[1028..1032].copy_from_slice(&(SIZE as u32 / 4096 - 1).to_le_bytes());
    let refusal = survey_disk(&Memory(&disk), SIZE as u64, SectorSize::S512);
    assert!(
        matches!(refusal, Err(LayoutError::Outside { number: 1, .. })),
        "{refusal:?}"
    );
}

#[test]
fn a_disk_that_is_one_fat_volume_has_no_table() {
    let folder = images::folder();
    let image = folder.path().join("image");
    images::blank(&image, 16 * MIB);
    run("dosfstools", "mkfs.fat", &[image.to_str().unwrap()]);
    let layout = survey_disk(&Image::open(&image), 16 * MIB, S512).unwrap();
    assert_eq!(layout.table, PartitionTable::None);
    assert_eq!(layout.regions[0].kind, RegionKind::WholeDisk);
    assert_eq!(layout.regions[0].range, ByteRange::between(0, 16 * MIB));
}

/// sgdisk wants a block device for sectors of 4096 bytes, and so a root: the `gpt` crate is the
/// oracle here.
#[test]
fn a_gpt_with_sectors_of_4096_bytes_survives_on_a_larger_disk() {
    let four = gpt::disk::LogicalBlockSize::Lb4096;
    let (size, larger) = (64 * MIB, 96 * MIB);
    let mut disk = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(four)
        .create_from_device(Cursor::new(vec![0; size as usize]), None)
        .unwrap();
    let linux = gpt::partition_types::LINUX_FS;
    disk.add_partition("one", 8 * MIB, gpt::partition_types::EFI, 1, None)
        .unwrap();
    disk.add_partition("two", 16 * MIB, linux, 0, None).unwrap();
    let mut bytes = disk.write().unwrap().into_inner();
    bytes[446 + 4] = 0xee;
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let sector = SectorSize::S4096;
    let read = read_gpt(&Memory(&bytes), size, sector).unwrap().unwrap();
    assert_eq!(read.warnings, [""; 0]);
    let last = larger / 4096 - 257;
    let writes = read
        .table
        .resized_for(larger, &[(2, first_lba(&read.table, 2), last)])
        .unwrap();
    let mut target = vec![0xa5; larger as usize];
    for write in &writes {
        let at = write.offset as usize;
        target[at..at + write.bytes.0.len()].copy_from_slice(&write.bytes.0);
    }
    let open = |bytes: Vec<u8>| {
        gpt::GptConfig::new()
            .logical_block_size(four)
            .open_from_device(Cursor::new(bytes))
            .unwrap()
    };
    let (before, after) = (open(bytes), open(target.clone()));
    let mut expected = before.partitions().clone();
    expected.get_mut(&2).unwrap().last_lba = last;
    assert_eq!(after.partitions(), &expected);
    let (one, other) = (
        after.primary_header().unwrap(),
        after.backup_header().unwrap(),
    );
    assert_eq!((one.current_lba, one.backup_lba), (1, larger / 4096 - 1));
    assert_eq!(
        (other.current_lba, other.backup_lba),
        (larger / 4096 - 1, 1)
    );
    assert_eq!(one.disk_guid, before.primary_header().unwrap().disk_guid);
    // And it reads back as its own kind.
    let again = read_gpt(&Memory(&target), larger, sector).unwrap().unwrap();
    assert_eq!(again.warnings, [""; 0]);
    assert_eq!(again.table.partitions().unwrap()[1].last_lba, last);
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(500))]

    #[test]
    fn random_damage_to_a_gpt_never_panics_and_regions_stay_right(
        flips in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<u8>()), 1..6),
        shown in 0u64..3,
    ) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let good = GOOD.get_or_init(|| {
            let folder = images::folder();
            let source = folder.path().join("source");
            sfdisk(&source, 2 * MIB, "label: gpt\nfirst-lba: 34\nsize=256KiB\nsize=512KiB\n");
            fs::read(&source).unwrap()
        });
        let mut bytes = good.clone();
        for (area, at, value) in flips {
            let start = [0, 512, bytes.len() - 33 * 512][area];
            bytes[start + at.index(700).min(33 * 512 - 1)] ^= value;
        }
        // Also a disk that was cut short.
        let size = bytes.len() as u64 - shown * 512;
        check_layout(&bytes[..size as usize], size);
    }

    #[test]
    fn random_damage_to_a_pc_table_never_panics_and_regions_stay_right(
        flips in prop::collection::vec((0usize..3, 0usize..66, any::<u8>()), 1..4),
    ) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let good = GOOD.get_or_init(|| {
            let folder = images::folder();
            let source = folder.path().join("source");
            let script = "label: dos\nstart=64, size=100, type=83\nstart=200, size=1800, type=f\n\
                          start=264, size=100\nstart=500, size=1000\n";
            sfdisk(&source, MIB, script);
            fs::read(&source).unwrap()
        });
        let table = read_mbr(&Memory(good), MIB, S512).unwrap();
        let records = [0, table.extended[0].0 as usize * 512, table.extended[1].0 as usize * 512];
        let mut bytes = good.clone();
        for (record, at, value) in flips {
            bytes[records[record] + 446 + at] ^= value;
        }
        check_layout(&bytes, MIB);
    }

    #[test]
    fn any_chain_of_logical_partitions_survives_growing(
        parts in prop::collection::vec((1u64..50, 1u64..50, 1u64..200), 0..12),
        tail in 0u64..100,
        grown in 0u64..300,
        large in any::<bool>(),
        less in prop::collection::vec(0u64..40, 1..5),
    ) {
        let sector = if large { SectorSize::S4096 } else { S512 };
        let unit = sector.bytes() as usize;
        // Records, partitions and gaps in a row, and a primary partition before them.
        let mut at = 20;
        let places: Vec<(u64, u64, u64)> = parts
            .iter()
            .map(|(gap, offset, sectors)| {
                let record = if at == 20 { 20 } else { at + gap };
                at = record + offset + sectors;
                (record, record + offset, *sectors)
            })
            .collect();
        let sectors = at + tail + 1;
        let mut bytes = vec![0; sectors as usize * unit];
        let mut put = |record: u64, slot: usize, kind: u8, start: u64, count: u64| {
            let at = record as usize * unit;
            bytes[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
            let entry = at + 446 + 16 * slot;
            bytes[entry + 4] = kind;
            bytes[entry + 8..entry + 12].copy_from_slice(&(start as u32).to_le_bytes());
            bytes[entry + 12..entry + 16].copy_from_slice(&(count as u32).to_le_bytes());
        };
        put(0, 0, 0x83, 3, 10);
        let end = places.last().map_or(0, |(_, start, count)| start + count);
        for (index, (record, start, count)) in places.iter().enumerate() {
            if index == 0 {
                put(0, 1, 0x0f, 20, end + tail - 20);
            } else {
                let before = places[index - 1].0;
                put(before, 1, 5, record - 20, start + count - record);
            }
            put(*record, 0, 0x83, start - record, *count);
        }
        let size = bytes.len() as u64;
        check_layout(&bytes, size);
        let table = read_mbr(&Memory(&bytes), size, sector).unwrap();
        let mut expected: Vec<(u32, u64, u64)> = vec![(1, 3, 12)];
        expected.extend((5u32..).zip(&places).map(|(number, (_, start, count))| {
            (number, *start, start + count - 1)
        }));
        let larger = size + grown * sector.bytes();
        let last = expected.last_mut().unwrap();
        last.2 += tail + grown;
        let writes = table.resized_for(larger, Some((last.0, last.2))).unwrap();
        bytes.resize(larger as usize, 0);
        for write in &writes {
            let at = write.offset as usize;
            bytes[at..at + write.bytes.0.len()].copy_from_slice(&write.bytes.0);
        }
        let again = read_mbr(&Memory(&bytes), larger, sector).unwrap();
        let found: Vec<_> = again
            .partitions()
            .unwrap()
            .iter()
            .map(|part| (part.number, part.first_lba, part.last_lba))
            .collect();
        prop_assert_eq!(&found, &expected);
        prop_assert!(writes.iter().all(|write| write.bytes.0.len() == unit));

        // And back, with any of them smaller.
        let mut shift = 0;
        let placed: Vec<(u32, u64, u64)> = expected
            .iter()
            .zip(less.iter().cycle())
            .map(|((number, first, last), less)| {
                let (first, len) = (first - shift, last + 1 - first);
                let less = (*less).min(len - 1);
                shift += less;
                (*number, first, first + len - less - 1)
            })
            .collect();
        let end = placed.last().unwrap().2 + 1;
        let smaller = end * sector.bytes();
        let writes = again.moved_for(smaller, &placed).unwrap();
        let mut bytes = vec![0; smaller as usize];
        for write in &writes {
            let at = write.offset as usize;
            bytes[at..at + write.bytes.0.len()].copy_from_slice(&write.bytes.0);
        }
        let moved = read_mbr(&Memory(&bytes), smaller, sector).unwrap();
        let found: Vec<_> = moved
            .partitions()
            .unwrap()
            .iter()
            .map(|part| (part.number, part.first_lba, part.last_lba))
            .collect();
        prop_assert_eq!(found, placed);
        check_layout(&bytes, smaller);
        prop_assert!(again.moved_for(smaller - sector.bytes(), &[]).is_err());
    }
}

/// Whatever is on the disk, the regions and the table either cover it once or are refused.
fn check_layout(bytes: &[u8], size: u64) {
    let sector = if size.is_multiple_of(4096) {
        SectorSize::S4096
    } else {
        S512
    };
    for sector in [S512, sector] {
        let Ok(layout) = survey_disk(&Memory(bytes), size, sector) else {
            continue;
        };
        let mut end = 0;
        for region in &layout.regions {
            assert!(region.range.start() >= end && !region.range.is_empty());
            end = region.range.end();
            assert!(end <= size);
        }
        let covered: u64 = layout.regions.iter().map(|region| region.range.len()).sum();
        let own = match &layout.table {
            PartitionTable::None => 0,
            PartitionTable::Mbr(table) => (1 + table.extended.len() as u64) * sector.bytes(),
            // Two copies, or one of them lost.
            PartitionTable::Gpt(table) => {
                let entries = table.entries.0.len() as u64;
                let one = 2 * sector.bytes() + entries;
                if covered + one == size {
                    one
                } else {
                    one + entries + sector.bytes()
                }
            }
        };
        assert_eq!(covered + own, size);
    }
}
