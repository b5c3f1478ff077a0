//! C6: disk images become restore points and come out again. Images are made and judged by QEMU's tools, and
//! what is in them by the tools of their file systems.

#[expect(dead_code, reason = "each test file uses a part of it")]
mod server;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use protocol::api::RestorePointView;
use protocol::upkeep::StoreView;
use serde_json::Value;
use server::{Folders, NETBOOT, Server, has_program};

const MIB: u64 = 1 << 20;

/// An empty store and a folder for images, in memory where that is.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// None, with the reason printed, where a tool is missing.
    fn new(tools: &[&str]) -> Option<Self> {
        if !tools.iter().all(|tool| has_program(tool)) {
            return None;
        }
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let bench = Self {
            folder: folder.expect("a folder"),
        };
        fs::create_dir_all(bench.path("data/store/packs")).expect("a store");
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    fn netboot(&self, words: &[&str]) -> Output {
        let mut command = Command::new(NETBOOT);
        command.arg("--data-dir").arg(self.path("data")).args(words);
        command.current_dir(self.folder.path());
        command.output().expect("netboot runs")
    }

    fn says(&self, words: &[&str]) -> String {
        let output = self.netboot(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[words, &["--json"]].concat())).expect("JSON")
    }

    /// The sentence of a command that must fail.
    fn refuses(&self, words: &[&str]) -> String {
        let output = self.netboot(words);
        assert!(!output.status.success(), "{words:?} went well");
        String::from_utf8(output.stderr).expect("text")
    }

    /// Imports a file; the restore point and how many chunks were new.
    fn import(&self, file: &str, more: &[&str]) -> (RestorePointView, u64) {
        let done = self.json(&[&["import", file], more].concat());
        let point = serde_json::from_value(done["restore_point"].clone()).expect("a view");
        (point, done["new_chunks"].as_u64().expect("a number"))
    }

    fn points(&self) -> usize {
        let view: StoreView = serde_json::from_value(self.json(&["store"])).expect("a view");
        view.restore_points.len()
    }

    /// Nothing half done is in the folder of images, in the store or in the folder for sockets.
    fn assert_tidy(&self) {
        let staging = fs::read_dir(self.path("data/store/staging"));
        let staged = staging.map_or(0, |entries| entries.count());
        assert_eq!(staged, 0, "something is staged still");
        for entry in fs::read_dir(self.folder.path()).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_string_lossy().into_owned();
            assert!(!name.ends_with(".partial"), "{name}");
        }
    }
}

