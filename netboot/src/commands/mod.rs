//! The operators' commands: what they print and what they end with.
//!
//! Commands about machines and jobs ask the running server through its control socket. `verify`, `files` and
//! the catalogue read the store itself; `verify` tells the server what is damaged. Upkeep of the store also works
//! without a server, under the data directory's lock. What people read goes to standard output in tables, what
//! programs read (`--json`) as JSON; what is only said goes to standard error.

mod booting;
mod catalogue;
mod exchange;
mod exchange_options;
mod factory;
mod factory_options;
mod file_options;
mod files;
mod keys;
mod lists;
mod options;
mod plan;
mod start;
mod table;
mod timeline;
mod upkeep;
mod upkeep_options;
mod verify;
mod watch;

use std::path::PathBuf;

pub(crate) use options::OperatorCommand;

use crate::cli::ExitCode;
use crate::control_client::{ClientError, ControlClient};
use crate::exchange::ExchangeError;
use crate::factory::FactoryError;
use crate::files::FilesError;
use crate::http::RecoveryError;
use crate::store::{Store, StoreError};
use crate::upkeep::UpkeepError;
use keys::KeyError;
use protocol::upkeep::RetentionRules;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The server did not answer, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no store.
    #[error(
        "there is no store in the data directory {}: name the server's data directory with --data-dir",
        .0.display()
    )]
    NoStore(PathBuf),
    /// A job that was watched ended badly; it was said why.
    #[error("job {job} {state}{}", reason.as_ref().map_or(String::new(), |reason| format!(": {reason}")))]
    JobEnded {
        /// The job.
        job: String,
        /// How it ended.
        state: &'static str,
        /// Why.
        reason: Option<String>,
    },
    /// A restore that is not possible as asked; it was said why.
    #[error(
        "the restore is not possible as asked; the reasons are listed above (docs/reason-codes.md has what to do). Nothing was touched"
    )]
    NoPlan,
    /// Verifying found damage; it was said what.
    #[error(
        "the store is damaged: {}, {} affected; what was found is listed above. Damaged chunks count as missing from now on: the next capture that has them sends them again",
        table::counted(*chunks as u64, "damaged chunk"),
        table::counted(*restore_points as u64, "restore point")
    )]
    Damaged {
        /// How many chunks.
        chunks: usize,
        /// How many restore points.
        restore_points: usize,
    },
    /// Files of a restore point cannot be shown or taken out.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A disk image is not imported, or a restore point not exported.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// Some files could not be read or written; it was said which.
    #[error("{failed} could not be read or written; they are named above, the rest was done")]
    NotAll {
        /// How many.
        failed: u64,
    },
    /// Store or state cannot be opened.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The store's upkeep was refused.
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    /// A factory image was not made.
    #[error(transparent)]
    Factory(#[from] FactoryError),
    /// A garbage collection did not come to its end.
    #[error("the garbage collection ended: {0}")]
    Collection(String),
    /// Restore points that rules do not keep and that are there still.
    #[error("not all could be removed: {0}")]
    NotRemoved(String),
    /// A key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
    /// A picture cannot be written.
    #[error("cannot write the picture {}", path.display())]
    Picture {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A value cannot be shown.
    #[error("cannot make JSON")]
    Json(#[from] serde_json::Error),
}

impl CommandError {
    /// The exit code that fits.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(ClientError::NotRunning(_)) => ExitCode::Unavailable,
            Self::Client(ClientError::NoRights(_)) => ExitCode::NoRights,
            Self::Store(StoreError::InUse { .. }) => ExitCode::Unavailable,
            Self::Client(ClientError::Connect { .. })
            | Self::Store(_)
            | Self::Files(FilesError::Store(_) | FilesError::Output { .. })
            | Self::Exchange(
                ExchangeError::Store(_)
                | ExchangeError::Source { .. }
                | ExchangeError::Output { .. }
                | ExchangeError::Full(_)
                | ExchangeError::Files(FilesError::Store(_)),
            )
            | Self::Recovery(_)
            | Self::Output(_)
            | Self::Picture { .. } => ExitCode::System,
            Self::NoStore(_) | Self::Key(KeyError::Read { .. }) => ExitCode::Missing,
            Self::Client(_)
            | Self::JobEnded { .. }
            | Self::NoPlan
            | Self::Damaged { .. }
            | Self::Files(_)
            | Self::Exchange(_)
            | Self::NotAll { .. }
            | Self::Upkeep(_)
            | Self::Factory(_)
            | Self::Collection(_)
            | Self::Key(_)
            | Self::NotRemoved(_)
            | Self::Json(_) => ExitCode::Failure,
        }
    }
}

