//! C1: LVM. Groups are made by LVM's own tools on loop devices, without device-mapper; where those tools
//! need the kernel's (thin, RAID, snapshots), `vgcfgrestore` writes a description made here. `lvs` says
//! where the extents are, `pvck` whether a copy is sound.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup::ByteRange;
use backup::filesystem::ReadAt;
use backup::lvm::{Candidate, GroupSurvey, SurveyedVolume, survey};
use backup::manifest::FileSystemKind;
use images::{Image, Memory, assert_in_order_inside, output, run};
use proptest::prelude::{any, prop, proptest};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

/// Image files on loop devices, with LVM's tools confined to them.
struct Machine {
    folder: tempfile::TempDir,
    devices: Vec<String>,
}

impl Machine {
    /// None, with the reason printed, without root or loop devices.
    fn new(disks: usize) -> Option<Self> {
        let folder = images::folder();
        let mut machine = Self {
            folder,
            devices: Vec::new(),
        };
        for disk in 0..disks {
            let path = machine.path(disk);
            images::blank(&path, SIZE);
            let found = output(
                "util-linux",
                "losetup",
                &["-f", "--show", path.to_str().unwrap()],
            );
            if !found.status.success() {
                eprintln!(
                    "skipped: no loop device (needs root): {}",
                    String::from_utf8_lossy(&found.stderr)
                );
                return None;
            }
            let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
            machine.devices.push(device);
        }
        Some(machine)
    }

    fn path(&self, disk: usize) -> PathBuf {
        self.folder.path().join(format!("disk{disk}"))
    }

    /// Runs one of LVM's commands; it sees these devices and no others.
    fn lvm(&self, arguments: &[&str]) -> String {
        let accepted: String = self
            .devices
            .iter()
            .map(|device| format!("\"a|^{device}$|\","))
            .collect();
        let folder = self.folder.path().display();
        let config = format!(
            "devices {{ filter=[{accepted}\"r|.*|\"] use_devicesfile=0 \
             obtain_device_list_from_udev=0 external_device_info_source=\"none\" }} \
             activation {{ udev_sync=0 udev_rules=0 }} \
             global {{ locking_dir=\"{folder}/lock\" event_activation=0 }} \
             backup {{ backup=0 archive=0 }}"
        );
        let (command, rest) = arguments.split_first().unwrap();
        let mut all = vec![
            format!("LVM_SYSTEM_DIR={folder}"),
            "LVM_SUPPRESS_FD_WARNINGS=1".to_owned(),
            (*command).to_owned(),
            "--driverloaded".to_owned(),
            "n".to_owned(),
            "--config".to_owned(),
            config,
        ];
        all.extend(rest.iter().map(|argument| (*argument).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        run("lvm2", "env", &all)
    }

    /// A group `vg` with extents of 1 MiB over all disks.
    fn group(&self, options: &[&str]) {
        let devices: Vec<&str> = self.devices.iter().map(String::as_str).collect();
        self.lvm(&[&["pvcreate", "-q"], options, &devices].concat());
        self.lvm(&[&["vgcreate", "-q", "-s", "1M", "vg"], &devices[..]].concat());
    }

    fn create(&self, name: &str, options: &[&str]) {
        let create = ["lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", name];
        self.lvm(&[&create, options, &["vg"]].concat());
    }

    /// Lets `vgcfgrestore` write a description, which is changed by `change` before.
    fn describe(&self, change: impl FnOnce(String) -> String) {
        let path = self.folder.path().join("description");
        let text = path.to_str().unwrap();
        self.lvm(&["vgcfgbackup", "-q", "-f", text, "vg"]);
        let changed = change(std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, changed).unwrap();
        self.lvm(&["vgcfgrestore", "-q", "--force", "-y", "-f", text, "vg"]);
    }

    fn images(&self) -> Vec<Image> {
        let disks = 0..self.devices.len();
        disks.map(|disk| Image::open(&self.path(disk))).collect()
    }

    fn survey(&self) -> GroupSurvey {
        survey_of(&self.images(), &self.candidates())
    }

    fn candidates(&self) -> Vec<Candidate> {
        let disks = 0..self.devices.len() as u32;
        disks.map(|disk| candidate(disk, SIZE)).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for device in &self.devices {
            output("util-linux", "losetup", &["-d", device]);
        }
    }
}

fn candidate(disk: u32, size: u64) -> Candidate {
    Candidate {
        disk,
        range: ByteRange::between(0, size),
        sector: 512,
    }
}

fn survey_of(images: &[Image], candidates: &[Candidate]) -> GroupSurvey {
    let readers: Vec<&dyn ReadAt> = images.iter().map(|image| image as &dyn ReadAt).collect();
    survey(candidates, &readers)
}

fn volume<'a>(survey: &'a GroupSurvey, name: &str) -> &'a SurveyedVolume {
    let mut volumes = survey.logical_volumes.iter();
    volumes.find(|volume| volume.name == name).unwrap()
}

