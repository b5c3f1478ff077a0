//! GUID partition tables (UEFI 2.10 §5.3), kept to the letter.
//!
//! Invariant: bytes of a table are only ever patched, never made anew (but for a disk that had a PC partition
//! table and is to start by UEFI: `made`): a disk of another size gets
//! new places for the backup table, the last usable LBA, the CRCs and the size in the protective
//! MBR, and every other byte stays what it was. [`GptTable::header`] always has the form of a
//! primary header at LBA 1, also when it was read from the backup.
//!
//! What is *not* here: which partition grows (`plan::restore`), what lies between partitions
//! (`layout`).

mod header;
mod made;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::filesystem::{ReadAt, ReadError};
use crate::little_endian::{le16, le32, le64, put32, put64};
use crate::manifest::Blob;
use crate::plan::TableWrite;
use crate::{ByteRange, SectorSize};
use header::{Header, PRIMARY_LBA, check_entries_crc, field, seal};
pub(crate) use made::NewPartition;

/// The type of an EFI system partition.
pub const ESP_TYPE: Uuid = Uuid::from_u128(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
/// The type of a partition that holds GRUB's second stage for BIOS machines. Its boot sector finds it by
/// absolute sector.
pub const BIOS_BOOT_TYPE: Uuid = Uuid::from_u128(0x2168_6148_6449_6e6f_744e_6565_6445_4649);

/// The largest entry array that is read: 8192 entries of 128 bytes. Real tables have 128.
pub const MAX_ENTRIES_LEN: u64 = 1 << 20;

/// A GPT that cannot be read or carried to another disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// The disk could not be read.
    #[error("the partition table could not be read")]
    Read(#[from] ReadError),
    /// Neither copy of the table can be used.
    #[error("both copies of the GPT are damaged (primary: {primary}; backup: {backup})")]
    Damaged {
        /// What is wrong with the primary.
        primary: String,
        /// What is wrong with the backup.
        backup: String,
    },
    /// One copy of the table is not usable.
    #[error("{0}")]
    Copy(String),
    /// An entry that describes no possible partition.
    #[error("partition {number} from LBA {first_lba} to LBA {last_lba}: {reason}")]
    Entry {
        /// Its number.
        number: u32,
        /// First LBA.
        first_lba: u64,
        /// Last LBA.
        last_lba: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// No partition has the number.
    #[error("the GPT has no partition {number}")]
    NoPartition {
        /// The number asked for.
        number: u32,
    },
    /// The disk has no room for the table.
    #[error("the disk has {found} sectors (the GPT and its partitions need {needed})")]
    TooSmall {
        /// Sectors needed.
        needed: u64,
        /// Sectors of the disk.
        found: u64,
    },
}

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

/// One used entry of a GPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GptPartition {
    /// Its place in the entry array, counted from 1 as the kernel does.
    pub number: u32,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, itself part of the partition.
    pub last_lba: u64,
    /// What it is for.
    pub type_guid: Uuid,
    /// Its own name among all partitions.
    pub unique_guid: Uuid,
    /// Attribute bits, UEFI 2.10 table 5-8.
    pub attributes: u64,
    /// Its label.
    pub name: String,
}

/// A table read from a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GptRead {
    /// The table.
    pub table: GptTable,
    /// Where its sectors were on the disk, in order: first sector, primary header, entries, backup
    /// entries, backup header. None overlap.
    pub sectors: Vec<ByteRange>,
    /// What a person should know, for example that the primary was damaged.
    pub warnings: Vec<String>,
}

/// One copy of the table on a disk, header and entries both checked.
struct Copy {
    header: Header,
    header_bytes: Vec<u8>,
    entries: Vec<u8>,
}

fn read_copy(
    disk: &dyn ReadAt,
    sectors: u64,
    sector: SectorSize,
    lba: u64,
) -> Result<Copy, GptError> {
    if lba >= sectors {
        return Err(GptError::Copy(format!(
            "its place LBA {lba} is past the disk's end"
        )));
    }
    let mut header_bytes = vec![0; sector.bytes() as usize];
    disk.read_at(lba * sector.bytes(), &mut header_bytes)?;
    let header = Header::parse(&header_bytes, lba)?;
    let count = header.entries_sectors(sector);
    let end = header.entries_lba.checked_add(count);
    if header.entries_lba < 2 || end.is_none_or(|end| end > sectors) {
        return Err(GptError::Copy(format!(
            "entries at LBA {} of a disk with {sectors} sectors",
            header.entries_lba
        )));
    }
    if (header.entries_lba..header.entries_lba + count).contains(&lba) {
        return Err(GptError::Copy("entries over their own header".to_owned()));
    }
    let mut entries = vec![0; (count * sector.bytes()) as usize];
    disk.read_at(header.entries_lba * sector.bytes(), &mut entries)?;
    check_entries_crc(&header, &entries)?;
    Ok(Copy {
        header,
        header_bytes,
        entries,
    })
}

