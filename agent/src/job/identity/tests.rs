//! Copies of one image in files, by the kernel and the tools that a machine would use. They need root, for
//! loop devices and mounts, and are skipped with that reason without it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use backup::hardware::FirmwareKind;
use backup::identity::{HostName, Identity};
use backup::plan::Choices;

use crate::capture::capture;
use crate::hardware::named::NamedDisk;
use crate::job::JobError;
use crate::job::fake::{Bench, point, run};
use crate::job::native::Native;
use crate::restore::restore;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Begin and length of each partition in MiB: ESP, root, swap.
const PARTITIONS: [(u64, u64); 3] = [(1, 8), (9, 48), (57, 5)];
const ROOT: &str = "6c61622d-726f-4f74-8000-000000000001";
const SWAP: &str = "6c61622d-7377-4170-8000-000000000002";
const ESP: &str = "1AB0-E5F0";
const ROOT_PART: &str = "6c61622d-0000-4000-8000-00000000000b";
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

/// A small Debian, as far as its identity goes.
fn tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let put = |path: &str, text: &str| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let fstab = format!(
        "# made by hand\nUUID={ROOT} / ext4 errors=remount-ro 0 1\nUUID={ESP} /boot/efi vfat umask=0077 0 1\n\
         PARTUUID={} none swap sw 0 0\n",
        ROOT_PART.replace("0b", "0c")
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
         linux /vmlinuz root=PARTUUID={ROOT_PART}\n"
    );
    put("boot/grub/grub.cfg", &grub);
    fs::set_permissions(
        tree.join("boot/grub/grub.cfg"),
        fs::Permissions::from_mode(0o444),
    )
    .unwrap();
    put("var/lib/systemd/random-seed", "seed");
    put("var/lib/dhcp/dhclient.eth0.leases", "lease { }");
    fs::create_dir_all(tree.join("var/lib/dbus")).unwrap();
    symlink("/etc/machine-id", tree.join("var/lib/dbus/machine-id")).unwrap();
    fs::create_dir_all(tree.join("etc/ssh")).unwrap();
    run("ssh-keygen", &["-A", "-f", tree.to_str().unwrap()]);
    tree
}

/// A file cut out of a disk image.
fn partition(disk: &Path, number: usize) -> PathBuf {
    let (start, len) = PARTITIONS[number - 1];
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
    let start = PARTITIONS[number - 1].0 * MIB;
    file.write_all_at(&fs::read(made).unwrap(), start).unwrap();
}

fn image(folder: &Path, tree: &Path, table: &str) -> PathBuf {
    let disk = folder.join("golden.raw");
    File::create(&disk).unwrap().set_len(SIZE).unwrap();
    let path = disk.to_str().unwrap();
    run(
        "sh",
        &["-c", &format!("printf '{table}' | sfdisk -q {path}")],
    );
    let made = |number: usize| {
        let path = folder.join(format!("made{number}"));
        let file = File::create(&path).unwrap();
        file.set_len(PARTITIONS[number - 1].1 * MIB).unwrap();
        path
    };
    let (esp, root, swap) = (made(1), made(2), made(3));
    let at = esp.to_str().unwrap();
    run("mkfs.vfat", &["-F", "16", "-s", "1", "-i", "1AB0E5F0", at]);
    let config = folder.join("grub.cfg");
    fs::write(&config, format!("search.fs_uuid {ROOT} root\n")).unwrap();
    run("mmd", &["-i", at, "::EFI", "::EFI/debian", "::EFI/other"]);
    let config = config.to_str().unwrap();
    run("mcopy", &["-i", at, config, "::EFI/debian/grub.cfg"]);
    run("mcopy", &["-i", at, config, "::EFI/other/grub.cfg"]);
    let tree = tree.to_str().unwrap();
    let arguments = [
        "-q",
        "-t",
        "ext4",
        "-U",
        ROOT,
        "-d",
        tree,
        root.to_str().unwrap(),
    ];
    run("mke2fs", &arguments);
    run("mkswap", &["-U", SWAP, swap.to_str().unwrap()]);
    for (number, made) in [(1, &esp), (2, &root), (3, &swap)] {
        put_partition(&disk, number, made);
    }
    disk
}

fn gpt() -> String {
    let partitions: Vec<_> = PARTITIONS
        .iter()
        .zip([("uefi", 0xa), ("linux", 0xb), ("swap", 0xc)])
        .map(|((start, len), (kind, id))| {
            let guid = ROOT_PART.replace("0b", &format!("0{id:x}"));
            format!("start={start}M,size={len}M,type={kind},uuid={guid}\\n")
        })
        .collect();
    format!("label: gpt\\n{}", partitions.concat())
}

fn named(path: &Path) -> NamedDisk {
    NamedDisk::parse(path.to_str().unwrap()).unwrap()
}

