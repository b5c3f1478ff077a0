//! C1, R1: logical volumes in manifests and plans: every area has one place on its target, and a manifest
//! that contradicts itself is refused.

use backup::hardware::{Disk, FirmwareKind, Inventory, MachineIdentity};
use backup::lvm::{Area, Segment};
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, FORMAT, FileSystemKind, Firmware, LogicalVolume, Manifest,
    PartitionTable, Region, RegionKind, Volume,
};
use backup::plan::restore::plan_restore;
use backup::plan::{Choices, ReasonCode};
use backup::{ByteRange, Digest, SectorSize};
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

const MIB: u64 = 1 << 20;
/// Extents of 1 MiB on each of two disks.
const EXTENTS: u64 = 40;
const SIZE: u64 = (EXTENTS + 1) * MIB;

fn disk(name: &str, size: u64) -> Disk {
    Disk {
        name: name.to_owned(),
        model: None,
        serial: Some(format!("SERIAL-{name}")),
        wwn: None,
        size,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    }
}

fn content(data_bytes: u64) -> ChunkListRef {
    ChunkListRef {
        digest: Digest::of(&data_bytes.to_le_bytes()),
        chunks: 1,
        data_bytes,
        zero_bytes: 0,
    }
}

/// A disk that is one physical volume.
fn image(number: u32) -> DiskImage {
    let name = ["sda", "sdb"][number as usize];
    DiskImage {
        number,
        model: None,
        serial: Some(format!("SERIAL-{name}")),
        wwn: None,
        size: SIZE,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        table: PartitionTable::None,
        regions: vec![Region {
            kind: RegionKind::WholeDisk,
            range: ByteRange::between(0, SIZE),
            volume: Some(volume(FileSystemKind::Lvm, SIZE)),
            coverage: Coverage::UsedBlocks,
            was_encrypted: None,
            content: content(MIB),
        }],
    }
}

fn volume(file_system: FileSystemKind, size: u64) -> Volume {
    Volume {
        file_system,
        label: None,
        uuid: None,
        block_size: 4096,
        size,
        used: None,
        sector_size: None,
    }
}

fn logical(number: usize, segments: Vec<Segment>) -> LogicalVolume {
    let size = segments.iter().filter_map(Segment::size).sum();
    LogicalVolume {
        name: format!("lv{number}"),
        group: "vg".to_owned(),
        uuid: String::new(),
        segments,
        volume: Some(volume(FileSystemKind::Btrfs, size)),
        coverage: Coverage::UsedBlocks,
        content: content(4096),
    }
}

fn manifest(logical_volumes: Vec<LogicalVolume>) -> Manifest {
    Manifest {
        format: FORMAT,
        kind: backup::manifest::RestorePointKind::Backup,
        image: None,
        hardware: None,
        id: "rp-1".to_owned().try_into().unwrap(),
        captured_at: 0,
        agent_version: "0.1.0".to_owned(),
        machine: MachineIdentity::default(),
        architecture: "x86_64".to_owned(),
        firmware: Firmware {
            kind: FirmwareKind::Bios,
            boot_entries: Vec::new(),
            boot_order: Vec::new(),
        },
        system: None,
        disks: vec![image(0), image(1)],
        logical_volumes,
        warnings: Vec::new(),
    }
}

fn machine(size: u64) -> Inventory {
    Inventory {
        identity: MachineIdentity::default(),
        firmware: FirmwareKind::Bios,
        architecture: "x86_64".to_owned(),
        disks: vec![disk("sda", size), disk("sdb", size)],
        nics: Vec::new(),
        memory: 1 << 30,
        without_driver: Vec::new(),
    }
}

fn area(disk: u32, extent: u64, count: u64) -> Area {
    let start = (1 + extent) * MIB;
    Area {
        disk,
        range: ByteRange::between(start, start + count * MIB),
    }
}

