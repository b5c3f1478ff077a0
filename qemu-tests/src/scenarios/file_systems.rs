//! Every file system, from a used disk to a restored one: made by its own mkfs, filled and aged, captured by the
//! agent over the network, restored over old data, and then judged by its own checker and by every file.
//!
//! The agent runs as a program on this computer, on image files. Not here: what is refused or saved whole (the
//! tests of the crate `backup`), boot loaders (the scenarios with machines).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use protocol::api::MachineView;
use protocol::job::JobState;

use super::Skipped;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;

const SIZE: u64 = 320 << 20;
pub(super) const FILL: &str = include_str!("fill_tree.sh");
/// What must come back: every file's kind, mode, owner, size, time and target, and its content. Folders have no time
/// here: mtools gives them that of the copy.
pub(super) const LIST: &str = "cd \"$1\" && find . -mindepth 1 \\( -type d -printf '%P %y %m %U:%G\\n' \
    -o -printf '%P %y %m %U:%G %s %T@ %l\\n' \\) | LC_ALL=C sort \
    && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
const TICK: Duration = Duration::from_millis(100);

/// A file system. In the scripts `$1` is the image, `$2` the folder where it is mounted.
struct Kind {
    name: &'static str,
    make: &'static str,
    mount: &'static str,
    unmount: &'static str,
    /// More that only this file system has, `$1` is the mounted folder.
    more: &'static str,
    check: &'static str,
}

const MOUNT: &str = "mount -o loop \"$1\" \"$2\"";
const UNMOUNT: &str = "umount \"$2\"";
const LINKS: &str = "cd \"$1\"; ln -s 'photos/photo1.jpg' link; ln photos/photo1.jpg hard; mkfifo pipe; chmod 640 hard; \
    chown 1000:1000 work/two; fallocate -l 3000000 work/reserved";

const KINDS: [Kind; 7] = [
    Kind {
        name: "ext4",
        make: "mke2fs -q -F -t ext4 \"$1\"",
        mount: MOUNT,
        unmount: UNMOUNT,
        more: LINKS,
        check: "e2fsck -f -n \"$1\"",
    },
    Kind {
        name: "ext2",
        make: "mke2fs -q -F -t ext2 -b 1024 \"$1\"",
        mount: MOUNT,
        unmount: UNMOUNT,
        more: "cd \"$1\"; ln -s photos/photo1.jpg link; ln photos/photo1.jpg hard",
        check: "e2fsck -f -n \"$1\"",
    },
    Kind {
        name: "XFS",
        make: "mkfs.xfs -q -f \"$1\"",
        mount: MOUNT,
        unmount: UNMOUNT,
        more: "cd \"$1\"; ln -s photos/photo1.jpg link; cp --reflink=always photos/photo3.jpg clone; \
            printf changed | dd of=clone bs=1 seek=9000 conv=notrunc status=none; fallocate -l 3000000 work/reserved",
        check: "xfs_repair -n \"$1\"",
    },
    Kind {
        name: "Btrfs",
        make: "mkfs.btrfs -q -f \"$1\"",
        mount: "mount -o loop,compress=zstd \"$1\" \"$2\"",
        unmount: UNMOUNT,
        more: "cd \"$1\"; btrfs -q subvolume create sub; seq 1 200000 >sub/numbers; cp --reflink=always photos/photo3.jpg clone; \
            btrfs -q subvolume snapshot sub before; seq 5 90000 >sub/numbers; rm photos/photo5.jpg",
        check: "btrfs check --check-data-csum \"$1\"",
    },
    Kind {
        name: "NTFS",
        make: "mkntfs -q -Q -F \"$1\"",
        mount: "ntfs-3g -o compression \"$1\" \"$2\"",
        unmount: UNMOUNT,
        more: "cd \"$1\"; ln photos/photo1.jpg hard; mkdir pressed; \
            setfattr -h -v 0x00000800 -n system.ntfs_attrib_be pressed; seq 1 100000 >pressed/numbers",
        check: "ntfsfix -n \"$1\" && ntfsresize --info --force --no-action --no-progress-bar \"$1\"",
    },
    Kind {
        name: "exFAT",
        make: "mkfs.exfat \"$1\" >/dev/null",
        mount: "mount.exfat-fuse \"$(losetup --find --show \"$1\")\" \"$2\"",
        unmount: "umount \"$2\"; losetup --associated \"$1\" --output NAME --noheadings | xargs -r losetup --detach",
        more: ":",
        check: "fsck.exfat -n \"$1\"",
    },
    Kind {
        name: "FAT32",
        make: "mkfs.vfat -F 32 -s 1 \"$1\" >/dev/null",
        // There is no mount of it everywhere: a folder that mtools fills from, and into.
        mount: "mcopy -s -m -n -Q -i \"$1\" '::/*' \"$2\" 2>/dev/null || true",
        unmount: "mcopy -s -m -o -Q -i \"$1\" \"$2\"/* '::/' && rm -rf \"$2\"/*",
        more: ":",
        check: "fsck.vfat -n \"$1\"",
    },
];

