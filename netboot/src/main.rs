//! netboot: machines that will not boot come back over the network.
//!
//! This is the server and the operators' command. Not here: the agent that runs on the machines.

mod boot_catalogue;
mod boot_policy;
mod cli;
mod config;
mod dhcp;
mod flight_recorder;
mod frames;
mod http;
mod jobs;
mod machines;
mod port_owner;
mod serve;
mod sockets;
mod state;
mod store;
mod tftp;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .init();
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netboot: {error:#}");
            ExitCode::from(serve::exit_code(&error) as u8)
        }
    }
}
