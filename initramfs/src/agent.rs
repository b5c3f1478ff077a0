//! The agent as `/init`, and the bare directories around it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::architecture::Architecture;
use crate::digest::blake3_hex;
use crate::elf::{self, ElfError};
use crate::tree::{Node, Tree};

/// Why the agent cannot be `/init`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// It could not be read.
    #[error(
        "{path}: cannot read the agent. Build it with `cargo build --release -p agent --target {}`",
        .architecture.agent_target()
    )]
    Read {
        /// What it should be built for.
        architecture: Architecture,
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no program for this machine type.
    #[error("{path}: the agent is no program for the wanted processor")]
    Elf {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// It needs libraries.
    #[error(
        "{path}: the agent needs {needs} and would not start as /init; expected a static program. Build \
         it with `--target {}`",
        .architecture.agent_target()
    )]
    Dynamic {
        /// What it should be built for.
        architecture: Architecture,
        /// Which file.
        path: PathBuf,
        /// Its loader and libraries.
        needs: String,
    },
}

/// Reads the agent and makes sure that it can be started without libraries.
///
/// # Errors
/// [`AgentError`].
pub(crate) fn read(path: &Path, architecture: Architecture) -> Result<Vec<u8>, AgentError> {
    let data = fs::read(path).map_err(|source| AgentError::Read {
        architecture,
        path: path.to_owned(),
        source,
    })?;
    let linkage = elf::linkage(&data, architecture).map_err(|source| AgentError::Elf {
        path: path.to_owned(),
        source,
    })?;
    let needs: Vec<String> = linkage
        .interpreter
        .into_iter()
        .chain(linkage.needed)
        .collect();
    if !needs.is_empty() {
        return Err(AgentError::Dynamic {
            architecture,
            path: path.to_owned(),
            needs: needs.join(", "),
        });
    }
    Ok(data)
}

/// `/init`, what must be there before anything is mounted, and the digest of what is `beside` the image: its name in
/// the boot folder and its content.
pub(crate) fn tree(agent: Vec<u8>, beside: Option<(String, &[u8])>) -> Tree {
    let mut tree = Tree::default();
    for path in [
        "etc",
        "mnt",
        "run",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
    ] {
        tree.directory(path, 0o755);
    }
    tree.directory("proc", 0o555);
    tree.directory("sys", 0o555);
    tree.directory("root", 0o700);
    tree.directory("tmp", 0o1777);
    for path in ["bin", "sbin", "lib", "lib64"] {
        tree.symlink(path, &format!("usr/{path}"));
    }
    // e2fsck and resize2fs look here for what is mounted.
    tree.symlink("etc/mtab", "/proc/self/mounts");
    // The kernel opens /dev/console for /init before anything can mount devtmpfs. Numbers: the
    // kernel's Documentation/admin-guide/devices.txt.
    let devices = [("console", 0o600, 5, 1), ("null", 0o666, 1, 3)];
    for (name, mode, major, minor) in devices {
        tree.insert(
            &format!("dev/{name}"),
            Node::CharDevice { mode, major, minor },
        );
    }
    tree.file("init", 0o755, agent);
    if let Some((name, content)) = beside {
        let line = format!("{name} {} {}\n", content.len(), blake3_hex(content));
        tree.file("etc/netboot-at-need", 0o644, line.into_bytes());
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::fake_elf;

    #[test]
    fn a_dynamic_agent_is_refused_with_what_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        fs::write(&path, fake_elf(Some("/lib/ld.so"), &["libc.so.6"], &[])).unwrap();
        let error = read(&path, Architecture::X64).unwrap_err().to_string();
        assert!(error.contains("/lib/ld.so, libc.so.6"), "{error}");
        fs::write(&path, fake_elf(None, &[], &[])).unwrap();
        read(&path, Architecture::X64).unwrap();
        fs::write(&path, b"#!/bin/sh").unwrap();
        assert!(matches!(
            read(&path, Architecture::X64),
            Err(AgentError::Elf { .. })
        ));
    }

    #[test]
    fn the_console_is_there_before_anything_is_mounted() {
        let tree = tree(vec![1], None);
        let console = tree
            .iter()
            .find(|(path, _)| *path == "dev/console")
            .unwrap()
            .1;
        assert!(matches!(
            console,
            Node::CharDevice {
                major: 5,
                minor: 1,
                ..
            }
        ));
    }
}
