//! Whether a restored disk is what its row of the table says: by the reference tools, and by every file.
//!
//! XFS and Btrfs are mounted to be listed and given to their checkers as block devices, which needs root, as the
//! rows do that have them.

use anyhow::{Context, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::{Row, Size};
use crate::lab::disk::{self, Table};
use crate::lab::source_machine::RootKind;
use crate::lab::tool;
use crate::lab::tree::{self, Tree};
use crate::scenarios::compare;
use crate::scenarios::file_systems::{LIST, shell};
use crate::scenarios::stage::Stage;

const MIB: u64 = 1 << 20;
/// What may be left behind a file system that takes all the room there is: the backup table's MiB, a rest of one,
/// and of XFS less than an allocation group.
const UNUSED_REST: u64 = 4 * MIB;
/// Where the first logical volume begins in its physical volume.
const FIRST_EXTENT: u64 = MIB;

/// Checks it.
pub(super) fn check(
    stage: &Stage<'_>,
    row: &Row,
    source: &Path,
    restored: &Path,
) -> anyhow::Result<()> {
    let before = disk::table(source)?;
    check_table(row, &before, restored)?;
    compare::check_esp(source, restored)?;
    let partition = compare::offset_of(&before, compare::ROOT)?;
    let at = match row.root {
        RootKind::Lvm => partition + FIRST_EXTENT,
        RootKind::Ext4 | RootKind::Xfs | RootKind::Btrfs => partition,
    };
    let (old, new) = (size(row.root, source, at)?, size(row.root, restored, at)?);
    let end = at + new;
    let keeps_size = row.root == RootKind::Lvm || row.size == Size::Equal;
    if keeps_size {
        ensure!(new == old, "its root has {new} bytes, the source's {old}");
    } else {
        let disk = row.size.bytes();
        ensure!(
            end <= disk && disk - end <= UNUSED_REST,
            "its root ends at byte {end} of {disk}"
        );
    }
    stage.say(&format!(
        "its root has {} MiB, the source's {} MiB",
        new / MIB,
        old / MIB
    ));
    match row.root {
        RootKind::Ext4 | RootKind::Lvm => {
            let place = format!("{}?offset={at}", restored.display());
            tool::run(Command::new("e2fsck").args(["-f", "-n"]).arg(&place))
                .context("its root file system is not clean")?;
            let differences = Tree::of_ext4(source, at)?.differences(&Tree::of_ext4(restored, at)?);
            ensure!(
                differences.is_empty(),
                "its root file system is not the source's: {}",
                tree::describe(&differences)
            );
        }
        RootKind::Xfs | RootKind::Btrfs => {
            on_device(row.root, restored, (at, new), CHECK)
                .context("its root file system is not clean")?;
            let expected = on_device(row.root, source, (at, old), &mounted(stage)?)?;
            let found = on_device(row.root, restored, (at, new), &mounted(stage)?)?;
            if let Some(lines) = expected
                .lines()
                .zip(found.lines())
                .find(|(one, two)| one != two)
            {
                bail!("its files are not the source's, first: {lines:?}");
            }
            ensure!(
                expected == found && expected.lines().count() > 1000,
                "of {} lines about files {} are there",
                expected.lines().count(),
                found.lines().count()
            );
        }
    }
    Ok(())
}

/// In the scripts `$device` is the file system, `$kind` its name.
const CHECK: &str = "if [ $kind = xfs ]; then xfs_repair -n $device; else btrfs check $device; fi";

/// Mounts it and lists its files.
fn mounted(stage: &Stage<'_>) -> anyhow::Result<String> {
    let folder = stage.disks().join("mounted");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.display();
    Ok(format!(
        "options=ro; [ $kind = btrfs ] || options=ro,nouuid,norecovery
         mount -t $kind -o $options $device '{folder}'
         trap \"cd /; umount '{folder}'; losetup --detach $device\" EXIT
         set -- '{folder}'
         {LIST}"
    ))
}

/// Runs a script on the file system that lies at `place` of an image, first byte and length.
fn on_device(
    root: RootKind,
    image: &Path,
    (at, len): (u64, u64),
    script: &str,
) -> anyhow::Result<String> {
    shell(
        &format!(
            "kind={root}
             device=$(losetup --find --show --read-only --offset {at} --sizelimit {len} \"$1\")
             trap \"losetup --detach $device\" EXIT
             {script}"
        ),
        &[image],
    )
}

/// The table has the same partitions, which begin at the same bytes.
fn check_table(row: &Row, before: &Table, restored: &Path) -> anyhow::Result<()> {
    let (complaints, after) = if row.large_sectors {
        // In a file sfdisk takes sectors for 512 bytes.
        let on_device = |script: &str| {
            let attach = "device=$(losetup --find --show --read-only --sector-size 4096 \"$1\")";
            let detach = "trap \"losetup --detach $device\" EXIT";
            shell(&format!("{attach}\n{detach}\n{script}"), &[restored])
        };
        let said = on_device("sfdisk --verify $device")?;
        let table = disk::parse_table(restored, &on_device("sfdisk --json $device")?)?;
        let clean = said.contains("No errors detected");
        (if clean { String::new() } else { said }, table)
    } else {
        (disk::verify_table(restored)?, disk::table(restored)?)
    };
    ensure!(
        complaints.is_empty(),
        "sfdisk finds its table wrong: {complaints}"
    );
    ensure!(
        (&before.label, &before.id) == (&after.label, &after.id)
            && before.partitions.len() == after.partitions.len(),
        "its table is {after:?}, the source's {before:?}"
    );
    for (old, new) in before.partitions.iter().zip(&after.partitions) {
        let same = (old.start * before.sectorsize, &old.kind, &old.uuid)
            == (new.start * after.sectorsize, &new.kind, &new.uuid);
        ensure!(same, "a partition is {new:?}, the source's is {old:?}");
    }
    Ok(())
}

/// Size of a file system from its superblock, bytes.
fn size(root: RootKind, image: &Path, at: u64) -> anyhow::Result<u64> {
    let read = |offset: u64| {
        let mut bytes = [0; 8];
        File::open(image)?.read_exact_at(&mut bytes, at + offset)?;
        Ok::<_, anyhow::Error>(bytes)
    };
    match root {
        RootKind::Ext4 | RootKind::Lvm => compare::ext4_size(image, at),
        // `struct xfs_dsb`: magic, block size (32 bits), blocks (64 bits), big endian.
        RootKind::Xfs => {
            let head = u64::from_be_bytes(read(0)?);
            ensure!(head >> 32 == 0x5846_5342, "there is no XFS");
            (head & 0xffff_ffff)
                .checked_mul(u64::from_be_bytes(read(8)?))
                .context("size out of range")
        }
        // `struct btrfs_super_block`: `magic` and `total_bytes`, little endian.
        RootKind::Btrfs => {
            const SUPERBLOCK: u64 = 64 << 10;
            ensure!(
                &read(SUPERBLOCK + 0x40)? == b"_BHRfS_M",
                "there is no Btrfs"
            );
            Ok(u64::from_le_bytes(read(SUPERBLOCK + 0x70)?))
        }
    }
}