/// Plays it.
pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Skipped {
            reason: "file systems are mounted to be filled and compared, which needs root"
                .to_owned(),
        }
        .into());
    }
    let agent = agent(stage)?;
    let files = stage.disks().join("boot");
    std::fs::create_dir_all(&files)?;
    let data_dir = stage.disks().join("server");
    let program = stage.program("netboot")?;
    let config = ServerConfig::on_free_ports(&program, &data_dir, &files, stage.logs())?;
    let url = config.http_url();
    let server = Server::start(config)?;
    for kind in &KINDS {
        there_and_back(stage, kind, &agent, (&server, &url))
            .with_context(|| format!("{} does not come back", kind.name))?;
    }
    Ok(())
}

/// The agent as a program of this computer.
pub(super) fn agent(stage: &Stage<'_>) -> anyhow::Result<PathBuf> {
    let name = format!(
        "../{}-unknown-linux-musl/release/agent",
        std::env::consts::ARCH
    );
    Ok(stage.program(&name)?)
}

fn there_and_back(
    stage: &Stage<'_>,
    kind: &Kind,
    agent: &Path,
    (server, url): (&Server, &str),
) -> anyhow::Result<()> {
    let place = |what: &str| stage.disks().join(format!("{}-{what}", kind.name));
    let (image, target, folder) = (place("source.raw"), place("restored.raw"), place("mounted"));
    std::fs::create_dir_all(&folder)?;
    File::create(&image)?.set_len(SIZE)?;
    shell(kind.make, &[&image])?;
    mounted(kind, &image, &folder, || {
        shell(FILL, &[&folder])?;
        shell(kind.more, &[&folder]).map(drop)
    })?;
    let before = listed(kind, &image, &folder)?;
    let digest = digest(&image)?;

    let mut command = Command::new(agent);
    command
        .args(["backup", "--server", url, "--json", "--disk"])
        .arg(&image);
    tool::run(&mut command)?;
    ensure!(
        digest == self::digest(&image)?,
        "the capture changed its source"
    );
    let points = server.restore_points()?;
    let point = points
        .iter()
        .max_by_key(|point| point.id.clone())
        .context("no restore point")?;
    ensure!(
        point.data_bytes < SIZE / 2,
        "{} of {SIZE} bytes were saved: not by used blocks",
        point.data_bytes
    );

    fill_with_old_data(&target)?;
    restore_to(stage, agent, (server, url), point.id.as_str(), &target)?;
    shell(kind.check, &[&target]).context("its own checker is not content")?;
    let after = listed(kind, &target, &folder)?;
    if before != after {
        let differing = before
            .lines()
            .zip(after.lines())
            .find(|(one, two)| one != two);
        bail!("files differ, first: {differing:?}");
    }
    stage.say(&format!(
        "{}: {} files' lines equal, {} MiB saved of {}",
        kind.name,
        before.lines().count(),
        point.data_bytes >> 20,
        SIZE >> 20
    ));
    for image in [image, target] {
        std::fs::remove_file(image)?;
    }
    Ok(())
}

