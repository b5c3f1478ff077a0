//! The commit: the partition table, the last write of a restore.
//!
//! The tables are written in the plan's order, each flushed; the first sector is the last, because
//! neither BIOS nor UEFI starts anything from a disk without it. Then all of it is read again.

use backup::ByteRange;
use backup::plan::DiskPlan;

use crate::device::{BlockDevice, io_error};
use crate::job::error::Fault;

/// Writes the table. `reserved` is what belongs where the marker is: it goes in before the last
/// table write, so that no byte of the backup is missing on a disk that starts.
///
/// # Errors
/// A disk that fails or does not hold what was written.
pub(crate) fn commit(
    device: &dyn BlockDevice,
    plan: &DiskPlan,
    reserved: Option<&(u64, Vec<u8>)>,
) -> Result<(), Fault> {
    let (last, before) = match plan.commit.split_last() {
        Some((last, before)) => (Some(last), before),
        None => (None, &[][..]),
    };
    let tables = before
        .iter()
        .map(|table| (table.what.as_str(), table.offset, &table.bytes.0));
    let reserved = reserved.map(|(offset, bytes)| ("the marker's sector", *offset, bytes));
    let last = last.map(|table| (table.what.as_str(), table.offset, &table.bytes.0));
    let writes: Vec<_> = tables.chain(reserved).chain(last).collect();
    for (what, offset, bytes) in &writes {
        let range = ByteRange::between(*offset, *offset + bytes.len() as u64);
        log::info!("{}: writing {what} at byte {offset}", device.name());
        device
            .write_at(*offset, bytes)
            .map_err(io_error("writing", device, range))?;
        device
            .flush()
            .map_err(io_error("flushing", device, range))?;
    }
    for (what, offset, bytes) in &writes {
        let range = ByteRange::between(*offset, *offset + bytes.len() as u64);
        let mut found = vec![0; bytes.len()];
        device
            .read_at(*offset, &mut found)
            .map_err(io_error("reading", device, range))?;
        if found != **bytes {
            return Err(Fault::ReadBack {
                device: device.name().to_owned(),
                what: (*what).to_owned(),
                offset: *offset,
            });
        }
    }
    Ok(())
}
