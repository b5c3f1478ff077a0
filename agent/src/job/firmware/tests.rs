//! Systems in image files that are restored for the other type of firmware, judged by the reference tools. They need
//! root, for loop devices and mounts, and are skipped with that reason without it. The signed loaders are stand-ins:
//! that the real ones start is the lab's story `converted-to-uefi`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use backup::ByteRange;
use backup::hardware::{Disk, FirmwareKind};
use backup::identity::core_image::{self, CoreImage};
use backup::lvm::{Area, Segment};
use backup::manifest::{Coverage, LogicalVolume, Manifest};
use backup::plan::restore::plan_restore;
use backup::plan::{Choices, DiskPlan, FirmwareChoice, RestorePlan};

use super::put_loaders;
use crate::boot_repair::uefi::SignedLoaders;
use crate::boot_repair::variables::Variables;
use crate::capture::capture;
use crate::device::{Access, BlockDevice, Device, DeviceError, DiskReader};
use crate::hardware::named::NamedDisk;
use crate::job::JobError;
use crate::job::error::Fault;
use crate::job::fake::{Bench, MemoryVariables, point, run};
use crate::job::identity::rooted::Root;
use crate::job::native::Native;
use crate::job::platform::{Loader, Platform};
use crate::job::server::ChunkServer;
use crate::restore::restore;

const MIB: u64 = 1 << 20;
const ROOT: &str = "6c61622d-726f-4f74-8000-000000000001";
/// Where the root file system is on each source, and how long, in MiB.
const PLACE: (u64, u64) = (6, 40);
/// The size of sources and of targets, in MiB.
const SOURCE: u64 = 48;
const TARGET: u64 = 128;

/// Says why, when the test cannot run.
fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("skipped: loop devices and mounts need root");
    }
    root
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// A machine with stand-ins for the signed loaders, whose disks can be opened so many times yet.
struct Machine {
    native: Native,
    packages: PathBuf,
    variables: MemoryVariables,
    opens_left: AtomicUsize,
}

impl Platform for Machine {
    fn open(&self, disk: &Disk, access: Access) -> Result<Box<dyn BlockDevice>, DeviceError> {
        if self.opens_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(DeviceError::Open {
                device: disk.name.clone(),
                source: io::Error::other("the power is gone"),
            });
        }
        self.native.open(disk, access)
    }

    fn check_tools(&self, plan: &RestorePlan) -> Result<(), Fault> {
        self.native.check_tools(plan)
    }

    fn finish_volumes(&self, disk: &DiskPlan, loaders: &[Loader]) -> Result<Vec<String>, Fault> {
        self.native.finish_volumes(disk, loaders)
    }

    fn backing(&self, disk: &Disk) -> PathBuf {
        self.native.backing(disk)
    }

    fn packages(&self) -> PathBuf {
        self.packages.clone()
    }

    fn reread_table(&self, disk: &Disk) -> io::Result<()> {
        self.native.reread_table(disk)
    }

    fn variables(&self) -> Option<&dyn Variables> {
        Some(&self.variables)
    }
}

fn named(path: &Path) -> NamedDisk {
    NamedDisk::parse(path.to_str().unwrap()).unwrap()
}

fn packages(folder: &Path) -> PathBuf {
    let root = folder.join("packages");
    let put = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("usr/lib/shim/shimx64.efi.signed", b"a shim");
    let grub = b"a GRUB with its prefix /EFI/debian\0 in it";
    put("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", grub);
    let parts = "/usr/lib/grub/i386-pc";
    assert!(
        Path::new(parts).is_dir(),
        "there is no {parts}: install the package `grub-pc-bin`"
    );
    std::os::unix::fs::symlink(parts, root.join("usr/lib/grub/i386-pc")).unwrap();
    root
}

/// A small Debian; `names_root` stands before the root's mount point in its fstab.
fn tree(folder: &Path, names_root: &str) -> PathBuf {
    let tree = folder.join("tree");
    let put = |path: &str, text: &str| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    // Without a line end at the end.
    put("etc/fstab", &format!("{names_root} / ext4 defaults 0 1"));
    put("etc/os-release", "NAME=\"Debian GNU/Linux\"\n");
    let grub = format!("linux /vmlinuz root={names_root}\nlinux /vmlinuz root=/dev/sda5\n");
    put("boot/grub/grub.cfg", &grub);
    put("boot/grub/grubenv", &format!("saved={names_root}"));
    tree
}

