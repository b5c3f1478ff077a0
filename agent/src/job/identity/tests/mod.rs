//! Copies of one image in files, by the kernel and the tools that a machine would use. They need root, for
//! loop devices and mounts, and are skipped with that reason without it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backup::filesystem::tree::{self, FileTree, NodeId};
use backup::filesystem::{ReadAt, ReadError, tree_path};
use backup::hardware::{Disk, FirmwareKind};
use backup::identity::{HostName, Identity};
use backup::plan::{Choices, DiskPlan, RestorePlan};

use super::start_image::{self, Named, resume_archive};
use crate::boot_repair::variables::Variables;
use crate::capture::capture;
use crate::device::{Access, BlockDevice, DeviceError};
use crate::hardware::named::NamedDisk;
use crate::job::JobError;
use crate::job::error::Fault;
use crate::job::fake::{Bench, point, run};
use crate::job::native::Native;
use crate::job::platform::{Loader, Platform};
use crate::restore::restore;

mod copies;
mod ends;
mod kept;
mod logical;

const MIB: u64 = 1 << 20;

/// Begin and length of each partition in MiB: ESP, swap, root, which takes the rest.
fn partitions(disk: u64) -> [(u64, u64); 3] {
    [(1, 8), (9, 5), (14, disk - 15)]
}

/// A disk's size in MiB for a root on this file system: what its tools make at least.
fn size_for(kind: &str) -> u64 {
    match kind {
        "ext4" => 48,
        _ => 144,
    }
}
const ROOT: &str = "6c61622d-726f-4f74-8000-000000000001";
const SWAP: &str = "6c61622d-7377-4170-8000-000000000002";
const ESP: &str = "1AB0-E5F0";
const PART: &str = "6c61622d-0000-4000-8000-00000000000a";
const MACHINE_ID: &str = "6c61622d6d6163684000000000000003";

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

/// An initramfs with variables of initramfs-tools, of an odd length.
fn initramfs(resumes_from: &str) -> Vec<u8> {
    let archive = resume_archive(0, resumes_from);
    let mut image = zstd::encode_all(&archive[..], 1).unwrap();
    let len = image.len() | 3;
    image.resize(len, 0);
    image
}

/// A small Debian, as far as its identity goes.
fn tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let put = |path: &str, text: &str| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let fstab = format!(
        "# made by hand\nUUID={ROOT} / auto defaults 0 1\nUUID={ESP} /boot/efi vfat umask=0077 0 1\n\
         PARTUUID={} none swap sw 0 0\n",
        part(2)
    );
    put("etc/fstab", &fstab);
    put("etc/os-release", "NAME=\"Debian\"\n");
    put("etc/machine-id", &format!("{MACHINE_ID}\n"));
    put("etc/hostname", "golden\n");
    put(
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.1.1 golden.lab golden\n",
    );
    put(
        "etc/initramfs-tools/conf.d/resume",
        &format!("RESUME=UUID={SWAP}\n"),
    );
    let grub = format!(
        "search --no-floppy --fs-uuid --set=root {ROOT}\nlinux /vmlinuz root=UUID={ROOT} ro\n\
         linux /vmlinuz root=PARTUUID={}\n",
        part(3)
    );
    put("boot/grub/grub.cfg", &grub);
    fs::set_permissions(
        tree.join("boot/grub/grub.cfg"),
        fs::Permissions::from_mode(0o444),
    )
    .unwrap();
    fs::create_dir_all(tree.join("usr/share/initramfs-tools")).unwrap();
    fs::write(tree.join("boot/initrd.img-6.1"), initramfs(SWAP)).unwrap();
    put("var/lib/systemd/random-seed", "seed");
    put("var/lib/dhcp/dhclient.eth0.leases", "lease { }");
    fs::create_dir_all(tree.join("var/lib/dbus")).unwrap();
    symlink("/etc/machine-id", tree.join("var/lib/dbus/machine-id")).unwrap();
    fs::create_dir_all(tree.join("etc/ssh")).unwrap();
    for (kind, bits) in [("rsa", "2048"), ("ecdsa", "384"), ("ed25519", "256")] {
        let key = tree.join(format!("etc/ssh/ssh_host_{kind}_key"));
        let key = key.to_str().unwrap();
        run(
            "ssh-keygen",
            &["-q", "-t", kind, "-b", bits, "-N", "", "-f", key],
        );
    }
    tree
}

