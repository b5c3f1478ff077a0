//! Capture plans: which bytes of a disk are read, and why others are not.
//!
//! Invariant: the ranges of a region are in order, never overlap, stay inside the region and are
//! whole sectors; a region whose used blocks are in doubt is read whole. Nothing is read here.

use serde::{Deserialize, Serialize};

use crate::ByteRange;
use crate::chunk::Cutting;
use crate::filesystem::{FileExtent, ReadAt, Section, Survey, encryption, survey_volume};
use crate::hardware::Disk;
use crate::layout::{DiskLayout, LayoutRegion};
use crate::manifest::{
    ChunkListRef, Coverage, FileSystemKind, PartitionTable, Region, RegionKind, Volume,
};
use crate::units::HumanBytes;

/// What a capture of one disk will read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturePlan {
    /// The source.
    pub disk: Disk,
    /// Its table, kept in the manifest to the letter.
    pub table: PartitionTable,
    /// Its regions in order of offset.
    pub regions: Vec<RegionPlan>,
    /// What a person should know, for the manifest's warnings.
    pub warnings: Vec<String>,
}

/// What is read of one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionPlan {
    /// What it is.
    pub kind: RegionKind,
    /// Where it is on the disk.
    pub range: ByteRange,
    /// The file system in it, when known.
    pub volume: Option<Volume>,
    /// Which of its bytes are saved, and why not others.
    pub coverage: Coverage,
    /// The bytes to read, relative to the region, whole sectors.
    pub ranges: Vec<ByteRange>,
    /// How what is read is cut into chunks.
    pub cutting: Cutting,
}

/// What a capture plan comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CaptureTotals {
    /// Bytes that will be read.
    pub read: u64,
    /// Bytes of saved regions that the file systems do not use.
    pub unused: u64,
    /// Bytes of regions that are left out.
    pub left_out: u64,
}

/// Plans the capture of a disk. `surveys` has one entry for each of the layout's regions, in their
/// order: what was found in a partition or on a disk without table, `None` for a gap.
///
/// A region for which there is no survey is saved whole.
#[must_use]
pub fn plan_capture(disk: &Disk, layout: DiskLayout, surveys: Vec<Option<Survey>>) -> CapturePlan {
    let mut surveys = surveys.into_iter();
    let regions = layout
        .regions
        .into_iter()
        .map(|region| {
            plan_region(
                region,
                surveys.next().flatten(),
                disk.logical_sector.bytes(),
            )
        })
        .collect();
    CapturePlan {
        disk: disk.clone(),
        table: layout.table,
        regions,
        warnings: layout.warnings,
    }
}

/// A region of a disk that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub layout: LayoutRegion,
    /// The plain volume's bytes, when it is an encrypted one that is open.
    pub plain: Option<u64>,
}

impl From<LayoutRegion> for Place {
    fn from(layout: LayoutRegion) -> Self {
        let plain = None;
        Self { layout, plain }
    }
}

/// Looks at one region of a disk with sectors of `sector` bytes and plans it.
#[must_use]
pub fn survey_region(disk: &dyn ReadAt, place: Place, sector: u64) -> RegionPlan {
    let Place { layout, plain } = place;
    let survey = match layout.kind {
        RegionKind::Gap => None,
        RegionKind::Partition { .. } | RegionKind::WholeDisk => {
            let section = Section::new(disk, layout.range);
            let survey = survey_volume(&section, layout.range.len());
            Some(match plain {
                Some(plain) => Survey {
                    used: survey
                        .used
                        .map(|used| encryption::with_header_places(&used, plain)),
                    ..survey
                },
                None => survey,
            })
        }
    };
    plan_region(layout, survey, sector)
}