/// A disk with the tree on an ext4 in its last partition.
fn source(folder: &Path, tree: &Path, table: &str) -> PathBuf {
    let disk = folder.join("source.raw");
    File::create(&disk).unwrap().set_len(SOURCE * MIB).unwrap();
    let path = disk.to_str().unwrap();
    run(
        "sh",
        &["-c", &format!("printf '{table}' | sfdisk -q {path}")],
    );
    let volume = folder.join("root");
    let file = File::create(&volume).unwrap();
    file.set_len(PLACE.1 * MIB).unwrap();
    let (at, from) = (volume.to_str().unwrap(), tree.to_str().unwrap());
    run("mke2fs", &["-q", "-t", "ext4", "-U", ROOT, "-d", from, at]);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&fs::read(&volume).unwrap(), PLACE.0 * MIB)
        .unwrap();
    disk
}

/// A bench with a captured source and an empty target of so many MiB for the other type of firmware.
fn bench(folder: &Path, source: &Path, from: FirmwareKind, mib: u64) -> (Bench<Machine>, PathBuf) {
    let target = folder.join("target.raw");
    File::create(&target).unwrap().set_len(mib * MIB).unwrap();
    let disks = vec![named(source), named(&target)];
    let [first, second] = [0, 1].map(|at| disks[at].disk(Path::new("/sys")).unwrap());
    let machine = Machine {
        native: Native::new(disks, FirmwareKind::Bios, "x86_64", false),
        packages: packages(folder),
        variables: MemoryVariables::default(),
        opens_left: AtomicUsize::new(usize::MAX),
    };
    let mut bench = Bench::new(machine, vec![first]);
    bench.inventory.firmware = from;
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench.inventory.firmware = match from {
        FirmwareKind::Bios => FirmwareKind::Uefi,
        FirmwareKind::Uefi => FirmwareKind::Bios,
    };
    bench.inventory.disks = vec![second];
    (bench, target)
}

fn converted(bench: &Bench<Machine>) -> Result<String, JobError> {
    let choices = Choices {
        firmware: FirmwareChoice::Convert,
        ..Choices::default()
    };
    let said = restore(&bench.engine(), &point("rp-1"), &choices)?;
    Ok(said.join("\n"))
}

fn is_without_table(disk: &Path) -> bool {
    let mut first = [0; 512];
    let file = File::open(disk).unwrap();
    file.read_exact_at(&mut first, 0).unwrap();
    first == [0; 512]
}

/// Number, start and type of the partitions, as sgdisk sees them.
fn partitions(disk: &Path) -> Vec<(u32, u64, String)> {
    let path = disk.to_str().unwrap();
    let verified = run("sgdisk", &["--verify", path]);
    assert!(verified.contains("No problems found"), "{verified}");
    let printed = run("sgdisk", &["--print", path]);
    let lines = printed.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = words.first()?.parse().ok()?;
        Some((
            number,
            words.get(1)?.parse().ok()?,
            (*words.get(5)?).to_owned(),
        ))
    });
    lines.collect()
}

/// A part of a disk as a file of its own.
fn cut(disk: &Path, start: u64, len: u64) -> PathBuf {
    let mut bytes = vec![0; (len * MIB) as usize];
    let file = File::open(disk).unwrap();
    file.read_exact_at(&mut bytes, start * MIB).unwrap();
    let path = disk.with_extension("part");
    fs::write(&path, bytes).unwrap();
    path
}

/// A file of the restored root file system, which is clean.
fn cat(disk: &Path, path: &str) -> String {
    let len = TARGET - PLACE.0 - 66;
    let volume = cut(disk, PLACE.0, len);
    let at = volume.to_str().unwrap();
    run("e2fsck", &["-f", "-n", at]);
    let said = run("debugfs", &["-R", &format!("cat {path}"), at]);
    // Its own first line goes to where errors go, which is behind all else.
    said.split("debugfs 1.").next().unwrap().to_owned()
}