fn size_of(disk: &Path) -> u64 {
    fs::metadata(disk).unwrap().len() / MIB
}

/// A file cut out of a disk image.
fn partition(disk: &Path, number: usize) -> PathBuf {
    let (start, len) = partitions(size_of(disk))[number - 1];
    let mut bytes = vec![0; (len * MIB) as usize];
    let file = File::open(disk).unwrap();
    file.read_exact_at(&mut bytes, start * MIB).unwrap();
    let path = disk.with_extension(format!("part{number}"));
    fs::write(&path, bytes).unwrap();
    path
}

/// Puts a file system, made apart, into its partition.
fn put_partition(disk: &Path, number: usize, made: &Path) {
    let file = File::options().write(true).open(disk).unwrap();
    let start = partitions(size_of(disk))[number - 1].0 * MIB;
    file.write_all_at(&fs::read(made).unwrap(), start).unwrap();
}

/// The file system `kind` in a file, with the tree in it.
fn root_volume(kind: &str, path: &Path, tree: &Path) {
    let (at, tree) = (path.to_str().unwrap(), tree.to_str().unwrap());
    match kind {
        "ext4" => {
            run(
                "mke2fs",
                &["-q", "-t", "ext4", "-m", "0", "-U", ROOT, "-d", tree, at],
            );
        }
        "btrfs" => {
            run("mkfs.btrfs", &["-q", "-U", ROOT, "--rootdir", tree, at]);
        }
        _ => {
            let id = format!("uuid={ROOT}");
            run("mkfs.xfs", &["--unsupported", "-q", "-f", "-m", &id, at]);
            let on = path.with_extension("mounted");
            fs::create_dir(&on).unwrap();
            let on = on.to_str().unwrap();
            run("mount", &["-o", "loop,nouuid", at, on]);
            run("cp", &["-a", &format!("{tree}/."), on]);
            run("umount", &[on]);
        }
    }
}

fn image(folder: &Path, kind: &str, tree: &Path, table: &str) -> PathBuf {
    let disk = folder.join("golden.raw");
    let size = size_for(kind);
    File::create(&disk).unwrap().set_len(size * MIB).unwrap();
    let path = disk.to_str().unwrap();
    run(
        "sh",
        &["-c", &format!("printf '{table}' | sfdisk -q {path}")],
    );
    let made = |number: usize| {
        let path = folder.join(format!("made{number}"));
        let file = File::create(&path).unwrap();
        file.set_len(partitions(size)[number - 1].1 * MIB).unwrap();
        path
    };
    let (esp, swap, root) = (made(1), made(2), made(3));
    let at = esp.to_str().unwrap();
    run("mkfs.vfat", &["-F", "16", "-s", "1", "-i", "1AB0E5F0", at]);
    let config = folder.join("grub.cfg");
    fs::write(&config, format!("search.fs_uuid {ROOT} root\n")).unwrap();
    run("mmd", &["-i", at, "::EFI", "::EFI/debian", "::EFI/other"]);
    let config = config.to_str().unwrap();
    run("mcopy", &["-i", at, config, "::EFI/debian/grub.cfg"]);
    run("mcopy", &["-i", at, config, "::EFI/other/grub.cfg"]);
    root_volume(kind, &root, tree);
    run("mkswap", &["-U", SWAP, swap.to_str().unwrap()]);
    for (number, made) in [(1, &esp), (2, &swap), (3, &root)] {
        put_partition(&disk, number, made);
    }
    disk
}

fn gpt(kind: &str) -> String {
    let partitions: Vec<_> = partitions(size_for(kind))
        .iter()
        .zip([("uefi", 0xa), ("swap", 0xb), ("linux", 0xc)])
        .map(|((start, len), (kind, id))| {
            let guid = PART.replace("0a", &format!("0{id:x}"));
            format!("start={start}M,size={len}M,type={kind},uuid={guid}\\n")
        })
        .collect();
    format!("label: gpt\\n{}", partitions.concat())
}

/// What `PARTUUID=` has before the copies are made, by number.
fn part(number: usize) -> String {
    PART.replace("0a", ["0a", "0b", "0c"][number - 1])
}

