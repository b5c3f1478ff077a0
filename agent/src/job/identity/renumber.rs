//! New ids for volumes: by their bytes where that is all, by the reference tools where checksums of all
//! metadata have the id in them.

use std::path::Path;

use backup::filesystem::ReadAt;
use backup::identity::volume::{self, Patch, VolumeIdError};
use backup::manifest::FileSystemKind as Kind;
use uuid::Uuid;

use super::mounted::{Mounted, Shown};
use super::volumes::{Id, Volume};
use crate::job::error::Fault;
use crate::job::kernel::{failed, run_tool};

/// The programs that a volume of this kind needs for a new id.
pub(super) const fn tools(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => &["e2fsck", "tune2fs"],
        Kind::Xfs => &["xfs_db"],
        _ => &[],
    }
}

/// Gives a volume another id.
///
/// # Errors
/// A volume that is not as expected, or a tool that fails.
pub(super) fn renumber(backing: &Path, volume: &Volume, new: Id) -> Result<(), Fault> {
    let patches = match (volume.kind, new) {
        (Kind::Fat12 | Kind::Fat16 | Kind::Fat32, Id::Short(new)) => {
            volume::fat(&volume.reader(), new)
        }
        (Kind::Exfat, Id::Short(new)) => volume::exfat(&volume.reader(), new),
        (Kind::Swap, Id::Uuid(new)) => volume::swap(&volume.reader(), new),
        (Kind::Btrfs, Id::Uuid(new)) => volume::btrfs(&volume.reader(), volume.range.len(), new),
        (Kind::Ext2 | Kind::Ext3 | Kind::Ext4, Id::Uuid(new)) => {
            return renumber_ext(backing, volume, new);
        }
        (Kind::Xfs, Id::Uuid(new)) => return renumber_xfs(backing, volume, new),
        _ => {
            return Err(Fault::Internal(format!(
                "the {} in {} cannot have the id {new}",
                volume.kind, volume.place
            )));
        }
    };
    apply(volume, &patches.map_err(|error| unfit(volume, &error))?)
}

fn apply(volume: &Volume, patches: &[Patch]) -> Result<(), Fault> {
    patches
        .iter()
        .try_for_each(|patch| volume.write(patch.offset, &patch.bytes))
}

fn unfit(volume: &Volume, error: &VolumeIdError) -> Fault {
    Fault::NotAsPlanned(format!(
        "the {} in {} cannot get another id: {error}",
        volume.kind, volume.place
    ))
}

fn renumber_ext(backing: &Path, volume: &Volume, new: Uuid) -> Result<(), Fault> {
    let mut superblock = [0; 1024];
    let read = volume.reader().read_at(1024, &mut superblock);
    read.map_err(|error| Fault::NotAsPlanned(error.to_string()))?;
    let shown = Shown::new(backing, volume)?;
    let node = shown.node.as_os_str();
    // Checksums are written anew only for a file system that was just found whole.
    let whole = volume::ext_checksums_have_uuid(&superblock);
    let check = if whole { "-fp" } else { "-p" };
    let (code, output) = run_tool("e2fsck", &[check.as_ref(), node])?;
    if !matches!(code, Some(0..=2)) {
        let said = failed("e2fsck", code, &output);
        return Err(Fault::Tool {
            tool: "e2fsck".to_owned(),
            reason: format!("the {} in {}: {said}", volume.kind, volume.place),
        });
    }
    let new = new.to_string();
    let (code, output) = run_tool("tune2fs", &["-U".as_ref(), new.as_ref(), node])?;
    if code != Some(0) {
        return Err(failed("tune2fs", code, &output));
    }
    shown
        .flush()
        .map_err(super::fault(format!("{}: flushing", volume.place)))
}

/// `xfs_db` refuses a log that must be replayed, which the kernel does.
fn renumber_xfs(backing: &Path, volume: &Volume, new: Uuid) -> Result<(), Fault> {
    let command = format!("uuid {new}");
    let run = || {
        let shown = Shown::new(backing, volume)?;
        let arguments = ["-x".as_ref(), "-c".as_ref(), command.as_ref()];
        let node = shown.node.as_os_str();
        let said = run_tool("xfs_db", &[arguments[0], arguments[1], arguments[2], node])?;
        shown
            .flush()
            .map_err(super::fault(format!("{}: flushing", volume.place)))?;
        Ok::<_, Fault>(said)
    };
    let done = |output: &str| output.contains(&format!("new UUID = {new}"));
    let (mut code, mut output) = run()?;
    if !done(&output) {
        Mounted::new(backing, volume)?
            .close()
            .map_err(super::fault(format!("{}: unmounting", volume.place)))?;
        (code, output) = run()?;
    }
    if done(&output) {
        return Ok(());
    }
    Err(failed("xfs_db", code, &output))
}
