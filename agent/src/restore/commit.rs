//! The commit: the partition tables, the last writes of a restore.
//!
//! Invariant: nothing that makes a disk start is written before all the rest of all disks is flushed
//! and was read again. The first sector of each disk is the last, because neither BIOS nor UEFI
//! starts anything from a disk without it; it is one sector, so a power cut cannot tear it.

use backup::ByteRange;
use backup::plan::{DiskPlan, TableWrite};

use crate::device::{BlockDevice, io_error};
use crate::job::error::{Fault, Touched};

/// Bytes that are written by the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// What they are, for people.
    pub(crate) what: String,
    /// Byte offset on the disk.
    pub(crate) offset: u64,
    /// What belongs there.
    pub(crate) bytes: Vec<u8>,
}

/// What the commit writes to one disk.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// In this order; the disk does not start from them.
    pub(crate) before: Vec<Write>,
    /// The first sector, if there is one to write.
    pub(crate) last: Option<Write>,
}

impl Writes {
    /// Puts the tables of a copy, which have other ids, in the place of those of the plan.
    pub(crate) fn put_tables(&mut self, tables: &[TableWrite]) {
        let writes = self.before.iter_mut().chain(self.last.as_mut());
        for write in writes {
            let same = |table: &&TableWrite| {
                table.offset == write.offset && table.bytes.0.len() == write.bytes.len()
            };
            if let Some(table) = tables.iter().find(same) {
                write.bytes.clone_from(&table.bytes.0);
            }
        }
    }

    /// Puts other code into the first sector, before the signature and table in it.
    pub(crate) fn put_boot_code(&mut self, code: Option<&[u8]>) {
        let first = self.last.as_mut().filter(|write| write.offset == 0);
        if let (Some(first), Some(code)) = (first, code)
            && let Some(place) = first.bytes.get_mut(..code.len())
        {
            place.copy_from_slice(code);
        }
    }

    /// The writes of a plan. `reserved` is what belongs where the marker is: it goes in before the
    /// first sector, so that no byte of the backup is missing on a disk that starts. `first` is the
    /// first sector of a disk whose plan has no table to write.
    pub(crate) fn new(plan: &DiskPlan, reserved: Option<Write>, first: Option<Write>) -> Self {
        let mut before: Vec<_> = plan
            .commit
            .iter()
            .map(|table| Write {
                what: table.what.clone(),
                offset: table.offset,
                bytes: table.bytes.0.clone(),
            })
            .collect();
        let last = before.pop().or(first);
        before.extend(reserved);
        Self { before, last }
    }
}

/// Makes the disks start.
///
/// # Errors
/// A disk that fails or does not hold what was written; `touched` says whether any of them may start.
pub(crate) fn commit(
    disks: &[(&dyn BlockDevice, Writes)],
    touched: &mut Touched,
) -> Result<(), Fault> {
    for (device, writes) in disks {
        for write in &writes.before {
            put(*device, write)?;
        }
        for write in &writes.before {
            check(*device, write)?;
        }
    }
    *touched = Touched::Committing;
    for (device, writes) in disks {
        if let Some(write) = &writes.last {
            put(*device, write)?;
            check(*device, write)?;
        }
    }
    *touched = Touched::Committed;
    Ok(())
}

fn range(write: &Write) -> ByteRange {
    ByteRange::between(write.offset, write.offset + write.bytes.len() as u64)
}

/// Writes and flushes.
pub(super) fn put(device: &dyn BlockDevice, write: &Write) -> Result<(), Fault> {
    let (what, offset) = (&write.what, write.offset);
    log::info!("{}: writing {what} at byte {offset}", device.name());
    device
        .write_at(offset, &write.bytes)
        .map_err(io_error("writing", device, range(write)))?;
    Ok(device
        .flush()
        .map_err(io_error("flushing", device, range(write)))?)
}

/// Reads again.
pub(super) fn check(device: &dyn BlockDevice, write: &Write) -> Result<(), Fault> {
    let mut found = vec![0; write.bytes.len()];
    device
        .read_at(write.offset, &mut found)
        .map_err(io_error("reading", device, range(write)))?;
    if found == write.bytes {
        return Ok(());
    }
    Err(Fault::ReadBack {
        device: device.name().to_owned(),
        what: write.what.clone(),
        offset: write.offset,
    })
}
