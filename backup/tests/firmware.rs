//! R5, R9: backups of machines that start by the other type of firmware. Tables are made and judged by `sfdisk` and
//! `sgdisk`, new FAT volumes by `fsck.fat` and `mtools`.
#![allow(clippy::disallowed_methods, reason = "tests work on image files")]

mod images;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use backup::filesystem::new_fat::{NewFat, NewFatError, NewFile, made};
use backup::hardware::{Disk, FirmwareKind, Inventory, MachineIdentity};
use backup::identity::Identity;
use backup::layout::survey_disk;
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, FORMAT, FileSystemKind, Firmware, Manifest, OperatingSystem,
    Region, RegionKind, Volume,
};
use backup::plan::restore::plan_restore;
use backup::plan::{
    Choices, DiskPlan, ExtraSpace, FirmwareChoice, ReasonCode, Refusal, RestorePlan,
};
use backup::{ByteRange, Digest, SectorSize};
use images::{Image, folder, run};
use proptest::prelude::{Just, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

const MIB: u64 = 1 << 20;

/// Writes a table in sfdisk's language to a new image.
fn image(path: &Path, size: u64, table: &str) {
    File::create(path).unwrap().set_len(size).unwrap();
    let mut sfdisk = Command::new("/usr/sbin/sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("`sfdisk` cannot be run: install the package `fdisk`");
    std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success(), "{table}");
}

/// The disk as it would be captured; `kinds` are the file systems of its partitions by number, with the bytes in use.
fn captured(path: &Path, kinds: &[(u32, FileSystemKind, u64)]) -> DiskImage {
    let size = std::fs::metadata(path).unwrap().len();
    let layout = survey_disk(&Image::open(path), size, SectorSize::S512).unwrap();
    let regions = layout.regions.iter().map(|region| {
        let number = match region.kind {
            RegionKind::Partition { number } => number,
            _ => 0,
        };
        let known = kinds.iter().find(|(own, ..)| *own == number);
        let volume = known.map(|(_, file_system, used)| Volume {
            file_system: *file_system,
            label: None,
            uuid: None,
            block_size: 4096,
            size: region.range.len(),
            used: Some(*used),
            sector_size: None,
        });
        let used = known.map_or(region.range.len(), |(_, _, used)| *used);
        Region {
            kind: region.kind.clone(),
            range: region.range,
            volume,
            coverage: match &region.left_out {
                Some(reason) => Coverage::LeftOut {
                    reason: reason.clone(),
                },
                None => Coverage::UsedBlocks,
            },
            was_encrypted: None,
            content: ChunkListRef {
                digest: Digest::of(b""),
                chunks: 1,
                data_bytes: if region.left_out.is_some() { 0 } else { used },
                zero_bytes: 0,
            },
        }
    });
    DiskImage {
        number: 0,
        model: None,
        serial: Some("SOURCE".to_owned()),
        wwn: None,
        size,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        table: layout.table.clone(),
        regions: regions.collect(),
    }
}

fn manifest(firmware: FirmwareKind, disk: DiskImage) -> Manifest {
    Manifest {
        format: FORMAT,
        id: "20261125-1".to_owned().try_into().unwrap(),
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
        system: Some(OperatingSystem {
            name: "Debian GNU/Linux".to_owned(),
            version: None,
            host_name: None,
        }),
        disks: vec![disk],
        logical_volumes: Vec::new(),
        warnings: Vec::new(),
    }
}

fn machine(firmware: FirmwareKind, size: u64) -> Inventory {
    let disk = Disk {
        name: "sda".to_owned(),
        model: None,
        serial: Some("TARGET".to_owned()),
        wwn: None,
        size,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    };
    Inventory {
        identity: MachineIdentity::default(),
        firmware,
        architecture: "x86_64".to_owned(),
        disks: vec![disk],
        nics: Vec::new(),
        memory: 1 << 30,
        without_driver: Vec::new(),
    }
}

fn convert() -> Choices {
    Choices {
        firmware: FirmwareChoice::Convert,
        ..Choices::default()
    }
}

fn to_uefi(disk: DiskImage, size: u64) -> Result<RestorePlan, Vec<Refusal>> {
    let manifest = manifest(FirmwareKind::Bios, disk);
    plan_restore(&manifest, &machine(FirmwareKind::Uefi, size), &convert())
}

fn to_bios(disk: DiskImage, size: u64) -> Result<RestorePlan, Vec<Refusal>> {
    let manifest = manifest(FirmwareKind::Uefi, disk);
    plan_restore(&manifest, &machine(FirmwareKind::Bios, size), &convert())
}

fn codes(refusals: &[Refusal]) -> Vec<ReasonCode> {
    refusals.iter().map(|refusal| refusal.code).collect()
}

/// One partition as `sfdisk` prints it: number, start, sectors, type.
type Part = (u32, u64, u64, String);

/// What the tools find on a disk to which the plan's commit was written.
fn committed(path: &Path, plan: &DiskPlan) -> Vec<Part> {
    let file = File::create(path).unwrap();
    file.set_len(plan.target.size).unwrap();
    for write in &plan.commit {
        file.write_all_at(&write.bytes.0, write.offset).unwrap();
    }
    let at = path.to_str().unwrap();
    let verified = run("gdisk", "sgdisk", &["--verify", at]);
    assert!(verified.contains("No problems found"), "{verified}");
    let json = run("fdisk", "sfdisk", &["--json", at]);
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["partitiontable"]["label"], "gpt");
    let parts = found["partitiontable"]["partitions"].as_array().unwrap();
    let number = |node: &str| {
        let digits = node.trim_start_matches(at).trim_start_matches('p');
        digits.parse().unwrap()
    };
    parts
        .iter()
        .map(|part| {
            (
                number(part["node"].as_str().unwrap()),
                part["start"].as_u64().unwrap(),
                part["size"].as_u64().unwrap(),
                part["type"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
const SWAP: &str = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F";
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
/// A primary, an extended one with two logical ones, room behind them.
const PC: &str = "label: dos\nstart=2048,size=409600,type=83,bootable\nstart=413696,size=407552,type=5\n\
     start=415744,size=81920,type=82\nstart=499712,size=321536,type=83\n";

#[test]
fn a_pc_table_becomes_a_gpt_with_the_same_numbers_and_an_esp_at_the_end() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(&path, 512 * MIB, PC);
    let disk = captured(
        &path,
        &[
            (1, FileSystemKind::Ext4, 20 * MIB),
            (5, FileSystemKind::Swap, 0),
            (6, FileSystemKind::Ext4, 20 * MIB),
        ],
    );
    let plan = to_uefi(disk.clone(), 512 * MIB).unwrap();
    let again = to_uefi(disk, 512 * MIB).unwrap();
    assert_eq!(plan, again, "the same restore is the same plan");
    let plan = &plan.disks[0];
    let conversion = plan.conversion.unwrap();
    assert_eq!(
        (conversion.to, conversion.partition),
        (FirmwareKind::Uefi, 7)
    );
    assert!(conversion.made);
    let found = committed(&path, plan);
    // 512 MiB less 33 sectors for the backup table; whole MiB.
    let esp = (447 * 2048, 64 * 2048);
    assert_eq!(
        found,
        [
            (1, 2048, 409_600, LINUX.to_owned()),
            (5, 415_744, 81_920, SWAP.to_owned()),
            (6, 499_712, 321_536, LINUX.to_owned()),
            (7, esp.0, esp.1, ESP.to_owned()),
        ]
    );
    let planned = plan.partitions.iter().find(|one| one.esp).unwrap();
    assert_eq!((planned.number, planned.range.start()), (7, 447 * MIB));
    // Nothing of the boot loader for BIOS, and no sign of what was where the ESP is.
    assert!(
        plan.copies
            .iter()
            .all(|copy| copy.destination.start() >= MIB)
    );
    let front = ByteRange::between(447 * MIB, 448 * MIB);
    assert!(plan.invalidate.iter().any(|range| range.contains(front)));
    assert!(plan.grow.is_empty() && plan.shrink.is_empty());
}

#[test]
fn on_a_larger_disk_the_last_partition_grows_up_to_the_esp() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(
        &path,
        256 * MIB,
        "label: dos\nstart=2048,size=522240,type=83\n",
    );
    let disk = captured(&path, &[(1, FileSystemKind::Ext4, 20 * MIB)]);
    let plan = to_uefi(disk, 1024 * MIB).unwrap();
    let found = committed(&path, &plan.disks[0]);
    let ends: Vec<_> = found
        .iter()
        .map(|(_, start, size, _)| start + size)
        .collect();
    assert_eq!(ends, [959 * 2048, 1023 * 2048]);
    assert_eq!(plan.disks[0].grow[0].to, 958 * MIB);
}

#[test]
fn where_there_is_no_room_a_file_system_is_made_smaller_or_it_is_refused() {
    let folder = folder();
    let path = folder.path().join("disk");
    // To the last sector, where a backup GPT has to be.
    image(
        &path,
        256 * MIB,
        "label: dos\nstart=2048,size=522240,type=83\n",
    );
    let disk = |kind, used| captured(&path, &[(1, kind, used)]);
    let full = disk(FileSystemKind::Ext4, 200 * MIB);
    let xfs = disk(FileSystemKind::Xfs, 20 * MIB);
    let plan = to_uefi(disk(FileSystemKind::Ext4, 20 * MIB), 256 * MIB).unwrap();
    let found = committed(&folder.path().join("target"), &plan.disks[0]);
    let parts: Vec<_> = found
        .iter()
        .map(|(_, start, size, _)| (start / 2048, size / 2048))
        .collect();
    assert_eq!(parts, [(1, 190), (191, 64)]);
    assert_eq!(plan.disks[0].shrink[0].to, 190 * MIB);
    let refused = to_uefi(full, 256 * MIB).unwrap_err();
    assert_eq!(codes(&refused), [ReasonCode::TooSmall]);
    let refused = to_uefi(xfs, 256 * MIB).unwrap_err();
    assert_eq!(codes(&refused), [ReasonCode::CannotShrink]);
    // A hole between partitions will do.
    let table = "label: dos\nstart=2048,size=102400,type=83\nstart=307200,size=217088,type=83\n";
    image(&path, 256 * MIB, table);
    let disk = captured(
        &path,
        &[(1, FileSystemKind::Xfs, MIB), (2, FileSystemKind::Xfs, MIB)],
    );
    // The last partition ends with the disk, where the backup GPT has to be.
    let refused = to_uefi(disk.clone(), 256 * MIB).unwrap_err();
    assert_eq!(codes(&refused), [ReasonCode::CannotShrink]);
    let plan = to_uefi(disk, 257 * MIB).unwrap();
    let found = committed(&path, &plan.disks[0]);
    assert_eq!(found[2], (3, 51 * 2048, 64 * 2048, ESP.to_owned()));
}

#[test]
fn a_gpt_keeps_its_esp_and_gets_one_where_it_has_none() {
    let folder = folder();
    let path = folder.path().join("disk");
    let table = format!(
        "label: gpt\nstart=2048,size=2048,type={BIOS_BOOT}\nstart=4096,size=204800,type=uefi\n\
         start=208896,size=204800,type=linux\n"
    );
    image(&path, 256 * MIB, &table);
    let with = |used| {
        captured(
            &path,
            &[
                (2, FileSystemKind::Fat32, used),
                (3, FileSystemKind::Ext4, 20 * MIB),
            ],
        )
    };
    let (free, full) = (with(MIB), with(90 * MIB));
    let plan = to_uefi(free, 256 * MIB).unwrap();
    let conversion = plan.disks[0].conversion.unwrap();
    assert_eq!((conversion.partition, conversion.made), (2, false));
    let found = committed(&folder.path().join("target"), &plan.disks[0]);
    assert_eq!(found.len(), 3);
    let refused = to_uefi(full, 256 * MIB).unwrap_err();
    assert_eq!(codes(&refused), [ReasonCode::CannotConvert]);
    assert!(
        refused[0].text.contains("10.0 MiB free"),
        "{}",
        refused[0].text
    );

    let without = Choices {
        volumes: vec!["0:2=none".parse().unwrap()],
        ..convert()
    };
    let manifest = manifest(FirmwareKind::Bios, with(MIB));
    let target = machine(FirmwareKind::Uefi, 256 * MIB);
    let refused = plan_restore(&manifest, &target, &without).unwrap_err();
    assert_eq!(codes(&refused), [ReasonCode::CannotConvert]);

    let table = format!(
        "label: gpt\nstart=2048,size=2048,type={BIOS_BOOT}\nstart=4096,size=204800,type=linux\n"
    );
    image(&path, 256 * MIB, &table);
    let disk = captured(&path, &[(2, FileSystemKind::Ext4, 20 * MIB)]);
    let plan = to_uefi(disk, 256 * MIB).unwrap();
    let found = committed(&path, &plan.disks[0]);
    assert_eq!(found[2], (3, 191 * 2048, 64 * 2048, ESP.to_owned()));
}

#[test]
fn a_disk_for_uefi_gets_a_partition_for_grub_before_its_first_one() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(
        &path,
        256 * MIB,
        "label: gpt\nstart=2048,size=204800,type=uefi\nstart=206848,size=204800,type=linux\n",
    );
    let kinds = [
        (1, FileSystemKind::Fat32, MIB),
        (2, FileSystemKind::Ext4, 20 * MIB),
    ];
    let plan = to_bios(captured(&path, &kinds), 256 * MIB).unwrap();
    let found = committed(&folder.path().join("target"), &plan.disks[0]);
    assert_eq!(found[2], (3, 34, 2014, BIOS_BOOT.to_owned()));
    assert_eq!(plan.disks[0].conversion.unwrap().to, FirmwareKind::Bios);

    // No room there: at the end.
    image(
        &path,
        256 * MIB,
        "label: gpt\nfirst-lba: 34\nstart=40,size=204800,type=uefi\nstart=206848,size=204800,type=linux\n",
    );
    // Nothing that is read before the commit is in the first one.
    let plan = to_bios(captured(&path, &kinds[1..]), 256 * MIB).unwrap();
    let found = committed(&folder.path().join("target"), &plan.disks[0]);
    assert_eq!(found[2], (3, 254 * 2048, 2048, BIOS_BOOT.to_owned()));

    // One that is there is used.
    let table = format!(
        "label: gpt\nstart=2048,size=2048,type={BIOS_BOOT}\nstart=4096,size=204800,type=linux\n"
    );
    image(&path, 256 * MIB, &table);
    let disk = captured(&path, &[(2, FileSystemKind::Ext4, 20 * MIB)]);
    let conversion = to_bios(disk, 256 * MIB).unwrap().disks[0]
        .conversion
        .unwrap();
    assert_eq!((conversion.partition, conversion.made), (1, false));
}

#[test]
fn what_cannot_be_converted_is_refused_with_its_reason() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(
        &path,
        256 * MIB,
        "label: dos\nstart=2048,size=204800,type=83\n",
    );
    let disk = || captured(&path, &[(1, FileSystemKind::Ext4, 20 * MIB)]);
    let refused = |change: &dyn Fn(&mut Manifest, &mut Inventory, &mut Choices)| {
        let mut manifest = manifest(FirmwareKind::Bios, disk());
        let mut target = machine(FirmwareKind::Uefi, 256 * MIB);
        let mut choices = convert();
        change(&mut manifest, &mut target, &mut choices);
        let refused = plan_restore(&manifest, &target, &choices).unwrap_err();
        (refused[0].code, refused[0].text.clone())
    };
    let expect = |found: (ReasonCode, String), code, words: &str| {
        assert_eq!(found.0, code, "{}", found.1);
        assert!(found.1.contains(words), "{}", found.1);
    };
    let code = ReasonCode::CannotConvert;
    expect(
        refused(&|manifest, _, _| manifest.system = None),
        code,
        "no system was found",
    );
    let windows = |manifest: &mut Manifest, _: &mut Inventory, _: &mut Choices| {
        manifest.system.as_mut().unwrap().name = "Windows".to_owned();
    };
    expect(refused(&windows), code, "it is a Windows");
    let beside = |manifest: &mut Manifest, _: &mut Inventory, _: &mut Choices| {
        let mut regions = manifest.disks[0].regions.iter_mut();
        let region = regions.find(|one| one.volume.is_some()).unwrap();
        region.volume.as_mut().unwrap().file_system = FileSystemKind::Ntfs;
    };
    // Nothing of Linux is on any disk then.
    expect(refused(&beside), code, "no disk of it has a system");
    let copy = |_: &mut Manifest, _: &mut Inventory, choices: &mut Choices| {
        choices.identity = Some(Identity::New);
    };
    expect(refused(&copy), code, "--identity kept");
    let arm = |manifest: &mut Manifest, target: &mut Inventory, _: &mut Choices| {
        manifest.architecture = "aarch64".to_owned();
        target.architecture = "aarch64".to_owned();
    };
    expect(refused(&arm), code, "aarch64");
    let nothing_said = |_: &mut Manifest, _: &mut Inventory, choices: &mut Choices| {
        choices.firmware = FirmwareChoice::Same;
    };
    expect(
        refused(&nothing_said),
        ReasonCode::FirmwareType,
        "converted to UEFI",
    );

    image(
        &path,
        256 * MIB,
        "label: dos\nstart=8,size=204800,type=83\n",
    );
    let early = to_uefi(disk(), 256 * MIB).unwrap_err();
    expect(
        (early[0].code, early[0].text.clone()),
        code,
        "begins at sector 8",
    );
    let pc = to_bios(disk(), 256 * MIB).unwrap_err();
    expect(
        (pc[0].code, pc[0].text.clone()),
        code,
        "no GUID partition table",
    );
}

#[test]
fn no_file_system_lies_where_the_mark_of_an_unfinished_restore_is() {
    let folder = folder();
    let path = folder.path().join("disk");
    let refused = |refused: Result<RestorePlan, Vec<Refusal>>| {
        let refused = refused.unwrap_err();
        assert_eq!(codes(&refused), [ReasonCode::CannotConvert]);
        let text = &refused[0].text;
        assert!(text.contains("leaves its mark"), "{text}");
        text.clone()
    };
    // A first partition at sector 63, as tools made it for decades; up to the mark, and into it.
    for (len, fits) in [(1977, true), (1978, false), (204_800, false)] {
        let table =
            format!("label: dos\nstart=63,size={len},type=83\nstart=206848,size=204800,type=83\n");
        image(&path, 256 * MIB, &table);
        let kinds = [
            (1, FileSystemKind::Ext4, MIB / 2),
            (2, FileSystemKind::Ext4, MIB),
        ];
        let found = to_uefi(captured(&path, &kinds), 512 * MIB);
        if fits {
            found.unwrap();
        } else {
            let text = refused(found);
            assert!(text.contains("partition 1 of disk 0"), "{text}");
        }
    }
    // On another disk than the one with the system.
    let mut other = captured(&path, &[(1, FileSystemKind::Xfs, MIB)]);
    other.number = 1;
    other.serial = Some("OTHER".to_owned());
    image(
        &path,
        256 * MIB,
        "label: dos\nstart=2048,size=204800,type=83\n",
    );
    let mut manifest = manifest(
        FirmwareKind::Bios,
        captured(&path, &[(1, FileSystemKind::Ext4, 20 * MIB)]),
    );
    manifest.disks.push(other);
    let mut target = machine(FirmwareKind::Uefi, 512 * MIB);
    target.disks[0].serial = Some("SOURCE".to_owned());
    let second = Disk {
        name: "sdb".to_owned(),
        serial: Some("OTHER".to_owned()),
        ..target.disks[0].clone()
    };
    target.disks.push(second);
    let text = refused(plan_restore(&manifest, &target, &convert()));
    assert!(text.contains("partition 1 of disk 1"), "{text}");
    // GRUB's own partition, which is there.
    let table = format!(
        "label: gpt\nfirst-lba: 34\nstart=34,size=2014,type={BIOS_BOOT}\nstart=4096,size=204800,type=linux\n"
    );
    image(&path, 256 * MIB, &table);
    let text = refused(to_bios(
        captured(&path, &[(2, FileSystemKind::Ext4, 20 * MIB)]),
        256 * MIB,
    ));
    assert!(text.contains("second stage 1 begins"), "{text}");
}

#[test]
fn what_is_not_taken_over_and_not_checked_is_said() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(
        &path,
        256 * MIB,
        "label: dos\nstart=2048,size=102400,type=83\nstart=120832,size=102400,type=83\n",
    );
    let kinds = [
        (1, FileSystemKind::Ext4, 20 * MIB),
        (2, FileSystemKind::Ext4, 20 * MIB),
    ];
    let mut disk = captured(&path, &kinds);
    // Before the first MiB is the boot loader, then something that nobody knows, and behind the last one nothing.
    let mut early = 0;
    for gap in disk
        .regions
        .iter_mut()
        .filter(|one| one.kind == RegionKind::Gap)
    {
        gap.content.data_bytes = match gap.range.start() {
            start if start < MIB => {
                early += 1;
                512
            }
            start if start < 100 * MIB => 3 * MIB,
            _ => 0,
        };
    }
    assert!(early > 0);
    let notes = to_uefi(disk, 512 * MIB).unwrap().notes;
    let lost: Vec<_> = notes
        .iter()
        .filter(|note| note.contains("not restored"))
        .collect();
    assert_eq!(lost.len(), 1, "{notes:?}");
    assert!(lost[0].starts_with("3.00 MiB of data in "), "{}", lost[0]);

    let table =
        "label: gpt\nstart=4096,size=204800,type=uefi\nstart=208896,size=204800,type=linux\n";
    image(&path, 256 * MIB, table);
    let kinds = [
        (1, FileSystemKind::Fat32, MIB),
        (2, FileSystemKind::Ext4, 20 * MIB),
    ];
    let notes = to_uefi(captured(&path, &kinds), 256 * MIB).unwrap().notes;
    assert!(
        notes.iter().any(|note| note.contains("is not checked")),
        "{notes:?}"
    );
}