/// Plans one region of a disk with sectors of `sector` bytes. `survey` is what was found in it; without
/// one it is saved whole.
#[must_use]
pub fn plan_region(region: LayoutRegion, survey: Option<Survey>, sector: u64) -> RegionPlan {
    let LayoutRegion {
        kind,
        range,
        left_out,
    } = region;
    let whole = ByteRange::between(0, range.len());
    let (volume, used, extents) = match survey {
        Some(survey) => (survey.volume, Some(survey.used), survey.extents),
        None => (None, None, Vec::new()),
    };
    let (coverage, ranges) = match (left_out, used) {
        (Some(reason), _) => (Coverage::LeftOut { reason }, Vec::new()),
        (None, Some(Ok(used))) if used.iter().all(|used| whole.contains(*used)) => {
            (Coverage::UsedBlocks, to_sectors(&used, sector, range.len()))
        }
        (None, used) => {
            let reason = match used {
                Some(Err(doubt)) => doubt.to_string(),
                Some(Ok(_)) => "its used blocks leave the region".to_owned(),
                None if kind == RegionKind::Gap => "outside all partitions".to_owned(),
                None => "it was not surveyed".to_owned(),
            };
            (Coverage::Whole { reason }, vec![whole])
        }
    };
    let cutting = match (&coverage, volume.as_ref().map(|volume| volume.file_system)) {
        (Coverage::UsedBlocks, _) => Cutting::Files(extents),
        // Encrypted bytes never repeat; a gap is too small to be worth more.
        (_, Some(FileSystemKind::Luks | FileSystemKind::Bitlocker)) => Cutting::Grid,
        _ if kind == RegionKind::Gap => Cutting::Grid,
        _ => Cutting::ContentDefined,
    };
    RegionPlan {
        kind,
        range,
        volume,
        coverage,
        ranges,
        cutting,
    }
}

/// Widens ranges to whole sectors and joins those that then touch.
fn to_sectors(ranges: &[ByteRange], sector: u64, len: u64) -> Vec<ByteRange> {
    let mut wide: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let start = range.start() - range.start() % sector;
        let end = range.end().div_ceil(sector).saturating_mul(sector).min(len);
        match wide.last_mut() {
            Some(last) if start <= last.end() => {
                *last = ByteRange::between(last.start(), last.end().max(end));
            }
            _ => wide.push(ByteRange::between(start, end)),
        }
    }
    wide
}

impl RegionPlan {
    /// Bytes of memory that its ranges and extents take.
    #[must_use]
    pub const fn memory(&self) -> usize {
        let extents = match &self.cutting {
            Cutting::Files(extents) => extents.capacity() * size_of::<FileExtent>(),
            Cutting::ContentDefined | Cutting::Grid => 0,
        };
        self.ranges.capacity() * size_of::<ByteRange>() + extents
    }

    /// What the manifest says of it, with the name of its chunk list.
    #[must_use]
    pub fn described(&self, content: ChunkListRef) -> Region {
        Region {
            kind: self.kind.clone(),
            range: self.range,
            volume: self.volume.clone(),
            coverage: self.coverage.clone(),
            was_encrypted: None,
            content,
        }
    }

    /// Bytes that will be read of it.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum()
    }
}

impl CapturePlan {
    /// What it comes to.
    #[must_use]
    pub fn totals(&self) -> CaptureTotals {
        let mut totals = CaptureTotals::default();
        for region in &self.regions {
            let read = region.read_bytes();
            totals.read += read;
            if matches!(region.coverage, Coverage::LeftOut { .. }) {
                totals.left_out += region.range.len();
            } else {
                totals.unused += region.range.len().saturating_sub(read);
            }
        }
        totals
    }
}

impl std::fmt::Display for RegionPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.kind {
            RegionKind::Partition { number } => format!("partition {number}"),
            RegionKind::Gap => "gap".to_owned(),
            RegionKind::WholeDisk => "whole disk".to_owned(),
        };
        let volume = self
            .volume
            .as_ref()
            .map_or_else(|| "-".to_owned(), |volume| volume.file_system.to_string());
        write!(
            f,
            "{what:<13} {:>9}  {volume:<9} {:>9}  ",
            HumanBytes(self.range.len()).to_string(),
            HumanBytes(self.read_bytes()).to_string()
        )?;
        match &self.coverage {
            Coverage::UsedBlocks => write!(f, "used blocks"),
            Coverage::Whole { reason } => write!(f, "whole: {reason}"),
            Coverage::LeftOut { reason } => write!(f, "left out: {reason}"),
        }
    }
}

impl std::fmt::Display for CapturePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let totals = self.totals();
        writeln!(
            f,
            "{}: {} to read, {} not in use, {} left out",
            self.disk.describe(),
            HumanBytes(totals.read),
            HumanBytes(totals.unused),
            HumanBytes(totals.left_out)
        )?;
        self.regions
            .iter()
            .try_for_each(|region| writeln!(f, "  {region}"))?;
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "  warning: {warning}"))
    }
}
