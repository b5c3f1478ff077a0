//! R1: the restore planner on thousands of random layouts and targets, and on those that people
//! have. Plans are judged here by rules written anew, and their tables by the `gpt` and `mbrman`
//! crates.
#![allow(clippy::disallowed_methods, reason = "tests work on images in memory")]

mod images;

use std::io::Cursor;

use backup::filesystem::Survey;
use backup::hardware::{Disk, FirmwareKind, Inventory, MachineIdentity};
use backup::identity::{HostName, Identity};
use backup::layout::survey_disk;
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, FORMAT, FileSystemKind, Firmware, Manifest, PartitionTable,
    Region, RegionKind, Volume,
};
use backup::plan::capture::{CapturePlan, plan_capture};
use backup::plan::restore::plan_restore;
use backup::plan::{
    Choices, DiskChoice, DiskPlan, ExtraSpace, FirmwareChoice, ReasonCode, Refusal, RestorePlan,
};
use backup::{ByteRange, Digest, SectorSize};
use images::{Memory, noise};
use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

const MIB: u64 = 1 << 20;

fn disk(name: &str, size: u64, sector: SectorSize) -> Disk {
    Disk {
        name: name.to_owned(),
        model: Some("QEMU HARDDISK".to_owned()),
        serial: Some(format!("SERIAL-{name}")),
        wwn: None,
        size,
        logical_sector: sector,
        physical_sector: 4096,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    }
}

