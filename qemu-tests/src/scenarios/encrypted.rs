//! Encrypted volumes: captured plain with their keys, refused with a wrong one, restored over the encrypted disk.
//!
//! The volumes are made on this computer without device-mapper: `qemu-img` writes LUKS1, and a LUKS2 volume gets
//! the same volume key and so the same encrypted bytes. Opened they are in the machine, by its kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use protocol::job::JobState;

use super::Skipped;
use super::file_systems::{FILL, LIST, shell};
use super::machine::Machine;
use super::site::Site;
use super::stage::Stage;
use crate::lab::deadline::Deadline;
use crate::lab::disk;
use crate::lab::firmware::FirmwareKind;
use crate::lab::tool;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 256 * MIB;
/// Place of each partition in MiB.
const LUKS1: (u64, u64) = (8, 48);
const LUKS2: (u64, u64) = (64, 180);
const LUKS1_PASS: &str = "correct horse battery staple";
const LUKS2_PASS: &str = "tr0ub4dor and three";

/// Plays it.
pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Skipped {
            reason: "file systems are mounted to be compared, which needs root".to_owned(),
        }
        .into());
    }
    let before = make_disk(stage)?;
    let mut machine = Machine::bare(stage, FirmwareKind::Bios)?;
    machine.disk = stage.disks().join("disk.raw");
    stage.milestone("a disk with LUKS1 and LUKS2 is made");

    let mut site = Site::open(stage)?;
    let port = site.add_port()?;
    let mut guest = machine.switch_on(stage, Some(&port), "boot")?;
    // Disks may come up later than the network; a later beacon has them.
    let deadline = Deadline::seconds(60);
    let name = loop {
        let view = site.wait_for_beacon(&machine, &mut guest)?;
        if let Some(disk) = view.inventory.disks.first() {
            break disk.name.clone();
        }
        ensure!(deadline.remaining().is_some(), "the beacon names no disk");
        std::thread::sleep(std::time::Duration::from_millis(250));
    };
    let key = |partition: u32, file: &str| {
        let file = stage.disks().join(file);
        format!("{name}:{partition}={}", file.display())
    };

    let wrong = [key(2, "key1"), key(3, "key1")];
    let job = site.server.capture_with_keys(&machine.mac(), &wrong)?;
    let job = site.wait_until_over(&job.id, &mut guest)?;
    ensure!(
        job.state == JobState::Failed && job.error_code.as_deref() == Some("wrong-key"),
        "a wrong key: {:?}, {:?}",
        job.state,
        job.error
    );
    stage.say(&format!("    {}", job.error.unwrap_or_default()));
    let points = site.server.restore_points()?;
    ensure!(
        points.iter().all(|point| point.stored_bytes == 0),
        "something was stored with a wrong key"
    );
    stage.milestone("a wrong key is refused, nothing is stored");

    let right = [key(2, "key1"), key(3, "key2")];
    let job = site.server.capture_with_keys(&machine.mac(), &right)?;
    let job = site.wait_for_success(&job.id, &mut guest)?;
    let point = job.kind.restore_point().to_string();
    let shown = site.server.show(&point)?;
    for said in [
        "partition 2 of disk 0 was encrypted (LUKS1, aes-xts-plain64)",
        "partition 3 of disk 0 was encrypted (LUKS2, aes-xts-plain64)",
    ] {
        ensure!(shown.contains(said), "show does not say `{said}`: {shown}");
    }
    stage.milestone("with the right keys the volumes are captured plain");

    let job = site.server.restore(&machine.mac(), &point)?;
    let job = site.wait_for_success(&job.id, &mut guest)?;
    let again = "Encryption must be switched on again";
    ensure!(
        job.summary.iter().filter(|one| one.contains(again)).count() == 2,
        "the restore does not say that encryption must be switched on: {:?}",
        job.summary
    );
    ensure!(
        guest.console().has_shown(again),
        "the machine's screen does not say that encryption must be switched on"
    );
    guest.wait_until_off(Deadline::seconds(60))?;
    stage.milestone("the plain volumes are restored over the encrypted ones");
    no_key_is_left(stage, site.server.data_dir())?;

    let after = [
        (LUKS1, "ext4", "e2fsck -f -n \"$1\""),
        (LUKS2, "btrfs", "btrfs check --check-data-csum \"$1\""),
    ];
    for ((place, kind, check), before) in after.into_iter().zip(before) {
        let image = stage.disks().join(format!("restored-{kind}.raw"));
        cut_out(&machine.disk, place, &image)?;
        let found = shell("blkid -p -o value -s TYPE \"$1\"", &[&image])?;
        ensure!(found.trim() == kind, "it is {found} (expected {kind})");
        shell(check, &[&image]).context("its own checker is not content")?;
        ensure!(
            listed(stage, &image)? == before,
            "files of the {kind} differ"
        );
    }
    stage.milestone("every file is there with the same content, owner, mode and times");
    Ok(())
}

