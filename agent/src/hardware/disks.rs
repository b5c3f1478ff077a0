//! The disks: `/sys/block`.

use std::fs;
use std::path::Path;

use backup::hardware::{Disk, ExistingPartition};
use backup::{ByteRange, SectorSize};

use super::{attribute, clean, number};

/// Kernel names that are no disk of the machine: made by software, floppies, optical drives.
const NOT_DISKS: [&str; 10] = [
    "loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "drbd", "rbd",
];

/// Parts of eMMC that firmware owns and that no system is on.
const EMMC_PARTS: [&str; 3] = ["boot0", "boot1", "rpmb"];

/// Every disk, in the kernel's order: `sdb` after `sda`, `sdaa` after `sdz`.
pub(crate) fn disks(sysfs: &Path) -> Vec<Disk> {
    let mut found: Vec<Disk> = fs::read_dir(sysfs.join("block"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| disk(&entry.path(), &entry.file_name().to_string_lossy()))
        .collect();
    found.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    found
}

/// Whether a USB disk has its driver but is no disk yet: the driver waits a second before it looks
/// (drivers/usb/storage/usb.c, `delay_use`).
pub(crate) fn usb_disk_is_coming(sysfs: &Path) -> bool {
    let entries = |path: &Path, prefix: &str| -> Vec<std::path::PathBuf> {
        let all = fs::read_dir(path).into_iter().flatten().flatten();
        let fits = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(prefix);
        all.filter(|entry| fits(&entry.file_name()))
            .map(|entry| entry.path())
            .collect()
    };
    ["usb-storage", "uas"].iter().any(|driver| {
        let driver = sysfs.join("bus/usb/drivers").join(driver);
        let interfaces = entries(&driver, "")
            .into_iter()
            .filter(|path| path.is_dir());
        let mut hosts = interfaces.flat_map(|interface| entries(&interface, "host"));
        hosts.any(|host| entries(&host, "target").is_empty())
    })
}

/// The block device with this kernel name, whatever kind of disk it is.
pub(crate) fn block_device(sysfs: &Path, name: &str) -> Option<Disk> {
    // In sysfs a slash of a name is an exclamation mark.
    let entry = name.replace('/', "!");
    let path = sysfs.join("block").join(entry);
    describe(&path, name).map(|disk| Disk {
        // A person named it: that it can be taken out is no reason to leave it out.
        removable: false,
        ..disk
    })
}

fn disk(path: &Path, name: &str) -> Option<Disk> {
    let is_other = |prefix: &&str| {
        let rest = name.strip_prefix(*prefix);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let emmc_part =
        name.starts_with("mmcblk") && EMMC_PARTS.iter().any(|part| name.ends_with(part));
    // Paths of one NVMe multipath disk, `nvme0c0n1`, are hidden below `nvme0n1`.
    let hidden = number(&path.join("hidden")) == Some(1);
    if NOT_DISKS.iter().any(is_other) || emmc_part || hidden {
        return None;
    }
    describe(path, name)
}

fn describe(path: &Path, name: &str) -> Option<Disk> {
    // Whatever the sector size, the kernel counts in 512 bytes here (Documentation/ABI/stable/sysfs-block).
    let size = number(&path.join("size"))?.checked_mul(512)?;
    // A card reader without a card.
    if size == 0 {
        return None;
    }
    let logical = number(&path.join("queue/logical_block_size")).unwrap_or(512);
    let logical_sector = match SectorSize::try_from(logical) {
        Ok(sector) => sector,
        Err(error) => {
            log::debug!("{name} is left out: {error}");
            return None;
        }
    };
    let physical = number(&path.join("queue/physical_block_size")).unwrap_or(logical);
    let device = path.join("device");
    Some(Disk {
        model: model(&device),
        serial: serial(path),
        wwn: attribute(&path.join("wwid"))
            .or_else(|| attribute(&device.join("wwid")))
            .filter(|text| is_world_wide(text)),
        size,
        logical_sector,
        physical_sector: u32::try_from(physical).unwrap_or(512),
        removable: number(&path.join("removable")) == Some(1) || on_usb(path),
        read_only: number(&path.join("ro")) == Some(1),
        partitions: partitions(path),
        name: name.to_owned(),
    })
}

/// The partitions that the kernel has found, in the order of their numbers.
fn partitions(path: &Path) -> Vec<ExistingPartition> {
    let folders = fs::read_dir(path).into_iter().flatten().flatten();
    let partition = |path: &Path| {
        let start = number(&path.join("start"))?.checked_mul(512)?;
        let len = number(&path.join("size"))?.checked_mul(512)?;
        Some(ExistingPartition {
            number: u32::try_from(number(&path.join("partition"))?).ok()?,
            range: ByteRange::new(start, len).ok()?,
        })
    };
    let mut found: Vec<_> = folders
        .filter_map(|entry| partition(&entry.path()))
        .collect();
    found.sort_by_key(|partition| partition.number);
    found
}

fn model(device: &Path) -> Option<String> {
    let model = attribute(&device.join("model")).or_else(|| attribute(&device.join("name")));
    // SATA disks say `ATA` here, which is no maker.
    let vendor = attribute(&device.join("vendor"))
        .filter(|vendor| vendor != "ATA" && !vendor.starts_with("0x"));
    match (vendor, model) {
        (Some(vendor), Some(model)) if !model.starts_with(&vendor) => {
            Some(format!("{vendor} {model}"))
        }
        (_, model) => model,
    }
}

/// virtio: `serial`; NVMe and eMMC: `device/serial`; SCSI and SATA: vital product data page 0x80.
fn serial(path: &Path) -> Option<String> {
    attribute(&path.join("serial"))
        .or_else(|| attribute(&path.join("device/serial")))
        .or_else(|| page_80(&fs::read(path.join("device/vpd_pg80")).ok()?))
}

/// Unit serial number page (SPC-4 §7.8.15): type, code 0x80, length in two bytes, text.
fn page_80(page: &[u8]) -> Option<String> {
    let (header, rest) = page.split_first_chunk::<4>()?;
    if header[1] != 0x80 {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    clean(&String::from_utf8_lossy(rest.get(..len)?))
}

/// T10 vendor identifications are model and serial again, not a name of their own.
fn is_world_wide(text: &str) -> bool {
    ["naa.", "eui.", "uuid.", "nvme."]
        .iter()
        .any(|prefix| text.starts_with(prefix))
}

fn on_usb(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|path| {
        let mut parts = path.components();
        parts.any(|part| part.as_os_str().to_string_lossy().starts_with("usb"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("block")).unwrap();
            Self(root)
        }

        fn disk(&self, name: &str, files: &[(&str, &str)]) -> &Self {
            let path = self.0.path().join("block").join(name);
            for (file, text) in files {
                let file = path.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            self
        }
    }

    #[test]
    fn each_kind_of_disk_gives_its_name_and_number() {
        let machine = Machine::new();
        machine
            .disk(
                "vda",
                &[
                    ("size", "16777216\n"),
                    ("serial", "TARGET01"),
                    ("ro", "0\n"),
                ],
            )
            .disk(
                "sda",
                &[
                    ("size", "2048\n"),
                    ("device/vendor", "ATA     \n"),
                    ("device/model", "QEMU HARDDISK   \n"),
                    ("device/vpd_pg80", "\0\u{80}"),
                    ("device/wwid", "t10.ATA     QEMU HARDDISK   QM00001 \n"),
                    ("queue/logical_block_size", "512\n"),
                    ("queue/physical_block_size", "4096\n"),
                ],
            )
            .disk(
                "nvme0n1",
                &[
                    ("size", "2048"),
                    ("device/model", "Samsung SSD 980\n"),
                    ("device/serial", "S64DNL0T   \n"),
                    ("wwid", "eui.002538d521b0ff12\n"),
                    ("queue/logical_block_size", "4096\n"),
                ],
            )
            .disk(
                "sdb",
                &[
                    ("size", "100"),
                    ("device/vendor", "SanDisk "),
                    ("device/model", "Ultra"),
                    ("removable", "1\n"),
                    ("ro", "1\n"),
                ],
            );
        fs::write(
            machine.0.path().join("block/sda/device/vpd_pg80"),
            b"\0\x80\0\x14             QM00001",
        )
        .unwrap();
        let disks = disks(machine.0.path());
        let names: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["sda", "sdb", "vda", "nvme0n1"]);

        let [sda, sdb, vda, nvme] = &disks[..] else {
            panic!("four disks");
        };
        assert_eq!(vda.serial.as_deref(), Some("TARGET01"));
        assert_eq!((vda.size, vda.physical_sector), (8 << 30, 512));
        assert_eq!(sda.model.as_deref(), Some("QEMU HARDDISK"));
        assert_eq!(sda.serial.as_deref(), Some("QM00001"));
        assert_eq!((sda.wwn.as_deref(), sda.physical_sector), (None, 4096));
        assert_eq!(nvme.wwn.as_deref(), Some("eui.002538d521b0ff12"));
        assert_eq!(nvme.logical_sector, SectorSize::S4096);
        assert_eq!(sdb.model.as_deref(), Some("SanDisk Ultra"));
        assert!(sdb.removable && sdb.read_only && !sda.removable && !sda.read_only);
    }

    #[test]
    fn what_is_no_disk_of_the_machine_is_left_out() {
        let machine = Machine::new();
        for name in [
            "loop0",
            "ram0",
            "zram0",
            "sr0",
            "fd0",
            "dm-0",
            "md127",
            "mmcblk0boot0",
        ] {
            machine.disk(name, &[("size", "2048")]);
        }
        machine
            .disk("sdc", &[("size", "0")])
            .disk("sdd", &[("size", "8"), ("queue/logical_block_size", "520")])
            .disk("nvme0c0n1", &[("size", "8"), ("hidden", "1")])
            .disk("sde", &[("size", "18446744073709551615")])
            .disk("sdf", &[("size", "many")])
            .disk("mmcblk0", &[("size", "2048"), ("device/name", "BJTD4R\n")]);
        let disks = disks(machine.0.path());
        assert_eq!(disks.len(), 1);
        assert_eq!(disks[0].model.as_deref(), Some("BJTD4R"));
    }

    #[test]
    fn a_usb_disk_without_its_target_is_still_coming() {
        let machine = Machine::new();
        let root = machine.0.path();
        assert!(!usb_disk_is_coming(root));
        let host = root.join("bus/usb/drivers/usb-storage/1-1:1.0/host3");
        fs::create_dir_all(&host).unwrap();
        fs::create_dir_all(root.join("bus/usb/drivers/usb-storage/module")).unwrap();
        assert!(usb_disk_is_coming(root));
        fs::create_dir(host.join("target3:0:0")).unwrap();
        assert!(!usb_disk_is_coming(root));
    }

    #[test]
    fn broken_product_data_gives_no_serial() {
        for page in [
            &b""[..],
            b"\0\x80",
            b"\0\x80\0\x08abc",
            b"\0\x83\0\x01a",
            b"\0\x80\0\0",
        ] {
            assert_eq!(page_80(page), None);
        }
    }
}