fn machine(disks: Vec<Disk>) -> Inventory {
    Inventory {
        identity: MachineIdentity::default(),
        firmware: FirmwareKind::Uefi,
        architecture: "x86_64".to_owned(),
        disks,
        nics: Vec::new(),
        memory: 4 << 30,
        without_driver: Vec::new(),
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
            kind: FirmwareKind::Uefi,
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

/// A partition on a made-up disk, in sectors.
#[derive(Debug, Clone)]
struct Part {
    first: u64,
    sectors: u64,
    file_system: Option<FileSystemKind>,
    whole: bool,
    /// Bytes in use.
    used: u64,
}

/// A made-up disk as it would be captured.
#[derive(Debug, Clone)]
struct Source {
    sector: SectorSize,
    sectors: u64,
    gpt: bool,
    parts: Vec<Part>,
}

impl Source {
    const fn size(&self) -> u64 {
        self.sectors * self.sector.bytes()
    }

    /// The disk's first and last bytes, with everything between them left out: the table is all
    /// that is read of it.
    fn bytes(&self) -> Vec<u8> {
        let block = match self.sector {
            SectorSize::S512 => gpt::disk::LogicalBlockSize::Lb512,
            _ => gpt::disk::LogicalBlockSize::Lb4096,
        };
        let bytes = vec![0; self.size() as usize];
        if !self.gpt {
            return self.mbr_bytes(bytes);
        }
        let mut disk = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(block)
            .create_from_device(Cursor::new(bytes), None)
            .unwrap();
        for (number, part) in (1u32..).zip(&self.parts) {
            let kind = gpt::partition_types::LINUX_FS;
            disk.add_partition_at("part", number, part.first, part.sectors, kind, 0)
                .unwrap();
        }
        let mut bytes = disk.write().unwrap().into_inner();
        let boot = noise(1, 440);
        bytes[..440].copy_from_slice(&boot);
        bytes[446 + 4] = 0xee;
        bytes[446 + 8] = 1;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes
    }

    /// At most four primary partitions.
    fn mbr_bytes(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (slot, part) in self.parts.iter().take(4).enumerate() {
            let at = 446 + 16 * slot;
            bytes[at + 4] = 0x83;
            bytes[at + 8..at + 12].copy_from_slice(&(part.first as u32).to_le_bytes());
            bytes[at + 12..at + 16].copy_from_slice(&(part.sectors as u32).to_le_bytes());
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes
    }

    fn capture(&self) -> CapturePlan {
        let bytes = self.bytes();
        let layout = survey_disk(&Memory(&bytes), self.size(), self.sector).unwrap();
        let surveys = layout
            .regions
            .iter()
            .map(|region| match region.kind {
                RegionKind::Partition { number } => {
                    let part = &self.parts[number as usize - 1];
                    let len = region.range.len();
                    Some(Survey {
                        volume: part.file_system.map(|file_system| Volume {
                            file_system,
                            label: None,
                            uuid: None,
                            block_size: 4096,
                            size: len,
                            used: None,
                            sector_size: own_sector(file_system, self.sector),
                        }),
                        used: if part.whole {
                            Err(backup::filesystem::Doubt::Untrusted("dirty".to_owned()))
                        } else {
                            Ok(vec![ByteRange::between(0, len.min(part.used))])
                        },
                        extents: Vec::new(),
                        heads: Vec::new(),
                    })
                }
                _ => None,
            })
            .collect();
        plan_capture(&disk("src", self.size(), self.sector), layout, surveys)
    }

    fn image(&self, number: u32) -> DiskImage {
        let plan = self.capture();
        DiskImage {
            number,
            model: None,
            serial: Some(format!("SOURCE-{number}")),
            wwn: None,
            size: self.size(),
            logical_sector: self.sector,
            physical_sector: 4096,
            table: plan.table.clone(),
            regions: plan
                .regions
                .iter()
                .map(|region| Region {
                    kind: region.kind.clone(),
                    range: region.range,
                    volume: region.volume.clone(),
                    coverage: region.coverage.clone(),
                    was_encrypted: None,
                    content: ChunkListRef {
                        digest: Digest::of(b""),
                        chunks: 1,
                        data_bytes: region.read_bytes(),
                        zero_bytes: 0,
                    },
                })
                .collect(),
        }
    }
}

/// As `mkfs` chooses it on such a disk.
fn own_sector(file_system: FileSystemKind, disk: SectorSize) -> Option<u32> {
    use FileSystemKind::{Fat32, Ntfs, Xfs};
    matches!(file_system, Fat32 | Ntfs | Xfs).then_some(disk.bytes() as u32)
}

fn sources() -> impl Strategy<Value = Source> {
    let file_system = prop_oneof![
        3 => Just(Some(FileSystemKind::Ext4)),
        1 => Just(Some(FileSystemKind::Fat32)),
        1 => Just(Some(FileSystemKind::Ntfs)),
        1 => Just(Some(FileSystemKind::Xfs)),
        1 => Just(Some(FileSystemKind::Btrfs)),
        1 => Just(None),
    ];
    let part = (
        0u64..400,
        1u64..2000,
        file_system,
        prop::bool::weighted(0.2),
    );
    (
        prop::bool::weighted(0.3),
        any::<bool>(),
        prop::collection::vec(part, 1..6),
        0u64..600,
    )
        .prop_map(|(large, gpt, parts, tail)| {
            let sector = if large {
                SectorSize::S4096
            } else {
                SectorSize::S512
            };
            // The gpt crate's own table: 128 entries of 128 bytes behind the header.
            let table = 16384 / sector.bytes();
            let mut at = if gpt { 2 + table } else { 1 };
            let parts: Vec<Part> = parts
                .into_iter()
                .take(4)
                .map(|(gap, sectors, file_system, whole)| {
                    // Small images, so that thousands of them take seconds.
                    let (gap, sectors) = if large {
                        (gap / 8, sectors.div_ceil(8))
                    } else {
                        (gap, sectors)
                    };
                    let first = at + gap;
                    at = first + sectors;
                    Part {
                        first,
                        sectors,
                        file_system,
                        whole,
                        used: 1000,
                    }
                })
                .collect();
            let sectors = at + tail + if gpt { table + 1 } else { 0 };
            Source {
                sector,
                sectors,
                gpt,
                parts,
            }
        })
}

fn policies() -> impl Strategy<Value = ExtraSpace> {
    prop_oneof![
        2 => Just(ExtraSpace::Last),
        2 => Just(ExtraSpace::Proportional),
        1 => Just(ExtraSpace::None),
    ]
}

fn place(write: &backup::plan::TableWrite) -> ByteRange {
    ByteRange::between(write.offset, write.offset + write.bytes.0.len() as u64)
}

fn ensure(plan: &DiskPlan, holds: bool, what: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("{what}: {plan:#?}"))
    }
}

/// The invariants of every plan, judged from the plan, the source and the target alone. Number, first and last
/// LBA of its partitions.
fn judge(
    source: &Source,
    image: &DiskImage,
    plan: &DiskPlan,
) -> Result<Vec<(u32, u64, u64)>, String> {
    let ensure = |holds: bool, what: &str| ensure(plan, holds, what);
    let sector = plan.target.logical_sector.bytes();
    let whole = ByteRange::between(0, plan.target.size);
    let mut taken: Vec<ByteRange> = plan.copies.iter().map(|copy| copy.destination).collect();
    taken.extend(plan.commit.iter().map(place));
    for range in &taken {
        ensure(whole.contains(*range), "inside the target")?;
        ensure(
            range.start() % sector == 0 && range.len() % sector == 0,
            "whole sectors",
        )?;
    }
    taken.sort();
    for pair in taken.windows(2) {
        ensure(pair[0].end() <= pair[1].start(), "no overlap")?;
    }
    for copy in &plan.copies {
        let region = &image.regions[copy.region as usize];
        let moved = copy.destination.start().abs_diff(region.range.start());
        ensure(moved.is_multiple_of(MIB), "moves by whole MiB")?;
        let is_cut = plan.shrink.iter().any(|shrink| {
            region.kind
                == RegionKind::Partition {
                    number: shrink.partition,
                }
        });
        ensure(
            (copy.destination.len() < region.range.len()) == is_cut,
            "long enough, but for what is made smaller",
        )?;
        // To the end of its last sector.
        let len = region.range.len().next_multiple_of(sector);
        let len = len.min(copy.destination.len());
        let content = ByteRange::new(copy.destination.start(), len).unwrap();
        for last in &copy.last {
            ensure(content.contains(*last), "last parts inside the content")?;
            ensure(
                last.start() % sector == 0 && last.len() % sector == 0,
                "last whole sectors",
            )?;
        }
        for pair in copy.last.windows(2) {
            ensure(pair[0].end() < pair[1].start(), "last parts in order")?;
        }
        let front = ByteRange::between(content.start(), content.end().min(MIB));
        ensure(
            front.is_empty() || copy.last.iter().any(|last| last.contains(front)),
            "the first MiB last",
        )?;
    }
    // Whatever a table could boot from is gone first.
    ensure(
        plan.invalidate[0].start() == 0,
        "the first MiB is invalidated",
    )?;
    let end = plan.target.size - plan.target.size % sector;
    let backup_table = end
        .saturating_sub(33 * sector)
        .max(plan.invalidate[0].end());
    ensure(
        plan.invalidate[0].end() >= end
            || plan
                .invalidate
                .iter()
                .any(|range| range.contains(ByteRange::between(backup_table, end))),
        "the end is invalidated",
    )?;
    ensure(
        plan.invalidate
            .windows(2)
            .all(|pair| pair[0].end() <= pair[1].start()),
        "invalidated once",
    )?;
    ensure(
        plan.commit.last().is_none_or(|write| write.offset == 0),
        "sector 0 is the commit",
    )?;
    let partitions: Vec<(u32, u64, u64)> = plan
        .partitions
        .iter()
        .map(|part| {
            (
                part.number,
                part.range.start() / sector,
                part.range.end() / sector - 1,
            )
        })
        .collect();
    let table = if source.gpt {
        by_gpt_crate(plan)
    } else {
        by_mbrman(plan)
    };
    if partitions != table {
        return Err(format!("table {table:?}, planned {partitions:?}"));
    }
    Ok(partitions)
}

/// A plan in which nothing is made smaller.
fn judge_grown(
    source: &Source,
    image: &DiskImage,
    policy: ExtraSpace,
    plan: &DiskPlan,
) -> Result<(), String> {
    let partitions = judge(source, image, plan)?;
    let ensure = |holds: bool, what: &str| ensure(plan, holds, what);
    let shares = policy == ExtraSpace::Proportional && source.gpt;
    let sector = source.sector.bytes();
    let end = plan.target.size - plan.target.size % sector;
    ensure(plan.shrink.is_empty(), "nothing is made smaller")?;
    for copy in &plan.copies {
        let from = image.regions[copy.region as usize].range.start();
        let to = copy.destination.start();
        ensure(
            to == from || (shares && to > from),
            "at its place, or behind it",
        )?;
    }
    let mut shift = 0;
    for (part, (number, first, last)) in source.parts.iter().zip(partitions) {
        let grown = plan.grow.iter().any(|grow| grow.partition == number);
        ensure(first == part.first + shift, "moves by what grew before it")?;
        let more = (last + 1 - first).checked_sub(part.sectors);
        ensure(
            more == Some(0) || (grown && more.is_some()),
            "only grown ones change",
        )?;
        ensure(
            !shares || (more.unwrap_or(0) * sector).is_multiple_of(MIB),
            "shares are whole MiB",
        )?;
        if shares {
            shift += more.unwrap_or(0);
        }
    }
    for grow in &plan.grow {
        let part = &plan.partitions[grow.partition as usize - 1];
        ensure(
            part.range.len() == grow.to && grow.from < grow.to,
            "grows to its partition",
        )?;
        if !shares {
            ensure(
                part.range.end().is_multiple_of(MIB),
                "a grown partition ends on a MiB",
            )?;
            ensure(end - part.range.end() < 2 * MIB, "and takes what there is")?;
        }
    }
    if policy == ExtraSpace::None {
        ensure(plan.grow.is_empty(), "nothing grows that was told not to")?;
    }
    if shares && plan.target.size / sector > source.sectors {
        return judge_shares(source, plan);
    }
    Ok(())
}

/// What the environment has a tool for, and does not have the engine's marker in it.
fn can_grow(part: &Part, sector: SectorSize) -> bool {
    matches!(
        part.file_system,
        Some(
            FileSystemKind::Ext4
                | FileSystemKind::Ntfs
                | FileSystemKind::Xfs
                | FileSystemKind::Btrfs
        )
    ) && !part.whole
        && part.first * sector.bytes() >= MIB
}

/// Who gets how much of a larger disk, by a rule of its own: each that can grow within a MiB of what its
/// size says.
fn judge_shares(source: &Source, plan: &DiskPlan) -> Result<(), String> {
    let sector = source.sector.bytes() as f64;
    let takes = |part: &&Part| can_grow(part, source.sector);
    let all: u64 = source
        .parts
        .iter()
        .filter(takes)
        .map(|part| part.sectors)
        .sum();
    let last = source.parts.last().unwrap();
    let usable = plan.target.size as f64 / sector - 16384.0 / sector - 1.0;
    let extra = (usable - (last.first + last.sectors) as f64) * sector;
    for (part, planned) in source.parts.iter().zip(&plan.partitions) {
        let got = (planned.range.len() - part.sectors * source.sector.bytes()) as f64;
        let due = if takes(&part) {
            extra * part.sectors as f64 / all as f64
        } else {
            0.0
        };
        // Rounded down twice: what there is, and the share of it.
        if got > due || got + 2.0 * MIB as f64 <= due {
            return Err(format!(
                "{part:?} got {got} of {extra} (due {due}): {plan:#?}"
            ));
        }
    }
    Ok(())
}

fn restored(plan: &DiskPlan) -> Vec<u8> {
    let mut bytes = vec![0xa5; plan.target.size as usize];
    for range in &plan.invalidate {
        bytes[range.start() as usize..range.end() as usize].fill(0);
    }
    for write in &plan.commit {
        let at = write.offset as usize;
        bytes[at..at + write.bytes.0.len()].copy_from_slice(&write.bytes.0);
    }
    bytes
}

/// Number, first and last LBA; the crate checks every CRC of both copies.
fn by_gpt_crate(plan: &DiskPlan) -> Vec<(u32, u64, u64)> {
    let sector = plan.target.logical_sector;
    let block = match sector {
        SectorSize::S512 => gpt::disk::LogicalBlockSize::Lb512,
        _ => gpt::disk::LogicalBlockSize::Lb4096,
    };
    let sectors = plan.target.size / sector.bytes();
    let mut bytes = restored(plan);
    bytes.truncate((sectors * sector.bytes()) as usize);
    assert_eq!(bytes[..440], noise(1, 440));
    let protective = u32::from_le_bytes(bytes[458..462].try_into().unwrap());
    assert_eq!(u64::from(protective), sectors - 1);
    let disk = gpt::GptConfig::new()
        .logical_block_size(block)
        .only_valid_headers(true)
        .open_from_device(Cursor::new(bytes))
        .unwrap();
    let (primary, backup) = (
        disk.primary_header().unwrap(),
        disk.backup_header().unwrap(),
    );
    assert_eq!((primary.current_lba, primary.backup_lba), (1, sectors - 1));
    assert_eq!((backup.current_lba, backup.backup_lba), (sectors - 1, 1));
    assert_eq!(primary.last_usable, backup.last_usable);
    assert!(primary.last_usable < backup.part_start && backup.part_start < sectors - 1);
    let partitions: Vec<_> = disk
        .partitions()
        .iter()
        .map(|(number, part)| (*number, part.first_lba, part.last_lba))
        .collect();
    assert!(
        partitions
            .iter()
            .all(|(_, _, last)| *last <= primary.last_usable)
    );
    partitions
}

fn by_mbrman(plan: &DiskPlan) -> Vec<(u32, u64, u64)> {
    let bytes = restored(plan);
    let sector = plan.target.logical_sector.bytes() as u32;
    let table = mbrman::MBRHeader::read_from(&mut Cursor::new(&bytes[..512])).unwrap();
    assert!(sector >= 512);
    table
        .iter()
        .filter(|(_, part)| part.is_used())
        .map(|(number, part)| {
            let first = u64::from(part.starting_lba);
            (number as u32, first, first + u64::from(part.sectors) - 1)
        })
        .collect()
}

/// Whether the target is large enough, by a rule of its own.
fn fits(source: &Source, target: u64) -> bool {
    let sectors = target / source.sector.bytes();
    let last = source.parts.last().unwrap();
    let reserve = if source.gpt {
        16384 / source.sector.bytes() + 1
    } else {
        0
    };
    last.first + last.sectors + reserve <= sectors
}

/// Whether the table itself fits: two copies of a GPT, and a sector to use.
fn has_room_for_table(source: &Source, target: u64) -> bool {
    let sector = source.sector.bytes();
    let table = 16384 / sector;
    !source.gpt || target / sector > 2 * (table + 1) + 1
}

/// The partitions that can be made smaller, by a rule of its own: of the right kind, behind all that Windows or
/// a boot sector finds by their places.
fn candidates(source: &Source) -> impl Iterator<Item = (usize, &Part)> {
    use FileSystemKind::{Btrfs, Ext4, Fat32, Ntfs};
    let stays = |part: &Part| !source.gpt && matches!(part.file_system, Some(Ntfs | Fat32));
    let after = source.parts.iter().rposition(stays).unwrap_or(0);
    let parts = source.parts.iter().enumerate().skip(after);
    parts.filter(|(_, part)| {
        matches!(part.file_system, Some(Ext4 | Ntfs | Btrfs))
            && !part.whole
            && part.first * source.sector.bytes() >= MIB
    })
}

/// The sectors that a partition of a candidate keeps at least.
fn kept(source: &Source, part: &Part) -> u64 {
    let sector = source.sector.bytes();
    let used = part.used.min(part.sectors * sector).div_ceil(sector) * sector;
    let least = match part.file_system {
        Some(FileSystemKind::Btrfs) => used + 2 * (used / 16) + 272 * MIB,
        _ => used + used / 16 + 16 * MIB,
    };
    // What is taken away are whole MiB.
    let takes = (part.sectors * sector).saturating_sub(least) / MIB;
    part.sectors - takes * MIB / sector
}

/// The sectors that the smallest disk needs.
fn least(source: &Source) -> u64 {
    let last = source.parts.last().unwrap();
    let slack: u64 = candidates(source)
        .map(|(_, part)| part.sectors - kept(source, part))
        .sum();
    let table = 16384 / source.sector.bytes() + 1;
    last.first + last.sectors - slack + if source.gpt { table } else { 0 }
}

fn judge_shrunk(source: &Source, image: &DiskImage, plan: &DiskPlan) -> Result<(), String> {
    let partitions = judge(source, image, plan)?;
    let ensure = |holds: bool, what: &str| ensure(plan, holds, what);
    ensure(plan.grow.is_empty(), "nothing grows")?;
    let may: Vec<_> = candidates(source).map(|(index, _)| index).collect();
    let (mut shift, mut taken) = (0, Vec::new());
    for (index, (part, (number, first, last))) in source.parts.iter().zip(partitions).enumerate() {
        ensure(
            first + shift == part.first,
            "moves by what is taken before it",
        )?;
        let len = last + 1 - first;
        let less = part.sectors - len;
        shift += less;
        let named = plan.shrink.iter().find(|one| one.partition == number);
        ensure((less > 0) == named.is_some(), "what is smaller is said")?;
        if let Some(named) = named {
            ensure(may.contains(&index), "may be made smaller")?;
            ensure(len >= kept(source, part), "keeps what it needs")?;
            let sector = source.sector.bytes();
            ensure(
                (named.from, named.to) == (part.sectors * sector, len * sector),
                "sizes are said",
            )?;
            taken.push(less == part.sectors - kept(source, part));
        }
    }
    let sector = source.sector.bytes();
    let last = source.parts.last().unwrap();
    let table = if source.gpt { 16384 / sector + 1 } else { 0 };
    let over = last.first + last.sectors + table - plan.target.size / sector;
    ensure(
        shift == (over * sector).div_ceil(MIB) * MIB / sector,
        "no more is taken than must",
    )?;
    // All but one of those that are made smaller give what they can.
    let whole = taken.iter().filter(|whole| **whole).count();
    ensure(whole + 1 >= taken.len(), "as few as possible")
}

/// Disks of some MiB, with file systems that have room.
fn roomy_sources() -> impl Strategy<Value = Source> {
    let file_system = prop_oneof![
        3 => Just(Some(FileSystemKind::Ext4)),
        2 => Just(Some(FileSystemKind::Ntfs)),
        1 => Just(Some(FileSystemKind::Btrfs)),
        1 => Just(Some(FileSystemKind::Xfs)),
        1 => Just(Some(FileSystemKind::Fat32)),
        1 => Just(None),
    ];
    let part = (0u64..3000, 1u64..60_000, 0u64..MIB * 20, file_system);
    let parts = prop::collection::vec((part, prop::bool::weighted(0.1)), 1..5);
    (any::<bool>(), any::<bool>(), parts, 0u64..600).prop_map(|(large, gpt, parts, tail)| {
        let sector = if large {
            SectorSize::S4096
        } else {
            SectorSize::S512
        };
        let (table, unit) = (16384 / sector.bytes(), sector.bytes() / 512);
        let mut at = 2 + table;
        let parts = parts.into_iter();
        let parts = parts.map(|((gap, sectors, used, file_system), whole)| {
            // A Btrfs is larger than all others, or could not give anything.
            let more = if file_system == Some(FileSystemKind::Btrfs) {
                600_000
            } else {
                0
            };
            let first = at + gap / unit;
            at = first + (sectors + more).div_ceil(unit);
            Part {
                first,
                sectors: at - first,
                file_system,
                whole,
                used,
            }
        });
        let parts = parts.collect();
        let sectors = at + tail + table + 1;
        Source {
            sector,
            sectors,
            gpt,
            parts,
        }
    })
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(100))]

    #[test]
    fn a_smaller_disk_is_planned_when_the_data_fits_and_only_then(
        source in roomy_sources(), share in 0u64..=1100,
    ) {
        // From what is least to what is needed, and somewhat to both sides.
        let sector = source.sector.bytes();
        let last = source.parts.last().unwrap();
        let table = if source.gpt { 16384 / sector + 1 } else { 0 };
        let (least, most) = (least(&source), last.first + last.sectors + table);
        let sectors = (least * 99 / 100 + (most - least * 99 / 100) * share / 1000).max(8);
        let image = source.image(0);
        let manifest = manifest(vec![image.clone()]);
        let target = machine(vec![disk("sda", sectors * sector, source.sector)]);
        match plan_restore(&manifest, &target, &Choices::default()) {
            Ok(plan) if sectors >= most => {
                judge_grown(&source, &image, ExtraSpace::Last, &plan.disks[0])
                    .map_err(proptest::test_runner::TestCaseError::fail)?;
            }
            Ok(plan) => {
                prop_assert!(sectors + MIB / sector > least);
                judge_shrunk(&source, &image, &plan.disks[0])
                    .map_err(proptest::test_runner::TestCaseError::fail)?;
                prop_assert!(plan.picture(&manifest).contains("is made smaller"));
            }
            Err(refusals) => {
                // Whole MiB are taken: a disk may need up to one more.
                prop_assert!(sectors < least + MIB / sector, "{:?}", refusals);
                let expected = if has_room_for_table(&source, sectors * sector)
                    && candidates(&source).next().is_none()
                {
                    ReasonCode::CannotShrink
                } else {
                    ReasonCode::TooSmall
                };
                prop_assert_eq!(codes(&refusals), [expected]);
            }
        }
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2000))]

    #[test]
    fn a_plan_is_right_or_refused_for_the_right_reason(
        source in sources(), change in -3_000_000i64..16_000_000, exact in prop::bool::weighted(0.3),
        policy in policies(),
    ) {
        let change = if exact { 0 } else { change };
        let choices = Choices { extra_space: policy, ..Choices::default() };
        let target_size = source.size().saturating_add_signed(change).max(4096);
        let image = source.image(0);
        let manifest = manifest(vec![image.clone()]);
        let target = machine(vec![disk("sda", target_size, source.sector)]);
        match plan_restore(&manifest, &target, &choices) {
            Ok(plan) => {
                prop_assert!(fits(&source, target_size));
                judge_grown(&source, &image, policy, &plan.disks[0]).map_err(|reason| {
                    proptest::test_runner::TestCaseError::fail(reason)
                })?;
                let last = source.parts.last().unwrap();
                let shares = policy == ExtraSpace::Proportional && source.gpt;
                let grows = |part: &Part| can_grow(part, source.sector);
                let may_grow = target_size / source.sector.bytes() > source.sectors
                    && (grows(last) || (shares && source.parts.iter().any(grows)));
                prop_assert!(may_grow || plan.disks[0].grow.is_empty());
                // Everything that was saved arrives, but for what is behind the last partition.
                let end = (last.first + last.sectors) * source.sector.bytes();
                let expected: Vec<u32> = (0u32..)
                    .zip(&image.regions)
                    .filter(|(_, region)| region.range.start() < end)
                    .map(|(index, _)| index)
                    .collect();
                let copied: Vec<u32> = plan.disks[0].copies.iter().map(|copy| copy.region).collect();
                prop_assert!(copied.starts_with(&expected), "{copied:?} {expected:?}");
                let picture = plan.picture(&manifest);
                prop_assert!(picture.lines().all(|line| line.chars().count() <= 80), "{}", picture);
                prop_assert!(!plan.to_string().is_empty());
            }
            Err(refusals) => {
                prop_assert!(!fits(&source, target_size), "{:?}", refusals);
                // No partition of these has as much as every file system keeps free.
                let expected = if has_room_for_table(&source, target_size)
                    && candidates(&source).next().is_none()
                {
                    ReasonCode::CannotShrink
                } else {
                    ReasonCode::TooSmall
                };
                prop_assert_eq!(codes(&refusals), [expected]);
            }
        }
    }

    #[test]
    fn a_manifest_that_lies_is_refused_or_planned_right_but_never_panics(
        source in sources(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_entries in any::<bool>(),
        grown in 0u64..20_000_000,
        policy in policies(),
    ) {
        let choices = Choices { extra_space: policy, ..Choices::default() };
        let mut image = source.image(0);
        match &mut image.table {
            PartitionTable::Gpt(table) => for (at, value) in flips {
                let blob = if in_entries { &mut table.entries.0 } else { &mut table.header.0 };
                let len = blob.len().min(600);
                blob[at.index(len)] ^= value;
            },
            PartitionTable::Mbr(table) => for (at, value) in flips {
                table.first_sector.0[446 + at.index(66)] ^= value;
            },
            PartitionTable::None => {}
        }
        let target = machine(vec![disk("sda", source.size() + grown, source.sector)]);
        if let Ok(plan) = plan_restore(&manifest(vec![image.clone()]), &target, &choices) {
            let plan = &plan.disks[0];
            let mut taken: Vec<_> = plan.copies.iter().map(|copy| copy.destination).collect();
            taken.extend(plan.commit.iter().map(place));
            taken.sort();
            prop_assert!(taken.windows(2).all(|pair| pair[0].end() <= pair[1].start()));
            prop_assert!(taken.iter().all(|range| range.end() <= plan.target.size));
        }
    }

    #[test]
    fn a_capture_reads_whole_sectors_of_everything_it_must(source in sources()) {
        let plan = source.capture();
        let sector = source.sector.bytes();
        let mut covered = 0;
        for region in &plan.regions {
            prop_assert!(region.range.start() >= covered);
            covered = region.range.end();
            let whole = ByteRange::between(0, region.range.len());
            for range in &region.ranges {
                prop_assert!(whole.contains(*range) && range.start() % sector == 0 && range.len() % sector == 0);
            }
            match &region.coverage {
                Coverage::UsedBlocks => prop_assert!(region.read_bytes() <= 4096),
                Coverage::Whole { .. } => prop_assert_eq!(&region.ranges, &[whole]),
                Coverage::LeftOut { .. } => prop_assert!(region.ranges.is_empty()),
            }
        }
        let totals = plan.totals();
        let all: u64 = plan.regions.iter().map(|region| region.range.len()).sum();
        prop_assert_eq!(totals.read + totals.unused + totals.left_out, all);
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(60))]

    #[test]
    fn plans_and_manifests_survive_json(source in sources(), grown in 0u64..6_000_000) {
        let capture = source.capture();
        let text = serde_json::to_string(&capture).unwrap();
        prop_assert_eq!(serde_json::from_str::<CapturePlan>(&text).unwrap(), capture);
        let manifest = manifest(vec![source.image(0)]);
        let text = serde_json::to_vec(&manifest).unwrap();
        prop_assert_eq!(&Manifest::from_json(&text).unwrap(), &manifest);
        let target = machine(vec![disk("sda", source.size() + grown, source.sector)]);
        let plan = plan_restore(&manifest, &target, &Choices::default()).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<RestorePlan>(&text).unwrap(), plan);
    }
}

