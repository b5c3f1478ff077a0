//! `initramfs`: writes the files that a machine boots from the network.
//!
//! Kernel and modules, file system tools and boot loaders come from the distribution's packages (or from
//! elsewhere), the agent from this project. The set is reproducible: the same inputs give the same bytes,
//! but for the operator's signature on the unified kernel image.
//!
//! Not here: serving the files, and bootable media.

mod agent;
mod apt_lists;
mod architecture;
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
mod other_firmware;
mod output;
mod packages;
mod pe;
mod rooted;
mod signing;
mod tools;
mod tree;
mod unified;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::architecture::{AT_NEED, Architecture};
use crate::assemble::{AssembleError, Inputs, assemble, fetched_bytes, megabytes, usable_cache};
use crate::manifest::Manifest;
use crate::output::OutputError;
use crate::packages::Packages;
use crate::signing::{Signer, SigningError};
use crate::unified::{Contents, UnifiedError};

const EXIT_CODES: &str = "Exit codes:
  0  the set of boot files is complete
  1  an error of another kind
  2  wrong usage
  3  an input is missing or not usable: agent, kernel, modules, package, loader,
     key
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
    /// Build vmlinuz, initramfs, boot loaders, unified kernel image and
    /// manifest.json.
    Build(BuildArguments),
    /// Build only the unified kernel image, from a vmlinuz and an initramfs.
    Unified(UnifiedArguments),
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct BuildArguments {
    /// The machines' processor.
    #[arg(long, value_name = "ARCH", default_value = "x64")]
    arch: Architecture,
    /// The agent, a static program for that processor; it becomes /init.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Directory for the boot files; what initramfs wrote there before for
    /// this processor is replaced at once.
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
    /// Boot loaders in DIR win over the packages'.
    #[arg(long, value_name = "DIR")]
    loaders: Option<PathBuf>,
    /// Where fetched and unpacked packages are kept.
    #[arg(long, value_name = "DIR", default_value = "target/initramfs-cache")]
    cache: PathBuf,
    /// Go on when the kernel lacks modules of the base set.
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    unified: UnifiedOptions,
    /// Print the manifest as JSON on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct UnifiedArguments {
    /// The machines' processor.
    #[arg(long, value_name = "ARCH", default_value = "x64")]
    arch: Architecture,
    /// Directory of boot files with the kernel and the initramfs.
    #[arg(long, value_name = "DIR")]
    boot: PathBuf,
    /// The image [default: netboot-x64.efi or netboot-arm64.efi in the directory
    /// of boot files].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take packages from the .deb files in DIR, not from apt.
    #[arg(long, value_name = "DIR")]
    packages_dir: Option<PathBuf>,
    /// Where fetched and unpacked packages are kept.
    #[arg(long, value_name = "DIR", default_value = "target/initramfs-cache")]
    cache: PathBuf,
    #[command(flatten)]
    unified: UnifiedOptions,
    /// Print what was made as JSON on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct UnifiedOptions {
    /// Sign the unified kernel image with this PEM key (by sbsign).
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The key's PEM certificate, which the machines' firmware trusts.
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Kernel command line of the unified kernel image [default: every
    /// console].
    #[arg(long, value_name = "TEXT")]
    command_line: Option<String>,
    /// EFI stub of the unified kernel image [default: the one of the package
    /// systemd-boot-efi].
    #[arg(long, value_name = "FILE")]
    stub: Option<PathBuf>,
}

impl UnifiedOptions {
    fn command_line(&self, architecture: Architecture) -> String {
        let given = self.command_line.as_deref();
        given.unwrap_or(architecture.command_line()).to_owned()
    }

    /// Who signs, when somebody is to.
    fn signer(&self) -> Result<Option<Signer>, SigningError> {
        match (&self.key, &self.certificate) {
            (Some(key), Some(certificate)) => Signer::new(key, certificate).map(Some),
            _ => Ok(None),
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(arguments) => build(arguments),
        Command::Unified(arguments) => unified_image(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("initramfs: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn say(line: &str) {
    eprintln!("initramfs: {line}");
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")
}

fn build(arguments: BuildArguments) -> anyhow::Result<()> {
    let architecture = arguments.arch;
    let inputs = Inputs {
        architecture,
        command_line: arguments.unified.command_line(architecture),
        signer: arguments.unified.signer()?,
        stub: arguments.unified.stub,
        agent: arguments.agent,
        output: arguments.output,
        kernel: arguments.kernel.zip(arguments.modules),
        packages: arguments.packages_dir,
        loaders: arguments.loaders,
        cache: arguments.cache,
        allow_missing: arguments.allow_missing,
    };
    let manifest = assemble(&inputs, say)?;
    let (total, budget) = (fetched_bytes(&manifest), architecture.budget());
    if total > budget {
        say(&format!(
            "warning: a machine fetches {:.1} MB, more than the {:.0} MB meant for it",
            megabytes(total),
            megabytes(budget)
        ));
    }
    let text = if arguments.json {
        manifest.to_json()?
    } else {
        size_table(&manifest, budget)
    };
    print(&text)
}

fn unified_image(arguments: &UnifiedArguments) -> anyhow::Result<()> {
    let architecture = arguments.arch;
    let signer = arguments.unified.signer()?;
    let directory = arguments.boot.join(architecture.directory());
    let (version, kernel) = kernel::read_image(architecture, &directory.join("vmlinuz"))?;
    let path = directory.join("initramfs");
    let initramfs = std::fs::read(&path).map_err(|source| UnifiedError::Read {
        what: "initramfs",
        path,
        source,
    })?;
    let cache = usable_cache(&arguments.cache)?;
    let packages_dir = arguments.packages_dir.clone();
    let mut packages = Packages::new(architecture, packages_dir, cache.clone(), say);
    let stub = unified::stub(arguments.unified.stub.as_ref(), &mut packages, architecture)?;
    let contents = Contents {
        kernel: &kernel,
        version: &version,
        initramfs: &initramfs,
        command_line: &arguments.unified.command_line(architecture),
    };
    let mut image = unified::image(&stub, architecture, &contents)?;
    if let Some(signer) = &signer {
        image = signer.sign(&image, &cache)?;
    }
    let output = arguments.output.clone();
    let output = output.unwrap_or_else(|| arguments.boot.join(architecture.unified_image()));
    output::replace_file(&output, &image)?;
    let signed = signer.is_some();
    print(&if arguments.json {
        let entry = serde_json::json!({
            "file": output,
            "bytes": image.len(),
            "kernel": version,
            "command_line": contents.command_line,
            "signed": signed,
        });
        format!("{entry:#}\n")
    } else {
        format!(
            "{}: {:.2} MB, kernel {version}, {}\n",
            output.display(),
            megabytes(image.len() as u64),
            if signed { "signed" } else { "not signed" }
        )
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<SigningError>() || error.is::<UnifiedError>() || error.is::<kernel::KernelError>()
    {
        return 3;
    }
    if error.is::<OutputError>() {
        return 4;
    }
    match error.downcast_ref() {
        Some(
            AssembleError::Agent(_)
            | AssembleError::Kernel(_)
            | AssembleError::Modules(_)
            | AssembleError::Tools(_)
            | AssembleError::Loaders(_)
            | AssembleError::Unified(_)
            | AssembleError::Signing(_),
        ) => 3,
        Some(
            AssembleError::Output(_) | AssembleError::Cache { .. } | AssembleError::Archive(_),
        ) => 4,
        Some(AssembleError::Manifest(_)) | None => 1,
    }
}

/// What a machine fetches, part by part, in MB (10⁶ bytes).
fn size_table(manifest: &Manifest, budget: u64) -> String {
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
    let is_shown = |name: &str| name.contains('.') || name.ends_with(AT_NEED);
    for file in manifest.files.iter().filter(|file| is_shown(&file.name)) {
        text.push_str(&format!(
            "{:<37}{:>14.2}\n",
            file.name,
            megabytes(file.bytes)
        ));
    }
    text.push_str(&format!(
        "\none machine fetches at most {:.2} MB (meant: {:.0} MB)\n",
        megabytes(fetched_bytes(manifest)),
        megabytes(budget)
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
            command.find_subcommand("unified").unwrap().clone(),
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