#[test]
fn a_bios_machine_starts_from_the_disk_with_boot_code_and_not_from_an_old_esp() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(
        &path,
        256 * MIB,
        "label: gpt\nstart=4096,size=204800,type=uefi\n",
    );
    let old = captured(&path, &[(1, FileSystemKind::Fat32, MIB)]);
    image(
        &path,
        256 * MIB,
        "label: dos\nstart=2048,size=204800,type=83\n",
    );
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xeb, 0x63], 0).unwrap();
    let mut starts = captured(&path, &[(1, FileSystemKind::Ext4, MIB)]);
    starts.number = 1;
    starts.serial = Some("STARTS".to_owned());
    let mut manifest = manifest(FirmwareKind::Bios, old);
    manifest.disks.push(starts);
    let mut target = machine(FirmwareKind::Uefi, 512 * MIB);
    target.disks[0].serial = Some("SOURCE".to_owned());
    let second = Disk {
        name: "sdb".to_owned(),
        serial: Some("STARTS".to_owned()),
        ..target.disks[0].clone()
    };
    target.disks.push(second);
    let plan = plan_restore(&manifest, &target, &convert()).unwrap();
    let converted: Vec<_> = plan
        .disks
        .iter()
        .filter(|disk| disk.conversion.is_some())
        .map(|disk| disk.source)
        .collect();
    assert_eq!(converted, [1]);
}