/// Whether a disk can be carried over to sectors of another size, by a rule of its own.
fn works_with(source: &Source, other: SectorSize) -> bool {
    use FileSystemKind::{Btrfs, Ext4, Fat32, Xfs};
    source.gpt
        && source.parts.iter().all(|part| {
            let start = part.first * source.sector.bytes();
            start.is_multiple_of(other.bytes())
                && start >= 2 * other.bytes() + 16384
                && match part.file_system {
                    Some(Ext4 | Btrfs) => true,
                    Some(Xfs) => other < source.sector,
                    Some(Fat32) => start >= MIB,
                    _ => false,
                }
        })
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(600))]

    #[test]
    fn sectors_of_another_size_are_planned_where_everything_works_with_them(
        source in sources(), aligned in prop::bool::weighted(0.8), grown in 100_000u64..9_000_000,
        policy in policies(),
    ) {
        let mut source = source;
        if aligned {
            // Each begins on 4096 bytes, in the same order.
            let mut shift = 0;
            for part in &mut source.parts {
                let at = (part.first + shift).next_multiple_of(8);
                shift = at - part.first;
                part.first = at;
            }
            source.sectors += shift;
        }
        let other = if source.sector == S512 { SectorSize::S4096 } else { S512 };
        let image = source.image(0);
        let manifest = manifest(vec![image.clone()]);
        let target = machine(vec![disk("sda", source.size() + grown, other)]);
        let choices = Choices { extra_space: policy, ..Choices::default() };
        match plan_restore(&manifest, &target, &choices) {
            Err(refusals) => {
                prop_assert!(!works_with(&source, other), "{:?}", refusals);
                prop_assert_eq!(codes(&refusals), [ReasonCode::SectorSize]);
            }
            Ok(plan) => {
                prop_assert!(works_with(&source, other));
                let plan = &plan.disks[0];
                let partitions = judge(&source, &image, plan)
                    .map_err(proptest::test_runner::TestCaseError::fail)?;
                let (old, new) = (source.sector.bytes(), other.bytes());
                let mut shift = 0;
                for (part, (number, first, last)) in source.parts.iter().zip(partitions) {
                    prop_assert_eq!(first * new, part.first * old + shift);
                    let more = (last + 1) * new - (first * new + part.sectors * old);
                    let grown = plan.grow.iter().any(|grow| grow.partition == number);
                    prop_assert!(grown || more < new, "{} more", more);
                    if grown && policy == ExtraSpace::Proportional {
                        shift += more / MIB * MIB;
                    }
                    let changed = plan.sectors.iter().any(|one| one.partition == number);
                    prop_assert_eq!(changed, part.file_system == Some(FileSystemKind::Fat32));
                }
                let copied = plan.copies.len();
                prop_assert_eq!(copied, source.parts.len());
            }
        }
    }
}

