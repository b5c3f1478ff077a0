//! PC partition tables, kept to the letter.
use crate::manifest::Blob;
use serde::{Deserialize, Serialize};
/// An MBR as it stood on the source disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MbrTable {
    /// Sector 0: boot code, disk signature and table.
    pub first_sector: Blob,
    /// Sectors with extended boot records: LBA and bytes.
    pub extended: Vec<(u64, Blob)>,
}