fn whole_because(survey: &GroupSurvey, disk: usize) -> &str {
    survey.physical_volumes[disk].as_ref().unwrap_err()
}

fn mib(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start * MIB, end * MIB)
}

/// Writes the bytes of a logical volume to its places, computed here from `lvs`.
fn fill(machine: &Machine, name: &str, bytes: &[u8]) {
    let rows = machine.lvm(&[
        "lvs",
        "--noheadings",
        "--nosuffix",
        "--units",
        "b",
        "-o",
        "seg_start,stripes,stripe_size,seg_pe_ranges",
        &format!("vg/{name}"),
    ]);
    for row in rows.lines().filter(|row| !row.trim().is_empty()) {
        let words: Vec<&str> = row.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let (start, stripes, stripe) = (number(0), number(1), number(2));
        let areas: Vec<(File, u64, u64)> = words[3..]
            .iter()
            .map(|word| {
                let (device, extents) = word.split_once(':').unwrap();
                let (first, last) = extents.split_once('-').unwrap();
                let disk = machine
                    .devices
                    .iter()
                    .position(|one| one == device)
                    .unwrap();
                let file = File::options()
                    .write(true)
                    .open(machine.path(disk))
                    .unwrap();
                let (first, last) = (first.parse::<u64>().unwrap(), last.parse::<u64>().unwrap());
                // The first extent is at 1 MiB.
                (file, (1 + first) * MIB, (last + 1 - first) * MIB)
            })
            .collect();
        assert_eq!(areas.len() as u64, stripes);
        let stripe = if stripes == 1 { areas[0].2 } else { stripe };
        let mut at = start;
        for turn in 0..areas[0].2 / stripe {
            for (file, area, _) in &areas {
                let part = &bytes[at as usize..(at + stripe) as usize];
                file.write_all_at(part, area + turn * stripe).unwrap();
                at += stripe;
            }
        }
    }
}

fn read(machine: &Machine, volume: &SurveyedVolume) -> Vec<u8> {
    let images = machine.images();
    let readers: Vec<&dyn ReadAt> = images.iter().map(|image| image as &dyn ReadAt).collect();
    let (mapping, _) = volume.content.as_ref().unwrap();
    let mut bytes = vec![0; mapping.size() as usize];
    backup::lvm::MappedVolume::new(mapping, &readers)
        .read_at(0, &mut bytes)
        .unwrap();
    bytes
}

fn ext4(folder: &Path, size: u64) -> Vec<u8> {
    let path = folder.join("ext4");
    images::blank(&path, size);
    run(
        "e2fsprogs",
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            "root",
            path.to_str().unwrap(),
        ],
    );
    std::fs::read(&path).unwrap()
}

