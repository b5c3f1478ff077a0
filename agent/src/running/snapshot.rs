//! Snapshots of logical volumes, from which a mounted file system is captured.
//!
//! LVM freezes the file system for the moment in which it makes a snapshot (`dm_suspend` with
//! `freeze_bdev`), so that the snapshot holds a file system as after an unmount. What is *not* here:
//! LVM itself, which is a tool behind [`VolumeManager`].
//!
//! Invariant: a snapshot that was made is removed, whatever happens to the capture.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::job::error::Fault;
use crate::job::kernel::{find_tool, run_tool};

/// The share of a volume that may change while it is read, in percent; less when its group has less.
const CHANGES: u64 = 20;
/// The least space for changes in bytes with which a snapshot is made.
const LEAST: u64 = 64 << 20;

/// A logical volume and the space that its group has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogicalVolume {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) free: u64,
}

/// What makes snapshots.
pub(crate) trait VolumeManager: Send + Sync {
    /// The logical volume that this node is, if it is one.
    fn volume(&self, node: &Path) -> Result<Option<LogicalVolume>, Fault>;
    /// Makes a snapshot with room for `changes` bytes; returns its node.
    fn snapshot(&self, of: &LogicalVolume, name: &str, changes: u64) -> Result<PathBuf, Fault>;
    /// Removes a snapshot.
    fn remove(&self, group: &str, name: &str) -> Result<(), Fault>;
}

/// A snapshot while it is needed.
pub(crate) struct Snapshot {
    manager: Arc<dyn VolumeManager>,
    group: String,
    name: String,
    origin: String,
    /// Where it can be read.
    pub(crate) node: PathBuf,
}

impl Snapshot {
    /// What it is of, for people.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Makes a snapshot of the logical volume at `node`; `None` when it is none.
    ///
    /// # Errors
    /// A group without space, or what LVM says.
    pub(crate) fn of(manager: &Arc<dyn VolumeManager>, node: &Path) -> Result<Option<Self>, Fault> {
        let Some(volume) = manager.volume(node)? else {
            return Ok(None);
        };
        let changes = (volume.size / 100 * CHANGES).max(LEAST).min(volume.free);
        if changes < LEAST.min(volume.size) {
            return Err(Fault::NotAsPlanned(format!(
                "{}: a snapshot needs {LEAST} bytes of free space in the volume group {} (it has {}); \
                 make room, or capture the machine from the recovery environment",
                node.display(),
                volume.group,
                volume.free
            )));
        }
        let name = format!("netboot-{}-{}", volume.name, std::process::id());
        let snapshot = manager.snapshot(&volume, &name, changes)?;
        log::info!(
            "{}: read from a snapshot, which has room for {changes} bytes of changes",
            node.display()
        );
        Ok(Some(Self {
            manager: Arc::clone(manager),
            origin: format!("{}/{}", volume.group, volume.name),
            group: volume.group,
            name,
            node: snapshot,
        }))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Err(error) = self.manager.remove(&self.group, &self.name) {
            log::error!(
                "the snapshot {}/{} is left: {error}; remove it with lvremove",
                self.group,
                self.name
            );
        }
    }
}

/// LVM by its tools (lvm2).
#[derive(Debug, Default)]
pub(crate) struct Lvm;

impl VolumeManager for Lvm {
    fn volume(&self, node: &Path) -> Result<Option<LogicalVolume>, Fault> {
        if find_tool("lvs").is_err() {
            return Ok(None);
        }
        let columns = "vg_name,lv_name,lv_size,vg_free";
        let node = named(Path::new("/sys"), node);
        let (code, output) = run_tool(
            "lvs",
            &[
                "--noheadings".as_ref(),
                "--nosuffix".as_ref(),
                "--units=b".as_ref(),
                "--separator=|".as_ref(),
                "--options".as_ref(),
                columns.as_ref(),
                node.as_os_str(),
            ],
        )?;
        // A node that is no logical volume is "not found" with code 5.
        if code != Some(0) {
            return Ok(None);
        }
        Ok(parse(&output))
    }

    fn snapshot(&self, of: &LogicalVolume, name: &str, changes: u64) -> Result<PathBuf, Fault> {
        let (size, origin) = (format!("{changes}b"), format!("{}/{}", of.group, of.name));
        done(run_tool(
            "lvcreate",
            &[
                "--snapshot".as_ref(),
                "--permission=r".as_ref(),
                "--size".as_ref(),
                size.as_ref(),
                "--name".as_ref(),
                name.as_ref(),
                origin.as_ref(),
            ],
        )?)?;
        Ok(Path::new("/dev").join(&of.group).join(name))
    }

    fn remove(&self, group: &str, name: &str) -> Result<(), Fault> {
        let volume = format!("{group}/{name}");
        done(run_tool("lvremove", &["--yes".as_ref(), volume.as_ref()])?)
    }
}

