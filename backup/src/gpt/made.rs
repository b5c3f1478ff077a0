//! Tables that get a partition more, or are made for a disk that had a PC partition table.
//!
//! Invariant: partitions that are there keep their numbers, places and ids. What is made here is for one sector
//! size, and is carried to a disk by [`GptTable::resized_for`], as any other table.
//!
//! What is *not* here: where a new partition goes (`plan::firmware`).

use uuid::Uuid;

use super::{GptError, GptTable, PRIMARY_LBA, field, header::seal};
use crate::SectorSize;
use crate::little_endian::{put32, put64};
use crate::manifest::Blob;

/// Entries of a table that is made here, and bytes of each: what all systems make.
const ENTRY_COUNT: u32 = 128;
const ENTRY_LEN: u32 = 128;
/// Bytes of a header.
const HEADER_LEN: u32 = 92;
/// The most characters of a name.
const NAME_LEN: usize = 36;

/// A partition that a table gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewPartition {
    /// Its number, counted from 1; none that is in use.
    pub(crate) number: u32,
    /// First sector.
    pub(crate) first_lba: u64,
    /// Last sector, itself part of it.
    pub(crate) last_lba: u64,
    /// What it is for.
    pub(crate) type_guid: Uuid,
    /// Its own name among all partitions.
    pub(crate) unique_guid: Uuid,
    /// Its label.
    pub(crate) name: &'static str,
}

impl GptTable {
    /// A table without partitions for a disk of `sectors` sectors, which nothing starts by BIOS.
    ///
    /// # Errors
    /// [`GptError::TooSmall`] when the disk has no room for both copies of the table.
    pub(crate) fn empty(disk: Uuid, sector: SectorSize, sectors: u64) -> Result<Self, GptError> {
        let size = sector.bytes();
        let count = u64::from(ENTRY_COUNT * ENTRY_LEN).div_ceil(size);
        let first_usable = PRIMARY_LBA + 1 + count;
        let needed = first_usable + count + 2;
        if sectors < needed {
            return Err(GptError::TooSmall {
                needed,
                found: sectors,
            });
        }
        let entries = vec![0; (count * size) as usize];
        let mut header = vec![0; size as usize];
        header[..8].copy_from_slice(b"EFI PART");
        // Revision 1.0 (UEFI 2.10 table 5-5).
        put32(&mut header, 8, 0x0001_0000);
        put32(&mut header, field::HEADER_LEN, HEADER_LEN);
        put64(&mut header, field::MY_LBA, PRIMARY_LBA);
        put64(&mut header, field::ALTERNATE_LBA, sectors - 1);
        put64(&mut header, field::FIRST_USABLE, first_usable);
        put64(&mut header, field::LAST_USABLE, sectors - 2 - count);
        header[field::DISK_GUID..field::DISK_GUID + 16].copy_from_slice(&disk.to_bytes_le());
        put64(&mut header, field::ENTRIES_LBA, PRIMARY_LBA + 1);
        put32(&mut header, field::ENTRY_COUNT, ENTRY_COUNT);
        put32(&mut header, field::ENTRY_LEN, ENTRY_LEN);
        put32(
            &mut header,
            field::ENTRIES_CRC,
            crc32fast::hash(&entries[..(ENTRY_COUNT * ENTRY_LEN) as usize]),
        );
        seal(&mut header);
        // The protective MBR, UEFI 2.10 table 5-4: from sector 1 to the end, as far as 32 bits count.
        let mut first = vec![0; size as usize];
        first[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
        put32(&mut first, 454, 1);
        let covered = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
        put32(&mut first, 458, covered);
        first[510..512].copy_from_slice(&[0x55, 0xaa]);
        Ok(Self {
            first_sector: Blob(first),
            header: Blob(header),
            entries: Blob(entries),
        })
    }

    /// The first sector behind the table. Some programs say that partitions begin later, at 1 MiB.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged.
    pub(crate) fn front(&self) -> Result<u64, GptError> {
        let (header, sector) = self.checked_header()?;
        let count = header.entries_sectors(sector);
        Ok(header.entries_lba.saturating_add(count))
    }

    /// The first number behind all that are in use; `None` when the table has no more.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged.
    pub(crate) fn next_number(&self) -> Result<Option<u32>, GptError> {
        let (header, _) = self.checked_header()?;
        let partitions = self.partitions()?;
        let used = partitions.iter().map(|partition| partition.number).max();
        let next = used.unwrap_or(0) + 1;
        Ok((next <= header.entry_count).then_some(next))
    }

    /// The table with a partition more. Whether it lies over another one is for the caller to see.
    ///
    /// # Errors
    /// [`GptError::Copy`] when the table's bytes are damaged, [`GptError::Entry`] when the number is in use or none
    /// that the table has, or the place is none.
    pub(crate) fn with_partition(&self, new: &NewPartition) -> Result<Self, GptError> {
        let (header, _) = self.checked_header()?;
        let refuse = |reason| GptError::Entry {
            number: new.number,
            first_lba: new.first_lba,
            last_lba: new.last_lba,
            reason,
        };
        if !(1..=header.entry_count).contains(&new.number) {
            return Err(refuse("the table has no such number"));
        }
        if new.last_lba < new.first_lba || new.first_lba < self.front()? {
            return Err(refuse("would lie where no partition may"));
        }
        let at = (new.number as usize - 1) * header.entry_len as usize;
        let mut table = self.clone();
        let Some(entry) = table.entries.0.get_mut(at..at + ENTRY_LEN as usize) else {
            return Err(refuse("the table has no such number"));
        };
        if entry[..16] != [0; 16] {
            return Err(refuse("the number is in use"));
        }
        entry.fill(0);
        entry[..16].copy_from_slice(&new.type_guid.to_bytes_le());
        entry[16..32].copy_from_slice(&new.unique_guid.to_bytes_le());
        put64(entry, 32, new.first_lba);
        put64(entry, 40, new.last_lba);
        for (unit, letter) in new.name.encode_utf16().take(NAME_LEN).enumerate() {
            entry[56 + 2 * unit..58 + 2 * unit].copy_from_slice(&letter.to_le_bytes());
        }
        let crc = crc32fast::hash(&table.entries.0[..header.entries_len() as usize]);
        put32(&mut table.header.0, field::ENTRIES_CRC, crc);
        let first_usable = header.first_usable.min(new.first_lba);
        put64(&mut table.header.0, field::FIRST_USABLE, first_usable);
        seal(&mut table.header.0);
        table.partitions()?;
        Ok(table)
    }
}
