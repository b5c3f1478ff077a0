//! An NTFS data disk that comes back on larger and smaller disks and partitions: judged by NTFS's own tools and by
//! every file.
//!
//! The agent runs as a program on this computer, on image files. Not here: other file systems
//! ([`super::file_systems`]), disks that a machine starts from.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::Skipped;
use super::file_systems::{FILL, LIST, agent, restore_ordered, shell};
use super::stage::Stage;
use crate::lab::disk;
use crate::lab::server::{Server, ServerConfig};
use crate::lab::tool;

const MIB: u64 = 1 << 20;
/// The source's disk.
const SIZE: u64 = 320 * MIB;
/// Where its partition begins.
const START: u64 = MIB;
/// The room of a volume that is not a whole cluster, and the copy of the boot sector behind it.
const UNUSED_REST: u64 = 8192;

/// What a volume is restored to.
struct Target {
    name: &'static str,
    /// Size of the disk.
    disk: u64,
    /// The partition that is there already, by its first byte and its length; none when the disk is empty.
    partition: Option<(u64, u64)>,
}

const TARGETS: [Target; 4] = [
    Target {
        name: "larger-disk",
        disk: 460 * MIB,
        partition: None,
    },
    Target {
        name: "smaller-disk",
        disk: 170 * MIB,
        partition: None,
    },
    Target {
        name: "larger-partition",
        disk: 512 * MIB,
        partition: Some((32 * MIB, 440 * MIB)),
    },
    Target {
        name: "smaller-partition",
        disk: 320 * MIB,
        partition: Some((32 * MIB, 150 * MIB)),
    },
];

/// In the scripts `$device` is the volume and `$1` the folder where it is mounted. What is written first is taken
/// away again, so that the files lie in the rear part that a smaller disk does not have.
const FRONT: &str = "head -c 180000000 /dev/zero >\"$1/front\"";
const MORE: &str = "cd \"$1\"; rm front; ln photos/photo1.jpg hard; mkdir pressed; \
    setfattr -h -v 0x00000800 -n system.ntfs_attrib_be pressed; seq 1 100000 >pressed/numbers";
/// Windows is to check a volume that was resized when it starts: the tools want `--force` for that mark.
const CHECK: &str = "ntfsfix -n $device >&2; ntfsls --force -R $device >/dev/null; \
    ntfsresize --info --force --no-action --no-progress-bar $device";

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
    let folder = stage.disks().join("mounted");
    std::fs::create_dir_all(&folder)?;
    let program = stage.program("netboot")?;
    let data_dir = stage.disks().join("server");
    let config = ServerConfig::on_free_ports(&program, &data_dir, &files, stage.logs())?;
    let url = config.http_url();
    let server = Server::start(config)?;

    let source = stage.disks().join("source.raw");
    let place = make_source(&source, &folder)?;
    let before = listed(&source, place, &folder)?;
    let mut command = Command::new(&agent);
    command
        .args(["backup", "--server", &url, "--json", "--disk"])
        .arg(&source);
    tool::run(&mut command)?;
    let points = server.restore_points()?;
    let point = points.first().context("no restore point")?;
    ensure!(
        point.data_bytes < SIZE / 2,
        "{} of {SIZE} bytes were saved: not by used blocks",
        point.data_bytes
    );
    stage.milestone("the data disk is captured");

    for target in &TARGETS {
        let image = stage.disks().join(format!("{}.raw", target.name));
        let first = prepare(target, &image)?;
        let chosen = format!("--volume=0:1={}:2", image.display());
        let options = target.partition.map(|_| chosen.as_str());
        let order = (point.id.as_str(), options.as_slice());
        restore_ordered(stage, &agent, (&server, &url), order, &image)
            .with_context(|| target.name)?;
        judge(target, &image, (&before, &folder)).with_context(|| target.name)?;
        ensure!(
            first == front(target, &image)?,
            "{}: what is before the partition has changed",
            target.name
        );
        stage.milestone(&format!(
            "{}: its tools are content, {} files' lines equal",
            target.name,
            before.lines().count()
        ));
        std::fs::remove_file(image)?;
    }
    Ok(())
}

