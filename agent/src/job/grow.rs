//! Making file systems larger, with the reference tools, after their data is verified and before there is a
//! table.
//!
//! Invariant: only what the planner lets grow comes here, and each tool is looked for before a disk is
//! touched. Done again after an interruption, it ends the same: the restore first puts back what was captured.

use std::path::Path;

use backup::manifest::FileSystemKind;
use backup::plan::Grow;
use backup::units::HumanBytes;

use crate::job::error::Fault;
use crate::job::kernel::{failed, find_tool, run_tool};
use crate::job::mounted;

const EXT_TOOLS: [&str; 2] = ["e2fsck", "resize2fs"];
const NTFS_TOOLS: [&str; 1] = ["ntfsresize"];
const XFS_TOOLS: [&str; 1] = ["xfs_growfs"];
const BTRFS_TOOLS: [&str; 1] = ["btrfs"];

/// What was grown, for the summary.
fn grew(grow: &Grow) -> String {
    format!(
        "Grew the {} in partition {} from {} to {}.",
        grow.file_system,
        grow.partition,
        HumanBytes(grow.from),
        HumanBytes(grow.to)
    )
}

fn tools(grow: &Grow) -> Result<&'static [&'static str], Fault> {
    match grow.file_system {
        FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4 => Ok(&EXT_TOOLS),
        FileSystemKind::Ntfs => Ok(&NTFS_TOOLS),
        FileSystemKind::Xfs => Ok(&XFS_TOOLS),
        FileSystemKind::Btrfs => Ok(&BTRFS_TOOLS),
        other => Err(Fault::Internal(format!(
            "the plan grows the {other} in partition {}, which this agent cannot",
            grow.partition
        ))),
    }
}

/// Whether it only grows while it is mounted.
const fn is_mounted_for_it(kind: FileSystemKind) -> bool {
    matches!(kind, FileSystemKind::Xfs | FileSystemKind::Btrfs)
}

/// Looks for the tools that growing needs.
///
/// # Errors
/// [`Fault::Tool`] for the first one that is not there.
pub(crate) fn check_tools(grow: &Grow) -> Result<(), Fault> {
    tools(grow)?
        .iter()
        .try_for_each(|tool| find_tool(tool).map(drop))?;
    if is_mounted_for_it(grow.file_system) {
        mounted::check_kernel(grow.file_system)?;
    }
    Ok(())
}

/// Makes a file system as large as the device it is on. Returns sentences for the summary.
///
/// # Errors
/// A tool that fails, and a file system that needs a human.
pub(crate) fn grow_file_system(node: &Path, grow: &Grow) -> Result<Vec<String>, Fault> {
    check_tools(grow)?;
    let mut sentences = Vec::new();
    match grow.file_system {
        kind if is_mounted_for_it(kind) => {
            if let Some(left) = mounted::grow(node, grow)? {
                return Ok(vec![left]);
            }
        }
        FileSystemKind::Ntfs => sentences.push(grow_ntfs(node, grow)?),
        _ => sentences.extend(grow_ext(node, grow)?),
    }
    sentences.push(grew(grow));
    Ok(sentences)
}

/// `--force` once: with a volume that is marked as not clean the tool would ask, gets no answer, and ends.
fn grow_ntfs(node: &Path, grow: &Grow) -> Result<String, Fault> {
    let [tool] = NTFS_TOOLS;
    let arguments = ["--force".as_ref(), "--no-progress-bar".as_ref()];
    let (code, output) = run_tool(tool, &[arguments[0], arguments[1], node.as_os_str()])?;
    if code != Some(0) {
        return Err(failed(tool, code, &output));
    }
    Ok(format!(
        "Windows checks partition {} when it starts for the first time, because its NTFS has grown.",
        grow.partition
    ))
}

