//! R1: the restore planner beside an oracle: thousands of machines, made up with one to three disks of every layout,
//! and others to restore them to. Both have to say the same of what is possible, and why not; and each plan is
//! judged by the bytes that it writes.
//!
//! What is *not* here: what people have (`planner`), chosen volumes onto partitions (`mapping`).
#![allow(clippy::disallowed_methods, reason = "tests work on disks in memory")]

mod judge;
mod oracle;
mod source;

use backup::SectorSize;
use backup::hardware::{Disk, FirmwareKind, Inventory, MachineIdentity};
use backup::manifest::FileSystemKind::{self, Btrfs, Ext2, Ext4, Fat32, Lvm, Ntfs, Swap, Xfs};
use backup::manifest::{FORMAT, Firmware, Manifest};
use backup::plan::mapping::VolumeChoice;
use backup::plan::restore::plan_restore;
use backup::plan::{Choices, DiskChoice, ExtraSpace, FirmwareChoice, ReasonCode, RestorePlan};
use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::test_runner::TestCaseError;

use judge::Case;
use source::{ENTRIES, MIB, Part, Role, Source, Table, logical_volumes, report};

const SERIALS: [&str; 4] = ["A", "B", "C", "D"];
const NAMES: [&str; 4] = ["sda", "sdb", "sdc", "sdd"];

/// What a partition is drawn from: gap, length, use, kind, role, saved whole, logical, blocks.
type Drawn = (
    u64,
    u64,
    u64,
    Option<FileSystemKind>,
    Role,
    bool,
    bool,
    bool,
);

fn drawn() -> impl Strategy<Value = Drawn> {
    let kind = prop_oneof![
        4 => Just(Some(Ext4)),
        1 => Just(Some(Ext2)),
        2 => Just(Some(Ntfs)),
        2 => Just(Some(Btrfs)),
        1 => Just(Some(Xfs)),
        2 => Just(Some(Fat32)),
        1 => Just(Some(Swap)),
        2 => Just(Some(Lvm)),
        1 => Just(None),
    ];
    let role = prop_oneof![
        8 => Just(Role::Plain),
        1 => Just(Role::Esp),
        1 => Just(Role::BiosBoot),
        1 => Just(Role::Active),
        1 => Just(Role::Recovery),
    ];
    let len = prop_oneof![2 => 1u64..3000, 3 => 3000u64..400_000, 1 => 400_000u64..9_000_000_000];
    let gap = prop_oneof![2 => Just(0), 2 => Just(2048), 2 => 0u64..5000, 1 => 0u64..90_000];
    (
        gap,
        len,
        0u64..100,
        kind,
        role,
        prop::bool::weighted(0.1),
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
}

/// Puts what was drawn one behind the other, in sectors.
struct Layer {
    unit: u64,
    aligned: bool,
    at: u64,
}

impl Layer {
    fn part(&mut self, number: u32, (gap, len, used, kind, role, whole, _, small): Drawn) -> Part {
        let mut first = self.at + gap / self.unit;
        if self.aligned {
            first = first.next_multiple_of(2048 / self.unit);
        }
        let sectors = (len / self.unit).max(1);
        self.at = first + sectors;
        let bytes = sectors * self.unit * 512;
        Part {
            number,
            first,
            sectors,
            role,
            kind,
            block: if small && kind == Some(Ext4) {
                1024
            } else {
                4096
            },
            whole,
            used: (u128::from(bytes) * u128::from(used) / 100) as u64,
            record: None,
        }
    }
}

fn source() -> impl Strategy<Value = Source> {
    let serial =
        prop_oneof![3 => Just(None), 1 => prop::sample::select(&SERIALS[..]).prop_map(Some)];
    (
        (
            prop::bool::weighted(0.3),
            0u32..7,
            prop::bool::weighted(0.6),
        ),
        prop::collection::vec(drawn(), 1..7),
        (
            0u64..5000,
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.3),
        ),
        serial,
    )
        .prop_map(
            |((large, table, aligned), drawn, (tail, empty, reversed), serial)| {
                let sector = if large {
                    SectorSize::S4096
                } else {
                    SectorSize::S512
                };
                let unit = sector.bytes() / 512;
                let layer = Layer {
                    unit,
                    aligned,
                    at: 0,
                };
                let (table, parts, end) = match table {
                    0 => without_table(layer, drawn[0]),
                    1..=3 => on_mbr(layer, &drawn, empty),
                    _ => on_gpt(layer, &drawn, sector, reversed),
                };
                let reserve = if table == Table::Gpt {
                    ENTRIES / sector.bytes() + 1
                } else {
                    0
                };
                let tail = if table == Table::None { 0 } else { tail };
                Source {
                    sector,
                    sectors: end + tail + reserve,
                    table,
                    parts,
                    serial,
                }
            },
        )
}

