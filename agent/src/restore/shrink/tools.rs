//! The reference tools that make a file system smaller.

use std::ffi::OsStr;
use std::path::Path;

use backup::manifest::FileSystemKind;
use backup::plan::Shrink;
use backup::units::HumanBytes;

use crate::job::error::Fault;
use crate::job::kernel::{failed, find_tool, run_tool};
use crate::job::mounted;

/// The tool that does it.
pub(super) const fn name(kind: FileSystemKind) -> &'static str {
    match kind {
        FileSystemKind::Ntfs => "ntfsresize",
        FileSystemKind::Btrfs => "btrfs",
        _ => "resize2fs",
    }
}

/// Looks for what a file system needs to be made smaller.
///
/// # Errors
/// [`Fault::Tool`] for the first thing that is not there.
pub(super) fn check(kind: FileSystemKind) -> Result<(), Fault> {
    find_tool(name(kind))?;
    match kind {
        FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4 => {
            find_tool("e2fsck").map(drop)
        }
        FileSystemKind::Btrfs => mounted::check_kernel(kind),
        FileSystemKind::Ntfs => Ok(()),
        other => Err(Fault::Internal(format!(
            "the plan makes {other} smaller, which this agent cannot"
        ))),
    }
}

/// Makes the file system in a file smaller, to the size of its partition.
///
/// # Errors
/// A tool that fails: most often because the data needs more room than that.
pub(super) fn run(file: &Path, shrink: &Shrink) -> Result<(), Fault> {
    let file_name = file.as_os_str();
    match shrink.file_system {
        FileSystemKind::Ntfs => {
            let size = shrink.to.to_string();
            let arguments = ["--force", "--no-progress-bar", "--size", &size];
            let mut arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
            arguments.push(file_name);
            step(shrink, "ntfsresize", &arguments, &[0])
        }
        FileSystemKind::Btrfs => mounted::shrink(file, shrink),
        _ => {
            // Exit codes of e2fsck(8): 0 clean, 1 and 2 corrected what is safe to correct.
            step(
                shrink,
                "e2fsck",
                &["-f".as_ref(), "-p".as_ref(), file_name],
                &[0, 1, 2],
            )?;
            let size = format!("{}K", shrink.to / 1024);
            step(shrink, "resize2fs", &[file_name, size.as_ref()], &[0])?;
            step(
                shrink,
                "e2fsck",
                &["-f".as_ref(), "-n".as_ref(), file_name],
                &[0],
            )
        }
    }
}

fn step(shrink: &Shrink, tool: &str, arguments: &[&OsStr], good: &[i32]) -> Result<(), Fault> {
    let (code, output) = run_tool(tool, arguments)?;
    if code.is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let Fault::Tool { tool, reason } = failed(tool, code, &output) else {
        return Err(failed(tool, code, &output));
    };
    Err(Fault::Tool {
        tool,
        reason: format!(
            "{reason}; the {} in partition {} was to be made smaller, to {}; if another try ends the \
             same, its data needs more room than that: restore to a larger disk",
            shrink.file_system,
            shrink.partition,
            HumanBytes(shrink.to)
        ),
    })
}