/// Runs a tool that must go well; what it printed.
fn run(tool: &str, words: &[&str]) -> String {
    let output = Command::new(tool)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("MTOOLS_SKIP_CHECK", "1")
        .env("LC_ALL", "C")
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {words:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Bytes that do not compress and never repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// A disk full of 0xa5, as one that was in use before, with a partition table on it.
fn used_disk(path: &Path, size: u64, table: &str) -> File {
    fs::write(path, vec![0xa5; size as usize]).expect("a disk");
    let disk = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("it");
    // The table's own sectors were empty before.
    disk.write_all_at(&[0; 34 * 512], 0).expect("written");
    disk.write_all_at(&[0; 33 * 512], size - 33 * 512)
        .expect("written");
    let text = path.to_str().expect("text");
    let script = format!("{text}.table");
    fs::write(&script, table).expect("a script");
    run("sh", &["-c", &format!("sfdisk -q '{text}' < '{script}'")]);
    disk
}

fn put(disk: &File, part: &Path, at: u64) {
    let bytes = fs::read(part).expect("a partition");
    disk.write_all_at(&bytes, at).expect("written");
}

fn cut(disk: &Path, part: &Path, at: u64, len: u64) {
    let mut bytes = vec![0; len as usize];
    let disk = File::open(disk).expect("a disk");
    disk.read_exact_at(&mut bytes, at).expect("read");
    fs::write(part, bytes).expect("a partition");
}

/// Every block is as in the source, or zero in place of the source's 0xa5; how many were.
fn blocks_left_out(source: &Path, exported: &Path) -> usize {
    let (source, exported) = (
        fs::read(source).expect("read"),
        fs::read(exported).expect("read"),
    );
    assert_eq!(source.len(), exported.len());
    let blocks = source.chunks(512).zip(exported.chunks(512));
    let mut left_out = 0;
    for (number, (old, new)) in blocks.enumerate() {
        if old != new {
            let dropped = old.iter().all(|byte| *byte == 0xa5) && new.iter().all(|byte| *byte == 0);
            assert!(dropped, "sector {number} differs");
            left_out += 1;
        }
    }
    left_out
}

/// A disk with an EFI system partition and a Linux; its unused blocks are full of garbage.
fn gpt_disk(bench: &Bench, name: &str) -> Vec<u8> {
    let blob = noise(1, 3 << 20);
    let tree = bench.path("tree");
    for folder in ["etc", "usr/bin"] {
        fs::create_dir_all(tree.join(folder)).expect("a folder");
    }
    fs::write(tree.join("etc/os-release"), "NAME=Testix\nVERSION_ID=9\n").expect("a file");
    fs::write(tree.join("etc/hostname"), "lab-9\n").expect("a file");
    fs::write(tree.join("blob"), &blob).expect("a file");
    let mut program = vec![0; 64];
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    program[18] = 183;
    fs::write(tree.join("usr/bin/env"), program).expect("a file");
    let table =
        "label: gpt\nstart=2048, size=8192, type=uefi\nstart=10240, size=32768, type=linux\n";
    let disk = used_disk(&bench.path(name), 24 * MIB, table);
    for (part, mib) in [("esp", 4), ("root", 16)] {
        fs::write(bench.path(part), vec![0xa5; mib << 20]).expect("a partition");
    }
    let (esp, root) = (bench.text("esp"), bench.text("root"));
    run("mkfs.vfat", &["-n", "ESP", &esp]);
    run(
        "mcopy",
        &["-i", &esp, &bench.text("tree/blob"), "::BOOT.EFI"],
    );
    let from = bench.text("tree");
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            "nodiscard",
            "-d",
            &from,
            &root,
        ],
    );
    put(&disk, &bench.path("esp"), MIB);
    put(&disk, &bench.path("root"), 5 * MIB);
    blob
}

const GPT_TOOLS: &[&str] = &[
    "qemu-img",
    "qemu-nbd",
    "sfdisk",
    "mke2fs",
    "mkfs.vfat",
    "mcopy",
];

