//! R2: chosen volumes onto partitions that are there, on thousands of made-up disks, judged by rules written anew.
#![allow(clippy::disallowed_methods, reason = "tests make values only")]

use backup::hardware::{Disk, ExistingPartition, FirmwareKind, Inventory, MachineIdentity};
use backup::manifest::{
    Blob, ChunkListRef, Coverage, DiskImage, FORMAT, FileSystemKind, Firmware, Manifest,
    PartitionTable, Region, RegionKind, Volume,
};
use backup::mbr::MbrTable;
use backup::plan::mapping::{TargetPartition, VolumeChoice};
use backup::plan::restore::plan_restore;
use backup::plan::{Choices, DiskPlan, ExtraSpace, ReasonCode, RestorePlan};
use backup::{ByteRange, Digest, SectorSize};
use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

const MIB: u64 = 1 << 20;
const UNIT: u64 = 4096;

/// A volume of the backup: its partition and what it has in use.
#[derive(Debug, Clone)]
struct Source {
    len: u64,
    used: u64,
    kind: Option<FileSystemKind>,
    whole: bool,
}

fn image(number: u32, sources: &[Source]) -> DiskImage {
    let mut at = MIB;
    let mut first_sector = vec![0; 512];
    first_sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let regions: Vec<Region> = (1u32..)
        .zip(sources)
        .map(|(partition, source)| {
            let range = ByteRange::between(at, at + source.len);
            at = range.end();
            let entry = 446 + 16 * (partition as usize - 1);
            first_sector[entry + 4] = 0x83;
            let place = [range.start() / 512, range.len() / 512];
            for (index, value) in place.into_iter().enumerate() {
                let at = entry + 8 + 4 * index;
                first_sector[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
            }
            Region {
                kind: RegionKind::Partition { number: partition },
                range,
                volume: source.kind.map(|file_system| Volume {
                    file_system,
                    label: None,
                    uuid: None,
                    block_size: 4096,
                    size: source.len,
                    used: Some(source.used),
                    sector_size: None,
                }),
                coverage: if source.whole {
                    Coverage::Whole {
                        reason: "dirty".to_owned(),
                    }
                } else {
                    Coverage::UsedBlocks
                },
                was_encrypted: None,
                content: ChunkListRef {
                    digest: Digest::of(b""),
                    chunks: 1,
                    data_bytes: source.used,
                    zero_bytes: 0,
                },
            }
        })
        .collect();
    DiskImage {
        number,
        model: None,
        serial: None,
        wwn: None,
        size: at + MIB,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        table: PartitionTable::Mbr(MbrTable {
            first_sector: Blob(first_sector),
            extended: Vec::new(),
        }),
        regions,
    }
}

fn manifest(disks: Vec<DiskImage>) -> Manifest {
    let manifest = Manifest {
        format: FORMAT,
        id: "2026-11-20-1".to_owned().try_into().unwrap(),
        kind: Default::default(),
        image: None,
        hardware: None,
        captured_at: 1_795_000_000,
        agent_version: "0.1.0".to_owned(),
        machine: MachineIdentity::default(),
        architecture: "x86_64".to_owned(),
        firmware: Firmware {
            // Of another kind than the machine: for a volume that does not matter.
            kind: FirmwareKind::Bios,
            boot_entries: Vec::new(),
            boot_order: Vec::new(),
        },
        system: None,
        disks,
        logical_volumes: Vec::new(),
        warnings: Vec::new(),
    };
    manifest.check().unwrap();
    manifest
}

fn machine(partitions: &[(u64, u64)], sector: SectorSize) -> Inventory {
    let mut at = MIB;
    let partitions: Vec<_> = (1u32..)
        .zip(partitions)
        .map(|(number, (gap, len))| {
            let range = ByteRange::between(at + gap, at + gap + len);
            at = range.end();
            ExistingPartition { number, range }
        })
        .collect();
    let disk = Disk {
        name: "sda".to_owned(),
        model: None,
        serial: Some("A:B".to_owned()),
        wwn: None,
        size: at + MIB,
        logical_sector: sector,
        physical_sector: 4096,
        removable: false,
        read_only: false,
        partitions,
    };
    Inventory {
        identity: MachineIdentity::default(),
        firmware: FirmwareKind::Uefi,
        architecture: "x86_64".to_owned(),
        disks: vec![disk],
        nics: Vec::new(),
        memory: 4 << 30,
        without_driver: Vec::new(),
    }
}

fn choose(partition: u32, target: u32) -> VolumeChoice {
    VolumeChoice {
        disk: 0,
        partition,
        target: Some(TargetPartition {
            disk: "A:B".to_owned(),
            partition: target,
        }),
    }
}

/// Why a volume does not go to a partition of `to` bytes, by a rule of its own.
fn reason(source: &Source, to: u64) -> Option<ReasonCode> {
    use FileSystemKind::{Btrfs, Ext4, Ntfs};
    if to >= source.len {
        return None;
    }
    if source.whole || !matches!(source.kind, Some(Ext4 | Ntfs | Btrfs)) {
        return Some(ReasonCode::CannotShrink);
    }
    let free = match source.kind {
        Some(Btrfs) => source.used / 16 * 2 + 272 * MIB,
        _ => source.used / 16 + 16 * MIB,
    };
    (source.used + free > to).then_some(ReasonCode::TooSmall)
}

fn judge(plan: &DiskPlan, machine: &Inventory) -> Result<(), String> {
    let ensure = |holds: bool, what: &str| {
        if holds {
            Ok(())
        } else {
            Err(format!("{what}: {plan:#?}"))
        }
    };
    ensure(
        plan.keeps_table && plan.commit.is_empty(),
        "no table is written",
    )?;
    let chosen: Vec<ByteRange> = plan.partitions.iter().map(|one| one.range).collect();
    let existing = &machine.disks[0].partitions;
    for partition in &plan.partitions {
        let there = existing.iter().find(|one| one.number == partition.number);
        ensure(
            there.is_some_and(|one| one.range == partition.range),
            "it is there",
        )?;
        ensure(
            partition.guid.is_none() && !partition.esp,
            "no boot entry of it is touched",
        )?;
    }
    // Everything that is written lies in the chosen partitions, and each is written once.
    let written = plan.copies.iter().map(|copy| copy.destination);
    let mut written: Vec<_> = written.collect();
    written.sort();
    ensure(
        written.windows(2).all(|pair| !pair[0].overlaps(pair[1])),
        "once",
    )?;
    let all = written.iter().chain(&plan.invalidate);
    let lasts = plan.copies.iter().flat_map(|copy| &copy.last);
    for range in all.chain(lasts) {
        ensure(
            chosen.iter().any(|partition| partition.contains(*range)),
            "within a chosen partition",
        )?;
    }
    // What is there now is no longer recognised.
    for partition in &chosen {
        let front = ByteRange::between(partition.start(), partition.start() + UNIT);
        let end = ByteRange::between(partition.end() - UNIT, partition.end());
        for sign in [front, end] {
            let is_gone = plan.invalidate.iter().any(|range| range.contains(sign));
            ensure(is_gone, "its signs are gone")?;
        }
    }
    Ok(())
}

fn sources() -> impl Strategy<Value = Vec<Source>> {
    use FileSystemKind::{Btrfs, Ext4, Fat32, Ntfs, Xfs};
    let kind = prop_oneof![
        3 => Just(Some(Ext4)),
        2 => Just(Some(Ntfs)),
        1 => Just(Some(Btrfs)),
        1 => Just(Some(Xfs)),
        1 => Just(Some(Fat32)),
        1 => Just(None),
    ];
    let source = (1u64..200_000, 0u64..100, kind, prop::bool::weighted(0.2));
    let source = source.prop_map(|(len, used, kind, whole)| Source {
        len: len * UNIT,
        used: len * UNIT / 100 * used,
        kind,
        whole,
    });
    prop::collection::vec(source, 1..5)
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2000))]

    #[test]
    fn volumes_go_where_they_fit_and_nothing_else_is_written(
        sources in sources(),
        partitions in prop::collection::vec((0u64..500, 1u64..250_000), 1..5),
        targets in prop::collection::vec((1u32..6, 1u32..6), 1..4),
        grow in any::<bool>(),
    ) {
        let partitions: Vec<_> = partitions
            .into_iter()
            .map(|(gap, len)| (gap * UNIT, len * UNIT))
            .collect();
        let machine = machine(&partitions, SectorSize::S512);
        let manifest = manifest(vec![image(0, &sources)]);
        let choices = Choices {
            volumes: targets.iter().map(|(from, to)| choose(*from, *to)).collect(),
            extra_space: if grow { ExtraSpace::Last } else { ExtraSpace::None },
            ..Choices::default()
        };
        // One reason for each choice, in their order; one that is refused takes no place.
        let (mut expected, mut taken) = (Vec::new(), Vec::new());
        for (from, to) in &targets {
            let source = sources.get(*from as usize - 1);
            let partition = partitions.get(*to as usize - 1);
            let code = match (source, partition) {
                (Some(source), Some((_, len))) => reason(source, *len).or_else(|| {
                    let twice = taken.iter().any(|(a, b)| a == from || b == to);
                    twice.then_some(ReasonCode::VolumeNotFound)
                }),
                _ => Some(ReasonCode::VolumeNotFound),
            };
            match code {
                Some(code) => expected.push(code),
                None => taken.push((*from, *to)),
            }
        }
        match plan_restore(&manifest, &machine, &choices) {
            Err(refusals) => {
                let found: Vec<_> = refusals.iter().map(|refusal| refusal.code).collect();
                prop_assert_eq!(found, expected);
                prop_assert!(refusals.iter().all(|refusal| refusal.text.len() > 30));
            }
            Ok(plan) => {
                prop_assert!(expected.is_empty(), "{:?}", expected);
                prop_assert_eq!(plan.disks.len(), 1);
                let disk = &plan.disks[0];
                judge(disk, &machine).map_err(proptest::test_runner::TestCaseError::fail)?;
                for (from, to) in &taken {
                    let (source, len) = (&sources[*from as usize - 1], partitions[*to as usize - 1].1);
                    let copy = disk.copies.iter().find(|copy| copy.region == from - 1).unwrap();
                    prop_assert_eq!(copy.destination, machine.disks[0].partitions[*to as usize - 1].range);
                    let grown = disk.grow.iter().any(|one| one.partition == *to && one.to == len);
                    let can = !source.whole
                        && source.kind.is_some_and(|kind| kind != FileSystemKind::Fat32);
                    prop_assert_eq!(grown, grow && can && len > source.len);
                    let shrunk = disk.shrink.iter().any(|one| one.partition == *to && one.to == len);
                    prop_assert_eq!(shrunk, len < source.len);
                }
                let text = serde_json::to_string(&plan).unwrap();
                prop_assert_eq!(&serde_json::from_str::<RestorePlan>(&text).unwrap(), &plan);
                let picture = plan.picture(&manifest);
                prop_assert!(picture.contains("stays as it is") && !picture.contains("Everything"));
            }
        }
    }

    #[test]
    fn text_of_a_choice_never_panics_and_means_one_thing(text in "[0-9a-z:=]{0,12}") {
        if let Ok(choice) = text.parse::<VolumeChoice>() {
            let target = choice.target.map_or_else(
                || "none".to_owned(),
                |target| format!("{}:{}", target.disk, target.partition),
            );
            let again = format!("{}:{}={target}", choice.disk, choice.partition);
            let zeros = |text: &str| text.replace('0', "");
            prop_assert_eq!(zeros(&again), zeros(&text));
        }
    }
}

