//! The recovery agent: PID 1 of the environment that captures and restores machines.
//!
//! One binary, three ways to run: as PID 1 (see [`run`]), as the kernel's module loader, and as an
//! ordinary program that backs up a running system or does the jobs of a server on the disks it is told.

mod at_need;
mod beacon;
mod boot_repair;
mod capture;
mod device;
mod drivers;
mod hardware;
mod job;
mod log;
mod net;
mod restore;
mod run;
mod running;
mod screen;
mod sys;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use run::arguments::{Command, HELP, parse};
use run::work::{Machine, Outcome, work};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        run::init::init();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["environment"] => run::environment::run(None),
        ["environment", run::init::AFTER, how] => run::environment::run(Some(how)),
        // How the kernel calls modprobe(8): kernel/kmod.c, call_modprobe.
        ["-q", "--", module] => match drivers::load_alias(module) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => match parse(&words) {
            Ok(command) => end(ordinary(command)),
            Err(error) => {
                eprint!("agent: {error}\n\n{HELP}");
                ExitCode::from(2)
            }
        },
    }
}

fn ordinary(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Help => print!("{HELP}"),
        Command::Version => println!("agent {}", env!("CARGO_PKG_VERSION")),
        Command::Inventory => print_inventory()?,
        Command::Job { server, file } => return one_job(&server, &file),
        Command::Join {
            server,
            disks,
            once,
        } => return run::native::join(&server, &disks, once),
        Command::Backup {
            server,
            disks,
            unlock,
            json,
        } => {
            let keys = run::keys::read(&unlock)?;
            return run::native::backup(&server, &disks, keys, json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn one_job(server: &str, file: &str) -> anyhow::Result<ExitCode> {
    crate::log::start(false);
    let text = std::fs::read(file).with_context(|| format!("job file {file} cannot be read"))?;
    let job = serde_json::from_slice(&text).with_context(|| format!("{file} is no job"))?;
    let inventory = hardware::Roots::real().inventory();
    let kernel = job::kernel::Kernel::new(inventory.firmware, &inventory.architecture);
    let machine = Machine {
        inventory,
        platform: Arc::new(kernel),
        cancelled: Arc::default(),
        keys: Vec::new(),
    };
    let outcome = work(&job, &net::http::Server::new(server), machine);
    crate::log::flush();
    Ok(match outcome {
        Outcome::Done(_) => ExitCode::SUCCESS,
        Outcome::Failed(_) | Outcome::TakenBack(_) => ExitCode::FAILURE,
    })
}

fn print_inventory() -> anyhow::Result<()> {
    let inventory = hardware::Roots::real().inventory();
    println!("{}", serde_json::to_string_pretty(&inventory)?);
    Ok(())
}