#[test]
fn every_format_becomes_the_same_chunks_and_comes_out_as_it_went_in() {
    let Some(bench) = Bench::new(GPT_TOOLS) else {
        return;
    };
    let blob = gpt_disk(&bench, "disk.raw");
    let before = fs::read(bench.path("disk.raw")).expect("the image");
    let (point, new) = bench.import("disk.raw", &[]);
    assert!(new > 0 && point.stored_bytes > 0);
    assert_eq!(point.machine_name, "lab-9");
    assert_eq!(point.system.as_deref(), Some("Testix 9"));
    assert_eq!(
        (point.kind.as_str(), &point.warnings[..]),
        ("backup", &[][..])
    );
    assert!(
        before == fs::read(bench.path("disk.raw")).expect("the image"),
        "not changed"
    );

    bench.says(&["export", point.id.as_str(), "out.raw"]);
    let left_out = blocks_left_out(&bench.path("disk.raw"), &bench.path("out.raw"));
    assert!(left_out > 10_000, "the garbage is not saved: {left_out}");
    let out = fs::metadata(bench.path("out.raw")).expect("a file");
    assert!(out.blocks() * 512 < 14 * MIB, "holes: {}", out.blocks());
    run("sfdisk", &["--verify", &bench.text("out.raw")]);
    cut(
        &bench.path("out.raw"),
        &bench.path("root"),
        5 * MIB,
        16 * MIB,
    );
    cut(&bench.path("out.raw"), &bench.path("esp"), MIB, 4 * MIB);
    run("e2fsck", &["-fn", &bench.text("root")]);
    run(
        "debugfs",
        &[
            "-R",
            &format!("dump /blob {}", bench.text("blob")),
            &bench.text("root"),
        ],
    );
    assert!(fs::read(bench.path("blob")).expect("a file") == blob);
    run("fsck.vfat", &["-n", &bench.text("esp")]);
    run(
        "mcopy",
        &[
            "-n",
            "-i",
            &bench.text("esp"),
            "::BOOT.EFI",
            &bench.text("copy"),
        ],
    );
    assert!(fs::read(bench.path("copy")).expect("a file") == blob);

    let raw = fs::read(bench.path("out.raw")).expect("a file");
    for (format, driver, options) in [
        ("qcow2", "qcow2", ""),
        ("packed.qcow2", "qcow2", "-c"),
        ("dynamic.vhd", "vpc", "-o force_size=on"),
        ("fixed.vhd", "vpc", "-o subformat=fixed,force_size=on"),
        ("vhdx", "vhdx", ""),
        ("vmdk", "vmdk", ""),
        ("stream.vmdk", "vmdk", "-o subformat=streamOptimized"),
        ("flat.vmdk", "vmdk", "-o subformat=monolithicFlat"),
    ] {
        let name = format!("disk.{format}");
        let mut words = vec!["convert", "-f", "raw", "-O", driver];
        words.extend(options.split_ascii_whitespace());
        let (from, to) = (bench.text("disk.raw"), bench.text(&name));
        words.extend([from.as_str(), to.as_str()]);
        run("qemu-img", &words);
        let (other, new) = bench.import(&name, &[]);
        assert_eq!(new, 0, "{name}: the same chunks");
        assert_eq!(other.data_bytes, point.data_bytes, "{name}");
        assert_eq!(
            other.machine, point.machine,
            "{name}: the same host name, the same machine"
        );
        bench.says(&["export", other.id.as_str(), "again.raw", "--force"]);
        assert!(
            fs::read(bench.path("again.raw")).expect("a file") == raw,
            "{name}"
        );
        fs::remove_file(bench.path(&name)).expect("removed");
    }

    bench.says(&["export", point.id.as_str(), "out.qcow2"]);
    let (qcow2, out) = (bench.text("out.qcow2"), bench.text("out.raw"));
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", &out, &qcow2],
    );
    run("qemu-img", &["check", &qcow2]);
    let len = fs::metadata(&qcow2).expect("a file").len();
    assert!(len < 16 * MIB, "only what is in use: {len}");
    assert_eq!(bench.import("out.qcow2", &[]).1, 0);

    let words = [
        "export",
        point.id.as_str(),
        "parts",
        "--format",
        "parts",
        "--part-size",
        "5",
    ];
    let done = bench.json(&words);
    assert_eq!(
        done["disks"][0]["files"].as_array().expect("files").len(),
        5 + 2
    );
    let folder = bench.text("parts");
    run(
        "sh",
        &[
            "-c",
            &format!("cd {folder} && sha256sum -c --strict SHA256SUMS"),
        ],
    );
    run(
        "sh",
        &[
            "-c",
            &format!("cd {folder} && cat disk.raw.* | cmp - {out}"),
        ],
    );
    let readme = fs::read_to_string(bench.path("parts/README.txt")).expect("a text");
    assert!(readme.contains("cat disk.raw.* > disk.raw") && readme.contains("25165824 bytes"));
    let verified = bench.says(&["verify"]);
    assert!(verified.contains("All of it is sound"), "{verified}");
    bench.assert_tidy();
}

#[test]
fn a_windows_disk_with_an_mbr_comes_out_with_its_files() {
    let tools = [
        "sfdisk", "mkntfs", "ntfscp", "ntfscat", "qemu-img", "qemu-nbd",
    ];
    let Some(bench) = Bench::new(&tools) else {
        return;
    };
    let table = "label: dos\nstart=2048, size=32768, type=7, bootable\n";
    let disk = used_disk(&bench.path("disk.raw"), 18 * MIB, table);
    fs::write(bench.path("ntfs"), vec![0xa5; 16 << 20]).expect("a partition");
    let ntfs = bench.text("ntfs");
    run(
        "mkntfs",
        &[
            "-q", "-F", "-Q", "-p", "2048", "-H", "16", "-S", "63", "-L", "WIN", &ntfs,
        ],
    );
    let content = noise(7, 2_000_000);
    fs::write(bench.path("file"), &content).expect("a file");
    run("ntfscp", &["-q", &ntfs, &bench.text("file"), "file.bin"]);
    put(&disk, &bench.path("ntfs"), MIB);
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vhdx",
            &bench.text("disk.raw"),
            &bench.text("disk.vhdx"),
        ],
    );
    let label = ["--kind", "factory", "--name", "Windows-7"];
    let (point, _) = bench.import("disk.vhdx", &[&["--machine", "pc 7"][..], &label].concat());
    assert_eq!(
        (point.machine_name.as_str(), point.kind.as_str()),
        ("pc 7", "factory")
    );
    // An image is nobody's latest backup; it has a name.
    bench.refuses(&["export", "latest", "out.raw", "--machine", "pc 7"]);
    bench.refuses(&["import", "disk.raw", "--name", "Windows"]);
    bench.refuses(&[&["import", "disk.raw"][..], &label].concat());
    bench.says(&["export", "Windows-7", "out.raw"]);
    let left_out = blocks_left_out(&bench.path("disk.raw"), &bench.path("out.raw"));
    assert!(left_out > 10_000, "{left_out}");
    cut(&bench.path("out.raw"), &bench.path("ntfs"), MIB, 16 * MIB);
    let output = Command::new("ntfscat")
        .args(["-q", &ntfs, "file.bin"])
        .output();
    assert!(output.expect("ntfscat runs").stdout == content);
    // The same name is the same machine, known or not.
    let (again, new) = bench.import("disk.raw", &["--machine", "pc 7"]);
    assert_eq!((again.machine, new), (point.machine, 0));
}

