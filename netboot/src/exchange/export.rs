//! Exports: the disks of a restore point as files.
//!
//! Invariant: every chunk is compared with its digest before it is written; no file gets its name before all
//! files of the export are whole and flushed. Memory: one chunk, whatever the disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use backup::ByteRange;
use backup::lvm::Mapping;
use backup::manifest::{DiskImage, Manifest, PartitionTable, RegionKind, RestorePointId};
use clap::ValueEnum;
use serde::Serialize;

use super::new_file::NewFile;
use super::parts::{PartSize, Parts};
use super::target::Target;
use super::{ExchangeError, OnProgress, Progress, Stop};
use crate::store::Store;
use crate::store::content::{ContentError, TakeChunk, read_content};

/// What a restore point is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// The bytes of the disk; what is not in use is a hole
    Raw,
    /// For QEMU and KVM; only what is in use takes room
    Qcow2,
    /// A folder with parts of a raw image that fit on FAT32
    Parts,
}

/// What is to be exported, and how.
#[derive(Debug)]
pub(crate) struct Export<'a> {
    /// The restore point.
    pub(crate) id: &'a RestorePointId,
    /// Its manifest.
    pub(crate) manifest: &'a Manifest,
    /// Where to: a file, or a folder when there is more than one file.
    pub(crate) target: &'a Path,
    /// As what.
    pub(crate) format: Format,
    /// Only this disk.
    pub(crate) disk: Option<u32>,
    /// Replace files that are there.
    pub(crate) force: bool,
    /// The size of parts.
    pub(crate) part_mib: u64,
}

/// A disk that was written.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    /// Its number in the restore point.
    pub(crate) disk: u32,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Bytes of data in it.
    pub(crate) data_bytes: u64,
    /// Its files.
    pub(crate) files: Vec<PathBuf>,
}

/// What an export wrote.
#[derive(Debug, Serialize)]
pub(crate) struct ExportSummary {
    /// The restore point.
    pub(crate) restore_point: RestorePointId,
    /// As what.
    pub(crate) format: Format,
    /// The disks.
    pub(crate) disks: Vec<Written>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

/// Writes the disks of a restore point.
///
/// # Errors
/// [`ExchangeError`]; then nothing of it is left, and what was there before is as it was. Only where several
/// files are replaced (`force`) and one of them cannot be, those before it are replaced already.
pub(crate) fn export(
    store: &Store,
    data_directory: &Path,
    export: &Export<'_>,
    progress: OnProgress<'_>,
    stop: &Stop,
) -> Result<ExportSummary, ExchangeError> {
    let disks = chosen(export)?;
    let target = placed(export.target, data_directory)?;
    let mut folders = NewFolders::default();
    let in_folder = disks.len() > 1 || export.format == Format::Parts || target.is_dir();
    let work = Work {
        store,
        export,
        progress,
        stop,
        done: AtomicU64::new(0),
        total: disks
            .iter()
            .map(|disk| data_of(export.manifest, disk))
            .sum(),
    };
    if in_folder {
        folders.make(&target)?;
    }
    check_room(
        export,
        &disks,
        if in_folder {
            Some(&target)
        } else {
            target.parent()
        },
    )?;
    let mut finished = Vec::new();
    for disk in &disks {
        let home = match (in_folder, export.format, disks.len()) {
            (false, ..) | (true, Format::Parts, 1) => target.clone(),
            (true, Format::Parts, _) => {
                let folder = target.join(format!("disk-{}", disk.number));
                folders.make(&folder)?;
                folder
            }
            (true, format, _) => {
                let end = if format == Format::Qcow2 {
                    "qcow2"
                } else {
                    "raw"
                };
                target.join(format!("disk-{}.{end}", disk.number))
            }
        };
        let mut to = work.target(disk, &home)?;
        work.write_disk(disk, &mut to)?;
        finished.push((disk, to.finish(progress, stop)?));
    }
    stop.check()?;
    let mut named = Named::default();
    let mut written = Vec::new();
    for (disk, files) in finished {
        let mut paths = Vec::new();
        for file in files {
            paths.push(named.keep(file, export.force)?);
        }
        written.push(Written {
            disk: disk.number,
            size: disk.size,
            data_bytes: data_of(export.manifest, disk),
            files: paths,
        });
    }
    named.all();
    folders.keep();
    Ok(ExportSummary {
        restore_point: export.id.clone(),
        format: export.format,
        notes: notes(&disks),
        disks: written,
    })
}

fn chosen<'a>(export: &Export<'a>) -> Result<Vec<&'a DiskImage>, ExchangeError> {
    let all = &export.manifest.disks;
    let Some(number) = export.disk else {
        return Ok(all.iter().collect());
    };
    let found: Vec<_> = all.iter().filter(|disk| disk.number == number).collect();
    if found.is_empty() {
        let numbers: Vec<_> = all.iter().map(|disk| disk.number.to_string()).collect();
        return Err(ExchangeError::NoDisk {
            restore_point: export.id.clone(),
            found: number,
            disks: numbers.join(", "),
        });
    }
    Ok(found)
}