fn named(path: &Path) -> NamedDisk {
    NamedDisk::parse(path.to_str().unwrap()).unwrap()
}

/// A machine whose disks can be opened so many times yet.
struct Machine {
    native: Native,
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

    fn reread_table(&self, disk: &Disk) -> io::Result<()> {
        self.native.reread_table(disk)
    }

    fn variables(&self) -> Option<&dyn Variables> {
        None
    }
}

/// A bench with a captured image and some target files.
fn bench(source: &Path, targets: &[PathBuf]) -> Bench<Machine> {
    for target in targets {
        let size = fs::metadata(source).unwrap().len();
        File::create(target).unwrap().set_len(size).unwrap();
    }
    let disks: Vec<_> = std::iter::once(source)
        .chain(targets.iter().map(PathBuf::as_path))
        .map(named)
        .collect();
    let first = disks[0].disk(Path::new("/sys")).unwrap();
    let machine = Machine {
        native: Native::new(disks, FirmwareKind::Bios, "x86_64", false),
        opens_left: AtomicUsize::new(usize::MAX),
    };
    let bench = Bench::new(machine, vec![first]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench
}

fn copy(bench: &mut Bench<Machine>, target: &Path, name: &str) -> Result<Vec<String>, JobError> {
    bench.inventory.disks = vec![named(target).disk(Path::new("/sys")).unwrap()];
    let choices = Choices {
        identity: Some(Identity::New),
        host_name: Some(HostName::try_from(name.to_owned()).unwrap()),
        ..Choices::default()
    };
    restore(&bench.engine(), &point("rp-1"), &choices)
}

/// A file's bytes as a volume.
struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let start = offset as usize;
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }
}

/// The files of a volume.
struct Files(Box<dyn FileTree>);

impl Files {
    fn of(volume: &Path) -> Self {
        let bytes = fs::read(volume).unwrap();
        let size = bytes.len() as u64;
        Self(tree::open(Arc::new(Bytes(bytes)), size).unwrap())
    }

    fn node(&self, path: &str) -> Option<NodeId> {
        let stay = tree_path::AtEnd::Stay;
        tree_path::find(self.0.as_ref(), self.0.root(), path.as_bytes(), stay).ok()
    }

    fn mode(&self, path: &str) -> u32 {
        let node = self.0.node(self.node(path).unwrap()).unwrap();
        assert_eq!((node.uid, node.gid), (Some(0), Some(0)), "{path}");
        node.mode.unwrap() & 0o7777
    }

    fn cat(&self, path: &str) -> String {
        String::from_utf8(self.bytes(path)).unwrap()
    }

    fn bytes(&self, path: &str) -> Vec<u8> {
        let node = self.node(path).unwrap_or_else(|| panic!("no {path}"));
        let mut bytes = vec![0; self.0.node(node).unwrap().size as usize];
        self.0.read(node, 0, &mut bytes).unwrap();
        bytes
    }
}

/// Has the file system's own tool judge it.
fn check_volume(kind: &str, volume: &Path) {
    let at = volume.to_str().unwrap();
    match kind {
        "ext4" => run("e2fsck", &["-f", "-n", at]),
        "btrfs" => run("btrfs", &["check", "--readonly", at]),
        _ => run("xfs_repair", &["-n", at]),
    };
}

fn blkid(volume: &Path) -> String {
    let arguments = ["-p", "-o", "value", "-s", "UUID", volume.to_str().unwrap()];
    run("blkid", &arguments).trim().to_owned()
}