/// Whether a first sector holds a protective MBR: without one the kernel takes the disk for a PC
/// one, whatever is at LBA 1 (`block/partitions/efi.c`, `is_pmbr_valid`).
#[must_use]
pub fn is_protective_mbr(first_sector: &[u8]) -> bool {
    first_sector.len() >= 512
        && first_sector[510..512] == [0x55, 0xaa]
        && (0..4).any(|slot| first_sector[446 + 16 * slot + 4] == 0xee)
}

/// Reads the GPT of a disk of `size` bytes, from the backup when the primary is damaged; `None`
/// when the disk has none (no protective MBR).
///
/// # Errors
/// [`GptError::Read`]; [`GptError::Damaged`] when there should be a GPT and neither copy is right.
pub fn read_gpt(
    disk: &dyn ReadAt,
    size: u64,
    sector: SectorSize,
) -> Result<Option<GptRead>, GptError> {
    let sectors = size / sector.bytes();
    if sectors < 3 {
        return Ok(None);
    }
    let mut first_sector = vec![0; sector.bytes() as usize];
    disk.read_at(0, &mut first_sector)?;
    if !is_protective_mbr(&first_sector) {
        return Ok(None);
    }
    let mut warnings = Vec::new();
    let primary = match read_copy(disk, sectors, sector, PRIMARY_LBA) {
        Err(GptError::Read(error)) => return Err(error.into()),
        other => other,
    };
    // The primary knows where its backup is; without it, the backup can only be at the end.
    let backup_lba = primary
        .as_ref()
        .map_or(sectors - 1, |copy| copy.header.alternate_lba);
    let backup = match read_copy(disk, sectors, sector, backup_lba) {
        Err(GptError::Read(error)) => return Err(error.into()),
        Ok(_) if backup_lba < 2 => Err(GptError::Copy(format!("it is at LBA {backup_lba}"))),
        other => other,
    };
    let copy = match (primary, &backup) {
        (Ok(primary), backup) => {
            match backup {
                Err(reason) => warnings.push(format!("the backup GPT is damaged: {reason}")),
                Ok(backup) if backup.entries != primary.entries => warnings.push(
                    "the backup GPT has other partitions than the primary; the primary counts"
                        .to_owned(),
                ),
                Ok(_) => {}
            }
            primary
        }
        (Err(reason), Ok(backup)) => {
            warnings.push(format!(
                "the primary GPT is damaged ({reason}); the backup GPT at LBA {backup_lba} was used"
            ));
            as_primary(backup)
        }
        (Err(primary), Err(backup)) => {
            return Err(GptError::Damaged {
                primary: primary.to_string(),
                backup: backup.to_string(),
            });
        }
    };
    let range = |lba: u64, count: u64| {
        ByteRange::between(lba * sector.bytes(), (lba + count) * sector.bytes())
    };
    let count = copy.header.entries_sectors(sector);
    let mut owned = vec![range(0, 2), range(copy.header.entries_lba, count)];
    if let Ok(backup) = &backup {
        owned.push(range(
            backup.header.entries_lba,
            backup.header.entries_sectors(sector),
        ));
        owned.push(range(backup_lba, 1));
    }
    owned.sort();
    owned.dedup();
    if owned.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
        return Err(GptError::Copy(
            "parts of the GPT lie over each other".to_owned(),
        ));
    }
    let table = GptTable {
        first_sector: Blob(first_sector),
        header: Blob(copy.header_bytes),
        entries: Blob(copy.entries),
    };
    table.partitions()?;
    Ok(Some(GptRead {
        table,
        sectors: owned,
        warnings,
    }))
}

