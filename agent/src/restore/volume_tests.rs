//! C1, R1: logical volumes over two disks, captured by used blocks and restored. The group is described
//! here after LVM2's format, and put together here again, without the code that is tested; `pvck` says
//! whether it is one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use backup::filesystem::survey_volume;
use backup::manifest::{Coverage, Manifest, Purpose};
use backup::plan::Choices;

use crate::capture::capture;
use crate::device::{Access, Device, DiskReader};
use crate::job::fake::{Bench, ImageMachine, disk, point, run};
use crate::restore::restore;

const MIB: u64 = 1 << 20;
const ONE: u64 = 40 * MIB;
const TWO: u64 = 24 * MIB;
/// The partition with the first physical volume.
const PART: u64 = 2 * MIB;
const PART_LEN: u64 = 32 * MIB;

/// Where the bytes of the volumes are: disk, byte on the disk, length; stripes of 64 KiB for `fast`.
const ROOT: [(usize, u64, u64); 2] = [(0, PART + 6 * MIB, 12 * MIB), (1, 3 * MIB, 8 * MIB)];
const FAST: [(usize, u64, u64); 2] = [(0, PART + 21 * MIB, 4 * MIB), (1, 13 * MIB, 4 * MIB)];
const STRIPE: u64 = 64 << 10;
const POOL: (u64, u64) = (PART + MIB, 2 * MIB);
const SWAP: u64 = PART + 4 * MIB;