#[test]
fn logical_volumes_come_out_where_they_were() {
    let tools = [
        "losetup", "pvcreate", "vgcreate", "lvcreate", "mke2fs", "qemu-nbd",
    ];
    let Some(bench) = Bench::new(&tools) else {
        return;
    };
    let mut devices = Vec::new();
    for name in ["first.raw", "second.raw"] {
        let path = bench.text(name);
        fs::write(&path, vec![0xa5; 24 << 20]).expect("a disk");
        let disk = File::options().write(true).open(&path).expect("the disk");
        disk.write_all_at(&vec![0; MIB as usize], 0)
            .expect("written");
        let found = Command::new("losetup")
            .args(["-f", "--show", &path])
            .output();
        let found = found.expect("losetup runs");
        if !found.status.success() {
            let said = String::from_utf8_lossy(&found.stderr);
            eprintln!("skipped: no loop device (needs root): {said}");
            return;
        }
        devices.push(String::from_utf8_lossy(&found.stdout).trim().to_owned());
    }
    let [one, two] = [devices[0].as_str(), devices[1].as_str()];
    let config = format!(
        "devices {{ filter=[\"a|^{one}$|\",\"a|^{two}$|\",\"r|.*|\"] use_devicesfile=0 \
         obtain_device_list_from_udev=0 external_device_info_source=\"none\" }} \
         activation {{ udev_sync=0 udev_rules=0 }} global {{ locking_dir=\"{}\" event_activation=0 }} \
         backup {{ backup=0 archive=0 }}",
        bench.text("lock")
    );
    let system = format!("LVM_SYSTEM_DIR={}", bench.text("lvm"));
    let lvm = |words: &[&str]| {
        let (command, rest) = words.split_first().expect("a command");
        let begin = [
            system.as_str(),
            "LVM_SUPPRESS_FD_WARNINGS=1",
            command,
            "--driverloaded",
            "n",
            "--config",
            &config,
        ];
        run("env", &[&begin, rest].concat());
    };
    lvm(&["pvcreate", "-q", "--dataalignment", "1m", one, two]);
    lvm(&["vgcreate", "-q", "-s", "1M", "vg", one, two]);
    // 8 MiB on each disk, in stripes of 64 KiB that go round.
    let striped = ["-i", "2", "-I", "64k", "-l", "16", "-n", "root", "vg"];
    lvm(&[&["lvcreate", "-q", "-an", "-Zn", "-Wn"], &striped[..]].concat());
    run("losetup", &["-d", one]);
    run("losetup", &["-d", two]);
    let blob = noise(3, 1_000_000);
    fs::create_dir(bench.path("tree")).expect("a folder");
    fs::write(bench.path("tree/blob"), &blob).expect("a file");
    fs::write(bench.path("root"), vec![0xa5; 16 << 20]).expect("a volume");
    let (from, root) = (bench.text("tree"), bench.text("root"));
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            "nodiscard",
            "-d",
            &from,
            &root,
        ],
    );
    let names = ["first.raw", "second.raw"];
    let striped = fs::read(bench.path("root")).expect("the volume");
    for (name, first) in names.iter().zip([0, 1]) {
        let disk = File::options()
            .write(true)
            .open(bench.path(name))
            .expect("the disk");
        for (number, stripe) in striped.chunks(64 << 10).skip(first).step_by(2).enumerate() {
            disk.write_all_at(stripe, MIB + number as u64 * (64 << 10))
                .expect("written");
        }
    }

    let done = bench.json(&["import", "first.raw", "second.raw"]);
    let point: RestorePointView =
        serde_json::from_value(done["restore_point"].clone()).expect("a view");
    let id = point.id.as_str();
    assert_eq!(point.disk_bytes, 48 * MIB);
    assert!(
        point.data_bytes < 6 * MIB,
        "not the whole volume: {}",
        point.data_bytes
    );
    // Several disks are a folder, unless one is named.
    bench.says(&["export", id, "out"]);
    bench.says(&["export", id, "second.qcow2", "--disk", "1"]);
    let (second, qcow2) = (bench.text("out/disk-1.raw"), bench.text("second.qcow2"));
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", &second, &qcow2],
    );
    bench.says(&[
        "export",
        id,
        "parts",
        "--format",
        "parts",
        "--part-size",
        "8",
    ]);
    let parts = bench.text("parts/disk-1");
    run(
        "sh",
        &[
            "-c",
            &format!("cd {parts} && sha256sum -c SHA256SUMS && cat disk.raw.* | cmp - {second}"),
        ],
    );
    let mut volume = vec![0; 16 << 20];
    for (number, name) in names.iter().enumerate() {
        let out = bench.path(&format!("out/disk-{number}.raw"));
        let left_out = blocks_left_out(&bench.path(name), &out);
        assert!(left_out > 20_000, "{left_out}");
        let disk = File::open(&out).expect("a disk");
        for (index, stripe) in volume
            .chunks_mut(64 << 10)
            .skip(number)
            .step_by(2)
            .enumerate()
        {
            disk.read_exact_at(stripe, MIB + index as u64 * (64 << 10))
                .expect("read");
        }
    }
    fs::write(&root, volume).expect("the volume");
    run("e2fsck", &["-fn", &root]);
    run(
        "debugfs",
        &["-R", &format!("dump /blob {}", bench.text("blob")), &root],
    );
    assert!(fs::read(bench.path("blob")).expect("a file") == blob);
    bench.assert_tidy();
}

