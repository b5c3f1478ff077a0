//! Disk images of the lab: sparse raw files, and what the reference tools say about them.
//!
//! Partition tables are written and read by `sfdisk`, not by the product's own code: it is the oracle.

use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thiserror::Error;

use super::tool::{self, ToolError};

/// Unit in which zeros are looked for when copying, bytes.
const PIECE: usize = 256 << 10;

/// A disk image could not be made or read.
#[derive(Debug, Error)]
pub(crate) enum DiskError {
    /// The file failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A tool's answer made no sense.
    #[error("sfdisk's description of {path} is not understood")]
    Table {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

/// A partition as `sfdisk` sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Partition {
    /// First sector.
    pub(crate) start: u64,
    /// Length, sectors.
    pub(crate) size: u64,
    /// Type GUID.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Partition GUID.
    pub(crate) uuid: Option<String>,
}

/// A partition table as `sfdisk` sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Table {
    /// `gpt` or `dos`.
    pub(crate) label: String,
    /// Disk GUID.
    pub(crate) id: String,
    /// Last usable sector.
    pub(crate) lastlba: Option<u64>,
    /// Bytes in a sector.
    pub(crate) sectorsize: u64,
    /// Partitions in order of their number.
    #[serde(default)]
    pub(crate) partitions: Vec<Partition>,
}

#[derive(Debug, Deserialize)]
struct Description {
    partitiontable: Table,
}

/// Makes an empty sparse image.
pub(crate) fn create_empty(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let error = |source| DiskError::Io {
        what: "create",
        path: path.to_owned(),
        source,
    };
    File::create(path)
        .and_then(|file| file.set_len(bytes))
        .map_err(error)
}

/// Copies an image, keeping it sparse.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), DiskError> {
    let mut command = Command::new("cp");
    command
        .args(["--sparse=always", "--reflink=auto"])
        .arg(from)
        .arg(to);
    tool::run(&mut command)?;
    Ok(())
}

/// Writes a file into an image at `offset` bytes, leaving out its zeros: the image is new there.
pub(crate) fn write_sparse_at(image: &Path, offset: u64, content: &Path) -> Result<(), DiskError> {
    let error = |what, path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::Io { what, path, source }
    };
    let mut from = File::open(content).map_err(error("open", content))?;
    let mut to = OpenOptions::new()
        .write(true)
        .open(image)
        .map_err(error("open", image))?;
    let mut buffer = vec![0; PIECE];
    let mut position = offset;
    loop {
        let length = from.read(&mut buffer).map_err(error("read", content))?;
        if length == 0 {
            return Ok(());
        }
        if buffer[..length].iter().any(|&byte| byte != 0) {
            to.seek(SeekFrom::Start(position))
                .map_err(error("seek in", image))?;
            to.write_all(&buffer[..length])
                .map_err(error("write", image))?;
        }
        position += length as u64;
    }
}

/// Writes a partition table that is described in sfdisk's own language.
pub(crate) fn partition(image: &Path, script: &str) -> Result<(), DiskError> {
    let mut command = Command::new("sfdisk");
    command
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(image)
        .stdin(Stdio::piped());
    tool::run_with_input(&mut command, script.as_bytes())?;
    Ok(())
}

/// Reads a partition table; an error when there is none.
pub(crate) fn table(image: &Path) -> Result<Table, DiskError> {
    let said = tool::run(Command::new("sfdisk").arg("--json").arg(image))?;
    parse_table(image, &said)
}

/// What `sfdisk --json` said of the disk in `image`.
pub(crate) fn parse_table(image: &Path, said: &str) -> Result<Table, DiskError> {
    let description: Result<Description, _> = serde_json::from_str(said);
    description
        .map(|description| description.partitiontable)
        .map_err(|source| DiskError::Table {
            path: image.to_owned(),
            source,
        })
}

/// What `sfdisk --verify` finds wrong with a partition table; empty when nothing.
pub(crate) fn verify_table(image: &Path) -> Result<String, DiskError> {
    let said = tool::run(Command::new("sfdisk").arg("--verify").arg(image))?;
    Ok(if said.contains("No errors detected") {
        String::new()
    } else {
        said
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_table_is_read_back_and_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk");
        create_empty(&image, 16 << 20).unwrap();
        assert!(table(&image).is_err());
        partition(&image, "label: gpt\nstart=2048, size=2048\n").unwrap();
        let table = table(&image).unwrap();
        assert_eq!((table.label.as_str(), table.sectorsize), ("gpt", 512));
        assert_eq!(
            (table.partitions[0].start, table.partitions[0].size),
            (2048, 2048)
        );
        assert_eq!(verify_table(&image).unwrap(), "");
    }

    #[test]
    fn content_lands_at_its_offset_and_zeros_stay_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (image, content) = (folder.path().join("disk"), folder.path().join("content"));
        create_empty(&image, 4 << 20).unwrap();
        let mut bytes = vec![0; 2 * PIECE];
        bytes[2 * PIECE - 1] = 7;
        std::fs::write(&content, &bytes).unwrap();
        write_sparse_at(&image, 1 << 20, &content).unwrap();
        let written = std::fs::read(&image).unwrap();
        assert_eq!(&written[1 << 20..(1 << 20) + 2 * PIECE], &bytes[..]);
        assert_eq!(written.len(), 4 << 20);
    }
}