/// Restores to an image file, by an agent on this computer.
pub(super) fn restore_to(
    stage: &Stage<'_>,
    agent: &Path,
    at: (&Server, &str),
    point: &str,
    target: &Path,
) -> anyhow::Result<()> {
    restore_ordered(stage, agent, at, (point, &[]), target)
}

/// The same with options of `netboot restore`.
pub(super) fn restore_ordered(
    stage: &Stage<'_>,
    agent: &Path,
    (server, url): (&Server, &str),
    order: (&str, &[&str]),
    target: &Path,
) -> anyhow::Result<()> {
    let mut command = tool::bound_to_us(
        Command::new(agent)
            .args(["join", "--server", url, "--once", "--disk"])
            .arg(target),
    );
    let name = target.file_stem().unwrap_or_default().to_string_lossy();
    let log = File::create(stage.logs().join(format!("agent-{name}.log")))?;
    let mut joined = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let restored = restore(server, order, target, &mut joined);
    // It ends by itself; after a fault it may not.
    let _ = joined.kill();
    let _ = joined.wait();
    restored
}

/// Waits for the agent to be there, orders the restore, waits for its end.
fn restore(
    server: &Server,
    (point, options): (&str, &[&str]),
    target: &Path,
    joined: &mut Child,
) -> anyhow::Result<()> {
    let real = std::fs::canonicalize(target)?;
    let deadline = Deadline::seconds(300);
    let machine = loop {
        let mut machines = server.machines()?.into_iter();
        let has_target = |machine: &MachineView| {
            let mut disks = machine.inventory.disks.iter();
            machine.state.is_some() && disks.any(|disk| Path::new(&disk.name) == real)
        };
        if let Some(machine) = machines.find(has_target) {
            break machine.id;
        }
        ensure!(deadline.remaining().is_some(), "the agent does not beacon");
        thread::sleep(TICK);
    };
    let job = server.restore_with(&machine, point, options)?;
    loop {
        let jobs = server.jobs()?;
        let job = jobs
            .iter()
            .find(|one| one.id == job.id)
            .context("the job is gone")?;
        match job.state {
            JobState::Succeeded => break,
            JobState::Failed | JobState::Cancelled => bail!("the restore failed: {:?}", job.error),
            _ => {}
        }
        ensure!(deadline.remaining().is_some(), "the restore does not end");
        thread::sleep(TICK);
    }
    let status = joined.wait()?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}

fn listed(kind: &Kind, image: &Path, folder: &Path) -> anyhow::Result<String> {
    let mut said = String::new();
    mounted(kind, image, folder, || {
        said = shell(LIST, &[folder])?;
        Ok(())
    })?;
    Ok(said)
}

fn mounted(
    kind: &Kind,
    image: &Path,
    folder: &Path,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    shell(kind.mount, &[image, folder])?;
    let result = work();
    shell(kind.unmount, &[image, folder])?;
    result
}

pub(super) fn shell(script: &str, arguments: &[&Path]) -> anyhow::Result<String> {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -euo pipefail\n{script}"), "scenario"]);
    Ok(tool::run(command.args(arguments))?)
}

fn digest(image: &Path) -> anyhow::Result<String> {
    let said = tool::run(Command::new("sha256sum").arg("--").arg(image))?;
    Ok(said
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// A disk full of something else, as a used one is.
fn fill_with_old_data(path: &Path) -> anyhow::Result<()> {
    let file = File::create(path)?;
    let old = vec![0xa5; 1 << 20];
    for at in (0..SIZE).step_by(old.len()) {
        file.write_all_at(&old, at)?;
    }
    Ok(())
}