/// A bench with a captured image and some target files.
fn bench(source: &Path, targets: &[PathBuf]) -> Bench<Native> {
    for target in targets {
        File::create(target).unwrap().set_len(SIZE).unwrap();
    }
    let disks: Vec<_> = std::iter::once(source)
        .chain(targets.iter().map(PathBuf::as_path))
        .map(named)
        .collect();
    let first = disks[0].disk(Path::new("/sys")).unwrap();
    let native = Native::new(disks, FirmwareKind::Bios, "x86_64", false);
    let bench = Bench::new(native, vec![first]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench
}

fn copy(bench: &mut Bench<Native>, target: &Path, name: &str) -> Result<Vec<String>, JobError> {
    bench.inventory.disks = vec![named(target).disk(Path::new("/sys")).unwrap()];
    let choices = Choices {
        identity: Some(Identity::New),
        host_name: Some(HostName::try_from(name.to_owned()).unwrap()),
        ..Choices::default()
    };
    restore(&bench.engine(), &point("rp-1"), &choices)
}

/// A file of the root file system.
fn cat(root: &Path, path: &str) -> String {
    let command = format!("cat {path}");
    let text = run("debugfs", &["-R", &command, root.to_str().unwrap()]);
    // The tool says its version first.
    let lines = text.lines().filter(|line| !line.starts_with("debugfs "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn blkid(volume: &Path) -> String {
    let arguments = ["-p", "-o", "value", "-s", "UUID", volume.to_str().unwrap()];
    run("blkid", &arguments).trim().to_owned()
}

/// Everything by which machines are told apart, of a copy that is consistent with itself.
fn check_copy(disk: &Path, name: &str) -> Vec<String> {
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
    let (esp, root, swap) = (partition(disk, 1), partition(disk, 2), partition(disk, 3));
    run("e2fsck", &["-f", "-n", root.to_str().unwrap()]);
    run("fsck.fat", &["-n", esp.to_str().unwrap()]);
    let (esp_id, root_id, swap_id) = (blkid(&esp), blkid(&root), blkid(&swap));

    let fstab = cat(&root, "/etc/fstab");
    assert!(fstab.contains(&format!("UUID={root_id} / ext4")), "{fstab}");
    assert!(
        fstab.contains(&format!("UUID={esp_id} /boot/efi")),
        "{fstab}"
    );
    assert!(
        fstab.contains(&format!("PARTUUID={} none", guids[2])),
        "{fstab}"
    );
    let grub = cat(&root, "/boot/grub/grub.cfg");
    let expected = format!(
        "search --no-floppy --fs-uuid --set=root {root_id}\nlinux /vmlinuz root=UUID={root_id} ro\n\
         linux /vmlinuz root=PARTUUID={}\n",
        guids[1]
    );
    assert_eq!(grub, expected);
    let stat = run(
        "debugfs",
        &["-R", "stat /boot/grub/grub.cfg", root.to_str().unwrap()],
    );
    assert!(stat.contains("Mode:  0444"), "{stat}");
    let resume = cat(&root, "/etc/initramfs-tools/conf.d/resume");
    assert_eq!(resume, format!("RESUME=UUID={swap_id}\n"));
    for config in ["debian", "other"] {
        let path = format!("::EFI/{config}/grub.cfg");
        let text = run("mtype", &["-i", esp.to_str().unwrap(), &path]);
        assert_eq!(text, format!("search.fs_uuid {root_id} root\n"));
    }
    assert_eq!(cat(&root, "/etc/hostname"), format!("{name}\n"));
    let hosts = cat(&root, "/etc/hosts");
    assert!(
        hosts.contains(&format!("127.0.1.1 {name}.lab {name}")),
        "{hosts}"
    );
    let machine_id = cat(&root, "/etc/machine-id").trim().to_owned();
    assert_eq!(machine_id.len(), 32);
    for gone in [
        "/var/lib/systemd/random-seed",
        "/var/lib/dhcp/dhclient.eth0.leases",
    ] {
        let is_gone = cat(&root, gone).contains("File not found");
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
        let (private, public) = (cat(&root, &path), cat(&root, &format!("{path}.pub")));
        let key = disk.with_extension("key");
        fs::write(&key, private).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        // The private key's own public half is the one beside it.
        let own = run("ssh-keygen", &["-y", "-f", key.to_str().unwrap()]);
        let half = |text: &str| text.split(' ').nth(1).unwrap().trim().to_owned();
        assert_eq!(half(&own), half(&public));
        let stat = format!("stat {path}");
        let stat = run("debugfs", &["-R", &stat, root.to_str().unwrap()]);
        assert!(stat.contains("Mode:  0600"), "{stat}");
        ids.push(half(&public));
    }
    ids
}

#[test]
fn ten_copies_share_nothing_and_each_is_whole() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let source = image(folder.path(), &tree(folder.path()), &gpt());
    let before = check_copy(&source, "golden");
    let targets: Vec<_> = (0..10)
        .map(|number| folder.path().join(format!("copy{number}.raw")))
        .collect();
    let mut bench = bench(&source, &targets);
    let mut seen: BTreeSet<String> = before.iter().cloned().collect();
    for (number, target) in targets.iter().enumerate() {
        let name = format!("pc-{number}");
        let said = copy(&mut bench, target, &name).unwrap().join("\n");
        for part in ["ids of its own", "machine id", "SSH host keys", &name] {
            assert!(said.contains(part), "{said}");
        }
        let ids = check_copy(target, &name);
        assert_eq!(ids.len(), before.len());
        for id in ids {
            assert!(seen.insert(id.clone()), "{id} was there before");
        }
    }
}