fn without_table(mut layer: Layer, drawn: Drawn) -> (Table, Vec<Part>, u64) {
    let mut part = layer.part(
        1,
        (
            0,
            drawn.1,
            drawn.2,
            drawn.3,
            Role::Plain,
            drawn.5,
            false,
            false,
        ),
    );
    // Found by its bytes, and these are not there.
    if part.kind == Some(Lvm) {
        part.kind = None;
    }
    let end = part.end();
    (Table::None, vec![part], end)
}

fn on_gpt(
    mut layer: Layer,
    drawn: &[Drawn],
    sector: SectorSize,
    reversed: bool,
) -> (Table, Vec<Part>, u64) {
    layer.at = 2 + ENTRIES / sector.bytes();
    let count = drawn.len() as u32;
    let number = |index: u32| if reversed { count - index } else { index + 1 };
    let mut parts: Vec<_> = (0..)
        .zip(drawn)
        .map(|(index, drawn)| layer.part(number(index), *drawn))
        .collect();
    for part in &mut parts {
        if matches!(part.role, Role::Active | Role::Recovery) {
            part.role = Role::Plain;
        }
    }
    (Table::Gpt, parts, layer.at)
}

/// At most three primary partitions, one behind the extended one, which may be empty.
fn on_mbr(mut layer: Layer, drawn: &[Drawn], empty: bool) -> (Table, Vec<Part>, u64) {
    layer.at = 1;
    let mut parts = Vec::new();
    // Places are told in 32 bits.
    let drawn: Vec<_> = drawn
        .iter()
        .map(|one| {
            (
                one.0,
                one.1 % 500_000_000 + 1,
                one.2,
                one.3,
                one.4,
                one.5,
                one.6,
                one.7,
            )
        })
        .collect();
    let (logical, mut primary): (Vec<&Drawn>, Vec<&Drawn>) = drawn.iter().partition(|one| one.6);
    primary.truncate(3);
    let last = if primary.len() > 1 {
        primary.pop()
    } else {
        None
    };
    for (number, drawn) in (1..).zip(&primary) {
        parts.push(layer.part(number, **drawn));
    }
    let mut extended = None;
    if !logical.is_empty() || empty {
        let base = layer.at + 3;
        layer.at = base + u64::from(empty);
        for (number, drawn) in (5..).zip(&logical) {
            let record = layer.at;
            layer.at += 1;
            let mut part = layer.part(number, **drawn);
            part.record = Some(record);
            parts.push(part);
        }
        extended = Some((base, layer.at - base));
    }
    if let Some(drawn) = last {
        parts.push(layer.part(primary.len() as u32 + 1, *drawn));
    }
    let mut active = false;
    for part in &mut parts {
        let one_too_many = part.role == Role::Active && (active || part.record.is_some());
        if one_too_many || part.role == Role::BiosBoot {
            part.role = Role::Plain;
        }
        active |= part.role == Role::Active;
    }
    let empty_record = empty && extended.is_some();
    let table = Table::Mbr {
        extended,
        empty_record,
    };
    (table, parts, layer.at)
}

/// A target: more or less than what a source needs, in thousandths of it and in sectors.
#[derive(Debug, Clone)]
struct Target {
    share: u64,
    more: i64,
    other_sectors: bool,
    serial: Option<&'static str>,
    removable: bool,
    read_only: bool,
}

fn target() -> impl Strategy<Value = Target> {
    let share =
        prop_oneof![2 => Just(1000), 3 => 1000u64..1600, 3 => 100u64..1000, 1 => 1600u64..40_000];
    let more = prop_oneof![2 => Just(0), 2 => -80i64..80, 1 => -9000i64..90_000];
    let serial =
        prop_oneof![2 => Just(None), 2 => prop::sample::select(&SERIALS[..]).prop_map(Some)];
    (
        share,
        more,
        prop::bool::weighted(0.2),
        serial,
        prop::bool::weighted(0.07),
        prop::bool::weighted(0.05),
    )
        .prop_map(
            |(share, more, other_sectors, serial, removable, read_only)| Target {
                share,
                more,
                other_sectors,
                serial,
                removable,
                read_only,
            },
        )
}