fn codes(refusals: &[Refusal]) -> Vec<ReasonCode> {
    refusals.iter().map(|refusal| refusal.code).collect()
}

/// BIOS boot partition, ESP, ext4 root, as the demo's source.
fn debian() -> Source {
    let part = |first, sectors, file_system, whole| Part {
        first,
        sectors,
        file_system,
        whole,
        used: 1000,
    };
    Source {
        sector: SectorSize::S512,
        sectors: 64 * 2048,
        gpt: true,
        parts: vec![
            part(2048, 2048, None, true),
            part(4096, 16 * 2048, Some(FileSystemKind::Fat32), false),
            part(18 * 2048, 45 * 2048, Some(FileSystemKind::Ext4), false),
        ],
    }
}

fn plan_for(disks: Vec<Disk>, choices: &[(u32, &str)]) -> Result<RestorePlan, Vec<ReasonCode>> {
    plan_many(1, disks, choices)
}

fn plan_many(
    sources: u32,
    disks: Vec<Disk>,
    choices: &[(u32, &str)],
) -> Result<RestorePlan, Vec<ReasonCode>> {
    let manifest = manifest((0..sources).map(|number| debian().image(number)).collect());
    let choices = Choices {
        disks: choices
            .iter()
            .map(|(source, target)| DiskChoice {
                source: *source,
                target: (*target).to_owned(),
            })
            .collect(),
        ..Choices::default()
    };
    plan_restore(&manifest, &machine(disks), &choices).map_err(|refusals| {
        assert!(refusals.iter().all(|refusal| refusal.text.len() > 30));
        codes(&refusals)
    })
}