/// A root in an extended partition, named by the id of a PC partition table.
const PC: &str = "label: dos\\nlabel-id: 0x1ab0e5f0\\nstart=1M,size=4M,type=82\\nstart=5M,size=42M,type=5\\nstart=6M,size=40M,type=83\\n";

fn to_uefi(folder: &Path) -> (Bench<Machine>, PathBuf) {
    let tree = tree(folder, "PARTUUID=1ab0e5f0-05");
    let source = source(folder, &tree, PC);
    bench(folder, &source, FirmwareKind::Bios, TARGET)
}

/// The whole of a system that was restored for UEFI.
fn check_uefi(target: &Path) {
    // The target's last MiB holds the backup table.
    let esp = TARGET - 1 - 64;
    let found = partitions(target);
    assert_eq!(
        found,
        [
            (1, 2048, "8200".to_owned()),
            (5, PLACE.0 * 2048, "8300".to_owned()),
            (6, esp * 2048, "EF00".to_owned())
        ]
    );
    let path = target.to_str().unwrap();
    let info = run("sgdisk", &["--info=5", path]);
    let guid = info.split("unique GUID: ").nth(1).unwrap()[..36].to_lowercase();
    let named = format!("PARTUUID={guid}");
    let fstab = cat(target, "/etc/fstab");
    let volume = cut(target, esp, 64);
    let at = volume.to_str().unwrap();
    run("fsck.fat", &["-n", at]);
    let id = run("blkid", &["-p", "-o", "value", "-s", "UUID", at]);
    let mounted = format!("UUID={} /boot/efi vfat umask=0077,nofail 0 0", id.trim());
    let lines: Vec<_> = fstab.lines().collect();
    assert_eq!(lines[0], format!("{named} / ext4 defaults 0 1"));
    assert_eq!((lines[2], lines.len()), (mounted.as_str(), 3));
    let grub = cat(target, "/boot/grub/grub.cfg");
    let expected = format!("linux /vmlinuz root={named}\nlinux /vmlinuz root=/dev/sda5\n");
    assert_eq!(grub, expected);
    assert_eq!(
        cat(target, "/boot/grub/grubenv"),
        "saved=PARTUUID=1ab0e5f0-05"
    );
    let listed = run(
        "debugfs",
        &[
            "-R",
            "stat /boot/efi",
            cut(target, PLACE.0, 56).to_str().unwrap(),
        ],
    );
    assert!(listed.contains("Type: directory"), "{listed}");
    let script = format!(
        "search.fs_uuid {ROOT} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    let volume = cut(target, esp, 64);
    let at = volume.to_str().unwrap();
    let out = target.with_extension("out");
    for (file, content) in [
        ("EFI/BOOT/BOOTX64.EFI", "a shim"),
        ("EFI/BOOT/grub.cfg", &script),
        ("EFI/debian/grub.cfg", &script),
        (
            "EFI/debian/grubx64.efi",
            "a GRUB with its prefix /EFI/debian\0 in it",
        ),
    ] {
        let _ = fs::remove_file(&out);
        run(
            "mcopy",
            &["-i", at, &format!("::{file}"), out.to_str().unwrap()],
        );
        assert_eq!(fs::read_to_string(&out).unwrap(), content, "{file}");
    }
}

#[test]
fn a_system_from_a_pc_table_gets_a_gpt_an_esp_and_its_loaders() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let (bench, target) = to_uefi(folder.path());
    let said = converted(&bench).unwrap();
    for part in [
        "EFI system partition (partition 6",
        "signed for debian",
        "/etc/fstab, /boot/grub/grub.cfg",
    ] {
        assert!(said.contains(part), "{said}");
    }
    check_uefi(&target);
    // The firmware starts the file that it looks for by itself.
    let values = bench.platform.variables.values.lock().unwrap();
    let entry = &values["Boot0000"];
    let path: Vec<u8> = "\\EFI\\BOOT\\BOOTX64.EFI"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert!(
        entry.windows(path.len()).any(|word| word == path),
        "{entry:?}"
    );
    assert_eq!(values["BootOrder"], [0, 0]);
}