#[test]
fn linear_and_striped_volumes_are_mapped_as_lvs_says() {
    let Some(machine) = Machine::new(2) else {
        return;
    };
    machine.group(&[]);
    machine.create("root", &["-L", "8M"]);
    machine.create("fast", &["-L", "6M", "-i", "2", "-I", "64k"]);
    machine.lvm(&["lvextend", "-q", "-L", "11M", "vg/root"]);
    machine.create("swap", &["-L", "2M"]);
    let root = ext4(machine.folder.path(), 11 * MIB);
    let fast = images::noise(5, 6 << 20);
    fill(&machine, "root", &root);
    fill(&machine, "fast", &fast);

    let survey = machine.survey();
    assert_eq!(survey.logical_volumes.len(), 3);
    let found = volume(&survey, "root");
    assert_eq!(found.group, "vg");
    let uuid = machine.lvm(&["lvs", "--noheadings", "-o", "lv_uuid", "vg/root"]);
    assert_eq!(found.uuid, uuid.trim());
    assert!(read(&machine, found) == root);
    let (mapping, content) = found.content.as_ref().unwrap();
    assert_eq!(mapping.segments().len(), 2);
    let inner = content.volume.as_ref().unwrap();
    assert_eq!(inner.file_system, FileSystemKind::Ext4);
    assert_eq!(inner.label.as_deref(), Some("root"));
    assert!(content.used.is_ok());
    assert!(read(&machine, volume(&survey, "fast")) == fast);
    // Of the physical volumes themselves only what is before their extents.
    for saved in &survey.physical_volumes {
        assert_eq!(saved.as_ref().unwrap(), &[mib(0, 1)]);
    }
}

#[test]
fn everything_but_free_extents_is_enough_for_lvm() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    // A metadata area at the end too, and an area for a boot loader.
    machine.group(&["--pvmetadatacopies", "2", "--bootloaderareasize", "512k"]);
    machine.create("root", &["-L", "4M"]);
    let before = machine.lvm(&["vgs", "--noheadings", "-o", "vg_uuid,vg_seqno,lv_count"]);
    let survey = machine.survey();
    let saved = survey.physical_volumes[0].as_ref().unwrap();
    assert_in_order_inside(saved, SIZE);
    assert_eq!(saved.len(), 2, "{saved:?}");
    assert_eq!(saved[1].end(), SIZE);
    let copy = machine.folder.path().join("copy");
    images::copy_in_garbage(&machine.path(0), &copy, SIZE, saved);
    std::fs::copy(&copy, machine.path(0)).unwrap();
    assert_eq!(
        machine.lvm(&["vgs", "--noheadings", "-o", "vg_uuid,vg_seqno,lv_count"]),
        before
    );
    machine.lvm(&["vgck", "vg"]);
    machine.lvm(&["pvck", &machine.devices[0]]);
}

