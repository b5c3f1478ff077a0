//! netboot: machines that will not boot come back over the network.
//!
//! This is the server and the operators' command; the binary beside it only calls [`run`]. Nothing
//! else is public: this is a library for the sake of the fuzz targets, which come in by a door of
//! their own. Not here: the agent that runs on the machines.

mod boot_catalogue;
mod boot_content;
mod boot_desk;
mod boot_policy;
mod cli;
mod commands;
mod config;
mod control_client;
mod copies;
mod dhcp;
mod doctor;
mod exchange;
mod factory;
mod files;
mod flight_recorder;
mod frames;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod http;
mod jobs;
mod machines;
mod next_boot;
mod port_owner;
mod serve;
mod sockets;
mod state;
mod store;
mod tftp;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use commands::CommandError;

/// Reads the command line, does what it asks and says how it went. Exit codes: see `netboot --help`.
pub fn run() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .init();
    let Cli { place, command } = Cli::parse();
    let result = match command {
        Command::Serve(args) => serve::run(&args, place).map(|()| None),
        Command::Doctor(args) => doctor::run(&args, place).map_err(anyhow::Error::from),
        Command::Operator(command) => place
            .retention()
            .and_then(|retention| Ok((retention, place.data_directory()?)))
            .and_then(|(retention, directory)| Ok(commands::run(&command, directory, retention)?))
            .map(|()| None),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(code)) => ExitCode::from(code as u8),
        Err(error) => {
            eprintln!("netboot: {error:#}");
            let code = match error.downcast_ref::<CommandError>() {
                Some(error) => error.exit_code(),
                None => serve::exit_code(&error),
            };
            ExitCode::from(code as u8)
        }
    }
}
