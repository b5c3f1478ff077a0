//! Whole builds from small fake inputs: no network, no apt; packages are made by `dpkg-deb`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::cpio;
use crate::elf::tests::fake_elf;
use crate::kernel::tests::fake_image;
use crate::pe;
use crate::pe::tests::fake_program;
use crate::tools::{AT_NEED as AT_NEED_TOOLS, TOOLS};
use crate::tree::Node;

const KERNEL: &str = "6.1.0-fake";

fn put(path: &Path, data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
}

/// Writes a real package file into `directory`.
fn package(directory: &Path, name: &str, depends: &str, files: &[(&str, Vec<u8>)]) {
    let work = tempfile::tempdir().unwrap();
    for (path, data) in files {
        put(&work.path().join(path), data);
    }
    let control = format!(
        "Package: {name}\nVersion: 1:2-3\nArchitecture: all\nMaintainer: nobody <n@example.org>\n\
         {depends}Description: a test\n"
    );
    put(&work.path().join("DEBIAN/control"), control.as_bytes());
    fs::create_dir_all(directory).unwrap();
    let built = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(work.path())
        .arg(directory.join(format!("{name}_2-3_all.deb")))
        .output()
        .expect("this test needs the command dpkg-deb: install the package `dpkg`");
    assert!(built.status.success(), "{built:?}");
}

/// Every input of a build below `root`, as packages.
fn inputs(root: &Path) -> Inputs {
    let debs = root.join("debs");
    let program = || fake_elf(Some("/lib64/ld-linux-x86-64.so.2"), &["libc.so.6"], &[]);
    let mut tools: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (package, tool) in TOOLS.iter().chain(AT_NEED_TOOLS) {
        tools
            .entry(package)
            .or_default()
            .push(format!("sbin/{tool}"));
    }
    for (name, paths) in &tools {
        let files: Vec<(&str, Vec<u8>)> = paths
            .iter()
            .map(|path| (path.as_str(), program()))
            .collect();
        let depends = "Pre-Depends: libc6 (>= 2.34)\nDepends: logsave\n";
        package(&debs, name, depends, &files);
    }
    let library = fake_elf(None, &[], &[]);
    let libc = [
        ("lib/x86_64-linux-gnu/libc.so.6", library.clone()),
        ("lib64/ld-linux-x86-64.so.2", library),
    ];
    package(&debs, "libc6", "", &libc);
    let loaders = Architecture::X64.loaders();
    for name in ["ipxe", "shim-signed", "grub-efi-amd64-signed"] {
        let own = loaders.iter().filter(|loader| loader.package == name);
        let mut files: Vec<(&str, Vec<u8>)> = own
            .map(|loader| (loader.paths[0], loader.name.as_bytes().to_vec()))
            .collect();
        let others = other_firmware::LOADERS.iter();
        let others = others.filter(|(package, _)| *package == name);
        files.extend(others.map(|(_, paths)| (paths[0], paths[0].as_bytes().to_vec())));
        files.sort();
        files.dedup_by_key(|(path, _)| *path);
        package(&debs, name, "", &files);
    }
    let (name, folder) = other_firmware::BIOS;
    let parts = ["kernel.img", "boot.img", "normal.mod", "cmp_test.mod"]
        .map(|part| (format!("{folder}/{part}"), part.as_bytes().to_vec()));
    let parts: Vec<_> = parts
        .iter()
        .map(|(path, data)| (path.as_str(), data.clone()))
        .collect();
    package(&debs, name, "", &parts);
    let stub = Architecture::X64.stub();
    package(&debs, stub.package, "", &[(stub.paths[0], fake_program())]);

    let meta = format!("Depends: linux-image-{KERNEL} (= 1)\n");
    package(&debs, "linux-image-amd64", &meta, &[]);
    let mut files = vec![(format!("boot/vmlinuz-{KERNEL}"), fake_image(KERNEL))];
    for name in [groups(Architecture::X64), base_modules::AT_NEED.to_vec()]
        .concat()
        .iter()
        .flat_map(|group| group.modules)
    {
        let vermagic = format!("{KERNEL} SMP");
        let module = fake_elf(None, &[], &[("name", name), ("vermagic", &vermagic)]);
        files.push((format!("lib/modules/{KERNEL}/kernel/{name}.ko"), module));
    }
    let files: Vec<(&str, Vec<u8>)> = files
        .iter()
        .map(|(path, data)| (path.as_str(), data.clone()))
        .collect();
    package(
        &debs,
        &format!("linux-image-{KERNEL}"),
        "Depends: kmod, linux-base\n",
        &files,
    );

    put(&root.join("agent"), &fake_elf(None, &[], &[]));
    Inputs {
        architecture: Architecture::X64,
        stub: None,
        command_line: "console=ttyS0".to_owned(),
        signer: None,
        agent: root.join("agent"),
        output: root.join("boot"),
        kernel: None,
        packages: Some(debs),
        loaders: None,
        cache: root.join("cache"),
        allow_missing: false,
    }
}

