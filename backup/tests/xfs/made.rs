//! Images of XFS, mounts of them, and trees to put in.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use backup::filesystem::{Survey, survey_volume};

use crate::images::{self, Image, noise, output, run};

pub(crate) const PACKAGE: &str = "xfsprogs";
pub(crate) const MIB: u64 = 1 << 20;

/// The path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of `size` bytes in which mkfs.xfs made a file system.
pub(crate) fn make(folder: &Path, size: u64, options: &[&str]) -> PathBuf {
    let image = folder.join("image");
    let _ = fs::remove_file(&image);
    images::blank(&image, size);
    // Images of less than 300 MiB are for tests alone.
    let mut arguments = vec!["--unsupported", "-q", "-f"];
    arguments.extend_from_slice(options);
    arguments.push(text(&image));
    run(PACKAGE, "mkfs.xfs", &arguments);
    image
}

/// Why images cannot be mounted here.
pub(crate) fn no_mounts() -> Option<&'static str> {
    if run("coreutils", "id", &["-u"]).trim() != "0" {
        return Some("mounting images needs root");
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    (!known.contains("\txfs")).then_some("this kernel has no XFS")
}

/// A mounted image.
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    mounted: bool,
}

impl Mount {
    pub(crate) fn new(image: &Path, path: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = format!("loop,nouuid,{options}");
        let arguments = ["-t", "xfs", "-o", &options, text(image), text(&path)];
        run("mount", "mount", &arguments);
        Self {
            path,
            mounted: true,
        }
    }

    pub(crate) fn unmount(mut self) {
        self.mounted = false;
        assert!(images::unmount(&self.path), "{:?} stays busy", self.path);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            output("mount", "umount", &["-l", text(&self.path)]);
        }
    }
}

/// A tree with what real ones have: large and small files, holes, links, devices, many names.
pub(crate) fn fill(top: &Path) {
    fs::create_dir_all(top.join("deep/er/still")).unwrap();
    for number in 0..60usize {
        let content = noise(number as u64, number * number * 211 % 90_000);
        fs::write(top.join(format!("file{number}")), content).unwrap();
    }
    // Directories in one block, and with a tree of indexes.
    for (folder, names) in [("deep/er", 40), ("many", 1500)] {
        fs::create_dir_all(top.join(folder)).unwrap();
        for number in 0..names {
            let name = format!("{folder}/a-rather-long-name-{number:06}");
            fs::write(top.join(name), format!("{number}")).unwrap();
        }
    }
    fs::write(top.join("deep/er/still/large"), noise(99, 3 << 20)).unwrap();
    fs::hard_link(top.join("file9"), top.join("deep/same")).unwrap();
    symlink("file7", top.join("short-link")).unwrap();
    for len in [300, 1023] {
        symlink("x".repeat(len), top.join(format!("link-{len}"))).unwrap();
    }
    let holes = File::create(top.join("holes")).unwrap();
    holes.write_all_at(b"end", 2_000_000).unwrap();
    // So many extents that they need a tree.
    let pieces = File::create(top.join("pieces")).unwrap();
    for number in 0..1200u64 {
        let content = noise(number, 4096);
        pieces.write_all_at(&content, number * 8192).unwrap();
    }
    run("coreutils", "mknod", &[text(&top.join("pipe")), "p"]);
    let disk = top.join("disk");
    let device = ["-m", "640", text(&disk), "b", "259", "70000"];
    run("coreutils", "mknod", &device);
    run(
        "coreutils",
        "mknod",
        &[text(&top.join("tty")), "c", "4", "64"],
    );
    drop(std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap());
    run(
        "coreutils",
        "chown",
        &["1234:70000", text(&top.join("file3"))],
    );
    run("coreutils", "chmod", &["4751", text(&top.join("file4"))]);
    for (name, time) in [
        ("file5", "1931-02-03T04:05:06.789Z"),
        ("file6", "2222-01-01T00:00:00Z"),
    ] {
        let name = top.join(name);
        run("coreutils", "touch", &["-d", time, text(&name)]);
    }
}

