//! The volumes of a restore point: how they are named, and which have files.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use backup::filesystem::tree::{self, FileTree, TreeError};
use backup::layout;
use backup::lvm::Segment;
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, LogicalVolume, Manifest, Region, RegionKind, RestorePointId,
};
use backup::units::HumanBytes;
use serde::Serialize;

use super::name::shown;
use super::{FilesError, Spec};
use crate::store::Store;
use crate::store::volume_reader::RegionReader;

/// A volume for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct VolumeView {
    /// `disk-partition`, or the disk's number alone when it has no partition table; a logical volume's
    /// group and name, `group/name`.
    pub(crate) volume: String,
    /// The disk's number; a logical volume has none.
    pub(crate) disk: Option<u32>,
    /// A logical volume's number in the restore point.
    pub(crate) logical_volume: Option<usize>,
    /// The partition's number.
    pub(crate) partition: Option<u32>,
    /// The file system.
    pub(crate) file_system: Option<String>,
    /// Its label.
    pub(crate) label: Option<String>,
    /// Its UUID or serial.
    pub(crate) uuid: Option<String>,
    /// Bytes of its place on the disk.
    pub(crate) size: u64,
    /// Bytes in use, when the file system says.
    pub(crate) used: Option<u64>,
    /// Bytes of data that were saved.
    pub(crate) saved: u64,
    /// What of it was saved, in words.
    pub(crate) coverage: String,
    /// Whether it is an EFI system partition.
    pub(crate) esp: bool,
    /// Whether `files ls` and `files get` work on it.
    pub(crate) readable: bool,
    /// Why not.
    pub(crate) reason: Option<String>,
}

/// A volume whose files can be read.
pub(crate) struct OpenVolume {
    /// Its number.
    pub(crate) volume: String,
    /// Its files.
    pub(crate) tree: Box<dyn FileTree>,
    /// Bytes that were read and not saved, see [`RegionReader::unsaved_bytes`].
    pub(crate) unsaved: Arc<AtomicU64>,
}

/// All volumes of a restore point. Each is opened to see whether its files can be read.
pub(crate) fn view_all(
    store: &Store,
    id: &RestorePointId,
    manifest: &Manifest,
) -> Result<Vec<VolumeView>, FilesError> {
    let mut views = Vec::new();
    for (mut view, saved) in list(manifest) {
        let opened = open_saved(store, id, &saved, &view.volume)?;
        view.readable = opened.is_ok();
        view.reason = opened.err().map(|error| error.to_string());
        views.push(view);
    }
    Ok(views)
}

/// All volumes as the manifest tells them, without looking into one.
pub(super) fn list(manifest: &Manifest) -> Vec<(VolumeView, Saved<'_>)> {
    let regions = manifest
        .disks
        .iter()
        .flat_map(|disk| disk.regions.iter().map(move |region| (disk, region)));
    let regions = regions.filter_map(|(disk, region)| {
        let saved = Saved {
            content: &region.content,
            size: region.range.len(),
            coverage: &region.coverage,
        };
        Some((view(disk, region)?, saved))
    });
    let volumes = manifest.logical_volumes.iter().enumerate();
    regions
        .chain(volumes.map(|(number, volume)| logical(number, volume)))
        .collect()
}

/// What was saved of a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved<'a> {
    /// Its chunk list.
    pub(super) content: &'a ChunkListRef,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Which of its bytes.
    coverage: &'a Coverage,
}

fn logical(number: usize, volume: &LogicalVolume) -> (VolumeView, Saved<'_>) {
    // A size that does not fit was refused by the manifest's reader.
    let sizes = volume.segments.iter().filter_map(Segment::size);
    let size = sizes.fold(0, u64::saturating_add);
    let inner = volume.volume.as_ref();
    let view = VolumeView {
        volume: volume.full_name(),
        disk: None,
        logical_volume: Some(number),
        partition: None,
        file_system: inner.map(|inner| inner.file_system.to_string()),
        label: inner.and_then(|inner| inner.label.clone()),
        uuid: inner.and_then(|inner| inner.uuid.clone()),
        size,
        used: inner.and_then(|inner| inner.used),
        saved: volume.content.data_bytes,
        coverage: coverage(&volume.coverage),
        esp: false,
        readable: false,
        reason: None,
    };
    let saved = Saved {
        content: &volume.content,
        size,
        coverage: &volume.coverage,
    };
    (view, saved)
}