impl Target {
    fn disk(&self, name: &str, source: &Source) -> Disk {
        let other = match source.sector {
            SectorSize::S512 => SectorSize::S4096,
            _ => SectorSize::S512,
        };
        let sector = if self.other_sectors {
            other
        } else {
            source.sector
        };
        let size = u128::from(source.size()) * u128::from(self.share) / 1000;
        // Not always whole sectors.
        let size = (size as u64)
            .saturating_add_signed(self.more * 512)
            .max(64 << 10)
            / 512
            * 512;
        Disk {
            removable: self.removable,
            read_only: self.read_only,
            ..report(name, self.serial, size, sector)
        }
    }
}

fn manifest(sources: &[Source], firmware: FirmwareKind) -> Manifest {
    let images = (0u32..)
        .zip(sources)
        .map(|(number, source)| source.image(number));
    let disks: Vec<_> = images.collect();
    let manifest = Manifest {
        format: FORMAT,
        id: "2026-11-25-1".to_owned().try_into().unwrap(),
        kind: Default::default(),
        image: None,
        hardware: None,
        captured_at: 1_795_000_000,
        agent_version: "0.1.0".to_owned(),
        machine: MachineIdentity::default(),
        architecture: "x86_64".to_owned(),
        firmware: Firmware {
            kind: firmware,
            boot_entries: Vec::new(),
            boot_order: Vec::new(),
        },
        system: None,
        logical_volumes: logical_volumes(&disks),
        disks,
        warnings: Vec::new(),
    };
    manifest.check().unwrap();
    manifest
}

fn machine(disks: Vec<Disk>, firmware: FirmwareKind) -> Inventory {
    Inventory {
        identity: MachineIdentity::default(),
        firmware,
        architecture: "x86_64".to_owned(),
        disks,
        nics: Vec::new(),
        memory: 4 << 30,
        without_driver: Vec::new(),
    }
}

/// Volumes of the sources that are asked to be left out, and the codes of those that cannot be.
fn left_out(sources: &[Source], asked: &[(u32, u32)]) -> (Vec<(u32, u32)>, Vec<ReasonCode>) {
    let (mut good, mut codes) = (Vec::new(), Vec::new());
    for (disk, number) in asked {
        let source = sources.get(*disk as usize);
        let source = source.filter(|source| source.table != Table::None);
        let part =
            source.and_then(|source| source.parts.iter().find(|part| part.number == *number));
        match part {
            None => codes.push(ReasonCode::VolumeNotFound),
            Some(part) if part.kind == Some(Lvm) => codes.push(ReasonCode::VolumeUnsupported),
            Some(_) => good.push((*disk, *number)),
        }
    }
    (good, codes)
}

fn policies() -> impl Strategy<Value = ExtraSpace> {
    prop_oneof![
        3 => Just(ExtraSpace::Last),
        3 => Just(ExtraSpace::Proportional),
        1 => Just(ExtraSpace::None),
    ]
}

fn firmwares() -> impl Strategy<Value = FirmwareKind> {
    prop_oneof![Just(FirmwareKind::Bios), Just(FirmwareKind::Uefi)]
}

fn sorted(mut codes: Vec<ReasonCode>) -> Vec<ReasonCode> {
    codes.sort_unstable();
    codes
}

