//! C10: members of RAIDs, dynamic disks, Storage Spaces, ZFS pools and bcache are recognised. Their
//! superblocks are written here after the formats' own descriptions; `mdadm` and `blkid` say whether
//! they are what they should be.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::path::Path;

use backup::SectorSize;
use backup::hardware::Disk;
use backup::member::{Found, Member, find};
use backup::plan::ReasonCode;
use backup::plan::members::refuse;
use images::{Image, Memory, output, run};
use proptest::prelude::{any, prop, proptest};

const SIZE: usize = 16 << 20;

fn found(disk: &[u8]) -> Vec<Found> {
    find(&Memory(disk), disk.len() as u64, SectorSize::S512).unwrap()
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

/// The sum of 32-bit words, carried round, as md computes its checksums.
fn md_sum(bytes: &[u8]) -> u32 {
    let sum: u64 = bytes
        .chunks_exact(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
        .sum();
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// `struct mdp_superblock_1` of a mirror of two, for a member of `len` bytes, and where it goes.
fn md_new(minor: u8, len: u64) -> (usize, Vec<u8>) {
    let place = match minor {
        0 => (len - 8192) / 4096 * 4096,
        1 => 0,
        _ => 4096,
    };
    let mut superblock = vec![0; 256 + 4];
    put(&mut superblock, 0, &0xa92b_4efcu32.to_le_bytes());
    put(&mut superblock, 4, &1u32.to_le_bytes());
    put(&mut superblock, 16, &[7; 16]);
    put(&mut superblock, 32, b"host:root");
    put(&mut superblock, 72, &1i32.to_le_bytes());
    put(&mut superblock, 80, &8192u64.to_le_bytes());
    put(&mut superblock, 92, &2u32.to_le_bytes());
    let data_offset: u64 = if minor == 0 { 0 } else { 2048 };
    put(&mut superblock, 128, &data_offset.to_le_bytes());
    put(&mut superblock, 136, &8192u64.to_le_bytes());
    put(&mut superblock, 144, &(place / 512).to_le_bytes());
    put(&mut superblock, 200, &1u64.to_le_bytes());
    put(&mut superblock, 208, &u64::MAX.to_le_bytes());
    put(&mut superblock, 220, &2u32.to_le_bytes());
    put(&mut superblock, 258, &1u16.to_le_bytes());
    let sum = md_sum(&superblock);
    put(&mut superblock, 216, &sum.to_le_bytes());
    (place as usize, superblock)
}

/// `mdp_super_t` of a mirror of two.
fn md_old(len: u64) -> (usize, Vec<u8>) {
    let mut words = vec![0u32; 1024];
    words[0] = 0xa92b_4efc;
    words[2] = 90;
    words[5] = 77;
    words[7] = 1;
    words[8] = 4096;
    words[9] = 2;
    words[10] = 2;
    words[32] = 1;
    words[33] = 1;
    words[34] = 2;
    words[35] = 2;
    // This disk's descriptor, the last of the superblock: number, major, minor, place, state.
    words[992..997].copy_from_slice(&[0, 8, 1, 0, 6]);
    let bytes =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    words[38] = md_sum(&bytes(&words));
    ((len / 65536 * 65536 - 65536) as usize, bytes(&words))
}

#[test]
fn every_kind_of_md_superblock_is_the_one_that_mdadm_sees() {
    let folder = images::folder();
    let path = folder.path().join("member");
    // An odd length, so that places from the end are rounded.
    let len = SIZE as u64 + 3 * 512;
    for (metadata, (place, superblock), name) in [
        ("1.0", md_new(0, len), Some("host:root")),
        ("1.1", md_new(1, len), Some("host:root")),
        ("1.2", md_new(2, len), Some("host:root")),
        ("0.90", md_old(len), None),
    ] {
        let mut bytes = vec![0; len as usize];
        put(&mut bytes, place, &superblock);
        std::fs::write(&path, &bytes).unwrap();
        let text = path.to_str().unwrap();
        let examined = run("mdadm", "mdadm", &["--examine", text]);
        assert!(examined.contains("- correct"), "{metadata}: {examined}");
        assert!(examined.contains("Raid Level : raid1"), "{examined}");
        let version = examined
            .lines()
            .find(|line| line.contains("Version"))
            .unwrap();
        assert!(version.contains(metadata), "{version}");
        let expected = Member::LinuxRaid {
            metadata: match metadata {
                "1.0" => "1.0",
                "1.1" => "1.1",
                "1.2" => "1.2",
                _ => "0.90",
            },
            level: "1".to_owned(),
            name: name.map(str::to_owned),
        };
        let disk = Image::open(&path);
        let found = find(&disk, len, SectorSize::S512).unwrap();
        assert_eq!(
            found,
            [Found {
                partition: None,
                member: expected
            }]
        );
    }
}

#[test]
fn an_old_superblock_of_a_machine_with_the_other_byte_order_counts_too() {
    let (place, superblock) = md_old(SIZE as u64);
    let mut bytes = vec![0; SIZE];
    put(&mut bytes, place, &superblock);
    bytes[place..place + 4096]
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .for_each(|word| word.reverse());
    let found = found(&bytes);
    assert!(matches!(
        &found[..],
        [Found {
            member: Member::LinuxRaid {
                metadata: "0.90",
                ..
            },
            ..
        }]
    ));
}

#[test]
fn a_superblock_that_says_it_belongs_elsewhere_is_none() {
    let (_, superblock) = md_new(0, SIZE as u64);
    let mut bytes = vec![0; SIZE];
    put(&mut bytes, 4096, &superblock);
    assert_eq!(found(&bytes), []);
}

/// A disk with a table that `sfdisk` makes.
fn partitioned(path: &Path, script: &str) -> Vec<u8> {
    images::blank(path, SIZE as u64);
    let file = path.with_extension("table");
    std::fs::write(&file, script).unwrap();
    let command = format!("sfdisk -q {} < {}", path.display(), file.display());
    run("fdisk", "sh", &["-c", &command]);
    std::fs::read(path).unwrap()
}

#[test]
fn a_member_in_a_partition_is_found_there_with_each_kind_of_table() {
    let folder = images::folder();
    for label in ["gpt", "dos"] {
        let path = folder.path().join(label);
        let script =
            format!("label: {label}\nstart=2048, size=4096\nstart=8192, size=16384, type=raid\n");
        let mut bytes = partitioned(&path, &script);
        let (place, superblock) = md_new(0, 16384 * 512);
        put(&mut bytes, 8192 * 512 + place, &superblock);
        let found = found(&bytes);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].partition, Some(2));
        assert!(matches!(
            found[0].member,
            Member::LinuxRaid {
                metadata: "1.0",
                ..
            }
        ));
    }
}

#[test]
fn dynamic_disks_and_storage_spaces_are_known_by_the_types_in_the_table() {
    let folder = images::folder();
    let path = folder.path().join("disk");
    let gpt = |guid: &str| {
        let script = format!("label: gpt\nstart=2048, size=2048, type={guid}\n");
        found(&partitioned(&path, &script))
    };
    let first = |member| {
        vec![Found {
            partition: Some(1),
            member,
        }]
    };
    assert_eq!(
        gpt("5808C8AA-7E8F-42E0-85D2-E1E90434CFB3"),
        first(Member::DynamicDisk)
    );
    assert_eq!(
        gpt("AF9B60A0-1431-4F62-BC68-3311714A69AD"),
        first(Member::DynamicDisk)
    );
    assert_eq!(
        gpt("E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D"),
        first(Member::StorageSpaces)
    );
    assert_eq!(gpt("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"), []);
    let dos = partitioned(&path, "label: dos\nstart=63, size=20000, type=42\n");
    let whole = [Found {
        partition: None,
        member: Member::DynamicDisk,
    }];
    assert_eq!(found(&dos), whole);
    // What a conversion left behind is no dynamic disk, a lost table is one.
    let mut basic = partitioned(&path, "label: dos\nstart=63, size=20000, type=7\n");
    put(&mut basic, 6 * 512, b"PRIVHEAD");
    assert_eq!(found(&basic), []);
    basic[446..512].fill(0);
    assert_eq!(found(&basic), whole);
}

/// What `blkid` takes the image for.
fn blkid(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    let output = output(
        "util-linux",
        "blkid",
        &["-p", "-o", "value", "-s", "TYPE", path.to_str().unwrap()],
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn firmware_raids_zfs_and_bcache_are_recognised_where_blkid_does() {
    let folder = images::folder();
    let path = folder.path().join("member");
    let mut samples = Vec::new();

    let mut intel = vec![0; SIZE];
    put(&mut intel, SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00");
    samples.push((intel, "isw_raid_member", "Intel"));

    let mut ddf = vec![0; SIZE];
    let mut header = vec![0; 512];
    put(&mut header, 0, &0xde11_de11u32.to_be_bytes());
    put(&mut header, 8, b"Linux-MD");
    put(&mut header, 32, b"01.02.00");
    header[4..8].fill(0xff);
    // The CRC of zlib, bit by bit.
    let crc = !header.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    });
    put(&mut header, 4, &crc.to_be_bytes());
    put(&mut ddf, SIZE - 512, &header);
    samples.push((ddf, "ddf_raid_member", "DDF"));

    let mut lsi = vec![0; SIZE];
    put(&mut lsi, SIZE - 512, b"$XIDE$");
    samples.push((lsi, "lsi_mega_raid_member", "LSI"));

    for count in [63, 3087] {
        let mut promise = vec![0; SIZE];
        put(
            &mut promise,
            SIZE - count * 512,
            b"Promise Technology, Inc.",
        );
        samples.push((promise, "promise_fasttrack_raid_member", "Promise"));
    }

    let mut nvidia = vec![0; SIZE];
    put(&mut nvidia, SIZE - 1024, b"NVIDIA  ");
    put(&mut nvidia, SIZE - 1024 + 8, &30u32.to_le_bytes());
    // The words add up to zero with the checksum counted once for itself.
    let words: u32 = nvidia[SIZE - 1024..SIZE - 1024 + 120]
        .chunks_exact(4)
        .fold(0, |sum, word| {
            sum.wrapping_add(u32::from_le_bytes(word.try_into().unwrap()))
        });
    put(
        &mut nvidia,
        SIZE - 1024 + 12,
        &words.wrapping_neg().to_le_bytes(),
    );
    samples.push((nvidia, "nvidia_raid_member", "NVIDIA"));

    // The first label and the last, of each byte order.
    // `blkid` looks for ZFS on 64 MiB and more.
    const POOL: usize = 64 << 20;
    for (label, big) in [(0, false), (POOL - (256 << 10), true)] {
        let mut zfs = vec![0; POOL];
        put(&mut zfs, label + (16 << 10), &[1, u8::from(!big), 0, 0]);
        put(
            &mut zfs,
            label + (16 << 10) + 60,
            b"\0\0\0\x09pool_guid\0\0\0",
        );
        for number in 0..8 {
            let magic = 0x00ba_b10cu64;
            let bytes = if big {
                magic.to_be_bytes()
            } else {
                magic.to_le_bytes()
            };
            put(&mut zfs, label + (128 << 10) + number * 1024, &bytes);
        }
        samples.push((zfs, "zfs_member", "ZFS"));
    }

    let mut bcache = vec![0; SIZE];
    put(&mut bcache, 4096 + 8, &8u64.to_le_bytes());
    put(
        &mut bcache,
        4096 + 24,
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
            0x6d, 0x81,
        ],
    );
    samples.push((bcache, "bcache", "bcache"));

    for (bytes, kind, name) in samples {
        assert_eq!(blkid(&path, &bytes), kind, "the image for {name}");
        let found = found(&bytes);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(found[0].partition, None);
        let said = found[0].member.to_string();
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn the_refusal_names_the_partition_what_it_is_and_what_to_do() {
    let disk = Disk {
        name: "sda".to_owned(),
        model: Some("Disk".to_owned()),
        serial: Some("S1".to_owned()),
        wwn: None,
        size: SIZE as u64,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    };
    assert_eq!(refuse(&disk, &[]), None);
    let member = Member::LinuxRaid {
        metadata: "1.2",
        level: "1".to_owned(),
        name: Some("host:0".to_owned()),
    };
    let refusal = refuse(
        &disk,
        &[Found {
            partition: Some(2),
            member,
        }],
    )
    .unwrap();
    assert_eq!(refusal.code, ReasonCode::MemberDisk);
    for part in [
        "partition 2 of sda \"Disk\" serial S1",
        "`host:0`",
        "metadata 1.2",
        "mdadm --zero-superblock",
    ] {
        assert!(refusal.text.contains(part), "{}", refusal.text);
    }
}

#[test]
fn ordinary_disks_are_members_of_nothing() {
    let folder = images::folder();
    let path = folder.path().join("disk");
    for label in ["gpt", "dos"] {
        let script = format!("label: {label}\nstart=2048, size=20000\n");
        let mut bytes = partitioned(&path, &script);
        let file_system = folder.path().join("ext4");
        images::blank(&file_system, 20000 * 512);
        run(
            "e2fsprogs",
            "mke2fs",
            &["-q", "-F", "-t", "ext4", file_system.to_str().unwrap()],
        );
        put(
            &mut bytes,
            2048 * 512,
            &std::fs::read(&file_system).unwrap(),
        );
        assert_eq!(found(&bytes), []);
    }
    for bytes in [
        Vec::new(),
        vec![0; 512],
        vec![0; 5000],
        images::noise(3, SIZE),
    ] {
        assert_eq!(found(&bytes), []);
    }
    let fat = folder.path().join("fat");
    images::blank(&fat, SIZE as u64);
    run("dosfstools", "mkfs.fat", &[fat.to_str().unwrap()]);
    assert_eq!(found(&std::fs::read(&fat).unwrap()), []);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        len in 0usize..300_000,
        places in prop::collection::vec((any::<u32>(), any::<u64>()), 0..60),
        signed in any::<bool>(),
    ) {
        let mut bytes = vec![0u8; len];
        for (place, value) in places {
            let at = place as usize % len.max(1);
            for (to, from) in bytes[at.min(len)..].iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        }
        if signed && len >= 512 {
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            bytes[446] &= 0x80;
        }
        found(&bytes);
    }
}
