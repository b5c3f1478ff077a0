//! Whether a restored disk is what the source's disk was: by other tools than the product's own.

use anyhow::{Context, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::lab::disk::{self, Table};
use crate::lab::tool;
use crate::lab::tree::{self, Tree};

const ESP: usize = 1;
pub(super) const ROOT: usize = 2;
/// A file system that fills its partition may leave out a rest smaller than this, bytes.
const UNUSED_REST: u64 = 1 << 20;
/// What boot repair may add to an ESP (UEFI 2.10 §3.5.1.1): the removable path.
const REMOVABLE_PATH: [&str; 2] = ["/EFI/BOOT", "/EFI/BOOT/"];

/// Everything on the root file system of the source machine or a copy of it.
pub(super) fn root_tree(image: &Path) -> anyhow::Result<Tree> {
    Ok(Tree::of_ext4(
        image,
        offset_of(&disk::table(image)?, ROOT)?,
    )?)
}

/// Has the reference tools check the partition table and the file systems of an image.
pub(super) fn check_file_systems(image: &Path) -> anyhow::Result<()> {
    let complaints = disk::verify_table(image)?;
    ensure!(
        complaints.is_empty(),
        "sfdisk finds the table of {} wrong: {complaints}",
        image.display()
    );
    let root = offset_of(&disk::table(image)?, ROOT)?;
    let place = format!("{}?offset={root}", image.display());
    tool::run(Command::new("e2fsck").args(["-f", "-n"]).arg(&place))
        .with_context(|| format!("the root file system of {} is not clean", image.display()))?;
    Ok(())
}

/// Compares a restored disk with the disk that was captured.
pub(super) fn check_restored(source: &Path, restored: &Path) -> anyhow::Result<()> {
    check_file_systems(restored)?;
    let (before, after) = (disk::table(source)?, disk::table(restored)?);
    check_tables(&before, &after, File::open(restored)?.metadata()?.len())?;
    check_root_fills_partition(restored, &after)?;

    check_root(source, restored)?;
    check_esp(source, restored)
}

/// Compares the files of the EFI system partitions, which begin at the same byte of both disks.
pub(super) fn check_esp(source: &Path, restored: &Path) -> anyhow::Result<()> {
    let at = offset_of(&disk::table(source)?, ESP)?;
    let mut differences = Tree::of_fat(source, at)?.differences(&Tree::of_fat(restored, at)?);
    differences.retain(|difference| {
        let path = difference.path.to_uppercase();
        let added = difference.expected.is_none();
        !(added && (path == REMOVABLE_PATH[0] || path.starts_with(REMOVABLE_PATH[1])))
    });
    ensure!(
        differences.is_empty(),
        "the ESP is not the source's: {}",
        tree::describe(&differences)
    );
    Ok(())
}

/// Compares the files of the root file systems.
pub(super) fn check_root(source: &Path, restored: &Path) -> anyhow::Result<()> {
    let differences = root_tree(source)?.differences(&root_tree(restored)?);
    ensure!(
        differences.is_empty(),
        "the root file system is not the source's: {}",
        tree::describe(&differences)
    );
    Ok(())
}

/// The same where the restored disk's table is one that not all tools read: the root file system begins at the same
/// byte.
pub(super) fn check_root_in_place(source: &Path, restored: &Path) -> anyhow::Result<()> {
    let at = offset_of(&disk::table(source)?, ROOT)?;
    let differences = Tree::of_ext4(source, at)?.differences(&Tree::of_ext4(restored, at)?);
    ensure!(
        differences.is_empty(),
        "the root file system is not the source's: {}",
        tree::describe(&differences)
    );
    Ok(())
}

/// Whether a disk has no partition table that any firmware or system would use.
pub(super) fn check_unbootable(image: &Path) -> anyhow::Result<()> {
    if let Ok(table) = disk::table(image) {
        bail!(
            "{} has a {} partition table with {} partitions, but the restore was not finished",
            image.display(),
            table.label,
            table.partitions.len()
        );
    }
    Ok(())
}

/// Where a partition begins, in bytes.
pub(super) fn offset_of(table: &Table, partition: usize) -> anyhow::Result<u64> {
    let found = table.partitions.get(partition);
    let found = found.with_context(|| format!("the disk has no partition {}", partition + 1))?;
    Ok(found.start * table.sectorsize)
}

fn check_tables(before: &Table, after: &Table, disk_bytes: u64) -> anyhow::Result<()> {
    ensure!(
        (&before.label, &before.id) == (&after.label, &after.id),
        "the partition table is {} {}, the source's is {} {}",
        after.label,
        after.id,
        before.label,
        before.id
    );
    let count = (before.partitions.len(), after.partitions.len());
    ensure!(
        count.0 == count.1,
        "{} partitions were captured, {} are there",
        count.0,
        count.1
    );
    for (index, (old, new)) in before.partitions.iter().zip(&after.partitions).enumerate() {
        let number = index + 1;
        let same = (old.start, &old.kind, &old.uuid) == (new.start, &new.kind, &new.uuid);
        ensure!(
            same,
            "partition {number} is {new:?}, the source's is {old:?}"
        );
        let last = number == before.partitions.len();
        let right_size = if last {
            new.size > old.size
        } else {
            new.size == old.size
        };
        ensure!(
            right_size,
            "partition {number} has {} sectors, the source's has {}",
            new.size,
            old.size
        );
    }
    let end = after
        .partitions
        .last()
        .map_or(0, |last| (last.start + last.size) * after.sectorsize);
    let rest = disk_bytes.saturating_sub(end);
    ensure!(
        rest <= 2 * UNUSED_REST,
        "{rest} bytes behind the last partition are not used"
    );
    Ok(())
}

fn check_root_fills_partition(image: &Path, table: &Table) -> anyhow::Result<()> {
    let bytes = ext4_size(image, offset_of(table, ROOT)?)?;
    let partition = table
        .partitions
        .get(ROOT)
        .map_or(0, |root| root.size * table.sectorsize);
    ensure!(
        bytes <= partition && partition - bytes < UNUSED_REST,
        "the root file system has {bytes} bytes, its partition {partition}"
    );
    Ok(())
}

/// Size of an ext4 file system at `offset` from its superblock, bytes (kernel `Documentation/filesystems/ext4`).
pub(super) fn ext4_size(image: &Path, offset: u64) -> anyhow::Result<u64> {
    let mut superblock = [0; 1024];
    File::open(image)?.read_exact_at(&mut superblock, offset + 1024)?;
    let word = |at: usize| {
        let bytes = [
            superblock[at],
            superblock[at + 1],
            superblock[at + 2],
            superblock[at + 3],
        ];
        u64::from(u32::from_le_bytes(bytes))
    };
    let blocks = word(0x4) | word(0x150) << 32;
    let block_size = 1024u64
        .checked_shl(u32::try_from(word(0x18))?)
        .context("block size out of range")?;
    blocks
        .checked_mul(block_size)
        .context("file system size out of range")
}
