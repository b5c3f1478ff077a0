//! The options of factory images.

use backup::manifest::ImageName;
use clap::{Args, Subcommand};

use super::options::{JobArgs, KeyArgs, ListArgs, PlacementArgs};

/// Options of `factory`.
#[derive(Debug, Args)]
pub(crate) struct FactoryArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: FactoryCommand,
}

/// What is done with factory images.
#[derive(Debug, Subcommand)]
pub(crate) enum FactoryCommand {
    /// Capture a machine as a factory image, or make one from a restore point
    Create(CreateArgs),
    /// List the factory images
    List(ListArgs),
}

/// Options of `factory create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The machine to capture: host name, Ethernet address, serial number or
    /// beginning of the id
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    pub(crate) machine: Option<String>,
    /// Make it from this restore point (id or its beginning); its data is not
    /// stored a second time
    #[arg(long, value_name = "RESTORE-POINT", conflicts_with_all = ["then", "watch", "unlock"])]
    pub(crate) from: Option<String>,
    /// What it is called: a letter, then letters, digits, dots, dashes and
    /// underscores; it can stand wherever an id can
    #[arg(long, value_parser = image_name)]
    pub(crate) name: Option<ImageName>,
    /// What it is, in a few words
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Encrypted volumes
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// The rest
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// Options of `reset`.
#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// Host name, Ethernet address, serial number or beginning of the id
    pub(crate) machine: String,
    /// Name of the factory image, its id or its beginning [default: the only
    /// one that there is]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// What is decided about it
    #[command(flatten)]
    pub(crate) choices: PlacementArgs,
    /// The rest
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

pub(super) fn image_name(text: &str) -> Result<ImageName, String> {
    ImageName::try_from(text.to_owned()).map_err(|error| error.to_string())
}