fn ext4(len: u64) -> Source {
    Source {
        len,
        used: MIB,
        kind: Some(FileSystemKind::Ext4),
        whole: false,
    }
}

fn codes(manifest: &Manifest, machine: &Inventory, volumes: Vec<VolumeChoice>) -> Vec<ReasonCode> {
    let choices = Choices {
        volumes,
        ..Choices::default()
    };
    let refusals = plan_restore(manifest, machine, &choices).unwrap_err();
    refusals.iter().map(|refusal| refusal.code).collect()
}

#[test]
fn text_is_a_volume_and_its_place() {
    assert_eq!(
        "0:2=A:B:3".parse(),
        Ok(choose(2, 3)).map(|choice| VolumeChoice {
            target: Some(TargetPartition {
                disk: "A:B".to_owned(),
                partition: 3
            }),
            ..choice
        })
    );
    let none: VolumeChoice = "1:2=none".parse().unwrap();
    assert_eq!((none.disk, none.partition, none.target), (1, 2, None));
    for text in [
        "",
        "2=sda:3",
        "0:2",
        "0:2=",
        "0:2=sda",
        "0:2=:3",
        "a:2=sda:3",
        "0:2=sda:x",
    ] {
        assert!(text.parse::<VolumeChoice>().is_err(), "{text}");
    }
}

