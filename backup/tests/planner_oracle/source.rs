//! Made-up disks: GPT, PC partition tables with extended partitions, no table; written down sector by sector, and
//! captured as a real one is.

use std::collections::BTreeMap;

use backup::filesystem::{Doubt, ReadAt, ReadError, Survey};
use backup::hardware::Disk;
use backup::layout::survey_disk;
use backup::lvm::{Area, Segment};
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, FileSystemKind, LogicalVolume, Region, RegionKind, Volume,
};
use backup::plan::capture::plan_capture;
use backup::{ByteRange, Digest, SectorSize};

pub(crate) const MIB: u64 = 1 << 20;
/// 128 entries of 128 bytes.
pub(crate) const ENTRIES: u64 = 16384;

/// What a partition is for, as far as the planner may not move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Plain,
    /// EFI system partition.
    Esp,
    /// GRUB's place on a GPT.
    BiosBoot,
    /// The active one of a PC partition table.
    Active,
    /// Windows' recovery environment in a PC partition table.
    Recovery,
}

/// A partition, in sectors.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) first: u64,
    pub(crate) sectors: u64,
    pub(crate) role: Role,
    pub(crate) kind: Option<FileSystemKind>,
    pub(crate) block: u32,
    /// Saved as a whole, because nobody knows what of it is used.
    pub(crate) whole: bool,
    /// Bytes in use.
    pub(crate) used: u64,
    /// The sector of its extended boot record.
    pub(crate) record: Option<u64>,
}

/// Which table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Gpt,
    /// First sector and length of the extended partition.
    Mbr {
        extended: Option<(u64, u64)>,
        empty_record: bool,
    },
    None,
}

/// A disk.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) sector: SectorSize,
    pub(crate) sectors: u64,
    pub(crate) table: Table,
    /// By their places. Of a disk without a table the one that it is.
    pub(crate) parts: Vec<Part>,
    pub(crate) serial: Option<&'static str>,
}

/// A disk of which most is zero.
#[derive(Debug, Clone)]
pub(crate) struct Sparse {
    pub(crate) size: u64,
    pieces: BTreeMap<u64, [u8; 512]>,
}

impl Sparse {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            pieces: BTreeMap::new(),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(512) && offset + bytes.len() as u64 <= self.size);
        for (number, piece) in (0u64..).zip(bytes.chunks(512)) {
            let mut whole = [0; 512];
            whole[..piece.len()].copy_from_slice(piece);
            self.pieces.insert(offset / 512 + number, whole);
        }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes).unwrap();
        bytes
    }
}

impl ReadAt for Sparse {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let end = offset + buffer.len() as u64;
        if end > self.size {
            return Err(ReadError {
                offset,
                len: buffer.len() as u64,
                reason: "past the end".to_owned(),
            });
        }
        buffer.fill(0);
        for (number, piece) in self.pieces.range(offset / 512..end.div_ceil(512)) {
            let at = number * 512;
            let (from, to) = (at.max(offset), (at + 512).min(end));
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&piece[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }
}

/// An entry of a PC partition table.
fn entry(record: &mut [u8], slot: usize, active: bool, kind: u8, (start, sectors): (u64, u64)) {
    let at = 446 + 16 * slot;
    record[at] = if active { 0x80 } else { 0 };
    record[at + 4] = kind;
    record[at + 8..at + 12].copy_from_slice(&(start as u32).to_le_bytes());
    record[at + 12..at + 16].copy_from_slice(&(sectors as u32).to_le_bytes());
}

impl Part {
    pub(crate) const fn end(&self) -> u64 {
        self.first + self.sectors
    }

    const fn mbr_type(&self) -> u8 {
        match self.role {
            Role::Recovery => 0x27,
            Role::Esp => 0xef,
            _ => 0x83,
        }
    }
}

impl Source {
    pub(crate) const fn size(&self) -> u64 {
        self.sectors * self.sector.bytes()
    }

    fn written(&self) -> Sparse {
        let mut disk = Sparse::new(self.size());
        match self.table {
            Table::Gpt => self.write_gpt(&mut disk),
            Table::Mbr {
                extended,
                empty_record,
            } => self.write_mbr(&mut disk, extended, empty_record),
            Table::None => {}
        }
        disk
    }

