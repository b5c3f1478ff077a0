//! Runs the reference tools of the distribution and tells what they said when they fail.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use thiserror::Error;

/// Lines of a failed tool's words that are shown.
const SHOWN_LINES: usize = 20;

/// A tool failed.
#[derive(Debug, Error)]
pub(crate) enum ToolError {
    /// It could not be started.
    #[error("cannot start {tool}; is the package that has it installed?")]
    Start {
        /// Name of the program.
        tool: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It said no.
    #[error("{tool} failed with {status}: {said}")]
    Failed {
        /// Name of the program.
        tool: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its last words.
        said: String,
    },
}

/// The same command as a process that is killed when this one ends, however that happens: an interrupted
/// lab must not leave machines and servers behind. `setpriv` (util-linux) sets prctl(2)'s
/// `PR_SET_PDEATHSIG` and becomes the program, so the process id is the program's own.
pub(crate) fn bound_to_us(command: &Command) -> Command {
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL"]);
    bound.arg(command.get_program()).args(command.get_args());
    bound
}

/// Runs a tool to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String, ToolError> {
    run_with_input(command, &[])
}

/// Runs a tool with something on its standard input. The input has to fit a pipe's buffer (64 KiB).
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String, ToolError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let start = |source| ToolError::Start {
        tool: tool.clone(),
        source,
    };
    let mut child = command
        // Partition and file system tools live where an ordinary user's search path does not go.
        .env("PATH", search_path())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends without reading its input says why on its own.
        let _ = stdin.write_all(input);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().map_err(start)?;
    let said = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(said);
    }
    let words = format!("{}\n{said}", String::from_utf8_lossy(&stderr));
    let lines: Vec<&str> = words.trim().lines().collect();
    let said = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    Err(ToolError::Failed { tool, status, said })
}

fn search_path() -> String {
    format!(
        "{}:/usr/local/sbin:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_gets_its_input_and_its_words_come_back() {
        assert_eq!(
            run_with_input(&mut Command::new("cat"), b"hello").unwrap(),
            "hello"
        );
    }

    #[test]
    fn a_failed_tool_is_quoted() {
        let failed = run(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]));
        assert!(failed.unwrap_err().to_string().contains("broken"));
    }

    #[test]
    fn a_bound_process_is_the_program_itself() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$"]);
        let child = bound_to_us(&command)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id();
        let said = child.wait_with_output().unwrap().stdout;
        assert_eq!(String::from_utf8(said).unwrap().trim(), id.to_string());
    }

    #[test]
    fn a_missing_tool_is_named() {
        let missing = run(&mut Command::new("no-such-tool-here"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("no-such-tool-here"), "{missing}");
    }
}
