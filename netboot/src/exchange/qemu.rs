//! QEMU's tools: what an image file is, and a server that reads or writes one.
//!
//! Invariant: a tool is always told the format, so that bytes of a guest never choose one, and `qemu-nbd` is
//! told to open no backing file. A tool that was started is ended when its value is dropped.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::ExchangeError;
use super::nbd::NbdClient;

/// How long a server may take to open an image.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `qemu-img info` says of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Info {
    /// The size of the disk in bytes.
    pub(super) virtual_size: u64,
    /// The file that it continues.
    pub(super) backing_filename: Option<String>,
    /// Whether its content is encrypted.
    #[serde(default)]
    pub(super) encrypted: bool,
    /// What only this format has.
    #[serde(default)]
    pub(super) format_specific: Specific,
}

/// What only some formats have.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Specific {
    #[serde(default)]
    pub(super) data: SpecificData,
}

/// Its members that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SpecificData {
    /// qcow2: the bytes are in another file.
    pub(super) data_file: Option<String>,
    /// qcow2: how it is encrypted.
    pub(super) encrypt: Option<serde_json::Value>,
    /// qcow2: whether it was marked as damaged.
    #[serde(default)]
    pub(super) corrupt: bool,
    /// VMDK: the files that it is made of.
    #[serde(default)]
    pub(super) extents: Vec<Extent>,
}

/// A file of a VMDK image.
#[derive(Debug, Deserialize)]
pub(super) struct Extent {
    pub(super) filename: String,
    #[serde(default)]
    pub(super) format: String,
    /// How many bytes of the disk it has.
    #[serde(rename = "virtual-size", default)]
    pub(super) size: u64,
}

fn missing(tool: &'static str) -> impl FnOnce(io::Error) -> ExchangeError {
    move |error| ExchangeError::Tool {
        tool,
        reason: if error.kind() == io::ErrorKind::NotFound {
            "is not installed; it comes with the package qemu-utils. Raw images need no tool"
                .to_owned()
        } else {
            format!("cannot be started: {error}")
        },
    }
}

/// What a tool said, in one line, without the tool's name before it.
fn said(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let text = lines.join(" ");
    let text: String = text
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(1000)
        .collect();
    for tool in ["qemu-img: ", "qemu-nbd: "] {
        if let Some(rest) = text.strip_prefix(tool) {
            return rest.to_owned();
        }
    }
    text
}

fn run(command: &mut Command) -> Result<Output, ExchangeError> {
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(missing("qemu-img"))
}

/// Asks what an image of format `driver` is. Its path is absolute.
///
/// # Errors
/// [`ExchangeError::Image`] with what QEMU says of it, [`ExchangeError::Tool`].
pub(super) fn info(driver: &str, path: &Path) -> Result<Info, ExchangeError> {
    let mut command = Command::new("qemu-img");
    command
        .args(["info", "--output=json", "-f", driver])
        .arg(path);
    let output = run(&mut command)?;
    if !output.status.success() {
        let said = said(&output.stderr);
        let hint = if said.contains("\"write\" lock") {
            ". Something has it open for writing: stop that machine first"
        } else {
            ""
        };
        return Err(ExchangeError::image(
            path,
            format!("it cannot be read as {driver}: {said}{hint}"),
        ));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| ExchangeError::Tool {
        tool: "qemu-img",
        reason: format!("says what is not understood: {error}"),
    })
}

/// Has QEMU compare an image with its own tables: whether everything that they name is in the file. Its path
/// is absolute.
///
/// # Errors
/// [`ExchangeError::Image`] for one that is cut short or damaged, [`ExchangeError::Tool`].
pub(super) fn check(driver: &str, path: &Path) -> Result<(), ExchangeError> {
    let mut command = Command::new("qemu-img");
    let output = run(command.args(["check", "-q", "-f", driver]).arg(path))?;
    match output.status.code() {
        // 3: room in the file that nothing uses; 63: this format has no check.
        Some(0 | 3 | 63) => Ok(()),
        _ => {
            let mut said = said(&output.stderr);
            if let Some((at, _)) = said.char_indices().nth(300) {
                said.truncate(at);
                said.push_str(" ...");
            }
            let reason = format!(
                "it is cut short or damaged, `qemu-img check` says: {said}. Copy it again, or repair a copy of it"
            );
            Err(ExchangeError::image(path, reason))
        }
    }
}