/// The target as an absolute path whose folder is there, outside the data directory.
fn placed(target: &Path, data_directory: &Path) -> Result<PathBuf, ExchangeError> {
    let place = |reason: String| ExchangeError::Place {
        path: target.to_owned(),
        reason,
    };
    let absolute = if target.is_dir() {
        std::fs::canonicalize(target)
    } else {
        let name = target
            .file_name()
            .ok_or_else(|| place("it names no file".to_owned()))?;
        let folder = target
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        std::fs::canonicalize(folder.unwrap_or_else(|| Path::new(".")))
            .map(|folder| folder.join(name))
    };
    let absolute =
        absolute.map_err(|error| place(format!("its folder cannot be used: {error}")))?;
    // With all links followed, so that no name of it leads inside.
    if let Ok(own) = std::fs::canonicalize(data_directory)
        && absolute.starts_with(&own)
    {
        return Err(place(format!(
            "it is inside the data directory {}, which is the server's own; choose another place",
            own.display()
        )));
    }
    Ok(absolute)
}

/// Folders that an export made; they are removed with it, as far as they are empty.
#[derive(Debug, Default)]
struct NewFolders(Vec<PathBuf>);

impl NewFolders {
    fn make(&mut self, path: &Path) -> Result<(), ExchangeError> {
        if path.is_dir() {
            return Ok(());
        }
        match std::fs::create_dir(path) {
            Ok(()) => self.0.push(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(ExchangeError::Place {
                    path: path.to_owned(),
                    reason: "a folder is needed for several files, and this is a file".to_owned(),
                });
            }
            Err(error) => return Err(ExchangeError::output("cannot create", path)(error)),
        }
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Files that have their names already; they are removed when a later one cannot be named, but for those that
/// replaced something.
#[derive(Debug, Default)]
struct Named(Vec<PathBuf>);

impl Named {
    fn keep(&mut self, file: NewFile, force: bool) -> Result<PathBuf, ExchangeError> {
        let path = file.keep(force)?;
        if !force {
            self.0.push(path.clone());
        }
        Ok(path)
    }

    fn all(mut self) {
        self.0.clear();
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Bytes of data on a disk, those of logical volumes counted on the disk where they begin.
fn data_of(manifest: &Manifest, disk: &DiskImage) -> u64 {
    let regions = disk.regions.iter().map(|region| region.content.data_bytes);
    let volumes = manifest.logical_volumes.iter().filter(|volume| {
        let area = volume.segments.first().and_then(|one| one.areas.first());
        area.is_some_and(|area| area.disk == disk.number)
    });
    let volumes = volumes.map(|volume| volume.content.data_bytes);
    regions.chain(volumes).fold(0, u64::saturating_add)
}

/// Refuses a file system that cannot hold the export.
fn check_room(
    export: &Export<'_>,
    disks: &[&DiskImage],
    folder: Option<&Path>,
) -> Result<(), ExchangeError> {
    let Some(folder) = folder else {
        return Ok(());
    };
    let Ok(found) = nix::sys::statvfs::statvfs(folder) else {
        return Ok(());
    };
    let free = found
        .blocks_available()
        .saturating_mul(found.fragment_size());
    // FAT and exFAT know no holes.
    let kind = nix::sys::statfs::statfs(folder).map(|found| found.filesystem_type().0);
    let no_holes = kind.is_ok_and(|kind| [0x4d44, 0x2011_bab0].contains(&(kind as u64)));
    let sizes = disks.iter().map(|disk| match export.format {
        Format::Raw | Format::Parts if no_holes => disk.size,
        _ => data_of(export.manifest, disk),
    });
    let needed = sizes.fold(0, u64::saturating_add);
    if needed <= free {
        return Ok(());
    }
    Err(ExchangeError::Room {
        path: folder.to_owned(),
        free,
        needed,
    })
}

fn notes(disks: &[&DiskImage]) -> Vec<String> {
    let mut notes = Vec::new();
    for disk in disks {
        if disk.logical_sector.bytes() != 512 {
            notes.push(format!(
                "disk {} has sectors of {} bytes: what uses the image must be told so (QEMU: logical_block_size={})",
                disk.number,
                disk.logical_sector.bytes(),
                disk.logical_sector.bytes()
            ));
        }
        let left_out = disk
            .regions
            .iter()
            .filter_map(|region| match &region.coverage {
                backup::manifest::Coverage::LeftOut { reason } => Some((region, reason)),
                _ => None,
            });
        for (region, reason) in left_out {
            notes.push(format!(
                "disk {}, {}: zeros, because nothing of it was saved ({reason})",
                disk.number,
                named(&region.kind)
            ));
        }
    }
    notes
}

fn named(kind: &RegionKind) -> String {
    match kind {
        RegionKind::Partition { number } => format!("partition {number}"),
        RegionKind::Gap => "outside the partitions".to_owned(),
        RegionKind::WholeDisk => "the whole disk".to_owned(),
    }
}

struct Work<'a> {
    store: &'a Store,
    export: &'a Export<'a>,
    progress: OnProgress<'a>,
    stop: &'a Stop,
    done: AtomicU64,
    total: u64,
}

impl Work<'_> {
    fn target(&self, disk: &DiskImage, home: &Path) -> Result<Target, ExchangeError> {
        let export = self.export;
        match export.format {
            Format::Raw => Target::raw(NewFile::new(home, export.force)?, disk.size),
            Format::Qcow2 => Target::qcow2(NewFile::new(home, export.force)?, disk.size),
            Format::Parts => {
                let title = format!("Disk {} of restore point {}", disk.number, export.id);
                let part = PartSize(export.part_mib);
                Parts::create(home, title, disk.size, part, export.force).map(Target::Parts)
            }
        }
    }

    /// Writes everything of a disk: the table, the regions, and what logical volumes have on it.
    fn write_disk(&self, disk: &DiskImage, to: &mut Target) -> Result<(), ExchangeError> {
        for region in &disk.regions {
            let place = named(&region.kind);
            let start = region.range.start();
            let content = (&region.content, region.range.len());
            self.write(content, (disk, &place), &mut |range, bytes| {
                to.write_at(start + range.start(), bytes)
            })?;
        }
        for volume in &self.export.manifest.logical_volumes {
            let here = volume.segments.iter().flat_map(|segment| &segment.areas);
            let disks: BTreeSet<_> = here.map(|area| area.disk).collect();
            if !disks.contains(&disk.number) {
                continue;
            }
            let place = format!("logical volume {}", volume.full_name());
            let mapping = volume.mapping();
            let mapping =
                mapping.map_err(|error| ExchangeError::Internal(format!("{place}: {error}")))?;
            let content = (&volume.content, mapping.size());
            self.write(content, (disk, &place), &mut |range, bytes| {
                write_mapped(&mapping, disk.number, range, bytes, to)
            })?;
        }
        let table = match &disk.table {
            PartitionTable::None => Ok(Vec::new()),
            PartitionTable::Gpt(table) => table
                .resized_for(disk.size, &[])
                .map_err(|error| error.to_string()),
            PartitionTable::Mbr(table) => table
                .resized_for(disk.size, None)
                .map_err(|error| error.to_string()),
        };
        let table = table.map_err(|reason| ExchangeError::Damaged {
            restore_point: self.export.id.clone(),
            place: format!("disk {}, its partition table", disk.number),
            reason,
        })?;
        for write in table {
            to.write_at(write.offset, &write.bytes.0)?;
        }
        Ok(())
    }

    fn write(
        &self,
        content: (&backup::manifest::ChunkListRef, u64),
        (disk, place): (&DiskImage, &str),
        put: &mut TakeChunk<'_, ExchangeError>,
    ) -> Result<(), ExchangeError> {
        let taken = read_content(self.store, self.export.id, content, &mut |range, bytes| {
            self.stop.check()?;
            put(range, bytes)?;
            let done = self.done.fetch_add(range.len(), Ordering::Relaxed) + range.len();
            (self.progress)(Progress {
                stage: "writing",
                done,
                total: self.total,
            });
            Ok(())
        });
        taken.map_err(|error| match error {
            ContentError::Taker(error) => error,
            ContentError::Store(error) => error.into(),
            ContentError::Damaged { at, reason } => ExchangeError::Damaged {
                restore_point: self.export.id.clone(),
                place: format!("disk {}, {place}, byte {at}", disk.number),
                reason,
            },
        })
    }
}

/// Writes what of a piece of a logical volume lies on this disk.
fn write_mapped(
    mapping: &Mapping,
    disk: u32,
    range: ByteRange,
    bytes: &[u8],
    to: &mut Target,
) -> Result<(), ExchangeError> {
    for place in mapping.places(range) {
        let area = mapping
            .on_disk(&place)
            .ok_or_else(|| ExchangeError::Internal("a logical volume lies nowhere".to_owned()))?;
        if area.disk == disk {
            let from = (place.volume.start() - range.start()) as usize;
            let part = &bytes[from..from + place.volume.len() as usize];
            to.write_at(area.range.start(), part)?;
        }
    }
    Ok(())
}
