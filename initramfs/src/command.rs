//! Runs the distribution's own programs (`apt-get`, `dpkg-deb`, `sbsign`) and says clearly when one fails.
//!
//! Invariant: the child's messages are in plain English whatever the user's language, because some of
//! them are recognised.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Why a program gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// It is not installed.
    #[error(
        "the program {program} is not on this system. On Debian and Ubuntu, install the package \
         `{package}`{elsewhere}"
    )]
    NotInstalled {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
        /// What to do on other systems.
        elsewhere: &'static str,
    },
    /// It could not be started.
    #[error("{program} could not be started")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, in one line.
        message: String,
    },
}

/// Runs `program` in `directory` and returns its standard output.
///
/// # Errors
/// [`CommandError`] when it is missing, does not start, or ends with another status than 0.
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    directory: &Path,
) -> Result<String, CommandError> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound && directory.is_dir() {
                let (package, elsewhere) = origin(program);
                CommandError::NotInstalled {
                    program: program.to_owned(),
                    package,
                    elsewhere,
                }
            } else {
                CommandError::Start {
                    program: program.to_owned(),
                    source,
                }
            }
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut command = program.to_owned();
    for argument in arguments {
        command.push(' ');
        command.push_str(&argument.as_ref().to_string_lossy());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let message: Vec<&str> = stderr.lines().map(str::trim).collect();
    Err(CommandError::Failed {
        command,
        status: output.status,
        message: message.join("; "),
    })
}

/// The package that has `program`, and what to do where there is none.
fn origin(program: &str) -> (&'static str, &'static str) {
    const FILES: &str =
        ". On another system, fetch the .deb files elsewhere, or give --kernel and --modules";
    match program {
        "sbsign" | "sbverify" => ("sbsigntool", ", or build without --key and sign elsewhere"),
        _ if program.starts_with("apt") => ("apt", FILES),
        _ => ("dpkg", FILES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_quoted_with_its_words() {
        let error = run(
            "sh",
            &["-c", "echo one >&2; echo two >&2; exit 3"],
            Path::new("/"),
        );
        let text = error.unwrap_err().to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("one; two"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = run("apt-does-not-exist", &["x"], Path::new("/")).unwrap_err();
        assert!(matches!(
            error,
            CommandError::NotInstalled { package: "apt", .. }
        ));
    }
}