#[test]
fn what_is_no_whole_image_is_refused_and_leaves_nothing() {
    let Some(bench) = Bench::new(GPT_TOOLS) else {
        return;
    };
    gpt_disk(&bench, "disk.raw");
    let qemu = |words: &[&str]| {
        let mut command = Command::new("qemu-img");
        let output = command
            .args(words)
            .current_dir(bench.folder.path())
            .output();
        let output = output.expect("qemu-img runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
    };
    for format in ["qcow2", "vhdx", "vmdk", "vpc"] {
        let (from, to) = (
            bench.text("disk.raw"),
            bench.text(&format!("disk.{format}")),
        );
        qemu(&["convert", "-f", "raw", "-O", format, &from, &to]);
    }
    let beginning = |from: &str, to: &str, share: u64| {
        let bytes = fs::read(bench.path(from)).expect("an image");
        let len = bytes.len() as u64 * share / 100;
        fs::write(bench.path(to), &bytes[..(len - len % 512) as usize]).expect("cut");
    };
    beginning("disk.raw", "cut.raw", 60);
    beginning("disk.qcow2", "cut.qcow2", 60);
    beginning("disk.vhdx", "cut.vhdx", 60);
    beginning("disk.vmdk", "cut.vmdk", 60);
    beginning("disk.vpc", "cut.vhd", 60);
    fs::write(bench.path("odd.raw"), vec![0; 1000]).expect("a file");
    fs::write(bench.path("empty.raw"), b"").expect("a file");
    fs::write(bench.path("text"), vec![b'x'; 1 << 20]).expect("a file");
    fs::write(bench.path("packed.gz"), b"\x1f\x8b\x08 and so on").expect("a file");
    qemu(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "disk.qcow2",
        "-F",
        "qcow2",
        "over.qcow2",
    ]);
    qemu(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s",
        "locked.qcow2",
        "16M",
    ]);
    qemu(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data.raw,data_file_raw=on",
        "apart.qcow2",
        "16M",
    ]);
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
                      createType=\"monolithicFlat\"\n\nRW 2 FLAT \"/etc/passwd\" 0\n\n\
                      ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"1\"\n\
                      ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n\
                      ddb.adapterType = \"ide\"\n";
    fs::write(bench.path("outside.vmdk"), descriptor).expect("a file");
    for (file, said) in [
        ("nosuch", "No such file"),
        ("tree", "it is a folder"),
        ("empty.raw", "0 bytes"),
        ("odd.raw", "no whole number of sectors of 512 bytes"),
        ("text", "nothing says that it is a disk image"),
        ("packed.gz", "gzip-compressed"),
        ("cut.raw", "leaves the disk of"),
        ("cut.qcow2", "cut short or damaged"),
        ("cut.vhdx", "cannot be read as vhdx"),
        ("cut.vmdk", "cut short or damaged"),
        ("cut.vhd", "cannot be read as vpc"),
        ("over.qcow2", "`disk.qcow2`), which is not followed"),
        ("locked.qcow2", "is encrypted"),
        ("apart.qcow2", "`data.raw`), which is not followed"),
        ("outside.vmdk", "`/etc/passwd`), and is not followed"),
    ] {
        let sentence = bench.refuses(&["import", file, "--json"]);
        assert!(sentence.contains(said), "{file}: {sentence}");
    }
    assert_eq!(bench.points(), 0);
    let words = ["import", "disk.raw", "--format", "vhdx"];
    assert!(bench.refuses(&words).contains("cannot be read as vhdx"));
    assert!(
        bench
            .refuses(&["import", "disk.raw", "--sector", "4096"])
            .contains("--sector")
    );
    assert_eq!(
        bench.import("text", &["--format", "raw"]).0.machine_name,
        "text"
    );
    let none = Command::new(NETBOOT)
        .args(["--data-dir", &bench.text("tree"), "import"])
        .arg(bench.path("disk.raw"))
        .output();
    assert_eq!(none.expect("netboot runs").status.code(), Some(66));
    bench.assert_tidy();
}