fn view(disk: &DiskImage, region: &Region) -> Option<VolumeView> {
    let partition = match region.kind {
        RegionKind::Partition { number } => Some(number),
        RegionKind::WholeDisk => None,
        RegionKind::Gap => return None,
    };
    let table = layout::partitions_of(&disk.table).unwrap_or_default();
    let volume = region.volume.as_ref();
    Some(VolumeView {
        volume: match partition {
            Some(number) => format!("{}-{number}", disk.number),
            None => disk.number.to_string(),
        },
        disk: Some(disk.number),
        logical_volume: None,
        partition,
        file_system: volume.map(|volume| volume.file_system.to_string()),
        label: volume.and_then(|volume| volume.label.clone()),
        uuid: volume.and_then(|volume| volume.uuid.clone()),
        size: region.range.len(),
        used: volume.and_then(|volume| volume.used),
        saved: region.content.data_bytes,
        coverage: coverage(&region.coverage),
        esp: table
            .iter()
            .any(|entry| entry.esp && Some(entry.number) == partition),
        readable: false,
        reason: None,
    })
}

/// What was saved, in words.
pub(crate) fn coverage(coverage: &Coverage) -> String {
    match coverage {
        Coverage::UsedBlocks => "used blocks".to_owned(),
        Coverage::Whole { reason } => format!("whole: {reason}"),
        Coverage::LeftOut { reason } => format!("left out: {reason}"),
    }
}

fn open_saved(
    store: &Store,
    id: &RestorePointId,
    saved: &Saved<'_>,
    volume: &str,
) -> Result<Result<OpenVolume, TreeError>, FilesError> {
    if let Coverage::LeftOut { reason } = saved.coverage {
        return Ok(Err(TreeError::Unsupported(format!(
            "what was left out of the backup ({reason})"
        ))));
    }
    let reader = RegionReader::open(store, id, (&saved.content.digest, saved.size))?;
    let unsaved = reader.unsaved_bytes();
    let opened = tree::open(Arc::new(reader), saved.size);
    Ok(opened.map(|tree| OpenVolume {
        volume: volume.to_owned(),
        tree,
        unsaved,
    }))
}

/// Opens a volume by its number (`0-2`), its partition's number when there is one disk, a logical volume's
/// `group/name` or number (`lvm-0`), or its label in any case of letters. Without a name: the only one with files, EFI system partitions not counted if there are
/// others.
///
/// # Errors
/// [`FilesError::Volume`] when none or several are meant, [`FilesError::Unreadable`].
pub(crate) fn open(
    store: &Store,
    id: &RestorePointId,
    manifest: &Manifest,
    name: Option<&[u8]>,
) -> Result<OpenVolume, FilesError> {
    let all = list(manifest);
    let Some(name) = name else {
        return only_one(store, id, &all);
    };
    match &meant(manifest, &all, name)[..] {
        [(view, saved)] => {
            open_saved(store, id, saved, &view.volume)?.map_err(|source| FilesError::Unreadable {
                volume: view.volume.clone(),
                source,
            })
        }
        [] => Err(FilesError::Volume(format!(
            "restore point {id} has no volume `{}`; it has: {}",
            shown(name),
            names(all.iter().map(|(view, _)| view))
        ))),
        several => Err(FilesError::Volume(format!(
            "`{}` is the label of several volumes: {}",
            shown(name),
            names(several.iter().map(|(view, _)| view))
        ))),
    }
}