fn set(output: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(output)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn silent(_: &str) {}

#[test]
fn two_builds_from_the_same_inputs_are_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let mut inputs = inputs(root.path());
    assemble(&inputs, silent).unwrap();
    let first = set(&inputs.output);
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "at-need",
            "grubx64.efi",
            "initramfs",
            "ipxe.efi",
            "manifest.json",
            "netboot-x64.efi",
            "shimx64.efi",
            "snponly.efi",
            "undionly.kpxe",
            "vmlinuz"
        ]
    );
    // Another place, nothing cached, another agent file's time and mode.
    inputs.output = root.path().join("elsewhere/boot");
    inputs.cache = root.path().join("other-cache");
    assemble(&inputs, silent).unwrap();
    assert_eq!(set(&inputs.output), first);
    let manifest = String::from_utf8(first[4].1.clone()).unwrap();
    assert!(!manifest.contains(root.path().to_str().unwrap()));
}

#[test]
fn the_initramfs_holds_agent_modules_and_tools() {
    let root = tempfile::tempdir().unwrap();
    let inputs = inputs(root.path());
    let manifest = assemble(&inputs, silent).unwrap();
    assert_eq!(manifest.kernel.version, KERNEL);
    assert_eq!(manifest.kernel.package.as_ref().unwrap().version, "1:2-3");

    let file = fs::read(inputs.output.join("initramfs")).unwrap();
    let mut paths = Vec::new();
    let mut at = 0;
    for part in &manifest.parts[1..] {
        let end = at + part.bytes as usize;
        let tree = cpio::tests::read(&zstd::decode_all(&file[at..end]).unwrap());
        paths.extend(
            tree.iter()
                .map(|(path, node)| (path.to_owned(), node.clone())),
        );
        at = end;
    }
    assert_eq!(at, file.len());
    let is_file = |wanted: &str| {
        paths
            .iter()
            .any(|(path, node)| path == wanted && matches!(node, Node::File { .. }))
    };
    let base = format!("usr/lib/modules/{KERNEL}");
    for wanted in [
        "init",
        "usr/sbin/resize2fs",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        &format!("{base}/kernel/ext4.ko"),
        &format!("{base}/modules.dep"),
        &format!("{base}/modules.alias"),
    ] {
        assert!(is_file(wanted), "{wanted}");
    }
    for (path, _) in paths.iter().filter(|(path, _)| path.contains('/')) {
        let parent = path.rsplit_once('/').unwrap().0;
        assert!(paths.iter().any(|(path, _)| path == parent), "{path}");
    }
    // What only some jobs need is beside the image, and its digest in it.
    let beside = fs::read(inputs.output.join("at-need")).unwrap();
    let list = format!(
        "at-need {} {}\n",
        beside.len(),
        crate::digest::blake3_hex(&beside)
    );
    let listed = paths.iter().find(|(path, _)| path == "etc/netboot-at-need");
    assert!(
        matches!(&listed.unwrap().1, Node::File { data, .. } if *data == list.as_bytes()),
        "{listed:?}"
    );
    let beside = cpio::tests::read(&zstd::decode_all(&beside[..]).unwrap());
    for wanted in [
        "usr/sbin/btrfs",
        "usr/sbin/grub-mkimage",
        "usr/lib/grub/i386-pc/normal.mod",
        "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        "usr/lib/shim/shimx64.efi.signed",
        &format!("{base}/kernel/xfs.ko"),
    ] {
        assert!(!is_file(wanted), "{wanted}");
        assert!(beside.iter().any(|(path, _)| path == wanted), "{wanted}");
    }
    let twice = |path: &str, node: &Node| matches!(node, Node::File { .. }) && is_file(path);
    assert!(!beside.iter().any(|(path, node)| twice(path, node)));
    let indexed = paths.iter().find(|(path, _)| path.ends_with("modules.dep"));
    assert!(
        matches!(&indexed.unwrap().1, Node::File { data, .. } if String::from_utf8_lossy(data).contains("kernel/xfs.ko")),
    );
}

