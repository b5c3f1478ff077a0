//! A DHCP client of somebody else's as a process in a namespace, judged by the words of its log.
//!
//! Invariant: it never outlives its [`ForeignClient`].

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use thiserror::Error;

use super::deadline::Deadline;
use super::tool;

const TICK: Duration = Duration::from_millis(50);

/// The client did not do what was waited for.
#[derive(Debug, Error)]
pub(crate) enum ForeignClientError {
    /// The process could not be started or signalled.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// It did not say it.
    #[error("{client} did not say {wanted:?} within {allowed}; it said: {said}")]
    TimedOut {
        /// Its log's name.
        client: String,
        /// What was waited for.
        wanted: String,
        /// How long.
        allowed: String,
        /// Its log.
        said: String,
    },
}

/// A running client. Dropping it kills it, as a power cut would.
#[derive(Debug)]
pub(crate) struct ForeignClient {
    process: Child,
    log: PathBuf,
    /// Bytes of the log that a wait has seen.
    seen: usize,
}

impl ForeignClient {
    /// Starts a command with its words in a new file.
    pub(crate) fn start(command: &Command, log: &Path) -> Result<Self, ForeignClientError> {
        let start = || -> io::Result<Child> {
            let file = File::create(log)?;
            tool::bound_to_us(command)
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file)
                .spawn()
        };
        let process = start().map_err(|source| ForeignClientError::Io {
            what: format!("start {:?}", command.get_program()),
            source,
        })?;
        Ok(Self {
            process,
            log: log.to_owned(),
            seen: 0,
        })
    }

    /// Waits for a line with these words behind those that were waited for before, and returns it.
    pub(crate) fn wait_for(
        &mut self,
        words: &str,
        deadline: Deadline,
    ) -> Result<String, ForeignClientError> {
        loop {
            let text = self.said();
            let fresh = text.get(self.seen..).unwrap_or_default();
            // A line without its end is still being written.
            let mut end = self.seen;
            for line in fresh
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
            {
                end += line.len();
                if line.contains(words) {
                    self.seen = end;
                    return Ok(line.trim().to_owned());
                }
            }
            self.pause(words, &deadline)?;
        }
    }

    /// Everything it has said.
    pub(crate) fn said(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends it a signal and waits for its end.
    pub(crate) fn end_by(
        mut self,
        signal: Signal,
        deadline: Deadline,
    ) -> Result<(), ForeignClientError> {
        // A process id of ours fits the type that the system has for it.
        let pid = Pid::from_raw(self.process.id() as i32);
        kill(pid, signal).map_err(|error| ForeignClientError::Io {
            what: format!("send {signal} to a DHCP client"),
            source: error.into(),
        })?;
        while !matches!(self.process.try_wait(), Ok(Some(_))) {
            self.pause("its end", &deadline)?;
        }
        Ok(())
    }

    fn pause(&self, wanted: &str, deadline: &Deadline) -> Result<(), ForeignClientError> {
        if deadline.remaining().is_none() {
            return Err(ForeignClientError::TimedOut {
                client: self.log.display().to_string(),
                wanted: wanted.to_owned(),
                allowed: deadline.to_string(),
                said: self.said().trim().to_owned(),
            });
        }
        std::thread::sleep(TICK);
        Ok(())
    }
}

impl Drop for ForeignClient {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_order_and_not_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo bound one; echo bound two; exec sleep 60"]);
        let mut client = ForeignClient::start(&command, &folder.path().join("log")).unwrap();
        let wait = |client: &mut ForeignClient| client.wait_for("bound", Deadline::seconds(10));
        assert_eq!(wait(&mut client).unwrap(), "bound one");
        assert_eq!(wait(&mut client).unwrap(), "bound two");
        let none = client.wait_for("bound", Deadline::after(Duration::from_millis(1)));
        assert!(matches!(none, Err(ForeignClientError::TimedOut { .. })));
        client
            .end_by(Signal::SIGTERM, Deadline::seconds(10))
            .unwrap();
    }
}