/// The primary copy that a backup copy stands for, its entries at LBA 2.
fn as_primary(backup: &Copy) -> Copy {
    let mut header_bytes = backup.header_bytes.clone();
    let my_lba = le64(&header_bytes, field::MY_LBA);
    put64(&mut header_bytes, field::MY_LBA, PRIMARY_LBA);
    put64(&mut header_bytes, field::ALTERNATE_LBA, my_lba);
    put64(&mut header_bytes, field::ENTRIES_LBA, 2);
    seal(&mut header_bytes);
    Copy {
        header: Header {
            alternate_lba: my_lba,
            entries_lba: 2,
            ..backup.header
        },
        header_bytes,
        entries: backup.entries.clone(),
    }
}

impl GptTable {
    fn checked_header(&self) -> Result<(Header, SectorSize), GptError> {
        let sector = SectorSize::try_from(self.header.0.len() as u64)
            .map_err(|error| GptError::Copy(error.to_string()))?;
        let header = Header::parse(&self.header.0, PRIMARY_LBA)?;
        let expected = header.entries_sectors(sector) * sector.bytes();
        if self.entries.0.len() as u64 != expected {
            return Err(GptError::Copy(format!(
                "{} bytes of entries (expected {expected})",
                self.entries.0.len()
            )));
        }
        if self.first_sector.0.len() as u64 != sector.bytes() {
            return Err(GptError::Copy(format!(
                "a first sector of {} bytes (expected {})",
                self.first_sector.0.len(),
                sector.bytes()
            )));
        }
        if header.entries_lba < 2 {
            return Err(GptError::Copy(format!(
                "entries at LBA {}",
                header.entries_lba
            )));
        }
        check_entries_crc(&header, &self.entries.0)?;
        Ok((header, sector))
    }

    /// The sector size that the table was made for.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged.
    pub fn sector_size(&self) -> Result<SectorSize, GptError> {
        self.checked_header().map(|(_, sector)| sector)
    }

    /// The table for sectors of another size, with every partition where it was; one that ends within a sector gets
    /// the whole of it.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged or do not fit into such sectors; [`GptError::Entry`] for a
    /// partition that begins within a sector.
    pub fn with_sectors(&self, to: SectorSize) -> Result<Self, GptError> {
        let (header, from) = self.checked_header()?;
        let (old, new) = (from.bytes(), to.bytes());
        let len = header.entries_len();
        let table = PRIMARY_LBA + 1 + len.div_ceil(new);
        let mut entries = self.entries.0.clone();
        for partition in self.partitions()? {
            let refuse = |reason| GptError::Entry {
                number: partition.number,
                first_lba: partition.first_lba,
                last_lba: partition.last_lba,
                reason,
            };
            // The constructor admits no partition past 2^64 bytes.
            let (start, end) = (partition.first_lba * old, (partition.last_lba + 1) * old);
            if !start.is_multiple_of(new) {
                return Err(refuse("begins within a sector of the other size"));
            }
            if start / new < table {
                return Err(refuse("begins where the table has to be"));
            }
            let at = (partition.number as usize - 1) * header.entry_len as usize;
            put64(&mut entries, at + 32, start / new);
            put64(&mut entries, at + 40, end.div_ceil(new) - 1);
        }
        entries.truncate(len as usize);
        entries.resize(len.next_multiple_of(new) as usize, 0);
        let header_len = le32(&self.header.0, field::HEADER_LEN) as usize;
        let (Some(head), Some(first)) = (
            self.header.0.get(..header_len),
            self.first_sector.0.get(..512),
        ) else {
            return Err(GptError::Copy(format!("a header of {header_len} bytes")));
        };
        let sector = |bytes: &[u8]| {
            let mut sector = bytes.to_vec();
            sector.resize(new as usize, 0);
            sector
        };
        if header_len as u64 > new {
            return Err(GptError::Copy(format!("a header of {header_len} bytes")));
        }
        let mut primary = sector(head);
        let scaled = |lba: u64| (u128::from(lba) * u128::from(old)).div_ceil(u128::from(new));
        let scaled = |lba: u64| u64::try_from(scaled(lba)).unwrap_or(u64::MAX);
        put64(&mut primary, field::ENTRIES_LBA, PRIMARY_LBA + 1);
        let first_usable = scaled(header.first_usable).max(table);
        put64(&mut primary, field::FIRST_USABLE, first_usable);
        for (at, lba) in [
            (field::LAST_USABLE, header.last_usable),
            (field::ALTERNATE_LBA, header.alternate_lba),
        ] {
            let end = scaled(lba.saturating_add(1));
            put64(&mut primary, at, end.saturating_sub(1));
        }
        let crc = crc32fast::hash(&entries[..len as usize]);
        put32(&mut primary, field::ENTRIES_CRC, crc);
        seal(&mut primary);
        let table = Self {
            first_sector: Blob(sector(first)),
            header: Blob(primary),
            entries: Blob(entries),
        };
        table.partitions()?;
        Ok(table)
    }