#[test]
fn an_export_never_overwrites_and_leaves_nothing_when_it_fails() {
    let Some(bench) = Bench::new(GPT_TOOLS) else {
        return;
    };
    gpt_disk(&bench, "disk.raw");
    let (point, _) = bench.import("disk.raw", &[]);
    let id = point.id.as_str();
    fs::write(bench.path("mine"), "mine").expect("a file");
    fs::create_dir(bench.path("folder")).expect("a folder");
    fs::write(bench.path("folder/SHA256SUMS"), "mine").expect("a file");
    let within = bench.text("data/store/out.raw");
    for (words, said) in [
        (&["no-such-point", "out"][..], "there is no restore point"),
        (&[id, "mine"], "is there already and was not touched"),
        (&[id, "mine", "--format", "qcow2"], "is there already"),
        (&[id, "mine", "--format", "parts"], "this is a file"),
        (
            &[id, "folder", "--format", "parts"],
            "SHA256SUMS is there already",
        ),
        (&[id, &within], "inside the data directory"),
        (&[id, "nowhere/out"], "its folder cannot be used"),
        (&[id, "/dev/null"], "no ordinary file"),
        (&[id, "out", "--disk", "1"], "has no disk 1; it has: 0"),
        (&["latest", "out"], "needs --machine"),
    ] {
        let sentence = bench.refuses(&[&["export"], words].concat());
        assert!(sentence.contains(said), "{words:?}: {sentence}");
    }
    assert_eq!(
        fs::read_to_string(bench.path("mine")).expect("a file"),
        "mine"
    );
    assert_eq!(
        fs::read_dir(bench.path("folder"))
            .expect("a folder")
            .count(),
        1
    );
    bench.says(&["export", id, "folder"]);
    assert_eq!(
        fs::metadata(bench.path("folder/disk-0.raw"))
            .expect("a file")
            .len(),
        24 * MIB
    );
    bench.says(&["export", id, "mine", "--force"]);
    assert_eq!(
        fs::metadata(bench.path("mine")).expect("a file").len(),
        24 * MIB
    );

    // One byte in the middle of the only pack.
    let pack = bench.path("data/store/packs/00000001.pack");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&pack)
        .expect("the pack");
    let at = file.metadata().expect("its length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    for format in ["raw", "qcow2", "parts"] {
        let sentence = bench.refuses(&["export", id, "out", "--format", format]);
        assert!(
            sentence.contains("is damaged, so it is not exported: disk 0, partition"),
            "{sentence}"
        );
        assert!(sentence.contains("00000001.pack"), "{sentence}");
        assert!(!bench.path("out").exists());
    }
    let old = fs::read(bench.path("mine")).expect("a file");
    bench.refuses(&["export", id, "mine", "--force"]);
    assert!(
        fs::read(bench.path("mine")).expect("a file") == old,
        "what was there stays"
    );
    bench.assert_tidy();
}

