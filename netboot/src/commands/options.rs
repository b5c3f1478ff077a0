//! The options of the operators' commands.

use std::path::PathBuf;

use backup::identity::{HostName, Identity};
use backup::plan::mapping::VolumeChoice;
use backup::plan::{Choices, DiskChoice, ExtraSpace, FirmwareChoice};
use clap::{Args, Subcommand, ValueEnum};
use protocol::api::NextBoot;
use protocol::unlock::VolumePlace;

use super::exchange_options::{ExportArgs, ImportArgs};
use super::factory_options::{FactoryArgs, ResetArgs};
use super::file_options::{CompareArgs, FilesArgs, ItemsArgs, VersionsArgs};
use super::upkeep_options::{GcArgs, PruneArgs, RestorePointArgs};

/// What operators do.
#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// List the machines that are or were in the recovery environment
    Machines(ListArgs),
    /// List the restore points
    RestorePoints(ListArgs),
    /// List the jobs
    Jobs(ListArgs),
    /// Show what a machine did while it booted, and where it stopped; without
    /// a machine, list all that asked
    Timeline(TimelineArgs),
    /// Show or set what a machine boots next time
    NextBoot(NextBootArgs),
    /// List which firmware gets which loader, and which of them are there
    Loaders(ListArgs),
    /// Save a machine's disks as a new restore point
    Capture(CaptureArgs),
    /// Show what a restore would do, as a picture of both disks and a table;
    /// nothing is started
    Plan(PlanArgs),
    /// Rebuild a machine from a backup; overwrites its disks
    Restore(RestoreArgs),
    /// Reset a machine to a factory image; overwrites its disks
    Reset(ResetArgs),
    /// Make and list factory images, which any machine can be reset to
    Factory(FactoryArgs),
    /// Take back a job that is not over
    Cancel {
        /// The job's id or its beginning
        job: String,
        /// How it is printed
        #[command(flatten)]
        list: ListArgs,
    },
    /// Read the store back and compare every chunk with its digest
    Verify(VerifyArgs),
    /// List the restore points of a machine
    Versions(VersionsArgs),
    /// Show what is in a restore point
    Show(ItemsArgs),
    /// Show what differs between two restore points
    Compare(CompareArgs),
    /// List what can be recovered from a restore point
    Items(ItemsArgs),
    /// Browse the files in a restore point and take them out
    Files(FilesArgs),
    /// Make a restore point of a disk image: raw, qcow2, VHD, VHDX or VMDK
    Import(ImportArgs),
    /// Write the disks of a restore point as image files
    Export(ExportArgs),
    /// Show how much is in the store, and what each restore point alone takes
    Store(ListArgs),
    /// Free what no restore point and no running capture needs
    Gc(GcArgs),
    /// Remove restore points that no rule keeps; pinned ones, factory images
    /// and each machine's newest backup stay
    Prune(PruneArgs),
    /// Remove one restore point
    Forget(RestorePointArgs),
    /// Keep a restore point, whatever the rules say
    Pin(RestorePointArgs),
    /// Take a pin back
    Unpin(RestorePointArgs),
}

/// How something is printed.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `timeline`.
#[derive(Debug, Args)]
pub(crate) struct TimelineArgs {
    /// Host name, Ethernet address, serial number or beginning of the id;
    /// without it, every machine that asked, also those never recovered
    pub(crate) machine: Option<String>,
    /// Print JSON for programs: all boots
    #[arg(long)]
    pub(crate) json: bool,
    /// Show so many boots, the last ones
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub(crate) boots: usize,
    /// Draw the same as a picture into a file
    #[arg(long, value_name = "FILE", requires = "machine")]
    pub(crate) svg: Option<PathBuf>,
}

