//! `initramfs`: writes the files that a machine boots from the network.
//!
//! Kernel and modules, file system tools and boot loaders come from the distribution's packages (or from
//! elsewhere), the agent from this project. The set is reproducible: the same inputs give the same bytes.
//!
//! Not here: serving the files, signing, and bootable media.

mod agent;
mod archive;
mod assemble;
mod base_modules;
mod boot_loaders;
mod command;
mod cpio;
mod digest;
mod elf;
mod kernel;
mod manifest;
mod modules;
mod output;
mod packages;
mod rooted;
mod tools;
mod tree;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::assemble::{AssembleError, BUDGET_BYTES, Inputs, assemble, fetched_bytes, megabytes};
use crate::manifest::Manifest;

const EXIT_CODES: &str = "Exit codes:
  0  the set of boot files is complete
  1  an error of another kind
  2  wrong usage
  3  an input is missing or not usable: agent, kernel, modules, package, loader
  4  the output directory or the cache cannot be written

The output directory is as it was before unless the exit code is 0.";

/// Writes the boot files: kernel, initramfs and loaders.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build vmlinuz, initramfs, boot loaders and manifest.json.
    Build(BuildArguments),
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct BuildArguments {
    /// The agent, a static program for x86-64; it becomes /init.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Directory for the boot files; what initramfs wrote there before is
    /// replaced at once.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Kernel image [default: the distribution's signed kernel].
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// That kernel's modules: a directory lib/modules/VERSION.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Take packages from the .deb files in DIR, not from apt.
    #[arg(long, value_name = "DIR")]
    packages_dir: Option<PathBuf>,
    /// Take the boot loaders from DIR, not from the package ipxe.
    #[arg(long, value_name = "DIR")]
    loaders: Option<PathBuf>,
    /// Where fetched and unpacked packages are kept.
    #[arg(long, value_name = "DIR", default_value = "target/initramfs-cache")]
    cache: PathBuf,
    /// Go on when the kernel lacks modules of the base set.
    #[arg(long)]
    allow_missing: bool,
    /// Print the manifest as JSON on standard output.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Command::Build(arguments) = Cli::parse().command;
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("initramfs: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(arguments: BuildArguments) -> anyhow::Result<()> {
    let inputs = Inputs {
        agent: arguments.agent,
        output: arguments.output,
        kernel: arguments.kernel.zip(arguments.modules),
        packages: arguments.packages_dir,
        loaders: arguments.loaders,
        cache: arguments.cache,
        allow_missing: arguments.allow_missing,
    };
    let manifest = assemble(&inputs, |line| eprintln!("initramfs: {line}"))?;
    let total = fetched_bytes(&manifest);
    if total > BUDGET_BYTES {
        eprintln!(
            "initramfs: warning: a machine fetches {:.1} MB, more than the {:.0} MB meant for it",
            megabytes(total),
            megabytes(BUDGET_BYTES)
        );
    }
    let text = if arguments.json {
        manifest.to_json()?
    } else {
        size_table(&manifest)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(
            AssembleError::Agent(_)
            | AssembleError::Kernel(_)
            | AssembleError::Modules(_)
            | AssembleError::Tools(_)
            | AssembleError::Loaders(_),
        ) => 3,
        Some(
            AssembleError::Output(_) | AssembleError::Cache { .. } | AssembleError::Archive(_),
        ) => 4,
        Some(AssembleError::Manifest(_)) | None => 1,
    }
}

/// What a machine fetches, part by part, in MB (10⁶ bytes).
fn size_table(manifest: &Manifest) -> String {
    let mut text = format!(
        "kernel {}: {} modules, {} tools and libraries\n\n{:<16}{:>7}{:>14}{:>14}\n",
        manifest.kernel.version,
        manifest.modules.len(),
        manifest.tools.len(),
        "part",
        "files",
        "unpacked MB",
        "fetched MB"
    );
    for part in &manifest.parts {
        text.push_str(&format!(
            "{:<16}{:>7}{:>14.2}{:>14.2}\n",
            part.name,
            part.files,
            megabytes(part.unpacked_bytes),
            megabytes(part.bytes)
        ));
    }
    for file in manifest.files.iter().filter(|file| file.name.contains('.')) {
        text.push_str(&format!(
            "{:<37}{:>14.2}\n",
            file.name,
            megabytes(file.bytes)
        ));
    }
    text.push_str(&format!(
        "\none machine fetches at most {:.2} MB (meant: {:.0} MB)\n",
        megabytes(fetched_bytes(manifest)),
        megabytes(BUDGET_BYTES)
    ));
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_help_stays_within_80_columns() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for mut part in [
            command.clone(),
            command.find_subcommand("build").unwrap().clone(),
        ] {
            for line in part.render_long_help().to_string().lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn a_kernel_without_its_modules_is_wrong_usage() {
        let arguments = [
            "initramfs",
            "build",
            "--agent",
            "a",
            "--output",
            "o",
            "--kernel",
            "k",
        ];
        assert!(Cli::try_parse_from(arguments).is_err());
    }
}