fn fail<T>(result: Result<T, String>) -> Result<T, TestCaseError> {
    result.map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(4000))]

    #[test]
    fn one_disk_is_planned_as_the_oracle_says(
        source in source(), target in target(), policy in policies(), firmware in firmwares(),
    ) {
        let disk = Target { removable: false, read_only: false, ..target }.disk("sda", &source);
        let manifest = manifest(std::slice::from_ref(&source), firmware);
        let choices = Choices { extra_space: policy, ..Choices::default() };
        let expected = oracle::fit(&source, &disk, firmware);
        match (plan_restore(&manifest, &machine(vec![disk], firmware), &choices), expected) {
            (Ok(plan), Ok(fit)) => {
                let case = Case {
                    source: &source,
                    image: &manifest.disks[0],
                    volumes: &manifest.logical_volumes,
                    fit: &fit,
                    policy,
                    empty: &[],
                    plan: &plan.disks[0],
                };
                fail(case.judge())?;
            }
            (Err(refusals), Err(code)) => {
                let codes: Vec<_> = refusals.iter().map(|refusal| refusal.code).collect();
                prop_assert_eq!(codes, [code], "{:?}", refusals);
            }
            (Ok(plan), Err(code)) => prop_assert!(
                false, "planned, the oracle says {:?}: {:?}", code, plan.disks[0].partitions
            ),
            (Err(refusals), Ok(fit)) => {
                prop_assert!(false, "the oracle has a place for {:?}: {:?}", fit, refusals);
            }
        }
    }

    #[test]
    fn several_disks_are_planned_as_the_oracle_says(
        sources in prop::collection::vec(source(), 1..4),
        targets in prop::collection::vec((target(), 0usize..4), 0..5),
        chosen in prop::collection::vec((0u32..4, any::<bool>(), 0usize..4), 0..4),
        asked in prop::collection::vec((0u32..3, 1u32..7), 0..2),
        policy in policies(),
        kinds in (firmwares(), firmwares(), any::<bool>()),
    ) {
        let (backup, here, insists) = kinds;
        let disks: Vec<_> = targets
            .iter()
            .zip(NAMES)
            .map(|((target, like), name)| target.disk(name, &sources[like % sources.len()]))
            .collect();
        let chosen: Vec<(u32, &str)> = chosen
            .iter()
            .map(|(source, by_name, at)| (*source, if *by_name { NAMES[*at] } else { SERIALS[*at] }))
            .collect();
        let manifest = manifest(&sources, backup);
        let choices = Choices {
            disks: chosen
                .iter()
                .map(|(source, target)| DiskChoice { source: *source, target: (*target).to_owned() })
                .collect(),
            extra_space: policy,
            firmware: if insists { FirmwareChoice::Insist } else { FirmwareChoice::Same },
            volumes: asked
                .iter()
                .map(|(disk, partition)| VolumeChoice { disk: *disk, partition: *partition, target: None })
                .collect(),
            ..Choices::default()
        };
        let (empty, mut codes) = left_out(&sources, &asked);
        if backup != here && !insists {
            codes.push(ReasonCode::FirmwareType);
        }
        let mut fits = Vec::new();
        match oracle::assigned(&sources, &disks, &chosen) {
            Err(more) => codes.extend(more),
            Ok(places) => for (source, place) in sources.iter().zip(places) {
                match oracle::fit(source, &disks[place], backup) {
                    Ok(fit) => fits.push((fit, place)),
                    Err(code) => codes.push(code),
                }
            },
        }
        match plan_restore(&manifest, &machine(disks.clone(), here), &choices) {
            Err(refusals) => {
                let found = refusals.iter().map(|refusal| refusal.code).collect();
                prop_assert_eq!(sorted(found), sorted(codes), "{:#?}", refusals);
                prop_assert!(refusals.iter().all(|refusal| refusal.text.len() > 30));
            }
            Ok(plan) => {
                prop_assert!(codes.is_empty(), "the oracle says {:?}", codes);
                prop_assert_eq!(plan.disks.len(), sources.len());
                for (index, (fit, place)) in fits.iter().enumerate() {
                    let of_disk = empty.iter().filter(|(disk, _)| *disk as usize == index);
                    let empty: Vec<_> = of_disk.map(|(_, number)| *number).collect();
                    let planned = &plan.disks[index];
                    prop_assert_eq!(&planned.target.name, &disks[*place].name);
                    let case = Case {
                        source: &sources[index],
                        image: &manifest.disks[index],
                        volumes: &manifest.logical_volumes,
                        fit,
                        policy,
                        empty: &empty,
                        plan: planned,
                    };
                    fail(case.judge())?;
                }
                let text = serde_json::to_string(&plan).unwrap();
                prop_assert_eq!(&serde_json::from_str::<RestorePlan>(&text).unwrap(), &plan);
            }
        }
    }
}