const S512: SectorSize = SectorSize::S512;

#[test]
fn the_last_partition_and_its_file_system_fill_a_larger_disk() {
    let plan = plan_for(vec![disk("sda", 128 * MIB, S512)], &[]).unwrap();
    let disk = &plan.disks[0];
    assert_eq!(
        disk.partitions[2].range,
        ByteRange::between(18 * MIB, 127 * MIB)
    );
    assert_eq!(disk.grow.len(), 1);
    assert_eq!((disk.grow[0].from, disk.grow[0].to), (45 * MIB, 109 * MIB));
    assert_eq!(
        disk.copies.last().unwrap().destination,
        disk.partitions[2].range
    );
    assert_eq!(
        disk.invalidate,
        [
            ByteRange::between(0, MIB),
            ByteRange::between(127 * MIB, 128 * MIB)
        ]
    );
    // The root's superblock comes last, the boot partition's first bytes too.
    let root = disk.copies.last().unwrap();
    assert_eq!(root.last, [ByteRange::between(18 * MIB, 18 * MIB + 4096)]);
}

#[test]
fn nothing_changes_on_a_disk_of_the_same_size() {
    let plan = plan_for(vec![disk("sda", 64 * MIB, S512)], &[]).unwrap();
    assert!(plan.disks[0].grow.is_empty() && plan.notes.is_empty());
    assert_eq!(plan.disks[0].copies.len(), debian().image(0).regions.len());
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_the_numbers() {
    let manifest = manifest(vec![debian().image(0)]);
    let target = machine(vec![disk("sda", 30 * MIB, S512)]);
    let refusals = plan_restore(&manifest, &target, &Choices::default()).unwrap_err();
    assert_eq!(codes(&refusals), [ReasonCode::TooSmall]);
    // Its ext4 of 45 MiB can do with 17.
    let least = 35 * MIB + 33 * 512;
    assert!(
        refusals[0].text.contains(&format!("{least} are needed")),
        "{}",
        refusals[0]
    );
    let target = machine(vec![disk("sda", least, S512)]);
    assert!(plan_restore(&manifest, &target, &Choices::default()).is_ok());
}

#[test]
fn disks_are_bound_by_what_they_are_and_never_guessed() {
    use ReasonCode::{AmbiguousDisk, DiskNotFound, NoDisk, ReadOnly};
    let sda = || disk("sda", 64 * MIB, S512);
    let sdb = || disk("sdb", 64 * MIB, S512);
    let twin = |name: &str, serial: &str| Disk {
        serial: Some(serial.to_owned()),
        ..disk(name, 64 * MIB, S512)
    };
    let usb = || Disk {
        removable: true,
        ..disk("sdu", 64 * MIB, S512)
    };
    let locked = || Disk {
        read_only: true,
        ..disk("sdl", 64 * MIB, S512)
    };
    let target = |result: Result<RestorePlan, Vec<ReasonCode>>| {
        result.map(|plan| plan.disks[0].target.name.clone())
    };
    for (disks, choices, expected) in [
        (vec![sda()], &[][..], Ok("sda")),
        (vec![sda(), usb(), locked()], &[], Ok("sda")),
        (vec![sda(), sdb()], &[], Err(vec![AmbiguousDisk])),
        (vec![sda(), sdb()], &[(0, "SERIAL-sdb")], Ok("sdb")),
        (vec![sda(), sdb()], &[(0, "sdb")], Ok("sdb")),
        (vec![sda(), usb()], &[(0, "sdu")], Ok("sdu")),
        (vec![sda(), sdb()], &[(0, "sdc")], Err(vec![DiskNotFound])),
        (vec![sda()], &[(1, "sda")], Err(vec![DiskNotFound])),
        (
            vec![twin("sda", "X"), twin("sdb", "X")],
            &[(0, "X")],
            Err(vec![AmbiguousDisk]),
        ),
        (
            vec![sda(), sdb()],
            &[(0, "sda"), (0, "sdb")],
            Err(vec![AmbiguousDisk]),
        ),
        (vec![sda(), twin("sdb", "SOURCE-0")], &[], Ok("sdb")),
        (
            vec![twin("sda", "SOURCE-0"), twin("sdb", "SOURCE-0")],
            &[],
            Err(vec![AmbiguousDisk]),
        ),
        (vec![usb()], &[], Err(vec![NoDisk])),
        (vec![], &[], Err(vec![NoDisk])),
        (vec![locked()], &[], Err(vec![NoDisk])),
        (vec![sda(), locked()], &[(0, "sdl")], Err(vec![ReadOnly])),
    ] {
        let names: Vec<_> = disks.iter().map(|disk| disk.name.clone()).collect();
        let found = target(plan_for(disks, choices));
        assert_eq!(found, expected.map(str::to_owned), "{names:?} {choices:?}");
    }
}

#[test]
fn several_source_disks_each_need_one_sure_place() {
    use ReasonCode::{AmbiguousDisk, DiskNotFound, NoDisk};
    let disks = || vec![disk("sda", 64 * MIB, S512), disk("sdb", 256 * MIB, S512)];
    assert_eq!(plan_many(2, disks(), &[]).unwrap_err(), [AmbiguousDisk]);
    assert_eq!(plan_many(3, disks(), &[]).unwrap_err(), [NoDisk]);
    assert_eq!(
        plan_many(2, disks(), &[(0, "sda"), (1, "sda")]).unwrap_err(),
        [DiskNotFound]
    );
    // One named, so the other has one place left.
    let plan = plan_many(2, disks(), &[(1, "sda")]).unwrap();
    assert_eq!(plan.disks[0].target.name, "sdb");
    assert_eq!(plan.disks[1].target.name, "sda");
}

#[test]
fn a_machine_of_another_kind_is_refused_with_every_reason_at_once() {
    let manifest = manifest(vec![debian().image(0)]);
    let target = Inventory {
        firmware: FirmwareKind::Bios,
        architecture: "aarch64".to_owned(),
        ..machine(vec![disk("sda", 64 * MIB, SectorSize::S4096)])
    };
    let refusals = plan_restore(&manifest, &target, &Choices::default()).unwrap_err();
    assert_eq!(
        codes(&refusals),
        [
            ReasonCode::FirmwareType,
            ReasonCode::Architecture,
            ReasonCode::SectorSize
        ]
    );
}

#[test]
fn a_backup_of_the_other_firmware_is_restored_when_someone_insists() {
    let source = debian();
    let mut target = machine(vec![disk("sda", source.size(), source.sector)]);
    target.firmware = FirmwareKind::Bios;
    let manifest = manifest(vec![source.image(0)]);
    let refused = plan_restore(&manifest, &target, &Choices::default()).unwrap_err();
    assert_eq!(codes(&refused), [ReasonCode::FirmwareType]);
    let insist = Choices {
        firmware: FirmwareChoice::Insist,
        ..Choices::default()
    };
    let plan = plan_restore(&manifest, &target, &insist).unwrap();
    assert!(
        plan.notes[0].contains("starts only when"),
        "{:?}",
        plan.notes
    );
}

#[test]
fn what_counts_in_sectors_is_refused_on_a_disk_with_others() {
    let one = |file_system| Source {
        parts: vec![Part {
            first: 2048,
            sectors: 60 * 2048,
            file_system,
            whole: false,
            used: 5000,
        }],
        ..debian()
    };
    let planned = |source: &Source, change: fn(&mut DiskImage), firmware| {
        let mut image = source.image(0);
        change(&mut image);
        let mut manifest = manifest(vec![image]);
        manifest.firmware.kind = firmware;
        let mut target = machine(vec![disk("sda", 80 * MIB, SectorSize::S4096)]);
        target.firmware = firmware;
        plan_restore(&manifest, &target, &Choices::default())
    };
    let refused = |source: &Source, change: fn(&mut DiskImage), firmware, words: &str| {
        let refusals = planned(source, change, firmware).unwrap_err();
        assert_eq!(codes(&refusals), [ReasonCode::SectorSize], "{words}");
        assert!(refusals[0].text.contains(words), "{words}: {}", refusals[0]);
    };
    let uefi = FirmwareKind::Uefi;
    let ext4 = one(Some(FileSystemKind::Ext4));
    assert!(planned(&ext4, |_| (), uefi).is_ok());
    refused(&ext4, |_| (), FirmwareKind::Bios, "BIOS");
    let small: fn(&mut DiskImage) = |image| {
        image.regions[1].volume.as_mut().unwrap().block_size = 1024;
    };
    refused(&ext4, small, uefi, "blocks of 1024 bytes");
    let fat = one(Some(FileSystemKind::Fat32));
    assert!(planned(&fat, |_| (), uefi).is_ok());
    refused(&fat, small, uefi, "clusters of 1024 bytes");
    refused(&one(Some(FileSystemKind::Ntfs)), |_| (), uefi, "NTFS");
    refused(
        &one(Some(FileSystemKind::Xfs)),
        |_| (),
        uefi,
        "sectors of 512 bytes",
    );
    let unknown: fn(&mut DiskImage) = |image| {
        image.regions[1].volume.as_mut().unwrap().sector_size = None;
    };
    refused(
        &one(Some(FileSystemKind::Xfs)),
        unknown,
        uefi,
        "does not say",
    );
    let large: fn(&mut DiskImage) = |image| {
        image.regions[1].volume.as_mut().unwrap().sector_size = Some(4096);
    };
    assert!(planned(&one(Some(FileSystemKind::Xfs)), large, uefi).is_ok());
    refused(&one(None), |_| (), uefi, "nobody knows");
    let pc = Source { gpt: false, ..ext4 };
    refused(&pc, |_| (), uefi, "PC partition table");
}

#[test]
fn a_copy_changes_nothing_of_the_plan_but_what_is_said() {
    let source = debian();
    let mut target = machine(vec![disk("sda", source.size(), source.sector)]);
    target.firmware = FirmwareKind::Uefi;
    let manifest = manifest(vec![source.image(0)]);
    let copy = Choices {
        identity: Some(Identity::New),
        host_name: Some(HostName::try_from("pc-7".to_owned()).unwrap()),
        ..Choices::default()
    };
    let plan = plan_restore(&manifest, &target, &copy).unwrap();
    let usual = plan_restore(&manifest, &target, &Choices::default()).unwrap();
    assert_eq!(plan.disks, usual.disks);
    assert!(plan.notes.iter().any(|note| note.contains("the name pc-7")));
    assert!(plan.picture(&manifest).contains("pc-7"));
    assert!(!usual.picture(&manifest).contains("identity"));
    // As it is written down: absent is kept, and what is not known is refused.
    let json = serde_json::to_value(&copy).unwrap();
    assert_eq!(
        (&json["identity"], &json["host_name"]),
        (&"new".into(), &"pc-7".into())
    );
    assert_eq!(serde_json::from_value::<Choices>(json).unwrap(), copy);
    let json = serde_json::to_string(&Choices::default()).unwrap();
    assert!(
        !json.contains("identity") && !json.contains("host_name"),
        "{json}"
    );
    assert!(!serde_json::from_str::<Choices>("{}").unwrap().is_copy());
    for wrong in [r#"{"identity":"other"}"#, r#"{"host_name":"-"}"#] {
        assert!(serde_json::from_str::<Choices>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn partitions_that_are_found_by_their_sectors_do_not_move() {
    for kind in [backup::gpt::BIOS_BOOT_TYPE, backup::gpt::ESP_TYPE] {
        let mut source = debian();
        // It would grow, and what is behind it move.
        source.parts[0].file_system = Some(FileSystemKind::Ext4);
        source.parts[0].whole = false;
        let size = source.size();
        let mut image = source.image(0);
        let PartitionTable::Gpt(table) = &mut image.table else {
            panic!("no GPT");
        };
        table.entries.0[128..144].copy_from_slice(&kind.to_bytes_le());
        let crc = crc32fast::hash(&table.entries.0);
        table.header.0[88..92].copy_from_slice(&crc.to_le_bytes());
        table.header.0[16..20].fill(0);
        let crc = crc32fast::hash(&table.header.0[..92]);
        table.header.0[16..20].copy_from_slice(&crc.to_le_bytes());
        let choices = Choices {
            extra_space: ExtraSpace::Proportional,
            ..Choices::default()
        };
        let target = machine(vec![disk("sda", size + 100 * MIB, source.sector)]);
        let plan = plan_restore(&manifest(vec![image.clone()]), &target, &choices).unwrap();
        for (copy, region) in plan.disks[0].copies.iter().zip(&image.regions) {
            if region.kind == (RegionKind::Partition { number: 2 }) {
                assert_eq!(copy.destination, region.range);
            }
        }
        let grown: Vec<_> = plan.disks[0]
            .grow
            .iter()
            .map(|grow| grow.partition)
            .collect();
        assert_eq!(grown, [3]);
    }
}

#[test]
fn a_last_partition_that_cannot_grow_keeps_its_size_and_says_so() {
    let mut source = debian();
    source.parts[2].file_system = Some(FileSystemKind::Fat32);
    let manifest = manifest(vec![source.image(0)]);
    let target = machine(vec![disk("sda", 128 * MIB, S512)]);
    let plan = plan_restore(&manifest, &target, &Choices::default()).unwrap();
    assert!(plan.disks[0].grow.is_empty());
    assert!(
        plan.notes[0].contains("FAT32 is not made larger"),
        "{:?}",
        plan.notes
    );
}

#[test]
fn boot_code_behind_an_mbr_is_written_last() {
    let source = Source {
        gpt: false,
        parts: vec![Part {
            first: 2048,
            sectors: 60 * 2048,
            file_system: Some(FileSystemKind::Ext4),
            whole: false,
            used: 1000,
        }],
        ..debian()
    };
    let manifest = manifest(vec![source.image(0)]);
    let target = machine(vec![disk("sda", 64 * MIB, S512)]);
    let plan = plan_restore(&manifest, &target, &Choices::default()).unwrap();
    assert_eq!(
        plan.disks[0].copies[0].destination,
        ByteRange::between(512, MIB)
    );
    assert_eq!(plan.disks[0].copies[0].last, [ByteRange::between(512, MIB)]);
    assert_eq!(plan.disks[0].commit.len(), 1);
}

#[test]
fn a_disk_without_a_table_comes_back_as_it_is() {
    let mut image = debian().image(0);
    image.table = PartitionTable::None;
    let mut region = image.regions.swap_remove(0);
    region.kind = RegionKind::WholeDisk;
    region.range = ByteRange::between(0, 64 * MIB);
    image.regions = vec![region];
    let manifest = manifest(vec![image]);
    let target = |size| machine(vec![disk("sda", size, S512)]);
    let plan = plan_restore(&manifest, &target(100 * MIB), &Choices::default()).unwrap();
    assert!(plan.disks[0].commit.is_empty());
    assert_eq!(plan.disks[0].copies[0].last, [ByteRange::between(0, MIB)]);
    let refusals = plan_restore(&manifest, &target(63 * MIB), &Choices::default()).unwrap_err();
    assert_eq!(codes(&refusals), [ReasonCode::TooSmall]);
}

#[test]
fn the_picture_shows_both_disks_and_what_grows() {
    let manifest = manifest(vec![debian().image(0)]);
    let target = machine(vec![disk("sda", 128 * MIB, S512)]);
    let plan = plan_restore(&manifest, &target, &Choices::default()).unwrap();
    let expected = "\
disk 0 of the backup serial SOURCE-0, 64.0 MiB, GPT
+--------+-----------+----------------+
| 1 data |  2 FAT32  |     3 ext4     |
|1.00 MiB| 16.0 MiB  |    45.0 MiB    |
+--------+-----------+----------------+
      |
      v
sda \"QEMU HARDDISK\" serial SERIAL-sda, 128 MiB
+--------+--------------+----------------------------------------------------+
";
    let picture = plan.picture(&manifest);
    assert!(picture.starts_with(expected), "{picture}");
}
