//! QEMU's control socket (QMP).
//!
//! Protocol: QEMU `docs/interop/qmp-spec.txt`. Events are skipped: what a machine does is watched on its
//! console and its process.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use thiserror::Error;

/// QEMU answers at once unless the host is overloaded.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command to QEMU failed.
#[derive(Debug, Error)]
pub(crate) enum QmpError {
    /// The socket failed.
    #[error("the control socket of QEMU failed")]
    Io(#[from] io::Error),
    /// Not JSON.
    #[error("QEMU's answer is not JSON")]
    Json(#[from] serde_json::Error),
    /// QEMU said no.
    #[error("QEMU refused {command}: {answer}")]
    Refused {
        /// Name of the command.
        command: String,
        /// What QEMU said.
        answer: String,
    },
}

/// A connection to a running QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Waits for QEMU to connect, and negotiates.
    pub(crate) fn accept(listener: &UnixListener) -> Result<Self, QmpError> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            writer: stream.try_clone()?,
            reader: BufReader::new(stream),
        };
        qmp.read_message()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns its result.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.writer.write_all(format!("{message}\n").as_bytes())?;
        loop {
            let mut answer = self.read_message()?;
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    answer: error.to_string(),
                });
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn read_message(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_skipped_and_refusals_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let mut qemu = UnixStream::connect(&path).unwrap();
        // Everything QEMU will say, written ahead: greeting, answer, event, answer, refusal.
        qemu.write_all(
            b"{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"RESET\"}\n{\"return\":7}\n{\"error\":{\"desc\":\"no\"}}\n",
        )
        .unwrap();
        let mut qmp = Qmp::accept(&listener).unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap(), json!(7));
        let refused = qmp.execute("system_wakeup", json!({}));
        assert!(
            matches!(refused, Err(QmpError::Refused { .. })),
            "{refused:?}"
        );
    }
}