#[test]
fn extents_of_what_is_not_mapped_are_saved_with_the_physical_volume() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    machine.group(&[]);
    for name in ["home", "origin", "cow", "tdata", "tmeta"] {
        machine.create(name, &["-L", "2M"]);
    }
    // A snapshot of `origin`, and a thin pool with one volume, as LVM describes them.
    machine.describe(|text| {
        let id = |number: u32| format!("id = \"AAAAAA-BBBB-CCCC-DDDD-EEEE-FFFF-00000{number}\"");
        let hidden = |text: String, name: &str| {
            let at = text.find(&format!("\t{name} {{")).unwrap();
            let (before, after) = text.split_at(at);
            format!("{before}{}", after.replacen(", \"VISIBLE\"", "", 1))
        };
        // These names are reserved for `lvcreate`, and wanted by `vgcfgrestore`.
        let text = hidden(hidden(text, "tdata"), "tmeta");
        let text = text
            .replace("\ttdata {", "\tpool_tdata {")
            .replace("\ttmeta {", "\tpool_tmeta {");
        let more = format!(
            "logical_volumes {{
             snapshot0 {{ {} status = [\"READ\", \"WRITE\"] flags = [] segment_count = 1
               segment1 {{ start_extent = 0 extent_count = 2 type = \"snapshot\" chunk_size = 8
                 origin = \"origin\" cow_store = \"cow\" }} }}
             pool {{ {} status = [\"READ\", \"WRITE\"] flags = [] segment_count = 1
               segment1 {{ start_extent = 0 extent_count = 2 type = \"thin-pool\" metadata = \"pool_tmeta\"
                 pool = \"pool_tdata\" transaction_id = 0 chunk_size = 128 discards = \"passdown\"
                 zero_new_blocks = 1 }} }}
             thin {{ {} status = [\"READ\", \"WRITE\", \"VISIBLE\"] flags = [] segment_count = 1
               segment1 {{ start_extent = 0 extent_count = 9 type = \"thin\" thin_pool = \"pool\"
                 transaction_id = 0 device_id = 1 }} }}",
            id(1),
            id(2),
            id(3)
        );
        text.replacen("logical_volumes {", &more, 1)
    });
    let survey = machine.survey();
    let reason = |name: &str| volume(&survey, name).content.as_ref().err().cloned();
    assert_eq!(reason("home"), None);
    assert_eq!(reason("thin").as_deref(), Some("a segment of type thin"));
    assert_eq!(
        reason("pool").as_deref(),
        Some("a segment of type thin-pool")
    );
    assert_eq!(
        reason("snapshot0").as_deref(),
        Some("a segment of type snapshot")
    );
    assert_eq!(
        reason("origin").as_deref(),
        Some("another logical volume is built on it")
    );
    assert!(reason("cow").is_some());
    assert_eq!(
        reason("pool_tdata").as_deref(),
        Some("a part of another logical volume")
    );
    // `home` has the first two extents, the other four volumes the next eight.
    assert_eq!(
        survey.physical_volumes[0].as_ref().unwrap(),
        &[mib(0, 1), mib(3, 11)]
    );
}

#[test]
fn a_mirror_straight_on_a_physical_volume_is_a_doubt_about_the_group() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    machine.group(&[]);
    machine.create("root", &["-L", "2M"]);
    let images = machine.images();
    let mut bytes = vec![0; SIZE as usize];
    images[0].read_at(0, &mut bytes).unwrap();
    // `vgcfgrestore` refuses this, so it is put in place by hand, as `pvmove` would.
    change_text(&mut bytes, |text| {
        text.replace("type = \"striped\"", "type = \"mirrored\"")
            .replace("stripes =", "mirrors =")
    });
    let survey = survey(&[candidate(0, SIZE)], &[&Memory(&bytes)]);
    assert!(
        whole_because(&survey, 0).contains("not known here"),
        "{survey:?}"
    );
    assert!(survey.logical_volumes.is_empty());
}

/// LVM's checksum, bit by bit.
fn lvm_crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// Changes the description in the metadata area at 4096 and makes its checksums right again.
fn change_text(bytes: &mut [u8], change: impl FnOnce(String) -> String) {
    let number =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (offset, len) = (
        number(bytes, 4096 + 40) as usize,
        number(bytes, 4096 + 48) as usize,
    );
    let text = String::from_utf8(bytes[4096 + offset..4096 + offset + len].to_vec()).unwrap();
    let text = change(text).into_bytes();
    bytes[4096 + offset..4096 + offset + text.len()].copy_from_slice(&text);
    bytes[4096 + 48..4096 + 56].copy_from_slice(&(text.len() as u64).to_le_bytes());
    bytes[4096 + 56..4096 + 60].copy_from_slice(&lvm_crc(&text).to_le_bytes());
    let sum = lvm_crc(&bytes[4100..4608]);
    bytes[4096..4100].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_physical_volume_that_is_missing_or_doubled_makes_the_others_whole() {
    let Some(machine) = Machine::new(2) else {
        return;
    };
    machine.group(&[]);
    machine.create("root", &["-L", "4M"]);
    let images = machine.images();
    let alone = survey_of(&images, &[candidate(0, SIZE)]);
    assert!(whole_because(&alone, 0).contains("is missing"), "{alone:?}");
    assert!(alone.logical_volumes.is_empty());
    let twice = survey_of(
        &images,
        &[candidate(0, SIZE), candidate(1, SIZE), candidate(1, SIZE)],
    );
    for disk in 0..3 {
        assert!(
            whole_because(&twice, disk).contains("more than once"),
            "{twice:?}"
        );
    }
    // Cut off: the label says more bytes than there are.
    let short = survey_of(&images, &[candidate(0, SIZE - MIB), candidate(1, SIZE)]);
    assert!(
        whole_because(&short, 0).contains("bytes (its place has"),
        "{short:?}"
    );
    assert!(whole_because(&short, 1).contains("is missing"), "{short:?}");
}

#[test]
fn descriptions_that_differ_and_damaged_ones_are_doubts() {
    let Some(machine) = Machine::new(2) else {
        return;
    };
    machine.group(&[]);
    machine.create("root", &["-L", "4M"]);
    let old = std::fs::read(machine.path(1)).unwrap();
    machine.create("more", &["-L", "4M"]);
    let new = std::fs::read(machine.path(0)).unwrap();
    let candidates = machine.candidates();
    let differing = survey(&candidates, &[&Memory(&new), &Memory(&old)]);
    for disk in 0..2 {
        assert!(
            whole_because(&differing, disk).contains("differ"),
            "{differing:?}"
        );
    }
    // Each part that a checksum guards: the label, the header of the area, the text.
    let text = 4096 + u64::from_le_bytes(new[4136..4144].try_into().unwrap()) as usize;
    for place in [512 + 40, 4096 + 100, text + 50] {
        let mut damaged = new.clone();
        damaged[place] ^= 1;
        let survey = survey(&[candidate(0, SIZE)], &[&Memory(&damaged)]);
        assert!(
            whole_because(&survey, 0).contains("checksum"),
            "byte {place}: {survey:?}"
        );
    }
}

#[test]
fn a_text_that_goes_round_the_end_of_its_ring_is_read() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    machine.group(&[]);
    machine.create("root", &["-L", "4M"]);
    let mut bytes = std::fs::read(machine.path(0)).unwrap();
    let number = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let (offset, len) = (number(&bytes, 4136), number(&bytes, 4144));
    let area = number(&bytes, 4128);
    let text = bytes[4096 + offset..4096 + offset + len].to_vec();
    // Its first 512 bytes end the area, the rest begins behind the header.
    bytes[4096 + 512..4096 + area].fill(0);
    bytes[4096 + area - 512..4096 + area].copy_from_slice(&text[..512]);
    bytes[4096 + 512..4096 + len].copy_from_slice(&text[512..]);
    bytes[4136..4144].copy_from_slice(&(area as u64 - 512).to_le_bytes());
    let sum = lvm_crc(&bytes[4100..4608]);
    bytes[4096..4100].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(machine.path(0), &bytes).unwrap();
    // LVM itself reads it so.
    assert!(machine.lvm(&["lvs", "--noheadings"]).contains("root"));
    let survey = machine.survey();
    assert!(survey.physical_volumes[0].is_ok(), "{survey:?}");
    assert!(volume(&survey, "root").content.is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        noise in prop::collection::vec((0usize..8192, any::<u64>()), 0..40),
        sound in any::<bool>(),
    ) {
        let mut bytes = vec![0; 1 << 20];
        for (place, value) in noise {
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[512..520].copy_from_slice(b"LABELONE");
        bytes[520..528].copy_from_slice(&1u64.to_le_bytes());
        bytes[532..544].copy_from_slice(b"\x20\0\0\0LVM2 001");
        if sound {
            bytes[544..576].copy_from_slice(&[b'a'; 32]);
            bytes[576..640].fill(0);
            bytes[584..592].copy_from_slice(&(512u64 << 10).to_le_bytes());
            bytes[616..624].copy_from_slice(&4096u64.to_le_bytes());
            bytes[624..632].copy_from_slice(&8192u64.to_le_bytes());
            bytes[4100..4116].copy_from_slice(b" LVM2 x[5A%r0N*>");
            let sum = lvm_crc(&bytes[4100..4608]);
            bytes[4096..4100].copy_from_slice(&sum.to_le_bytes());
        }
        let sum = lvm_crc(&bytes[532..1024]);
        bytes[528..532].copy_from_slice(&sum.to_le_bytes());
        let survey = survey(&[candidate(0, 1 << 20)], &[&Memory(&bytes)]);
        assert!(survey.physical_volumes[0].is_err());
    }
}
