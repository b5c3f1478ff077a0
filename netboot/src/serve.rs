//! `netboot serve`: from a checked configuration to a running server, and its end.
//!
//! Order: configuration, folders, lock, sockets, state, then threads. Whatever cannot be had ends
//! the start with one sentence, before anything is answered.
//!
//! Not here: protocols; each has its own module and gets its socket from `running`.

mod links;
mod roles;
mod running;
pub(crate) mod watch;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    boot_catalogue::CatalogueError,
    cli::{ExitCode, Place, ServeArgs},
    config::{Config, ConfigError, DEFAULT_DATA_DIR},
    dhcp::lease_store::LeaseStoreError,
    flight_recorder::RecorderError,
    http::RecoveryError,
    sockets::OpenError,
    store::StoreError,
};

/// Why the server does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The boot folder.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The leases.
    #[error(transparent)]
    Leases(#[from] LeaseStoreError),
    /// The flight recorder.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// The data directory cannot be locked.
    #[error(transparent)]
    Lock(#[from] StoreError),
    /// Store or state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The data directory is not there.
    #[error(
        "the data directory {} does not exist: make it, or start with --create", .0.display()
    )]
    NoDataDir(PathBuf),
    /// The boot folder is not there.
    #[error(
        "the folder of boot files {} does not exist: make the boot files with the initramfs \
         command, or name their folder with --boot-files", .0.display()
    )]
    NoBootFiles(PathBuf),
    /// A folder cannot be made or written.
    #[error(
        "the data directory {} cannot be written: start netboot as a user who may, or name \
         another one with --data-dir", .path.display()
    )]
    NotWritable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Threads, signals, or a socket that died.
    #[error("{what} failed")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The exit code that fits an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        None => ExitCode::Failure,
        Some(ServeError::Config(_)) => ExitCode::Config,
        Some(ServeError::NoDataDir(_) | ServeError::NoBootFiles(_)) => ExitCode::Missing,
        Some(ServeError::Open(error)) => match error {
            OpenError::PortTaken { .. } | OpenError::AlreadyServing(_) => ExitCode::Unavailable,
            OpenError::NoRights { .. } => ExitCode::NoRights,
            OpenError::NoSuchAddress { .. }
            | OpenError::NoSuchInterface { .. }
            | OpenError::NoAddress { .. } => ExitCode::Config,
            OpenError::System { .. } => ExitCode::System,
        },
        Some(ServeError::Lock(StoreError::InUse { .. })) => ExitCode::Unavailable,
        Some(ServeError::NotWritable { .. }) => ExitCode::NoRights,
        // Files in it that another user's server has made.
        Some(ServeError::Lock(StoreError::Io { source, .. }))
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            ExitCode::NoRights
        }
        Some(_) => ExitCode::System,
    }
}

/// Runs `netboot serve` until a signal ends it.
pub(crate) fn run(args: &ServeArgs, place: Place) -> Result<(), anyhow::Error> {
    let overrides = args.overrides(place.data_dir);
    let config = Config::load(place.config.as_deref(), overrides).map_err(ServeError::from)?;
    let links = links::links(&config)?;
    let settings = links::settings(&config, &links)?;
    if args.check {
        eprintln!("netboot: the configuration is right");
        return Ok(());
    }
    prepare_folders(&config, args.create)?;
    Ok(running::serve(&config, &links, settings)?)
}

fn prepare_folders(config: &Config, create: bool) -> Result<(), ServeError> {
    let data_dir = &config.data_dir;
    let not_writable = |source| ServeError::NotWritable {
        path: data_dir.clone(),
        source,
    };
    if !data_dir.is_dir() {
        // The package's own place is ours to make; anywhere else, a name that is not there is
        // more likely a disk that is not mounted.
        if !create && data_dir != Path::new(DEFAULT_DATA_DIR) {
            return Err(ServeError::NoDataDir(data_dir.clone()));
        }
        fs::create_dir_all(data_dir).map_err(not_writable)?;
    }
    let probe = data_dir.join(".netboot-may-write");
    fs::write(&probe, [])
        .and_then(|()| fs::remove_file(&probe))
        .map_err(not_writable)?;
    if config.boot_files.is_dir() {
        Ok(())
    } else {
        Err(ServeError::NoBootFiles(config.boot_files.clone()))
    }
}
