//! GUID partition tables, kept to the letter.
use crate::manifest::Blob;
use serde::{Deserialize, Serialize};
/// A GPT as it stood on the source disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GptTable {
    /// Sector 0: boot code and protective MBR.
    pub first_sector: Blob,
    /// Sector 1: the primary header.
    pub header: Blob,
    /// The partition entry array, a whole number of sectors.
    pub entries: Blob,
}