#[test]
fn a_conversion_that_is_cut_off_leaves_no_table_and_is_done_again() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let (bench, target) = to_uefi(folder.path());
    // Opened to write the data, to convert, and no more.
    for opens in [1, 2] {
        bench.platform.opens_left.store(opens, Ordering::Relaxed);
        let error = converted(&bench).unwrap_err();
        assert!(error.reason.contains("does not boot"), "{error}");
        assert!(is_without_table(&target), "after {opens}");
    }
    bench
        .platform
        .opens_left
        .store(usize::MAX, Ordering::Relaxed);
    converted(&bench).unwrap();
    check_uefi(&target);
    // Over a disk that is whole.
    converted(&bench).unwrap();
    check_uefi(&target);
}

const GPT: &str = "label: gpt\\nfirst-lba: 34\\nstart=6M,size=40M,type=linux\\n";

#[test]
fn a_system_of_uefi_gets_a_grub_for_bios() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let tree = tree(folder.path(), &format!("UUID={ROOT}"));
    let source = source(folder.path(), &tree, GPT);
    let (bench, target) = bench(folder.path(), &source, FirmwareKind::Uefi, TARGET);
    let check = || {
        let found = partitions(&target);
        assert_eq!(
            found,
            [
                (1, PLACE.0 * 2048, "8300".to_owned()),
                (2, 34, "EF02".to_owned())
            ]
        );
        let device = Device::open(&target, Access::Read).unwrap();
        let mut first = vec![0; 512];
        device.read_at(0, &mut first).unwrap();
        // Boot code, and the protective table behind it.
        assert_eq!((first[450], &first[510..]), (0xee, &[0x55, 0xaa][..]));
        let image = core_image::read(&first, &DiskReader(&device), device.size(), device.sector());
        let CoreImage::Plain(image) = image.unwrap() else {
            panic!("no second stage is found");
        };
        let script = format!("search.fs_uuid {ROOT} root\nset prefix=($root)'/boot/grub'\n");
        let has = |text: &[u8]| image.windows(text.len()).any(|word| word == text);
        assert!(has(script.as_bytes()));
        for module in ["ext2", "xfs", "btrfs", "lvm", "gfxterm", "linux"] {
            assert!(has(module.as_bytes()), "{module}");
        }
    };
    let said = converted(&bench).unwrap();
    assert!(said.contains("GRUB for BIOS"), "{said}");
    check();
    bench.platform.opens_left.store(2, Ordering::Relaxed);
    converted(&bench).unwrap_err();
    assert!(is_without_table(&target));
    bench
        .platform
        .opens_left
        .store(usize::MAX, Ordering::Relaxed);
    converted(&bench).unwrap();
    check();
}

#[test]
fn a_system_whose_grub_is_not_to_be_had_ends_the_restore_without_a_table() {
    if !is_root() {
        return;
    }
    for (change, reason) in [
        ("rm boot/grub/grub.cfg", "no system with a GRUB"),
        ("echo blscfg >> boot/grub/grub.cfg", "files of their own"),
        (
            "sed -i s/^linux/linux16/ boot/grub/grub.cfg",
            "no entry that starts a Linux",
        ),
        (
            "mkdir boot/grub2; cp boot/grub/grub.cfg boot/grub2",
            "more than one",
        ),
    ] {
        let folder = folder();
        let tree = tree(folder.path(), "PARTUUID=1ab0e5f0-05");
        run("sh", &["-c", &format!("cd {} && {change}", tree.display())]);
        let source = source(folder.path(), &tree, PC);
        let (bench, target) = bench(folder.path(), &source, FirmwareKind::Bios, TARGET);
        let error = converted(&bench).unwrap_err();
        assert!(error.reason.contains(reason), "{error}");
        // The same restore would end the same way.
        let next = "; the disk was partly written and does not boot; restore to a machine that starts by BIOS, or with \
                    --insist";
        assert!(error.reason.ends_with(next), "{error}");
        assert_eq!(error.code, "boot-repair");
        assert!(is_without_table(&target));
    }
}