#[test]
fn an_import_that_is_stopped_leaves_nothing() {
    let Some(bench) = Bench::new(&[]) else {
        return;
    };
    let file = File::create(bench.path("large.raw")).expect("a file");
    // Nothing but a hole, and more of it than is read in a moment.
    file.set_len(256 << 30).expect("a long file");
    let mut command = Command::new(NETBOOT);
    command.arg("--data-dir").arg(bench.path("data"));
    command
        .args(["import", "--format", "raw"])
        .arg(bench.path("large.raw"));
    let child = command.stderr(std::process::Stdio::piped()).spawn();
    let child = child.expect("netboot runs");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    run("kill", &["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("stopped as asked"), "{said}");
    assert_eq!(bench.points(), 0);
    bench.assert_tidy();
}

#[test]
fn a_full_file_system_is_said_and_tidied() {
    let Some(bench) = Bench::new(GPT_TOOLS) else {
        return;
    };
    gpt_disk(&bench, "disk.raw");
    let (point, _) = bench.import("disk.raw", &[]);
    fs::create_dir(bench.path("small")).expect("a folder");
    let small = bench.text("small");
    let mount = |kib: u64| {
        let size = format!("size={kib}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs", &small])
            .output();
        mounted.is_ok_and(|output| output.status.success())
    };
    if !mount(2048) {
        eprintln!("skipped: cannot mount a tmpfs (needs root)");
        return;
    }
    let unmount = || run("umount", &[&small]);
    let early = bench.refuses(&["export", point.id.as_str(), "small/out"]);
    unmount();
    // Room for the data, not for the tables and clusters of qcow2.
    assert!(mount(point.data_bytes.div_ceil(1024) + 16));
    let late = bench.refuses(&["export", point.id.as_str(), "small/out.qcow2"]);
    let left = fs::read_dir(&small).expect("a folder").count();
    fs::create_dir_all(bench.path("small/store/packs")).expect("a folder");
    let full = Command::new(NETBOOT)
        .args(["--data-dir", &small, "import"])
        .arg(bench.path("disk.raw"))
        .output()
        .expect("netboot runs");
    unmount();
    assert!(early.contains("nothing was written"), "{early}");
    assert!(
        late.contains("is full; what was written of the export was removed"),
        "{late}"
    );
    assert_eq!(left, 0);
    let full = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(full.contains("too little room for a capture"), "{full}");
}

#[test]
fn a_running_server_takes_an_import_and_is_not_disturbed_by_an_export() {
    let Some(bench) = Bench::new(GPT_TOOLS) else {
        return;
    };
    gpt_disk(&bench, "disk.raw");
    let folders = Folders::new();
    let server = Server::start(&folders.write_config([0, 0, 0], ""));
    let data = folders.data();
    let netboot = |words: &[&str]| {
        let mut command = Command::new(NETBOOT);
        command.arg("--data-dir").arg(&data).args(words);
        let output = command.current_dir(bench.folder.path()).output();
        let output = output.expect("netboot runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let first = netboot(&["import", "disk.raw", "--json"]);
    let second = netboot(&["import", "disk.raw", "--json"]);
    assert!(first["new_chunks"].as_u64() > Some(0));
    assert_eq!(second["new_chunks"].as_u64(), Some(0));
    let listed = netboot(&["restore-points", "--json"]);
    assert_eq!(listed.as_array().expect("a list").len(), 2);
    let id = first["restore_point"]["id"].as_str().expect("an id");
    netboot(&["export", id, "out.raw", "--json"]);
    assert!(blocks_left_out(&bench.path("disk.raw"), &bench.path("out.raw")) > 10_000);
    // The claims of an import end with it: forgotten chunks can be freed.
    for point in listed.as_array().expect("a list") {
        netboot(&["forget", point["id"].as_str().expect("an id"), "--json"]);
    }
    let freed = netboot(&["gc", "--json"]);
    assert!(freed["dead_chunks"].as_u64() > Some(0), "{freed}");
    assert_eq!(netboot(&["store", "--json"])["chunks"].as_u64(), Some(0));
    assert_eq!(server.stop(), Some(0));
}