/// Makes the disk and the keys; returns what is in the file systems of both volumes.
fn make_disk(stage: &Stage<'_>) -> anyhow::Result<[String; 2]> {
    let place = |name: &str| stage.disks().join(name);
    let (tree, image) = (place("tree"), place("disk.raw"));
    std::fs::create_dir_all(&tree)?;
    shell(FILL, &[&tree])?;
    std::fs::write(place("key1"), LUKS1_PASS)?;
    // As an editor writes it.
    std::fs::write(place("key2"), format!("{LUKS2_PASS}\n"))?;
    std::fs::write(place("pass2"), LUKS2_PASS)?;
    disk::create_empty(&image, DISK_BYTES)?;
    let sectors = |(start, len): (u64, u64)| format!("start={}, size={}", start << 11, len << 11);
    disk::partition(
        &image,
        &format!(
            "label: gpt\nstart=2048, size=2048\n{}\n{}\n",
            sectors(LUKS1),
            sectors(LUKS2)
        ),
    )?;
    let (ext4, btrfs) = (place("ext4.raw"), place("btrfs.raw"));
    shell("mke2fs -q -F -t ext4 -d \"$2\" \"$1\" 44M", &[&ext4, &tree])?;
    disk::create_empty(&btrfs, 150 * MIB)?;
    shell("mkfs.btrfs -q -f --rootdir \"$2\" \"$1\"", &[&btrfs, &tree])?;
    let before = [listed(stage, &ext4)?, listed(stage, &btrfs)?];

    let (luks1, inner, luks2) = (place("luks1.raw"), place("inner.raw"), place("luks2.raw"));
    const AS_LUKS1: &str = "qemu-img convert --object secret,id=key,file=\"$3\" -O luks \
        -o key-secret=key,iter-time=50 \"$1\" \"$2\" >/dev/null";
    shell(AS_LUKS1, &[&ext4, &luks1, &place("key1")])?;
    shell(AS_LUKS1, &[&btrfs, &inner, &place("pass2")])?;
    // LUKS2 with the same volume key: the encrypted bytes are the same, and begin at 16 MiB.
    let script = "work=$(mktemp -d)
        cryptsetup luksDump -q --dump-volume-key --volume-key-file \"$work/key\" --key-file \"$3\" \"$1\" >/dev/null
        offset=$(cryptsetup luksDump \"$1\" | sed -n 's/^Payload offset:[[:space:]]*//p')
        truncate -s 16M \"$2\"
        cryptsetup luksFormat -q --type luks2 --cipher aes-xts-plain64 --key-size 512 --sector-size 512 \
            --volume-key-file \"$work/key\" --key-file \"$3\" --pbkdf argon2id --pbkdf-memory 65536 \
            --pbkdf-force-iterations 4 --pbkdf-parallel 1 --header \"$2\" --offset 32768 \"$1.none\"
        tail -c +$((offset * 512 + 1)) \"$1\" >>\"$2\"
        rm -r \"$work\"";
    std::fs::File::create(place("inner.raw.none"))?.set_len(256 * MIB)?;
    shell(script, &[&inner, &luks2, &place("pass2")])?;
    for (place, (start, len)) in [(&luks1, LUKS1), (&luks2, LUKS2)] {
        let bytes = std::fs::metadata(place)?.len();
        ensure!(bytes <= len * MIB, "{} does not fit", place.display());
        disk::write_sparse_at(&image, start * MIB, place)?;
    }
    Ok(before)
}

/// What is in a file system, seen by this computer's kernel.
fn listed(stage: &Stage<'_>, image: &Path) -> anyhow::Result<String> {
    let folder = stage.disks().join("mounted");
    std::fs::create_dir_all(&folder)?;
    shell("mount -o loop,ro \"$1\" \"$2\"", &[image, &folder])?;
    let said = shell(LIST, &[&folder]);
    shell("umount \"$1\"", &[&folder])?;
    // Only ext has this folder.
    let lines = said?;
    let lines = lines.lines().filter(|line| !line.starts_with("lost+found"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn cut_out(disk: &Path, (start, len): (u64, u64), to: &Path) -> anyhow::Result<()> {
    tool::run(
        Command::new("dd")
            .arg(format!("if={}", disk.display()))
            .arg(format!("of={}", to.display()))
            .args(["bs=1M", "conv=sparse", "status=none"])
            .args([format!("skip={start}"), format!("count={len}")]),
    )?;
    Ok(())
}

/// No key is in the server's data or in any log, neither as it is nor as it went over the socket.
fn no_key_is_left(stage: &Stage<'_>, data: &Path) -> anyhow::Result<()> {
    let logs = stage.logs().to_owned();
    for pass in [LUKS1_PASS, LUKS2_PASS] {
        let hex: String = pass.bytes().map(|byte| format!("{byte:02x}")).collect();
        for text in [pass, &hex] {
            let mut found: Vec<PathBuf> = Vec::new();
            for folder in [data, &logs] {
                // 1: nothing found. The network's capture has the key, in the clear.
                let said = shell(
                    "grep -r -l -a -F --exclude=link.pcap --exclude='*.sock' -e \"$1\" \"$2\" || true",
                    &[Path::new(text), folder],
                )?;
                found.extend(said.lines().map(PathBuf::from));
            }
            ensure!(found.is_empty(), "a key is left in {found:?}");
        }
    }
    Ok(())
}