/// Makes an empty qcow2 image. Its path is absolute.
///
/// # Errors
/// [`ExchangeError::Tool`].
pub(super) fn create_qcow2(path: &Path, size: u64) -> Result<(), ExchangeError> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path);
    let output = run(command.arg(size.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = said(&output.stderr);
    if said.contains("No space left") {
        return Err(ExchangeError::Full(path.to_owned()));
    }
    Err(ExchangeError::Tool {
        tool: "qemu-img",
        reason: format!("cannot create {}: {said}", path.display()),
    })
}

/// A `qemu-nbd` that serves one image over a socket in a folder of its own.
#[derive(Debug)]
pub(super) struct QemuNbd {
    child: Child,
    socket: SocketFolder,
}

/// A folder for a socket, removed with it.
#[derive(Debug)]
struct SocketFolder(std::path::PathBuf);

impl SocketFolder {
    fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("netboot-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        // Only its owner gets at the socket, whose other end serves the bytes of a disk.
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn socket(&self) -> std::path::PathBuf {
        self.0.join("nbd")
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl QemuNbd {
    /// Starts one for an image of format `driver`. Its path is absolute.
    ///
    /// # Errors
    /// [`ExchangeError::Tool`], [`ExchangeError::Image`] for a path that is no text.
    pub(super) fn start(driver: &str, path: &Path, read_only: bool) -> Result<Self, ExchangeError> {
        let text = path
            .to_str()
            .ok_or_else(|| ExchangeError::image(path, "its path is no text"))?;
        let mut node = serde_json::json!({
            "driver": driver,
            "file": { "driver": "file", "filename": text },
        });
        if driver == "qcow2" {
            node["backing"] = serde_json::Value::Null;
        }
        let socket = SocketFolder::new().map_err(missing("qemu-nbd"))?;
        let mut command = Command::new("qemu-nbd");
        command.arg("--socket").arg(socket.socket());
        if read_only {
            command.arg("--read-only");
        }
        let child = command
            .arg(format!("json:{node}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env("LC_ALL", "C")
            .spawn()
            .map_err(missing("qemu-nbd"))?;
        Ok(Self { child, socket })
    }

    /// Connects, as soon as it listens.
    ///
    /// # Errors
    /// [`ExchangeError::Tool`] when it does not come up.
    pub(super) fn connect(&mut self) -> Result<NbdClient, ExchangeError> {
        let failed = |reason: String| ExchangeError::Tool {
            tool: "qemu-nbd",
            reason,
        };
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(self.socket.socket()) {
                return NbdClient::new(stream)
                    .map_err(|error| failed(format!("does not answer: {error}")));
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(failed(format!("ended ({status}): {}", self.complaint())));
            }
            if Instant::now() > until {
                return Err(failed(format!(
                    "does not listen after {} seconds",
                    PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it said before it ended.
    fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = errors.take(4096).read_to_end(&mut text);
        }
        said(&text)
    }

    /// Waits for its end, which comes when its client is gone.
    ///
    /// # Errors
    /// [`ExchangeError::Tool`] when it did not end well.
    pub(super) fn ended(mut self) -> Result<(), ExchangeError> {
        let status = self.child.wait().map_err(missing("qemu-nbd"))?;
        if status.success() {
            return Ok(());
        }
        Err(ExchangeError::Tool {
            tool: "qemu-nbd",
            reason: format!("ended badly ({status}): {}", self.complaint()),
        })
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
