//! The options of `files`, `items` and of the catalogue's commands.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};

use crate::files::{ArchiveKind, OnClash, Spec};

const HOW_NAMED: &str = "\
RESTORE-POINT is an id or its beginning, the name of a factory image, or
`latest` with --machine. VOLUME is disk and partition as `files volumes`
lists them (0-2), the partition's number alone when there is one disk, a
logical volume (GROUP/VOLUME, or lvm-0 by number), or the label. Without it,
`RESTORE-POINT:/PATH`, the only volume with files is meant, EFI system
partitions not counted when there are others.

Exit codes: 0 all was done; 1 some could not be read or written, which was
said by name, or nothing could; 66 there is no store; 71 the disk refused.";

/// What to do with files.
#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// List the volumes of a restore point and whether their files can be read
    Volumes(VolumesArgs),
    /// List files and folders
    Ls(LsArgs),
    /// Take out files and folders, with all that is in them
    Get(GetArgs),
}

/// Options of `files`.
#[derive(Debug, Args)]
#[command(after_help = HOW_NAMED)]
pub(crate) struct FilesArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: FilesCommand,
}

/// Options of `files volumes`.
#[derive(Debug, Args)]
pub(crate) struct VolumesArgs {
    /// Id of the restore point, its beginning, or `latest`
    pub(crate) restore_point: String,
    /// Whose `latest` is meant: name, id or its beginning
    #[arg(long)]
    pub(crate) machine: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `items` and `show`.
pub(crate) type ItemsArgs = VolumesArgs;

/// Options of `files ls`.
#[derive(Debug, Args)]
#[command(after_help = HOW_NAMED)]
pub(crate) struct LsArgs {
    /// A folder or file
    #[arg(value_name = "RESTORE-POINT:VOLUME/PATH", value_parser = spec())]
    pub(crate) what: Spec,
    /// Also what is in the folders
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// Whose `latest` is meant: name, id or its beginning
    #[arg(long)]
    pub(crate) machine: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `files get`.
#[derive(Debug, Args)]
#[command(after_help = HOW_NAMED)]
pub(crate) struct GetArgs {
    /// Files and folders of one volume
    #[arg(value_name = "RESTORE-POINT:VOLUME/PATH", required = true, value_parser = spec())]
    pub(crate) what: Vec<Spec>,
    /// Write them into this folder [default: the current one]
    #[arg(long, value_name = "FOLDER", conflicts_with = "archive")]
    pub(crate) to: Option<PathBuf>,
    /// Write them into an archive: .tar, .tar.gz, .tar.zst or .zip; `-` is a
    /// tar to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
    /// Which archive it is, when its name does not say
    #[arg(long, value_enum, value_name = "KIND", requires = "archive")]
    pub(crate) format: Option<ArchiveKind>,
    /// What happens to what is there already [default: nothing is written and
    /// the names are listed]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_clash: Option<OnClash>,
    /// Whose `latest` is meant: name, id or its beginning
    #[arg(long)]
    pub(crate) machine: Option<String>,
    /// Print a summary as JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Id of the older restore point, its beginning, or `latest`
    pub(crate) a: String,
    /// Id of the newer restore point, its beginning, or `latest`
    pub(crate) b: String,
    /// Compare the files, too, and list all that differ
    #[arg(long)]
    pub(crate) files: bool,
    /// Whose `latest` is meant: name, id or its beginning
    #[arg(long)]
    pub(crate) machine: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `versions`.
#[derive(Debug, Args)]
pub(crate) struct VersionsArgs {
    /// Name of the machine, its id or the beginning of it
    pub(crate) machine: String,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

fn spec() -> impl TypedValueParser<Value = Spec> {
    OsStringValueParser::new().try_map(|text: OsString| Spec::parse(OsStr::new(&text)))
}