    /// The used entries in the order of the array.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged, [`GptError::Entry`] for an entry that
    /// ends before it begins or past 2^64 bytes.
    pub fn partitions(&self) -> Result<Vec<GptPartition>, GptError> {
        let (header, sector) = self.checked_header()?;
        let mut partitions = Vec::new();
        for (index, entry) in self
            .entries
            .0
            .chunks_exact(header.entry_len as usize)
            .take(header.entry_count as usize)
            .enumerate()
        {
            if entry[..16] == [0; 16] {
                continue;
            }
            let (number, first_lba, last_lba) =
                (index as u32 + 1, le64(entry, 32), le64(entry, 40));
            let refuse = |reason| GptError::Entry {
                number,
                first_lba,
                last_lba,
                reason,
            };
            if last_lba < first_lba {
                return Err(refuse("ends before it begins"));
            }
            if last_lba >= u64::MAX / sector.bytes() {
                return Err(refuse("ends past 2^64 bytes"));
            }
            let units: Vec<u16> = (0..36)
                .map(|unit| le16(entry, 56 + 2 * unit))
                .take_while(|unit| *unit != 0)
                .collect();
            partitions.push(GptPartition {
                number,
                first_lba,
                last_lba,
                type_guid: guid(&entry[..16]),
                unique_guid: guid(&entry[16..32]),
                attributes: le64(entry, 48),
                name: String::from_utf16_lossy(&units),
            });
        }
        Ok(partitions)
    }

    /// The disk's own GUID.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged.
    pub fn disk_guid(&self) -> Result<Uuid, GptError> {
        self.checked_header()?;
        Ok(guid(
            &self.header.0[field::DISK_GUID..field::DISK_GUID + 16],
        ))
    }

    /// The table of a copy: with another GUID of the disk, and of each of these partitions. The signature in
    /// the protective MBR, which few systems set, becomes `signature` where there is one.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged, [`GptError::NoPartition`].
    pub fn with_ids(
        &self,
        disk: Uuid,
        partitions: &[(u32, Uuid)],
        signature: u32,
    ) -> Result<Self, GptError> {
        let (header, _) = self.checked_header()?;
        let known = self.partitions()?;
        let mut table = self.clone();
        for &(number, unique) in partitions {
            if !known.iter().any(|partition| partition.number == number) {
                return Err(GptError::NoPartition { number });
            }
            let at = (number as usize - 1) * header.entry_len as usize;
            table.entries.0[at + 16..at + 32].copy_from_slice(&unique.to_bytes_le());
        }
        let crc = crc32fast::hash(&table.entries.0[..header.entries_len() as usize]);
        let bytes = &mut table.header.0;
        put32(bytes, field::ENTRIES_CRC, crc);
        bytes[field::DISK_GUID..field::DISK_GUID + 16].copy_from_slice(&disk.to_bytes_le());
        seal(bytes);
        crate::mbr::put_signature(&mut table.first_sector.0, signature);
        Ok(table)
    }

    /// One past the last sector that a partition may use on a disk of `disk_size` bytes.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged, [`GptError::TooSmall`] when the disk
    /// has no room for both copies of the table.
    pub fn usable_end(&self, disk_size: u64) -> Result<u64, GptError> {
        let (header, sector) = self.checked_header()?;
        let found = disk_size / sector.bytes();
        let count = header.entries_sectors(sector);
        let front = header.entries_lba.saturating_add(count);
        let needed = front.max(header.first_usable).saturating_add(count + 2);
        if found < needed {
            return Err(GptError::TooSmall { needed, found });
        }
        Ok(found - 1 - count)
    }