    fn write_gpt(&self, disk: &mut Sparse) {
        let sector = self.sector.bytes();
        let mut entries = vec![0; ENTRIES as usize];
        for part in &self.parts {
            let kind = match part.role {
                Role::Esp => backup::gpt::ESP_TYPE.to_bytes_le(),
                Role::BiosBoot => backup::gpt::BIOS_BOOT_TYPE.to_bytes_le(),
                _ => [0x4d; 16],
            };
            let at = (part.number as usize - 1) * 128;
            entries[at..at + 16].copy_from_slice(&kind);
            entries[at + 16..at + 32].fill(part.number as u8);
            entries[at + 32..at + 40].copy_from_slice(&part.first.to_le_bytes());
            entries[at + 40..at + 48].copy_from_slice(&(part.end() - 1).to_le_bytes());
        }
        let (table, last) = (ENTRIES / sector, self.sectors - 1);
        let header = |own: u64, other: u64, entries_at: u64| {
            let mut header = vec![0; sector as usize];
            header[..8].copy_from_slice(b"EFI PART");
            header[8..12].copy_from_slice(&0x10000u32.to_le_bytes());
            header[12..16].copy_from_slice(&92u32.to_le_bytes());
            for (at, value) in [
                (24, own),
                (32, other),
                (40, 2 + table),
                (48, last - table - 1),
                (72, entries_at),
            ] {
                header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            header[56..72].fill(0x77);
            header[80..84].copy_from_slice(&128u32.to_le_bytes());
            header[84..88].copy_from_slice(&128u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            let crc = crc32fast::hash(&header[..92]);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            header
        };
        disk.write(sector, &header(1, last, 2));
        disk.write(2 * sector, &entries);
        disk.write((last - table) * sector, &entries);
        disk.write(last * sector, &header(last, 1, last - table));
        let mut first = vec![0; sector as usize];
        entry(
            &mut first,
            0,
            false,
            0xee,
            (1, last.min(u64::from(u32::MAX))),
        );
        first[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk.write(0, &first);
    }

    fn write_mbr(&self, disk: &mut Sparse, extended: Option<(u64, u64)>, empty_record: bool) {
        let sector = self.sector.bytes();
        let mut first = vec![0; sector as usize];
        first[510..512].copy_from_slice(&[0x55, 0xaa]);
        let blank = first.clone();
        let mut used = 0;
        for part in self.parts.iter().filter(|part| part.record.is_none()) {
            let slot = part.number as usize - 1;
            used |= 1 << slot;
            let place = (part.first, part.sectors);
            entry(
                &mut first,
                slot,
                part.role == Role::Active,
                part.mbr_type(),
                place,
            );
        }
        if let Some((base, len)) = extended {
            let slot = (0..4).find(|slot| used & (1 << slot) == 0).unwrap();
            entry(&mut first, slot, false, 0x0f, (base, len));
            // An empty record may come first.
            let mut records: Vec<(u64, Option<&Part>)> = Vec::new();
            records.extend(empty_record.then_some((base, None)));
            let logical = self.parts.iter();
            records.extend(logical.filter_map(|part| Some((part.record?, Some(part)))));
            for (index, (lba, part)) in records.iter().enumerate() {
                let mut record = blank.clone();
                if let Some(part) = part {
                    entry(
                        &mut record,
                        0,
                        false,
                        part.mbr_type(),
                        (part.first - lba, part.sectors),
                    );
                }
                if let Some((next, Some(part))) = records.get(index + 1) {
                    entry(&mut record, 1, false, 5, (next - base, part.end() - next));
                }
                disk.write(lba * sector, &record);
            }
        }
        disk.write(0, &first);
    }

    fn survey(&self, part: &Part, len: u64) -> Survey {
        use FileSystemKind::{Fat32, Ntfs, Xfs};
        let counts_sectors = matches!(part.kind, Some(Fat32 | Ntfs | Xfs));
        Survey {
            volume: part.kind.map(|file_system| Volume {
                file_system,
                label: None,
                uuid: None,
                block_size: part.block,
                size: len,
                used: Some(part.used.min(len) / 2),
                sector_size: counts_sectors.then_some(self.sector.bytes() as u32),
            }),
            used: if part.whole || part.kind.is_none() {
                Err(Doubt::Untrusted("dirty".to_owned()))
            } else if part.used == 0 {
                Ok(Vec::new())
            } else {
                Ok(vec![ByteRange::between(0, part.used.min(len))])
            },
            extents: Vec::new(),
            heads: Vec::new(),
        }
    }

    /// The disk as it would be captured.
    pub(crate) fn image(&self, number: u32) -> DiskImage {
        let disk = self.written();
        let layout = survey_disk(&disk, self.size(), self.sector).unwrap();
        let surveys = layout.regions.iter().map(|region| {
            let part = match region.kind {
                RegionKind::Partition { number } => {
                    self.parts.iter().find(|part| part.number == number)
                }
                RegionKind::WholeDisk => self.parts.first(),
                RegionKind::Gap => None,
            };
            part.map(|part| self.survey(part, region.range.len()))
        });
        let surveys = surveys.collect();
        let plan = plan_capture(
            &report("src", None, self.size(), self.sector),
            layout,
            surveys,
        );
        let region = |region: &backup::plan::capture::RegionPlan| Region {
            kind: region.kind.clone(),
            range: region.range,
            volume: region.volume.clone(),
            coverage: region.coverage.clone(),
            was_encrypted: None,
            content: content(region.read_bytes()),
        };
        DiskImage {
            number,
            model: None,
            serial: self.serial.map(str::to_owned),
            wwn: None,
            size: self.size(),
            logical_sector: self.sector,
            physical_sector: 4096,
            table: plan.table.clone(),
            regions: plan.regions.iter().map(region).collect(),
        }
    }
}

fn content(data_bytes: u64) -> ChunkListRef {
    ChunkListRef {
        digest: Digest::of(b""),
        chunks: 1,
        data_bytes,
        zero_bytes: 0,
    }
}

/// A disk of the machine.
pub(crate) fn report(name: &str, serial: Option<&str>, size: u64, sector: SectorSize) -> Disk {
    Disk {
        name: name.to_owned(),
        model: None,
        serial: serial.map(str::to_owned),
        wwn: None,
        size,
        logical_sector: sector,
        physical_sector: 4096,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    }
}

/// Logical volumes on the physical ones of all disks: one on each, and one that goes over all of them.
pub(crate) fn logical_volumes(images: &[DiskImage]) -> Vec<LogicalVolume> {
    let regions = images.iter().flat_map(|image| {
        let regions = image.regions.iter();
        regions.map(move |region| (image.number, region))
    });
    let is_physical = |region: &Region| {
        let volume = region.volume.as_ref();
        region.coverage == Coverage::UsedBlocks
            && volume.is_some_and(|volume| volume.file_system == FileSystemKind::Lvm)
            && region.range.len() >= 48 << 10
    };
    let physical: Vec<_> = regions.filter(|(_, region)| is_physical(region)).collect();
    let area = |disk: u32, region: &Region, offset: u64, len: u64| {
        let start = region.range.start() + offset;
        Area {
            disk,
            range: ByteRange::between(start, start + len),
        }
    };
    let volume = |name: String, segments: Vec<Segment>, size: u64| LogicalVolume {
        uuid: name.clone(),
        name,
        group: "vg".to_owned(),
        segments,
        volume: Some(Volume {
            file_system: FileSystemKind::Ext4,
            label: None,
            uuid: None,
            block_size: 4096,
            size,
            used: None,
            sector_size: None,
        }),
        coverage: Coverage::UsedBlocks,
        content: content(4096),
    };
    let mut volumes: Vec<_> = physical
        .iter()
        .enumerate()
        .map(|(number, (disk, region))| {
            let areas = vec![area(*disk, region, 8 << 10, 16 << 10)];
            let segment = Segment {
                stripe: 16 << 10,
                areas,
            };
            volume(format!("own{number}"), vec![segment], 16 << 10)
        })
        .collect();
    let places = physical.iter();
    let areas: Vec<_> = places
        .map(|(disk, region)| area(*disk, region, 32 << 10, 8 << 10))
        .collect();
    if areas.len() > 1 {
        let size = areas.len() as u64 * (8 << 10);
        let segment = Segment {
            stripe: 4096,
            areas,
        };
        volumes.push(volume("striped".to_owned(), vec![segment], size));
    }
    volumes
}
