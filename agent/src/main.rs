//! The recovery agent: PID 1 of the environment that captures and restores machines.
//!
//! One binary, three ways to run: as PID 1 (see [`run`]), as the kernel's module loader, and as an
//! ordinary program that does one job, for tests and measurements.

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
mod screen;
mod sys;

use std::process::ExitCode;

use anyhow::Context as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "\
The agent of the netboot recovery environment.

Usage: agent --server URL job FILE    do the job in FILE (JSON) on this machine
       agent --inventory              print what this machine is made of (JSON)
       agent --help | --version

As PID 1 it runs the recovery environment.

Exit codes: 0 done, 1 the job failed, 2 wrong arguments.
";

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
        ["--server", server, "job", file] => end(one_job(server, file)),
        ["--inventory"] => end(print_inventory()),
        ["--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        ["--version" | "-V"] => {
            println!("agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprint!(
                "agent: these arguments are not understood: {}\n\n{HELP}",
                words.join(" ")
            );
            ExitCode::from(2)
        }
    }
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
    let server = net::http::Server::new(server);
    let outcome = run::work::work(&job, &server, inventory);
    crate::log::flush();
    Ok(match outcome {
        run::work::Outcome::Done => ExitCode::SUCCESS,
        run::work::Outcome::Failed(_) | run::work::Outcome::TakenBack(_) => ExitCode::FAILURE,
    })
}

fn print_inventory() -> anyhow::Result<ExitCode> {
    let inventory = hardware::Roots::real().inventory();
    println!("{}", serde_json::to_string_pretty(&inventory)?);
    Ok(ExitCode::SUCCESS)
}