#[test]
fn a_machine_of_the_same_firmware_is_restored_as_ever() {
    let folder = folder();
    let path = folder.path().join("disk");
    image(&path, 256 * MIB, PC.split("start=413696").next().unwrap());
    let disk = captured(&path, &[(1, FileSystemKind::Ext4, 20 * MIB)]);
    let manifest = manifest(FirmwareKind::Bios, disk);
    let target = machine(FirmwareKind::Bios, 256 * MIB);
    let asked = plan_restore(&manifest, &target, &convert()).unwrap();
    assert_eq!(
        asked,
        plan_restore(&manifest, &target, &Choices::default()).unwrap()
    );
    assert_eq!(asked.disks[0].conversion, None);
    let json = serde_json::to_value(&asked).unwrap();
    assert!(
        json["disks"][0].get("conversion").is_none(),
        "older agents know no such field"
    );
}

fn kinds() -> impl proptest::strategy::Strategy<Value = FileSystemKind> {
    prop_oneof![
        3 => Just(FileSystemKind::Ext4),
        1 => Just(FileSystemKind::Xfs),
        1 => Just(FileSystemKind::Btrfs),
        1 => Just(FileSystemKind::Swap),
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(60))]
    // Each case runs a few programs.
    #[test]
    fn any_pc_disk_is_converted_or_refused(
        parts in prop::collection::vec((1u64..120, 1u64..300, kinds(), 0u64..100), 1..4),
        tail in 0u64..150,
        target in 0u64..400,
        policy in prop_oneof![Just(ExtraSpace::Last), Just(ExtraSpace::Proportional), Just(ExtraSpace::None)],
    ) {
        let folder = folder();
        let path = folder.path().join("disk");
        let (mut table, mut at, mut known) = ("label: dos\n".to_owned(), 1, Vec::new());
        for (number, (gap, len, kind, used)) in (1..).zip(parts) {
            let start = at + gap;
            at = start + len;
            table.push_str(&format!("start={},size={},type=83\n", start * 2048, len * 2048));
            known.push((number, kind, len * MIB * used / 100));
        }
        image(&path, (at + tail) * MIB, &table);
        let disk = captured(&path, &known);
        let size = (at + target - 100.min(at / 2)) * MIB;
        let manifest = manifest(FirmwareKind::Bios, disk.clone());
        let choices = Choices { extra_space: policy, ..convert() };
        match plan_restore(&manifest, &machine(FirmwareKind::Uefi, size), &choices) {
            Err(refusals) => {
                // Refused is what has no Linux, or no room: what cannot shrink needs 64 MiB and a table more.
                let no_linux = known.iter().all(|(_, kind, _)| *kind == FileSystemKind::Swap);
                let code = refusals[0].code;
                let no_room = [ReasonCode::TooSmall, ReasonCode::CannotShrink].contains(&code);
                prop_assert!(no_room || no_linux && code == ReasonCode::CannotConvert, "{refusals:?}");
                prop_assert!(no_linux || size < (at + 66) * MIB, "{refusals:?}");
            }
            Ok(plan) => {
                let plan = &plan.disks[0];
                let found = committed(&path, plan);
                prop_assert_eq!(found.len(), known.len() + 1);
                for (number, start, len, kind) in &found {
                    let esp = kind == ESP;
                    prop_assert_eq!(esp, *number as usize == known.len() + 1);
                    let planned = plan.partitions.iter().find(|one| one.number == *number).unwrap();
                    let range = ByteRange::between(start * 512, (start + len) * 512);
                    prop_assert_eq!(planned.range, range);
                    let copies = plan.copies.iter();
                    let over = copies.filter(|copy| copy.destination.overlaps(range)).count();
                    prop_assert!(over <= usize::from(!esp));
                }
            }
        }
    }
}