    /// The table for a disk of `disk_size` bytes, in the order in which it is to be written: backup
    /// GPT, primary GPT, protective MBR. `placed` gives partitions new places: number, first and last
    /// LBA.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged; [`GptError::TooSmall`] when a
    /// partition or the table does not fit; [`GptError::NoPartition`]; [`GptError::Entry`] when a
    /// place ends before it begins or lies where no partition may.
    pub fn resized_for(
        &self,
        disk_size: u64,
        placed: &[(u32, u64, u64)],
    ) -> Result<Vec<TableWrite>, GptError> {
        let (header, sector) = self.checked_header()?;
        let usable_end = self.usable_end(disk_size)?;
        let sectors = disk_size / sector.bytes();
        let mut entries = self.entries.0.clone();
        let partitions = self.partitions()?;
        for &(number, first_lba, last_lba) in placed {
            let before = partitions
                .iter()
                .find(|partition| partition.number == number)
                .ok_or(GptError::NoPartition { number })?;
            let refuse = |reason| GptError::Entry {
                number,
                first_lba,
                last_lba,
                reason,
            };
            if last_lba < first_lba {
                return Err(refuse("would end before it begins"));
            }
            if first_lba != before.first_lba && first_lba < header.first_usable {
                return Err(refuse("would begin where no partition may"));
            }
            let at = (number as usize - 1) * header.entry_len as usize;
            put64(&mut entries, at + 32, first_lba);
            put64(&mut entries, at + 40, last_lba);
        }
        let mut primary = self.header.0.clone();
        let crc = crc32fast::hash(&entries[..header.entries_len() as usize]);
        put32(&mut primary, field::ENTRIES_CRC, crc);
        let last_partition_end = GptTable {
            entries: Blob(entries.clone()),
            header: Blob({
                let mut sealed = primary.clone();
                seal(&mut sealed);
                sealed
            }),
            first_sector: self.first_sector.clone(),
        }
        .partitions()?
        .iter()
        .map(|partition| partition.last_lba + 1)
        .max()
        .unwrap_or(0);
        if last_partition_end > usable_end {
            return Err(GptError::TooSmall {
                needed: last_partition_end + (sectors - usable_end),
                found: sectors,
            });
        }
        // Some programs leave more room at the end than they must. On a disk of the same size that
        // choice is part of the letter.
        let keep = header.alternate_lba == sectors - 1
            && (header.first_usable..usable_end).contains(&header.last_usable)
            && header.last_usable + 1 >= last_partition_end;
        if !keep {
            put64(&mut primary, field::LAST_USABLE, usable_end - 1);
        }
        put64(&mut primary, field::ALTERNATE_LBA, sectors - 1);
        let mut backup = primary.clone();
        seal(&mut primary);
        put64(&mut backup, field::MY_LBA, sectors - 1);
        put64(&mut backup, field::ALTERNATE_LBA, PRIMARY_LBA);
        put64(&mut backup, field::ENTRIES_LBA, usable_end);
        seal(&mut backup);

        let write = |what: &str, lba: u64, bytes: Vec<u8>| TableWrite {
            what: what.to_owned(),
            offset: lba * sector.bytes(),
            bytes: Blob(bytes),
        };
        let mut writes = vec![write(
            "backup GPT",
            usable_end,
            [&entries[..], &backup].concat(),
        )];
        if header.entries_lba == PRIMARY_LBA + 1 {
            writes.push(write(
                "primary GPT",
                PRIMARY_LBA,
                [primary, entries].concat(),
            ));
        } else {
            writes.push(write("primary GPT", header.entries_lba, entries));
            writes.push(write("primary GPT", PRIMARY_LBA, primary));
        }
        let first = protective_mbr_for(&self.first_sector.0, sectors);
        writes.push(write("protective MBR", 0, first));
        Ok(writes)
    }
}

/// The first sector with the size of its protective entry fitted to the disk (UEFI 2.10 table 5-4).
/// A hybrid MBR, which has other entries too, was made by hand and stays as it is.
fn protective_mbr_for(first_sector: &[u8], sectors: u64) -> Vec<u8> {
    let mut bytes = first_sector.to_vec();
    let kind = |slot: usize| first_sector[446 + 16 * slot + 4];
    let used: Vec<usize> = (0..4).filter(|slot| kind(*slot) != 0).collect();
    if let [slot] = used[..]
        && kind(slot) == 0xee
    {
        let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
        put32(&mut bytes, 446 + 16 * slot + 12, size);
    }
    bytes
}

/// A GUID in the mixed-endian form of UEFI 2.10 appendix A.
fn guid(bytes: &[u8]) -> Uuid {
    let mut array = [0; 16];
    array.copy_from_slice(bytes);
    Uuid::from_bytes_le(array)
}