#[test]
fn what_is_drawn_is_what_is_meant() {
    // Both sides could be blind to the same thing: here are numbers that a person has reckoned.
    let part = |number, first, sectors, kind| Part {
        number,
        first,
        sectors,
        role: Role::Plain,
        kind: Some(kind),
        block: 4096,
        whole: false,
        used: 8 * MIB,
        record: None,
    };
    let source = Source {
        sector: SectorSize::S512,
        sectors: 202 * 2048,
        table: Table::Gpt,
        parts: vec![
            part(1, 2048, 100 * 2048, Ext4),
            part(2, 101 * 2048, 100 * 2048, Xfs),
        ],
        serial: None,
    };
    let fit = |size| {
        oracle::fit(
            &source,
            &report("sda", None, size, SectorSize::S512),
            FirmwareKind::Uefi,
        )
    };
    // Ends at 201 MiB, with 33 sectors behind it; ext4 keeps 24.5 MiB, so that it gives 75.
    assert_eq!(fit(201 * MIB + 33 * 512).unwrap().excess, 0);
    assert_eq!(fit(201 * MIB).unwrap().excess, i128::from(MIB));
    assert_eq!(
        fit(126 * MIB + 33 * 512).unwrap().excess,
        75 * i128::from(MIB)
    );
    assert_eq!(fit(126 * MIB).unwrap_err(), ReasonCode::TooSmall);
}

#[test]
fn everything_that_is_meant_to_be_drawn_is() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = (source(), target(), policies(), firmwares());
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..3000 {
        let drawn = strategy.new_tree(&mut runner).unwrap().current();
        let (source, target, policy, firmware) = drawn;
        let disk = target.disk("sda", &source);
        let table = match source.table {
            Table::Gpt => "GPT",
            Table::None => "none",
            Table::Mbr { extended: None, .. } => "MBR",
            Table::Mbr { .. } => "extended",
        };
        let image = [source.image(0)];
        let mut count = |what: String| *seen.entry(what).or_default() += 1;
        if !logical_volumes(&image).is_empty() {
            count(format!("{table} LVM"));
        }
        match oracle::fit(&source, &disk, firmware) {
            Ok(fit) if fit.excess > 0 => count(format!("{table} smaller")),
            Ok(_) if disk.size > source.size() => count(format!("{table} larger {policy:?}")),
            Ok(_) => count(format!("{table} fits")),
            Err(code) => count(format!("{table} {code:?}")),
        }
        if disk.logical_sector != source.sector && oracle::fit(&source, &disk, firmware).is_ok() {
            count(format!("{table} other sectors"));
        }
    }
    eprintln!("{seen:#?}");
    for what in [
        "GPT LVM",
        "MBR LVM",
        "extended LVM",
        "GPT smaller",
        "MBR smaller",
        "extended smaller",
        "GPT larger Last",
        "GPT larger Proportional",
        "GPT larger None",
        "extended larger Last",
        "extended larger Proportional",
        "GPT fits",
        "GPT TooSmall",
        "GPT CannotShrink",
        "extended TooSmall",
        "extended CannotShrink",
        "none TooSmall",
        "GPT SectorSize",
        "GPT other sectors",
    ] {
        assert!(
            seen.get(what).is_some_and(|count| *count >= 4),
            "{what}: {seen:#?}"
        );
    }
}

#[test]
fn an_empty_extended_partition_behind_the_last_one_needs_room_too() {
    let part = Part {
        number: 1,
        first: 2048,
        sectors: 10 * 2048,
        role: Role::Plain,
        kind: Some(Xfs),
        block: 4096,
        whole: false,
        used: MIB,
        record: None,
    };
    let source = Source {
        sector: SectorSize::S512,
        sectors: 40 * 2048,
        table: Table::Mbr {
            extended: Some((20 * 2048, 10 * 2048)),
            empty_record: true,
        },
        parts: vec![part],
        serial: None,
    };
    let manifest = manifest(&[source], FirmwareKind::Bios);
    let plan = |size: u64| {
        let disk = report("sda", None, size, SectorSize::S512);
        plan_restore(
            &manifest,
            &machine(vec![disk], FirmwareKind::Bios),
            &Choices::default(),
        )
    };
    assert!(plan(20 * MIB + 512).is_ok());
    let refusals = plan(20 * MIB).unwrap_err();
    let codes: Vec<_> = refusals.iter().map(|refusal| refusal.code).collect();
    assert_eq!(codes, [ReasonCode::CannotShrink], "{refusals:?}");
}