#[test]
fn the_unified_image_holds_the_same_kernel_and_initramfs() {
    let root = tempfile::tempdir().unwrap();
    let inputs = inputs(root.path());
    let manifest = assemble(&inputs, silent).unwrap();
    let image = fs::read(inputs.output.join("netboot-x64.efi")).unwrap();
    let part = |name| pe::section(&image, name).unwrap().unwrap().to_vec();
    assert_eq!(
        part(".linux"),
        fs::read(inputs.output.join("vmlinuz")).unwrap()
    );
    assert_eq!(
        part(".initrd"),
        fs::read(inputs.output.join("initramfs")).unwrap()
    );
    assert_eq!(part(".cmdline"), b"console=ttyS0");
    assert_eq!(manifest.unified_image.command_line, "console=ttyS0");
}

#[test]
fn a_loader_in_the_given_directory_wins_over_the_package() {
    let root = tempfile::tempdir().unwrap();
    let mut inputs = inputs(root.path());
    let loaders = root.path().join("loaders");
    put(&loaders.join("ipxe.efi"), b"my own");
    inputs.loaders = Some(loaders);
    let manifest = assemble(&inputs, silent).unwrap();
    assert_eq!(fs::read(inputs.output.join("ipxe.efi")).unwrap(), b"my own");
    assert_eq!(
        fs::read(inputs.output.join("snponly.efi")).unwrap(),
        b"snponly.efi"
    );
    let own: Vec<&str> = manifest
        .boot_loaders
        .iter()
        .filter(|loader| loader.package.is_none())
        .map(|loader| loader.name)
        .collect();
    assert_eq!(own, ["ipxe.efi"]);
}

#[test]
fn a_failed_build_leaves_the_set_from_before() {
    let root = tempfile::tempdir().unwrap();
    let inputs = inputs(root.path());
    assemble(&inputs, silent).unwrap();
    let before = set(&inputs.output);
    fs::remove_file(root.path().join("debs/libc6_2-3_all.deb")).unwrap();
    let error = assemble(&inputs, silent).unwrap_err();
    assert!(matches!(error, AssembleError::Tools(_)), "{error}");
    assert_eq!(set(&inputs.output), before);
}

#[test]
fn a_kernel_from_files_and_loaders_from_a_directory_need_no_package() {
    let root = tempfile::tempdir().unwrap();
    let mut inputs = inputs(root.path());
    let from_packages = assemble(&inputs, silent).unwrap();
    for name in [
        format!("linux-image-{KERNEL}"),
        "linux-image-amd64".to_owned(),
        "ipxe".to_owned(),
        "shim-signed".to_owned(),
        "grub-efi-amd64-signed".to_owned(),
    ] {
        fs::remove_file(root.path().join(format!("debs/{name}_2-3_all.deb"))).unwrap();
    }
    let image = root.path().join("bzImage");
    put(&image, &fake_image(KERNEL));
    let modules = fs::read_dir(root.path().join("cache/unpacked"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("lib/modules").join(KERNEL))
        .find(|path| path.is_dir())
        .unwrap();
    inputs.kernel = Some((image, modules));
    let loaders = root.path().join("loaders");
    for loader in Architecture::X64.loaders() {
        put(&loaders.join(loader.name), loader.name.as_bytes());
    }
    inputs.loaders = Some(loaders);
    let from_files = assemble(&inputs, silent).unwrap();
    assert!(from_files.kernel.package.is_none());
    assert!(
        from_files
            .boot_loaders
            .iter()
            .all(|loader| loader.package.is_none())
    );
    for (one, other) in from_packages.files.iter().zip(&from_files.files) {
        assert_eq!(one.name, other.name);
        // Without their packages it has no loaders for conversions, and the image has another digest of it.
        let differs = ["at-need", "initramfs"].contains(&one.name.as_str());
        assert_eq!(one.blake3 == other.blake3, !differs, "{}", one.name);
    }
}
