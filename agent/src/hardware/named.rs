//! Disks that a person named: block devices of the running system, or image files taken for disks.
//!
//! Invariant: only what was named is a disk of the machine; nothing else is looked at. What is *not*
//! here: whether it may be read ([`crate::running`]).

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use backup::SectorSize;
use backup::hardware::{Disk, ExistingPartition};
use backup::layout::{LayoutRegion, survey_disk};
use backup::manifest::RegionKind;

use super::disks;
use crate::device::{Access, BlockDevice, Device, DiskReader};

/// A disk as it was named on the command line: `PATH` or `PATH:4096`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedDisk {
    /// The node or the file, without links.
    pub(crate) path: PathBuf,
    /// Its sector size, when it is an image file; a block device has its own.
    pub(crate) image: Option<SectorSize>,
}

/// Why something is not a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamedDiskError {
    /// It cannot be looked at.
    #[error("--disk {named}: it cannot be opened")]
    Open {
        /// As it was named.
        named: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A sector size for a block device, or one that does not exist.
    #[error("--disk {named}: {reason}")]
    Wrong {
        /// As it was named.
        named: String,
        /// What is wrong.
        reason: String,
    },
}

impl NamedDisk {
    /// Reads `PATH` or `PATH:SECTOR`.
    ///
    /// # Errors
    /// [`NamedDiskError`] when there is no disk or file of this name.
    pub(crate) fn parse(named: &str) -> Result<Self, NamedDiskError> {
        let wrong = |reason: String| NamedDiskError::Wrong {
            named: named.to_owned(),
            reason,
        };
        let (path, sector) = match named.rsplit_once(':') {
            Some((path, "512")) => (path, Some(SectorSize::S512)),
            Some((path, "4096")) => (path, Some(SectorSize::S4096)),
            _ => (named, None),
        };
        let open = |source| NamedDiskError::Open {
            named: named.to_owned(),
            source,
        };
        let path = fs::canonicalize(path).map_err(open)?;
        let kind = fs::metadata(&path).map_err(open)?.file_type();
        let image = match (kind.is_block_device(), kind.is_file(), sector) {
            (true, _, None) => None,
            (true, _, Some(_)) => {
                return Err(wrong("a block device has its own sector size".to_owned()));
            }
            (_, true, sector) => Some(sector.unwrap_or(SectorSize::S512)),
            _ => return Err(wrong("neither a block device nor a file".to_owned())),
        };
        if path.to_str().is_none() {
            return Err(wrong("its path is no text".to_owned()));
        }
        Ok(Self { path, image })
    }

    /// The disk as an inventory has it: a block device by its kernel name, an image by its path.
    pub(crate) fn disk(&self, sysfs: &Path) -> Option<Disk> {
        let Some(logical_sector) = self.image else {
            return disks::block_device(sysfs, self.path.strip_prefix("/dev").ok()?.to_str()?);
        };
        let metadata = fs::metadata(&self.path).ok()?;
        let sector = logical_sector.bytes();
        Some(Disk {
            name: self.path.to_str()?.to_owned(),
            model: Some("image file".to_owned()),
            serial: None,
            wwn: None,
            size: metadata.len() - metadata.len() % sector,
            logical_sector,
            physical_sector: u32::try_from(sector).unwrap_or(512),
            removable: false,
            read_only: metadata.permissions().readonly(),
            partitions: partitions(&self.path, logical_sector),
        })
    }
}

/// The partitions of an image; none when it has no table that can be read.
fn partitions(path: &Path, sector: SectorSize) -> Vec<ExistingPartition> {
    let Ok(image) = Device::open_image(path, Access::Read, sector) else {
        return Vec::new();
    };
    let regions = survey_disk(&DiskReader(&image), image.size(), sector)
        .map_or_else(|_| Vec::new(), |layout| layout.regions);
    let partition = |region: LayoutRegion| match region.kind {
        RegionKind::Partition { number } => Some(ExistingPartition {
            number,
            range: region.range,
        }),
        _ => None,
    };
    let mut found: Vec<_> = regions.into_iter().filter_map(partition).collect();
    found.sort_by_key(|partition| partition.number);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_disk_of_whole_sectors() {
        let folder = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(folder.path()).unwrap().join("image");
        fs::write(&path, vec![0; 10_000]).unwrap();
        let name = path.to_str().unwrap();
        for (named, sector, size) in [
            (name.to_owned(), 512, 9728),
            (format!("{name}:512"), 512, 9728),
            (format!("{name}:4096"), 4096, 8192),
        ] {
            let disk = NamedDisk::parse(&named).unwrap();
            let disk = disk.disk(Path::new("/nowhere")).unwrap();
            assert_eq!((disk.name.as_str(), disk.size), (name, size));
            assert_eq!(disk.logical_sector.bytes(), sector);
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        for named in [name, "/nowhere/at-all", "/dev/null", "/dev/null:4096"] {
            let error = NamedDisk::parse(named).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