/// Options of `next-boot`.
#[derive(Debug, Args)]
pub(crate) struct NextBootArgs {
    /// Host name, Ethernet address (of an unknown machine, too), serial
    /// number or beginning of the id
    pub(crate) machine: String,
    /// What it boots next; without it, what is set is shown
    #[arg(value_enum, value_name = "WHAT")]
    pub(crate) what: Option<WhatNext>,
    /// Every time, until it is set back to `default`
    #[arg(long, requires = "what")]
    pub(crate) always: bool,
    /// How it is printed
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

/// What a machine boots next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhatNext {
    /// The recovery environment
    Recovery,
    /// Its local disk
    LocalDisk,
    /// The menu
    Menu,
    /// What the server decides
    Default,
}

impl WhatNext {
    /// `None` for what the server decides.
    pub(crate) fn next_boot(self) -> Option<NextBoot> {
        match self {
            Self::Recovery => Some(NextBoot::Recovery),
            Self::LocalDisk => Some(NextBoot::LocalDisk),
            Self::Menu => Some(NextBoot::Menu),
            Self::Default => None,
        }
    }
}

/// What a machine does after a job that went well.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Afterwards {
    /// Start again
    #[default]
    Reboot,
    /// Switch off
    PowerOff,
    /// Stay in the recovery environment
    Wait,
}

impl From<Afterwards> for protocol::job::Afterwards {
    fn from(chosen: Afterwards) -> Self {
        match chosen {
            Afterwards::Reboot => Self::Reboot,
            Afterwards::PowerOff => Self::PowerOff,
            Afterwards::Wait => Self::Wait,
        }
    }
}

/// What all new jobs have.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// What the machine does afterwards
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub(crate) then: Afterwards,
    /// Show the progress and wait for the end
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print JSON for programs: the job; with --watch a line for each change
    #[arg(long)]
    pub(crate) json: bool,
}

/// Encrypted volumes that a capture opens.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// Open an encrypted volume (LUKS, BitLocker) and save it plain: serial
    /// number, WWN or kernel name of its disk, its partition, and a file with
    /// its pass phrase, key or recovery password; `-` asks for it or reads
    /// standard input. DISK=FILE for a disk without partitions; may be
    /// repeated. The key goes to the machine over the network in the clear
    #[arg(long, value_name = "DISK:PARTITION=FILE", value_parser = unlock)]
    pub(crate) unlock: Vec<Unlock>,
}

/// Options of `capture`.
#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {
    /// Host name, Ethernet address, serial number or beginning of the id
    pub(crate) machine: String,
    /// Encrypted volumes
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// The rest
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// An encrypted volume, and where its key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unlock {
    /// The volume.
    pub(crate) place: VolumePlace,
    /// The file with its key; `-` for standard input.
    pub(crate) file: PathBuf,
}