/// Everything by which machines are told apart, of a copy that is consistent with itself.
fn check_copy(disk: &Path, kind: &str, name: &str) -> Vec<String> {
    let dump = run("sfdisk", &["-d", disk.to_str().unwrap()]);
    run("sfdisk", &["--verify", disk.to_str().unwrap()]);
    let guids: Vec<String> = dump
        .split([' ', ',', '\n'])
        .filter_map(|word| word.strip_prefix("uuid="))
        .map(str::to_lowercase)
        .collect();
    let label = dump
        .lines()
        .find_map(|line| line.strip_prefix("label-id: "));
    let (esp, swap, root) = (partition(disk, 1), partition(disk, 2), partition(disk, 3));
    check_volume(kind, &root);
    run("fsck.fat", &["-n", esp.to_str().unwrap()]);
    let (esp_id, root_id, swap_id) = (blkid(&esp), blkid(&root), blkid(&swap));

    let files = Files::of(&root);
    let fstab = files.cat("/etc/fstab");
    assert!(fstab.contains(&format!("UUID={root_id} / auto")), "{fstab}");
    assert!(
        fstab.contains(&format!("UUID={esp_id} /boot/efi")),
        "{fstab}"
    );
    assert!(
        fstab.contains(&format!("PARTUUID={} none", guids[1])),
        "{fstab}"
    );
    let grub = files.cat("/boot/grub/grub.cfg");
    let expected = format!(
        "search --no-floppy --fs-uuid --set=root {root_id}\nlinux /vmlinuz root=UUID={root_id} ro\n\
         linux /vmlinuz root=PARTUUID={}\n",
        guids[2]
    );
    assert_eq!(grub, expected);
    assert_eq!(files.mode("/boot/grub/grub.cfg"), 0o444);
    let resume = files.cat("/etc/initramfs-tools/conf.d/resume");
    assert_eq!(resume, format!("RESUME=UUID={swap_id}\n"));
    let image = files.bytes("/boot/initrd.img-6.1");
    let ids = [swap_id.clone(), SWAP.to_owned()];
    // The old one stays in what was there; the new one is read after it.
    assert_eq!(
        start_image::named(&image, &ids),
        Named::These(vec![0, 1]),
        "{name}"
    );
    for config in ["debian", "other"] {
        let path = format!("::EFI/{config}/grub.cfg");
        let text = run("mtype", &["-i", esp.to_str().unwrap(), &path]);
        assert_eq!(text, format!("search.fs_uuid {root_id} root\n"));
    }
    assert_eq!(files.cat("/etc/hostname"), format!("{name}\n"));
    let hosts = files.cat("/etc/hosts");
    assert!(
        hosts.contains(&format!("127.0.1.1 {name}.lab {name}")),
        "{hosts}"
    );
    let machine_id = files.cat("/etc/machine-id").trim().to_owned();
    assert_eq!(machine_id.len(), 32);
    for gone in [
        "/var/lib/systemd/random-seed",
        "/var/lib/dhcp/dhclient.eth0.leases",
    ] {
        let is_gone = files.node(gone).is_none();
        assert_eq!(is_gone, name != "golden", "{gone}");
    }
    let mut ids = vec![
        machine_id,
        esp_id,
        root_id,
        swap_id,
        label.unwrap().to_owned(),
    ];
    ids.extend(guids);
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let path = format!("/etc/ssh/ssh_host_{kind}_key");
        let (private, public) = (files.cat(&path), files.cat(&format!("{path}.pub")));
        let key = disk.with_extension("key");
        fs::write(&key, private).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        // The private key's own public half is the one beside it.
        let own = run("ssh-keygen", &["-y", "-f", key.to_str().unwrap()]);
        let half = |text: &str| text.split(' ').nth(1).unwrap().trim().to_owned();
        assert_eq!(half(&own), half(&public));
        assert_eq!(files.mode(&path), 0o600);
        ids.push(half(&public));
    }
    ids
}

/// Whether no firmware and no system finds anything on a disk.
fn is_without_table(disk: &Path) -> bool {
    let mut first = [0; 512];
    let file = File::open(disk).unwrap();
    file.read_exact_at(&mut first, 0).unwrap();
    first == [0; 512]
}

/// What becomes of a copy of an image whose tree and volume were changed by these.
fn copy_of_changed(
    change_tree: impl FnOnce(&Path),
    change_volume: impl FnOnce(&Path),
) -> Option<(tempfile::TempDir, PathBuf, Result<Vec<String>, JobError>)> {
    if !is_root() {
        return None;
    }
    let folder = folder();
    let tree = tree(folder.path());
    change_tree(&tree);
    let source = image(folder.path(), "ext4", &tree, &gpt("ext4"));
    let root = folder.path().join("made3");
    change_volume(&root);
    put_partition(&source, 3, &root);
    let target = folder.path().join("copy.raw");
    let mut bench = bench(&source, std::slice::from_ref(&target));
    let result = copy(&mut bench, &target, "pc-1");
    Some((folder, target, result))
}