/// Makes the data disk; where its volume is.
fn make_source(image: &Path, folder: &Path) -> anyhow::Result<(u64, u64)> {
    disk::create_empty(image, SIZE)?;
    disk::partition(
        image,
        "label: gpt\nstart=2048, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n",
    )?;
    let place = place_of(image, 0)?;
    on_volume(image, place, "mkntfs -q -Q -F $device", folder)?;
    let write = format!(
        "{}{FRONT}; ({FILL}); {MORE}",
        mounted("compression", folder)
    );
    on_volume(image, place, &write, folder)?;
    Ok(place)
}

/// Makes the target's disk, and returns what is before the partition that is there.
fn prepare(target: &Target, image: &Path) -> anyhow::Result<Vec<u8>> {
    disk::create_empty(image, target.disk)?;
    let Some((start, len)) = target.partition else {
        return Ok(Vec::new());
    };
    let sectors = |bytes: u64| bytes / 512;
    let (first, last) = (
        sectors(start - START),
        sectors(target.disk - MIB - start - len),
    );
    let table = format!(
        "label: gpt\nstart={}, size={first}\nstart={}, size={}\nstart={}, size={last}\n",
        sectors(START),
        sectors(start),
        sectors(len),
        sectors(start + len)
    );
    disk::partition(image, &table)?;
    // Both partitions are full of something else.
    let old = vec![0xa5; usize::try_from(MIB)?];
    let file = File::options().write(true).open(image)?;
    for at in (START..start + len).step_by(old.len()) {
        file.write_all_at(&old, at)?;
    }
    front(target, image)
}

/// What is on the disk before the partition that is there already.
fn front(target: &Target, image: &Path) -> anyhow::Result<Vec<u8>> {
    let len = target.partition.map_or(0, |(start, _)| start);
    let mut bytes = vec![0; usize::try_from(len)?];
    File::open(image)?.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn judge(target: &Target, image: &Path, (before, folder): (&str, &Path)) -> anyhow::Result<()> {
    let index = usize::from(target.partition.is_some());
    let place = place_of(image, index)?;
    if let Some(there) = target.partition {
        ensure!(
            place == there,
            "the partition is at {place:?}, it was at {there:?}"
        );
    } else {
        let rest = target.disk - place.0 - place.1;
        ensure!(
            rest <= 2 * MIB,
            "{rest} bytes behind the partition are not used"
        );
    }
    let info = on_volume(image, place, CHECK, folder).context("its own tools are not content")?;
    let size = info
        .lines()
        .find_map(|line| line.strip_prefix("Current volume size:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("ntfsresize says no size")?
        .parse::<u64>()?;
    ensure!(
        size <= place.1 && place.1 - size <= UNUSED_REST,
        "the volume has {size} bytes, its partition {}",
        place.1
    );
    let after = listed(image, place, folder)?;
    let differing = before
        .lines()
        .zip(after.lines())
        .find(|(one, two)| one != two);
    ensure!(*before == after, "files differ, first: {differing:?}");
    Ok(())
}

/// First byte and length of a partition.
fn place_of(image: &Path, index: usize) -> anyhow::Result<(u64, u64)> {
    let table = disk::table(image)?;
    let partition = table.partitions.get(index).context("no partition")?;
    Ok((
        partition.start * table.sectorsize,
        partition.size * table.sectorsize,
    ))
}

fn listed(image: &Path, place: (u64, u64), folder: &Path) -> anyhow::Result<String> {
    let script = format!("{}{LIST}", mounted("ro", folder));
    on_volume(image, place, &script, folder)
}

/// Mounts the volume until the script's end.
fn mounted(options: &str, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "ntfs-3g -o {options} $device '{folder}'
         trap \"cd /; umount '{folder}'; losetup --detach $device\" EXIT\n"
    )
}

/// Runs a script on the volume at a place of an image.
fn on_volume(
    image: &Path,
    (start, len): (u64, u64),
    script: &str,
    folder: &Path,
) -> anyhow::Result<String> {
    let script = format!(
        "device=$(losetup --find --show --offset {start} --sizelimit {len} \"$1\")
         trap \"losetup --detach $device\" EXIT
         shift
         {script}"
    );
    shell(&script, &[image, folder])
}