fn unlock(text: &str) -> Result<Unlock, String> {
    let (place, file) = VolumePlace::parse(text).map_err(|error| error.to_string())?;
    let file = PathBuf::from(file);
    Ok(Unlock { place, file })
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Host name, Ethernet address, serial number or beginning of the id
    pub(crate) machine: String,
    /// Id of the restore point, its beginning, or `latest` of this machine
    pub(crate) restore_point: String,
    /// What is decided about it
    #[command(flatten)]
    pub(crate) choices: PlacementArgs,
    /// The rest
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// What a person decides about a restore.
#[derive(Debug, Args)]
pub(crate) struct PlacementArgs {
    /// Where a disk goes: its number in the restore point, and serial
    /// number, WWN or kernel name of a disk of the machine; may be repeated
    #[arg(long, value_name = "SOURCE=TARGET", value_parser = disk_choice)]
    pub(crate) disk: Vec<DiskChoice>,
    /// Restore only this volume, onto a partition that is there: disk number
    /// and partition in the restore point, disk and partition of the machine
    /// (0:2=sda:3); or leave it out (0:2=none). May be repeated
    #[arg(long, value_name = "DISK:PARTITION=DISK:PARTITION")]
    pub(crate) volume: Vec<VolumeChoice>,
    /// Who gets what a larger disk has more
    #[arg(long, value_enum, value_name = "WHO", default_value_t)]
    pub(crate) extra_space: WhoGrows,
    /// Restore a backup of the other type of firmware (BIOS, UEFI) all the
    /// same; it starts only on a machine of its own type
    #[arg(long)]
    pub(crate) insist: bool,
    /// Convert a Linux to start by the machine's type of firmware (BIOS to
    /// UEFI or back): partition table, boot loader, boot entry; `plan` shows
    /// it
    #[arg(long, conflicts_with = "insist")]
    pub(crate) convert_firmware: bool,
    /// Whose identity the machine has afterwards: machine id, SSH host keys,
    /// name, ids of disks and volumes [default: kept; a reset: new]
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub(crate) identity: Option<WhoseIdentity>,
    /// What the machine is called with a new identity [default: as the server
    /// knows it, else the image's name and the end of its Ethernet address]
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub(crate) hostname: Option<HostName>,
}

impl PlacementArgs {
    /// The planner's form.
    pub(crate) fn choices(&self) -> Choices {
        Choices {
            disks: self.disk.clone(),
            volumes: self.volume.clone(),
            extra_space: match self.extra_space {
                WhoGrows::Last => ExtraSpace::Last,
                WhoGrows::Proportional => ExtraSpace::Proportional,
                WhoGrows::None => ExtraSpace::None,
            },
            firmware: if self.insist {
                FirmwareChoice::Insist
            } else if self.convert_firmware {
                FirmwareChoice::Convert
            } else {
                FirmwareChoice::Same
            },
            identity: self.identity.map(|identity| match identity {
                WhoseIdentity::Kept => Identity::Kept,
                WhoseIdentity::New => Identity::New,
            }),
            host_name: self.hostname.clone(),
        }
    }
}

/// Whose identity a machine has after a restore.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum WhoseIdentity {
    /// That of the machine that was captured
    Kept,
    /// One of its own
    New,
}

fn host_name(text: &str) -> Result<HostName, String> {
    HostName::try_from(text.to_owned()).map_err(|error| error.to_string())
}

/// Who gets what a larger disk has more.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum WhoGrows {
    /// The last partition
    #[default]
    Last,
    /// All that can grow, by their sizes; those behind them move
    Proportional,
    /// Nobody; it stays free
    None,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Host name, Ethernet address, serial number or beginning of the id
    pub(crate) machine: String,
    /// Id of the restore point, its beginning, or `latest` of this machine
    pub(crate) restore_point: String,
    /// What is decided about it
    #[command(flatten)]
    pub(crate) choices: PlacementArgs,
    /// Print JSON for programs: the plan or the refusals, and the picture
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Read only this share of the chunks, in percent (1 to 100), spread
    /// evenly
    #[arg(long, value_name = "PERCENT", default_value = "100", value_parser = percent)]
    pub(crate) sample: u8,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse() {
        Ok(share @ 1..=100) => Ok(share),
        _ => Err("expected a whole number from 1 to 100, with or without %".to_owned()),
    }
}

fn disk_choice(text: &str) -> Result<DiskChoice, String> {
    let expected = || "expected NUMBER=DISK, for example 0=sda".to_owned();
    let (source, target) = text.split_once('=').ok_or_else(expected)?;
    let source = source.parse().map_err(|_| expected())?;
    if target.is_empty() {
        return Err(expected());
    }
    Ok(DiskChoice {
        source,
        target: target.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_choice_names_a_number_and_a_disk() {
        let choice = disk_choice("1=WD-ABC=1").unwrap();
        assert_eq!((choice.source, choice.target.as_str()), (1, "WD-ABC=1"));
        for text in ["sda", "x=sda", "0=", "-1=sda", ""] {
            assert!(disk_choice(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sample_is_a_percentage() {
        assert_eq!(percent("5%"), Ok(5));
        assert_eq!(percent("100"), Ok(100));
        for text in ["0", "101", "-1", "%", "x"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
