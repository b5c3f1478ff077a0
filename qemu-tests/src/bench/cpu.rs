//! Processor time of a server with all its threads and children, those that have ended included.
//!
//! A control group is the only account of children that nobody waits for (in.tftpd's). Version 2 and
//! version 1 of them are understood (kernel: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cpuacct.rst).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where control groups are, and which file of a group has its processor time.
const ROOTS: [(&str, &str); 3] = [
    ("/sys/fs/cgroup", "cpu.stat"),
    ("/sys/fs/cgroup/unified", "cpu.stat"),
    ("/sys/fs/cgroup/cpuacct", "cpuacct.usage"),
];

/// The account of one server. Dropping it ends what is left of the server and closes the account.
#[derive(Debug)]
pub(crate) struct CpuAccount {
    group: PathBuf,
    file: &'static str,
}

impl CpuAccount {
    /// Opens the account of a process that has not begun its work; its children come with it.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let mut reasons = Vec::new();
        for (root, file) in ROOTS {
            let group = Path::new(root).join(format!("netboot-bench-{pid}"));
            match open(&group, file, pid) {
                Ok(()) => return Ok(Self { group, file }),
                Err(error) => {
                    // It may not have been made at all.
                    let _ = fs::remove_dir(&group);
                    reasons.push(format!("{}: {error}", group.display()));
                }
            }
        }
        bail!(
            "processor time needs a control group: {}",
            reasons.join("; ")
        )
    }

    /// What was used so far, in user and in kernel mode.
    pub(crate) fn used(&self) -> anyhow::Result<Duration> {
        let path = self.group.join(self.file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        usage(&text).with_context(|| format!("{} is not understood: {text}", path.display()))
    }
}

impl Drop for CpuAccount {
    fn drop(&mut self) {
        // The kernel keeps a group as long as a process is in it. Children of a server that was killed go on
        // without it (nginx's workers); whoever is in the group was started by us.
        for _ in 0..100 {
            let members = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|line| line.parse().ok()) {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            match fs::remove_dir(&self.group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
        log::warn!("the control group {} stays", self.group.display());
    }
}

fn open(group: &Path, file: &str, pid: u32) -> io::Result<()> {
    fs::create_dir(group)?;
    fs::read_to_string(group.join(file))?;
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

/// `usage_usec` of `cpu.stat`, or the one number of nanoseconds of `cpuacct.usage`.
fn usage(text: &str) -> Option<Duration> {
    if let Ok(nanoseconds) = text.trim().parse() {
        return Some(Duration::from_nanos(nanoseconds));
    }
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    line.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        assert_eq!(usage("1500\n"), Some(Duration::from_nanos(1500)));
        let text = "usage_usec 42\nuser_usec 40\nsystem_usec 2\n";
        assert_eq!(usage(text), Some(Duration::from_micros(42)));
        assert_eq!(usage("user_usec 40\n"), None);
    }
}
