//! Opening an encrypted volume, for reading only: `cryptsetup` and the kernel's dm-crypt.
//!
//! The volume is shown by a loop device of its own: the disk is open exclusively, and a partition of it
//! could not be held by device-mapper at the same time. Invariant: nothing is written, to the volume or to its
//! header; the key goes to the tool by standard input only; the opened volume is gone as soon as the
//! returned device is closed, also when the agent dies: its removal is ordered as soon as it is open.
//!
//! What is *not* here: which volume is opened, and with which key ([`crate::capture`]).

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use backup::ByteRange;
use backup::manifest::FileSystemKind;
use protocol::unlock::Secret;

use crate::device::{Access, BlockDevice, Device};
use crate::job::error::Fault;
use crate::job::kernel::find_tool;
use crate::job::loop_volume;
use crate::log::chain;

const TOOL: &str = "cryptsetup";
/// `cryptsetup(8)`, "RETURN CODES": no permission, which is a wrong key.
const WRONG_KEY: i32 = 2;

/// Opens the encrypted volume of `kind` in `range` of a disk's node or an image file; `place` names it to
/// people.
///
/// # Errors
/// [`Fault::Key`] for a key that is not the volume's, [`Fault::Tool`] for everything else.
pub(crate) fn open(
    node: &Path,
    range: ByteRange,
    kind: FileSystemKind,
    key: &Secret,
    place: &str,
) -> Result<Box<dyn BlockDevice>, Fault> {
    find_tool(TOOL)?;
    for module in ["loop", "dm_mod", "dm_crypt"] {
        if let Err(error) = crate::drivers::load(module) {
            log::warn!("{module}: {}", chain(&error));
        }
    }
    let wrong = |reason: String| Fault::Key {
        place: place.to_owned(),
        reason,
    };
    let (word, candidates) = match kind {
        FileSystemKind::Bitlocker => {
            let key = key.bitlocker().map_err(|error| wrong(error.to_string()))?;
            ("bitlk", vec![key])
        }
        _ => {
            let candidates = key.candidates().into_iter();
            ("luks", candidates.map(<[u8]>::to_vec).collect())
        }
    };
    // Held until device-mapper holds it.
    let (held, shown) =
        loop_volume::attach(node, range, Access::Read).map_err(|error| Fault::Tool {
            tool: "kernel, loop device".to_owned(),
            reason: format!("{place}: {error}"),
        })?;
    let name = name();
    let shown = shown.to_string_lossy().into_owned();
    for candidate in candidates {
        let arguments = [
            "open",
            "--readonly",
            "--batch-mode",
            "--tries=1",
            "--type",
            word,
            "--key-file=-",
            &shown,
            &name,
        ];
        let output = run(&arguments, &candidate)?;
        match output.status.code() {
            Some(0) => {
                let opened = opened(&name, place);
                drop(held);
                return opened;
            }
            Some(WRONG_KEY) => {}
            code => {
                return Err(Fault::Tool {
                    tool: format!("{TOOL}, {place}"),
                    reason: format!("ended with {code:?}: {}", said(&output)),
                });
            }
        }
    }
    Err(wrong("no key of it is the one that was given".to_owned()))
}

/// The plain volume, whose removal is ordered for when it is closed.
fn opened(name: &str, place: &str) -> Result<Box<dyn BlockDevice>, Fault> {
    let device = Device::open(&Path::new("/dev/mapper").join(name), Access::Read);
    // When it cannot be opened this removes it at once.
    let closed = run(&["close", "--deferred", name], &[])?;
    if !closed.status.success() {
        let reason = said(&closed);
        log::error!("the opened volume {name} of {place} is left: {reason}; close it with {TOOL}");
    }
    Ok(Box::new(device?))
}

/// A name that no other volume of this system has.
fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("netboot-{}-{count}", std::process::id())
}

/// Runs the tool with a key at its standard input. Neither is logged.
fn run(arguments: &[&str], key: &[u8]) -> Result<Output, Fault> {
    let fault = |error: io::Error| Fault::Tool {
        tool: TOOL.to_owned(),
        reason: error.to_string(),
    };
    let mut command = Command::new(find_tool(TOOL)?);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // The tool makes the node itself: without udev nobody else would, and with it a volume group in the volume
    // would be activated and hold it.
    command.env("DM_DISABLE_UDEV", "1");
    let mut child = command.spawn().map_err(fault)?;
    let written = child.stdin.take().map_or(Ok(()), |mut input| {
        // Closed at the end of this block, which ends the key.
        input.write_all(key)
    });
    let output = child.wait_with_output().map_err(fault)?;
    // A tool that ended before it read its key says why in its own words.
    if output.status.success() {
        written.map_err(fault)?;
    }
    Ok(output)
}

/// The end of what the tool said.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.retain(|line| !line.is_empty());
    lines.split_off(lines.len().saturating_sub(3)).join("; ")
}
