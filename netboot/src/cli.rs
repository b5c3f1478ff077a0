//! The command line and its exit codes.
//!
//! Not here: what the commands do.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use protocol::upkeep::RetentionRules;

use crate::{
    commands::OperatorCommand,
    config::{Config, DEFAULT_DATA_DIR, DhcpMode, Overrides},
    doctor::DoctorArgs,
    serve::ServeError,
};

/// What a process ends with. The numbers are those of sysexits.h where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Anything without a number of its own.
    Failure = 1,
    /// A folder or file that must be there is missing.
    Missing = 66,
    /// A port is taken, another server runs on the data directory, or none does where one should.
    Unavailable = 69,
    /// The system refused: interface, disk, database.
    System = 71,
    /// No right to open a port or to write a folder.
    NoRights = 77,
    /// The configuration is wrong.
    Config = 78,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  failed, for the reason printed: refused by the server, a watched job
      that did not succeed, damage found by verify, a problem found by doctor,
      some files that could not be taken out
   2  wrong command line
  66  a folder or file that must be there is missing
  69  a port is taken, another netboot serves from the data directory, or
      none does where a command needs one
  71  the system refused: network interface, disk, database
  77  no right to open a port or to write a folder
  78  the configuration is wrong";

/// Bring machines back over the network.
#[derive(Debug, Parser)]
#[command(name = "netboot", version, after_help = EXIT_CODES, max_term_width = 80)]
pub(crate) struct Cli {
    /// Which server is meant.
    #[command(flatten)]
    pub(crate) place: Place,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server is meant: the one to be started, or the one that a command is for.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The server's configuration, in TOML; without it, options and defaults
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Where state and restore points are kept [default: /var/lib/netboot]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Place {
    /// What the configuration that is named says of retention.
    ///
    /// # Errors
    /// A configuration that cannot be read or is wrong.
    pub(crate) fn retention(&self) -> Result<RetentionRules, anyhow::Error> {
        match &self.config {
            Some(config) => {
                let config = Config::load(Some(config), Overrides::default());
                Ok(config.map_err(ServeError::from)?.retention)
            }
            None => Ok(RetentionRules::default()),
        }
    }

    /// The data directory: named, or as the configuration says, or the default.
    ///
    /// # Errors
    /// A configuration that cannot be read or is wrong.
    pub(crate) fn data_directory(self) -> Result<PathBuf, anyhow::Error> {
        match (self.data_dir, self.config) {
            (Some(directory), _) => Ok(directory),
            (None, Some(config)) => {
                let config = Config::load(Some(&config), Overrides::default());
                Ok(config.map_err(ServeError::from)?.data_dir)
            }
            (None, None) => Ok(DEFAULT_DATA_DIR.into()),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer machines that boot from the network, until told to stop
    Serve(ServeArgs),
    /// Look at ports, network, boot files, store and clock, and say what is
    /// wrong and how to put it right
    Doctor(DoctorArgs),
    /// What operators ask of a server.
    #[command(flatten)]
    Operator(OperatorCommand),
}

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ServeArgs {
    /// Network interface to serve; may be repeated
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Addresses to give to machines, when the configuration has no subnet:
    /// some of the interface's network that no other DHCP server gives
    #[arg(long, value_name = "FIRST-LAST")]
    pool: Option<String>,
    /// Whether to give addresses: server, proxy beside another DHCP server,
    /// off, or auto to look for another server first [default: auto]
    #[arg(long, value_name = "MODE", hide_possible_values = true)]
    mode: Option<DhcpMode>,
    /// Make the data directory when it is not there
    #[arg(long)]
    pub(crate) create: bool,
    /// Where kernel, initramfs and loaders are [default: boot in the data
    /// directory]
    #[arg(long, value_name = "DIR")]
    boot_files: Option<PathBuf>,
    /// Check the configuration, open nothing, and end
    #[arg(long)]
    pub(crate) check: bool,
}

impl ServeArgs {
    /// What overrides the configuration.
    pub(crate) fn overrides(&self, data_dir: Option<PathBuf>) -> Overrides {
        Overrides {
            interfaces: self.interface.clone(),
            data_dir,
            boot_files: self.boot_files.clone(),
            pool: self.pool.clone(),
            mode: self.mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_its_help_within_80_columns() {
        Cli::command().debug_assert();
        let mut command = Cli::command();
        // Without it the width is not handed down.
        command.build();
        let help_of = |command: &mut clap::Command, name: &str| {
            let found = command.find_subcommand_mut(name).expect("a command");
            found.render_help().to_string()
        };
        let mut files = command.find_subcommand("files").expect("files").clone();
        let mut factory = command.find_subcommand("factory").expect("factory").clone();
        for text in [
            command.render_long_help().to_string(),
            command
                .find_subcommand_mut("serve")
                .expect("serve")
                .render_help()
                .to_string(),
            help_of(&mut command, "compare"),
            help_of(&mut command, "show"),
            help_of(&mut command, "import"),
            help_of(&mut command, "export"),
            help_of(&mut files, "ls"),
            help_of(&mut files, "get"),
            help_of(&mut command, "reset"),
            help_of(&mut command, "prune"),
            help_of(&mut factory, "create"),
        ] {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }
}
