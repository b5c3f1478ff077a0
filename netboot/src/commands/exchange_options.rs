//! The options of `import` and `export`.

use std::path::PathBuf;

use backup::manifest::{ImageName, RestorePointKind};
use clap::{Args, ValueEnum};

use super::factory_options::image_name;
use crate::exchange::{Format, ImageFormat, MAX_PART_MIB};

const HOW_IMPORTED: &str = "\
Reads raw, qcow2, VHD, VHDX and VMDK images; all but raw need qemu-utils. The
image is not changed. An image that continues another file (a snapshot, a
linked clone), or that is encrypted, is refused: make it whole first.
Works beside a running server and without one.

Exit codes: 0 the restore point is there; 1 there is none, for the reason
printed; 66 there is no store; 71 the disk refused.";

const HOW_EXPORTED: &str = "\
RESTORE-POINT is an id or its beginning, or `latest` with --machine.
A restore point with several disks is written into a folder, one file a disk,
unless --disk names one. Parts are a folder, too, with SHA256SUMS and a
README.txt that says how they are put together.
Every byte is checked against its digest. A file gets its name when it is
whole; when anything fails nothing is left of it.

Exit codes: 0 all is written; 1 nothing is, for the reason printed; 66 there
is no store; 71 the disk refused.";

/// Options of `import`.
#[derive(Debug, Args)]
#[command(after_help = HOW_IMPORTED)]
pub(crate) struct ImportArgs {
    /// The disk image; several are the disks of one machine
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The machine that it is of: one that is known (host name, Ethernet
    /// address, serial number or id) or a new name [default: the host name in
    /// the image, or the name of the file]
    #[arg(long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// What the restore point is for: `backup` of a machine, or a `factory`
    /// image to reset machines to
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value = "backup",
        hide_possible_values = true
    )]
    pub(crate) kind: PointKind,
    /// What a factory image is called: a letter, then letters, digits, dots,
    /// dashes and underscores; it can stand wherever an id can
    #[arg(long, value_parser = image_name)]
    pub(crate) name: Option<ImageName>,
    /// What a factory image is, in a few words
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// What the file is, when its first bytes do not tell: raw, qcow2, vhd,
    /// vhdx or vmdk
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) format: Option<ImageFormat>,
    /// Sector size of the disk: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
    pub(crate) sector: String,
    /// Architecture of the machine, if the image does not tell, as `uname -m`
    /// says it
    #[arg(long, value_name = "NAME")]
    pub(crate) architecture: Option<String>,
    /// Print a summary as JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a restore point is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PointKind {
    /// A machine as it was
    Backup,
    /// An image to reset machines to
    Factory,
}

impl From<PointKind> for RestorePointKind {
    fn from(kind: PointKind) -> Self {
        match kind {
            PointKind::Backup => Self::Backup,
            PointKind::Factory => Self::Factory,
        }
    }
}

/// Options of `export`.
#[derive(Debug, Args)]
#[command(after_help = HOW_EXPORTED)]
pub(crate) struct ExportArgs {
    /// Id of the restore point, its beginning, or `latest`
    pub(crate) restore_point: String,
    /// Where to: a file, or a folder for parts and for several disks
    pub(crate) file: PathBuf,
    /// What is written: `raw`, an image with holes; `qcow2`, which needs
    /// qemu-utils; `parts` of a raw image, for FAT32 [default: qcow2 when the
    /// file is called so, else raw]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) format: Option<Format>,
    /// Only this disk, by its number in the restore point
    #[arg(long, value_name = "NUMBER")]
    pub(crate) disk: Option<u32>,
    /// Size of parts in MiB
    #[arg(long, value_name = "MIB", default_value_t = MAX_PART_MIB,
          value_parser = clap::value_parser!(u64).range(1..=MAX_PART_MIB))]
    pub(crate) part_size: u64,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
    /// Whose `latest` is meant: name, id or its beginning
    #[arg(long, value_name = "MACHINE")]
    pub(crate) machine: Option<String>,
    /// Print a summary as JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}
