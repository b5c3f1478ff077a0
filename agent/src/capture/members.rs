//! Refusing disks that are members of a RAID, a pool or a set of dynamic disks.
//!
//! Invariant: every disk is looked at before anything of any disk is saved or sent.

use backup::hardware::Disk;
use backup::member;
use backup::plan::members::refuse;

use crate::device::{Access, BlockDevice, DiskReader};
use crate::job::Engine;
use crate::job::error::Fault;

/// Opens `disks` and refuses their capture when one of them is a member of something larger. Each is opened
/// once and stays open: of a volume in use this is the snapshot that is read.
///
/// # Errors
/// [`Fault::Refused`] with one sentence for each such disk, or a disk that cannot be read.
pub(super) fn open(
    engine: &Engine<'_>,
    disks: &[&Disk],
) -> Result<Vec<Box<dyn BlockDevice>>, Fault> {
    let (mut devices, mut refusals) = (Vec::with_capacity(disks.len()), Vec::new());
    for disk in disks {
        let device = engine.platform.open(disk, Access::Read)?;
        let reader = DiskReader(device.as_ref());
        let found = member::find(&reader, device.size(), device.sector()).map_err(|error| {
            Fault::NotAsPlanned(format!("{} cannot be read: {error}", device.name()))
        })?;
        refusals.extend(refuse(disk, &found));
        devices.push(device);
    }
    if refusals.is_empty() {
        Ok(devices)
    } else {
        Err(Fault::Refused(refusals))
    }
}

#[cfg(test)]
mod tests {
    use backup::manifest::Purpose;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    use crate::capture::capture;
    use crate::job::fake::{Bench, ImageMachine, disk, point};

    #[test]
    fn a_machine_with_a_member_disk_is_refused_before_anything_is_sent() {
        const SIZE: u64 = 8 << 20;
        let folder = tempfile::tempdir().unwrap();
        for name in ["good", "member"] {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_len(SIZE).unwrap();
            file.write_all_at(b"some data", SIZE / 2).unwrap();
        }
        // `struct mdp_superblock_1` with its own place, 4 KiB behind the start.
        let mut superblock = [0; 256];
        superblock[..8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
        superblock[144] = 8;
        let member = File::options()
            .write(true)
            .open(folder.path().join("member"))
            .unwrap();
        member.write_all_at(&superblock, 4096).unwrap();

        let disks = vec![disk("good", SIZE), disk("member", SIZE)];
        let bench = Bench::new(ImageMachine::new(folder.path()), disks);
        let error = capture(&bench.engine(), &point("rp-1"), Purpose::default()).unwrap_err();
        assert_eq!(error.code, "refused");
        assert!(
            error
                .reason
                .contains("member \"IMAGE\" serial SERIAL-member"),
            "{}",
            error.reason
        );
        assert!(error.reason.contains("Linux software RAID"));
        assert_eq!(bench.server.uploaded.load(Ordering::Relaxed), 0);
    }
}
