//! XFS and Btrfs of real `mkfs`, grown on loop devices by the real kernel.

use std::fs;
use std::path::Path;

use backup::manifest::FileSystemKind;
use backup::plan::Grow;

use super::{check_kernel, grow};
use crate::job::fake::run;
use crate::job::own_mounts::{Mounted, with_own_mounts};

const MIB: u64 = 1 << 20;
const OLD: u64 = 320 * MIB;
const NEW: u64 = 448 * MIB;

/// A loop device; taken away when dropped.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Self {
        let node = run("losetup", &["-f", "--show", image.to_str().unwrap()]);
        Self(node.trim().to_owned())
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.0]);
    }
}

fn is_possible(kind: FileSystemKind) -> bool {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root mounts file systems");
        return false;
    }
    if let Err(fault) = check_kernel(kind) {
        eprintln!("skipped: {fault}");
        return false;
    }
    true
}

fn made(folder: &Path, kind: FileSystemKind) -> (std::path::PathBuf, Grow) {
    let image = folder.join("image");
    let file = fs::File::create(&image).unwrap();
    file.set_len(OLD).unwrap();
    let path = image.to_str().unwrap();
    match kind {
        FileSystemKind::Xfs => run("mkfs.xfs", &["-q", path]),
        _ => run("mkfs.btrfs", &["-q", path]),
    };
    let grow = Grow {
        partition: 3,
        file_system: kind,
        from: OLD,
        to: NEW,
    };
    (image, grow)
}

fn content() -> Vec<u8> {
    (0..3_000_000u32).map(|at| (at % 253) as u8).collect()
}

/// Writes a file, or compares it.
fn with_file(node: &Path, kind: &str, work: impl FnOnce(&Path) + Send) {
    with_own_mounts(|| {
        let mounted = Mounted::new(node, kind, None).unwrap();
        work(&mounted.path().join("file"));
        mounted.unmount().unwrap();
        Ok(())
    })
    .unwrap();
}

fn grows(kind: FileSystemKind) {
    if !is_possible(kind) {
        return;
    }
    let name = super::name(kind);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, planned) = made(folder.path(), kind);
    let small = Loop::new(&image);
    with_file(small.path(), name, |file| {
        fs::write(file, content()).unwrap();
    });
    drop(small);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(NEW).unwrap();

    let node = Loop::new(&image);
    assert_eq!(grow(node.path(), &planned).unwrap(), None);
    match kind {
        FileSystemKind::Xfs => run("xfs_repair", &["-n", &node.0]),
        _ => run("btrfs", &["check", &node.0]),
    };
    with_file(node.path(), name, |file| {
        assert!(fs::read(file).unwrap() == content());
    });
    // As large as it can be, it cannot have grown.
    let again = grow(node.path(), &planned).unwrap_err().to_string();
    assert!(again.contains("before"), "{again}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&node.0), "{mounts}");
}

#[test]
fn an_xfs_grows_to_its_device() {
    grows(FileSystemKind::Xfs);
}

#[test]
fn a_btrfs_grows_to_its_device() {
    grows(FileSystemKind::Btrfs);
}

#[test]
fn a_btrfs_beside_its_mounted_twin_is_not_touched() {
    if !is_possible(FileSystemKind::Btrfs) {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, planned) = made(folder.path(), FileSystemKind::Btrfs);
    let copy = folder.path().join("copy");
    fs::copy(&image, &copy).unwrap();
    let file = fs::File::options().write(true).open(&copy).unwrap();
    file.set_len(NEW).unwrap();
    let (twin, node) = (Loop::new(&image), Loop::new(&copy));
    let before = fs::read(&copy).unwrap();
    let said = with_own_mounts(|| {
        let mounted = Mounted::new(twin.path(), "btrfs", None).unwrap();
        let fault = grow(node.path(), &planned).unwrap_err();
        mounted.unmount().unwrap();
        Ok(fault.to_string())
    })
    .unwrap();
    assert!(said.contains("the same Btrfs"), "{said}");
    assert!(before == fs::read(&copy).unwrap());
}

#[test]
fn a_volume_that_is_another_one_is_not_mounted() {
    if !is_possible(FileSystemKind::Xfs) {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, planned) = made(folder.path(), FileSystemKind::Btrfs);
    let node = Loop::new(&image);
    let planned = Grow {
        file_system: FileSystemKind::Xfs,
        ..planned
    };
    let said = grow(node.path(), &planned).unwrap_err().to_string();
    assert!(said.contains("there is Btrfs now"), "{said}");
}