#[test]
fn what_cannot_go_there_is_refused_by_code() {
    use ReasonCode::{
        DiskNotFound, ReadOnly, SectorSize as Sectors, VolumeNotFound, VolumeUnsupported,
    };
    let sources = [
        ext4(40 * MIB),
        Source {
            kind: Some(FileSystemKind::Lvm),
            ..ext4(40 * MIB)
        },
    ];
    let point = manifest(vec![image(0, &sources), image(1, &sources)]);
    let there = machine(&[(0, 40 * MIB), (0, 40 * MIB)], SectorSize::S512);
    assert_eq!(
        codes(&point, &there, vec![choose(2, 1)]),
        [VolumeUnsupported]
    );
    let elsewhere = |disk: &str| VolumeChoice {
        target: Some(TargetPartition {
            disk: disk.to_owned(),
            partition: 1,
        }),
        ..choose(1, 1)
    };
    assert_eq!(
        codes(&point, &there, vec![elsewhere("sdb")]),
        [DiskNotFound]
    );
    // Volumes of two disks of the backup to one disk.
    let other = VolumeChoice {
        disk: 1,
        ..choose(1, 2)
    };
    assert_eq!(
        codes(&point, &there, vec![choose(1, 1), other]),
        [VolumeUnsupported]
    );
    let mut locked = there.clone();
    locked.disks[0].read_only = true;
    assert_eq!(codes(&point, &locked, vec![choose(1, 1)]), [ReadOnly]);
    // An extended partition lies over its logical ones.
    let mut extended = there.clone();
    extended.disks[0].partitions[0].range = ByteRange::between(MIB, 81 * MIB);
    assert_eq!(
        codes(&point, &extended, vec![choose(1, 2)]),
        [VolumeUnsupported]
    );
    let ntfs = [Source {
        kind: Some(FileSystemKind::Ntfs),
        ..ext4(40 * MIB)
    }];
    let ntfs = manifest(vec![image(0, &ntfs)]);
    let large = machine(&[(0, 40 * MIB)], SectorSize::S4096);
    assert_eq!(codes(&ntfs, &large, vec![choose(1, 1)]), [Sectors]);
    let mut left_out = point.clone();
    left_out.disks[0].regions[0].coverage = Coverage::LeftOut {
        reason: "it failed".to_owned(),
    };
    assert_eq!(
        codes(&left_out, &there, vec![choose(1, 1)]),
        [VolumeNotFound]
    );
    let none = VolumeChoice {
        target: None,
        ..choose(7, 1)
    };
    assert_eq!(
        codes(&point, &there, vec![none, choose(1, 1)]),
        [VolumeNotFound]
    );
}

