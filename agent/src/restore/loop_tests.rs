//! The kernel's side of a restore, on loop devices: exclusive opening, zeroing, partitions without a
//! table, and the tools that grow a file system. Needs root, so it runs only when asked for:
//! `cargo test -p agent -- --ignored loop_tests`.

use std::fs;
use std::io;
use std::path::Path;

use backup::SectorSize;
use backup::hardware::{Disk, FirmwareKind};
use backup::plan::{Choices, DiskPlan, RestorePlan};

use super::restore;
use super::tests::noise;
use crate::boot_repair::variables::Variables;
use crate::capture::capture;
use crate::device::{Access, BlockDevice, DeviceError};
use crate::job::error::Fault;
use crate::job::fake::{Bench, disk, point, run};
use crate::job::kernel::{Kernel, open_exclusively};
use crate::job::platform::{Loader, Platform};

const MIB: u64 = 1 << 20;

/// The kernel, but for the check that a disk is in the inventory, where loop devices never are.
struct LoopMachine(Kernel);

impl Platform for LoopMachine {
    fn open(&self, disk: &Disk, access: Access) -> Result<Box<dyn BlockDevice>, DeviceError> {
        Ok(Box::new(open_exclusively(&disk.name, access)?))
    }

    fn check_tools(&self, plan: &RestorePlan) -> Result<(), Fault> {
        self.0.check_tools(plan)
    }

    fn finish_volumes(&self, disk: &DiskPlan, loaders: &[Loader]) -> Result<Vec<String>, Fault> {
        self.0.finish_volumes(disk, loaders)
    }

    fn reread_table(&self, disk: &Disk) -> io::Result<()> {
        open_exclusively(&disk.name, Access::Read)
            .map_err(io::Error::other)?
            .reread_table()
    }

    fn variables(&self) -> Option<&dyn Variables> {
        None
    }
}

/// A loop device; taken away when dropped.
struct Loop(String);

impl Loop {
    fn new(image: &Path, len: u64, sector: SectorSize) -> Self {
        let file = fs::File::options().create(true).append(true).open(image);
        file.unwrap().set_len(len).unwrap();
        let (size, image) = (sector.bytes().to_string(), image.to_str().unwrap());
        let node = run("losetup", &["-f", "--show", "-P", "-b", &size, image]);
        Self(node.trim().to_owned())
    }

    fn disk(&self, len: u64, sector: SectorSize) -> Disk {
        let name = self.0.strip_prefix("/dev/").unwrap();
        Disk {
            logical_sector: sector,
            ..disk(name, len)
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.0]);
    }
}

fn round_trip(sector: SectorSize) {
    let folder = tempfile::tempdir().unwrap();
    let (from_len, to_len) = (96 * MIB, 160 * MIB);
    let source = Loop::new(&folder.path().join("source"), from_len, sector);
    let table = "label: gpt\\n,1M,21686148-6449-6E6F-744E-656564454649\\n,32M,uefi\\n,,linux";
    run(
        "sh",
        &[
            "-c",
            &format!("printf '{table}\\n' | sfdisk -q {}", source.0),
        ],
    );
    run("partx", &["-u", &source.0]);
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..9u64 {
        fs::write(tree.join(number.to_string()), noise(number + 1, 3_000_000)).unwrap();
    }
    let root = format!("{}p3", source.0);
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", tree.to_str().unwrap(), &root],
    );
    run("mkfs.vfat", &[&format!("{}p2", source.0)]);

    let machine = LoopMachine(Kernel::new(FirmwareKind::Bios, "x86_64"));
    let mut bench = Bench::new(machine, vec![source.disk(from_len, sector)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();

    let target = Loop::new(&folder.path().join("target"), to_len, sector);
    // An older table, of which the kernel knows the partitions.
    run(
        "sh",
        &[
            "-c",
            &format!("printf 'label: gpt\\n,50M\\n,\\n' | sfdisk -q {}", target.0),
        ],
    );
    run("partx", &["-u", &target.0]);
    bench.inventory.disks = vec![target.disk(to_len, sector)];
    let mut engine = bench.engine();
    engine.read_back = true;
    let summary = restore(&engine, &point("rp-1"), &Choices::default()).unwrap();
    assert!(
        summary.iter().any(|line| line.starts_with("Grew the ext4")),
        "{summary:?}"
    );

    run("sfdisk", &["--verify", &target.0]);
    run("partx", &["-u", &target.0]);
    let root = format!("{}p3", target.0);
    run("e2fsck", &["-f", "-n", &root]);
    let said = run("dumpe2fs", &["-h", &root]);
    let field = |name: &str| -> u64 {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().parse().unwrap()
    };
    assert!(field("Block count:") * field("Block size:") > 120 * MIB);
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_larger_block_device_of_512_byte_sectors_is_filled() {
    round_trip(SectorSize::S512);
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_larger_block_device_of_4096_byte_sectors_is_filled() {
    round_trip(SectorSize::S4096);
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_disk_in_use_is_refused_before_it_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let held = Loop::new(&folder.path().join("held"), 16 * MIB, SectorSize::S512);
    let name = held.0.strip_prefix("/dev/").unwrap();
    let _holder = open_exclusively(name, Access::Write).unwrap();
    let error = open_exclusively(name, Access::Write).unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
}