#[test]
fn a_new_fat_is_clean_and_has_its_files() {
    let folder = folder();
    let path = folder.path().join("fat");
    let large = images::noise(3, 1_234_567);
    let files = [
        NewFile {
            path: "EFI/BOOT/BOOTX64.EFI",
            content: &large,
        },
        NewFile {
            path: "EFI/BOOT/grub.cfg",
            content: b"search\n",
        },
        NewFile {
            path: "EFI/debian/grubx64.efi",
            content: &large[..512],
        },
        NewFile {
            path: "empty",
            content: b"",
        },
    ];
    for (size, sector) in [
        (64, SectorSize::S512),
        (300, SectorSize::S4096),
        (5000, SectorSize::S512),
    ] {
        let volume = NewFat {
            size: size * MIB,
            sector,
            hidden: 2048,
            serial: 0x1ab0_e5f0,
        };
        let bytes = made(&volume, &files).unwrap();
        let file = File::create(&path).unwrap();
        file.set_len(volume.size).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let at = path.to_str().unwrap();
        run("dosfstools", "fsck.fat", &["-n", "-v", at]);
        for file in &files {
            let out = folder.path().join("out");
            let _ = std::fs::remove_file(&out);
            let from = format!("::{}", file.path);
            run("mtools", "mcopy", &["-i", at, &from, out.to_str().unwrap()]);
            assert!(
                std::fs::read(&out).unwrap() == file.content,
                "{}",
                file.path
            );
        }
        let listed = run("mtools", "mdir", &["-i", at, "-b", "-/", "::"]);
        assert!(listed.contains("::/EFI/debian/grubx64.efi"), "{listed}");
        let found = backup::filesystem::detect::detect(&Image::open(&path), volume.size).unwrap();
        assert_eq!(found[0].file_system, FileSystemKind::Fat32);
        assert_eq!(found[0].uuid.as_deref(), Some("1AB0-E5F0"));
    }
    let volume = NewFat {
        size: 32 * MIB,
        sector: SectorSize::S512,
        hidden: 0,
        serial: 1,
    };
    assert!(matches!(
        made(&volume, &files),
        Err(NewFatError::TooSmall { .. })
    ));
    let volume = NewFat {
        size: 34 * MIB,
        ..volume
    };
    let full = vec![1; 34 << 20];
    let too_much = [NewFile {
        path: "a",
        content: &full,
    }];
    assert!(matches!(
        made(&volume, &too_much),
        Err(NewFatError::Full { .. })
    ));
    for path in ["long-file-name", "a/b.text", "", "a//b", "a.b.c", "ä"] {
        let bad = [NewFile { path, content: b"" }];
        assert!(
            matches!(made(&volume, &bad), Err(NewFatError::Name { .. })),
            "{path}"
        );
    }
}