/// Runs an operator's command on the server of a data directory.
///
/// # Errors
/// [`CommandError`].
pub(crate) fn run(
    command: &OperatorCommand,
    data_directory: PathBuf,
    retention: RetentionRules,
) -> Result<(), CommandError> {
    let client = ControlClient::new(&data_directory);
    match command {
        OperatorCommand::Machines(args) => lists::machines(&client, args),
        OperatorCommand::RestorePoints(args) => lists::restore_points(&client, args),
        OperatorCommand::Jobs(args) => lists::jobs(&client, args),
        OperatorCommand::Timeline(args) => timeline::run(&client, args),
        OperatorCommand::NextBoot(args) => booting::next_boot(&client, args),
        OperatorCommand::Loaders(args) => booting::loaders(&client, args),
        OperatorCommand::Capture(args) => start::capture(&client, args),
        OperatorCommand::Plan(args) => plan::run(&client, args),
        OperatorCommand::Restore(args) => start::restore(&client, args),
        OperatorCommand::Factory(args) => factory::run(&client, &data_directory, &args.command),
        OperatorCommand::Reset(args) => factory::reset(&client, args),
        OperatorCommand::Cancel { job, list } => start::cancel(&client, job, list),
        OperatorCommand::Verify(args) => verify::run(&data_directory, args),
        OperatorCommand::Files(args) => files::run(&data_directory, &args.command),
        OperatorCommand::Items(args) => files::items(&data_directory, args),
        OperatorCommand::Show(args) => catalogue::show(&data_directory, args),
        OperatorCommand::Compare(args) => catalogue::compare(&data_directory, args),
        OperatorCommand::Versions(args) => catalogue::versions(&data_directory, args),
        OperatorCommand::Import(args) => exchange::import(&data_directory, args),
        OperatorCommand::Export(args) => exchange::export(&data_directory, args),
        OperatorCommand::Store(args) => upkeep::sizes(&data_directory, args.json),
        OperatorCommand::Gc(args) => upkeep::gc(&data_directory, args),
        OperatorCommand::Prune(args) => upkeep::prune(&data_directory, args, retention),
        OperatorCommand::Forget(args) => upkeep::forget(&data_directory, args),
        OperatorCommand::Pin(args) => upkeep::pin(&data_directory, args, true),
        OperatorCommand::Unpin(args) => upkeep::pin(&data_directory, args, false),
    }
}

/// The store of a data directory, for reading beside a server or without one.
fn open_store(data_directory: &std::path::Path) -> Result<Store, CommandError> {
    if !data_directory.join("store").join("packs").is_dir() {
        return Err(CommandError::NoStore(data_directory.to_owned()));
    }
    Ok(Store::look(data_directory)?)
}

/// The same without its chunks: for lists, manifests and chunk lists.
fn open_lists(data_directory: &std::path::Path) -> Result<Store, CommandError> {
    if !data_directory.join("store").join("packs").is_dir() {
        return Err(CommandError::NoStore(data_directory.to_owned()));
    }
    Ok(Store::look_at_lists(data_directory)?)
}

/// Prints a value as one JSON document.
pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), CommandError> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints a value as one line of JSON.
fn print_json_line<T: serde::Serialize>(value: &T) -> Result<(), CommandError> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Prints; a reader that has enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), CommandError> {
    use std::io::Write;
    let mut output = std::io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