#[test]
fn what_is_missing_or_not_signed_for_the_system_is_said_before_a_disk_is_touched() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let (bench, target) = to_uefi(folder.path());
    let before = vec![7; (TARGET * MIB) as usize];
    fs::write(&target, &before).unwrap();
    let refused = |reason: &str| {
        let error = converted(&bench).unwrap_err();
        assert!(error.reason.contains(reason), "{error}");
        assert!(error.reason.ends_with("no disk was touched"), "{error}");
        assert!(fs::read(&target).unwrap() == before);
    };
    let put = |value: &[u8]| {
        let mut values = bench.platform.variables.values.lock().unwrap();
        values.insert("SecureBoot".to_owned(), value.to_vec());
    };
    let grub = folder
        .path()
        .join("packages/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    fs::write(&grub, b"/EFI/ubuntu\0").unwrap();
    put(&[1]);
    refused("Secure Boot is on");
    fs::remove_file(&grub).unwrap();
    put(&[0]);
    refused("grub-efi-amd64-signed");
}

#[test]
fn a_linux_that_is_out_of_reach_is_said_before_a_disk_is_touched() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let (bench, _target) = to_uefi(folder.path());
    let json = bench.server.manifest(&point("rp-1")).unwrap();
    let mut manifest = Manifest::from_json(&json).unwrap();
    let choices = Choices {
        firmware: FirmwareChoice::Convert,
        ..Choices::default()
    };
    let plan = plan_restore(&manifest, &bench.inventory, &choices).unwrap();
    super::check(&bench.engine(), &manifest, &plan).unwrap();
    let region = manifest.regions().find(|one| one.volume.is_some());
    let region = region.unwrap().clone();
    let area = Area {
        disk: 0,
        range: ByteRange::between(8 * MIB, 12 * MIB),
    };
    let segment = Segment {
        stripe: 4 * MIB,
        areas: vec![area],
    };
    manifest.logical_volumes.push(LogicalVolume {
        name: "root".to_owned(),
        group: "vg".to_owned(),
        uuid: String::new(),
        segments: vec![segment.clone()],
        volume: region.volume,
        coverage: Coverage::UsedBlocks,
        content: region.content,
    });
    super::check(&bench.engine(), &manifest, &plan).unwrap();
    let refused = |manifest: &Manifest, reason: &str| {
        let error = super::check(&bench.engine(), manifest, &plan).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    };
    manifest.logical_volumes[0].segments.push(segment);
    refused(&manifest, "vg/root lies in several pieces");
    manifest.logical_volumes[0].coverage = Coverage::LeftOut {
        reason: "a snapshot".to_owned(),
    };
    refused(&manifest, "vg/root was not saved");
}

#[test]
fn what_an_old_loader_has_left_is_kept_under_another_name() {
    let folder = folder();
    let old = folder.path().join("EFI/debian");
    fs::create_dir_all(&old).unwrap();
    fs::write(old.join("grub.cfg"), "of another system").unwrap();
    fs::write(old.join("grub.cfg.old"), "older").unwrap();
    let root = Root::open(folder.path()).unwrap();
    let loaders = SignedLoaders::read(&packages(folder.path())).unwrap();
    let files = loaders.files("ours");
    let kept = put_loaders(&root, &files).unwrap().unwrap();
    assert_eq!(kept, ["/EFI/debian/grub.cfg.old2"]);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("EFI/debian/grub.cfg"), "ours");
    assert_eq!(read("EFI/debian/grub.cfg.old"), "older");
    assert_eq!(read("EFI/debian/grub.cfg.old2"), "of another system");
    assert_eq!(read("EFI/BOOT/grub.cfg"), "ours");
    assert_eq!(read("EFI/BOOT/BOOTX64.EFI"), "a shim");
    // One that is where firmware looks for it stays, and all else.
    assert_eq!(put_loaders(&root, &files).unwrap(), None);
    assert!(!folder.path().join("EFI/BOOT/grub.cfg.old").exists());
}