/// Deletes and writes, until free space and files lie in pieces.
pub(crate) fn age(top: &Path) {
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f"];
        commands
            .iter()
            .for_each(|one| arguments.extend(["-c", *one]));
        let file = top.join("reserved");
        arguments.push(text(&file));
        run(PACKAGE, "xfs_io", &arguments);
    };
    let small = top.join("small");
    fs::create_dir(&small).unwrap();
    for number in 0..1600u64 {
        fs::write(small.join(format!("{number}")), noise(number, 4096)).unwrap();
    }
    // Only what was written gets its place in turn.
    run("coreutils", "sync", &["-f", text(top)]);
    for number in (0..1600).step_by(2) {
        fs::remove_file(small.join(format!("{number}"))).unwrap();
    }
    for number in (0..60).step_by(3).filter(|number| *number != 9) {
        let file = top.join(format!("file{number}"));
        if number != 3 && number != 6 {
            fs::remove_file(file).unwrap();
        }
    }
    fs::write(top.join("late"), noise(7, 2_400_000)).unwrap();
    // Reserved and never written, but for a piece in the middle.
    io(&["falloc 0 1m", "pwrite -q 256k 64k", "fsync"]);
}

/// A reflink of a file, one of its blocks then written anew.
pub(crate) fn reflink(top: &Path) {
    let (from, to) = (top.join("deep/er/still/large"), top.join("shared"));
    run(
        "coreutils",
        "cp",
        &["--reflink=always", text(&from), text(&to)],
    );
    let file = File::options().write(true).open(to).unwrap();
    file.write_all_at(&noise(5, 8192), 1 << 20).unwrap();
}

/// An image filled and aged through a mount, cleanly unmounted.
pub(crate) fn aged(folder: &Path, size: u64, options: &[&str]) -> PathBuf {
    let image = make(folder, size, options);
    let mount = Mount::new(&image, folder.join("mount"), "rw");
    fill(&mount.path);
    age(&mount.path);
    if options.iter().any(|option| option.contains("reflink=1")) {
        reflink(&mount.path);
    }
    mount.unmount();
    image
}

/// A folder of plain files, and an image of version 4 that mkfs filled with them.
pub(crate) fn prototype(folder: &Path, size: u64, options: &[&str]) -> (PathBuf, PathBuf) {
    let source = folder.join("source");
    fs::create_dir_all(source.join("sub/many")).unwrap();
    let mut lines = String::from("/dev/null\n0 0\nd--755 3 4\n");
    let add = |name: &str, content: Vec<u8>, lines: &mut String| {
        let path = source.join(name);
        fs::write(&path, content).unwrap();
        let last = path.file_name().unwrap().to_str().unwrap();
        lines.push_str(&format!("{last} ---640 5 6 {}\n", text(&path)));
    };
    for number in 0..40usize {
        let content = noise(number as u64, number * number * 97);
        add(&format!("file{number}"), content, &mut lines);
    }
    add("large", noise(77, 5 << 20), &mut lines);
    lines.push_str("link l--777 0 0 sub/many\ndisk b--600 0 0 8 17\npipe p--600 0 0\n");
    lines.push_str("sub d--700 0 0\nmany d--711 0 0\n");
    for number in 0..700 {
        let name = format!("sub/many/name-{number:05}");
        add(&name, format!("{number}").into_bytes(), &mut lines);
    }
    lines.push_str("$\n$\n$\n");
    let file = folder.join("prototype");
    fs::write(&file, lines).unwrap();
    let mut all = vec!["-p", text(&file)];
    all.extend_from_slice(options);
    let image = make(folder, size, &all);
    (source, image)
}

pub(crate) fn survey(image: &Path) -> (Survey, u64) {
    let size = fs::metadata(image).unwrap().len();
    (survey_volume(&Image::open(image), size), size)
}

/// Asserts that used ranges are in doubt, with a reason that says `word`.
pub(crate) fn assert_doubt(image: &Path, word: &str) {
    let doubt = survey(image).0.used.unwrap_err().to_string();
    assert!(doubt.contains(word), "{doubt}");
}

/// Asserts that xfs_repair finds nothing to repair.
pub(crate) fn assert_sound(image: &Path) {
    run(PACKAGE, "xfs_repair", &["-n", "-f", text(image)]);
}