/// The node by the name that device-mapper gave it: LVM takes `/dev/dm-0` for a group called `dm-0`.
fn named(sysfs: &Path, node: &Path) -> PathBuf {
    let name = node.file_name().and_then(|kernel| {
        let place = sysfs.join("class/block").join(kernel).join("dm/name");
        std::fs::read_to_string(place).ok()
    });
    match name {
        Some(name) => Path::new("/dev/mapper").join(name.trim_end()),
        None => node.to_owned(),
    }
}

/// A line of `lvs`: `  vg|root|1073741824|536870912`.
fn parse(output: &str) -> Option<LogicalVolume> {
    let line = output.split("; ").find(|line| line.contains('|'))?;
    let mut fields = line.trim().split('|');
    Some(LogicalVolume {
        group: fields.next()?.to_owned(),
        name: fields.next()?.to_owned(),
        size: fields.next()?.parse().ok()?,
        free: fields.next()?.parse().ok()?,
    })
}

fn done((code, output): (Option<i32>, String)) -> Result<(), Fault> {
    if code == Some(0) {
        return Ok(());
    }
    Err(Fault::Tool {
        tool: "lvm".to_owned(),
        reason: output,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A volume group in memory.
    struct Fake {
        volume: Option<LogicalVolume>,
        did: Mutex<Vec<String>>,
    }

    impl VolumeManager for Fake {
        fn volume(&self, _: &Path) -> Result<Option<LogicalVolume>, Fault> {
            Ok(self.volume.clone())
        }

        fn snapshot(&self, of: &LogicalVolume, _: &str, changes: u64) -> Result<PathBuf, Fault> {
            let did = format!("made of {} with {changes}", of.name);
            self.did.lock().unwrap().push(did);
            Ok(PathBuf::from("/dev/vg/snapshot"))
        }

        fn remove(&self, group: &str, _: &str) -> Result<(), Fault> {
            self.did.lock().unwrap().push(format!("removed in {group}"));
            Ok(())
        }
    }

    fn fake(free: u64) -> Arc<Fake> {
        let volume = LogicalVolume {
            group: "vg".to_owned(),
            name: "root".to_owned(),
            size: 10 << 30,
            free,
        };
        Arc::new(Fake {
            volume: Some(volume),
            did: Mutex::default(),
        })
    }

    #[test]
    fn lvm_is_asked_by_the_name_that_it_knows() {
        let sysfs = tempfile::tempdir().unwrap();
        let place = sysfs.path().join("class/block/dm-3/dm");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("name"), "office-my--data\n").unwrap();
        let asked = |node: &str| named(sysfs.path(), Path::new(node));
        assert_eq!(asked("/dev/dm-3"), Path::new("/dev/mapper/office-my--data"));
        assert_eq!(asked("/dev/sda"), Path::new("/dev/sda"));
    }

    #[test]
    fn a_snapshot_has_a_share_of_the_volume_and_is_removed() {
        for (free, room) in [(100u64 << 30, (10u64 << 30) / 100 * 20), (1 << 30, 1 << 30)] {
            let fake = fake(free);
            let manager: Arc<dyn VolumeManager> = Arc::clone(&fake) as _;
            let snapshot = Snapshot::of(&manager, Path::new("/dev/dm-0"))
                .unwrap()
                .unwrap();
            assert_eq!(snapshot.node, Path::new("/dev/vg/snapshot"));
            drop(snapshot);
            let made = format!("made of root with {room}");
            assert_eq!(*fake.did.lock().unwrap(), [made.as_str(), "removed in vg"]);
        }
    }

    #[test]
    fn without_space_no_snapshot_is_made_and_what_is_no_volume_has_none() {
        let full = fake(1 << 20);
        let manager: Arc<dyn VolumeManager> = Arc::clone(&full) as _;
        let error = Snapshot::of(&manager, Path::new("/dev/dm-0"))
            .err()
            .unwrap();
        assert!(error.to_string().contains("volume group vg"), "{error}");
        assert!(full.did.lock().unwrap().is_empty());
        let none = Fake {
            volume: None,
            did: Mutex::default(),
        };
        let manager: Arc<dyn VolumeManager> = Arc::new(none);
        assert!(
            Snapshot::of(&manager, Path::new("/dev/sda"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn the_line_of_lvs_is_read() {
        let volume = parse("WARNING: x; vg0|root|1073741824|536870912").unwrap();
        assert_eq!(
            (
                volume.group.as_str(),
                volume.name.as_str(),
                volume.size,
                volume.free
            ),
            ("vg0", "root", 1 << 30, 1 << 29)
        );
        assert_eq!(parse("Failed to find logical volume"), None);
    }
}