/// The volumes that a name means: by number, or else by label.
fn meant<'a, 'b>(
    manifest: &Manifest,
    all: &'a [(VolumeView, Saved<'b>)],
    name: &[u8],
) -> Vec<&'a (VolumeView, Saved<'b>)> {
    let text = String::from_utf8_lossy(name).into_owned();
    let one_disk = manifest.disks.len() == 1;
    let by_number = |view: &VolumeView| {
        let partition = view.partition.filter(|_| one_disk);
        let logical = view.logical_volume.map(|number| format!("lvm-{number}"));
        view.volume == text
            || partition.is_some_and(|number| number.to_string() == text)
            || logical.is_some_and(|number| number == text)
    };
    let by_label = |view: &VolumeView| {
        let label = view.label.as_ref();
        label.is_some_and(|label| label.to_lowercase() == text.to_lowercase())
    };
    let found: Vec<_> = all.iter().filter(|(view, _)| by_number(view)).collect();
    if !found.is_empty() {
        return found;
    }
    all.iter().filter(|(view, _)| by_label(view)).collect()
}

/// What an argument means in this restore point: `vg/root/etc` is `etc` in the logical volume `vg/root`,
/// when there is one.
///
/// # Errors
/// [`FilesError::Volume`] when `vg` is the name of another volume as well.
pub(crate) fn place(manifest: &Manifest, spec: &Spec) -> Result<Place, FilesError> {
    let as_said = || Place {
        volume: spec.volume.clone(),
        path: spec.path.clone(),
    };
    let Some(group) = &spec.volume else {
        return Ok(as_said());
    };
    let mut parts = spec.path.splitn(2, |byte| *byte == b'/');
    let name = parts.next().unwrap_or_default();
    let path = parts.next().unwrap_or_default();
    let full = [group, &b"/"[..], name].concat();
    let mut volumes = manifest.logical_volumes.iter().enumerate();
    let found = volumes.find(|(_, volume)| volume.full_name().as_bytes() == full);
    let Some((number, _)) = found else {
        return Ok(as_said());
    };
    let all = list(manifest);
    if let Some((other, _)) = meant(manifest, &all, group).first() {
        return Err(FilesError::Volume(format!(
            "`{}` is a logical volume, and `{}` is the name of volume {}: say `lvm-{number}` for the one, `{}` for the other",
            shown(&full),
            shown(group),
            other.volume,
            other
                .logical_volume
                .map_or_else(|| other.volume.clone(), |number| format!("lvm-{number}")),
        )));
    }
    Ok(Place {
        volume: Some(full),
        path: path.to_vec(),
    })
}

/// A volume and a path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The volume, when named.
    pub(crate) volume: Option<Vec<u8>>,
    /// The path from its top.
    pub(crate) path: Vec<u8>,
}

fn only_one(
    store: &Store,
    id: &RestorePointId,
    all: &[(VolumeView, Saved<'_>)],
) -> Result<OpenVolume, FilesError> {
    let mut opened = Vec::new();
    for (view, saved) in all {
        if let Ok(volume) = open_saved(store, id, saved, &view.volume)? {
            opened.push((view, volume));
        }
    }
    if opened.iter().any(|(view, _)| !view.esp) {
        opened.retain(|(view, _)| !view.esp);
    }
    if opened.len() > 1 {
        return Err(FilesError::Volume(format!(
            "restore point {id} has several volumes with files; name one: {}",
            names(opened.iter().map(|(view, _)| *view))
        )));
    }
    opened
        .pop()
        .map(|(_, volume)| volume)
        .ok_or_else(|| {
            FilesError::Volume(format!(
                "restore point {id} has no volume whose files can be read (`netboot files volumes {id}` says why)"
            ))
        })
}

fn names<'a>(views: impl Iterator<Item = &'a VolumeView>) -> String {
    let words: Vec<_> = views
        .map(|view| {
            let mut words = view.volume.clone();
            let kind = view.file_system.as_deref().unwrap_or("unknown");
            words.push_str(&format!(" ({kind}, {}", HumanBytes(view.size)));
            if let Some(label) = &view.label {
                words.push_str(&format!(", {}", shown(label.as_bytes())));
            }
            words.push(')');
            words
        })
        .collect();
    words.join(", ")
}