const GROUP: &str = r#"vg {
id = "GGGGGG-GGGG-GGGG-GGGG-GGGG-GGGG-GGGGGG"
seqno = 7
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 2048
max_lv = 0
max_pv = 0
metadata_copies = 0
physical_volumes {
pv0 { id = "000000-0000-0000-0000-0000-0000-000000" device = "/dev/sda2"
status = ["ALLOCATABLE"] flags = [] dev_size = 65536 pe_start = 2048 pe_count = 30 }
pv1 { id = "111111-1111-1111-1111-1111-1111-111111" device = "/dev/sdb"
status = ["ALLOCATABLE"] flags = [] dev_size = 49152 pe_start = 2048 pe_count = 22 }
}
logical_volumes {
root { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 2
segment1 { start_extent = 0 extent_count = 12 type = "striped" stripe_count = 1 stripes = ["pv0", 5] }
segment2 { start_extent = 12 extent_count = 8 type = "striped" stripe_count = 1 stripes = ["pv1", 2] } }
fast { id = "BBBBBB-BBBB-BBBB-BBBB-BBBB-BBBB-BBBBBB"
status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 8 type = "striped" stripe_count = 2 stripe_size = 128
stripes = ["pv0", 20, "pv1", 12] } }
swap { id = "CCCCCC-CCCC-CCCC-CCCC-CCCC-CCCC-CCCCCC"
status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 3] } }
pool { id = "DDDDDD-DDDD-DDDD-DDDD-DDDD-DDDD-DDDDDD"
status = ["READ", "WRITE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 1 type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata"
transaction_id = 0 chunk_size = 128 discards = "passdown" zero_new_blocks = 1 } }
pool_tmeta { id = "EEEEEE-EEEE-EEEE-EEEE-EEEE-EEEE-EEEEEE"
status = ["READ", "WRITE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } }
pool_tdata { id = "FFFFFF-FFFF-FFFF-FFFF-FFFF-FFFF-FFFFFF"
status = ["READ", "WRITE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 1] } }
}
}
contents = "Text Format Volume Group"
version = 1
description = ""
creation_host = "test"
creation_time = 1
"#;

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// Label, header, metadata area and text of a physical volume: its first MiB.
fn physical_volume(uuid: u8, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    let put = |bytes: &mut Vec<u8>, at: usize, part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
    };
    put(&mut bytes, 512, b"LABELONE");
    put(&mut bytes, 520, &1u64.to_le_bytes());
    put(&mut bytes, 532, b"\x20\0\0\0LVM2 001");
    put(&mut bytes, 544, &[uuid; 32]);
    let header = [
        size,
        MIB,
        0,
        0,
        0,
        4096,
        MIB - 4096,
        0,
        0,
        (1 << 32) | 2,
        0,
        0,
    ];
    for (number, word) in header.iter().enumerate() {
        put(&mut bytes, 576 + 8 * number, &word.to_le_bytes());
    }
    let sum = crc(&bytes[532..1024]);
    put(&mut bytes, 528, &sum.to_le_bytes());

    let mut text = GROUP.as_bytes().to_vec();
    text.push(0);
    put(&mut bytes, 4096 + 512, &text);
    put(&mut bytes, 4100, b" LVM2 x[5A%r0N*>");
    put(&mut bytes, 4116, &1u32.to_le_bytes());
    for (number, word) in [4096, MIB - 4096, 512, text.len() as u64]
        .iter()
        .enumerate()
    {
        put(&mut bytes, 4120 + 8 * number, &word.to_le_bytes());
    }
    put(&mut bytes, 4152, &crc(&text).to_le_bytes());
    let sum = crc(&bytes[4100..4608]);
    put(&mut bytes, 4096, &sum.to_le_bytes());
    bytes
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn ext4(folder: &Path, name: &str, size: u64) -> Vec<u8> {
    let (image, tree) = (folder.join(name), folder.join("tree"));
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(
        tree.join("etc/os-release"),
        "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n",
    )
    .unwrap();
    for number in 0..12u64 {
        fs::write(
            tree.join(format!("file-{number}")),
            noise(number + 1, number * 41_003),
        )
        .unwrap();
    }
    File::create(&image).unwrap().set_len(size).unwrap();
    let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
    run("mke2fs", &["-q", "-t", "ext4", "-d", tree, path]);
    fs::read(&image).unwrap()
}

fn images(folder: &Path, names: [&str; 2]) -> Vec<File> {
    let open = |name| {
        File::options()
            .read(true)
            .write(true)
            .open(folder.join(name))
    };
    names.into_iter().map(|name| open(name).unwrap()).collect()
}

/// Each piece of a volume: disk, byte on the disk, byte in the volume, length.
fn pieces(areas: &[(usize, u64, u64); 2], striped: bool) -> Vec<(usize, u64, u64, u64)> {
    if !striped {
        let [(one, at, len), (two, other, other_len)] = *areas;
        return vec![(one, at, 0, len), (two, other, len, other_len)];
    }
    let turns = 0..areas[0].2 / STRIPE;
    turns
        .flat_map(|turn| {
            (0..2).map(move |area| {
                let (disk, at, _) = areas[area];
                let in_volume = (2 * turn + area as u64) * STRIPE;
                (disk, at + turn * STRIPE, in_volume, STRIPE)
            })
        })
        .collect()
}

fn assembled(disks: &[File], areas: &[(usize, u64, u64); 2], striped: bool) -> Vec<u8> {
    let mut bytes = vec![0; (areas[0].2 + areas[1].2) as usize];
    for (disk, at, offset, len) in pieces(areas, striped) {
        let part = &mut bytes[offset as usize..(offset + len) as usize];
        disks[disk].read_exact_at(part, at).unwrap();
    }
    bytes
}

fn part(disk: &File, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    disk.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn old_data(folder: &Path, name: &str, size: u64) {
    let file = File::create(folder.join(name)).unwrap();
    let old = noise(77, MIB);
    for at in (0..size).step_by(MIB as usize) {
        file.write_all_at(&old, at).unwrap();
    }
}

/// The two disks of a machine, free extents full of old data.
fn make_sources(folder: &Path) {
    old_data(folder, "one", ONE);
    old_data(folder, "two", TWO);
    let path = folder.join("one");
    let script = folder.join("table");
    fs::write(
        &script,
        "label: gpt\nstart=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n\
         start=4096, size=65536, type=lvm\n",
    )
    .unwrap();
    let disks = images(folder, ["one", "two"]);
    disks[0].write_all_at(&vec![0; MIB as usize], 0).unwrap();
    let command = format!(
        "sfdisk -q --wipe never {} < {}",
        path.display(),
        script.display()
    );
    run("sh", &["-c", &command]);
    disks[0]
        .write_all_at(&physical_volume(b'0', PART_LEN), PART)
        .unwrap();
    disks[1]
        .write_all_at(&physical_volume(b'1', TWO), 0)
        .unwrap();
    for (areas, striped, name) in [(ROOT, false, "root"), (FAST, true, "fast")] {
        let bytes = ext4(folder, name, areas[0].2 + areas[1].2);
        for (disk, at, offset, len) in pieces(&areas, striped) {
            let bytes = &bytes[offset as usize..(offset + len) as usize];
            disks[disk].write_all_at(bytes, at).unwrap();
        }
    }
    let swap = folder.join("swap");
    File::create(&swap).unwrap().set_len(MIB).unwrap();
    run("mkswap", &["-q", swap.to_str().unwrap()]);
    disks[0]
        .write_all_at(&fs::read(&swap).unwrap(), SWAP)
        .unwrap();
    disks[0].write_all_at(&noise(9, POOL.1), POOL.0).unwrap();
}

/// What is in the targets is what was in the sources, in every byte that counts.
fn check(folder: &Path) {
    let sources = images(folder, ["one", "two"]);
    let targets = images(folder, ["target-one", "target-two"]);
    for (disk, at, len) in [
        (0, 0, PART),
        (0, PART, MIB),
        (1, 0, MIB),
        (0, POOL.0, POOL.1),
        (0, SWAP, 4096),
    ] {
        let (expected, found) = (part(&sources[disk], at, len), part(&targets[disk], at, len));
        assert!(expected == found, "disk {disk} at byte {at}");
    }
    for (areas, striped) in [(ROOT, false), (FAST, true)] {
        let expected = assembled(&sources, &areas, striped);
        let found = assembled(&targets, &areas, striped);
        let image = folder.join("volume");
        fs::write(&image, &found).unwrap();
        run("e2fsck", &["-f", "-n", image.to_str().unwrap()]);
        let device = Device::open(&image, Access::Read).unwrap();
        let used = survey_volume(&DiskReader(&device), found.len() as u64)
            .used
            .unwrap();
        for range in used {
            let (from, to) = (range.start() as usize, range.end() as usize);
            assert!(expected[from..to] == found[from..to], "{range}");
        }
    }
}

/// Lets LVM's own tools look at the restored physical volumes.
fn check_with_lvm(folder: &Path) {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: `pvck` needs loop devices, and those root");
        return;
    }
    let lens = [("target-one", PART, PART_LEN), ("target-two", 0, TWO)];
    for (name, offset, len) in lens {
        let image = folder.join(name);
        let device = run(
            "losetup",
            &[
                "-f",
                "--show",
                "-o",
                &offset.to_string(),
                "--sizelimit",
                &len.to_string(),
                image.to_str().unwrap(),
            ],
        );
        let device = device.trim();
        let config = format!(
            "devices {{ filter=[\"a|^{device}$|\",\"r|.*|\"] use_devicesfile=0 \
             obtain_device_list_from_udev=0 external_device_info_source=\"none\" }} \
             global {{ locking_dir=\"{}\" }}",
            folder.display()
        );
        let found = std::panic::catch_unwind(|| {
            run(
                "pvck",
                &[
                    "--driverloaded",
                    "n",
                    "--config",
                    &config,
                    "--dump",
                    "metadata_all",
                    device,
                ],
            )
        });
        run("losetup", &["-d", device]);
        let found = found.unwrap();
        assert!(found.contains("seqno 7"), "{found}");
    }
}

fn captured(folder: &Path) -> Bench<ImageMachine> {
    make_sources(folder);
    let disks = vec![disk("one", ONE), disk("two", TWO)];
    let bench = Bench::new(ImageMachine::new(folder), disks);
    let said = capture(&bench.engine(), &point("rp-1"), Purpose::default()).unwrap();
    let said = said.join("\n");
    assert!(said.contains("Logical volume vg/root: "), "{said}");
    assert!(said.contains("vg/pool: every byte of it is kept"), "{said}");
    assert!(said.contains("Found Debian GNU/Linux 12"), "{said}");
    bench
}

fn restored(folder: &Path, bench: &mut Bench<ImageMachine>, more: u64) {
    old_data(folder, "target-one", ONE + more);
    old_data(folder, "target-two", TWO + more);
    let mut targets = [
        disk("target-one", ONE + more),
        disk("target-two", TWO + more),
    ];
    // They are the backup's own disks by their serial numbers.
    targets[0].serial = Some("SERIAL-one".to_owned());
    targets[1].serial = Some("SERIAL-two".to_owned());
    bench.inventory.disks = targets.to_vec();
    restore(&bench.engine(), &point("rp-1"), &Choices::default()).unwrap();
}

#[test]
fn volumes_over_two_disks_come_back_in_every_used_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    let manifests = bench.server.manifests.lock().unwrap();
    let manifest = Manifest::from_json(&manifests[&point("rp-1")]).unwrap();
    drop(manifests);
    let coverage = |name: &str| {
        let mut volumes = manifest.logical_volumes.iter();
        let volume = volumes.find(|volume| volume.name == name).unwrap();
        (volume.coverage.clone(), volume.content.data_bytes)
    };
    assert_eq!(coverage("root").0, Coverage::UsedBlocks);
    assert_eq!(coverage("swap"), (Coverage::UsedBlocks, 4096));
    assert!(matches!(coverage("pool_tdata").0, Coverage::LeftOut { .. }));
    let region = &manifest.disks[1].regions[0];
    assert_eq!(region.coverage, Coverage::UsedBlocks);
    assert!(region.content.data_bytes <= MIB, "{region:?}");

    restored(folder.path(), &mut bench, 0);
    check(folder.path());
    check_with_lvm(folder.path());
}

#[test]
fn larger_disks_keep_the_volumes_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = captured(folder.path());
    restored(folder.path(), &mut bench, 16 * MIB);
    // The table is for the larger disk; everything behind it is the same.
    let one = images(folder.path(), ["one", "target-one"]);
    let first = part(&one[0], 0, MIB);
    one[1].write_all_at(&first, 0).unwrap();
    check(folder.path());
}

#[test]
fn a_group_without_one_of_its_disks_is_kept_whole() {
    let folder = tempfile::tempdir().unwrap();
    make_sources(folder.path());
    let bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("one", ONE)]);
    capture(&bench.engine(), &point("rp-1"), Purpose::default()).unwrap();
    let manifests = bench.server.manifests.lock().unwrap();
    let manifest = Manifest::from_json(&manifests[&point("rp-1")]).unwrap();
    assert!(manifest.logical_volumes.is_empty());
    let mut regions = manifest.disks[0].regions.iter();
    let region = regions.find(|region| region.range.start() == PART).unwrap();
    let Coverage::Whole { reason } = &region.coverage else {
        panic!("{region:?}");
    };
    assert!(reason.contains("volume group `vg` is missing"), "{reason}");
    let content = &region.content;
    assert_eq!(content.data_bytes + content.zero_bytes, PART_LEN);
}