/// Volumes of linear and striped segments, whose extents are given out in a random order.
fn volumes() -> impl Strategy<Value = Vec<LogicalVolume>> {
    let shapes = prop::collection::vec(
        prop::collection::vec((1u64..4, 0u32..3, 0u64..2), 1..4),
        0..5,
    );
    shapes.prop_map(|shapes| {
        let mut free = [0, 0];
        let mut take = |disk: usize, count: u64, gap: u64| {
            let extent = free[disk] + gap;
            free[disk] = extent + count;
            area(disk as u32, extent, count)
        };
        let segment = |(count, place, gap): (u64, u32, u64)| match place {
            2 => Segment {
                stripe: 64 << 10,
                areas: vec![take(0, count, gap), take(1, count, gap)],
            },
            disk => Segment {
                stripe: count * MIB,
                areas: vec![take(disk as usize, count, gap)],
            },
        };
        let mut segment = segment;
        (0..)
            .zip(shapes)
            .map(|(number, shape)| logical(number, shape.into_iter().map(&mut segment).collect()))
            .filter(|volume| {
                let areas = volume.segments.iter().flat_map(|segment| &segment.areas);
                areas.into_iter().all(|area| area.range.end() <= SIZE)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn every_area_keeps_its_place_and_heads_are_written_last(
        volumes in volumes(), more in 0u64..3,
    ) {
        let manifest = manifest(volumes);
        let json = serde_json::to_vec(&manifest).unwrap();
        prop_assert_eq!(&Manifest::from_json(&json).unwrap(), &manifest);
        let target = machine(SIZE + more * 16 * MIB);
        let plan = plan_restore(&manifest, &target, &Choices::default()).unwrap();
        let mut planned = 0;
        for (number, disk) in (0u32..).zip(&plan.disks) {
            for copy in &disk.areas {
                let volume = &manifest.logical_volumes[copy.volume as usize];
                let area = volume.segments[copy.segment as usize].areas[copy.area as usize];
                prop_assert_eq!((area.disk, area.range), (number, copy.destination));
                for last in &copy.last {
                    prop_assert!(copy.destination.contains(*last));
                }
                planned += 1;
            }
        }
        let areas = manifest.logical_volumes.iter().flat_map(|volume| &volume.segments);
        prop_assert_eq!(planned, areas.map(|segment| segment.areas.len()).sum::<usize>());
        // Byte 64 KiB of each volume, where Btrfs has its superblock: in the second stripe, or not.
        for (number, volume) in (0u32..).zip(&manifest.logical_volumes) {
            let first = &volume.segments[0];
            let (area, offset) = if first.areas.len() == 2 { (1, 0) } else { (0, 64 << 10) };
            let place = first.areas[area];
            let head = ByteRange::between(
                place.range.start() + offset,
                place.range.start() + offset + 4096,
            );
            let copies = plan.disks.iter().flat_map(|disk| &disk.areas);
            let last: Vec<_> = copies
                .filter(|copy| copy.volume == number)
                .flat_map(|copy| copy.last.clone())
                .collect();
            prop_assert_eq!(last, [head]);
        }
    }
}

#[test]
fn manifests_whose_volumes_contradict_them_are_refused() {
    let good = || {
        let linear = Segment {
            stripe: 4 * MIB,
            areas: vec![area(0, 0, 4)],
        };
        let striped = Segment {
            stripe: MIB,
            areas: vec![area(0, 8, 2), area(1, 8, 2)],
        };
        manifest(vec![logical(0, vec![linear]), logical(1, vec![striped])])
    };
    good().check().unwrap();
    type Damage = (&'static str, fn(&mut Manifest));
    let damages: [Damage; 9] = [
        ("overlaps", |m| {
            m.logical_volumes[1].segments[0].areas[0] = area(0, 3, 2)
        }),
        ("in no region", |m| {
            m.logical_volumes[0].segments[0].areas[0] = area(0, 38, 4)
        }),
        ("in no region", |m| {
            m.logical_volumes[0].segments[0].areas[0].disk = 2
        }),
        ("not possible", |m| {
            m.logical_volumes[1].segments[0].areas[1] = area(1, 8, 3)
        }),
        ("not possible", |m| {
            m.logical_volumes[0].segments[0].stripe = 0
        }),
        ("not possible", |m| {
            let range = ByteRange::between(MIB + 7, 5 * MIB + 7);
            m.logical_volumes[0].segments[0].areas[0].range = range;
        }),
        ("not possible", |m| {
            let reason = "LVM is saved whole".to_owned();
            m.disks[0].regions[0].coverage = Coverage::Whole { reason };
        }),
        ("more content", |m| {
            m.logical_volumes[0].content.data_bytes = 5 * MIB
        }),
        ("larger", |m| {
            m.logical_volumes[0].volume = Some(volume(FileSystemKind::Ext4, 5 * MIB));
        }),
    ];
    for (expected, damage) in damages {
        let mut manifest = good();
        damage(&mut manifest);
        let error = manifest.check().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let refusals = plan_restore(&manifest, &machine(SIZE), &Choices::default()).unwrap_err();
        assert_eq!(refusals[0].code, ReasonCode::TableUnsupported);
    }
}

#[test]
fn a_manifest_from_before_logical_volumes_is_read() {
    let json = serde_json::to_string(&manifest(Vec::new())).unwrap();
    assert!(!json.contains("logical_volumes"));
    let read = Manifest::from_json(json.as_bytes()).unwrap();
    assert!(read.logical_volumes.is_empty());
}

#[test]
fn a_manifest_with_logical_volumes_is_one_that_older_readers_refuse() {
    let one = vec![logical(
        0,
        vec![Segment {
            stripe: MIB,
            areas: vec![area(0, 0, 1)],
        }],
    )];
    assert_eq!(Manifest::format_for(&[]), FORMAT);
    assert!(Manifest::format_for(&one) > FORMAT);
    let mut with = manifest(one);
    // What was written before there was a second version, what is written, and what nobody knows yet.
    for (format, read) in [(1, true), (2, true), (3, false), (0, false)] {
        with.format = format;
        let json = serde_json::to_vec(&with).unwrap();
        assert_eq!(Manifest::from_json(&json).is_ok(), read, "{format}");
    }
}