#[test]
fn a_volume_that_is_left_out_of_a_whole_disk_leaves_an_empty_partition() {
    let point = manifest(vec![image(0, &[ext4(40 * MIB), ext4(40 * MIB)])]);
    let mut there = machine(&[], SectorSize::S512);
    there.firmware = FirmwareKind::Bios;
    there.disks[0].size = point.disks[0].size + 64 * MIB;
    let choices = Choices {
        volumes: vec![VolumeChoice {
            target: None,
            ..choose(2, 1)
        }],
        ..Choices::default()
    };
    let plan = plan_restore(&point, &there, &choices).unwrap();
    let disk = &plan.disks[0];
    assert!(!disk.keeps_table && !disk.commit.is_empty());
    assert_eq!(disk.copies.len(), 1);
    assert!(disk.grow.is_empty());
    assert_eq!(disk.partitions.len(), 2);
    let front = ByteRange::between(41 * MIB, 42 * MIB);
    assert!(disk.invalidate.contains(&front), "{:?}", disk.invalidate);
    assert!(
        plan.notes.iter().any(|note| note.contains("left empty")),
        "{:?}",
        plan.notes
    );
    let missing = VolumeChoice {
        target: None,
        ..choose(3, 1)
    };
    assert_eq!(
        codes(&point, &there, vec![missing]),
        [ReasonCode::VolumeNotFound]
    );
}