/// Makes an ext file system as large as the device it is on, with the reference tools. Returns a
/// sentence when it had to be corrected before.
///
/// # Errors
/// A tool that fails, and a file system that needs a human: its data is not what was captured, or it
/// was damaged before that and nobody noticed.
fn grow_ext(node: &Path, grow: &Grow) -> Result<Option<String>, Fault> {
    let [check, resize] = EXT_TOOLS;
    let node = node.as_os_str();
    let subject = format!("the {} in partition {}", grow.file_system, grow.partition);
    // Only what is safe by itself. Exit codes of e2fsck(8): 0 clean, 1 corrected, 2 corrected and
    // "restart the machine" (it is not mounted).
    let (code, output) = run_tool(check, &["-f".as_ref(), "-p".as_ref(), node])?;
    let corrected = match code {
        Some(0) => None,
        Some(1 | 2) => Some(format!(
            "{subject} was clean when captured; {check} corrected: {output}"
        )),
        // Bit 2 of the exit code: errors are left.
        Some(code) if code & 4 != 0 => {
            return Err(Fault::Tool {
                tool: check.to_owned(),
                reason: format!(
                    "{subject} was clean when captured and now has errors that are not safe to \
                     correct ({output}); if another try ends the same, check it on the source \
                     machine and capture again, or restore to a disk of the source's size, where \
                     nothing has to grow"
                ),
            });
        }
        code => return Err(failed(check, code, &output)),
    };
    if let Some(corrected) = &corrected {
        log::warn!("{corrected}");
    }
    let (code, output) = run_tool(resize, &[node])?;
    if code != Some(0) {
        return Err(failed(resize, code, &output));
    }
    Ok(corrected.map(|corrected| corrected.replacen("the", "The", 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fake::run;

    /// Grows an ext4 to which `command` of debugfs was done.
    fn grow_after(command: &str) -> Result<Vec<String>, Fault> {
        let folder = tempfile::tempdir().unwrap();
        let (image, tree) = (folder.path().join("image"), folder.path().join("tree"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("f"), "file").unwrap();
        let path = image.to_str().unwrap();
        let tree = tree.to_str().unwrap();
        run("mke2fs", &["-q", "-t", "ext4", "-d", tree, path, "8M"]);
        run("debugfs", &["-w", "-R", command, path]);
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.set_len(16 << 20).unwrap();
        let grow = Grow {
            partition: 3,
            file_system: FileSystemKind::Ext4,
            from: 8 << 20,
            to: 16 << 20,
        };
        let result = grow_file_system(&image, &grow);
        if result.is_ok() {
            let said = run("dumpe2fs", &["-h", path]);
            assert!(said.contains("Block count:              16384"), "{said}");
        }
        result
    }

    #[test]
    fn a_clean_file_system_grows_and_nothing_is_said() {
        let said = grow_after("stat /f").unwrap();
        assert_eq!(
            said,
            ["Grew the ext4 in partition 3 from 8.00 MiB to 16.0 MiB."]
        );
    }

    #[test]
    fn what_was_corrected_is_said_with_the_partition() {
        let said = grow_after("set_inode_field /f links_count 7").unwrap();
        let said = &said[0];
        let begin = "The ext4 in partition 3 was clean when captured; e2fsck corrected: ";
        assert!(said.starts_with(begin), "{said}");
        assert!(said.contains("ref count is 7"), "{said}");
    }

    #[test]
    fn an_error_that_is_not_safe_to_correct_is_a_fault() {
        let fault = grow_after("unlink /f").unwrap_err();
        let text = fault.to_string();
        assert!(matches!(fault, Fault::Tool { .. }), "{text}");
        assert!(text.contains("the ext4 in partition 3"), "{text}");
    }

    /// A file of 64 MiB with an NTFS of 40 MiB.
    fn small_ntfs(folder: &Path) -> (std::path::PathBuf, Grow) {
        let path = folder.join("volume");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(40 << 20).unwrap();
        run("mkntfs", &["-q", "-F", path.to_str().unwrap()]);
        file.set_len(64 << 20).unwrap();
        let grow = Grow {
            partition: 3,
            file_system: FileSystemKind::Ntfs,
            from: 40 << 20,
            to: 64 << 20,
        };
        (path, grow)
    }

    #[test]
    fn ntfs_grows_to_its_device_and_a_second_time_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, grow) = small_ntfs(folder.path());
        for _ in 0..2 {
            let said = grow_file_system(&path, &grow).unwrap();
            assert!(said[0].contains("partition 3"), "{said:?}");
            let info = run("ntfsresize", &["--info", "--force", path.to_str().unwrap()]);
            // Whole clusters, and the sector of the copy of the boot sector.
            let size = (64 << 20) - 4096 + 512;
            assert!(
                info.contains(&format!("Current volume size: {size} bytes")),
                "{info}"
            );
            run("ntfsfix", &["-n", path.to_str().unwrap()]);
        }
    }

    #[test]
    fn an_ntfs_that_is_none_any_more_is_an_error_with_the_tools_words() {
        let folder = tempfile::tempdir().unwrap();
        let (path, grow) = small_ntfs(folder.path());
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let error = grow_file_system(&path, &grow).unwrap_err();
        assert!(
            matches!(error, Fault::Tool { ref tool, .. } if tool == "ntfsresize"),
            "{error}"
        );
    }
}
